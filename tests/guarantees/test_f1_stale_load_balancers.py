"""windows-proxy F.1: no load balancer outlives its reason, and none that is wanted is taken for one that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
    at_frontend,
    bridge,
    many,
    overlay,
    plain,
)
from tests.guarantees.stage import Stage, stage

from hansa.api.objects import Policy
from hansa.dataplanes.base import HostState, Outcome, SyncReport
from hansa.dataplanes.windows.objects import DesiredLoadBalancer, conjured_mac
from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import WS2019, Build, Call
from hansa.hns.schema import HnsLoadBalancer, PortMapping
from hansa.net import Protocol, parse_address
from hansa.rules.model import RuleChanges
from hansa.services.model import ServicePortName
from hansa.testing import L1, L2, R1, R2, WEB, endpoint, endpoint_slice, port, service, slice_port

BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
LB = HnsKind.LOAD_BALANCER
ALL_OF_WEB = ["10.96.0.10:80/tcp", "203.0.113.7:80/tcp", "203.0.113.80:80/tcp", "node:30080/tcp"]
HTTP = ServicePortName("d", "web", "http", Protocol.TCP)


@BOTH
def test_F01_after_any_changes_hns_holds_exactly_the_desired_load_balancers(build: Build) -> None:
    """Pods come and go one by one; never is there a load balancer more, or one with a backend that has gone."""
    node = bridge(WEB, build=build)
    pods = [L1, L2, R1, R2]
    for present in (pods, pods[1:], pods[2:], pods[:1], pods[::2], [], pods[1:3], pods):
        node.put(endpoint_slice("web-a", present))
        assert node.sync().ok
        behind = sorted(str(one.address) for one in present)
        assert node.served() == (dict.fromkeys(ALL_OF_WEB, behind) if present else {})
        assert node.remotes() == [address for address in behind if address in (REMOTE_1, REMOTE_2)]


@BOTH
def test_F02_a_leftover_counts_as_right_only_if_all_its_content_is(build: Build) -> None:
    """As many backends at the same frontend is not enough: the leftover gets the right ones in the same pass."""
    node = bridge(WEB, endpoint_slice("web-a", [R1]), build=build)
    node.settle()
    stale = node.add_remote("10.1.2.99", mac=conjured_mac(parse_address("10.1.2.99")))
    node.alter_balancer("10.96.0.10:80/tcp", endpoints=(stale,))
    node.start()
    assert node.sync().ok
    assert node.backends("10.96.0.10:80/tcp") == [REMOTE_1]
    assert node.remotes() == [REMOTE_1]


@BOTH
def test_F03_a_load_balancer_that_is_desired_again_is_not_deleted_for_an_old_failure(build: Build) -> None:
    """Its delete failed, then the Service came back edited: nothing remembers the delete, and the frontend works."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build)
    node.settle()
    node.refuse(0x80004005, HnsVerb.DELETE, LB, times=None)
    node.put(endpoint_slice("web-a", []))
    report = node.sync()
    assert {result.outcome for result in report.results} == {Outcome.FAILED}
    assert any(text.startswith("load balancers that should be gone: ") for text in report.conditions)
    node.put(replace(WEB, affinity_timeout_s=60), endpoint_slice("web-a", [L1, R1]))
    node.sync()
    node.emulator.faults.clear()
    node.forget()
    for _ in range(3):
        report = node.period()
    assert report.ok
    assert sorted(node.served()) == ALL_OF_WEB
    assert node.backends("10.96.0.10:80/tcp") == [LOCAL_1, REMOTE_1]
    deletes, creates = node.count(HnsVerb.DELETE, LB), node.count(HnsVerb.CREATE, LB)
    assert deletes == creates, "each delete was the first half of a replacement"


def test_F04_a_service_without_endpoints_has_no_load_balancer_and_later_ones_can_be_made() -> None:
    """A failed delete is tried again with growing pauses until HNS lists the load balancer no more."""
    node = bridge(service(), endpoint_slice("web-a", [L1]))
    node.settle()
    node.refuse(0x80004005, HnsVerb.DELETE, LB, times=6)
    node.put(endpoint_slice("web-a", []))
    report = node.sync()
    pauses = []
    while report.retry_at is not None:
        pauses.append(report.retry_at - node.now)
        node.wait(pauses[-1] + 0.01)
        report = node.sync()
    assert [round(pause) for pause in pauses] == [1, 2, 4], "each attempt is two calls: F05"
    assert node.served() == {}
    node.put(endpoint_slice("web-a", [L1]))
    assert node.sync().ok
    assert node.served() == {"10.96.0.10:80/tcp": [LOCAL_1]}


def test_F05_a_delete_that_fails_once_is_repeated_at_once_and_delays_nobody() -> None:
    """Server 2019 fails every other delete; all others' frontends come about in the same pass."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(WS2019, lb_delete_fails_every=2))
    node.settle()
    node.delete(WEB)
    node.put(service("api", cluster_ips=["10.96.0.11"]), endpoint_slice("api-a", [L2], service="api"))
    assert node.sync().ok
    assert node.emulator.refusals["EV-23"] > 0, "the defect has struck"
    assert node.served() == {"10.96.0.11:80/tcp": [LOCAL_2]}


def test_F06_any_number_of_leftovers_goes_in_one_pass_or_in_passes_without_pause() -> None:
    """No cap on deletes; only the call budget bounds a pass, and what it leaves follows at once."""
    node = bridge(*many(150))
    node.settle()
    node.delete(*many(150))
    assert node.sync().ok
    assert node.served() == {}
    assert node.remotes() == []
    small = bridge(*many(150), call_budget=200)
    passes = 1
    while small.sync().again:
        passes += 1
    assert small.settle().ok
    small.delete(*many(150))
    passes = 1
    while small.sync().again:
        assert small.remotes(), "the budget ended the pass, not the work"
        passes += 1
    assert passes > 2
    assert small.served() == {}


@BOTH
def test_F07_no_load_balancer_points_at_endpoints_that_have_gone(build: Build) -> None:
    """All pods of the service terminate and then go: node port and external IPs follow as the ClusterIP does."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build)
    node.settle()
    ending = [endpoint(one.address, node=one.node_name, ready=False, terminating=True) for one in (L1, R1)]
    for present in (ending, [replace(one, serving=False) for one in ending], ending[:1], []):
        node.put(endpoint_slice("web-a", present))
        if not present:
            node.remove_pod(LOCAL_1)
        assert node.audit().ok
        there = {each.guid for each in node.emulator.endpoints()}
        assert all(set(each.endpoints) <= there for each in node.emulator.load_balancers())
    assert node.served() == {}


def test_F08_a_shared_health_check_stays_until_its_last_service_goes() -> None:
    """Two ports of one service share the health check of their VIP; removing one does not touch it."""
    two = replace(
        WEB,
        ports=(port("http", 80), port("tls", 443)),
        external_policy=Policy.LOCAL,
        health_check_node_port=32000,
        external_ips=(),
    )
    ports = [slice_port("http"), slice_port("tls")]
    node = bridge(two, endpoint_slice("web-a", [L1], ports=ports), forward_health_check_vip=True)
    node.settle()
    health = "203.0.113.80:32000/tcp"
    made = node.balancers()[health].guid
    node.put(replace(two, ports=two.ports[:1]))
    assert node.sync().ok
    assert "203.0.113.80:443/tcp" not in node.served()
    assert node.balancers()[health].guid == made
    assert not any(health in line for line in node.written())
    node.delete(two)
    assert node.sync().ok
    assert node.served() == {}


@pytest.mark.parametrize("late", [False, True], ids=["kept", "restored-after-the-first-look"])
def test_F09_what_hns_restores_after_a_restart_is_adopted(late: bool) -> None:
    """While HNS is away nothing is concluded; what it brings back is recognised, with not one create."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]))
    node.settle()
    before = node.balancers()
    lost = node.emulator.restart(purge=late, unavailable_calls=4)
    report = node.audit()
    assert report.host_calls == 1, "the pass ends with the first call that HNS does not answer"
    assert node.writes == []
    node.wait(1.0)
    if late:
        restored = iter([lost])

        def restore_before_the_first_write(_: object) -> None:
            if node.writes:
                node.emulator.restore(next(restored, ()))

        node.emulator.watch(restore_before_the_first_write)
    for _ in range(4):
        report = node.sync()
        node.wait(11.0)
    assert report.ok
    assert node.balancers() == before
    if late:
        assert node.emulator.refusals["EV-03"] >= 1, "0xB7: it is there already"
    else:
        assert node.writes == []


@pytest.mark.parametrize("kind", ["replace", "modify", "overlay"])
def test_F10_on_demand_the_load_balancers_of_one_service_are_made_anew_a_gap_of_one_call_each(kind: str) -> None:
    """Its node port, VIPs and health check, each under another id; nobody else's, and never two of them at once."""
    web = replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000)
    objects = web, endpoint_slice("web-a", [L1, R1]), *many(5)
    if kind == "overlay":
        node = overlay(*objects)
    else:
        build = WITH_MODIFY if kind == "modify" else WITHOUT_MODIFY
        node = bridge(*objects, build=build, forward_health_check_vip=True)
    node.settle()
    before, endpoints, served = node.balancers(), node.emulator.endpoints(), node.served()
    of_web = {*ALL_OF_WEB, *(name for name in served if "32000" in name)}
    assert len(of_web) == (4 if kind == "overlay" else 5)
    absent: list[set[str]] = []
    node.guard.after_call.append(lambda: absent.append(set(served) - set(node.served())))
    node.renew(HTTP)
    report = node.sync()
    assert report.ok
    assert {result.change.why for result in report.results} == {"to be made anew"}
    written = node.written()
    assert written == [f"{verb} {name}" for name in _in_order(written) for verb in ("delete", "create")]
    assert set(_in_order(written)) == of_web
    assert all(len(each) <= 1 and each <= of_web for each in absent)
    assert node.served() == served
    assert node.emulator.endpoints() == endpoints
    after = node.balancers()
    assert {name for name in served if after[name].guid != before[name].guid} == of_web
    node.forget()
    assert node.period().ok
    assert node.writes == [], "it was asked for once"


def _in_order(written: list[str]) -> list[str]:
    """The names of what was written, each once."""
    return list(dict.fromkeys(line.split(" ", 1)[1] for line in written))


def test_F10_what_fails_on_the_way_is_tried_again_and_nothing_else_waits_for_it() -> None:
    """One cannot be deleted, another not be created again: both are new in the end, and the gap is closed first."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.settle()
    before = node.balancers()
    node.forget()
    node.refuse(0x803B0007, HnsVerb.DELETE, LB, times=2, where=_about("10.96.0.10:80/tcp", before))
    node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=at_frontend("203.0.113.7:80/tcp"))
    node.remove_balancer("203.0.113.80:80/tcp")  # one that is missing is made, and not made anew after that
    node.renew(HTTP)
    report = node.audit()
    assert set(report.pending) == {"10.96.0.10:80/tcp", "203.0.113.7:80/tcp"}
    assert "10.96.0.10:80/tcp" in node.served(), "it could not be deleted, so it serves"
    assert report.retry_at is not None
    assert report.retry_at - node.now <= 2.0
    node.wait(2.0)
    assert node.sync().ok
    after = node.balancers()
    assert set(after) == set(before)
    same = {name for name in before if after[name].guid == before[name].guid}
    assert same == {"203.0.113.80:80/tcp"}
    assert node.written().count("create 203.0.113.80:80/tcp") == 1


def _about(name: str, balancers: Mapping[str, HnsLoadBalancer]) -> Callable[[Call], bool]:
    return lambda call: call.guid == balancers[name].guid


def test_F10_while_hns_is_away_the_order_stands_and_what_is_others_stays() -> None:
    """Asked for during an outage; and a frontend that another program holds is none of ours to make anew."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.add_balancer("203.0.113.7", owner="other")
    node.sync()
    before = node.balancers()
    node.emulator.stop()
    node.renew(HTTP)
    assert node.sync().state is HostState.UNAVAILABLE
    node.emulator.start()
    node.wait(11.0)
    node.sync()
    after = node.balancers()
    changed = {name for name in after if after[name].guid != before[name].guid}
    assert changed == {"10.96.0.10:80/tcp", "203.0.113.80:80/tcp", "node:30080/tcp"}
    node.forget()
    node.period()
    assert node.writes == []


def test_F10_without_a_running_hansa_nothing_but_that_service_is_touched() -> None:
    """A process of its own, with everything that the API says, and much to do that is not asked for."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), *many(5))
    node.settle()
    before = node.balancers()
    node.remove_balancer("10.96.16.0:80/tcp")
    node.put(*many(2, first=10))
    node.start()
    message = node.pipeline.take()
    assert message is not None
    node.guard.renewing.update(each.key.frontend for each in before_of(node, message))
    node.dataplane.renew([HTTP], alone=True)
    report = node.hand_over(message, now=node.now, audit=False)
    assert not node.guard.breaches
    assert set(_in_order(node.written())) == set(ALL_OF_WEB)
    assert not report.again
    after = node.balancers()
    assert {name for name in after if after[name].guid != before[name].guid} == set(ALL_OF_WEB)
    assert "10.96.16.0:80/tcp" not in after


def before_of(node: GuardedNode, message: RuleChanges) -> tuple[DesiredLoadBalancer, ...]:
    return node.dataplane.render(message, now=node.now).load_balancers


@in_loop
async def test_F10_a_running_hansa_does_it_between_its_other_work() -> None:
    """The engine answers with the report of the run that did it, and says who cannot."""
    on_node = bridge(WEB, endpoint_slice("web-a", [L1]))
    async with stage(on_node) as on:
        before = on_node.balancers()
        report = await asyncio.wait_for(_while_time_passes(on, on.engine.renew([HTTP])), 30)
        assert [result.outcome for result in report.results] == [Outcome.DONE] * 4
        after = on_node.balancers()
        assert all(after[name].guid != before[name].guid for name in before)


async def _while_time_passes(on: Stage, awaited: Awaitable[SyncReport]) -> SyncReport:
    asked = asyncio.ensure_future(awaited)
    await on.pass_time(5)
    return await asked


def test_F02_of_another_frontend_is_left_where_it_is() -> None:
    """A leftover of nobody's frontend is foreign unless takeover is on; then it goes after a grace of two checks."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), takeover=False)
    node.settle()
    kept = node.add_balancer("10.96.77.7")
    for _ in range(4):
        assert node.period().ok
    assert kept in {each.guid for each in node.emulator.load_balancers()}


@BOTH
def test_F04_of_a_node_port(build: Build) -> None:
    """A node port has no address, and its load balancer goes like any other."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=build)
    node.settle()
    node.put(replace(WEB, ports=(port(),), external_ips=(), load_balancer_vips=()))
    assert node.sync().ok
    assert node.served() == {"10.96.0.10:80/tcp": [LOCAL_1]}


def test_F02_with_two_mappings_is_not_ours_to_judge() -> None:
    """What serves two frontends was not made by a service proxy: it is reported, never written."""
    node = bridge(service(), endpoint_slice("web-a", [L1]))
    mappings = tuple(PortMapping(protocol=6, internal_port=1, external_port=number) for number in (80, 81))
    node.add_balancer("10.96.0.10", port_mappings=mappings)
    report = node.sync()
    assert report.pending == ("10.96.0.10:80/tcp",)
    assert any("another program holds it" in condition for condition in report.conditions)
