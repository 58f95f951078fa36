"""Random histories with faults and foreign writes: every one ends in the table that a fresh start would make."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nft_comparing import check_packet, without_spares
from tests.strategies import Cluster, changes, clusters, packets

from hansa.api.change import Change
from hansa.config import Config
from hansa.dataplanes.base import HostState, Outcome, SyncReport, Verb
from hansa.dataplanes.nftables.apply import CHECK_S, CHECKED_AT_ONCE, NftablesDataplane
from hansa.dataplanes.nftables.frame import MAX_COUNT, NOBODY, SETS, Place, flavour_named, flavour_of
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.dataplanes.nftables.numbers import MAX_NUMBERED, Ids, Ways
from hansa.dataplanes.nftables.objects import Chain, Do, Ruleset, Target
from hansa.dataplanes.nftables.plan import STAGE_ELEMENTS, AddElements, DeleteTable, Refused, Transaction
from hansa.dataplanes.nftables.render import MAX_SPARE_CHAINS, render
from hansa.net import IPFamily, Packet, Protocol, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.model import Because, Forward, FrontendKey, Origin, Rule, RuleChanges, Surroundings
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
    """Equal but for the numbers of affinity and spare chains, which depend on what came first."""
    one = without_spares(one)
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
    assert report.calls_by_verb == {"changes": 1, "commit": 1}
    assert report.call_errors == {}


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
    assert report.call_errors == {("commit", "ENOMEM"): report.calls_by_verb["commit"]}
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
    assert len(table.chains) == 11
    assert sum(len(chain.rules) for chain in table.chains.values()) == 23
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


# -- chains that stay ------------------------------------------------------------------------------------------------


def with_endpoints(count: int, *, affinity_timeout_s: int | None = None) -> Rule:
    """One ClusterIP with so many endpoints."""
    one = next(rule for rule in web_rules().values() if rule is not None and rule.key.address is not None)
    endpoints = tuple(Endpoint(ip_address(0x0A010001 + number), 8080) for number in range(count))
    action = Forward(endpoints, False, Because.CLUSTER_POLICY)
    return replace(one, pod=action, node=action, outside=action, affinity_timeout_s=affinity_timeout_s)


class Watched:
    """A dataplane on a host in memory whose transactions are kept."""

    def __init__(self) -> None:
        self.host = MemoryRuleset()
        self.plane = NftablesDataplane(self.host, (IPFamily.IPV4,))
        self.sent: list[Transaction] = []
        commit = self.host.commit
        self.host.commit = lambda one: (self.sent.append(one), commit(one))[1]  # type: ignore[method-assign]

    def put(self, *rules: Rule, complete: bool = False) -> tuple[str, ...]:
        """Returns what was sent, by kind and name."""
        del self.sent[:]
        message = RuleChanges({rule.key: rule for rule in rules}, surroundings(), complete=complete)
        report = self.plane.sync(message, now=0, audit=False)
        assert report.ok, report.conditions
        return tuple(
            f"{type(one).__name__} {getattr(one, 'set', '') or getattr(one, 'name', '')}".strip()
            for step in self.sent
            for one in step.operations
        )

    @property
    def picks(self) -> set[str]:
        return {name for name in self.host.tables[IPFamily.IPV4].chains if name.startswith("pick-")}


def test_a_number_of_endpoints_that_was_there_before_is_a_change_of_data_only() -> None:
    """The kernel walks every verdict map when one of them, or a chain, changes; so none does."""
    on = Watched()
    on.put(with_endpoints(2), complete=True)
    first = on.put(with_endpoints(3))
    assert "CreateChain pick-3" in first
    data = ("DeleteElements hairpins", "DeleteElements services", "DeleteElements slots", "AddElements services")
    assert on.put(with_endpoints(2)) == data
    assert on.picks == {"pick-2", "pick-3"}


def test_a_restart_leaves_chains_that_nobody_needs() -> None:
    on = Watched()
    on.put(with_endpoints(2, affinity_timeout_s=60), complete=True)
    on.put(with_endpoints(3))
    on.plane = NftablesDataplane(on.host, (IPFamily.IPV4,))
    assert on.put(with_endpoints(3), complete=True) == ()
    assert on.picks == {"pick-sticky-60s-2", "pick-3"}
    assert "CreateChain pick-sticky-60s-2" not in on.put(with_endpoints(2, affinity_timeout_s=60))


def test_a_spare_chain_with_other_rules_is_written_anew() -> None:
    on = Watched()
    on.put(with_endpoints(2), complete=True)
    on.put(with_endpoints(3))
    table = on.host.tables[IPFamily.IPV4]
    wanted = table.chains["pick-2"]
    table.chains["pick-2"] = replace(wanted, rules=())
    on.host.foreign_write()
    report = on.plane.sync(RuleChanges({}, surroundings()), now=1, audit=True)
    assert [change.key for change in report.drift] == ["IPv4 pick-2"]
    assert on.host.tables[IPFamily.IPV4].chains["pick-2"] == wanted


def test_spare_chains_are_bounded_and_the_longest_unused_go_first() -> None:
    on = Watched()
    on.put(with_endpoints(1), complete=True)
    for count in range(2, MAX_SPARE_CHAINS + 3):
        on.put(with_endpoints(count))
    assert on.picks == {f"pick-{count}" for count in range(MAX_SPARE_CHAINS // 2 + 1, MAX_SPARE_CHAINS + 3)}
    same(on.host.tables[IPFamily.IPV4], render([with_endpoints(count)], surroundings(), IPFamily.IPV4)[0])
    assert on.put(with_endpoints(count), complete=True) == ()


def test_timeouts_have_numbers_that_a_table_decides() -> None:
    """As with endpoints: found again after a restart, given back when nothing uses them, and not without end."""
    ways = Ways()
    first, other = (flavour_of(Place.SERVICE, False, NOBODY, timeout_s, 2) for timeout_s in (60, 61))
    number = ways.number(first)
    assert number is not None
    assert number & 0xFFFF == 2
    adopted = Ways()
    assert adopted.adopt(other, number)
    assert adopted.number(other) == number
    assert not adopted.adopt(first, number), "it is taken"
    assert adopted.number(first) != number
    adopted.keep({first.way})
    assert adopted.adopt(other, number)
    for timeout_s in range(100, 100 + MAX_NUMBERED):
        last = ways.number(flavour_of(Place.SERVICE, False, NOBODY, timeout_s, 2))
    assert last is None
    assert ways.number(first) == number


@given(
    st.sampled_from(Place),
    st.booleans(),
    st.sets(st.sampled_from(Origin)),
    st.none() | st.integers(1, 86400),
    st.integers(1, MAX_COUNT),
)
def test_a_chain_is_known_by_its_name(
    place: Place, short: bool, masquerade: set[Origin], affinity_s: int | None, count: int
) -> None:
    flavour = flavour_of(place, short, frozenset(masquerade), affinity_s, count)
    assert flavour_named(flavour.chain) == flavour


@pytest.mark.parametrize("name", ["pick", "pick-", "pick-0", "pick-02", "pick-x-2", "pick-2-2", "pick-99999", "refuse"])
def test_other_names_are_no_flavours(name: str) -> None:
    assert flavour_named(name) is None


def test_more_endpoints_than_a_number_holds_are_told() -> None:
    table, shortfalls = render([with_endpoints(MAX_COUNT + 1)], surroundings(), IPFamily.IPV4)
    assert [one.feature for one in shortfalls] == ["endpoints"]
    assert len(table.elements["slots"]) == MAX_COUNT
    assert f"pick-{MAX_COUNT}" in table.chains


# -- a large table comes in stages -----------------------------------------------------------------------------------


def many_rules(count: int) -> list[Rule]:
    """So many ClusterIPs with one endpoint each."""
    one = with_endpoints(1)
    return [
        replace(
            one,
            key=one.key._replace(address=ip_address(0x0A600000 + number)),
            owner=one.owner._replace(service=f"s{number}"),
        )
        for number in range(count)
    ]


def test_a_large_table_is_filled_before_it_hangs_in_the_way() -> None:
    on = Watched()
    rules = many_rules(STAGE_ELEMENTS // 2)
    sent = on.put(*rules, complete=True)
    assert len(on.sent) > 3
    assert max(step.element_count for step in on.sent) <= STAGE_ELEMENTS
    before_last = [type(one).__name__ for step in on.sent[:-1] for one in step.operations]
    assert set(before_last) == {"CreateTable", "CreateSet", "AddElements"}
    assert sent[-1] == "AddElements picks"
    same(on.host.tables[IPFamily.IPV4], render(rules, surroundings(), IPFamily.IPV4)[0])
    assert on.put(*rules, complete=True) == ()


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_table_that_was_left_half_filled_is_made_anew(failing: int) -> None:
    on = Watched()
    rules = many_rules(STAGE_ELEMENTS // 2)
    on.host.refuse = {failing}
    message = RuleChanges({rule.key: rule for rule in rules}, surroundings(), complete=True)
    assert not on.plane.sync(message, now=0, audit=False).ok
    assert on.plane.sync(RuleChanges({}, surroundings()), now=5, audit=False).ok
    same(on.host.tables[IPFamily.IPV4], render(rules, surroundings(), IPFamily.IPV4)[0])


# -- a large table is checked step by step ---------------------------------------------------------------------------


class Ticking:
    """A clock on which each look takes longer than a check may."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2 * CHECK_S
        return self.now


def large_and_watched() -> tuple[Watched, list[Rule]]:
    on = Watched()
    rules = many_rules(CHECKED_AT_ONCE // 2 + 100)
    on.plane = NftablesDataplane(on.host, (IPFamily.IPV4,), clock=Ticking())
    on.put(*rules, complete=True)
    return on, rules


def audits(on: Watched, *, between: list[Rule] | None = None) -> list[SyncReport]:
    """Reports until nothing is left to do; `between`: rules that change while the check is under way, one at a time."""
    found: list[SyncReport] = []
    waiting = list(between or ())
    while not found or found[-1].again or waiting:
        changed = {rule.key: rule for rule in waiting[:1]}
        del waiting[:1]
        message = RuleChanges(changed, surroundings())
        found.append(on.plane.sync(message, now=1, audit=not found))
        assert len(found) < 1000
        assert len([one for one in found[-1].results if one.outcome is Outcome.DONE]) >= len(changed)
    return found


@pytest.mark.parametrize("vandal", ["nothing", "foreign", "missing", "altered", "chain", "pick"])
def test_a_large_table_is_checked_step_by_step_while_changes_go_on(vandal: str) -> None:
    """ARCHITECTURE 1.5: a comparison with the host holds up no change for long, and finds whatever it would at once."""
    on, rules = large_and_watched()
    table = on.host.tables[IPFamily.IPV4]
    slot = next(iter(table.elements["slots"]))
    match vandal:
        case "foreign":
            table.elements["slots"][bytes(16)] = bytes(8)
        case "missing":
            del table.elements["slots"][slot]
        case "altered":
            table.elements["slots"][slot] = bytes(8)
        case "chain":
            table.chains["refuse"] = Chain("refuse", ())
        case "pick":
            table.elements["picks"][bytes(4)] = Target(Do.ACCEPT)
    on.host.foreign_write()
    other = replace(with_endpoints(2), key=rules[7].key, owner=rules[7].owner)
    gone = replace(with_endpoints(3), key=rules[-1].key, owner=rules[-1].owner)
    reports = audits(on, between=[other, gone])
    assert reports[-1].ok
    assert bool([one for report in reports for one in report.drift]) == (vandal != "nothing")
    if vandal in ("nothing", "foreign", "chain", "pick"):
        assert len(reports) > 10, "there is time for changes in between"
    wanted = {rule.key: rule for rule in rules} | {other.key: other, gone.key: gone}
    same(on.host.tables[IPFamily.IPV4], render(wanted.values(), surroundings(), IPFamily.IPV4)[0])
    on.host.foreign_write()
    assert not [one for report in audits(on) for one in report.drift], "a second check finds nothing"


@given(clusters(), DETECTORS, st.lists(changes(), max_size=15))
def test_sizes_and_parts_are_those_of_the_whole(cluster: Cluster, settings: Config, events: list[Change]) -> None:
    node = Node(Pipeline(settings, NODE_ADDRESSES))
    node.pipeline.apply(cluster.changes)
    node.sync()
    for event in events:
        node.pipeline.apply([event])
        node.sync()
    for family, table in node.host.tables.items():
        desired = node.dataplane.desired(family)
        assert desired.sizes == {name: len(held) for name, held in table.elements.items() if held}
        found: dict[str, dict[bytes, object]] = {}
        for part in (*desired.parts(3), desired.frame().elements):
            for name, elements in part.items():
                found.setdefault(name, {}).update(elements)
        assert {name: held for name, held in found.items() if held} == {
            name: held for name, held in table.elements.items() if held
        }
