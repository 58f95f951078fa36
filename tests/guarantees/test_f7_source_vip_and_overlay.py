"""windows-proxy F.7: the address that backends see, and what an overlay network needs besides."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.guarantees.node import (
    BRIDGE_DUAL,
    LOCAL_1,
    LOCAL_2,
    REMOTE_1,
    REMOTE_2,
    SOURCE_VIP,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    GuardedNode,
    bridge,
    overlay,
    plain,
)

from hansa.dataplanes.base import HostState
from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import WS2019, Build
from hansa.hns.schema import RawPolicy, RemoteSubnetRoute
from hansa.net import parse_address
from hansa.testing import L1, L2, NODE_IP, NODE_IP_V6, R1, R2, WEB, endpoint, endpoint_slice, port, service, slice_port

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
CLUSTER_IP, API_IP = "10.96.0.10:80/tcp", "10.96.0.11:80/tcp"
API = service("api", cluster_ips=["10.96.0.11"])
OTHER_NODE, PUBLIC = "192.0.2.2", "198.51.100.7"


def source_vips(node: GuardedNode) -> set[str]:
    return {str(each.source_vip) for each in node.emulator.load_balancers()}


def api_slice(*endpoints: object) -> object:
    return endpoint_slice("api-a", endpoints, service="api")  # type: ignore[arg-type]


def test_F56_the_source_vip_is_never_empty() -> None:
    """On l2bridge it is the node's address of the family, or the configured one; HNS of 2019 would take the VIP."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(WS2019))
    assert node.sync().ok
    assert source_vips(node) == {str(NODE_IP)}
    dual = bridge(
        service(cluster_ips=["10.96.0.10", "fd00::10"]),
        endpoint_slice("web-4", [L1]),
        endpoint_slice("web-6", ["fd01::11"]),
        layout=BRIDGE_DUAL,
    )
    assert dual.sync().ok
    assert {name: each.source_vip for name, each in dual.balancers().items()} == {
        CLUSTER_IP: NODE_IP,
        "[fd00::10]:80/tcp": NODE_IP_V6,
    }
    configured = bridge(WEB, endpoint_slice("web-a", [L1]), source_vip=(parse_address("10.1.1.200"),))
    assert configured.sync().ok
    assert source_vips(configured) == {"10.1.1.200"}
    assert configured.locals() == ["10.1.1.11", "10.1.1.12", "10.1.1.2"], "no endpoint is made for it here"


def test_F57_the_source_vip_comes_from_the_configuration_then_from_a_named_endpoint_else_a_condition_says_so() -> None:
    """Without one, load balancers with local backends only are made; the others wait, and who must act is named."""
    objects = WEB, endpoint_slice("web-a", [L1, R1]), API, api_slice(L1)
    node = overlay(*objects, source_vip=())  # type: ignore[arg-type]
    report = node.sync()
    assert report.state is HostState.WAITING
    assert any(text.startswith("source VIP missing: set winkernel.sourceVip") for text in report.conditions)
    assert node.served() == {API_IP: [LOCAL_1]}
    named = overlay(*objects, source_vip=(), source_vip_endpoint="vip_ep")  # type: ignore[arg-type]
    named.sync()
    named.emulator.add_pod("10.1.1.77", name="vip_ep")
    assert named.period().ok
    assert str(named.balancers()[CLUSTER_IP].source_vip) == "10.1.1.77"
    both = overlay(*objects, source_vip_endpoint="vip_ep")  # type: ignore[arg-type]
    both.emulator.add_pod("10.1.1.77", name="vip_ep")
    assert both.sync().ok
    assert source_vips(both) == {str(SOURCE_VIP)}


@pytest.mark.parametrize("vip, why", [("10.1.1.1", "invalid or reserved"), ("172.30.0.1", "not part of any")])
def test_F58_a_reserved_or_foreign_source_vip_holds_back_only_who_needs_it(vip: str, why: str) -> None:
    """The gateway's address, or one outside the subnet: the error names the address and HNS's reason."""
    node = overlay(
        WEB,
        endpoint_slice("web-a", [L1, R1]),
        API,
        api_slice(L1),  # type: ignore[arg-type]
        source_vip=(parse_address(vip),),
    )
    report = node.sync()
    assert API_IP in node.served()
    assert CLUSTER_IP not in node.served()
    assert f"endpoint {vip}" in report.pending
    assert any(vip in text and why in text for text in report.conditions)
    before = node.count(HnsVerb.CREATE, EP)
    node.period()
    assert node.count(HnsVerb.CREATE, EP) == before, "HNS has said no: nothing is repeated until something changes"


@pytest.mark.parametrize("first", [True, False], ids=["web-first", "api-first"])
def test_F59_the_source_vip_depends_on_the_backends_and_the_network_alone(first: bool) -> None:
    """Two services share a backend that is another node's address: both get the node IP, in whatever order."""
    node = overlay()
    node.sync()
    web = (service(), endpoint_slice("web-a", [endpoint(OTHER_NODE, node="n2")]))
    api = (API, api_slice(endpoint(OTHER_NODE, node="n2")))
    for each in (web, api) if first else (api, web):
        node.put(*each)  # type: ignore[arg-type]
        assert node.sync().ok
    assert source_vips(node) == {str(NODE_IP)}
    node.put(endpoint_slice("web-a", [R1]))
    assert node.sync().ok
    assert {name: each.source_vip for name, each in node.balancers().items()} == {
        CLUSTER_IP: SOURCE_VIP,
        API_IP: NODE_IP,
    }
    node.start()
    node.forget()
    assert node.sync().ok
    assert node.writes == []


@pytest.mark.parametrize(
    "backends, expected",
    [
        ([L1, R1], SOURCE_VIP),
        ([L1], SOURCE_VIP),
        ([endpoint(PUBLIC)], NODE_IP),
        ([endpoint(OTHER_NODE, node="n2")], NODE_IP),
        ([R1, endpoint(PUBLIC)], NODE_IP),
    ],
    ids=["pods", "local pods", "public", "another node", "mixed"],
)
def test_F60_one_external_backend_decides_for_all_and_a_mix_is_reported(
    backends: list[object], expected: object
) -> None:
    """Table C.3, row by row; only where both kinds meet is there something to report."""
    node = overlay(service(), endpoint_slice("web-a", backends))  # type: ignore[arg-type]
    report = node.sync()
    assert report.ok
    assert node.balancers()[CLUSTER_IP].source_vip == expected
    mixed = [one.feature for one in report.shortfalls] == ["source-vip-mix"]
    assert mixed is (len(backends) == 2 and expected == NODE_IP)


@BOTH
def test_F61_the_service_vip_endpoint_lives_as_long_as_any_port_has_the_address(build: Build) -> None:
    """Endpoint changes and the end of one port do not touch it."""
    two = replace(service(), ports=(port("http", 80), port("tls", 443)))
    ports = [slice_port("http"), slice_port("tls")]
    node = overlay(two, endpoint_slice("web-a", [R1, R2], ports=ports), build=build)
    node.settle()
    made = node.endpoint_at("10.96.0.10")
    assert (made.remote, made.provider_address) == (True, NODE_IP)
    node.put(endpoint_slice("web-a", [L1], ports=ports))
    node.sync()
    node.put(endpoint_slice("web-a", [], ports=ports))
    node.sync()
    node.put(endpoint_slice("web-a", [R1], ports=ports), replace(two, ports=two.ports[:1]))
    assert node.sync().ok
    assert node.endpoint_at("10.96.0.10") == made
    assert not any(call.guid == made.guid for call in node.writes)
    node.delete(two)
    assert node.sync().ok
    assert node.endpoints_at("10.96.0.10") == []


def change_routes(node: GuardedNode, routes: dict[str, str], *more: object) -> None:
    network = node.emulator.networks()[0]
    kept = [policy for policy in network.policies if not isinstance(policy, RemoteSubnetRoute)]
    old = [policy for policy in network.policies if isinstance(policy, RemoteSubnetRoute)]
    moved = [
        msgspec.structs.replace(each, provider_address=parse_address(routes[str(each.prefix)]))
        for each in old
        if str(each.prefix) in routes
    ]
    node.emulator.alter(HnsKind.NETWORK, network.guid, policies=(*kept, *moved, *more))


@BOTH
def test_F63_a_changed_remote_subnet_is_seen_within_one_period_and_its_endpoints_are_replaced(build: Build) -> None:
    """The pods of 10.1.2.0/24 are now behind another node; one group takes every user off, and on again."""
    node = overlay(WEB, endpoint_slice("web-a", [L1, R1, R2]), API, api_slice(R1), build=build)  # type: ignore[arg-type]
    node.settle()
    change_routes(node, {"10.1.2.0/24": "192.0.2.9", "10.1.3.0/24": "192.0.2.3"})
    untouched = node.endpoint_at(REMOTE_2)
    assert node.period().ok
    assert str(node.endpoint_at(REMOTE_1).provider_address) == "192.0.2.9"
    assert node.endpoint_at(REMOTE_2) == untouched
    assert node.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_1, REMOTE_2]
    assert node.backends(API_IP) == [REMOTE_1]
    assert node.period().ok


def test_F64_a_malformed_remote_subnet_policy_is_skipped_and_reported() -> None:
    """All other subnets count, and the report names the network and the policy."""
    node = overlay(service(), endpoint_slice("web-a", [L2, R1]))
    bad = RawPolicy("RemoteSubnetRoute", b'{"DestinationPrefix":"10.1.2.0/240"}')
    change_routes(node, {"10.1.2.0/24": "192.0.2.2"}, bad)
    report = node.sync()
    assert report.ok
    assert node.backends(CLUSTER_IP) == [LOCAL_2, REMOTE_1]
    assert str(node.endpoint_at(REMOTE_1).provider_address) == "192.0.2.2"
    assert any("policy RemoteSubnetRoute is skipped" in text for text in report.conditions)
