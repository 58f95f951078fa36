"""Netlink messages and attributes ↔ bytes, independent of any subsystem; pure.

Attribute headers are in host byte order, their values in whatever order the subsystem says (nfnetlink: network order).
Evidence: linux/netlink.h; RFC 3549; libraries section 5 for what a batch must look like.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10  # the kernel's state changed while it answered: the answer is a mixture
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100  # in an error: the request's payload was left out
NLM_F_ACK_TLVS = 0x200  # in an error: attributes follow
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_HEADER = struct.Struct("=IHHII")
NLMSGERR_ATTR_MSG = 1

ATTRIBUTE_HEADER = struct.Struct("=HH")
ATTRIBUTE_TYPE_MASK = 0x3FFF  # without the "nested" and "network byte order" flags
MAX_ATTRIBUTE_BYTES = 0xFFFF  # the length field has 16 bits

_BE32 = struct.Struct("!I")
_INT = struct.Struct("=i")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Message(NamedTuple):
    """One netlink message as it came from the kernel."""

    type: int
    flags: int
    sequence: int
    port: int
    payload: bytes


class Listing(NamedTuple):
    """The messages of one dump. interrupted: others changed the state meanwhile, so it is a mixture, or cut short."""

    messages: list[Message]
    interrupted: bool


def list_until_whole(attempt: Callable[[], Listing], attempts: int) -> Listing:
    """Ask for a listing again and again while others interrupt it; the last one is what there is, whole or not."""
    found = attempt()
    for _ in range(attempts - 1):
        if not found.interrupted:
            break
        found = attempt()
    return found


class Answer(NamedTuple):
    """What an NLMSG_ERROR says: code 0 is an acknowledgement, else an errno; text: the kernel's own words or ""."""

    sequence: int
    code: int
    text: str

    def __str__(self) -> str:
        name = errno.errorcode.get(self.code, str(self.code))
        return f"{name}: {self.text}" if self.text else name


def pad(data: bytes) -> bytes:
    """Fill up to a multiple of four bytes."""
    return data + _PADDING[len(data) & 3]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its header and padding. Raises ValueError when the value does not fit 16 bits of length."""
    length = len(value) + 4
    if length > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {kind}: {length} bytes, at most {MAX_ATTRIBUTE_BYTES} fit")
    return ATTRIBUTE_HEADER.pack(length, kind) + value + _PADDING[length & 3]


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    """An attribute that holds attributes. nf_tables neither sets nor asks for the "nested" flag in its own dumps."""
    return attribute(kind, b"".join(parts))


def be32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in network order; negative numbers as two's complement."""
    return attribute(kind, _BE32.pack(value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def read_be32(value: bytes) -> int:
    """An unsigned 32-bit attribute value."""
    number: int = _BE32.unpack(value)[0]
    return number


def read_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data` from `offset`, flags stripped from their types. Raises ValueError on a broken length."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE_HEADER.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise ValueError(f"attribute {kind & ATTRIBUTE_TYPE_MASK} says {length} bytes, {end - offset} are left")
        yield kind & ATTRIBUTE_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One request, padded; port 0, as the kernel fills it in."""
    return NLMSG_HEADER.pack(len(payload) + 16, kind, flags, sequence, 0) + pad(payload)


def messages(data: bytes) -> Iterator[Message]:
    """Split one datagram from the kernel. Raises ValueError when a length is broken."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, port = NLMSG_HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > len(data):
            raise ValueError(f"message of {length} bytes at {offset}, the datagram has {len(data)}")
        yield Message(kind, flags, sequence, port, data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def answer(reply: Message) -> Answer:
    """Read an NLMSG_ERROR (or the error inside NLMSG_DONE), with the kernel's words if it gave some."""
    if len(reply.payload) < 4:
        return Answer(reply.sequence, 0, "")
    code = -_INT.unpack_from(reply.payload)[0]
    words = ""
    if reply.type == NLMSG_ERROR and reply.flags & NLM_F_ACK_TLVS and len(reply.payload) >= 20:
        request_bytes = NLMSG_HEADER.unpack_from(reply.payload, 4)[0]
        start = 20 if reply.flags & NLM_F_CAPPED else 4 + ((request_bytes + 3) & ~3)
        for kind, value in attributes(reply.payload, start):
            if kind == NLMSGERR_ATTR_MSG:
                words = read_text(value)
    return Answer(reply.sequence, code, words)
