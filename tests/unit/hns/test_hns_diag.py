"""The layouts of hnsdiag.exe (hcn.md 7.1)."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

from hansa.hns.api import Guid
from hansa.hns.hnsdiag import DiagLayout, list_endpoints, list_json, list_load_balancers, list_networks
from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer, HnsNetwork, NetworkType

NETWORK = HnsNetwork(guid=Guid("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"), name="hansa-br", type=NetworkType.L2BRIDGE)
ENDPOINT = HnsEndpoint(guid=Guid("A90BE7D2-1F60-4C35-8A51-20B6D1C3E101"), name="Ethernet", network=NETWORK.guid)
CLUSTER_IP = HnsLoadBalancer(
    guid=Guid("11111111-2222-3333-4444-555555555501"),
    frontend_vips=(IPv4Address("172.21.30.7"),),
    endpoints=(ENDPOINT.guid, Guid("A90BE7D2-1F60-4C35-8A51-20B6D1C3E102")),
)
NODE_PORT = HnsLoadBalancer(guid=Guid("11111111-2222-3333-4444-555555555502"), endpoints=(ENDPOINT.guid,))


def test_networks() -> None:
    assert list_networks([NETWORK]) == ("Networks:\nName       ID\nhansa-br   6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001\n")


def test_endpoints_show_their_network_by_name() -> None:
    assert list_endpoints([ENDPOINT], [NETWORK]) == (
        "Endpoints:\n"
        "Name       ID                                     Virtual Network Name\n"
        "Ethernet   a90be7d2-1f60-4c35-8a51-20b6d1c3e101   hansa-br\n"
    )
    assert NETWORK.guid in list_endpoints([ENDPOINT], [])


def test_node_ports_have_a_blank_vip_column() -> None:
    assert list_load_balancers([CLUSTER_IP, NODE_PORT]) == (
        "LoadBalancers:\n"
        "ID                                   | Virtual IPs | Direct IP IDs\n"
        "11111111-2222-3333-4444-555555555501 | 172.21.30.7 | "
        "a90be7d2-1f60-4c35-8a51-20b6d1c3e101 a90be7d2-1f60-4c35-8a51-20b6d1c3e102\n"
        "11111111-2222-3333-4444-555555555502 |             | a90be7d2-1f60-4c35-8a51-20b6d1c3e101\n"
    )


def test_nothing_is_a_header() -> None:
    assert list_load_balancers([]) == "LoadBalancers:\nID | Virtual IPs | Direct IP IDs\n"


def test_blocks_of_later_releases() -> None:
    assert list_load_balancers([CLUSTER_IP, NODE_PORT], DiagLayout.BLOCKS) == (
        "Load Balancer    : 11111111-2222-3333-4444-555555555501\n"
        "  Virtual IPs    : 172.21.30.7\n"
        "  Direct IP IDs  : a90be7d2-1f60-4c35-8a51-20b6d1c3e101 a90be7d2-1f60-4c35-8a51-20b6d1c3e102\n"
        "\n"
        "Load Balancer    : 11111111-2222-3333-4444-555555555502\n"
        "  Virtual IPs    :\n"
        "  Direct IP IDs  : a90be7d2-1f60-4c35-8a51-20b6d1c3e101\n"
    )
    assert list_networks([NETWORK], DiagLayout.BLOCKS).startswith("Network          : 6F1C0A10")
    assert "  Name           : Ethernet" in list_endpoints([ENDPOINT], [NETWORK], DiagLayout.BLOCKS)


def test_json_is_one_list_of_documents() -> None:
    listed = json.loads(list_json([NETWORK, ENDPOINT, CLUSTER_IP]))
    assert [each["ID"] for each in listed] == [NETWORK.guid, ENDPOINT.guid, CLUSTER_IP.guid]
    assert listed[2]["FrontendVIPs"] == ["172.21.30.7"]
