"""An engine at work over a DictionaryDataplane, a source that says what it is told, and time that the tests move."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.dictionary_dataplane import DictionaryDataplane

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import Kind
from hansa.engine import Engine, SyncRecord
from hansa.schedule import RunKind
from hansa.testing import L1, NODE, NODE_ADDRESSES, config, endpoint_slice, service

LISTED = (Synced(Kind.SERVICE), Synced(Kind.ENDPOINT_SLICE))
WEB = service("web")
API = service("api", cluster_ips=["10.96.0.11"])
START = (Upsert(NODE), Upsert(WEB), Upsert(endpoint_slice("web-a", [L1])), *LISTED)
WALL = 1_000_000.0


class FakeClock:
    """Time that stands still until a test moves it. Waiters wake in the order of their times."""

    def __init__(self) -> None:
        self._now = 100.0
        self._waiters: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return WALL + self._now

    def is_awaited(self, moment: float) -> bool:
        """Whether somebody waits for exactly this time."""
        return any(until == moment for until, _ in self._waiters)

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        if event.is_set() or (until is not None and until <= self._now):
            return
        alarm = asyncio.Event()
        entry = (float("inf") if until is None else until, alarm)
        self._waiters.append(entry)
        tasks = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(alarm.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.remove(entry)
            for task in tasks:
                task.cancel()

    async def advance(self, seconds: float, settled: Callable[[], Awaitable[None]]) -> None:
        """Let time pass, stopping at every moment that somebody waits for until what happens then has happened."""
        end = self._now + seconds
        while True:
            upcoming = [until for until, _ in self._waiters if until <= end]
            self._now = max(self._now, min(upcoming, default=end))
            for until, alarm in list(self._waiters):
                if until <= self._now:
                    alarm.set()
            for _ in range(10):  # the waiters take notice before `settled` is asked
                await asyncio.sleep(0)
            await settled()
            if not upcoming:
                return


class ListedSource:
    """A source that says what a test tells it to; `say` returns once the engine has taken it in."""

    def __init__(self) -> None:
        self._batches: asyncio.Queue[tuple[Change, ...] | Exception] = asyncio.Queue()
        self.starts = 0

    @property
    def status(self) -> str:
        return f"started {self.starts} times"

    @property
    def troubled(self) -> bool:
        return False

    async def changes(self) -> AsyncIterator[tuple[Change, ...]]:
        self.starts += 1
        while True:
            batch = await self._batches.get()
            try:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
            finally:
                self._batches.task_done()

    async def say(self, *batch: Change) -> None:
        self._batches.put_nowait(batch)
        await self._batches.join()

    async def break_down(self, error: Exception) -> None:
        self._batches.put_nowait(error)
        await self._batches.join()


@dataclass
class Stage:
    """An engine at work, and everything around it."""

    engine: Engine
    source: ListedSource
    dataplane: DictionaryDataplane
    clock: FakeClock
    task: asyncio.Task[None]
    records: list[SyncRecord] = field(default_factory=list)

    async def say(self, *batch: Change) -> None:
        await self.source.say(*batch)

    async def synced(self, *batch: Change) -> None:
        """Say something and wait until the host has it."""
        await self.say(*batch)
        await asyncio.wait_for(self.engine.settled(), 10)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.wait_for(self.clock.advance(seconds, self.engine.settled), 10)

    async def until(self, condition: Callable[[], bool]) -> None:
        """For what the worker thread does; the clock does not move."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    @property
    def host(self) -> list[str]:
        return sorted(str(key) for key in self.dataplane.host.frontends)

    @property
    def kinds(self) -> list[RunKind]:
        return [record.kind for record in self.records]


@asynccontextmanager
async def stage(**settings: Any) -> AsyncIterator[Stage]:
    addresses = settings.pop("read_addresses", lambda: NODE_ADDRESSES)
    source, dataplane, clock = ListedSource(), DictionaryDataplane(), FakeClock()
    made = Engine(config(**settings), [source], dataplane=dataplane, clock=clock, read_addresses=addresses)
    task = asyncio.create_task(made.run())
    set_up = Stage(made, source, dataplane, clock, task)
    made.on_sync(lambda record, _: set_up.records.append(record))
    try:
        yield set_up
    finally:
        made.stop()
        await asyncio.wait_for(task, 10)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in an event loop of its own."""

    @functools.wraps(test)
    def runs(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return runs
