"""Rules → elements: what one family's table must hold, and what a change of rules changes in it.

The chains are code, the elements are data. `base_chains` and `SETS` never depend on how many services there are; one
`pick` chain exists per `Flavour` in use, that is per way to choose among n endpoints. A rule becomes elements only, and
a changed rule becomes the difference of its elements.

Session affinity works on numbers. `sticky-picks` leads from a frontend and a random index to a class id of the form
`port:endpoint`, `affinity` from port and client to the class id chosen before, `sticky-slots` from frontend and class
id to the endpoint, so that a remembered endpoint counts only while it is in the set that applies (Y6). The packet's
priority carries the number from one map to the next, and is cleared before the packet leaves.
"""

from __future__ import annotations

import enum
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from ipaddress import collapse_addresses, ip_address, ip_network

from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.nftables.objects import (
    MAX_COMMENT_BYTES,
    Base,
    Chain,
    ChainRule,
    ClearMark,
    ClearPriority,
    Dispatch,
    Do,
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
    Random,
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
    pack_port,
    pack_protocol,
    unpack_number,
)
from hansa.net import Address, IPFamily, Prefix, address_port
from hansa.rules.model import Action, Drop, Forward, FrontendKey, FrontendKind, Origin, Reject, Rule, Surroundings
from hansa.services.model import Endpoint, ServicePortName

# The bit that Kubernetes components have always used for "masquerade me"; network plug-ins leave it alone.
MASQUERADE_BIT = 0x4000
# Clients times service ports that are remembered per family. The kernel allots 8 bytes of table for each at once; when
# it is full, new clients are balanced without being remembered.
AFFINITY_SIZE = 262144
# nft's names for them: dstnat, srcnat, raw.
PRIORITY_DESTINATION_NAT, PRIORITY_SOURCE_NAT, PRIORITY_RAW = -100, 100, -300
# Class ids are `port:endpoint`, 16 bits each, and 0 means none.
MAX_ID = 0xFFFF
# Service ports with affinity, and endpoints of one such port, that get a number: half of all numbers, so that a free
# one is always near.
MAX_NUMBERED = 0x8000
# Endpoints of one service port that went and whose number is kept from them; the oldest is let go first.
MAX_RETIRED = 1024

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
    def verdicts(self) -> str:
        """The verdict map for everybody; overrides for pods and for this node have a suffix."""
        return "services" if self is Place.SERVICE else "node-ports"


GUARD = "guard-localhost"
FROM_PODS, FROM_NODE = "-from-pods", "-from-node"
SHORT_CIRCUIT = "short-circuit-"


def slots(place: Place, short_circuit: bool, kind: str = "slots") -> str:
    """The name of a map of endpoints: kind is `slots`, `sticky-picks` or `sticky-slots`."""
    return f"{place.value}{SHORT_CIRCUIT if short_circuit else ''}{kind}"


def _all_sets() -> Iterator[SetSpec]:
    endpoint = (Part.ADDRESS, Part.PORT)
    for place in Place:
        for suffix in ("", FROM_PODS, FROM_NODE):
            yield SetSpec(place.verdicts + suffix, place.parts, data=())
    for place in Place:
        for short in (False, True):
            yield SetSpec(slots(place, short), (*place.parts, Part.INDEX), data=endpoint)
            yield SetSpec(slots(place, short, "sticky-picks"), (*place.parts, Part.INDEX), data=(Part.CLASS,))
            yield SetSpec(slots(place, short, "sticky-slots"), (*place.parts, Part.CLASS), data=endpoint)
    yield SetSpec("affinity", (Part.CLASS, Part.ADDRESS), data=(Part.CLASS,), size=AFFINITY_SIZE)
    yield SetSpec("hairpins", (Part.ADDRESS, Part.ADDRESS))
    yield SetSpec("cluster-ips", (Part.ADDRESS,))
    yield SetSpec("node-port-addresses", (Part.ADDRESS,))
    yield SetSpec("source-ranged", Place.SERVICE.parts)
    yield SetSpec("permitted-sources", (*Place.SERVICE.parts, Part.ADDRESS), interval=True)


SETS: tuple[SetSpec, ...] = tuple(_all_sets())


# -- chains ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flavour:
    """One way to choose an endpoint: everything that the `pick` chain of a frontend must know.

    masquerade: the origins whose packets are masqueraded. affinity_s: None = no affinity. chain: the chain's name.
    """

    place: Place
    short_circuit: bool
    masquerade: frozenset[Origin]
    affinity_s: int | None
    count: int
    chain: str


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
    return Flavour(place, short_circuit, masquerade, affinity_s, count, "-".join([*words, str(count)]))


EVERYBODY = frozenset(Origin)
NOBODY: frozenset[Origin] = frozenset()


def _is_pick(chain: str) -> bool:
    return chain.startswith("pick-")


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
        for prefix in _of_family(surroundings.service_cidrs, family):
            unallocated = InPrefix(Selector.DESTINATION, prefix)
            yield ChainRule((unallocated, Go(Do.DROP)), "ServiceCIDR: no service has this address")


def _lookups(place: Place, surroundings: Surroundings, family: IPFamily) -> Iterator[ChainRule]:
    """Pods first: an address of this machine may lie in the pods' range (X6 before X7)."""
    for test in pod_tests(surroundings, family):
        yield ChainRule((test, Dispatch(place.key, place.verdicts + FROM_PODS)))
    yield ChainRule((OwnAddress(Selector.SOURCE), Dispatch(place.key, place.verdicts + FROM_NODE)))
    yield ChainRule((Dispatch(place.key, place.verdicts),))


def pick_chain(flavour: Flavour, surroundings: Surroundings, family: IPFamily) -> Chain:
    """The chain that sends a packet to one of `flavour.count` endpoints."""
    rules = list(_marking(flavour.masquerade, surroundings, family))
    frontend = flavour.place.key
    candidate = (*frontend, Random(flavour.count))
    if flavour.affinity_s is None:
        rules.append(ChainRule((Translate(candidate, slots(flavour.place, flavour.short_circuit)),)))
    else:
        picks = slots(flavour.place, flavour.short_circuit, "sticky-picks")
        endpoints = slots(flavour.place, flavour.short_circuit, "sticky-slots")
        memory: Key = (Selector.PRIORITY_MAJOR, Selector.SOURCE)
        attempt = (
            ChainRule((LookUpPriority(candidate, picks),)),
            ChainRule((Remember(memory, "affinity", flavour.affinity_s),)),
            ChainRule((LookUpPriority(memory, "affinity"),)),
            ChainRule((Translate((*frontend, Selector.PRIORITY), endpoints),)),
        )
        # What is remembered may be gone, or not in this set: then it is forgotten, and chosen anew (Y6).
        rules += [*attempt, ChainRule((Forget(memory, "affinity"),)), *attempt]
    rules.append(ChainRule((Go(Do.DROP),), "only in the instant in which the endpoints change"))
    return Chain(flavour.chain, tuple(rules))


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


def _of_family(prefixes: Iterable[Prefix], family: IPFamily) -> list[Prefix]:
    """Those of the family, overlaps and repetitions joined (R11), in order."""
    version = 4 if family is IPFamily.IPV4 else 6
    return list(collapse_addresses([one for one in prefixes if one.version == version]))  # type: ignore[type-var]


# -- numbers for session affinity ------------------------------------------------------------------------------------


class Ids:
    """Numbers for the service ports with affinity and for their endpoints; stable while in use.

    A number starts from a checksum of the name, so that a restart finds the same one; a taken one leads to the next.
    An endpoint that went does not get its number back at once if it returns: what clients remember of it counts no
    longer (Y7).
    """

    def __init__(self) -> None:
        self._ports: dict[ServicePortName, int] = {}
        self._taken: set[int] = set()
        self._endpoints: dict[ServicePortName, _Numbers] = {}

    def of(self, owner: ServicePortName, endpoints: Iterable[Endpoint]) -> list[int] | None:
        """The class ids of the endpoints, in their order; None when the numbers have run out."""
        port = self._ports.get(owner)
        if port is None:
            if len(self._taken) >= MAX_NUMBERED:
                return None
            port = self._take_port(owner, _free(f"{owner}/{owner.protocol}", self._taken))
        numbers = self._endpoints.setdefault(owner, _Numbers())
        found = []
        for endpoint in endpoints:
            number = numbers.of(str(endpoint))
            if number is None:
                return None
            found.append(port << 16 | number)
        return found

    def release(self, owner: ServicePortName, in_use: Iterable[Endpoint] | None) -> None:
        """Only these endpoints are left; None = the port has no affinity any more."""
        if in_use is None:
            if (port := self._ports.pop(owner, None)) is not None:
                self._taken.discard(port)
            self._endpoints.pop(owner, None)
        elif owner in self._endpoints:
            self._endpoints[owner].keep({str(endpoint) for endpoint in in_use})

    def adopt(self, owner: ServicePortName, class_id: int, endpoint: str) -> None:
        """Take over a number that a table in the kernel already uses, unless it contradicts what is known."""
        port, number = class_id >> 16, class_id & 0xFFFF
        if owner not in self._ports and port not in self._taken and port:
            self._take_port(owner, port)
        if self._ports.get(owner) == port and number:
            self._endpoints.setdefault(owner, _Numbers()).adopt(endpoint, number)

    def _take_port(self, owner: ServicePortName, port: int) -> int:
        self._ports[owner] = port
        self._taken.add(port)
        return port


class _Numbers:
    """The numbers of one service port's endpoints, by "ip:port". retired: of those that went, in that order."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._taken: set[int] = set()
        self._retired: dict[str, int] = {}

    def of(self, endpoint: str) -> int | None:
        """None when the numbers have run out."""
        number = self._known.get(endpoint)
        if number is None:
            if len(self._taken) >= MAX_NUMBERED:
                return None
            number = _free(endpoint, self._taken, self._retired.get(endpoint, 0))
            self.adopt(endpoint, number)
        return number

    def adopt(self, endpoint: str, number: int) -> None:
        if endpoint not in self._known and number not in self._taken:
            self._known[endpoint] = number
            self._taken.add(number)

    def keep(self, endpoints: set[str]) -> None:
        for endpoint in [endpoint for endpoint in self._known if endpoint not in endpoints]:
            number = self._known.pop(endpoint)
            self._taken.discard(number)
            self._retired.pop(endpoint, None)
            self._retired[endpoint] = number
            if len(self._retired) > MAX_RETIRED:
                del self._retired[next(iter(self._retired))]


def _free(name: str, taken: set[int], avoided: int = 0) -> int:
    """A free number from 1 to MAX_ID, beginning with the name's own. At most MAX_NUMBERED are taken."""
    number = zlib.crc32(name.encode()) % MAX_ID + 1
    while number in taken or number == avoided:
        number = number % MAX_ID + 1
    return number


# -- elements --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rendered:
    """One rule's part of the table, by set name. own: elements of this frontend alone. shared: keys that others may
    bring as well, in sets. flavours: the `pick` chains that it leads to."""

    own: dict[str, dict[bytes, Value]] = field(default_factory=dict)
    shared: dict[str, list[bytes]] = field(default_factory=dict)
    flavours: list[Flavour] = field(default_factory=list)
    shortfalls: list[Shortfall] = field(default_factory=list)


@lru_cache(maxsize=1024)
def _indices(count: int) -> tuple[bytes, ...]:
    return tuple(pack_number(number) for number in range(count))


def frontend_key(key: FrontendKey) -> bytes:
    """The frontend as the first parts of a key; without the address for a node port."""
    head = b"" if key.address is None else key.address.packed
    return head + pack_protocol(key.protocol) + pack_port(key.port)


def render_rule(rule: Rule, ids: Ids, *, detector: bool, guard: bool) -> Rendered:
    """Everything that one rule puts into the table."""
    found = Rendered()
    place = Place.NODE_PORT if rule.key.address is None else Place.SERVICE
    key = frontend_key(rule.key)
    _render_actions(rule, place, key, ids, found, detector=detector)
    if rule.source_ranges is not None:
        _render_source_ranges(rule, place, key, found)
    if guard and rule.kind is FrontendKind.CLUSTER_IP and rule.key.address is not None:
        found.shared["cluster-ips"] = [rule.key.address.packed]
    return found


def _render_actions(rule: Rule, place: Place, key: bytes, ids: Ids, found: Rendered, *, detector: bool) -> None:
    pod = rule.pod if detector else rule.outside
    comment = _comment(rule.owner)
    if (together := _as_one(pod, rule.node, rule.outside)) is not None:
        action, masquerade = together
        _render_action(rule, action, _Where(place, key, "", False, masquerade, comment), ids, found)
        return
    base = rule.outside.endpoints if isinstance(rule.outside, Forward) else ()
    _render_action(rule, rule.outside, _Where(place, key, "", False, _whole(rule.outside), comment), ids, found)
    second: tuple[Endpoint, ...] | None = None
    for action, suffix in ((pod, FROM_PODS if detector else ""), (rule.node, FROM_NODE)):
        if not suffix:
            continue
        short = isinstance(action, Forward) and action.endpoints != base
        if short and isinstance(action, Forward):
            if second is not None and second != action.endpoints:
                text = "pods and the node itself are sent to different endpoints; the node follows the pods"
                found.shortfalls.append(Shortfall("endpoints-per-origin", rule.key, rule.owner, text))
                action = Forward(second, action.masquerade, action.because)
            second = action.endpoints
        _render_action(rule, action, _Where(place, key, suffix, short, _whole(action), comment), ids, found)


@dataclass(frozen=True, slots=True)
class _Where:
    place: Place
    key: bytes
    suffix: str
    short_circuit: bool
    masquerade: frozenset[Origin]
    comment: str


# By whether pods, this node and the outside are masqueraded.
_ORIGINS = {
    flags: frozenset(origin for origin, holds in zip(Origin, flags, strict=True) if holds)
    for flags in itertools.product((False, True), repeat=3)
}


def _as_one(pod: Action, node: Action, outside: Action) -> tuple[Action, frozenset[Origin]] | None:
    """The action and the masqueraded origins if all origins meet the same but for masquerading; None if they do not."""
    match (pod, node, outside):
        case (Forward() as one, Forward() as two, Forward() as three):
            if not one.endpoints == two.endpoints == three.endpoints:
                return None
            return three, _ORIGINS[one.masquerade, two.masquerade, three.masquerade]
        case (Drop(), Drop(), Drop()) | (Reject(), Reject(), Reject()):
            return outside, NOBODY
        case _:
            return None


def _whole(action: Action) -> frozenset[Origin]:
    return EVERYBODY if isinstance(action, Forward) and action.masquerade else NOBODY


def _render_action(rule: Rule, action: Action, where: _Where, ids: Ids, found: Rendered) -> None:
    name = where.place.verdicts + where.suffix
    match action:
        case Drop():
            found.own[name] = {where.key: Target(Do.DROP, comment=where.comment)}
        case Reject():
            found.own[name] = {where.key: Target(Do.GOTO, "refuse", where.comment)}
        case Forward(endpoints):
            class_ids = None if rule.affinity_timeout_s is None else ids.of(rule.owner, endpoints)
            timeout_s = rule.affinity_timeout_s
            if timeout_s is not None and class_ids is None:
                text = "more service ports or endpoints with session affinity than there are numbers: no affinity"
                found.shortfalls.append(Shortfall("session-affinity", rule.key, rule.owner, text, str(MAX_NUMBERED)))
                timeout_s = None
            flavour = flavour_of(where.place, where.short_circuit, where.masquerade, timeout_s, len(endpoints))
            found.own[name] = {where.key: Target(Do.GOTO, flavour.chain, where.comment)}
            found.flavours.append(flavour)
            addresses = [endpoint.address.packed for endpoint in endpoints]
            data = [address + pack_port(one.port) for address, one in zip(addresses, endpoints, strict=True)]
            _render_slots(where, data, class_ids, found)
            if where.masquerade != EVERYBODY:
                hairpins = found.shared.setdefault("hairpins", [])
                hairpins += [address + address for address in dict.fromkeys(addresses)]


def _render_slots(where: _Where, data: list[bytes], class_ids: list[int] | None, found: Rendered) -> None:
    key = where.key
    keys = [key + index for index in _indices(len(data))]
    if class_ids is None:
        found.own[slots(where.place, where.short_circuit)] = dict(zip(keys, data, strict=True))
        return
    packed = [pack_number(class_id) for class_id in class_ids]
    found.own[slots(where.place, where.short_circuit, "sticky-picks")] = dict(zip(keys, packed, strict=True))
    sticky = {key + number: endpoint for number, endpoint in zip(packed, data, strict=True)}
    found.own[slots(where.place, where.short_circuit, "sticky-slots")] = dict(sticky)


def _render_source_ranges(rule: Rule, place: Place, key: bytes, found: Rendered) -> None:
    if place is Place.NODE_PORT:
        text = "source ranges are applied at load balancer addresses only"
        found.shortfalls.append(Shortfall("source-ranges", rule.key, rule.owner, text))
        return
    found.own["source-ranged"] = {key: b""}
    prefixes = _of_family(rule.source_ranges or (), rule.key.family)
    ranges = [(prefix.network_address.packed, prefix.broadcast_address.packed) for prefix in prefixes]
    found.own["permitted-sources"] = {key + first + key + last: b"" for first, last in ranges}


def _comment(owner: ServicePortName) -> str:
    text = str(owner)
    return text if len(text) <= MAX_COMMENT_BYTES else text[: MAX_COMMENT_BYTES - 3] + "..."


# -- desired state ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Delta:
    """What a change of rules changes in the table. Chains in `put` are new or have other rules than before."""

    removed: dict[str, dict[bytes, Value]] = field(default_factory=dict)
    added: dict[str, dict[bytes, Value]] = field(default_factory=dict)
    put: dict[str, Chain] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.removed or self.added or self.put or self.gone)


class Desired:
    """What one family's table must hold, kept as the rules themselves; elements are computed when they are needed.

    Only what several rules share is counted. `take` costs what the changed rules cost; `whole` renders everything.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self.rules: dict[FrontendKey, Rule] = {}
        self.shortfalls: dict[FrontendKey, tuple[Shortfall, ...]] = {}
        self.ids = Ids()
        self._surroundings: Surroundings | None = None
        self._chains: dict[str, Chain] = {}
        self._addresses: frozenset[Address] = frozenset()
        self._shared: dict[str, Counter[bytes]] = {}
        self._flavours: dict[str, Flavour] = {}
        self._uses: Counter[str] = Counter()
        self._sticky: dict[ServicePortName, set[FrontendKey]] = {}

    @property
    def chain_names(self) -> frozenset[str]:
        """The chains of the table as it was last rendered."""
        return frozenset(self._chains)

    def replace(self, rules: Mapping[FrontendKey, Rule | None], surroundings: Surroundings, *, complete: bool) -> None:
        """Take in changes without saying what they change; `whole` must follow."""
        if complete:
            self.rules = {}
        for key, rule in rules.items():
            if key.family is self.family:
                if rule is None:
                    self.rules.pop(key, None)
                else:
                    self.rules[key] = rule
        self._surroundings = surroundings

    def whole(self) -> Ruleset:
        """The whole table, all counts begun anew."""
        surroundings = self._known()
        self._shared, self._flavours, self._uses = {}, {}, Counter()
        before = set(self._sticky)
        self._sticky = {}
        self.shortfalls = {}
        elements: dict[str, dict[bytes, Value]] = {spec.name: {} for spec in SETS if not spec.dynamic}
        for rule in self.rules.values():
            rendered = self._render(rule)
            for name, found in rendered.own.items():
                elements[name].update(found)
            for name, keys in rendered.shared.items():
                self._shared.setdefault(name, Counter()).update(keys)
            self._count_flavours(rendered.flavours, 1)
            self._note(rule, rendered)
        for name, counts in self._shared.items():
            elements[name] = dict.fromkeys(counts, b"")
        self._addresses = self._node_port_addresses(surroundings)
        elements["node-port-addresses"] = {address.packed: b"" for address in self._addresses}
        self._release(before | set(self._sticky))
        self._chains = base_chains(surroundings, self.family)
        for name, flavour in self._flavours.items():
            self._chains[name] = pick_chain(flavour, surroundings, self.family)
        return Ruleset(self.family, SETS, dict(self._chains), elements)

    def take(self, rules: Mapping[FrontendKey, Rule | None], surroundings: Surroundings, *, complete: bool) -> Delta:
        """Take in changes and say what they change in the table."""
        delta = Delta()
        before = self._known()
        touched = [key for key in rules if key.family is self.family]
        if complete:
            touched += [key for key in self.rules if key not in rules]
        wider = self._elements_depend_on(before) != self._elements_depend_on(surroundings)
        keys = {*self.rules, *touched} if wider else touched
        owners: set[ServicePortName] = set()
        for key in keys:
            old = self.rules.get(key)
            new = rules.get(key) if complete or key in rules else old
            if old == new and not wider:
                continue
            self._exchange(key, old, new, surroundings, delta)
            owners.update(rule.owner for rule in (old, new) if rule is not None)
        self._surroundings = surroundings
        self._exchange_addresses(surroundings, delta)
        self._exchange_chains(before, surroundings, delta)
        self._release(owners)
        return delta

    def _exchange(
        self, key: FrontendKey, old: Rule | None, new: Rule | None, surroundings: Surroundings, delta: Delta
    ) -> None:
        gone = self._render(old) if old is not None else Rendered()
        if old is not None:
            self._forget(old)
            self.rules.pop(key)
        self._surroundings, before = surroundings, self._surroundings
        come = self._render(new) if new is not None else Rendered()
        self._surroundings = before
        if new is not None:
            self.rules[key] = new
            self._note(new, come)
        _note_difference(gone.own, come.own, delta.removed)
        _note_difference(come.own, gone.own, delta.added)
        for name in gone.shared.keys() | come.shared.keys():
            self._count_shared(name, gone.shared.get(name, []), come.shared.get(name, []), delta)
        self._count_flavours(come.flavours, 1)
        self._count_flavours(gone.flavours, -1)

    def _count_flavours(self, flavours: list[Flavour], step: int) -> None:
        for flavour in flavours:
            self._flavours[flavour.chain] = flavour
            self._uses[flavour.chain] += step

    def _count_shared(self, name: str, gone: list[bytes], come: list[bytes], delta: Delta) -> None:
        change = Counter(come)
        change.subtract(gone)
        counts = self._shared.setdefault(name, Counter())
        for entry, difference in change.items():
            if not difference:
                continue
            before = counts[entry]
            after = before + difference
            if after:
                counts[entry] = after
            else:
                del counts[entry]
            if not before:
                _cancel(delta.removed, delta.added, name, entry)
            elif not after:
                _cancel(delta.added, delta.removed, name, entry)

    def _exchange_addresses(self, surroundings: Surroundings, delta: Delta) -> None:
        after = self._node_port_addresses(surroundings)
        for address in self._addresses - after:
            delta.removed.setdefault("node-port-addresses", {})[address.packed] = b""
        for address in after - self._addresses:
            delta.added.setdefault("node-port-addresses", {})[address.packed] = b""
        self._addresses = after

    def _exchange_chains(self, before: Surroundings, after: Surroundings, delta: Delta) -> None:
        for name in [name for name, uses in self._uses.items() if not uses]:
            del self._uses[name], self._flavours[name]
        if before == after:
            kept = {name: chain for name, chain in self._chains.items() if name in self._uses or not _is_pick(name)}
        else:
            kept = base_chains(after, self.family)
        fresh = {name: pick_chain(one, after, self.family) for name, one in self._flavours.items() if name not in kept}
        fresh = {**kept, **fresh}
        delta.put = {name: chain for name, chain in fresh.items() if self._chains.get(name) != chain}
        delta.gone = [name for name in self._chains if name not in fresh]
        self._chains = fresh

    def adopt(self, elements: Mapping[str, Mapping[bytes, Value]]) -> None:
        """Use the affinity numbers of a table that is already there, as far as its frontends are known."""
        frontends = {
            frontend_key(key): rule.owner for key, rule in self.rules.items() if rule.affinity_timeout_s is not None
        }
        width = 16 if self.family is IPFamily.IPV6 else 4
        for place in Place:
            for short in (False, True):
                for key, data in elements.get(slots(place, short, "sticky-slots"), {}).items():
                    owner = frontends.get(key[:-4])
                    if owner is not None and isinstance(data, bytes) and len(data) == width + 4:
                        endpoint = address_port(ip_address(data[:width]), int.from_bytes(data[width:-2], "big"))
                        self.ids.adopt(owner, unpack_number(key[-4:]), endpoint)

    def _render(self, rule: Rule) -> Rendered:
        detector, guard = self._elements_depend_on(self._known())
        return render_rule(rule, self.ids, detector=detector, guard=guard)

    def _elements_depend_on(self, surroundings: Surroundings) -> tuple[bool, bool]:
        return bool(pod_tests(surroundings, self.family)), surroundings.guard_cluster_ips

    def _node_port_addresses(self, surroundings: Surroundings) -> frozenset[Address]:
        return surroundings.node_port_addresses.get(self.family) or frozenset()

    def _known(self) -> Surroundings:
        if self._surroundings is None:
            raise ValueError("no rules have been taken in yet")
        return self._surroundings

    def _note(self, rule: Rule, rendered: Rendered) -> None:
        if rendered.shortfalls:
            self.shortfalls[rule.key] = tuple(rendered.shortfalls)
        if rule.affinity_timeout_s is not None:
            self._sticky.setdefault(rule.owner, set()).add(rule.key)

    def _forget(self, rule: Rule) -> None:
        self.shortfalls.pop(rule.key, None)
        keys = self._sticky.get(rule.owner)
        if keys is not None:
            keys.discard(rule.key)
            if not keys:
                del self._sticky[rule.owner]

    def _release(self, owners: Iterable[ServicePortName]) -> None:
        for owner in owners:
            keys = self._sticky.get(owner)
            if keys is None:
                self.ids.release(owner, None)
            else:
                self.ids.release(owner, (one for key in keys for one in self.rules[key].endpoints))


def _note_difference(
    some: dict[str, dict[bytes, Value]], others: dict[str, dict[bytes, Value]], found: dict[str, dict[bytes, Value]]
) -> None:
    """Add to `found` the elements of `some` that are not, or not the same, in `others`."""
    for name, elements in some.items():
        other = others.get(name, {})
        different = {key: value for key, value in elements.items() if other.get(key) != value}
        if different:
            found.setdefault(name, {}).update(different)


def _cancel(
    undone: dict[str, dict[bytes, Value]], done: dict[str, dict[bytes, Value]], name: str, entry: bytes
) -> None:
    """An element that one rule of a sync takes away and another brings back does not change at all."""
    if undone.get(name, {}).pop(entry, None) is None:
        done.setdefault(name, {})[entry] = b""
    elif not undone[name]:
        del undone[name]


def render(
    rules: Iterable[Rule], surroundings: Surroundings, family: IPFamily
) -> tuple[Ruleset, tuple[Shortfall, ...]]:
    """The whole table of one family for these rules, and what it cannot do."""
    desired = Desired(family)
    desired.replace({rule.key: rule for rule in rules}, surroundings, complete=True)
    ruleset = desired.whole()
    return ruleset, tuple(one for found in desired.shortfalls.values() for one in found)
