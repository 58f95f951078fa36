"""Meter: what the engine tells becomes metrics. Pure; called after each sync and before each scrape, never in between.

Evidence: service-semantics section 18 (O2 to O7, R12); operations.md 11; windows-proxy F89.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from hansa import metrics as table
from hansa.api.objects import Kind
from hansa.dataplanes.base import HostState, ObjectCounts, Outcome, SyncReport, Verb
from hansa.engine import EngineState, SyncRecord
from hansa.health_answers import Moment
from hansa.kubeproxy.configuration import KUBERNETES_VERSION
from hansa.metrics import Metrics
from hansa.pipeline import LocalPolicy
from hansa.schedule import RunKind
from hansa.sources.kubernetes.calls import ApiCall


@dataclass(frozen=True, slots=True)
class Identity:
    """What runs here. platform: like `linux/amd64`; compiler: Python's own name for itself, like `cpython`."""

    version: str
    python: str
    dataplane: str
    platform: str = ""
    compiler: str = ""


@dataclass(frozen=True, slots=True)
class FeatureGate:
    """stage: ALPHA, BETA, DEPRECATED, or "" for what is generally available."""

    name: str
    stage: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """The process as the operating system sees it. max_fds: None where there is no such limit."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    open_fds: int
    max_fds: int | None
    started_at: float


class Meter:
    """Feeds one `Metrics`."""

    def __init__(self, metrics: Metrics, identity: Identity) -> None:
        self._metrics = metrics
        self._dataplane = identity.dataplane
        self._start_steps: Counter[str] = Counter()
        self._is_started = False
        self._changes_seen: Counter[Kind] = Counter()
        metrics.set(table.BUILD_INFO, 1, identity.version, identity.python, identity.dataplane)
        major, minor, *_ = KUBERNETES_VERSION.removeprefix("v").split(".")
        metrics.set(
            table.KUBERNETES_BUILD_INFO,
            1,
            *(major, minor, KUBERNETES_VERSION, "", "", "", f"python{identity.python}"),
            *(identity.compiler, identity.platform),
        )
        for stability, count in Counter(metric.stability for metric in table.METRICS).items():
            metrics.add(table.REGISTERED_METRICS, count, stability, "")
        metrics.raise_to(table.DISABLED_METRICS, 0)
        metrics.raise_to(table.HIDDEN_METRICS, 0)

    def features(self, gates: Iterable[FeatureGate]) -> None:
        for gate in gates:
            self._metrics.set(table.FEATURE_ENABLED, float(gate.enabled), gate.name, gate.stage)

    # --- after a sync ---

    def observe(self, record: SyncRecord, report: SyncReport | None, state: EngineState) -> None:
        """report: the last one that there was; it is not of this run if the run ended by an exception."""
        families = [str(family) for family in state.families]
        result = "error" if record.error else "ok" if record.ok else "incomplete"
        self._metrics.add(table.SYNCS, 1, str(record.kind), result)
        self._durations(record, families)
        for family, seconds in record.latencies:
            self._metrics.observe(table.NETWORK_PROGRAMMING, seconds, str(family))
        if report is not None and not record.error:
            self._steps(report)
            self._host(report)
            self._first_sync(report, state)
        if self._dataplane == "nftables":
            for family in state.families:
                reached = report is not None and record.state is HostState.HEALTHY
                if not reached or (report is not None and report.pending_in(family)):
                    self._metrics.add(table.NFTABLES_FAILURES, 1, str(family))

    def _durations(self, record: SyncRecord, families: list[str]) -> None:
        match record.kind:
            case RunKind.FULL:
                histogram = table.FULL_SYNC_DURATION
            case RunKind.PARTIAL | RunKind.AUDIT:
                histogram = table.PARTIAL_SYNC_DURATION
            case _:
                assert_never(record.kind)
        for family in families:
            self._metrics.observe(table.SYNC_DURATION, record.duration_s, family)
            self._metrics.observe(histogram, record.duration_s, family)
        if record.built_at is not None:
            self._metrics.observe(table.PHASE_DURATION, record.built_at - record.started_at, "build")
            self._metrics.observe(table.PHASE_DURATION, record.finished_at - record.built_at, "host")

    def _steps(self, report: SyncReport) -> None:
        # A first sync has tens of thousands of steps, of a few sorts.
        sorts = Counter((one.change.verb, one.change.kind, one.outcome) for one in report.results)
        for (verb, kind, outcome), count in sorts.items():
            self._metrics.add(table.STEPS, count, verb.value, kind, outcome.value)
        for result in report.results:
            if result.outcome is Outcome.DONE and result.change.disruptive:
                self._metrics.add(table.DISRUPTIVE_STEPS, 1, result.change.kind)
            elif result.outcome is Outcome.FAILED:
                self._metrics.add(table.STEP_FAILURES, 1, result.error_class or "other")
        if report.drift:
            self._drift(report)

    def _drift(self, report: SyncReport) -> None:
        done = {
            (one.change.verb, one.change.kind, one.change.key) for one in report.results if one.outcome is Outcome.DONE
        }
        for change in report.drift:
            self._metrics.add(table.DRIFT, 1, change.verb.value, change.kind)
            if (change.verb, change.kind, change.key) in done:
                self._metrics.add(table.DRIFT_HEALED, 1, change.verb.value, change.kind)

    def _host(self, report: SyncReport) -> None:
        refused = Counter[str]()
        for (verb, code), count in report.call_errors.items():
            refused[verb] += count
            self._metrics.add(table.HOST_CALL_ERRORS, count, verb, code)
        for verb, count in (report.calls_by_verb or {"call": report.host_calls}).items():
            self._metrics.add(table.HOST_CALLS, count - refused[verb], verb, "ok")
            self._metrics.add(table.HOST_CALLS, refused[verb], verb, "error")
        for verb, seconds in report.call_times:
            self._metrics.observe(table.HOST_CALL_DURATION, seconds, verb)
        for family, run in report.conntrack.items():
            self._metrics.observe(table.CONNTRACK_DURATION, run.duration_s, str(family))
            self._metrics.add(table.CONNTRACK_DELETED, run.deleted, str(family))

    def _first_sync(self, report: SyncReport, state: EngineState) -> None:
        if self._is_started:
            return
        self._start_steps.update(one.change.verb.value for one in report.results if one.outcome is Outcome.DONE)
        self._is_started = state.first_reached_at is not None
        for verb in Verb:
            self._metrics.set(table.START_STEPS, self._start_steps[verb.value], verb.value)

    # --- before a scrape ---

    def refresh(self, state: EngineState, moment: Moment, process: ProcessFacts) -> None:
        """Whatever has a value at any time, as of now."""
        self._families(state, moment)
        self._changes(state)
        running = moment.now - state.running_since if state.running_since is not None else 0.0
        self._metrics.set(table.SYNC_RUNNING, running)
        report = state.report
        if report is not None:
            self._host_now(report)
        retry_at = report.retry_at if report is not None else None
        self._metrics.set(table.NEXT_RETRY, 0.0 if retry_at is None else max(0.0, retry_at - moment.now))
        self._metrics.set(table.CONFLICTS, len(state.conflicts))
        self._metrics.set(table.CONDITIONS, len(report.conditions) if report is not None else 0)
        self._metrics.set(table.FRONTENDS, state.frontends)
        self._metrics.set_all(table.OBJECTS, {(str(kind),): count for kind, count in state.objects.items()})
        self._metrics.set_all(table.MALFORMED, {(str(kind),): state.malformed.get(kind, 0) for kind in Kind})
        self._metrics.set_all(
            table.NO_LOCAL_ENDPOINTS,
            {
                (policy, str(family)): state.without_local.get(LocalPolicy(policy, family), 0)
                for policy in ("internal", "external")
                for family in state.families
            },
        )
        self._metrics.raise_to(table.SERVICE_FAILURES, state.counts.build_failures)
        self._metrics.raise_to(table.SOURCE_FAILURES, state.counts.source_failures)
        self._metrics.set(table.SOURCES_TROUBLED, state.troubled_sources)
        self._process(process)

    def _host_now(self, report: SyncReport) -> None:
        self._metrics.set_all(table.HOST_STATE, {(one.value,): float(one is report.state) for one in HostState})
        self._metrics.set_all(table.HOST_OBJECTS, dict(_objects(report.objects)))
        self._metrics.set_all(table.ADOPTED, {(kind,): count for kind, count in report.adopted.items()})
        self._metrics.set_all(table.BACKING_OFF, {(name,): count for name, count in sorted(report.backing_off.items())})
        features = Counter(one.feature for one in report.shortfalls)
        self._metrics.set_all(table.SHORTFALLS, {(feature,): count for feature, count in sorted(features.items())})

    def _families(self, state: EngineState, moment: Moment) -> None:
        for family, one in state.families.items():
            if one.last_ok_at is not None:
                self._metrics.set(table.LAST_SYNC, moment.wall_at(one.last_ok_at), str(family))
            if state.requested_at is not None:
                self._metrics.set(table.LAST_QUEUED, moment.wall_at(state.requested_at), str(family))
            waiting = 0.0 if one.waiting_since is None else moment.now - one.waiting_since
            self._metrics.set(table.WAITING, waiting, str(family))
            pending = len(state.report.pending_in(family)) if state.report is not None else 0
            self._metrics.set(table.PENDING, pending, str(family))

    def _changes(self, state: EngineState) -> None:
        for kind, total in state.changes.items():
            new = total - self._changes_seen[kind]
            self._changes_seen[kind] = total
            self._metrics.add(table.CHANGES, new, str(kind))
            if kind is Kind.SERVICE:
                self._metrics.add(table.SERVICE_CHANGES, new * len(state.families))
            elif kind is Kind.ENDPOINT_SLICE:
                self._metrics.add(table.ENDPOINT_CHANGES, new)
        self._metrics.set(table.SERVICE_CHANGES_PENDING, state.changes_pending.get(Kind.SERVICE, 0))
        self._metrics.set(table.ENDPOINT_CHANGES_PENDING, state.changes_pending.get(Kind.ENDPOINT_SLICE, 0))

    def _process(self, process: ProcessFacts) -> None:
        self._metrics.raise_to(table.PROCESS_CPU, process.cpu_s)
        self._metrics.set(table.PROCESS_RESIDENT, process.resident_bytes)
        self._metrics.set(table.PROCESS_VIRTUAL, process.virtual_bytes)
        self._metrics.set(table.PROCESS_OPEN_FDS, process.open_fds)
        if process.max_fds is not None:
            self._metrics.set(table.PROCESS_MAX_FDS, process.max_fds)
        self._metrics.set(table.PROCESS_START, process.started_at)

    # --- what others tell ---

    def called(self, call: ApiCall) -> None:
        """The API server has been asked something."""
        at = (call.method, call.host)
        self._metrics.add(table.REST_REQUESTS, 1, call.code, *at)
        if call.retried_code:
            self._metrics.add(table.REST_RETRIES, 1, call.retried_code, *at)
        if call.waited_s is not None:
            self._metrics.observe(table.REST_LIMITER, call.waited_s, *at)
        if call.duration_s is not None:
            self._metrics.observe(table.REST_DURATION, call.duration_s, *at)
            self._metrics.observe(table.REST_REQUEST_SIZE, call.request_bytes, *at)
            self._metrics.observe(table.REST_RESPONSE_SIZE, call.response_bytes, *at)

    def event(self, reason: str, outcome: str) -> None:
        self._metrics.add(table.EVENTS, 1, reason, outcome)

    def log_suppressed(self, total: int) -> None:
        """How many lines since the start."""
        self._metrics.raise_to(table.LOG_SUPPRESSED, total)

    # --- the health servers' own ---

    def answered(self, path: str, code: int) -> None:
        """/healthz or /livez has been answered (Z13)."""
        self._metrics.add(table.HEALTHZ if path == "/healthz" else table.LIVEZ, 1, str(code))

    def health_check_ports(self, *, listening: int, failed: int) -> None:
        self._metrics.set_all(table.HEALTH_CHECK_PORTS, {("listening",): listening, ("failed",): failed})


def _objects(found: Mapping[str, ObjectCounts]) -> Iterator[tuple[tuple[str, ...], float]]:
    for kind, counts in found.items():
        for state, count in counts._asdict().items():
            if count is not None:
                yield (kind, state), count
