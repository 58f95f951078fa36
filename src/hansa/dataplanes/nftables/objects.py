"""nftables' objects as hansa uses them: sets, maps, chains, rules; and the text that people read.

The vocabulary is small and fixed: a rule is a tuple of `Statement`s, each of which exists once here as text, once as
netlink expressions (`wire.py`) and once as behaviour (`trace.py`). Elements are kept as the kernel holds them: key
and data are bytes, each part padded to four bytes, addresses, protocols and ports in network order, numbers in host
order. Evidence: nft(8) 1.0.6 and its `--debug=netlink` output.
"""

from __future__ import annotations

import enum
import ipaddress
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, assert_never

from hansa.net import IPFamily, Prefix, Protocol

TABLE = "hansa"

# nft cuts a comment's length field at one byte, its own limit is 128 with the closing zero.
MAX_COMMENT_BYTES = 127


class Part(enum.Enum):
    """One part of a key or of data, with nft's name for its type."""

    ADDRESS = "address"
    PROTOCOL = "inet_proto"
    PORT = "inet_service"
    CLASS = "classid"

    def width_bytes(self, family: IPFamily) -> int:
        """The space it takes, padding included."""
        return 16 if self is Part.ADDRESS and family is IPFamily.IPV6 else 4


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set or map of fixed shape. data: None = a set, () = a verdict map, else what each key maps to.

    interval: the last part of the key is a range, elements' keys are first and last key joined.
    size: None = as large as need be; a number makes it dynamic: the packet path writes it, with timeouts.
    labelled: its data are `Labelled`.
    """

    name: str
    key: tuple[Part, ...]
    data: tuple[Part, ...] | None = None
    interval: bool = False
    size: int | None = None
    labelled: bool = False

    @property
    def dynamic(self) -> bool:
        return self.size is not None

    @property
    def verdicts(self) -> bool:
        return self.data == ()

    def key_bytes(self, family: IPFamily) -> int:
        return sum(part.width_bytes(family) for part in self.key)

    def data_bytes(self, family: IPFamily) -> int:
        return sum(part.width_bytes(family) for part in self.data or ())


class Do(enum.Enum):
    """Verdicts, with the kernel's codes."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5


@dataclass(frozen=True, slots=True)
class Target:
    """What a verdict map's element says, with a word for the reader."""

    do: Do
    chain: str = ""
    comment: str = ""

    @property
    def verdict(self) -> str:
        return f"{self.do.name.lower()} {self.chain}".rstrip()


class Labelled(NamedTuple):
    """Data with a word for the reader: the comment names the service port."""

    data: bytes
    comment: str


# Data of one element: bytes (b"" in a set), bytes with a comment, or a verdict.
Value = bytes | Labelled | Target
Elements = Mapping[bytes, Value]


class Selector(enum.Enum):
    """What a key is made of when a packet comes by."""

    SOURCE = "saddr"
    DESTINATION = "daddr"
    PROTOCOL = "meta l4proto"
    PORT = "th dport"
    PRIORITY = "meta priority"
    PRIORITY_MAJOR = "meta priority & ffff:0"


Key = tuple[Selector, ...]


@dataclass(frozen=True, slots=True)
class InSet:
    """Goes on iff the key is (or, negated, is not) in the set."""

    key: Key
    set: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class InPrefix:
    """Goes on iff the address is in the prefix."""

    selector: Selector
    prefix: Prefix
    negated: bool = False


@dataclass(frozen=True, slots=True)
class FromInterface:
    """Goes on iff the packet came in by this interface; `prefix`: by one whose name begins so."""

    name: str
    prefix: bool = False
    negated: bool = False


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """Goes on iff this machine owns (negated: does not own) the address; loopback counts as owned."""

    selector: Selector
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Marked:
    """Goes on iff a bit of the packet's mark is set."""

    bit: int


@dataclass(frozen=True, slots=True)
class SetMark:
    bit: int


@dataclass(frozen=True, slots=True)
class ClearMark:
    bit: int


# Numbers drawn are classes with a major number, so that `PriorityIsClass` tells them from a priority of somebody else.
FIRST_DRAWN = 1 << 16 | 1


@dataclass(frozen=True, slots=True)
class Draw:
    """The packet's priority becomes one of `count` numbers from FIRST_DRAWN on, each as likely as the others."""

    count: int


@dataclass(frozen=True, slots=True)
class LookUpPriority:
    """The packet's priority becomes what the map says; without an element the rule ends here."""

    key: Key
    map: str


@dataclass(frozen=True, slots=True)
class Translated:
    """Goes on iff the connection's destination was rewritten, by whomever."""


@dataclass(frozen=True, slots=True)
class PriorityIsClass:
    """Goes on iff the packet's priority has a class's major number, as ours have."""


@dataclass(frozen=True, slots=True)
class ClearPriority:
    pass


@dataclass(frozen=True, slots=True)
class Remember:
    """Add key → priority if the key is not there, and restart its timer either way."""

    key: Key
    map: str
    timeout_s: int


@dataclass(frozen=True, slots=True)
class Forget:
    key: Key
    map: str


@dataclass(frozen=True, slots=True)
class Translate:
    """Rewrite destination address and port to what the map says; without an element the rule ends here."""

    key: Key
    map: str


@dataclass(frozen=True, slots=True)
class Masquerade:
    """The source becomes this node's address, with a random free port (M9)."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with ICMP port unreachable."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Do what the verdict map says; without an element the next rule follows."""

    key: Key
    map: str


@dataclass(frozen=True, slots=True)
class Go:
    do: Do
    chain: str = ""


Statement = (
    InSet
    | InPrefix
    | FromInterface
    | OwnAddress
    | Marked
    | SetMark
    | ClearMark
    | Draw
    | LookUpPriority
    | Translated
    | PriorityIsClass
    | ClearPriority
    | Remember
    | Forget
    | Translate
    | Masquerade
    | Refuse
    | Dispatch
    | Go
)


@dataclass(frozen=True, slots=True)
class ChainRule:
    """One rule of a chain: its statements in order, and a word for the reader."""

    statements: tuple[Statement, ...]
    comment: str = ""


class Hook(enum.Enum):
    """Where a base chain hangs, with the kernel's number."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


@dataclass(frozen=True, slots=True)
class Base:
    """What makes a chain a base chain. type: `nat` sees the first packet of each connection, `filter` every one."""

    type: str
    hook: Hook
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[ChainRule, ...]
    base: Base | None = None


@dataclass(slots=True)
class Ruleset:
    """One family's table, whole: the sets' shapes, the chains by name, and the elements by set name.

    Sets that the packet path writes (`SetSpec.dynamic`) have no entry in `elements` of a desired ruleset.
    """

    family: IPFamily
    sets: tuple[SetSpec, ...]
    chains: dict[str, Chain] = field(default_factory=dict)
    elements: dict[str, dict[bytes, Value]] = field(default_factory=dict)

    def spec(self, name: str) -> SetSpec:
        return next(spec for spec in self.sets if spec.name == name)


@lru_cache(maxsize=4096)
def pack_port(port: int) -> bytes:
    return port.to_bytes(2, "big") + b"\0\0"


def pack_protocol(protocol: Protocol) -> bytes:
    return bytes((protocol.value, 0, 0, 0))


def pack_number(number: int) -> bytes:
    """A class id, in host order."""
    return number.to_bytes(4, sys.byteorder)


def unpack_number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def split(parts: tuple[Part, ...], data: bytes, family: IPFamily) -> Iterator[tuple[Part, bytes]]:
    """The parts of a key or of data with their bytes."""
    offset = 0
    for part in parts:
        width = part.width_bytes(family)
        yield part, data[offset : offset + width]
        offset += width


def nft_family(family: IPFamily) -> str:
    return "ip" if family is IPFamily.IPV4 else "ip6"


# -- text ------------------------------------------------------------------------------------------------------------


def write(ruleset: Ruleset) -> str:
    """The table in nft's own words, as `nft -f` reads it; sorted, so that equal rulesets give equal text.

    It begins by removing the table, in the same transaction, so that it replaces what is there.
    """
    family = ruleset.family
    name = f"{nft_family(family)} {TABLE}"
    lines = [f"table {name}", f"delete table {name}", f"table {name} {{"]
    for spec in ruleset.sets:
        lines += _write_set(spec, ruleset.elements.get(spec.name, {}), family)
    for chain in ordered_chains(ruleset.chains.values()):
        lines += _write_chain(chain, family)
    lines.append("}")
    return "\n".join(lines) + "\n"


def ordered_chains(chains: Iterable[Chain]) -> list[Chain]:
    """By name, base chains last: nothing hangs in a packet's way before what it jumps to is there."""
    return sorted(chains, key=lambda chain: (chain.base is not None, chain.name))


def _write_set(spec: SetSpec, elements: Elements, family: IPFamily) -> list[str]:
    flags = [word for word, holds in (("interval", spec.interval), ("dynamic,timeout", spec.dynamic)) if holds]
    lines = [f"\t{'set' if spec.data is None else 'map'} {spec.name} {{", f"\t\t{_write_type(spec, family)}"]
    if spec.size is not None:
        lines.append(f"\t\tsize {spec.size}")
    if flags:
        lines.append(f"\t\tflags {','.join(flags)}")
    if elements:
        texts = [write_element(spec, key, elements[key], family) for key in sorted(elements)]
        lines.append("\t\telements = { " + ",\n\t\t\t     ".join(texts) + " }")
    return [*lines, "\t}", ""]


def _write_type(spec: SetSpec, family: IPFamily) -> str:
    words = " . ".join(_type(part, family) for part in spec.key)
    match spec.data:
        case None:
            return f"type {words}"
        case ():
            return f"type {words} : verdict"
        case data:
            return f"type {words} : " + " . ".join(_type(part, family) for part in data)


def _type(part: Part, family: IPFamily) -> str:
    if part is Part.ADDRESS:
        return "ipv4_addr" if family is IPFamily.IPV4 else "ipv6_addr"
    return str(part.value)


def write_element(spec: SetSpec, key: bytes, value: Value, family: IPFamily) -> str:
    """One element as it stands between the braces."""
    words = write_key(spec, key, family)
    if isinstance(value, Target):
        comment = f' comment "{value.comment}"' if value.comment else ""
        return f"{words}{comment} : {value.verdict}"
    if not spec.data:
        return words
    if isinstance(value, Labelled):
        words += f' comment "{value.comment}"' if value.comment else ""
        value = value.data
    return f"{words} : " + " . ".join(write_part(part, data) for part, data in split(spec.data, value, family))


def write_key(spec: SetSpec, key: bytes, family: IPFamily) -> str:
    width = spec.key_bytes(family)
    first = [write_part(part, data) for part, data in split(spec.key, key[:width], family)]
    if spec.interval:
        *_, (part, last) = split(spec.key, key[width:], family)
        first[-1] = _write_range(first[-1], write_part(part, last))
    return " . ".join(first)


def _write_range(first: str, last: str) -> str:
    """`10.0.0.0/8` where the range is a prefix."""
    low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
    if low == high:
        return first
    prefixes = list(ipaddress.summarize_address_range(low, high))
    return str(prefixes[0]) if len(prefixes) == 1 else f"{first}-{last}"


_PROTOCOL_NAMES = {protocol.value: str(protocol) for protocol in Protocol}


def write_part(part: Part, data: bytes) -> str:
    match part:
        case Part.ADDRESS:
            return str(ipaddress.ip_address(data))
        case Part.PROTOCOL:
            return _PROTOCOL_NAMES.get(data[0], str(data[0]))
        case Part.PORT:
            return str(int.from_bytes(data[:2], "big"))
        case Part.CLASS:
            number = unpack_number(data)
            return f"{number >> 16:x}:{number & 0xFFFF:x}"


def _write_chain(chain: Chain, family: IPFamily) -> list[str]:
    lines = [f"\tchain {chain.name} {{"]
    if chain.base is not None:
        base = chain.base
        hook = base.hook.name.lower()
        lines.append(f"\t\ttype {base.type} hook {hook} priority {base.priority}; policy accept;")
    return [*lines, *(f"\t\t{write_rule(rule, family)}" for rule in chain.rules), "\t}", ""]


def write_rule(rule: ChainRule, family: IPFamily) -> str:
    words = [write_statement(statement, family) for statement in rule.statements]
    if rule.comment:
        words.append(f'comment "{rule.comment}"')
    return " ".join(words)


def write_statement(statement: Statement, family: IPFamily) -> str:
    ip = nft_family(family)
    match statement:
        case InSet(key, name, negated):
            return f"{_write_selectors(key, ip)} {'!= ' if negated else ''}@{name}"
        case InPrefix(selector, prefix, negated):
            whole = prefix.prefixlen == prefix.max_prefixlen
            text = str(prefix.network_address) if whole else str(prefix)
            return f"{_write_selector(selector, ip)} {'!= ' if negated else ''}{text}"
        case FromInterface(name, prefix, negated):
            return f'iifname {"!= " if negated else ""}"{name}{"*" if prefix else ""}"'
        case OwnAddress(selector, negated):
            return f"fib {selector.value} type {'!= ' if negated else ''}local"
        case Marked(bit):
            return f"meta mark & 0x{bit:08x} == 0x{bit:08x}"
        case SetMark(bit):
            return f"meta mark set meta mark | 0x{bit:08x}"
        case ClearMark(bit):
            return f"meta mark set meta mark & 0x{bit ^ 0xFFFFFFFF:08x}"
        case Draw(count):
            return f"meta priority set numgen random mod {count} offset {FIRST_DRAWN}"
        case LookUpPriority(key, name):
            return f"meta priority set {_write_selectors(key, ip)} map @{name}"
        case Translated():
            return "ct status dnat"
        case PriorityIsClass():
            return "meta priority & ffff:0 != none"
        case ClearPriority():
            return "meta priority set none"
        case Remember(key, name, timeout_s):
            return f"update @{name} {{ {_write_selectors(key, ip)} timeout {timeout_s}s : meta priority }}"
        case Forget(key, name):
            return f"delete @{name} {{ {_write_selectors(key, ip)} : meta priority }}"
        case Translate(key, name):
            return f"dnat {ip} to {_write_selectors(key, ip)} map @{name}"
        case Masquerade():
            return "masquerade fully-random"
        case Refuse():
            return "reject"
        case Dispatch(key, name):
            return f"{_write_selectors(key, ip)} vmap @{name}"
        case Go(do, chain):
            return f"{do.name.lower()} {chain}".rstrip()
    assert_never(statement)


def _write_selectors(key: Key, ip: str) -> str:
    return " . ".join(_write_selector(one, ip) for one in key)


def _write_selector(selector: Selector, ip: str) -> str:
    match selector:
        case Selector.SOURCE | Selector.DESTINATION:
            return f"{ip} {selector.value}"
        case _:
            return str(selector.value)
