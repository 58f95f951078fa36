"""Differences → one transaction, its operations in an order that nftables accepts.

Make before break: new chains first, then rules and elements, then the chains that nobody leads to any more. The kernel
applies a transaction whole or not at all, and packets see either the old table or the new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from hansa.dataplanes.base import Change, Verb
from hansa.dataplanes.nftables.frame import is_of_flavours
from hansa.dataplanes.nftables.objects import (
    TABLE,
    Base,
    Chain,
    ChainRule,
    Elements,
    Ruleset,
    SetSpec,
    Value,
    ordered_chains,
)
from hansa.dataplanes.nftables.render import Delta
from hansa.errors import DataplaneError
from hansa.net import IPFamily

# The kernel makes its hash tables larger in the background, on the processor that fills them: 100,000 elements in one
# transaction take it 0.14 to 0.9 s, in ten of them 0.06 s (Linux 6.18).
STAGE_ELEMENTS = 10_000


class Refused(DataplaneError):
    """The host refused a transaction; nothing of it was applied. code: the errno, 0 if there was none."""

    def __init__(self, text: str, code: int = 0) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class CreateTable:
    """Nothing happens if it is there."""


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """With everything in it."""


@dataclass(frozen=True, slots=True)
class CreateSet:
    spec: SetSpec


@dataclass(frozen=True, slots=True)
class CreateChain:
    """The chain alone; its rules follow when every chain that they may name exists."""

    name: str
    base: Base | None


@dataclass(frozen=True, slots=True)
class FlushChain:
    name: str


@dataclass(frozen=True, slots=True)
class AddRule:
    chain: str
    rule: ChainRule


@dataclass(frozen=True, slots=True)
class DeleteChain:
    name: str


@dataclass(frozen=True, slots=True)
class DeleteElements:
    set: str
    elements: Elements


@dataclass(frozen=True, slots=True)
class AddElements:
    set: str
    elements: Elements


Operation = (
    CreateTable
    | DeleteTable
    | CreateSet
    | CreateChain
    | FlushChain
    | AddRule
    | DeleteChain
    | DeleteElements
    | AddElements
)


@dataclass(frozen=True, slots=True)
class Transaction:
    """All or nothing, in one family's table."""

    family: IPFamily
    operations: tuple[Operation, ...]

    def __bool__(self) -> bool:
        return bool(self.operations)

    @property
    def element_count(self) -> int:
        """How many elements it adds and deletes."""
        return sum(len(one.elements) for one in self.operations if isinstance(one, AddElements | DeleteElements))


@dataclass(slots=True)
class Observed:
    """What one family's table holds, held against the desired one.

    sets: by name, whether the shape is as desired (False: also for unknown ones). elements: as in `Ruleset`.
    """

    sets: dict[str, bool] = field(default_factory=dict)
    chains: dict[str, ObservedChain] = field(default_factory=dict)
    elements: dict[str, dict[bytes, Value]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObservedChain:
    """A chain that is there. A chain of no desired name has False for its rules, and for its base if it has one."""

    base_as_desired: bool
    rules_as_desired: bool


def creation(desired: Ruleset) -> Transaction:
    """The whole table, where there was none."""
    return Transaction(desired.family, tuple(_create(desired)))


def stages(desired: Ruleset) -> Iterator[Transaction]:
    """As `creation`, in several transactions where it is large: no packet sees the table before its chains, the last.

    What is there if one of them is refused has no chains, and is replaced as a whole at the next attempt.
    """
    family = desired.family
    if sum(map(len, desired.elements.values())) <= STAGE_ELEMENTS:
        yield creation(desired)
        return
    yield Transaction(family, (CreateTable(), *(CreateSet(spec) for spec in desired.sets)))
    last: dict[str, Elements] = {}
    for spec in desired.sets:
        elements = desired.elements.get(spec.name)
        if not elements:
            continue
        if spec.verdicts:
            last[spec.name] = elements
            continue
        items = iter(elements.items())
        while portion := dict(itertools.islice(items, STAGE_ELEMENTS)):
            yield Transaction(family, (AddElements(spec.name, portion),))
    yield Transaction(
        family,
        (
            *_put({chain.name: chain for chain in ordered_chains(desired.chains.values())}, frozenset()),
            *(AddElements(name, elements) for name, elements in last.items()),
        ),
    )


def rebuild(desired: Ruleset) -> Transaction:
    """The whole table in place of one that is beyond mending; at no moment there is none."""
    return Transaction(desired.family, (DeleteTable(), *_create(desired)))


def _create(desired: Ruleset) -> Iterator[Operation]:
    yield CreateTable()
    for spec in desired.sets:
        yield CreateSet(spec)
    yield from _put({chain.name: chain for chain in ordered_chains(desired.chains.values())}, frozenset())
    for spec in desired.sets:
        if elements := desired.elements.get(spec.name):
            yield AddElements(spec.name, elements)


def _put(chains: dict[str, Chain], existing: frozenset[str]) -> Iterator[Operation]:
    for chain in chains.values():
        if chain.name in existing:
            yield FlushChain(chain.name)
        else:
            yield CreateChain(chain.name, chain.base)
    for chain in chains.values():
        for rule in chain.rules:
            yield AddRule(chain.name, rule)


def transaction(family: IPFamily, delta: Delta, existing: frozenset[str]) -> Transaction:
    """What brings a table from before a change of rules to after it. existing: the chains that are there."""
    put = {chain.name: chain for chain in ordered_chains(delta.put.values())}
    operations: list[Operation] = list(_put(put, existing))
    operations += [DeleteElements(name, gone) for name, gone in sorted(delta.removed.items()) if gone]
    operations += [AddElements(name, come) for name, come in sorted(delta.added.items()) if come]
    gone_chains = sorted(delta.gone)
    operations += [FlushChain(name) for name in gone_chains]
    operations += [DeleteChain(name) for name in gone_chains]
    return Transaction(family, tuple(operations))


def compare(desired: Ruleset, observed: Observed | None) -> tuple[Transaction, tuple[Change, ...]]:
    """What mends a table that was read back, and in words what was wrong with it; nothing if it is as desired."""
    family = desired.family
    if observed is None:
        return creation(desired), (Change(Verb.CREATE, "table", f"{family} {TABLE}", "there was no table"),)
    if why := _beyond_mending(desired, observed):
        change = Change(Verb.REPLACE, "table", f"{family} {TABLE}", why, disruptive=True)
        return rebuild(desired), (change,)
    delta = Delta()
    changes: list[Change] = []
    for name, chain in sorted(desired.chains.items()):
        found = observed.chains.get(name)
        if found is None:
            changes.append(Change(Verb.CREATE, "chain", f"{family} {name}", "it was missing"))
        elif not found.rules_as_desired:
            changes.append(Change(Verb.MODIFY, "chain", f"{family} {name}", "its rules were different"))
        else:
            continue
        delta.put[name] = chain
    for name in sorted(observed.chains.keys() - desired.chains.keys()):
        delta.gone.append(name)
        changes.append(Change(Verb.DELETE, "chain", f"{family} {name}", "nothing leads to it"))
    for spec in desired.sets:
        if not spec.dynamic:
            changes += _compare_elements(desired, observed, spec, delta)
    return transaction(family, delta, frozenset(observed.chains)), tuple(changes)


def _beyond_mending(desired: Ruleset, observed: Observed) -> str:
    """Why the table must be replaced; "" if it need not be."""
    for spec in desired.sets:
        if spec.name not in observed.sets:
            return f"set {spec.name} was missing"
        if not observed.sets[spec.name]:
            return f"set {spec.name} had another shape"
    for name in sorted(observed.sets.keys() - {spec.name for spec in desired.sets}):
        return f"set {name} is not hansa's"
    for name, found in sorted(observed.chains.items()):
        if not found.base_as_desired:
            return f"chain {name} hung elsewhere"
    for name, chain in sorted(desired.chains.items()):
        if chain.base is None and name not in observed.chains and not is_of_flavours(name):
            return f"chain {name} was missing"
    return ""


def _compare_elements(desired: Ruleset, observed: Observed, spec: SetSpec, delta: Delta) -> list[Change]:
    want = desired.elements.get(spec.name, {})
    have = observed.elements.get(spec.name, {})
    if want is have or want == have:
        return []
    missing = {key: value for key, value in want.items() if key not in have}
    altered = {key: value for key, value in want.items() if key in have and have[key] != value}
    foreign = {key: value for key, value in have.items() if key not in want}
    if come := {**missing, **altered}:
        delta.added[spec.name] = come
    if gone := {**foreign, **{key: have[key] for key in altered}}:
        delta.removed[spec.name] = gone
    why = [f"{len(some)} {word}" for some, word in ((missing, "missing"), (altered, "altered"), (foreign, "foreign"))
           if some]  # fmt: skip
    return [Change(Verb.MODIFY, "elements", f"{desired.family} {spec.name}", ", ".join(why))]
