"""/debug/ on the metrics port: what hansa thinks, what it did last, what it holds, and what it costs.

It tells a cluster's addresses, so only this machine may ask; and answers cost time, so not too often. What changes
something, or costs much, is there only with profiling. Evidence: operations.md 10.2 and 21 (wishes 1, 13, 21).
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import psutil
from aiohttp import web

from hansa import logs
from hansa.api.objects import ServiceKey
from hansa.bucket import Bucket
from hansa.dataplanes.base import Outcome, Result, SyncReport
from hansa.documents import rule_documents, service_documents, service_keys, state_head, sync_document
from hansa.engine import Clock, Engine, SyncRecord
from hansa.health_answers import NOT_FOUND, Answer, Moment, document, plain
from hansa.health_http import SERVER, is_local, response
from hansa.pipeline import Pipeline

SERVICES_PER_CHUNK = 50  # a few milliseconds' worth, between which the engine gets its turn
# Whoever looks by hand does not notice; a script gone wild does.
BURST, PAUSE_S = 20, 1.0
PROFILE_S, LONGEST_PROFILE_S = 10.0, 60.0
SAMPLE_EVERY_S = 0.01
TYPES_SHOWN = 30
LONGEST_BODY_BYTES = 64
# Where a thread is that waits: it costs nothing then.
_WAITING = frozenset({("selectors.py", "select"), ("threading.py", "wait"), ("engine.py", "_work")})

INDEX = {
    "/debug/hansa/state": "views with reasons, rules, what is pending, shortfalls; ?service=namespace/name for one",
    "/debug/hansa/rules": "the rules in force alone; ?service= as above",
    "/debug/hansa/objects": "what the host should hold and what it holds, object by object",
    "/debug/hansa/last-good": "the last sync that changed something and left nothing to do",
    "/debug/hansa/last-failed": "the last sync in which something failed",
    "/debug/hansa/memory": "how much is held; with profiling ?types=1 for the most frequent objects",
    "/debug/hansa/profile": "with profiling: where time is spent, ?seconds=10; stacks with counts, for flame graphs",
}

Documents = Callable[[Pipeline, Iterable[ServiceKey]], list[dict[str, Any]]]


class _Kept(NamedTuple):
    """A sync as it was; made into a document only if somebody asks, for one may have tens of thousands of steps."""

    record: SyncRecord
    results: tuple[Result, ...]
    moment: Moment


class Debug:
    """Answers what is below /debug/ but for what is mended there."""

    def __init__(self, engine: Engine, clock: Clock, *, mode: str, node_name: str, profiling: bool) -> None:
        self._engine = engine
        self._clock = clock
        self._mode = mode
        self._node_name = node_name
        self._profiling = profiling
        self._bucket = Bucket(BURST, PAUSE_S)
        self._last_good: _Kept | None = None
        self._last_failed: _Kept | None = None
        self._is_profiled = False

    def saw(self, record: SyncRecord, report: SyncReport | None) -> None:
        """Keep what a sync did, if it is worth it."""
        results = report.results if report is not None and not record.error else ()
        if record.ok and any(one.outcome is Outcome.DONE for one in results):
            self._last_good = _Kept(record, results, self._moment())
        elif record.error or record.failed or (record.state is not None and not record.ok and not record.done):
            self._last_failed = _Kept(record, results, self._moment())

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path.startswith("/debug/pprof"):
            text = "profiles of Python are at /debug/hansa/profile, /debug/hansa/memory\n"
            return response(Answer(501, text) if self._profiling else NOT_FOUND)
        if path == "/debug/flags/v":
            return response(await self._set_verbosity(request) if self._profiling else NOT_FOUND)
        if path not in ("/debug/state", "/debug/hansa", "/debug/hansa/", *INDEX):
            return response(NOT_FOUND)
        if not is_local(request):
            return response(Answer(403, "only from this machine\n"))
        if not self._bucket.has_one(self._clock.now()):
            return response(Answer(429, "too many requests; one a second is fine\n", {"Retry-After": "1"}))
        self._bucket.take()
        return await self._answer(request)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.path.removeprefix("/debug/hansa/"):
            case "/debug/state" | "state":
                head = state_head(self._engine.state, self._moment(), node_name=self._node_name, mode=self._mode)
                return await self._stream(request, head, service_documents)
            case "rules":
                return await self._stream(request, {"node": self._node_name}, rule_documents)
            case "objects":
                return response(await self._objects())
            case "last-good":
                return response(_kept(self._last_good, "no sync has changed anything yet"))
            case "last-failed":
                return response(_kept(self._last_failed, "no sync has failed"))
            case "memory":
                return response(document(self._memory(request)))
            case "profile" if self._profiling:
                return response(await self._profile(request))
            case "profile":
                return response(NOT_FOUND)
            case _:
                return response(plain("".join(f"{path}\n    {text}\n" for path, text in INDEX.items())))

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._clock.wall())

    async def _stream(
        self, request: web.BaseRequest, head: dict[str, object], documents: Documents
    ) -> web.StreamResponse:
        """`head` and `services`, as JSON in pieces: the engine is held up for one piece at a time.

        `?service=` shows one Service alone.
        """
        wanted = request.query.get("service", "")
        async with self._engine.reading() as pipeline:
            keys = [key for key in service_keys(pipeline) if wanted in ("", str(key))]
        answer = web.StreamResponse(headers={"Content-Type": "application/json", **SERVER})
        await answer.prepare(request)
        text = json.dumps(head, indent=1).removesuffix("\n}") + ',\n "services": ['
        for start in range(0, len(keys), SERVICES_PER_CHUNK):
            await answer.write(text.encode())
            async with self._engine.reading() as pipeline:
                found = documents(pipeline, keys[start : start + SERVICES_PER_CHUNK])
            text = ("," if start else "") + ",".join(f"\n  {json.dumps(one)}" for one in found)
        await answer.write(f"{text}]\n}}\n".encode())
        await answer.write_eof()
        return answer

    async def _objects(self) -> Answer:
        try:
            found = await self._engine.describe()
        except Exception as error:  # noqa: BLE001 - the host's trouble is the answer
            return Answer(503, f"the host cannot be read: {error}\n")
        if found is None:
            return Answer(501, f"the dataplane {self._engine.dataplane_name} does not tell\n")
        return document({"node": self._node_name, "objects": found})

    def _memory(self, request: web.BaseRequest) -> dict[str, object]:
        state, memory = self._engine.state, psutil.Process().memory_info()
        found: dict[str, object] = {
            "residentBytes": memory.rss,
            "virtualBytes": memory.vms,
            "allocatedBlocks": sys.getallocatedblocks(),
            "collector": {"enabled": gc.isenabled(), "counts": list(gc.get_count()), "frozen": gc.get_freeze_count()},
            "held": {**{str(kind): count for kind, count in state.objects.items()}, "frontends": state.frontends},
        }
        if self._profiling and "types" in request.query:
            counts = Counter(type(one).__qualname__ for one in gc.get_objects())
            found["types"] = dict(counts.most_common(TYPES_SHOWN))
        return found

    async def _profile(self, request: web.BaseRequest) -> Answer:
        try:
            seconds = float(request.query.get("seconds", PROFILE_S))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= LONGEST_PROFILE_S:
            return Answer(400, f"seconds must be a number up to {LONGEST_PROFILE_S:g}\n")
        if self._is_profiled:
            return Answer(429, "another profile is being taken\n", {"Retry-After": f"{LONGEST_PROFILE_S:g}"})
        self._is_profiled = True
        try:
            counts = await asyncio.to_thread(sample, seconds)
        finally:
            self._is_profiled = False
        return plain("".join(f"{stack} {count}\n" for stack, count in sorted(counts.items())))

    async def _set_verbosity(self, request: web.BaseRequest) -> Answer:
        if request.method != "PUT":
            return Answer(406, "unsupported http method\n")
        text = (await request.content.read(LONGEST_BODY_BYTES)).decode("utf-8", "replace").strip()
        if not (text.isascii() and text.isdecimal() and int(text) < 2**31):
            return Answer(400, f"failed set klog.logging.verbosity {text}: it is no whole number\n")
        logs.set_verbosity(int(text))
        return plain(f"successfully set klog.logging.verbosity to {text}")


def _kept(found: _Kept | None, otherwise: str) -> Answer:
    if found is None:
        return Answer(404, f"{otherwise}\n")
    return document(sync_document(found.record, found.results, found.moment))


def sample(seconds: float) -> Counter[str]:
    """Where this process's threads are, looked at every SAMPLE_EVERY_S; threads that wait are left out.

    Returns how often each stack was met, as `thread;outermost;...;innermost`.
    """
    found: Counter[str] = Counter()
    own, end = threading.get_ident(), time.monotonic() + seconds
    while time.monotonic() < end:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != own and not _waits(frame):
                found[";".join((names.get(ident, str(ident)), *_stack(frame)))] += 1
        time.sleep(SAMPLE_EVERY_S)
    return found


def _waits(frame: FrameType) -> bool:
    code = frame.f_code
    return (code.co_filename.replace("\\", "/").rsplit("/", 1)[-1], code.co_name) in _WAITING


def _stack(frame: FrameType) -> list[str]:
    def inner_to_outer() -> Iterator[str]:
        at: FrameType | None = frame
        while at is not None:
            module = at.f_globals.get("__name__", "?")
            yield f"{module}.{at.f_code.co_qualname}"
            at = at.f_back

    return list(inner_to_outer())[::-1]
