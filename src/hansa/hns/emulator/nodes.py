"""Emulated nodes as a CNI plugin leaves them: one network, a root endpoint, the other nodes' subnets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hansa.hns.api import Guid, HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator.builds import WS2022, Build, Machine
from hansa.hns.emulator.faults import Clock
from hansa.hns.emulator.service import Emulator
from hansa.hns.schema import (
    HnsEndpoint,
    HnsNetwork,
    HostRoute,
    Ipam,
    IpConfiguration,
    NetAdapterName,
    NetworkFlags,
    NetworkType,
    Policy,
    RemoteSubnetRoute,
    Route,
    Subnet,
    Vsid,
    decode_endpoint,
    decode_network,
    encode,
)
from hansa.net import parse_address, parse_prefix

ROOT_ENDPOINT = "cbr0"  # kube-proxy's default name of the host's own endpoint on the pod network
_ADAPTER = "Ethernet 2"


@dataclass(frozen=True, slots=True)
class RemoteNode:
    """Another node of an overlay: its address, its pods' prefix, the MAC of its distributed router."""

    address: str
    pod_prefix: str
    dr_mac_address: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What the CNI was told. pod_prefixes: one per family. root_offset: the root endpoint's place, None = no endpoint.

    vni: overlay only; Windows wants 4096 or more. remote_nodes: overlay only.
    """

    network: str
    machine: Machine
    pod_prefixes: tuple[str, ...]
    root_offset: int | None = 2
    vni: int = 4096
    remote_nodes: tuple[RemoteNode, ...] = ()


L2BRIDGE = Layout("hansa-br", Machine(), ("10.40.3.0/24",))
L2BRIDGE_DUAL_STACK = Layout(
    "hansa-br",
    Machine(addresses=("192.0.2.21", "2001:db8:0:1::21")),
    ("10.40.3.0/24", "2001:db8:40:3::/64"),
)
OVERLAY = Layout(
    "hansa-vx",
    Machine(),
    ("10.41.7.0/24",),
    root_offset=3,  # .2 is where source VIPs are usually put
    vni=4100,
    remote_nodes=(
        RemoteNode("192.0.2.22", "10.41.8.0/24", "00-15-5D-7E-44-02"),
        RemoteNode("192.0.2.23", "10.41.9.0/24", "00-15-5D-7E-44-03"),
    ),
)


def l2bridge_node(
    build: Build = WS2022, *, layout: Layout = L2BRIDGE, clock: Clock | None = None, seed: int = 0
) -> Emulator:
    """A node whose pods share the underlay; no pods yet, call counts at zero."""
    emulator = Emulator(build, machine=layout.machine, clock=clock, seed=seed)
    _install(emulator, _network(layout, NetworkType.L2BRIDGE, ()), layout)
    return emulator


def overlay_node(
    build: Build = WS2022, *, layout: Layout = OVERLAY, clock: Clock | None = None, seed: int = 0
) -> Emulator:
    """A node whose pods talk by VXLAN and that knows the subnets of `layout.remote_nodes`; no pods yet."""
    remote = (
        RemoteSubnetRoute(parse_prefix(node.pod_prefix), layout.vni, parse_address(node.address), node.dr_mac_address)
        for node in layout.remote_nodes
    )
    emulator = Emulator(build, machine=layout.machine, clock=clock, seed=seed)
    _install(emulator, _network(layout, NetworkType.OVERLAY, (HostRoute(), *remote)), layout)
    return emulator


def _network(layout: Layout, kind: NetworkType, policies: Iterable[Policy]) -> HnsNetwork:
    subnets = []
    for text in layout.pod_prefixes:
        prefix = parse_prefix(text)
        default = parse_prefix("0.0.0.0/0" if prefix.version == 4 else "::/0")
        isolation = (Vsid(layout.vni),) if kind is NetworkType.OVERLAY else ()
        subnets.append(Subnet(prefix, (Route(default, prefix[1]),), isolation))
    return HnsNetwork(
        name=layout.network,
        type=kind,
        policies=(NetAdapterName(_ADAPTER), *policies),
        ipams=(Ipam(tuple(subnets)),),
        flags=NetworkFlags.ENABLE_NON_PERSISTENT,
    )


def _install(emulator: Emulator, network: HnsNetwork, layout: Layout) -> None:
    client = HnsClient(emulator)
    made = decode_network(client.create(HnsKind.NETWORK, encode(network)))
    if layout.root_offset is not None:
        _add_root_endpoint(emulator, client, made.guid, layout)
    emulator.calls.clear()


def _add_root_endpoint(emulator: Emulator, client: HnsClient, network: Guid, layout: Layout) -> None:
    assert layout.root_offset is not None
    addresses = (parse_prefix(text)[layout.root_offset] for text in layout.pod_prefixes)
    root = HnsEndpoint(
        name=ROOT_ENDPOINT,
        ip_configurations=tuple(IpConfiguration(address) for address in addresses),
        mac_address=layout.machine.mac_address,
    )
    emulator.attach(decode_endpoint(client.create(HnsKind.ENDPOINT, encode(root), network=network)).guid)
