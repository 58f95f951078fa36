"""What requests to the API server cost, as told to `on_call`; the client's own limit; Events over real sockets.

Evidence: operations.md 8, 11 and 12.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.api_server import ApiServer, Mood

from hansa.errors import SourceError
from hansa.sources import gather
from hansa.sources.kubernetes.calls import ApiCall, RateLimit
from hansa.sources.kubernetes.client import ClientSettings, KubernetesSource
from hansa.sources.kubernetes.kubeconfig import Token
from hansa.sources.kubernetes.watch import WatchSettings
from hansa.testing import NODE, WEB, config

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def server(**moods: Any) -> AsyncIterator[ApiServer]:
    async with ApiServer(mood=Mood(**moods)) as made:
        made.put(NODE, WEB)
        yield made


def counted(source: KubernetesSource) -> list[ApiCall]:
    calls: list[ApiCall] = []
    source.on_call = calls.append
    return calls


async def read(source: KubernetesSource) -> None:
    async with aclosing(source.changes()):
        await asyncio.wait_for(gather(source), 10)


async def test_a_watch_counts_once_when_it_is_answered_and_has_no_duration() -> None:
    async with server() as api:
        source = KubernetesSource(api.connection(), config())
        calls = counted(source)
        await read(source)
        host = urlsplit(api.url).netloc
        assert calls == [ApiCall("GET", host, "200")] * 4


async def test_lists_have_duration_and_size_and_a_request_made_again_says_why() -> None:
    async with server(refuse_watch_list=400) as api:
        api.fail(503)
        source = KubernetesSource(api.connection(), config())
        calls = counted(source)
        await read(source)
        lists = [call for call in calls if call.duration_s is not None and call.code == "200"]
        assert len(lists) == 4
        assert all(call.duration_s > 0 and call.response_bytes > 50 for call in lists if call.duration_s)
        assert [call.retried_code for call in calls if call.retried_code == "503"] == ["503"]
        assert {call.code for call in calls} == {"503", "400", "200"}


async def test_no_answer_is_an_error() -> None:
    async with server() as api:
        source = KubernetesSource(api.connection(), config())
    calls = counted(source)
    async with source.event_client() as client:
        with pytest.raises(SourceError, match="cannot connect"):
            await client.create("default", {})
    assert [(call.method, call.code, call.request_bytes) for call in calls] == [("POST", "<error>", 2)]


async def test_a_limit_holds_requests_back_and_says_for_how_long() -> None:
    async with server() as api:
        source = KubernetesSource(api.connection(), config(), ClientSettings(qps=20.0, burst=2))
        calls = counted(source)
        await read(source)
        waited = sorted(call.waited_s for call in calls if call.waited_s is not None)
        assert len(waited) == 4
        assert waited[:2] == [0.0, 0.0]
        assert 0.01 < waited[2] < waited[3] <= 0.1


async def test_the_limit_in_numbers() -> None:
    limit = RateLimit(qps=5, burst=10)
    assert [limit.reserve(0.0) for _ in range(12)] == [0.0] * 10 + [pytest.approx(0.2), pytest.approx(0.4)]
    assert limit.reserve(0.4) == pytest.approx(0.2)
    assert limit.reserve(100.0) == 0.0


EVENT = {
    "metadata": {"name": "n1.17", "namespace": "default"},
    "eventTime": "2026-01-02T03:04:05.678901Z",
    "reportingController": "kube-proxy",
    "reportingInstance": "kube-proxy-n1",
    "action": "StartKubeProxy",
    "reason": "Starting",
    "regarding": {"kind": "Node", "apiVersion": "v1", "name": "n1"},
    "note": "",
    "type": "Normal",
}


async def test_events_are_written_with_credentials_and_refusals_are_told() -> None:
    async with server() as api:
        api.require_token("good")
        source = KubernetesSource(api.connection(credentials=Token("good")), config())
        calls = counted(source)
        async with source.event_client() as client:
            assert (await client.create("default", EVENT)).code == 201
            again = await client.create("default", EVENT)
            assert (again.code, again.reason) == (409, "AlreadyExists")
            wrong = await client.create("default", {**EVENT, "action": ""})
            assert (wrong.code, "action" in wrong.message) == (422, True)
            series = {"count": 2, "lastObservedTime": "2026-01-02T03:05:05.000000Z"}
            assert (await client.patch("default", "n1.17", {"series": series})).code == 200
            assert (await client.patch("default", "gone", {"series": series})).code == 404
            api.mood.permitted = frozenset()
            assert (await client.create("default", EVENT)).code == 403
            api.mood.permitted = None
            api.mood.terminating.add("default")
            assert (await client.create("default", EVENT)).causes == ("NamespaceTerminating",)
            api.require_token("other")
            api.mood.terminating.clear()
            api.fail(429, retry_after_s=3)
            assert (await client.create("default", EVENT)).retry_after_s == 3
            assert (await client.create("default", EVENT)).code == 401
        assert api.told == {("default", "n1.17"): {**EVENT, "series": series}}
        assert [call.method for call in calls].count("PATCH") == 2
        assert all(call.duration_s and call.request_bytes for call in calls)


async def test_a_server_that_is_away_is_told_once_and_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    """A single failure, as of a server that is restarted behind a balancer, is no line that anybody has to read."""
    caplog.set_level(logging.INFO, "hansa")
    quick = ClientSettings(watch=WatchSettings(first_delay_s=0.01, longest_delay_s=0.02))
    async with server() as api:
        api.fail(503)
        source = KubernetesSource(api.connection(), config(), quick)
        reading = asyncio.create_task(read_for_ever(source))
        try:
            await until(lambda: source.status.startswith("connected"))
            assert caplog.records == []
            await api.stop()
            await until(lambda: len(caplog.records) == 4)
            await asyncio.sleep(0.2)
            assert sorted(record.getMessage().partition(" err")[0] for record in caplog.records) == [
                f"API server cannot be read, what it said before stays in force resource={kind}"
                for kind in ("EndpointSlice", "Node", "Service", "ServiceCIDR")
            ]
            assert all(record.levelname == "WARNING" for record in caplog.records)
            caplog.clear()
            await api.start()
            await until(lambda: len(caplog.records) == 4)
            assert {record.getMessage().split(" resource")[0] for record in caplog.records} == {
                "API server is read again"
            }
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def read_for_ever(source: KubernetesSource) -> None:
    async with aclosing(source.changes()) as batches:
        async for _ in batches:
            pass


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.005)
