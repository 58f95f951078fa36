"""windows-proxy F.10: what people and machines are told, and what it costs the host to run hansa."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api_server import ApiServer
from tests.command import Hansa
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
    plain,
)
from tests.guarantees.stage import Served, served, stage
from tests.ports import free_port

from hansa.api.change import Delete
from hansa.api.objects import ApiObject, Policy
from hansa.engine import SYNCS_FROM
from hansa.hns.api import HnsKind, HnsVerb, HnsVersion, HResult
from hansa.hns.emulator import FUTURE, WS2019, Build, LeavePartial, LoseReply, Refuse
from hansa.hns.schema import LbFlags
from hansa.sources.kubernetes.client import KubernetesSource
from hansa.testing import (
    L1,
    L2,
    R1,
    R2,
    WEB,
    config,
    endpoint,
    endpoint_slice,
    manifest,
    node,
    port,
    service,
    slice_port,
)

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


# --- health ---

NO_TIME = {"min_sync_period_s": 0.0}


@in_loop
async def test_F86_health_fails_while_anything_desired_is_missing_for_too_long_and_comes_back() -> None:
    """Every create fails, or a single one: 200 for the health timeout, 503 after it, 200 once HNS has taken all."""
    for where in (None, at_frontend("203.0.113.80:80/tcp")):
        on_node = bridge(WEB, endpoint_slice("web-a", [L1]))
        on_node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=where, times=None)
        async with served(on_node) as on:
            assert (await on.health()).code == 200
            await on.on.pass_time(59.0)
            assert (await on.health()).code == 200
            await on.on.pass_time(2.0)
            answer = await on.health()
            assert answer.code == 503
            assert [family["healthy"] for family in answer.data["status"].values()] == [False, True]
            on_node.emulator.faults.clear()
            await on.on.pass_time(40.0)
            assert (await on.health()).code == 200


@in_loop
async def test_F86_an_hns_that_is_away_is_not_healthy_either_and_no_check_waits_for_it() -> None:
    """Nothing is concluded about objects; that nothing can be done is."""
    on_node = bridge(WEB, endpoint_slice("web-a", [L1]))
    async with served(on_node, **NO_TIME) as on:
        on_node.emulator.stop()
        await on.on.say(service("api", cluster_ips=["10.96.0.11"]), endpoint_slice("api-a", [L1], service="api"))
        await on.on.pass_time(100.0)
        assert (await on.health()).code == 503
        assert (await on.health("/livez")).code == 503
        on_node.emulator.start()
        await on.on.pass_time(30.0)
        assert (await on.health()).code == 200


@in_loop
async def test_F88_a_service_health_port_does_not_vouch_for_what_hns_has_not_taken() -> None:
    """A local pod, and no load balancer for the VIP: 503. As soon as HNS has it: 200. A pod that goes: 503 at once."""
    port_number = free_port()
    web = replace(
        WEB,
        external_ips=(),
        external_policy=Policy.LOCAL,
        health_check_node_port=port_number,
        cluster_ips=WEB.cluster_ips,
    )
    on_node = bridge(web, endpoint_slice("web-a", [L1]))
    on_node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=at_frontend("203.0.113.80:80/tcp"), times=None)
    async with served(on_node, **NO_TIME) as on:
        url = f"http://127.0.0.1:{port_number}/"
        await on.on.until(lambda: bool(on.servers.health_checks.listening))
        answer = await on.ask(url)
        assert (answer.code, answer.data["localEndpoints"]) == (503, 0)
        on_node.emulator.faults.clear()
        await on.on.pass_time(40.0)
        answer = await on.ask(url)
        assert (answer.code, answer.data["localEndpoints"]) == (200, 1)
        on_node.emulator.stop()
        await on.on.say(endpoint_slice("web-a", [L2]))
        await on.on.pass_time(100.0)
        assert (await on.ask(url)).code == 503, "hansa has not been able to do anything for longer than the timeout"
        on_node.emulator.start()
        await on.on.pass_time(30.0)
        assert (await on.ask(url)).code == 200
        await on.on.synced(endpoint_slice("web-a", [R1]))
        assert (await on.ask(url)).code == 503


# --- metrics ---


@in_loop
async def test_F89_latency_calls_errors_objects_and_retries_are_measured_on_windows() -> None:
    """What a node of kube-proxy never tells: each number is checked against what has happened to this HNS."""
    on_node = bridge(WEB, endpoint_slice("web-a", [L1]), *many(2))
    on_node.add_balancer("198.51.100.9", owner="other")
    on_node.refuse(0x80070057, HnsVerb.CREATE, LB, where=at_frontend("203.0.113.80:80/tcp"), times=None)
    calls = on_node.guard.calls
    async with served(on_node, **NO_TIME) as on:
        await on.on.pass_time(5.0)
        caused = on.on.clock.wall() - 2.5
        await on.on.synced(replace(endpoint_slice("web-a", [L1, R1]), trigger_time=caused))
        await on.on.pass_time(31.0)

        latency = await on.values("kubeproxy_network_programming_duration_seconds_count")
        assert latency['{ip_family="IPv4"}'] == 1
        assert (await on.values("kubeproxy_network_programming_duration_seconds_sum"))['{ip_family="IPv4"}'] >= 2.5
        made = await on.values("hansa_host_calls_total")
        assert sum(made.values()) == on_node.guard.calls - calls
        assert made['{verb="create",result="ok"}'] == on_node.count(HnsVerb.CREATE) - on_node.emulator.faults.hits
        refused = await on.values("hansa_host_call_errors_total")
        assert refused == {'{verb="create",code="0x80070057"}': on_node.emulator.faults.hits}
        failures = await on.values("hansa_step_failures_total")
        assert failures['{class="rejected"}'] == on_node.emulator.faults.hits > 0
        objects = await on.values("hansa_host_objects")
        assert objects['{object="load balancer",state="desired"}'] == 6
        assert objects['{object="load balancer",state="observed"}'] == 5
        assert objects['{object="load balancer",state="foreign"}'] == 1
        assert (await on.values("hansa_pending_objects"))['{ip_family="IPv4"}'] == 1
        assert await on.values("hansa_backoff_objects") == {'{class="rejected"}': 1}
        assert 0 < (await on.values("hansa_next_retry_seconds"))[""] <= 72
        assert (await on.values("kubeproxy_sync_proxy_rules_duration_seconds_count"))['{ip_family="IPv4"}'] >= 2

        on_node.emulator.faults.clear()
        await on.on.pass_time(80.0)
        assert await on.values("hansa_backoff_objects") == {}
        assert (await on.values("hansa_pending_objects"))['{ip_family="IPv4"}'] == 0


# --- why ---


@in_loop
async def test_F90_a_running_hansa_tells_of_a_service_what_it_wants_what_there_is_and_why_the_rest_is_not() -> None:
    """Frontends, ids, flags, the last error in HNS's words, and a reason for each endpoint that is not used."""
    unready = replace(L2, ready=False, serving=False)
    on_node = bridge(WEB, endpoint_slice("web-a", [L1, unready, R1]), enable_dsr=True)
    on_node.refuse(0x803B000D, HnsVerb.CREATE, LB, where=at_frontend("203.0.113.80:80/tcp"), times=None)
    async with served(on_node, **NO_TIME) as on:
        state = (await on.metrics("/debug/state?service=d/web")).data
        (retry,) = state["retries"]
        assert (retry["key"], retry["class"], retry["failures"]) == ("203.0.113.80:80/tcp", "rejected", 1)
        assert "0x803B000D" in retry["error"]
        assert retry["owners"] == ["d/web:http"]
        assert retry["retryAt"] is not None
        (web,) = state["services"]
        (excluded,) = web["ports"][0]["excluded"]
        assert excluded["endpoint"] == f"{LOCAL_2}:8080"
        assert "not ready" in excluded["why"]
        assert len(web["rules"]) == 4

        rows = {row["frontend"]: row for row in (await on.metrics("/debug/hansa/objects")).data["objects"]}
        cluster_ip = rows[CLUSTER_IP]
        held = on_node.balancers()[CLUSTER_IP]
        assert cluster_ip["loadBalancer"].upper() == held.guid
        assert cluster_ip["flags"] == ["DSR"]
        assert {each["endpoint"].upper() for each in cluster_ip["endpoints"]} == set(held.endpoints)
        assert cluster_ip["state"] is None
        absent = rows["203.0.113.80:80/tcp"]
        assert absent["loadBalancer"] is None
        assert "0x803B000D" in absent["state"]


def test_F90_dump_and_difference_work_without_the_node(hansa: Hansa, tmp_path: Path) -> None:
    """A saved node: what it holds, what is wrong on it, and what a sync would change, by commands on any machine."""
    on = bridge(WEB, endpoint_slice("web-a", [L1, R1]))
    on.settle()
    on.remove_balancer(CLUSTER_IP)
    on.alter_balancer("203.0.113.7:80/tcp", flags=LbFlags.DSR)
    saved, cluster = tmp_path / "node.json", tmp_path / "cluster.yaml"
    saved.write_text(on.emulator.dump(), encoding="utf-8")
    cluster.write_text(yaml.safe_dump_all([manifest(each) for each in on.objects.values()]), encoding="utf-8")
    common = ("--source", cluster, "--node-name", "n1", "--hns", f"emulator:{saved}")
    code, out, _ = hansa("hns", "ls", "loadbalancers", "--hns", f"emulator:{saved}", "-o", "json")
    assert (code, len(json.loads(out))) == (0, 3)
    code, out, _ = hansa("plan", *common, "-o", "json")
    assert code == 0
    steps = {(step["verb"], step["key"]): step["why"] for step in json.loads(out)}
    assert steps == {
        ("create", CLUSTER_IP): "missing",
        ("replace", "203.0.113.7:80/tcp"): "flags differ",
    }
    code, out, _ = hansa("doctor", *common, "-o", "json")
    assert CLUSTER_IP in out
    assert "203.0.113.7:80/tcp" in out
    assert saved.read_text(encoding="utf-8") == on.emulator.dump(), "nothing is written by looking"


# --- what is said ---


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


@in_loop
async def test_F92_a_service_that_hns_refuses_gets_one_event_for_each_port_and_class() -> None:
    """Not for a refusal that passes, not again while it lasts, and again when another class of error joins it."""
    api = service("api", cluster_ips=["10.96.0.11"])
    on_node = bridge(WEB, endpoint_slice("web-a", [L1]), api, endpoint_slice("api-a", [L1], service="api"))
    on_node.refuse(0x803B000D, HnsVerb.CREATE, LB, where=at_frontend("203.0.113.80:80/tcp"), times=None)
    on_node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=at_frontend("10.96.0.11:80/tcp"), times=1)
    async with ApiServer() as server, served(on_node, KubernetesSource(server.connection(), config()), **NO_TIME) as on:
        await on.on.pass_time(20.0)
        (event,) = await _told(on, server, "HostRefused", 1)
        assert (event["regarding"]["kind"], event["regarding"]["name"], event["type"]) == ("Service", "web", "Warning")
        assert "203.0.113.80:80/tcp: " in event["note"]
        assert "0x803B000D" in event["note"]
        assert "n1" in event["note"]
        await on.on.pass_time(600.0)
        await _told(on, server, "HostRefused", 1)
        on_node.refuse(0x803B0007, HnsVerb.CREATE, LB, where=at_frontend(CLUSTER_IP), times=None)
        on_node.remove_balancer(CLUSTER_IP)
        await on.on.pass_time(60.0)
        events = await _told(on, server, "HostRefused", 2)
        assert "0x803B0007" in events[-1]["note"]


async def _told(on: Served, server: ApiServer, reason: str, count: int) -> list[dict[str, Any]]:
    """All Events of that reason, once there are so many; and no more."""

    def found() -> list[dict[str, Any]]:
        return [one for one in server.told.values() if one["reason"] == reason]

    assert on.servers.events is not None
    async with asyncio.timeout(10):
        while len(found()) < count:
            await asyncio.sleep(0.01)
            await on.servers.events.written()
    assert len(found()) == count
    return found()


HERE_AND_THERE = [L1, endpoint("10.1.2.99", node="n2")]
# What a Service asks for, and of an HNS of which build: it can do neither all of it nor none.
ODD: Mapping[str, tuple[Build, Mapping[str, Any]]] = {
    "source-ranges": (FUTURE, {"source_ranges": ["198.51.100.0/24"]}),
    "session-affinity-timeout": (FUTURE, {"affinity_timeout_s": 10800}),
    "session-affinity": (WS2019, {"affinity_timeout_s": 10800}),
    "client-ip": (replace(WS2019, version=HnsVersion(10, 0)), {"external_policy": Policy.LOCAL}),
    "preserve-destination": (replace(WS2019, version=HnsVersion(10, 0)), {"preserve_destination": True}),
    "sctp": (FUTURE, {"ports": [port("sig", 3868, protocol="SCTP")]}),
    "endpoint-ports": (FUTURE, {}),
    "backend-limit": (FUTURE, {}),
}


def _asking(feature: str) -> tuple[ApiObject, ...]:
    """A Service that asks for something that this HNS cannot do, with endpoints here and elsewhere."""
    fields = {"cluster_ips": ["10.96.0.40"], "type": "LoadBalancer", "load_balancer_vips": ["203.0.113.40"]}
    odd = service("odd", **{**fields, **ODD[feature][1]})
    ports = [slice_port(each.name, each.port, protocol=each.protocol) for each in odd.ports]
    pods = HERE_AND_THERE
    if feature == "backend-limit":
        pods = [L1, *(endpoint(f"10.1.3.{number}", node="n3") for number in range(1, 70))]
    slices = [endpoint_slice("odd-a", pods, service="odd", ports=ports)]
    if feature == "endpoint-ports":
        slices.append(endpoint_slice("odd-b", [R2], service="odd", ports=[slice_port("http", 9999)]))
    return (odd, *slices)


@pytest.mark.parametrize("feature", ODD)
def test_F84_what_hns_cannot_do_is_a_line_a_metric_an_event_and_in_the_state(
    feature: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each once, when it begins; and no more of it when the Service asks for it no more."""
    caplog.set_level(logging.INFO, logger="hansa")

    @in_loop
    async def live() -> None:
        on_node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(ODD[feature][0]))
        asking = _asking(feature)
        async with (
            ApiServer() as server,
            served(on_node, KubernetesSource(server.connection(), config()), **NO_TIME) as on,
        ):
            assert await on.values("hansa_shortfalls") == {}
            await on.on.synced(*asking)
            await on.on.pass_time(60.0)
            told = [line for line in lines(caplog) if line.startswith("shortfall ") and f"feature={feature} " in line]
            assert told
            assert len(set(told)) == len(told), "each once"
            assert all("owner=d/odd:" in line for line in told)
            counted = await on.values("hansa_shortfalls")
            assert counted[f'{{feature="{feature}"}}'] == len(told)
            state = (await on.metrics("/debug/state")).data
            assert [one["feature"] for one in state["shortfalls"]].count(feature) == len(told)
            events = await _told(on, server, "Shortfall", 2)
            of_service = [one for one in events if one["regarding"]["kind"] == "Service"]
            assert [(one["regarding"]["name"], one["type"]) for one in of_service] == [("odd", "Warning")]
            assert feature in of_service[0]["note"]
            await on.on.synced(*(Delete(each.object_key) for each in asking))
            await on.on.pass_time(60.0)
            assert await on.values("hansa_shortfalls") == {}
            await _told(on, server, "Shortfall", 2)

    live()


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
