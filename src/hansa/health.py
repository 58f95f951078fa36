"""The HTTP servers beside the engine: health, metrics, and one listener per healthCheckNodePort.

They run in the engine's event loop, and the engine syncs in a thread of its own, so every answer comes at once from a
snapshot, however long a host call takes. A port that is taken never ends hansa unless `bindAddressHardFail` says so:
it is tried again (healthCheckNodePorts at each sync, the others every RETRY_S) and said once.

What is answered is decided in `hansa.health_answers`, `hansa.meter` and `hansa.documents`; here are only sockets.
Evidence: service-semantics H1 to H14, Z1 to Z14; operations.md 10.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import psutil
from aiohttp import web

from hansa import __version__, healing
from hansa.api.objects import ServiceKey
from hansa.config import BindAddress, Config
from hansa.dataplanes.base import SyncReport
from hansa.documents import API_VERSION, config_document, service_documents, service_keys, state_head
from hansa.engine import Clock, Engine, SyncRecord, SystemClock, leave_threads_behind
from hansa.engine import run as run_engine
from hansa.errors import DataplaneError
from hansa.event_sender import EventSender
from hansa.events import Event, Regarding, Tell, failed_listener, failed_server, failing_at, started, statements
from hansa.health_answers import (
    NOT_FOUND,
    Answer,
    Listener,
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
from hansa.logs import Logger
from hansa.meter import Identity, Meter, ProcessFacts
from hansa.metrics import CONTENT_TYPE, Metrics
from hansa.net import Address, IPFamily, parse_address
from hansa.pipeline import HealthCheckKey
from hansa.sources import Source
from hansa.sources.kubernetes.client import KubernetesSource

__all__ = ["Servers", "run", "serving"]

_log = Logger("hansa.health")

RETRY_S = 5.0  # kube-proxy's pause between tries to bind (Z14)
# Answers are ready at once, so what is still open after this is a client that does not read.
CLOSE_GRACE_S = 0.25
KEEP_ALIVE_S = 30.0
PORTS_FROM = 2  # verbosity from which on lines tell of single healthCheckNodePorts
BACKLOG = 128
TELL_PAUSE_S = 2.0
SERVICES_PER_CHUNK = 50  # of /debug/state: a few milliseconds' worth, between which the engine gets its turn
# The words that kube-proxy has for what programs the host; e2e tests and operators read them.
MODES: Mapping[str, str] = {"windows": "kernelspace"}

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(
    engine: Engine,
    config: Config,
    *,
    clock: Clock | None = None,
    tell: Tell | None = None,
    cluster: KubernetesSource | None = None,
) -> AsyncIterator[Servers]:
    """Serve health and metrics of `engine` for as long as the context is open; before `engine.run` and until its end.

    tell: who hears of servers that cannot start; default: the log. cluster: the API server, which is told by Events and
    whose requests are counted; None = the objects come from elsewhere. Raises DataplaneError if a port is taken and
    bindAddressHardFail is set.
    """
    servers = Servers(engine, config, clock=clock or SystemClock(), tell=tell or _log_event, cluster=cluster)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.close()


async def run(engine: Engine, config: Config, *, source: Source | None = None) -> int | None:
    """Run the engine with its servers until a signal; returns the signal's number, None without one.

    source: where the objects come from; if that is an API server, it is told by Events.
    """
    leave_threads_behind()  # Events may look the API server up before the engine runs
    async with serving(engine, config, cluster=source if isinstance(source, KubernetesSource) else None):
        return await run_engine(engine)


class Servers:
    """All of them. `healthz` and `metrics`: None if switched off; `health_checks`: those of section 14."""

    def __init__(
        self, engine: Engine, config: Config, *, clock: Clock, tell: Tell, cluster: KubernetesSource | None = None
    ) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._mode = MODES.get(engine.dataplane_name, engine.dataplane_name)
        self._metrics = Metrics()
        identity = Identity(__version__, platform.python_version(), engine.dataplane_name)
        self._meter = Meter(self._metrics, identity)
        self._healer = healing.Healer(engine, clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._synced = asyncio.Event()
        self._news = asyncio.Event()
        self._log_tell = tell
        self.events = self._event_sender(cluster)
        make = partial(
            _Server, node_name=config.node_name, hard_fail=config.bind_address_hard_fail, clock=clock, tell=self._tell
        )
        self.healthz = _optional(config.healthz_bind_address, lambda at: make("healthz", at, self._answer_health))
        self.metrics = _optional(config.metrics_bind_address, lambda at: make("metrics", at, self._answer_metrics))
        self.health_checks = HealthCheckServers(self._answer_health_check, self._tell)

    def _event_sender(self, cluster: KubernetesSource | None) -> EventSender | None:
        if cluster is None:
            return None
        cluster.on_call = self._meter.called
        return EventSender(
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

    def reconfigure(self, config: Config) -> None:
        """Judge and show by another configuration; where the servers listen stays as it is."""
        self._config = config

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
            async with self._engine.reading() as pipeline:
                holding = statements(state, self._config, self._clock.now(), pipeline)
            try:
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
                return _response(readyz(state, moment))
            case _:
                return _response(NOT_FOUND)
        self._meter.answered(request.path, answer.code)
        return _response(answer)

    def _answer_health_check(self, key: HealthCheckKey) -> Answer:
        state = self._engine.state
        # Without a health server nobody has asked for the proxy's own health, as kube-proxy's documentation has it.
        healthy = self.healthz is None or judge(state, self._config, self._clock.now()).healthy
        return health_check(key.service, state.health_checks.get(key), healthy=healthy)

    async def _answer_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.path:
            case "/metrics":
                return self._metrics_response(request)
            case "/healthz":
                verbose = "verbose" in request.query
                return _response(plain("[+]ping ok\nhealthz check passed\n" if verbose else "ok"))
            case "/healthz/ping":
                return _response(plain("ok"))
            case "/proxyMode":
                return _response(plain(self._mode))
            case "/configz":
                return _response(document({API_VERSION.partition("/")[0]: config_document(self._config, self._mode)}))
            case "/debug/state":
                return await self._answer_state(request)
            case healing.PATH:
                return await self._answer_heal(request)
            case _:
                return _response(NOT_FOUND)

    async def _answer_heal(self, request: web.BaseRequest) -> web.StreamResponse:
        if not _is_local(request):
            return _response(Answer(403, "only from this machine\n"))
        return _response(await self._healer.answer(request.method, request.content_type, await request.read()))

    def _metrics_response(self, request: web.BaseRequest) -> web.Response:
        ports = self.health_checks
        self._meter.health_check_ports(listening=len(ports.listening), failed=len(ports.failures))
        process = read_process()
        self._meter.refresh(self._engine.state, self._moment(), process)
        started = {"Process-Start-Time-Unix": str(int(process.started_at))}
        response = _response(Answer(200, self._metrics.text(), {"Content-Type": CONTENT_TYPE, **started}))
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _answer_state(self, request: web.BaseRequest) -> web.StreamResponse:
        """View, rules, pending and shortfalls as JSON, in pieces: the engine is held up for one piece at a time.

        `?service=namespace/name` shows one Service alone. Only this machine may ask: it tells a cluster's addresses.
        """
        if not _is_local(request):
            return _response(Answer(403, "only from this machine\n"))
        head = state_head(self._engine.state, self._moment(), node_name=self._config.node_name, mode=self._mode)
        wanted = request.query.get("service", "")
        async with self._engine.reading() as pipeline:
            keys = service_keys(pipeline)
        if wanted:
            keys = [key for key in keys if str(key) == wanted]
        response = web.StreamResponse(headers={"Content-Type": "application/json", **_SERVER})
        await response.prepare(request)
        text = json.dumps(head, indent=1).removesuffix("\n}") + ',\n "services": ['
        for start in range(0, len(keys), SERVICES_PER_CHUNK):
            await response.write(text.encode())
            async with self._engine.reading() as pipeline:
                found = service_documents(pipeline, keys[start : start + SERVICES_PER_CHUNK])
            text = ("," if start else "") + ",".join(f"\n  {json.dumps(one)}" for one in found)
        await response.write(f"{text}]\n}}\n".encode())
        await response.write_eof()
        return response


class _Server:
    """A server at one configured address, tried until it can listen."""

    def __init__(
        self,
        name: str,
        at: BindAddress,
        handler: _Handler,
        *,
        node_name: str,
        hard_fail: bool,
        clock: Clock,
        tell: Tell,
    ) -> None:
        self._name, self._at, self._handler = name, at, handler
        self._node_name, self._hard_fail = node_name, hard_fail
        self._clock, self._tell = clock, tell
        self._error = ""
        self._http: _Http | None = None

    @property
    def port(self) -> int | None:
        """Where it listens; None while it cannot."""
        return self._http.port if self._http is not None else None

    async def try_open(self) -> bool:
        """Listen if the port is free; tells it when it is not, and when it is another trouble than before."""
        try:
            sockets = [_listening(self._at.address, self._at.port, both_families=self._at.address.is_unspecified)]
        except OSError as error:
            text = f"listen on {self._at}: {error.strerror or error}"
            if text != self._error:
                self._error = text
                self._tell(failed_server(self._node_name, self._name, text))
            if self._hard_fail:
                raise DataplaneError(f"cannot {text}; bindAddressHardFail is set") from error
            return False
        self._http = _Http(self._handler)
        await self._http.open(sockets)
        _log.info("listening", server=self._name, address=self._at.address, port=self._http.port)
        return True

    async def keep_trying(self) -> None:
        never = asyncio.Event()
        while True:
            await self._clock.wait(never, self._clock.now() + RETRY_S)
            if await self.try_open():
                return

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()


def _optional(at: BindAddress | None, make: Callable[[BindAddress], _Server]) -> _Server | None:
    return None if at is None else make(at)


@dataclass(frozen=True, slots=True)
class _Open:
    listener: Listener
    http: _Http


class HealthCheckServers:
    """One server per Service and family (H2), where `follow` said last."""

    def __init__(self, answer: Callable[[HealthCheckKey], Answer], tell: Tell) -> None:
        self._answer = answer
        self._tell = tell
        self._open: dict[HealthCheckKey, _Open] = {}
        self.failures: dict[HealthCheckKey, str] = {}

    @property
    def listening(self) -> Mapping[HealthCheckKey, Listener]:
        return {key: one.listener for key, one in self._open.items()}

    async def follow(self, wanted: Mapping[HealthCheckKey, Listener]) -> None:
        """Close what is not wanted, or elsewhere (H12, H13), then open what is missing; what fails waits."""
        unwanted = [key for key, one in self._open.items() if wanted.get(key) != one.listener]
        for key in unwanted:
            port = self._open[key].listener.port
            _log.info("health check port closed", v=PORTS_FROM, service=key.service, family=key.family, port=port)
        await asyncio.gather(*(self._open.pop(key).http.close() for key in unwanted))
        self.failures = {key: error for key, error in self.failures.items() if key in wanted}
        for key, listener in wanted.items():
            if key not in self._open:
                await self._try_open(key, listener)

    async def _try_open(self, key: HealthCheckKey, listener: Listener) -> None:
        try:
            sockets = _open_all(key.family, listener)
        except OSError as error:
            text = error.strerror or str(error)
            if self.failures.get(key) != text:
                self.failures[key] = text
                self._tell(failed_listener(key.service, listener.port, text))
            return
        if self.failures.pop(key, None) is not None:
            _log.info("health check port listens again", service=key.service, port=listener.port)
        _log.info("health check port opened", v=PORTS_FROM, service=key.service, family=key.family, port=listener.port)
        self._open[key] = _Open(listener, _Http(partial(self._respond, key)))
        await self._open[key].http.open(sockets)

    async def _respond(self, key: HealthCheckKey, _: web.BaseRequest) -> web.StreamResponse:
        """H5: any method and path."""
        return _response(self._answer(key))

    async def close(self) -> None:
        await self.follow({})


class _Http:
    """HTTP on given sockets: no routes, one handler for whatever is asked."""

    def __init__(self, handler: _Handler) -> None:
        self._protocols = web.Server(
            handler, access_log=None, keepalive_timeout=KEEP_ALIVE_S, logger=logging.getLogger("hansa.health")
        )
        self._servers: list[asyncio.Server] = []
        self.port = 0

    async def open(self, sockets: Iterable[socket.socket]) -> None:
        """Take the sockets over."""
        waiting = list(sockets)
        try:
            while waiting:
                self.port = waiting[0].getsockname()[1]
                # Started in a second step: whoever is cancelled in the first must not lose a socket.
                loop = asyncio.get_running_loop()
                server = await loop.create_server(self._protocols, sock=waiting[0], start_serving=False)
                self._servers.append(server)
                del waiting[0]
                await server.start_serving()
        finally:
            for one in waiting:
                one.close()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        await self._protocols.shutdown(CLOSE_GRACE_S)


_SERVER = {"Server": "hansa"}  # what else runs here is nobody's business


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.code, body=answer.body.encode(), headers={**answer.headers, **_SERVER})


def _is_local(request: web.BaseRequest) -> bool:
    """Whether this machine asks, and by its address: not a page that made a browser here ask a name of its own."""
    host = request.headers.get("Host", "localhost")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return _is_loopback(request.remote or "") and (name == "localhost" or _is_loopback(name))


def _is_loopback(text: str) -> bool:
    try:
        return parse_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _open_all(family: IPFamily, listener: Listener) -> list[socket.socket]:
    """Every address or none (H4). Raises OSError."""
    everywhere = parse_address("0.0.0.0" if family is IPFamily.IPV4 else "::")
    opened: list[socket.socket] = []
    try:
        for address in listener.addresses or (everywhere,):
            opened.append(_listening(address, listener.port))
    except OSError:
        for one in opened:
            one.close()
        raise
    return opened


def _listening(address: Address, port: int, *, both_families: bool = False) -> socket.socket:
    """A listening socket. both_families: on every address of IPv6 and IPv4, as far as this machine has them.

    Raises OSError.
    """
    if both_families:
        try:
            return _bound(socket.AF_INET6, "::", port, dual=True)
        except OSError:
            if address.version == 6:
                raise
            return _bound(socket.AF_INET, "0.0.0.0", port)  # also where the kernel has no IPv6
    return _bound(socket.AF_INET if address.version == 4 else socket.AF_INET6, str(address), port)


def _bound(family: socket.AddressFamily, address: str, port: int, *, dual: bool = False) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if sys.platform == "win32":
            # There SO_REUSEADDR would let two programs have one port.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        made.bind((address, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


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
