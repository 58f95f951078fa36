"""NativeHns: HnsApi on the real service, by ctypes on computenetwork.dll (and vmcompute.dll for the version).

Importing this module does nothing on any system. Off Windows it loads a library with the same exported names instead,
which is how its memory and handle discipline is tested without Windows. Evidence: hcn.md 1.1-1.5, 1.8.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import uuid
from collections.abc import Callable
from ctypes import c_int32, c_uint32, c_void_p
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from hansa.errors import DataplaneError
from hansa.hns.api import Guid, Handle, HnsError, HnsKind, HnsVerb, HnsVersion, HResult, parse_guid
from hansa.hns.record import (
    E_INVALIDARG,
    E_PROC_NOT_FOUND,
    E_UNEXPECTED,
    failed,
    raise_if_refused,
    read_version_response,
)

# DLLs of the system come from System32 and from nowhere else: a file of the same name next to the program, or in the
# working directory, must not be run with the rights of a node agent (LOAD_LIBRARY_SEARCH_SYSTEM32).
_SEARCH_SYSTEM32 = 0x800

# Smallest page of the systems hansa runs on; a read that stays inside one page of a valid byte cannot fault.
_PAGE_BYTES = 4096

# The high bits of a notification's number are flags (HCN_NOTIFICATION mask 0xF0000000).
_NOTIFICATION_KIND_MASK = 0x0FFFFFFF


class NotificationKind(enum.IntEnum):
    """What HNS tells by itself. There is none for load balancers, nor for endpoints made or deleted (hcn.md 1.2)."""

    NETWORK_PRE_CREATE = 1
    NETWORK_CREATE = 2
    NETWORK_PRE_DELETE = 3
    NETWORK_DELETE = 4
    NAMESPACE_CREATE = 5
    NAMESPACE_DELETE = 6
    GUEST_SERVICE_CREATE = 7
    GUEST_SERVICE_DELETE = 8
    ENDPOINT_ATTACHED = 9
    ENDPOINT_DETACHED = 0x10
    GUEST_SERVICE_STATE = 0x11
    GUEST_SERVICE_INTERFACE = 0x12
    SERVICE_DISCONNECT = 0x01000000  # HNS went away: subscribe again once it answers


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification. kind is a plain number if this list does not know it; guid None, data "" where HNS gave none.

    data is the JSON text as it came: {"ID": guid, "Flags": number, "Data": anything}.
    """

    kind: NotificationKind | int
    status: HResult
    guid: Guid | None
    data: str


class NativeHns:
    """HnsApi on this machine's HNS. Usable from several threads; calls block as long as HNS does.

    Close it (or use it in a `with` block) to end its subscriptions. Handles are the caller's to close.
    """

    def __init__(self, library: str | Path | None = None) -> None:
        """Load the DLLs. library: path of another implementation of computenetwork.dll; None takes the system's.

        Off Windows it is required, and must also export HNSCall and CoTaskMemFree. Raises DataplaneError if something
        cannot be loaded; single functions that an old Windows lacks are only missed when they are called.
        """
        self._dlls = _load(library)
        self._entries: dict[str, Callable[..., int]] = {}
        self._subscriptions: list[Subscription] = []

    def version(self) -> HnsVersion:
        response = self._text_of(
            "HNSCall", _utf16("HNSCall", "GET"), _utf16("HNSCall", "/globals/version"), _utf16("HNSCall", "")
        )
        return read_version_response(response)

    def enumerate(self, kind: HnsKind, query: str) -> str:
        function = HnsVerb.ENUMERATE.function(kind)
        guids = self._text_of(function, _utf16(function, query))
        return "[]" if guids.strip() in ("", "null") else guids  # null: hcn.md 1.2, guarded against in SDN scripts

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        function = HnsVerb.OPEN.function(kind)
        return self._handle_of(kind, function, _guid(function, guid))

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        function = HnsVerb.QUERY.function(kind)
        return self._text_of(function, handle, _utf16(function, query))

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        function = HnsVerb.CREATE.function(kind)
        if (network is not None) != (kind is HnsKind.ENDPOINT):
            # The DLL has no such call: one argument more or less would be read as something else.
            raise HnsError(function, E_INVALIDARG, "Exactly endpoints are created on a network.")
        parent = () if network is None else (network,)
        return self._handle_of(kind, function, *parent, _guid(function, guid), _utf16(function, settings))

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        function = HnsVerb.MODIFY.function(kind)
        self._invoke(function, handle, _utf16(function, settings))

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        function = HnsVerb.DELETE.function(kind)
        self._invoke(function, _guid(function, guid))

    def close(self, kind: HnsKind, handle: Handle) -> None:
        # Nothing can be done about a handle that does not close: no error record, and the object is not affected.
        self._entry(HnsVerb.CLOSE.function(kind), 1)(handle)

    def subscribe(self, receive: Callable[[Notification], None]) -> Subscription:
        """Have `receive` called with each notification until the result is closed. Raises HnsError.

        It runs on a thread of HNS: set a flag or put the value into a queue, return at once, and never close a
        subscription from within. An exception in it ends up in sys.unraisablehook.
        """
        subscription = Subscription(self._dlls, self._entry, receive)
        self._subscriptions.append(subscription)
        return subscription

    def shutdown(self) -> None:
        """End all subscriptions; safe to call twice."""
        while self._subscriptions:
            self._subscriptions.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _entry(self, function: str, argument_count: int) -> Callable[..., int]:
        """The exported function, every argument a pointer, the result a signed 32-bit HRESULT.

        Not ctypes.HRESULT, which raises before the error record can be read and freed; not a wider integer, whose upper
        half the DLL leaves undefined.
        """
        entry = self._entries.get(function)
        if entry is None:
            dll = self._dlls.compute if function == "HNSCall" else self._dlls.network
            try:
                found = dll[function]
            except AttributeError:
                text = f"The DLL of this system does not export {function}."
                raise HnsError(function, E_PROC_NOT_FOUND, text) from None
            found.argtypes = (c_void_p,) * argument_count
            found.restype = c_int32
            entry = self._entries[function] = found
        return entry

    def _invoke(self, function: str, *arguments: int | bytes, into: c_void_p | None = None) -> None:
        """Call with out pointer (if any) and error record; raise HnsError if refused, the record being freed."""
        record = c_void_p()
        outs = [] if into is None else [ctypes.byref(into)]
        if function != "HNSCall":  # v1 has no error record: its refusals are in the response
            outs.append(ctypes.byref(record))
        hresult = self._entry(function, len(arguments) + len(outs))(*arguments, *outs)
        raise_if_refused(function, hresult, self._take(record) or "")

    def _text_of(self, function: str, *arguments: int | bytes) -> str:
        """The call's out text, freed also if the call fails."""
        out = c_void_p()
        try:
            self._invoke(function, *arguments, into=out)
        finally:
            text = self._take(out)
        if text is None:
            raise HnsError(function, E_UNEXPECTED, "The call succeeded without giving a text.")
        return text

    def _handle_of(self, kind: HnsKind, function: str, *arguments: int | bytes) -> Handle:
        """The call's out handle, closed if the call counts as failed all the same."""
        out = c_void_p()
        try:
            self._invoke(function, *arguments, into=out)
        except HnsError:
            if out.value is not None:
                self.close(kind, Handle(out.value))
            raise
        if out.value is None:
            raise HnsError(function, E_UNEXPECTED, "The call succeeded without giving a handle.")
        return Handle(out.value)

    def _take(self, pointer: c_void_p) -> str | None:
        """Read a text that the DLL allocated, and free it; None if there is none."""
        if pointer.value is None:
            return None
        try:
            return _read_utf16(pointer.value)
        finally:
            self._dlls.free(pointer)


class Subscription:
    """One registered callback; `close` unregisters it."""

    def __init__(
        self, dlls: _Dlls, entry: Callable[[str, int], Callable[..., int]], receive: Callable[[Notification], None]
    ) -> None:
        self._entry = entry
        self._callback = dlls.callback_type(lambda kind, _, status, data: receive(_notification(kind, status, data)))
        self._handle = c_void_p()
        pointer = ctypes.cast(self._callback, c_void_p)
        function = "HcnRegisterServiceCallback"
        hresult = entry(function, 3)(pointer, None, ctypes.byref(self._handle))
        raise_if_refused(function, hresult, "")
        # HNS holds the bare address from now on. Were the object freed with a registration alive (this object was
        # forgotten, unregistering failed), the next notification would run freed memory.
        _hold(self._callback)

    def close(self) -> None:
        """Unregister; safe to call twice. If HNS refuses, the callback stays allocated rather than dangling."""
        if self._handle.value is None:
            return
        hresult = self._entry("HcnUnregisterServiceCallback", 1)(self._handle)
        self._handle = c_void_p()
        if not failed(hresult):
            _release(self._callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hold(value: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _release(value: object) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(value))


def _notification(kind: int, status: int, data: int | None) -> Notification:
    """Copy everything out of HNS's memory, which is only valid during the call."""
    number = kind & _NOTIFICATION_KIND_MASK
    text = "" if data is None else _read_utf16(data)
    known = NotificationKind(number) if number in NotificationKind.__members__.values() else number
    return Notification(known, HResult(status & 0xFFFFFFFF), _guid_in(text), text)


def _guid_in(data: str) -> Guid | None:
    try:
        return parse_guid(json.loads(data)["ID"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # not every notification is about an object


@dataclass(frozen=True, slots=True)
class _Dlls:
    """The loaded libraries. compute has HNSCall, free is CoTaskMemFree, callback_type makes HNS callbacks."""

    network: ctypes.CDLL
    compute: ctypes.CDLL
    free: Callable[[c_void_p], None]
    callback_type: Callable[[Callable[[int, int | None, int, int | None], None]], Any]


def _load(library: str | Path | None) -> _Dlls:
    if sys.platform == "win32":
        network = _dll(library or "computenetwork.dll")
        compute = _dll("vmcompute.dll")
        memory = _dll("ole32.dll")
        function_type: Any = ctypes.WINFUNCTYPE
    elif library is None:
        raise DataplaneError(
            "this system has no computenetwork.dll: run on Windows (Server 2019 or later), or talk to an emulated HNS "
            "instead (hansa.hns.emulator in this process, hansa.hns.remote in another)"
        )
    else:
        network = compute = memory = _dll(library)
        function_type = ctypes.CFUNCTYPE
    try:
        free = memory.CoTaskMemFree
    except AttributeError:
        raise DataplaneError(f"{library} does not export CoTaskMemFree, so its texts could not be freed") from None
    free.argtypes = (c_void_p,)
    free.restype = None
    return _Dlls(network, compute, free, function_type(None, c_uint32, c_void_p, c_int32, c_void_p))


def _dll(library: str | Path) -> ctypes.CDLL:
    """Load one library; a bare DLL name means the system's own. On x86-64 each system has one calling convention."""
    try:
        return _open(library)
    except OSError as error:
        hint = ""
        if library in ("computenetwork.dll", "vmcompute.dll"):
            hint = " (HNS comes with the Containers feature: Install-WindowsFeature Containers, then restart)"
        raise DataplaneError(f"cannot load {library}: {error}{hint}") from error


def _open(library: str | Path) -> ctypes.CDLL:
    name = str(library)
    load: Callable[[str], ctypes.CDLL] = ctypes.CDLL
    if sys.platform == "win32":
        mode = _SEARCH_SYSTEM32 if Path(name).name == name else None
        load = partial(ctypes.WinDLL, winmode=mode)
    return load(name)


def _guid(function: str, guid: Guid) -> bytes:
    """The 16 bytes of a Windows GUID: its first three fields are little-endian."""
    try:
        return uuid.UUID(parse_guid(guid)).bytes_le
    except ValueError as error:
        raise HnsError(function, E_INVALIDARG, str(error)) from None


def _utf16(function: str, text: str) -> bytes:
    """NUL-terminated UTF-16LE, spelt out because wchar_t has 4 bytes off Windows. Lone surrogates pass unchanged."""
    if "\0" in text:
        raise HnsError(function, E_INVALIDARG, "A text for HNS cannot contain U+0000: HNS would stop reading there.")
    return text.encode("utf-16-le", "surrogatepass") + b"\0\0"


def _read_utf16(address: int) -> str:
    """The NUL-terminated UTF-16LE text at `address`, read page by page: bytes beyond its end may not be mapped."""
    raw = bytearray()
    while True:
        chunk = ctypes.string_at(address, _PAGE_BYTES - address % _PAGE_BYTES)
        end = _terminator(chunk)
        if end >= 0:
            raw += chunk[:end]
            return raw.decode("utf-16-le", "surrogatepass")
        raw += chunk
        address += len(chunk)


def _terminator(chunk: bytes) -> int:
    """Offset of the first 16-bit zero on an even offset, -1 if there is none."""
    end = chunk.find(b"\0\0")
    while end % 2 == 1 and end >= 0:
        end = chunk.find(b"\0\0", end + 1)
    return end
