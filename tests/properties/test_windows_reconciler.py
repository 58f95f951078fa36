"""The invariants of the Windows reconciler, I1 to I20, over random histories with things going wrong at HNS.

Evidence: windows-proxy H.9. A `Witness` sees every call before HNS serves it, when memory and host are still as the
caller decided on; each test asserts one invariant over the same kind of histories.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.dataplanes.windows_node import (
    NODE_IP,
    SURROUNDINGS,
    WRITES,
    WindowsNode,
    local,
    make_config,
    make_rule,
    name_of,
    plain,
    remote,
)

from hansa.dataplanes.base import HostState, Verb
from hansa.dataplanes.windows.compare import balancer_differences, plan_frontend
from hansa.dataplanes.windows.observe import claims_of
from hansa.dataplanes.windows.render import render, rendered
from hansa.hns.api import Guid, Handle, HnsKind, HnsVerb, HnsVersion, HResult
from hansa.hns.emulator import (
    FUTURE,
    L2BRIDGE_DUAL_STACK,
    WS2019,
    WS2022,
    ZN23H2,
    Build,
    Call,
    Emulator,
    Fault,
    LeakReservation,
    LeavePartial,
    LoseReply,
    Modify,
    Refuse,
    l2bridge_node,
)
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    IpConfiguration,
    LbFlags,
    PortMapping,
    ProviderAddress,
    decode_load_balancer,
)
from hansa.net import IPFamily, family_of, parse_address
from hansa.rules.model import FrontendKey, FrontendKind, Rule, RuleChanges

EXAMPLES = settings(max_examples=40, deadline=None)
PODS = ("10.40.3.10", "10.40.3.11", "10.40.3.12")
ELSEWHERE = ("10.40.4.7", "10.40.4.8", "10.40.5.9")
SOURCE_VIP = parse_address("10.40.3.200")
BUILDS = (
    plain(WS2019, lb_delete_fails_every=3),
    plain(WS2022),
    plain(ZN23H2),
    plain(FUTURE, allows_local_remote_twins=True),
    plain(WS2022, keeps_caller_guid=False, echoes_owner=False),
    plain(ZN23H2, keeps_caller_guid=False, refuses_delete_of_used_endpoint=False),
)


# --- what may happen ---


@dataclass(frozen=True)
class Put:
    rule: Rule

    def do(self, run: Run) -> None:
        run.node.put(self.rule)


@dataclass(frozen=True)
class Drop:
    rule: Rule

    def do(self, run: Run) -> None:
        run.node.drop(self.rule)


@dataclass(frozen=True)
class Sync:
    audit: bool

    def do(self, run: Run) -> None:
        run.sync(audit=self.audit)


@dataclass(frozen=True)
class Wait:
    seconds: float

    def do(self, run: Run) -> None:
        run.node.wait(self.seconds)


@dataclass(frozen=True)
class Break:
    """A call goes wrong."""

    fault: Fault

    def do(self, run: Run) -> None:
        run.emulator.faults.add(self.fault)


@dataclass(frozen=True)
class AddPod:
    address: str

    def do(self, run: Run) -> None:
        wanted = parse_address(self.address)
        if not any(wanted in each.addresses and not each.remote for each in run.emulator.endpoints()):
            run.emulator.add_pod(self.address, force=True)


@dataclass(frozen=True)
class RemovePod:
    address: str

    def do(self, run: Run) -> None:
        wanted = parse_address(self.address)
        for each in run.emulator.endpoints():
            if wanted in each.addresses and not each.remote:
                run.emulator.remove(HnsKind.ENDPOINT, each.guid)


@dataclass(frozen=True)
class Meddle:
    """Somebody deletes or alters the nth of the load balancers or remote endpoints that are not foreign."""

    index: int
    how: str

    def do(self, run: Run) -> None:
        balancers = [each for each in run.emulator.load_balancers() if each.guid not in run.witness.foreign]
        endpoints = [each for each in run.emulator.endpoints() if each.remote and each.guid not in run.witness.foreign]
        if self.how == "remove endpoint":
            if endpoints:
                run.emulator.remove(HnsKind.ENDPOINT, endpoints[self.index % len(endpoints)].guid)
            return
        if not balancers:
            return
        victim = balancers[self.index % len(balancers)]
        match self.how:
            case "remove":
                run.emulator.remove(HnsKind.LOAD_BALANCER, victim.guid)
            case "flags":
                run.emulator.alter(HnsKind.LOAD_BALANCER, victim.guid, flags=victim.flags ^ LbFlags.DSR)
            case "source":
                run.emulator.alter(HnsKind.LOAD_BALANCER, victim.guid, source_vip=None)
            case "endpoints":
                run.emulator.alter(HnsKind.LOAD_BALANCER, victim.guid, endpoints=victim.endpoints[:1])
            case _:
                raise AssertionError(self.how)


@dataclass(frozen=True)
class AddForeign:
    """Another program's object: a load balancer at a frontend, or with two frontends, or a remote endpoint."""

    what: str

    def do(self, run: Run) -> None:
        run.add_foreign(self.what)


@dataclass(frozen=True)
class HnsRestarts:
    purge: bool
    unavailable_calls: int

    def do(self, run: Run) -> None:
        lost = run.emulator.restart(self.purge, unavailable_calls=self.unavailable_calls)
        run.witness.foreign -= {each.guid for each in lost}


@dataclass(frozen=True)
class HnsStops:
    """HNS is away for one pass."""

    def do(self, run: Run) -> None:
        run.emulator.stop()
        run.sync(audit=True)
        run.emulator.start()


@dataclass(frozen=True)
class ProcessRestarts:
    def do(self, run: Run) -> None:
        run.node.start()


Event = (
    Put
    | Drop
    | Sync
    | Wait
    | Break
    | AddPod
    | RemovePod
    | Meddle
    | AddForeign
    | HnsRestarts
    | HnsStops
    | ProcessRestarts
)

RULES_AT: tuple[tuple[str, FrontendKind, dict[str, object]], ...] = (
    ("10.96.0.10:80", FrontendKind.CLUSTER_IP, {"owner": "kube-system/kube-dns"}),
    ("10.96.0.10:443", FrontendKind.CLUSTER_IP, {}),
    ("10.96.0.11:80", FrontendKind.CLUSTER_IP, {"affinity_timeout_s": 60}),
    ("node:30080", FrontendKind.NODE_PORT, {}),
    ("203.0.113.7:80", FrontendKind.EXTERNAL_IP, {}),
    ("203.0.113.80:80", FrontendKind.LOAD_BALANCER_IP, {"health_check_node_port": 32000}),
    ("203.0.113.80:443", FrontendKind.LOAD_BALANCER_IP, {"health_check_node_port": 32000, "owner": "d/tls"}),
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    where, kind, fields = draw(st.sampled_from(RULES_AT))
    ports = st.sampled_from((8080, 8080, 8080, 9090))
    here = draw(st.sets(st.sampled_from(PODS), max_size=3))
    there = draw(st.sets(st.sampled_from((*ELSEWHERE, PODS[2])), max_size=3)) - here
    endpoints = [
        *local(*(f"{address}:{draw(ports)}" for address in sorted(here))),
        *remote(*(f"{address}:{draw(ports)}" for address in sorted(there))),
    ]
    return make_rule(where, endpoints, kind, policy_local=draw(st.booleans()), **fields)  # type: ignore[arg-type]


# One code of each class, except REJECTED, which by design is not retried before something changes.
CODES = (0x803B0007, 0x80070490, 0x803B0013, 0x800700B7, 0x803B002C, 0x80004001, 0x8007000E, 0x800706BA, 0x80004005)
REJECTED = 0x803B000D


@st.composite
def faults(draw: st.DrawFn, codes: Sequence[int] = CODES) -> Fault:
    code = HResult(draw(st.sampled_from(codes)))
    verb, kind = draw(
        st.sampled_from(
            (
                (HnsVerb.CREATE, HnsKind.LOAD_BALANCER),
                (HnsVerb.CREATE, HnsKind.LOAD_BALANCER),
                (HnsVerb.CREATE, HnsKind.ENDPOINT),
                (HnsVerb.CREATE, HnsKind.ENDPOINT),
                (HnsVerb.MODIFY, HnsKind.LOAD_BALANCER),
                (HnsVerb.DELETE, None),
                (HnsVerb.OPEN, None),
                (HnsVerb.QUERY, None),
                (HnsVerb.ENUMERATE, None),
                (None, None),
            )
        )
    )
    effect: Refuse | LoseReply | LeavePartial | LeakReservation = draw(
        st.sampled_from((Refuse(code), Refuse(code), Refuse(code), LoseReply()))
    )
    if verb is HnsVerb.CREATE and kind is HnsKind.LOAD_BALANCER:
        effect = draw(st.sampled_from((effect, LeavePartial())))
    elif verb is HnsVerb.DELETE and draw(st.booleans()):
        return Fault(effect=LeakReservation(), verb=verb, kind=HnsKind.LOAD_BALANCER)
    return Fault(effect=effect, verb=verb, kind=kind, times=draw(st.integers(1, 4)), skip=draw(st.integers(0, 2)))


def quiet_events() -> st.SearchStrategy[Event]:
    """The API and the CNI at work; HNS does as it is told."""
    return st.one_of(
        st.builds(Put, rules()),
        st.builds(Put, rules()),
        st.builds(Drop, rules()),
        st.builds(Sync, st.booleans()),
        st.builds(AddPod, st.sampled_from(PODS)),
        st.builds(RemovePod, st.sampled_from(PODS)),
    )


def events(codes: Sequence[int] = CODES) -> st.SearchStrategy[Event]:
    return st.one_of(
        quiet_events(),
        quiet_events(),
        st.builds(Wait, st.sampled_from((0.5, 3.0, 40.0))),
        st.builds(Break, faults(codes)),
        st.builds(Break, faults(codes)),
        st.builds(Break, faults(codes)),
        st.builds(
            Meddle,
            st.integers(0, 5),
            st.sampled_from(("remove", "flags", "source", "endpoints", "remove endpoint")),
        ),
        st.builds(AddForeign, st.sampled_from(("held", "two", "endpoint", "elsewhere"))),
        st.builds(HnsRestarts, st.booleans(), st.sampled_from((0, 3))),
        st.just(HnsStops()),
        st.just(ProcessRestarts()),
    )


def stuck_balancers() -> st.SearchStrategy[Event]:
    """Load balancers that cannot be moved off their endpoints for a while."""
    return st.builds(
        lambda verb, times: Break(
            Fault(effect=Refuse(HResult(0x803B0007)), verb=verb, kind=HnsKind.LOAD_BALANCER, times=times)
        ),
        st.sampled_from((HnsVerb.DELETE, HnsVerb.MODIFY)),
        st.integers(2, 6),
    )


@st.composite
def histories(draw: st.DrawFn, event: st.SearchStrategy[Event] | None = None) -> list[Event]:
    """Some rules that are in place, then events, most of them followed by a pass before the next one."""
    history: list[Event] = [Put(rule) for rule in draw(st.lists(rules(), min_size=3, max_size=6))]
    history.append(Sync(audit=True))
    for happening in draw(st.lists(event if event is not None else events(), min_size=4, max_size=12)):
        history.append(happening)
        if isinstance(happening, Break):  # something has to be written for it to matter
            history.append(draw(st.builds(Put, rules())))
        audit = draw(st.sampled_from((True, False, True, None)))
        if audit is not None:
            history.append(Sync(audit))
    return history


# --- who watches ---


@dataclass
class Witness:
    """Breaches by invariant, noted at the very call that commits them."""

    node: WindowsNode
    breaches: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    foreign: set[Guid | str] = field(default_factory=set)
    replacing: tuple[str, HnsLoadBalancer] | None = None
    modify_refused: bool = False
    writes_while_down: int = 0

    def __call__(self, call: Call) -> None:
        if not self.node.emulator.running and call.verb in WRITES:
            self.writes_while_down += 1
        self._replacement_goes_on(call)
        match call.kind, call.verb:
            case HnsKind.ENDPOINT, HnsVerb.CREATE | HnsVerb.MODIFY | HnsVerb.DELETE:
                self._endpoint_write(call)
            case HnsKind.LOAD_BALANCER, HnsVerb.CREATE | HnsVerb.MODIFY:
                self._balancer_document(call)
            case HnsKind.LOAD_BALANCER, HnsVerb.DELETE:
                self._balancer_delete(call)
            case HnsKind.NETWORK, HnsVerb.CREATE | HnsVerb.MODIFY | HnsVerb.DELETE:
                self.breach("I2", f"writes a network: {call}")
            case _:
                pass

    def breach(self, invariant: str, text: str) -> None:
        self.breaches[invariant].append(text)

    def _endpoint_write(self, call: Call) -> None:
        endpoint = call.value
        if call.guid in self.foreign:
            self.breach("I2", f"{call.verb} of a foreign endpoint")
        if not isinstance(endpoint, HnsEndpoint):
            return
        if not endpoint.remote and (call.verb is not HnsVerb.CREATE or endpoint.addresses != (SOURCE_VIP,)):
            self.breach("I1", f"{call.verb} of local endpoint {endpoint.addresses}")
        if call.verb is HnsVerb.MODIFY:
            self.breach("I1", "modifies an endpoint")
        observed = self.node.dataplane.situation.observed
        if call.verb is HnsVerb.DELETE and observed.references(endpoint.guid):
            self.breach("I4", f"deletes endpoint {endpoint.addresses}, which a load balancer uses")

    def _balancer_document(self, call: Call) -> None:
        situation = self.node.dataplane.situation
        asked = call.value
        if call.verb is HnsVerb.MODIFY:
            if call.guid in self.foreign:
                self.breach("I2", "modifies a foreign load balancer")
            self._needless(str(call.guid))
            asked = decode_load_balancer(call.document)
        assert isinstance(asked, HnsLoadBalancer)
        for guid in asked.endpoints:
            if guid not in situation.observed.endpoints:
                self.breach("I3", f"names endpoint {guid}, which was not seen")
        if not asked.endpoints or len(set(asked.endpoints)) < len(asked.endpoints):
            self.breach("I7", f"endpoints {asked.endpoints}")
        if asked.source_vip is None:
            self.breach("I7", "empty source VIP")
        claims = claims_of(asked)
        if len(claims) != 1:
            self.breach("I8", f"serves {claims}")
            return
        if call.verb is HnsVerb.CREATE and situation.observed.at_frontend(claims[0]):
            self.breach("I8", f"asks for a second load balancer at {claims[0]}")
        self._ports(asked)
        self._families(asked)

    def _ports(self, asked: HnsLoadBalancer) -> None:
        rule = self.node.rules.get(claims_of(asked)[0])
        if rule is None:
            return  # a health check, or a desire that the pass has not taken in yet
        served = {each.address for each in rule.endpoints if each.port == asked.port_mappings[0].internal_port}
        for guid in asked.endpoints:
            endpoint = self.node.emulator.get(HnsKind.ENDPOINT, guid)
            if isinstance(endpoint, HnsEndpoint) and served.isdisjoint(endpoint.addresses):
                self.breach("I7", f"{endpoint.addresses} does not serve port {asked.port_mappings[0].internal_port}")

    def _families(self, asked: HnsLoadBalancer) -> None:
        family = IPFamily.IPV6 if asked.flags & LbFlags.IPV6 else IPFamily.IPV4
        addresses = [*asked.frontend_vips, *((asked.source_vip,) if asked.source_vip else ())]
        if any(family_of(address) is not family for address in addresses):
            self.breach("I18", f"{family} load balancer with {addresses}")
        for guid in asked.endpoints:
            endpoint = self.node.dataplane.situation.observed.endpoints.get(guid)
            if endpoint is not None and all(family_of(address) is not family for address in endpoint.addresses):
                self.breach("I18", f"{family} load balancer with backend {endpoint.addresses}")

    def _balancer_delete(self, call: Call) -> None:
        if call.guid in self.foreign:
            self.breach("I2", "deletes a foreign load balancer")
        situation = self.node.dataplane.situation
        known = situation.observed.balancers.get(Guid(call.guid))
        if known is None:
            return
        self._needless(str(call.guid))
        for frontend in situation.observed.claims(known.guid):
            plan = plan_frontend(situation, frontend)
            if plan.desired is None or not plan.endpoints or known.guid in plan.surplus:
                continue
            if plan.verb is not Verb.REPLACE:
                self.breach("I5", f"deletes the load balancer of {frontend}, which is desired")
            else:
                self.replacing = (name_of(known), known)

    def _replacement_goes_on(self, call: Call) -> None:
        """After the delete of a replacement the very next call is its create; HNS may want the delete twice."""
        if self.replacing is None:
            return
        name, old = self.replacing
        if call.verb is HnsVerb.DELETE and call.guid == old.guid:
            return
        self.replacing = None
        new = call.value
        if call.verb is not HnsVerb.CREATE or not isinstance(new, HnsLoadBalancer) or name_of(new) != name:
            if self.node.emulator.get(HnsKind.LOAD_BALANCER, old.guid) is None and self.node.emulator.running:
                self.breach("I5", f"{call.verb} comes between the delete and the create of {name}")
            return
        only_endpoints = replace_fields(new, old) == replace_fields(old, old)
        if only_endpoints and self.node.emulator.build.modify is Modify.WORKS and not self.modify_refused:
            self.breach("I5", f"replaces {name}, where Modify would do")

    def _needless(self, guid: str) -> None:
        situation = self.node.dataplane.situation
        observed = situation.observed.balancers.get(Guid(guid))
        if observed is None or len(situation.observed.claims(observed.guid)) != 1:
            return
        frontend = situation.observed.claims(observed.guid)[0]
        desired = situation.wanted.balancers.get(frontend)
        plan = plan_frontend(situation, frontend)
        if desired is None or not plan.endpoints or len(situation.observed.at_frontend(frontend)) > 1:
            return
        if not balancer_differences(situation, desired, observed, plan.endpoints):
            self.breach("I6", f"writes {frontend}, which is as desired")


def replace_fields(balancer: HnsLoadBalancer, like: HnsLoadBalancer) -> HnsLoadBalancer:
    """Everything but endpoints and what HNS decides."""

    return msgspec.structs.replace(
        balancer, guid=like.guid, endpoints=(), network=like.network, owner=like.owner, state=like.state
    )


@dataclass
class Run:
    """One history on one node."""

    node: WindowsNode
    after_sync: Callable[[Run], None] = lambda _: None

    def __post_init__(self) -> None:
        self.witness = Witness(self.node)
        self.emulator.watch(self.witness)

    @property
    def emulator(self) -> Emulator:
        return self.node.emulator

    def sync(self, *, audit: bool) -> None:
        self.node.wait(1.0)  # passes are at least this far apart, and an outage is over by the next one
        self.report = self.node.sync(audit=audit)
        self.witness.replacing = None
        self.after_sync(self)

    def play(self, history: Sequence[Event]) -> Run:
        for event in history:
            if isinstance(event, Break) and event.fault.verb in (HnsVerb.MODIFY, HnsVerb.OPEN, HnsVerb.QUERY, None):
                self.witness.modify_refused = True
            event.do(self)
        return self

    def add_foreign(self, what: str) -> None:
        network = self.emulator.networks()[0]
        if what == "held" and not self.emulator.build.echoes_owner:
            return  # nothing would tell it from what a service proxy has left: it would be taken over, and rightly so
        if what == "endpoint":  # at an address that rules use, but with somebody else's MAC and mark
            address = parse_address(ELSEWHERE[2])
            if any(address in each.addresses for each in self.emulator.endpoints()):
                return
            guid = self.emulator.add(
                HnsEndpoint(
                    network=network.guid,
                    ip_configurations=(IpConfiguration(address, 32),),
                    mac_address="02-AA-BB-CC-DD-EE",
                    flags=EndpointFlags.REMOTE,
                    policies=(ProviderAddress(NODE_IP),),
                    owner="cni",
                )
            )
            self.witness.foreign.add(guid)
            return
        vips, port, owner = {
            "held": (("10.96.0.10",), 443, "other"),
            "two": (("10.96.0.11", "10.96.0.99"), 80, ""),
            "elsewhere": (("198.51.100.1",), 80, ""),
        }[what]
        addresses = tuple(parse_address(vip) for vip in vips)
        taken = {vip for each in self.emulator.load_balancers() for vip in each.frontend_vips if name_of(each)}
        endpoints = [each.guid for each in self.emulator.endpoints() if each.name == "cbr0"]
        if not endpoints or taken & set(addresses):
            return
        guid = self.emulator.add(
            HnsLoadBalancer(
                endpoints=(endpoints[0],),
                source_vip=NODE_IP,
                frontend_vips=addresses,
                port_mappings=(PortMapping(protocol=6, internal_port=1, external_port=port),),
                owner=owner,
            )
        )
        self.witness.foreign.add(guid)

    def calm(self) -> None:
        """HNS is healthy, nothing is broken any more, and every retry is due."""
        self.emulator.faults.clear()
        self.emulator.start()
        self.emulator.forget_leaks()
        self.node.wait(301.0)


def make_run(build: Build, after_sync: Callable[[Run], None] = lambda _: None) -> Run:
    emulator = l2bridge_node(build)
    emulator.add_pod(PODS[0])
    config = make_config(
        forward_health_check_vip=True,
        network_name="hansa-br",
        journal_path="" if build.keeps_caller_guid or build.echoes_owner else f"{JOURNALS.name}/{next(JOURNAL)}",
    )
    return Run(WindowsNode(emulator, config), after_sync)


def check(invariant: str, build: Build, history: Sequence[Event]) -> None:
    run = make_run(build).play(history)
    run.sync(audit=True)
    run.calm()
    run.sync(audit=True)
    assert not run.witness.breaches[invariant]


builds = st.sampled_from(BUILDS)
JOURNALS = TemporaryDirectory(ignore_cleanup_errors=True)
JOURNAL = count()
# Where neither our GUID nor our Owner is kept, only the journal's file can tell what a dead process has made.
marking_builds = st.sampled_from([build for build in BUILDS if build.keeps_caller_guid or build.echoes_owner])


# --- what must be there in the end, by another way than the planner's ---


def expected_balancers(run: Run, *, held_too: bool = False) -> dict[str, tuple[frozenset[str], HnsLoadBalancer]]:
    """By name: addresses behind it and its fields, from the rules and from what the CNI and others hold.

    held_too: also those whose frontend another program holds; they are desired, but cannot be made.
    """
    facts = run.node.dataplane.situation.wanted.facts
    assert facts is not None
    found = {}
    endpoints = run.emulator.endpoints()
    held = {
        claim for each in run.emulator.load_balancers() if each.guid in run.witness.foreign for claim in claims_of(each)
    }
    wanted = render(run.node.rules.values(), facts, run.node.config)
    local_wanted = {address for balancer in wanted.load_balancers for address in balancer.local}
    for balancer in wanted.load_balancers:
        present = {address for each in endpoints if not each.remote for address in each.addresses}
        behind = {address for address in balancer.backends if address in present or address not in local_wanted}
        if not behind or (balancer.key.frontend in held and not held_too):
            continue
        expected = HnsLoadBalancer(
            source_vip=balancer.source_vip,
            frontend_vips=() if balancer.key.vip is None else (balancer.key.vip,),
            port_mappings=(
                PortMapping(
                    protocol=balancer.key.protocol.value,
                    internal_port=balancer.internal_port,
                    external_port=balancer.key.port,
                    distribution=balancer.distribution,
                    flags=balancer.mapping_flags,
                ),
            ),
            flags=balancer.lb_flags,
        )
        found[name_of(expected)] = (frozenset(str(address) for address in behind), expected)
    return found


def actual_balancers(run: Run) -> dict[str, tuple[frozenset[str], HnsLoadBalancer]]:
    endpoints = {each.guid: each for each in run.emulator.endpoints()}
    blank = HnsLoadBalancer()
    return {
        name_of(each): (
            frozenset(str(endpoints[guid].addresses[0]) if guid in endpoints else guid for guid in each.endpoints),
            replace_fields(each, blank),
        )
        for each in run.emulator.load_balancers()
        if each.guid not in run.witness.foreign
    }


def remote_addresses(run: Run) -> Counter[str]:
    return Counter(
        str(address)
        for each in run.emulator.endpoints()
        if each.remote and each.guid not in run.witness.foreign
        for address in each.addresses
    )


def assert_as_desired(run: Run) -> None:
    expected = expected_balancers(run)
    assert actual_balancers(run) == expected
    local_now = {str(a) for each in run.emulator.endpoints() if not each.remote for a in each.addresses}
    foreign = {str(a) for each in run.emulator.endpoints() if each.guid in run.witness.foreign for a in each.addresses}
    behind = {address for addresses, _ in expected_balancers(run, held_too=True).values() for address in addresses}
    assert set(remote_addresses(run)) == behind - local_now - foreign
    assert max(remote_addresses(run).values(), default=1) == 1


# --- the invariants ---


@EXAMPLES
@given(builds, histories())
def test_I01_no_local_endpoint_is_ever_written(build: Build, history: list[Event]) -> None:
    check("I1", build, history)


@EXAMPLES
@given(builds, histories())
def test_I02_no_foreign_object_is_ever_written(build: Build, history: list[Event]) -> None:
    check("I2", build, history)


@EXAMPLES
@given(builds, histories())
def test_I03_documents_name_only_endpoints_that_were_seen(build: Build, history: list[Event]) -> None:
    check("I3", build, history)


@EXAMPLES
@given(builds, histories(st.one_of(quiet_events(), quiet_events(), stuck_balancers())))
def test_I04_no_endpoint_is_deleted_while_it_is_used(build: Build, history: list[Event]) -> None:
    check("I4", build, history)


@EXAMPLES
@given(builds, histories())
def test_I05_a_desired_frontend_is_bare_only_within_its_replacement(build: Build, history: list[Event]) -> None:
    check("I5", build, history)


@EXAMPLES
@given(builds, histories())
def test_I06_what_is_as_desired_receives_no_call(build: Build, history: list[Event]) -> None:
    check("I6", build, history)


@EXAMPLES
@given(builds, histories())
def test_I07_no_document_without_endpoints_source_vip_or_right_port(build: Build, history: list[Event]) -> None:
    check("I7", build, history)


@EXAMPLES
@given(builds, histories())
def test_I08_at_most_one_load_balancer_per_frontend(build: Build, history: list[Event]) -> None:
    check("I8", build, history)


@EXAMPLES
@given(builds, histories())
def test_I09_two_passes_after_the_last_change_all_is_as_desired(build: Build, history: list[Event]) -> None:
    run = make_run(build).play(history)
    run.calm()
    for _ in range(4):  # two passes for what hansa has to do; before them, one in which HNS is found to be back
        run.sync(audit=True)
        run.node.wait(30.0)
    assert_as_desired(run)
    run.node.forget()
    run.sync(audit=True)
    assert run.node.writes() == []
    assert run.report.pending == tuple(
        str(frontend)
        for frontend, open_ in sorted(run.node.dataplane._status.frontends.items(), key=lambda item: str(item[0]))
        if "another program" in open_.reason
    )


@EXAMPLES
@given(builds, histories(quiet_events()))
def test_I10_the_end_does_not_depend_on_order_or_batching(build: Build, history: list[Event]) -> None:
    one = make_run(build).play(history)
    changes_of_hns = [event for event in history if isinstance(event, AddPod | RemovePod)]
    other = make_run(build).play(changes_of_hns)
    other.node.want(*reversed(one.node.rules.values()))
    for run in (one, other):
        run.node.settle()
    assert actual_balancers(one) == actual_balancers(other)
    assert remote_addresses(one) == remote_addresses(other)


@EXAMPLES
@given(builds, histories(events((*CODES, REJECTED))))
def test_I11_errors_never_change_what_is_desired(build: Build, history: list[Event]) -> None:
    def same_as_fresh(run: Run) -> None:
        wanted = run.node.dataplane.situation.wanted
        if wanted.facts is not None:
            assert rendered(wanted) == render(run.node.rules.values(), wanted.facts, run.node.config)

    make_run(build, same_as_fresh).play(history)


@EXAMPLES
@given(builds, histories(quiet_events()), st.lists(quiet_events(), max_size=4), st.integers(1, 5))
def test_I12_while_hns_is_away_nothing_is_deleted_or_forgotten(
    build: Build, before: list[Event], during: list[Event], passes: int
) -> None:
    run = make_run(build).play(before)
    run.node.settle()
    observed = run.node.dataplane.situation.observed
    known = {*observed.balancers, *observed.endpoints}
    run.emulator.stop()
    run.play([event for event in during if isinstance(event, Put | Drop)])
    for _ in range(passes):
        run.sync(audit=True)
        assert run.report.state is HostState.UNAVAILABLE
        assert run.report.host_calls <= 1
        run.node.wait(0.6)
    assert run.witness.writes_while_down == 0
    assert {*observed.balancers, *observed.endpoints} == known


@EXAMPLES
@given(builds, histories(quiet_events()), st.booleans())
def test_I13_another_network_id_deletes_nothing_of_the_old_one(
    build: Build, history: list[Event], old_one_stays: bool
) -> None:
    run = make_run(build).play(history)
    run.node.settle()
    old = run.emulator.networks()[0]
    old_endpoints = {each.guid for each in run.emulator.endpoints()}
    if old_one_stays:
        run.emulator.alter(HnsKind.NETWORK, old.guid, name="set-aside")

        run.emulator.add(msgspec.structs.replace(old, guid=Guid("00000000-0000-0000-0000-000000000000")))
    else:
        run.emulator.recreate_network(old.guid)
    run.node.forget()
    run.sync(audit=True)
    deleted = {call.guid for call in run.node.calls if call.verb is HnsVerb.DELETE and call.kind is HnsKind.ENDPOINT}
    assert not deleted & old_endpoints
    new = next(each for each in run.emulator.networks() if each.guid != old.guid)
    assert isinstance(new, HnsNetwork)
    expected = {
        address
        for balancer in run.node.dataplane.situation.wanted.balancers.values()
        for address in balancer.backends
        if not run.node.dataplane.situation.wanted.waits_for_local(address)
    }
    made = {a for each in run.emulator.endpoints() if each.network == new.guid and each.remote for a in each.addresses}
    assert made == expected
    for each in run.emulator.load_balancers():
        assert {run.emulator.get(HnsKind.ENDPOINT, guid).network for guid in each.endpoints} == {new.guid}  # type: ignore[union-attr]


class Crash(BaseException):
    """The process dies between two calls."""


@EXAMPLES
@given(marking_builds, histories(quiet_events()), st.integers(1, 40))
def test_I14_a_restart_between_any_two_calls_changes_nothing(build: Build, history: list[Event], calls: int) -> None:
    smooth = make_run(build).play(history)
    smooth.node.settle()
    run = make_run(build)
    left = calls

    def die(call: Call) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    run.emulator.watch(die)
    for event in history:
        try:
            event.do(run)
        except Crash:
            run.emulator._handles.clear()  # Windows closes the handles of a process that dies
            run.node.start()
    for _ in range(2):
        try:
            run.node.settle()
        except Crash:
            run.emulator._handles.clear()
            run.node.start()
    assert actual_balancers(run) == actual_balancers(smooth)
    assert remote_addresses(run) == remote_addresses(smooth)


@EXAMPLES
@given(builds, histories(events((*CODES, REJECTED))))
def test_I15_pending_names_exactly_what_is_missing_or_different(build: Build, history: list[Event]) -> None:
    """Health counts the time for which something has been pending, so this is what it stands on."""

    run = make_run(build).play(history)
    run.emulator.faults.clear()
    run.emulator.start()
    run.sync(audit=True)
    if run.report.state is not HostState.HEALTHY or run.report.again:
        run.node.wait(1.0)
        run.sync(audit=True)
    if run.report.state is not HostState.HEALTHY:
        return
    wanted = expected_balancers(run)
    actual = actual_balancers(run)
    different = {name for name, value in wanted.items() if actual.get(name) != value}
    situation = run.node.dataplane.situation
    held = {key for key in situation.wanted.balancers if "another program" in plan_frontend(situation, key).blocked}
    names = {
        str(balancer.key.frontend)
        for frontend, balancer in situation.wanted.balancers.items()
        if _wire_name(frontend) in different or frontend in held
    }
    listed = {str(key) for key, open_ in run.node.dataplane._status.frontends.items() if open_.desired}
    assert listed == names
    assert run.report.ok == (not run.report.pending)


def _wire_name(frontend: FrontendKey) -> str:
    host = "node" if frontend.address is None else str(frontend.address)
    return f"{host}:{frontend.port}/{frontend.protocol}"


@EXAMPLES
@given(st.sampled_from((plain(WS2022), plain(ZN23H2))), histories(quiet_events()))
def test_I16_calls_per_pass_stay_within_their_bounds(build: Build, history: list[Event]) -> None:
    def within(run: Run) -> None:
        reads = run.report.host_calls - price_of_writes(run)
        endpoints, balancers = len(run.emulator.endpoints()), len(run.emulator.load_balancers())
        assert reads <= 1 + 6 + 3 * (endpoints + balancers) + 3 * run.node.config.windows.verify_per_period

    run = make_run(build, within).play(history)
    run.node.settle()
    run.after_sync = lambda _: None
    run.node.put(*(event.rule for event in history if isinstance(event, Put)))
    run.node.forget()
    report = run.node.sync()
    lacks_pods = any("which the CNI makes" in one for one in report.conditions)
    look = 6  # network 4, lists 2: a pod that a rule has just begun to name may be new, and everything else is known
    assert report.host_calls - price_of_writes(run) in ((0, look) if lacks_pods else (0,))


def price_of_writes(run: Run) -> int:
    """H.7: 3 per created load balancer, 4 per modified, 1 per deleted; 5 per endpoint made, 1 + 3 per deleted."""
    node = run.node
    price = {
        (HnsVerb.CREATE, HnsKind.LOAD_BALANCER): 3,
        (HnsVerb.MODIFY, HnsKind.LOAD_BALANCER): 4,
        (HnsVerb.DELETE, HnsKind.LOAD_BALANCER): 1,
        (HnsVerb.CREATE, HnsKind.ENDPOINT): 5,
        (HnsVerb.DELETE, HnsKind.ENDPOINT): 4,
    }
    return sum(price[call.verb, call.kind] for call in node.writes() if call.verb and call.kind)


@EXAMPLES
@given(builds, histories())
def test_I17_every_handle_is_closed(build: Build, history: list[Event]) -> None:
    def none_open(run: Run) -> None:
        assert run.emulator.open_handles == 0
        assert run.emulator.bad_closes == 0

    make_run(build, none_open).play(history)


DUAL_RULES = (
    ("10.96.0.10:80", "[fd00::10]:80", FrontendKind.CLUSTER_IP),
    ("203.0.113.7:80", "[2001:db8:7::7]:80", FrontendKind.EXTERNAL_IP),
)


@EXAMPLES
@given(
    st.lists(st.tuples(st.sampled_from(DUAL_RULES), st.booleans(), st.sets(st.integers(7, 10), max_size=3)), max_size=6)
)
def test_I18_families_never_mix(steps: list[tuple[tuple[str, str, FrontendKind], bool, set[int]]]) -> None:
    emulator = l2bridge_node(plain(WS2022), layout=L2BRIDGE_DUAL_STACK)
    run = Run(WindowsNode(emulator, make_config(forward_health_check_vip=True)))
    for (v4, v6, kind), six, hosts in steps:
        if six:
            backends = remote(*(f"[2001:db8:40:4::{host}]:8080" for host in hosts))
            node_port = make_rule("node:30080", backends, family=IPFamily.IPV6)
        else:
            backends = remote(*(f"10.40.4.{host}:8080" for host in hosts))
            node_port = make_rule("node:30080", backends, family=IPFamily.IPV4)
        run.node.put(make_rule(v6 if six else v4, backends, kind), node_port)
        run.sync(audit=False)
        assert not run.report.pending
    assert not run.witness.breaches["I18"]
    for each in emulator.load_balancers():
        six = bool(each.flags & LbFlags.IPV6)
        addresses = [a for guid in each.endpoints for a in emulator.get(HnsKind.ENDPOINT, guid).addresses]  # type: ignore[union-attr]
        assert {address.version for address in addresses} == {6 if six else 4}


class Garbling:
    """An HnsApi whose answers about some objects make no sense."""

    def __init__(self, emulator: Emulator, answers: Sequence[str]) -> None:
        self._emulator = emulator
        self._answers = answers
        self._asked: dict[Handle, Guid] = {}
        self.garbled: dict[Guid, str] = {}

    def version(self) -> HnsVersion:
        return self._emulator.version()

    def enumerate(self, kind: HnsKind, query: str) -> str:
        return self._emulator.enumerate(kind, query)

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        handle = self._emulator.open(kind, guid)
        self._asked[handle] = guid
        return handle

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        text = self._emulator.query(kind, handle, query)
        return self.garbled.get(self._asked.get(handle, Guid("")), text)

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        return self._emulator.create(kind, guid, settings, network)

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        self._emulator.modify(kind, handle, settings)

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        self._emulator.delete(kind, guid)

    def close(self, kind: HnsKind, handle: Handle) -> None:
        self._asked.pop(handle, None)
        self._emulator.close(kind, handle)


NONSENSE = (
    "",
    "null",
    "[]",
    "{",
    "{}",
    '{"ID":7}',
    '{"PortMappings":[{"Protocol":"x"}]}',
    '{"Flags":-1}',
    '{"ID":"no"}',
)


@EXAMPLES
@given(histories(quiet_events()), st.sampled_from(NONSENSE), st.integers(0, 9))
def test_I19_a_malformed_object_costs_only_itself(history: list[Event], answer: str, index: int) -> None:
    run = make_run(plain(WS2022)).play(history)
    run.node.settle()
    objects = [*run.emulator.load_balancers(), *(each for each in run.emulator.endpoints() if each.name != "cbr0")]
    if not objects:
        return
    victim = objects[index % len(objects)].guid
    garbling = Garbling(run.emulator, ())
    garbling.garbled[victim] = answer
    run.node.start()
    run.node.dataplane._client._api = garbling
    run.sync(audit=True)
    run.node.wait(301.0)
    run.sync(audit=True)
    expected = expected_balancers(run)
    actual = actual_balancers(run)
    touched = {name for name in expected if actual.get(name) != expected[name]}
    endpoint = run.emulator.get(HnsKind.ENDPOINT, victim)
    hurt = {str(a) for a in endpoint.addresses} if isinstance(endpoint, HnsEndpoint) else set()
    for name in touched:
        assert expected[name][0] & hurt or victim in {each.guid for each in run.emulator.load_balancers()}


@EXAMPLES
@given(st.lists(rules(), max_size=6), st.integers(1, 3))
def test_I20_nothing_is_written_before_the_lists_are_complete(wanted: list[Rule], passes: int) -> None:
    run = make_run(plain(WS2022))
    changes = RuleChanges({rule.key: rule for rule in wanted}, SURROUNDINGS)
    for _ in range(passes):
        report = run.node.dataplane.sync(changes, now=run.node.now, audit=True)
        assert report.state is HostState.WAITING
        assert not report.ok
        run.node.wait(30.0)
    assert run.node.writes() == []
