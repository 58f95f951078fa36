"""The kernel's connection table as messages: conntrack entries ↔ bytes; pure.

Names of attributes are those of linux/netfilter/nfnetlink_conntrack.h without their prefix. Addresses stay packed, as a
table has many entries of which few are looked at twice. Evidence: that header, Linux 5.8 (which brought the filter) and
6.18; `conntrack -L` as the second opinion.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import NamedTuple

from hansa.net import IPFamily, Protocol, address_port
from hansa.netlink.codec import attribute, attributes, be32, nested, read_be32

SUBSYSTEM = 1
GET_ENTRY, DELETE_ENTRY, GET_STATISTICS = 1, 2, 5

_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3
_PROTO_NUMBER, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_FILTER_ORIGINAL_FLAGS = 1
_STATISTICS_ENTRIES = 1
_FILTER_BY_PROTO_NUMBER = 1 << 3
_NESTED = 0x8000  # the filter is parsed strictly: without the flag it is refused
# Source and destination address of a tuple.
_ADDRESS_KINDS = {IPFamily.IPV4: (1, 2), IPFamily.IPV6: (3, 4)}
_FAMILY_NUMBERS = {IPFamily.IPV4: 2, IPFamily.IPV6: 10}
_NATIVE = struct.Struct("=I")
_PORT = struct.Struct("!H")


class Entry(NamedTuple):
    """One tracked connection, as its first packet was and as answers are. Addresses are packed, in network order.

    answered_by: the source of answers; where the destination was translated, the endpoint, else the destination.
    number: the kernel's own, which a later connection with the same addresses seldom has (one that gets the very place
    in memory of the deleted one does).
    """

    family: IPFamily
    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    answered_by: bytes
    answered_from: int
    number: int

    def __str__(self) -> str:
        ends = (
            address_port(ip_address(address), port)
            for address, port in (
                (self.source, self.source_port),
                (self.destination, self.destination_port),
                (self.answered_by, self.answered_from),
            )
        )
        return "{} -> {}, answered by {}".format(*ends)


class Entries(NamedTuple):
    """What a listing gave. whole: False = others changed the table too fast, some entries may be missing."""

    entries: list[Entry]
    whole: bool


def message_type(kind: int) -> int:
    return SUBSYSTEM << 8 | kind


def _header(family: IPFamily) -> bytes:
    return bytes((_FAMILY_NUMBERS[family], 0, 0, 0))


def _tuple(kind: int, family: IPFamily, protocol: int, ends: tuple[bytes, int, bytes, int]) -> bytes:
    """One direction of a connection; ends: source address and port, destination address and port."""
    source, destination = _ADDRESS_KINDS[family]
    addresses = [attribute(source, ends[0]), attribute(destination, ends[2])]
    ports = [
        attribute(_PROTO_NUMBER, bytes((protocol,))),
        attribute(_PROTO_SOURCE_PORT, _PORT.pack(ends[1])),
        attribute(_PROTO_DESTINATION_PORT, _PORT.pack(ends[3])),
    ]
    return nested(kind | _NESTED, [nested(_TUPLE_IP | _NESTED, addresses), nested(_TUPLE_PROTO | _NESTED, ports)])


def _original(entry: Entry) -> bytes:
    ends = (entry.source, entry.source_port, entry.destination, entry.destination_port)
    return _tuple(_TUPLE_ORIGINAL, entry.family, entry.protocol, ends)


def listing(family: IPFamily, protocol: Protocol) -> bytes:
    """Asks for all entries of one protocol; kernels before 5.8 list the others as well."""
    wanted = nested(_TUPLE_PROTO | _NESTED, [attribute(_PROTO_NUMBER, bytes((protocol.value,)))])
    flags = attribute(_FILTER_ORIGINAL_FLAGS, _NATIVE.pack(_FILTER_BY_PROTO_NUMBER))
    return _header(family) + nested(_TUPLE_ORIGINAL | _NESTED, [wanted]) + nested(_FILTER | _NESTED, [flags])


def statistics() -> bytes:
    """Asks how many entries there are: the cheapest question that shows whether the subsystem is there."""
    return _header(IPFamily.IPV4)


def deletion(entry: Entry) -> bytes:
    """Names one entry to delete, by its number too: a newer connection may have the same addresses."""
    return _header(entry.family) + _original(entry) + be32(_ID, entry.number)


def encode_entry(entry: Entry) -> bytes:
    """An entry as the kernel lists it, as far as hansa reads it; answers go back where the packet came from."""
    ends = (entry.answered_by, entry.answered_from, entry.source, entry.source_port)
    reply = _tuple(_TUPLE_REPLY, entry.family, entry.protocol, ends)
    return _header(entry.family) + _original(entry) + reply + be32(_ID, entry.number)


def decode_entry(payload: bytes, family: IPFamily, protocol: Protocol) -> Entry | None:
    """One entry of a listing; None if it is another protocol's, or in a zone of its own.

    Who sets zones (virtual switches do) translates there by rules of its own; hansa's rules know the common one.
    """
    layout = _LAYOUTS[family]
    if int.from_bytes(payload[4 : layout.end], "big") & layout.mask != layout.headers:
        return _decode_unusual(payload, family, protocol)
    source, destination, number, source_port, port, answered_by, _, answered_from = layout.values.unpack_from(payload)
    if number != protocol.value:
        return None
    rest = dict(attributes(payload, layout.end))
    if any(rest.get(_ZONE, b"")):
        return None
    identity = read_be32(rest[_ID])
    return Entry(family, number, source, source_port, destination, port, answered_by, answered_from, identity)


def _decode_unusual(payload: bytes, family: IPFamily, protocol: Protocol) -> Entry | None:
    """As `decode_entry`, attribute by attribute: zones per direction, protocols without ports."""
    parts = dict(attributes(payload, 4))
    original, reply = dict(attributes(parts[_TUPLE_ORIGINAL])), dict(attributes(parts[_TUPLE_REPLY]))
    ports = dict(attributes(original[_TUPLE_PROTO]))
    zones = (parts.get(_ZONE, b""), original.get(_TUPLE_ZONE, b""), reply.get(_TUPLE_ZONE, b""))
    if ports[_PROTO_NUMBER][0] != protocol.value or any(map(any, zones)):
        return None
    source, destination = _ADDRESS_KINDS[family]
    addresses = dict(attributes(original[_TUPLE_IP]))
    return Entry(
        family=family,
        protocol=protocol.value,
        source=addresses[source],
        source_port=_read_port(ports[_PROTO_SOURCE_PORT]),
        destination=addresses[destination],
        destination_port=_read_port(ports[_PROTO_DESTINATION_PORT]),
        answered_by=dict(attributes(reply[_TUPLE_IP]))[source],
        answered_from=_read_port(dict(attributes(reply[_TUPLE_PROTO]))[_PROTO_SOURCE_PORT]),
        number=read_be32(parts[_ID]),
    )


def _read_port(value: bytes) -> int:
    return int.from_bytes(value, "big")


class _Layout(NamedTuple):
    """How an entry of UDP or TCP begins, down to the end of both tuples: for speed, as it is nearly always this one.

    mask and headers: what lies between the values, from byte 4 on, as one number. values: in the order of the message.
    """

    end: int
    mask: int
    headers: int
    values: struct.Struct


def _layout(family: IPFamily) -> _Layout:
    width = 4 if family is IPFamily.IPV4 else 16

    def tuples(octet: int) -> bytes:
        address, port = bytes((octet,)) * width, octet * 0x101
        return encode_entry(Entry(family, octet, address, port, address, port, address, port, 0))[4:-8]

    zeros, ones = int.from_bytes(tuples(0), "big"), int.from_bytes(tuples(0xFF), "big")
    length = len(tuples(0))
    addresses = f"12x{width}s4x{width}s"
    values = struct.Struct(f"!4x{addresses}8xB7xH6xH2x{addresses}16xH")
    return _Layout(4 + length, ((1 << 8 * length) - 1) ^ zeros ^ ones, zeros, values)


_LAYOUTS = {family: _layout(family) for family in IPFamily}


def read_count(payload: bytes) -> int:
    """How many entries all families and protocols have together, in an answer to `statistics`."""
    return read_be32(dict(attributes(payload, 4))[_STATISTICS_ENTRIES])
