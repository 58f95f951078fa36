"""Sockets and HTTP for the servers beside the engine: where they listen, and what a client may cost.

A port that is taken never ends hansa unless `bindAddressHardFail` says so: it is tried again (healthCheckNodePorts at
each sync, the others every RETRY_S) and said once. Evidence: service-semantics H2 to H5, H12 to H14, Z14.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from hansa.config import BindAddress
from hansa.engine import Clock
from hansa.errors import DataplaneError
from hansa.events import Tell, failed_listener, failed_server
from hansa.health_answers import Answer, Listener
from hansa.logs import Logger
from hansa.net import Address, IPFamily, parse_address
from hansa.pipeline import HealthCheckKey

_log = Logger("hansa.health")

RETRY_S = 5.0  # kube-proxy's pause between tries to bind (Z14)
# Answers are ready at once, so what is still open after this is a client that does not read.
CLOSE_GRACE_S = 0.25
BACKLOG = 128
PORTS_FROM = 2  # verbosity from which on lines tell of single healthCheckNodePorts

# What a client may cost, on each port. Balancers and probes ask in one packet and read at once.
MAX_CONNECTIONS = 128
MAX_LINE_BYTES = 8190  # of the request line, and of each header
FIRST_REQUEST_S = 10.0  # from the connection to the end of the first request's headers
KEEP_ALIVE_S = 30.0  # between two requests
REQUEST_S = 90.0  # from a request to the end of its answer; a profile takes up to 60 s
LINGER_S = 1.0  # for a body that nobody has asked for

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Server:
    """A server at one configured address, tried until it can listen."""

    def __init__(
        self,
        name: str,
        at: BindAddress,
        handler: Handler,
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
        return response(self._answer(key))

    async def close(self) -> None:
        await self.follow({})


class _Limited(web.Server):
    """At most MAX_CONNECTIONS, and none that takes for ever to ask, or to hear the answer."""

    def __init__(self, handler: Handler, **settings: Any) -> None:
        super().__init__(self._timed, **settings)
        self._answer = handler
        self._deadlines: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._end_after(transport, FIRST_REQUEST_S)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        transport = self._connections.get(handler)
        if transport is not None and (deadline := self._deadlines.pop(transport, None)) is not None:
            deadline.cancel()
        super().connection_lost(handler, exc)

    async def _timed(self, request: web.BaseRequest) -> web.StreamResponse:
        """The time counts until the next request, so it bounds the writing of the answer as well."""
        if isinstance(request.transport, asyncio.Transport):
            self._end_after(request.transport, REQUEST_S)
        return await self._answer(request)

    def _end_after(self, transport: asyncio.Transport, seconds: float) -> None:
        before = self._deadlines.get(transport)
        if before is not None:
            before.cancel()
        self._deadlines[transport] = asyncio.get_running_loop().call_later(seconds, transport.abort)


class _Http:
    """HTTP on given sockets: no routes, one handler for whatever is asked; limits on all that a client may do."""

    def __init__(self, handler: Handler) -> None:
        self._protocols = _Limited(
            handler,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=LINGER_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            logger=logging.getLogger("hansa.health"),
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


SERVER = {"Server": "hansa"}  # what else runs here is nobody's business


def response(answer: Answer) -> web.Response:
    return web.Response(status=answer.code, body=answer.body.encode(), headers={**answer.headers, **SERVER})


def is_local(request: web.BaseRequest) -> bool:
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
