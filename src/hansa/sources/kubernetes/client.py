"""The shell around `Watch`: sockets, TLS, credentials, time. It obeys the machines and decides nothing of objects."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import ssl
import tempfile
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, assert_never
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from hansa import __version__
from hansa.api.change import Change, Upsert
from hansa.api.objects import Kind, Node
from hansa.bounded import read_file
from hansa.config import Config
from hansa.errors import ConfigError, Fault, SourceError
from hansa.logs import Logger
from hansa.sources.kubernetes.calls import NO_ANSWER, ApiCall, OnCall, RateLimit, Tried, ignore
from hansa.sources.kubernetes.credentials import EXEC_INFO_VARIABLE, Issued, exec_info, parse_exec_credential
from hansa.sources.kubernetes.kubeconfig import (
    SERVICE_ACCOUNT_FOLDER,
    BasicAuth,
    ClientCertificate,
    Connection,
    ExecPlugin,
    Pem,
    PemData,
    PemFile,
    Token,
    TokenFile,
    in_cluster_connection,
    master_connection,
    parse_kubeconfig,
)
from hansa.sources.kubernetes.lines import LineSplitter
from hansa.sources.kubernetes.watch import OK, UNAUTHORIZED, UNREADABLE, Request, Watch, WatchSettings, status_message
from hansa.sources.selection import NODES_PATH, Selection, selection

__all__ = ["ClientSettings", "EventClient", "KubernetesSource", "Written", "load_connection", "read_nodes"]

_log = Logger("hansa.kubernetes")
TOLD_FROM = 2  # failures in a row
RETRIES_FROM = 3  # verbosity from which on there is a line for each failed request

USER_AGENT = f"hansa/{__version__} (kube-proxy compatible)"
LONGEST_REFUSAL_BYTES = 64 * 1024  # of a refusal only the Status is read, which is far shorter
# A list in one page, as it is asked for after a page has expired: 550,000 endpoints were 161 MB. Beyond this it is an
# attack or a mistake, and the memory of the node is worth more than the list.
LONGEST_LIST_BYTES = 1024 * 1024 * 1024
LONGEST_KUBECONFIG_BYTES = 4 * 1024 * 1024  # with all its certificates
LONGEST_CREDENTIAL_BYTES = 1024 * 1024  # a token, a certificate, or what a plugin prints
BAD_REQUEST = 400  # the first status that is a failure
QUEUED_BATCHES = 16  # when the engine is slower than the server, the rest waits in the server's socket
PLUGIN_OUTPUT_SHOWN = 300  # characters of a failed plugin's error output in the status line

# HostProcess containers see their mounts below this folder; older runtimes nowhere else (operations.md section 19).
MOUNT_POINT_VARIABLE = "CONTAINER_SANDBOX_MOUNT_POINT"

Deliver = Callable[[tuple[Change, ...]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Times are seconds.

    watch_idle_s: API servers send a bookmark about once a minute, so a watch that is silent for longer than two is
    taken for dead; where a server sends none, asking again is cheap. list_idle_s: the same for all other answers.
    compress: ask for gzip, None = unless the server is this machine (it inflates 290 MB/s, as measured).
    qps, burst: the client's own limit on requests, None = none: watches need very few.
    """

    watch: WatchSettings = field(default_factory=WatchSettings)
    connect_timeout_s: float = 10.0
    list_idle_s: float = 60.0
    watch_idle_s: float = 150.0
    plugin_timeout_s: float = 60.0
    compress: bool | None = None
    qps: float | None = None
    burst: int = 10


class KubernetesSource:
    """Services, EndpointSlices, this Node and ServiceCIDRs of a cluster, as a Source.

    Losing the server changes nothing but `status`. The slices are listed after the Services, so that the first lists
    do not stand in memory at once. An API server without ServiceCIDRs has, for this proxy, none of them.
    `on_call` hears of every request, of `event_client` too; it may be set at any time.
    """

    def __init__(self, connection: Connection, config: Config, settings: ClientSettings | None = None) -> None:
        self._connection = connection
        self._config = config
        self._settings = settings or ClientSettings()
        self._followers: tuple[_Follower, ...] = ()
        self._limit = None if self._settings.qps is None else RateLimit(self._settings.qps, self._settings.burst)
        self.on_call: OnCall = ignore

    def event_client(self) -> EventClient:
        """Another way to the same server, with the same credentials and under the same limit."""
        return EventClient(self._connection, self._settings, _Calls(self._call, self._limit))

    def _call(self, call: ApiCall) -> None:
        self.on_call(call)

    @property
    def status(self) -> str:
        server = self._connection.server
        troubled = [one for one in self._followers if one.watch.problem]
        if troubled:
            next_s = max(0.0, min(one.next_at for one in troubled) - time.monotonic())
            kinds = ", ".join(str(one.watch.kind) for one in troubled)
            scope = "" if len(troubled) == len(self._followers) else f" {kinds}"
            return f"retrying{scope} in {next_s:.0f} s: {troubled[0].watch.problem} ({server})"
        waiting = [one.watch for one in self._followers if not one.watch.is_synced]
        if waiting:
            return f"{waiting[0].state} {waiting[0].kind} ({server})"
        return f"connected to {server}" if self._followers else f"not connected to {server}"

    @property
    def troubled(self) -> bool:
        return any(one.watch.problem for one in self._followers)

    async def changes(self) -> AsyncIterator[tuple[Change, ...]]:
        settings = self._settings
        queue: asyncio.Queue[tuple[Change, ...] | Exception] = asyncio.Queue(QUEUED_BATCHES)
        followers = {
            kind: _Follower(
                Watch(selection(kind, self._config), settings.watch, may_be_missing=kind is Kind.SERVICE_CIDR)
            )
            for kind in Kind
        }
        followers[Kind.ENDPOINT_SLICE].starts_after = followers[Kind.SERVICE].synced
        self._followers = tuple(followers.values())
        async with _session(self._connection, settings) as session:
            api = _Api(self._connection, settings, session, _Calls(self._call, self._limit))
            tasks = [
                asyncio.create_task(one.run(api, queue), name=f"watch {one.watch.kind}") for one in self._followers
            ]
            try:
                while True:
                    batch = await queue.get()
                    if isinstance(batch, Exception):
                        raise batch
                    yield batch
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._followers = ()


class _Follower:
    """One machine and its task. next_at: when it asks again, by the monotonic clock."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.next_at = 0.0
        self.synced = asyncio.Event()
        self.starts_after: asyncio.Event | None = None
        self._failures = 0  # in a row
        self._is_trouble_told = False

    async def run(self, api: _Api, queue: asyncio.Queue[tuple[Change, ...] | Exception]) -> None:
        """Ask for ever. A bug in here ends the whole source, loudly, instead of one kind in silence."""

        async def deliver(batch: tuple[Change, ...]) -> None:
            if not self.watch.problem:
                self._tell_recovered()
            if batch:
                await queue.put(batch)
            if self.watch.is_synced:
                self.synced.set()

        try:
            if self.starts_after is not None:
                await self.starts_after.wait()
            while True:
                await self._ask(api, deliver)
                await asyncio.sleep(max(0.0, self.next_at - time.monotonic()))
        except Exception as bug:
            await queue.put(bug)
            raise

    async def _ask(self, api: _Api, deliver: Deliver) -> None:
        fault = ""
        request = self.watch.next_request(time.monotonic(), random.random())
        try:
            await api.ask(request, self.watch, deliver)
        except (aiohttp.ClientError, OSError, SourceError) as error:
            fault = _describe(error)
        now = time.monotonic()
        self.next_at = now + self.watch.closed(now, random.random(), fault=fault)
        self._tell_trouble(self.next_at - now)

    def _tell_trouble(self, pause_s: float) -> None:
        """A line for a trouble that a second try has met, too; one that passes is nothing to wake somebody for."""
        problem = self.watch.problem
        self._failures = self._failures + 1 if problem else 0
        if not problem:
            return
        fields = {"resource": str(self.watch.kind), "err": problem, "again_in_s": round(pause_s, 1)}
        if self._failures == TOLD_FROM:
            self._is_trouble_told = True
            _log.warning("API server cannot be read, what it said before stays in force", **fields)
        else:
            _log.info("request failed", v=RETRIES_FROM, failures=self._failures, **fields)

    def _tell_recovered(self) -> None:
        self._failures = 0
        if self._is_trouble_told:
            self._is_trouble_told = False
            _log.info("API server is read again", resource=str(self.watch.kind))


@dataclass(frozen=True, slots=True)
class _Calls:
    """What requests are told to, and limited by."""

    on_call: OnCall = ignore
    limit: RateLimit | None = None


class _Api:
    """Performs requests, with whatever credentials and certificates are good at the moment."""

    def __init__(
        self,
        connection: Connection,
        settings: ClientSettings,
        session: aiohttp.ClientSession,
        calls: _Calls,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._session = session
        self._calls = calls
        self._host = urlsplit(connection.server).netloc
        self._access = _Access(connection, settings.plugin_timeout_s)
        self._failed: dict[str, str] = {}  # by path, the code of the last answer if it was a failure

    async def ask(self, request: Request, watch: Watch, deliver: Deliver) -> None:
        """One request from beginning to end; each part of the answer goes to the machine as it arrives."""
        call = await self._begin("GET", request.path)
        try:
            async with self._send("GET", request.path, await self._access.grant(), request=request) as answer:
                call.code = str(answer.status)
                if request.is_stream and answer.status == OK:
                    self._end(call, is_stream=True)
                try:
                    call.response_bytes = await _receive(answer, watch, deliver, is_stream=request.is_stream)
                except asyncio.CancelledError:
                    if answer.connection is not None and answer.connection.transport is not None:
                        # A goodbye of TLS waits for the server's, and whoever cancels may not be there to hear it.
                        answer.connection.transport.abort()
                    raise
        finally:
            self._end(call, is_stream=request.is_stream)

    async def write(self, method: str, path: str, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        """Send something; returns the status, the first part of the answer, and its Retry-After.

        Raises SourceError if there was no answer.
        """
        call = await self._begin(method, path)
        call.request_bytes = len(body)
        try:
            grant = await self._access.grant()
            async with self._send(method, path, grant, body=body, content_type=content_type) as answer:
                call.code = str(answer.status)
                said = await answer.content.read(LONGEST_REFUSAL_BYTES)
                call.response_bytes = len(said)
                return answer.status, said, answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, OSError) as error:
            raise SourceError(f"{self._connection.server}: {_describe(error)}") from error
        finally:
            self._end(call, is_stream=False)

    async def look(self, selected: Selection, verb: str) -> Tried:
        """Try a list of one object, or the beginning of a watch; whatever happens is the answer."""
        wanted = (("watch", "true"), ("timeoutSeconds", "1")) if verb == "watch" else (("limit", "1"),)
        selectors = (("labelSelector", selected.label_selector), ("fieldSelector", selected.field_selector))
        query = tuple((name, value) for name, value in (*selectors, *wanted) if value)
        request = Request(selected.path, query, is_stream=verb == "watch")
        try:
            async with self._send("GET", request.path, await self._access.grant(), request=request) as answer:
                tried = Tried(answer.status, date=answer.headers.get("Date", ""), at=time.time())
                if answer.status != OK:
                    said = await answer.content.read(LONGEST_REFUSAL_BYTES)
                    return replace(tried, words=status_message(said))
                if request.is_stream:
                    return tried
                found = _count_items(await _body(answer, LONGEST_LIST_BYTES))
                return replace(tried, found=found, words="" if found is not None else "the answer is not a list")
        except (aiohttp.ClientError, OSError, SourceError) as error:
            return Tried(0, _describe(error))

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        grant: _Grant,
        *,
        request: Request | None = None,
        body: bytes | None = None,
        content_type: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        settings = self._settings
        is_stream = request is not None and request.is_stream
        async with self._session.request(
            method,
            URL(self._connection.server + path).with_query(request.query if request is not None else None),
            data=body,
            headers={**grant.headers, **({"Content-Type": content_type} if content_type else {})},
            ssl=grant.tls,
            server_hostname=self._connection.tls_server_name or None,
            proxy=self._connection.proxy,
            allow_redirects=False,  # they would carry the credentials elsewhere
            timeout=aiohttp.ClientTimeout(
                sock_connect=settings.connect_timeout_s,
                sock_read=settings.watch_idle_s if is_stream else settings.list_idle_s,
            ),
        ) as answer:
            if answer.status == UNAUTHORIZED:
                self._access.refused(grant)
            yield answer

    async def _begin(self, method: str, path: str) -> _Call:
        waited_s = None
        if self._calls.limit is not None:
            waited_s = self._calls.limit.reserve(time.monotonic())
            await asyncio.sleep(waited_s)
        return _Call(method, path, time.monotonic(), waited_s)

    def _end(self, call: _Call, *, is_stream: bool) -> None:
        if call.is_told:
            return
        call.is_told = True
        retried = self._failed.pop(call.path, "")
        if not call.code.isdecimal() or int(call.code) >= BAD_REQUEST:
            self._failed[call.path] = call.code
        told = ApiCall(call.method, self._host, call.code, waited_s=call.waited_s, retried_code=retried)
        if not is_stream:
            told = replace(
                told,
                duration_s=time.monotonic() - call.started_at,
                request_bytes=call.request_bytes,
                response_bytes=call.response_bytes,
            )
        self._calls.on_call(told)


class _Items(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


def _count_items(page: bytes) -> int | None:
    try:
        return len(msgspec.json.decode(page, type=_Items).items or ())
    except UNREADABLE:
        return None


@dataclass(slots=True)
class _Call:
    """A request under way."""

    method: str
    path: str
    started_at: float
    waited_s: float | None
    code: str = NO_ANSWER
    request_bytes: int = 0
    response_bytes: int = 0
    is_told: bool = False


async def _receive(answer: aiohttp.ClientResponse, watch: Watch, deliver: Deliver, *, is_stream: bool) -> int:
    """Returns how many bytes came."""
    if answer.status != OK:
        body = await answer.content.read(LONGEST_REFUSAL_BYTES)
        retry_after = answer.headers.get("Retry-After", "")
        await deliver(watch.receive_status(answer.status, body=body, retry_after_s=_seconds(retry_after)))
        return len(body)
    watch.receive_status(OK)
    await deliver(())  # a watch may have nothing to say for a minute, and yet all is well
    if not is_stream:
        page = await _body(answer, LONGEST_LIST_BYTES)
        with _collector_paused():
            batch = watch.receive_page(page)
        await deliver(batch)
        return len(page)
    lines = LineSplitter()
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        with nullcontext() if watch.is_synced else _collector_paused():
            batch = tuple(change for line in lines.feed(chunk) for change in watch.receive_line(line))
        await deliver(batch)
        if watch.is_over:
            break
    return size


async def _body(answer: aiohttp.ClientResponse, longest_bytes: int) -> bytes:
    """The whole of it, unpacked. Raises SourceError if it is longer than that."""
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > longest_bytes:
            raise SourceError(f"the answer is longer than {longest_bytes} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isdecimal() else 0.0


@dataclass(frozen=True, slots=True)
class Written:
    """What the server said to a write: HTTP status, and of a refusal its reason and text. retry_after_s: 0 = not said.

    causes: reasons of the refusal's details, like `NamespaceTerminating`.
    """

    code: int
    reason: str = ""
    message: str = ""
    causes: tuple[str, ...] = ()
    retry_after_s: float = 0.0


class EventClient:
    """Writes Events; a context that holds the connection. Every method raises SourceError if there is no answer."""

    def __init__(self, connection: Connection, settings: ClientSettings, calls: _Calls) -> None:
        self._connection = connection
        self._settings = replace(settings, list_idle_s=settings.connect_timeout_s)
        self._calls = calls

    async def __aenter__(self) -> Self:
        self._session = _session(self._connection, self._settings)
        self._api = _Api(self._connection, self._settings, self._session, self._calls)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def create(self, namespace: str, event: Mapping[str, object]) -> Written:
        return await self._write("POST", _events_path(namespace), event, "application/json")

    async def patch(self, namespace: str, name: str, change: Mapping[str, object]) -> Written:
        path = f"{_events_path(namespace)}/{name}"
        return await self._write("PATCH", path, change, "application/merge-patch+json")

    async def _write(self, method: str, path: str, document: Mapping[str, object], content_type: str) -> Written:
        body = msgspec.json.encode(document)
        code, said, retry_after = await self._api.write(method, path, body, content_type)
        return Written(code) if code < BAD_REQUEST else read_refusal(code, said, retry_after)


def read_refusal(code: int, said: bytes, retry_after: str) -> Written:
    """What an API server, or something on the way to it, says of a request that it does not carry out."""
    try:
        status = msgspec.json.decode(said, type=_Refusal)
    except UNREADABLE:
        status = _Refusal()
    causes = tuple(cause.reason for cause in status.details.causes) if status.details is not None else ()
    return Written(code, status.reason, status.message, causes, _seconds(retry_after))


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []


class _Refusal(msgspec.Struct):
    """What of a Status of the API is read."""

    reason: str = ""
    message: str = ""
    details: _Details | None = None


def _events_path(namespace: str) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one request may use. issued: what of it came from a plugin."""

    headers: Mapping[str, str]
    tls: ssl.SSLContext | bool
    issued: Issued | None


class _Access:
    """Credentials and TLS as they are now: files are read again when they have changed, plugins run when needed."""

    def __init__(self, connection: Connection, plugin_timeout_s: float) -> None:
        self._connection = connection
        self._plugin_timeout_s = plugin_timeout_s
        self._one_at_a_time = asyncio.Lock()  # four watches need one run of the plugin
        self._issued: Issued | None = None
        self._tls: ssl.SSLContext | None = None
        self._tls_made_of: object = None

    async def grant(self) -> _Grant:
        """Raises SourceError if a file cannot be read or a plugin fails."""
        async with self._one_at_a_time:
            headers = await self._headers()
            return _Grant(headers, self._context(), self._issued)

    def refused(self, grant: _Grant) -> None:
        """The server answered 401: what a plugin issued for that request is not used again."""
        if grant.issued is self._issued:
            self._issued = None

    async def _headers(self) -> dict[str, str]:
        match self._connection.credentials:
            case None:
                return {}
            case Token(text):
                return _bearer(text)
            case TokenFile(path):
                # A token is a kilobyte and requests are minutes apart: reading it each time never misses a rotation.
                return _bearer(_read(path).decode("utf-8", "replace").strip())
            case BasicAuth(username, password):
                return {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"}
            case ExecPlugin() as plugin:
                if self._issued is None or self._issued.is_expired(time.time()):
                    self._issued = None
                    self._issued = await self._run(plugin)
                return _bearer(self._issued.token) if self._issued.token else {}
            case _ as never:
                assert_never(never)

    def _context(self) -> ssl.SSLContext | bool:
        """Certificates are files that others rotate, so the context is made anew once one of them has changed."""
        if not self._connection.server.startswith("https:"):
            return True
        pair = self._connection.client_certificate
        if self._issued is not None and self._issued.certificate is not None:
            pair = self._issued.certificate
        pems = [self._connection.ca, *((pair.certificate, pair.key) if pair is not None else ())]
        made_of = [(pem, _modified_ns(pem.path) if isinstance(pem, PemFile) else 0) for pem in pems]
        if self._tls is None or made_of != self._tls_made_of:
            self._tls = _tls_context(self._connection, pair)
            self._tls_made_of = made_of
        return self._tls

    async def _run(self, plugin: ExecPlugin) -> Issued:
        ca = _pem_bytes(self._connection.ca) if self._connection.ca is not None else None
        try:
            process = await asyncio.create_subprocess_exec(
                plugin.command,
                *plugin.args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={
                    **os.environ,
                    **dict(plugin.environment),
                    EXEC_INFO_VARIABLE: exec_info(plugin, self._connection, ca),
                },
            )
        except OSError as error:
            hint = f" ({plugin.install_hint})" if plugin.install_hint else ""
            raise SourceError(f"cannot start {plugin.command}: {error.strerror or error}{hint}") from None
        try:
            output, complaint = await asyncio.wait_for(_outputs(process), self._plugin_timeout_s)
        except TimeoutError:
            raise SourceError(f"{plugin.command} did not answer within {self._plugin_timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            said = complaint.decode("utf-8", "replace").strip()[-PLUGIN_OUTPUT_SHOWN:]
            raise SourceError(f"{plugin.command} ended with {process.returncode}: {said}")
        return parse_exec_credential(output, plugin)


async def _outputs(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """What a program prints, as far as it is of use, once it has ended; it never has to wait for a reader."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, complaint = await asyncio.gather(_beginning(process.stdout), _beginning(process.stderr))
    await process.wait()
    return output, complaint


async def _beginning(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, and keep the first LONGEST_CREDENTIAL_BYTES."""
    kept = bytearray()
    while chunk := await stream.read(64 * 1024):
        kept += chunk[: LONGEST_CREDENTIAL_BYTES - len(kept)]
    return bytes(kept)


async def read_nodes(connection: Connection, settings: ClientSettings | None = None) -> tuple[Node, ...]:
    """Every Node of the cluster as it is now, for commands that look once; none that cannot be decoded.

    Raises SourceError as soon as an attempt fails: whoever waits at a terminal wants to know why.
    """
    settings = settings or ClientSettings()
    watch = Watch(Selection(Kind.NODE, NODES_PATH), replace(settings.watch, watch_list=False))
    found: list[Change] = []

    async def deliver(batch: tuple[Change, ...]) -> None:
        found.extend(batch)

    async with _session(connection, settings) as session:
        api = _Api(connection, settings, session, _Calls())
        while not watch.is_synced:
            try:
                await api.ask(watch.next_request(time.monotonic(), random.random()), watch, deliver)
            except (aiohttp.ClientError, OSError) as error:
                raise SourceError(f"{connection.server}: {_describe(error)}") from error
            watch.closed(time.monotonic(), random.random())
            if watch.problem:
                raise SourceError(f"{connection.server}: {watch.problem}")
    return tuple(one.object for one in found if isinstance(one, Upsert) and isinstance(one.object, Node))


async def try_access(
    connection: Connection, config: Config, settings: ClientSettings | None = None
) -> dict[tuple[Kind, str], Tried]:
    """List and watch each kind, as little as there is to have; by kind and verb. For people who want to know why."""
    settings = settings or ClientSettings()
    asked = [(kind, verb) for kind in Kind for verb in ("list", "watch")]
    async with _session(connection, settings) as session:
        api = _Api(connection, settings, session, _Calls())
        answers = await asyncio.gather(*(api.look(selection(kind, config), verb) for kind, verb in asked))
    return dict(zip(asked, answers, strict=True))


def load_connection(kubeconfig: str, master: str, environment: Mapping[str, str]) -> Connection:
    """How to reach the API server, by kube-proxy's rules: in-cluster if neither argument is given (both may be "").

    Raises ConfigError with everything that is wrong. Evidence: operations.md section 8.
    """
    if kubeconfig:
        path = Path(on_host(kubeconfig, environment))
        try:
            text = read_file(path, LONGEST_KUBECONFIG_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(Fault("kubeconfig", f"stat {kubeconfig}: no such file or directory")) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(Fault("kubeconfig", f"{kubeconfig} cannot be read: {error}")) from None
        folder = str(path.absolute().parent)
        return _relocated(parse_kubeconfig(text, folder=folder, master=master, environment=environment), environment)
    if master:
        return master_connection(master, environment=environment)
    folder = on_host(SERVICE_ACCOUNT_FOLDER, environment)
    contents: dict[str, bytes | None] = {"token": None, "ca.crt": None}
    for name in contents:
        with suppress(OSError):  # None says so; what it means is decided below
            contents[name] = read_file(Path(folder, name), LONGEST_CREDENTIAL_BYTES)
    token = contents["token"]
    return in_cluster_connection(
        environment,
        folder=folder,
        token=token.decode("utf-8", "replace") if token is not None else None,
        ca=contents["ca.crt"],
    )


def on_host(path: str, environment: Mapping[str, str]) -> str:
    """Where a path of a HostProcess container lies on the host; the path itself if it is there as it stands."""
    mount_point = environment.get(MOUNT_POINT_VARIABLE, "")
    if not mount_point or Path(path).exists():
        return path
    # Not is_absolute: on Windows `/var` has a root but no drive, and a rooted part would throw the mount point away.
    below = Path(mount_point, *Path(path).parts[bool(Path(path).anchor) :])
    return str(below) if below.exists() else path


def _relocated(connection: Connection, environment: Mapping[str, str]) -> Connection:
    def of(pem: Pem | None) -> Pem | None:
        return PemFile(on_host(pem.path, environment)) if isinstance(pem, PemFile) else pem

    pair, credentials = connection.client_certificate, connection.credentials
    if pair is not None:
        pair = ClientCertificate(of(pair.certificate) or pair.certificate, of(pair.key) or pair.key)
    if isinstance(credentials, TokenFile):
        credentials = TokenFile(on_host(credentials.path, environment))
    return replace(connection, ca=of(connection.ca), client_certificate=pair, credentials=credentials)


def _session(connection: Connection, settings: ClientSettings) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": USER_AGENT,
            "Accept": "application/json",
            "Accept-Encoding": "gzip" if _compresses(connection, settings) else "identity",
        },
    )


def _compresses(connection: Connection, settings: ClientSettings) -> bool:
    return not connection.is_loopback if settings.compress is None else settings.compress


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within a minute that the other side is gone, as a pulled cable sends no word."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


@contextmanager
def _collector_paused() -> Iterator[None]:
    """First lists make a million objects that all stay; looking for garbage among them takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _read(path: str) -> bytes:
    try:
        return read_file(Path(path), LONGEST_CREDENTIAL_BYTES)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None


def _modified_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None


def _pem_bytes(pem: Pem) -> bytes:
    return _read(pem.path) if isinstance(pem, PemFile) else pem.data


def _tls_context(connection: Connection, pair: ClientCertificate | None) -> ssl.SSLContext:
    ca = _pem_bytes(connection.ca).decode("utf-8", "replace") if connection.ca is not None else None
    try:
        context = ssl.create_default_context(cadata=ca)
    except ssl.SSLError as error:
        raise SourceError(f"the certificate authority is not usable: {error.reason or error}") from None
    # Python 3.13 began to ask for extensions that the authorities of many clusters lack, kubeadm's among them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if connection.skip_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if pair is not None:
        _load_pair(context, pair)
    return context


def _load_pair(context: ssl.SSLContext, pair: ClientCertificate) -> None:
    """ssl wants paths, so data goes into files that only this user can read, for as long as the loading takes."""
    with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
        paths = []
        for name, pem in (("certificate", pair.certificate), ("key", pair.key)):
            match pem:
                case PemFile(path):
                    paths.append(path)
                case PemData(data):
                    descriptor = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with open(descriptor, "wb") as file:
                        file.write(data)
                    paths.append(str(Path(folder, name)))
                case _:
                    assert_never(pem)
        try:
            # Without the empty password an encrypted key would ask at the terminal and wait for ever.
            context.load_cert_chain(paths[0], paths[1], password="")
        except ssl.SSLError as error:
            raise SourceError(f"the client certificate is not usable: {error.reason or error}") from None
        except OSError as error:
            raise SourceError(f"the client certificate cannot be read: {error.strerror or error}") from None


def _describe(error: Exception) -> str:
    """What went wrong, in words that fit into a status line."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"the server's certificate is not trusted: {error.certificate_error}"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {error.os_error.strerror or error.os_error}"
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientPayloadError():
            return "the connection broke"
        case _:
            return str(error) or type(error).__name__
