"""The list and watch machine: its state table row by row, and convergence whatever happens in between.

Evidence: service-semantics section 1; operations.md section 8; Kubernetes API concepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import Kind, ObjectKey
from hansa.sources.kubernetes.lines import LineSplitter
from hansa.sources.kubernetes.watch import INITIAL_EVENTS_END, State, Watch, WatchSettings
from hansa.sources.selection import selection
from hansa.testing import config, manifest_service, service

laws = settings(max_examples=50, deadline=None, derandomize=True)

NEVER = 1.0 - 1e-12  # the largest jitter
LISTS = WatchSettings(watch_list=False)


def make(settings: WatchSettings = LISTS, kind: Kind = Kind.SERVICE, **fields: Any) -> Watch:
    return Watch(selection(kind, config()), settings, **fields)


def item(name: str, version: int, **fields: Any) -> dict[str, Any]:
    found = manifest_service(name, **fields)
    found["metadata"]["resourceVersion"] = str(version)
    return found


def key(name: str) -> ObjectKey:
    return ObjectKey(Kind.SERVICE, "d", name)


def page(*items: dict[str, Any], version: int = 10, more: str = "") -> bytes:
    metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
    return json.dumps({"kind": "ServiceList", "metadata": metadata, "items": list(items)}).encode()


def event(kind: str, found: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode()


def bookmark(version: int, *, is_end: bool = False) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if is_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    return event("BOOKMARK", {"kind": "Service", "apiVersion": "v1", "metadata": metadata})


def status(code: int, message: str = "no", **details: Any) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "details": details}


def query(watch: Watch, now: float = 0.0, jitter: float = 0.5) -> dict[str, str]:
    return dict(watch.next_request(now, jitter).query)


def followed(*items: dict[str, Any], version: int = 10, settings: WatchSettings = LISTS) -> Watch:
    """A machine that has listed `items` and opened its watch."""
    watch = make(settings)
    watch.next_request(0.0, 0.5)
    watch.receive_status(200)
    if settings.watch_list:
        for one in items:
            watch.receive_line(event("ADDED", one))
        watch.receive_line(bookmark(version, is_end=True))
    else:
        watch.receive_page(page(*items, version=version))
    assert watch.closed(0.0, 0.5) == 0.0 or settings.watch_list
    watch.next_request(1.0, 0.5)
    watch.receive_status(200)
    return watch


# Requests


@pytest.mark.parametrize(
    ("kind", "proxy_name", "path", "labels", "fields"),
    [
        (
            Kind.SERVICE,
            None,
            "/api/v1/services",
            "!service.kubernetes.io/service-proxy-name",
            "spec.clusterIP!=None",
        ),
        (
            Kind.SERVICE,
            "hansa",
            "/api/v1/services",
            "service.kubernetes.io/service-proxy-name=hansa",
            "spec.clusterIP!=None",
        ),
        (
            Kind.ENDPOINT_SLICE,
            None,
            "/apis/discovery.k8s.io/v1/endpointslices",
            "!service.kubernetes.io/headless",
            None,
        ),
        (Kind.NODE, None, "/api/v1/nodes", None, "metadata.name=n1"),
        (Kind.SERVICE_CIDR, None, "/apis/networking.k8s.io/v1/servicecidrs", None, None),
    ],
)
def test_selectors(kind: Kind, proxy_name: str | None, path: str, labels: str | None, fields: str | None) -> None:
    """Service-semantics section 1, S4, S5."""
    watch = Watch(selection(kind, config(proxy_name=proxy_name)))
    request = watch.next_request(0.0, 0.5)
    asked = dict(request.query)
    assert (request.path, asked.get("labelSelector"), asked.get("fieldSelector")) == (path, labels, fields)


def test_first_request_is_a_watch_list() -> None:
    request = make(WatchSettings()).next_request(0.0, 0.5)
    asked = dict(request.query)
    assert request.is_stream
    assert asked["watch"] == asked["sendInitialEvents"] == asked["allowWatchBookmarks"] == "true"
    assert asked["resourceVersionMatch"] == "NotOlderThan"
    assert "resourceVersion" not in asked
    assert "limit" not in asked


@pytest.mark.parametrize(("jitter", "timeout_s"), [(0.0, "300"), (0.5, "450"), (NEVER, "600")])
def test_watches_end_after_a_random_time(jitter: float, timeout_s: str) -> None:
    assert query(make(WatchSettings()), jitter=jitter)["timeoutSeconds"] == timeout_s
    assert query(followed(), jitter=jitter)["timeoutSeconds"] == timeout_s


def test_lists_come_in_pages_of_500_without_a_version() -> None:
    """Without a version a list is never older than one seen before."""
    request = make().next_request(0.0, 0.5)
    assert not request.is_stream
    assert dict(request.query).keys() == {"labelSelector", "fieldSelector", "limit"}
    assert dict(request.query)["limit"] == "500"
    assert str(request).startswith("GET /api/v1/services?labelSelector=")


def test_a_watch_starts_where_the_list_ended() -> None:
    asked = query(followed(version=77))
    assert asked["resourceVersion"] == "77"
    assert "sendInitialEvents" not in asked


# Rows of the state table


def test_pages_are_joined() -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    assert watch.receive_page(page(item("a", 1), version=10, more="token")) == (Upsert(service("a")),)
    assert not watch.is_synced
    assert watch.closed(0.1, 0.5) == 0.0
    assert query(watch)["continue"] == "token"
    assert watch.receive_page(page(item("b", 2), version=10)) == (Upsert(service("b")), Synced(Kind.SERVICE))
    assert (watch.state, watch.version) == (State.FOLLOW, "10")


@pytest.mark.parametrize("items", ["null", "[]"])
def test_an_empty_list_is_synced_too(items: str) -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    body = b'{"metadata":{"resourceVersion":"10"},"items":%s}' % items.encode()
    assert watch.receive_page(body) == (Synced(Kind.SERVICE),)


@pytest.mark.parametrize("code", [400, 410])
def test_an_expired_continue_token_restarts_in_one_page(code: int) -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    watch.receive_page(page(item("a", 1), item("b", 2), more="token"))
    watch.closed(0.1, 0.5)
    watch.next_request(0.1, 0.5)
    assert watch.receive_status(code) == ()
    assert watch.closed(0.2, 0.5) == 0.0
    assert query(watch, 0.3).keys() == {"labelSelector", "fieldSelector"}
    assert watch.receive_page(page(item("b", 2), item("c", 3))) == (
        Upsert(service("c")),
        Delete(key("a")),
        Synced(Kind.SERVICE),
    )
    watch.next_request(1, 0.5)
    watch.receive_status(410)
    assert query(watch)["limit"] == "500", "the next list is tried in pages again"


def test_a_broken_connection_resumes_the_pages() -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    watch.receive_page(page(item("a", 1), more="token"))
    watch.closed(0.1, 0.5)
    watch.next_request(0.1, 0.5)
    assert watch.closed(0.2, 0.5, fault="reset") > 0
    assert query(watch)["continue"] == "token"


def test_streamed_first_state() -> None:
    watch = make(WatchSettings())
    watch.next_request(0.0, 0.5)
    watch.receive_status(200)
    assert watch.receive_line(event("ADDED", item("a", 9))) == (Upsert(service("a")),)
    assert watch.receive_line(event("ADDED", item("b", 5))) == (Upsert(service("b")),)
    assert watch.receive_line(bookmark(9)) == (), "only the annotation ends the first state"
    assert watch.version == ""
    assert watch.receive_line(bookmark(10, is_end=True)) == (Synced(Kind.SERVICE),)
    assert (watch.state, watch.version) == (State.FOLLOW, "10")
    assert watch.receive_line(event("MODIFIED", item("a", 11, node_port=30000))) == (
        Upsert(service("a", node_port=30000)),
    )


@pytest.mark.parametrize("code", [400, 403, 404, 405, 406, 415, 422, 501])
def test_refused_streams_become_lists_for_good(code: int) -> None:
    watch = make(WatchSettings())
    watch.next_request(0.0, 0.5)
    assert watch.receive_status(code, body=json.dumps(status(code)).encode()) == ()
    assert watch.closed(0.1, 0.5) == 0.0
    assert "limit" in query(watch)
    watch.receive_page(page())
    watch.closed(0.2, 0.5)
    watch.next_request(0.2, 0.5)
    watch.receive_status(410)
    assert watch.state is State.LIST


@pytest.mark.parametrize("code", [401, 408, 429, 500, 502, 503, 504])
def test_trouble_is_no_refusal_to_stream(code: int) -> None:
    watch = make(WatchSettings())
    for attempt in range(4):
        watch.next_request(attempt, 0.5)
        watch.receive_status(code)
        assert watch.closed(attempt, 0.5) > 0
    assert watch.state is State.STREAM


def test_streams_that_never_complete_become_lists() -> None:
    """An old server ignores `sendInitialEvents` and never says that the first state is complete."""
    watch = make(WatchSettings())
    for attempt in range(2):
        assert "sendInitialEvents" in query(watch, attempt)
        watch.receive_status(200)
        watch.receive_line(event("ADDED", item("a", 1)))
        watch.closed(attempt + 0.5, 0.5)
    assert "limit" in query(watch)


def test_a_server_that_is_away_is_no_reason_to_give_up_streams() -> None:
    watch = make(WatchSettings())
    for attempt in range(5):
        watch.next_request(attempt, 0.5)
        watch.closed(attempt, 0.5, fault="connection refused")
    assert watch.state is State.STREAM


def test_events() -> None:
    watch = followed(item("a", 1))
    assert watch.receive_line(event("ADDED", item("b", 11))) == (Upsert(service("b")),)
    assert watch.version == "11"
    changed = item("b", 12, external_ips=["203.0.113.7"])
    assert watch.receive_line(event("MODIFIED", changed)) == (Upsert(service("b", external_ips=["203.0.113.7"])),)
    last_state = item("b", 13, external_ips=["203.0.113.7"])
    assert watch.receive_line(event("DELETED", last_state)) == (Delete(key("b")),)
    assert watch.version == "13"
    assert watch.receive_line(event("DELETED", last_state)) == (), "it is gone already"


def test_bookmarks_carry_only_a_version() -> None:
    watch = followed()
    assert watch.receive_line(bookmark(99)) == ()
    assert watch.closed(10.0, 0.5) == 0.0
    assert query(watch)["resourceVersion"] == "99"


@pytest.mark.parametrize("settings", [LISTS, WatchSettings()])
@pytest.mark.parametrize("how", ["status", "event"])
def test_gone_leads_to_a_list_of_differences(settings: WatchSettings, how: str) -> None:
    watch = followed(item("a", 1), item("b", 2), item("c", 3), settings=settings)
    if how == "status":
        assert watch.receive_status(410, body=json.dumps(status(410)).encode()) == ()
    else:
        assert watch.receive_line(event("ERROR", status(410, "too old resource version"))) == ()
        assert watch.is_over
    assert watch.closed(2.0, 0.5) == 0.0, "the server is well, so the list need not wait"
    assert watch.problem == ""
    asked = query(watch, 2.0)
    news = [item("a", 1), item("b", 20, node_port=30000), item("d", 21)]
    expected: list[Change] = [Upsert(service("b", node_port=30000)), Upsert(service("d")), Delete(key("c"))]
    watch.receive_status(200)
    if settings.watch_list:
        assert "sendInitialEvents" in asked
        found = [change for one in news for change in watch.receive_line(event("ADDED", one))]
        found += watch.receive_line(bookmark(30, is_end=True))
    else:
        assert "limit" in asked
        found = list(watch.receive_page(page(*news, version=30)))
    assert found == expected, "Synced is said once"
    assert watch.version == "30"


@pytest.mark.parametrize("code", [400, 404, 422])
def test_a_version_that_another_server_does_not_know_is_listed_anew(code: int) -> None:
    watch = followed()
    watch.receive_status(code)
    assert watch.state is State.LIST


def test_a_kind_that_the_server_lacks() -> None:
    """ServiceCIDR is missing before Kubernetes 1.33; nothing may wait for it (I2)."""
    watch = make(WatchSettings(), Kind.SERVICE_CIDR, may_be_missing=True)
    watch.next_request(0.0, 0.5)
    assert watch.receive_status(404) == (Synced(Kind.SERVICE_CIDR),)
    assert (watch.state, watch.problem) == (State.ABSENT, "")
    assert 450 <= watch.closed(0.1, 0.5) <= 750
    watch.next_request(600.0, 0.5)
    assert watch.closed(600.0, 0.5, fault="connection refused") < 1
    watch.next_request(601.0, 0.5)
    assert watch.receive_status(404) == (), "said once"
    watch.next_request(1200.0, 0.5)
    assert watch.receive_page(page(version=5)) == ()
    assert watch.state is State.FOLLOW


def test_another_kind_must_not_be_missing() -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    assert watch.receive_status(404) == ()
    assert watch.problem == "refused with 404"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (401, "refused with 401, the server does not accept these credentials, no"),
        (
            403,
            "refused with 403, this account may not list and watch it; ClusterRole system:node-proxier allows that, no",
        ),
        (500, "refused with 500, no"),
    ],
)
def test_refusals_say_who_must_act(code: int, expected: str) -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    watch.receive_status(code, body=json.dumps(status(code)).encode())
    assert watch.problem == expected
    watch.next_request(1.0, 0.5)
    watch.receive_status(200)
    assert watch.problem == ""


def test_malformed_objects_are_named_and_the_rest_goes_on() -> None:
    broken = item("broken", 11)
    broken["spec"]["ports"][0]["port"] = "http"
    watch = make()
    watch.next_request(0.0, 0.5)
    first, second, third = watch.receive_page(page(broken, item("a", 2)))
    assert isinstance(first, Malformed)
    assert (first.key, first.faults[0].field) == (key("broken"), "spec.ports[0].port")
    assert (second, third) == (Upsert(service("a")), Synced(Kind.SERVICE))
    watch.closed(0.0, 0.5)
    watch.next_request(1.0, 0.5)
    (again,) = watch.receive_line(
        event("MODIFIED", {**broken, "metadata": {**broken["metadata"], "resourceVersion": "12"}})
    )
    assert again == first
    assert watch.receive_line(event("DELETED", broken)) == (Delete(key("broken")),)


def test_an_object_without_a_name_is_reported_but_never_deleted() -> None:
    nameless = item("x", 11)
    del nameless["metadata"]["name"]
    watch = followed()
    (found,) = watch.receive_line(event("ADDED", nameless))
    assert isinstance(found, Malformed)
    watch.receive_line(event("ERROR", status(410)))
    watch.next_request(2.0, 0.5)
    assert watch.receive_page(page(version=12)) == ()


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"type":"ADDED"}', b'{"object":{}}', b"\xff\xfe", b'{"type":1,"object":{}}']
)
def test_nonsense_ends_the_response_and_nothing_else(line: bytes) -> None:
    watch = followed(item("a", 1))
    assert watch.receive_line(line) == ()
    assert watch.is_over
    assert watch.receive_line(event("ADDED", item("b", 12))) == (), "event 11 may have been in the nonsense"
    assert watch.closed(1.0, 0.5) > 0
    assert query(watch)["resourceVersion"] == "10"


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"metadata":{},"items":{}}', b"\xff"])
def test_a_page_that_is_no_list_is_asked_for_again(body: bytes) -> None:
    watch = make()
    watch.next_request(0.0, 0.5)
    assert watch.receive_page(body) == ()
    assert "not a list" in watch.problem
    assert watch.closed(0.1, 0.5) > 0
    assert watch.state is State.LIST


def test_unknown_event_types_are_passed_over() -> None:
    watch = followed()
    assert watch.receive_line(event("NOVEL", {})) == ()
    assert not watch.is_over


def test_a_server_that_went_back_in_time_is_read_anew() -> None:
    """Restored from a backup, version 3 may stand for another object than before."""
    watch = followed(item("a", 3), version=10)
    assert watch.receive_line(bookmark(4)) == ()
    assert watch.is_over
    watch.closed(1.0, 0.5)
    watch.next_request(1.0, 0.5)
    other = item("a", 3, node_port=30000)
    assert watch.receive_page(page(other, version=5)) == (Upsert(service("a", node_port=30000)),)
    assert watch.version == "5"


def test_an_older_list_is_taken_as_news() -> None:
    watch = followed(item("a", 3), version=10)
    watch.receive_status(410)
    watch.next_request(1.0, 0.5)
    assert watch.receive_page(page(item("a", 3), version=5)) == (Upsert(service("a")),)


# Patience


def test_back_off_doubles_from_0_8_to_30_seconds_with_jitter() -> None:
    """operations.md section 8."""
    for jitter, expected in (
        (0.0, [0.8, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15]),
        (NEVER, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]),
    ):
        watch, delays = make(), []
        for attempt in range(8):
            watch.next_request(attempt * 100.0, 0.5)
            delays.append(watch.closed(attempt * 100.0, jitter, fault="connection refused"))
        assert delays == pytest.approx(expected)


def test_back_off_has_no_end() -> None:
    watch = make()
    for attempt in range(5000):
        watch.next_request(attempt, 0.5)
        assert watch.closed(attempt, 0.5, fault="connection refused") <= 30


def test_an_event_or_a_long_life_clears_the_failures() -> None:
    for lines, lasted_s in (([bookmark(11)], 0.5), ([], 200.0)):
        watch = followed()
        for attempt in range(6):
            watch.closed(attempt, 0.5, fault="reset")
            watch.next_request(attempt, 0.5)
            watch.receive_status(200)
        for line in lines:
            watch.receive_line(line)
        assert watch.closed(5 + lasted_s, NEVER, fault="reset") == pytest.approx(0.8)


def test_a_server_that_ends_every_watch_at_once_is_not_hammered() -> None:
    watch = followed()
    delays = []
    for attempt in range(4):
        delays.append(watch.closed(1 + attempt, NEVER))
        watch.next_request(1 + attempt, 0.5)
        watch.receive_status(200)
    assert delays == pytest.approx([0.8, 1.6, 3.2, 6.4])


def test_a_server_that_answers_every_watch_with_gone_is_not_hammered() -> None:
    watch, delays = followed(), []
    for attempt in range(5):
        now = 1.0 + attempt
        watch.receive_line(event("ERROR", status(410)))
        delays.append(watch.closed(now, NEVER))
        watch.next_request(now, 0.5)
        watch.receive_status(200)
        watch.receive_page(page(version=10 + attempt))
        assert watch.closed(now, NEVER) == 0.0
        watch.next_request(now, 0.5)
        watch.receive_status(200)
    assert delays == pytest.approx([0.0, 1.6, 3.2, 6.4, 12.8])


@pytest.mark.parametrize("how", ["header", "event"])
def test_the_server_may_ask_for_more_patience(how: str) -> None:
    watch = followed()
    if how == "header":
        watch.receive_status(429, retry_after_s=7)
    else:
        watch.receive_line(event("ERROR", status(429, retryAfterSeconds=7)))
    assert watch.closed(1.0, 0.5) == 7


# Convergence


class Model:
    """An API server as values: what it holds, what it remembers, and the answer being read."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, bytes]] = []
        self.oldest = 0
        self.pages: dict[str, list[dict[str, Any]]] = {}
        self.streams = True

    def put(self, name: str) -> None:
        """Write an object that looks like no other before it."""
        self.version += 1
        node_port = 30000 + self.version
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.objects[name] = item(name, self.version, node_port=node_port)
        self.history.append((self.version, event(kind, self.objects[name])))

    def delete(self, name: str) -> None:
        if name in self.objects:
            self.version += 1
            last = self.objects.pop(name)
            last = {**last, "metadata": {**last["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, event("DELETED", last)))

    def compact(self) -> None:
        self.history.clear()
        self.pages.clear()
        self.oldest = self.version

    def page(self, asked: dict[str, str]) -> bytes | None:
        """One page; None if the continue token is too old."""
        token = asked.get("continue", "")
        if token and token not in self.pages:
            return None
        items = self.pages[token] if token else [found for _, found in sorted(self.objects.items())]
        version = int(token.split(":")[0]) if token else self.version
        limit = int(asked.get("limit", 1000))
        more = f"{version}:{len(self.pages)}" if len(items) > limit else ""
        if more:
            self.pages[more] = items[limit:]
        return page(*items[:limit], version=version, more=more)

    def first_state(self) -> list[bytes]:
        lines = [event("ADDED", found) for found in self.objects.values()]
        return [*lines, bookmark(self.version, is_end=True)]

    def since(self, version: int) -> list[bytes]:
        return [line for at, line in self.history if at > version]


ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcdef"), st.just(0)),
    st.tuples(st.just("delete"), st.sampled_from("abcdef"), st.just(0)),
    st.tuples(st.sampled_from(("compact", "bookmark", "restart", "refuse streams")), st.just(""), st.just(0)),
    st.tuples(st.just("answer"), st.sampled_from(("", "", "", "500", "503", "401", "lost", "cut")), st.integers(0, 8)),
)


class Driver:
    """Plays the client: reads as much of each answer as it is told, and checks each change against what is known."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.model = Model()
        self.held: dict[ObjectKey, Any] = {}
        self.synced = 0
        self.now = 0.0

    def take(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case Upsert(found):
                    assert self.held.get(change.key) != found, "only differences are said"
                    self.held[change.key] = found
                case Delete(gone):
                    del self.held[gone]
                case Synced():
                    self.synced += 1
                case Malformed():
                    raise AssertionError(change)

    def answer(self, trouble: str, line_count: int) -> None:
        """One request; of a stream `line_count` lines arrive before it ends."""
        watch, model = self.watch, self.model
        request = watch.next_request(self.now, 0.5)
        asked = dict(request.query)
        fault = ""
        if trouble == "lost":
            fault = "connection refused"
        elif trouble.isdecimal():
            self.take(watch.receive_status(int(trouble)))
        elif not request.is_stream:
            body = model.page(asked)
            self.take(watch.receive_status(410) if body is None else watch.receive_page(body))
        else:
            fault = self.stream(asked, trouble, line_count)
        self.now += 1 + watch.closed(self.now + 1, 0.5, fault=fault)

    def stream(self, asked: dict[str, str], trouble: str, line_count: int) -> str:
        watch, model = self.watch, self.model
        if "sendInitialEvents" in asked:
            if not model.streams:
                self.take(watch.receive_status(422))
                return ""
            lines = model.first_state()
        elif int(asked["resourceVersion"]) < model.oldest:
            lines = [event("ERROR", status(410))]
        else:
            lines = [*model.since(int(asked["resourceVersion"])), bookmark(model.version)]
        self.take(watch.receive_status(200))
        for line in lines[: line_count or len(lines)]:
            self.take(watch.receive_line(line))
            if watch.is_over:
                return ""
        return "reset" if trouble == "cut" else ""


@laws
@given(
    st.lists(ACTIONS, max_size=40),
    st.booleans(),
    st.integers(1, 4),
)
def test_any_interleaving_converges_to_the_servers_state(
    actions: list[tuple[str, str, int]], streams: bool, page_limit: int
) -> None:
    driver = Driver(make(WatchSettings(watch_list=streams, page_limit=page_limit)))
    model = driver.model
    for action, argument, number in actions:
        match action:
            case "put":
                model.put(argument)
            case "delete":
                model.delete(argument)
            case "compact":
                model.compact()
            case "refuse streams":
                model.streams = False
            case "restart":
                model.pages.clear()
            case "answer":
                driver.answer(argument, number)
    for _ in range(20):
        driver.answer("", 0)
    assert {one.name: held.ports[0].node_port for one, held in driver.held.items()} == {
        name: found["spec"]["ports"][0]["nodePort"] for name, found in model.objects.items()
    }
    assert driver.synced == 1
    assert driver.watch.problem == ""
    assert driver.watch.version == str(model.version)


# Lines


@laws
@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b" "))), st.data())
def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"half a line"
    splitter, found = LineSplitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == [line for line in lines if line.strip()]
    assert splitter.feed(b"\n") == [b"half a line"]


@laws
@given(st.integers(1, 50))
def test_a_watch_reads_a_stream_cut_anywhere(size: int) -> None:
    stream = b"".join(event("ADDED", item(name, 11 + at)) + b"\n" for at, name in enumerate("abc"))
    watch, splitter = followed(), LineSplitter()
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    found = [change for chunk in chunks for line in splitter.feed(chunk) for change in watch.receive_line(line)]
    assert found == [Upsert(service(name)) for name in "abc"]
