"""Rules → elements: what one family's table must hold, and what a change of rules changes in it.

A rule becomes elements only, and a changed rule becomes the difference of its elements; `frame` has the rest.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.nftables.frame import (
    DROP_NUMBER,
    EVERYBODY,
    FROM_NODE,
    FROM_PODS,
    MAX_COUNT,
    NOBODY,
    PICKS,
    REFUSE_NUMBER,
    SETS,
    VERDICTS,
    Flavour,
    Place,
    base_chains,
    flavour_chains,
    flavour_named,
    flavour_of,
    is_of_flavours,
    of_family,
    pod_tests,
    slots,
)
from hansa.dataplanes.nftables.numbers import MAX_NUMBERED, Ids, Ways
from hansa.dataplanes.nftables.objects import (
    FIRST_DRAWN,
    MAX_COMMENT_BYTES,
    Chain,
    Do,
    Elements,
    Labelled,
    Ruleset,
    Target,
    Value,
    pack_number,
    pack_port,
    pack_protocol,
    unpack_number,
)
from hansa.net import Address, IPFamily, address_port
from hansa.rules.model import Action, Drop, Forward, FrontendKey, FrontendKind, Origin, Reject, Rule, Surroundings
from hansa.services.model import Endpoint, ServicePortName

# Chains that nobody is led to any more and that stay for the next service of their kind; with many more of them the
# kernel would take noticeably longer to check the table when a chain comes (0.1 ms at this many, Linux 6.18).
MAX_SPARE_CHAINS = 256


@dataclass(slots=True)
class Rendered:
    """What some rules put into the table, by set name. own: elements of one frontend alone. shared: keys that others
    may bring as well, in sets. flavours: the `pick` chains that they lead to."""

    own: dict[str, dict[bytes, Value]] = field(default_factory=dict)
    shared: dict[str, list[bytes]] = field(default_factory=dict)
    flavours: list[Flavour] = field(default_factory=list)
    shortfalls: list[Shortfall] = field(default_factory=list)


@lru_cache(maxsize=1024)
def _indices(count: int) -> tuple[bytes, ...]:
    return tuple(pack_number(FIRST_DRAWN + number) for number in range(count))


_VERDICTS: Elements = {pack_number(number): target for number, target in VERDICTS.items()}


def frontend_key(key: FrontendKey) -> bytes:
    """The frontend as the first parts of a key; without the address for a node port."""
    head = b"" if key.address is None else key.address.packed
    return head + pack_protocol(key.protocol) + pack_port(key.port)


@dataclass(slots=True)
class Numbers:
    """What the numbers in the table stand for."""

    ids: Ids = field(default_factory=Ids)
    ways: Ways = field(default_factory=Ways)


def render_rule(rule: Rule, numbers: Numbers, found: Rendered, *, detector: bool, guard: bool) -> None:
    """Add everything that one rule puts into the table to `found`."""
    place = Place.NODE_PORT if rule.key.address is None else Place.SERVICE
    key = frontend_key(rule.key)
    _render_actions(rule, _Where(place, key, _comment(rule.owner)), numbers, found, detector=detector)
    if rule.source_ranges is not None:
        _render_source_ranges(rule, place, key, found)
    if guard and rule.kind is FrontendKind.CLUSTER_IP and rule.key.address is not None:
        found.shared.setdefault("cluster-ips", []).append(rule.key.address.packed)


def _render_actions(rule: Rule, where: _Where, numbers: Numbers, found: Rendered, *, detector: bool) -> None:
    pod = rule.pod if detector else rule.outside
    if (together := _as_one(pod, rule.node, rule.outside)) is not None:
        action, masquerade = together
        _render_action(rule, action, _Origins("", False, masquerade), where, numbers, found)
        return
    base = rule.outside.endpoints if isinstance(rule.outside, Forward) else ()
    _render_action(rule, rule.outside, _Origins("", False, _whole(rule.outside)), where, numbers, found)
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
        _render_action(rule, action, _Origins(suffix, short, _whole(action)), where, numbers, found)


class _Where(NamedTuple):
    """A frontend. key: its first parts of a key."""

    place: Place
    key: bytes
    comment: str


class _Origins(NamedTuple):
    """Whose packets an action is about. suffix: of the map for them alone. short_circuit: they have endpoints of their
    own. masquerade: which of them are masqueraded."""

    suffix: str
    short_circuit: bool
    masquerade: frozenset[Origin]


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


def _render_action(
    rule: Rule, action: Action, origins: _Origins, where: _Where, numbers: Numbers, found: Rendered
) -> None:
    match action:
        case Drop():
            number = DROP_NUMBER
        case Reject():
            number = REFUSE_NUMBER
        case Forward(endpoints):
            if len(endpoints) > MAX_COUNT:
                text = f"{len(endpoints)} endpoints, of which {MAX_COUNT} are used"
                found.shortfalls.append(Shortfall("endpoints", rule.key, rule.owner, text, found=str(len(endpoints))))
                endpoints = endpoints[:MAX_COUNT]
            number = _render_forward(rule, endpoints, origins, where, numbers, found)
    frontends = found.own.setdefault(where.place.frontends + origins.suffix, {})
    frontends[where.key] = Labelled(pack_number(number), where.comment)


def _render_forward(
    rule: Rule, endpoints: tuple[Endpoint, ...], origins: _Origins, where: _Where, numbers: Numbers, found: Rendered
) -> int:
    """The endpoints; the number of the way to pick one of them."""
    flavour, number, class_ids = _choose(rule, endpoints, origins, where, numbers)
    if class_ids is None and rule.affinity_timeout_s is not None:
        text = "more service ports, endpoints or timeouts with session affinity than there are numbers: no affinity"
        found.shortfalls.append(Shortfall("session-affinity", rule.key, rule.owner, text, str(MAX_NUMBERED)))
    found.flavours.append(flavour)
    addresses = [endpoint.address.packed for endpoint in endpoints]
    data = [address + pack_port(one.port) for address, one in zip(addresses, endpoints, strict=True)]
    keys = [where.key + index for index in _indices(len(data))]

    def put(kind: str, some_keys: Iterable[bytes], some_data: Iterable[bytes]) -> None:
        name = slots(where.place, origins.short_circuit, kind)
        found.own.setdefault(name, {}).update(zip(some_keys, some_data, strict=True))

    if class_ids is None:
        put("slots", keys, data)
    else:
        packed = [pack_number(class_id) for class_id in class_ids]
        put("sticky-picks", keys, packed)
        put("sticky-slots", [where.key + class_id for class_id in packed], data)
    if origins.masquerade != EVERYBODY:
        found.shared.setdefault("hairpins", []).extend([address + address for address in dict.fromkeys(addresses)])
    return number


def _choose(
    rule: Rule, endpoints: tuple[Endpoint, ...], origins: _Origins, where: _Where, numbers: Numbers
) -> tuple[Flavour, int, list[int] | None]:
    """The flavour, its number, and the endpoints' class ids; without affinity, which gives no ids, if they run out."""

    def of(timeout_s: int | None) -> Flavour:
        return flavour_of(where.place, origins.short_circuit, origins.masquerade, timeout_s, len(endpoints))

    if rule.affinity_timeout_s is not None:
        class_ids = numbers.ids.of(rule.owner, endpoints)
        number = numbers.ways.number(of(rule.affinity_timeout_s))
        if class_ids is not None and number is not None:
            return of(rule.affinity_timeout_s), number, class_ids
    plain = of(None)
    number = numbers.ways.number(plain)
    assert number is not None, "the numbers without affinity are fixed"
    return plain, number, None


def _render_source_ranges(rule: Rule, place: Place, key: bytes, found: Rendered) -> None:
    if place is Place.NODE_PORT:
        text = "source ranges are applied at load balancer addresses only"
        found.shortfalls.append(Shortfall("source-ranges", rule.key, rule.owner, text))
        return
    found.own.setdefault("source-ranged", {})[key] = b""
    prefixes = of_family(rule.source_ranges or (), rule.key.family)
    ranges = [(prefix.network_address.packed, prefix.broadcast_address.packed) for prefix in prefixes]
    permitted = found.own.setdefault("permitted-sources", {})
    permitted.update({key + first + key + last: b"" for first, last in ranges})


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
        self.numbers = Numbers()
        self._surroundings: Surroundings | None = None
        self._chains: dict[str, Chain] = {}
        self._addresses: frozenset[Address] = frozenset()
        self._shared: dict[str, Counter[bytes]] = {}
        self._flavours: dict[str, Flavour] = {}
        self._uses: Counter[str] = Counter()
        self._spares: dict[str, None] = {}  # flavours that nobody uses, the longest unused first
        self._sticky: dict[ServicePortName, set[FrontendKey]] = {}
        self.sizes: Counter[str] = Counter()  # how many elements each set has; none of an empty one

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

    def whole(self, there: Elements | None = None) -> Ruleset:
        """The whole table, all counts begun anew. there: `picks` as it is on the host, whose spare chains may stay."""
        surroundings = self._known()
        before = set(self._sticky)
        self._sticky = {}
        self.shortfalls = {}
        self._flavours, self._uses, self._spares = {}, Counter(), {}
        found = Rendered()
        detector, guard = self._elements_depend_on(surroundings)
        for rule in self.rules.values():
            render_rule(rule, self.numbers, found, detector=detector, guard=guard)
            if rule.affinity_timeout_s is not None:
                self._sticky.setdefault(rule.owner, set()).add(rule.key)
        self._note_shortfalls(found)
        self._count_flavours(found.flavours, 1)
        self._release(before | set(self._sticky))
        self._adopt_spares(there or {})
        self._chains = base_chains(surroundings, self.family)
        for flavour in self._flavours.values():
            self._chains |= self._chains_of(flavour, surroundings)
        self._addresses = self._node_port_addresses(surroundings)
        self._shared = {name: Counter(keys) for name, keys in found.shared.items()}
        elements: dict[str, dict[bytes, Value]] = {spec.name: {} for spec in SETS if not spec.dynamic}
        elements |= found.own
        elements |= {name: dict.fromkeys(counts, b"") for name, counts in self._shared.items()}
        elements |= self.frame().elements
        self.sizes = Counter({name: len(held) for name, held in elements.items() if held})
        return Ruleset(self.family, SETS, dict(self._chains), elements)

    def _adopt_spares(self, there: Elements) -> None:
        """Keep chains that a table already has and that are as this one would make them."""
        for key, value in there.items():
            flavour = flavour_named(value.chain) if isinstance(value, Target) and value.do is Do.GOTO else None
            if flavour is None or flavour.chain in self._flavours or len(self._spares) >= MAX_SPARE_CHAINS:
                continue
            if self.numbers.ways.adopt(flavour, unpack_number(key)):
                self._flavours[flavour.chain] = flavour
                self._spares[flavour.chain] = None
        self._release_ways()

    def _release_ways(self) -> None:
        self.numbers.ways.keep({flavour.way for flavour in self._flavours.values()})

    def _pick_key(self, flavour: Flavour) -> bytes:
        number = self.numbers.ways.number(flavour)
        assert number is not None, "a flavour is in use only if it has a number"
        return pack_number(number)

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
        for step, changed in ((1, delta.added), (-1, delta.removed)):
            for name, held in changed.items():
                self.sizes[name] += step * len(held)
                if not self.sizes[name]:
                    del self.sizes[name]
        return delta

    def parts(self, size: int) -> Iterator[dict[str, dict[bytes, Value]]]:
        """What the rules put into the table, about `size` elements at a time; rules may change in between."""
        found = Rendered()
        for key in list(self.rules):
            rule = self.rules.get(key)
            if rule is None:
                continue
            detector, guard = self._elements_depend_on(self._known())
            render_rule(rule, self.numbers, found, detector=detector, guard=guard)
            if sum(map(len, found.own.values())) >= size:
                yield found.own
                found = Rendered()
        yield found.own
        for name in list(self._shared):
            keys = iter(list(self._shared[name]))
            while portion := list(itertools.islice(keys, size)):
                yield {name: {key: b"" for key in portion if key in self._shared[name]}}

    def frame(self) -> Ruleset:
        """What does not depend on single rules: sets, chains, and the elements of the small sets."""
        picks = dict(_VERDICTS)
        for flavour in self._flavours.values():
            picks[self._pick_key(flavour)] = Target(Do.GOTO, flavour.chain)
        addresses: dict[bytes, Value] = {address.packed: b"" for address in self._addresses}
        elements = {PICKS: picks, "node-port-addresses": addresses}
        return Ruleset(self.family, SETS, dict(self._chains), elements)

    def _exchange(
        self, key: FrontendKey, old: Rule | None, new: Rule | None, surroundings: Surroundings, delta: Delta
    ) -> None:
        gone, come = Rendered(), Rendered()
        if old is not None:
            detector, guard = self._elements_depend_on(self._known())
            render_rule(old, self.numbers, gone, detector=detector, guard=guard)
            self._forget(old)
            self.rules.pop(key)
        if new is not None:
            detector, guard = self._elements_depend_on(surroundings)
            render_rule(new, self.numbers, come, detector=detector, guard=guard)
            self.rules[key] = new
            if new.affinity_timeout_s is not None:
                self._sticky.setdefault(new.owner, set()).add(key)
            self._note_shortfalls(come)
        _note_difference(gone.own, come.own, delta.removed)
        _note_difference(come.own, gone.own, delta.added)
        for name in gone.shared.keys() | come.shared.keys():
            self._count_shared(name, gone.shared.get(name, []), come.shared.get(name, []), delta)
        self._count_flavours(come.flavours, 1)
        self._count_flavours(gone.flavours, -1)

    def _count_flavours(self, flavours: list[Flavour], step: int) -> None:
        for flavour in flavours:
            name = flavour.chain
            self._flavours[name] = flavour
            self._uses[name] += step
            if self._uses[name]:
                self._spares.pop(name, None)
            else:
                self._spares[name] = None

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
        """Chains that nobody needs any more stay, within limits: a packet may be on its way to one right now, and the
        next service of that size finds it."""
        if len(self._spares) > MAX_SPARE_CHAINS:
            for name in list(self._spares)[: MAX_SPARE_CHAINS // 2]:
                self._drop_spare(name, delta)
            self._release_ways()
        if before != after:
            anew = base_chains(after, self.family)
            for flavour in self._flavours.values():
                anew |= self._chains_of(flavour, after)
        else:
            fresh = self._flavours.keys() - self._chains.keys()
            if not fresh and not delta.gone:
                return
            wanted = self._flavours.keys() | {flavour.stick for flavour in self._flavours.values()}
            anew = {name: chain for name, chain in self._chains.items() if name in wanted or not is_of_flavours(name)}
            for name in fresh:
                anew |= self._chains_of(self._flavours[name], after)
        delta.put = {name: chain for name, chain in anew.items() if self._chains.get(name) != chain}
        delta.gone = [name for name in self._chains if name not in anew]
        for name in delta.put:
            if name in self._flavours and name not in self._chains:
                delta.added.setdefault(PICKS, {})[self._pick_key(self._flavours[name])] = Target(Do.GOTO, name)
        self._chains = anew

    def _chains_of(self, flavour: Flavour, surroundings: Surroundings) -> dict[str, Chain]:
        return {chain.name: chain for chain in flavour_chains(flavour, surroundings, self.family)}

    def _drop_spare(self, name: str, delta: Delta) -> None:
        flavour = self._flavours.pop(name)
        del self._spares[name], self._uses[name]
        if name in self._chains:
            delta.gone.append(name)
            delta.removed.setdefault(PICKS, {})[self._pick_key(flavour)] = Target(Do.GOTO, name)

    def adopt(self, elements: Mapping[str, Mapping[bytes, Value]]) -> None:
        """Use the affinity numbers of a table that is already there, as far as its frontends are known."""
        for key, value in elements.get(PICKS, {}).items():
            if isinstance(value, Target) and (flavour := flavour_named(value.chain)) is not None:
                self.numbers.ways.adopt(flavour, unpack_number(key))
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
                        self.numbers.ids.adopt(owner, unpack_number(key[-4:]), endpoint)

    def _elements_depend_on(self, surroundings: Surroundings) -> tuple[bool, bool]:
        return bool(pod_tests(surroundings, self.family)), surroundings.guard_cluster_ips

    def _node_port_addresses(self, surroundings: Surroundings) -> frozenset[Address]:
        return surroundings.node_port_addresses.get(self.family) or frozenset()

    def _known(self) -> Surroundings:
        if self._surroundings is None:
            raise ValueError("no rules have been taken in yet")
        return self._surroundings

    def _note_shortfalls(self, rendered: Rendered) -> None:
        for one in rendered.shortfalls:
            if one.frontend is not None:
                self.shortfalls[one.frontend] = (*self.shortfalls.get(one.frontend, ()), one)

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
                self.numbers.ids.release(owner, None)
            else:
                self.numbers.ids.release(owner, (one for key in keys for one in self.rules[key].endpoints))


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
