"""One packet on one Windows node: what the rules say, and what the switch does with it by what HNS holds. Pure.

Whoever asks reads HNS, real, emulated or from files; the way is that of `hns.emulator.vswitch`, and as sure as that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hansa.dataplanes.base import Shortfall
from hansa.explain.trace import verdict_text
from hansa.hns.emulator.builds import Grade
from hansa.hns.emulator.vswitch import Switch, forward
from hansa.hns.emulator.vswitch_model import (
    BEHAVIOURS,
    EXTERNAL_PORT,
    HOST_PORT,
    Delivered,
    Dropped,
    Frame,
    Header,
    Passage,
    Port,
    PortKind,
    pod_port,
)
from hansa.lab.diagnosis import Situated, known_limits
from hansa.lab.world import FIRST_PORT
from hansa.net import Address, Packet, address_port
from hansa.pipeline import Pipeline
from hansa.rules.decide import decide, matching_rule, origin_of
from hansa.rules.model import Drop, Forward, Origin, Reject, Rule, Verdict


@dataclass(frozen=True, slots=True)
class OnNode:
    """tries: the packet's way for each endpoint that may be picked; one if nothing is to be picked.

    limits: what HNS is known not to do, where that explains the differences.
    """

    packet: Packet
    origin: Origin
    rule: Rule | None
    wanted: Verdict
    at: Port
    tries: tuple[Passage, ...]
    differences: tuple[str, ...]
    limits: tuple[str, ...]


def explain_on_node(packet: Packet, pipeline: Pipeline, switch: Switch, shortfalls: tuple[Shortfall, ...]) -> OnNode:
    """Follow a packet through the rules and through a node's switch. `pipeline` must have made a message."""
    rules, surroundings = pipeline.rules, pipeline.surroundings
    wanted = decide(rules, surroundings, packet)
    rule = matching_rule(rules, surroundings, packet)
    at = _entry(switch, packet.source)
    tries = _tries(switch, packet, at)
    differences = tuple(_differences(switch, packet, wanted, tries))
    limits: list[str] = []
    for one in tries:
        met = Situated(
            rule,
            wanted,
            from_outside=at.kind is PortKind.EXTERNAL,
            from_node=at.kind is PortKind.HOST,
            cause=one.end.cause if isinstance(one.end, Dropped) else None,
        )
        limits += known_limits(met, shortfalls) if differences else ()
    origin = origin_of(surroundings, packet)
    return OnNode(packet, origin, rule, wanted, at, tries, differences, tuple(dict.fromkeys(limits)))


def _entry(switch: Switch, source: Address) -> Port:
    """A pod of this node, the host itself, or the wire."""
    if source in switch.host_addresses or source.is_loopback:
        return HOST_PORT
    endpoint = switch.attached_at(source)
    return EXTERNAL_PORT if endpoint is None else pod_port(endpoint.guid)


def _tries(switch: Switch, packet: Packet, at: Port) -> tuple[Passage, ...]:
    """One for each that a load balancer chooses from."""
    source_port = None if packet.port is None else FIRST_PORT
    frame = Frame(Header(packet.source, source_port, packet.destination, packet.port, packet.protocol))
    found: list[Passage] = []
    number, count = 0, 1
    while number < count:

        def choose(_: tuple[object, ...], candidates: tuple[Address, ...], number: int = number) -> int:
            nonlocal count
            count = max(count, len(candidates))
            return number % len(candidates)

        found.append(forward(switch, frame, at, choose=choose))
        number += 1
    return tuple(found)


def _reached(switch: Switch, packet: Packet, passage: Passage) -> tuple[Address, int | None] | None:
    """The endpoint to which a packet was led; None if nobody led it anywhere. Encapsulation does not count."""
    header = passage.frame.header
    if isinstance(passage.end, Dropped):
        return None
    if isinstance(passage.end, Delivered) and passage.end.port.endpoint is not None:
        if header.destination == packet.destination:  # preserve-destination: the pod itself owns the address
            own = switch.endpoints[passage.end.port.endpoint].addresses
            kept = any(hop.behaviour == "VP-08" for hop in passage.hops)
            return (own[0], None) if kept else None
        return header.destination, header.port
    return None if header.destination == packet.destination else (header.destination, header.port)


def _differences(switch: Switch, packet: Packet, wanted: Verdict, tries: tuple[Passage, ...]) -> Iterator[str]:
    reached = {each for one in tries if (each := _reached(switch, packet, one)) is not None}
    names = sorted(str(address) if port is None else address_port(address, port) for address, port in reached)
    if not isinstance(wanted, Forward):
        if names:
            word = type(wanted).__name__.lower() if isinstance(wanted, Drop | Reject) else "leave alone"
            yield f"rules: {word}; HNS leads to {', '.join(names)}"
        return
    missing = [
        str(one)
        for one in wanted.endpoints
        if (one.address, one.port) not in reached and (one.address, None) not in reached
    ]
    if missing:
        yield f"HNS does not lead to {', '.join(missing)}"
    known = {one.address for one in wanted.endpoints}
    if foreign := sorted(str(address) for address, _ in reached if address not in known):
        yield f"HNS leads to {', '.join(foreign)}, which the rules do not"


# -- text and data ---------------------------------------------------------------------------------------------------

_PORTS = {PortKind.POD: "a pod of this node", PortKind.HOST: "the node itself", PortKind.EXTERNAL: "the wire"}


def on_node_lines(found: OnNode) -> list[str]:
    """For people: both, why and by what, and whether they agree."""
    lines = [f"{found.packet}, from {_PORTS[found.at.kind]}", f"rules: {verdict_text(found.wanted)}"]
    lines.append(f"  because {found.wanted.because.value}")
    if found.rule is not None:
        lines.append(f"  rule  {found.rule.kind.value} {found.rule.key} of {found.rule.owner}")
    for passage in found.tries:
        lines.append("HNS:")
        for hop in passage.hops:
            inferred = f" [{hop.behaviour} inferred]" if hop.grade is Grade.INFERRED else ""
            lines.append(f"  {hop.port} {hop.direction.value} {hop.layer}: {hop.text}{inferred}")
            lines += [f"    rule {hop.rule}, load balancer {(hop.balancer or '-')[:8].lower()}"] if hop.rule else []
            lines += [f"    {hop.after}"] if hop.after != hop.before else []
        lines.append(f"  {_ending(passage)}")
    lines += [f"difference: {one}" for one in found.differences] or ["rules and HNS agree"]
    lines += [f"known limit: {one}" for one in found.limits]
    for key in _inferred(found):
        lines.append(f"inferred: {key} {BEHAVIOURS[key].meaning} ({BEHAVIOURS[key].evidence})")
    return lines


def _ending(passage: Passage) -> str:
    match passage.end:
        case Dropped() as dropped:
            return f"so it is lost: {dropped}"
        case Delivered(port):
            return (
                f"so it reaches {'the host' if port.endpoint is None else f'the pod of {port}'}: {passage.frame.header}"
            )
        case _:
            return f"so it leaves by the wire: {passage.frame}"


def _inferred(found: OnNode) -> list[str]:
    used = [hop.behaviour for one in found.tries for hop in one.hops]
    used += [one.end.behaviour for one in found.tries if isinstance(one.end, Dropped) and one.end.behaviour]
    return [key for key in dict.fromkeys(used) if BEHAVIOURS[key].grade is Grade.INFERRED]


def on_node_data(found: OnNode) -> dict[str, Any]:
    rule = found.rule
    return {
        "packet": str(found.packet),
        "from": found.at.kind.value,
        "rule": rule and {"kind": rule.kind.value, "frontend": str(rule.key), "owner": str(rule.owner)},
        "rules": verdict_text(found.wanted),
        "because": found.wanted.because.value,
        "hns": [
            {
                "hops": [
                    {
                        "port": str(hop.port),
                        "direction": hop.direction.value,
                        "layer": hop.layer,
                        "what": hop.text,
                        "rule": hop.rule or None,
                        "loadBalancer": hop.balancer,
                        "after": str(hop.after),
                        "behaviour": hop.behaviour,
                        "grade": hop.grade.value,
                    }
                    for hop in one.hops
                ],
                "end": _ending(one),
            }
            for one in found.tries
        ],
        "differences": list(found.differences),
        "knownLimits": list(found.limits),
    }
