"""What is wrong on a Windows node, which known defect it looks like, and what to do. Pure.

`diagnose` compares what is wanted with what HNS holds, as the planner does, and names each difference by its symptom;
`DEFECTS` says of each symptom which defect leaves such traces. It changes nothing and asks nobody: a dump will do.
Evidence: windows-proxy F (defects, with their upstream issues), H.5 (what is ours); hcn.md 5.10, 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from hansa.dataplanes.base import Verb
from hansa.dataplanes.windows.compare import (
    ENDPOINTS,
    FrontendPlan,
    Situation,
    balancer_differences,
    differ,
    endpoint_differences,
    plan_address,
    plan_frontend,
    resolve,
)
from hansa.dataplanes.windows.objects import DesiredLoadBalancer, EndpointKind, HostFacts, address_order
from hansa.dataplanes.windows.ownership import DEFAULT_NODE_PORTS, Standing
from hansa.dataplanes.windows.plan import LOAD_BALANCER
from hansa.explain.defects import DEFECTS, Defect, Severity, Symptom
from hansa.hns.api import Guid
from hansa.hns.dumps import NO_HINTS, Hints
from hansa.hns.schema import (
    LB_STATE_DEGRADED,
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    LbFlags,
    MappingFlags,
    RawPolicy,
)
from hansa.hns.schema1 import TOLD
from hansa.net import Address, IPFamily
from hansa.rules.model import FrontendKey, FrontendKind
from hansa.rules.ruleset import frontend_order
from hansa.wording import named

HEALTHZ_PORT = 10256  # where kube-proxy's own health check listens
MANY = 5  # load balancers missing at once, and more than half: not one fault each, but one that took them all


_BY_FLAG = (
    (MappingFlags.VIP_EXTERNAL_IP, Symptom.LB_FLOWS),
    (MappingFlags.LOCAL_ROUTED_VIP, Symptom.LB_NODE_PORT_FLAG),
    (MappingFlags.USE_MUX | MappingFlags.PRESERVE_DIP | MappingFlags.ILB, Symptom.LB_OTHER),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    kind and key: as in a plan. guids: of the HNS objects, () = there is none. owners: service ports, as far as known.
    step: what hansa does about it when it runs here: a verb, or `nothing: ` and why.
    """

    symptom: Symptom
    severity: Severity
    kind: str
    key: str
    guids: tuple[Guid, ...]
    owners: tuple[str, ...]
    text: str
    step: str

    @property
    def defect(self) -> Defect:
        return DEFECTS[self.symptom]


@dataclass(frozen=True, slots=True)
class Foreign:
    """An object of other software: never written, whatever it looks like."""

    kind: str
    key: str
    guid: Guid
    why: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """findings: errors first, then by owner and key. foreign: load balancers and remote endpoints of others."""

    findings: tuple[Finding, ...]
    foreign: tuple[Foreign, ...]

    @property
    def healthy(self) -> bool:
        """Nothing worse than notes."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Case:
    situation: Situation
    hints: Hints
    named: Set[Address]
    root_name: str
    makeable: Set[Address]
    owners_at: Mapping[Address, tuple[str, ...]]  # service ports with a frontend there

    @property
    def facts(self) -> HostFacts:
        facts = self.situation.wanted.facts
        assert facts is not None
        return facts


def diagnose(
    situation: Situation,
    *,
    hints: Hints = NO_HINTS,
    named: Set[Address] = frozenset(),
    root_name: str = "cbr0",
) -> Diagnosis:
    """Everything that is wrong with what HNS holds. The situation's facts and network must be known.

    named: addresses that EndpointSlices name, whatever their state; empty = not known, then no local endpoint is
    doubted. root_name: of the host's own endpoint on the pod network.
    """
    wanted = situation.wanted
    makeable = frozenset(a for a in wanted.addresses() if plan_address(situation, a).verb is Verb.CREATE)
    case = _Case(situation, hints, named, root_name, makeable, _index_owners(situation))
    found = [*_frontends(case), *_unwanted(case), *_endpoints(case), *_host(case)]
    ranks = list(Severity)
    found.sort(key=lambda each: (ranks.index(each.severity), each.owners, each.kind, each.key, each.symptom.value))
    return Diagnosis(tuple(found), tuple(_foreign(case)))


def _finding(
    symptom: Symptom,
    at: tuple[str, str],
    guids: Iterable[Guid],
    owners: Iterable[str],
    *,
    text: str,
    step: str,
) -> Finding:
    return Finding(symptom, DEFECTS[symptom].severity, *at, tuple(guids), tuple(owners), text, step)


# --- load balancers where one is wanted ---


def _frontends(case: _Case) -> Iterator[Finding]:
    wanted = case.situation.wanted.balancers
    found = [(each, list(_frontend(case, wanted[each]))) for each in sorted(wanted, key=frontend_order)]
    missing = sum(finding.symptom in _MISSING for _, findings in found for finding in findings)
    many = missing >= MANY and missing > len(wanted) / 2
    for _, findings in found:
        for finding in findings:
            yield replace(finding, symptom=Symptom.LB_MANY_MISSING) if many and finding.symptom in _MISSING else finding
    yield from _waiting_pods(case)


_MISSING = (Symptom.LB_MISSING, Symptom.LB_MISSING_CRITICAL)


def _frontend(case: _Case, desired: DesiredLoadBalancer) -> Iterator[Finding]:
    frontend = desired.key.frontend
    found = case.situation.observed.at_frontend(frontend)
    candidates = [each for each in found if case.situation.standing_of(each) is not Standing.FOREIGN]
    situation = _as_told(case, desired, candidates)
    plan = plan_frontend(situation, frontend, hopeful=case.makeable)
    at, step = (LOAD_BALANCER, str(desired.key)), _step(plan)
    if not candidates:
        if found:
            text = f"{_short(found[0].guid)} of another program is there"
            yield _finding(Symptom.LB_HELD, at, [found[0].guid], desired.owners, text=text, step=step)
        elif plan.verb is Verb.CREATE or plan.lacks_source_vip:
            symptom = Symptom.LB_MISSING_CRITICAL if desired.critical else Symptom.LB_MISSING
            text = f"there is none; wanted: {_addresses(desired.backends)} port {desired.internal_port}"
            yield _finding(symptom, at, (), desired.owners, text=text, step=step)
        return
    kept = next((each for each in candidates if each.guid == plan.guid), candidates[0])
    surplus = [each.guid for each in candidates if each is not kept]
    if surplus:
        text = f"{len(surplus)} more beside {_short(kept.guid)}"
        yield _finding(Symptom.LB_DUPLICATE, at, surplus, desired.owners, text=text, step=step)
    for symptom, text in _differences(case, situation, plan.desired or desired, kept):
        finding = _finding(symptom, at, [kept.guid], desired.owners, text=text, step=step)
        harmless = symptom is Symptom.LB_SOURCE_VIP_EMPTY and kept.flags & LbFlags.DSR
        yield replace(finding, severity=Severity.NOTE) if harmless else finding
    for address in plan.misplaced:
        text = f"backend {address} has a local HNS endpoint here"
        yield _finding(Symptom.POD_MISPLACED, at, [kept.guid], desired.owners, text=text, step="nothing: names decide")


def _as_told(case: _Case, desired: DesiredLoadBalancer, candidates: list[HnsLoadBalancer]) -> Situation:
    """The situation without the fields that the listing does not tell of the load balancers at this place."""
    silent: set[str] = set()
    for balancer in candidates:
        untold = case.hints.untold.get(balancer.guid, TOLD)
        silent |= untold.fields
        flags = balancer.port_mappings[0].flags if balancer.port_mappings else MappingFlags(0)
        if untold.mapping_flags and not (flags ^ desired.mapping_flags) & ~untold.mapping_flags:
            silent.add("mapping flags")
    if not silent:
        return case.situation
    return replace(case.situation, not_echoed={*case.situation.not_echoed, *silent})


def _step(plan: FrontendPlan) -> str:
    if plan.verb is not None:
        return plan.verb.value
    return f"nothing: {plan.blocked}" if plan.blocked else "delete the surplus" if plan.surplus else "nothing"


def _differences(
    case: _Case, situation: Situation, desired: DesiredLoadBalancer, kept: HnsLoadBalancer
) -> Iterator[tuple[Symptom, str]]:
    if kept.guid in case.hints.not_applied and kept.state != LB_STATE_DEGRADED:
        yield Symptom.LB_NOT_APPLIED, "IsApplied is false"
    for name in balancer_differences(situation, desired, kept, frozenset(kept.endpoints)):
        match name:
            case "source VIP" if kept.source_vip is None:
                tail = "; without effect under DSR" if kept.flags & LbFlags.DSR else ""
                yield Symptom.LB_SOURCE_VIP_EMPTY, f"empty, should be {desired.source_vip}{tail}"
            case "source VIP":
                yield Symptom.LB_SOURCE_VIP_WRONG, f"{kept.source_vip}, should be {desired.source_vip}"
            case "internal port":
                have = kept.port_mappings[0].internal_port
                yield Symptom.LB_BACKEND_PORT, f"sends to port {have}, the backends serve {desired.internal_port}"
            case "flags":
                yield from _flag_differences(situation, desired, kept)
            case "mapping flags":
                yield from _mapping_differences(case, desired, kept)
            case "distribution":
                kind = kept.port_mappings[0].distribution.name.lower()
                yield Symptom.LB_AFFINITY, f"distribution {kind}, should be {desired.distribution.name.lower()}"
            case "state":
                yield Symptom.LB_DEGRADED, f"State {LB_STATE_DEGRADED}"
            case _:
                if name != ENDPOINTS:
                    yield Symptom.LB_OTHER, differ([name])
    yield from _backend_differences(situation, desired, kept)


def _flag_differences(
    situation: Situation, desired: DesiredLoadBalancer, kept: HnsLoadBalancer
) -> Iterator[tuple[Symptom, str]]:
    differ = kept.flags ^ desired.lb_flags
    if differ & LbFlags.IPV6:
        yield Symptom.LB_FAMILY, f"flag IPv6 is {_set(kept.flags & LbFlags.IPV6)}"
    if differ & LbFlags.DSR:
        rule = situation.wanted.rules.get(desired.key.frontend)
        lost = desired.dsr and rule is not None and rule.kind is not FrontendKind.CLUSTER_IP
        hint = "" if lost else "; winkernel.enableDSR decides" if desired.key.vip is not None else ""
        symptom = Symptom.LB_DSR_LOST if lost else Symptom.LB_DSR_DIFFERS
        yield symptom, f"flag DSR is {_set(kept.flags & LbFlags.DSR)}, should be {_set(desired.dsr)}{hint}"


def _mapping_differences(
    case: _Case, desired: DesiredLoadBalancer, kept: HnsLoadBalancer
) -> Iterator[tuple[Symptom, str]]:
    flags = kept.port_mappings[0].flags
    differ = (flags ^ desired.mapping_flags) & ~case.hints.untold.get(kept.guid, TOLD).mapping_flags
    for mask, symptom in _BY_FLAG:
        if differ & mask:
            yield symptom, f"mapping flags {int(flags)}, should be {int(desired.mapping_flags)}"


def _set(value: object) -> str:
    return "set" if value else "not set"


def _backend_differences(
    situation: Situation, desired: DesiredLoadBalancer, kept: HnsLoadBalancer
) -> Iterator[tuple[Symptom, str]]:
    observed = situation.observed
    known = [observed.endpoints[guid] for guid in kept.endpoints if guid in observed.endpoints]
    dangling = [guid for guid in kept.endpoints if guid not in observed.endpoints]
    if dangling:
        text = f"{len(dangling)} of {len(kept.endpoints)} endpoints are not on network {_network(situation)}: "
        yield Symptom.LB_DANGLING, text + _guids(dangling)
    twins = [each for each in known if each.remote and _has_local_twin(situation, each)]
    if twins:
        yield (
            Symptom.LB_TWIN,
            f"names the remote one of two endpoints: {_addresses(a for e in twins for a in e.addresses)}",
        )
    held = {address for each in known for address in each.addresses}
    extra = sorted((a for each in known for a in each.addresses[:1] if a not in desired.backends), key=address_order)
    if extra:
        yield Symptom.LB_BACKENDS_EXTRA, f"has {_addresses(extra)}, which the service has not"
    missing = [a for a in desired.backends if a not in held and not _waits(situation, a)]
    if missing:
        yield Symptom.LB_BACKENDS_MISSING, f"lacks {_addresses(missing)}"


def _has_local_twin(situation: Situation, endpoint: HnsEndpoint) -> bool:
    return any(not each.remote for a in endpoint.addresses for each in situation.observed.at_address(a))


def _waits(situation: Situation, address: Address) -> bool:
    """A pod of this node without HNS endpoint: that is a finding of its own."""
    return situation.wanted.waits_for_local(address) and resolve(situation, address) is None


def _waiting_pods(case: _Case) -> Iterator[Finding]:
    wanted = case.situation.wanted
    for address in sorted(wanted.addresses(), key=address_order):
        if _waits(case.situation, address) and not case.situation.observed.at_address(address):
            owners = _owners_of(case.situation, address)
            text = "EndpointSlices place it on this node"
            at = ("pod", str(address))
            yield _finding(Symptom.POD_WITHOUT_EP, at, (), owners, text=text, step="nothing: the CNI makes it")


# --- load balancers where none is wanted ---


def _unwanted(case: _Case) -> Iterator[Finding]:
    situation = case.situation
    for guid, balancer in sorted(situation.observed.balancers.items()):
        claims = situation.observed.claims(guid)
        if any(claim in situation.wanted.balancers for claim in claims):
            continue
        if not claims:
            vips = _addresses(balancer.frontend_vips) or "the node"
            ours = situation.standing_of(balancer) is Standing.OURS
            step = "delete" if ours else "nothing: it has no mark of hansa"
            owners = _owners_at(case, balancer.frontend_vips)
            text = f"at {vips}, no port mapping that can be read"
            yield _finding(Symptom.LB_UNPLACED, (LOAD_BALANCER, guid), [guid], owners, text=text, step=step)
        elif _is_proxys(situation, balancer, claims):
            yield _stale(case, balancer, claims[0])


def _is_proxys(situation: Situation, balancer: HnsLoadBalancer, claims: tuple[FrontendKey, ...]) -> bool:
    """Whether a service proxy made it: our mark, or a place or flag that only proxies use (windows-proxy H.5).

    Where no ServiceCIDR is known, any single VIP counts: a listing of LoadBalancers of others is rare on nodes.
    """
    standing = situation.standing_of(balancer)
    if standing is not Standing.UNMARKED:
        return standing is Standing.OURS
    frontend = claims[0]
    if balancer.port_mappings[0].flags & MappingFlags.VIP_EXTERNAL_IP or _is_healthz(balancer):
        return True
    if frontend.address is None:
        return frontend.port in DEFAULT_NODE_PORTS
    cidrs = situation.ownership.service_cidrs
    return not cidrs or any(frontend.address in prefix for prefix in cidrs)


def _is_healthz(balancer: HnsLoadBalancer) -> bool:
    mapping = balancer.port_mappings[0]
    return bool(balancer.frontend_vips) and mapping.internal_port == mapping.external_port == HEALTHZ_PORT


def _stale(case: _Case, balancer: HnsLoadBalancer, frontend: FrontendKey) -> Finding:
    situation = case.situation
    rule = situation.wanted.rules.get(frontend)
    owners = (str(rule.owner),) if rule is not None else _owners_at(case, balancer.frontend_vips)
    gone = sum(guid not in situation.observed.endpoints for guid in balancer.endpoints)
    dead = f"; {gone} of its {len(balancer.endpoints)} endpoints are gone" if gone else ""
    ownership, standing = situation.ownership, situation.standing_of(balancer)
    if ownership.may_delete_balancer(standing, frontend):
        step = "delete"
    elif replace(ownership, grace_over=True).may_delete_balancer(standing, frontend):
        step = "delete after two checks, as a leftover of another proxy"
    else:
        reason = "it may be another program's" if ownership.takeover else "takeover is off"
        step = f"nothing: {reason}"
    if _is_healthz(balancer):
        symptom, text = Symptom.LB_HEALTHZ, f"a health check that no service asks for{dead}"
    elif rule is not None:
        symptom, text = Symptom.LB_STALE_EMPTY, f"none is wanted{dead}"
    else:
        symptom, text = Symptom.LB_STALE, f"no service has this frontend{dead}"
    return _finding(symptom, (LOAD_BALANCER, str(frontend)), [balancer.guid], owners, text=text, step=step)


# --- endpoints ---


def _endpoints(case: _Case) -> Iterator[Finding]:
    situation = case.situation
    held = {address for each in situation.observed.endpoints.values() for address in each.addresses}
    for address in sorted(held, key=address_order):
        here = situation.observed.at_address(address)
        local = [each for each in here if not each.remote]
        remote = [each for each in here if each.remote]
        if local and remote:
            text = f"local {_short(local[0].guid)}, remote {_guids(each.guid for each in remote)}"
            yield _of_remotes(case, Symptom.EP_TWIN, address, remote, text)
        elif remote:
            yield from _remotes(case, address, remote)
        for each in local:
            yield from _local(case, address, each)
    if case.facts.overlay:
        for address in sorted(situation.wanted.addresses() - held, key=address_order):
            desired = situation.wanted.endpoint(address)
            if desired is not None and desired.kind is EndpointKind.SERVICE_VIP:
                owners = _owners_at(case, (address,))
                at = (desired.kind.value, str(address))
                step = plan_address(situation, address)
                done = step.verb.value if step.verb else f"nothing: {step.blocked}"
                yield _finding(Symptom.EP_VIP_MISSING, at, (), owners, text="there is none", step=done)


def _remotes(case: _Case, address: Address, remote: list[HnsEndpoint]) -> Iterator[Finding]:
    situation = case.situation
    desired = situation.wanted.endpoint(address)
    if situation.wanted.waits_for_local(address):
        yield _of_remotes(case, Symptom.EP_HELD, address, remote, "EndpointSlices place the pod on this node")
        return
    if desired is None:
        ours = [each for each in remote if _standing(case, each) is not Standing.FOREIGN]
        if ours:
            users = sorted({guid for each in ours for guid in situation.observed.references(each.guid)})
            text = f"load balancer {_guids(users)} names it" if users else "no load balancer names it"
            yield _of_remotes(case, Symptom.EP_LEFTOVER, address, ours, text)
        return
    plan = plan_address(situation, address)
    if len(remote) > 1:
        spare = [each for each in remote if each.guid != plan.guid]
        yield _of_remotes(case, Symptom.EP_DUPLICATE, address, spare, f"beside {_short(plan.guid or remote[0].guid)}")
    chosen = next((each for each in remote if each.guid == plan.guid), remote[0])
    differences = endpoint_differences(situation, desired, chosen)
    if differences and _standing(case, chosen) is not Standing.FOREIGN:
        symptom = Symptom.EP_PROVIDER if "provider address" in differences else Symptom.EP_OTHER
        text = differ(differences)
        if symptom is Symptom.EP_PROVIDER:
            text = f"provider address {chosen.provider_address or 'missing'}, should be {desired.provider}"
        step = plan.verb.value if plan.verb else f"nothing: {plan.blocked}"
        owners = _owners_of(situation, address) or _owners_at(case, (address,))
        yield _finding(symptom, (desired.kind.value, str(address)), [chosen.guid], owners, text=text, step=step)


def _of_remotes(case: _Case, symptom: Symptom, address: Address, remote: list[HnsEndpoint], text: str) -> Finding:
    ownership = case.situation.ownership
    if all(ownership.may_delete_endpoint(_standing(case, each)) for each in remote):
        step = "delete, once no load balancer names it"
    else:
        step = "nothing: it may be another program's" if ownership.takeover else "nothing: takeover is off"
    owners = _owners_of(case.situation, address)
    at = (EndpointKind.REMOTE.value, str(address))
    return _finding(symptom, at, [each.guid for each in remote], owners, text=text, step=step)


def _standing(case: _Case, endpoint: HnsEndpoint) -> Standing:
    return case.situation.ownership.of_endpoint(endpoint, case.situation.network)


_UNUSED_STATES = frozenset({EndpointState.CREATED, EndpointState.DETACHED, EndpointState.DESTROYED})


def _local(case: _Case, address: Address, endpoint: HnsEndpoint) -> Iterator[Finding]:
    state = case.hints.states.get(endpoint.guid, endpoint.state)
    at, step = ("local endpoint", str(address)), "nothing: local endpoints are the CNI's"
    owners = _owners_of(case.situation, address)
    name = f"{endpoint.name or 'without name'}"
    if state == EndpointState.DEGRADED:
        yield _finding(Symptom.EP_DEGRADED, at, [endpoint.guid], owners, text=name, step=step)
    if not case.named or address in case.named or _is_hosts(case, address, endpoint):
        return
    unused = state in _UNUSED_STATES
    text = f"{name}{', in use by no container' if unused else ''}"
    finding = _finding(Symptom.EP_ORPHAN, at, [endpoint.guid], owners, text=text, step=step)
    yield replace(finding, severity=Severity.WARNING) if unused else finding


def _is_hosts(case: _Case, address: Address, endpoint: HnsEndpoint) -> bool:
    """The root endpoint, the source VIP, and what CNIs give the host on the pod network (`<network>_ep`)."""
    facts, observed = case.facts, case.situation.observed
    assert observed.network is not None
    names = {case.root_name, f"{observed.network.name}_ep"}
    own = {*facts.node_addresses, *facts.node_ips.values(), *facts.source_vips.values(), *facts.root_addresses.values()}
    gateways = {subnet.gateway for subnet in observed.network.subnets}
    used = {each.source_vip for each in observed.balancers.values()}
    return endpoint.name in names or address in own or address in gateways or address in used


# --- the host as a whole ---


def _host(case: _Case) -> Iterator[Finding]:
    facts, observed = case.facts, case.situation.observed
    assert observed.network is not None
    network = ("network", observed.network.name)
    if facts.overlay:
        source_vip = facts.source_vips.get(IPFamily.IPV4)
        if source_vip is None:
            text = "no source VIP is configured or found"
            yield _finding(Symptom.SOURCE_VIP_MISSING, network, (), (), text=text, step="nothing: it has to be given")
        elif facts.subnets and not any(source_vip in subnet for subnet in facts.subnets):
            text = f"{source_vip} is not in {', '.join(str(subnet) for subnet in facts.subnets)}"
            yield _finding(Symptom.SOURCE_VIP_OUTSIDE, network, (), (), text=text, step="nothing: HNS refuses it")
    for policy in observed.network.policies:
        if isinstance(policy, RawPolicy) and policy.fault:
            text = f"policy {policy.type}: {policy.fault}"
            yield _finding(Symptom.POLICY, network, (), (), text=text, step="nothing: it is skipped")
    for guid, why in sorted(observed.unreadable.items()):
        yield _finding(Symptom.UNREADABLE, ("object", guid), [guid], (), text=why, step="nothing: it is left alone")


def _foreign(case: _Case) -> Iterator[Foreign]:
    situation = case.situation
    for guid, balancer in sorted(situation.observed.balancers.items()):
        claims = situation.observed.claims(guid)
        wanted = any(claim in situation.wanted.balancers for claim in claims)
        if not claims or (wanted and situation.standing_of(balancer) is not Standing.FOREIGN):
            continue
        if wanted or not _is_proxys(situation, balancer, claims):
            key = ", ".join(str(claim) for claim in claims)
            yield Foreign(LOAD_BALANCER, key, guid, _why_foreign(balancer.owner, len(claims)))
    for guid, endpoint in sorted(situation.observed.endpoints.items()):
        if endpoint.remote and _standing(case, endpoint) is Standing.FOREIGN:
            yield Foreign(
                EndpointKind.REMOTE.value, _addresses(endpoint.addresses), guid, _why_foreign(endpoint.owner, 1)
            )


def _why_foreign(owner: str, places: int) -> str:
    if owner:
        return f"its Owner is {owner}"
    return "it serves several frontends" if places > 1 else "nothing shows that a service proxy made it"


# --- words ---


def _owners_of(situation: Situation, address: Address) -> tuple[str, ...]:
    """Service ports that have this backend."""
    wanted = situation.wanted
    users = wanted.users(address)
    return tuple(sorted({owner for key in users if key in wanted.balancers for owner in wanted.balancers[key].owners}))


def _index_owners(situation: Situation) -> Mapping[Address, tuple[str, ...]]:
    found: dict[Address, set[str]] = {}
    for key, rule in situation.wanted.rules.items():
        if key.address is not None:
            found.setdefault(key.address, set()).add(str(rule.owner))
    return {address: tuple(sorted(owners)) for address, owners in found.items()}


def _owners_at(case: _Case, vips: Iterable[Address]) -> tuple[str, ...]:
    """Service ports with a frontend at one of these addresses."""
    return tuple(sorted({owner for vip in vips for owner in case.owners_at.get(vip, ())}))


def _network(situation: Situation) -> str:
    assert situation.observed.network is not None
    return situation.observed.network.name


SHOWN = 4  # how many ids or addresses a sentence names


def _addresses(addresses: Iterable[Address]) -> str:
    return named(addresses, most=SHOWN)


def _guids(guids: Iterable[Guid]) -> str:
    return named(map(_short, guids), most=SHOWN)


def _short(guid: Guid) -> str:
    return guid[:8].lower()
