"""The real engine over a guarded node, for guarantees about time; the clock moves only when a test says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from tests.engine_stage import FakeClock, ListedSource
from tests.guarantees.node import GuardedNode, synced
from tests.replies import Reply, ask

from hansa.api.change import Change, Upsert
from hansa.api.objects import ApiObject
from hansa.config import BindAddress, Config, NodePortAddresses
from hansa.dataplanes.base import Change as PlannedChange
from hansa.dataplanes.base import SyncReport
from hansa.engine import Engine, SyncRecord
from hansa.events import Event
from hansa.health import Servers, serving
from hansa.net import parse_address
from hansa.rules.model import RuleChanges
from hansa.services.model import ServicePortName
from hansa.sources.kubernetes.client import KubernetesSource
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

    def describe(self) -> Sequence[Mapping[str, object]]:
        return self._node.dataplane.describe()

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
async def _engine(node: GuardedNode, config: Config) -> AsyncIterator[Stage]:
    """An engine at work that has been told nothing yet."""
    node.start(config)
    source, clock = ListedSource(), _Clock(node)
    engine = Engine(config, [source], dataplane=_Guarded(node), clock=clock, read_addresses=lambda: NODE_ADDRESSES)
    task = asyncio.create_task(engine.run())
    on = Stage(engine, source, clock, node)
    engine.on_sync(lambda record, _: on.records.append(record))
    try:
        yield on
    finally:
        engine.stop()
        await asyncio.wait_for(task, 10)


def everything(node: GuardedNode) -> tuple[Change, ...]:
    """What the API server has, and that it is all."""
    return (*(Upsert(item) for item in node.objects.values()), *synced())


@asynccontextmanager
async def stage(node: GuardedNode, **settings: Any) -> AsyncIterator[Stage]:
    """An engine that has been told all of the node's objects, and has synced. settings: fields of Config."""
    async with _engine(node, replace(node.config, **settings)) as on:
        await on.synced(*everything(node))
        yield on


@dataclass
class Served:
    """The stage with its health and metrics servers, and the Events that were told."""

    on: Stage
    servers: Servers
    client: aiohttp.ClientSession
    events: list[Event] = field(default_factory=list)

    async def ask(self, url: str, method: str = "GET", **more: Any) -> Reply:
        return await ask(self.client, url, method=method, **more)

    async def health(self, path: str = "/healthz") -> Reply:
        assert self.servers.healthz is not None
        return await self.ask(f"http://127.0.0.1:{self.servers.healthz.port}{path}")

    async def metrics(self, path: str = "/metrics", method: str = "GET", **more: Any) -> Reply:
        assert self.servers.metrics is not None
        return await self.ask(f"http://127.0.0.1:{self.servers.metrics.port}{path}", method, **more)

    async def values(self, name: str) -> dict[str, float]:
        """All values of one metric, by its labels as written: `{class="busy"}`, or "" without."""
        lines = (await self.metrics()).text.splitlines()
        found = (line.rpartition(" ") for line in lines if re.match(rf"{re.escape(name)}[ {{]", line))
        return {head.removeprefix(name): float(value) for head, _, value in found}


@asynccontextmanager
async def served(node: GuardedNode, cluster: KubernetesSource | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A stage with servers on free ports of loopback. cluster: the API server that hears of Events, None = nobody."""
    loopback = BindAddress(parse_address("127.0.0.1"), 0)
    settings = {
        "healthz_bind_address": loopback,
        "metrics_bind_address": loopback,
        "node_port_addresses": NodePortAddresses(primary=False),
        **settings,
    }
    events: list[Event] = []
    config = replace(node.config, **settings)
    async with (
        _engine(node, config) as on,
        serving(on.engine, config, clock=on.clock, tell=events.append, cluster=cluster) as servers,
        aiohttp.ClientSession() as client,
    ):
        await on.synced(*everything(node))
        yield Served(on, servers, client, events)
