"""Kubernetes Events: what is told, of what, how often, and in what form. Pure; `hansa.event_sender` writes them.

Two sorts. Something that happens is told once when it happens: hansa starts, a port cannot be opened. Something that
holds is told when it begins and, for what concerns the whole node, when it is over: `statements` says what holds now,
and `EventBook` compares with what it has told.

Every node sees the same Services, so an Event about a Service would come from every node at once. What all nodes find
alike is therefore told by one: the node that comes first by name among those with endpoints of the Service. A Service
without endpoints anywhere is told of by nobody; the log and the metrics of each node have it all the same.

Evidence: operations.md 12 and 21 (wish 3); windows-proxy F92; Kubernetes' validation of events.k8s.io/v1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hansa.api.objects import Kind, ObjectKey, ServiceKey
from hansa.bucket import Bucket
from hansa.config import Config
from hansa.dataplanes.base import HostState, Outcome, Shortfall, Waiting
from hansa.engine import EngineState
from hansa.pipeline import Pipeline
from hansa.wording import named

CONTROLLER = "kube-proxy"
# What the API server takes at most.
LONGEST_NOTE_BYTES = 1024
LONGEST_INSTANCE = 128
LONGEST_NAME = 253
# Limits: a burst, then one more for each pause. A thousand nodes in the same trouble make at most 17 a second for good.
OBJECT_BURST, OBJECT_PAUSE_S = 10, 300.0
PROCESS_BURST, PROCESS_PAUSE_S = 30, 60.0
# The same Event within this time continues a series, as client-go has it.
SERIES_GAP_S = 360.0
SERIES_KEPT = 1000


class Regarding(NamedTuple):
    """The object that an Event is about. namespace: "" for what has none."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


_API_VERSIONS = {"EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}


def node(name: str) -> Regarding:
    return Regarding("Node", "", name)


def service(key: ServiceKey) -> Regarding:
    return Regarding("Service", key.namespace, key.name)


@dataclass(frozen=True, slots=True)
class Event:
    reason: str
    action: str
    regarding: Regarding
    note: str
    is_warning: bool = True


def started(node_name: str) -> Event:
    return Event("Starting", "StartKubeProxy", node(node_name), "", is_warning=False)


def failed_listener(key: ServiceKey, port: int, error: str) -> Event:
    """H14. It is told by every node that cannot listen: the reason is the node's own."""
    note = f"node failed to start healthcheck {str(key)!r} on port {port}: {error}"
    return Event("FailedToStartServiceHealthcheck", "Listen", service(key), note)


def failed_server(node_name: str, name: str, error: str) -> Event:
    """Z14; name: `healthz` or `metrics`."""
    reason = "FailedToStartProxierHealthcheck" if name == "healthz" else "FailedToStartMetricServer"
    return Event(reason, "StartKubeProxy", node(node_name), f"failed to start the {name} server: {error}")


# --- what holds now ---


class Topic(NamedTuple):
    """One thing that may hold of an object; at most one statement is about it."""

    regarding: Regarding
    reason: str


@dataclass(frozen=True, slots=True)
class Statement:
    """An Event for as long as it holds. state: it is told again when this differs, whatever the note says.

    over: the Event for when it holds no more, None = that is not told.
    """

    event: Event
    state: Hashable
    over: Event | None = None


def failing_at(state: EngineState, config: Config) -> float | None:
    """When what is waiting will have waited for so long that it is told: one sync period, half of what health allows.

    None if nothing waits. Monotonic seconds.
    """
    return None if state.waiting_since is None else state.waiting_since + config.sync_period_s


def statements(state: EngineState, config: Config, now: float, pipeline: Pipeline) -> Mapping[Topic, Statement]:
    """Everything that is to be known about this node, and about the Services that it speaks for."""
    found = [
        *_sync_failing(state, config, now),
        *_refused(state, config),
        *_shortfalls(state, config, pipeline),
        *_conflicts(state, config, pipeline),
        *_malformed(state, config, pipeline),
    ]
    return {Topic(one.event.regarding, one.event.reason): one for one in found}


def _sync_failing(state: EngineState, config: Config, now: float) -> Iterator[Statement]:
    since = failing_at(state, config)
    if since is None or now < since:
        return
    own = node(config.node_name)
    over = Event("SyncRecovered", "Sync", own, "everything is on the host as it should be again", is_warning=False)
    yield Statement(Event("SyncFailing", "Sync", own, shortened(_why_failing(state))), "failing", over)


def _why_failing(state: EngineState) -> str:
    """From the widest trouble to the narrowest."""
    last, report = state.last, state.report
    if last is not None and last.error:
        return f"syncs fail: {last.error}"
    if report is None or last is None:
        return "no sync has come to an end"
    if report.state is not HostState.HEALTHY:
        return f"the host is {report.state.value}: {'; '.join(report.conditions) or 'it does not answer'}"
    if not report.pending:
        return "no sync has come to an end for what has changed since the last one"
    refused = [one for one in report.results if one.outcome is Outcome.FAILED]
    why = f"; {refused[0].change.kind} {refused[0].change.key}: {refused[0].error}" if refused else ""
    return f"not as desired on the host: {named(report.pending)}{why}"


def _refused(state: EngineState, config: Config) -> Iterator[Statement]:
    """F92: what this node's host has refused more than once, or for good, by Service. Told again for each new service
    port and class of error; every node that is in trouble tells it, for the reason is the node's own.
    """
    by_service: dict[ServiceKey, list[Waiting]] = {}
    for one in state.report.waiting if state.report is not None else ():
        if one.failures > 1 or one.error_class in _FOR_GOOD:
            for namespace, name in {_service_of(owner) for owner in one.owners}:
                by_service.setdefault(ServiceKey(namespace, name), []).append(one)
    for key, every in sorted(by_service.items()):
        own = frozenset(
            (owner, one.error_class)
            for one in every
            for owner in one.owners
            if _service_of(owner) == (key.namespace, key.name)
        )
        note = f"node {config.node_name}: {named((f'{one.key}: {one.error}' for one in every), '; ')}"
        yield Statement(Event("HostRefused", "Sync", service(key), shortened(note)), own)


_FOR_GOOD = frozenset({"rejected", "exhausted"})  # classes that do not pass by themselves


def _service_of(owner: str) -> tuple[str, str]:
    """Of `NAMESPACE/NAME:PORT`."""
    namespace, _, rest = owner.partition("/")
    return namespace, rest.partition(":")[0]


def _shortfalls(state: EngineState, config: Config, pipeline: Pipeline) -> Iterator[Statement]:
    if state.report is None or not state.report.shortfalls:
        return
    by_feature: dict[str, dict[str, None]] = {}
    by_service: dict[ServiceKey, list[Shortfall]] = {}
    for one in state.report.shortfalls:
        owners = by_feature.setdefault(one.feature, {})
        if one.owner is not None:
            owners[str(one.owner.service_key)] = None
            by_service.setdefault(one.owner.service_key, []).append(one)
    told = "; ".join(
        f"{feature}: {named(sorted(owners))}" if owners else feature for feature, owners in sorted(by_feature.items())
    )
    event = Event("Shortfall", "Sync", node(config.node_name), shortened(f"this host cannot do in full: {told}"))
    yield Statement(event, frozenset(by_feature))
    for key, each in sorted(by_service.items()):
        if speaker(pipeline, key) == config.node_name:
            texts = dict.fromkeys(f"{one.feature}: {one.text}" for one in each)
            note = shortened(f"nodes like {config.node_name} cannot do this in full: {'; '.join(texts)}")
            features = frozenset(one.feature for one in each)
            yield Statement(Event("Shortfall", "Sync", service(key), note), features)


def _conflicts(state: EngineState, config: Config, pipeline: Pipeline) -> Iterator[Statement]:
    by_loser: dict[ServiceKey, list[str]] = {}
    for one in state.conflicts:
        loser, winner = one.loser.service_key, one.winner.service_key
        if (speaker(pipeline, loser) or speaker(pipeline, winner)) == config.node_name:
            by_loser.setdefault(loser, []).append(str(one))
    for key, texts in sorted(by_loser.items()):
        texts.sort()
        yield Statement(Event("FrontendConflict", "Sync", service(key), shortened(named(texts, "; "))), tuple(texts))


def _malformed(state: EngineState, config: Config, pipeline: Pipeline) -> Iterator[Statement]:
    for key, faults in sorted(state.faulty.items(), key=lambda item: str(item[0])):
        if _speaker_of(pipeline, key, config.node_name) == config.node_name:
            note = shortened("; ".join(str(fault) for fault in faults))
            regarding = Regarding(str(key.kind), key.namespace, key.name)
            yield Statement(Event("MalformedObject", "Read", regarding, note), faults)


def speaker(pipeline: Pipeline, key: ServiceKey) -> str | None:
    """The node that tells of a Service what every node finds alike; None if no node has an endpoint of it."""
    names = (
        endpoint.node_name
        for piece in pipeline.store.slices_of(key)
        for endpoint in piece.endpoints
        if endpoint.node_name is not None
    )
    return min(names, default=None)


def _speaker_of(pipeline: Pipeline, key: ObjectKey, node_name: str) -> str | None:
    match key.kind:
        case Kind.SERVICE:
            return speaker(pipeline, ServiceKey(key.namespace, key.name))
        case Kind.ENDPOINT_SLICE:  # its last good form says whose it is
            piece = pipeline.store.slices.get(key)
            return speaker(pipeline, piece.service_key) if piece is not None and piece.service_key else None
        case Kind.NODE:
            return node_name if key.name == node_name else None
        case Kind.SERVICE_CIDR:  # nobody's
            return None


def shortened(note: str) -> str:
    """At most as long as the API takes it, in bytes; cut between characters."""
    data = note.encode()
    if len(data) <= LONGEST_NOTE_BYTES:
        return note
    ellipsis = "…"
    return data[: LONGEST_NOTE_BYTES - len(ellipsis.encode())].decode(errors="ignore") + ellipsis


# --- what is written ---


@dataclass(frozen=True, slots=True)
class Create:
    """A new Event object. name: its own, to be found again for the series."""

    event: Event
    name: str
    wall: float


@dataclass(frozen=True, slots=True)
class Continue:
    """It has happened again: the object of this name gets a series. wall: seconds since the epoch, of the last time."""

    event: Event
    name: str
    count: int
    wall: float


Write = Create | Continue


@dataclass(slots=True)
class _Series:
    name: str
    count: int
    at: float


@dataclass(slots=True)
class EventBook:
    """What has been told, and the limits: decides about each Event whether and as what it is written.

    `now`: monotonic seconds. Used by one thread.
    """

    _series: OrderedDict[Event, _Series] = field(default_factory=OrderedDict)
    _objects: OrderedDict[Regarding, Bucket] = field(default_factory=OrderedDict)
    _process: Bucket = field(default_factory=lambda: Bucket(PROCESS_BURST, PROCESS_PAUSE_S))
    _told: dict[Topic, Statement] = field(default_factory=dict)
    _last_ns: int = 0

    def tell(self, event: Event, *, now: float, wall: float) -> Write | None:
        """Something has happened; None = too much has been told already, and this is counted only."""
        series = self._series.get(event)
        if series is not None and now - series.at <= SERIES_GAP_S:
            series.at = now
            series.count += 1
            self._series.move_to_end(event)
            return Continue(event, series.name, series.count, wall) if self._admits(event.regarding, now) else None
        if not self._admits(event.regarding, now):
            return None
        name = self._new_name(event.regarding, wall)
        self._series[event] = _Series(name, 1, now)
        self._series.move_to_end(event)
        if len(self._series) > SERIES_KEPT:
            self._series.popitem(last=False)
        return Create(event, name, wall)

    def observe(self, holding: Mapping[Topic, Statement], *, now: float, wall: float) -> list[Write]:
        """What to tell of what has begun, changed and ended since the last call. What a limit holds back waits."""
        writes: list[Write] = []
        for topic, told in list(self._told.items()):
            if topic not in holding:
                if told.over is not None:
                    write = self.tell(told.over, now=now, wall=wall)
                    if write is None:
                        continue
                    writes.append(write)
                del self._told[topic]
        for topic, statement in holding.items():
            told_before = self._told.get(topic)
            if told_before is not None and told_before.state == statement.state:
                continue
            write = self.tell(statement.event, now=now, wall=wall)
            if write is not None:
                writes.append(write)
                self._told[topic] = statement
        return writes

    def failed(self, write: Write) -> None:
        """It could not be written: what still holds is told again at the next occasion."""
        self._series.pop(write.event, None)
        self._told.pop(Topic(write.event.regarding, write.event.reason), None)

    def _admits(self, regarding: Regarding, now: float) -> bool:
        bucket = self._objects.get(regarding)
        if bucket is None:
            bucket = self._objects[regarding] = Bucket(OBJECT_BURST, OBJECT_PAUSE_S)
            if len(self._objects) > SERIES_KEPT:
                self._objects.popitem(last=False)
        self._objects.move_to_end(regarding)
        if not (bucket.has_one(now) and self._process.has_one(now)):
            return False
        bucket.take()
        self._process.take()
        return True

    def _new_name(self, regarding: Regarding, wall: float) -> str:
        """As client-go makes them: the object's name and the time in hexadecimal nanoseconds."""
        self._last_ns = max(self._last_ns + 1, int(wall * 1e9))
        suffix = f".{self._last_ns:x}"
        return regarding.name[: LONGEST_NAME - len(suffix)].rstrip(".-") + suffix


def namespace_of(event: Event) -> str:
    """Where the Event lives: with its object, and in `default` for what has no namespace."""
    return event.regarding.namespace or "default"


def document(write: Create, *, host_name: str, uid: str) -> dict[str, Any]:
    """The object as it is created. uid: of what it is about, "" = not told, as kube-proxy does of Nodes."""
    event = write.event
    regarding = {
        "kind": event.regarding.kind,
        "apiVersion": _API_VERSIONS.get(event.regarding.kind, "v1"),
        "name": event.regarding.name,
    }
    if event.regarding.namespace:
        regarding["namespace"] = event.regarding.namespace
    if uid:
        regarding["uid"] = uid
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": write.name, "namespace": namespace_of(event)},
        "eventTime": micro_time(write.wall),
        "reportingController": CONTROLLER,
        "reportingInstance": f"{CONTROLLER}-{host_name}"[:LONGEST_INSTANCE],
        "action": event.action,
        "reason": event.reason,
        "regarding": regarding,
        "note": event.note,
        "type": "Warning" if event.is_warning else "Normal",
    }


def series_change(write: Continue) -> dict[str, Any]:
    """The merge patch that continues a series."""
    return {"series": {"count": write.count, "lastObservedTime": micro_time(write.wall)}}


def micro_time(wall: float) -> str:
    """As the API has it: always six digits.

    >>> micro_time(1767323045.25)
    '2026-01-02T03:04:05.250000Z'
    """
    return f"{datetime.fromtimestamp(round(wall, 6), UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


Tell = Callable[[Event], None]
