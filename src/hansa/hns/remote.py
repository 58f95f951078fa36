"""RemoteHns: HnsApi spoken to `hansa.hns.emulator.server` in another process, or to anything that speaks its lines.

A lost connection is to its user what a stopped HNS is to a caller of the DLL: the call fails with an RPC error, open
handles are dead, and the next call tries again.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from typing import Self

from hansa.hns.api import Guid, Handle, HnsError, HnsKind, HnsVerb, HnsVersion
from hansa.hns.emulator.server import connect
from hansa.hns.emulator.wire import (
    MACHINE_FUNCTION,
    MAX_LINE_BYTES,
    Answer,
    MalformedLine,
    Request,
    decode_answer,
    encode_request,
    parse_server_address,
)
from hansa.hns.record import (
    E_HANDLE,
    E_NOTIMPL,
    E_UNEXPECTED,
    RPC_CALL_FAILED,
    RPC_CONTEXT_MISMATCH,
    RPC_SERVER_UNAVAILABLE,
    raise_if_refused,
    read_version_response,
)
from hansa.net import Address, parse_address

# A handle is the server's number plus the number of the connection it came from in the bits above.
_HANDLE_BITS = 48


class RemoteHns:
    """HnsApi over a socket. Connects at the first call; usable from several threads, one call at a time."""

    def __init__(self, address: str, *, timeout_s: float = 60.0) -> None:
        """address as for `serve`. timeout_s: longest wait for one answer. Raises ConfigError for a bad address."""
        self._address = parse_server_address(address)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: tuple[socket.socket, io.BufferedReader] | None = None
        self._generation = 0
        self._has_ended = False

    def version(self) -> HnsVersion:
        with self._lock:
            answer = self._exchange(Request("HNSCall", ("GET", "/globals/version", "")))
        return read_version_response(self._out("HNSCall", answer))

    def enumerate(self, kind: HnsKind, query: str) -> str:
        function = HnsVerb.ENUMERATE.function(kind)
        return self._out(function, self._call(function, query))

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        return self._opened(HnsVerb.OPEN.function(kind), guid)

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        function = HnsVerb.QUERY.function(kind)
        return self._out(function, self._call(function, query, handle=handle))

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        return self._opened(HnsVerb.CREATE.function(kind), guid, settings, handle=network)

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        self._call(HnsVerb.MODIFY.function(kind), settings, handle=handle)

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        self._call(HnsVerb.DELETE.function(kind), guid)

    def close(self, kind: HnsKind, handle: Handle) -> None:
        # A handle that cannot be closed any more died with its connection; the server has closed it.
        with contextlib.suppress(HnsError):
            self._call(HnsVerb.CLOSE.function(kind), handle=handle)

    def machine(self) -> dict[Address, str] | None:
        """Addresses of the machine that HNS runs on, each with its interface's MAC ("" = unknown); None = it says none.

        Raises HnsError.
        """
        try:
            told: object = json.loads(self._out(MACHINE_FUNCTION, self._call(MACHINE_FUNCTION)))
            if not isinstance(told, dict):
                raise ValueError(f"{told!r} is no object")
            return {parse_address(text): str(mac) for text, mac in told.items()}
        except HnsError as error:
            if error.hresult == E_NOTIMPL:
                return None
            raise
        except ValueError as error:
            raise HnsError(MACHINE_FUNCTION, E_UNEXPECTED, f"The answer makes no sense: {error}") from None

    def disconnect(self) -> None:
        """End the connection; the server closes what this client left open. The next call connects anew.

        A call that another thread is waiting for fails at once, however long the server takes.
        """
        with contextlib.suppress(OSError):  # it may just have been closed
            if (found := self._connection) is not None:
                found[0].shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended = True  # a thread whose call fails now must not connect again for its next one
        self.disconnect()

    def _call(self, function: str, *texts: str, handle: Handle | None = None) -> Answer:
        with self._lock:
            return self._call_locked(function, *texts, handle=handle)

    def _call_locked(self, function: str, *texts: str, handle: Handle | None) -> Answer:
        if handle is None:
            return self._exchange(Request(function, texts))
        generation, number = divmod(handle, 1 << _HANDLE_BITS)
        if not 0 < generation <= self._generation:
            raise HnsError(function, E_HANDLE, "The handle was not given out by this service.")
        if generation < self._generation or self._connection is None:
            raise HnsError(function, RPC_CONTEXT_MISMATCH, "The handle belongs to a connection that has ended.")
        return self._exchange(Request(function, (number, *texts)))

    def _opened(self, function: str, *texts: str, handle: Handle | None = None) -> Handle:
        with self._lock:
            answer = self._call_locked(function, *texts, handle=handle)
            if answer.handle is None:
                raise HnsError(function, E_UNEXPECTED, "The call succeeded without giving a handle.")
            return Handle((self._generation << _HANDLE_BITS) | answer.handle)

    @staticmethod
    def _out(function: str, answer: Answer) -> str:
        if answer.out is None:
            raise HnsError(function, E_UNEXPECTED, "The call succeeded without giving a text.")
        return answer.out

    def _exchange(self, request: Request) -> Answer:
        """One line out, one line back. Raises HnsError for a refusal and for every trouble with the connection."""
        connection, lines = self._connected(request.function)
        try:
            connection.sendall(encode_request(request))
            line = lines.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                raise ConnectionError("the server ended the connection")
            answer = decode_answer(line)
        except (OSError, MalformedLine) as error:
            self._drop()
            raise HnsError(request.function, RPC_CALL_FAILED, f"{self._address}: {error}") from error
        raise_if_refused(request.function, answer.hresult, answer.record or "")
        return answer

    def _connected(self, function: str) -> tuple[socket.socket, io.BufferedReader]:
        if self._has_ended:
            raise HnsError(function, RPC_SERVER_UNAVAILABLE, f"{self._address}: nobody needs it any more")
        if self._connection is None:
            try:
                connection = connect(self._address, timeout_s=self._timeout_s)
            except OSError as error:
                raise HnsError(function, RPC_SERVER_UNAVAILABLE, f"{self._address}: {error}") from error
            self._connection = connection, connection.makefile("rb")
            self._generation += 1
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            connection, lines = self._connection
            self._connection = None
            lines.close()
            connection.close()
