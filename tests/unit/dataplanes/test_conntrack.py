"""Which UDP flows are cut: K1-K15 and t173-t181 of service-semantics, with a connection table in memory."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.api.change import Change, Delete, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Policy, ServiceType, SliceEndpoint
from hansa.config import Config, NodePortAddresses
from hansa.dataplanes.base import Outcome, SyncReport
from hansa.dataplanes.conntrack import Cause, Place, Stale, UdpFrontends, WantedFlows, stale_entries
from hansa.dataplanes.nftables.apply import NftablesDataplane
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.net import IPFamily, Protocol, parse_address, parse_prefix
from hansa.netlink.connections import MemoryConnections
from hansa.netlink.conntrack import Entry
from hansa.pipeline import Pipeline
from hansa.rules.model import FrontendKey
from hansa.testing import (
    L1,
    NODE,
    NODE_ADDRESSES,
    R1,
    WEB,
    config,
    endpoint,
    endpoint_slice,
    port,
    service,
    slice_port,
)

V4, UDP, TCP = IPFamily.IPV4, Protocol.UDP, Protocol.TCP
PORTS = (port("dns", 53, protocol=UDP, node_port=30053, target_port=53),)
DNS = service("dns", type=ServiceType.NODE_PORT, ports=PORTS)
CLUSTER_IP, NODE_IP = "10.96.0.10", "192.0.2.1"


def dns_slice(*endpoints: SliceEndpoint, number: int = 53, protocol: Protocol = UDP) -> EndpointSlice:
    ports = (slice_port("dns", number, protocol=protocol),)
    return endpoint_slice("dns-a", endpoints, service="dns", ports=ports, family=V4)


def entry(target: str, answered_by: str, *, protocol: Protocol = UDP, source: str = "10.1.1.5:40000") -> Entry:
    ends: list[bytes | int] = []
    for text in (source, target, answered_by):
        address, _, number = text.rpartition(":")
        ends += [parse_address(address.strip("[]")).packed, int(number)]
    family = V4 if len(ends[0]) == 4 else IPFamily.IPV6  # type: ignore[arg-type]
    return Entry(family, protocol.value, *ends, number=7)  # type: ignore[arg-type]


class Stage:
    """Stages 1 to 4 with everything in memory."""

    def __init__(self, settings: Config | None = None) -> None:
        self.config = settings or config()
        self.pipeline = Pipeline(self.config, NODE_ADDRESSES)
        self.host, self.table = MemoryRuleset(), MemoryConnections()
        self.dataplane = self.start()
        self.pipeline.apply([Upsert(NODE), *(Synced(kind) for kind in Kind)])

    def start(self) -> NftablesDataplane:
        self.dataplane = NftablesDataplane(self.host, connections=self.table)
        return self.dataplane

    def say(self, *changes: Change, full: bool = False) -> SyncReport:
        self.pipeline.apply(changes)
        message = self.pipeline.take(full=full)
        assert message is not None
        return self.dataplane.sync(message, now=0.0, audit=False)

    def flow(self, target: str, answered_by: str, *, protocol: Protocol = UDP, source: str = "10.1.1.5:40000") -> Entry:
        one = entry(target, answered_by, protocol=protocol, source=source)
        self.table.entries[one] = None
        return one

    def left(self) -> list[Entry]:
        return list(self.table.entries)


@pytest.fixture
def stage() -> Stage:
    """d/dns with L1 and R1 is in place; nothing is due."""
    found = Stage()
    report = found.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    assert report.ok
    found.table.listings = 0
    return found


def cuts(report: SyncReport) -> list[tuple[str, str]]:
    return [(one.change.key, one.change.why) for one in report.results if one.change.kind == "conntrack entry"]


# -- scenarios -------------------------------------------------------------------------------------------------------


@pytest.mark.scenario("t173")
def test_flows_to_an_endpoint_that_went_are_cut(stage: Stage) -> None:
    """K5."""
    stage.flow("10.96.0.10:53", "10.1.1.11:53")
    kept = stage.flow("10.96.0.10:53", "10.1.2.21:53", source="10.1.1.5:40001")
    report = stage.say(Upsert(dns_slice(R1)))
    assert stage.left() == [kept]
    assert cuts(report) == [("10.96.0.10:53/udp", "1 flow: the endpoint serves no longer")]
    [result] = [one for one in report.results if one.change.kind == "conntrack entry"]
    assert result.change.owners == ("d/dns:dns",)
    assert report.ok


@pytest.mark.scenario("t174")
def test_flows_to_an_endpoint_that_serves_while_it_terminates_go_on(stage: Stage) -> None:
    """K4."""
    draining = endpoint(L1.address, node="n1", ready=False, serving=True, terminating=True)
    kept = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    kept_too = stage.flow(f"{NODE_IP}:30053", "10.1.1.11:53")
    report = stage.say(Upsert(dns_slice(draining, R1)))
    assert stage.left() == [kept, kept_too]
    assert not cuts(report)
    stage.say(Upsert(dns_slice(replace(draining, serving=False), R1)))
    assert stage.left() == []


@pytest.mark.scenario("t175")
def test_tcp_is_never_touched(stage: Stage) -> None:
    """K1; the node port's number and the frontend are the same for both protocols."""
    both = replace(DNS, ports=(*PORTS, port("dns-tcp", 53, node_port=30053)))
    stage.say(Upsert(both))
    kept = [
        stage.flow("10.96.0.10:53", "10.1.1.99:53", protocol=TCP),
        stage.flow(f"{NODE_IP}:30053", "10.1.1.99:53", protocol=TCP),
    ]
    stage.say(Upsert(dns_slice()))
    assert stage.left() == kept


@pytest.mark.scenario("t176")
def test_untranslated_flows_are_cut_when_the_first_endpoint_comes() -> None:
    """K7."""
    stage = Stage()
    stage.say(Upsert(DNS))
    stage.flow("10.96.0.10:53", "10.96.0.10:53")
    report = stage.say(Upsert(dns_slice(L1)))
    assert stage.left() == []
    assert cuts(report) == [("10.96.0.10:53/udp", "1 flow: begun before the frontend was served")]


@pytest.mark.scenario("t177")
def test_all_flows_are_cut_when_the_last_endpoint_goes(stage: Stage) -> None:
    """K10."""
    for number, where in enumerate(("10.1.1.11:53", "10.1.2.21:53", "10.96.0.10:53")):
        stage.flow("10.96.0.10:53", where, source=f"10.1.1.5:4{number:04}")
    stage.say(Upsert(dns_slice()))
    assert stage.left() == []


@pytest.mark.scenario("t178")
def test_flows_of_a_deleted_service_are_cut(stage: Stage) -> None:
    """K11, and an address that it loses while it stays."""
    stage.say(Upsert(replace(DNS, external_ips=(parse_address("203.0.113.7"),))))
    external = stage.flow("203.0.113.7:53", "10.1.1.11:53")
    internal = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    at_node = stage.flow(f"{NODE_IP}:30053", "10.1.1.11:53")
    report = stage.say(Upsert(DNS))
    assert stage.left() == [internal, at_node]
    assert cuts(report) == [("203.0.113.7:53/udp", "1 flow: no service has the frontend any more")]
    stage.say(Delete(DNS.object_key))
    assert stage.left() == []
    assert external not in stage.left()
    other = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.say(full=True)
    assert stage.left() == [other], "what went is remembered for one scan: others may have the address since"


@pytest.mark.scenario("t179")
def test_at_a_node_port_only_flows_to_this_node_are_cut(stage: Stage) -> None:
    """K6, K12; the accepted addresses are this node's primary ones."""
    stage.flow(f"{NODE_IP}:30053", "10.1.1.99:53", source="198.51.100.99:5000")
    elsewhere = stage.flow("8.8.8.8:30053", "8.8.8.8:30053")
    not_accepted = stage.flow("192.0.2.100:30053", "192.0.2.100:30053")
    report = stage.say(Upsert(dns_slice(R1)))
    assert stage.left() == [elsewhere, not_accepted]
    assert cuts(report) == [("node(IPv4):30053/udp", "1 flow: the endpoint serves no longer")]


@pytest.mark.scenario("t180")
def test_flows_to_a_port_that_an_endpoint_left_are_cut(stage: Stage) -> None:
    stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.say(Upsert(dns_slice(L1, number=5353)))
    assert stage.left() == []
    kept = stage.flow("10.96.0.10:53", "10.1.1.11:5353")
    stage.say(Upsert(dns_slice(L1, R1, number=5353)), full=True)
    assert stage.left() == [kept]


@pytest.mark.scenario("t181")
def test_a_change_of_tcp_alone_causes_no_scan(stage: Stage) -> None:
    """K2."""
    stale = stage.flow("10.96.0.10:53", "10.1.1.99:53")
    web = replace(WEB, cluster_ips=(parse_address("10.96.0.11"),))
    assert stage.say(Upsert(web), Upsert(endpoint_slice("web-a", [L1]))).ok
    assert stage.say(Upsert(endpoint_slice("web-a", [R1]))).ok
    assert stage.say(Delete(web.object_key)).ok
    assert stage.table.listings == 0
    assert stage.left() == [stale]


# -- when a scan is due ----------------------------------------------------------------------------------------------


def test_nothing_is_listed_without_udp() -> None:
    stage = Stage()
    assert stage.say(Upsert(WEB), Upsert(endpoint_slice("web-a", [L1]))).ok
    assert stage.say(full=True).ok
    assert stage.table.listings == 0


def test_an_endpoint_more_makes_no_flow_stale(stage: Stage) -> None:
    stage.say(Upsert(dns_slice(L1, R1, endpoint("10.1.1.12", node="n1"))))
    stage.say(full=True)
    assert stage.table.listings == 0
    stage.say(Upsert(dns_slice(L1, R1)))
    assert stage.table.listings == 1


def test_a_new_frontend_of_a_known_service_is_scanned_for(stage: Stage) -> None:
    """K15."""
    stage.flow("203.0.113.7:53", "203.0.113.7:53")
    stage.say(Upsert(replace(DNS, external_ips=(parse_address("203.0.113.7"),))))
    assert stage.left() == []


def test_a_start_is_a_reconciliation() -> None:
    """K3: what an earlier run, or another proxy, left behind goes with the first sync."""
    stage = Stage()
    stage.flow("10.96.0.10:53", "10.1.1.99:53")
    kept = stage.flow("10.96.0.10:53", "10.1.1.11:53", source="10.1.1.5:40001")
    stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
    assert stage.left() == [kept]


def test_frontends_that_went_while_nobody_looked_are_cleared(stage: Stage) -> None:
    """K11 over a restart: the host's own table tells which frontends there were."""
    stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.flow(f"{NODE_IP}:30053", "10.1.1.11:53")
    stage.start()
    stage.say(Delete(DNS.object_key), full=True)
    assert stage.left() == []
    assert stage.table.listings == 1


def test_a_plan_shows_what_would_be_cut(stage: Stage) -> None:
    stale = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.pipeline.apply([Upsert(dns_slice(R1))])
    message = stage.pipeline.take()
    assert message is not None
    planned = [one for one in stage.dataplane.plan(message, now=0.0) if one.kind == "conntrack entry"]
    assert [one.why for one in planned] == ["1 flow: the endpoint serves no longer"]
    assert stage.left() == [stale]
    report = stage.dataplane.sync(message, now=0.0, audit=False)
    assert stage.left() == []
    assert [one.change for one in report.results if one.change.kind == "conntrack entry"] == planned


def test_without_a_successful_transaction_nothing_is_cut(stage: Stage) -> None:
    """K2: a flow that is cut too early finds the old rules again."""
    stale = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.host.refuse = {stage.host.commits + 1, stage.host.commits + 2}
    assert not stage.say(Upsert(dns_slice(R1))).ok
    assert stage.left() == [stale]
    assert stage.table.listings == 0
    assert stage.say().ok
    assert stage.left() == []


def test_a_failed_scan_is_repeated_at_the_next_sync(stage: Stage) -> None:
    """K14."""
    stale = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.table.failures = [errno.ENOMEM]
    report = stage.say(Upsert(dns_slice(R1)))
    assert stage.left() == [stale]
    assert report.pending == ("IPv4 conntrack",)
    assert report.retry_at is not None
    assert any("ENOMEM" in words for words in report.conditions)
    assert stage.say().ok
    assert stage.left() == []
    stage.say()
    assert stage.table.listings == 2


def test_an_interrupted_listing_is_used_and_looked_at_again(stage: Stage) -> None:
    """K9: what there is counts; the rest follows."""
    for number in range(4):
        stage.flow("10.96.0.10:53", "10.1.1.11:53", source=f"10.1.1.5:4000{number}")
    stage.table.failures = [None]
    report = stage.say(Upsert(dns_slice(R1)))
    assert len(stage.left()) == 2
    assert report.ok
    assert any("disturbed" in words for words in report.conditions)
    assert stage.say().ok
    assert stage.left() == []


def test_an_entry_that_cannot_be_deleted_is_told_and_tried_again(stage: Stage) -> None:
    stuck = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.flow("10.96.0.10:53", "10.1.1.11:53", source="10.1.1.5:40001")
    stage.table.undeletable = {stuck}
    report = stage.say(Upsert(dns_slice(R1)))
    assert stage.left() == [stuck]
    [failed] = [one for one in report.results if one.outcome is Outcome.FAILED]
    assert failed.change.why == "1 flow: the endpoint serves no longer"
    assert "EPERM" in failed.error
    assert not report.ok
    stage.table.undeletable.clear()
    assert stage.say().ok
    assert stage.left() == []


def test_a_host_that_refuses_deletions_is_not_asked_for_each(stage: Stage) -> None:
    stuck = {stage.flow("10.96.0.10:53", "10.1.1.11:53", source=f"10.1.1.5:4{number:04}") for number in range(10)}
    other = stage.flow(f"{NODE_IP}:30053", "10.1.1.11:53")
    stage.table.undeletable = stuck
    report = stage.say(Upsert(dns_slice(R1)))
    assert other in stage.left()
    assert [one.error for one in report.results if one.outcome is Outcome.FAILED][1:] == [
        "not tried after other refusals"
    ]


# -- what is wanted --------------------------------------------------------------------------------------------------


def test_policy_and_hints_do_not_end_flows() -> None:
    """K4."""
    stage = Stage()
    local = replace(DNS, internal_policy=Policy.LOCAL, external_policy=Policy.LOCAL)
    stage.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    kept = [stage.flow("10.96.0.10:53", "10.1.2.21:53"), stage.flow(f"{NODE_IP}:30053", "10.1.2.21:53")]
    stage.say(Upsert(local), full=True)
    hinted = endpoint(R1.address, node="n2", zone_hints=["zb"])
    stage.say(Upsert(DNS), Upsert(dns_slice(replace(L1, zone_hints=frozenset({"za"})), hinted)))
    assert stage.left() == kept


def test_ready_endpoints_that_do_not_serve_keep_their_flows(stage: Stage) -> None:
    """K13: publishNotReadyAddresses makes ready what does not serve."""
    kept = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.say(Upsert(dns_slice(endpoint(L1.address, node="n1", ready=True, serving=False))))
    assert stage.left() == [kept]


def test_both_families_are_looked_after() -> None:
    stage = Stage()
    dual = replace(DNS, cluster_ips=(parse_address("10.96.0.10"), parse_address("fd00::10")))
    six = replace(dns_slice(endpoint("fd01:0:0:1::11")), name="dns-6", family=IPFamily.IPV6)
    stage.say(Upsert(dual), Upsert(dns_slice(L1)), Upsert(six))
    source = "[fd01:0:0:1::5]:40000"
    stage.flow("[fd00::10]:53", "[fd01:0:0:1::99]:53", source=source)
    kept = stage.flow("[fd00::10]:53", "[fd01:0:0:1::11]:53", source=source)
    kept_too = stage.flow("10.96.0.10:53", "10.1.1.11:53")
    stage.say(Upsert(replace(dual, external_ips=(parse_address("2001:db8:7::7"),))))
    assert stage.left() == [kept, kept_too]


def test_another_address_of_the_node_is_a_frontend_of_every_node_port() -> None:
    """N7 with K15, and K11 for one that goes."""
    everywhere = NodePortAddresses(primary=False, prefixes=(parse_prefix("192.0.2.0/24"),))
    stage = Stage(config(node_port_addresses=everywhere))
    stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
    new = parse_address("192.0.2.101")
    stage.flow("192.0.2.101:30053", "192.0.2.101:30053")
    stage.pipeline.set_host_addresses(NODE_ADDRESSES | {new})
    stage.say()
    assert stage.left() == []
    stage.flow("192.0.2.101:30053", "10.1.1.11:53")
    stage.pipeline.set_host_addresses(NODE_ADDRESSES)
    stage.say()
    assert stage.left() == []


def test_node_ports_on_loopback() -> None:
    all_addresses = NodePortAddresses(primary=False)
    for localhost in (True, False):
        stage = Stage(config(node_port_addresses=all_addresses, localhost_node_ports=localhost))
        stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
        stale = stage.flow("127.0.0.1:30053", "10.1.1.99:53", source="127.0.0.1:40000")
        stage.say(Upsert(dns_slice(R1)))
        assert stage.left() == ([] if localhost else [stale])


# -- the judgement alone ---------------------------------------------------------------------------------------------

ADDRESSES = st.sampled_from([bytes((10, 96, 0, 10)), bytes((192, 0, 2, 1)), bytes((8, 8, 8, 8)), bytes((10, 1, 1, 11))])
NUMBERS = st.sampled_from([53, 54, 30053])
PLACES = st.builds(Place, ADDRESSES, NUMBERS)
ANSWERS = st.frozensets(PLACES, max_size=3)
WANTED = st.builds(
    WantedFlows,
    frontends=st.dictionaries(PLACES, ANSWERS, max_size=3),
    node_ports=st.dictionaries(NUMBERS, ANSWERS, max_size=2),
    local=st.frozensets(ADDRESSES, max_size=2),
    gone=st.frozensets(PLACES, max_size=2),
    gone_node_ports=st.frozensets(NUMBERS, max_size=2),
)
ENTRIES = st.builds(
    Entry,
    family=st.just(V4),
    protocol=st.sampled_from([6, 17, 132]),
    source=ADDRESSES,
    source_port=st.just(40000),
    destination=ADDRESSES,
    destination_port=NUMBERS,
    answered_by=ADDRESSES,
    answered_from=NUMBERS,
    number=st.just(1),
)


@given(st.lists(ENTRIES, max_size=8), WANTED)
def test_every_entry_is_cut_for_a_reason_or_stays_for_one(entries: list[Entry], wanted: WantedFlows) -> None:
    """K1, K5-K8, K10-K12 as laws."""
    cut = stale_entries(entries, wanted)
    assert [one.entry for one in cut] == [one for one in entries if one in {stale.entry for stale in cut}]
    causes = {one.entry: one for one in cut}
    for one in entries:
        target, answer = (one.destination, one.destination_port), (one.answered_by, one.answered_from)
        local = one.destination in wanted.local
        served = target in wanted.frontends or (local and one.destination_port in wanted.node_ports)
        gone = target in wanted.gone or (local and one.destination_port in wanted.gone_node_ports)
        stale = causes.get(one)
        if one.protocol != 17 or not (served or gone):
            assert stale is None
        elif not served:
            assert stale is not None
            assert stale.cause is Cause.FRONTEND_GONE
        else:
            may_answer = wanted.frontends.get(Place(*target), wanted.node_ports.get(one.destination_port))
            assert may_answer is not None
            assert (stale is None) == (answer in may_answer)
            if stale is not None:
                assert stale.cause is (Cause.NEVER_TRANSLATED if answer == target else Cause.ENDPOINT_GONE)


def test_a_frontend_by_address_comes_before_a_node_port() -> None:
    """K8: other ports stay."""
    wanted = WantedFlows(
        frontends={Place(bytes((192, 0, 2, 1)), 30053): frozenset({Place(bytes((10, 1, 1, 11)), 53)})},
        node_ports={30053: frozenset({Place(bytes((10, 1, 1, 12)), 53)})},
        local=frozenset({bytes((192, 0, 2, 1))}),
    )
    one = entry(f"{NODE_IP}:30053", "10.1.1.12:53")
    assert stale_entries([one, entry(f"{NODE_IP}:30054", "10.1.1.13:53")], wanted) == [
        Stale(one, FrontendKey(V4, parse_address(NODE_IP), UDP, 30053), Cause.ENDPOINT_GONE)
    ]


def test_the_owner_of_a_frontend_is_known_while_it_has_one() -> None:
    frontends = UdpFrontends(V4)
    assert frontends.owners(FrontendKey(V4, None, UDP, 30053)) == ()
    assert not frontends.due
