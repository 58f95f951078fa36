"""make_surroundings(): detectors, accepted node port addresses, the guard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hansa.config import DetectLocalMode, NodePortAddresses
from hansa.net import IPFamily, parse_address, parse_prefix
from hansa.rules.model import Surroundings
from hansa.rules.surroundings import detects_pods, make_surroundings
from hansa.testing import CLUSTER_POD_RANGE, NODE_FACTS, POD_RANGE, SERVICE_RANGE, config

V4, V6 = IPFamily.IPV4, IPFamily.IPV6


def made(node: Any = NODE_FACTS, **fields: Any) -> Surroundings:
    return make_surroundings(node, config(**fields), ())


@pytest.mark.parametrize(
    "fields, families",
    [
        ({}, {V4}),
        ({"cluster_cidrs": ()}, set()),
        ({"cluster_cidrs": (CLUSTER_POD_RANGE, parse_prefix("fd01::/16"))}, {V4, V6}),
        ({"detect_local_mode": DetectLocalMode.NODE_CIDR}, {V4}),
        ({"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "bridge_interface": "br0"}, {V4, V6}),
        ({"detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX, "interface_name_prefix": "veth"}, {V4, V6}),
    ],
)
def test_where_a_detector_is_implemented(fields: dict[str, Any], families: set[IPFamily]) -> None:
    """Section 11's table of modes."""
    surroundings = made(**fields)
    assert {family for family in IPFamily if detects_pods(surroundings, family)} == families


def test_a_detector_takes_only_its_own_input() -> None:
    node_mode = made(detect_local_mode=DetectLocalMode.NODE_CIDR)
    assert node_mode.pod_prefixes == {V4: POD_RANGE}
    assert made().pod_prefixes == {V4: CLUSTER_POD_RANGE}
    names = {"bridge_interface": "br0", "interface_name_prefix": "veth"}
    bridge = made(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, **names)
    prefix = made(detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, **names)
    assert (bridge.pod_interface, bridge.pod_interface_prefix, bridge.pod_prefixes) == ("br0", "", {})
    assert (prefix.pod_interface, prefix.pod_interface_prefix, prefix.pod_prefixes) == ("", "veth", {})


def test_a_node_without_pod_cidr_has_no_detector_yet() -> None:
    node = replace(NODE_FACTS, pod_cidrs={})
    assert not detects_pods(made(node, detect_local_mode=DetectLocalMode.NODE_CIDR), V4)


ALL = None
N1, N100, N6 = (parse_address(text) for text in ("192.0.2.1", "192.0.2.100", "2001:db8::1"))


def cidrs(*texts: str) -> NodePortAddresses:
    return NodePortAddresses(primary=False, prefixes=tuple(parse_prefix(text) for text in texts))


@pytest.mark.parametrize(
    "accepted, v4, v6",
    [
        (NodePortAddresses(), {N1}, {N6}),  # N12
        (cidrs(), ALL, ALL),  # N4
        (cidrs("192.0.2.0/24"), {N1, N100}, ALL),  # N5
        (cidrs("192.0.2.0/25"), {N1, N100}, ALL),  # N7
        (cidrs("192.0.2.64/26"), {N100}, ALL),
        (cidrs("192.0.2.64/26", "192.0.2.1/32", "2001:db8::/64"), {N1, N100}, {N6}),
        (cidrs("192.0.2.64/26", "0.0.0.0/0"), ALL, ALL),  # N6
        (cidrs("198.51.100.0/24", "fd00::/8"), set(), set()),
    ],
)
def test_which_addresses_serve_node_ports(accepted: NodePortAddresses, v4: Any, v6: Any) -> None:
    expected = {V4: v4 if v4 is ALL else frozenset(v4), V6: v6 if v6 is ALL else frozenset(v6)}
    assert made(node_port_addresses=accepted).node_port_addresses == expected


def test_primary_of_a_family_without_node_address_accepts_all() -> None:
    """N8, N5."""
    assert made(replace(NODE_FACTS, node_ips={V4: N1})).node_port_addresses == {V4: frozenset({N1}), V6: ALL}


@pytest.mark.parametrize(
    "accepted, loopback",
    [
        (cidrs(), True),
        (cidrs("0.0.0.0/0"), True),
        (cidrs("127.0.0.0/8"), True),
        (cidrs("192.0.2.0/24", "127.0.0.1/32"), True),
        (cidrs("2001:db8::/64"), True),  # no CIDR of IPv4: all of it
        (cidrs("192.0.2.0/24"), False),
        (NodePortAddresses(), False),
    ],
)
def test_node_ports_on_loopback_need_asking_and_acceptance(accepted: NodePortAddresses, loopback: bool) -> None:
    """N11."""
    assert made(node_port_addresses=accepted, localhost_node_ports=True).localhost_node_ports is loopback
    assert made(node_port_addresses=accepted).localhost_node_ports is False


@pytest.mark.parametrize("name, guard", [(None, True), ("hansa", False), ("", False)])
def test_the_guard_is_off_under_an_own_proxy_name(name: str | None, guard: bool) -> None:
    """R6, S5."""
    assert made(proxy_name=name).guard_cluster_ips is guard


def test_service_ranges_travel_along() -> None:
    assert make_surroundings(NODE_FACTS, config(), [SERVICE_RANGE]).service_cidrs == (SERVICE_RANGE,)
