"""Laws of stage 3 over random clusters, histories, configurations and packets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.case_format import CaseNode, Step
from tests.strategies import (
    CLUSTER_IPS,
    NAMESPACE,
    NODE_PORTS,
    PORTS,
    SERVICE_NAMES,
    SOURCES,
    SOURCES_V6,
    VIPS,
    Cluster,
    changes,
    clusters,
    final_objects,
    packets,
    services,
    slice_endpoints,
)

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Policy, ServiceKey, ServicePortSpec, ServiceType, SlicePort
from hansa.config import Config, DetectLocalMode, NodePortAddresses
from hansa.net import IPFamily, Packet, Protocol, family_of, parse_prefix
from hansa.rules.build import build_rules
from hansa.rules.decide import decide, matching_rule, origin_of
from hansa.rules.model import (
    Because,
    Drop,
    Forward,
    FrontendKind,
    NotHandled,
    Origin,
    Reject,
    Rule,
    Surroundings,
)
from hansa.rules.ruleset import RuleSet, frontend_order
from hansa.rules.surroundings import detects_pods, make_surroundings
from hansa.services.model import NodeFacts, ServicePort, ServicePortView
from hansa.services.node import node_facts
from hansa.services.store import Store
from hansa.services.view import build_view
from hansa.testing import NODE_ADDRESSES, config

laws = settings(max_examples=50, deadline=None)

DETECTORS: tuple[dict[str, Any], ...] = (
    {},
    {"cluster_cidrs": ()},
    {"cluster_cidrs": (parse_prefix("10.1.0.0/16"), parse_prefix("fd01::/16"))},
    {"detect_local_mode": DetectLocalMode.NODE_CIDR},
    {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "bridge_interface": "br0"},
    {"detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX, "interface_name_prefix": "veth"},
)
NODE_PORT_ADDRESSES = (
    NodePortAddresses(),
    NodePortAddresses(primary=False),
    NodePortAddresses(primary=False, prefixes=(parse_prefix("192.0.2.64/26"),)),
)
INTERFACES = (None, "br0", "eth0", "veth12")


@st.composite
def configs(draw: st.DrawFn) -> Config:
    return config(
        **draw(st.sampled_from(DETECTORS)),
        masquerade_all=draw(st.booleans()),
        node_port_addresses=draw(st.sampled_from(NODE_PORT_ADDRESSES)),
        localhost_node_ports=draw(st.booleans()),
        proxy_name=draw(st.sampled_from((None, None, None, "other"))),
    )


@st.composite
def busy_clusters(draw: st.DrawFn) -> Cluster:
    """Clusters in which every Service is handled, and its port http has endpoints: what stage 3 is about."""
    found = draw(clusters())
    busy = []
    slices = []
    for name in SERVICE_NAMES:
        given_one = draw(services((name,)))
        ports = [one for one in given_one.ports if (one.name, one.protocol) != ("http", Protocol.TCP)]
        http = ServicePortSpec("http", Protocol.TCP, draw(st.sampled_from(PORTS)), draw(st.sampled_from(NODE_PORTS)))
        types = (ServiceType.LOAD_BALANCER, ServiceType.NODE_PORT, ServiceType.CLUSTER_IP)
        addresses = given_one.cluster_ips or (CLUSTER_IPS[IPFamily.IPV4][0],)
        busy.append(
            replace(
                given_one,
                type=draw(st.sampled_from(types)),
                headless=False,
                cluster_ips=addresses,
                ports=(http, *ports),
                proxy_name=None,
            )
        )
        for family in {family_of(address) for address in addresses}:
            slices.append(
                EndpointSlice(
                    NAMESPACE,
                    f"{name}-{family}",
                    name,
                    family,
                    (SlicePort("http", Protocol.TCP, 8080),),
                    tuple(draw(st.lists(slice_endpoints(family), min_size=1, max_size=4))),
                )
            )
    return replace(found, services=tuple(busy), slices=tuple(slices))


def probes(made: Stages) -> Iterator[Packet]:
    """A packet from every sort of source to every frontend, by any interface."""
    for number, rule in enumerate(made.rules):
        v4 = rule.key.family is IPFamily.IPV4
        for target in sorted(NODE_ADDRESSES, key=str) if rule.key.address is None else [rule.key.address]:
            sources = (*SOURCES, *VIPS) if v4 else (*SOURCES_V6, *VIPS)
            for shift, source in enumerate(sources):
                if source.version == target.version == (4 if v4 else 6):
                    interface = INTERFACES[(number + shift) % len(INTERFACES)]
                    yield Packet(source, target, rule.key.protocol, rule.key.port, interface)


def arrivals() -> st.SearchStrategy[list[Packet]]:
    """Packets to anywhere, by any interface."""
    one = st.builds(lambda packet, name: replace(packet, interface=name), packets(), st.sampled_from(INTERFACES))
    return st.lists(one, min_size=1, max_size=10)


class Stages:
    """What a proxy has made of a cluster: views, claims by Service, the rules in force."""

    def __init__(self, cluster: Cluster, chosen: Config) -> None:
        store = Store(chosen)
        for change in cluster.changes:
            store.apply(change)
        facts: NodeFacts = node_facts(store.node, chosen, NODE_ADDRESSES)
        self.surroundings: Surroundings = make_surroundings(facts, chosen, store.service_cidrs)
        self.views: dict[ServiceKey, tuple[ServicePortView, ...]] = {
            key: build_view(store, key, facts, chosen) for key in store.services
        }
        self.claims: dict[ServiceKey, tuple[Rule, ...]] = {
            key: build_rules(view, chosen, self.surroundings) for key, view in self.views.items()
        }
        self.rules = RuleSet()
        for key, claims in self.claims.items():
            self.rules.replace(key, claims)
        self.ports: dict[Any, ServicePort] = {
            one.key: one.port for view in self.views.values() for one in view
        }  # by name and family

    def port_of(self, rule: Rule) -> ServicePort:
        return self.ports[(rule.owner, rule.key.family)]


def stages() -> st.SearchStrategy[Stages]:
    return st.builds(Stages, st.one_of(busy_clusters(), busy_clusters(), busy_clusters(), clusters()), configs())


@laws
@given(stages(), arrivals())
def test_every_packet_gets_a_verdict_that_fits_its_rule(made: Stages, packets_in: list[Packet]) -> None:
    """decide never raises; whoever is forwarded goes to usable endpoints of that port, in the packet's family."""
    for packet in (*probes(made), *packets_in):
        verdict = decide(made.rules, made.surroundings, packet)
        rule = matching_rule(made.rules, made.surroundings, packet)
        match verdict:
            case Forward(endpoints):
                assert rule is not None
                (view,) = (one for one in made.views[rule.owner.service_key] if one.port is made.port_of(rule))
                assert endpoints
                assert set(endpoints) <= set(view.selection.reachable)
                assert {family_of(endpoint.address) for endpoint in endpoints} == {family_of(packet.destination)}
                assert list(map(str, endpoints)) == sorted(map(str, endpoints))
            case Drop(because):
                assert (rule is None) == (because is Because.UNALLOCATED_IP)
            case Reject(because):
                assert (rule is None) == (because is Because.UNUSED_PORT)
            case NotHandled():
                assert rule is None


@laws
@given(stages())
def test_source_ranges_are_checked_before_anything_else(made: Stages) -> None:
    """F5, F6, R10: judged from the Service's own field, for load balancer addresses and nothing else."""
    for packet in probes(made):
        rule = matching_rule(made.rules, made.surroundings, packet)
        verdict = decide(made.rules, made.surroundings, packet)
        barred = False
        if rule is not None and rule.kind is FrontendKind.LOAD_BALANCER_IP:
            port = made.port_of(rule)
            node_ip = made.surroundings.node.node_ips.get(port.family)
            ranges = port.source_ranges
            if ranges is not None and not any(packet.source in one for one in ranges):
                node_inside = node_ip is not None and any(node_ip in one for one in ranges)
                barred = not (node_inside and packet.source in port.load_balancer_vips)
        assert (verdict == Drop(Because.SOURCE_RANGE)) == barred


@laws
@given(stages())
def test_policy_local_keeps_outside_traffic_on_this_node(made: Stages) -> None:
    """X8, M5: and keeps the client's address. Without a detector pods count as outside (X9)."""
    for packet in probes(made):
        rule = matching_rule(made.rules, made.surroundings, packet)
        if rule is None or origin_of(made.surroundings, packet) is not Origin.OUTSIDE:
            continue
        port = made.port_of(rule)
        external = rule.kind is not FrontendKind.CLUSTER_IP
        if (port.external_policy if external else port.internal_policy) is Policy.LOCAL:
            verdict = decide(made.rules, made.surroundings, packet)
            if isinstance(verdict, Forward):
                assert all(endpoint.local for endpoint in verdict.endpoints)
                assert not (external and verdict.masquerade)


@laws
@given(stages(), configs())
def test_masquerading_follows_its_table(made: Stages, chosen: Config) -> None:
    """M1 to M5, M7, in the words of the table and by origin."""
    for view in made.views.values():
        for rule in build_rules(view, chosen, made.surroundings):
            detector = detects_pods(made.surroundings, rule.key.family)
            port = made.port_of(rule)
            for origin in Origin:
                action = rule.action(origin)
                if not isinstance(action, Forward):
                    continue
                if rule.kind is FrontendKind.CLUSTER_IP:
                    wanted = chosen.masquerade_all or (detector and origin is not Origin.POD)
                elif port.external_policy is Policy.CLUSTER:
                    wanted = True
                else:
                    wanted = origin is Origin.NODE
                assert action.masquerade is wanted


@laws
@given(stages(), st.randoms(use_true_random=False))
def test_conflicts_are_settled_alike_in_any_order_of_arrival(made: Stages, random: Any) -> None:
    """A12."""
    shuffled = list(made.claims.items())
    random.shuffle(shuffled)
    other = RuleSet()
    for key, claims in shuffled:
        own = list(claims)
        random.shuffle(own)
        other.replace(key, own)
    assert list(other) == list(made.rules)
    assert other.conflicts == made.rules.conflicts


@laws
@given(stages())
def test_the_oldest_claim_is_in_force(made: Stages) -> None:
    """A12, by a plain search over all claims; every other claimant is a loser, once."""
    claims = [rule for rules in made.claims.values() for rule in rules]
    keys = {rule.key for rule in claims}
    assert {rule.key for rule in made.rules} == keys
    for key in keys:
        rivals = [rule for rule in claims if rule.key == key]
        winner = made.rules.get(key)
        assert winner in rivals
        oldest = min((rule.created, rule.owner.namespace, rule.owner.service) for rule in rivals)
        assert winner is not None
        assert (winner.created, winner.owner.namespace, winner.owner.service) == oldest
        losers = [one.loser for one in made.rules.conflicts if one.key == key]
        assert sorted(losers) == sorted({rule.owner for rule in rivals} - {winner.owner})
        same_service = [rule for rule in rivals if rule.owner.service_key == winner.owner.service_key]
        if any(rule.kind is FrontendKind.LOAD_BALANCER_IP for rule in same_service):
            assert winner.kind is FrontendKind.LOAD_BALANCER_IP


@st.composite
def batches(draw: st.DrawFn) -> list[list[Change]]:
    """A cluster as it is listed at the start, and what happens to it then, batch by batch."""
    start = draw(st.one_of(busy_clusters(), clusters()))
    return [list(start.changes), *draw(st.lists(st.lists(changes(), min_size=1, max_size=4), max_size=5))]


@laws
@given(batches(), configs())
def test_incremental_rules_equal_rules_built_from_scratch(history: list[list[Change]], chosen: Config) -> None:
    """Cost follows the change, and the outcome does not tell: rules, conflicts, guarded addresses, surroundings."""
    synced = [Synced(kind) for kind in Kind]
    one_by_one, at_once = CaseNode(chosen), CaseNode(chosen)
    for batch in history:
        one_by_one.take(Step("", tuple(batch), NODE_ADDRESSES))
    final = final_objects([change for batch in history for change in batch])
    at_once.take(Step("", (*map(Upsert, final.values()), *synced), NODE_ADDRESSES))

    one, other = one_by_one.pipeline.rules, at_once.pipeline.rules
    assert one_by_one.surroundings == at_once.surroundings
    assert list(one) == list(other)
    assert one.conflicts == other.conflicts
    assert {key: one.rules_of(key) for key in one.services} == {key: other.rules_of(key) for key in other.services}
    for rule in one:
        if rule.key.address is not None:
            assert one.is_cluster_ip(rule.key.address) == other.is_cluster_ip(rule.key.address)


@laws
@given(batches(), configs(), arrivals())
def test_messages_add_up_to_the_rules(history: list[list[Change]], chosen: Config, packets_in: list[Packet]) -> None:
    """A dataplane that knows nothing but the messages decides as the rule set does."""
    node = CaseNode(chosen)
    for batch in history:
        message = node.take(Step("", tuple(batch), NODE_ADDRESSES))
        if message is not None:
            assert list(message.rules) == sorted(message.rules, key=frontend_order)
    rules = node.pipeline.rules
    assert node.rules == {rule.key: rule for rule in rules}
    for packet in packets_in:
        assert node.decide(packet) == decide(rules, node.surroundings, packet)
