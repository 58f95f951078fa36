"""A lab as somebody describes it: nodes, pods, the outside, faults; and who made what when it was brought up."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from hansa.api.change import Change
from hansa.api.objects import ServiceKey
from hansa.hns.emulator.builds import Build
from hansa.hns.schema import Policy
from hansa.lab.cni import Cni, PodNetwork
from hansa.net import Address, IPFamily, Prefix, family_of


class System(enum.Enum):
    """What a node runs. Windows nodes are an emulated HNS, Linux nodes their rules."""

    WINDOWS = "windows"
    LINUX = "linux"


@dataclass(frozen=True, slots=True)
class LabNode:
    """addresses: one per family, the first is the management address. build: of Windows."""

    name: str
    system: System
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Prefix, ...]
    build: Build
    zone: str = ""


@dataclass(frozen=True, slots=True)
class LabPod:
    """addresses: one per family; of the node itself with `host_network`. policies: HCN policies besides the CNI's."""

    namespace: str
    name: str
    node: str
    addresses: tuple[Address, ...]
    labels: tuple[tuple[str, str], ...] = ()
    host_network: bool = False
    policies: tuple[Policy, ...] = ()

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"

    def address(self, family: IPFamily) -> Address | None:
        return next((each for each in self.addresses if family_of(each) is family), None)


class FaultKind(enum.Enum):
    """What can be broken on purpose; the value is the word, the arguments follow it."""

    DELETE_LOAD_BALANCER = "delete-load-balancer"
    DELETE_ENDPOINT = "delete-endpoint"
    NO_SOURCE_VIP = "no-source-vip"
    DSR = "dsr"
    STALE_REMOTE_ENDPOINT = "stale-remote-endpoint"
    WRONG_PROVIDER = "wrong-provider"
    FORGET_ROUTE = "forget-route"


FAULT_FORMS: dict[FaultKind, str] = {
    FaultKind.DELETE_LOAD_BALANCER: "NODE FRONTEND: somebody deletes its load balancer (10.0.0.1:53/udp, node:80/tcp)",
    FaultKind.DELETE_ENDPOINT: "NODE ADDRESS: somebody deletes the HNS endpoints with this address",
    FaultKind.NO_SOURCE_VIP: "NODE FRONTEND: its load balancer has no source VIP",
    FaultKind.DSR: "NODE FRONTEND: its load balancer has DSR, with the endpoints that it has",
    FaultKind.STALE_REMOTE_ENDPOINT: "NODE ADDRESS PROVIDER: a remote endpoint is left over, leading to another node",
    FaultKind.WRONG_PROVIDER: "NODE ADDRESS PROVIDER: the remote endpoint with this address leads to another node",
    FaultKind.FORGET_ROUTE: "NODE PREFIX: the network does not know where these pods are",
}


@dataclass(frozen=True, slots=True)
class LabFault:
    """Something broken on a Windows node, after hansa has done its work. what: frontend, address or prefix, as text."""

    kind: FaultKind
    node: str
    what: str
    provider: Address | None = None

    def __str__(self) -> str:
        tail = f" {self.provider}" if self.provider else ""
        return f"{self.kind.value} {self.node} {self.what}{tail}"


@dataclass(frozen=True, slots=True)
class Lab:
    """Everything that a lab file says.

    changes: the API objects, as a source would tell them, those that the lab's own controllers make included.
    controlled: Services whose slices the lab makes, from selectors and pods. vips: load balancer and external addresses
    of Services, which something outside leads to nodes. outside: clients that are no part of the cluster; the first is
    `outside`. settings: in kube-proxy's words. loopback_dsr: the CNI plugin's option of that name.
    """

    name: str
    network: PodNetwork
    cni: Cni
    vni: int
    pod_cidrs: tuple[Prefix, ...]
    service_cidrs: tuple[Prefix, ...]
    nodes: tuple[LabNode, ...]
    pods: tuple[LabPod, ...]
    outside: tuple[Address, ...]
    changes: tuple[Change, ...]
    settings: dict[str, object] = field(default_factory=dict)
    faults: tuple[LabFault, ...] = ()
    controlled: tuple[ServiceKey, ...] = ()
    vips: frozenset[Address] = frozenset()
    loopback_dsr: bool = False

    def node(self, name: str) -> LabNode | None:
        return next((each for each in self.nodes if each.name == name), None)


class Made(NamedTuple):
    """One thing that somebody made on a node while the lab came up."""

    who: str
    node: str
    what: str
