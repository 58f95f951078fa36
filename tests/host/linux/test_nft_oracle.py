"""The nft program as the second opinion: what our netlink loads is what `nft -f` loads from our text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.case_format import Case, CaseNode, all_cases
from tests.host.linux.namespaces import Namespace, missing, namespace

from hansa.dataplanes.nftables import plan as planning
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.apply import KernelRuleset
from hansa.dataplanes.nftables.objects import Ruleset, nft_family, write
from hansa.dataplanes.nftables.render import render
from hansa.net import IPFamily

WHY_NOT = missing()
pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]

# One case per sort of element, chain and detector; the others differ in addresses only.
NAMES = (
    "a12", "n11", "t015", "t016", "t029", "t037", "t042", "t044", "t046", "t060", "t095", "t104", "t108", "t112",
    "t120", "t128", "t129", "t134", "t135", "t136", "t140", "t144", "t148", "t149", "t153",
)  # fmt: skip
CASES = [pytest.param(case, id=case.name) for case in all_cases() if case.name in NAMES]


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Namespace, Namespace]]:
    with namespace("netlink") as ours, namespace("nft") as theirs:
        yield ours, theirs


def tables_of(case: Case) -> Iterator[Ruleset]:
    node = CaseNode(case.make_config())
    for step in case.steps:
        node.take(step)
    for family in IPFamily:
        rules = [rule for rule in node.rules.values() if rule.key.family is family]
        yield render(rules, node.surroundings, family)[0]


def listing(space: Namespace, family: IPFamily) -> list[str]:
    """What `nft -j list table` says, in an order that does not depend on hashes or handles."""
    found = json.loads(space.nft("-j", "list", "table", nft_family(family), "hansa"))["nftables"]
    return [json.dumps(_plain(item), sort_keys=True) for item in found if "metainfo" not in item]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        plain = {key: _plain(one) for key, one in value.items() if key != "handle"}
        if "elem" in plain and isinstance(plain["elem"], list):
            plain["elem"] = sorted(plain["elem"], key=lambda one: json.dumps(one, sort_keys=True))
        return plain
    return [_plain(one) for one in value] if isinstance(value, list) else value


def rules_as_text(space: Namespace, family: IPFamily) -> list[str]:
    """The rules in nft's words; its JSON leaves out the statements that write maps. Elements are hidden by `-t`."""
    return space.nft("-t", "list", "table", nft_family(family), "hansa").splitlines()


def check_expressions(ours: wire.Found, theirs: wire.Found) -> None:
    """Expression by expression; only nft's byteorder of one byte, which does nothing, is not ours as well."""
    for name, rules in ours.rules.items():
        other = [tuple(one for one in rule.expressions if one.name != "byteorder") for rule in theirs.rules[name]]
        assert [rule.expressions for rule in rules] == other, name


@pytest.mark.parametrize("case", CASES)
def test_netlink_and_text_load_the_same(two: tuple[Namespace, Namespace], case: Case) -> None:
    ours, theirs = two
    for space in two:
        space.nft("flush", "ruleset")
    host = ours.call(KernelRuleset)
    reader = theirs.call(KernelRuleset)
    try:
        for table in tables_of(case):
            host.commit(planning.creation(table))
            theirs.nft("-f", "-", stdin=write(table))
            assert listing(ours, table.family) == listing(theirs, table.family)
            assert rules_as_text(ours, table.family) == rules_as_text(theirs, table.family)
            found, theirs_found = host.read(table.family), reader.read(table.family)
            assert found is not None
            assert theirs_found is not None
            step, changes = planning.compare(table, wire.judge(found, table))
            assert not step, changes
            assert theirs_found.sets == found.sets
            assert theirs_found.elements == found.elements
            assert theirs_found.chains == found.chains
            check_expressions(found, theirs_found)
    finally:
        host.close()
        reader.close()


@pytest.mark.parametrize("case", CASES[:6])
def test_what_nft_lists_can_be_loaded_again(two: tuple[Namespace, Namespace], case: Case) -> None:
    """`nft list ruleset > file` and `nft -f file` is how people save a firewall: our tables must not break that."""
    ours, theirs = two
    for space in two:
        space.nft("flush", "ruleset")
    host = ours.call(KernelRuleset)
    try:
        for table in tables_of(case):
            host.commit(planning.creation(table))
        saved = ours.nft("list", "ruleset")
        theirs.nft("-f", "-", stdin=saved)
        assert theirs.nft("-t", "list", "ruleset") == ours.nft("-t", "list", "ruleset")
        theirs.nft("-f", "-", stdin="flush ruleset\n" + saved)
        for table in tables_of(case):
            ours.nft("-f", "-", stdin=write(table))  # over what netlink loaded
    finally:
        host.close()
