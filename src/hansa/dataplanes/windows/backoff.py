"""When to try again what HNS refused, key by key. Pure; `now` is an argument. Evidence: windows-proxy H.6."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from hansa.dataplanes.base import Waiting
from hansa.hns.api import Guid
from hansa.hns.errors import ErrorClass
from hansa.net import Address
from hansa.rules.model import FrontendKey

RetryKey = FrontendKey | Address | Guid
NEVER = float("inf")


class Pace(NamedTuple):
    """Seconds: first pause, longest pause, and the share by which a pause varies so that nodes do not march in step."""

    first_s: float
    longest_s: float
    jitter: float = 0.0


PACES: dict[ErrorClass, Pace] = {
    ErrorClass.TRANSIENT: Pace(1.0, 30.0, 0.2),
    ErrorClass.BUSY: Pace(1.0, 30.0, 0.2),
    ErrorClass.GONE: Pace(1.0, 30.0, 0.2),  # what remains after looking again
    ErrorClass.UNSUPPORTED: Pace(1.0, 30.0, 0.2),  # what remains after choosing the other way
    ErrorClass.UNAVAILABLE: Pace(1.0, 30.0, 0.2),  # ends the pass; the probe decides
    ErrorClass.CONFLICT: Pace(2.0, 300.0),
    ErrorClass.EXHAUSTED: Pace(30.0, 300.0),
    # The same document will most likely be refused again; but HNS has said so of good ones, and nobody may be there to
    # make something change. At once as soon as the desired content, or the host, changes.
    ErrorClass.REJECTED: Pace(60.0, 1800.0, 0.2),
}


@dataclass(frozen=True, slots=True)
class Retry:
    """until: monotonic time before which nothing is tried, NEVER = not before something changes. failures: in a row,
    with the same class."""

    until: float
    error_class: ErrorClass
    error: str
    failures: int


class Backoff:
    """Retries by key; a key in backoff never delays another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._retries: dict[RetryKey, Retry] = {}
        self._now = 0.0

    def __contains__(self, key: object) -> bool:
        """Whether the key has to wait at the time last told by `due`."""
        retry = self._retries.get(key)  # type: ignore[call-overload]
        return retry is not None and retry.until > self._now

    def __len__(self) -> int:
        return len(self._retries)

    def get(self, key: RetryKey) -> Retry | None:
        return self._retries.get(key)

    def fail(self, key: RetryKey, error_class: ErrorClass, error: str, *, final: bool = False) -> Retry:
        """final: another try would do harm and bring nothing, until what is desired, or the host, changes."""
        old = self._retries.get(key)
        failures = old.failures + 1 if old is not None and old.error_class is error_class else 1
        pace = PACES[error_class]
        pause = min(pace.first_s * 2.0 ** min(failures - 1, 16), pace.longest_s)
        pause *= 1.0 + pace.jitter * self._rng.uniform(-1.0, 1.0)
        until = NEVER if final else self._now + pause
        retry = self._retries[key] = Retry(until, error_class, error, failures)
        return retry

    def clear(self, key: RetryKey) -> None:
        self._retries.pop(key, None)

    def clear_all(self) -> None:
        self._retries.clear()

    def due(self, now: float) -> list[RetryKey]:
        """Keys whose pause is over; they stay known, so that a further failure waits longer."""
        self._now = now
        return [key for key, retry in self._retries.items() if retry.until <= now]

    def next_at(self) -> float | None:
        """Time of the earliest retry that has not come yet, None if there is none."""
        waiting = [retry.until for retry in self._retries.values() if self._now < retry.until < NEVER]
        return min(waiting, default=None)

    def by_class(self) -> Counter[str]:
        """How many keys have failed and not come right since, by the class of their error."""
        return Counter(retry.error_class.value for retry in self._retries.values())

    def waiting(self, owners_of: Callable[[RetryKey], tuple[str, ...]]) -> tuple[Waiting, ...]:
        """What the host has refused, by key."""
        found = [
            Waiting(
                f"endpoint {key}" if isinstance(key, IPv4Address | IPv6Address) else str(key),
                retry.error_class.value,
                retry.error,
                retry.failures,
                retry.until if retry.until < NEVER else None,
                owners_of(key),
            )
            for key, retry in self._retries.items()
            if retry.error
        ]
        return tuple(sorted(found, key=lambda one: one.key))
