"""Rules → elements: what one family's table must hold, and what a change of rules changes in it.

A rule becomes elements only, and a changed rule becomes the difference of its elements; `frame` has the rest.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address

from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.nftables.frame import (
    EVERYBODY,
    FROM_NODE,
    FROM_PODS,
    NOBODY,
    SETS,
    Flavour,
    Place,
    base_chains,
    flavour_of,
    is_pick,
    of_family,
    pick_chain,
    pod_tests,
    slots,
)
from hansa.dataplanes.nftables.numbers import MAX_NUMBERED, Ids
from hansa.dataplanes.nftables.objects import (
    MAX_COMMENT_BYTES,
    Chain,
    Do,
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
    prefixes = of_family(rule.source_ranges or (), rule.key.family)
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
            kept = {name: chain for name, chain in self._chains.items() if name in self._uses or not is_pick(name)}
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
