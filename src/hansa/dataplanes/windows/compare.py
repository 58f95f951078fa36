"""Desired and observed, compared at one place: what to do at a frontend, and about the endpoints at an address. Pure.

Both questions can be asked at any moment; the executor asks again right before it writes, so that whatever an earlier
step has changed, or failed to change, is taken into account. Evidence: windows-proxy H.2, H.3, H.5.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace

from hansa.dataplanes.base import Verb
from hansa.dataplanes.windows.objects import (
    DesiredEndpoint,
    DesiredLoadBalancer,
    EndpointKind,
    kube_proxy_mac,
)
from hansa.dataplanes.windows.observe import Observed
from hansa.dataplanes.windows.ownership import Ownership, Standing, balancer_guid
from hansa.dataplanes.windows.wanted import Wanted
from hansa.hns.api import Guid
from hansa.hns.schema import LB_STATE_DEGRADED, HnsEndpoint, HnsLoadBalancer
from hansa.net import Address
from hansa.rules.model import FrontendKey

LOAD_BALANCER = "load balancer"
ENDPOINTS = "endpoints"  # the only difference that HNS can change in place
PLURALS = frozenset({ENDPOINTS, "flags", "mapping flags", "addresses"})
NONE: frozenset[Address] = frozenset()


def differ(names: Sequence[str]) -> str:
    """The sentence about fields that are not as desired.

    >>> differ(["source VIP"]), differ(["endpoints"]), differ(["source VIP", "MAC"])
    ('source VIP differs', 'endpoints differ', 'source VIP, MAC differ')
    """
    return f"{', '.join(names)} {'differ' if len(names) > 1 or names[0] in PLURALS else 'differs'}"


@dataclass(slots=True)
class Situation:
    """All that planning looks at. modify: this HNS can change the endpoints of a load balancer in place.

    not_echoed: fields that this HNS does not tell back, left out of comparisons. generations: how often the GUID that
    we ask for at a frontend or address turned out to be taken, or was given up. renewing: frontends whose load balancer
    is to be made anew once, although it looks as desired (F10).
    """

    wanted: Wanted
    observed: Observed
    ownership: Ownership
    modify: bool = False
    not_echoed: Set[str] = frozenset()
    generations: dict[FrontendKey | Address, int] = field(default_factory=dict)
    renewing: set[FrontendKey] = field(default_factory=set)

    @property
    def network(self) -> Guid:
        assert self.observed.network is not None
        return self.observed.network.guid

    def standing_of(self, balancer: HnsLoadBalancer) -> Standing:
        return self.ownership.of_balancer(balancer, self.observed.claims(balancer.guid))


# --- endpoints ---


def resolve(situation: Situation, address: Address) -> Guid | None:
    """The HNS endpoint that stands for a backend: a local one before any remote one, whoever made it.

    None = there is none, or only a remote one where the backend is on this node and waits for the CNI.
    """
    found = situation.observed.at_address(address)
    for endpoint in found:
        if not endpoint.remote:
            return endpoint.guid
    if not found or situation.wanted.waits_for_local(address):
        return None
    return _preferred(situation, found, situation.wanted.endpoint(address)).guid


def _preferred(situation: Situation, remotes: list[HnsEndpoint], desired: DesiredEndpoint | None) -> HnsEndpoint:
    if len(remotes) == 1:
        return remotes[0]

    def rank(endpoint: HnsEndpoint) -> tuple[bool, int, Guid]:
        fits = desired is not None and not endpoint_differences(situation, desired, endpoint)
        return (not fits, situation.ownership.of_endpoint(endpoint, situation.network).value, endpoint.guid)

    return min(remotes, key=rank)


def endpoint_differences(situation: Situation, desired: DesiredEndpoint, observed: HnsEndpoint) -> list[str]:
    """Names of the fields that are not as desired. kube-proxy's MAC is as good as ours: it only has to be distinct."""
    found = []
    if observed.remote != (desired.kind is not EndpointKind.SOURCE_VIP):
        found.append("remote flag")
    if set(observed.addresses) != {desired.address}:
        found.append("addresses")
    macs = {desired.mac, kube_proxy_mac(desired.address)} if desired.kind is EndpointKind.REMOTE else {desired.mac}
    if desired.mac and observed.mac_address not in macs and "MAC" not in situation.not_echoed:
        found.append("MAC")
    if desired.provider is not None and observed.provider_address != desired.provider:
        found.append("provider address")
    return found


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """What to do about the endpoints at one address.

    verb: CREATE, REPLACE (of `guid`) or None. surplus: remote endpoints of ours that nothing wants. blocked: why a
    difference has to stay, "" = nothing stays.
    """

    address: Address
    verb: Verb | None = None
    desired: DesiredEndpoint | None = None
    guid: Guid | None = None
    surplus: tuple[Guid, ...] = ()
    blocked: str = ""
    why: str = ""


def plan_address(situation: Situation, address: Address) -> AddressPlan:
    found = situation.observed.at_address(address)
    desired = situation.wanted.endpoint(address)
    remotes = [endpoint for endpoint in found if endpoint.remote]
    if len(remotes) < len(found):
        return AddressPlan(address, surplus=_deletable(situation, remotes), why="a local endpoint has this address")
    if desired is None:
        waits = situation.wanted.waits_for_local(address)
        why = "this address is to be on this node" if waits else "no load balancer wants it"
        return AddressPlan(address, surplus=_deletable(situation, remotes), why=why)
    if not remotes:
        blocked = _cannot_make(situation, desired)
        return AddressPlan(address, None if blocked else Verb.CREATE, desired, blocked=blocked, why="missing")
    chosen = _preferred(situation, remotes, desired)
    surplus = _deletable(situation, [endpoint for endpoint in remotes if endpoint is not chosen])
    differences = endpoint_differences(situation, desired, chosen)
    standing = situation.ownership.of_endpoint(chosen, situation.network)
    if not differences or standing is Standing.FOREIGN:
        return AddressPlan(address, None, desired, chosen.guid, surplus, why="a second endpoint has this address")
    blocked = _cannot_make(situation, desired) or _cannot_free(situation, chosen, standing)
    verb = None if blocked else Verb.REPLACE
    return AddressPlan(address, verb, desired, chosen.guid, surplus, blocked, differ(differences))


def _deletable(situation: Situation, endpoints: Iterable[HnsEndpoint]) -> tuple[Guid, ...]:
    ownership = situation.ownership
    return tuple(
        endpoint.guid
        for endpoint in endpoints
        if ownership.may_delete_endpoint(ownership.of_endpoint(endpoint, situation.network))
    )


def _cannot_make(situation: Situation, desired: DesiredEndpoint) -> str:
    facts = situation.wanted.facts
    assert facts is not None
    if not desired.mac:
        return "the MAC of this node's interface is not known"
    if facts.overlay and desired.kind is not EndpointKind.SOURCE_VIP and desired.provider is None:
        return "no provider address is known"
    return ""


def _cannot_free(situation: Situation, endpoint: HnsEndpoint, standing: Standing) -> str:
    if not situation.ownership.may_delete_endpoint(standing):
        return "it is wrong, but may be another program's: takeover is off"
    for guid in sorted(situation.observed.references(endpoint.guid)):
        if not situation.ownership.may_rewrite(situation.standing_of(situation.observed.balancers[guid])):
            return f"it is wrong, but load balancer {guid} of another program uses it"
    return ""


# --- load balancers ---


@dataclass(frozen=True, slots=True)
class FrontendPlan:
    """What to do at one frontend.

    verb: CREATE, MODIFY, REPLACE, DELETE (both of `guid`) or None. desired: with the source VIP settled. endpoints: the
    GUIDs of the backends that exist. surplus: more of our load balancers at the same place. missing: backends for which
    an endpoint is to be made; waiting: backends whose endpoint the CNI has not made;
    misplaced: those that HNS has on this node against their node name (F67b). blocked: why nothing can be done;
    lacks_source_vip: that is why.
    """

    frontend: FrontendKey
    verb: Verb | None = None
    desired: DesiredLoadBalancer | None = None
    guid: Guid | None = None
    endpoints: frozenset[Guid] = frozenset()
    surplus: tuple[Guid, ...] = ()
    missing: tuple[Address, ...] = ()
    waiting: tuple[Address, ...] = ()
    misplaced: tuple[Address, ...] = ()
    blocked: str = ""
    lacks_source_vip: bool = False
    why: str = ""

    @property
    def settled(self) -> bool:
        return self.verb is None and not (self.surplus or self.missing or self.blocked)


def plan_frontend(
    situation: Situation, frontend: FrontendKey, *, hopeful: Container[Address] = NONE, without: Set[Address] = NONE
) -> FrontendPlan:
    """Compare one frontend. hopeful: addresses that will have an endpoint; without: backends to leave out for now."""
    desired = situation.wanted.balancers.get(frontend)
    found = situation.observed.at_frontend(frontend)
    if desired is None:
        return _plan_unwanted(situation, frontend, found, why="not desired")
    endpoints, absent, misplaced = _backends(situation, desired, without)
    waiting = tuple(address for address in absent if situation.wanted.waits_for_local(address))
    missing = tuple(address for address in absent if address not in waiting)
    if not endpoints and not any(address in hopeful for address in missing):
        plan = _plan_unwanted(situation, frontend, found, why="no backend has an endpoint")
        return replace(plan, desired=desired, missing=missing, waiting=waiting)
    candidates = [balancer for balancer in found if situation.standing_of(balancer) is not Standing.FOREIGN]
    if not candidates and found:
        blocked = f"load balancer {found[0].guid} of another program holds it"
        return FrontendPlan(frontend, None, desired, missing=missing, waiting=waiting, blocked=blocked)
    growing = any(address in hopeful for address in missing)
    if candidates:
        plan = _plan_existing(situation, desired, candidates, endpoints, growing=growing)
    else:
        plan = _plan_missing(situation, desired, endpoints)
    if plan.verb in (Verb.CREATE, Verb.REPLACE):
        assert plan.desired is not None
        blocked = _needs_source_vip(situation, plan.desired, hopeful)
        plan = replace(plan, verb=None, blocked=blocked, lacks_source_vip=True) if blocked else plan
    if missing or waiting or misplaced:
        return replace(plan, missing=missing, waiting=waiting, misplaced=misplaced)
    return plan


def _backends(
    situation: Situation, desired: DesiredLoadBalancer, without: Set[Address]
) -> tuple[frozenset[Guid], list[Address], tuple[Address, ...]]:
    """GUIDs of the backends that have an endpoint, addresses of those that have none, and misplaced ones."""
    present: list[Guid] = []
    absent: list[Address] = []
    misplaced: tuple[Address, ...] = ()
    for address in desired.backends:
        if address in without:
            continue
        guid = resolve(situation, address)
        if guid is None:
            absent.append(address)
        else:
            present.append(guid)
            if address not in desired.local and not situation.observed.endpoints[guid].remote:
                misplaced = (*misplaced, address)
    return frozenset(present), absent, misplaced


def _plan_unwanted(
    situation: Situation, frontend: FrontendKey, found: list[HnsLoadBalancer], *, why: str
) -> FrontendPlan:
    """All of ours at this place goes; where the frontend is desired all the same, what we took over goes as well."""
    desired_here = frontend in situation.wanted.balancers
    going = []
    for balancer in found:
        standing = situation.standing_of(balancer)
        ownership = situation.ownership
        if ownership.may_delete_balancer(standing, frontend) or (desired_here and ownership.may_rewrite(standing)):
            going.append(balancer.guid)
    if not going:
        return FrontendPlan(frontend)
    return FrontendPlan(frontend, Verb.DELETE, guid=going[0], surplus=tuple(going[1:]), why=why)


def _plan_existing(
    situation: Situation,
    desired: DesiredLoadBalancer,
    candidates: list[HnsLoadBalancer],
    endpoints: frozenset[Guid],
    *,
    growing: bool,
) -> FrontendPlan:
    compared = [(balancer_differences(situation, desired, each, endpoints), each) for each in candidates]
    differences, kept = min(
        compared, key=lambda pair: (len(pair[0]), situation.standing_of(pair[1]).value, pair[1].guid)
    )
    surplus = tuple(
        each.guid
        for each in candidates
        if each is not kept and situation.ownership.may_rewrite(situation.standing_of(each))
    )
    if growing and ENDPOINTS not in differences:
        differences = [*differences, ENDPOINTS]
    settled = desired if desired.source_vip is not None else replace(desired, source_vip=kept.source_vip)
    plan = FrontendPlan(desired.key.frontend, None, settled, kept.guid, endpoints, surplus)
    renewing = desired.key.frontend in situation.renewing
    if not differences and not renewing:
        return plan
    if not situation.ownership.may_rewrite(situation.standing_of(kept)):
        return replace(plan, blocked=f"load balancer {kept.guid} of another program holds it: takeover is off")
    why = differ(differences) if differences else "to be made anew"
    if differences == [ENDPOINTS] and situation.modify and not renewing:
        return replace(plan, verb=Verb.MODIFY, why=why)
    return replace(plan, verb=Verb.REPLACE, why=why)


def _plan_missing(situation: Situation, desired: DesiredLoadBalancer, endpoints: frozenset[Guid]) -> FrontendPlan:
    frontend = desired.key.frontend
    plan = FrontendPlan(frontend, None, desired, None, endpoints)
    partial = _partial_of_ours(situation, frontend)
    if partial is not None:
        return replace(plan, verb=Verb.REPLACE, guid=partial, why="what HNS made of it cannot be used")
    return replace(plan, verb=Verb.CREATE, why="missing")


def _needs_source_vip(situation: Situation, desired: DesiredLoadBalancer, hopeful: Container[Address]) -> str:
    """Why a load balancer cannot be made for lack of its source VIP; one that never rewrites sources can (F57, F58)."""
    vip = desired.source_vip
    if vip is None:
        return "the source VIP is not known"
    rewrites = not desired.dsr and len(desired.local) < len(desired.backends)
    if rewrites and situation.wanted.makes_source_vip(vip) and vip not in hopeful and resolve(situation, vip) is None:
        return f"the endpoint of source VIP {vip} is missing"
    return ""


def _partial_of_ours(situation: Situation, frontend: FrontendKey) -> Guid | None:
    """A create that failed may leave a load balancer without frontend, or one that cannot be read (hcn.md 5.10 B3)."""
    observed = situation.observed
    for generation in range(situation.generations.get(frontend, 0) + 1):
        guid = balancer_guid(frontend, generation)
        if guid in observed.placeless or guid in observed.unreadable:
            return guid
    return None


def balancer_differences(
    situation: Situation, desired: DesiredLoadBalancer, observed: HnsLoadBalancer, endpoints: frozenset[Guid]
) -> list[str]:
    """Names of the fields that are not as desired, in a fixed order. A source VIP that is not known fits anything.

    Evidence: windows-proxy H.3; state: F27, hcn.md 1.8.
    """
    skipped = situation.not_echoed
    found = []
    if situation.observed.claims(observed.guid) != (desired.key.frontend,):
        found.append("frontend")
    else:
        mapping = observed.port_mappings[0]
        if mapping.internal_port != desired.internal_port:
            found.append("internal port")
        if mapping.distribution != desired.distribution and "distribution" not in skipped:
            found.append("distribution")
        if mapping.flags != desired.mapping_flags and "mapping flags" not in skipped:
            found.append("mapping flags")
    unknown = desired.source_vip is None and observed.source_vip is not None
    if observed.source_vip != desired.source_vip and not unknown and "source VIP" not in skipped:
        found.append("source VIP")
    if observed.flags != desired.lb_flags and "flags" not in skipped:
        found.append("flags")
    if observed.state == LB_STATE_DEGRADED:
        found.append("state")
    if len(observed.endpoints) != len(endpoints) or frozenset(observed.endpoints) != endpoints:
        found.append(ENDPOINTS)
    return found
