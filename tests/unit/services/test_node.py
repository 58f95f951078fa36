"""Tables for node_facts()."""

from __future__ import annotations

import pytest

from hansa.net import IPFamily, parse_address, parse_prefix
from hansa.services.node import node_facts, node_name
from hansa.testing import NODE, NODE_ADDRESSES, NODE_FACTS, config, node

V4, V6 = IPFamily.IPV4, IPFamily.IPV6


@pytest.mark.parametrize(
    "addresses, bind, v4, v6",
    [
        (["192.0.2.1", "2001:db8::1"], [], "192.0.2.1", "2001:db8::1"),
        (["2001:db8::1", "192.0.2.1", "192.0.2.100"], [], "192.0.2.1", "2001:db8::1"),  # first of the other family
        (["192.0.2.1"], [], "192.0.2.1", None),
        (["192.0.2.1"], ["192.0.2.100"], "192.0.2.100", None),
        (["192.0.2.1", "2001:db8::1"], ["192.0.2.100"], "192.0.2.100", "2001:db8::1"),
        (["192.0.2.1"], ["0.0.0.0", "::"], "192.0.2.1", None),
        ([], ["0.0.0.0"], None, None),
        (["127.0.0.1", "::1"], [], None, None),  # never loopback
        ([], [], None, None),
        ([], ["2001:db8::5"], None, "2001:db8::5"),
    ],
)
def test_node_ips(addresses: list[str], bind: list[str], v4: str | None, v6: str | None) -> None:
    """I6: the first is primary, plus the first of the other family; bindAddress replaces it; loopback never counts."""
    settings = config(bind_addresses=tuple(parse_address(text) for text in bind))
    found = node_facts(node(addresses=addresses), settings, frozenset())
    expected = {family: parse_address(text) for family, text in ((V4, v4), (V6, v6)) if text}
    assert found.node_ips == expected
    assert found.addresses == frozenset(expected.values())


def test_standing_example() -> None:
    """Section 0: node n1, zone za, primary and secondary addresses."""
    assert node_facts(NODE, config(), NODE_ADDRESSES) == NODE_FACTS


def test_unknown_node() -> None:
    """I2: without a Node object the machine's own addresses are known all the same, its node IPs are not."""
    host = frozenset({parse_address("192.0.2.1"), parse_address("127.0.0.1"), parse_address("::1")})
    found = node_facts(None, config(), host)
    assert found.name == "n1"
    assert found.addresses == {parse_address("192.0.2.1")}
    assert (found.node_ips, found.zone, found.pod_cidrs) == ({}, None, {})


def test_empty_zone_is_none() -> None:
    """T7: the zone label may be empty."""
    assert node_facts(node(zone=""), config(), frozenset()).zone is None


def test_pod_cidrs() -> None:
    """Section 11: at most one CIDR per family is used, the first."""
    found = node_facts(node(pod_cidrs=["10.1.1.0/24", "fd01::/64", "10.1.2.0/24"]), config(), frozenset())
    assert found.pod_cidrs == {V4: parse_prefix("10.1.1.0/24"), V6: parse_prefix("fd01::/64")}


def test_node_name() -> None:
    """I5: trimmed, lower-cased."""
    assert node_name(config(node_name=" N1 ")) == "n1"
    assert node_facts(None, config(node_name=" N1 "), frozenset()).name == "n1"
