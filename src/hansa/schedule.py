"""Schedule: when the next sync is due, and of which kind. No clock inside: `now` is always an argument.

A run starts at once when somebody asks for it and nothing else stands against it; requests that come during a run or
the pause after it become one run. Without requests there are three timers, all counted from the end of a run: the retry
of a failed run, the check of the host against the rules, and the full sync.

    request -> due at once ─┐                       ┌─ ok ──────────────> timers only
                            ├─> started -> finished ┼─ failed, retry_at > partial run then: the dataplane keeps account
    timer ------------------┘                       ├─ failed ──────────> full run after the sync period
                                                    └─ again ───────────> next run without a pause

One schedule serves both families. kube-proxy runs one per family so that they cannot hold each other up; here one sync
takes both, because a host has one set of objects, and a family whose objects fail is retried by its own keys (B10).

Evidence: service-semantics section 17, B1 to B11; windows-proxy E.1, F30, F31, H.6 to H.8.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from hansa.config import Config


class RunKind(enum.IntEnum):
    """What a run covers; a greater one includes the smaller ones."""

    PARTIAL = 1  # the changes since the last run
    AUDIT = 2  # and the host is compared with the rules even where none changed
    FULL = 3  # and every rule is handed to the dataplane anew

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Due:
    """A run that is due `at` this time (in the past: now), if nobody asks for anything before."""

    at: float
    kind: RunKind


class Schedule:
    """The times of one loop of syncs; used by one thread.

    `started` and `finished` alternate. Times are seconds of one monotonic clock and never decrease.
    """

    def __init__(self, config: Config) -> None:
        self.reconfigure(config)
        self._running: RunKind | None = None
        self._requested_at: float | None = None
        self._retry_at: float | None = None
        self._go_on_at: float | None = None
        self._check_at: float | None = None
        self._full_at: float | None = None
        self._pause_until = float("-inf")
        # The first run is full (B9), and so is the one after a failure that nobody keeps account of (B8).
        self._next_is_full = True

    def reconfigure(self, config: Config) -> None:
        """Times of another configuration; what is due already stays due."""
        self._pause_s = config.min_sync_period_s
        self._retry_s = config.sync_period_s  # B5 bounds it by the full period: that timer runs besides
        self._check_s = config.full_check_period_s
        self._full_s = config.full_sync_period_s

    def request(self, now: float, *, full: bool = False) -> None:
        """Something has changed. During a run it counts for the next one, since the run works on what it was given."""
        if self._requested_at is None:
            self._requested_at = now
        self._next_is_full |= full

    def next_sync(self, now: float) -> Due | None:
        """The run that is due next; None while one is running, or if nothing will be due before a request comes.

        The kind is the greatest of all that is due by then, so that a check does not follow right after another run.
        """
        if self._running is not None:
            return None
        moments = (
            (self._requested_at, RunKind.PARTIAL),
            (self._retry_at, RunKind.PARTIAL),
            (self._check_at, RunKind.AUDIT),
            (self._full_at, RunKind.FULL),
        )
        known = [(max(at, self._pause_until), kind) for at, kind in moments if at is not None]
        if self._go_on_at is not None:
            known.append((self._go_on_at, RunKind.PARTIAL))  # the rest of a run is part of it: no pause between
        if not known:
            return None
        at = min(at for at, _ in known)
        kind = max(kind for due, kind in known if due <= max(at, now))
        return Due(at, RunKind.FULL if self._next_is_full else kind)

    def started(self, now: float) -> RunKind:
        """A run begins and takes up every request made so far; the answer is what it has to cover."""
        assert self._running is None, "a run begins while another one is under way"
        due = self.next_sync(now)
        self._running = due.kind if due is not None else RunKind.FULL
        self._requested_at = None
        self._next_is_full = False
        return self._running

    def finished(self, now: float, *, ok: bool, retry_at: float | None = None, again: bool = False) -> None:
        """The run has ended.

        ok: nothing is gained by running again; cancels an outstanding retry (B5). Not ok with `retry_at`: the dataplane
        has taken the changes in and knows what is missing, so that a partial run at that time will do. Not ok without:
        nobody knows, so that the next run, whatever causes it, is full, and comes after the sync period at the latest.
        again: the dataplane stopped early for want of budget and wants to go on without a pause.
        """
        assert self._running is not None, "a run ends that had not begun"
        if self._running >= RunKind.AUDIT:
            self._check_at = now + self._check_s
        if self._running is RunKind.FULL:
            self._full_at = now + self._full_s
        self._running = None
        self._pause_until = now + self._pause_s
        self._go_on_at = now if again else None
        if ok or again or retry_at is not None:
            self._retry_at = retry_at
        else:
            self._retry_at = now + self._retry_s
            self._next_is_full = True


class Backlog:
    """Since when the host has not been as desired: what health and liveness are judged by (Z1 to Z4, I15).

    `started` and `finished` as for `Schedule`, but `ok` means that nothing at all is pending on the host.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._pending_since: dict[str, float] = {}
        self._since_during_run: float | None = None
        self._running_since: float | None = None
        self._last_ok_at: float | None = None

    @property
    def waiting_since(self) -> float | None:
        """The oldest request that no run has satisfied, in whole or for some key; None if the host is as desired."""
        return min((since for since in (self._since, *self._pending_since.values()) if since is not None), default=None)

    @property
    def has_pending(self) -> bool:
        """Whether the last run that reached the host left keys behind."""
        return bool(self._pending_since)

    @property
    def running_since(self) -> float | None:
        return self._running_since

    @property
    def last_ok_at(self) -> float | None:
        """When the last run ended after which nothing was pending; None before the first."""
        return self._last_ok_at

    def request(self, now: float) -> None:
        if self._since is None:
            self._since = now
        if self._running_since is not None and self._since_during_run is None:
            self._since_during_run = now

    def started(self, now: float) -> None:
        self._running_since = now
        self._since_during_run = None

    def finished(self, now: float, *, ok: bool, pending: Collection[str] | None = None) -> None:
        """A failed run keeps the oldest request, and is one itself if it found the host wrong without being asked.

        pending: the run went through all it had to do and satisfied every request but for these keys, each of which
        waits from the request on that it was pending after first; None: nobody knows.
        """
        since = min(one for one in (self._since, self._running_since, now) if one is not None)
        if ok:
            self._pending_since = {}
            self._since = self._since_during_run
            self._last_ok_at = now
        elif pending is not None:
            self._pending_since = {key: self._pending_since.get(key, since) for key in pending}
            self._since = self._since_during_run
        else:
            self._since = since
        self._running_since = None
