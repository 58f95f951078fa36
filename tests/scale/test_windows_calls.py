"""What passes cost in host calls, counted on the emulator: windows-proxy H.7, F28, F29, F35."""

from __future__ import annotations

import ipaddress

import pytest
from tests.unit.dataplanes.windows_node import WindowsNode, make_config, make_rule, plain, remote

from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import WS2022, ZN23H2, Build, Layout, Machine, RemoteNode, l2bridge_node, overlay_node
from hansa.rules.model import FrontendKind, Rule

WITH_MODIFY, WITHOUT_MODIFY = plain(ZN23H2), plain(WS2022)
UNLIMITED = {"call_budget": 10**9, "pass_budget_s": 1e9}
NETWORK_4_LISTS_2 = 6
VERIFY = 32
BASE = ipaddress.ip_address("10.128.0.0")
VIPS = ipaddress.ip_address("10.96.0.0")


def service(number: int, backends: int = 3, *, shift: int = 0) -> Rule:
    addresses = [BASE + number * 50 + each for each in range(backends - 1)] + [BASE + number * 50 + 40 + shift]
    return make_rule(f"{VIPS + number}:80", remote(*(f"{address}:8080" for address in addresses)), owner=f"d/s{number}")


def node_with(services: int, build: Build = WITH_MODIFY, **settings: object) -> WindowsNode:
    node = WindowsNode(l2bridge_node(build), make_config(**{**UNLIMITED, **settings}))
    node.want(*(service(number) for number in range(services)))
    assert node.sync().ok
    node.forget()
    return node


@pytest.mark.parametrize("services", [40, 120, 400])
def test_an_idle_pass_costs_the_same_at_any_size(services: int) -> None:
    """Presence of everything in 6 calls, and a fixed number of objects read again."""
    node = node_with(services)
    for _ in range(3):
        node.wait(30.0)
        report = node.audit()
        assert report.ok
        assert report.host_calls == NETWORK_4_LISTS_2 + 3 * VERIFY
    assert node.writes() == []


def test_an_idle_pass_without_verification_costs_six_calls() -> None:
    """F29."""
    node = node_with(50, verify_per_period=0)
    assert node.audit().host_calls == NETWORK_4_LISTS_2


def test_a_pass_without_changes_and_without_audit_costs_nothing() -> None:
    assert node_with(50).sync().host_calls == 0


def test_verification_reads_everything_within_a_round() -> None:
    """Silent changes are found within (ours / q) periods."""
    node = node_with(40, verify_per_period=16)
    ours = len(node.emulator.load_balancers()) + sum(each.remote for each in node.emulator.endpoints())
    read: set[str] = set()
    for _ in range(-(-ours // 16)):
        node.forget()
        node.wait(30.0)
        node.audit()
        read |= {
            str(call.guid) for call in node.calls if call.verb is HnsVerb.OPEN and call.kind is not HnsKind.NETWORK
        }
    assert len(read) == ours


@pytest.mark.parametrize("build", [WITH_MODIFY, WITHOUT_MODIFY], ids=["modify", "replace"])
@pytest.mark.parametrize("services", [10, 200])
def test_one_backend_change_of_a_service_with_v_frontends(build: Build, services: int) -> None:
    """At most 4V + 9 calls: 4 per load balancer, 5 for the new endpoint, 4 for the old one."""
    node = node_with(services, build)
    frontends = 4

    def frontends_of(shift: int) -> list[Rule]:
        backends = remote("10.200.0.1:8080", f"10.200.0.{2 + shift}:8080")
        return [
            make_rule("10.97.0.1:80", backends),
            make_rule("node:30080", backends),
            make_rule("203.0.113.7:80", backends, FrontendKind.EXTERNAL_IP),
            make_rule("203.0.113.80:80", backends, FrontendKind.LOAD_BALANCER_IP),
        ]

    node.put(*frontends_of(0))
    assert node.sync().ok
    node.put(*frontends_of(1))
    report = node.sync()
    assert report.ok
    assert report.host_calls == 4 * frontends + 9
    node.wait(30.0)
    report = node.audit()
    assert report.host_calls <= NETWORK_4_LISTS_2 + 3 * VERIFY


@pytest.mark.parametrize("services", [5, 50])
def test_programming_from_nothing(services: int) -> None:
    """Deep snapshot of what is there, then 3 per load balancer and 5 per endpoint; the version once."""
    node = WindowsNode(l2bridge_node(WITHOUT_MODIFY), make_config(**UNLIMITED))
    node.want(*(service(number) for number in range(services)))
    there = len(node.emulator.endpoints())
    report = node.sync()
    assert report.host_calls == 1 + NETWORK_4_LISTS_2 + 3 * there + services * (3 + 3 * 5)


def test_restart_with_unchanged_state_reads_once_and_writes_nothing() -> None:
    """F35: adoption costs 6 + 3E + 3L reads."""
    node = node_with(60)
    held = len(node.emulator.endpoints()) + len(node.emulator.load_balancers())
    node.start()
    report = node.sync()
    assert report.ok
    assert node.writes() == []
    assert report.host_calls == 1 + NETWORK_4_LISTS_2 + 3 * held


def test_restart_with_one_change_costs_only_the_calls_of_that_change() -> None:
    """F35."""
    node = node_with(60)
    node.put(service(7, shift=1))
    node.start()
    assert node.sync().ok
    assert [(call.verb, call.kind) for call in node.writes()] == [
        (HnsVerb.CREATE, HnsKind.ENDPOINT),
        (HnsVerb.MODIFY, HnsKind.LOAD_BALANCER),
        (HnsVerb.DELETE, HnsKind.ENDPOINT),
    ]


def test_an_edit_that_changes_no_frontend_costs_nothing() -> None:
    """F33: affinity's time limit is nothing that HNS knows; endpoints are untouched by any edit of a Service."""
    node = node_with(20)
    node.put(make_rule("10.97.0.1:80", remote("10.200.0.1:8080"), affinity_timeout_s=60))
    assert node.sync().ok
    node.forget()
    node.put(make_rule("10.97.0.1:80", remote("10.200.0.1:8080"), affinity_timeout_s=90))
    assert node.sync().host_calls == 0
    node.put(make_rule("10.97.0.1:80", remote("10.200.0.1:8080")))
    assert node.sync().ok
    assert {call.kind for call in node.writes()} == {HnsKind.LOAD_BALANCER}


def test_the_call_budget_bounds_a_pass_and_critical_services_come_first() -> None:
    """F06, F22: no count cap but the budget; what is left follows at once, in the next pass."""
    node = WindowsNode(l2bridge_node(WITHOUT_MODIFY), make_config(call_budget=100))
    dns = make_rule("10.96.255.10:53", remote("10.255.0.1:53"), owner="kube-system/kube-dns")
    node.want(*(service(number) for number in range(40)), dns)
    report = node.sync()
    assert report.again
    assert "10.96.255.10:53/tcp" in node.balancers()
    passes = 1
    while report.again:
        before = node.client.calls
        report = node.sync()
        assert node.client.calls - before <= 100 + 9
        passes += 1
        assert passes < 20
    assert report.ok
    assert len(node.balancers()) == 41


def test_the_time_budget_bounds_a_pass() -> None:
    """20 s on a slow HNS; the rest follows at once."""
    emulator = l2bridge_node(WITHOUT_MODIFY)
    node = WindowsNode(emulator, make_config(pass_budget_s=20.0))
    node.want(*(service(number) for number in range(30)))
    emulator.latency_s = {"": 0.25}
    started = emulator.clock.now()
    report = node.sync()
    assert report.again
    assert emulator.clock.now() - started < 30.0


def test_overlay_costs_the_same_with_many_remote_nodes() -> None:
    """One network document, however many RemoteSubnetRoutes it has."""
    nodes = tuple(RemoteNode(f"192.0.2.{30 + n}", f"10.41.{n}.0/24", "00-15-5D-7E-44-02") for n in range(100))
    layout = Layout("hansa-vx", Machine(), ("10.41.207.0/24",), root_offset=3, remote_nodes=nodes)
    node = WindowsNode(
        overlay_node(WITH_MODIFY, layout=layout),
        make_config(source_vip=(ipaddress.ip_address("10.41.207.2"),), **UNLIMITED),
    )
    node.want(*(make_rule(f"{VIPS + n}:80", remote(f"10.41.{n}.9:80")) for n in range(20)))
    assert node.sync().ok
    node.forget()
    report = node.audit()
    assert report.host_calls == NETWORK_4_LISTS_2 + 3 * VERIFY
    assert node.writes() == []
