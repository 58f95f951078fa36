"""nftables' tables for people, one line per verdict, and for programs, everything as plain data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from hansa.dataplanes.nftables.frame import FROM_NODE, FROM_PODS, PICKS, SHORT_CIRCUIT, Place, is_pick, slots
from hansa.dataplanes.nftables.objects import (
    TABLE,
    Chain,
    Labelled,
    Ruleset,
    SetSpec,
    Target,
    Value,
    nft_family,
    ordered_chains,
    split,
    write_key,
    write_part,
    write_rule,
)
from hansa.net import IPFamily, address_port, parse_address


def table_data(ruleset: Ruleset) -> dict[str, Any]:
    """One family's table as plain data: what a key is made of, elements in nft's words, rules as text."""
    return {
        "family": nft_family(ruleset.family),
        "name": TABLE,
        "sets": [_set_data(spec, ruleset.elements.get(spec.name), ruleset.family) for spec in ruleset.sets],
        "chains": [_chain_data(chain, ruleset.family) for chain in ordered_chains(ruleset.chains.values())],
    }


def _set_data(spec: SetSpec, elements: Mapping[bytes, Value] | None, family: IPFamily) -> dict[str, Any]:
    found: dict[str, Any] = {"name": spec.name, "key": [part.value for part in spec.key]}
    if spec.data is not None:
        found["data"] = [part.value for part in spec.data] or ["verdict"]
    if elements is None:
        return {**found, "size": spec.size, "elements": None}
    return {**found, "elements": [_element_data(spec, key, elements[key], family) for key in sorted(elements)]}


def _element_data(spec: SetSpec, key: bytes, value: Value, family: IPFamily) -> dict[str, Any]:
    found: dict[str, Any] = {"key": write_key(spec, key, family)}
    if isinstance(value, Target):
        return {**found, "verdict": value.verdict}
    if isinstance(value, Labelled):
        return {**found, "data": _data_text(spec, value.data, family), "for": value.comment}
    return {**found, "data": _data_text(spec, value, family)} if spec.data else found


def _data_text(spec: SetSpec, value: bytes, family: IPFamily) -> str:
    return " . ".join(write_part(part, data) for part, data in split(spec.data or (), value, family))


def _chain_data(chain: Chain, family: IPFamily) -> dict[str, Any]:
    found: dict[str, Any] = {"name": chain.name}
    if (base := chain.base) is not None:
        found |= {"type": base.type, "hook": base.hook.name.lower(), "priority": base.priority}
    return {**found, "rules": [write_rule(rule, family) for rule in chain.rules]}


class Line(NamedTuple):
    """One verdict of a table. asker: whose packets it is about. endpoints: () = none are chosen."""

    owner: str
    frontend: str
    asker: str
    verdict: str
    endpoints: tuple[str, ...]


_ASKERS = {"": "everybody else", FROM_PODS: "pods", FROM_NODE: "this node"}


def frontend_lines(ruleset: Ruleset) -> Iterator[Line]:
    """Every frontend with what its verdicts lead to, in the order of its key."""
    picks = ruleset.elements.get(PICKS, {})
    for place in Place:
        spec = ruleset.spec(place.frontends)
        endpoints = {short: _endpoints_by_frontend(ruleset, place, short) for short in (False, True)}
        keys = {key for suffix in _ASKERS for key in ruleset.elements.get(place.frontends + suffix, {})}
        for key in sorted(keys):
            held = {suffix: ruleset.elements.get(place.frontends + suffix, {}).get(key) for suffix in _ASKERS}
            for suffix, asker in _ASKERS.items():
                number = held[suffix]
                target = picks.get(number.data) if isinstance(number, Labelled) else None
                if isinstance(number, Labelled) and isinstance(target, Target):
                    alone = suffix == "" and len([one for one in held.values() if one is not None]) == 1
                    picked = endpoints[SHORT_CIRCUIT in target.chain] if is_pick(target.chain) else {}
                    yield Line(
                        number.comment,
                        _frontend_text(spec, key, ruleset.family),
                        "everybody" if alone else asker,
                        target.verdict,
                        tuple(picked.get(key, ())),
                    )


def _frontend_text(spec: SetSpec, key: bytes, family: IPFamily) -> str:
    *address, protocol, port = (write_part(part, data) for part, data in split(spec.key, key, family))
    where = address_port(parse_address(address[0]), int(port)) if address else f"node({family}):{port}"
    return f"{where}/{protocol}"


def _endpoints_by_frontend(ruleset: Ruleset, place: Place, short_circuit: bool) -> dict[bytes, list[str]]:
    """Of the plain map and, with session affinity, of the one by class id: a frontend is in one of them."""
    found: dict[bytes, list[str]] = {}
    for kind in ("slots", "sticky-slots"):
        spec = ruleset.spec(slots(place, short_circuit, kind))
        for key, value in sorted(ruleset.elements.get(spec.name, {}).items()):
            if isinstance(value, bytes):
                parts = split(spec.data or (), value, ruleset.family)
                address, port = (write_part(part, data) for part, data in parts)
                found.setdefault(key[:-4], []).append(address_port(parse_address(address), int(port)))
    return found


def frontend_table(rulesets: Iterable[Ruleset]) -> Table:
    """Service port, frontend, who asks, verdict, endpoints: one line per verdict."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("FOR", "FRONTEND", "ASKED BY", "VERDICT", "ENDPOINTS"):
        table.add_column(heading, overflow="fold")
    for ruleset in rulesets:
        for line in frontend_lines(ruleset):
            cells = (line.owner, line.frontend, line.asker, line.verdict, "\n".join(line.endpoints) or "-")
            table.add_row(*map(Text, cells))  # the brackets of an IPv6 frontend are no markup
    return table
