"""The emulated CNI: what a proxy finds on a node that it did not set up itself."""

from __future__ import annotations

import pytest

from hansa.api.change import Upsert
from hansa.hns.schema import NetworkType, RemoteSubnetRoute
from hansa.lab.cni import PodNetwork, add_local_pods, emulated_node
from hansa.net import parse_address
from hansa.testing import endpoint, endpoint_slice, node

OWN = node("win-1", addresses=["192.0.2.21", "2001:db8::21"], pod_cidrs=["100.96.2.0/24", "fd00:96:2::/64"])
OTHERS = [
    node("linux-1", addresses=["192.0.2.11"], pod_cidrs=["100.96.1.0/24"]),
    node("no-pods-yet", addresses=["192.0.2.12"], pod_cidrs=[]),
]


def test_an_overlay_node_knows_the_subnets_of_the_others_and_has_one_family() -> None:
    emulator = emulated_node(OWN, [*OTHERS, OWN], network=PodNetwork.OVERLAY)
    (network,) = emulator.networks()
    assert network.type is NetworkType.OVERLAY
    routes = [(str(p.prefix), str(p.provider_address)) for p in network.policies if isinstance(p, RemoteSubnetRoute)]
    assert routes == [("100.96.1.0/24", "192.0.2.11")]
    assert [str(subnet.prefix) for ipam in network.ipams for subnet in ipam.subnets] == ["100.96.2.0/24"]


def test_an_l2bridge_node_has_both_families() -> None:
    emulator = emulated_node(OWN, OTHERS, network=PodNetwork.L2BRIDGE)
    (network,) = emulator.networks()
    assert network.type is NetworkType.L2BRIDGE
    assert len([subnet for ipam in network.ipams for subnet in ipam.subnets]) == 2


def test_a_node_without_object_still_works() -> None:
    assert emulated_node(None).networks()


@pytest.mark.parametrize("network", PodNetwork)
def test_only_pods_of_this_node_inside_its_subnet_get_an_endpoint_and_only_once(network: PodNetwork) -> None:
    emulator = emulated_node(OWN, OTHERS, network=network)
    before = len(emulator.endpoints())
    piece = endpoint_slice(
        "web",
        endpoints=[
            endpoint("100.96.2.14", node="win-1"),
            endpoint("100.96.1.3", node="linux-1"),
            endpoint("192.0.2.21", node="win-1"),  # host network
            endpoint("198.51.100.7", node="win-1"),  # not of this CNI
        ],
    )
    assert add_local_pods(emulator, [Upsert(piece)], "win-1") == (parse_address("100.96.2.14"),)
    assert add_local_pods(emulator, [Upsert(piece)], "win-1") == ()
    assert len(emulator.endpoints()) == before + 1
