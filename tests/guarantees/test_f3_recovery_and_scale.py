"""windows-proxy F.3: what a pass costs does not grow with the cluster, and trouble has a schedule of its own."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from tests.engine_stage import in_loop
from tests.guarantees.node import (
    LOCAL_1,
    REMOTE_1,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    at_frontend,
    bridge,
    many,
)
from tests.guarantees.stage import stage

from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import Build, Call
from hansa.schedule import RunKind
from hansa.testing import L1, R1, R2, WEB, endpoint_slice, port, service

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
CLUSTER_IP = "10.96.0.10:80/tcp"
LOOK = 6  # network 4, two lists
UNLIMITED = {"call_budget": 10**9, "pass_budget_s": 1e9}


@BOTH
def test_F28_no_query_is_made_per_object_while_programming(build: Build) -> None:
    """The look comes first; between the first and the last write there is nothing but the writes' own calls."""
    node = bridge(*many(50, backends=2), build=build, **UNLIMITED)
    held = len(node.emulator.endpoints())
    report = node.sync()
    assert report.host_calls == 1 + LOOK + 3 * held + 50 * 3 + 100 * 5
    node.settle()
    for item in many(50, backends=2, shift=100):
        node.put(item)
    report = node.sync()
    modify = 4  # and as much for a delete and a create
    assert report.host_calls == 50 * modify + 100 * (5 + 4)
    verbs = {(call.verb, call.kind) for call in node.calls}
    assert (HnsVerb.ENUMERATE, LB) not in verbs
    assert (HnsVerb.ENUMERATE, EP) not in verbs


@pytest.mark.parametrize("services", [20, 200])
def test_F29_an_idle_pass_costs_the_same_whatever_the_node_holds(services: int) -> None:
    """Six calls, and three for each object of the fixed quota that is read again."""
    node = bridge(*many(services, backends=2), **UNLIMITED)
    node.settle()
    quota = node.config.windows.verify_per_period
    assert node.period().host_calls == LOOK + 3 * min(quota, 3 * services)
    assert node.writes == []


@in_loop
async def test_F30_the_full_check_has_a_period_of_its_own() -> None:
    """The sync period is an hour; the host is compared every thirty seconds all the same."""
    async with stage(bridge(WEB, endpoint_slice("web-a", [L1])), sync_period_s=3600.0) as on:
        assert on.node.config.full_check_period_s == 30.0
        on.node.remove_balancer(CLUSTER_IP)
        await on.pass_time(29)
        assert CLUSTER_IP not in on.node.served()
        await on.pass_time(2)
        assert on.node.served()[CLUSTER_IP] == [LOCAL_1]
        assert on.records[-1].kind is RunKind.AUDIT
    async with stage(bridge(WEB, endpoint_slice("web-a", [L1])), full_check_period_s=5.0) as on:
        on.node.remove_balancer(CLUSTER_IP)
        await on.pass_time(6)
        assert on.node.served()[CLUSTER_IP] == [LOCAL_1]


@in_loop
async def test_F31_a_failure_schedules_its_own_retry() -> None:
    """Long before the next period and without any event."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=at_frontend(CLUSTER_IP), times=2)
    async with stage(node, sync_period_s=3600.0, full_check_period_s=3600.0) as on:
        assert CLUSTER_IP not in node.served()
        await on.pass_time(5)
        assert node.served()[CLUSTER_IP] == [LOCAL_1]


def test_F32_objects_that_vanish_while_they_are_listed_are_skipped() -> None:
    """Between the list and the reading of each object half of them are removed: the reading goes on."""
    node = bridge(*many(10), endpoint_slice("web-a", [L1]), WEB)
    node.settle()
    victims = [each.guid for each in node.emulator.load_balancers()][::2]
    listed: list[Call] = []

    def remove_after_listing(call: Call) -> None:
        if listed and victims and call.verb is HnsVerb.OPEN:
            while victims:
                node.emulator.remove(LB, victims.pop())
        if (call.verb, call.kind) == (HnsVerb.ENUMERATE, LB):
            listed.append(call)

    node.emulator.watch(remove_after_listing)
    node.start()
    node.sync()
    assert listed
    assert not victims
    assert node.period().ok
    assert len(node.served()) == 14


def edits() -> dict[str, dict[str, object]]:
    return {
        "another label": {},
        "a new external IP": {"external_ips": (*WEB.external_ips, WEB.external_ips[0] + 1)},
        "affinity": {"affinity_timeout_s": 60},
        "another node port": {"ports": (port(node_port=30090),)},
        "source ranges": {"source_ranges": ()},
    }


@BOTH
@pytest.mark.parametrize("edit", edits())
def test_F33_an_edit_of_a_service_costs_nothing_at_frontends_that_stay_the_same(build: Build, edit: str) -> None:
    """Endpoints are never touched by it, and unchanged frontends receive no call."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1, R2]), build=build)
    node.settle()
    node.put(replace(WEB, **edits()[edit]))  # type: ignore[arg-type]
    assert node.sync().ok
    assert not any(call.kind is EP for call in node.calls)
    expected = {
        "another label": [],
        "source ranges": [],
        "a new external IP": ["create 203.0.113.8:80/tcp"],
        "another node port": ["create node:30090/tcp", "delete node:30080/tcp"],
    }
    if edit in expected:
        assert node.written() == expected[edit]
    else:
        assert {line.partition(" ")[2] for line in node.written()} == set(node.served()), "affinity is in all four"


@in_loop
async def test_F34_events_during_a_pass_are_taken_in_and_start_the_next_pass_at_once() -> None:
    """A call of HNS takes long; meanwhile the API goes on, and its newest state follows without a pause."""
    node = bridge(WEB, endpoint_slice("web-a", [R1]))
    async with stage(node, min_sync_period_s=0.0) as on:
        entered, go_on = threading.Event(), threading.Event()

        def hold(call: Call) -> None:
            if call.verb is HnsVerb.CREATE and call.kind is EP and not entered.is_set():
                entered.set()
                assert go_on.wait(10)

        node.emulator.watch(hold)
        passes = len(on.records)
        await on.say(endpoint_slice("web-a", [R2]))
        await on.until(entered.is_set)
        for addresses in ([R1, R2], [L1, R2], [L1, R1]):
            await on.say(endpoint_slice("web-a", addresses))
        await on.say(service("api", cluster_ips=["10.96.0.11"]))
        assert len(on.records) == passes, "the pass is still at it"
        go_on.set()
        await on.settled()
        assert len(on.records) == passes + 2, "one for what was under way, one for all that came meanwhile"
        assert node.served()[CLUSTER_IP] == [LOCAL_1, REMOTE_1]
        assert node.remotes() == [REMOTE_1]


def test_F34_services_in_retry_do_not_disturb_the_others() -> None:
    """Thirty services cannot be made; the healthy ones get no call for it, pass after pass."""
    node = bridge(*many(5))
    node.settle()
    for item in many(30, first=100):
        node.put(item)
    node.refuse(0x803B0007, HnsVerb.CREATE, LB, times=None)
    report = node.sync()
    for _ in range(5):
        assert report.retry_at is not None
        node.wait(report.retry_at - node.now)
        report = node.sync()
    assert len(report.pending) == 30
    healthy = {f"10.96.16.{n}:80/tcp" for n in range(5)}
    assert not [line for line in node.written() if line.partition(" ")[2] in healthy]
