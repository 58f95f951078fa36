"""One packet: what the rules say of it and what the objects of a dataplane do with it, side by side. Pure.

`read_packet` understands what people type, `explain` follows the packet both ways, the rest is text and plain data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_never

from hansa.api.objects import ServiceKey
from hansa.dataplanes.nftables.objects import Ruleset
from hansa.dataplanes.nftables.render import render
from hansa.dataplanes.nftables.trace import End, Fate, SeenPacket, trace, walk
from hansa.errors import ConfigError, Fault
from hansa.net import Address, IPFamily, Packet, Protocol, address_port, family_of, parse_address, parse_protocol
from hansa.pipeline import Pipeline
from hansa.rules.decide import decide, masqueraded, matching_rule, origin_of
from hansa.rules.model import Drop, Forward, NotHandled, Origin, Reject, Rule, RuleChanges, Verdict
from hansa.services.model import ServicePort
from hansa.wording import named

# -- what people type ------------------------------------------------------------------------------------------------

_FORM = "SOURCE -> ADDRESS:PORT/tcp, like '10.1.1.5 -> 10.96.0.10:80/tcp' or 'pod 10.1.1.5 -> svc/shop/web:http'"
_LINE = re.compile(r"(?P<source>.+?)\s*->\s*(?P<target>\S+)(?:\s+via\s+(?P<interface>\S+))?")
_TARGET = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\[\]]+)(?::(?P<port>\d+))?(?:/(?P<protocol>\w+))?")
_SERVICE = re.compile(r"svc/(?P<namespace>[^/:]+)/(?P<name>[^/:]+)(?::(?P<port>[^/]+))?(?:/(?P<protocol>\w+))?")


def read_packet(text: str, pipeline: Pipeline) -> Packet:
    """A packet as people write it: `SOURCE -> TARGET [via INTERFACE]`.

    SOURCE: an address, `pod ADDRESS`, or `node`. TARGET: `ADDRESS:PORT/PROTOCOL`, `node:PORT/PROTOCOL`, or
    `svc/NAMESPACE/NAME[:PORT][/PROTOCOL]` for a Service's ClusterIP, PORT a name or a number; without protocol TCP, or
    the Service's. Names are looked up in `pipeline`, which must have made a message. Raises ConfigError.
    """
    try:
        return _packet(text, pipeline)
    except ValueError as error:  # an address, or a protocol
        raise _fault(str(error), f"write {_FORM}") from error


def _packet(text: str, pipeline: Pipeline) -> Packet:
    match = _LINE.fullmatch(text.strip())
    if match is None:
        raise _fault(f"{text!r} is no packet", f"write {_FORM}")
    source_text, target_text = match["source"], match["target"]
    given = None if source_text == "node" else parse_address(source_text.removeprefix("pod ").strip())
    destination, protocol, port = _read_target(target_text, None if given is None else family_of(given), pipeline)
    source = given or _node_address(family_of(destination), pipeline)
    if source.version != destination.version:
        raise _fault(f"{text!r} goes from one address family to the other", "give two addresses of one family")
    return Packet(source, destination, protocol, port, match["interface"])


def _fault(text: str, remedy: str) -> ConfigError:
    return ConfigError(Fault("PACKET", text, remedy))


def _node_address(family: IPFamily, pipeline: Pipeline) -> Address:
    facts = pipeline.surroundings.node
    if (address := facts.node_ips.get(family)) is None:
        raise _fault(f"node {facts.name} has no {family} address", "write the address")
    return address


def _read_target(text: str, family: IPFamily | None, pipeline: Pipeline) -> tuple[Address, Protocol, int | None]:
    if (named := _SERVICE.fullmatch(text)) is not None:
        found = _service_port(named, family, pipeline)
        return found.cluster_ip, found.name.protocol, found.port
    match = _TARGET.fullmatch(text)
    if match is None:
        raise _fault(f"{text!r} is no target", f"write {_FORM}")
    host, port = match["host"], int(match["port"]) if match["port"] else None
    protocol = parse_protocol(match["protocol"] or "tcp")
    if (port is not None) != protocol.has_ports or (port is not None and not 0 < port < 1 << 16):
        raise _fault(f"{text!r} has no port that {protocol} could have", f"write {_FORM}")
    if host == "node":
        return _node_address(family or IPFamily.IPV4, pipeline), protocol, port
    return parse_address(host.strip("[]")), protocol, port


def _service_port(named: re.Match[str], family: IPFamily | None, pipeline: Pipeline) -> ServicePort:
    key = ServiceKey(named["namespace"], named["name"])
    protocol = parse_protocol(named["protocol"]) if named["protocol"] else None
    wanted = named["port"]
    every = [one.port for one in pipeline.view(key)]
    if not every:
        raise _fault(f"{key} is no Service that is handled here", "see `hansa render`")
    found = [
        one
        for one in every
        if (wanted is None or wanted in (one.name.port, str(one.port)))
        and protocol in (None, one.name.protocol)
        and family in (None, one.family)
    ]
    if not found:
        ports = sorted({f"{one.name.port or one.port} ({one.family}, {one.name.protocol})" for one in every})
        raise _fault(f"{named[0]} names no port of {key}", f"it has {', '.join(ports)}")
    if len({(one.name, one.port) for one in found}) > 1:
        raise _fault(f"{named[0]} names several ports of {key}", "add :PORT or /PROTOCOL")
    return found[0]


# -- both ways -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explanation:
    """A packet, judged twice. rule: None = it aims at no frontend. differences: () = rules and objects agree.

    fate: the way of the packet through the objects; of several that are possible, the one to the first endpoint.
    """

    packet: Packet
    origin: Origin
    rule: Rule | None
    wanted: Verdict
    found: Verdict
    fate: Fate
    ruleset: Ruleset
    differences: tuple[str, ...]


def explain(ruleset: Ruleset, pipeline: Pipeline, packet: Packet) -> Explanation:
    """Follow a packet through the rules and through one family's table. `pipeline` must have made a message."""
    rules, surroundings = pipeline.rules, pipeline.surroundings
    own = surroundings.node.addresses
    wanted = decide(rules, surroundings, packet)
    found = trace(ruleset, packet, own)
    differences = [*_differences(wanted, found)]
    fate = walk(ruleset, packet, own, choose=lambda _: 0, memory={})
    if isinstance(wanted, Forward) and not differences:
        differences += _source_differences(ruleset, wanted, packet, own)
    return Explanation(
        packet,
        origin_of(surroundings, packet),
        matching_rule(rules, surroundings, packet),
        wanted,
        found,
        fate,
        ruleset,
        tuple(differences),
    )


def explain_by_nftables(packet: Packet, pipeline: Pipeline, message: RuleChanges) -> Explanation:
    """Follow a packet through the table that a complete message makes of the rules."""
    family = family_of(packet.destination)
    rules = [rule for key, rule in message.rules.items() if rule is not None and key.family is family]
    ruleset, _ = render(rules, message.surroundings, family)
    return explain(ruleset, pipeline, packet)


def _differences(wanted: Verdict, found: Verdict) -> Iterator[str]:
    if type(wanted) is not type(found):
        yield f"rules: {verdict_text(wanted)}; objects: {verdict_text(found)}"
    elif isinstance(wanted, Forward) and isinstance(found, Forward):
        want, have = ({str(one) for one in side.endpoints} for side in (wanted, found))
        if missing := sorted(want - have):
            yield f"objects do not lead to {', '.join(missing)}"
        if foreign := sorted(have - want):
            yield f"objects lead to {', '.join(foreign)}, which the rules do not"
        if wanted.masquerade != found.masquerade:
            yield f"rules: {_source_text(wanted.masquerade)}; objects: {_source_text(found.masquerade)}"


def _source_differences(ruleset: Ruleset, wanted: Forward, packet: Packet, own: frozenset[Address]) -> Iterator[str]:
    """Endpoint by endpoint, for one that is sent to itself is masqueraded whatever the rule says (M6)."""
    for number in range(len(wanted.endpoints)):
        fate = walk(ruleset, packet, own, choose=lambda modulus, n=number: n % modulus, memory={})  # type: ignore[misc]
        met = next((one for one in wanted.endpoints if (one.address, one.port) == fate.endpoint), None)
        if met is not None and fate.masqueraded != masqueraded(wanted, packet, met):
            yield f"on the way to {met}, objects: {_source_text(fate.masqueraded)}; rules say otherwise"


# -- text and data ---------------------------------------------------------------------------------------------------

_ENDPOINTS_SHOWN = 8


def _source_text(masquerade: bool) -> str:
    return "source becomes the node's" if masquerade else "source stays"


def verdict_text(verdict: Verdict) -> str:
    """A verdict in one line, its endpoints included."""
    match verdict:
        case Forward(endpoints, masquerade):
            return f"forward to {named(endpoints, most=_ENDPOINTS_SHOWN)}; {_source_text(masquerade)}"
        case Drop():
            return "drop"
        case Reject():
            return "reject"
        case NotHandled():
            return "not handled: it goes on as it came"
        case _:
            assert_never(verdict)


def explanation_lines(found: Explanation) -> list[str]:
    """For people: both verdicts, why and by what, and whether they agree."""
    lines = [f"{found.packet}, from {_ORIGIN_TEXTS[found.origin]}"]
    lines.append(f"rules:    {verdict_text(found.wanted)}")
    lines.append(f"  because {found.wanted.because.value}")
    if found.rule is not None:
        lines.append(f"  rule    {found.rule.kind.value} {found.rule.key} of {found.rule.owner}")
    lines.append(f"nftables: {verdict_text(found.found)}")
    for met in found.fate.met:
        lines.append(f"  {met.chain}: {met.rule}")
        lines += [f"    {element.write(found.ruleset)}" for element in met.elements]
    if not found.fate.met:
        lines.append("  no rule is about it")
    lines.append(_ending(found.fate))
    lines += [f"difference: {one}" for one in found.differences] or ["rules and objects agree"]
    return lines


_ORIGIN_TEXTS = {Origin.POD: "a pod", Origin.NODE: "this node", Origin.OUTSIDE: "outside"}


def _ending(fate: Fate) -> str:
    match fate.end:
        case End.DROPPED:
            return "  so it is dropped"
        case End.REJECTED:
            return "  so it is refused"
        case End.ACCEPTED if fate.endpoint is None:
            return "  so it goes on as it came"
        case End.ACCEPTED:
            return f"  so this one goes to {address_port(*fate.endpoint)}; {_source_text(fate.masqueraded)}"


def explanation_data(found: Explanation) -> dict[str, Any]:
    rule = found.rule
    return {
        "packet": str(found.packet),
        "origin": found.origin.value,
        "rule": rule and {"kind": rule.kind.value, "frontend": str(rule.key), "owner": str(rule.owner)},
        "rules": _verdict_data(found.wanted),
        "nftables": {
            **_verdict_data(found.found),
            "met": [
                {
                    "chain": met.chain,
                    "rule": met.rule,
                    "elements": [element.write(found.ruleset) for element in met.elements],
                }
                for met in found.fate.met
            ],
        },
        "differences": list(found.differences),
    }


def _verdict_data(verdict: Verdict) -> dict[str, Any]:
    data: dict[str, Any] = {"verdict": type(verdict).__name__, "because": verdict.because.value}
    if isinstance(verdict, Forward):
        data |= {"endpoints": [str(one) for one in verdict.endpoints], "masquerade": verdict.masquerade}
    return data


# -- real packets ----------------------------------------------------------------------------------------------------


def seen_difference(seen: SeenPacket, found: Explanation) -> str:
    """How a real packet went another way than the rules want; "" if it did not, or did not have to ask."""
    if not seen.asked_hansa:
        return ""
    match found.wanted:
        case Forward(endpoints) as wanted:
            if seen.stopped_by:
                return f"rules: {verdict_text(wanted)}; {seen.stopped_by} stopped it"
            if seen.target is not None and address_port(*seen.target) not in {str(one) for one in endpoints}:
                return f"rules: {verdict_text(wanted)}; it went to {address_port(*seen.target)}"
            return ""
        case Reject() as wanted:
            return "" if seen.refused else f"rules: {verdict_text(wanted)}; it was not refused"
        case Drop() as wanted:
            return "" if seen.stopped_by and not seen.refused else f"rules: {verdict_text(wanted)}; it was not dropped"
        case NotHandled() as wanted:
            aimed = (found.packet.destination, found.packet.port)
            untouched = not seen.refused and seen.target in (None, aimed)
            return "" if untouched else f"rules: {verdict_text(wanted)}; it was touched"
        case _:
            assert_never(found.wanted)


def seen_lines(seen: SeenPacket, found: Explanation) -> list[str]:
    """For people: the rules that a real packet met, and what became of it."""
    lines = [f"seen: {found.packet}"]
    for one in seen.rules:
        place = f"{one.table} {one.chain}" if one.table else one.chain
        # hansa's own rules say what they do; of others only the verdict is known.
        verdict = f" -> {one.verdict}" if one.verdict and (one.table or "vmap" in one.rule) else ""
        lines.append(f"  {place}: {one.rule}{verdict}")
    if not seen.asked_hansa:
        return [*lines, "  hansa's table was not asked: a later packet of a connection"]
    if seen.refused:
        lines.append("  so it was refused")
    elif seen.stopped_by:
        lines.append(f"  so it was dropped, by {seen.stopped_by}")
    elif seen.target is not None:
        lines.append(f"  so it went to {address_port(*seen.target)}")
    difference = seen_difference(seen, found)
    return [*lines, f"difference: {difference}" if difference else "as the rules want it"]


def seen_data(seen: SeenPacket, found: Explanation) -> dict[str, Any]:
    return {
        "rules": [
            {"table": one.table or "hansa", "chain": one.chain, "rule": one.rule, "verdict": one.verdict or None}
            for one in seen.rules
        ],
        "target": address_port(*seen.target) if seen.target else None,
        "stoppedBy": seen.stopped_by or None,
        "refused": seen.refused,
        "askedHansa": seen.asked_hansa,
        "difference": seen_difference(seen, found) or None,
    }
