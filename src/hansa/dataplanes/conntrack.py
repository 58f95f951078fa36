"""Which UDP flows must be cut, so that their next packet is judged by the rules anew.

The kernel translates only the first packet of a flow and remembers what came of it. A UDP flow has no end: a client
that keeps asking stays with an endpoint that is gone, or with none at all, for as long as it asks. `UdpFrontends` knows
what flows may go on and whether any could be stale; `stale_entries` finds those that are; `cut` deletes them. Every
dataplane of Linux that translates by conntrack uses the three after a successful sync.

Evidence: service-semantics section 16 (K1-K15), scenarios t173-t181.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple
from typing import Protocol as Seam

from hansa.dataplanes.base import Change, Outcome, Result, Verb
from hansa.errors import DataplaneError
from hansa.net import Address, IPFamily, Protocol, family_of
from hansa.netlink.conntrack import Entries, Entry
from hansa.rules.model import FrontendKey, Rule, RuleChanges, Surroundings

# A kernel that refuses so many deletions refuses the others too; all are tried again at the next sync.
REFUSALS_BORNE = 3
_LOOPBACK_OCTET = 127  # 127.0.0.0/8


class Connections(Seam):
    """The host's connection table. Every method raises DataplaneError if the host does not answer or refuses."""

    def list(self, family: IPFamily, protocol: Protocol) -> Entries:
        """All entries of the family and protocol in the common zone."""

    def delete(self, entry: Entry) -> bool:
        """Forget this very connection; False = it was gone already, or its addresses are another one's now."""

    def close(self) -> None:
        """Release what is held; entries stay."""


class Cause(enum.Enum):
    """Why flows are cut; the value is what people read."""

    ENDPOINT_GONE = "the endpoint serves no longer"
    NEVER_TRANSLATED = "begun before the frontend was served"
    FRONTEND_GONE = "no service has the frontend any more"


class Place(NamedTuple):
    """An address, packed, and a UDP port: a frontend, or where an endpoint answers."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class WantedFlows:
    """The flows of one family that may go on: by frontend, the places that may answer; () = nobody may (K10).

    node_ports: at the addresses in `local`, and on loopback if that is served. gone: frontends that are no more, among
    them node ports; nobody may answer there.
    """

    frontends: Mapping[Place, frozenset[Place]]
    node_ports: Mapping[int, frozenset[Place]]
    local: frozenset[bytes]
    loopback: bool = False
    gone: frozenset[Place] = frozenset()
    gone_node_ports: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Stale:
    """An entry to delete, at which frontend, and why."""

    entry: Entry
    frontend: FrontendKey
    cause: Cause


def stale_entries(entries: Iterable[Entry], wanted: WantedFlows) -> list[Stale]:
    """The UDP entries that lead where they no longer should, in the order of `entries` (K5-K8, K10-K12).

    What is aimed at no frontend stays, also a pod's own flow to a node port's number elsewhere. A flow that was never
    translated is answered by the frontend itself, which is no endpoint.
    """
    return [stale for entry in entries if (stale := _judge(entry, wanted)) is not None]


def _judge(entry: Entry, wanted: WantedFlows) -> Stale | None:
    if entry.protocol != Protocol.UDP.value:
        return None
    target, port = Place(entry.destination, entry.destination_port), entry.destination_port
    may_answer = wanted.frontends.get(target)
    if may_answer is not None:
        return _unless_wanted(
            entry, may_answer, FrontendKey(entry.family, ip_address(entry.destination), Protocol.UDP, port)
        )
    at_node = entry.destination in wanted.local or (wanted.loopback and entry.destination[0] == _LOOPBACK_OCTET)
    if at_node and (may_answer := wanted.node_ports.get(port)) is not None:
        return _unless_wanted(entry, may_answer, FrontendKey(entry.family, None, Protocol.UDP, port))
    if target in wanted.gone:
        return Stale(
            entry, FrontendKey(entry.family, ip_address(entry.destination), Protocol.UDP, port), Cause.FRONTEND_GONE
        )
    if at_node and port in wanted.gone_node_ports:
        return Stale(entry, FrontendKey(entry.family, None, Protocol.UDP, port), Cause.FRONTEND_GONE)
    return None


def _unless_wanted(entry: Entry, may_answer: frozenset[Place], frontend: FrontendKey) -> Stale | None:
    if (entry.answered_by, entry.answered_from) in may_answer:
        return None
    untranslated = (entry.answered_by, entry.answered_from) == (entry.destination, entry.destination_port)
    return Stale(entry, frontend, Cause.NEVER_TRANSLATED if untranslated else Cause.ENDPOINT_GONE)


class UdpFrontends:
    """The UDP frontends of one family, and whether a flow to one of them could be stale. Used by one thread.

    Costs what changes: a change without UDP, and one that only adds endpoints, makes nothing due (K2).
    """

    def __init__(self, family: IPFamily) -> None:
        self._family = family
        self._rules: dict[FrontendKey, Rule] = {}
        self._gone: set[FrontendKey] = set()
        self._local: frozenset[Address] = frozenset()
        self._loopback = False
        self._due = False

    @property
    def due(self) -> bool:
        """Whether there may be stale flows: the table is to be looked through after the next successful transaction.

        Stays so until `settle`, thus also after a failure (K14).
        """
        return self._due

    def take(self, changes: RuleChanges) -> None:
        """Note what the changes mean for flows. Rules of another family or protocol do not matter (K1)."""
        for key, rule in changes.rules.items():
            if key.protocol is Protocol.UDP and key.family is self._family:
                self._replace(key, rule)
        if changes.complete:
            for key in self._rules.keys() - changes.rules.keys():
                self._replace(key, None)
        self._take_addresses(changes.surroundings)

    def recall(self, frontends: Iterable[FrontendKey]) -> None:
        """The host still serves these, as an earlier run left it; those without a rule went meanwhile (K3, K11)."""
        for key in frontends:
            if key.protocol is Protocol.UDP and key.family is self._family and key not in self._rules:
                self._gone.add(key)
                self._due = True

    def settle(self) -> None:
        """The whole table was looked through, and all that was stale is deleted."""
        self._gone.clear()
        self._due = False

    def wanted(self) -> WantedFlows:
        """What `stale_entries` goes by."""
        frontends: dict[Place, frozenset[Place]] = {}
        node_ports: dict[int, frozenset[Place]] = {}
        for key, rule in self._rules.items():
            if key.address is None:
                node_ports[key.port] = _may_answer(rule)
            else:
                frontends[Place(key.address.packed, key.port)] = _may_answer(rule)
        return WantedFlows(
            frontends=frontends,
            node_ports=node_ports,
            local=frozenset(address.packed for address in self._local),
            loopback=self._loopback,
            gone=frozenset(Place(key.address.packed, key.port) for key in self._gone if key.address is not None),
            gone_node_ports=frozenset(key.port for key in self._gone if key.address is None),
        )

    def owners(self, key: FrontendKey) -> tuple[str, ...]:
        """The service port that has the frontend; () if none has."""
        rule = self._rules.get(key)
        return () if rule is None else (str(rule.owner),)

    def _replace(self, key: FrontendKey, new: Rule | None) -> None:
        old = self._rules.get(key)
        if old == new:
            return
        if new is None:
            del self._rules[key]
            self._gone.add(key)
            self._due = True
            return
        self._rules[key] = new
        self._gone.discard(key)
        before, after = (None if old is None else _may_answer(old)), _may_answer(new)
        # K15 and t176: what began before the first rule, or before the first endpoint, was not translated. What a
        # frontend with endpoints gains makes no flow stale.
        self._due |= before is None or before - after != frozenset() or (not before and bool(after))

    def _take_addresses(self, surroundings: Surroundings) -> None:
        """Another accepted address of this node is a new frontend of every node port; one less, a frontend gone."""
        local = _accepted(surroundings, self._family)
        loopback = surroundings.localhost_node_ports and self._family is IPFamily.IPV4
        if (local, loopback) == (self._local, self._loopback):
            return
        ports = [key.port for key in self._rules if key.address is None]
        for address in self._local - local:
            self._gone.update(FrontendKey(self._family, address, Protocol.UDP, port) for port in ports)
        self._local, self._loopback = local, loopback
        self._due |= bool(ports)


def _may_answer(rule: Rule) -> frozenset[Place]:
    """K4, K13: everyone whom a policy chose, and everyone else who still serves."""
    return frozenset(Place(one.address.packed, one.port) for one in (*rule.endpoints, *rule.lingering))


def _accepted(surroundings: Surroundings, family: IPFamily) -> frozenset[Address]:
    """The addresses at which node ports are served, loopback apart."""
    accepted = surroundings.node_port_addresses.get(family)
    if accepted is not None:
        return accepted
    return frozenset(address for address in surroundings.node.addresses if family_of(address) is family)


def planned(stale: Iterable[Stale], frontends: UdpFrontends) -> list[Change]:
    """The deletions in words: one change per frontend and cause, in the order in which they first come."""
    counts = Counter((one.frontend, one.cause) for one in stale)
    return [_change(frontend, cause, count, frontends) for (frontend, cause), count in counts.items()]


def cut(stale: Iterable[Stale], frontends: UdpFrontends, connections: Connections) -> tuple[list[Result], int]:
    """Delete the entries; one result per frontend and cause, FAILED if any of its entries is still there.

    Besides the results: how many entries were deleted.
    """
    counts: Counter[tuple[FrontendKey, Cause]] = Counter()
    errors: dict[tuple[FrontendKey, Cause], str] = {}
    refusals = 0
    for one in stale:
        place = (one.frontend, one.cause)
        if refusals == REFUSALS_BORNE:
            errors.setdefault(place, "not tried after other refusals")
            continue
        try:
            counts[place] += connections.delete(one.entry)
        except DataplaneError as error:
            refusals += 1
            errors.setdefault(place, str(error))
    results = []
    for frontend, cause in {**counts, **errors}:
        if not counts[frontend, cause] and (frontend, cause) not in errors:
            continue  # they ended by themselves meanwhile
        outcome = Outcome.FAILED if (frontend, cause) in errors else Outcome.DONE
        change = _change(frontend, cause, counts[frontend, cause], frontends)
        results.append(Result(change, outcome, errors.get((frontend, cause), "")))
    return results, counts.total()


def _change(frontend: FrontendKey, cause: Cause, count: int, frontends: UdpFrontends) -> Change:
    why = f"{count} flow{'' if count == 1 else 's'}: {cause.value}"
    return Change(Verb.DELETE, "conntrack entry", str(frontend), why, owners=frontends.owners(frontend))
