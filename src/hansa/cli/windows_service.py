"""A process as a Windows service: it tells the service manager how it is, and ends when told.

The manager wants to hear from a process within 30 s of starting it, on a thread of its own; hansa goes on in the main
thread, where signals and the event loop are. A service has no console, so its log lines go to a file.
Evidence: Windows documentation, "Service programs" (StartServiceCtrlDispatcherW, RegisterServiceCtrlHandlerExW,
SetServiceStatus); operations.md sections 1, 16 and 19.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

NAME = "kube-proxy"  # a process that holds one service is not asked for its name
LOG_LIMIT_BYTES = 10 * 1024 * 1024  # where wrappers rotate logs on Windows nodes; one file before it is kept
START_LIMIT_S = 30.0


class RotatingText(io.TextIOBase):
    """A file that lines go to; when it has grown it becomes `NAME.1` and a new one begins."""

    def __init__(self, path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._file.tell() > self._limit_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        super().close()  # which flushes
        self._file.close()


def default_log_path() -> Path:
    return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "hansa" / "hansa.log"


def give_output(path: str) -> None:
    """Have what is printed go to a file, if there is nowhere else. path: "" = the usual one."""
    if sys.stderr is None:
        sys.stderr = RotatingText(Path(path) if path else default_log_path())
    if sys.stdout is None:
        sys.stdout = sys.stderr


class NoServiceManager(Exception):
    """Nobody has started this process as a service; the text says how that is known."""


class Service:
    """The connection to the service manager. `stop` is called from its thread when it says so, at most once."""

    def __init__(self) -> None:
        self.is_stopping = threading.Event()
        self._stop: Callable[[], object] | None = None
        self._lock = threading.Lock()

    def on_stop(self, stop: Callable[[], object]) -> None:
        """Have this called; at once if the word has come already."""
        with self._lock:
            self._stop = stop
            late = self.is_stopping.is_set()
        if late:
            stop()

    def told_to_stop(self) -> None:
        with self._lock:
            first = not self.is_stopping.is_set()
            self.is_stopping.set()
            stop = self._stop
        if first and stop is not None:
            stop()


if sys.platform == "win32":
    import ctypes
    from ctypes import POINTER, WINFUNCTYPE, Structure, byref, c_uint32, c_void_p, c_wchar_p

    # winsvc.h
    _OWN_PROCESS = 0x10
    _STOPPED, _START_PENDING, _STOP_PENDING, _RUNNING = 1, 2, 3, 4
    _ACCEPT_STOP, _ACCEPT_SHUTDOWN = 0x1, 0x4
    _CONTROL_STOP, _CONTROL_INTERROGATE, _CONTROL_SHUTDOWN = 1, 4, 5
    _NOT_IMPLEMENTED, _SPECIFIC_ERROR = 120, 1066
    _STOP_HINT_MS = 5000  # longer than a sync under way is waited for

    class _Status(Structure):
        _fields_ = [
            ("type", c_uint32),
            ("state", c_uint32),
            ("accepted", c_uint32),
            ("exit_code", c_uint32),
            ("specific_code", c_uint32),
            ("check_point", c_uint32),
            ("wait_hint_ms", c_uint32),
        ]

    _Main = WINFUNCTYPE(None, c_uint32, POINTER(c_wchar_p))
    _Handler = WINFUNCTYPE(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)

    class _Entry(Structure):
        _fields_ = [("name", c_wchar_p), ("main", _Main)]

    class _ManagedService(Service):
        def __init__(self) -> None:
            super().__init__()
            self._api = ctypes.WinDLL("advapi32", use_last_error=True)
            self._api.RegisterServiceCtrlHandlerExW.restype = c_void_p
            self._api.RegisterServiceCtrlHandlerExW.argtypes = (c_wchar_p, _Handler, c_void_p)
            self._api.SetServiceStatus.argtypes = (c_void_p, POINTER(_Status))
            # Kept for as long as the process lives: the manager calls them.
            self._main = _Main(self._serve)
            self._handler = _Handler(self._control)
            self._handle: int | None = None
            self._error = 0
            self._known = threading.Event()
            self._exit_code: int | None = None
            self._ended = threading.Event()

        def connect(self) -> None:
            """Raises NoServiceManager."""
            threading.Thread(target=self._dispatch, name="hansa-service", daemon=True).start()
            if not self._known.wait(START_LIMIT_S) or self._handle is None:
                raise NoServiceManager(ctypes.FormatError(self._error) if self._error else "no answer")

        def ended(self, code: int) -> None:
            """Say so; the process may go then."""
            self._exit_code = code
            self._report(_STOPPED)
            self._ended.set()

        def _dispatch(self) -> None:
            table = (_Entry * 2)(_Entry(NAME, self._main), _Entry(None, _Main()))
            if not self._api.StartServiceCtrlDispatcherW(table):
                self._error = ctypes.get_last_error()
                self._known.set()

        def _serve(self, _: int, __: object) -> None:
            self._handle = self._api.RegisterServiceCtrlHandlerExW(NAME, self._handler, None)
            if not self._handle:
                self._error = ctypes.get_last_error()
            else:
                self._report(_RUNNING)
            self._known.set()
            self._ended.wait()

        def _control(self, control: int, *_: object) -> int:
            if control in (_CONTROL_STOP, _CONTROL_SHUTDOWN):
                self._report(_STOP_PENDING)
                self.told_to_stop()
                return 0
            return 0 if control == _CONTROL_INTERROGATE else _NOT_IMPLEMENTED

        def _report(self, state: int) -> None:
            code = self._exit_code or 0
            status = _Status(
                _OWN_PROCESS,
                state,
                _ACCEPT_STOP | _ACCEPT_SHUTDOWN if state == _RUNNING else 0,
                _SPECIFIC_ERROR if code else 0,
                code,
                1 if state == _STOP_PENDING else 0,
                _STOP_HINT_MS if state == _STOP_PENDING else 0,
            )
            self._api.SetServiceStatus(self._handle, byref(status))

    def run(main: Callable[[Service], int]) -> int:
        """Be a service for as long as `main` runs; its code is told and returned. Raises NoServiceManager."""
        service = _ManagedService()
        service.connect()
        code = 1  # what it is if an exception ends it
        try:
            code = main(service)
        finally:
            service.ended(code)
        return code
else:

    def run(main: Callable[[Service], int]) -> int:  # noqa: ARG001 - as on Windows
        """Raises NoServiceManager."""
        raise NoServiceManager("only Windows has a service manager")
