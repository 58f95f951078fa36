"""What requests to the API server cost, as metrics count it, and how many may be made. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hansa.bucket import Bucket


@dataclass(frozen=True, slots=True)
class ApiCall:
    """method: HTTP's. host: with port, as in the address. code: the HTTP status, `<error>` if there was no answer.

    duration_s: until the answer was complete, None for a watch, whose sizes are not told either. waited_s: for its turn
    under the client's limit, None without a limit. retried_code: code of the failed answer after which this request was
    made again, "" = it is no repetition.
    """

    method: str
    host: str
    code: str
    duration_s: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    waited_s: float | None = None
    retried_code: str = ""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one request that was made to see whether it is allowed.

    code: the HTTP status, 0 = there was no answer. words: the refusal's own, or why there was no answer. date: as the
    server told it, "" = it did not. at: when that was, in seconds since 1970 by our clock. found: objects in the answer
    to a list, which asks for one, None = it was none.
    """

    code: int
    words: str = ""
    date: str = ""
    at: float = 0.0
    found: int | None = None


OnCall = Callable[[ApiCall], None]
NO_ANSWER = "<error>"


def ignore(_: ApiCall) -> None:
    """For whoever does not count."""


class RateLimit:
    """Lets `burst` requests go at once and `qps` a second after that, as kube-proxy's client does."""

    def __init__(self, qps: float, burst: int) -> None:
        self._bucket = Bucket(max(1, burst), 1 / qps)

    def reserve(self, now: float) -> float:
        """Take a turn; returns how many seconds it is away.

        >>> limit = RateLimit(qps=2, burst=1)
        >>> limit.reserve(0.0), limit.reserve(0.0), limit.reserve(0.0), limit.reserve(10.0)
        (0.0, 0.5, 1.0, 0.0)
        """
        return self._bucket.reserve(now)
