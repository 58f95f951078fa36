"""Tables for hansa.api.decode: what a manifest means, and every fault by its field."""

from __future__ import annotations

import doctest
import json
from typing import Any

import msgspec
import pytest

import hansa.api
import hansa.testing
from hansa.api.change import Upsert
from hansa.api.decode import decode, decode_object, object_key, raw_key
from hansa.api.objects import EndpointSlice, Kind, Node, ObjectKey, Policy, Service, ServiceCIDR, ServiceType
from hansa.errors import MalformedObject
from hansa.net import IPFamily, Protocol, parse_address, parse_prefix
from hansa.testing import (
    L1,
    endpoint,
    manifest_endpoint_slice,
    manifest_node,
    manifest_service,
    manifest_service_cidr,
    slice_port,
)


def read(tree: dict[str, Any]) -> Upsert:
    """By both ways; they must agree."""
    change = decode_object(tree)
    assert decode(Kind(tree["kind"]), json.dumps(tree).encode()) == change
    return change


def read_service(**spec: Any) -> Service:
    """The default Service with some fields of its spec replaced; None removes one."""
    found = read(service_tree(**spec)).object
    assert isinstance(found, Service)
    return found


def service_tree(**spec: Any) -> dict[str, Any]:
    tree = manifest_service()
    tree["spec"].update(spec)
    tree["spec"] = {name: value for name, value in tree["spec"].items() if value is not None}
    return tree


def read_slice(tree: dict[str, Any]) -> EndpointSlice:
    found = read(tree).object
    assert isinstance(found, EndpointSlice)
    return found


def faults_of(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(MalformedObject) as caught:
        decode_object(tree)
    with pytest.raises(MalformedObject) as caught_fast:
        decode(Kind(tree["kind"]), json.dumps(tree).encode())
    assert caught.value.faults == caught_fast.value.faults
    return [fault.field for fault in caught.value.faults]


def skipped_of(tree: dict[str, Any]) -> list[str]:
    return [fault.field for fault in read(tree).skipped]


def texts(values: Any) -> list[str]:
    return [str(value) for value in values]


# Service: addresses


@pytest.mark.parametrize(
    "families, cluster_ips, cluster_ip, expected",
    [
        (["IPv4", "IPv6"], ["10.96.0.10", "fd00::10"], "10.96.0.10", ["10.96.0.10", "fd00::10"]),  # A1
        (["IPv6", "IPv4"], ["fd00::10", "10.96.0.10"], "fd00::10", ["fd00::10", "10.96.0.10"]),  # A1, t016
        (None, ["10.96.0.10"], "10.96.0.10", ["10.96.0.10"]),  # A2
        ([], None, "fd00::10", ["fd00::10"]),  # A2, t017
        (["IPv4", "IPv6"], ["10.96.0.10"], "10.96.0.10", ["10.96.0.10"]),  # A3
        (["IPv4"], None, "10.96.0.10", ["10.96.0.10"]),  # clusterIPs left out
        (["IPv4"], ["10.96.000.010"], "10.96.000.010", ["10.96.0.10"]),  # A11, t026
        (["IPv4"], ["::ffff:10.96.0.10"], "::ffff:10.96.0.10", ["10.96.0.10"]),  # A11
        (["IPv4", "IPv4"], ["10.96.0.10", "10.96.0.11"], "10.96.0.10", ["10.96.0.10"]),
        (["IPv4"], ["10.96.0.10"], "", []),  # S2
        (["IPv4"], ["10.96.0.10"], None, []),  # S2
    ],
)
def test_cluster_ips(families: Any, cluster_ips: Any, cluster_ip: Any, expected: list[str]) -> None:
    """A1: the position of the family in `ipFamilies` indexes `clusterIPs`."""
    found = read_service(ipFamilies=families, clusterIPs=cluster_ips, clusterIP=cluster_ip)
    assert texts(found.cluster_ips) == expected
    assert not found.headless


def test_headless() -> None:
    """S1: `clusterIP: None` is headless."""
    found = read_service(clusterIP="None", clusterIPs=["None"])
    assert found.headless
    assert found.cluster_ips == ()


def test_an_address_of_the_other_family_is_skipped() -> None:
    """A1: an address that is not of the family at its position serves neither."""
    tree = service_tree(ipFamilies=["IPv6"], clusterIPs=["10.96.0.10"])
    assert skipped_of(tree) == ["spec.clusterIPs[0]"]
    assert read_service(ipFamilies=["IPv6"], clusterIPs=["10.96.0.10"]).cluster_ips == ()


def test_external_ips() -> None:
    """A4: unparsable entries are logged and skipped, blank ones skipped silently."""
    tree = service_tree(externalIPs=["203.0.113.7", "", None, " ", "x", "2001:db8:7::7"])
    assert skipped_of(tree) == ["spec.externalIPs[4]"]
    assert texts(read(tree).object.external_ips) == ["203.0.113.7", "2001:db8:7::7"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "entry, expected",
    [
        ({"ip": "203.0.113.80"}, ["203.0.113.80"]),  # A6, t022
        ({"ip": "203.0.113.80", "ipMode": "VIP"}, ["203.0.113.80"]),  # A6, t023
        ({"ip": "203.0.113.80", "ipMode": "Proxy"}, []),  # A7, t024
        ({"ip": "203.0.113.80", "ipMode": "Other"}, []),
        ({"hostname": "lb.example"}, []),  # A7, t025
        ({"ip": ""}, []),
        ({"ip": "203.0.113.80", "ports": [{"port": 443}]}, ["203.0.113.80"]),  # A8
        ({"ip": "2001:db8:7::80"}, ["2001:db8:7::80"]),  # A9
        (None, []),
    ],
)
def test_load_balancer_vips(entry: Any, expected: list[str]) -> None:
    """A6: an ingress entry with an `ip` whose `ipMode` is nil or VIP is a VIP."""
    tree = service_tree(loadBalancerIP="203.0.113.9")  # A10: a request, never a frontend
    tree["status"] = {"loadBalancer": {"ingress": [entry]}}
    found = read(tree)
    assert texts(found.object.load_balancer_vips) == expected  # type: ignore[union-attr]
    assert not found.skipped


def test_an_unreadable_vip_is_skipped() -> None:
    """A4: one bad entry never takes the others along."""
    tree = service_tree()
    tree["status"] = {"loadBalancer": {"ingress": [{"ip": "x"}, {"ip": "203.0.113.80"}]}}
    assert skipped_of(tree) == ["status.loadBalancer.ingress[0].ip"]
    assert texts(read(tree).object.load_balancer_vips) == ["203.0.113.80"]  # type: ignore[union-attr]


def test_source_ranges() -> None:
    """F1: entries are trimmed; unparsable ones are logged and ignored."""
    tree = service_tree(loadBalancerSourceRanges=[" 10.2.0.0/16", "x", "2001:db8::/32", "10.0.0.1", "10.3.0.1/16"])
    assert skipped_of(tree) == ["spec.loadBalancerSourceRanges[1]", "spec.loadBalancerSourceRanges[3]"]
    found = read(tree).object
    assert texts(found.source_ranges) == ["10.2.0.0/16", "2001:db8::/32", "10.3.0.0/16"]  # type: ignore[union-attr]


# Service: the rest


@pytest.mark.parametrize(
    "given, expected", [(None, "ClusterIP"), ("", "ClusterIP"), ("NodePort", "NodePort"), ("ExternalName",) * 2]
)
def test_type(given: str | None, expected: str) -> None:
    """S8: an absent type is ClusterIP."""
    assert read_service(type=given).type is ServiceType(expected)


@pytest.mark.parametrize(
    "given, expected", [(None, "Cluster"), ("Local", "Local"), ("Foo", "Cluster"), ("local", "Cluster")]
)
def test_policies(given: str | None, expected: str) -> None:
    """X1, X5: nil is Cluster, unknown policy strings count as Cluster."""
    found = read_service(internalTrafficPolicy=given, externalTrafficPolicy=given)
    assert found.internal_policy is Policy(expected)
    assert found.external_policy is Policy(expected)


@pytest.mark.parametrize(
    "spec, expected",
    [
        ({"sessionAffinity": None}, None),
        ({"sessionAffinity": "None"}, None),
        ({"sessionAffinity": ""}, None),
        ({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, None),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": None}}}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, 60),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, 86400),
    ],
)
def test_affinity(spec: dict[str, Any], expected: int | None) -> None:
    """Y2: timeout 1..86400, default 10800; nil must become 10800."""
    assert read_service(**spec).affinity_timeout_s == expected


@pytest.mark.parametrize("seconds", [0, -1, 86401])
def test_affinity_out_of_range(seconds: int) -> None:
    """Y2: 1..86400."""
    config = {"clientIP": {"timeoutSeconds": seconds}}
    tree = service_tree(sessionAffinity="ClientIP", sessionAffinityConfig=config)
    assert faults_of(tree) == ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"]


@pytest.mark.parametrize(
    "labels, expected",
    [
        (None, None),
        ({}, None),
        ({"app": "web"}, None),
        ({"service.kubernetes.io/service-proxy-name": "other"}, "other"),
        ({"service.kubernetes.io/service-proxy-name": ""}, ""),
        ({"service.kubernetes.io/service-proxy-name": None}, ""),
    ],
)
def test_proxy_name(labels: dict[str, Any] | None, expected: str | None) -> None:
    """S4: the label counts when present, with any value, also ""."""
    tree = manifest_service()
    tree["metadata"]["labels"] = labels
    assert read(tree).object.proxy_name == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("value, expected", [("true", True), ("True", False), ("1", False), ("", False), (None, False)])
def test_preserve_destination(value: str | None, expected: bool) -> None:
    """preserve-destination: exactly `true`."""
    tree = manifest_service()
    tree["metadata"]["annotations"] = {"preserve-destination": value}
    assert read(tree).object.preserve_destination is expected  # type: ignore[union-attr]


def test_ports() -> None:
    """P3, P4: the same name may exist for TCP and UDP; a missing protocol means TCP."""
    found = read_service(
        ports=[
            {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
            {"name": "dns", "port": 53, "targetPort": "dns"},
            {"port": 65535, "protocol": "SCTP", "nodePort": None, "targetPort": 9},
        ]
    )
    assert [(one.name, one.protocol, one.port, one.node_port, one.target_port) for one in found.ports] == [
        ("dns", Protocol.UDP, 53, 30053, None),
        ("dns", Protocol.TCP, 53, 0, "dns"),
        ("", Protocol.SCTP, 65535, 0, 9),
    ]


def test_no_ports() -> None:
    """S7: `ports` empty gives nothing, and is no fault."""
    assert read_service(ports=[]).ports == ()
    assert read_service(ports=None).ports == ()


def test_health_check_node_port() -> None:
    """H1: a missing number is logged, not fatal."""
    lacking = service_tree(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=None)
    assert skipped_of(lacking) == ["spec.healthCheckNodePort"]
    assert skipped_of(service_tree(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=32000)) == []
    assert skipped_of(service_tree(type="LoadBalancer", healthCheckNodePort=None)) == []
    assert read_service(healthCheckNodePort=32000).health_check_node_port == 32000


def test_metadata() -> None:
    """A12: creationTimestamp decides who is older; the uid travels along but is not compared."""
    tree = manifest_service(uid="u1", created=1767323045.0)
    assert tree["metadata"]["creationTimestamp"] == "2026-01-02T03:04:05Z"
    found = read(tree).object
    assert isinstance(found, Service)
    assert (found.created, found.uid) == (1767323045.0, "u1")
    tree["metadata"]["uid"] = "u2"
    tree["metadata"]["resourceVersion"] = "7"
    assert read(tree).object == found


def test_a_manifest_without_a_namespace_is_in_default() -> None:
    """Manifests may leave the namespace out."""
    tree = manifest_service()
    del tree["metadata"]["namespace"]
    assert read(tree).key == ObjectKey(Kind.SERVICE, "default", "web")
    assert object_key(tree) == ObjectKey(Kind.SERVICE, "default", "web")


# EndpointSlice


@pytest.mark.parametrize(
    "labels, expected",
    [
        ({"kubernetes.io/service-name": "web"}, "web"),
        ({"kubernetes.io/service-name": ""}, None),
        ({"kubernetes.io/service-name": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_owner(labels: dict[str, Any] | None, expected: str | None) -> None:
    """E1: missing or empty label, no owner."""
    tree = manifest_endpoint_slice("web-a", [L1])
    tree["metadata"]["labels"] = labels
    assert read_slice(tree).service == expected


def test_fqdn() -> None:
    """E2: FQDN is ignored, with a word."""
    tree = manifest_endpoint_slice("web-a", [L1])
    tree["addressType"] = "FQDN"
    tree["endpoints"][0]["addresses"] = ["pod.example"]
    found = read_slice(tree)
    assert (found.family, found.endpoints) == (None, ())
    assert skipped_of(tree) == ["addressType"]


def test_slice_ports() -> None:
    """E4, E5, E6: nil name and nil or 0 port are skipped, "" is a name, nil protocol is TCP."""
    tree = manifest_endpoint_slice()
    tree["ports"] = [
        {"name": None, "port": 8080},
        {"port": 8080},
        {"name": "", "port": 8080},
        {"name": "http", "port": None, "protocol": "TCP"},
        {"name": "http", "port": 0},
        {"name": "http", "port": 9090, "protocol": None},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    assert read_slice(tree).ports == (
        slice_port("", 8080),
        slice_port("http", 9090),
        slice_port("dns", 53, protocol="UDP"),
    )
    assert skipped_of(tree) == ["ports[0].name", "ports[1].name", "ports[3].port", "ports[4].port"]


def test_addresses() -> None:
    """E9, A11: only the first address is used, an empty list skips the endpoint; canonical forms."""
    tree = manifest_endpoint_slice("web-a", [L1] * 7)
    given: list[Any] = [
        ["10.1.1.11", "10.1.1.99"],
        [],
        None,
        ["x"],
        ["::ffff:10.1.1.12"],
        ["fd01::11"],
        ["010.1.1.013"],
    ]
    for entry, addresses in zip(tree["endpoints"], given, strict=True):
        entry["addresses"] = addresses
    assert texts(one.address for one in read_slice(tree).endpoints) == ["10.1.1.11", "10.1.1.12", "10.1.1.13"]
    assert skipped_of(tree) == [
        "endpoints[1].addresses",
        "endpoints[2].addresses",
        "endpoints[3].addresses[0]",
        "endpoints[5].addresses[0]",
    ]


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, (True, True, False)),  # t070
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),  # C2: independent of ready
        ({"ready": False, "terminating": True}, (False, True, True)),  # t077
        ({"ready": True, "serving": False, "terminating": True}, (True, False, True)),
        ({"ready": False, "serving": False, "terminating": False}, (False, False, False)),
    ],
)
def test_conditions(given: Any, expected: tuple[bool, bool, bool]) -> None:
    """C1, C2, C3: ready nil = true, serving nil = true, terminating nil = false."""
    tree = manifest_endpoint_slice("web-a", [L1])
    tree["endpoints"][0]["conditions"] = given
    found = read_slice(tree).endpoints[0]
    assert (found.ready, found.serving, found.terminating) == expected


def test_hints_and_node() -> None:
    """T8: an endpoint may carry several hints; blank ones are none; nodeName "" is unset."""
    tree = manifest_endpoint_slice("web-a", [L1, L1])
    hints = {"forZones": [{"name": "za"}, {"name": "zb"}, {"name": ""}, None], "forNodes": [{"name": "n1"}]}
    tree["endpoints"][0].update(hints=hints, nodeName="")
    tree["endpoints"][1].update(hints={"forZones": None}, nodeName="N1")
    first, second = read_slice(tree).endpoints
    assert first == endpoint("10.1.1.11", zone_hints=["za", "zb"], node_hints=["n1"])
    assert second == endpoint("10.1.1.11", node="N1")


def test_nothing_but_null() -> None:
    """Go writes empty lists as null."""
    tree = manifest_endpoint_slice()
    tree.update(ports=None, endpoints=None)
    assert (read_slice(tree).ports, read_slice(tree).endpoints) == ((), ())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1970-01-01T00:00:10.5Z", 10.5),
        ("1970-01-01T01:00:00.000000001+01:00", 0.0),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_trigger_time(text: str | None, expected: float | None) -> None:
    """O3: absent or unparsable gives no time, and is no fault."""
    tree = manifest_endpoint_slice()
    tree["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert read_slice(tree).trigger_time == expected


def test_equal_values_are_shared() -> None:
    """Memory: the node names and hints of a cluster are few."""
    entries = [endpoint(f"10.1.1.{last}", node="n1", zone_hints=["za"]) for last in (1, 2)]
    first, second = read_slice(manifest_endpoint_slice("web-a", entries)).endpoints
    assert first.zone_hints is second.zone_hints
    assert first.node_hints is second.node_hints
    assert first.node_name is second.node_name


# Node and ServiceCIDR


def test_node() -> None:
    """I6: all InternalIP addresses before all ExternalIP ones."""
    tree = manifest_node(taint_keys=["ToBeDeletedByClusterAutoscaler"], deleting=True)
    tree["status"]["addresses"] = [
        {"type": "ExternalIP", "address": "198.51.100.1"},
        {"type": "Hostname", "address": "n1"},
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "InternalIP", "address": "odd"},
        {"type": "InternalIP", "address": "2001:db8::1"},
    ]
    change = read(tree)
    found = change.object
    assert isinstance(found, Node)
    assert texts(found.addresses) == ["192.0.2.1", "2001:db8::1", "198.51.100.1"]
    assert (found.zone, found.deleting) == ("za", True)
    assert found.taint_keys == {"ToBeDeletedByClusterAutoscaler"}
    assert [fault.field for fault in change.skipped] == ["status.addresses[3].address"]


@pytest.mark.parametrize(
    "spec, expected, skipped",
    [
        ({"podCIDRs": ["10.1.1.0/24", "fd01::/64"], "podCIDR": "10.1.1.0/24"}, ["10.1.1.0/24", "fd01::/64"], []),
        ({"podCIDR": "10.1.1.0/24"}, ["10.1.1.0/24"], []),
        ({"podCIDRs": ["x", "fd01::/64"]}, ["fd01::/64"], ["spec.podCIDRs[0]"]),
        ({}, [], []),
        (None, [], []),
    ],
)
def test_pod_cidrs(spec: Any, expected: list[str], skipped: list[str]) -> None:
    """Section 11, NodeCIDR: this Node's podCIDR of the family."""
    tree = manifest_node()
    tree["spec"] = spec
    assert texts(read(tree).object.pod_cidrs) == expected  # type: ignore[union-attr]
    assert skipped_of(tree) == skipped


def test_service_cidr() -> None:
    """R6: the prefixes that cluster IPs are taken from."""
    found = read(manifest_service_cidr("kubernetes", ["10.96.0.0/16", "fd00::/112"])).object
    assert found == ServiceCIDR("kubernetes", (parse_prefix("10.96.0.0/16"), parse_prefix("fd00::/112")))
    tree = manifest_service_cidr()
    tree["spec"]["cidrs"] = ["10.96.0.0/16", "x", None]
    assert faults_of(tree) == ["spec.cidrs[1]", "spec.cidrs[2]"]


# Faults


def test_every_fault_is_listed_at_once() -> None:
    """MalformedObject lists wrong types and wrong values together, each at its field."""
    tree = service_tree(
        type="Foo",
        clusterIPs=["10.96.0.300"],
        externalIPs=["203.0.113.7", 5],
        healthCheckNodePort="32000",
        ports=[
            {"name": "http", "port": "80", "protocol": "QUIC"},
            "https",
            {"name": "a", "nodePort": 70000},
            {"name": "b", "port": 1},
            {"name": "b", "port": 2},
            {"name": 5, "port": -1},
        ],
    )
    del tree["metadata"]["name"]
    tree["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = True
    assert sorted(faults_of(tree)) == [
        "metadata.labels[service.kubernetes.io/service-proxy-name]",
        "metadata.name",
        "spec.clusterIPs[0]",
        "spec.externalIPs[1]",
        "spec.healthCheckNodePort",
        "spec.ports[0].port",
        "spec.ports[0].protocol",
        "spec.ports[1]",
        "spec.ports[2].nodePort",
        "spec.ports[2].port",
        "spec.ports[4].name",
        "spec.ports[5].name",
        "spec.ports[5].port",
        "spec.type",
    ]


def test_a_fault_has_no_echo() -> None:
    """A name that could not be read is not taken for an empty one."""
    assert faults_of(service_tree(ports=[{"name": 5, "port": 1}, {"port": 2}])) == ["spec.ports[0].name"]
    assert faults_of(service_tree(ports=["http", {"port": 2}])) == ["spec.ports[0]"]
    assert faults_of(service_tree(ports=[{"port": 1}, {"port": 2}])) == ["spec.ports[1].name"]


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"addressType": None}, ["addressType"]),
        ({"addressType": "IPv5"}, ["addressType"]),
        ({"ports": [{"name": "http", "port": 8080, "protocol": "ICMP"}]}, ["ports[0].protocol"]),
        ({"ports": [{"name": "http", "port": 65536}]}, ["ports[0].port"]),
        ({"ports": {}}, ["ports"]),
        (
            {"endpoints": [{"addresses": ["10.1.1.11"], "conditions": {"ready": "yes"}}]},
            ["endpoints[0].conditions.ready"],
        ),
        ({"endpoints": [{"addresses": "10.1.1.11"}]}, ["endpoints[0].addresses"]),
        ({"metadata": {"name": ""}}, ["metadata.name"]),
        ({"metadata": None}, ["metadata.name"]),
        ({"metadata": "web"}, ["metadata"]),
    ],
)
def test_faults_of_slices(change: dict[str, Any], expected: list[str]) -> None:
    """E2: `addressType` is required; types and protocols are checked."""
    assert faults_of(manifest_endpoint_slice() | change) == expected


@pytest.mark.parametrize(
    "value, text",
    [
        ("80", "spec.ports[0].port: expected a whole number, got the text '80' (write it without quotes)"),
        (80.5, "spec.ports[0].port: expected a whole number, got the number 80.5"),
        (True, "spec.ports[0].port: expected a whole number, got true"),
        ([80], "spec.ports[0].port: expected a whole number, got a list"),
        (None, "spec.ports[0].port: is missing (give a number from 1 to 65535)"),
        (65536, "spec.ports[0].port: 65536 is not a port (give a number from 1 to 65535)"),
        (10**40, "spec.ports[0].port: this is not a port (give a number from 1 to 65535)"),
    ],
)
def test_text_and_remedy(value: object, text: str) -> None:
    """A fault names field, what stands there, and what to write."""
    with pytest.raises(MalformedObject) as caught:
        decode_object(service_tree(ports=[{"port": value}]))
    assert [str(fault) for fault in caught.value.faults] == [text]
    assert str(caught.value) == f"Service d/web: {text}"


def test_an_unquoted_annotation() -> None:
    """YAML reads `true` as a boolean; labels and annotations hold texts."""
    tree = manifest_service()
    tree["metadata"]["annotations"] = {"preserve-destination": True}
    with pytest.raises(MalformedObject, match="put it in quotes"):
        decode_object(tree)


@pytest.mark.parametrize(
    "raw, text",
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"metadata": {"name": "\xff"}}', "is not JSON"),
        (b"[]", "expected an object, got a list"),
        (b"null", "expected an object, got null"),
        (b'{"spec": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_object(raw: bytes, text: str) -> None:
    """Bytes that are no object are one fault of the whole."""
    with pytest.raises(MalformedObject, match=text) as caught:
        decode(Kind.SERVICE, raw)
    assert [fault.field for fault in caught.value.faults] == ["object"]
    assert raw_key(Kind.SERVICE, raw).name == ""


def test_a_deeply_nested_manifest() -> None:
    """Recursion ends in a fault, whatever a file holds."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MalformedObject):
        decode_object(manifest_service() | {"spec": deep})
    while deep:  # taken apart by hand, as its destruction would recurse
        deep = deep.pop()


# Naming objects


@pytest.mark.parametrize(
    "tree, expected",
    [
        ({"kind": "Service", "metadata": {"name": "web", "namespace": "d"}}, "Service d/web"),
        ({"kind": "Service", "metadata": {"name": 5, "namespace": "d"}}, "Service d/"),
        ({"kind": "Service", "spec": 5}, "Service default/"),
        ({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "namespace": "d"}}, "Node n1"),
        (
            {"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice", "metadata": {"name": "a"}},
            "EndpointSlice default/a",
        ),
        ({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "web"}}, None),
        ({"apiVersion": "v1", "kind": "EndpointSlice"}, None),
        ({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}}, None),
        ({"kind": ["Service"]}, None),
        ([], None),
        (None, None),
    ],
)
def test_object_key(tree: Any, expected: str | None) -> None:
    """A malformed object can be named; kinds and API groups that hansa does not read give None."""
    found = object_key(tree)
    assert (None if found is None else str(found)) == expected


def test_raw_key() -> None:
    """A malformed object of the API can be named, even where other fields are broken."""
    raw = b'{"metadata": {"name": "web", "namespace": "d"}, "spec": 5}'
    assert raw_key(Kind.SERVICE, raw) == ObjectKey(Kind.SERVICE, "d", "web")
    assert raw_key(Kind.NODE, raw) == ObjectKey(Kind.NODE, "", "web")
    half = b'{"metadata": {"name": "web", "namespace": 5}}'
    assert raw_key(Kind.SERVICE, half) == ObjectKey(Kind.SERVICE, "default", "web")


@pytest.mark.parametrize(
    "kind, version, good",
    [
        ("Service", "v1", True),
        ("Service", "v2", False),
        ("EndpointSlice", "discovery.k8s.io/v1beta1", False),
        ("ServiceCIDR", "networking.k8s.io/v1beta1", True),
        ("ServiceCIDR", "networking.k8s.io/v1alpha1", False),
        ("Node", 1, False),
    ],
)
def test_versions(kind: str, version: object, good: bool) -> None:
    """A manifest of another version is refused by its own field, not misread."""
    trees = {
        "Service": manifest_service(),
        "EndpointSlice": manifest_endpoint_slice(),
        "ServiceCIDR": manifest_service_cidr(),
        "Node": manifest_node(),
    }
    tree = trees[kind] | {"apiVersion": version}
    if good:
        assert decode_object(tree).key.kind is Kind(kind)
        return
    with pytest.raises(MalformedObject) as caught:
        decode_object(tree)
    assert [fault.field for fault in caught.value.faults] == ["apiVersion"]
    assert caught.value.faults[0].remedy.startswith("write ")


@pytest.mark.parametrize(
    "tree, field", [({"kind": "Pod", "apiVersion": "v1"}, "kind"), ([], "object"), ("x", "object")]
)
def test_other_manifests(tree: object, field: str) -> None:
    """What is not read is refused by name."""
    with pytest.raises(MalformedObject) as caught:
        decode_object(tree)
    assert [fault.field for fault in caught.value.faults] == [field]


def test_raw_of_a_list_is_decoded_in_place() -> None:
    """Items of a list need not be copied before they are decoded."""
    listed = b'{"items": [' + json.dumps(manifest_service()).encode() + b"]}"
    (item,) = msgspec.json.decode(listed, type=dict[str, list[msgspec.Raw]])["items"]
    assert decode(Kind.SERVICE, item).key.name == "web"
    assert raw_key(Kind.SERVICE, item).name == "web"


def test_families_of_slices() -> None:
    """E2: `addressType` is the family."""
    assert read_slice(manifest_endpoint_slice("web-a", ["fd01::11"])).family is IPFamily.IPV6
    assert read_slice(manifest_endpoint_slice("web-a", ["fd01::11"])).endpoints[0].address == parse_address("fd01::11")


@pytest.mark.parametrize("module", [hansa.api, hansa.testing])
def test_the_examples_in_the_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
