"""windows-proxy F.10: what people and machines are told, and what it costs the host to run hansa."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tests.engine_stage import in_loop
from tests.guarantees.node import (
    BRIDGE_DUAL,
    LOCAL_1,
    LOCAL_2,
    REMOTE_1,
    REMOTE_2,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    at_frontend,
    bridge,
    many,
)
from tests.guarantees.stage import stage

from hansa.api.objects import Policy
from hansa.engine import SYNCS_FROM
from hansa.hns.api import HnsKind, HnsVerb, HResult
from hansa.hns.emulator import Build, LeavePartial, LoseReply, Refuse
from hansa.testing import L1, L2, R1, R2, WEB, endpoint, endpoint_slice, node, port, service, slice_port

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
CLUSTER_IP = "10.96.0.10:80/tcp"


def test_F87_the_health_check_of_a_vip_reaches_this_host_in_both_families() -> None:
    """TCP, on the service's own health port, to the root endpoint, with the right family flag; only where asked for."""
    web = replace(
        WEB,
        cluster_ips=service(cluster_ips=["10.96.0.10", "fd00::10"]).cluster_ips,
        load_balancer_vips=service(load_balancer_vips=["203.0.113.80", "2001:db8:7::80"]).load_balancer_vips,
        external_policy=Policy.LOCAL,
        health_check_node_port=32000,
    )
    slices = endpoint_slice("web-4", [L1]), endpoint_slice("web-6", [endpoint("fd01::11", node="n1")])
    on = bridge(web, *slices, layout=BRIDGE_DUAL, pods=(LOCAL_1, "fd01::11"), forward_health_check_vip=True)
    assert on.sync().ok
    root = next(each for each in on.emulator.endpoints() if each.name == "cbr0")
    for name, flag in (("203.0.113.80:32000/tcp", 0), ("[2001:db8:7::80]:32000/tcp", 2)):
        health = on.balancers()[name]
        assert health.endpoints == (root.guid,)
        assert int(health.flags) == flag
        assert health.port_mappings[0].internal_port == 32000
    off = bridge(web, *slices, layout=BRIDGE_DUAL, pods=(LOCAL_1, "fd01::11"))
    assert off.sync().ok
    assert not any("32000" in name for name in off.served())


USUAL = logging.INFO - SYNCS_FROM  # the verbosity that people run with


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= USUAL]


@in_loop
async def _a_quiet_and_a_failing_hour(caplog: pytest.LogCaptureFixture) -> None:
    on_node = bridge(WEB, endpoint_slice("web-a", [L1, L2]), pods=(LOCAL_1,))
    async with stage(on_node) as on:
        caplog.clear()
        await on.pass_time(600)
        assert lines(caplog) == [], "a pod is missing all the time, and it has been said once"
        on_node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=at_frontend(CLUSTER_IP), times=None)
        on_node.remove_balancer(CLUSTER_IP)
        await on.pass_time(60)
        told = lines(caplog)
        assert sum(line.startswith("step failed") for line in told) == 1
        caplog.clear()
        await on.pass_time(1800)
        assert lines(caplog) == [], "it fails on and on, as it has been said"
        assert on.engine.counts.steps["create", "failed"] > 20, "and is counted"
        on_node.emulator.faults.clear()
        await on.pass_time(60)
        assert [line.split()[0:2] for line in lines(caplog)] == [["step", "mended"], ["sync", "number=" + last(caplog)]]


def last(caplog: pytest.LogCaptureFixture) -> str:
    return lines(caplog)[-1].split("number=")[1].split()[0]


def test_F91_a_steady_state_logs_nothing_and_a_lasting_error_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """One line when something begins to fail, one when it is mended; in between it is only counted."""
    caplog.set_level(USUAL, logger="hansa")
    _a_quiet_and_a_failing_hour(caplog)


@in_loop
async def _an_alarm_lasts(caplog: pytest.LogCaptureFixture) -> None:
    dns = service("kube-dns", namespace="kube-system", cluster_ips=["10.96.0.53"], ports=[port("dns", 53)])
    piece = endpoint_slice("d", [L1], namespace="kube-system", service="kube-dns", ports=[slice_port("dns", 53)])
    on_node = bridge(dns, piece)
    on_node.refuse(0x803B0007, HnsVerb.CREATE, LB, times=None)
    async with stage(on_node) as on:
        await on.pass_time(600)
        assert sum("critical" in line for line in lines(caplog)) == 1


def test_F91_an_alarm_that_lasts_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The sentence of the alarm does not change with the time that it lasts."""
    caplog.set_level(USUAL, logger="hansa")
    _an_alarm_lasts(caplog)


@pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
@pytest.mark.parametrize("verb", [*(verb for verb in HnsVerb if verb is not HnsVerb.CLOSE), None])
@pytest.mark.parametrize(
    "effect",
    [
        Refuse(HResult(0x80070490)),
        Refuse(HResult(0x803B0013)),
        Refuse(HResult(0x803B000D)),
        Refuse(HResult(0x800706BA)),
        LoseReply(),
        LeavePartial(),
    ],
    ids=["gone", "conflict", "rejected", "unavailable", "reply lost", "partial"],
)
def test_F93_every_handle_is_closed_on_every_path(build: Build, verb: HnsVerb | None, effect: object) -> None:
    """Each verb fails in each way in the middle of programming: none stays open, none is closed twice."""
    on = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build)
    on.settle()
    for skip in range(3):
        on.break_call(effect, verb, skip=skip, times=2)  # type: ignore[arg-type]
        on.put(endpoint_slice("web-a", [L1, R1, R2][skip : skip + 2]))
        on.remove_balancer(sorted(on.served())[0])
        on.audit()
        on.wait(1.0)
        on.audit()
        assert on.emulator.open_handles == 0
        assert on.emulator.bad_closes == 0
        on.emulator.faults.clear()
        on.start()  # what was rejected is not tried again before something changes
        on.wait(301.0)
        on.audit()
        assert on.served()


def test_F93_an_idle_day_costs_the_same_number_of_calls_every_period() -> None:
    """Nothing piles up: neither handles, nor calls, nor objects."""
    on = bridge(*many(30, backends=2))
    on.settle()
    costs = {on.period().host_calls for _ in range(100)}
    assert len(costs) == 1
    assert on.emulator.open_handles == 0
    assert on.writes == []


def test_F94_topology_hints_and_traffic_distribution_count_on_windows_too() -> None:
    """The selection is the one of all dataplanes: with zone hints for this zone, only those endpoints are used."""
    near = [replace(L1, zone_hints=frozenset({"za"})), replace(R1, zone_hints=frozenset({"za"}))]
    far = [replace(R2, zone_hints=frozenset({"zb"}))]
    on = bridge(service(), endpoint_slice("web-a", [*near, *far]))
    assert on.sync().ok
    assert on.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_1]
    on.put(node(zone="zb"))
    assert on.sync().ok
    assert on.backends(CLUSTER_IP) == [REMOTE_2]
    hints = {L1: "n2", L2: "n1", R1: "n1"}
    hinted = [replace(one, node_hints=frozenset({name})) for one, name in hints.items()]
    on.put(node(), endpoint_slice("web-a", hinted))
    assert on.sync().ok
    assert on.backends(CLUSTER_IP) == [LOCAL_2, REMOTE_1]
