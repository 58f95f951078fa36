"""What is always there: the sets, the chains that hang in a packet's way, and the `pick` chains by flavour.

The chains are code, the elements are data. `SETS` and `base_chains` never depend on how many services there are; one
`pick` chain exists per `Flavour` in use, that is per way to choose among n endpoints.

A frontend leads to a number, and the number, by the small map `picks`, to a chain: two steps, because the kernel walks
a map of verdicts from end to end whenever it gets a new element or a chain changes, and a map of numbers never. The
packet's priority carries the number from the one map to the other.

Which endpoint it is to be is a number drawn at random, with which the maps of endpoints are asked. Session
affinity works on numbers, too. `sticky-picks` leads from a frontend and the number drawn to a class id of the form
`port:endpoint`, `affinity` from port and client to the class id chosen before, `sticky-slots` from frontend and class
id to the endpoint, so that a remembered endpoint counts only while it is in the set that applies (Y6). Here, too, the
priority carries the number from one map to the next. It is cleared before the packet leaves; only the first packet of
a connection meets any of this.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import collapse_addresses, ip_network

from hansa.dataplanes.nftables.objects import (
    Base,
    Chain,
    ChainRule,
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
    LookUpPriority,
    Marked,
    Masquerade,
    OwnAddress,
    Part,
    PriorityIsClass,
    Refuse,
    Remember,
    Selector,
    SetMark,
    SetSpec,
    Statement,
    Target,
    Translate,
    Translated,
)
from hansa.net import IPFamily, Prefix
from hansa.rules.model import Origin, Surroundings

# The bit that Kubernetes components have always used for "masquerade me"; network plug-ins leave it alone.
MASQUERADE_BIT = 0x4000
# Clients times service ports that are remembered per family. The kernel allots 8 bytes of table for each at once; when
# it is full, new clients are balanced without being remembered.
AFFINITY_SIZE = 262144
# nft's names for them: dstnat, srcnat, raw.
PRIORITY_DESTINATION_NAT, PRIORITY_SOURCE_NAT, PRIORITY_RAW = -100, 100, -300
LOOPBACK = {IPFamily.IPV4: ip_network("127.0.0.0/8"), IPFamily.IPV6: ip_network("::1/128")}


class Place(enum.Enum):
    """Where a frontend is looked up: by address and port, or, at any accepted address of this node, by port alone."""

    SERVICE = ""
    NODE_PORT = "node-port-"

    @property
    def key(self) -> Key:
        head = (Selector.DESTINATION,) if self is Place.SERVICE else ()
        return (*head, Selector.PROTOCOL, Selector.PORT)

    @property
    def parts(self) -> tuple[Part, ...]:
        head = (Part.ADDRESS,) if self is Place.SERVICE else ()
        return (*head, Part.PROTOCOL, Part.PORT)

    @property
    def frontends(self) -> str:
        """The map from frontends to picks for everybody; overrides for pods and for this node have a suffix."""
        return "services" if self is Place.SERVICE else "node-ports"


GUARD = "guard-localhost"
PICKS = "picks"
FROM_PODS, FROM_NODE = "-from-pods", "-from-node"
SHORT_CIRCUIT = "short-circuit-"


# Numbers in `picks` are `way:count`, 16 bits each: a way to pick, and among how many. Way 1 picks nothing; the 32 ways
# without affinity have fixed numbers, those with affinity get theirs from `numbers.Ways`.
DROP_NUMBER, REFUSE_NUMBER = 1 << 16 | 1, 1 << 16 | 2
FIRST_PLAIN_WAY, FIRST_STICKY_WAY = 2, 34
MAX_COUNT = 0xFFFF
VERDICTS = {DROP_NUMBER: Target(Do.DROP), REFUSE_NUMBER: Target(Do.GOTO, "refuse")}


def slots(place: Place, short_circuit: bool, kind: str = "slots") -> str:
    """The name of a map of endpoints: kind is `slots`, `sticky-picks` or `sticky-slots`."""
    return f"{place.value}{SHORT_CIRCUIT if short_circuit else ''}{kind}"


def _all_sets() -> Iterator[SetSpec]:
    endpoint = (Part.ADDRESS, Part.PORT)
    for place in Place:
        for suffix in ("", FROM_PODS, FROM_NODE):
            yield SetSpec(place.frontends + suffix, place.parts, data=(Part.CLASS,), labelled=True)
    yield SetSpec(PICKS, (Part.CLASS,), data=())
    for place in Place:
        for short in (False, True):
            yield SetSpec(slots(place, short), (*place.parts, Part.CLASS), data=endpoint)
            yield SetSpec(slots(place, short, "sticky-picks"), (*place.parts, Part.CLASS), data=(Part.CLASS,))
            yield SetSpec(slots(place, short, "sticky-slots"), (*place.parts, Part.CLASS), data=endpoint)
    yield SetSpec("affinity", (Part.CLASS, Part.ADDRESS), data=(Part.CLASS,), size=AFFINITY_SIZE)
    yield SetSpec("hairpins", (Part.ADDRESS, Part.ADDRESS))
    yield SetSpec("cluster-ips", (Part.ADDRESS,))
    yield SetSpec("node-port-addresses", (Part.ADDRESS,))
    yield SetSpec("source-ranged", Place.SERVICE.parts)
    yield SetSpec("permitted-sources", (*Place.SERVICE.parts, Part.ADDRESS), interval=True)


SETS: tuple[SetSpec, ...] = tuple(_all_sets())


@dataclass(frozen=True, slots=True)
class Flavour:
    """One way to choose an endpoint: everything that the `pick` chain of a frontend must know.

    masquerade: the origins whose packets are masqueraded. affinity_s: None = no affinity. chain: the chain's name.
    way: the name without the count. number: what leads to it in `picks`, None = `numbers.Ways` gives it one.
    stick: the chain that remembers clients, "" = none does.
    """

    place: Place
    short_circuit: bool
    masquerade: frozenset[Origin]
    affinity_s: int | None
    count: int
    chain: str
    way: str
    number: int | None
    stick: str = ""


@cache
def flavour_of(
    place: Place, short_circuit: bool, masquerade: frozenset[Origin], affinity_s: int | None, count: int
) -> Flavour:
    """The flavour with its chain's name; few are in use, and each by many frontends."""
    words = ["pick"]
    if place is Place.NODE_PORT:
        words.append("node-port")
    if short_circuit:
        words.append("short-circuit")
    if masquerade:
        words.append("masquerade")
        if len(masquerade) < len(Origin):
            words += [origin.value for origin in Origin if origin in masquerade]
    if affinity_s is not None:
        words.append(f"sticky-{affinity_s}s")
    way = "-".join(words)
    number = None
    stick = f"stick-{slots(place, short_circuit, '')}{affinity_s}s"
    if affinity_s is None:
        stick = ""
        flags = (place is Place.NODE_PORT, short_circuit, *(origin in masquerade for origin in Origin))
        number = (FIRST_PLAIN_WAY + sum(flag << bit for bit, flag in enumerate(flags))) << 16 | count
    return Flavour(place, short_circuit, masquerade, affinity_s, count, f"{way}-{count}", way, number, stick)


EVERYBODY = frozenset(Origin)
NOBODY: frozenset[Origin] = frozenset()
_ORIGINS_BY_WORD = {origin.value: origin for origin in Origin}
_PICK = re.compile(
    r"pick(?P<node_port>-node-port)?(?P<short>-short-circuit)?"
    r"(?P<masquerade>-masquerade(?P<origins>(?:-pod|-node|-outside)*))?"
    r"(?:-sticky-(?P<affinity>[0-9]{1,9})s)?-(?P<count>[0-9]{1,5})"
)


def is_pick(chain: str) -> bool:
    return chain.startswith("pick-")


def is_of_flavours(chain: str) -> bool:
    """Whether a chain comes and goes with flavours, as `flavour_chains` says; the others are always there."""
    return chain.startswith(("pick-", "stick-"))


def flavour_named(chain: str) -> Flavour | None:
    """The flavour whose chain has this name; None if none has."""
    found = _PICK.fullmatch(chain)
    if found is None:
        return None
    masquerade = NOBODY
    if found["masquerade"]:
        masquerade = frozenset(_ORIGINS_BY_WORD[word] for word in found["origins"].split("-") if word) or EVERYBODY
    place = Place.NODE_PORT if found["node_port"] else Place.SERVICE
    affinity = None if found["affinity"] is None else int(found["affinity"])
    flavour = flavour_of(place, bool(found["short"]), masquerade, affinity, int(found["count"]))
    return flavour if flavour.chain == chain and 0 < flavour.count <= MAX_COUNT else None


def pod_tests(surroundings: Surroundings, family: IPFamily) -> tuple[InPrefix | FromInterface, ...]:
    """How a packet is recognised as a pod's (section 11); () = there is no detector for this family."""
    tests: list[InPrefix | FromInterface] = []
    if (prefix := surroundings.pod_prefixes.get(family)) is not None:
        tests.append(InPrefix(Selector.SOURCE, prefix))
    if surroundings.pod_interface:
        tests.append(FromInterface(surroundings.pod_interface))
    if surroundings.pod_interface_prefix:
        tests.append(FromInterface(surroundings.pod_interface_prefix, prefix=True))
    return tuple(tests)


def base_chains(surroundings: Surroundings, family: IPFamily) -> dict[str, Chain]:
    """The chains that are always there; they depend on what surrounds the node, never on services."""
    dispatch = ChainRule((Go(Do.JUMP, "dispatch"),))
    found = [
        Chain("prerouting", (dispatch,), Base("nat", Hook.PREROUTING, PRIORITY_DESTINATION_NAT)),
        Chain("output", (dispatch,), Base("nat", Hook.OUTPUT, PRIORITY_DESTINATION_NAT)),
        Chain("postrouting", _postrouting(), Base("nat", Hook.POSTROUTING, PRIORITY_SOURCE_NAT)),
        Chain("dispatch", tuple(_dispatch(surroundings, family))),
        Chain("node-ports", tuple(_lookups(Place.NODE_PORT, surroundings, family))),
        Chain("refuse", (ChainRule((Refuse(),)),)),
        *(_translation(place, short) for place in Place for short in (False, True)),
    ]
    if surroundings.localhost_node_ports and family is IPFamily.IPV4:
        guard = (FromInterface("lo", negated=True), InPrefix(Selector.DESTINATION, LOOPBACK[family]), Go(Do.DROP))
        rule = ChainRule(guard, "route_localnet is on: nobody else may reach what listens on loopback")
        found.append(Chain(GUARD, (rule,), Base("filter", Hook.PREROUTING, PRIORITY_RAW)))
    return {chain.name: chain for chain in found}


def _postrouting() -> tuple[ChainRule, ...]:
    return (
        ChainRule((Translated(), PriorityIsClass(), ClearPriority())),
        ChainRule((Marked(MASQUERADE_BIT), ClearMark(MASQUERADE_BIT), Masquerade())),
        ChainRule(
            (Translated(), InSet((Selector.SOURCE, Selector.DESTINATION), "hairpins"), Masquerade()),
            "an endpoint that was given to itself",
        ),
    )


def _dispatch(surroundings: Surroundings, family: IPFamily) -> Iterator[ChainRule]:
    frontend = Place.SERVICE.key
    permitted = InSet((*frontend, Selector.SOURCE), "permitted-sources", negated=True)
    yield ChainRule((InSet(frontend, "source-ranged"), permitted, Go(Do.DROP)), "loadBalancerSourceRanges")
    yield from _lookups(Place.SERVICE, surroundings, family)
    look = Go(Do.JUMP, "node-ports")
    loopback = LOOPBACK[family]
    if surroundings.node_port_addresses.get(family) is None:
        here = OwnAddress(Selector.DESTINATION)
        yield ChainRule((here, InPrefix(Selector.DESTINATION, loopback, negated=True), look))
    else:
        yield ChainRule((InSet((Selector.DESTINATION,), "node-port-addresses"), look))
    if surroundings.localhost_node_ports and family is IPFamily.IPV4:
        yield ChainRule((InPrefix(Selector.DESTINATION, loopback), OwnAddress(Selector.SOURCE), look))
    used = InSet((Selector.DESTINATION,), "cluster-ips")
    yield ChainRule((used, Go(Do.GOTO, "refuse")), "a ClusterIP, but no service has this port")
    if surroundings.guard_cluster_ips:
        for prefix in of_family(surroundings.service_cidrs, family):
            unallocated = InPrefix(Selector.DESTINATION, prefix)
            yield ChainRule((unallocated, Go(Do.DROP)), "ServiceCIDR: no service has this address")


def _lookups(place: Place, surroundings: Surroundings, family: IPFamily) -> Iterator[ChainRule]:
    """Pods first: an address of this machine may lie in the pods' range (X6 before X7)."""
    for test in pod_tests(surroundings, family):
        yield ChainRule((test, *_lookup(place, FROM_PODS)))
    yield ChainRule((OwnAddress(Selector.SOURCE), *_lookup(place, FROM_NODE)))
    yield ChainRule(_lookup(place, ""))


def _lookup(place: Place, suffix: str) -> tuple[Statement, ...]:
    """Both steps in one rule: a packet that the first does not know goes on as it came."""
    return (LookUpPriority(place.key, place.frontends + suffix), Dispatch((Selector.PRIORITY,), PICKS))


_INSTANT = ChainRule((Go(Do.DROP),), "only in the instant in which the endpoints change")


def _translation(place: Place, short_circuit: bool) -> Chain:
    """To the endpoint whose number the priority carries.

    A chain of its own, that is always there: when a rule of another chain is the first to look into a map, the kernel
    walks all of the map (`nf_tables_bind_set`), 0.15 us per element. So no chain that comes and goes looks into one.
    """
    name = slots(place, short_circuit)
    return Chain(f"to-{name}", (ChainRule((Translate((*place.key, Selector.PRIORITY), name),)), _INSTANT))


def flavour_chains(flavour: Flavour, surroundings: Surroundings, family: IPFamily) -> Iterator[Chain]:
    """The chain that sends a packet to one of `flavour.count` endpoints, and the one that it needs for that, if any."""
    rules = list(_marking(flavour.masquerade, surroundings, family))
    draw = Draw(flavour.count)
    if flavour.affinity_s is None:
        go = Go(Do.GOTO, f"to-{slots(flavour.place, flavour.short_circuit)}")
        yield Chain(flavour.chain, (*rules, ChainRule((draw, go))))
        return
    # What is remembered may be gone, or not in this set: then it is forgotten, and chosen anew (Y6).
    attempt = ChainRule((draw, Go(Do.JUMP, flavour.stick)))
    yield Chain(flavour.chain, (*rules, attempt, attempt, _INSTANT))
    yield _stick_chain(flavour.stick, flavour.place, flavour.short_circuit, flavour.affinity_s)


def _stick_chain(name: str, place: Place, short_circuit: bool, affinity_s: int) -> Chain:
    """To the endpoint that the client is remembered to have, else to the one drawn; returns if it is no more."""
    key = (*place.key, Selector.PRIORITY)
    memory: Key = (Selector.PRIORITY_MAJOR, Selector.SOURCE)
    statements = (
        LookUpPriority(key, slots(place, short_circuit, "sticky-picks")),
        Remember(memory, "affinity", affinity_s),
        LookUpPriority(memory, "affinity"),
        Translate(key, slots(place, short_circuit, "sticky-slots")),
        Forget(memory, "affinity"),
    )
    return Chain(name, tuple(ChainRule((one,)) for one in statements))


def _marking(masquerade: frozenset[Origin], surroundings: Surroundings, family: IPFamily) -> Iterator[ChainRule]:
    mark = SetMark(MASQUERADE_BIT)
    tests = pod_tests(surroundings, family)
    if masquerade == EVERYBODY:
        yield ChainRule((mark,))
        return
    others: tuple[Statement, ...] = ()
    if Origin.POD in masquerade:
        for test in tests:
            yield ChainRule((test, mark))
    else:
        others = tuple(_not(test) for test in tests)
    match (Origin.NODE in masquerade, Origin.OUTSIDE in masquerade):
        case (True, True):
            yield ChainRule((*others, mark))
        case (True, False):
            yield ChainRule((*others, OwnAddress(Selector.SOURCE), mark))
        case (False, True):
            yield ChainRule((*others, OwnAddress(Selector.SOURCE, negated=True), mark))
        case _:
            return


def _not(test: InPrefix | FromInterface) -> Statement:
    match test:
        case InPrefix(selector, prefix):
            return InPrefix(selector, prefix, negated=True)
        case FromInterface(name, prefix):
            return FromInterface(name, prefix, negated=True)


def of_family(prefixes: Iterable[Prefix], family: IPFamily) -> list[Prefix]:
    """Those of the family, overlaps and repetitions joined (R11), in order."""
    version = 4 if family is IPFamily.IPV4 else 6
    return list(collapse_addresses([one for one in prefixes if one.version == version]))  # type: ignore[type-var]
