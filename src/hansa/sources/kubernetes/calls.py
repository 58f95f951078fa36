"""ApiCall: one request to the API server, as metrics count it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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


OnCall = Callable[[ApiCall], None]
NO_ANSWER = "<error>"


def ignore(_: ApiCall) -> None:
    """For whoever does not count."""
