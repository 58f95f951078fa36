"""Engine: the shell around the pure stages. Tasks, the worker thread, the clock and signals are here and nowhere else.

One task per source hands batches to the pipeline, also while a sync is running. One loop asks the schedule what is due,
lets the pipeline make the message, has the dataplane take it in, and records what came of it. Making the message and
syncing happen in one worker thread, so that health and metrics answer however long a host call takes.

What it never does: decide anything about services or objects, write before Services and EndpointSlices are complete
(I1), undo rules when a source is lost or the process stops (I4), or end because a sync raised something (B6, I19).

Evidence: service-semantics section 17; windows-proxy F31, F34, H.6 to H.8; operations.md 16.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypedDict, TypeVar, assert_never

from hansa.api.change import Delete, Malformed, Synced, Upsert
from hansa.api.objects import Kind, Node, ObjectKey, Service, ServiceKey
from hansa.config import Config
from hansa.dataplanes.base import Dataplane, Describing, HostState, Outcome, Renewing, Result, Shortfall, SyncReport
from hansa.errors import DataplaneError, Fault
from hansa.logs import Logger
from hansa.net import Address, IPFamily
from hansa.pipeline import HealthCheck, HealthCheckKey, LocalPolicy, Pipeline, TriggerTime, in_force
from hansa.rules.model import Conflict, RuleChanges
from hansa.schedule import Backlog, RunKind, Schedule
from hansa.services.model import GivenView, ServicePortName
from hansa.sources import News, Source
from hansa.sources.host import read_host
from hansa.wording import named

_log = Logger("hansa.engine")
_T = TypeVar("_T")

# Long enough for a host call that is under way; operations.md 16 asks for at most 2 s until the process is gone, and on
# shutdown Windows gives a service 5 s.
STOP_GRACE_S = 1.5
# The first lists of the largest clusters are in by then; an API server that is away must not leave cycles uncollected.
COLLECT_AFTER_S = 60.0
# A source waits its troubles out by itself; if one raises, that is a bug, and starting it again is the best guess.
SOURCE_RESTART_S = 5.0
# What a person reads; a program that wants all of them observes.
HISTORY_LENGTH = 100
# Changes applied before other tasks get their turn: a few milliseconds' worth, so that a first list of a large cluster
# does not hold up a health answer.
CHUNK = 256
# Services built ahead, while the first lists come in, before other tasks get their turn: about as much time.
AHEAD = 32
# Verbosity from which on there are lines for each sync that did something, for each that did not, and for each step.
SYNCS_FROM, IDLE_SYNCS_FROM, STEPS_FROM = 2, 3, 4
# A safeguard against errors whose text never repeats; their lines still come, only without traceback.
_DISTINCT_TRACEBACKS = 200
# SIGBREAK is what Windows sends on Ctrl-Break and what a console service wrapper can send.
_ENDING_SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)


class Clock(Protocol):
    """Time as the engine sees it; tests bring their own."""

    def now(self) -> float:
        """Monotonic seconds; the schedule and the dataplanes reckon with these."""

    def wall(self) -> float:
        """Seconds since the epoch; only compared with what other machines wrote down."""

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when `event` is set or `now()` has reached `until`; None: only when it is set."""


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), None if until is None else max(0.0, until - self.now()))


@dataclass(frozen=True, slots=True)
class SyncRecord:
    """One run in brief. Times are monotonic seconds.

    state: None if an exception ended the run; `error` then names it. ok: nothing was pending on the host afterwards.
    frontends: how many the message named. built_at: when the message was ready and the host's turn began, None if the
    run did not come that far. latencies: for each slice change that has now reached the host, its family and the
    seconds since the change in the cluster that caused it (service-semantics O2 to O6).
    """

    number: int
    kind: RunKind
    started_at: float
    finished_at: float
    frontends: int = 0
    complete: bool = False
    state: HostState | None = None
    ok: bool = False
    done: int = 0
    failed: int = 0
    skipped: int = 0
    drift: int = 0
    pending: int = 0
    host_calls: int = 0
    built_at: float | None = None
    latencies: tuple[tuple[IPFamily, float], ...] = ()
    error: str = ""

    @property
    def latencies_s(self) -> tuple[float, ...]:
        return tuple(seconds for _, seconds in self.latencies)

    @property
    def duration_s(self) -> float:
        return self.finished_at - self.started_at


@dataclass(slots=True)
class Counts:
    """What has happened since the start.

    syncs: by kind and result (ok, incomplete, error). steps: by verb and outcome. changes_by_kind: without Synced.
    """

    changes: int = 0
    changes_by_kind: Counter[Kind] = field(default_factory=Counter)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    drift: int = 0
    host_calls: int = 0
    source_failures: int = 0
    build_failures: int = 0


@dataclass(frozen=True, slots=True)
class FamilyState:
    """waiting_since, last_ok_at: as in `EngineState`, for one family alone (Z1)."""

    waiting_since: float | None
    last_ok_at: float | None


@dataclass(frozen=True, slots=True)
class EngineState:
    """What health and metrics ask, as values of one moment. Times are monotonic seconds.

    ready: Services and EndpointSlices are complete. loop_since: when the loop was entered, None before (Z4).
    waiting_since: the oldest request that the host does not satisfy yet, None if it is as desired (Z2, I15).
    last_ok_at: end of the last run after which nothing was pending. node: the Node as last seen, None if never (Z8).
    families: those of this node's addresses, both if none is known. first_reached_at: end of the first run that reached
    the host and went through all there was to do. requested_at: the last request. health_checks: what
    healthCheckNodePorts are to answer, as of the last run that reached the host (H11); node_port_addresses: where, per
    family, None = everywhere; without_local: R2 and R3, as of the same run. objects, malformed, changes,
    changes_pending: by kind; how many are known, cannot be used, came since the start, came since the last message was
    made. conflicts: service ports that claim a frontend of another, as of the last message. faulty: what is wrong with
    the newest form of objects that cannot be used, or not in full. sources: one line each, in the order given;
    troubled_sources: how many of them cannot be read in full now.
    """

    ready: bool
    loop_since: float | None
    waiting_since: float | None
    last_ok_at: float | None
    running_since: float | None
    node: Node | None
    families: Mapping[IPFamily, FamilyState]
    first_reached_at: float | None
    requested_at: float | None
    health_checks: Mapping[HealthCheckKey, HealthCheck]
    node_port_addresses: Mapping[IPFamily, frozenset[Address] | None]
    without_local: Mapping[LocalPolicy, int]
    objects: Mapping[Kind, int]
    malformed: Mapping[Kind, int]
    changes: Mapping[Kind, int]
    changes_pending: Mapping[Kind, int]
    conflicts: tuple[Conflict, ...]
    faulty: Mapping[ObjectKey, tuple[Fault, ...]]
    counts: Counts
    frontends: int
    sources: tuple[str, ...]
    troubled_sources: int
    last: SyncRecord | None
    report: SyncReport | None


@dataclass(frozen=True, slots=True)
class _Taken:
    """What belongs to a message besides its rules, and is in force once the message has reached the host."""

    health_checks: Mapping[HealthCheckKey, HealthCheck] = field(default_factory=dict)
    node_port_addresses: Mapping[IPFamily, frozenset[Address] | None] = field(default_factory=dict)
    without_local: Mapping[LocalPolicy, int] = field(default_factory=dict)
    changes: Counter[Kind] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Run:
    """message, built_at: None if the run ended before there was one."""

    kind: RunKind
    started_at: float
    built_at: float | None
    message: RuleChanges | None


@dataclass(frozen=True, slots=True)
class _Renewal:
    """Somebody waits for these ports to be made anew."""

    ports: frozenset[ServicePortName]
    report: asyncio.Future[SyncReport]


Observer = Callable[[SyncRecord, SyncReport | None], None]


class Engine:
    """Runs sources, pipeline and one dataplane until it is stopped. Belongs to one event loop.

    `counts` and `history` (newest last) are for reading.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[Source],
        *,
        dataplane: Dataplane,
        clock: Clock | None = None,
        read_addresses: Callable[[], frozenset[Address]] | None = None,
    ) -> None:
        """`read_addresses` gives this machine's addresses; the worker thread calls it before each check (N7)."""
        self._clock: Clock = clock or SystemClock()
        self._sources = tuple(sources)
        self._dataplane = dataplane
        self._read_addresses = read_addresses or _host_addresses
        self._pipeline = Pipeline(config, frozenset(), since=self._clock.wall())
        # Held while the pipeline changes or computes, never during a sync: events are taken in meanwhile (F34).
        self._pipeline_lock = asyncio.Lock()
        self._schedule = Schedule(config)
        self._backlog = Backlog()
        self._family_backlogs = {family: Backlog() for family in IPFamily}
        self._worker = _Worker()
        self._log = _EngineLog()
        self._observers: list[Observer] = []
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._parked = asyncio.Event()
        self._run_ended = asyncio.Event()
        self._run_ended.set()
        self._loop_since: float | None = None
        self._report: SyncReport | None = None
        self._first_reached_at: float | None = None
        self._requested_at: float | None = None
        self._taken = _Taken()
        self._reached = _Taken()
        self._trigger_times: tuple[TriggerTime, ...] = ()
        self._conflicts: tuple[Conflict, ...] = ()
        self._renewals: list[_Renewal] = []
        self._left_behind: tuple[Address, ...] = ()
        self.counts = Counts()
        self.history: deque[SyncRecord] = deque(maxlen=HISTORY_LENGTH)

    async def run(self) -> None:
        """Work until `stop()`, then end within STOP_GRACE_S with all rules left as they are.

        A sync that is under way is waited for that long and then left to itself; its thread does not hold up the exit.
        """
        sources = [asyncio.create_task(self._drain(source)) for source in self._sources]
        loop = asyncio.create_task(self._loop())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({loop, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self._wake.set()
            await self._clock.wait(self._run_ended, self._clock.now() + STOP_GRACE_S)
        finally:
            for task in (*sources, loop, stopped):
                task.cancel()
            await asyncio.gather(*sources, stopped, return_exceptions=True)
            await self._close_dataplane()
        with suppress(asyncio.CancelledError):
            await loop  # what it raises is a bug of the engine itself, and goes to the caller

    def stop(self) -> None:
        """Ask `run` to end. From other threads: by way of the event loop's `call_soon_threadsafe`."""
        self._stop.set()

    def request(self, *, full: bool = False) -> None:
        """Ask for a sync though no object changed, for an operator or after a sign from the host. Moot before I1."""
        if self._pipeline.ready:
            self._request(full=full)

    async def renew(self, ports: Collection[ServicePortName]) -> SyncReport:
        """Have what these service ports have on the host made anew, and return the report of the run that did.

        Other rules go on; what the run does besides is in its report, too. Raises DataplaneError if the dataplane has
        no use for that, or there are no rules yet, and whatever ended the run.
        """
        if not isinstance(self._dataplane, Renewing):
            raise DataplaneError(f"the dataplane {self._dataplane.name} keeps nothing that could be made anew")
        if not self._pipeline.ready:
            raise DataplaneError("Services and EndpointSlices are not complete yet: nothing is on the host by hansa")
        asked = _Renewal(frozenset(ports), asyncio.get_running_loop().create_future())
        self._renewals.append(asked)
        self._request()
        return await asked.report

    async def describe(self) -> Sequence[Mapping[str, object]] | None:
        """What the dataplane holds, after a sync that is under way; None if it does not tell."""
        dataplane = self._dataplane
        return await self._worker.run(dataplane.describe) if isinstance(dataplane, Describing) else None

    async def submit(self, batch: Sequence[News]) -> None:
        """Take changes in, as if a source had said them."""
        async with self._pipeline_lock:
            for start in range(0, len(batch), CHUNK):
                self._pipeline.apply(batch[start : start + CHUNK])
                await asyncio.sleep(0)
                while self._pipeline.prepare(AHEAD):
                    await asyncio.sleep(0)
            self.counts.changes += len(batch)
            self.counts.changes_by_kind.update(change.key.kind for change in batch if not isinstance(change, Synced))
            if self._pipeline.pending:
                self._request()
        self._log.objects(batch)

    async def reconfigure(self, config: Config) -> None:
        """Go on with another configuration: all rules are made anew and times reckoned anew, nothing is undone before.

        Only what the rules and the times come from may differ from before; the dataplane is not told.
        """
        async with self._pipeline_lock:
            self._pipeline.reconfigure(config)
            self._schedule.reconfigure(config)
        self.request(full=True)

    def on_sync(self, observer: Observer) -> None:
        """Have `observer` called in the event loop after each run; what it raises is logged and goes no further."""
        self._observers.append(observer)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Pipeline]:
        """The pipeline, standing still for as long as the caller reads. For explanations; syncs wait meanwhile."""
        async with self._pipeline_lock:
            yield self._pipeline

    def service(self, key: ServiceKey) -> Service | None:
        """The Service object as last seen, None if there is none."""
        return self._pipeline.store.services.get(key)

    async def settled(self) -> None:
        """Return once everything taken in has been dealt with: no run is under way, and none is due now."""
        await self._parked.wait()

    @property
    def node_ips(self) -> tuple[Address, ...]:
        """This node's address of each family, as far as it is known; IPv4 first."""
        known = self._pipeline.surroundings.node.node_ips
        return tuple(known[family] for family in IPFamily if family in known)

    @property
    def dataplane_name(self) -> str:
        return self._dataplane.name

    @property
    def state(self) -> EngineState:
        store, changes = self._pipeline.store, self.counts.changes_by_kind
        return EngineState(
            ready=self._pipeline.ready,
            loop_since=self._loop_since,
            waiting_since=self._backlog.waiting_since,
            last_ok_at=self._backlog.last_ok_at,
            running_since=self._backlog.running_since,
            node=self._pipeline.node,
            families={
                family: FamilyState(
                    self._family_backlogs[family].waiting_since, self._family_backlogs[family].last_ok_at
                )
                for family in self._families()
            },
            first_reached_at=self._first_reached_at,
            requested_at=self._requested_at,
            health_checks=self._reached.health_checks,
            node_port_addresses=self._reached.node_port_addresses,
            without_local=self._reached.without_local,
            objects={Kind.SERVICE: len(self._pipeline.services), Kind.ENDPOINT_SLICE: len(store.slices)},
            malformed=Counter(key.kind for key in store.malformed),
            changes=dict(changes),
            changes_pending=changes - self._taken.changes,
            conflicts=self._conflicts,
            faulty={**store.skipped, **store.malformed},
            counts=self.counts,
            frontends=len(self._pipeline.rules),
            sources=tuple(source.status for source in self._sources),
            troubled_sources=sum(source.troubled for source in self._sources),
            last=self.history[-1] if self.history else None,
            report=self._report,
        )

    def _families(self) -> list[IPFamily]:
        """Those that this node has an address of, or that lack something on the host; both if no address is known."""
        known = self._pipeline.surroundings.node.node_ips
        return [
            family for family in IPFamily if not known or family in known or self._family_backlogs[family].has_pending
        ]

    def _all_backlogs(self) -> tuple[Backlog, ...]:
        return (self._backlog, *self._family_backlogs.values())

    async def _drain(self, source: Source) -> None:
        """Hand a source's batches to the pipeline for ever. Losing the source changes nothing on the host."""
        while True:
            try:
                async for batch in source.changes():
                    await self.submit(batch)
            except Exception as error:  # noqa: BLE001 - whatever a source does wrong, rules stay and other sources go on
                self.counts.source_failures += 1
                self._log.exception("source failed", error, source=source.status, restart_in_s=SOURCE_RESTART_S)
            else:
                return
            await self._clock.wait(self._stop, self._clock.now() + SOURCE_RESTART_S)

    def _request(self, *, full: bool = False) -> None:
        now = self._clock.now()
        self._schedule.request(now, full=full)
        self._requested_at = now
        for backlog in self._all_backlogs():
            backlog.request(now)
        self._parked.clear()
        self._wake.set()

    async def _loop(self) -> None:
        self._loop_since = self._clock.now()
        if self._requested_at is None:
            self._requested_at = self._loop_since
        while not self._stop.is_set():
            self._wake.clear()
            now = self._clock.now()
            due = self._schedule.next_sync(now)
            if due is not None and due.at <= now:
                self._parked.clear()
                await self._sync()
            else:
                self._parked.set()
                await self._clock.wait(self._wake, due.at if due is not None else None)

    async def _sync(self) -> None:
        started_at = self._clock.now()
        kind = self._schedule.started(started_at)
        for backlog in self._all_backlogs():
            backlog.started(started_at)
        self._run_ended.clear()
        message: RuleChanges | None = None
        built_at: float | None = None
        outcome: SyncReport | Exception
        try:
            message = await self._take(kind)
            built_at = self._clock.now()
            outcome = await self._hand_over(message, kind)
        except Exception as error:  # noqa: BLE001 - B6: whatever goes wrong in a run counts as its failure
            outcome = error
        record = self._finish(_Run(kind, started_at, built_at, message), outcome)
        self._run_ended.set()
        self._log.run(record, outcome)
        for observer in self._observers:
            try:
                observer(record, self._report)
            except Exception as error:  # noqa: BLE001 - a metric or a display must not stop the syncs
                self._log.exception("observer failed", error, observer=repr(observer))

    async def _take(self, kind: RunKind) -> RuleChanges:
        """The message for this run. What else belongs to it is noted until the run has reached the host."""
        async with self._pipeline_lock:
            if kind >= RunKind.AUDIT:
                await self._note_addresses()
                await self._note_left_behind()
            message = await self._worker.run(lambda: self._pipeline.take(full=kind is RunKind.FULL))
            assert message is not None, "a run was due before the sources were complete"
            self._trigger_times += self._pipeline.take_trigger_times()
            self._taken = _Taken(
                self._pipeline.health_checks,
                message.surroundings.node_port_addresses,
                self._pipeline.without_local_endpoints,
                self.counts.changes_by_kind.copy(),
            )
            failures = self._pipeline.take_failures()
        for service, failure in failures.items():
            self.counts.build_failures += 1
            self._log.exception("service left as it was", failure, service=str(service))
        return message

    async def _note_left_behind(self) -> None:
        """F55: pods of this node that the host has, that served once, and that no EndpointSlice names any more."""
        idle = frozenset(self._report.idle_locals) if self._report is not None else frozenset()
        named = await self._worker.run(lambda: self._pipeline.named(idle)) if idle else idle
        self._left_behind = tuple(sorted(idle - named, key=lambda each: (each.version, int(each))))

    async def _note_addresses(self) -> None:
        try:
            addresses = await self._worker.run(self._read_addresses)
        except OSError as error:
            self._log.exception("addresses of this machine cannot be read", error)
        else:
            self._pipeline.set_host_addresses(addresses)

    async def _hand_over(self, message: RuleChanges, kind: RunKind) -> SyncReport:
        now = self._clock.now()
        renewals, self._renewals = self._renewals, []

        def work() -> SyncReport:
            if renewals and isinstance(self._dataplane, Renewing):
                self._dataplane.renew({port for one in renewals for port in one.ports})
            return self._dataplane.sync(message, now=now, audit=kind >= RunKind.AUDIT)

        try:
            report = await self._worker.run(work)
        except Exception as error:
            for one in renewals:
                _raise(one.report, error)
            raise
        for one in renewals:
            _give(one.report, report)
        self._conflicts = message.conflicts
        more = [str(conflict) for conflict in message.conflicts]
        if self._left_behind:
            more.append(
                "the host has endpoints of this node that no EndpointSlice names any more: "
                f"{named(self._left_behind)}; if these pods are gone, the CNI has left them behind"
            )
        return replace(report, conditions=(*more, *report.conditions)) if more else report

    def _finish(self, run: _Run, outcome: SyncReport | Exception) -> SyncRecord:
        """Tell schedule, backlogs and counts what came of a run."""
        now = self._clock.now()
        latencies: tuple[tuple[IPFamily, float], ...] = ()
        if isinstance(outcome, SyncReport):
            self._report = outcome
            done_here = reached_host(outcome) and outcome.retry_at is None
            self._schedule.finished(now, ok=done_here, retry_at=outcome.retry_at, again=outcome.again)
            reached = reached_host(outcome)
            self._backlog.finished(now, ok=outcome.ok, pending=outcome.pending if reached else None)
            for family, backlog in self._family_backlogs.items():
                pending = outcome.pending_in(family)
                backlog.finished(now, ok=reached and not pending, pending=pending if reached else None)
            if reached:
                wall = self._clock.wall()
                latencies = tuple((family, max(0.0, wall - moment)) for family, moment in self._trigger_times)
                self._trigger_times = ()
                checks = in_force(
                    self._reached.health_checks,
                    self._taken.health_checks,
                    pending=frozenset(outcome.pending),
                    failed=outcome.failed_families,
                )
                self._reached = replace(self._taken, health_checks=checks)
                if self._first_reached_at is None:
                    self._first_reached_at = now
        else:
            self._schedule.finished(now, ok=False)
            for backlog in self._all_backlogs():
                backlog.finished(now, ok=False)
        record = SyncRecord(
            number=self.history[-1].number + 1 if self.history else 1,
            kind=run.kind,
            started_at=run.started_at,
            finished_at=now,
            frontends=len(run.message.rules) if run.message is not None else 0,
            complete=run.message is not None and run.message.complete,
            built_at=run.built_at,
            latencies=latencies,
            **_summary(outcome),
        )
        self.history.append(record)
        self._count(record, outcome)
        return record

    def _count(self, record: SyncRecord, outcome: SyncReport | Exception) -> None:
        result = "error" if record.error else "ok" if record.ok else "incomplete"
        self.counts.syncs[str(record.kind), result] += 1
        self.counts.drift += record.drift
        self.counts.host_calls += record.host_calls
        if isinstance(outcome, SyncReport):
            self.counts.steps.update((one.change.verb.value, one.outcome.value) for one in outcome.results)

    async def _close_dataplane(self) -> None:
        """Release handles, unless the thread is still busy with a sync that nobody waits for any more."""
        if not self._run_ended.is_set():
            self._log.line(logging.WARNING, "sync abandoned", since_s=STOP_GRACE_S, dataplane=self._dataplane.name)
        else:
            await self._worker.run(self._dataplane.close)
        self._worker.close()


async def run(engine: Engine) -> int | None:
    """Run the engine until it is stopped or the process is told to end; returns the signal's number, None without one.

    For the main thread. A second signal while the last sync is being waited for has the system's own effect.
    """
    loop = asyncio.get_running_loop()
    leave_threads_behind()
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        engine.stop()

    def first_lists_are_in(*_: object) -> None:
        """What is held now stays: taking it out of the collector's sight makes each later collection cheap."""
        if not gc.isenabled():
            gc.enable()
            gc.collect()
            gc.freeze()

    # While the first lists come in, every collection would go through all of them and find nothing: without it, they
    # are decoded and made into rules a third faster (measured at 10,000 Services of 10 endpoints).
    gc.disable()
    engine.on_sync(first_lists_are_in)
    loop.call_later(COLLECT_AFTER_S, first_lists_are_in)
    try:
        with _ending_signals(end):
            await engine.run()
    finally:
        gc.enable()
    return received[0] if received else None


def leave_threads_behind() -> None:
    """Let the end of the process wait for no look-up of a name and no reading of a file in this event loop.

    Before anything is asked for that asyncio does in a thread.
    """
    asyncio.get_running_loop().set_default_executor(_DaemonThreads())


async def wait_for_signal() -> int:
    """Return the number of the first signal that tells the process to end. For the main thread."""
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with _ending_signals(received.set_result):
        return await received


@contextmanager
def _ending_signals(told: Callable[[int], None]) -> Iterator[None]:
    """Have `told` called in the event loop with the first of these signals; a second one has the system's effect."""
    loop = asyncio.get_running_loop()
    old_handlers: dict[int, object] = {}

    def end(number: int) -> None:
        if not old_handlers:
            return  # two came at once
        restore()
        _log.info("stopping", signal=signal.Signals(number).name)
        told(number)

    def restore() -> None:
        while old_handlers:
            number, handler = old_handlers.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

    # `signal.signal` rather than the loop's own way, which Windows does not have.
    for number in _ENDING_SIGNALS:
        old_handlers[number] = signal.signal(number, lambda got, _: loop.call_soon_threadsafe(end, got))
    try:
        yield
    finally:
        restore()


def reached_host(report: SyncReport) -> bool:
    """Whether the dataplane saw the host and went through all it had to do; single keys may have failed."""
    return report.state is HostState.HEALTHY and not report.again


class _Summary(TypedDict, total=False):
    state: HostState
    ok: bool
    done: int
    failed: int
    skipped: int
    drift: int
    pending: int
    host_calls: int
    error: str


def _summary(outcome: SyncReport | Exception) -> _Summary:
    if isinstance(outcome, Exception):
        return {"error": f"{type(outcome).__name__}: {outcome}"}
    results = Counter(result.outcome for result in outcome.results)
    return {
        "state": outcome.state,
        "ok": outcome.ok,
        "done": results[Outcome.DONE],
        "failed": results[Outcome.FAILED],
        "skipped": results[Outcome.SKIPPED],
        "drift": len(outcome.drift),
        "pending": len(outcome.pending),
        "host_calls": outcome.host_calls,
    }


def _host_addresses() -> frozenset[Address]:
    return read_host().addresses


class _Worker:
    """One thread that runs jobs in order. A daemon: a host call that never returns must not keep the process alive."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, job: Callable[[], _T]) -> _T:
        """Run `job` in the thread; returns or raises what it does."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def work() -> None:
            try:
                deliver = partial(_give, answer, job())
            except BaseException as error:  # noqa: BLE001 - it is raised where the job was asked for
                deliver = partial(_raise, answer, error)
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                loop.call_soon_threadsafe(deliver)

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hansa-sync", daemon=True)
            self._thread.start()
        self._jobs.put(work)
        return await answer

    def close(self) -> None:
        """Let the thread end after the job that it is at."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class _DaemonThreads(ThreadPoolExecutor):
    """A thread of its own for each job, for which the end of the process does not wait.

    asyncio looks up names and reads files in threads; neither a dead name server nor a dead file share may hold up the
    end (operations.md 16). The stock executor is waited for twice: by the event loop and by the interpreter.
    """

    def submit(self, job: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        answer: Future[_T] = Future()

        def work() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                result = job(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is raised where the job was asked for
                answer.set_exception(error)
            else:
                answer.set_result(result)

        threading.Thread(target=work, name="hansa-blocking", daemon=True).start()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is nothing to wait for."""


def _give(answer: asyncio.Future[_T], result: _T) -> None:
    if not answer.done():
        answer.set_result(result)


def _raise(answer: asyncio.Future[_T], error: BaseException) -> None:
    if answer.done():
        return
    if isinstance(error, StopIteration):  # a future cannot carry it, and whoever waits would wait for ever
        error = RuntimeError(f"the job raised {error!r}")
    answer.set_exception(error)


class _EngineLog:
    """What is worth a line: runs with work done, and every trouble once for as long as it stays the same."""

    def __init__(self) -> None:
        self._tracebacks: set[str] = set()
        self._failing: dict[str, str] = {}
        self._shortfalls: frozenset[Shortfall] = frozenset()
        self._conditions: frozenset[str] = frozenset()
        self._faulty: dict[ObjectKey, tuple[Fault, ...]] = {}
        self._state: HostState | None = None

    def line(self, level: int, event: str, **fields: object) -> None:
        _log.log(level, event, fields, above=1)

    def exception(self, event: str, error: Exception, **fields: object) -> None:
        """A line for the error, with the traceback the first time that this error comes from this place."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        identity = f"{event} {type(error).__name__} {error} {place}"
        new = identity not in self._tracebacks and len(self._tracebacks) < _DISTINCT_TRACEBACKS
        _log.exception(event, error, trace=new, **fields, place=place)
        if new:
            self._tracebacks.add(identity)

    def objects(self, batch: Sequence[News]) -> None:
        """What of the objects cannot be used, said when it changes: with object, field and remedy."""
        for change in batch:
            match change:
                case Malformed(key, faults):
                    event = "object left as it was"
                case Upsert(skipped=faults):
                    key, event = change.key, "object used without some entries"
                case Delete(key):
                    faults = ()
                case Synced() | GivenView():
                    continue
                case _:
                    assert_never(change)
            if faults == self._faulty.get(key, ()):
                continue
            if faults:
                self._faulty[key] = faults
                self.line(logging.WARNING, event, object=key, faults="; ".join(str(fault) for fault in faults))
            else:
                del self._faulty[key]
                self.line(logging.INFO, "object mended", object=key)

    def run(self, record: SyncRecord, outcome: SyncReport | Exception) -> None:
        head = {"number": record.number, "kind": str(record.kind), "duration_s": round(record.duration_s, 4)}
        if isinstance(outcome, Exception):
            self.exception("sync failed", outcome, **head)
            return
        if outcome.state is not self._state:
            if self._state is not None or outcome.state is not HostState.HEALTHY:
                self.line(logging.WARNING, "host", state=outcome.state.value, before=self._state and self._state.value)
            self._state = outcome.state
        news = [self._step(result) for result in outcome.results]
        if _log.enabled(STEPS_FROM):
            for result in outcome.results:
                change = result.change
                fields = {"kind": change.kind, "key": change.key, "outcome": result.outcome.value, "why": change.why}
                _log.info("step", v=STEPS_FROM, verb=change.verb.value, **fields)
        if record.ok:
            self._failing.clear()
        self._news(outcome)
        # What fails again as it did before, and what finds all as it should be, is counted, not said.
        worth_a_line = any(news) or bool(record.drift)
        level = logging.INFO - (SYNCS_FROM if worth_a_line else IDLE_SYNCS_FROM)
        if worth_a_line and not record.ok:
            level = logging.WARNING
        counted = {name: getattr(record, name) for name in ("done", "failed", "skipped", "pending", "drift")}
        self.line(level, "sync", **head, **counted, host_calls=record.host_calls, frontends=record.frontends)

    def _step(self, result: Result) -> bool:
        """Whether it is worth a line about the sync: something was done, or failed otherwise than the last time."""
        change = result.change
        name = f"{change.kind} {change.key}"
        if result.outcome is Outcome.DONE:
            if self._failing.pop(name, None) is not None:
                self.line(logging.INFO, "step mended", verb=change.verb.value, kind=change.kind, key=change.key)
            return True
        if result.outcome is not Outcome.FAILED or self._failing.get(name) == result.error:
            return False
        self._failing[name] = result.error
        owners = ",".join(change.owners)
        fields = {"verb": change.verb.value, "kind": change.kind, "key": change.key, "owners": owners}
        self.line(logging.WARNING, "step failed", **fields, error=result.error)
        return True

    def _news(self, report: SyncReport) -> None:
        shortfalls, conditions = frozenset(report.shortfalls), frozenset(report.conditions)
        for one in sorted(shortfalls - self._shortfalls, key=str):
            fields = {"feature": one.feature, "frontend": one.frontend, "owner": one.owner, "text": one.text}
            self.line(logging.WARNING, "shortfall", **fields, needed=one.needed, found=one.found)
        for condition in sorted(conditions - self._conditions):
            self.line(logging.WARNING, "condition", text=condition)
        for condition in sorted(self._conditions - conditions):
            self.line(logging.INFO, "condition over", text=condition)
        self._shortfalls, self._conditions = shortfalls, conditions
