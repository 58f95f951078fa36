"""windows-proxy F.4: starting, restarting, reconfiguring and ending hansa never takes a working rule away."""

from __future__ import annotations

import pytest
from tests.engine_stage import in_loop
from tests.guarantees.node import (
    LOCAL_1,
    REMOTE_1,
    REMOTE_2,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    bridge,
    overlay,
    plain,
)
from tests.guarantees.stage import stage

from hansa.config import make_config
from hansa.dataplanes.base import HostState, Outcome
from hansa.dataplanes.windows.cleanup import clean, cleanup_config
from hansa.dataplanes.windows.objects import conjured_mac
from hansa.errors import ConfigError
from hansa.hns.api import HnsKind, HnsVerb, HnsVersion
from hansa.hns.emulator import WS2019, Build
from hansa.hns.schema import PortMapping
from hansa.net import parse_address
from hansa.testing import L1, R1, R2, WEB, endpoint_slice, service

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
NETWORKS = pytest.mark.parametrize("make", [bridge, overlay], ids=["l2bridge", "overlay"])
CLUSTER_IP = "10.96.0.10:80/tcp"


@NETWORKS
def test_F35_a_restart_with_unchanged_state_writes_nothing(make: object) -> None:
    """Neither load balancer nor endpoint; and whatever HNS held is there at every moment of it."""
    node = make(WEB, endpoint_slice("web-a", [L1, R1]))  # type: ignore[operator]
    node.settle()
    before = node.emulator.load_balancers(), node.emulator.endpoints()
    differences = []
    node.guard.after_call.append(
        lambda: differences.append(1) if (node.emulator.load_balancers(), node.emulator.endpoints()) != before else None
    )
    node.start()
    assert node.sync().ok
    assert node.period().ok
    assert node.writes == []
    assert not differences


@BOTH
def test_F35_a_restart_with_one_change_writes_only_that_change(build: Build) -> None:
    """A backend changed while hansa was away: its endpoint, its load balancers, and nothing else."""
    other = service("api", cluster_ips=["10.96.0.11"])
    node = bridge(
        service(), endpoint_slice("web-a", [R1]), other, endpoint_slice("api-a", [L1], service="api"), build=build
    )
    node.settle()
    node.put(endpoint_slice("web-a", [R2]))
    node.start()
    node.forget()
    assert node.sync().ok
    change = ["modify " + CLUSTER_IP] if build is WITH_MODIFY else ["delete " + CLUSTER_IP, "create " + CLUSTER_IP]
    assert node.written() == [f"create endpoint {REMOTE_2}", *change, f"delete endpoint {REMOTE_1}"]


@NETWORKS
def test_F36_objects_of_other_software_are_never_written(make: object) -> None:
    """Load balancers and endpoints of others, at start, at work and after hansa's own are gone; takeover is on."""
    node = make(WEB, endpoint_slice("web-a", [L1, R1]))  # type: ignore[operator]
    node.add_balancer("198.51.100.1")
    node.add_balancer("198.51.100.2", owner="other")
    node.add_balancer("10.96.0.77", owner="other")
    node.add_balancer(
        None, owner="other", port_mappings=(PortMapping(protocol=6, internal_port=1, external_port=30100),)
    )
    node.add_remote("10.1.2.99", mac="02-AA-BB-CC-DD-EE", foreign=True, provider=parse_address("192.0.2.2"))
    node.add_remote(
        "10.1.2.98",
        mac=conjured_mac(parse_address("10.1.2.98")),
        foreign=True,
        owner="other",
        provider=parse_address("192.0.2.2"),
    )
    for _ in range(5):
        assert node.period().ok
    node.delete(WEB)
    for _ in range(4):
        node.period()
    assert len(node.emulator.load_balancers()) == 4
    assert node.remotes() == ["10.1.2.98", "10.1.2.99"]


def test_F36_a_frontend_that_another_program_holds_is_left_to_it_until_it_is_free() -> None:
    """Reported as what it is; taken within one period after the other has gone."""
    node = bridge(service(), endpoint_slice("web-a", [L1]))
    held = node.add_balancer("10.96.0.10", owner="other")
    report = node.sync()
    assert report.pending == (CLUSTER_IP,)
    assert any(f"load balancer {held} of another program holds it" in text for text in report.conditions)
    node.guard.release(held)
    node.emulator.remove(LB, held)
    assert node.period().ok
    assert node.served() == {CLUSTER_IP: [LOCAL_1]}
    assert node.count(HnsVerb.DELETE) == 0


@in_loop
async def test_F37_a_new_configuration_with_equal_dataplane_settings_writes_nothing() -> None:
    """Periods, and what concerns other dataplanes, may change: HNS sees reads only."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]))
    async with stage(node):
        pass
    node.forget()
    async with stage(node, sync_period_s=10.0, min_sync_period_s=0.5, masquerade_all=True) as on:
        await on.pass_time(40)
        assert on.records[-1].ok
    assert node.writes == []


def test_F38_without_network_nothing_is_deleted_and_the_wait_is_visible() -> None:
    """Left over load balancers stay until the network, the API's lists and HNS are known; the state says for what."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.settle()
    network = node.emulator.networks()[0]
    endpoints = node.emulator.endpoints()
    for each in endpoints:
        node.emulator.remove(EP, each.guid)
    node.emulator.remove(HnsKind.NETWORK, network.guid)
    node.start()
    for _ in range(3):
        report = node.audit()
        assert report.state is HostState.WAITING
        assert not report.ok
        assert any("the CNI makes it" in text for text in report.conditions)
        assert report.retry_at is not None
        node.wait(report.retry_at - node.now)
    assert node.writes == []
    assert len(node.emulator.load_balancers()) == 4
    node.emulator.add(network)
    node.emulator.restore(endpoints)
    report = node.sync()
    assert report.ok
    assert node.writes == []


@NETWORKS
def test_F39_remote_endpoints_of_past_lives_are_gone_after_the_first_complete_pass(make: object) -> None:
    """The service was deleted while hansa was away; nobody tells it, and yet its endpoints go."""
    node = make(WEB, endpoint_slice("web-a", [L1, R1, R2]))  # type: ignore[operator]
    node.settle()
    node.delete(endpoint_slice("web-a"))
    node.put(endpoint_slice("web-b", [L1]))
    node.start()
    assert node.sync().ok
    assert set(node.remotes()) <= {"10.96.0.10"}, "the service VIP of an overlay"
    node.delete(WEB)
    node.start()
    node.sync()
    assert node.remotes() == []
    assert node.served() == {}


@in_loop
async def test_F40_stopping_leaves_everything_in_place() -> None:
    """hansa ends; every rule stays, so that traffic goes on until it starts again."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]))
    async with stage(node):
        before = node.served(), node.remotes()
        node.forget()
    assert node.calls == []
    assert (node.served(), node.remotes()) == before


@NETWORKS
def test_F40_cleanup_removes_exactly_what_is_ours(make: object) -> None:
    """Every load balancer and endpoint that hansa made goes; pods, other programs' objects and the network stay."""
    node = make(WEB, endpoint_slice("web-a", [L1, R1, R2]))  # type: ignore[operator]
    node.add_balancer("198.51.100.1")
    node.add_balancer("10.96.0.77", owner="other")
    node.add_remote("10.1.2.99", mac="02-AA-BB-CC-DD-EE", foreign=True, provider=parse_address("192.0.2.2"))
    pods = node.locals()
    node.settle()
    settings = cleanup_config(node.config)
    node.start(settings)
    node.rules.clear()
    results = clean(node.dataplane, settings, now=node.now)
    assert not node.guard.breaches
    assert {result.outcome for result in results} == {Outcome.DONE}
    assert set(node.served()) == {"198.51.100.1:80/tcp", "10.96.0.77:80/tcp"}
    assert node.remotes() == ["10.1.2.99"]
    assert set(pods) <= set(node.locals())


def test_F41_an_invalid_configuration_ends_before_hns_is_touched() -> None:
    """Every fault is named at once, and the dataplane of the life before goes on working."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.settle()
    before = node.served()
    with pytest.raises(ConfigError) as caught:
        make_config(
            {
                "winkernel": {"sourceVip": "nowhere", "verifyPerPeriod": "-1"},
                "syncPeriod": "0.1s",
                "minSyncPeriod": "1s",
            },
            node_name="n1",
        )
    assert len(caught.value.faults) >= 3
    assert node.calls == []
    assert node.served() == before


def test_F41_a_setting_that_this_hns_cannot_do_costs_only_itself() -> None:
    """enableDSR on an HNS without DSR is said as a shortfall; the services work without."""

    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(WS2019, version=HnsVersion(10, 1)), enable_dsr=True)
    report = node.sync()
    assert report.ok
    assert [one.feature for one in report.shortfalls] == ["dsr"]
    assert len(node.served()) == 4
