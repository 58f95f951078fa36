"""The text of tables: golden files per case, reviewed like code; and the bytes of one transaction."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.case_format import CaseNode, all_cases

from hansa.dataplanes.nftables import plan as planning
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.frame import SETS
from hansa.dataplanes.nftables.objects import (
    MAX_COMMENT_BYTES,
    Labelled,
    Part,
    Ruleset,
    SetSpec,
    Target,
    nft_family,
    pack_number,
    write,
    write_key,
    write_part,
)
from hansa.dataplanes.nftables.render import render
from hansa.net import IPFamily
from hansa.netlink import codec
from hansa.netlink import nftables as nf

GOLDEN = Path(__file__).parents[2] / "golden" / "nftables"
# One case per sort of element and chain.
NAMES = ("t015", "t029", "t042", "t046", "t104", "t108", "t135", "t144", "t148")


def tables_of(name: str) -> list[Ruleset]:
    case = next(case for case in all_cases() if case.name == name)
    node = CaseNode(case.make_config())
    for step in case.steps:
        node.take(step)
    rules = node.rules.values()
    return [
        render([rule for rule in rules if rule.key.family is family], node.surroundings, family)[0]
        for family in IPFamily
    ]


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    about = next(case for case in all_cases() if case.name == name).about
    text = f"# {name}: {about}\n" + "\n".join(write(table) for table in tables_of(name))
    path = GOLDEN / f"{name}.nft"
    if request.config.getoption("--golden", default=False):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "make golden, and read the difference"


@pytest.mark.parametrize("name", ["t148"])
def test_golden_messages(name: str, request: pytest.FixtureRequest) -> None:
    """What is sent, one line per message: its kind and its bytes. The host tests hold them against nft's own."""
    specs = {spec.name: spec for spec in SETS}
    lines = []
    for table in tables_of(name):
        batch = wire.encode_transaction(planning.creation(table), specs, 1)
        for one in codec.messages(batch.data):
            lines.append(f"{one.type:04x} {one.flags:04x} {batch.named.get(one.sequence, 'end')}: {one.payload.hex()}")
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.messages"
    if request.config.getoption("--golden", default=False):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "make golden, and read the difference"


@pytest.mark.parametrize("name", NAMES)
def test_elements_come_back(name: str) -> None:
    """encode and decode are inverse for every set and every element of the cases."""
    for table in tables_of(name):
        for spec in table.sets:
            elements = table.elements.get(spec.name, {})
            found = {}
            for portion, _ in wire.encode_elements(spec, elements, table.family):
                payload = nf.set_elements(2, "hansa", spec.name, portion)
                found.update(wire.decode_elements(spec, payload, table.family))
            assert found == elements, spec.name


@pytest.mark.parametrize("name", NAMES)
def test_a_described_table_is_as_desired(name: str) -> None:
    for table in tables_of(name):
        step, changes = planning.compare(table, wire.judge(wire.describe(table), table))
        assert not step, changes


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        ("10.0.0.0", "10.255.255.255", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"),
    ],
)
def test_ranges_are_written_as_people_write_them(first: str, last: str, text: str) -> None:
    spec = SetSpec("ranges", (Part.PORT, Part.ADDRESS), interval=True)
    key = b"".join(b"\0\x50\0\0" + bytes(map(int, end.split("."))) for end in (first, last))
    assert write_key(spec, key, IPFamily.IPV4) == f"80 . {text}"


def test_numbers_of_affinity_are_written_as_classes() -> None:
    assert write_part(Part.CLASS, pack_number(0x1F00A)) == "1:f00a"


def test_a_protocol_without_a_name_is_a_number() -> None:
    assert write_part(Part.PROTOCOL, b"\x32\0\0\0") == "50"


def test_messages_stay_below_what_an_attribute_holds() -> None:
    """The longest comments and the widest keys."""
    comment = "x" * MAX_COMMENT_BYTES
    services = {number.to_bytes(24, "big"): Labelled(pack_number(7), comment) for number in range(400)}
    picks = {pack_number(number): Target(wire.Do.GOTO, "pick-" + "x" * 90) for number in range(400)}
    ranges = {number.to_bytes(80, "big"): b"" for number in range(1200)}
    specs = {spec.name: spec for spec in SETS}
    for name, elements in (("services", services), ("picks", picks), ("permitted-sources", ranges)):
        for portion, _ in wire.encode_elements(specs[name], elements, IPFamily.IPV6):
            assert len(nf.set_elements(10, "hansa", name, portion)) <= codec.MAX_ATTRIBUTE_BYTES


@pytest.mark.parametrize("family", IPFamily)
def test_nft_knows_the_families_by_other_names(family: IPFamily) -> None:
    assert nft_family(family) in ("ip", "ip6")
    assert write(Ruleset(family, ())).startswith(f"table {nft_family(family)} hansa\n")
