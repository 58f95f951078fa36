"""A Dataplane whose host is a dictionary: small, real, and free of any operating system.

It keeps what the protocol promises: changes are taken in even when the host refuses, only an audit notices what others
did to the host, a refused frontend is retried later, and stopping leaves everything in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansa.dataplanes.base import Change, HostState, Outcome, Result, SyncReport, Verb
from hansa.net import IPFamily
from hansa.rules.model import FrontendKey, Rule, RuleChanges, Surroundings

RETRY_S = 2.0


@dataclass
class DictionaryHost:
    """The host. away: it answers nothing. refuse: frontends it will not take. writes: every change, in order.

    hopeless: it says of what it refuses that asking again is no use.
    """

    frontends: dict[FrontendKey, Rule] = field(default_factory=dict)
    away: bool = False
    hopeless: bool = False
    refuse: set[FrontendKey] = field(default_factory=set)
    writes: list[FrontendKey] = field(default_factory=list)


class DictionaryDataplane:
    """before_sync: called in the worker thread at the start of each sync, to hold it up or to raise."""

    name = "dictionary"

    def __init__(self, host: DictionaryHost | None = None) -> None:
        self.host = host or DictionaryHost()
        self.before_sync: Callable[[], None] = lambda: None
        self.messages: list[RuleChanges] = []
        self.audits: list[bool] = []
        self.threads: set[int] = set()
        self.closed = 0
        self.surroundings: Surroundings | None = None
        self._desired: dict[FrontendKey, Rule] = {}
        self._unfinished: set[FrontendKey] = set()

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        self.messages.append(changes)
        self.audits.append(audit)
        self.threads.add(threading.get_ident())
        self.before_sync()
        asked = self._take_in(changes)
        if self.host.away:
            return SyncReport(HostState.UNAVAILABLE, **self._pending(self._unfinished), retry_at=now + RETRY_S)
        keys = self._differences() if audit else self._unfinished & self._differences()
        results, failed, drift = [], set(), []
        for change, key in self._planned(keys):
            if key not in asked:
                drift.append(change)
            refused = key in self.host.refuse
            if refused:
                failed.add(key)
            else:
                self._write(key)
            results.append(Result(change, Outcome.FAILED if refused else Outcome.DONE, "refused" if refused else ""))
        self._unfinished = failed
        return SyncReport(
            HostState.HEALTHY,
            results=tuple(results),
            **self._pending(failed),
            drift=tuple(drift),
            retry_at=now + RETRY_S if failed and not self.host.hopeless else None,
            host_calls=len(results),
        )

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        self._take_in(changes)
        return [change for change, _ in self._planned(self._differences())]

    def close(self) -> None:
        self.closed += 1

    def _take_in(self, changes: RuleChanges) -> set[FrontendKey]:
        """Returns the frontends whose rule is another one now, or that were unfinished before."""
        before = dict(self._desired)
        changes.apply_to(self._desired)
        touched = before.keys() ^ self._desired.keys()
        touched |= {key for key in before.keys() & self._desired.keys() if before[key] != self._desired[key]}
        self.surroundings = changes.surroundings
        self._unfinished |= touched
        return set(self._unfinished)

    def _differences(self) -> set[FrontendKey]:
        keys = self._desired.keys() | self.host.frontends.keys()
        return {key for key in keys if self._desired.get(key) != self.host.frontends.get(key)}

    def _planned(self, keys: set[FrontendKey]) -> list[tuple[Change, FrontendKey]]:
        planned = []
        for key in sorted(keys, key=str):
            verb = Verb.MODIFY if key in self.host.frontends else Verb.CREATE
            verb = verb if key in self._desired else Verb.DELETE
            planned.append((Change(verb, "frontend", str(key), "differs"), key))
        return planned

    def _write(self, key: FrontendKey) -> None:
        self.host.writes.append(key)
        if key in self._desired:
            self.host.frontends[key] = self._desired[key]
        else:
            self.host.frontends.pop(key, None)

    @staticmethod
    def _pending(keys: set[FrontendKey]) -> dict[str, Any]:
        """The two fields of a report."""
        by_family: dict[IPFamily, tuple[str, ...]] = {}
        for key in sorted(keys, key=str):
            by_family[key.family] = (*by_family.get(key.family, ()), str(key))
        return {"pending": tuple(sorted(str(key) for key in keys)), "pending_by_family": by_family}
