"""windows-proxy F.6: endpoints that are shared, doubled, recycled or left over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.engine_stage import in_loop
from tests.guarantees.node import (
    LOCAL_1,
    LOCAL_2,
    REMOTE_1,
    REMOTE_2,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    GuardedNode,
    bridge,
    plain,
)
from tests.guarantees.stage import stage

from hansa.api.change import Delete
from hansa.api.objects import Policy
from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import WS2022, ZN23H2, Build, Call
from hansa.hns.schema import EndpointFlags
from hansa.testing import L1, L2, R1, R2, WEB, endpoint, endpoint_slice, port, service, slice_port

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
TWINS = pytest.mark.parametrize(
    "build",
    [plain(WS2022, allows_local_remote_twins=True), plain(ZN23H2, allows_local_remote_twins=True)],
    ids=["replace", "modify"],
)
WEB_IP, API_IP = "10.96.0.10:80/tcp", "10.96.0.11:80/tcp"
API = service("api", cluster_ips=["10.96.0.11"])
RECYCLED = "10.1.1.77"  # an address of this node's own pod subnet


def two_services(first: list[object], second: list[object], build: Build = WITHOUT_MODIFY) -> GuardedNode:
    """web and api, each with its slice."""
    node = bridge(
        service(),
        API,
        endpoint_slice("web-a", first),  # type: ignore[arg-type]
        endpoint_slice("api-a", second, service="api"),  # type: ignore[arg-type]
        build=build,
    )
    node.settle()
    return node


@BOTH
def test_F47_a_remote_endpoint_whose_address_has_left_all_slices_goes_in_that_very_pass(build: Build) -> None:
    """So a new pod can have the address at once: the CNI is not refused."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, endpoint(RECYCLED, node="n2")]), build=build)
    node.settle()
    node.put(endpoint_slice("web-a", [L1]))
    assert node.sync().ok
    node.add_pod(RECYCLED)
    node.put(endpoint_slice("web-a", [L1, endpoint(RECYCLED, node="n1")]))
    assert node.sync().ok
    assert node.backends(WEB_IP) == [LOCAL_1, RECYCLED]
    assert node.remotes() == []


@BOTH
def test_F47_an_address_that_is_now_to_be_here_is_freed_for_the_cni(build: Build) -> None:
    """The slice says this node before the CNI has made the endpoint: the stand-in gives way."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, endpoint(RECYCLED, node="n2")]), build=build)
    node.settle()
    node.put(endpoint_slice("web-a", [L1, endpoint(RECYCLED, node="n1")]))
    node.sync()
    assert node.remotes() == []
    node.add_pod(RECYCLED)
    assert node.period().ok
    assert node.backends(WEB_IP) == [LOCAL_1, RECYCLED]


@TWINS
def test_F48_no_endpoint_of_a_pod_is_ever_deleted(build: Build) -> None:
    """The id that hansa is about to delete has become a pod's: it is read again right before, and left."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build)
    node.settle()
    stand_in = node.endpoint_at(REMOTE_1).guid
    node.emulator.alter(EP, stand_in, flags=EndpointFlags(0))
    node.put(endpoint_slice("web-a", [L1]))
    node.sync()
    node.wait(31.0)
    node.sync()
    assert node.emulator.get(EP, stand_in) is not None
    assert not [call for call in node.writes if call.verb is HnsVerb.DELETE and call.kind is EP]


@TWINS
def test_F49_when_a_local_twin_appears_all_traffic_moves_to_it_in_one_pass(build: Build) -> None:
    """A recycled address: load balancers leave the remote id first, then it is deleted; no step in between fails."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, endpoint(RECYCLED, node="n2")]), build=build)
    node.settle()
    node.add_pod(RECYCLED)
    report = node.period()
    assert report.ok
    assert node.remotes() == []
    local = node.endpoint_at(RECYCLED)
    assert not local.remote
    assert all(local.guid in each.endpoints for each in node.emulator.load_balancers())


@TWINS
def test_F50_the_twins_other_users_move_too_before_it_is_deleted(build: Build) -> None:
    """A service that nobody touched uses it as well: its load balancer names no endpoint that has gone."""
    backend = endpoint(RECYCLED, node="n2")
    node = two_services([backend], [L1, backend], build)
    node.add_pod(RECYCLED)
    node.put(endpoint_slice("web-a", [endpoint(RECYCLED, node="n1")]))
    assert node.period().ok
    there = {each.guid for each in node.emulator.endpoints()}
    assert all(set(each.endpoints) <= there for each in node.emulator.load_balancers())
    assert node.served() == {WEB_IP: [RECYCLED], API_IP: [LOCAL_1, RECYCLED]}
    assert node.remotes() == []


@BOTH
def test_F51_nothing_is_counted_so_failing_retries_leave_no_trace(build: Build) -> None:
    """A hundred failed passes over an endpoint in use; when its service goes, it goes with it, at once."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build)
    node.refuse(0x803B0007, HnsVerb.CREATE, LB, times=None)
    for _ in range(100):
        node.audit()
        node.wait(31.0)
    node.emulator.faults.clear()
    node.wait(31.0)
    assert node.sync().ok
    node.delete(WEB)
    assert node.sync().ok
    assert node.remotes() == []


@BOTH
def test_F52_deleting_one_service_does_not_hurt_another_with_the_same_pods(build: Build) -> None:
    """The shared endpoint keeps its id and its user; it goes with the last one."""
    node = two_services([R1, R2], [R1], build)
    shared = node.endpoint_at(REMOTE_1).guid
    node.delete(service())
    assert node.sync().ok
    assert node.served() == {API_IP: [REMOTE_1]}
    assert node.endpoint_at(REMOTE_1).guid == shared
    assert node.remotes() == [REMOTE_1]
    node.delete(API)
    assert node.sync().ok
    assert node.remotes() == []


def test_F53_a_failed_delete_of_an_endpoint_is_repeated_until_it_is_gone_or_wanted_again() -> None:
    """It stays on the list of what should be gone, with growing pauses; if wanted again, it is kept."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1, R2]))
    node.settle()
    node.refuse(0x80004005, HnsVerb.DELETE, EP, times=None)
    node.put(endpoint_slice("web-a", [L1]))
    report = node.sync()
    assert node.remotes() == [REMOTE_1, REMOTE_2]
    assert any(text.startswith(f"endpoints that should be gone: {REMOTE_1}, {REMOTE_2}") for text in report.conditions)
    kept = node.endpoint_at(REMOTE_2).guid
    node.put(endpoint_slice("web-a", [L1, R2]))
    node.sync()
    node.emulator.faults.clear()
    node.wait(31.0)
    assert node.sync().ok
    assert node.remotes() == [REMOTE_2]
    assert node.endpoint_at(REMOTE_2).guid == kept


@BOTH
def test_F54_one_address_with_two_ports_is_one_endpoint_of_each_load_balancer(build: Build) -> None:
    """The same pod in two slices and with two ports: ids in a load balancer are a set, and nothing is doubled."""
    two = replace(service(), ports=(port("http", 80), port("tls", 443)))
    node = bridge(
        two,
        endpoint_slice("web-a", [R1], ports=[slice_port("http", 8080), slice_port("tls", 8443)]),
        endpoint_slice("web-b", [R1, R2], ports=[slice_port("http", 8080)]),
        build=build,
    )
    assert node.sync().ok
    assert node.served() == {WEB_IP: [REMOTE_1, REMOTE_2], "10.96.0.10:443/tcp": [REMOTE_1]}
    assert node.remotes() == [REMOTE_1, REMOTE_2]
    assert node.balancers()["10.96.0.10:443/tcp"].port_mappings[0].internal_port == 8443
    node.forget()
    assert node.period().ok
    assert node.writes == []


def test_F55_backends_follow_the_slices_and_stale_local_endpoints_are_left_to_the_cni() -> None:
    """A pod that failed is in no slice any more; its HNS endpoint stays, and gets no traffic."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, endpoint(LOCAL_2, node="n1")]))
    node.settle()
    node.put(endpoint_slice("web-a", [L1]))
    assert node.sync().ok
    assert set(map(tuple, node.served().values())) == {(LOCAL_1,)}
    assert LOCAL_2 in node.locals()
    for _ in range(3):
        assert node.period().ok
    assert LOCAL_2 in node.locals()


@in_loop
async def test_F55_a_pod_that_vanished_and_left_its_endpoint_is_reported_until_it_is_gone() -> None:
    """Ten minutes after the last slice that named it; not while a slice has it unready, and never the host's own."""
    web = replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000)
    on_node = bridge(web, endpoint_slice("web-a", [L1, L2]), forward_health_check_vip=True)
    async with stage(on_node) as on:
        unready = replace(L2, ready=False, serving=False)
        await on.synced(endpoint_slice("web-a", [L1, unready]))
        assert not _left((await on.pass_time(1200)).conditions), "it is there, and not ready"
        await on.synced(endpoint_slice("web-a", [L1]))
        report = await on.pass_time(60)
        assert _left(report.conditions) == [
            f"the host has endpoints of this node that no EndpointSlice names any more: {LOCAL_2}; "
            "if these pods are gone, the CNI has left them behind"
        ]
        assert LOCAL_2 in on_node.locals()
        on_node.remove_pod(LOCAL_2)
        assert not _left((await on.pass_time(60)).conditions)
        await on.synced(Delete(web.object_key), Delete(endpoint_slice("web-a", []).object_key))
        report = await on.pass_time(580)
        assert not _left(report.conditions)
        report = await on.pass_time(120)
        assert len(_left(report.conditions)) == 1
        assert LOCAL_1 in _left(report.conditions)[0]
        assert "10.1.1.1;" not in _left(report.conditions)[0]
        assert on_node.locals()


def _left(conditions: tuple[str, ...]) -> list[str]:
    return [text for text in conditions if "no EndpointSlice names" in text]


def test_F53_an_endpoint_that_was_used_when_it_should_go_goes_with_its_last_user() -> None:
    """Its load balancer could not be changed at first, so it is busy; both happen as soon as HNS lets them."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]))
    node.settle()

    def of_web(call: Call) -> bool:
        return call.verb is HnsVerb.DELETE

    node.refuse(0x803B0007, HnsVerb.DELETE, LB, times=4, where=of_web)
    node.put(endpoint_slice("web-a", [L1]))
    report = node.sync()
    assert node.remotes() == [REMOTE_1]
    for _ in range(10):
        if report.ok and report.retry_at is None:
            break
        assert report.retry_at is not None
        node.wait(report.retry_at - node.now)
        report = node.sync()
    assert node.remotes() == []
    assert set(map(tuple, node.served().values())) == {(LOCAL_1,)}
