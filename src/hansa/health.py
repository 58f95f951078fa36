"""Health, metrics and Events beside the engine: what each port answers, and who hears of what.

All of it runs in the engine's event loop, and the engine syncs in a thread of its own, so every answer comes at once
from a snapshot, however long a host call takes. What is answered is decided in `hansa.health_answers`,
`hansa.health_pages`, `hansa.meter` and `hansa.documents`; sockets are in `hansa.health_http`.
Evidence: service-semantics H1 to H14, Z1 to Z14; operations.md 10 and 12.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import psutil
from aiohttp import web

from hansa import __version__, healing, logs
from hansa.api.objects import ServiceKey
from hansa.config import BindAddress, Config
from hansa.dataplanes.base import SyncReport
from hansa.dns_probe import DnsProbe
from hansa.documents import API_VERSION, config_document
from hansa.engine import Clock, Engine, SyncRecord, SystemClock, leave_threads_behind
from hansa.engine import run as run_engine
from hansa.event_sender import EventSender
from hansa.events import Event, Regarding, Tell, failing_at, started, statements
from hansa.health_answers import (
    NOT_FOUND,
    Answer,
    Moment,
    document,
    health_check,
    healthz,
    judge,
    livez,
    plain,
    readyz,
    wanted_listeners,
)
from hansa.health_debug import Debug
from hansa.health_http import HealthCheckServers, Server, is_local, response
from hansa.health_pages import Shown, flagz, process_healthz, statusz
from hansa.logs import Logger
from hansa.meter import Identity, Meter, ProcessFacts
from hansa.metrics import CONTENT_TYPE, HEALTHCHECK, HEALTHCHECKS, PROCESS_START, SLI_METRICS, Metrics
from hansa.pipeline import HealthCheckKey
from hansa.sources import Source
from hansa.sources.kubernetes.client import KubernetesSource

__all__ = ["Servers", "run", "serving"]

_log = Logger("hansa.health")

TELL_PAUSE_S = 2.0
# The words that kube-proxy has for what programs the host; e2e tests and operators read them.
MODES: Mapping[str, str] = {"windows": "kernelspace"}
# As /metrics/slis names them: kube-proxy's only check, and hansa's own on the health port.
_PING, _PROXY = "ping", "proxy"


@asynccontextmanager
async def serving(
    engine: Engine,
    config: Config,
    *,
    clock: Clock | None = None,
    tell: Tell | None = None,
    cluster: KubernetesSource | None = None,
    shown: Shown | None = None,
) -> AsyncIterator[Servers]:
    """Serve health and metrics of `engine` for as long as the context is open; before `engine.run` and until its end.

    tell: who hears of servers that cannot start; default: the log. cluster: the API server, which is told by Events and
    whose requests are counted; None = the objects come from elsewhere. shown: what the command line tells. Raises
    DataplaneError if a port is taken and bindAddressHardFail is set.
    """
    if cluster is not None:
        leave_threads_behind()  # Events may look the API server up before the engine runs
    servers = Servers(engine, config, clock=clock or SystemClock(), tell=tell or _log_event, shown=shown or Shown())
    servers.follow(cluster)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.close()


async def run(
    engine: Engine, config: Config, *, source: Source | None = None, shown: Shown | None = None
) -> int | None:
    """Run the engine with its servers until a signal; returns the signal's number, None without one.

    source: where the objects come from; if that is an API server, it is told by Events. shown: see `serving`.
    """
    cluster = source if isinstance(source, KubernetesSource) else None
    async with serving(engine, config, cluster=cluster, shown=shown):
        return await run_engine(engine)


class Servers:
    """All of them. `healthz` and `metrics`: None if switched off; `health_checks`: those of section 14.

    `events`: None as long as no API server is told.
    """

    def __init__(self, engine: Engine, config: Config, *, clock: Clock, tell: Tell, shown: Shown) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._mode = MODES.get(engine.dataplane_name, engine.dataplane_name)
        self._shown = shown
        self._metrics, self._slis = Metrics(), Metrics(SLI_METRICS)
        self._meter = Meter(self._metrics, _identity(engine.dataplane_name))
        self._meter.features(shown.gates)
        self._debug = Debug(engine, clock, mode=self._mode, node_name=config.node_name, profiling=shown.profiling)
        self._healer = healing.Healer(engine, clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._synced = asyncio.Event()
        self._news = asyncio.Event()
        self._log_tell = tell
        self.events: EventSender | None = None
        make = partial(
            Server, node_name=config.node_name, hard_fail=config.bind_address_hard_fail, clock=clock, tell=self._tell
        )
        self.healthz = _optional(config.healthz_bind_address, lambda at: make("healthz", at, self._answer_health))
        self.metrics = _optional(config.metrics_bind_address, lambda at: make("metrics", at, self._answer_metrics))
        self.health_checks = HealthCheckServers(self._answer_health_check, self._tell)

    def follow(self, cluster: KubernetesSource | None) -> None:
        """Count what this API server is asked, and tell it by Events; before `start`."""
        if cluster is not None:
            cluster.on_call = self._meter.called
            self.events = EventSender(
                cluster.event_client,
                self._clock,
                host_name=self._config.node_name,
                uid_of=self._uid_of,
                count=self._meter.event,
            )

    def _uid_of(self, regarding: Regarding) -> str:
        """Of a Service, so that `kubectl describe` shows the Event; of a Node kube-proxy does not tell it either."""
        if regarding.kind != "Service":
            return ""
        found = self._engine.service(ServiceKey(regarding.namespace, regarding.name))
        return found.uid if found is not None else ""

    def _tell(self, event: Event) -> None:
        self._log_tell(event)
        if self.events is not None:
            self.events.tell(event)

    def reconfigure(self, config: Config, shown: Shown) -> None:
        """Judge and show by another configuration; where the servers listen stays as it is."""
        self._config = config
        self._shown = shown

    async def start(self) -> None:
        if self.events is not None:
            self._tasks.append(asyncio.create_task(self.events.run()))
            self._tasks.append(asyncio.create_task(self._follow_state(self.events)))
            self.events.tell(started(self._config.node_name))
        for server in (self.healthz, self.metrics):
            if server is not None and not await server.try_open():
                self._tasks.append(asyncio.create_task(server.keep_trying()))
        self._engine.on_sync(self._saw)
        self._tasks.append(asyncio.create_task(self._follow_health_checks()))
        if self._config.windows.dns_probe_period_s and self._engine.dataplane_name == "windows":
            self._tasks.append(asyncio.create_task(DnsProbe(self._engine, self._config, clock=self._clock).run()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        servers = (self.health_checks, self.healthz, self.metrics)
        await asyncio.gather(*(one.close() for one in servers if one is not None))

    def _saw(self, record: SyncRecord, report: SyncReport | None) -> None:
        self._synced.set()
        self._news.set()
        self._meter.observe(record, report, self._engine.state)
        self._debug.saw(record, report)

    async def _follow_health_checks(self) -> None:
        while True:
            await self._synced.wait()
            self._synced.clear()
            try:
                await self.health_checks.follow(wanted_listeners(self._engine.state))
            except Exception as error:  # noqa: BLE001 - it must not freeze the ports; the next sync tries again
                _log.exception("health check ports cannot be followed", error)

    async def _follow_state(self, sender: EventSender) -> None:
        """Tell of what has begun and ended, at most once in TELL_PAUSE_S: going through all of it has its price."""
        never = asyncio.Event()
        while True:
            state = self._engine.state
            try:
                async with self._engine.reading() as pipeline:
                    holding = statements(state, self._config, self._clock.now(), pipeline)
                sender.observe(holding)
            except Exception as error:  # noqa: BLE001 - it must not end the Events; the next look tries again
                _log.exception("events cannot be told", error)
            await self._clock.wait(never, self._clock.now() + TELL_PAUSE_S)
            now, due = self._clock.now(), failing_at(state, self._config)
            await self._clock.wait(self._news, due if due is not None and due > now else None)
            self._news.clear()

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._clock.wall())

    async def _answer_health(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any method, as kube-proxy does it."""
        state, moment = self._engine.state, self._moment()
        match request.path:
            case "/healthz":
                answer = healthz(judge(state, self._config, moment.now), moment)
            case "/livez":
                answer = livez(judge(state, self._config, moment.now), moment)
            case "/readyz":
                answer = readyz(state, moment)
            case _:
                return response(NOT_FOUND)
        if request.path != "/readyz":
            self._meter.answered(request.path, answer.code)
        self._checked(_PROXY, request.path[1:], is_healthy=answer.code == 200)
        return response(answer)

    def _checked(self, name: str, kind: str, *, is_healthy: bool) -> None:
        self._slis.set(HEALTHCHECK, float(is_healthy), name, kind)
        self._slis.add(HEALTHCHECKS, 1, name, kind, "success" if is_healthy else "error")

    def _answer_health_check(self, key: HealthCheckKey) -> Answer:
        state = self._engine.state
        # Without a health server nobody has asked for the proxy's own health, as kube-proxy's documentation has it.
        healthy = self.healthz is None or judge(state, self._config, self._clock.now()).healthy
        return health_check(key.service, state.health_checks.get(key), healthy=healthy)

    async def _answer_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        accept = request.headers.get("Accept", "")
        match request.path:
            case "/metrics":
                return self._metrics_response(request)
            case "/metrics/slis":
                return self._slis_response(request)
            case "/healthz" | "/healthz/ping":
                self._checked(_PING, "healthz", is_healthy=True)
                verbose = "verbose" in request.query and request.path == "/healthz"
                return response(process_healthz(verbose=verbose, exclude=request.query.getall("exclude", [])))
            case "/proxyMode":
                return response(plain(self._mode))
            case "/configz":
                shown = self._shown.configuration or config_document(self._config, self._mode)
                return response(document({API_VERSION.partition("/")[0]: shown}))
            case "/flagz":
                return response(flagz(replace(self._shown, flags=self._flags()), accept))
            case "/statusz":
                started_at = read_process().started_at
                python = platform.python_version()
                return response(statusz(self._shown, accept, self._moment(), started_at=started_at, python=python))
            case healing.PATH:
                return await self._answer_heal(request)
            case path if path.startswith("/debug/"):
                return await self._debug.answer(request)
            case _:
                return response(NOT_FOUND)

    def _flags(self) -> Mapping[str, str]:
        """As given, but for the addresses of node ports, which kube-proxy shows as they are in force."""
        flags, name = self._shown.flags, "nodeport-addresses"
        ips = [f"{ip}/{ip.max_prefixlen}" for ip in self._engine.node_ips]
        if ips and flags.get(name) in ("primary", "[primary]"):
            return {**flags, name: f"[{','.join(ips)}]"}
        return flags

    async def _answer_heal(self, request: web.BaseRequest) -> web.StreamResponse:
        if not is_local(request):
            return response(Answer(403, "only from this machine\n"))
        return response(await self._healer.answer(request.method, request.content_type, await request.read()))

    def _metrics_response(self, request: web.BaseRequest) -> web.Response:
        ports = self.health_checks
        self._meter.health_check_ports(listening=len(ports.listening), failed=len(ports.failures))
        self._meter.log_suppressed(logs.suppressed_count())
        process = read_process()
        self._meter.refresh(self._engine.state, self._moment(), process)
        started = {"Process-Start-Time-Unix": str(int(process.started_at))}
        answer = response(Answer(200, self._metrics.text(), {"Content-Type": CONTENT_TYPE, **started}))
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            answer.enable_compression(web.ContentCoding.gzip)
        return answer

    def _slis_response(self, request: web.BaseRequest) -> web.Response:
        if request.method == "DELETE":
            self._slis = Metrics(SLI_METRICS)
            return response(plain("metrics reset\n"))
        self._slis.set(PROCESS_START, read_process().started_at)
        return response(Answer(200, self._slis.text(), {"Content-Type": CONTENT_TYPE}))


def _optional(at: BindAddress | None, make: Callable[[BindAddress], Server]) -> Server | None:
    return None if at is None else make(at)


def _identity(dataplane: str) -> Identity:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(name := platform.machine().lower(), name)
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    return Identity(__version__, platform.python_version(), dataplane, f"{system}/{machine}", sys.implementation.name)


def _log_event(event: Event) -> None:
    level = logging.WARNING if event.is_warning else logging.INFO
    fields = {"reason": event.reason, "action": event.action, "object": event.regarding, "note": event.note}
    _log.log(level, "event", fields)


def read_process() -> ProcessFacts:
    process = psutil.Process()
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        if sys.platform == "win32":
            open_fds, max_fds = process.num_handles(), None
        else:
            import resource

            open_fds, max_fds = process.num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ProcessFacts(
            cpu_s=times.user + times.system,
            resident_bytes=memory.rss,
            virtual_bytes=memory.vms,
            open_fds=open_fds,
            max_fds=max_fds,
            started_at=process.create_time(),
        )
