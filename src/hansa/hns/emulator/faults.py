"""Things that go wrong on purpose: which call of which object, how often, and what happens then. And the fake clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hansa.hns.api import Guid, HnsKind, HnsVerb, HResult
from hansa.hns.record import RPC_CALL_FAILED, RPC_SERVER_UNAVAILABLE
from hansa.hns.schema import HnsObject

PORT_ALREADY_EXISTS = HResult(0x803B0013)


class Clock(Protocol):
    """Time that only moves when told; seconds."""

    def now(self) -> float: ...

    def advance(self, seconds: float) -> None: ...


class ManualClock:
    """The usual Clock: starts at 0."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += seconds


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it reaches HNS.

    verb, kind: None for the version. guid: "" for enumerations, ZERO_GUID if HNS is to choose.
    value: the object that is opened, queried, modified or deleted (None if unknown), or that a create asks for (None
    if its document cannot be read). document: settings of a create or modify, the query of an enumeration, else "".
    """

    verb: HnsVerb | None
    kind: HnsKind | None
    guid: Guid | str
    value: HnsObject | None = None
    document: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing is done and this code comes back."""

    hresult: HResult = RPC_SERVER_UNAVAILABLE
    text: str = ""


@dataclass(frozen=True, slots=True)
class LoseReply:
    """It is done, and the caller gets an error all the same."""

    hresult: HResult = RPC_CALL_FAILED


@dataclass(frozen=True, slots=True)
class Delay:
    """It takes so much longer (on the fake clock)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LeavePartial:
    """Creating a load balancer fails, yet leaves one without port mappings (hcn.md 5.10 B3)."""

    hresult: HResult = PORT_ALREADY_EXISTS


@dataclass(frozen=True, slots=True)
class LeakReservation:
    """Deleting a load balancer works, yet its frontends stay reserved (windows-proxy F43)."""


Effect = Refuse | LoseReply | Delay | LeavePartial | LeakReservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """When the effect happens. verb, kind: None = any. where: which objects or documents, None = any.

    skip: so many matching calls pass before (the nth fails: skip=n-1). times: how many then are hit, None = all.
    since, until: only while the clock is within, None = open end. Closing a handle is never hit.
    """

    effect: Effect
    verb: HnsVerb | None = None
    kind: HnsKind | None = None
    where: Callable[[Call], bool] | None = None
    skip: int = 0
    times: int | None = 1
    since: float | None = None
    until: float | None = None

    def matches(self, call: Call, now: float) -> bool:
        return (
            self.verb in (None, call.verb)
            and self.kind in (None, call.kind)
            and (self.since is None or now >= self.since)
            and (self.until is None or now < self.until)
            and (self.where is None or self.where(call))
        )


class Faults:
    """The faults that are armed. `struck` counts what has struck: a test whose fault never struck proves nothing."""

    def __init__(self) -> None:
        self._armed: list[tuple[Fault, list[int]]] = []  # per fault: calls still to pass, hits still to come (-1: all)
        self.struck: Counter[Effect] = Counter()

    @property
    def hits(self) -> int:
        """How often anything has struck."""
        return self.struck.total()

    def __bool__(self) -> bool:
        return bool(self._armed)

    def add(self, fault: Fault) -> None:
        self._armed.append((fault, [fault.skip, -1 if fault.times is None else fault.times]))

    def clear(self) -> None:
        self._armed.clear()

    def take(self, call: Call, now: float) -> tuple[Effect, ...]:
        """Effects for this call, in the order in which they were armed; used-up faults are dropped."""
        effects: list[Effect] = []
        for fault, counters in self._armed:
            if not fault.matches(call, now):
                continue
            if counters[0] > 0:
                counters[0] -= 1
                continue
            counters[1] -= 1 if counters[1] > 0 else 0
            effects.append(fault.effect)
        self.struck.update(effects)
        self._armed = [each for each in self._armed if each[1][1] != 0]
        return tuple(effects)
