"""serve(): an HnsApi for other programs, over the lines of `hansa.hns.emulator.wire`.

One thread per connection, one call at a time. A connection stands for a process that has loaded computenetwork.dll:
when it ends, the handles that it left open are closed, as HNS does when a client dies (its handles are RPC context
handles, hcn.md 1.1).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self, assert_never

from hansa.errors import ConfigError, Fault
from hansa.hns.api import Guid, Handle, HnsApi, HnsError, HnsKind, HnsVerb, HnsVersion
from hansa.hns.emulator.namespaces import Namespaces
from hansa.hns.emulator.service import Emulator
from hansa.hns.emulator.version1 import respond
from hansa.hns.emulator.wire import (
    MACHINE_FUNCTION,
    MAX_LINE_BYTES,
    Answer,
    MalformedLine,
    Request,
    ServerAddress,
    TcpAddress,
    UnixAddress,
    decode_request,
    encode_answer,
    parse_server_address,
)
from hansa.hns.record import E_INVALIDARG, E_NOTIMPL, S_OK, write_error_record
from hansa.net import Address

# What one read of a connection takes at most: calls are short, and lists of objects go the other way.
_CHUNK_BYTES = 65536

# How long close() waits for a connection whose client takes no more bytes; its thread ends with the process.
_CLOSE_WAIT_S = 5.0

_FUNCTIONS = {verb.function(kind): (verb, kind) for verb in HnsVerb for kind in HnsKind}


def serve(
    api: HnsApi, address: str, *, lock: threading.Lock | None = None, machine: Mapping[Address, str] | None = None
) -> Server:
    """Serve `api` at `address` (`127.0.0.1:PORT`, port 0 = any free one, or `unix:PATH`) until the result is closed.

    lock: held during each call, for callers who use `api` themselves at the same time; None makes one.
    machine: addresses of the machine that HNS runs on, with MACs, for clients who ask; None = they are not told.
    Raises ConfigError for an address that cannot be used, or that the system refuses.
    """
    try:
        listener = _listen(parse_server_address(address))
    except OSError as error:
        # Windows has numbers of its own for sockets, of which only the whole message tells.
        why = str(error) if os.name == "nt" or error.errno is None else os.strerror(error.errno)
        raise ConfigError(Fault("address", f"{address} cannot be opened: {why}")) from None
    return Server(api, listener, lock or threading.Lock(), machine)


class Server:
    """A running server; closing it (or leaving its `with` block) ends all connections. The `HnsApi` stays as it is."""

    def __init__(
        self, api: HnsApi, listener: socket.socket, lock: threading.Lock, machine: Mapping[Address, str] | None
    ) -> None:
        self._api = api
        self._namespaces = Namespaces(api) if isinstance(api, Emulator) else None
        self._machine = machine
        self._listener = listener
        self._lock = lock
        self._talks: set[threading.Thread] = set()
        # Closing one end makes the other readable to every thread at once. Closing or shutting down the socket that a
        # thread is blocked on does not wake it on every system.
        self._closing, self._closed = socket.socketpair()
        self.address = _address_of(listener)
        self._acceptor = threading.Thread(target=self._accept, name=f"hns-server {self.address}", daemon=True)
        self._acceptor.start()

    def wait(self) -> None:
        """Block until another thread closes the server."""
        self._acceptor.join()

    def close(self) -> None:
        """End all connections and wait for their threads; safe to call twice."""
        self._closing.close()
        self._acceptor.join()
        for talk in tuple(self._talks):
            talk.join(_CLOSE_WAIT_S)
        self._closed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with self._listener:
            for _ in self._readable(self._listener):
                connection, _peer = self._listener.accept()
                self._talks = {talk for talk in self._talks if talk.is_alive()}
                talk = threading.Thread(target=self._talk, args=(connection,), name="hns-connection", daemon=True)
                self._talks.add(talk)
                talk.start()
        if isinstance(address := parse_server_address(self.address), UnixAddress):
            Path(address.path).unlink(missing_ok=True)

    def _talk(self, connection: socket.socket) -> None:
        """Answer the lines of one connection until it or the server ends, then close what it left open."""
        open_handles: dict[Handle, HnsKind] = {}
        set_no_delay(connection)
        try:
            with connection, contextlib.suppress(ConnectionError):  # the client is free to vanish at any moment
                for line in self._lines(connection):
                    connection.sendall(encode_answer(self._answer(line, open_handles)))
        finally:
            with self._lock:
                for handle, kind in open_handles.items():
                    self._api.close(kind, handle)

    def _lines(self, connection: socket.socket) -> Iterator[bytes]:
        """Whole lines as they come. What is too long to be a call ends the connection."""
        pending = bytearray()
        for _ in self._readable(connection):
            chunk = connection.recv(_CHUNK_BYTES)
            if not chunk:
                return
            pending += chunk
            while (end := pending.find(b"\n")) >= 0:
                yield bytes(pending[: end + 1])
                del pending[: end + 1]
            if len(pending) > MAX_LINE_BYTES:
                return

    def _readable(self, watched: socket.socket) -> Iterator[None]:
        """Once each time there is something to take from `watched`, until the server is closed."""
        with selectors.DefaultSelector() as selector:
            selector.register(watched, selectors.EVENT_READ)
            selector.register(self._closed, selectors.EVENT_READ)
            while all(key.fileobj is watched for key, _ in selector.select()):
                yield

    def _answer(self, line: bytes, open_handles: dict[Handle, HnsKind]) -> Answer:
        try:
            request = decode_request(line)
        except MalformedLine as error:
            return refusal(HnsError("", E_INVALIDARG, str(error)))
        if request.function == MACHINE_FUNCTION and self._machine is not None:
            return Answer(S_OK, out=json.dumps({str(address): mac for address, mac in self._machine.items()}))
        if self._namespaces is not None and self._namespaces.knows(request.function):
            with self._lock:
                return self._in_namespaces(request, self._namespaces)
        with self._lock:
            answer = perform(self._api, request)
        if answer.handle is not None:
            open_handles[answer.handle] = _FUNCTIONS[request.function][1]
        elif _FUNCTIONS.get(request.function, (None,))[0] is HnsVerb.CLOSE:
            match request.arguments:
                case (int(handle),):
                    open_handles.pop(Handle(handle), None)
        return answer

    @staticmethod
    def _in_namespaces(request: Request, namespaces: Namespaces) -> Answer:
        """Handles of namespaces hold nothing, so one that a client leaves open costs nothing."""
        try:
            return namespaces.answer(request)
        except HnsError as error:
            return refusal(error)


def perform(api: HnsApi, request: Request) -> Answer:
    """Do one DLL call on `api`. What the DLL has and HnsApi has not is refused with E_NOTIMPL, never ignored."""
    try:
        if request.function == "HNSCall":
            return _hns_call(api, request)
        if (found := _FUNCTIONS.get(request.function)) is None:
            raise HnsError(request.function, E_NOTIMPL, "This service keeps networks, endpoints and load balancers. ")
        return _hcn_call(api, *found, request)
    except HnsError as error:
        return refusal(error)


def refusal(error: HnsError) -> Answer:
    """The answer that says `error`; without words there is no record either, as when HNS is down (hcn.md 1.5)."""
    record = write_error_record(error.hresult, error.text) if error.text else None
    return Answer(error.hresult, record=record)


def _hns_call(api: HnsApi, request: Request) -> Answer:
    match request.arguments:
        case (str(method), str(path), str(body)):
            return Answer(S_OK, out=respond(api, method, path, body))
        case _:
            raise _wrong_arguments(request)


def _hcn_call(api: HnsApi, verb: HnsVerb, kind: HnsKind, request: Request) -> Answer:
    match verb, request.arguments:
        case HnsVerb.ENUMERATE, (str(query),):
            return Answer(S_OK, out=api.enumerate(kind, query))
        case HnsVerb.OPEN, (str(guid),):
            return Answer(S_OK, handle=api.open(kind, Guid(guid)))
        case HnsVerb.QUERY, (int(handle), str(query)):
            return Answer(S_OK, out=api.query(kind, Handle(handle), query))
        case HnsVerb.CREATE, (int(network), str(guid), str(settings)) if kind is HnsKind.ENDPOINT:
            return Answer(S_OK, handle=api.create(kind, Guid(guid), settings, Handle(network)))
        case HnsVerb.CREATE, (str(guid), str(settings)) if kind is not HnsKind.ENDPOINT:
            return Answer(S_OK, handle=api.create(kind, Guid(guid), settings))
        case HnsVerb.MODIFY, (int(handle), str(settings)):
            api.modify(kind, Handle(handle), settings)
            return Answer(S_OK)
        case HnsVerb.DELETE, (str(guid),):
            api.delete(kind, Guid(guid))
            return Answer(S_OK)
        case HnsVerb.CLOSE, (int(handle),):
            api.close(kind, Handle(handle))
            return Answer(S_OK)
        case _:
            raise _wrong_arguments(request)


def _wrong_arguments(request: Request) -> HnsError:
    return HnsError(request.function, E_INVALIDARG, f"Wrong arguments for {request.function}. ")


def connect(address: ServerAddress, *, timeout_s: float | None = None) -> socket.socket:
    """Connect to a server; the socket keeps `timeout_s` (None = none) for every later operation. Raises OSError."""
    match address:
        case TcpAddress(host, port):
            connection = socket.create_connection((host, port), timeout_s)
        case UnixAddress(path):
            connection = _unix_socket()
            try:
                connection.settimeout(timeout_s)
                connection.connect(path)
            except OSError:
                connection.close()
                raise
        case _:
            assert_never(address)
    set_no_delay(connection)
    return connection


def set_no_delay(connection: socket.socket) -> None:
    """Send each line at once: requests and answers are single small writes that wait for each other."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listen(address: ServerAddress) -> socket.socket:
    match address:
        case TcpAddress(host, port):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family)
        case UnixAddress(path):
            listener = _unix_socket()
            try:
                _remove_stale_socket(address)
                listener.bind(path)
                Path(path).chmod(0o600)  # whoever may write to it may change everything in the emulator
                listener.listen()
            except OSError:
                listener.close()
                raise
            return listener
        case _:
            assert_never(address)


def _remove_stale_socket(address: UnixAddress) -> None:
    """Remove the socket file of a server that died. A living server, or another kind of file, is left alone."""
    path = Path(address.path)
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    try:
        connect(address).close()
    except ConnectionRefusedError:
        path.unlink()


def _unix_socket() -> socket.socket:
    if sys.platform != "win32":
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raise ConfigError(Fault("address", "Python has no unix sockets on Windows", "use 127.0.0.1:PORT"))


def _address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return str(UnixAddress(name))
    return str(TcpAddress(name[0], name[1]))


class SharedHns:
    """An HnsApi that several threads may use: every call holds `lock`. Whoever else touches what is behind it, too."""

    def __init__(self, api: HnsApi, lock: threading.Lock) -> None:
        self._api = api
        self._lock = lock

    def version(self) -> HnsVersion:
        with self._lock:
            return self._api.version()

    def enumerate(self, kind: HnsKind, query: str) -> str:
        with self._lock:
            return self._api.enumerate(kind, query)

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        with self._lock:
            return self._api.open(kind, guid)

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        with self._lock:
            return self._api.query(kind, handle, query)

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        with self._lock:
            return self._api.create(kind, guid, settings, network)

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        with self._lock:
            self._api.modify(kind, handle, settings)

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        with self._lock:
            self._api.delete(kind, guid)

    def close(self, kind: HnsKind, handle: Handle) -> None:
        with self._lock:
            self._api.close(kind, handle)
