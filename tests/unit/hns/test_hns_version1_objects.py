"""Networks and endpoints of the older interface: made, listed, changed, deleted as old CNI plug-ins do (hcn.md 1.8)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hansa.hns.api import HnsKind
from hansa.hns.emulator import Emulator, l2bridge_node, overlay_node
from hansa.hns.emulator.version1 import respond
from hansa.hns.schema import EndpointState, HnsEndpoint, HnsNetwork, OutBoundNat, decode_endpoint, decode_network
from hansa.hns.schema1 import Fields, endpoint_document, endpoint_listing, network_document, network_listing


def call(node: Emulator, method: str, path: str, body: object = "") -> Any:
    response = json.loads(respond(node, method, path, json.dumps(body) if body else ""))
    assert response["Success"], response
    return response.get("Output")


def refusal(node: Emulator, method: str, path: str, body: object = "") -> int:
    response = json.loads(respond(node, method, path, json.dumps(body) if body else ""))
    assert response["Success"] is False
    return int(response["ErrorCode"])


NETWORK = {
    "Name": "azure",
    "Type": "l2bridge",
    "NetworkAdapterName": "Ethernet 2",
    "Subnets": [{"AddressPrefix": "10.240.0.0/16", "GatewayAddress": "10.240.0.1"}],
}
ENDPOINT = {
    "Name": "pod_eth0",
    "VirtualNetworkName": "azure",
    "IPAddress": "10.240.0.7",
    "Policies": [
        {"Type": "OutBoundNAT", "ExceptionList": ["10.240.0.0/16"]},
        {"Type": "ROUTE", "NeedEncap": True, "DestinationPrefix": "10.0.0.0/16"},
    ],
}


def test_a_cni_plugin_of_old_makes_a_network_and_an_endpoint() -> None:
    node = Emulator()
    network = call(node, "POST", "/networks/", NETWORK)
    assert (network["Name"], network["Type"], network["ManagementIP"]) == ("azure", "L2Bridge", "192.0.2.21")
    assert network["Subnets"][0]["GatewayAddress"] == "10.240.0.1"
    made = call(node, "POST", "/endpoints/", ENDPOINT)
    assert (made["IPAddress"], made["PrefixLength"], made["VirtualNetworkName"]) == ("10.240.0.7", 16, "azure")
    assert made["Policies"][0] == {"Type": "OutBoundNAT", "ExceptionList": ["10.240.0.0/16"]}
    assert call(node, "GET", "/endpoints/") == [made]
    assert call(node, "GET", f"/networks/{network['ID']}") == network
    attached = call(node, "POST", f"/endpoints/{made['ID']}/attach", {"SystemType": "Container", "ContainerId": "c"})
    assert attached["State"] == EndpointState.ATTACHED_SHARING
    detached = call(node, "POST", f"/endpoints/{made['ID']}/detach", {"ContainerId": "c"})
    assert detached["State"] == EndpointState.CREATED
    changed = call(node, "POST", f"/endpoints/{made['ID']}", {"Policies": [{"Type": "OutBoundNAT"}]})
    assert changed["Policies"] == [{"Type": "OutBoundNAT", "ExceptionList": []}]
    assert call(node, "DELETE", f"/endpoints/{made['ID']}") is None
    assert call(node, "DELETE", f"/networks/{network['ID']}") is None
    assert call(node, "GET", "/networks/") == []


def test_refusals_are_those_of_hns() -> None:
    node = Emulator()
    network = call(node, "POST", "/networks/", NETWORK)
    assert refusal(node, "POST", "/networks/", NETWORK) == 0x803B0010  # EV-04: the name is taken
    assert refusal(node, "POST", "/endpoints/", {**ENDPOINT, "IPAddress": "10.99.0.1"}) == 0x803B001E  # EV-08
    assert refusal(node, "POST", "/endpoints/", {**ENDPOINT, "VirtualNetworkName": "nobody"}) == 0x80070490
    assert refusal(node, "GET", "/endpoints/6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001") == 0x80070490
    assert refusal(node, "PUT", f"/networks/{network['ID']}") == 0x80004001
    assert refusal(node, "POST", "/networks/", ["no object"]) == 0x80070057


@pytest.mark.parametrize("node", [l2bridge_node(), overlay_node()], ids=["l2bridge", "overlay"])
def test_what_schema_1_shows_reads_back_as_it_was(node: Emulator) -> None:
    guid = node.add_pod(f"{node.networks()[0].subnets[0].prefix}".replace("0/24", "14"))
    node.alter(HnsKind.ENDPOINT, guid, policies=(OutBoundNat(exceptions=("10.0.0.0/8",)),))
    for network in node.networks():
        again = decode_network(json.dumps(network_document(Fields(network_listing(network)))))
        assert isinstance(again, HnsNetwork)
        assert (again.name, again.type, again.subnets) == (network.name, network.type, network.subnets)
        assert set(again.policies) == set(network.policies)
    for endpoint in node.endpoints():
        listing = endpoint_listing(endpoint, "net")
        again_endpoint = decode_endpoint(json.dumps(endpoint_document(Fields(listing))))
        assert isinstance(again_endpoint, HnsEndpoint)
        for name in (
            "guid",
            "name",
            "network",
            "namespace",
            "policies",
            "ip_configurations",
            "mac_address",
            "flags",
            "state",
        ):
            assert getattr(again_endpoint, name) == getattr(endpoint, name), name
