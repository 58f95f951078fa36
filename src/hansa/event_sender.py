"""EventSender: writes Kubernetes Events beside everything else. It never blocks, and what it cannot write ends here.

Evidence: operations.md 12 and 13.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from hansa import events
from hansa.engine import Clock
from hansa.errors import SourceError
from hansa.events import Continue, Create, Event, EventBook, Regarding, Statement, Topic, Write
from hansa.logs import Logger
from hansa.sources.kubernetes.client import Written

_log = Logger("hansa.events")

QUEUE = 100  # more wait only while the API server is away, and then the newest are the ones that nobody needs
TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# Without permission: somebody may grant it while hansa runs, but asking again costs the API server.
REFUSED_PAUSE_S = 600.0
_FORBIDDEN, _NOT_FOUND, _CONFLICT, _TOO_MANY, _SERVER_ERROR = 403, 404, 409, 429, 500
TERMINATING = "NamespaceTerminating"


class Client(Protocol):
    """What writes; `EventClient`."""

    async def create(self, namespace: str, event: Mapping[str, object]) -> Written: ...

    async def patch(self, namespace: str, name: str, change: Mapping[str, object]) -> Written: ...


class EventSender:
    """`tell` and `observe` only put something in the queue; `run` writes, one after another."""

    def __init__(
        self,
        open_client: Callable[[], AbstractAsyncContextManager[Client]],
        clock: Clock,
        *,
        host_name: str,
        uid_of: Callable[[Regarding], str],
        count: Callable[[str, str], None],
    ) -> None:
        """uid_of: "" if it is not known. count: hears reason and outcome of every Event."""
        self._open_client = open_client
        self._clock = clock
        self._host_name = host_name
        self._uid_of = uid_of
        self._count = count
        self._book = EventBook()
        self._queue: asyncio.Queue[Write] = asyncio.Queue(QUEUE)
        self._silent_until = 0.0

    def tell(self, event: Event) -> None:
        write = self._book.tell(event, now=self._clock.now(), wall=self._clock.wall())
        if write is None:
            self._count(event.reason, "limited")
        else:
            self._put(write)

    def observe(self, holding: Mapping[Topic, Statement]) -> None:
        """Tell what of this is news."""
        for write in self._book.observe(holding, now=self._clock.now(), wall=self._clock.wall()):
            self._put(write)

    async def run(self) -> None:
        """Write for ever."""
        async with self._open_client() as client:
            while True:
                write = await self._queue.get()
                try:
                    await self._send(client, write)
                except Exception as error:  # noqa: BLE001 - a bug of ours must not end the Events
                    _log.exception("event cannot be written", error, reason=write.event.reason)
                    self._end(write, "failed")
                finally:
                    self._queue.task_done()

    async def written(self) -> None:
        """Return once nothing waits to be written."""
        await self._queue.join()

    def _put(self, write: Write) -> None:
        try:
            self._queue.put_nowait(write)
        except asyncio.QueueFull:
            self._end(write, "dropped")

    async def _send(self, client: Client, write: Write) -> None:
        pause_s = FIRST_PAUSE_S
        for attempt in range(TRIES):
            if attempt:
                await self._clock.wait(asyncio.Event(), self._clock.now() + pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            if self._clock.now() < self._silent_until:
                self._end(write, "refused")
                return
            try:
                answer = await self._write(client, write)
            except SourceError:  # the source says it, and better: it asks the same server
                continue
            if answer.code == _TOO_MANY or answer.code >= _SERVER_ERROR:
                pause_s = max(pause_s, answer.retry_after_s)
                continue
            self._judge(write, answer)
            return
        self._end(write, "failed")

    async def _write(self, client: Client, write: Write) -> Written:
        namespace = events.namespace_of(write.event)
        match write:
            case Create():
                uid = self._uid_of(write.event.regarding)
                return await client.create(namespace, events.document(write, host_name=self._host_name, uid=uid))
            case Continue():
                answer = await client.patch(namespace, write.name, events.series_change(write))
                if answer.code == _NOT_FOUND:  # it has grown old and is gone: begin again
                    return await self._write(client, Create(write.event, write.name, write.wall))
                return answer

    def _judge(self, write: Write, answer: Written) -> None:
        if answer.code < 300 or answer.code == _CONFLICT:  # a try before has come through after all
            self._end(write, "sent")
        elif answer.code == _FORBIDDEN and TERMINATING not in answer.causes:
            self._silent_until = self._clock.now() + REFUSED_PAUSE_S
            _log.warning("events may not be written", again_in_s=REFUSED_PAUSE_S, message=answer.message)
            self._end(write, "refused")
        else:
            self._end(write, "failed")
            if TERMINATING not in answer.causes:
                reason = write.event.reason
                _log.warning("event refused", reason=reason, code=answer.code, message=answer.message)

    def _end(self, write: Write, outcome: str) -> None:
        self._count(write.event.reason, outcome)
        if outcome in ("failed", "dropped", "refused"):
            self._book.failed(write)
