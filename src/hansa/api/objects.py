"""Service, EndpointSlice, Node and ServiceCIDR: only the fields that a proxy reads, defaults settled.

All values are canonical (addresses parsed, absent conditions settled), so equality of two objects means that
nothing a proxy could notice has changed; metadata that only travels along is excluded from the comparison.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from hansa.net import Address, IPFamily, Prefix, Protocol


class Kind(enum.Enum):
    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"

    def __str__(self) -> str:
        return self.value


class ObjectKey(NamedTuple):
    """Identity of an API object; `namespace` is "" for cluster-wide kinds."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        path = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {path}"


class ServiceKey(NamedTuple):
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ServiceType(enum.Enum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class Policy(enum.Enum):
    """Traffic policy. Unknown texts count as CLUSTER (service-semantics X5)."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


@dataclass(frozen=True, slots=True)
class ServicePortSpec:
    """One entry of `spec.ports`. `node_port` 0 means none. `target_port` is informative only (E7)."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0
    target_port: int | str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A Service as the proxy sees it.

    headless: `clusterIP: None` (S1); cluster_ips may then be empty. cluster_ips holds at most one address a family.
    load_balancer_vips: ingress IPs with ipMode VIP or absent (A6). source_ranges: all parsed entries; () = none given.
    affinity_timeout_s: None = no session affinity. proxy_name: value of the service-proxy-name label, None = absent.
    created: creationTimestamp as seconds since the epoch, 0.0 if absent; decides who wins a contested frontend (A12).
    """

    namespace: str
    name: str
    type: ServiceType = ServiceType.CLUSTER_IP
    headless: bool = False
    cluster_ips: tuple[Address, ...] = ()
    ports: tuple[ServicePortSpec, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_vips: tuple[Address, ...] = ()
    source_ranges: tuple[Prefix, ...] = ()
    internal_policy: Policy = Policy.CLUSTER
    external_policy: Policy = Policy.CLUSTER
    affinity_timeout_s: int | None = None
    health_check_node_port: int = 0
    proxy_name: str | None = None
    preserve_destination: bool = False
    created: float = 0.0
    uid: str = field(default="", compare=False)

    @property
    def key(self) -> ServiceKey:
        return ServiceKey(self.namespace, self.name)

    @property
    def object_key(self) -> ObjectKey:
        return ObjectKey(Kind.SERVICE, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class SlicePort:
    """One usable entry of a slice's `ports`: entries with nil name or nil/0 port never get here (E4, E5)."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One entry of a slice's `endpoints`: its first address (E9), conditions settled (C1-C3), hints as sets."""

    address: Address
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str | None = None
    zone_hints: frozenset[str] = frozenset()
    node_hints: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A slice. `service` is None when the service-name label is missing or empty (E1); family None means FQDN (E2).

    trigger_time: the last-change-trigger-time annotation, seconds since the epoch; not part of the comparison.
    """

    namespace: str
    name: str
    service: str | None
    family: IPFamily | None
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    trigger_time: float | None = field(default=None, compare=False)

    @property
    def object_key(self) -> ObjectKey:
        return ObjectKey(Kind.ENDPOINT_SLICE, self.namespace, self.name)

    @property
    def service_key(self) -> ServiceKey | None:
        return ServiceKey(self.namespace, self.service) if self.service else None


@dataclass(frozen=True, slots=True)
class Node:
    """A Node. addresses: all InternalIPs, then all ExternalIPs, in the object's order (I6)."""

    name: str
    addresses: tuple[Address, ...] = ()
    zone: str | None = None
    pod_cidrs: tuple[Prefix, ...] = ()
    taint_keys: frozenset[str] = frozenset()
    deleting: bool = False

    @property
    def object_key(self) -> ObjectKey:
        return ObjectKey(Kind.NODE, "", self.name)


@dataclass(frozen=True, slots=True)
class ServiceCIDR:
    name: str
    prefixes: tuple[Prefix, ...] = ()

    @property
    def object_key(self) -> ObjectKey:
        return ObjectKey(Kind.SERVICE_CIDR, "", self.name)


ApiObject = Service | EndpointSlice | Node | ServiceCIDR
