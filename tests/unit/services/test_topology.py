"""Tables for topology_mode(): section 9, one line per situation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.net import IPFamily, Protocol
from hansa.services.model import NodeFacts, TopologyMode
from hansa.services.slices import Candidate, merge_slices
from hansa.services.topology import in_mode, topology_mode
from hansa.testing import NODE_FACTS, endpoint, endpoint_slice

ALL, SAME_ZONE, SAME_NODE = TopologyMode.ALL, TopologyMode.SAME_ZONE, TopologyMode.SAME_NODE


def candidates(*hints: tuple[str, str]) -> tuple[Candidate, ...]:
    """Ready endpoints 10.1.9.1, .2, ... with (node hints, zone hints), each blank or names with spaces between."""
    entries = [
        endpoint(f"10.1.9.{index}", node_hints=nodes.split(), zone_hints=zones.split())
        for index, (nodes, zones) in enumerate(hints, 1)
    ]
    merged = merge_slices([endpoint_slice("web-a", entries)], family=IPFamily.IPV4, node_name="n1")
    return merged["http", Protocol.TCP]


def kept(hints: tuple[tuple[str, str], ...], node: NodeFacts) -> list[int]:
    """Which of them, counted from 1, stay in the Cluster set."""
    ready = candidates(*hints)
    mode = topology_mode(ready, node)
    return [index for index, one in enumerate(ready, 1) if in_mode(one, mode, node)]


@pytest.mark.parametrize(
    "hints, mode, chosen",
    [
        ((("", "za"), ("", "za"), ("", "zb")), SAME_ZONE, [1, 2]),  # T4, t084
        ((("", "za"), ("", "za"), ("", "")), ALL, [1, 2, 3]),  # T5, T6, t085
        ((("", "zb"), ("", "zb")), ALL, [1, 2]),  # T4, t088
        ((("", "za"), ("", "za zb")), SAME_ZONE, [1, 2]),  # T8, t091
        ((("n1", "za"), ("n2", "za"), ("n3", "zb")), SAME_NODE, [1]),  # T3, t092
        ((("n2", "za"), ("n3", "zb")), SAME_ZONE, [1]),  # T9, t093
        ((("n1", "za"), ("", "za"), ("n3", "zb")), SAME_ZONE, [1, 2]),  # T6 for nodes, t094
        ((("n2", ""), ("n3", "")), ALL, [1, 2]),
        ((("n1", ""), ("n1 n2", ""), ("n3", "")), SAME_NODE, [1, 2]),
        ((("n1", "za"), ("n1", "")), SAME_NODE, [1, 2]),
        ((("", ""),), ALL, [1]),  # T11, t097: no hints
    ],
)
def test_mode(hints: tuple[tuple[str, str], ...], mode: TopologyMode, chosen: list[int]) -> None:
    """T3: every ready endpoint has a node hint and one names this node; T4: the same for zones; T5: else all."""
    assert topology_mode(candidates(*hints), NODE_FACTS) is mode
    assert kept(hints, NODE_FACTS) == chosen


@pytest.mark.parametrize("zone", [None, ""])
def test_node_without_zone(zone: str | None) -> None:
    """T7: no zone label, or an empty one: zone mode is impossible (t086, t087)."""
    hints = (("", "za"), ("", "za"), ("", "zb"))
    assert kept(hints, replace(NODE_FACTS, zone=zone)) == [1, 2, 3]
    blank = [one._replace(zone_hints=frozenset({""})) for one in candidates(("", "za"), ("", "zb"))]
    assert topology_mode(blank, replace(NODE_FACTS, zone=zone)) is ALL


def test_the_zone_of_the_node_decides() -> None:
    """T12: the zone comes from the Node (t098)."""
    assert kept((("", "za"), ("", "za"), ("", "zb")), replace(NODE_FACTS, zone="zb")) == [3]


def test_nothing_ready() -> None:
    """T2: only ready endpoints are examined; without any there is no mode."""
    assert topology_mode((), NODE_FACTS) is ALL
