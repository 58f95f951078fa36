"""Tables for service_ports() and build_view()."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest

import hansa.services
from hansa.api.change import Upsert
from hansa.api.objects import ApiObject, Policy, Service, ServiceKey, ServiceType
from hansa.net import IPFamily, Protocol, parse_address, parse_prefix
from hansa.services.model import ServicePort, ServicePortView
from hansa.services.store import Store
from hansa.services.view import build_view, service_ports
from hansa.testing import (
    CLUSTER_IP,
    EXTERNAL_IP,
    L1,
    L2,
    NODE_FACTS,
    R1,
    VIP,
    WEB,
    WEB_KEY,
    config,
    endpoint,
    endpoint_slice,
    port,
    service,
    slice_port,
)

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
DUAL = ("10.96.0.10", "fd00::10")


def only_port(item: Service, **settings: Any) -> ServicePort:
    (found,) = service_ports(item, config(**settings))
    return found


def view(*objects: ApiObject, key: ServiceKey = WEB_KEY) -> tuple[ServicePortView, ...]:
    store = Store(config())
    for item in objects:
        store.apply(Upsert(item))
    return build_view(store, key, NODE_FACTS, config())


@pytest.mark.parametrize(
    "item, proxy_name, handled",
    [
        (service(), None, True),
        (service(headless=True), None, False),  # S1, t001
        (replace(service(), headless=True), None, False),
        (service(cluster_ips=()), None, False),  # S2, t002
        (service(type="ExternalName"), None, False),  # S3, t003
        (service(proxy_name="other"), None, False),  # S4, t004
        (service(proxy_name=""), None, False),  # S4, t005
        (service(proxy_name="hansa"), "hansa", True),  # S5, t006
        (service(), "hansa", False),  # S5, t007
        (service(proxy_name="other"), "hansa", False),
        (service(ports=()), None, False),  # S7
        (service(load_balancer_vips=[VIP]), None, True),  # S8
    ],
)
def test_which_services_are_handled(item: Service, proxy_name: str | None, handled: bool) -> None:
    """S1-S5, S7."""
    assert bool(service_ports(item, config(proxy_name=proxy_name))) == handled


def test_frontends_come_from_their_fields() -> None:
    """S8: the type itself decides little; nodePort, externalIPs and VIPs are taken whatever the type."""
    item = service(node_port=30080, external_ips=[EXTERNAL_IP], load_balancer_vips=[VIP])
    found = only_port(item)
    assert (found.node_port, found.external_ips, found.load_balancer_vips) == (30080, (EXTERNAL_IP,), (VIP,))
    assert (found.cluster_ip, found.port, str(found.name)) == (CLUSTER_IP, 80, "d/web:http")
    assert found.externally_accessible


def test_names() -> None:
    """P1, P3: printed `ns/svc:name`, without `:name` if the name is empty; TCP and UDP are two keys."""
    item = service("dns", ports=[port("dns", 53, protocol="UDP"), port("dns", 53), port("", 80)])
    found = service_ports(item, config())
    assert [(str(one.name), one.name.protocol) for one in found] == [
        ("d/dns", Protocol.TCP),
        ("d/dns:dns", Protocol.TCP),
        ("d/dns:dns", Protocol.UDP),
    ]


def test_a_changed_number_is_the_same_key() -> None:
    """P2: the port number is not part of the key."""
    before, after = only_port(service()), only_port(service(ports=[port("http", 81)]))
    assert before.name == after.name
    assert before != after


def test_families() -> None:
    """Section 0: one decision per family; S6: no address of the family, no frontend of any kind."""
    item = service(
        cluster_ips=DUAL,
        external_ips=["203.0.113.7", "2001:db8:7::7"],
        load_balancer_vips=["2001:db8:7::80", "203.0.113.80"],
        source_ranges=["2001:db8::/32"],
        node_port=30080,
    )
    v4, v6 = service_ports(item, config())
    assert (v4.family, v6.family) == (V4, V6)
    assert (str(v4.cluster_ip), str(v6.cluster_ip)) == DUAL
    assert (v4.external_ips, v6.external_ips) == ((EXTERNAL_IP,), (parse_address("2001:db8:7::7"),))  # t019
    assert (v4.load_balancer_vips, v6.load_balancer_vips) == ((VIP,), (parse_address("2001:db8:7::80"),))  # A9
    assert v4.source_ranges is None  # F3, t037
    assert v6.source_ranges == (parse_prefix("2001:db8::/32"),)
    assert v4.node_port == v6.node_port == 30080
    assert only_port(replace(item, cluster_ips=(v6.cluster_ip,))).family is V6  # t018


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], None),
        (["198.51.100.0/25"], ["198.51.100.0/25"]),
        (["10.0.0.0/8", "0.0.0.0/0"], None),  # F2, t036
        (["2001:db8::/32"], None),  # F3
        (["10.0.0.0/8", "::/0"], ["10.0.0.0/8"]),
        (["192.0.2.0/24", "10.0.0.0/8", "192.0.2.0/24"], ["10.0.0.0/8", "192.0.2.0/24"]),
    ],
)
def test_source_ranges(given: list[str], expected: list[str] | None) -> None:
    """F2: any /0 of the family means no restriction; F3: no entry of the family, no restriction."""
    found = only_port(service(source_ranges=given)).source_ranges
    assert (None if found is None else [str(one) for one in found]) == expected


def test_external_ips_switched_off() -> None:
    """A5: gate false: no externalIP frontend (t021)."""
    item = service(external_ips=[EXTERNAL_IP], external_policy="Local")
    found = only_port(item, allow_external_ips=False)
    assert (found.external_ips, found.external_policy) == ((), Policy.CLUSTER)
    assert not found.externally_accessible


def test_repeated_addresses_count_once() -> None:
    """Section 20: sets are ordered before output."""
    found = only_port(service(external_ips=["203.0.113.9", "203.0.113.7", "203.0.113.9"]))
    assert [str(one) for one in found.external_ips] == ["203.0.113.7", "203.0.113.9"]


@pytest.mark.parametrize(
    "kind, external_ips, expected",
    [
        ("LoadBalancer", [], Policy.LOCAL),
        ("NodePort", [], Policy.LOCAL),
        ("ClusterIP", [], Policy.CLUSTER),  # t014, t113
        ("ClusterIP", [EXTERNAL_IP], Policy.LOCAL),  # t114
        ("ClusterIP", ["2001:db8:7::7"], Policy.LOCAL),  # any family
    ],
)
def test_external_policy(kind: str, external_ips: list[Any], expected: Policy) -> None:
    """X2: counts only for LoadBalancer, NodePort, or ClusterIP with an externalIP of any family."""
    item = service(type=kind, external_ips=external_ips, external_policy="Local", load_balancer_vips=[VIP])
    assert only_port(item).external_policy is expected


@pytest.mark.parametrize(
    "kind, policy, number, expected",
    [
        ("LoadBalancer", "Local", 32000, 32000),
        ("LoadBalancer", "Cluster", 32000, 0),
        ("LoadBalancer", "Local", 0, 0),
        ("NodePort", "Local", 32000, 0),  # t165
        ("ClusterIP", "Local", 32000, 0),
    ],
)
def test_health_check_node_port(kind: str, policy: str, number: int, expected: int) -> None:
    """H1: exists iff type LoadBalancer and eTP Local and the number is not 0."""
    item = service(type=kind, external_policy=policy, health_check_node_port=number)
    assert only_port(item).health_check_node_port == expected


def test_fields_that_pass_through() -> None:
    """X1, Y2, A12: internal policy, affinity, age, type and the annotation."""
    found = only_port(
        service(type="NodePort", internal_policy="Local", affinity_timeout_s=60, preserve_destination=True, created=7.0)
    )
    assert found.service_type is ServiceType.NODE_PORT
    assert (found.internal_policy, found.affinity_timeout_s) == (Policy.LOCAL, 60)
    assert (found.preserve_destination, found.created) == (True, 7.0)


def test_view_of_the_standing_example() -> None:
    """P8: the join is by key."""
    (found,) = view(WEB, endpoint_slice("web-a", [L1, L2]), endpoint_slice("web-b", [R1]))
    assert [str(one) for one in found.selection.cluster or ()] == ["10.1.1.11:8080", "10.1.1.12:8080", "10.1.2.21:8080"]
    assert found.local_ready == {L1.address, L2.address}


def test_number_of_the_slice() -> None:
    """E7: the number comes from the slice, never from targetPort (t059)."""
    (found,) = view(WEB, endpoint_slice("web-a", [L1], ports=[slice_port("http", 9090)]))
    assert [str(one) for one in found.selection.cluster or ()] == ["10.1.1.11:9090"]


def test_protocol_and_name_join() -> None:
    """E7, t009: TCP 80 `http` with L1, UDP `dns` without endpoints."""
    item = service(ports=[port("http", 80), port("dns", 80, protocol="UDP")])
    dns, http = view(item, endpoint_slice("web-a", [L1], ports=[slice_port("http"), slice_port("dns", 80)]))
    assert (dns.port.name.port, dns.selection.any_usable) == ("dns", False)
    assert (http.port.name.port, http.selection.any_usable) == ("http", True)


def test_families_do_not_help_each_other() -> None:
    """A13: v4 may have endpoints while v6 has none (t015)."""
    v4, v6 = view(service(cluster_ips=DUAL), endpoint_slice("web-a", [L1]))
    assert (v4.selection.any_usable, v6.selection.any_usable) == (True, False)
    v4, v6 = view(service(cluster_ips=DUAL), endpoint_slice("web-a", ["fd01::11"]))
    assert (v4.selection.any_usable, v6.selection.any_usable) == (False, True)


def test_other_services_do_not_matter() -> None:
    """E1: the owner is the label, in the slice's namespace."""
    strangers = [endpoint_slice("web-a", [L1], namespace="e"), endpoint_slice("web-b", [L1], service="api")]
    (found,) = view(WEB, *strangers, endpoint_slice("web-c", [L1], service=None))
    assert not found.selection.any_usable


def test_unknown_service() -> None:
    """E17, t069: slices of an unknown Service make no view."""
    assert view(endpoint_slice("web-a", [L1])) == ()
    assert view(service(headless=True), endpoint_slice("web-a", [L1])) == ()


@pytest.mark.parametrize(
    "entries, count",
    [
        ([L1, L2], 2),  # t156
        ([R1], 0),  # t157
        ([replace(L1, ready=False, terminating=True)], 0),  # H7, t158
        ([endpoint("10.1.1.11", node="n1", ready=False)], 0),
        ([endpoint("10.1.1.11")], 0),
    ],
)
def test_local_ready(entries: list[Any], count: int) -> None:
    """H6: distinct IPs of local endpoints that are ready."""
    (found,) = view(WEB, endpoint_slice("web-a", entries))
    assert len(found.local_ready) == count


def test_local_ready_counts_addresses() -> None:
    """H6: 10.1.1.11:80 and :443 count 1 (t159)."""
    (found,) = view(WEB, endpoint_slice("web-a", [L1], ports=[slice_port("http", 80), slice_port("http", 443)]))
    assert len(found.selection.cluster or ()) == 2
    assert found.local_ready == {L1.address}


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(hansa.services).failed == 0
