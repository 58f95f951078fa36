"""What is told by Events, by whom and how often. Evidence: operations.md 12 and 21 (wish 3); windows-proxy F92."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.api_server import event_faults
from tests.dictionary_dataplane import RETRY_S
from tests.engine_stage import API, LISTED, START, Stage, in_loop, stage

from hansa import events
from hansa.api.change import Change, Malformed, Upsert
from hansa.api.objects import Kind, ObjectKey, ServiceKey
from hansa.bucket import Bucket
from hansa.dataplanes.base import HostState, Shortfall, SyncReport
from hansa.errors import Fault
from hansa.events import (
    OBJECT_BURST,
    OBJECT_PAUSE_S,
    PROCESS_BURST,
    SERIES_GAP_S,
    Continue,
    Create,
    Event,
    EventBook,
    Statement,
    Topic,
    failed_listener,
    failed_server,
    started,
)
from hansa.net import Protocol
from hansa.services.model import ServicePortName
from hansa.testing import L1, NODE, R1, config, endpoint_slice, node, service

laws = settings(max_examples=50, deadline=None, derandomize=True)
WALL = 1_767_323_045.25
WEB = ServiceKey("d", "web")


def telling(book: EventBook, event: Event, now: float = 0.0) -> Any:
    return book.tell(event, now=now, wall=WALL + now)


# --- form ---


@pytest.mark.parametrize(
    ("event", "reason", "kind", "action", "regarding"),
    [
        (started("n1"), "Starting", "Normal", "StartKubeProxy", {"kind": "Node", "apiVersion": "v1", "name": "n1"}),
        (
            failed_server("n1", "healthz", "taken"),
            *("FailedToStartProxierHealthcheck", "Warning", "StartKubeProxy"),
            {"kind": "Node", "apiVersion": "v1", "name": "n1"},
        ),
        (
            failed_server("n1", "metrics", "taken"),
            *("FailedToStartMetricServer", "Warning", "StartKubeProxy"),
            {"kind": "Node", "apiVersion": "v1", "name": "n1"},
        ),
        (
            failed_listener(WEB, 30001, "taken"),
            *("FailedToStartServiceHealthcheck", "Warning", "Listen"),
            {"kind": "Service", "apiVersion": "v1", "name": "web", "namespace": "d", "uid": "u-1"},
        ),
    ],
    ids=["starting", "healthz", "metrics", "listener"],
)
def test_kube_proxys_events_look_like_its(
    event: Event, reason: str, kind: str, action: str, regarding: dict[str, str]
) -> None:
    write = telling(EventBook(), event)
    is_service = event.regarding.kind == "Service"
    made = events.document(write, host_name="n1", uid="u-1" if is_service else "")
    assert event_faults(made, events.namespace_of(event)) == []
    assert made["metadata"]["namespace"] == ("d" if is_service else "default")
    assert (made["reason"], made["type"], made["action"]) == (reason, kind, action)
    assert made["regarding"] == regarding
    assert (made["reportingController"], made["reportingInstance"]) == ("kube-proxy", "kube-proxy-n1")
    assert made["eventTime"] == "2026-01-02T03:04:05.250000Z"
    assert made["note"] == event.note


@laws
@given(st.text(max_size=2000), st.text(alphabet="abc-.", min_size=1, max_size=253).map(lambda text: f"a{text}"))
def test_whatever_the_note_and_the_name_the_server_takes_it(note: str, name: str) -> None:
    event = Event("R", "A", events.Regarding("Service", "d", name[:253]), events.shortened(note))
    write = telling(EventBook(), event)
    assert event_faults(events.document(write, host_name=name, uid=""), "d") == []
    assert note.startswith(event.note.removesuffix("…"))


def test_names_differ_also_within_one_moment() -> None:
    book = EventBook()
    names = {book.tell(replace(started("n1"), note=str(n)), now=0.0, wall=WALL).name for n in range(5)}
    assert len(names) == 5
    assert all(name.startswith("n1.") for name in names)


# --- how often ---


def test_the_same_again_continues_a_series_and_begins_anew_after_a_while() -> None:
    book = EventBook()
    event = failed_listener(WEB, 30001, "taken")
    first = telling(book, event)
    assert isinstance(first, Create)
    second = telling(book, event, 10.0)
    assert second == Continue(event, first.name, 2, WALL + 10.0)
    assert events.series_change(second) == {"series": {"count": 2, "lastObservedTime": "2026-01-02T03:04:15.250000Z"}}
    third = telling(book, event, 11.0 + SERIES_GAP_S)
    assert isinstance(third, Create)
    assert third.name != first.name


def test_one_object_has_a_limit_and_what_is_held_back_counts_in_the_series() -> None:
    book = EventBook()
    event = failed_listener(WEB, 30001, "taken")
    told = [telling(book, event, float(n)) for n in range(OBJECT_BURST + 20)]
    assert [one is not None for one in told] == [True] * OBJECT_BURST + [False] * 20
    assert telling(book, failed_listener(ServiceKey("d", "api"), 30002, "taken"), 50.0) is not None
    late = telling(book, event, OBJECT_PAUSE_S + 1)
    assert late == Continue(event, told[0].name, OBJECT_BURST + 21, WALL + OBJECT_PAUSE_S + 1)


def test_the_process_has_a_limit() -> None:
    book = EventBook()
    told = [telling(book, failed_listener(ServiceKey("d", f"s{n}"), 30001, "taken")) for n in range(200)]
    assert sum(one is not None for one in told) == PROCESS_BURST


@laws
@given(st.lists(st.floats(0.0, 100.0), max_size=40), st.integers(1, 5), st.floats(0.5, 20.0))
def test_a_bucket_lets_through_at_most_the_burst_and_one_for_each_pause(
    pauses: list[float], burst: int, pause_s: float
) -> None:
    bucket, now, passed = Bucket(burst, pause_s), 0.0, 0
    for pause in pauses:
        now += pause
        if bucket.has_one(now):
            bucket.take()
            passed += 1
        assert passed <= burst + now / pause_s + 1e-6


# --- what holds ---


def holding(*statements: Statement) -> Mapping[Topic, Statement]:
    return {Topic(one.event.regarding, one.event.reason): one for one in statements}


OWN = events.node("n1")
OVER = Event("SyncRecovered", "Sync", OWN, "", is_warning=False)


def failing(note: str = "no") -> Statement:
    return Statement(Event("SyncFailing", "Sync", OWN, note), "failing", OVER)


def reasons(writes: list[Any]) -> list[str]:
    return [write.event.reason for write in writes]


def test_a_state_is_told_when_it_begins_and_when_it_is_over_and_not_between() -> None:
    book = EventBook()
    assert reasons(book.observe(holding(failing("a")), now=0.0, wall=WALL)) == ["SyncFailing"]
    assert book.observe(holding(failing("b")), now=30.0, wall=WALL) == []
    assert reasons(book.observe({}, now=60.0, wall=WALL)) == ["SyncRecovered"]
    assert book.observe({}, now=90.0, wall=WALL) == []


def test_a_changed_state_is_told_again() -> None:
    book = EventBook()
    for features, told in (({"a"}, 1), ({"a"}, 0), ({"a", "b"}, 1), (set(), 1)):
        statement = Statement(Event("Shortfall", "Sync", OWN, str(sorted(features))), frozenset(features))
        assert len(book.observe(holding(statement), now=0.0, wall=WALL)) == told
    assert book.observe({}, now=0.0, wall=WALL) == [], "that a shortfall is gone is not told"


def test_what_a_limit_held_back_is_told_as_it_is_then() -> None:
    book = EventBook()
    for n in range(OBJECT_BURST):
        telling(book, Event("R", "A", OWN, str(n)))
    assert book.observe(holding(failing("a")), now=1.0, wall=WALL) == []
    assert book.observe(holding(failing("b")), now=2.0, wall=WALL) == []
    (write,) = book.observe(holding(failing("c")), now=2.0 + OBJECT_PAUSE_S, wall=WALL)
    assert write.event.note == "c"
    assert book.observe({}, now=3.0 + OBJECT_PAUSE_S, wall=WALL) == []
    assert reasons(book.observe({}, now=3.0 + 2 * OBJECT_PAUSE_S, wall=WALL)) == ["SyncRecovered"]


def test_what_could_not_be_written_is_told_again_if_it_still_holds() -> None:
    book = EventBook()
    (write,) = book.observe(holding(failing()), now=0.0, wall=WALL)
    book.failed(write)
    (again,) = book.observe(holding(failing()), now=1.0, wall=WALL)
    assert isinstance(again, Create)
    assert again.name != write.name


# --- what the engine's state says ---


async def said(on: Stage, **state: Any) -> Mapping[str, Event]:
    """The Events of what holds now, by object and reason. `state`: parts of the state in the place of real ones."""
    async with on.engine.reading() as pipeline:
        found = events.statements(replace(on.engine.state, **state), config(), on.clock.now(), pipeline)
    return {f"{topic.regarding}: {topic.reason}": one.event for topic, one in found.items()}


@in_loop
async def test_failing_is_what_waits_for_a_sync_period_and_the_note_says_why() -> None:
    async with stage() as on:
        await on.synced(*START)
        on.dataplane.host.refuse |= set(on.dataplane.host.frontends)
        on.dataplane.host.frontends.clear()
        await on.pass_time(30)
        assert await said(on) == {}
        await on.pass_time(29)
        assert await said(on) == {}
        await on.pass_time(1)
        (event,) = (await said(on)).values()
        assert (event.reason, event.is_warning, str(event.regarding)) == ("SyncFailing", True, "Node n1")
        assert event.note == ("not as desired on the host: 10.96.0.10:80/tcp; frontend 10.96.0.10:80/tcp: refused")
        on.dataplane.host.away = True
        await on.pass_time(RETRY_S)
        assert (await said(on))["Node n1: SyncFailing"].note == "the host is unavailable: it does not answer"
        on.dataplane.before_sync = fail
        await on.pass_time(RETRY_S)
        assert (await said(on))["Node n1: SyncFailing"].note == "syncs fail: ZeroDivisionError: a bug"
        on.dataplane.before_sync = lambda: None
        on.dataplane.host.away = False
        on.dataplane.host.refuse.clear()
        await on.pass_time(30)
        assert await said(on) == {}


def fail() -> None:
    raise ZeroDivisionError("a bug")


def lacking(*names: str, feature: str = "source-ranges") -> SyncReport:
    owners = [ServicePortName("d", name, "", Protocol.TCP) for name in names]
    found = tuple(Shortfall(feature, None, owner, "sources are not looked at") for owner in owners)
    return SyncReport(HostState.HEALTHY, shortfalls=found)


@in_loop
async def test_shortfalls_are_told_once_of_the_node_and_of_services_by_the_first_node_alone() -> None:
    """L1 is on n1, R1 on n2; what has no endpoints is nobody's."""
    async with stage() as on:
        await on.synced(
            Upsert(NODE),
            *(Upsert(endpoint_slice(f"{name}-a", ends, service=name)) for name, ends in ENDPOINTS.items()),
            *LISTED,
        )
        found = await said(on, report=lacking(*ENDPOINTS, "nowhere"))
        assert found["Node n1: Shortfall"].note == (
            "this host cannot do in full: source-ranges: d/both, d/here, d/nowhere, d/there"
        )
        assert found.keys() == {"Node n1: Shortfall", "Service d/here: Shortfall", "Service d/both: Shortfall"}
        assert found["Service d/here: Shortfall"].note == (
            "nodes like n1 cannot do this in full: source-ranges: sources are not looked at"
        )
        many = await said(on, report=lacking(*(f"s{n}" for n in range(9))))
        assert many["Node n1: Shortfall"].note.endswith("d/s0, d/s1, d/s2, d/s3, d/s4 and 4 more")
        general = SyncReport(HostState.HEALTHY, shortfalls=(Shortfall("no-dsr", None, None, "no"),))
        assert (await said(on, report=general))["Node n1: Shortfall"].note == "this host cannot do in full: no-dsr"


ENDPOINTS = {"here": [L1], "there": [R1], "both": [R1, L1]}


@in_loop
async def test_conflicts_are_told_of_the_service_that_lost() -> None:
    rival = service("rival", cluster_ips=["10.96.0.10"], created=5.0)
    batch: tuple[Change, ...] = (Upsert(endpoint_slice("web-a", [R1, L1])), Upsert(rival))
    async with stage() as on:
        await on.synced(*START, *batch)
        (conflict,) = on.engine.state.conflicts
        found = await said(on)
        event = found["Service d/rival: FrontendConflict"]
        assert event.note == str(conflict)
        await on.synced(Upsert(endpoint_slice("rival-a", [R1], service="rival")))
        assert "Service d/rival: FrontendConflict" not in await said(on), "n2 is the first of the loser's nodes"


@in_loop
async def test_malformed_objects_are_told_with_field_and_remedy() -> None:
    fault = Fault("spec.clusterIP", "'x' is no address", "give an address")
    keys = [
        ObjectKey(Kind.SERVICE, "d", "web"),
        ObjectKey(Kind.SERVICE, "d", "elsewhere"),
        ObjectKey(Kind.ENDPOINT_SLICE, "d", "web-a"),
        ObjectKey(Kind.ENDPOINT_SLICE, "d", "never-seen"),
        ObjectKey(Kind.NODE, "", "n1"),
        ObjectKey(Kind.NODE, "", "n2"),
        ObjectKey(Kind.SERVICE_CIDR, "", "all"),
    ]
    async with stage() as on:
        await on.synced(*START, *(Malformed(key, (fault,)) for key in keys))
        found = await said(on)
        assert found.keys() == {
            f"{regarding}: MalformedObject" for regarding in ("Service d/web", "EndpointSlice d/web-a", "Node n1")
        }
        assert found["Service d/web: MalformedObject"].note == str(fault)
        await on.synced(Upsert(node("n1")), *START[1:3])
        assert await said(on) == {}


@in_loop
async def test_a_quiet_node_has_nothing_to_say() -> None:
    async with stage() as on:
        assert await said(on) == {}
        await on.synced(*START, Upsert(API))
        await on.pass_time(3600)
        assert await said(on) == {}
