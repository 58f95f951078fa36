"""The C double of computenetwork.dll and vmcompute.dll, and what tests put behind it.

The library has the DLLs' exports and owns what they own: texts, handles, callbacks, with counters on each. Objects are
kept behind its socket, by the emulator (`hansa.hns.emulator.server`) or by a `ScriptedService` that answers whatever a
test wants, also what no emulator would say.

Off Windows the library is compiled with gcc once per process. On Windows (`make test-windows`) it is the system's
computenetwork.dll, so that the tests take the very path that hansa takes there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import enum
import functools
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from hansa.hns.emulator.wire import Answer, Request, decode_request, encode_answer
from hansa.hns.native import NativeHns

HERE = Path(__file__).parent
NO_COMPILER = "the double of computenetwork.dll is compiled with gcc, which is not installed"


class Counter(enum.IntEnum):
    """What the library counts; the order is that of wire.h. Frees are not counted on Windows (-1)."""

    CALLS = 0
    HANDLES_OPEN = 1
    HANDLES_MISUSED = 2
    TEXTS_ALLOCATED = 3
    TEXTS_LIVE = 4
    FREES_WRONG = 5
    CALLBACKS = 6


LEAKS = (Counter.HANDLES_OPEN, Counter.TEXTS_LIVE, Counter.FREES_WRONG, Counter.CALLBACKS)


@functools.cache
def compiled(*defines: str) -> Path:
    """The library's path; skips the test if there is no compiler. defines: -D names, e.g. to leave exports out."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip(NO_COMPILER)
    folder = Path(tempfile.mkdtemp(prefix="hansa-hns-double-"))
    atexit.register(shutil.rmtree, folder)
    library = folder / "hns_double.so"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
    sources = sorted(str(path) for path in HERE.glob("*.c"))
    subprocess.run([compiler, *flags, *(f"-D{name}" for name in defines), "-o", str(library), *sources], check=True)
    return library


class Double:
    """The loaded library. One per process, as a DLL is: counters go on from test to test."""

    def __init__(self) -> None:
        self.path = None if sys.platform == "win32" else compiled()
        self._library = ctypes.CDLL("computenetwork.dll" if self.path is None else str(self.path))
        if not hasattr(self._library, "hns_double_count"):
            pytest.skip("this system's computenetwork.dll is the real one: tests/host/windows is for it")
        self._library.hns_double_count.restype = ctypes.c_int64

    def native(self) -> NativeHns:
        return NativeHns(self.path)

    def hns_call(self, method: str, path: str, body: str) -> tuple[int, str]:
        """HRESULT and response of vmcompute.dll's HNSCall, called as any program would."""
        compute = ctypes.WinDLL("vmcompute.dll") if sys.platform == "win32" else self._library
        memory = ctypes.WinDLL("ole32.dll") if sys.platform == "win32" else self._library
        compute.HNSCall.restype = ctypes.c_uint32
        memory.CoTaskMemFree.argtypes = (ctypes.c_void_p,)
        memory.CoTaskMemFree.restype = None
        texts = [f"{text}\0".encode("utf-16-le") for text in (method, path, body)]
        response = ctypes.c_void_p()
        code = compute.HNSCall(*texts, ctypes.byref(response))
        if not response.value:
            return code, ""
        units = ctypes.cast(response, ctypes.POINTER(ctypes.c_uint16))
        length = next(index for index in range(1 << 24) if units[index] == 0)
        text = ctypes.string_at(response, 2 * length).decode("utf-16-le")
        memory.CoTaskMemFree(response)
        return code, text

    def connect(self, address: str) -> None:
        """Send all further calls there."""
        self._library.hns_double_connect(address.encode())

    def count(self, counter: Counter) -> int:
        return int(self._library.hns_double_count(int(counter)))

    def leaks(self) -> dict[Counter, int]:
        """What is allocated, open or registered, and wrong frees; a test compares before with after."""
        return {counter: self.count(counter) for counter in LEAKS}

    def notify(self, kind: int, status: int, data: str | None) -> None:
        """Call every registered callback on a thread of the library's own, and wait until they have returned."""
        text = None if data is None else data.encode("utf-16-le") + b"\0\0"
        self._library.hns_double_notify(ctypes.c_uint32(kind), ctypes.c_int32(status), text)

    def refuse_callbacks(self, hresult: int) -> None:
        """Answer registering and unregistering with this from now on; 0 ends that."""
        self._library.hns_double_refuse_callbacks(ctypes.c_uint32(hresult))


@functools.cache
def double() -> Double:
    return Double()


Script = Callable[[Request], Answer | bytes | None]


class ScriptedService:
    """A server that answers each line with what `script` says: an Answer, raw bytes, or None to hang up."""

    def __init__(self, script: Script) -> None:
        self.requests: list[Request] = []
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        self._current: socket.socket | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._current = connection
            with connection, contextlib.suppress(ConnectionError):  # its other end may hang up before the answer
                if self._stopping:
                    return
                for line in self._lines(connection):
                    self.requests.append(decode_request(line))
                    answer = self._script(self.requests[-1])
                    if answer is None:
                        break
                    connection.sendall(answer if isinstance(answer, bytes) else encode_answer(answer))

    def _lines(self, connection: socket.socket) -> Iterator[bytes]:
        pending = b""
        connection.settimeout(0.05)  # on Windows shutting a socket down does not wake who reads from it
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                chunk = connection.recv(65536)
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                yield from lines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port))):
            if self._current is not None:
                with contextlib.suppress(OSError):  # its other end may have hung up already
                    self._current.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()
