"""Random histories with faults and foreign writes: every one ends in the table that a fresh start would make."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nft_comparing import check_packet
from tests.strategies import Cluster, changes, clusters, packets

from hansa.api.change import Change
from hansa.config import Config
from hansa.dataplanes.base import HostState, Outcome, SyncReport, Verb
from hansa.dataplanes.nftables.apply import NftablesDataplane
from hansa.dataplanes.nftables.frame import SETS
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.dataplanes.nftables.numbers import MAX_NUMBERED, Ids
from hansa.dataplanes.nftables.objects import Chain, Do, Ruleset, Target
from hansa.dataplanes.nftables.plan import AddElements, DeleteTable, Refused, Transaction
from hansa.dataplanes.nftables.render import render
from hansa.net import IPFamily, Packet, Protocol, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.model import Because, Forward, FrontendKey, Rule, RuleChanges, Surroundings
from hansa.services.model import Endpoint, ServicePortName
from hansa.testing import NODE_ADDRESSES, NODE_FACTS, config

DETECTORS = st.sampled_from(
    (
        config(),
        config(cluster_cidrs=()),
        config(masquerade_all=True),
        config(localhost_node_ports=True),
        config(proxy_name="other"),
    )
)


def same(one: Ruleset, other: Ruleset) -> None:
    """Equal but for the numbers of affinity, which depend on what came first."""
    assert one.chains == other.chains
    for name, elements in other.elements.items():
        if "sticky" in name:
            assert len(one.elements[name]) == len(elements), name
            continue
        assert one.elements[name] == elements, name


def check_sticky(table: Ruleset) -> None:
    """Every class id that a pick leads to has an endpoint, and nothing else is there."""
    for spec in SETS:
        if spec.name.endswith("sticky-picks"):
            picks = table.elements[spec.name]
            endpoints = table.elements[spec.name.replace("picks", "slots")]
            assert {key[:-4] + value for key, value in picks.items() if isinstance(value, bytes)} == set(endpoints)


class Node:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.host = MemoryRuleset()
        self.dataplane = NftablesDataplane(self.host)
        self.now = 0.0

    def sync(self, *, audit: bool = False) -> list[SyncReport]:
        """As the engine does it: changes that a failed sync took in are not sent again. [] = nothing to send."""
        message = self.pipeline.take()
        if message is None:
            return []
        self.now += 1.0
        return [self.dataplane.sync(message, now=self.now, audit=audit)]

    def settle(self) -> None:
        message = RuleChanges({}, self.pipeline.surroundings)
        for _ in range(2):
            report = self.dataplane.sync(message, now=self.now, audit=True)
        assert report.ok, report.conditions
        assert report.results == (), "a second audit finds nothing to do"

    def check(self) -> None:
        rules = list(self.pipeline.rules.everything(self.pipeline.surroundings).rules.values())
        for family in IPFamily:
            wanted, _ = render(
                [rule for rule in rules if rule is not None and rule.key.family is family],
                self.pipeline.surroundings,
                family,
            )
            same(self.host.tables[family], wanted)
            check_sticky(self.host.tables[family])


EVENTS = st.one_of(
    changes(),
    st.sampled_from(("sync", "sync", "sync", "audit", "restart", "flush", "refuse", "vandal-element", "vandal-chain")),
)


@given(clusters(), DETECTORS, st.lists(EVENTS, max_size=20), st.randoms(use_true_random=False))
def test_every_history_ends_alike(cluster: Cluster, settings: Config, events: list, chance: random.Random) -> None:
    node = Node(Pipeline(settings, NODE_ADDRESSES))
    node.pipeline.apply(cluster.changes)
    node.sync()
    for event in events:
        match event:
            case "sync":
                node.sync()
            case "audit":
                node.sync(audit=True)
            case "restart":
                restart(node)
            case "flush":
                node.host.tables.clear()
                node.host.foreign_write()
            case "refuse":
                node.host.refuse = {node.host.commits + 1}
            case "vandal-element":
                vandalize_elements(node.host, chance)
            case "vandal-chain":
                vandalize_chains(node.host, chance)
            case change:
                node.pipeline.apply([change])
    node.sync()
    node.settle()
    node.check()


def restart(node: Node) -> None:
    """The new process knows the rules again, and finds the table."""
    node.dataplane = NftablesDataplane(node.host)
    everything = node.pipeline.take(full=True)
    if everything is not None:
        node.dataplane.sync(everything, now=node.now, audit=False)


def vandalize_elements(host: MemoryRuleset, chance: random.Random) -> None:
    for table in host.tables.values():
        for name, elements in table.elements.items():
            spec = table.spec(name)
            for key in list(elements)[:2]:
                if chance.random() < 0.5:
                    del elements[key]
                elif spec.verdicts:
                    elements[key] = Target(Do.ACCEPT)
            if spec.data == () and not spec.interval:
                elements[bytes(spec.key_bytes(table.family))] = Target(Do.DROP)
    host.foreign_write()


def vandalize_chains(host: MemoryRuleset, chance: random.Random) -> None:
    for family, table in list(host.tables.items()):
        name = chance.choice(sorted(table.chains))
        kind = chance.randrange(3)
        if kind == 0:
            table.chains[name] = replace(table.chains[name], rules=())
        elif kind == 1:
            table.chains["foreign"] = Chain("foreign", ())
        else:
            fewer = table.sets[1:]
            host.tables[family] = Ruleset(family, fewer, {}, {one.name: {} for one in fewer if not one.dynamic})
    host.foreign_write()


@given(clusters(), DETECTORS, st.lists(packets(), min_size=5, max_size=15))
def test_random_packets_meet_what_the_rules_say(cluster: Cluster, settings: Config, some: list[Packet]) -> None:
    node = Node(Pipeline(settings, NODE_ADDRESSES))
    node.pipeline.apply(cluster.changes)
    node.sync()
    for packet in some:
        family = IPFamily.IPV4 if packet.destination.version == 4 else IPFamily.IPV6
        check_packet(node.host.tables[family], node.pipeline.rules, node.pipeline.surroundings, packet)


def web_rules(**fields: object) -> dict[FrontendKey, Rule | None]:
    from hansa.api.change import Synced, Upsert
    from hansa.api.objects import Kind
    from hansa.testing import L1, R1, WEB, endpoint_slice

    pipeline = Pipeline(config(), NODE_ADDRESSES)
    pipeline.apply([Upsert(replace(WEB, **fields)), Upsert(endpoint_slice("web-a", [L1, R1]))])  # type: ignore[arg-type]
    pipeline.apply([Synced(kind) for kind in Kind])
    message = pipeline.take()
    assert message is not None
    return dict(message.rules)


def surroundings() -> Surroundings:
    return Surroundings(NODE_FACTS)


def test_one_changed_rule_is_one_small_transaction() -> None:
    """ARCHITECTURE 1.5: an endpoint that is exchanged costs its own elements, however much else there is."""
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host, (IPFamily.IPV4,))
    rules = web_rules()
    dataplane.sync(RuleChanges(rules, surroundings(), complete=True), now=0, audit=False)
    sent: list[Transaction] = []
    commit = host.commit
    host.commit = lambda one: (sent.append(one), commit(one))[1]  # type: ignore[method-assign]
    key, rule = next((key, rule) for key, rule in rules.items() if rule is not None and key.address is not None)
    assert rule is not None
    assert isinstance(rule.outside, Forward)
    moved = (replace(rule.outside.endpoints[0], port=9090), *rule.outside.endpoints[1:])
    after = replace(rule, **{
        name: replace(getattr(rule, name), endpoints=moved) for name in ("pod", "node", "outside")
    })  # fmt: skip
    report = dataplane.sync(RuleChanges({key: after}, surroundings()), now=1, audit=False)
    assert report.ok
    assert [one.change.verb for one in report.results] == [Verb.MODIFY]
    assert sum(one.element_count for one in sent) == 2
    assert report.host_calls == 2


def test_a_refused_transaction_is_mended_at_once() -> None:
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host, (IPFamily.IPV4,))
    rules = web_rules()
    dataplane.sync(RuleChanges(rules, surroundings(), complete=True), now=0, audit=False)
    host.tables.clear()  # `nft flush ruleset`
    host.foreign_write()
    gone = next(iter(rules))
    report = dataplane.sync(RuleChanges({gone: None}, surroundings()), now=1, audit=False)
    assert report.ok
    assert any("read back" in text for text in report.conditions)
    assert [change.kind for change in report.drift] == ["table"]
    kept = [rule for key, rule in rules.items() if key != gone and rule is not None]
    same(host.tables[IPFamily.IPV4], render(kept, surroundings(), IPFamily.IPV4)[0])


def test_what_the_host_refuses_twice_is_pending_and_tried_again() -> None:
    host = MemoryRuleset()
    host.refuse = {1, 2}
    dataplane = NftablesDataplane(host, (IPFamily.IPV4,))
    rules = web_rules()
    report = dataplane.sync(RuleChanges(rules, surroundings(), complete=True), now=0, audit=False)
    assert not report.ok
    assert report.state is HostState.HEALTHY
    assert report.retry_at is not None
    assert {one.outcome for one in report.results} == {Outcome.FAILED}
    assert "ENOMEM" in report.results[0].error
    dataplane.sync(RuleChanges({}, surroundings()), now=5, audit=False)
    report = dataplane.sync(RuleChanges({}, surroundings()), now=10, audit=False)
    assert report.ok
    same(host.tables[IPFamily.IPV4], render([one for one in rules.values() if one], surroundings(), IPFamily.IPV4)[0])


def test_a_family_that_fails_does_not_hold_up_the_other() -> None:
    host = MemoryRuleset()
    host.refuse = {1}
    dataplane = NftablesDataplane(host)
    report = dataplane.sync(RuleChanges({}, surroundings(), complete=True), now=0, audit=False)
    assert report.pending == ("IPv4 table",)
    assert (report.pending_in(IPFamily.IPV4), report.pending_in(IPFamily.IPV6)) == (("IPv4 table",), ())
    assert report.failed_families == {IPFamily.IPV4}
    assert set(host.tables) == {IPFamily.IPV6}


def test_a_restart_changes_nothing() -> None:
    host = MemoryRuleset()
    rules = web_rules(affinity_timeout_s=60)
    message = RuleChanges(rules, surroundings(), complete=True)
    NftablesDataplane(host).sync(message, now=0, audit=False)
    commits = host.commits
    report = NftablesDataplane(host).sync(message, now=0, audit=False)
    assert report.ok
    assert report.results == ()
    assert host.commits == commits


def test_a_plan_writes_nothing() -> None:
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host, (IPFamily.IPV4,))
    message = RuleChanges(web_rules(), surroundings(), complete=True)
    assert [change.kind for change in dataplane.plan(message, now=0)] == ["table"]
    assert not host.tables
    dataplane.sync(message, now=0, audit=False)
    assert dataplane.plan(RuleChanges({}, surroundings()), now=0) == []
    host.tables[IPFamily.IPV4].elements["slots"].clear()
    (change,) = dataplane.plan(RuleChanges({}, surroundings()), now=0)
    assert change.key == "IPv4 slots"
    assert "missing" in change.why


def test_a_memory_transaction_is_all_or_nothing() -> None:
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host, (IPFamily.IPV4,))
    dataplane.sync(RuleChanges(web_rules(), surroundings(), complete=True), now=0, audit=False)
    before = host.read(IPFamily.IPV4)
    bad = Transaction(IPFamily.IPV4, (DeleteTable(), AddElements("slots", {b"x": b"y"})))
    with pytest.raises(Refused, match="ENOENT"):
        host.commit(bad)
    assert host.read(IPFamily.IPV4) == before


def test_chain_names_say_the_flavour() -> None:
    found = {name for name in _chains_of(web_rules(affinity_timeout_s=60)) if name.startswith("pick-")}
    assert found == {"pick-masquerade-sticky-60s-2", "pick-node-port-masquerade-sticky-60s-2"}


def _chains_of(rules: dict[FrontendKey, Rule | None]) -> set[str]:
    table, shortfalls = render([rule for rule in rules.values() if rule], surroundings(), IPFamily.IPV4)
    assert not shortfalls
    assert all(isinstance(chain, Chain) for chain in table.chains.values())
    return set(table.chains)


def test_loopback_is_on_the_wire_only_behind_the_guard() -> None:
    """N11: switched off again, by a change or by a restart, the kernel forbids it before the guard goes."""
    on = replace(surroundings(), localhost_node_ports=True)
    for restarted in (False, True):
        host = MemoryRuleset()
        dataplane = NftablesDataplane(host)
        host.refuse = {1}
        dataplane.sync(RuleChanges({}, on, complete=True), now=0, audit=False)
        assert not host.localhost_routed, "there is no guard yet"
        dataplane.sync(RuleChanges({}, on), now=1, audit=False)
        assert host.localhost_routed
        assert "guard-localhost" in host.tables[IPFamily.IPV4].chains
        if restarted:
            dataplane = NftablesDataplane(host)
        dataplane.sync(RuleChanges({}, surroundings(), complete=True), now=2, audit=False)
        assert not host.localhost_routed
        assert "guard-localhost" not in host.tables[IPFamily.IPV4].chains


@pytest.mark.parametrize("count", [1, 10, 100])
def test_the_shape_does_not_grow_with_the_number_of_services(count: int) -> None:
    """ARCHITECTURE 3: no chain, rule or set per service or endpoint."""
    one = next(rule for rule in web_rules().values() if rule is not None and rule.key.address is not None)
    rules = [
        replace(
            one,
            key=FrontendKey(IPFamily.IPV4, parse_address(f"10.96.7.{number}"), Protocol.TCP, 80),
            owner=one.owner._replace(service=f"web{number}"),
        )
        for number in range(count)
    ]
    table, _ = render(rules, surroundings(), IPFamily.IPV4)
    assert len(table.chains) == 7
    assert sum(len(chain.rules) for chain in table.chains.values()) == 16
    assert table.sets == SETS
    assert len(table.elements["slots"]) == 2 * count


def test_a_missing_chain_of_the_frame_means_a_new_table() -> None:
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host, (IPFamily.IPV4,))
    dataplane.sync(RuleChanges(web_rules(), surroundings(), complete=True), now=0, audit=False)
    before = host.tables[IPFamily.IPV4].chains.copy()
    del host.tables[IPFamily.IPV4].chains["refuse"]
    host.foreign_write()
    report = dataplane.sync(RuleChanges({}, surroundings()), now=1, audit=True)
    (change,) = report.drift
    assert (change.verb, change.disruptive) == (Verb.REPLACE, True)
    assert host.tables[IPFamily.IPV4].chains == before


@given(clusters(), DETECTORS, st.lists(st.one_of(changes(), st.just("sync")), max_size=15))
def test_without_faults_nothing_is_refused(cluster: Cluster, settings: Config, events: list[Change | str]) -> None:
    """Every difference is in an order that nftables accepts, and says nothing twice."""
    node = Node(Pipeline(settings, NODE_ADDRESSES))
    node.pipeline.apply(cluster.changes)
    node.sync()
    for event in [*events, "sync"]:
        if isinstance(event, str):
            for report in node.sync():
                assert report.conditions == ()
        else:
            node.pipeline.apply([event])
    node.check()


def test_a_number_is_not_given_back_to_an_endpoint_that_returns() -> None:
    """Y7: what clients remember of a removed endpoint leads nowhere, even when the endpoint comes back."""
    owner = ServicePortName("d", "web", "http", Protocol.TCP)
    one, other = (Endpoint(parse_address(text), 8080) for text in ("10.1.1.11", "10.1.1.12"))
    ids = Ids()
    before = ids.of(owner, [one, other])
    ids.release(owner, [other])
    after = ids.of(owner, [one, other])
    assert before is not None
    assert after is not None
    assert before[1] == after[1], "an endpoint that stays keeps its number"
    assert before[0] != after[0]
    assert {number >> 16 for number in (*before, *after)} == {before[0] >> 16}


def test_numbers_are_found_again_after_a_restart() -> None:
    """A table that is there decides, also where numbers depend on what happened before."""
    owner = ServicePortName("d", "web", "http", Protocol.TCP)
    one = Endpoint(parse_address("10.1.1.11"), 8080)
    ids = Ids()
    ids.of(owner, [one])
    ids.release(owner, [])
    moved = ids.of(owner, [one])
    fresh = Ids()
    assert moved is not None
    assert fresh.of(owner, [one]) != moved
    adopted = Ids()
    adopted.adopt(owner, moved[0], str(one))
    assert adopted.of(owner, [one]) == moved


def test_numbers_run_out_as_a_shortfall() -> None:
    """More endpoints with affinity than there are numbers: balanced, not remembered, and said so."""
    rule = next(rule for rule in web_rules(affinity_timeout_s=60).values() if rule is not None)
    many = tuple(Endpoint(parse_address("10.1.1.11"), port) for port in range(1, MAX_NUMBERED + 1))
    more = (*many, Endpoint(parse_address("10.1.1.12"), 1))
    forward = Forward(more, True, Because.CLUSTER_POLICY)
    table, shortfalls = render(
        [replace(rule, pod=forward, node=forward, outside=forward)], surroundings(), IPFamily.IPV4
    )
    assert {one.feature for one in shortfalls} == {"session-affinity"}
    assert any(name.endswith(f"-{len(more)}") and "sticky" not in name for name in table.chains)
