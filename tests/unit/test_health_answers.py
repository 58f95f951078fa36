"""Health as functions: eligibility, overdue families, bodies, where health check ports listen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from hansa.api.objects import Node, ServiceKey
from hansa.engine import Counts, EngineState, FamilyState
from hansa.health_answers import (
    AUTOSCALER_TAINT,
    NEVER,
    Listener,
    Moment,
    health_check,
    healthz,
    is_eligible,
    judge,
    livez,
    readyz,
    rfc3339,
    wanted_listeners,
)
from hansa.net import IPFamily, parse_address
from hansa.pipeline import HealthCheck, HealthCheckKey
from hansa.testing import NODE, WEB_KEY, config, node

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
NEW = EngineState(
    ready=False,
    loop_since=None,
    waiting_since=None,
    last_ok_at=None,
    running_since=None,
    node=NODE,
    families={V4: FamilyState(None, None), V6: FamilyState(None, None)},
    first_reached_at=None,
    requested_at=None,
    health_checks={},
    node_port_addresses={},
    without_local={},
    objects={},
    malformed={},
    changes={},
    changes_pending={},
    conflicts=(),
    faulty={},
    counts=Counts(syncs=Counter()),
    frontends=0,
    sources=("connecting",),
    troubled_sources=0,
    last=None,
    report=None,
)
NOW = Moment(now=1000.0, wall=1_767_323_045.678)


def judged(state: EngineState, **settings: Any):  # type: ignore[no-untyped-def]
    return judge(state, config(**settings), NOW.now)


@pytest.mark.parametrize(
    ("seen", "eligible"),
    [
        (None, False),
        (NODE, True),
        (node("n1", deleting=True), False),
        (node("n1", taint_keys=[AUTOSCALER_TAINT]), False),
        (node("n1", taint_keys=["node.kubernetes.io/unschedulable", "a/b"]), True),
        (node("n1", taint_keys=["todeletedbyclusterautoscaler"]), True),
    ],
)
def test_z6_z8_which_node_is_eligible(seen: Node | None, eligible: bool) -> None:
    assert is_eligible(seen) is eligible


@pytest.mark.parametrize(
    ("waiting_since", "sync_period_s", "healthy"),
    [
        (None, 30.0, True),
        (1000.0, 30.0, True),
        (940.1, 30.0, True),
        (940.0, 30.0, False),
        (1.0, 30.0, False),
        (980.1, 10.0, True),
        (980.0, 10.0, False),
    ],
)
def test_z3_overdue_is_at_twice_the_sync_period(
    waiting_since: float | None, sync_period_s: float, healthy: bool
) -> None:
    state = replace(NEW, loop_since=0.5, families={V4: FamilyState(waiting_since, 0.7), V6: FamilyState(None, None)})
    found = judged(state, sync_period_s=sync_period_s)
    assert (found.families[V4].healthy, found.families[V6].healthy, found.healthy) == (healthy, True, healthy)


def test_z4_entering_the_loop_is_an_update_and_before_it_no_family_has_reported() -> None:
    before = judged(NEW)
    assert before.healthy
    answer = healthz(before, NOW)
    assert answer.code == 200
    assert "status" not in json.loads(answer.body)
    nobody = healthz(judged(replace(NEW, node=None)), NOW)
    assert (nobody.code, json.loads(nobody.body)["lastUpdated"]) == (503, NEVER)
    entered = judged(replace(NEW, loop_since=990.0))
    assert [one.updated_at for one in entered.families.values()] == [990.0, 990.0]


def test_bodies_are_kube_proxys_to_the_letter() -> None:
    state = replace(NEW, loop_since=900.0, families={V6: FamilyState(930.0, 935.25), V4: FamilyState(None, 998.0)})
    assert healthz(judged(state), NOW).body == (
        '{"lastUpdated":"2026-01-02T03:04:03.678Z","currentTime":"2026-01-02T03:04:05.678Z","nodeEligible":true,'
        '"healthy":false,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:03.678Z","healthy":true},'
        '"IPv6":{"lastUpdated":"2026-01-02T03:03:00.928Z","healthy":false}}}'
    )
    state = replace(NEW, loop_since=900.0, families={V4: FamilyState(None, 998.0)})
    assert livez(judged(state), NOW).body == (
        '{"lastUpdated":"2026-01-02T03:04:05.678Z","currentTime":"2026-01-02T03:04:05.678Z","healthy":true,'
        '"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:03.678Z","healthy":true}}}'
    )


def test_z12_not_eligible_alone_is_503_with_healthy_true_and_the_newest_real_update() -> None:
    state = replace(NEW, node=None, loop_since=900.0, families={V4: FamilyState(None, 998.0)})
    answer = healthz(judged(state), NOW)
    body = json.loads(answer.body)
    assert (answer.code, body["healthy"], body["nodeEligible"]) == (503, True, False)
    assert body["lastUpdated"] == "2026-01-02T03:04:03.678Z"
    assert livez(judged(state), NOW).code == 200


@pytest.mark.parametrize(
    ("count", "healthy", "code"), [(2, True, 200), (1, True, 200), (0, True, 503), (2, False, 503), (0, False, 503)]
)
def test_h8_h10_code_weight_and_body(count: int, healthy: bool, code: int) -> None:
    answer = health_check(WEB_KEY, HealthCheck(32000, count), healthy=healthy)
    assert (answer.code, answer.headers["X-Load-Balancing-Endpoint-Weight"]) == (code, str(count))
    assert json.loads(answer.body)["localEndpoints"] == count
    assert json.loads(answer.body)["serviceProxyHealthy"] is healthy


def test_h13_a_request_that_races_the_close_gets_503() -> None:
    answer = health_check(WEB_KEY, None, healthy=True)
    assert (answer.code, answer.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")


def test_names_are_quoted_as_json() -> None:
    body = health_check(ServiceKey("d", 'a"b'), None, healthy=True).body
    assert json.loads(body)["service"]["name"] == 'a"b'
    assert body.startswith('{\n\t"service": {\n\t\t"namespace": "d",\n')
    assert not body.endswith("\n")


@pytest.mark.parametrize(
    ("accepted", "addresses"),
    [
        (None, ()),
        (frozenset(), ()),
        (frozenset({parse_address("192.0.2.100"), parse_address("192.0.2.1")}), ("192.0.2.1", "192.0.2.100")),
    ],
)
def test_h3_where_a_health_check_port_listens(accepted: Any, addresses: tuple[str, ...]) -> None:
    key = HealthCheckKey(WEB_KEY, V4)
    state = replace(NEW, health_checks={key: HealthCheck(32000, 1)}, node_port_addresses={V4: accepted})
    assert wanted_listeners(state) == {key: Listener(32000, tuple(parse_address(one) for one in addresses))}


def test_readyz_says_what_it_waits_for() -> None:
    for state, said in (
        (NEW, "not complete yet; connecting"),
        (replace(NEW, ready=True), "the first sync is not through"),
    ):
        answer = readyz(state, NOW)
        assert answer.code == 503
        assert said in json.loads(answer.body)["waitingFor"]
    answer = readyz(replace(NEW, ready=True, first_reached_at=999.0), NOW)
    assert answer.code == 200
    assert json.loads(answer.body)["readySince"] == "2026-01-02T03:04:04.678Z"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (1_767_323_045.0, "2026-01-02T03:04:05Z"),
        (1_767_323_045.5, "2026-01-02T03:04:05.5Z"),
        (1_767_323_045.000001, "2026-01-02T03:04:05.000001Z"),
        (1_767_323_045.9999999, "2026-01-02T03:04:06Z"),
    ],
)
def test_times_are_as_go_prints_them(seconds: float, text: str) -> None:
    assert rfc3339(seconds) == text
