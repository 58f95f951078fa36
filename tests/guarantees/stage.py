"""The real engine over a guarded node, for guarantees about time; the clock moves only when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.engine_stage import FakeClock, ListedSource
from tests.guarantees.node import GuardedNode, synced

from hansa.api.change import Change, Upsert
from hansa.api.objects import ApiObject
from hansa.dataplanes.base import Change as PlannedChange
from hansa.dataplanes.base import SyncReport
from hansa.engine import Engine, SyncRecord
from hansa.rules.model import RuleChanges
from hansa.services.model import ServicePortName
from hansa.testing import NODE_ADDRESSES


class _Clock(FakeClock):
    """Carries HNS's clock along."""

    def __init__(self, node: GuardedNode) -> None:
        super().__init__()
        self._node = node

    async def advance(self, seconds: float, settled: Any) -> None:
        await super().advance(seconds, settled)
        self._node.wait(seconds)


class _Guarded:
    """The node's dataplane, as an engine takes it."""

    name = "windows"

    def __init__(self, node: GuardedNode) -> None:
        self._node = node

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        return self._node.hand_over(changes, now=now, audit=audit)

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[PlannedChange]:
        return self._node.dataplane.plan(changes, now=now)

    def renew(self, owners: Collection[ServicePortName]) -> None:
        self._node.renew(*owners)

    def close(self) -> None:
        self._node.dataplane.close()


@dataclass
class Stage:
    engine: Engine
    source: ListedSource
    clock: _Clock
    node: GuardedNode
    records: list[SyncRecord] = field(default_factory=list)

    async def say(self, *objects: ApiObject | Change) -> None:
        await self.source.say(*(Upsert(one) if isinstance(one, ApiObject) else one for one in objects))

    async def synced(self, *objects: ApiObject | Change) -> SyncReport:
        """Say something and wait until the host has it."""
        await self.say(*objects)
        return await self.settled()

    async def settled(self) -> SyncReport:
        await asyncio.wait_for(self.engine.settled(), 10)
        report = self.engine.state.report
        assert report is not None
        assert not self.node.guard.breaches, self.node.guard.breaches
        return report

    async def pass_time(self, seconds: float) -> SyncReport:
        await asyncio.wait_for(self.clock.advance(seconds, self.engine.settled), 30)
        return await self.settled()

    async def until(self, condition: Callable[[], bool]) -> None:
        """For what the worker thread does; the clock does not move."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def stage(node: GuardedNode, **settings: Any) -> AsyncIterator[Stage]:
    """An engine that has been told all of the node's objects, and has synced. settings: fields of Config."""
    config = replace(node.config, **settings)
    node.start(config)
    source, clock = ListedSource(), _Clock(node)
    engine = Engine(config, [source], dataplane=_Guarded(node), clock=clock, read_addresses=lambda: NODE_ADDRESSES)
    task = asyncio.create_task(engine.run())
    on = Stage(engine, source, clock, node)

    engine.on_sync(lambda record, _: on.records.append(record))
    try:
        await on.synced(*(Upsert(item) for item in node.objects.values()), *synced())
        yield on
    finally:
        engine.stop()
        await asyncio.wait_for(task, 10)
