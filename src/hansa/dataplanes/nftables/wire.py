"""hansa's nftables objects ↔ the kernel's messages; pure. The third form of each statement, beside text and behaviour.

Registers are those that nft itself would take: keys from word 0 on, each part in whole words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import assert_never

from hansa.dataplanes.nftables.objects import (
    FIRST_DRAWN,
    TABLE,
    Base,
    Chain,
    ChainRule,
    ClearMark,
    ClearPriority,
    Dispatch,
    Do,
    Draw,
    Elements,
    Forget,
    FromInterface,
    Go,
    InPrefix,
    InSet,
    Key,
    Labelled,
    LookUpPriority,
    Marked,
    Masquerade,
    OwnAddress,
    Part,
    PriorityIsClass,
    Refuse,
    Remember,
    Ruleset,
    Selector,
    SetMark,
    SetSpec,
    Statement,
    Target,
    Translate,
    Translated,
    Value,
    pack_number,
    write_key,
)
from hansa.dataplanes.nftables.plan import (
    AddElements,
    AddRule,
    CreateChain,
    CreateSet,
    CreateTable,
    DeleteChain,
    DeleteElements,
    DeleteTable,
    FlushChain,
    Observed,
    ObservedChain,
    Operation,
    Transaction,
)
from hansa.net import IPFamily
from hansa.netlink import nftables as nf
from hansa.netlink.codec import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, message

INTERFACE_NAME_BYTES = 16

# Elements in one message: below 64 KiB whatever their keys and comments (at most 260 bytes of user data each).
ELEMENTS_PER_MESSAGE = 150
# Elements asked for at once: the answers, one message each, must fit the socket's buffer.
ASKED_PER_MESSAGE = 500
# Without comments an element is at most 124 bytes (IPv6 ranges).
PLAIN_ELEMENTS_PER_MESSAGE = 500


def family_number(family: IPFamily) -> int:
    return nf.FAMILY_IPV4 if family is IPFamily.IPV4 else nf.FAMILY_IPV6


# -- rules -----------------------------------------------------------------------------------------------------------


def compile_rule(rule: ChainRule, family: IPFamily) -> tuple[nf.Expression, ...]:
    """The expressions of a rule, in order."""
    return tuple(one for statement in rule.statements for one in compile_statement(statement, family))


def compile_statement(statement: Statement, family: IPFamily) -> list[nf.Expression]:
    first = nf.register(0)
    match statement:
        case InSet(key, name, negated):
            return [*_load_key(key, family), nf.lookup(name, first, negated=negated)]
        case InPrefix():
            return _compile_prefix(statement, family)
        case FromInterface(name, prefix, negated):
            data = name.encode() if prefix else name.encode().ljust(INTERFACE_NAME_BYTES, b"\0")
            return [nf.meta(nf.META_IIFNAME, to=first), nf.compare(_operator(negated), first, data)]
        case OwnAddress(selector, negated):
            flag = nf.FIB_SADDR if selector is Selector.SOURCE else nf.FIB_DADDR
            local = pack_number(nf.ADDRTYPE_LOCAL)
            return [nf.fib(flag, to=first), nf.compare(_operator(negated), first, local)]
        case Translated():
            return [nf.ct(nf.CT_STATUS, to=first), *_has_bits(nf.CT_STATUS_DST_NAT)]
        case PriorityIsClass():
            return [nf.meta(nf.META_PRIORITY, to=first), *_has_bits(0xFFFF0000)]
        case ClearPriority():
            return [nf.immediate(first, pack_number(0)), nf.set_meta(nf.META_PRIORITY, source=first)]
        case Marked(bit):
            mask = nf.bitwise(first, pack_number(bit), pack_number(0))
            return [
                nf.meta(nf.META_MARK, to=first),
                mask,
                nf.compare(nf.OPERATOR_EQUAL, first, pack_number(bit)),
            ]
        case SetMark(bit):
            return _change_mark(bit ^ 0xFFFFFFFF, bit)
        case ClearMark(bit):
            return _change_mark(bit ^ 0xFFFFFFFF, 0)
        case Draw(count):
            return [nf.numgen(count, offset=FIRST_DRAWN, to=first), nf.set_meta(nf.META_PRIORITY, source=first)]
        case LookUpPriority(key, name):
            return [
                *_load_key(key, family),
                nf.lookup(name, first, to=first),
                nf.set_meta(nf.META_PRIORITY, source=first),
            ]
        case Remember(key, name, timeout_s):
            return _compile_dynset(nf.DYNSET_UPDATE, key, name, timeout_s, family)
        case Forget(key, name):
            return _compile_dynset(nf.DYNSET_DELETE, key, name, 0, family)
        case Translate(key, name):
            port = nf.register(Part.ADDRESS.width_bytes(family) // 4)
            return [
                *_load_key(key, family),
                nf.lookup(name, first, to=first),
                nf.destination_nat(family_number(family), first, port),
            ]
        case Masquerade():
            return [nf.masquerade()]
        case Refuse():
            return [nf.reject(family_number(family))]
        case Dispatch(key, name):
            return [*_load_key(key, family), nf.lookup(name, first, to=nf.REGISTER_VERDICT)]
        case Go(do, chain):
            return [nf.verdict(do.value, chain)]
    assert_never(statement)


def _operator(negated: bool) -> int:
    return nf.OPERATOR_NOT_EQUAL if negated else nf.OPERATOR_EQUAL


def _has_bits(bits: int) -> list[nf.Expression]:
    first = nf.register(0)
    zero = pack_number(0)
    return [nf.bitwise(first, pack_number(bits), zero), nf.compare(nf.OPERATOR_NOT_EQUAL, first, zero)]


def _change_mark(keep: int, put: int) -> list[nf.Expression]:
    first = nf.register(0)
    return [
        nf.meta(nf.META_MARK, to=first),
        nf.bitwise(first, pack_number(keep), pack_number(put)),
        nf.set_meta(nf.META_MARK, source=first),
    ]


def _compile_dynset(operation: int, key: Key, name: str, timeout_s: int, family: IPFamily) -> list[nf.Expression]:
    # nft gives each expression registers of 16 bytes.
    data = nf.register(-(-_words(key, family) // 4) * 4)
    return [
        *_load_key(key, family),
        nf.meta(nf.META_PRIORITY, to=data),
        nf.dynset(operation, name, nf.register(0), data, timeout_ms=timeout_s * 1000),
    ]


def _compile_prefix(statement: InPrefix, family: IPFamily) -> list[nf.Expression]:
    """As nft does it: whole bytes are loaded alone, other prefixes are masked."""
    prefix, first = statement.prefix, nf.register(0)
    operator = _operator(statement.negated)
    network = prefix.network_address.packed
    if prefix.prefixlen == 0:
        return []
    offset = _address_offset(statement.selector, family)
    if prefix.prefixlen % 8 == 0:
        size = prefix.prefixlen // 8
        load = nf.payload(nf.BASE_NETWORK, offset, size, to=first)
        return [load, nf.compare(operator, first, network[:size])]
    load = nf.payload(nf.BASE_NETWORK, offset, len(network), to=first)
    mask = nf.bitwise(first, prefix.netmask.packed, bytes(len(network)))
    return [load, mask, nf.compare(operator, first, network)]


def _address_offset(selector: Selector, family: IPFamily) -> int:
    source, destination = (12, 16) if family is IPFamily.IPV4 else (8, 24)
    return source if selector is Selector.SOURCE else destination


def _width(selector: Selector, family: IPFamily) -> int:
    """How many 32-bit words it takes."""
    wide = selector in (Selector.SOURCE, Selector.DESTINATION) and family is IPFamily.IPV6
    return 4 if wide else 1


def _words(key: Key, family: IPFamily) -> int:
    return sum(_width(selector, family) for selector in key)


def _load_key(key: Key, family: IPFamily) -> Iterator[nf.Expression]:
    word = 0
    for selector in key:
        yield from _load(selector, nf.register(word), family)
        word += _width(selector, family)


def _load(selector: Selector, to: int, family: IPFamily) -> list[nf.Expression]:
    match selector:
        case Selector.SOURCE | Selector.DESTINATION:
            size = 4 if family is IPFamily.IPV4 else 16
            return [nf.payload(nf.BASE_NETWORK, _address_offset(selector, family), size, to=to)]
        case Selector.PROTOCOL:
            return [nf.meta(nf.META_L4PROTO, to=to)]
        case Selector.PORT:
            return [nf.payload(nf.BASE_TRANSPORT, 2, 2, to=to)]
        case Selector.PRIORITY:
            return [nf.meta(nf.META_PRIORITY, to=to)]
        case Selector.PRIORITY_MAJOR:
            mask = nf.bitwise(to, pack_number(0xFFFF0000), pack_number(0))
            return [nf.meta(nf.META_PRIORITY, to=to), mask]
    assert_never(selector)


# -- sets ------------------------------------------------------------------------------------------------------------

# nft's numbers for its types; a concatenation is a chain of them, six bits each.
_TYPE_NUMBERS = {Part.PROTOCOL: 12, Part.PORT: 13, Part.CLASS: 23}
_USER_KEY_BYTEORDER, _USER_DATA_BYTEORDER, _USER_KEY_TYPEOF, _USER_DATA_TYPEOF, _USER_DATA_INTERVAL = 0, 1, 3, 4, 6
_EXPRESSION_CONCATENATION = 13


def set_shape(spec: SetSpec, family: IPFamily) -> nf.SetShape:
    """The set as nft would create it, its own notes about types included."""
    flags = nf.SET_MAP if spec.data is not None else 0
    if spec.interval:
        flags |= nf.SET_INTERVAL | nf.SET_CONCATENATION
    if spec.dynamic:
        flags |= nf.SET_DYNAMIC | nf.SET_TIMEOUT
    fields = tuple(_unpadded_bytes(part, family) for part in spec.key) if spec.interval else ()
    return nf.SetShape(
        flags=flags,
        key_type=_type_number(spec.key, family),
        key_bytes=spec.key_bytes(family),
        data_type=nf.DATA_IS_VERDICT if spec.verdicts else _type_number(spec.data or (), family),
        data_bytes=spec.data_bytes(family),
        size=spec.size or 0,
        field_bytes=fields,
        user_data=_user_data(spec),
    )


def _unpadded_bytes(part: Part, family: IPFamily) -> int:
    match part:
        case Part.PROTOCOL:
            return 1
        case Part.PORT:
            return 2
        case _:
            return part.width_bytes(family)


def _type_number(parts: tuple[Part, ...], family: IPFamily) -> int:
    number = 0
    for part in parts:
        address = 7 if family is IPFamily.IPV4 else 8
        number = number << 6 | (address if part is Part.ADDRESS else _TYPE_NUMBERS[part])
    return number


def _byteorder(parts: tuple[Part, ...]) -> int:
    """nft knows the order of single values only."""
    if len(parts) != 1:
        return 0
    return nf.BYTEORDER_HOST if parts[0] is Part.CLASS else nf.BYTEORDER_NETWORK


def _user_data(spec: SetSpec) -> bytes:
    found = nf.native_note(_USER_KEY_BYTEORDER, _byteorder(spec.key))
    if spec.data is not None:
        found += nf.native_note(_USER_DATA_BYTEORDER, _byteorder(spec.data))
    empty = nf.native_note(0, _EXPRESSION_CONCATENATION) + nf.note(1, b"")
    if len(spec.key) > 1:
        found += nf.note(_USER_KEY_TYPEOF, empty)
        if len(spec.data or ()) > 1:
            found += nf.note(_USER_DATA_TYPEOF, empty)
    if spec.data is not None:
        found += nf.native_note(_USER_DATA_INTERVAL, 0)
    return found


# -- elements --------------------------------------------------------------------------------------------------------


def encode_elements(spec: SetSpec, elements: Elements, family: IPFamily) -> Iterator[tuple[list[bytes], str]]:
    """The elements in portions that fit one message each, with the name of the portion's first element."""
    size = ELEMENTS_PER_MESSAGE if spec.verdicts or spec.labelled else PLAIN_ELEMENTS_PER_MESSAGE
    items = list(elements.items())
    for start in range(0, len(items), size):
        portion = items[start : start + size]
        yield _encode_portion(spec, portion, family), write_key(spec, portion[0][0], family)


def keys_only(spec: SetSpec) -> SetSpec:
    """The set in whose words elements are named, for deleting them or asking for them."""
    return SetSpec(spec.name, spec.key, interval=spec.interval)


def questions(spec: SetSpec, elements: Elements, family: IPFamily) -> Iterator[tuple[bytes, list[bytes]]]:
    """Asks for each of the elements: the messages' payloads, and how the answers to each must end, in order."""
    number, asking = family_number(family), keys_only(spec)
    items = iter(elements.items())
    while portion := list(itertools.islice(items, ASKED_PER_MESSAGE)):
        keys = _encode_portion(asking, [(key, b"") for key, _ in portion], family)
        yield nf.set_elements(number, TABLE, spec.name, keys), _encode_portion(spec, portion, family)


def _encode_portion(spec: SetSpec, portion: list[tuple[bytes, Value]], family: IPFamily) -> list[bytes]:
    width = spec.key_bytes(family)
    if spec.interval:
        return [nf.range_element(key[:width], key[width:]) for key, _ in portion]
    if spec.data is None:
        return nf.bare_elements((key for key, _ in portion), width)
    if spec.labelled:
        labelled = ((key, value.data, value.comment) for key, value in portion if isinstance(value, Labelled))
        return nf.labelled_elements(labelled, width, spec.data_bytes(family))
    if spec.data:
        plain = ((key, value) for key, value in portion if isinstance(value, bytes))
        return nf.plain_elements(plain, width, spec.data_bytes(family))
    return [_encode_verdict(key, value) for key, value in portion if isinstance(value, Target)]


def _encode_verdict(key: bytes, target: Target) -> bytes:
    note = nf.comment_data(target.comment) if target.comment else b""
    return nf.element(key, _verdict_data(target.do, target.chain), user_data=note)


@lru_cache(maxsize=1024)
def _verdict_data(do: Do, chain: str) -> bytes:
    return nf.verdict_data(do.value, chain)


def decode_elements(spec: SetSpec, payload: bytes, family: IPFamily) -> dict[bytes, Value]:
    """The elements in one message of a dump of this set."""
    if not spec.interval and not spec.verdicts and not spec.labelled:
        plain = nf.decode_plain_elements(payload, spec.key_bytes(family), spec.data_bytes(family))
        if plain is not None:
            return dict(plain)
    return dict(_decode_element(spec, raw) for raw in nf.decode_elements(payload))


def _decode_element(spec: SetSpec, raw: nf.RawElement) -> tuple[bytes, Value]:
    """Key and value of a dumped element. A verdict that hansa has no word for is kept as a jump to its number."""
    key = raw.key + raw.key_end if spec.interval else raw.key
    if raw.verdict is None:
        return key, Labelled(raw.data, raw.comment) if spec.labelled else raw.data
    code, chain = raw.verdict
    known = {do.value: do for do in Do}
    return key, Target(known.get(code, Do.JUMP), chain or ("" if code in known else str(code)), raw.comment)


# -- transactions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """A transaction as one datagram. named: for each sequence number, what its message was about."""

    data: bytes
    first_sequence: int
    last_sequence: int
    named: dict[int, str]


def encode_transaction(transaction: Transaction, sets: dict[str, SetSpec], first_sequence: int) -> Batch:
    """One batch: begin, messages, end. The last message asks for an acknowledgement."""
    family = transaction.family
    pieces = [piece for operation in transaction.operations for piece in _encode_operation(operation, sets, family)]
    framing = nf.nfgenmsg(0, nf.SUBSYSTEM)
    out = [message(nf.BATCH_BEGIN, NLM_F_REQUEST, first_sequence, framing)]
    named = {first_sequence: "the transaction as a whole"}
    sequence = first_sequence
    for number, (kind, flags, payload, name) in enumerate(pieces, start=1):
        sequence += 1
        if number == len(pieces):
            flags |= NLM_F_ACK
        out.append(message(nf.message_type(kind), flags | NLM_F_REQUEST, sequence, payload))
        named[sequence] = name
    out.append(message(nf.BATCH_END, NLM_F_REQUEST, sequence + 1, framing))
    return Batch(b"".join(out), first_sequence, sequence, named)


_Piece = tuple[int, int, bytes, str]


def _encode_operation(operation: Operation, sets: dict[str, SetSpec], family: IPFamily) -> Iterator[_Piece]:
    number = family_number(family)
    match operation:
        case CreateTable():
            yield nf.NEW_TABLE, NLM_F_CREATE, nf.table(number, TABLE), f"create table {TABLE}"
        case DeleteTable():
            yield nf.DEL_TABLE, 0, nf.table(number, TABLE), f"delete table {TABLE}"
        case CreateSet(spec):
            set_id = list(sets).index(spec.name) + 1
            payload = nf.new_set(number, TABLE, spec.name, shape=set_shape(spec, family), set_id=set_id)
            yield nf.NEW_SET, NLM_F_CREATE | NLM_F_EXCL, payload, f"create set {spec.name}"
        case CreateChain(name, base):
            payload = nf.chain(number, TABLE, name, base=_base(base))
            yield nf.NEW_CHAIN, NLM_F_CREATE | NLM_F_EXCL, payload, f"create chain {name}"
        case FlushChain(name):
            yield nf.DEL_RULE, 0, nf.rules_of(number, TABLE, name), f"flush chain {name}"
        case AddRule(chain, rule):
            payload = nf.rule(number, TABLE, chain, compile_rule(rule, family), rule.comment)
            yield nf.NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, payload, f"add rule to chain {chain}"
        case DeleteChain(name):
            yield nf.DEL_CHAIN, 0, nf.chain(number, TABLE, name), f"delete chain {name}"
        case DeleteElements(name, elements):
            bare: Elements = dict.fromkeys(elements, b"")
            for portion, where in encode_elements(keys_only(sets[name]), bare, family):
                payload = nf.set_elements(number, TABLE, name, portion)
                yield nf.DEL_ELEMENT, 0, payload, _name_elements("delete", name, where, len(portion))
        case AddElements(name, elements):
            for portion, where in encode_elements(sets[name], elements, family):
                payload = nf.set_elements(number, TABLE, name, portion)
                yield nf.NEW_ELEMENT, NLM_F_CREATE, payload, _name_elements("add", name, where, len(portion))
        case _:
            assert_never(operation)


def _name_elements(verb: str, name: str, first: str, count: int) -> str:
    tail = f" and {count - 1} more" if count > 1 else ""
    return f"{verb} in {name}: {first}{tail}"


def _base(base: Base | None) -> tuple[str, int, int] | None:
    return None if base is None else (base.type, base.hook.value, base.priority)


# -- what was read back ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """One family's table as the kernel describes it. elements: of the sets that hansa knows, dynamic ones left out.

    counts: how many elements those of these sets have whose elements were left out as well.
    """

    sets: dict[str, nf.SetShape] = field(default_factory=dict)
    chains: dict[str, nf.RawChain] = field(default_factory=dict)
    rules: dict[str, list[nf.RawRule]] = field(default_factory=dict)
    elements: dict[str, dict[bytes, Value]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """How many elements each set has, whether they were listed or counted."""
        return {name: len(held) for name, held in self.elements.items()} | self.counts


def judge(found: Found, desired: Ruleset) -> Observed:
    """Hold what was found against the desired chains and shapes."""
    family = desired.family
    specs = {spec.name: spec for spec in desired.sets}
    sets = {name: name in specs and set_shape(specs[name], family) == shape for name, shape in found.sets.items()}
    chains = {}
    for name, raw in found.chains.items():
        chain = desired.chains.get(name)
        if chain is None:
            chains[name] = ObservedChain(base_as_desired=raw.base is None, rules_as_desired=False)
        else:
            hangs = raw.base == _base(chain.base) and raw.accepts
            same = _same_rules(chain, found.rules.get(name, []), family)
            chains[name] = ObservedChain(base_as_desired=hangs, rules_as_desired=same)
    return Observed(sets, chains, found.elements)


def _same_rules(chain: Chain, found: list[nf.RawRule], family: IPFamily) -> bool:
    """Whether the kernel's rules are the desired ones, in order; what the kernel adds by itself does not count."""
    return len(chain.rules) == len(found) and all(
        is_same_rule(rule, raw, family) for rule, raw in zip(chain.rules, found, strict=True)
    )


def is_same_rule(rule: ChainRule, raw: nf.RawRule, family: IPFamily) -> bool:
    """Whether the kernel's rule is this one."""
    sent = compile_rule(rule, family)
    if len(sent) != len(raw.expressions) or rule.comment != raw.comment:
        return False
    return all(one.covers(wanted) for one, wanted in zip(raw.expressions, sent, strict=True))


def describe(ruleset: Ruleset) -> Found:
    """A table as the kernel would describe it, had it been loaded."""
    family = ruleset.family
    found = Found(elements={name: dict(elements) for name, elements in ruleset.elements.items()})
    found.sets = {spec.name: set_shape(spec, family) for spec in ruleset.sets}
    for name, chain in ruleset.chains.items():
        found.chains[name] = nf.RawChain(name, _base(chain.base))
        found.rules[name] = [nf.RawRule(compile_rule(rule, family), rule.comment) for rule in chain.rules]
    return found
