"""The CNI's part on an emulated Windows node: the HNS network, the root endpoint, local pods, the other nodes' subnets.

A proxy finds these things and never makes them, so whoever runs one on the emulator needs somebody to play the CNI.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hansa.api.change import Upsert
from hansa.api.objects import EndpointSlice, Node
from hansa.hns.api import Guid, HnsError, HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator.builds import WS2022, Build, Machine
from hansa.hns.emulator.faults import Clock
from hansa.hns.emulator.nodes import L2BRIDGE, OVERLAY, Layout, RemoteNode, l2bridge_node, overlay_node
from hansa.hns.emulator.service import Emulator
from hansa.hns.schema import (
    Acl,
    HnsEndpoint,
    IpConfiguration,
    NetworkType,
    OutBoundNat,
    Policy,
    ProviderAddress,
    SdnRoute,
    decode_endpoint,
    encode,
)
from hansa.net import Address, IPFamily, Prefix, family_of, parse_prefix
from hansa.services.model import GivenView
from hansa.sources import News, Source

# What an emulated node gets where the Node object says nothing (documentation ranges).
FALLBACK_ADDRESS = "192.0.2.21"
FALLBACK_POD_PREFIX = parse_prefix("10.40.3.0/24")


_T = TypeVar("_T", Address, Prefix)


class PodNetwork(enum.Enum):
    """How pods of different nodes reach each other: over the nodes' own network, or by VXLAN."""

    L2BRIDGE = "l2bridge"
    OVERLAY = "overlay"


class Cni(enum.Enum):
    """Whose manner of making networks and endpoints. Evidence: hcn.md section 3; the plugins' Windows code."""

    FLANNEL = "flannel"
    CALICO = "calico"
    AZURE = "azure"

    def agent(self) -> str:
        """Who makes the network."""
        return {Cni.FLANNEL: "flanneld", Cni.CALICO: "calico-node", Cni.AZURE: "azure-vnet"}[self]

    def plugin(self, network: PodNetwork) -> str:
        """Who makes a pod's endpoint."""
        if self is Cni.FLANNEL:
            return "win-overlay" if network is PodNetwork.OVERLAY else "win-bridge"
        return self.agent() if self is Cni.AZURE else "calico"


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What a CNI plugin is configured with. exempt: destinations that keep the pod's address as source.

    loopback_dsr: win-bridge's and win-overlay's option; a pod then reaches itself through a Service with DSR.
    """

    network: PodNetwork
    management: Address
    exempt: tuple[Prefix, ...]
    service_cidrs: tuple[Prefix, ...]
    cni: Cni = Cni.FLANNEL
    loopback_dsr: bool = False
    extra: tuple[Policy, ...] = field(default=())


def pod_policies(plan: PodPlan, addresses: Iterable[Address]) -> tuple[Policy, ...]:
    """The policies of a new pod's HNS endpoint. Evidence: hcn.md 2.5, 2.6, 3 (who sets which)."""
    version = plan.management.version
    policies: list[Policy] = [OutBoundNat(exceptions=tuple(str(prefix) for prefix in plan.exempt))]
    if plan.loopback_dsr:
        # The plugins put the pod's own address alone: with the exceptions first, order would not matter.
        own = tuple(str(address) for address in addresses if address.version == version)
        policies.insert(0, OutBoundNat(destinations=own))
    if plan.cni is not Cni.AZURE:
        policies += [SdnRoute(prefix, need_encap=True) for prefix in plan.service_cidrs]
    if plan.network is PodNetwork.OVERLAY:
        policies.append(ProviderAddress(plan.management))
    if plan.cni is Cni.CALICO:
        policies += [
            Acl("Allow", "In", "allow-host", remote_addresses=str(plan.management), rule_type="Switch", priority=900),
            Acl("Allow", "In", "allow-in", rule_type="Switch", priority=65500),
            Acl("Allow", "Out", "allow-out", rule_type="Switch", priority=65500),
        ]
    return (*policies, *plan.extra)


def make_pod(emulator: Emulator, addresses: Iterable[Address], plan: PodPlan, *, name: str) -> HnsEndpoint:
    """What happens when the kubelet asks the CNI plugin for a pod: an HNS endpoint, attached. Raises HnsError."""
    own = tuple(addresses)
    first = next(each for each in own if each.version == plan.management.version)
    asked = HnsEndpoint(
        name=name,
        ip_configurations=tuple(IpConfiguration(each) for each in own),
        mac_address="0E-2A-" + first.packed[-4:].hex("-").upper(),
        policies=pod_policies(plan, own),
    )
    client = HnsClient(emulator)
    network = emulator.networks()[0].guid
    made = decode_endpoint(client.create(HnsKind.ENDPOINT, encode(asked), network=network))
    emulator.attach(made.guid)
    return made


def hold_address(emulator: Emulator, address: Address, *, name: str, mac: str) -> Guid:
    """A local endpoint that is attached to nothing: how an agent holds a source VIP. Raises HnsError."""
    asked = HnsEndpoint(name=name, ip_configurations=(IpConfiguration(address),), mac_address=mac)
    network = emulator.networks()[0].guid
    return decode_endpoint(HnsClient(emulator).create(HnsKind.ENDPOINT, encode(asked), network=network)).guid


def emulated_node(
    node: Node | None,
    others: Iterable[Node] = (),
    *,
    network: PodNetwork = PodNetwork.OVERLAY,
    build: Build = WS2022,
    clock: Clock | None = None,
    layout: Layout | None = None,
) -> Emulator:
    """A Windows node as its CNI leaves it: network, root endpoint, routes to the `others`' pods; no pods yet.

    Addresses and pod prefixes are those of the Node objects. Overlay has only IPv4 (hcn.md 5.10). layout: the rest of
    what the CNI was told, None = as usual for the network.
    """
    families = (IPFamily.IPV4,) if network is PodNetwork.OVERLAY else (IPFamily.IPV4, IPFamily.IPV6)
    addresses = first_per_family(node.addresses if node else (), families)
    machine = Machine(addresses=tuple(str(address) for address in addresses) or (FALLBACK_ADDRESS,))
    prefixes = first_per_family(node.pod_cidrs if node else (), families) or [FALLBACK_POD_PREFIX]
    texts = tuple(str(prefix) for prefix in prefixes)
    if network is PodNetwork.L2BRIDGE:
        told = replace(layout or L2BRIDGE, machine=machine, pod_prefixes=texts)
        return l2bridge_node(build, layout=told, clock=clock)
    remote = tuple(_remote_nodes(others, own=node))
    told = replace(layout or OVERLAY, machine=machine, pod_prefixes=texts, remote_nodes=remote)
    return overlay_node(build, layout=told, clock=clock)


def add_local_pods(emulator: Emulator, changes: Iterable[News], node_name: str) -> tuple[Address, ...]:
    """Give every endpoint that slices, or a brain, place on this node a local HNS endpoint, as the kubelet's CNI does.

    Host-network pods (address = one of the host's own) get none. Addresses that HNS refuses are left out; what was made
    is returned. Nothing is ever removed: pods end when somebody removes their HNS endpoint.
    """
    present = {entry.address for endpoint in emulator.endpoints() for entry in endpoint.ip_configurations}
    made: list[Address] = []
    for change in changes:
        for address in _local_addresses(change, node_name):
            if address in present or address in emulator.host_addresses:
                continue
            try:
                emulator.add_pod(str(address))
            except HnsError:
                continue  # outside the node's subnets: a pod that this node's CNI cannot have made
            present.add(address)
            made.append(address)
    return tuple(made)


def _local_addresses(change: News, node_name: str) -> list[Address]:
    match change:
        case Upsert(EndpointSlice() as piece):
            return [endpoint.address for endpoint in piece.endpoints if endpoint.node_name == node_name]
        case GivenView(ports=ports):
            chosen = (endpoint for port in ports for endpoint in port.selection.reachable)
            others = (endpoint for port in ports for endpoint, _ in port.selection.excluded)
            return [endpoint.address for endpoint in (*chosen, *others) if endpoint.local]
        case _:
            return []


def first_per_family(values: Iterable[_T], families: Iterable[IPFamily]) -> list[_T]:
    """The first value of each of these families, in their order; families without one are left out."""
    found: dict[IPFamily, _T] = {}
    for value in values:
        found.setdefault(family_of(value), value)
    return [found[family] for family in families if family in found]


def _remote_nodes(others: Iterable[Node], own: Node | None) -> Iterable[RemoteNode]:
    for number, other in enumerate(sorted(others, key=lambda node: node.name), start=1):
        addresses = first_per_family(other.addresses, (IPFamily.IPV4,))
        prefixes = first_per_family(other.pod_cidrs, (IPFamily.IPV4,))
        if (own is not None and other.name == own.name) or not addresses or not prefixes:
            continue
        yield RemoteNode(str(addresses[0]), str(prefixes[0]), f"00-15-5D-7E-{number >> 8 & 255:02X}-{number & 255:02X}")


def spare_source_vips(emulator: Emulator) -> tuple[Address, ...]:
    """The address of each overlay subnet that CNIs usually keep free for the source VIP: the second host (`.2`)."""
    subnets = [
        subnet.prefix
        for network in emulator.networks()
        if network.type is NetworkType.OVERLAY
        for subnet in network.subnets
        if subnet.prefix is not None
    ]
    return tuple(prefix[2] for prefix in subnets if prefix.num_addresses > 4)


class CniSource:
    """Another source, with the kubelet of an emulated node in between: pods get their HNS endpoints first."""

    def __init__(
        self, objects: Source, emulator: Emulator, node_name: str, *, lock: AbstractContextManager[object] | None = None
    ) -> None:
        """`lock`: held while the emulator is touched, if other threads use it, too."""
        self._objects = objects
        self._emulator = emulator
        self._node_name = node_name
        self._lock = lock or nullcontext()

    @property
    def status(self) -> str:
        return self._objects.status

    @property
    def troubled(self) -> bool:
        return self._objects.troubled

    async def changes(self) -> AsyncIterator[tuple[News, ...]]:
        async for batch in self._objects.changes():
            with self._lock:
                add_local_pods(self._emulator, batch, self._node_name)
            yield batch
