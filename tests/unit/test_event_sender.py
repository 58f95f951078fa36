"""Events on their way to an API server over real sockets; time is the tests'. Evidence: operations.md 12 and 13."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.api_server import Access, ApiServer
from tests.engine_stage import FakeClock

from hansa.api.objects import ServiceKey
from hansa.event_sender import LONGEST_PAUSE_S, QUEUE, REFUSED_PAUSE_S, TRIES, EventSender
from hansa.events import PROCESS_BURST, Event, Statement, Topic, failed_listener, node, started
from hansa.sources.kubernetes.client import ClientSettings, KubernetesSource
from hansa.testing import config

pytestmark = pytest.mark.asyncio

WEB = failed_listener(ServiceKey("d", "web"), 30001, "taken")


@dataclass
class Post:
    """A sender, the server that it writes to, and the clock between."""

    server: ApiServer
    sender: EventSender
    clock: FakeClock
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def written(self) -> list[dict[str, Any]]:
        """What the server holds, once nothing waits."""
        await asyncio.wait_for(self.sender.written(), 10)
        return list(self.server.told.values())

    async def waiting(self) -> None:
        """Return once the sender pauses."""
        async with asyncio.timeout(10):
            while not self.clock._waiters:
                await asyncio.sleep(0.001)

    async def after_pauses(self) -> None:
        """Let pauses pass until nothing waits."""
        done = asyncio.create_task(self.sender.written())
        async with asyncio.timeout(20):
            while not done.done():
                if self.clock._waiters:
                    await self.clock.advance(LONGEST_PAUSE_S, lambda: asyncio.sleep(0))
                await asyncio.sleep(0.001)


@asynccontextmanager
async def post() -> AsyncIterator[Post]:
    outcomes: Counter[tuple[str, str]] = Counter()
    async with ApiServer() as server:
        source = KubernetesSource(server.connection(), config(), ClientSettings(connect_timeout_s=5))
        clock = FakeClock()

        def count(reason: str, outcome: str) -> None:
            outcomes[reason, outcome] += 1

        sender = EventSender(
            source.event_client, clock, host_name="n1", uid_of=lambda one: f"uid of {one.name}", count=count
        )
        task = asyncio.create_task(sender.run())
        try:
            yield Post(server, sender, clock, outcomes)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_an_event_arrives_and_the_next_of_its_kind_continues_it() -> None:
    async with post() as at:
        at.sender.tell(started("n1"))
        at.sender.tell(WEB)
        at.sender.tell(WEB)
        start, web = await at.written()
        assert (start["reason"], start["metadata"]["namespace"], start["note"]) == ("Starting", "default", "")
        assert (web["reason"], web["regarding"]["uid"]) == ("FailedToStartServiceHealthcheck", "uid of web")
        assert web["series"]["count"] == 2
        assert at.outcomes == {("Starting", "sent"): 1, ("FailedToStartServiceHealthcheck", "sent"): 2}


async def test_a_server_that_is_away_is_tried_again_and_nobody_waits_for_it() -> None:
    async with post() as at:
        await at.server.stop()
        at.sender.tell(WEB)
        await at.waiting()
        await at.server.start()
        await at.after_pauses()
        assert [one["reason"] for one in await at.written()] == [WEB.reason]


async def test_after_some_tries_it_is_given_up_and_counted() -> None:
    async with post() as at:
        at.server.fail(*[500] * TRIES)
        at.sender.tell(WEB)
        await at.after_pauses()
        assert await at.written() == []
        assert at.outcomes == {(WEB.reason, "failed"): 1}


async def test_the_server_says_when_to_come_again() -> None:
    async with post() as at:
        at.server.fail(429, retry_after_s=17)
        at.sender.tell(WEB)
        await at.waiting()
        assert at.clock.is_awaited(at.clock.now() + 17)
        await at.after_pauses()
        assert len(await at.written()) == 1


async def test_without_permission_one_line_and_silence_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hansa.events")
    async with post() as at:
        at.server.mood.permitted = frozenset()
        for _ in range(3):
            at.sender.tell(WEB)
            await at.written()
        assert len(at.server.forbidden) == 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert at.outcomes == {(WEB.reason, "refused"): 3}
        at.server.mood.permitted = frozenset({Access("create", "events.k8s.io", "events")})
        await at.clock.advance(REFUSED_PAUSE_S, lambda: asyncio.sleep(0))
        at.sender.tell(WEB)
        assert len(await at.written()) == 1


async def test_what_still_holds_is_told_once_it_may_be() -> None:
    async with post() as at:
        at.server.mood.permitted = frozenset()
        statement = Statement(Event("SyncFailing", "Sync", node("n1"), "no"), "failing")
        holding = {Topic(node("n1"), "SyncFailing"): statement}
        at.sender.observe(holding)
        assert await at.written() == []
        at.server.mood.permitted = None
        await at.clock.advance(REFUSED_PAUSE_S, lambda: asyncio.sleep(0))
        at.sender.observe(holding)
        assert len(await at.written()) == 1
        at.sender.observe(holding)
        assert len(await at.written()) == 1


async def test_a_namespace_that_is_being_deleted_silences_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with post() as at:
        at.server.mood.terminating.add("d")
        at.sender.tell(WEB)
        at.sender.tell(started("n1"))
        assert [one["reason"] for one in await at.written()] == ["Starting"]
        assert caplog.records == []


async def test_a_series_whose_event_has_grown_old_begins_again() -> None:
    async with post() as at:
        at.sender.tell(WEB)
        await at.written()
        at.server.told.clear()
        at.sender.tell(WEB)
        assert [one.get("series") for one in await at.written()] == [None]
        assert at.outcomes == {(WEB.reason, "sent"): 2}


async def test_what_a_limit_holds_back_is_counted_and_the_queue_stays_small() -> None:
    async with post() as at:
        gate = at.server.hold(lambda asked: asked.kind == "Event")
        for number in range(1000):
            at.sender.tell(failed_listener(ServiceKey("d", f"s{number}"), 30001, "taken"))
        gate.set()
        assert len(await at.written()) == PROCESS_BURST < QUEUE
        assert at.outcomes == {(WEB.reason, "sent"): PROCESS_BURST, (WEB.reason, "limited"): 1000 - PROCESS_BURST}
