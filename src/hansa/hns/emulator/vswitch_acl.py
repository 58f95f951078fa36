"""ACL policies of one endpoint against one header. Pure. Evidence: hcn.md 2.6."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hansa.hns.emulator.builds import Build
from hansa.hns.emulator.vswitch_model import Direction, Header
from hansa.hns.schema import Acl, HnsEndpoint, HnsNetwork, RawPolicy
from hansa.net import Address, Protocol, parse_address, parse_prefix

ANY_PROTOCOL = "256"
_BLOCK_FIRST = {"block": 0, "allow": 1}  # of one priority; anything else (Pass belongs to tiers) decides nothing


def deciding_acl(endpoint: HnsEndpoint, network: HnsNetwork, header: Header, direction: Direction) -> Acl | None:
    """The policy that decides, None = none is about it. `header` as the packet has it, whichever way it goes."""
    sets = _address_sets(network)
    fitting = [
        acl
        for acl in endpoint.policies
        if isinstance(acl, Acl)
        and acl.action.lower() in _BLOCK_FIRST
        and acl.direction.lower() == direction.value.lower()
        and _matches(acl, header, direction, sets)
    ]
    return min(fitting, key=lambda acl: (acl.priority, _BLOCK_FIRST[acl.action.lower()]), default=None)


def blocks(acl: Acl) -> bool:
    return acl.action.lower() == "block"


def denies_unmatched(endpoint: HnsEndpoint, direction: Direction, build: Build) -> bool:
    """Whether this build denies what no policy is about, once there is any."""
    any_acl = any(isinstance(policy, Acl) for policy in endpoint.policies)
    return build.acl_denies_unmatched and any_acl and direction is Direction.OUT


def _matches(acl: Acl, header: Header, direction: Direction, sets: Mapping[str, tuple[str, ...]]) -> bool:
    """Local is the pod's side in both directions."""
    out = direction is Direction.OUT
    local, local_port = (header.source, header.source_port) if out else (header.destination, header.port)
    remote, remote_port = (header.destination, header.port) if out else (header.source, header.source_port)
    return (
        _has_protocol(acl.protocols, header.protocol)
        and _has_address(acl.local_addresses, local, sets)
        and _has_address(acl.remote_addresses, remote, sets)
        and _has_port(acl.local_ports, local_port)
        and _has_port(acl.remote_ports, remote_port)
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _has_protocol(text: str, protocol: Protocol) -> bool:
    words = _words(text)
    return not words or ANY_PROTOCOL in words or str(protocol.value) in words


def _has_address(text: str, address: Address, sets: Mapping[str, tuple[str, ...]]) -> bool:
    words = _words(text)
    return not words or any(_is_in(address, one) for word in words for one in sets.get(word, (word,)))


def _is_in(address: Address, word: str) -> bool:
    try:
        return address in parse_prefix(word) if "/" in word else address == parse_address(word)
    except ValueError:
        return False  # the id of a set that the network does not have


def _has_port(text: str, port: int | None) -> bool:
    words = _words(text)
    return not words or (port is not None and any(_spans(word, port) for word in words))


def _spans(word: str, port: int) -> bool:
    first, _, last = word.partition("-")
    return first.isdigit() and int(first) <= port <= int(last if last.isdigit() else first)


def _address_sets(network: HnsNetwork) -> dict[str, tuple[str, ...]]:
    """SetPolicy: id to its addresses; a set may name others."""
    found: dict[str, tuple[str, ...]] = {}
    for policy in network.policies:
        if isinstance(policy, RawPolicy) and policy.type == "SetPolicy" and not policy.fault:
            settings = msgspec.json.decode(policy.settings)
            found[str(settings.get("Id", ""))] = tuple(_words(str(settings.get("Values", ""))))
    for _ in found:  # nested sets, at most as deep as there are sets
        found = {
            name: tuple(one for word in words for one in found.get(word, (word,))) for name, words in found.items()
        }
    return found
