"""decide(): where a packet comes from, what it aims at, and what is left where it aims at nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hansa.api.objects import ServiceKey
from hansa.config import DetectLocalMode
from hansa.net import IPFamily, Packet, Protocol, parse_address, parse_prefix
from hansa.rules.decide import decide, masqueraded, matching_rule, origin_of
from hansa.rules.model import (
    Because,
    Drop,
    Forward,
    FrontendKey,
    FrontendKind,
    NotHandled,
    Origin,
    Reject,
    Rule,
    Surroundings,
)
from hansa.rules.ruleset import RuleSet
from hansa.rules.surroundings import make_surroundings
from hansa.services.model import Endpoint, ServicePortName
from hansa.testing import CLUSTER_IP, NODE_FACTS, NODE_IP, SERVICE_RANGE, Client, config

L1 = Endpoint(parse_address("10.1.1.11"), 8080, local=True)
SURROUNDINGS = make_surroundings(NODE_FACTS, config(), (SERVICE_RANGE,))


def packet(source: Any, target: Any, port: int | None = 80, **fields: Any) -> Packet:
    ends = [parse_address(end) if isinstance(end, str) else end for end in (source, target)]
    return Packet(*ends, fields.pop("protocol", Protocol.TCP), port, **fields)


def forward(because: Because) -> Forward:
    return Forward((L1,), False, because)


def rule(kind: FrontendKind, address: Any, port: int, **fields: Any) -> Rule:
    """Every origin meets another action, so that verdicts tell who was taken for whom."""
    return Rule(
        kind=kind,
        key=FrontendKey(IPFamily.IPV4, address, Protocol.TCP, port),
        owner=ServicePortName("d", "web", f"{kind.value}-{port}", Protocol.TCP),
        pod=forward(Because.SHORT_CIRCUIT),
        node=forward(Because.CLUSTER_POLICY),
        outside=forward(Because.LOCAL_POLICY),
        **fields,
    )


def holding(*rules: Rule) -> RuleSet:
    held = RuleSet()
    held.replace(ServiceKey("d", "web"), rules)
    return held


BRIDGE = {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "bridge_interface": "br0", "cluster_cidrs": ()}
PREFIX = {
    "detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX,
    "interface_name_prefix": "veth",
    "cluster_cidrs": (),
}


@pytest.mark.parametrize(
    "fields, source, interface, origin",
    [
        ({}, Client.P, None, Origin.POD),
        ({}, Client.Q, None, Origin.POD),  # X12
        ({}, Client.N, None, Origin.NODE),
        ({}, "192.0.2.100", None, Origin.NODE),  # any address of the machine
        ({}, "127.0.0.1", None, Origin.NODE),
        ({}, Client.X, None, Origin.OUTSIDE),
        ({}, Client.X, "br0", Origin.OUTSIDE),
        ({"cluster_cidrs": ()}, Client.P, None, Origin.OUTSIDE),  # X9
        ({"cluster_cidrs": (parse_prefix("fd01::/16"),)}, Client.P, None, Origin.OUTSIDE),
        ({"detect_local_mode": DetectLocalMode.NODE_CIDR}, Client.P, None, Origin.POD),
        ({"detect_local_mode": DetectLocalMode.NODE_CIDR}, Client.Q, None, Origin.OUTSIDE),
        (BRIDGE, Client.X, "br0", Origin.POD),
        (BRIDGE, Client.P, "br01", Origin.OUTSIDE),
        (BRIDGE, Client.P, None, Origin.OUTSIDE),
        (BRIDGE, Client.N, None, Origin.NODE),
        (PREFIX, Client.P, "veth12", Origin.POD),
        (PREFIX, Client.P, "eth0", Origin.OUTSIDE),
        (PREFIX, Client.P, "", Origin.OUTSIDE),
    ],
)
def test_where_a_packet_comes_from(fields: Any, source: Any, interface: str | None, origin: Origin) -> None:
    surroundings = make_surroundings(NODE_FACTS, config(**fields), ())
    assert origin_of(surroundings, packet(source, CLUSTER_IP, interface=interface)) is origin


def test_an_own_address_in_the_pod_range_counts_as_a_pod() -> None:
    """X6 comes before X7: a bridge of pods has such an address."""
    bridge = parse_address("10.1.1.1")
    node = replace(NODE_FACTS, addresses=NODE_FACTS.addresses | {bridge})
    surroundings = make_surroundings(node, config(), ())
    assert origin_of(surroundings, packet(bridge, CLUSTER_IP)) is Origin.POD


def test_an_address_goes_before_the_node_port_behind_it() -> None:
    """The same number at one of this node's addresses: what names the address is more exact."""
    external = rule(FrontendKind.EXTERNAL_IP, NODE_IP, 30080)
    node_port = rule(FrontendKind.NODE_PORT, None, 30080)
    rules = holding(external, node_port)
    assert matching_rule(rules, SURROUNDINGS, packet(Client.X, NODE_IP, 30080)) == external
    everywhere = replace(SURROUNDINGS, node_port_addresses={})
    assert matching_rule(rules, everywhere, packet(Client.X, "192.0.2.100", 30080)) == node_port


@pytest.mark.parametrize(
    "target, port, protocol, because",
    [
        (CLUSTER_IP, 80, Protocol.TCP, Because.LOCAL_POLICY),
        (CLUSTER_IP, 80, Protocol.UDP, Because.UNUSED_PORT),
        (CLUSTER_IP, 81, Protocol.TCP, Because.UNUSED_PORT),
        (CLUSTER_IP, None, Protocol.ICMP, Because.UNUSED_PORT),
        ("10.96.77.77", 80, Protocol.TCP, Because.UNALLOCATED_IP),
        ("10.96.77.77", None, Protocol.ICMP, Because.UNALLOCATED_IP),
        ("10.97.0.1", 80, Protocol.TCP, Because.NO_FRONTEND),
        (NODE_IP, 30080, Protocol.TCP, Because.LOCAL_POLICY),
        (NODE_IP, 30080, Protocol.UDP, Because.NO_FRONTEND),
        (NODE_IP, 30081, Protocol.TCP, Because.NO_FRONTEND),  # R8
        (NODE_IP, None, Protocol.ICMP, Because.NO_FRONTEND),
        (CLUSTER_IP, 30080, Protocol.TCP, Because.UNUSED_PORT),  # no address of this node
        ("192.0.2.100", 30080, Protocol.TCP, Because.NO_FRONTEND),  # default nodePortAddresses: primary
        ("2001:db8::1", 30080, Protocol.TCP, Because.NO_FRONTEND),  # the other family
    ],
)
def test_what_is_left_where_no_frontend_is(target: Any, port: int | None, protocol: Protocol, because: Because) -> None:
    """R5 to R8."""
    rules = holding(rule(FrontendKind.CLUSTER_IP, CLUSTER_IP, 80), rule(FrontendKind.NODE_PORT, None, 30080))
    source = Client.X if parse_address(str(target)).version == 4 else "2001:db8:9::99"
    verdict = decide(rules, SURROUNDINGS, packet(source, target, port, protocol=protocol))
    kinds = {Because.UNUSED_PORT: Reject, Because.UNALLOCATED_IP: Drop, Because.NO_FRONTEND: NotHandled}
    assert (type(verdict), verdict.because) == (kinds.get(because, Forward), because)


def test_under_an_own_proxy_name_nothing_is_guarded() -> None:
    rules = holding(rule(FrontendKind.CLUSTER_IP, CLUSTER_IP, 80))
    surroundings = replace(SURROUNDINGS, guard_cluster_ips=False)
    for target, port in ((CLUSTER_IP, 81), ("10.96.77.77", 80)):
        assert decide(rules, surroundings, packet(Client.P, target, port)) == NotHandled()


def test_source_ranges_go_before_the_action_and_short_circuit() -> None:
    """F5, F6: for every origin."""
    ranged = rule(FrontendKind.LOAD_BALANCER_IP, CLUSTER_IP, 80, source_ranges=(parse_prefix("198.51.100.99/32"),))
    rules = holding(ranged)
    assert decide(rules, SURROUNDINGS, packet(Client.X, CLUSTER_IP)) == ranged.outside
    for source in (Client.P, Client.N, Client.Y):
        assert decide(rules, SURROUNDINGS, packet(source, CLUSTER_IP)) == Drop(Because.SOURCE_RANGE)


def test_no_source_range_at_all_admits_nobody() -> None:
    """() is a restriction that nobody meets; None is none."""
    closed = rule(FrontendKind.LOAD_BALANCER_IP, CLUSTER_IP, 80, source_ranges=())
    assert decide(holding(closed), SURROUNDINGS, packet(Client.X, CLUSTER_IP)) == Drop(Because.SOURCE_RANGE)


@pytest.mark.parametrize(
    "asked, source, target, served",
    [
        (True, Client.N, "127.0.0.1", True),
        (True, "127.0.0.1", "127.0.0.1", True),
        (True, "127.0.0.1", "127.1.2.3", True),
        (True, Client.X, "127.0.0.1", False),
        (True, Client.P, "127.0.0.1", False),
        (False, Client.N, "127.0.0.1", False),
        (True, "::1", "::1", False),
    ],
)
def test_node_ports_on_loopback(asked: bool, source: Any, target: str, served: bool) -> None:
    """N10, N11: to this node alone, and as it asks: short-circuited and masqueraded."""
    surroundings: Surroundings = replace(SURROUNDINGS, localhost_node_ports=asked, node_port_addresses={})
    node_port = rule(FrontendKind.NODE_PORT, None, 30080)
    v6 = replace(node_port, key=node_port.key._replace(family=IPFamily.IPV6))
    verdict = decide(holding(node_port, v6), surroundings, packet(source, target, 30080))
    assert verdict == (node_port.node if served else NotHandled())


@pytest.mark.parametrize(
    "rewrites, source, expected", [(True, Client.X, True), (False, Client.X, False), (False, L1.address, True)]
)
def test_a_hairpin_is_always_masqueraded(rewrites: bool, source: Any, expected: bool) -> None:
    """M6."""
    verdict = Forward((L1,), rewrites, Because.LOCAL_POLICY)
    assert masqueraded(verdict, packet(source, CLUSTER_IP), L1) is expected
