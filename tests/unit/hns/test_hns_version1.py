"""HNSCall of an emulated HNS: the version, and load balancers as policy lists (hcn.md 1.8)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.guarantees.node import LOCAL_1, REMOTE_1, GuardedNode, bridge
from tests.hns_double import Double, double

from hansa.hns.api import HnsError, HnsKind, HnsVerb
from hansa.hns.emulator.server import serve
from hansa.hns.emulator.version1 import respond
from hansa.hns.schema import decode_load_balancer
from hansa.hns.schema1 import Fields, balancer_document, policy_list
from hansa.testing import L1, R1, WEB, endpoint_slice

LB = HnsKind.LOAD_BALANCER


@pytest.fixture
def node() -> GuardedNode:
    made = bridge(WEB, endpoint_slice("web-a", [L1, R1]))
    made.settle()
    return made


def call(on: GuardedNode, method: str, path: str, body: str = "") -> dict[str, Any]:
    found = json.loads(respond(on.emulator, method, path, body))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", ["/policylists/", "/policylists", "/PolicyLists/"])
def test_every_load_balancer_is_a_policy_list(node: GuardedNode, path: str) -> None:
    """kube-proxy's question at its start."""
    answer = call(node, "GET", path)
    assert answer["Success"] is True
    by_vip = {"".join(one["Policies"][0]["VIPs"]): one for one in answer["Output"]}
    assert set(by_vip) == {"10.96.0.10", "203.0.113.7", "203.0.113.80", ""}
    web = by_vip["10.96.0.10"]
    assert web["Policies"][0] | {"SourceVIP": ""} == {
        "Type": "ELB",
        "Protocol": 6,
        "InternalPort": 8080,
        "ExternalPort": 80,
        "VIPs": ["10.96.0.10"],
        "SourceVIP": "",
    } | dict.fromkeys(("IsDSR", "ILB", "LocalRoutedVip", "IsVipExternalIp"), False)
    ids = {node.endpoint_at(address).guid.lower() for address in (LOCAL_1, REMOTE_1)}
    assert set(web["References"]) == {f"/endpoints/{guid}" for guid in ids}
    assert by_vip[""]["Policies"][0]["LocalRoutedVip"]


def test_a_policy_list_says_what_the_load_balancer_is(node: GuardedNode) -> None:
    """Read back, nothing is lost but what schema 1 has no field for."""
    balancers = node.emulator.load_balancers()
    assert len(balancers) == 4
    for balancer in balancers:
        document, untold = balancer_document(Fields(policy_list(balancer)))
        again = decode_load_balancer(json.dumps(document))
        assert (again.guid, again.frontend_vips, again.source_vip) == (
            balancer.guid,
            balancer.frontend_vips,
            balancer.source_vip,
        )
        assert again.endpoints == balancer.endpoints
        (mapping,), (original,) = again.port_mappings, balancer.port_mappings
        assert mapping.flags == original.flags & ~untold.mapping_flags
        assert mapping.external_port == original.external_port


def test_one_is_read_and_deleted_by_its_id(node: GuardedNode) -> None:
    guid = node.balancers()["10.96.0.10:80/tcp"].guid
    assert call(node, "GET", f"/policylists/{guid.lower()}")["Output"]["ID"] == guid.lower()
    assert call(node, "DELETE", f"/policylists/{guid.lower()}") == {"Success": True}
    assert "10.96.0.10:80/tcp" not in node.served()
    gone = call(node, "DELETE", f"/policylists/{guid}")
    assert (gone["Success"], gone["ErrorCode"]) == (False, 0x80070490)
    assert node.period().ok, "deleted behind hansa's back, it is made again"
    assert "10.96.0.10:80/tcp" in node.served()


def test_one_is_made_and_made_only_once(node: GuardedNode) -> None:
    reference = f"/endpoints/{node.endpoint_at(LOCAL_1).guid.lower()}"
    elb = {"Type": "ELB", "Protocol": 6, "InternalPort": 8080, "ExternalPort": 80, "VIPs": ["10.96.9.9"]}
    body = json.dumps({"References": [reference], "Policies": [{**elb, "SourceVIP": "192.0.2.1"}]})
    made = call(node, "POST", "/policylists/", body)["Output"]
    assert made["References"] == [reference]
    assert node.backends("10.96.9.9:80/tcp") == [LOCAL_1]
    again = call(node, "POST", "/policylists/", body)
    assert (again["Success"], again["ErrorCode"]) == (False, 0x803B0013)


def test_what_cannot_be_read_does_not_spoil_the_list(node: GuardedNode) -> None:
    node.add_balancer("10.96.5.5", port_mappings=())
    listed = call(node, "GET", "/policylists/")["Output"]
    assert [one["Policies"] for one in listed].count([]) == 1
    node.refuse(0x80070490, HnsVerb.OPEN, LB)
    assert len(call(node, "GET", "/policylists/")["Output"]) == len(listed) - 1


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/portpools/", "", 0x80004001),
        ("PUT", "/policylists/", "", 0x80004001),
        ("DELETE", "/policylists/", "", 0x80004001),
        ("GET", "/policylists/web", "", 0x80070057),
        ("POST", "/policylists/", "{", 0x80070057),
        ("POST", "/policylists/", "[]", 0x80070057),
        ("POST", "/policylists/", '{"Policies": [3]}', 0x80070057),
        ("POST", "/policylists/", "[" * 100_000, 0x80070057),
        ("POST", "/networks/", '{"Policies": 7}', 0x80070057),
        ("POST", "/endpoints/", '{"Policies": 7}', 0x80070057),
        ("GET", "", "", 0x80004001),
    ],
)
def test_anything_else_is_refused_in_the_response(
    node: GuardedNode, method: str, path: str, body: str, code: int
) -> None:
    answer = call(node, method, path, body)
    assert (answer["Success"], answer["ErrorCode"]) == (False, code)
    assert answer["Error"]


@pytest.mark.parametrize("path", ["/policylists/", "/globals/version"])
def test_while_hns_is_away_there_is_no_response(node: GuardedNode, path: str) -> None:
    node.emulator.stop()
    with pytest.raises(HnsError) as refused:
        respond(node.emulator, "GET", path, "")
    assert refused.value.hresult == 0x800706BA
    assert node.emulator.open_handles == 0


@pytest.fixture
def dll() -> Any:
    library = double()
    yield library
    library.connect("")


def test_the_dll_serves_policy_lists_as_it_serves_the_version(dll: Double, node: GuardedNode) -> None:
    """As kube-proxy calls it: vmcompute.dll's HNSCall, whose texts are the caller's to free."""
    with serve(node.emulator, "127.0.0.1:0") as server:
        dll.connect(server.address)
        before = dll.leaks()
        code, response = dll.hns_call("GET", "/policylists/", "")
        assert code == 0
        assert len(json.loads(response)["Output"]) == 4
        assert json.loads(dll.hns_call("GET", "/globals/version", "")[1])["Success"] is True
        assert dll.leaks() == before
