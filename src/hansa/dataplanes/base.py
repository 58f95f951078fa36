"""The seam between rules and hosts: Dataplane, and the values that a sync reports.

A dataplane gets immutable `RuleChanges`, keeps its own desired objects, compares them with what the host holds and
applies the difference. It runs in one worker thread; the engine never touches its state.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from hansa.net import Address, IPFamily
from hansa.rules.model import FrontendKey, RuleChanges
from hansa.services.model import ServicePortName


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A rule that this host cannot do, fully or partly. Never silence: it is listed, counted and becomes an event.

    feature: short stable name (`source-ranges`, `session-affinity-timeout`, ...). needed/found: versions or words.
    """

    feature: str
    frontend: FrontendKey | None
    owner: ServicePortName | None
    text: str
    needed: str = ""
    found: str = ""


class Verb(enum.Enum):
    CREATE = "create"
    MODIFY = "modify"
    REPLACE = "replace"
    DELETE = "delete"


class Outcome(enum.Enum):
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # it named an object whose own step failed, or the pass ended before it


@dataclass(frozen=True, slots=True)
class Change:
    """One printable entry of a plan: verb, object kind (`load balancer`), key and why. Disruptive: a gap in traffic."""

    verb: Verb
    kind: str
    key: str
    why: str
    disruptive: bool = False
    owners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one change. error: the host's own words and code, "" if done."""

    change: Change
    outcome: Outcome
    error: str = ""
    error_class: str = ""


class HostState(enum.Enum):
    HEALTHY = "healthy"
    UNAVAILABLE = "unavailable"  # nothing may be concluded about any object
    WAITING = "waiting"  # a precondition (HNS network, source VIP...) is missing


class ObjectCounts(NamedTuple):
    """Objects of one kind: wanted; ours on the host; others' on the host. None = the dataplane does not tell."""

    desired: int
    observed: int | None = None
    foreign: int | None = None


class Waiting(NamedTuple):
    """An object that the host refused and that is tried again.

    retry_at: monotonic time, None = not before something changes. failures: in a row, of this class. owners: the
    service ports that it is for, as `NAMESPACE/NAME:PORT`.
    """

    key: str
    error_class: str
    error: str
    failures: int
    retry_at: float | None
    owners: tuple[str, ...] = ()


class ConntrackRun(NamedTuple):
    """One look for stale flows: how long it took, and how many flows were cut."""

    duration_s: float
    deleted: int


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync did. pending: keys not as desired. retry_at: monotonic time of the earliest retry, None = none.

    again: the pass ended early (call budget); the next one should follow at once. host_calls counts calls to the host.
    drift: changes that no rule change asked for, i.e. someone else had altered the host. conditions: human sentences.
    pending_by_family: `pending` by family; None = the dataplane does not tell. calls_by_verb: `host_calls` by the
    host's own verbs; empty = the dataplane does not tell. failed_families: those of which nothing could be brought
    about, so that every frontend counts as pending.
    call_errors: calls that the host refused, by its verb and its code in the host's own spelling. call_times: verb and
    seconds of each call, where the dataplane takes the time. objects: by kind, as of the last comparison with the host.
    backing_off: how many objects wait for another try, by the class of their error; waiting: which. conntrack: by
    family, if this sync looked for stale flows. adopted: by kind, the objects that were there and served as desired at
    the start; told from the first sync on that has gone through all there was to do. idle_locals: addresses of this
    node's pods that the host has, and that rules had once and have had no more for a while.
    """

    state: HostState
    results: tuple[Result, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()
    pending: tuple[str, ...] = ()
    drift: tuple[Change, ...] = ()
    conditions: tuple[str, ...] = ()
    retry_at: float | None = None
    again: bool = False
    host_calls: int = 0
    pending_by_family: Mapping[IPFamily, tuple[str, ...]] | None = None
    calls_by_verb: Mapping[str, int] = field(default_factory=dict)
    failed_families: frozenset[IPFamily] = frozenset()
    call_errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    call_times: tuple[tuple[str, float], ...] = ()
    objects: Mapping[str, ObjectCounts] = field(default_factory=dict)
    backing_off: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    conntrack: Mapping[IPFamily, ConntrackRun] = field(default_factory=dict)
    adopted: Mapping[str, int] = field(default_factory=dict)
    idle_locals: tuple[Address, ...] = ()

    def pending_in(self, family: IPFamily) -> tuple[str, ...]:
        """What of `pending` is of this family; all of it if the dataplane does not tell."""
        return self.pending if self.pending_by_family is None else self.pending_by_family.get(family, ())

    @property
    def ok(self) -> bool:
        return self.state is HostState.HEALTHY and not self.pending and not self.again


class Dataplane(Protocol):
    """What the engine asks of a dataplane. All methods are called from one thread, one at a time."""

    name: str

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        """Take the changes in and bring the host to the desired state as far as possible.

        audit: compare with the host even where no rule changed. Never raises for a host error; a failed sync has taken
        the changes in all the same, and the next one (even with empty changes) goes on with what is still pending.
        """

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        """What a sync would do now; reads the host, writes nothing."""

    def close(self) -> None:
        """Release handles. Rules stay on the host."""


@runtime_checkable
class Renewing(Protocol):
    """A dataplane whose host may hold other than it says, so that what looks as desired can be made anew on demand."""

    def renew(self, owners: Collection[ServicePortName]) -> None:
        """In the next sync, make what these service ports have on the host anew, once, with the shortest gap."""


@runtime_checkable
class Describing(Protocol):
    """A dataplane that tells people what it holds; called in the same thread as its other methods."""

    def describe(self) -> Sequence[Mapping[str, object]]:
        """What should be on the host and what is there of it, object by object, as JSON has it. May ask the host."""
