"""The notation of cases: what is written means what it says, and what is not understood is an error."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.case_format import (
    CaseError,
    CaseNode,
    Connect,
    Expected,
    GoesOn,
    Wait,
    describe,
    merge,
    read_case,
    read_connection,
    read_expected,
    read_packet_lines,
    read_packets,
    standing_example,
    symbols,
)
from tests.scenarios import GROUPS, LAST, summary

from hansa.api.change import Delete, Malformed, Upsert
from hansa.api.decode import decode_object
from hansa.api.objects import EndpointSlice, Kind, ObjectKey
from hansa.net import Packet, Protocol, parse_address
from hansa.testing import CLUSTER_IP, L1, L2, NODE, NODE_ADDRESSES, R1, R2, VIP, WEB, Client, endpoint_slice

AT_A_LOOK: dict[str, Any] = {"about": "x", "spec": "t000", "packets": ["P -> CIP:80/tcp : {L1,R1} no masq"]}


def test_the_standing_example_is_that_of_hansa_testing() -> None:
    example = standing_example()
    case = read_case("x", {**AT_A_LOOK, "endpoints": ["L1", "L2", "R1", "R2"]})
    assert decode_object(example["service"]).object == WEB
    assert decode_object(example["node"]).object == NODE
    assert case.steps[0].host_addresses == NODE_ADDRESSES
    assert Upsert(endpoint_slice("web-a", [L1, L2, R1, R2])) in case.steps[0].changes
    known = symbols()
    assert [known[name] for name in ("P", "Q", "N", "X", "Y")] == [
        Client.P,
        Client.Q,
        Client.N,
        Client.X,
        Client.Y,
    ]
    assert (known["CIP"], known["VIP"]) == (CLUSTER_IP, VIP)


def test_merging_goes_key_by_key_and_touches_neither() -> None:
    below, above = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2], "e": None}}
    merged = merge(below, above)
    assert merged == {"a": {"b": 1, "c": [2], "e": None}, "d": 1}
    merged["a"]["c"].append(3)
    assert (below["a"]["c"], above["a"]["c"]) == ([1], [2])


def test_a_line_is_as_many_packets_as_sources_times_destinations() -> None:
    lines = list(
        read_packet_lines("P via br0, [fd01::5] -> CIP:80/tcp, [fd00::10]:53/udp, VIP/icmp : reject (so it is)")
    )
    assert len(lines) == 6
    v6 = parse_address("fd01::5")
    assert lines[0].packet == Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80, "br0")
    assert lines[4].packet == Packet(v6, parse_address("fd00::10"), Protocol.UDP, 53)
    assert lines[5].packet == Packet(v6, VIP, Protocol.ICMP, None)
    assert {line.expected.because for line in lines} == {"so it is"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("drop", Expected("drop")),
        ("not handled (nobody's)", Expected("not handled", because="nobody's")),
        ("{L1} masq", Expected("forward", {"10.1.1.11:8080": True})),
        ("{L1 masq,R1 no masq}", Expected("forward", {"10.1.1.11:8080": True, "10.1.2.21:8080": False})),
        ("{10.9.9.9:53}", Expected("forward", {"10.9.9.9:53": None})),
        ("{L6} no masq", Expected("forward", {"[fd01:0:0:1::11]:8080": False})),
        ("{L1}, affinity 60 s (why: so)", Expected("forward", {"10.1.1.11:8080": None}, (60,), "why: so")),
        ("reject, no affinity", Expected("reject", affinity=())),
    ],
)
def test_verdicts(text: str, expected: Expected) -> None:
    assert read_expected(text) == expected


def test_connections() -> None:
    (packet,) = read_packets("P -> CIP:80/tcp")
    ends = frozenset({"10.1.1.11:8080", "10.1.2.21:8080"})
    first, second = "a: P -> CIP:80/tcp : one of {L1,R1}", "P -> CIP:80/tcp : same as a"
    assert read_connection(first) == Connect(first, packet, "a", ends)
    assert read_connection(second) == Connect(second, packet, same_as="a")
    assert read_connection("wait 61 s") == Wait("wait 61 s", 61)
    assert read_connection("a goes on") == GoesOn("a goes on", "a")


@pytest.mark.parametrize(
    "bent",
    [
        {"packets": ["P -> CIP:80/tcp"]},
        {"packets": ["P, CIP:80/tcp : drop"]},
        {"packets": ["P -> CIP:80/tcp : forward"]},
        {"packets": ["P -> CIP:80/tcp : {L1} mask"]},
        {"packets": ["P -> CIP:80/tcp : {L1 masq} no masq"]},
        {"packets": ["P -> CIP:80/tcp : {}"]},
        {"packets": ["P -> NOBODY:80/tcp : drop"]},
        {"packets": ["P -> CIP:80/xtp : drop"]},
        {"packets": ["P -> CIP:80 : drop"]},
        {"connections": ["P -> CIP:80/tcp : {L1}"]},
        {"frontends": ["node:30080"]},
        {"packet": []},
        {"packets": []},
        {"about": None},
        {"endpoints": [{"name": "L1", "condition": "false/true/true"}]},
        {"endpoints": [{"name": "L1", "conditions": "false/true"}]},
        {"endpoints": [{"name": "L1", "conditions": "no/true/true"}]},
        {"endpoints": [{"name": "L3"}]},
        {"slices": [{"name": "a"}, {"name": "a"}]},
        {"steps": [{"delete": ["Pod d/x"]}]},
        {"steps": [{"config": {}}]},
    ],
)
def test_what_is_not_understood_is_an_error(bent: dict[str, Any]) -> None:
    with pytest.raises((CaseError, ValueError, KeyError)):
        read_case("x", {**AT_A_LOOK, **bent})


def test_steps_build_on_each_other() -> None:
    """Services and Nodes merge over what was, slices are all there are, and only what differs is a change."""
    case = read_case(
        "x",
        {
            **AT_A_LOOK,
            "slices": [{"name": "web-a", "endpoints": ["L1"]}, {"name": "web-b", "service": None}],
            "steps": [
                {"slices": [{"name": "web-a", "endpoints": ["L1"]}], "service": {"spec": {"type": "NodePort"}}},
                {"service": {"spec": {"externalIPs": ["203.0.113.9"]}}},
                {"service": "absent", "delete": ["Node n1"]},
                {"service": {"spec": {"clusterIP": "x", "ipFamilies": None}}},
            ],
        },
    )
    start, first, second, third, fourth = (step.changes for step in case.steps)
    pieces = [one.object for one in start if isinstance(one, Upsert) and isinstance(one.object, EndpointSlice)]
    assert [(piece.name, piece.service) for piece in pieces] == [("web-a", "web"), ("web-b", None)]
    assert [one.key for one in first] == [WEB.object_key, ObjectKey(Kind.ENDPOINT_SLICE, "d", "web-b")]
    assert isinstance(first[1], Delete)
    (changed,) = second
    assert isinstance(changed, Upsert)
    assert (changed.object.type.value, str(changed.object.external_ips[0])) == ("NodePort", "203.0.113.9")
    assert third == (Delete(WEB.object_key), Delete(NODE.object_key))
    assert isinstance(fourth[0], Malformed)


def test_a_wrong_expectation_is_noticed() -> None:
    """Each part of a verdict is judged where the case states it."""
    case = read_case("x", AT_A_LOOK)
    node = CaseNode(case.make_config())
    node.take(case.steps[0])
    right = ("{L1,R1} no masq", "{L1,R1}", "{L1 no masq,R1}", "{L1,R1}, no affinity")
    wrong = ("{L1} no masq", "{L1,R1} masq", "{L1,R1,R2}", "{L1,R1}, affinity 60 s", "{L1,R1} (because)", "drop")
    for texts, fits in ((right, True), (wrong, False)):
        for text in texts:
            (line,) = read_packet_lines(f"P -> CIP:80/tcp : {text}")
            verdict, affinity = node.decide(line.packet), node.affinity(line.packet)
            assert (describe(verdict, line.packet, like=line.expected, affinity=affinity) == line.expected) is fits


# The summary


def test_the_groups_are_all_scenarios_without_gap() -> None:
    bounds = list(GROUPS.values())
    assert (bounds[0][0], bounds[-1][1]) == (1, LAST)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(bounds))


def test_the_summary_names_what_is_still_to_come() -> None:
    ran = [f"t{number:03}" for number in range(1, 192) if number not in (3, 5, 6, 160, 191)]
    lines = list(summary([*ran, "A12"], {"t147": "memory", "t148": "memory", "t150": "memory"}, {"t191"}))
    assert lines == [
        "service-semantics scenarios: 186 of 191 run; still to come: t003, t005-t006 (handling and identity), "
        "t160 (health-check node port)",
        "  without memory: t147-t148, t150",
        "  failing: t191",
    ]


def test_a_complete_summary_is_one_line() -> None:
    ran = [f"t{number:03}" for number in range(1, 192)]
    assert list(summary(ran, {}, ())) == ["service-semantics scenarios: 191 of 191 run"]
