"""One suite for both hosts of tables: the memory refuses what the kernel refuses, and describes what it describes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from tests.case_format import CaseNode, all_cases
from tests.host.linux.namespaces import missing, namespace

from hansa.dataplanes.nftables import plan as planning
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.apply import KernelRuleset, RulesetHost
from hansa.dataplanes.nftables.frame import PICKS, REFUSE_NUMBER, SETS
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.dataplanes.nftables.objects import (
    FIRST_DRAWN,
    ChainRule,
    Dispatch,
    Do,
    Go,
    Labelled,
    Ruleset,
    Selector,
    Target,
    Value,
    pack_number,
    pack_port,
    pack_protocol,
)
from hansa.dataplanes.nftables.plan import (
    AddElements,
    AddRule,
    CreateChain,
    CreateSet,
    DeleteChain,
    DeleteElements,
    DeleteTable,
    FlushChain,
    Operation,
    Refused,
    Transaction,
)
from hansa.dataplanes.nftables.render import render
from hansa.net import IPFamily, Protocol, parse_address

WHY_NOT = missing()
V4 = IPFamily.IPV4
FRONTEND = parse_address("10.96.0.10").packed + pack_protocol(Protocol.TCP) + pack_port(80)
REFUSE, NEW_PICK = pack_number(REFUSE_NUMBER), pack_number(0x5000_0001)
OTHER = parse_address("10.96.0.99").packed + pack_protocol(Protocol.TCP) + pack_port(80)


def table_of(name: str, family: IPFamily = V4) -> Ruleset:
    case = next(case for case in all_cases() if case.name == name)
    node = CaseNode(case.make_config())
    for step in case.steps:
        node.take(step)
    return render([one for one in node.rules.values() if one.key.family is family], node.surroundings, family)[0]


@pytest.fixture(
    params=[
        "memory",
        pytest.param(
            "kernel", marks=[pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]
        ),
    ]
)
def host(request: pytest.FixtureRequest) -> Iterator[RulesetHost]:
    """An empty host."""
    if request.param == "memory":
        yield MemoryRuleset()
        return
    with namespace("conformance") as space:
        kernel = space.call(KernelRuleset)
        try:
            yield kernel
        finally:
            kernel.close()


def commit(host: RulesetHost, *operations: Operation) -> None:
    host.commit(Transaction(V4, operations))


def refusal(host: RulesetHost, *operations: Operation) -> int:
    """The errno of a refusal; nothing may have changed by it."""
    before = host.read(V4)
    with pytest.raises(Refused) as caught:
        commit(host, *operations)
    assert host.read(V4) == before
    return caught.value.code


@pytest.mark.parametrize("name", ["t015", "t029", "t042", "t046", "t104", "t134", "t148", "t149"])
def test_a_table_is_described_as_it_was_loaded(host: RulesetHost, name: str) -> None:
    for family in IPFamily:
        table = table_of(name, family)
        host.commit(planning.creation(table))
        found = host.read(family)
        assert found is not None
        wanted = wire.describe(table)
        assert found.elements == wanted.elements
        assert found.sets == wanted.sets
        assert found.chains == wanted.chains
        assert not planning.compare(table, wire.judge(found, table))[0]


def test_no_table_is_none(host: RulesetHost) -> None:
    assert host.read(V4) is None
    host.commit(planning.creation(table_of("t125")))
    assert host.read(IPFamily.IPV6) is None
    commit(host, DeleteTable())
    assert host.read(V4) is None


def test_every_transaction_raises_the_generation_by_one(host: RulesetHost) -> None:
    before = host.generation()
    host.commit(planning.creation(table_of("t125")))
    commit(host, DeleteElements("services", {FRONTEND: b""}))
    assert host.generation() == before + 2
    refusal(host, DeleteElements("services", {FRONTEND: b""}))
    assert host.generation() == before + 2


def test_a_table_is_replaced_in_one_transaction(host: RulesetHost) -> None:
    host.commit(planning.creation(table_of("t125")))
    table = table_of("t148")
    before = host.generation()
    host.commit(planning.rebuild(table))
    assert host.generation() == before + 1
    found = host.read(V4)
    assert found is not None
    assert found.elements == wire.describe(table).elements


REFUSALS: dict[str, tuple[int, tuple[Operation, ...]]] = {
    "element that is not there": (errno.ENOENT, (DeleteElements("services", {OTHER: b""}),)),
    "element with other data": (errno.EEXIST, (AddElements("services", {FRONTEND: Labelled(pack_number(9), "")}),)),
    "element with another verdict": (errno.EEXIST, (AddElements(PICKS, {REFUSE: Target(Do.DROP)}),)),
    "verdict to no chain": (errno.ENOENT, (AddElements(PICKS, {NEW_PICK: Target(Do.GOTO, "nowhere")}),)),
    "verdict to a base chain": (errno.EOPNOTSUPP, (AddElements(PICKS, {NEW_PICK: Target(Do.GOTO, "output")}),)),
    "rule to no chain": (errno.ENOENT, (AddRule("refuse", ChainRule((Go(Do.JUMP, "nowhere"),))),)),
    "rule in no chain": (errno.ENOENT, (AddRule("nowhere", ChainRule((Go(Do.DROP),))),)),
    "rule with no map": (errno.ENOENT, (AddRule("refuse", ChainRule((Dispatch((Selector.PORT,), "none"),))),)),
    "chain that is there": (errno.EEXIST, (CreateChain("refuse", None),)),
    "chain in use": (errno.EBUSY, (FlushChain("dispatch"), DeleteChain("dispatch"))),
    "chain in use by an element": (errno.EBUSY, (DeleteChain("pick-masquerade-node-outside-2"),)),
    "no such chain": (errno.ENOENT, (DeleteChain("nowhere"),)),
    "the good with the bad": (
        errno.ENOENT,
        (CreateChain("new", None), DeleteElements("services", {FRONTEND: b""}), DeleteChain("nowhere")),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(host: RulesetHost, name: str) -> None:
    code, operations = REFUSALS[name]
    host.commit(planning.creation(table_of("t125")))
    assert refusal(host, *operations) == code


def test_a_set_that_is_there_is_refused(host: RulesetHost) -> None:
    table = table_of("t125")
    host.commit(planning.creation(table))
    assert refusal(host, CreateSet(table.sets[0])) == errno.EEXIST


def test_ranges_may_not_overlap(host: RulesetHost) -> None:
    host.commit(planning.creation(table_of("t029")))
    vip = parse_address("203.0.113.80").packed + pack_protocol(Protocol.TCP) + pack_port(80)

    def ranges(first: str, last: str) -> dict[bytes, Value]:
        return {vip + parse_address(first).packed + vip + parse_address(last).packed: b""}

    assert refusal(host, AddElements("permitted-sources", ranges("198.51.100.64", "198.51.101.9"))) == errno.EEXIST
    commit(host, AddElements("permitted-sources", ranges("198.52.0.0", "198.52.255.255")))
    # The wide one may come in the transaction in which the narrow one goes.
    commit(
        host,
        DeleteElements("permitted-sources", ranges("198.52.0.0", "198.52.255.255")),
        AddElements("permitted-sources", ranges("198.52.0.0", "198.53.255.255")),
    )


def test_an_element_may_be_exchanged_in_one_transaction(host: RulesetHost) -> None:
    table = table_of("t125")
    host.commit(planning.creation(table))
    key = FRONTEND + pack_number(FIRST_DRAWN)
    other = parse_address("10.1.9.9").packed + pack_port(99)
    commit(host, DeleteElements("slots", {key: b""}), AddElements("slots", {key: other}))
    found = host.read(V4)
    assert found is not None
    assert found.elements["slots"][key] == other


def test_the_same_element_again_is_no_change(host: RulesetHost) -> None:
    table = table_of("t125")
    host.commit(planning.creation(table))
    commit(host, AddElements("slots", dict(table.elements["slots"])))
    found = host.read(V4)
    assert found is not None
    assert found.elements["slots"] == table.elements["slots"]


def test_a_refusal_names_the_object(host: RulesetHost) -> None:
    host.commit(planning.creation(table_of("t125")))
    with pytest.raises(Refused, match=r"delete in services.*ENOENT"):
        commit(host, DeleteElements("services", {OTHER: b""}))


def test_many_elements_go_in_one_transaction(host: RulesetHost) -> None:
    """More than fit one message: 70,000 map elements, 3,000 with the longest comments."""
    table = table_of("t125")
    slots = {
        FRONTEND + pack_number(number): parse_address("10.1.9.9").packed + pack_port(80) for number in range(70000)
    }
    targets: dict[bytes, Value] = {
        parse_address("10.96.0.10").packed + pack_protocol(Protocol.UDP) + pack_port(port): Labelled(
            REFUSE, f"{port:05}" + "x" * 122
        )
        for port in range(3000)
    }
    big = replace_elements(table, {"slots": slots, "services": targets})
    host.commit(planning.creation(big))
    found = host.read(V4)
    assert found is not None
    assert found.elements["slots"] == slots
    assert found.elements["services"] == targets


def replace_elements(table: Ruleset, elements: dict[str, dict[bytes, Value]]) -> Ruleset:
    return replace(table, elements={**table.elements, **elements})


def test_elements_are_asked_for_by_their_keys(host: RulesetHost) -> None:
    """Of every sort, more than fit one question; one that is missing, or other data or comment, shows."""
    table = table_of("t029")
    slots: dict[bytes, Value] = {
        FRONTEND + pack_number(number): parse_address("10.1.9.9").packed + pack_port(80) for number in range(1200)
    }
    table = replace_elements(table, {"slots": slots})
    host.commit(planning.creation(table))
    filled = 0
    for spec in SETS:
        elements = table.elements.get(spec.name, {})
        if spec.dynamic or not elements:
            continue
        filled += 1
        assert host.holds(V4, spec, elements), spec.name
        assert host.read_elements(V4, spec) == elements
        absent = bytes(len(next(iter(elements))))
        value = next(iter(elements.values()))
        assert not host.holds(V4, spec, {**elements, absent: value}), spec.name
        key, held = list(elements.items())[-1]
        match held:
            case Labelled(data, comment):
                others: list[Value] = [Labelled(data, comment + "!"), Labelled(bytes(4), comment)]
            case Target():
                others = [Target(Do.ACCEPT), Target(Do.GOTO, "output")]
            case _:
                others = [bytes(len(held))] if held else []
        for other in others:
            assert not host.holds(V4, spec, {**elements, key: other}), (spec.name, other)
    assert filled >= 5
    assert host.holds(V4, SETS[0], {})


def test_sets_may_be_counted_instead_of_listed(host: RulesetHost) -> None:
    """Linux tells sizes from 6.16 on; before that everything is listed."""
    table = table_of("t125")
    host.commit(planning.creation(table))
    found = host.read(V4, counted=["slots", "hairpins"], above=1)
    assert found is not None
    sizes = {name: len(elements) for name, elements in table.elements.items()}
    assert found.counts in ({name: sizes[name] for name in ("slots", "hairpins") if sizes[name] > 1}, {})
    assert found.elements == {name: held for name, held in table.elements.items() if name not in found.counts}
    assert found.sizes == sizes


@pytest.mark.host
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")
def test_what_packets_have_written_is_not_counted() -> None:
    """A check of sizes holds them against the rules, which say nothing of the clients that are remembered."""
    table = table_of("t125")
    with namespace("conformance") as space, closing(space.call(KernelRuleset)) as kernel:
        kernel.commit(planning.creation(table))
        space.nft("add element ip hansa affinity { 1:0 . 10.1.1.9 timeout 100s : 1:1 }")
        found = kernel.read(V4, counted=[spec.name for spec in SETS])
    assert found is not None
    assert found.sizes == {name: len(elements) for name, elements in table.elements.items()}
