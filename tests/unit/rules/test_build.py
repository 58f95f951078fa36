"""build_rules(): frontends, actions by origin, and what travels along. Packets are judged by the cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hansa.api.objects import Policy
from hansa.net import IPFamily, Prefix, Protocol, parse_address, parse_prefix
from hansa.rules.build import build_rules
from hansa.rules.model import (
    Because,
    Drop,
    Forward,
    FrontendKey,
    FrontendKind,
    Origin,
    Reject,
    Rule,
    Surroundings,
)
from hansa.rules.surroundings import make_surroundings
from hansa.services.model import Endpoint, Reason, Selection, ServicePort, ServicePortName, ServicePortView
from hansa.testing import CLUSTER_IP, EXTERNAL_IP, NODE_FACTS, VIP, config

L1 = Endpoint(parse_address("10.1.1.11"), 8080, local=True)
R1 = Endpoint(parse_address("10.1.2.21"), 8080)
BOTH = Selection((L1, R1), (L1,), True)
REMOTE = Selection((R1,), (), True)
NONE = Selection((), (), False)
DETECTOR = make_surroundings(NODE_FACTS, config(), ())
NO_DETECTOR = make_surroundings(NODE_FACTS, config(cluster_cidrs=()), ())
LOCAL = {"internal_policy": Policy.LOCAL, "external_policy": Policy.LOCAL}


def service_port(**fields: Any) -> ServicePort:
    given = {
        "name": ServicePortName("d", "web", "http", Protocol.TCP),
        "family": IPFamily.IPV4,
        "port": 80,
        "cluster_ip": CLUSTER_IP,
        "node_port": 30080,
        "external_ips": (EXTERNAL_IP,),
        "load_balancer_vips": (VIP,),
        **fields,
    }
    return ServicePort(**given)


def built(
    selection: Selection = BOTH, surroundings: Surroundings = DETECTOR, *, masquerade_all: bool = False, **fields: Any
) -> dict[FrontendKind, Rule]:
    view = ServicePortView(service_port(**fields), selection)
    rules = build_rules([view], config(masquerade_all=masquerade_all), surroundings)
    found = {rule.kind: rule for rule in rules}
    assert len(found) == len(rules)
    return found


def actions(rule: Rule) -> list[str]:
    """What pods, the node and the outside meet, in short."""
    shown = []
    for origin in Origin:
        match rule.action(origin):
            case Forward(endpoints, masquerade):
                names = {L1: "L1", R1: "R1"}
                shown.append(",".join(names[one] for one in endpoints) + (" masq" if masquerade else ""))
            case Drop():
                shown.append("drop")
            case Reject():
                shown.append("reject")
    return shown


def test_every_frontend_has_a_rule_of_its_own() -> None:
    rules = built(health_check_node_port=32000, affinity_timeout_s=60, preserve_destination=True, created=5.0)
    keys = {kind: rule.key for kind, rule in rules.items()}
    assert keys == {
        FrontendKind.CLUSTER_IP: FrontendKey(IPFamily.IPV4, CLUSTER_IP, Protocol.TCP, 80),
        FrontendKind.EXTERNAL_IP: FrontendKey(IPFamily.IPV4, EXTERNAL_IP, Protocol.TCP, 80),
        FrontendKind.LOAD_BALANCER_IP: FrontendKey(IPFamily.IPV4, VIP, Protocol.TCP, 80),
        FrontendKind.NODE_PORT: FrontendKey(IPFamily.IPV4, None, Protocol.TCP, 30080),
    }
    assert {rule.owner for rule in rules.values()} == {ServicePortName("d", "web", "http", Protocol.TCP)}
    assert {rule.affinity_timeout_s for rule in rules.values()} == {60}
    assert {rule.created for rule in rules.values()} == {5.0}
    assert all(rule.preserve_destination for rule in rules.values())
    ports = {kind: rule.health_check_node_port for kind, rule in rules.items()}
    assert ports == dict.fromkeys(FrontendKind, 0) | {FrontendKind.LOAD_BALANCER_IP: 32000}


def test_a_port_without_external_frontends_has_one_rule() -> None:
    assert list(built(node_port=0, external_ips=(), load_balancer_vips=())) == [FrontendKind.CLUSTER_IP]


def test_nothing_in_nothing_out() -> None:
    assert build_rules((), config(), DETECTOR) == ()


# The three tables of section 11: to the ClusterIP, and to any external frontend; pod, node, outside.
TABLE = [
    ({}, ["L1,R1", "L1,R1 masq", "L1,R1 masq"], ["L1,R1 masq"] * 3),
    ({"external_policy": Policy.LOCAL}, ["L1,R1", "L1,R1 masq", "L1,R1 masq"], ["L1,R1", "L1,R1 masq", "L1"]),
    ({"internal_policy": Policy.LOCAL}, ["L1", "L1 masq", "L1 masq"], ["L1,R1 masq"] * 3),
    (LOCAL, ["L1", "L1 masq", "L1 masq"], ["L1,R1", "L1,R1 masq", "L1"]),
]
TABLE_WITHOUT_DETECTOR = [
    ({}, ["L1,R1"] * 3, ["L1,R1 masq"] * 3),
    ({"external_policy": Policy.LOCAL}, ["L1,R1"] * 3, ["L1", "L1,R1 masq", "L1"]),
    (LOCAL, ["L1"] * 3, ["L1", "L1,R1 masq", "L1"]),
]
EXTERNAL = (FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER_IP, FrontendKind.NODE_PORT)


@pytest.mark.parametrize("policies, internal, external", TABLE)
def test_sets_and_masquerading_with_a_detector(policies: Any, internal: list[str], external: list[str]) -> None:
    """X6 to X8, X10, X11, M2, M4, M5, M8."""
    rules = built(**policies)
    assert actions(rules[FrontendKind.CLUSTER_IP]) == internal
    assert [actions(rules[kind]) for kind in EXTERNAL] == [external] * 3


@pytest.mark.parametrize("policies, internal, external", TABLE_WITHOUT_DETECTOR)
def test_sets_and_masquerading_without_a_detector(policies: Any, internal: list[str], external: list[str]) -> None:
    """X9, M3: pods meet what the outside meets, so that no dataplane has to know of the detector."""
    rules = built(BOTH, NO_DETECTOR, **policies)
    assert actions(rules[FrontendKind.CLUSTER_IP]) == internal
    assert [actions(rules[kind]) for kind in EXTERNAL] == [external] * 3


@pytest.mark.parametrize("surroundings", [DETECTOR, NO_DETECTOR])
@pytest.mark.parametrize("policies", [row[0] for row in TABLE])
def test_masquerade_all_is_about_cluster_ips(surroundings: Surroundings, policies: Any) -> None:
    """M1, M7."""
    rules = built(BOTH, surroundings, masquerade_all=True, **policies)
    plain = built(BOTH, surroundings, **policies)
    assert all(text.endswith("masq") for text in actions(rules[FrontendKind.CLUSTER_IP]))
    assert [actions(rules[kind]) for kind in EXTERNAL] == [actions(plain[kind]) for kind in EXTERNAL]


def test_a_detector_of_one_family_does_not_count_in_the_other() -> None:
    """M3, t136: each family is decided from its own data."""
    surroundings = replace(DETECTOR, pod_prefixes={IPFamily.IPV6: parse_prefix("fd01::/16")})
    assert actions(built(BOTH, surroundings)[FrontendKind.CLUSTER_IP]) == ["L1,R1"] * 3


def test_without_any_endpoint_everybody_is_refused() -> None:
    """R1: whatever the policies."""
    for policies in ({}, LOCAL):
        rules = built(NONE, **policies)
        assert rules.keys() == built().keys()
        for rule in rules.values():
            assert {rule.action(origin) for origin in Origin} == {Reject(Because.NO_ENDPOINTS)}


def test_without_a_local_endpoint_policy_local_is_silent() -> None:
    """R2, R3, X6 to X8."""
    rules = built(REMOTE, **LOCAL)
    assert actions(rules[FrontendKind.CLUSTER_IP]) == ["drop"] * 3
    assert [actions(rules[kind]) for kind in EXTERNAL] == [["R1", "R1 masq", "drop"]] * 3
    assert rules[FrontendKind.NODE_PORT].outside == Drop(Because.NO_LOCAL_ENDPOINTS)


def test_without_a_local_endpoint_and_detector_pods_are_dropped_too() -> None:
    rules = built(REMOTE, NO_DETECTOR, **LOCAL)
    assert actions(rules[FrontendKind.NODE_PORT]) == ["drop", "R1 masq", "drop"]


def test_each_action_says_why() -> None:
    rules = built(BOTH, external_policy=Policy.LOCAL)
    assert rules[FrontendKind.CLUSTER_IP].pod.because is Because.CLUSTER_POLICY
    external = rules[FrontendKind.EXTERNAL_IP]
    assert external.pod.because is Because.SHORT_CIRCUIT
    assert external.node.because is Because.SHORT_CIRCUIT
    assert external.outside.because is Because.LOCAL_POLICY
    assert built(BOTH, **LOCAL)[FrontendKind.CLUSTER_IP].pod.because is Because.LOCAL_POLICY
    assert built()[FrontendKind.NODE_PORT].pod.because is Because.CLUSTER_POLICY


@pytest.mark.parametrize("internal", Policy)
@pytest.mark.parametrize("external", Policy)
def test_local_is_about_the_frontends_own_policy(internal: Policy, external: Policy) -> None:
    rules = built(internal_policy=internal, external_policy=external)
    assert rules[FrontendKind.CLUSTER_IP].local == (internal is Policy.LOCAL)
    assert {rules[kind].local for kind in EXTERNAL} == {external is Policy.LOCAL}


def prefixes(*texts: str) -> tuple[Prefix, ...]:
    return tuple(parse_prefix(text) for text in texts)


def test_source_ranges_are_on_load_balancer_addresses_alone() -> None:
    """F4."""
    ranges = prefixes("198.51.100.0/25")
    rules = built(source_ranges=ranges)
    assert {kind: rule.source_ranges for kind, rule in rules.items()} == {
        FrontendKind.CLUSTER_IP: None,
        FrontendKind.EXTERNAL_IP: None,
        FrontendKind.LOAD_BALANCER_IP: ranges,
        FrontendKind.NODE_PORT: None,
    }


@pytest.mark.parametrize("selection", [BOTH, NONE])
def test_where_the_node_may_enter_its_load_balancer_addresses_may(selection: Selection) -> None:
    """F7, also without endpoints: the filter does not depend on them (R10)."""
    other = parse_address("203.0.113.81")
    ranges = prefixes("192.0.2.0/24")
    view = ServicePortView(service_port(source_ranges=ranges, load_balancer_vips=(VIP, other)), selection)
    rules = build_rules([view], config(), DETECTOR)
    widened = prefixes("192.0.2.0/24", "203.0.113.80/32", "203.0.113.81/32")
    found = [rule.source_ranges for rule in rules if rule.kind is FrontendKind.LOAD_BALANCER_IP]
    assert found == [widened, widened]


@pytest.mark.parametrize("node_ips", [{}, {IPFamily.IPV4: parse_address("192.0.2.100")}])
def test_only_the_nodes_primary_address_widens_source_ranges(node_ips: Any) -> None:
    """F7: a secondary address in the range is not enough, nor is a node whose address is not known."""
    surroundings = make_surroundings(replace(NODE_FACTS, node_ips=node_ips), config(), ())
    ranges = prefixes("192.0.2.0/25")
    expected = prefixes("192.0.2.0/25", "203.0.113.80/32") if node_ips else ranges
    assert built(BOTH, surroundings, source_ranges=ranges)[FrontendKind.LOAD_BALANCER_IP].source_ranges == expected
    narrow = prefixes("192.0.2.1/32")
    assert built(BOTH, surroundings, source_ranges=narrow)[FrontendKind.LOAD_BALANCER_IP].source_ranges == narrow


def test_endpoint_tuples_are_shared_with_the_view() -> None:
    """10,000 Services share their memory with stage 2."""
    for rule in built().values():
        assert isinstance(rule.pod, Forward)
        assert rule.pod.endpoints is BOTH.cluster


def lingering(selection: Selection, **fields: Any) -> dict[FrontendKind, tuple[Endpoint, ...]]:
    name = ServicePortName("d", "dns", "dns", Protocol.UDP)
    return {kind: rule.lingering for kind, rule in built(selection, **{"name": name, **fields}).items()}


def test_flows_may_go_on_to_what_still_serves() -> None:
    """K4: policy, hints and terminating are ignored. K13: ready or serving, never neither."""
    draining = replace(L1, ready=False, terminating=True)
    gone = replace(L1, address=parse_address("10.1.1.13"), ready=False, serving=False, terminating=True)
    unready = replace(L1, address=parse_address("10.1.1.14"), ready=False, serving=False)
    odd = replace(L1, address=parse_address("10.1.1.15"), ready=False, serving=True)
    excluded = (
        (odd, Reason.NOT_READY),
        (draining, Reason.TERMINATING),
        (gone, Reason.NOT_SERVING),
        (unready, Reason.NOT_READY),
    )
    selection = Selection((R1,), None, True, excluded=excluded)
    assert lingering(selection) == dict.fromkeys(FrontendKind, (draining, odd))


def test_flows_may_go_on_to_ready_endpoints_that_a_policy_leaves_out() -> None:
    assert lingering(BOTH) == dict.fromkeys(FrontendKind, ())
    assert lingering(BOTH, internal_policy=Policy.LOCAL)[FrontendKind.CLUSTER_IP] == (R1,)
    hinted_away = Selection((L1,), None, True, excluded=((R1, Reason.OTHER_ZONE),))
    assert lingering(hinted_away) == dict.fromkeys(FrontendKind, (R1,))


def test_nothing_lingers_but_for_udp() -> None:
    """K1: flows of other protocols are never cut, so a rule need not change with what lingers."""
    selection = Selection(
        (R1,), None, True, excluded=((replace(L1, ready=False, terminating=True), Reason.TERMINATING),)
    )
    assert {rule.lingering for rule in built(selection).values()} == {()}
