"""windows-proxy F.5: ports and frontends that somebody else holds, or seems to hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.engine_stage import in_loop
from tests.guarantees.node import BRIDGE, LOCAL_1, LOCAL_2, WITH_MODIFY, bridge, plain
from tests.guarantees.stage import stage

from hansa.api.objects import Policy
from hansa.dataplanes.base import Outcome
from hansa.hns.api import HnsKind, HnsVerb, HResult
from hansa.hns.emulator import WS2019, WS2022, LeakReservation
from hansa.hns.port_ranges import PortRange, TakenPorts, uniform
from hansa.net import IPFamily, Protocol
from hansa.testing import L1, L2, WEB, endpoint_slice, port, service, slice_port

LB = HnsKind.LOAD_BALANCER
CLUSTER_IP = "10.96.0.10:80/tcp"


def test_F42_a_health_load_balancer_exists_only_for_a_services_own_health_port() -> None:
    """A listener on 0.0.0.0:10256, on Server 2019: nothing is asked for on that port, and all frontends are there."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(WS2019), forward_health_check_vip=True)
    node.emulator.listen(6, 10256)
    assert node.sync().ok
    assert len(node.served()) == 4
    node.put(replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000))
    assert node.sync().ok
    health = node.balancers()["203.0.113.80:32000/tcp"]
    assert (health.port_mappings[0].internal_port, health.port_mappings[0].protocol) == (32000, 6)
    assert not any(name.endswith(":10256/tcp") for name in node.served())


def test_F43_a_leaked_reservation_is_named_waits_longer_each_time_and_blocks_nobody() -> None:
    """0x803B0013 right after a delete, though HNS lists no owner: 2, 4, 8 ... at most 300 s, all others go on."""
    node = bridge(service(), endpoint_slice("web-a", [L1]))
    node.settle()
    node.break_call(LeakReservation(), HnsVerb.DELETE, LB)
    node.put(endpoint_slice("web-a", [L2]), service("api", cluster_ips=["10.96.0.11"]))
    node.put(endpoint_slice("api-a", [L1], service="api"))
    report = node.sync()
    assert node.served() == {"10.96.0.11:80/tcp": [LOCAL_1]}
    assert report.pending == (CLUSTER_IP,)
    assert any("a reservation that HNS has leaked" in text for text in report.conditions)
    pauses = []
    for _ in range(10):
        assert report.retry_at is not None
        pauses.append(report.retry_at - node.now)
        node.wait(pauses[-1])
        report = node.sync()
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]
    node.emulator.forget_leaks()
    node.wait(300.0)
    assert node.sync().ok
    assert node.backends(CLUSTER_IP) == [LOCAL_2]


def test_F43_where_modify_works_no_reservation_is_ever_given_back() -> None:
    """Every delete would leak: a change of endpoints deletes nothing."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=WITH_MODIFY)
    node.settle()
    node.break_call(LeakReservation(), HnsVerb.DELETE, LB, times=None)
    node.put(endpoint_slice("web-a", [L2]))
    assert node.sync().ok
    assert node.emulator.faults.hits == 0


def test_F44_when_ports_run_out_one_pass_stops_asking_and_says_so() -> None:
    """Three answers are enough; load balancers with DSR need no ports and are made; deletes go on."""
    few = replace(BRIDGE, machine=replace(BRIDGE.machine, dynamic_ports=(49152, 64 * 6)))
    build = replace(WS2022, pool_exhausted=HResult(0x8007000E))
    services = [service(f"s{n}", cluster_ips=[f"10.96.1.{n}"]) for n in range(20)]
    slices = [endpoint_slice(f"s{n}-a", [L1], service=f"s{n}") for n in range(20)]
    local = service(
        "z",
        cluster_ips=["10.96.2.1"],
        type="LoadBalancer",
        load_balancer_vips=["203.0.113.81"],
        external_policy=Policy.LOCAL,
    )
    node = bridge(*services, *slices, local, endpoint_slice("z-a", [L1], service="z"), build=build, layout=few)
    report = node.sync()
    failed = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert {result.error_class for result in failed} == {"exhausted"}
    assert len([call for call in node.writes if call.verb is HnsVerb.CREATE]) == 6 + 3 + 1
    assert "203.0.113.81:80/tcp" in node.served(), "it is DSR"
    assert any("run out of ports" in text for text in report.conditions)
    assert report.retry_at is not None
    assert report.retry_at - node.now >= 30.0
    node.delete(*services[:15])
    node.sync()
    node.wait(31.0)
    assert node.sync().ok
    assert len(node.served()) == 5 + 2


DYNAMIC = PortRange(49152, 65535)
DEFAULT = uniform(DYNAMIC)


def of_tcp(*excluded: PortRange, dynamic: PortRange | None = DYNAMIC) -> tuple[TakenPorts, ...]:
    return TakenPorts(IPFamily.IPV4, Protocol.TCP, dynamic, excluded), *DEFAULT[1:]


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        (DEFAULT, []),
        (of_tcp(PortRange(5357, 5357), PortRange(50000, 50059)), []),
        (uniform(PortRange(32768, 60999)), []),
        (
            of_tcp(dynamic=PortRange(1024, 65535)),
            ["30000-32767", "1024-65535 (IPv4 tcp)", "set dynamicport tcp start=49152"],
        ),
        (of_tcp(PortRange(30080, 30179)), ["node port 30080 is in the range 30080-30179", "another component"]),
        (of_tcp(PortRange(31999, 32001)), ["node port 32000 is in the range 31999-32001"]),
        (of_tcp(PortRange(30080, 30080)), []),
        (of_tcp(PortRange(32000, 32000)), ["node port 32000 is in the range 32000"]),
        (of_tcp(dynamic=None), ["netsh does not tell the dynamic ports (IPv4 tcp)"]),
        (OSError(2, "no such program"), ["cannot be read: no such program", "node ports are not compared"]),
    ],
    ids=[
        *("default", "elsewhere", "just above", "dynamic", "excluded", "of a health check", "by HNS for itself"),
        *("of hansa's own listener", "not told", "no netsh"),
    ],
)
def test_F45_node_ports_are_compared_with_the_ports_that_windows_gives_away(
    taken: tuple[TakenPorts, ...] | OSError, words: list[str]
) -> None:
    """Said once everything is programmed, in one sentence each, with what to do; asked of the system once."""
    web = replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000)
    node = bridge(web, endpoint_slice("web-a", [L1]))
    node.taken_ports = taken
    report = node.sync()
    found = [text for text in report.conditions if "port" in text]
    assert len(found) == bool(words)
    for word in words:
        assert word in found[0]
    for _ in range(5):
        assert node.period().conditions == report.conditions
    assert node.asked_for_ports == 1
    node.delete(web)
    node.sync()
    later = [text for text in node.period().conditions if "node port 3" in text]
    assert not later, "no Service has such a port any more"


def test_F45_a_node_port_outside_the_default_range_is_looked_at_by_itself() -> None:
    """The API server may have another range, which no node is told; found by the next check after it has come."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.taken_ports = DEFAULT
    assert not node.sync().conditions
    node.put(replace(WEB, ports=(port(node_port=50080), port("https", 443, node_port=50443))))
    node.put(endpoint_slice("web-a", [L1], ports=[slice_port("http", 8080), slice_port("https", 8443)]))
    node.sync()
    (text,) = node.period().conditions
    assert text.startswith("node ports 50080, 50443 are among this machine's dynamic ports 49152-65535 (IPv4 tcp)")


def test_F45_the_ranges_are_read_again_after_an_outage_of_hns_and_never_before_the_rules() -> None:
    """A machine that was set up anew has other ranges; and no rule waits for netsh."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), call_budget=20)
    node.taken_ports = DEFAULT
    report = node.sync()
    while report.again:
        assert node.asked_for_ports == 0
        report = node.sync()
    assert node.asked_for_ports == 1
    node.emulator.restart(unavailable_calls=1)
    node.period()
    node.wait(11.0)
    report = node.sync()
    while report.again:
        report = node.sync()
    assert report.ok
    assert node.asked_for_ports == 2


@in_loop
async def test_F46_of_two_claims_to_a_frontend_the_older_wins_and_the_other_takes_over_when_it_is_free() -> None:
    """The same winner in any order of events; the loser is told by a condition that names both."""
    old = service("old", cluster_ips=["10.96.0.11"], external_ips=["203.0.113.7"], created=1.0)
    new = service("new", cluster_ips=["10.96.0.12"], external_ips=["203.0.113.7"], created=2.0)
    slices = endpoint_slice("old-a", [L1], service="old"), endpoint_slice("new-a", [L2], service="new")
    for order in ((old, new), (new, old)):
        node = bridge(*slices)
        async with stage(node, min_sync_period_s=0.0) as on:
            for one in order:
                report = await on.synced(one)
            assert node.backends("203.0.113.7:80/tcp") == [LOCAL_1]
            contested = [text for text in report.conditions if "203.0.113.7:80/tcp" in text]
            assert contested == [
                "203.0.113.7:80/tcp belongs to d/old:http; d/new:http claims it too and gets it when it is free"
            ]
            report = await on.synced(replace(old, external_ips=()))
            assert node.backends("203.0.113.7:80/tcp") == [LOCAL_2]
            assert report.conditions == ()
