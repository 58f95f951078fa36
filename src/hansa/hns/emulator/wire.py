"""The emulator's socket protocol as values: one line per DLL call, one line back.

    -> ["HcnOpenNetwork","6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"]
    <- [0,17,null,null]
    -> ["HcnQueryNetworkProperties",17,"{\\"SchemaVersion\\":{\\"Major\\":2,\\"Minor\\":0}}"]
    <- [0,null,"{\\"ID\\":\\"6F1C...\\"}",null]

A request is the function's name and its inputs in the DLL's order: GUIDs and texts as strings, handles as numbers. The
answer is HRESULT (unsigned), handle, out text and error record, each null where the call gives none. Lines are ASCII
(everything else escaped, lone surrogates too), so a client needs no UTF-8 decoder to get UTF-16 out of them.

One request is no DLL call: a client on another machine cannot look at the network cards of HNS's own.

    -> ["HansaMachine"]
    <- [0,null,"{\\"192.0.2.21\\":\\"00-15-5D-20-21-01\\"}",null]
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass

from hansa.errors import ConfigError, Fault
from hansa.hns.api import Handle, HResult

# Longest line either side accepts. 50,000 load balancers are a list of 2 MB; a line that is longer is no HNS call.
MAX_LINE_BYTES = 64 * 1024 * 1024


# Out: the addresses of the machine that HNS runs on, each with the MAC of its interface ("" = unknown).
MACHINE_FUNCTION = "HansaMachine"


class MalformedLine(ValueError):
    """The other side does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """One DLL call: the function's exported name and its inputs in order."""

    function: str
    arguments: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a DLL call gives back. None: the call has no such result, or did not set it."""

    hresult: HResult
    handle: Handle | None = None
    out: str | None = None
    record: str | None = None


def encode_request(request: Request) -> bytes:
    return _encode([request.function, *request.arguments])


def encode_answer(answer: Answer) -> bytes:
    return _encode([answer.hresult, answer.handle, answer.out, answer.record])


def decode_request(line: bytes) -> Request:
    """Read one line. Raises MalformedLine."""
    match _decode(line):
        case [str(function), *values]:
            arguments = tuple(value for value in values if isinstance(value, int | str) and not isinstance(value, bool))
            if len(arguments) == len(values):
                return Request(function, arguments)
    raise MalformedLine(f"expected [function, argument...], got {_short(line)}")


def decode_answer(line: bytes) -> Answer:
    """Read one line. Raises MalformedLine."""
    match _decode(line):
        case [int(hresult), int() | None as handle, str() | None as out, str() | None as record]:
            return Answer(HResult(hresult), None if handle is None else Handle(handle), out, record)
    raise MalformedLine(f"expected [hresult, handle, out, record], got {_short(line)}")


def _encode(values: list[object]) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def _decode(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedLine(f"not a JSON line: {_short(line)}") from error


def _short(line: bytes) -> str:
    return repr(line[:100])


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A loopback address; port 0 lets the system choose one when listening."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


ServerAddress = TcpAddress | UnixAddress


def parse_server_address(text: str) -> ServerAddress:
    """Read `127.0.0.1:7463`, `[::1]:7463` or `unix:/path`. Raises ConfigError.

    Only loopback: whoever reaches the emulator may change everything in it, and it asks for no password.
    """
    scheme, _, path = text.partition(":")
    if scheme == "unix" and path:
        return UnixAddress(path)
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise ValueError("no port")
    except ValueError:
        raise ConfigError(Fault("address", f"{text!r} is no address", "write 127.0.0.1:PORT or unix:PATH")) from None
    if not address.is_loopback:
        raise ConfigError(Fault("address", f"{text!r} can be reached from other machines", "use a loopback address"))
    return TcpAddress(str(address), int(port))
