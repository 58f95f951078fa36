"""Builders with full defaults, and the standing example.

`service()`, `endpoint_slice()`, `node()` and `service_cidr()` make API objects; `manifest()` turns any of them into the
Kubernetes dict that decodes to it again, and `manifest_service()` and its like do both at once. Addresses and prefixes
may be given as text everywhere.

The standing example (Evidence: service-semantics section 0): node n1 in zone za, Service d/web, local endpoints L1
and L2, remote ones R1 (n2, za) and R2 (n3, zb).

>>> web = service("web", node_port=30080)
>>> str(web.cluster_ips[0]), web.ports[0].node_port
('10.96.0.10', 30080)
>>> manifest(web)["spec"]["ports"]
[{'name': 'http', 'protocol': 'TCP', 'port': 80, 'targetPort': 8080, 'nodePort': 30080}]
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack, assert_never

from hansa.api.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    Policy,
    Service,
    ServiceCIDR,
    ServiceKey,
    ServicePortSpec,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from hansa.config import Config
from hansa.net import Address, IPFamily, Prefix, Protocol, family_of, parse_address, parse_prefix
from hansa.services.model import NodeFacts

NODE_NAME = "n1"
ZONE = "za"
NODE_IP = parse_address("192.0.2.1")
NODE_IP_V6 = parse_address("2001:db8::1")
NODE_SECONDARY_IP = parse_address("192.0.2.100")
NODE_ADDRESSES = frozenset({NODE_IP, NODE_IP_V6, NODE_SECONDARY_IP})
CLUSTER_POD_RANGE = parse_prefix("10.1.0.0/16")
POD_RANGE = parse_prefix("10.1.1.0/24")
SERVICE_RANGE = parse_prefix("10.96.0.0/16")
CLUSTER_IP = parse_address("10.96.0.10")
EXTERNAL_IP = parse_address("203.0.113.7")
VIP = parse_address("203.0.113.80")
NODE_PORT = 30080


class Client:
    """Sources of packets in the standing example: P, Q are pods (n1, n2), N is n1 itself, X and Y are outside."""

    P = parse_address("10.1.1.5")
    Q = parse_address("10.1.2.7")
    N = NODE_IP
    X = parse_address("198.51.100.99")
    Y = parse_address("198.51.100.200")


def config(**fields: Any) -> Config:
    """The proxy of node n1 that knows pods by the cluster's pod range."""
    return Config(**{"node_name": NODE_NAME, "cluster_cidrs": (CLUSTER_POD_RANGE,), **fields})


def _protocol(value: Protocol | str) -> Protocol:
    return value if isinstance(value, Protocol) else Protocol[value]


def _address(value: Address | str) -> Address:
    return parse_address(value) if isinstance(value, str) else value


def _addresses(values: Iterable[Address | str]) -> tuple[Address, ...]:
    return tuple(_address(value) for value in values)


def _prefixes(values: Iterable[Prefix | str]) -> tuple[Prefix, ...]:
    return tuple(parse_prefix(value) if isinstance(value, str) else value for value in values)


def _names(values: Iterable[str]) -> frozenset[str]:
    """A lone text is one name, not its letters."""
    return frozenset({values} if isinstance(values, str) else values)


def port(
    name: str = "http",
    number: int = 80,
    *,
    protocol: Protocol | str = Protocol.TCP,
    node_port: int = 0,
    target_port: int | str | None = 8080,
) -> ServicePortSpec:
    """One entry of a Service's ports."""
    return ServicePortSpec(name, _protocol(protocol), number, node_port, target_port)


class ServiceFields(TypedDict, total=False):
    """What `service()` takes; `node_port` is that of the default port and only counts where `ports` is not given."""

    namespace: str
    type: ServiceType | str
    headless: bool
    cluster_ips: Iterable[Address | str]
    ports: Iterable[ServicePortSpec]
    node_port: int
    external_ips: Iterable[Address | str]
    load_balancer_vips: Iterable[Address | str]
    source_ranges: Iterable[Prefix | str]
    internal_policy: Policy | str
    external_policy: Policy | str
    affinity_timeout_s: int | None
    health_check_node_port: int
    proxy_name: str | None
    preserve_destination: bool
    created: float
    uid: str


def service(name: str = "web", **fields: Unpack[ServiceFields]) -> Service:
    """A ClusterIP Service d/`name` at 10.96.0.10 with the port http, 80/TCP, unless said otherwise."""
    return Service(
        namespace=fields.get("namespace", "d"),
        name=name,
        type=ServiceType(fields.get("type", ServiceType.CLUSTER_IP)),
        headless=fields.get("headless", False),
        cluster_ips=_addresses(fields.get("cluster_ips", () if fields.get("headless") else (CLUSTER_IP,))),
        ports=tuple(fields.get("ports", (port(node_port=fields.get("node_port", 0)),))),
        external_ips=_addresses(fields.get("external_ips", ())),
        load_balancer_vips=_addresses(fields.get("load_balancer_vips", ())),
        source_ranges=_prefixes(fields.get("source_ranges", ())),
        internal_policy=Policy(fields.get("internal_policy", Policy.CLUSTER)),
        external_policy=Policy(fields.get("external_policy", Policy.CLUSTER)),
        affinity_timeout_s=fields.get("affinity_timeout_s"),
        health_check_node_port=fields.get("health_check_node_port", 0),
        proxy_name=fields.get("proxy_name"),
        preserve_destination=fields.get("preserve_destination", False),
        created=fields.get("created", 0.0),
        uid=fields.get("uid", ""),
    )


class EndpointFields(TypedDict, total=False):
    """What `endpoint()` takes; an absent condition follows the API's defaults (service-semantics C1-C3)."""

    node: str | None
    ready: bool
    serving: bool
    terminating: bool
    zone_hints: Iterable[str]
    node_hints: Iterable[str]


def endpoint(address: Address | str, **fields: Unpack[EndpointFields]) -> SliceEndpoint:
    """One entry of a slice's endpoints: ready, on no node, without hints, unless said otherwise."""
    return SliceEndpoint(
        address=_address(address),
        ready=fields.get("ready", True),
        serving=fields.get("serving", True),
        terminating=fields.get("terminating", False),
        node_name=fields.get("node"),
        zone_hints=_names(fields.get("zone_hints", ())),
        node_hints=_names(fields.get("node_hints", ())),
    )


def slice_port(name: str = "http", number: int = 8080, *, protocol: Protocol | str = Protocol.TCP) -> SlicePort:
    """One entry of a slice's ports."""
    return SlicePort(name, _protocol(protocol), number)


class SliceFields(TypedDict, total=False):
    """What `endpoint_slice()` takes. family: default that of the first endpoint, IPv4 if there is none."""

    namespace: str
    service: str | None
    family: IPFamily | None
    ports: Iterable[SlicePort]
    trigger_time: float | None


def endpoint_slice(
    name: str = "web-a", endpoints: Iterable[SliceEndpoint | Address | str] = (), **fields: Unpack[SliceFields]
) -> EndpointSlice:
    """A slice of d/web with the port http, 8080/TCP, unless said otherwise; plain addresses become ready endpoints."""
    entries = tuple(one if isinstance(one, SliceEndpoint) else endpoint(one) for one in endpoints)
    family = family_of(entries[0].address) if entries else IPFamily.IPV4
    return EndpointSlice(
        namespace=fields.get("namespace", "d"),
        name=name,
        service=fields.get("service", "web"),
        family=fields.get("family", family),
        ports=tuple(fields.get("ports", (slice_port(),))),
        endpoints=entries,
        trigger_time=fields.get("trigger_time"),
    )


class NodeFields(TypedDict, total=False):
    """What `node()` takes."""

    addresses: Iterable[Address | str]
    zone: str | None
    pod_cidrs: Iterable[Prefix | str]
    taint_keys: Iterable[str]
    deleting: bool


def node(name: str = NODE_NAME, **fields: Unpack[NodeFields]) -> Node:
    """The Node n1 of the standing example, unless said otherwise."""
    return Node(
        name=name,
        addresses=_addresses(fields.get("addresses", (NODE_IP, NODE_IP_V6))),
        zone=fields.get("zone", ZONE),
        pod_cidrs=_prefixes(fields.get("pod_cidrs", (POD_RANGE,))),
        taint_keys=_names(fields.get("taint_keys", ())),
        deleting=fields.get("deleting", False),
    )


def service_cidr(name: str = "kubernetes", prefixes: Iterable[Prefix | str] = (SERVICE_RANGE,)) -> ServiceCIDR:
    return ServiceCIDR(name, _prefixes(prefixes))


L1 = endpoint("10.1.1.11", node="n1")
L2 = endpoint("10.1.1.12", node="n1")
R1 = endpoint("10.1.2.21", node="n2")
R2 = endpoint("10.1.3.31", node="n3")
NODE = node()
NODE_FACTS = NodeFacts(
    name=NODE_NAME,
    zone=ZONE,
    node_ips={IPFamily.IPV4: NODE_IP, IPFamily.IPV6: NODE_IP_V6},
    addresses=NODE_ADDRESSES,
    pod_cidrs={IPFamily.IPV4: POD_RANGE},
)
WEB_KEY = ServiceKey("d", "web")
WEB = service(
    "web",
    type=ServiceType.LOAD_BALANCER,
    node_port=NODE_PORT,
    external_ips=(EXTERNAL_IP,),
    load_balancer_vips=(VIP,),
)


def manifest(item: ApiObject) -> dict[str, Any]:
    """The Kubernetes object that decodes to `item`, as a fresh dict that the caller may bend."""
    match item:
        case Service():
            return _service_manifest(item)
        case EndpointSlice():
            return _slice_manifest(item)
        case Node():
            return _node_manifest(item)
        case ServiceCIDR():
            return {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": item.name},
                "spec": {"cidrs": [str(prefix) for prefix in item.prefixes]},
            }
        case _:
            assert_never(item)


def manifest_json(item: ApiObject | dict[str, Any]) -> bytes:
    """The same as the bytes that an API server sends."""
    return json.dumps(item if isinstance(item, dict) else manifest(item)).encode()


def manifest_service(name: str = "web", **fields: Unpack[ServiceFields]) -> dict[str, Any]:
    return manifest(service(name, **fields))


def manifest_endpoint_slice(
    name: str = "web-a", endpoints: Iterable[SliceEndpoint | Address | str] = (), **fields: Unpack[SliceFields]
) -> dict[str, Any]:
    return manifest(endpoint_slice(name, endpoints, **fields))


def manifest_node(name: str = NODE_NAME, **fields: Unpack[NodeFields]) -> dict[str, Any]:
    return manifest(node(name, **fields))


def manifest_service_cidr(
    name: str = "kubernetes", prefixes: Iterable[Prefix | str] = (SERVICE_RANGE,)
) -> dict[str, Any]:
    return manifest(service_cidr(name, prefixes))


def _service_manifest(item: Service) -> dict[str, Any]:
    addresses = ["None"] if item.headless else [str(address) for address in item.cluster_ips]
    spec: dict[str, Any] = {
        "type": item.type.value,
        "clusterIP": addresses[0] if addresses else "",
        "clusterIPs": addresses,
        "ipFamilies": [family_of(address).value for address in item.cluster_ips],
        "ports": [_port_manifest(spec) for spec in item.ports],
        "externalIPs": [str(address) for address in item.external_ips],
        "loadBalancerSourceRanges": [str(prefix) for prefix in item.source_ranges],
        "internalTrafficPolicy": item.internal_policy.value,
        "externalTrafficPolicy": item.external_policy.value,
        "healthCheckNodePort": item.health_check_node_port,
        "sessionAffinity": "None" if item.affinity_timeout_s is None else "ClientIP",
    }
    if item.affinity_timeout_s is not None:
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": item.affinity_timeout_s}}
    labels = {} if item.proxy_name is None else {"service.kubernetes.io/service-proxy-name": item.proxy_name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": item.name,
            "namespace": item.namespace,
            "uid": item.uid,
            "labels": labels,
            "annotations": {"preserve-destination": "true"} if item.preserve_destination else {},
            "creationTimestamp": _time_text(item.created) if item.created else None,
        },
        "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": str(address)} for address in item.load_balancer_vips]}},
    }


def _port_manifest(spec: ServicePortSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": spec.name, "protocol": spec.protocol.name, "port": spec.port}
    if spec.target_port is not None:
        entry["targetPort"] = spec.target_port
    if spec.node_port:
        entry["nodePort"] = spec.node_port
    return entry


def _slice_manifest(item: EndpointSlice) -> dict[str, Any]:
    annotations = {}
    if item.trigger_time is not None:
        annotations["endpoints.kubernetes.io/last-change-trigger-time"] = _time_text(item.trigger_time)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": item.name,
            "namespace": item.namespace,
            "labels": {} if item.service is None else {"kubernetes.io/service-name": item.service},
            "annotations": annotations,
        },
        "addressType": "FQDN" if item.family is None else item.family.value,
        "ports": [{"name": one.name, "protocol": one.protocol.name, "port": one.port} for one in item.ports],
        "endpoints": [_endpoint_manifest(one) for one in item.endpoints],
    }


def _endpoint_manifest(item: SliceEndpoint) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "addresses": [str(item.address)],
        "conditions": {"ready": item.ready, "serving": item.serving, "terminating": item.terminating},
    }
    if item.node_name is not None:
        entry["nodeName"] = item.node_name
    hints = {}
    if item.zone_hints:
        hints["forZones"] = [{"name": name} for name in sorted(item.zone_hints)]
    if item.node_hints:
        hints["forNodes"] = [{"name": name} for name in sorted(item.node_hints)]
    if hints:
        entry["hints"] = hints
    return entry


def _node_manifest(item: Node) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": item.name,
        "labels": {} if item.zone is None else {"topology.kubernetes.io/zone": item.zone},
    }
    if item.deleting:
        metadata["deletionTimestamp"] = _time_text(0.0)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": {
            "podCIDRs": [str(prefix) for prefix in item.pod_cidrs],
            "taints": [{"key": key, "effect": "NoSchedule"} for key in sorted(item.taint_keys)],
        },
        "status": {"addresses": [{"type": "InternalIP", "address": str(address)} for address in item.addresses]},
    }


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
