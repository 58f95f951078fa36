"""The brain's server: gRPC streams for nodes, and HTTP for health and metrics.

Each stream is one coroutine that waits until it is asked and until there is something to say. What it says is made by
`batches`; the client's pace is the stream's: as long as it does not read, or does not ask, nothing is made for it.

Whoever may connect learns every Service of the cluster, so plain connections are for this machine only, unless the
operator says otherwise (D14).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hansa.brain import metrics
from hansa.brain.batches import BREATHE, global_batch, local_batch, node_batch
from hansa.brain.book import NodeBook, NodeEntry
from hansa.brain.cluster import Cluster, Difference, Follower
from hansa.config import BindAddress
from hansa.errors import ConfigError, Fault
from hansa.metrics import CONTENT_TYPE, Metrics
from hansa.net import parse_address
from hansa.sources import Source
from hansa.sources.kpng import node as node_api
from hansa.sources.kpng import shared
from hansa.sources.kpng.target import DEFAULT_PORT
from hansa.sources.kpng.wire import globalv1, localv1, nodev1

_logger = logging.getLogger("hansa.brain")

LOCAL, GLOBAL, NODE, BRAIN = "localv1.Sets", "globalv1.Sets", "hansa.node.v1.Node", "hansa.node.v1.Brain"
# Requests that a client may send ahead; each brings a batch, so a client that asks without reading is a broken one.
QUEUED_REQUESTS = 16
# How long a batch is worked at before everything else gets its turn; of the processor's time, since on a busy machine
# clocks go on while nothing is done.
TURN_S = 0.005
# A client behind a dead link is found out after this time, also if nothing changes.
KEEPALIVE_S = 20.0
_OPTIONS = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
    # All nodes of a large cluster may come back at once: they wait for their turn, and are not turned away.
    ("grpc.server_max_unrequested_time_in_server", 600),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """ca: of the clients' certificates, without one of which nobody is let in; "" = anybody may connect."""

    key: str
    certificate: str
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: a TCP address in gRPC's form, or the path of a Unix socket."""

    target: str
    socket_path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.socket_path:
            return True
        host = self.target.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        with suppress(ValueError):
            return parse_address(host).is_loopback
        return False


def parse_listen(text: str) -> Listen:
    """`tcp://host:port`, `host:port`, `unix:///path` or `unix:/path`; no host means every interface. ConfigError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix://") if text.startswith("unix://") else text.removeprefix("unix:")
        if path.startswith("/"):
            return Listen(f"unix:{path}", path)
    else:
        match = re.fullmatch(r"(?:tcp://)?(\[[^\]]+\]|[^:/]*)(?::(\d{1,5}))?", text)
        if match is not None and text:
            port = int(match[2]) if match[2] else DEFAULT_PORT
            if port < 65536:
                return Listen(f"{match[1] or '[::]'}:{port}")
    raise ConfigError(Fault("--listen", f"{text!r} is no address", "write tcp://HOST:PORT or unix:///PATH"))


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Certificate, key and CA, read and proved before anything is opened. Raises ConfigError with every fault."""
    faults = []
    content: dict[str, bytes] = {}
    for flag, name in (("--tls-key", files.key), ("--tls-cert", files.certificate), ("--tls-ca", files.ca)):
        if not name:
            continue
        try:
            content[flag] = Path(name).read_bytes()
        except OSError as error:
            faults.append(Fault(flag, f"{name} cannot be read: {error.strerror}"))
    for flag, name in (("--tls-key", files.key), ("--tls-cert", files.certificate)):
        if not name:
            faults.append(Fault(flag, "is missing", "TLS needs a key and a certificate"))
    if not faults:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            faults.append(Fault("--tls-cert", f"{files.certificate} and {files.key} do not go together: {error}"))
        if files.ca:
            try:
                context.load_verify_locations(cafile=files.ca)
            except (OSError, ssl.SSLError) as error:
                faults.append(Fault("--tls-ca", f"{files.ca} holds no certificate: {error}"))
    if faults:
        raise ConfigError(*faults)
    return grpc.ssl_server_credentials(
        [(content["--tls-key"], content["--tls-cert"])],
        root_certificates=content.get("--tls-ca"),
        require_client_auth=bool(files.ca),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """listen: every address. insecure: plain connections from other machines, too. metrics: None = no such server."""

    listen: tuple[Listen, ...]
    tls: TlsFiles | None = None
    insecure: bool = False
    metrics: BindAddress | None = None


def check(settings: Settings) -> grpc.ServerCredentials | None:
    """The credentials, None = connections are plain. Raises ConfigError for settings with which nothing is opened."""
    if settings.tls is not None:
        return server_credentials(settings.tls)
    for listen in settings.listen:
        if not (listen.is_local or settings.insecure):
            remedy = "give --tls-key, --tls-cert and --tls-ca, or say --insecure"
            raise ConfigError(Fault("--listen", f"{listen.target} is open to other machines", remedy))
    return None


class Brain:
    """Serves one cluster for as long as the context is open. `targets`: where, with the ports that were given."""

    def __init__(self, cluster: Cluster, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cluster = cluster
        self.book = NodeBook()
        self.targets: list[str] = []
        self.metrics_port = 0
        self._settings = settings
        self._clock = clock
        self._metrics = Metrics(metrics.TABLE)
        self._clients: dict[Follower, str] = {}
        # Held while a message is made, never while one is sent: a slow client keeps nobody waiting.
        self.turn = asyncio.Lock()
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._runner: web.ServerRunner | None = None
        self._source: Source | None = None

    async def __aenter__(self) -> Brain:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def follow(self, source: Source) -> None:
        """Take in what a source says, for ever. Its loss changes nothing that nodes are told."""
        self._source = source
        async for batch in source.changes():
            self.cluster.apply(batch)
            await self._tell_health()

    async def _start(self) -> None:
        settings = self._settings
        credentials = check(settings)
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (LOCAL, GLOBAL, NODE, BRAIN, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        for listen in settings.listen:
            self.targets.append(_bind(server, listen, credentials))
        await server.start()
        self._server = server
        for listen in settings.listen:
            if listen.socket_path:
                os.chmod(listen.socket_path, 0o660)
        await self._tell_health()
        if settings.metrics is not None:
            await self._start_http(settings.metrics)

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._server is not None:
            await self._server.stop(None)  # streams never end by themselves
        for listen in self._settings.listen:
            if listen.socket_path and self._server is not None:
                Path(listen.socket_path).unlink(missing_ok=True)

    async def _tell_health(self) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if self.cluster.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", LOCAL, GLOBAL, NODE):
            await self._health.set(name, status)
        await self._health.set(BRAIN, serving)

    # -- gRPC --

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        watches = (
            (LOCAL, localv1.WatchReq, _read_local_request, local_batch),
            (GLOBAL, globalv1.GlobalWatchReq, _read_global_request, global_batch),
            (NODE, nodev1.WatchRequest, _read_node_request, node_batch),
        )
        for service, request, read, batch in watches:
            api = _Api(service, read, batch)
            handler: Any = grpc.stream_stream_rpc_method_handler(
                partial(self._watch, api), request_deserializer=request.FromString, response_serializer=None
            )
            yield grpc.method_handlers_generic_handler(service, {"Watch": handler})
        nodes = grpc.unary_unary_rpc_method_handler(
            self._nodes,
            request_deserializer=nodev1.NodesRequest.FromString,
            response_serializer=nodev1.NodesResponse.SerializeToString,
        )
        yield grpc.method_handlers_generic_handler(BRAIN, {"Nodes": nodes})

    async def _watch(self, api: _Api, requests: AsyncIterator[Message], context: Any) -> None:
        stream = _Stream(self, api, context)
        self._clients[stream.follower] = api.service
        try:
            await stream.run(requests)
        finally:
            stream.close()
            del self._clients[stream.follower]

    def sent(self, api: _Api, message: bytes) -> None:
        self._metrics.add(metrics.SENT, 1)
        self._metrics.add(metrics.BYTES, len(message), api.service)

    def synced(self, api: _Api) -> None:
        self._metrics.add(metrics.BATCHES, 1, api.service)

    def now(self) -> float:
        return self._clock()

    async def _nodes(self, _: nodev1.NodesRequest, __: object) -> nodev1.NodesResponse:
        now = self._clock()
        return nodev1.NodesResponse(
            revision=self.cluster.revision, nodes=[_node_state(one, now) for one in self.book.ordered()]
        )

    # -- HTTP --

    async def _start_http(self, at: BindAddress) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer), access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, str(at.address), at.port)
        try:
            await site.start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            text = f"{at.address}:{at.port} cannot be opened: {why}"
            raise ConfigError(Fault("--metrics-bind-address", text)) from None
        self.metrics_port = self._runner.addresses[0][1]

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.path:
            case "/metrics":
                return web.Response(body=self.metrics_text().encode(), headers={"Content-Type": CONTENT_TYPE})
            case "/healthz" | "/livez":
                return web.Response(text="ok\n")
            case "/readyz":
                if self.cluster.ready:
                    return web.Response(text="ok\n")
                waiting = self._source.status if self._source is not None else "no source yet"
                return web.Response(text=f"not complete yet: {waiting}\n", status=503)
            case _:
                return web.Response(text="/metrics, /healthz, /livez, /readyz\n", status=404)

    def metrics_text(self) -> str:
        found = self._metrics
        found.raise_to(metrics.EVENTS, self.cluster.events)
        found.set(metrics.REVISION, self.cluster.revision)
        found.set(metrics.READY, self.cluster.ready)
        apis = list(self._clients.values())
        found.set_all(metrics.CLIENTS, {(name,): apis.count(name) for name in (LOCAL, GLOBAL, NODE)})
        states = [one.state for one in self.book.entries.values()]
        found.set_all(metrics.NODES, {(name,): states.count(name) for name in sorted(set(states))})
        found.set(metrics.SLOWEST, max((one.waiting for one in self._clients), default=0))
        return found.text()


@dataclass(frozen=True, slots=True)
class _Request:
    """name: the node, None = all. asks: whether a batch is wanted. report: None = nothing is told.

    observer: not the node itself, so the book does not mention it.
    """

    name: str | None
    asks: bool = True
    report: node_api.NodeReport | None = None
    observer: bool = False


@dataclass(frozen=True, slots=True)
class _Api:
    service: str
    read: Callable[[Any], _Request]
    batch: Callable[[Difference], Iterator[bytes]]

    @property
    def is_kpng(self) -> bool:
        """Whether Reset and Sync are messages of their own."""
        return self.service != NODE


def _read_local_request(message: localv1.WatchReq) -> _Request:
    return _Request(message.NodeName)


def _read_global_request(_: globalv1.GlobalWatchReq) -> _Request:
    return _Request(None)


def _read_node_request(message: nodev1.WatchRequest) -> _Request:
    report = node_api.read_report(message.report) if message.HasField("report") else None
    return _Request(message.node_name, asks=not message.report_only, report=report, observer=message.observer)


class _Stream:
    """One client: its requests in a queue, and one batch for each."""

    def __init__(self, brain: Brain, api: _Api, context: Any) -> None:
        self._brain = brain
        self._api = api
        self._context = context
        self._news = asyncio.Event()
        self._asked: asyncio.Queue[str | None] = asyncio.Queue(QUEUED_REQUESTS)
        self._reader: asyncio.Task[None] | None = None
        self._entry: NodeEntry | None = None
        self.follower = brain.cluster.follow(self._news.set)

    async def run(self, requests: AsyncIterator[Message]) -> None:
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(self._read_to_the_end)
        is_first = True
        while True:
            asked = asyncio.ensure_future(self._asked.get())
            await asyncio.wait({asked, self._reader}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                asked.cancel()
                return  # the client has said its last
            if is_first and self._api.is_kpng:
                await self._send(shared.RESET)
            is_first = False
            if not await self._answer(asked.result()):
                return

    def _read_to_the_end(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled() and (error := reader.exception()) is not None:
            _logger.debug("stream broke off peer=%s error=%r", self._context.peer(), error)
        self._news.set()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._entry is not None:
            self._brain.book.leave(self._entry)
        self._brain.cluster.forget(self.follower)

    async def _read(self, requests: AsyncIterator[Message]) -> None:
        async for message in requests:
            request = self._api.read(message)
            self._note(request)
            if request.asks:
                await self._asked.put(request.name)

    def _note(self, request: _Request) -> None:
        brain = self._brain
        if request.observer:
            return
        name = "(all)" if request.name is None else request.name
        if self._entry is None or self._entry.name != name:
            if self._entry is not None:
                brain.book.leave(self._entry)
            self._entry = brain.book.join(name, self._api.service, peer=self._context.peer(), now=brain.now())
        self._entry.last_seen = brain.now()
        if request.report is not None:
            self._entry.report = request.report

    async def _answer(self, name: str | None) -> bool:
        """One batch, as soon as there is one. Returns whether the client is still there."""
        cluster, follower = self._brain.cluster, self.follower
        moved = follower.viewpoint is not None and follower.viewpoint.name != name
        while True:
            self._news.clear()
            if not (cluster.ready and (follower.has_news or moved)):
                if self._reader is not None and self._reader.done():
                    return False
                await self._news.wait()
                continue
            difference = follower.take(name)
            must_sync = difference.is_first or moved
            if await self._send_batch(difference, must_sync=must_sync):
                self._brain.synced(self._api)
                if self._entry is not None:
                    self._entry.sent_revision = self._entry.complete_revision = difference.revision
                return True
            if self._entry is not None:
                self._entry.complete_revision = difference.revision

    async def _send_batch(self, difference: Difference, *, must_sync: bool) -> bool:
        """Whether there was anything to say; if so, it ended with a Sync."""
        something = False
        batch = self._api.batch(difference)
        while (message := await self._next(batch)) is not None:
            something = True
            await self._send(message)
        if self._api.is_kpng:
            something = something or must_sync
            if something:
                await self._send(shared.SYNC)
        elif must_sync and not something:
            end = nodev1.WatchResponse(revision=difference.revision, sync=True)
            await self._send(end.SerializeToString())
            something = True
        return something

    async def _next(self, batch: Iterator[bytes]) -> bytes | None:
        """The next message of a batch, None at its end. One stream at a time: a thousand that begin together would
        leave no turn for calls that are not even accepted yet, and gRPC gives those up after half a minute."""
        async with self._brain.turn:
            since = time.thread_time()
            for message in batch:
                if message is not BREATHE:
                    return message
                if time.thread_time() - since > TURN_S:
                    await asyncio.sleep(0)
                    since = time.thread_time()
        return None

    async def _send(self, message: bytes) -> None:
        await self._context.write(message)
        self._brain.sent(self._api, message)


def _node_state(entry: NodeEntry, now: float) -> nodev1.NodeState:
    state = nodev1.NodeState(
        name=entry.name,
        api=entry.api,
        connected=entry.connected,
        peer=entry.peer,
        sent_revision=entry.sent_revision,
        complete_revision=entry.complete_revision,
        state=entry.state,
        last_seen_s=max(0.0, now - entry.last_seen),
    )
    if entry.report is not None:
        state.report.CopyFrom(node_api.report_message(entry.report))
    return state


def _bind(server: grpc.aio.Server, listen: Listen, credentials: grpc.ServerCredentials | None) -> str:
    """Open one address; returns it with the port that it got. Raises ConfigError."""
    if listen.socket_path:
        _make_way(listen.socket_path)
    # The socket must never be open to others, not even for the moment before its mode is set.
    before = os.umask(0o007)
    try:
        if credentials is not None and not listen.socket_path:
            port = server.add_secure_port(listen.target, credentials)
        else:
            port = server.add_insecure_port(listen.target)
    except RuntimeError as error:
        raise ConfigError(Fault("--listen", f"{listen.target} cannot be opened: {error}")) from None
    finally:
        os.umask(before)
    if listen.socket_path:
        return listen.target
    if port == 0:
        raise ConfigError(Fault("--listen", f"{listen.target} cannot be opened"))
    return f"{listen.target.rpartition(':')[0]}:{port}"


def _make_way(path: str) -> None:
    """Remove a socket that nobody listens on any more; anything else in its place is left alone."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(Fault("--listen", f"{path} is there and is no socket"))
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise ConfigError(Fault("--listen", f"somebody listens at {path} already"))
    os.unlink(path)
