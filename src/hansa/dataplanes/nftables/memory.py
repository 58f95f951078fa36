"""Tables in memory: `RulesetHost` without a kernel, with nf_tables' refusals.

For tests, for `trace` and for hosts that are not Linux. A transaction works on a copy and is thrown away whole if one
operation is refused. What the packet path writes (`affinity`) is not kept here.
Evidence: the conformance tests, which run the same transactions against the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import assert_never

from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.objects import (
    TABLE,
    Chain,
    Dispatch,
    Do,
    Elements,
    Forget,
    Go,
    InSet,
    Labelled,
    LookUpPriority,
    Remember,
    Ruleset,
    SetSpec,
    Statement,
    Target,
    Translate,
    Value,
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
    Operation,
    Refused,
    Transaction,
)
from hansa.net import IPFamily


class MemoryRuleset:
    """The tables of one pretended network namespace.

    tables: by family, as they are; tests may alter them as another program would, and call `foreign_write`.
    refuse: the numbers (from 1) of transactions to refuse for no reason, for tests of what then happens.
    """

    def __init__(self) -> None:
        self.tables: dict[IPFamily, Ruleset] = {}
        self.refuse: set[int] = set()
        self.commits = 0
        self.localhost_routed = False
        self._generation = 1
        self._touched = set(IPFamily)

    def touched_by_others(self) -> frozenset[IPFamily]:
        touched, self._touched = frozenset(self._touched), set()
        return touched

    def generation(self) -> int:
        return self._generation

    def foreign_write(self) -> None:
        """Someone else committed a transaction about these tables."""
        self._generation += 1
        self._touched = set(IPFamily)

    def read(self, family: IPFamily, *, counted: Collection[str] = (), above: int = 0) -> wire.Found | None:
        table = self.tables.get(family)
        if table is None:
            return None
        found = wire.describe(table)
        for name in counted:
            if len(found.elements.get(name, ())) > above:
                found.counts[name] = len(found.elements.pop(name))
        return found

    def read_elements(self, family: IPFamily, spec: SetSpec) -> dict[bytes, Value]:
        table = self.tables.get(family)
        return {} if table is None else dict(table.elements.get(spec.name, {}))

    def holds(self, family: IPFamily, spec: SetSpec, elements: Elements) -> bool:
        held = self.read_elements(family, spec)
        return all(held.get(key) == value for key, value in elements.items())

    def commit(self, transaction: Transaction) -> None:
        self.commits += 1
        if self.commits in self.refuse:
            raise Refused("ENOMEM: refused on request", errno.ENOMEM)
        family = transaction.family
        before = self.tables.get(family)
        table = None if before is None else _copy(before)
        for operation in transaction.operations:
            table = _perform(operation, table, family)
        if table is None:
            self.tables.pop(family, None)
        else:
            self.tables[family] = table
        self._generation += 1

    def route_localhost(self, *, allowed: bool) -> None:
        self.localhost_routed = allowed

    def close(self) -> None:
        """Nothing is held."""


def _copy(table: Ruleset) -> Ruleset:
    elements = {name: dict(found) for name, found in table.elements.items()}
    return Ruleset(table.family, table.sets, dict(table.chains), elements)


def _refusal(code: int, what: str) -> Refused:
    return Refused(f"{what}: {errno.errorcode[code]}", code)


def _perform(operation: Operation, table: Ruleset | None, family: IPFamily) -> Ruleset | None:
    if isinstance(operation, CreateTable):
        return table or Ruleset(family, ())
    if table is None:
        raise _refusal(errno.ENOENT, f"table {TABLE}")
    match operation:
        case DeleteTable():
            return None
        case CreateSet(spec):
            if any(one.name == spec.name for one in table.sets):
                raise _refusal(errno.EEXIST, f"create set {spec.name}")
            table.sets = (*table.sets, spec)
            if not spec.dynamic:
                table.elements[spec.name] = {}
        case CreateChain(name, base):
            if name in table.chains:
                raise _refusal(errno.EEXIST, f"create chain {name}")
            table.chains[name] = Chain(name, (), base)
        case FlushChain(name):
            table.chains[name] = replace(_chain(table, name), rules=())
        case AddRule(name, rule):
            chain = _chain(table, name)
            for statement in rule.statements:
                _check_statement(table, statement)
            table.chains[name] = replace(chain, rules=(*chain.rules, rule))
        case DeleteChain(name):
            _chain(table, name)
            if any(user != name for user in _users(table, name)):
                raise _refusal(errno.EBUSY, f"delete chain {name}")
            del table.chains[name]
        case DeleteElements(name, elements):
            _delete_elements(table, name, dict(elements))
        case AddElements(name, elements):
            _add_elements(table, name, dict(elements))
        case _:
            assert_never(operation)
    return table


def _chain(table: Ruleset, name: str) -> Chain:
    if name not in table.chains:
        raise _refusal(errno.ENOENT, f"chain {name}")
    return table.chains[name]


def _set(table: Ruleset, name: str) -> SetSpec:
    for spec in table.sets:
        if spec.name == name:
            return spec
    raise _refusal(errno.ENOENT, f"set {name}")


def _check_statement(table: Ruleset, statement: Statement) -> None:
    match statement:
        case Go(do, chain):
            _check_target(table, do, chain)
        case InSet(_, name):
            _set(table, name)
        case LookUpPriority(_, name) | Remember(_, name) | Forget(_, name) | Translate(_, name) | Dispatch(_, name):
            if _set(table, name).data is None:
                raise _refusal(errno.EINVAL, f"{name} is no map")
        case _:
            return


def _check_target(table: Ruleset, do: Do, chain: str) -> None:
    if do in (Do.GOTO, Do.JUMP) and _chain(table, chain).base is not None:
        raise _refusal(errno.EOPNOTSUPP, f"{do.name.lower()} to base chain {chain}")


def _users(table: Ruleset, name: str) -> Iterator[str]:
    """Who leads to a chain: names of chains and maps."""
    for chain in table.chains.values():
        for rule in chain.rules:
            if any(isinstance(one, Go) and one.chain == name for one in rule.statements):
                yield chain.name
    for set_name, elements in table.elements.items():
        if any(isinstance(value, Target) and value.chain == name for value in elements.values()):
            yield f"map {set_name}"


def _delete_elements(table: Ruleset, name: str, elements: dict[bytes, Value]) -> None:
    _set(table, name)
    held = table.elements[name]
    for key in elements:
        if key not in held:
            raise _refusal(errno.ENOENT, f"delete in {name}")
        del held[key]


def _add_elements(table: Ruleset, name: str, elements: dict[bytes, Value]) -> None:
    spec = _set(table, name)
    held = table.elements[name]
    for key, value in elements.items():
        if isinstance(value, Target):
            _check_target(table, value.do, value.chain)
        if spec.interval and key not in held:
            _check_overlap(spec, table.family, held, key)
        before = held.get(key)
        if before is not None and _meaning(before) != _meaning(value):
            raise _refusal(errno.EEXIST, f"add in {name}")
        held.setdefault(key, value)


def _meaning(value: Value) -> object:
    """What the kernel compares: the data, not the comment."""
    match value:
        case Target():
            return (value.do, value.chain)
        case Labelled():
            return value.data
        case _:
            return value


def _check_overlap(spec: SetSpec, family: IPFamily, held: dict[bytes, Value], key: bytes) -> None:
    width = spec.key_bytes(family)
    first, last = key[:width], key[width:]
    for other in held:
        # A new range that encloses an old one whole is not noticed, by the kernel either.
        if any(other[:width] <= end <= other[width:] for end in (first, last)):
            raise _refusal(errno.EEXIST, f"add in {spec.name}")
