"""How often something may be done: a burst at once, and after that one for each pause. Pure."""

from __future__ import annotations


class Bucket:
    """`burst` may be taken at once, and one more for every `pause_s`. `now`: monotonic seconds, never going back.

    >>> bucket = Bucket(burst=1, pause_s=60.0)
    >>> bucket.has_one(0.0), bucket.take(), bucket.has_one(30.0), bucket.has_one(60.0)
    (True, None, False, True)
    """

    __slots__ = ("_at", "_burst", "_left", "_pause_s")

    def __init__(self, burst: int, pause_s: float) -> None:
        self._burst, self._pause_s = float(burst), pause_s
        self._left = self._burst
        self._at: float | None = None

    def has_one(self, now: float) -> bool:
        self._refill(now)
        return self._left >= 1.0

    def take(self) -> None:
        self._left -= 1.0

    def reserve(self, now: float) -> float:
        """Take one, be it there or not; returns how many seconds it is away."""
        self._refill(now)
        self.take()
        return max(0.0, -self._left * self._pause_s)

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) / self._pause_s)
        self._at = now
