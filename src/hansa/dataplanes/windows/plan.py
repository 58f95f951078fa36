"""What to do, in which order: touched places to steps. Pure; the steps are performed by `execute`.

Evidence: windows-proxy H.4 (order of steps), F22 (critical services first).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from hansa.dataplanes.base import Change, Verb
from hansa.dataplanes.windows.compare import AddressPlan, FrontendPlan, Situation, plan_address, plan_frontend
from hansa.dataplanes.windows.objects import EndpointKind, Touched, address_order
from hansa.dataplanes.windows.ownership import Standing
from hansa.hns.api import Guid
from hansa.net import Address
from hansa.rules.model import FrontendKey
from hansa.rules.ruleset import frontend_order

LOAD_BALANCER = "load balancer"


@dataclass(frozen=True, slots=True)
class MakeEndpoint:
    address: Address
    change: Change


@dataclass(frozen=True, slots=True)
class ReplaceEndpoint:
    """Move the load balancers off it, delete it, make it anew, move them back: one group."""

    address: Address
    change: Change


@dataclass(frozen=True, slots=True)
class SettleFrontend:
    """Bring one frontend to its desired state: one call group, whatever it takes."""

    frontend: FrontendKey
    change: Change


@dataclass(frozen=True, slots=True)
class DeleteStray:
    """A load balancer of ours without a frontend that can be read."""

    guid: Guid
    change: Change


@dataclass(frozen=True, slots=True)
class DeleteEndpoint:
    address: Address
    guid: Guid
    change: Change


Step = MakeEndpoint | ReplaceEndpoint | SettleFrontend | DeleteStray | DeleteEndpoint


@dataclass(frozen=True, slots=True)
class Work:
    """What to look at. blocked: keys whose retry is not due. since: when a frontend was first not as desired."""

    touched: Touched
    blocked: Container[FrontendKey | Address | Guid] = frozenset()
    since: Mapping[FrontendKey, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and every frontend and address that something may have changed for, due or not."""

    steps: tuple[Step, ...]
    frontends: Set[FrontendKey]
    addresses: Set[Address]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(step.change for step in self.steps)


def make_plan(situation: Situation, work: Work) -> Plan:
    """Steps for the given places and for everything that depends on them; equal input gives equal steps."""
    frontends, addresses = _widened(situation, work)
    places = _Places(situation, work.blocked)
    due = sorted((each for each in frontends if each not in work.blocked), key=frontend_order)
    plans = [plan_frontend(situation, each, hopeful=places) for each in due]
    critical: set[Address] = set()
    for plan in plans:
        addresses.update(plan.missing)
        addresses.update(_released(situation, plan))
        if plan.desired is not None and plan.desired.critical:
            critical.update(plan.missing)
            if plan.desired.source_vip is not None:
                critical.add(plan.desired.source_vip)  # its endpoint comes first, too, or the load balancer has to wait
        makes = plan.blocked or plan.verb in (Verb.CREATE, Verb.REPLACE)
        if makes and plan.desired is not None and plan.desired.source_vip is not None:
            addresses.add(plan.desired.source_vip)
    ordered: list[tuple[tuple[int, float], Step]] = []
    for plan in plans:
        since = work.since.get(plan.frontend, float("inf"))
        ordered.extend(((_balancer_phase(plan), since), step) for step in _frontend_steps(situation, plan))
    for address in sorted(addresses, key=address_order):
        if address not in work.blocked:
            for phase, step in _address_steps(places.plan(address), critical=address in critical):
                ordered.append(((phase, 0.0), step))
    ordered.extend(((_DELETE_BALANCER, 0.0), step) for step in _strays(situation, work))
    ordered.sort(key=lambda item: item[0])  # stable: within a phase the order of keys stays
    return Plan(tuple(step for _, step in ordered), frontends, addresses)


# Phases of a pass, windows-proxy H.4, with everything that critical services need moved to the front.
_CRITICAL_ENDPOINT, _CRITICAL_MODIFY, _CRITICAL_CREATE = range(3)
_MAKE_ENDPOINT, _REPLACE_ENDPOINT, _MODIFY, _CREATE, _DELETE_BALANCER, _DELETE_ENDPOINT = range(3, 9)


class _Places:
    """The plan of each address, made once; as a container, the addresses for which this pass can make an endpoint."""

    def __init__(self, situation: Situation, blocked: Container[FrontendKey | Address | Guid]) -> None:
        self._situation = situation
        self._blocked = blocked
        self._plans: dict[Address, AddressPlan] = {}

    def plan(self, address: Address) -> AddressPlan:
        found = self._plans.get(address)
        if found is None:
            found = self._plans[address] = plan_address(self._situation, address)
        return found

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, IPv4Address | IPv6Address) or address in self._blocked:
            return False
        return self.plan(address).verb is Verb.CREATE


def _widened(situation: Situation, work: Work) -> tuple[set[FrontendKey], set[Address]]:
    """Add every frontend that uses a touched address, by desire or in fact."""
    frontends = set(work.touched.frontends)
    for address in work.touched.addresses:
        frontends |= situation.wanted.users(address)
        for endpoint in situation.observed.at_address(address):
            for guid in situation.observed.references(endpoint.guid):
                frontends.update(situation.observed.claims(guid))
    return frontends, set(work.touched.addresses)


def _released(situation: Situation, plan: FrontendPlan) -> Iterator[Address]:
    """Addresses of endpoints that load balancers at this frontend have and shall not have."""
    if plan.verb is None and not plan.surplus:
        return
    for balancer in situation.observed.at_frontend(plan.frontend):
        for guid in balancer.endpoints:
            if guid not in plan.endpoints and guid in situation.observed.endpoints:
                yield from situation.observed.endpoints[guid].addresses


def _balancer_phase(plan: FrontendPlan) -> int:
    critical = plan.desired is not None and plan.desired.critical
    match plan.verb:
        case Verb.MODIFY:
            return _CRITICAL_MODIFY if critical else _MODIFY
        case Verb.CREATE | Verb.REPLACE:
            return _CRITICAL_CREATE if critical else _CREATE
        case _:
            return _DELETE_BALANCER


def _frontend_steps(situation: Situation, plan: FrontendPlan) -> Iterator[Step]:
    if plan.verb is None and not plan.surplus:
        return
    desired = situation.wanted.balancers.get(plan.frontend)
    change = Change(
        plan.verb or Verb.DELETE,
        LOAD_BALANCER,
        str(desired.key if desired else plan.frontend),
        plan.why or "a second one at this frontend",
        disruptive=plan.verb in (Verb.REPLACE, Verb.DELETE) and plan.guid is not None,
        owners=desired.owners if desired else (),
    )
    yield SettleFrontend(plan.frontend, change)


def _address_steps(plan: AddressPlan, *, critical: bool) -> Iterator[tuple[int, Step]]:
    address = plan.address
    if plan.verb is Verb.CREATE:
        assert plan.desired is not None
        change = Change(Verb.CREATE, plan.desired.kind.value, str(address), plan.why)
        yield _CRITICAL_ENDPOINT if critical else _MAKE_ENDPOINT, MakeEndpoint(address, change)
    elif plan.verb is Verb.REPLACE:
        assert plan.desired is not None
        change = Change(Verb.REPLACE, plan.desired.kind.value, str(address), plan.why, disruptive=True)
        yield _REPLACE_ENDPOINT, ReplaceEndpoint(address, change)
    for guid in plan.surplus:
        change = Change(Verb.DELETE, EndpointKind.REMOTE.value, str(address), plan.why)
        yield _DELETE_ENDPOINT, DeleteEndpoint(address, guid, change)


def _strays(situation: Situation, work: Work) -> Iterator[DeleteStray]:
    for guid in sorted(work.touched.strays & situation.observed.placeless):
        balancer = situation.observed.balancers[guid]
        if guid not in work.blocked and situation.standing_of(balancer) is Standing.OURS:
            change = Change(Verb.DELETE, LOAD_BALANCER, guid, "it serves no frontend")
            yield DeleteStray(guid, change)
