"""The values of stage 3: what must happen to a packet, on any dataplane.

A `Rule` says for one frontend what each origin of a packet meets. Dataplanes translate rules; they never decide
again. `decide()` reads the same rules and is the oracle.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hansa.net import Address, IPFamily, Prefix, Protocol, address_port
from hansa.services.model import Endpoint, NodeFacts, ServicePortName


class FrontendKind(enum.Enum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER_IP = "LoadBalancerIP"


class FrontendKey(NamedTuple):
    """Where a client aims; `address` None = any accepted address of this node (NodePort)."""

    family: IPFamily
    address: Address | None
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        if self.address is None:
            return f"node({self.family}):{self.port}/{self.protocol}"
        return f"{address_port(self.address, self.port)}/{self.protocol}"


class Origin(enum.Enum):
    """Where a packet comes from (service-semantics section 0). Without a detector, pods count as OUTSIDE (X9)."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


class Because(enum.Enum):
    """Why an action was chosen; the value is what people read."""

    CLUSTER_POLICY = "traffic policy Cluster: every usable endpoint"
    LOCAL_POLICY = "traffic policy Local: endpoints on this node"
    SHORT_CIRCUIT = "a pod or this node asks: external address treated as Cluster"
    NO_ENDPOINTS = "no usable endpoint anywhere"
    NO_LOCAL_ENDPOINTS = "traffic policy Local and no usable endpoint on this node"
    SOURCE_RANGE = "source not in loadBalancerSourceRanges"
    UNUSED_PORT = "the ClusterIP is in use, but not on this port and protocol"
    UNALLOCATED_IP = "inside a ServiceCIDR, but no handled Service has this address"
    NO_FRONTEND = "no frontend of a handled Service matches"


@dataclass(frozen=True, slots=True)
class Forward:
    """To one of `endpoints` (never empty, E14 order), uniformly at random; source rewritten iff `masquerade`.

    Whatever `masquerade` says, a packet whose source is the chosen endpoint's address is masqueraded (hairpin, M6).
    """

    endpoints: tuple[Endpoint, ...]
    masquerade: bool
    because: Because


@dataclass(frozen=True, slots=True)
class Drop:
    because: Because


@dataclass(frozen=True, slots=True)
class Reject:
    because: Because


Action = Forward | Drop | Reject


@dataclass(frozen=True, slots=True)
class NotHandled:
    """The proxy neither translates nor filters the packet. Only a verdict, never an action of a rule."""

    because: Because = Because.NO_FRONTEND


Verdict = Forward | Drop | Reject | NotHandled


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens at one frontend. `pod`, `node`, `outside`: the action by origin.

    source_ranges: None = everybody may; else sources outside are dropped, before anything else (F5, F6), the prefixes
    already widened by F7. affinity_timeout_s: None = no affinity. local: the frontend's own policy is Local.
    preserve_destination, health_check_node_port: for the Windows dataplane's flags and health-check load balancers.
    lingering: endpoints that nobody new is sent to from here, but to which established flows may go on (K4, K13); E14
    order; always () but for UDP, whose flows alone are ever cut.
    """

    kind: FrontendKind
    key: FrontendKey
    owner: ServicePortName
    pod: Action
    node: Action
    outside: Action
    local: bool = False
    source_ranges: tuple[Prefix, ...] | None = None
    affinity_timeout_s: int | None = None
    health_check_node_port: int = 0
    preserve_destination: bool = False
    created: float = 0.0
    lingering: tuple[Endpoint, ...] = ()

    def action(self, origin: Origin) -> Action:
        match origin:
            case Origin.POD:
                return self.pod
            case Origin.NODE:
                return self.node
            case Origin.OUTSIDE:
                return self.outside

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint that some origin may be sent to, in E14 order."""
        found: dict[Endpoint, None] = {}
        for action in (self.pod, self.node, self.outside):
            if isinstance(action, Forward):
                found.update(dict.fromkeys(action.endpoints))
        return tuple(sorted(found, key=str))


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two service ports claim one frontend; `winner` is the older (A12, F46)."""

    key: FrontendKey
    winner: ServicePortName
    loser: ServicePortName

    def __str__(self) -> str:
        return f"{self.key} belongs to {self.winner}; {self.loser} claims it too and gets it when it is free"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a dataplane needs besides the rules, decided here once.

    pod_prefixes: per family, the sources that count as pods; absent family = no detector by address.
    pod_interfaces: (exact names, prefixes) for the interface detectors. node_port_addresses: per family, the accepted
    local addresses, None = all that the host owns. reject_cluster_ips: R5 and R6 apply. service_cidrs: R6.
    """

    node: NodeFacts
    pod_prefixes: Mapping[IPFamily, Prefix] = field(default_factory=dict)
    pod_interface: str = ""
    pod_interface_prefix: str = ""
    node_port_addresses: Mapping[IPFamily, frozenset[Address] | None] = field(default_factory=dict)
    localhost_node_ports: bool = False
    guard_cluster_ips: bool = True
    service_cidrs: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleChanges:
    """What stage 3 hands to a dataplane: an immutable message.

    rules: by frontend; None = the frontend is gone. complete: `rules` is everything, whatever is absent is gone.
    """

    rules: Mapping[FrontendKey, Rule | None]
    surroundings: Surroundings
    complete: bool = False
    conflicts: tuple[Conflict, ...] = ()

    def apply_to(self, rules: MutableMapping[FrontendKey, Rule]) -> None:
        """Bring what was known before this message to what is known with it."""
        if self.complete:
            rules.clear()
        for key, rule in self.rules.items():
            if rule is None:
                rules.pop(key, None)
            else:
                rules[key] = rule
