"""What the Windows dataplane holds, for people: service port, frontend, load balancer, endpoints. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hansa.dataplanes.windows.compare import (
    Situation,
    plan_frontend,
    resolve,
)
from hansa.hns.api import Guid
from hansa.hns.schema import HnsLoadBalancer
from hansa.net import Address
from hansa.rules.model import FrontendKey
from hansa.rules.ruleset import frontend_order


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """guid: None = HNS has none. place: `local`, `remote`, or why there is none."""

    address: Address
    guid: Guid | None
    place: str


@dataclass(frozen=True, slots=True)
class Row:
    """One frontend. guid: of its load balancer, None = there is none. flags: words, as HNS holds them (else as wanted).

    kind: `ClusterIP`, `NodePort`, ..., `health check`. state: "" = as desired, else what is wrong or awaited.
    """

    owners: tuple[str, ...]
    frontend: FrontendKey
    kind: str
    guid: Guid | None
    flags: tuple[str, ...]
    internal_port: int
    source_vip: Address | None
    endpoints: tuple[EndpointRow, ...]
    state: str


def row_data(row: Row) -> dict[str, object]:
    """A row as JSON has it."""
    return {
        "owners": list(row.owners),
        "frontend": str(row.frontend),
        "kind": row.kind,
        "loadBalancer": row.guid,
        "flags": list(row.flags),
        "internalPort": row.internal_port,
        "sourceVip": None if row.source_vip is None else str(row.source_vip),
        "endpoints": [{"address": str(one.address), "endpoint": one.guid, "place": one.place} for one in row.endpoints],
        "state": row.state or None,
    }


def make_table(situation: Situation, reasons: Mapping[FrontendKey, str]) -> list[Row]:
    """Rows of every frontend that has, or should have, a load balancer; sorted by owner, then by frontend.

    reasons: for frontends that are not as desired, the last word of HNS or of the planner.
    """
    wanted = situation.wanted
    rows = [_row(situation, frontend, reasons.get(frontend, "")) for frontend in wanted.balancers]
    rows.extend(
        Row(
            (str(rule.owner),), frontend, rule.kind.value, None, (), 0, None, (), "no load balancer: no endpoint to use"
        )
        for frontend, rule in wanted.rules.items()
        if frontend not in wanted.balancers
    )
    return sorted(rows, key=lambda row: (row.owners, frontend_order(row.frontend)))


def _row(situation: Situation, frontend: FrontendKey, reason: str) -> Row:
    plan = plan_frontend(situation, frontend)
    desired = situation.wanted.balancers[frontend]
    rule = situation.wanted.rules.get(frontend)
    balancer = situation.observed.balancers.get(plan.guid) if plan.guid else None
    state = reason or plan.blocked or ("" if plan.settled else plan.why or "endpoints are missing")
    if not state and plan.waiting:
        state = f"waits for the CNI: {', '.join(str(address) for address in plan.waiting)}"
    return Row(
        desired.owners,
        frontend,
        rule.kind.value if rule is not None else desired.key.role.value,
        balancer.guid if balancer else None,
        tuple(_flag_words(balancer) if balancer else ()),
        desired.internal_port,
        balancer.source_vip if balancer else desired.source_vip,
        tuple(_endpoint_row(situation, address) for address in desired.backends),
        state,
    )


def _flag_words(balancer: HnsLoadBalancer) -> Iterator[str]:
    yield from (flag.name for flag in balancer.flags if flag.name)
    for mapping in balancer.port_mappings:
        yield from (flag.name for flag in mapping.flags if flag.name)
        if mapping.distribution:
            yield mapping.distribution.name


def _endpoint_row(situation: Situation, address: Address) -> EndpointRow:
    guid = resolve(situation, address)
    if guid is None:
        waits = situation.wanted.waits_for_local(address)
        return EndpointRow(address, None, "waits for the CNI" if waits else "missing")
    return EndpointRow(address, guid, "remote" if situation.observed.endpoints[guid].remote else "local")
