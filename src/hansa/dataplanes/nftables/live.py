"""What a real packet meets: the kernel's own trace of it, for one packet's addresses and ports and a bounded time.

A table of its own marks such packets for tracing before anything else sees them; the kernel then tells of each rule
that applies to them, in whatever table. The table belongs to the socket that makes it, so the kernel removes it even if
this process is killed. Evidence: nftrace of Linux 6.18; table flag "owner", Linux 5.12.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.apply import KernelRuleset
from hansa.dataplanes.nftables.host import check_features, send_batch
from hansa.dataplanes.nftables.objects import (
    TABLE,
    Do,
    Hook,
    InPrefix,
    Refuse,
    Ruleset,
    Selector,
    nft_family,
    pack_port,
    pack_protocol,
    write_rule,
)
from hansa.dataplanes.nftables.trace import SeenPacket, SeenRule
from hansa.errors import DataplaneError
from hansa.net import Address, IPFamily, Packet, family_of
from hansa.netlink import nftables as nf
from hansa.netlink.codec import NLM_F_CREATE, NLM_F_EXCL
from hansa.netlink.socket import NetfilterSocket, NetlinkError

# Before connection tracking (-200), before what is meant to come first (raw, -300), and before hansa's guard.
PRIORITY = -500
# The events of a packet come together; after so long without one it is through.
QUIET_S = 0.3


def follow(packet: Packet, desired: Ruleset, *, seconds: float, count: int = 1) -> tuple[SeenPacket, ...]:
    """Wait for so many packets like this one, at most so long, and tell their ways; () if none came by.

    desired: hansa's table as it should be, for the words. Raises DataplaneError if the kernel does not let us.
    """
    family = family_of(packet.destination)
    own = f"{TABLE}-trace-{os.getpid()}"
    events: dict[int, list[nf.RawTrace]] = {}
    end = time.monotonic() + seconds
    with _marking(packet, family, own) as kernel:
        last = end
        while (now := time.monotonic()) < min(end, last):
            kernel.wait(min(end, last) - now)
            for notice in kernel.notices() or ():
                if notice.type != nf.message_type(nf.TRACE):
                    continue
                event = nf.read_trace(notice.payload)
                if event.table == own or event.packet in events:
                    known = events.setdefault(event.packet, [])
                    if event.table != own:
                        known.append(event)
                    if len(events) >= count:
                        last = time.monotonic() + QUIET_S
        words = _rules_by_handle(desired)
    return tuple(_seen(one, family, words) for one in list(events.values())[:count])


@contextmanager
def _marking(packet: Packet, family: IPFamily, own: str) -> Iterator[NetfilterSocket]:
    """A socket that hears of such packets; the table that marks them goes with the block, or with the process."""
    check_features((family,))
    number = wire.family_number(family)
    expressions = _matching(packet, family)
    messages = [(nf.NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, nf.owned_table(number, own))]
    for hook in (Hook.PREROUTING, Hook.OUTPUT):
        name, base = hook.name.lower(), ("filter", hook.value, PRIORITY)
        messages.append((nf.NEW_CHAIN, NLM_F_CREATE, nf.chain(number, own, name, base=base)))
        messages.append((nf.NEW_RULE, NLM_F_CREATE, nf.rule(number, own, name, expressions, "hansa trace")))
    with closing(NetfilterSocket()) as listener, closing(NetfilterSocket()) as owner:
        listener.join(nf.TRACE_GROUP)
        try:
            send_batch(owner, messages, owner.next_sequence())
        except NetlinkError as error:
            raise DataplaneError(f"packets cannot be traced, which needs Linux 5.12: {error}") from error
        yield listener


def _matching(packet: Packet, family: IPFamily) -> list[nf.Expression]:
    """Source, destination, protocol and port, then `meta nftrace set 1`."""
    found = []
    for selector, address in ((Selector.SOURCE, packet.source), (Selector.DESTINATION, packet.destination)):
        found += wire.compile_statement(InPrefix(selector, ip_network(address)), family)
    first = nf.register(0)
    found += [nf.meta(nf.META_L4PROTO, to=first)]
    found += [nf.compare(nf.OPERATOR_EQUAL, first, pack_protocol(packet.protocol)[:1])]
    if packet.port is not None:
        found += [nf.payload(nf.BASE_TRANSPORT, 2, 2, to=first)]
        found += [nf.compare(nf.OPERATOR_EQUAL, first, pack_port(packet.port)[:2])]
    return [*found, nf.immediate(first, b"\1"), nf.set_meta(nf.META_TRACE, source=first)]


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    refuses: bool


def _rules_by_handle(desired: Ruleset) -> Mapping[int, _Word]:
    """The rules of hansa's table in the kernel that are as they should be, by their handles."""
    with closing(KernelRuleset()) as kernel:
        found = kernel.read_rules(desired.family)
    words: dict[int, _Word] = {}
    for name, rules in found.items():
        for raw in rules:
            for rule in desired.chains[name].rules if name in desired.chains else ():
                if wire.is_same_rule(rule, raw, desired.family):
                    refuses = any(isinstance(one, Refuse) for one in rule.statements)
                    words[raw.handle] = _Word(write_rule(rule, desired.family), refuses)
    return words


_VERDICTS = {**{do.value: do.name.lower() for do in Do}, -1: "", -2: "", 2: "stolen", 3: "queue"}


def _seen(events: list[nf.RawTrace], family: IPFamily, words: Mapping[int, _Word]) -> SeenPacket:
    rules = []
    target = None
    stopped_by = ""
    refused = False
    for event in events:
        target = _target(event, family) or target
        ours = event.table == TABLE and event.family == wire.family_number(family)
        table = "" if ours else f"{nft_family(family)} {event.table}"
        code, chain = event.verdict
        if code == Do.DROP.value and event.kind != nf.TRACE_RETURN:
            stopped_by = f"{table or nft_family(family) + ' ' + TABLE} {event.chain}"
        if event.kind != nf.TRACE_RULE:
            continue
        word = words.get(event.handle) if ours else None
        refused = refused or (word is not None and word.refuses)
        text = word.text if word else f"rule {event.handle}" + (", which is not as hansa wants it" if ours else "")
        rules.append(SeenRule(table, event.chain, text, f"{_VERDICTS.get(code, code)} {chain}".strip()))
    return SeenPacket(tuple(rules), target, stopped_by, refused)


def _target(event: nf.RawTrace, family: IPFamily) -> tuple[Address, int] | None:
    start, width = (16, 4) if family is IPFamily.IPV4 else (24, 16)
    if len(event.network) < start + width or len(event.transport) < 4:
        return None
    return ip_address(event.network[start : start + width]), int.from_bytes(event.transport[2:4], "big")
