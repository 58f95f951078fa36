"""The whole way of a node for tests written on the emulator: binding, DLL, socket, and only then the emulator.

`pytest -p tests.hns_double.route tests/faults` sends every call that goes `through` here over NativeHns and the double;
without `-p` it goes straight. Off Windows, too; on Windows the DLL is the system's. Each test must then leave the DLL
without open handles, misused handles, live texts and wrong frees.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from tests.hns_double import LEAKS, Counter, double

from hansa.hns.api import HnsApi, HnsError
from hansa.hns.emulator.server import serve
from hansa.hns.record import E_UNEXPECTED

KEPT = (*LEAKS, Counter.HANDLES_MISUSED)


def through(api: HnsApi) -> HnsApi:
    """`api` itself, or the long way to it."""
    return api if _route is None else cast(HnsApi, _End(_route, api))


class _Switchboard:
    """What the one socket of the one DLL leads to: the HnsApi that the call at hand is meant for.

    raised: what it raised that is no answer of HNS, such as a death in mid-call; it is for the test to see.
    """

    def __init__(self) -> None:
        self.target: HnsApi | None = None
        self.raised: BaseException | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: object) -> object:
            try:
                return getattr(self.target, name)(*arguments)
            except HnsError:
                raise
            except BaseException as error:
                self.raised = error
                raise HnsError(name, E_UNEXPECTED, "what stands for HNS has raised something else") from error

        return call


class _Route:
    """The DLL, connected. One for the process, since the DLL has one connection and one counter of each kind."""

    def __init__(self) -> None:
        self.behind = _Switchboard()
        self.dll = double()
        self.server = serve(cast(HnsApi, self.behind), "127.0.0.1:0")
        self.native = self.dll.native()
        self.calls = 0
        self.is_connected = False  # tests that use the DLL by themselves find it as it is without this module
        self.lock = threading.Lock()  # one call at a time has the switchboard, as it has the DLL

    def connect(self) -> None:
        if not self.is_connected:
            self.dll.connect(self.server.address)
            self.is_connected = True

    def disconnect(self) -> None:
        if self.is_connected:
            self.dll.connect("")
            self.is_connected = False

    def kept(self) -> dict[Counter, int]:
        return {counter: self.dll.count(counter) for counter in KEPT}

    def close(self) -> None:
        self.disconnect()
        self.native.shutdown()
        self.server.close()


class _End:
    """The near end of the way to one HnsApi."""

    def __init__(self, route: _Route, api: HnsApi) -> None:
        self._route = route
        self._api = api

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: object) -> object:
        with self._route.lock:
            self._route.connect()
            behind = self._route.behind
            behind.target = self._api
            self._route.calls += 1
            try:
                return getattr(self._route.native, name)(*arguments)
            finally:
                error, behind.raised = behind.raised, None
                if error is not None:
                    raise error


_route: _Route | None = None


def pytest_configure() -> None:
    global _route
    _route = _Route()


def pytest_unconfigure() -> None:
    global _route
    if _route is not None:
        _route.close()
        _route = None


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_dll() -> Iterator[None]:
    assert _route is not None
    before, calls = _route.kept(), _route.calls
    yield
    if _route.calls > calls:  # others may use the DLL by themselves, and badly on purpose
        _route.disconnect()
        assert _route.kept() == before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _route is not None and _route.calls:
        terminalreporter.write_line(f"{_route.calls} calls went through the DLL")
