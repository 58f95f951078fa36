"""The values of stage 2: service ports, endpoints, what was selected and why the others were not."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hansa.api.objects import Kind, ObjectKey, Policy, ServiceKey, ServiceType
from hansa.net import Address, IPFamily, Prefix, Protocol, address_port


class ServicePortName(NamedTuple):
    """Key of a service port (P1-P3): the port's name and protocol, never its number."""

    namespace: str
    service: str
    port: str
    protocol: Protocol

    @property
    def service_key(self) -> ServiceKey:
        return ServiceKey(self.namespace, self.service)

    def __str__(self) -> str:
        tail = f":{self.port}" if self.port else ""
        return f"{self.namespace}/{self.service}{tail}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service in one family; exists only if the Service is handled there (section 2, A1-A3).

    external_policy: already void (CLUSTER) where X2 says that it does not count. source_ranges: None = everybody;
    else the permitted prefixes of this family (F1-F3). health_check_node_port: 0 = none (H1 applied).
    """

    name: ServicePortName
    family: IPFamily
    port: int
    cluster_ip: Address
    node_port: int = 0
    external_ips: tuple[Address, ...] = ()
    load_balancer_vips: tuple[Address, ...] = ()
    source_ranges: tuple[Prefix, ...] | None = None
    internal_policy: Policy = Policy.CLUSTER
    external_policy: Policy = Policy.CLUSTER
    affinity_timeout_s: int | None = None
    health_check_node_port: int = 0
    service_type: ServiceType = ServiceType.CLUSTER_IP
    preserve_destination: bool = False
    created: float = 0.0

    @property
    def externally_accessible(self) -> bool:
        """X4: judged per port and family."""
        return bool(self.node_port or self.external_ips or self.load_balancer_vips)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and port behind a service port. `local` is by node name, nothing else (service-semantics 0).

    node: where it is, None = nobody knows; no dataplane asks, so it does not count when endpoints are compared.
    """

    address: Address
    port: int
    local: bool = False
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return address_port(self.address, self.port)


class TopologyMode(enum.Enum):
    """The service-wide outcome of section 9 for the Cluster set; the value is the reason in words."""

    ALL = "no usable hints: every ready endpoint"
    SAME_ZONE = "every ready endpoint has zone hints: those for this zone"
    SAME_NODE = "every ready endpoint has node hints: those for this node"


class Reason(enum.Enum):
    """Why an endpoint is in no set, or only in some."""

    NOT_READY = "not ready"
    TERMINATING = "terminating, and a ready endpoint exists"
    NOT_SERVING = "terminating and not serving"
    OTHER_ZONE = "hinted for another zone"
    OTHER_NODE = "hinted for another node"
    NOT_LOCAL = "not on this node, and the policy is Local"


@dataclass(frozen=True, slots=True)
class Selection:
    """What `select_endpoints` chose. Tuples are in the order of the endpoints' "ip:port" text (E14).

    cluster, local: None = no policy of the port uses the set; () = used, none found.
    any_usable: step 4 of section 10. excluded: endpoints in neither set, with the reason.
    cluster_fallback, local_fallback: the set consists of serving-terminating endpoints (C5).
    """

    cluster: tuple[Endpoint, ...] | None
    local: tuple[Endpoint, ...] | None
    any_usable: bool
    topology: TopologyMode = TopologyMode.ALL
    cluster_fallback: bool = False
    local_fallback: bool = False
    excluded: tuple[tuple[Endpoint, Reason], ...] = ()

    @property
    def reachable(self) -> tuple[Endpoint, ...]:
        """The union of the wanted sets, in E14 order."""
        if self.local is None or not self.local:
            return self.cluster or ()
        if not self.cluster:
            return self.local
        return tuple(sorted({*self.cluster, *self.local}, key=str))

    @property
    def enduring(self) -> tuple[Endpoint, ...]:
        """Every endpoint to which established flows may go on: ready or serving, whatever policy and hints say.

        In E14 order. Evidence: service-semantics K4, K13.
        """
        kept = [endpoint for endpoint, _ in self.excluded if endpoint.ready or endpoint.serving]
        return tuple(sorted((*self.reachable, *kept), key=str)) if kept else self.reachable


@dataclass(frozen=True, slots=True)
class ServicePortView:
    """One service port of one family as this node sees it after selection. local_ready_count: H6, per port."""

    port: ServicePort
    selection: Selection
    local_ready: frozenset[Address] = frozenset()

    @property
    def key(self) -> tuple[ServicePortName, IPFamily]:
        return (self.port.name, self.port.family)


@dataclass(frozen=True, slots=True)
class GivenView:
    """What somebody else, a brain, has decided about one Service for this node. ports: () = nothing is left."""

    service: ServiceKey
    ports: tuple[ServicePortView, ...]

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(Kind.SERVICE, self.service.namespace, self.service.name)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known about this node.

    zone: None or "" = no zone mode (T7). node_ips: the primary IP per family (I6); a family may be missing.
    addresses: every address of this machine's interfaces, loopback excluded; the node IPs are always among them.
    pod_cidrs: this Node's first podCIDR per family.
    """

    name: str
    zone: str | None = None
    node_ips: Mapping[IPFamily, Address] = field(default_factory=dict)
    addresses: frozenset[Address] = frozenset()
    pod_cidrs: Mapping[IPFamily, Prefix] = field(default_factory=dict)
