"""nf_tables' messages: tables, chains, rules, sets, elements and expressions ↔ bytes; pure.

Names of attributes are those of linux/netfilter/nf_tables.h without their prefix. An expression is its name and its
attributes as bytes: the kernel's dump holds at least what was sent, sometimes more, so `Expression.covers` compares.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hansa.netlink.codec import attribute, attributes, be32, nested, read_be32, read_text, text

SUBSYSTEM = 10
BATCH_BEGIN = 0x10
BATCH_END = 0x11

NEW_TABLE, GET_TABLE, DEL_TABLE = 0, 1, 2
NEW_CHAIN, GET_CHAIN, DEL_CHAIN = 3, 4, 5
NEW_RULE, GET_RULE, DEL_RULE = 6, 7, 8
NEW_SET, GET_SET, DEL_SET = 9, 10, 11
NEW_ELEMENT, GET_ELEMENT, DEL_ELEMENT = 12, 13, 14
NEW_GENERATION, GET_GENERATION = 15, 16
TRACE = 17

FAMILY_IPV4 = 2
FAMILY_IPV6 = 10

SET_INTERVAL = 0x4
SET_MAP = 0x8
SET_TIMEOUT = 0x10
SET_DYNAMIC = 0x20
SET_CONCATENATION = 0x80
DATA_IS_VERDICT = 0xFFFFFF00

OPERATOR_EQUAL, OPERATOR_NOT_EQUAL = 0, 1
BASE_NETWORK, BASE_TRANSPORT = 1, 2
META_PRIORITY, META_MARK, META_IIFNAME, META_TRACE, META_L4PROTO = 2, 3, 6, 12, 16
CT_STATUS = 2
CT_STATUS_DST_NAT = 0x20
FIB_RESULT_ADDRTYPE = 3
FIB_SADDR, FIB_DADDR = 1, 2
ADDRTYPE_LOCAL = 2
DYNSET_UPDATE, DYNSET_DELETE = 1, 2
NAT_DESTINATION = 1
RANDOM_FULLY = 0x10
NUMGEN_RANDOM = 1
REJECT_ICMP_UNREACHABLE = 0
ICMP_PORT_UNREACHABLE = {FAMILY_IPV4: 3, FAMILY_IPV6: 4}

TABLE_OWNED = 0x2
REGISTER_VERDICT = 0
_WORDS_PER_OLD_REGISTER = 4

_NFGENMSG = struct.Struct("!BBH")
_NATIVE = struct.Struct("=I")

LIST_ELEMENT = 1


def register(word: int) -> int:
    """The number of the register that begins at 32-bit word `word`, in the spelling that the kernel prints."""
    whole, rest = divmod(word, _WORDS_PER_OLD_REGISTER)
    return whole + 1 if rest == 0 else word + 8


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    return _NFGENMSG.pack(family, 0, resource)


def message_type(kind: int) -> int:
    return SUBSYSTEM << 8 | kind


# -- expressions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of a rule. attributes: by number, the bytes of each value (nested ones with their headers)."""

    name: str
    attributes: Mapping[int, bytes]

    def covers(self, sent: Expression) -> bool:
        """Whether this one, as dumped, holds everything that `sent` said."""
        return self.name == sent.name and all(
            self.attributes.get(kind) == data for kind, data in sent.attributes.items()
        )

    def encode(self) -> bytes:
        parts = [text(1, self.name)]
        if self.attributes:
            parts.append(nested(2, (attribute(kind, data) for kind, data in self.attributes.items())))
        return nested(LIST_ELEMENT, parts)


def decode_expressions(data: bytes) -> Iterator[Expression]:
    for _, item in attributes(data):
        parts = dict(attributes(item))
        yield Expression(read_text(parts[1]), dict(attributes(parts.get(2, b""))))


def _number(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "big")


def _value(data: bytes) -> bytes:
    return attribute(1, data)


def payload(base: int, offset: int, length: int, *, to: int) -> Expression:
    return Expression("payload", {1: _number(to), 2: _number(base), 3: _number(offset), 4: _number(length)})


def meta(key: int, *, to: int) -> Expression:
    return Expression("meta", {2: _number(key), 1: _number(to)})


def set_meta(key: int, *, source: int) -> Expression:
    return Expression("meta", {2: _number(key), 3: _number(source)})


def ct(key: int, *, to: int) -> Expression:
    return Expression("ct", {2: _number(key), 1: _number(to)})


def fib(flags: int, *, to: int) -> Expression:
    return Expression("fib", {3: _number(flags), 2: _number(FIB_RESULT_ADDRTYPE), 1: _number(to)})


def compare(operator: int, source: int, data: bytes) -> Expression:
    return Expression("cmp", {1: _number(source), 2: _number(operator), 3: _value(data)})


def bitwise(at: int, mask: bytes, xor: bytes) -> Expression:
    """(register & mask) ^ xor, in place."""
    size = _number(len(mask))
    return Expression("bitwise", {1: _number(at), 2: _number(at), 3: size, 4: _value(mask), 5: _value(xor)})


def immediate(to: int, data: bytes) -> Expression:
    return Expression("immediate", {1: _number(to), 2: _value(data)})


def verdict(code: int, chain: str) -> Expression:
    return Expression("immediate", {1: _number(REGISTER_VERDICT), 2: verdict_data(code, chain)})


def verdict_data(code: int, chain: str) -> bytes:
    """A verdict as the content of a data attribute."""
    return nested(2, [be32(1, code), text(2, chain)] if chain else [be32(1, code)])


def lookup(name: str, source: int, *, to: int | None = None, negated: bool = False) -> Expression:
    found = {1: name.encode() + b"\0", 2: _number(source)}
    if to is not None:
        found[3] = _number(to)
    if negated:
        found[5] = _number(1)
    return Expression("lookup", found)


def numgen(modulus: int, *, offset: int, to: int) -> Expression:
    return Expression("numgen", {1: _number(to), 2: _number(modulus), 3: _number(NUMGEN_RANDOM), 4: _number(offset)})


def destination_nat(family: int, address: int, port: int) -> Expression:
    return Expression("nat", {1: _number(NAT_DESTINATION), 2: _number(family), 3: _number(address), 5: _number(port)})


def masquerade() -> Expression:
    return Expression("masq", {1: _number(RANDOM_FULLY)})


def reject(family: int) -> Expression:
    return Expression("reject", {1: _number(REJECT_ICMP_UNREACHABLE), 2: bytes((ICMP_PORT_UNREACHABLE[family],))})


def dynset(operation: int, name: str, key: int, data: int, *, timeout_ms: int = 0) -> Expression:
    found = {1: name.encode() + b"\0", 3: _number(operation), 4: _number(key), 5: _number(data)}
    if timeout_ms:
        found[6] = timeout_ms.to_bytes(8, "big")
    return Expression("dynset", found)


# -- user data: what nft keeps for itself ----------------------------------------------------------------------------

# Without it `nft list` could not name the parts of a key. Evidence: sets made by nft 1.0.6, read back.
BYTEORDER_HOST, BYTEORDER_NETWORK = 1, 2


def note(kind: int, data: bytes) -> bytes:
    """One entry of nft's user data: type, length, value, nothing padded."""
    return bytes((kind, len(data))) + data


def native_note(kind: int, number: int) -> bytes:
    return note(kind, _NATIVE.pack(number))


def comment_data(comment: str) -> bytes:
    """User data of a rule or an element; nft keeps the closing zero."""
    return note(0, comment.encode() + b"\0")


def read_comment(data: bytes) -> str:
    """The comment in the user data of a rule or an element, "" if there is none."""
    offset = 0
    while offset + 2 <= len(data):
        kind, length = data[offset], data[offset + 1]
        if kind == 0:
            return read_text(data[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


# -- elements --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawElement:
    """One element of a dump. data: b"" in a set; verdict: (code, chain) in a verdict map, else None."""

    key: bytes
    key_end: bytes
    data: bytes
    verdict: tuple[int, str] | None
    comment: str


_SMALL = struct.Struct("=HH")


def element(key: bytes, data: bytes = b"", *, user_data: bytes = b"") -> bytes:
    """One element with a plain key of whole words; data: content of its data attribute with headers, b"" = none."""
    body = _SMALL.pack(len(key) + 8, 1) + _SMALL.pack(len(key) + 4, 1) + key
    if data:
        body += attribute(2, data)
    if user_data:
        body += attribute(6, user_data)
    return _SMALL.pack(len(body) + 4, LIST_ELEMENT) + body


def plain_elements(items: Iterable[tuple[bytes, bytes]], key_bytes: int, data_bytes: int) -> list[bytes]:
    """Elements with keys and data of fixed length, without user data: headers are made once, for speed."""
    total = 4 + 8 + key_bytes + 8 + data_bytes
    head = _SMALL.pack(total, LIST_ELEMENT) + _SMALL.pack(key_bytes + 8, 1) + _SMALL.pack(key_bytes + 4, 1)
    middle = _SMALL.pack(data_bytes + 8, 2) + _SMALL.pack(data_bytes + 4, 1)
    return [head + key + middle + data for key, data in items]


def labelled_elements(items: Iterable[tuple[bytes, bytes, str]], key_bytes: int, data_bytes: int) -> list[bytes]:
    """Elements with keys and data of fixed length, each with a comment; "" = without."""
    plain_bytes = 4 + 8 + key_bytes + 8 + data_bytes
    key_head = _SMALL.pack(key_bytes + 8, 1) + _SMALL.pack(key_bytes + 4, 1)
    middle = _SMALL.pack(data_bytes + 8, 2) + _SMALL.pack(data_bytes + 4, 1)
    found = []
    for key, data, comment in items:
        note = attribute(6, comment_data(comment)) if comment else b""
        head = _SMALL.pack(plain_bytes + len(note), LIST_ELEMENT)
        found.append(b"".join((head, key_head, key, middle, data, note)))
    return found


def bare_elements(keys: Iterable[bytes], key_bytes: int) -> list[bytes]:
    """Elements of a set with keys of fixed length: headers are made once, for speed."""
    head = _SMALL.pack(key_bytes + 12, LIST_ELEMENT) + _SMALL.pack(key_bytes + 8, 1) + _SMALL.pack(key_bytes + 4, 1)
    return [head + key for key in keys]


def decode_plain_elements(
    payload_bytes: bytes, key_bytes: int, data_bytes: int
) -> Iterator[tuple[bytes, bytes]] | None:
    """Keys and data of a dump's message, fast; None if an element has more to it than a key and data of that length."""
    found = dict(attributes(payload_bytes, 4)).get(3, b"")
    sample = (
        plain_elements([(bytes(key_bytes), bytes(data_bytes))], key_bytes, data_bytes)
        if data_bytes
        else (bare_elements([bytes(key_bytes)], key_bytes))
    )
    if len(found) % len(sample[0]):
        return None
    middle_bytes = 8 if data_bytes else 0
    layout = struct.Struct(f"12s{key_bytes}s{middle_bytes}s{data_bytes}s")
    head, _, middle, _ = layout.unpack(sample[0])
    rows = list(layout.iter_unpack(found))
    if not all(row[0] == head and row[2] == middle for row in rows):
        return None
    return ((row[1], row[3]) for row in rows)


def range_element(first: bytes, last: bytes) -> bytes:
    """One element of a concatenation with ranges: first and last key, both whole."""
    return nested(LIST_ELEMENT, [nested(1, [attribute(1, first)]), nested(10, [attribute(1, last)])])


def decode_elements(payload_bytes: bytes) -> Iterator[RawElement]:
    """The elements in one message of a dump."""
    for kind, data in attributes(payload_bytes, 4):
        if kind == 3:
            for _, item in attributes(data):
                yield _decode_element(item)


def _decode_element(item: bytes) -> RawElement:
    key = key_end = data = b""
    found: tuple[int, str] | None = None
    comment = ""
    for kind, value in attributes(item):
        if kind == 1:
            key = value[4:]
        elif kind == 2:
            if value[2] == 1:  # NFTA_DATA_VALUE
                data = value[4:]
            else:
                parts = dict(attributes(value[4:]))
                code = read_be32(parts[1])
                found = (code - (1 << 32) if code >> 31 else code, read_text(parts.get(2, b"")))
        elif kind == 6:
            comment = read_comment(value)
        elif kind == 10:
            key_end = value[4:]
    return RawElement(key, key_end, data, found, comment)


# -- whole messages' payloads ----------------------------------------------------------------------------------------


def table(family: int, name: str) -> bytes:
    return nfgenmsg(family) + text(1, name)


def owned_table(family: int, name: str) -> bytes:
    """A table that goes with the socket which makes it (Linux 5.12), so also when the process is killed."""
    return table(family, name) + be32(2, TABLE_OWNED)


def chain(family: int, table_name: str, name: str, *, base: tuple[str, int, int] | None = None) -> bytes:
    """A chain; base: (type, hook number, priority) of a base chain with policy accept."""
    parts = [nfgenmsg(family), text(1, table_name), text(3, name)]
    if base is not None:
        kind, hook, priority = base
        parts += [nested(4, [be32(1, hook), be32(2, priority)]), be32(5, 1), text(7, kind)]
    return b"".join(parts)


def rule(family: int, table_name: str, chain_name: str, expressions: Iterable[Expression], comment: str) -> bytes:
    parts = [nfgenmsg(family), text(1, table_name), text(2, chain_name)]
    parts.append(nested(4, (one.encode() for one in expressions)))
    if comment:
        parts.append(attribute(7, comment_data(comment)))
    return b"".join(parts)


def set_name(family: int, table_name: str, name: str) -> bytes:
    """Names a set, for GET_ELEMENT: both kinds of message begin alike."""
    return nfgenmsg(family) + text(1, table_name) + text(2, name)


def rules_of(family: int, table_name: str, chain_name: str) -> bytes:
    """Names every rule of a chain, for DEL_RULE."""
    return nfgenmsg(family) + text(1, table_name) + text(2, chain_name)


@dataclass(frozen=True, slots=True)
class SetShape:
    """A set as the kernel keeps it. field_bytes: the parts' widths, only where parts can be ranges."""

    flags: int
    key_type: int
    key_bytes: int
    data_type: int = 0
    data_bytes: int = 0
    size: int = 0
    field_bytes: tuple[int, ...] = ()
    user_data: bytes = b""


def new_set(family: int, table_name: str, name: str, *, shape: SetShape, set_id: int) -> bytes:
    parts = [nfgenmsg(family), text(1, table_name), text(2, name), be32(3, shape.flags)]
    parts += [be32(4, shape.key_type), be32(5, shape.key_bytes)]
    if shape.flags & SET_MAP:
        parts += [be32(6, shape.data_type), be32(7, shape.data_bytes)]
    description = [be32(1, shape.size)] if shape.size else []
    if shape.field_bytes:
        description.append(nested(2, (nested(LIST_ELEMENT, [be32(1, size)]) for size in shape.field_bytes)))
    if description:
        parts.append(nested(9, description))
    return b"".join([*parts, be32(10, set_id), attribute(13, shape.user_data)])


def set_elements(family: int, table_name: str, name: str, items: Iterable[bytes]) -> bytes:
    return nfgenmsg(family) + text(1, table_name) + text(2, name) + nested(3, items)


def read_set(payload_bytes: bytes) -> tuple[str, str, SetShape]:
    """(table, name, shape) of a set in a dump."""
    found = dict(attributes(payload_bytes, 4))
    description = dict(attributes(found.get(9, b"")))
    fields = tuple(read_be32(dict(attributes(item))[1]) for _, item in attributes(description.get(2, b"")))
    is_map = bool((flags := read_be32(found[3]) if 3 in found else 0) & SET_MAP)
    shape = SetShape(
        flags=flags,
        key_type=read_be32(found[4]) if 4 in found else 0,
        key_bytes=read_be32(found[5]),
        data_type=read_be32(found[6]) if is_map and 6 in found else 0,
        data_bytes=read_be32(found[7]) if is_map and found.get(6) != _number(DATA_IS_VERDICT) else 0,
        size=read_be32(description[1]) if 1 in description else 0,
        field_bytes=fields,
        user_data=found.get(13, b""),
    )
    return read_text(found[1]), read_text(found[2]), shape


def read_set_count(payload_bytes: bytes) -> int | None:
    """How many elements a set in a dump has; None = the kernel does not tell (before Linux 6.16)."""
    found = dict(attributes(payload_bytes, 4))
    return read_be32(found[20]) if 20 in found else None


@dataclass(frozen=True, slots=True)
class RawChain:
    """A chain in a dump. base: (type, hook number, priority), None = a plain chain. accepts: its policy."""

    name: str
    base: tuple[str, int, int] | None
    accepts: bool = True


def read_chain(payload_bytes: bytes) -> tuple[str, RawChain]:
    """(table, chain) of a dump's message."""
    found = dict(attributes(payload_bytes, 4))
    base = None
    if 4 in found:
        hook = dict(attributes(found[4]))
        priority = read_be32(hook[2])
        base = (read_text(found[7]), read_be32(hook[1]), priority - (1 << 32) if priority >> 31 else priority)
    accepts = 5 not in found or read_be32(found[5]) == 1
    return read_text(found[1]), RawChain(read_text(found[3]), base, accepts)


@dataclass(frozen=True, slots=True)
class RawRule:
    """A rule in a dump. handle: the kernel's number for it, 0 = it has none yet."""

    expressions: tuple[Expression, ...]
    comment: str
    handle: int = field(default=0, compare=False)


def read_rule(payload_bytes: bytes) -> tuple[str, str, RawRule]:
    """(table, chain, rule) of a dump's message."""
    found = dict(attributes(payload_bytes, 4))
    expressions = tuple(decode_expressions(found.get(4, b"")))
    handle = int.from_bytes(found.get(3, b""), "big")
    return read_text(found[1]), read_text(found[2]), RawRule(expressions, read_comment(found.get(7, b"")), handle)


GROUP = 7  # the multicast group that tells of every committed transaction


def read_table(payload_bytes: bytes) -> tuple[int, str]:
    """(family, table) that a notice is about; every kind of object names its table in the same attribute."""
    return payload_bytes[0], read_text(dict(attributes(payload_bytes, 4))[1])


def read_generation(payload_bytes: bytes) -> int:
    """The number that every committed transaction of anybody raises by one."""
    return read_be32(dict(attributes(payload_bytes, 4))[1])


# -- nftrace: what the kernel tells of a packet with `meta nftrace set 1` ---------------------------------------------

TRACE_GROUP = 9
TRACE_POLICY, TRACE_RETURN, TRACE_RULE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class RawTrace:
    """One event. kind: a rule applied, a chain came to its end, a base chain's policy. handle: the rule's, 0 = none.

    packet: the same for all events of one packet. network, transport: its headers as they were when it entered the
    hook, b"" but in the first event of each.
    """

    family: int
    table: str
    chain: str
    kind: int
    handle: int
    verdict: tuple[int, str]
    packet: int
    network: bytes
    transport: bytes


def read_trace(payload_bytes: bytes) -> RawTrace:
    found = dict(attributes(payload_bytes, 4))
    verdict = dict(attributes(found.get(5, b"")))
    code = read_be32(verdict.get(1, bytes(4)))
    if 16 in found and 5 not in found:
        code = read_be32(found[16])
    return RawTrace(
        family=payload_bytes[0],
        table=read_text(found.get(1, b"")),
        chain=read_text(found.get(2, b"")),
        kind=read_be32(found[4]),
        handle=int.from_bytes(found.get(3, b""), "big"),
        verdict=(code - (1 << 32) if code >> 31 else code, read_text(verdict.get(2, b""))),
        packet=read_be32(found[6]),
        network=found.get(8, b""),
        transport=found.get(9, b""),
    )
