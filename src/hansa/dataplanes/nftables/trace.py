"""A packet through the objects → Verdict: what the rules in a table do, statement by statement.

Nothing here looks at Kubernetes rules; only the table counts. `walk` sends one packet with given random choices,
`trace` all that can happen. Between sets, `Because` names the place in the table that decided; for forwarded packets it
cannot tell one traffic policy from another, the table does not either.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple, assert_never

from hansa.dataplanes.nftables.frame import GUARD, MASQUERADE_BIT, SHORT_CIRCUIT
from hansa.dataplanes.nftables.objects import (
    FIRST_DRAWN,
    Chain,
    ClearMark,
    ClearPriority,
    Dispatch,
    Do,
    Draw,
    Forget,
    FromInterface,
    Go,
    Hook,
    InPrefix,
    InSet,
    Key,
    Labelled,
    LookUpPriority,
    Marked,
    Masquerade,
    OwnAddress,
    PriorityIsClass,
    Refuse,
    Remember,
    Ruleset,
    Selector,
    SetMark,
    Statement,
    Target,
    Translate,
    Translated,
    Value,
    pack_number,
    pack_port,
    pack_protocol,
    unpack_number,
    write_element,
    write_rule,
)
from hansa.net import Address, IPFamily, Packet
from hansa.rules.model import Because, Drop, Forward, NotHandled, Reject, Verdict
from hansa.services.model import Endpoint


@dataclass(frozen=True, slots=True)
class SeenRule:
    """A rule that applied to a real packet. table: "" = hansa's own.

    rule: its text if it is one that hansa wants there, else its number. verdict: "" = the next rule followed.
    """

    table: str
    chain: str
    rule: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class SeenPacket:
    """The way of a real packet. target: where it aimed when it entered a hook for the last time, None = not told.

    stopped_by: the chain that dropped it, whosever it is, "" = none did. refused: by hansa, which the kernel counts as
    dropped too.
    """

    rules: tuple[SeenRule, ...]
    target: tuple[Address, int] | None = None
    stopped_by: str = ""
    refused: bool = False

    @property
    def asked_hansa(self) -> bool:
        """Whether it met hansa's table: the first packet of a connection does, later ones do not."""
        return any(not one.table for one in self.rules)


Choose = Callable[[int], int]
# A packet that goes round in chains longer than this is in a loop, which nftables would have refused to load.
MAX_DEPTH = 16


class End(enum.Enum):
    """How a packet leaves a hook."""

    ACCEPTED = "accepted"
    DROPPED = "dropped"
    REJECTED = "rejected"


class Found(NamedTuple):
    """An element that a key was found as; value b"" in a set."""

    set: str
    key: bytes
    value: Value

    def write(self, ruleset: Ruleset) -> str:
        """As `set: element`, in nft's words."""
        return f"{self.set}: {write_element(ruleset.spec(self.set), self.key, self.value, ruleset.family)}"


class Met(NamedTuple):
    """A rule that applied, as text, and the elements that were found for it."""

    chain: str
    rule: str
    elements: tuple[Found, ...] = ()

    def __str__(self) -> str:
        return f"{self.chain}: {self.rule}"


@dataclass(slots=True)
class Fate:
    """What happened to one packet. endpoint: where it went, None = its destination was left alone.

    masqueraded: the source was rewritten; by_rule: because a rule said so, else it is a hairpin. met: in order.
    """

    end: End = End.ACCEPTED
    endpoint: tuple[Address, int] | None = None
    masqueraded: bool = False
    by_rule: bool = False
    met: list[Met] = field(default_factory=list)

    @property
    def steps(self) -> list[str]:
        """The rules that applied, one text each."""
        return [str(one) for one in self.met]

    @property
    def last_step(self) -> str:
        return str(self.met[-1]) if self.met else ""


def trace(ruleset: Ruleset, packet: Packet, own: frozenset[Address]) -> Verdict:
    """What the table does with the first packet of a connection that no affinity is remembered for.

    own: the addresses of this machine. Endpoints are in the order of their text; only address and port are known.
    """
    found: dict[tuple[Address, int], Fate] = {}
    number, count = 0, 1
    fate = Fate()
    while number < count:
        moduli: list[int] = []

        def choose(modulus: int, number: int = number, moduli: list[int] = moduli) -> int:
            moduli.append(modulus)
            return number % modulus

        fate = walk(ruleset, packet, own, choose=choose, memory={})
        count = max([count, *moduli])
        number += 1
        if fate.endpoint is None:
            return _verdict_without_endpoint(fate)
        found.setdefault(fate.endpoint, fate)
    endpoints = tuple(sorted((Endpoint(address, port) for address, port in found), key=str))
    short = any(SHORT_CIRCUIT in step for step in fate.steps)
    return Forward(endpoints, fate.by_rule, Because.SHORT_CIRCUIT if short else Because.CLUSTER_POLICY)


def _verdict_without_endpoint(fate: Fate) -> Verdict:
    last = fate.last_step
    match fate.end:
        case End.ACCEPTED:
            return NotHandled()
        case End.REJECTED:
            unused = any("@cluster-ips" in step for step in fate.steps)
            return Reject(Because.UNUSED_PORT if unused else Because.NO_ENDPOINTS)
        case End.DROPPED:
            if last.startswith(GUARD):
                # The kernel drops these itself as long as nobody has allowed loopback addresses on the wire.
                return NotHandled()
            if "@permitted-sources" in last:
                return Drop(Because.SOURCE_RANGE)
            return Drop(Because.NO_LOCAL_ENDPOINTS if "vmap" in last else Because.UNALLOCATED_IP)


def walk(
    ruleset: Ruleset, packet: Packet, own: frozenset[Address], *, choose: Choose, memory: dict[bytes, bytes]
) -> Fate:
    """Send one packet through the hooks that a packet from its source passes.

    choose: gives a number below the one it is asked with. memory: the elements of `affinity`, which the packet may
    change; timers do not run in it.
    """
    passage = _Passage(ruleset, packet, own, choose, memory)
    here = packet.source.is_loopback or packet.source in own
    hooks = (Hook.OUTPUT, Hook.POSTROUTING) if here else (Hook.PREROUTING, Hook.POSTROUTING)
    for hook in hooks:
        bases = [one for one in ruleset.chains.values() if one.base is not None and one.base.hook is hook]
        for chain in sorted(bases, key=lambda one: one.base.priority if one.base else 0):
            if passage.run(chain, 0) in (End.DROPPED, End.REJECTED):
                return passage.fate
        if not here:
            passage.forward()
    return passage.fate


class _Stop(enum.Enum):
    """How a rule ends when the packet stays in the chain."""

    NEXT_RULE = enum.auto()
    RETURN = enum.auto()


class _Passage:
    """One packet on its way."""

    def __init__(
        self,
        ruleset: Ruleset,
        packet: Packet,
        own: frozenset[Address],
        choose: Choose,
        memory: dict[bytes, bytes],
    ) -> None:
        self.fate = Fate()
        self._ruleset = ruleset
        self._packet = packet
        self._own = own
        self._choose = choose
        self._memory = memory
        self._destination = packet.destination
        self._port = packet.port
        self._mark = 0
        self._priority = 0
        self._found: list[Found] = []

    def forward(self) -> None:
        """Between the hooks the kernel sets the priority of IPv4 packets from their type of service, which is 0 here.

        Evidence: Linux, net/ipv4/ip_forward.c; its IPv6 counterpart leaves the priority alone.
        """
        if self._ruleset.family is IPFamily.IPV4:
            self._priority = 0

    def run(self, chain: Chain, depth: int) -> End | None:
        """Pass a chain; None = it ended without a verdict."""
        if depth > MAX_DEPTH:
            raise ValueError(f"chain {chain.name}: deeper than {MAX_DEPTH}")
        for rule in chain.rules:
            outcome: End | _Stop | Target = _Stop.NEXT_RULE
            noted = False
            self._found = []
            for statement in rule.statements:
                result = self._do(statement)
                if result is False:
                    break
                noted = noted or _acts(statement)
                if isinstance(result, Target | End):
                    outcome = result
                    break
            if noted:
                text = write_rule(rule, self._ruleset.family)
                self.fate.met.append(Met(chain.name, text, tuple(self._found)))
            if isinstance(outcome, End):
                return outcome
            if isinstance(outcome, Target):
                match outcome.do:
                    case Do.DROP:
                        self.fate.end = End.DROPPED
                        return End.DROPPED
                    case Do.ACCEPT:
                        return End.ACCEPTED
                    case Do.RETURN:
                        return None
                    case Do.GOTO:
                        return self.run(self._ruleset.chains[outcome.chain], depth + 1)
                    case Do.JUMP:
                        end = self.run(self._ruleset.chains[outcome.chain], depth + 1)
                        if end is not None:
                            return end
        return None

    def _do(self, statement: Statement) -> bool | Target | End:
        """False = the rule ends here, True = the next statement, else a verdict."""
        match statement:
            case InSet(key, name, negated):
                return self._contains(name, self._key(key)) != negated
            case InPrefix(selector, prefix, negated):
                return (self._address(selector) in prefix) != negated
            case FromInterface(name, prefix, negated):
                interface = "" if self._from_here() else self._packet.interface or ""
                return (interface.startswith(name) if prefix else interface == name) != negated
            case OwnAddress(selector, negated):
                address = self._address(selector)
                return (address in self._own or address.is_loopback) != negated
            case Translated():
                return self.fate.endpoint is not None
            case PriorityIsClass():
                return bool(self._priority >> 16)
            case Marked(bit):
                return bool(self._mark & bit)
            case SetMark(bit):
                self._mark |= bit
                self.fate.by_rule = self.fate.by_rule or bit == MASQUERADE_BIT
            case ClearMark(bit):
                self._mark &= ~bit
            case ClearPriority():
                self._priority = 0
            case Draw(count):
                self._priority = FIRST_DRAWN + self._choose(count)
            case LookUpPriority(key, name):
                found = self._look_up(name, self._key(key))
                if found is None or isinstance(found, Target):
                    return False
                self._priority = unpack_number(found.data if isinstance(found, Labelled) else found)
            case Remember(key, _, _):
                self._memory.setdefault(self._key(key), pack_number(self._priority))
            case Forget(key, _):
                self._memory.pop(self._key(key), None)
            case Translate(key, name):
                found = self._look_up(name, self._key(key))
                if not isinstance(found, bytes):
                    return False
                self._destination = ip_address(found[:-4])
                self._port = int.from_bytes(found[-4:-2], "big")
                self.fate.endpoint = (self._destination, self._port)
                return End.ACCEPTED
            case Masquerade():
                self.fate.masqueraded = True
                return End.ACCEPTED
            case Refuse():
                self.fate.end = End.REJECTED
                return End.REJECTED
            case Dispatch(key, name):
                found = self._look_up(name, self._key(key))
                return found if isinstance(found, Target) else False
            case Go(do, chain):
                return Target(do, chain)
            case _:
                assert_never(statement)
        return True

    def _from_here(self) -> bool:
        return self._packet.source.is_loopback or self._packet.source in self._own

    def _address(self, selector: Selector) -> Address:
        return self._packet.source if selector is Selector.SOURCE else self._destination

    def _key(self, key: Key) -> bytes:
        return b"".join(self._part(selector) for selector in key)

    def _part(self, selector: Selector) -> bytes:
        match selector:
            case Selector.SOURCE | Selector.DESTINATION:
                return self._address(selector).packed
            case Selector.PROTOCOL:
                return pack_protocol(self._packet.protocol)
            case Selector.PORT:
                return pack_port(self._port or 0)
            case Selector.PRIORITY:
                return pack_number(self._priority)
            case Selector.PRIORITY_MAJOR:
                return pack_number(self._priority & 0xFFFF0000)
        assert_never(selector)

    def _look_up(self, name: str, key: bytes) -> Value | None:
        held = self._memory if name == "affinity" else self._ruleset.elements[name]
        found = held.get(key)
        if found is not None:
            self._found.append(Found(name, key, found))
        return found

    def _contains(self, name: str, key: bytes) -> bool:
        elements = self._ruleset.elements[name]
        if not self._ruleset.spec(name).interval:
            found = key if key in elements else None
        else:
            size = len(key)
            found = next((one for one in elements if _within(key, one[:size], one[size:])), None)
        if found is not None:
            self._found.append(Found(name, found, b""))
        return found is not None


def _within(key: bytes, first: bytes, last: bytes) -> bool:
    """Only the last part of a key is a range, so comparing whole keys is comparing that part."""
    return first <= key <= last


def _acts(statement: Statement) -> bool:
    """Statements that are worth telling; conditions are told with what they lead to."""
    return not isinstance(
        statement, InSet | InPrefix | FromInterface | OwnAddress | Translated | PriorityIsClass | Marked
    )
