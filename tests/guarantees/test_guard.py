"""The guard itself: a watcher that cannot find anything proves nothing, so each invariant is broken here on purpose."""

from __future__ import annotations

from contextlib import suppress

import pytest
from tests.guarantees.node import LOCAL_1, REMOTE_1, SOURCE_VIP, WITH_MODIFY, GuardedNode, bridge, overlay

from hansa.dataplanes.base import HostState, SyncReport
from hansa.hns.api import ZERO_GUID, HnsError, HnsKind
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    LbFlags,
    PortMapping,
    encode,
)
from hansa.net import parse_address
from hansa.testing import L1, NODE_IP, R1, WEB, endpoint_slice

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
CLUSTER_IP = "10.96.0.10:80/tcp"
DONE = SyncReport(HostState.HEALTHY)


def ready() -> GuardedNode:
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=WITH_MODIFY)
    node.settle()
    node.guard.begin_pass()
    return node


def found(node: GuardedNode) -> set[str]:
    node.guard.end_pass(DONE)
    return {text.partition(":")[0] for text in node.guard.breaches}


def document(node: GuardedNode, vip: str = "10.96.0.99", **fields: object) -> str:
    made: dict[str, object] = {
        "endpoints": (node.endpoint_at(LOCAL_1).guid,),
        "source_vip": NODE_IP,
        "frontend_vips": (parse_address(vip),),
        "port_mappings": (PortMapping(protocol=6, internal_port=8080, external_port=8080),),
    }
    return encode(HnsLoadBalancer(**{**made, **fields}))  # type: ignore[arg-type]


def test_an_honest_document_breaks_nothing() -> None:
    node = ready()
    node.client.create(LB, document(node))
    assert found(node) == set()


def test_I1_writing_a_local_endpoint() -> None:
    node = ready()
    node.client.delete(LB, node.balancers()[CLUSTER_IP].guid)
    node.guard.breaches.clear()
    with pytest.raises(HnsError):
        node.client.delete(EP, node.endpoint_at(LOCAL_1).guid)
    assert "I1" in found(node)


def test_I1_creating_one_that_is_not_the_source_vip() -> None:
    node = overlay()
    node.sync()
    local = HnsEndpoint(ip_configurations=(IpConfiguration(parse_address("10.1.1.90")),), flags=EndpointFlags(0))
    node.client.create(EP, encode(local), network=node.emulator.networks()[0].guid)
    assert "I1" in found(node)
    assert SOURCE_VIP in node.config.windows.source_vip


def test_I2_touching_what_belongs_to_others() -> None:
    node = ready()
    foreign = node.add_balancer("198.51.100.1")
    node.client.delete(LB, foreign)
    assert found(node) == {"I2"}


def test_I2_changing_a_network() -> None:
    node = ready()
    with pytest.raises(HnsError):
        node.client.modify(HnsKind.NETWORK, node.emulator.networks()[0].guid, "{}")
    assert found(node) == {"I2"}


def test_I3_naming_an_endpoint_that_was_not_seen() -> None:
    node = ready()
    node.add_pod("10.1.1.99")
    node.client.create(LB, document(node, endpoints=(node.endpoint_at("10.1.1.99").guid,)))
    assert found(node) == {"I3"}


def test_I4_deleting_an_endpoint_in_use() -> None:
    node = ready()
    with pytest.raises(HnsError):
        node.client.delete(EP, node.endpoint_at(REMOTE_1).guid)
    assert found(node) == {"I4"}


def test_I5_leaving_a_desired_frontend_bare_and_I6_for_nothing() -> None:
    node = ready()
    node.client.delete(LB, node.balancers()[CLUSTER_IP].guid)
    assert found(node) == {"I5", "I6"}


def test_I5_calls_between_delete_and_create_and_replacing_where_modify_would_do() -> None:
    node = ready()
    old = node.balancers()[CLUSTER_IP]
    node.client.delete(LB, old.guid)
    node.client.list_ids(LB)
    node.client.create(LB, encode(old))
    assert any("calls come between" in text for text in node.guard.breaches)
    node.guard.breaches.clear()
    node.settle()
    old = node.balancers()[CLUSTER_IP]
    node.client.delete(LB, old.guid)
    node.client.create(LB, encode(old))
    assert any("Modify would do" in text for text in node.guard.breaches)


def test_I6_writing_what_is_as_desired() -> None:
    node = ready()
    old = node.balancers()[CLUSTER_IP]
    node.client.modify(LB, old.guid, encode(old))
    assert found(node) == {"I6"}


@pytest.mark.parametrize("fields", [{"endpoints": ()}, {"source_vip": None}, {"twice": True}], ids=str)
def test_I7_documents_without_content(fields: dict[str, object]) -> None:
    node = ready()
    if fields.pop("twice", False):
        fields["endpoints"] = (node.endpoint_at(LOCAL_1).guid,) * 2
    with suppress(HnsError):
        node.client.create(LB, document(node, **fields))
    assert found(node) == {"I7"}


def test_I7_a_port_that_the_backend_does_not_serve() -> None:
    node = ready()
    node.client.delete(LB, node.balancers()[CLUSTER_IP].guid)
    node.guard.breaches.clear()
    wrong = (PortMapping(protocol=6, internal_port=9999, external_port=80),)
    node.client.create(LB, document(node, "10.96.0.10", port_mappings=wrong))
    assert "I7" in found(node)


def test_I8_two_load_balancers_at_one_frontend_or_one_for_two() -> None:
    node = ready()
    both = tuple(PortMapping(protocol=6, internal_port=8080, external_port=number) for number in (8080, 8081))
    node.client.create(LB, document(node, port_mappings=both))
    assert found(node) == {"I8"}
    node.guard.breaches.clear()
    web = (PortMapping(protocol=6, internal_port=8080, external_port=80),)
    with pytest.raises(HnsError):
        node.client.create(LB, document(node, "10.96.0.10", port_mappings=web))
    assert found(node) == {"I8"}


def test_I12_writing_after_hns_has_not_answered() -> None:
    node = ready()
    node.emulator.stop()
    for _ in range(2):
        with pytest.raises(HnsError):
            node.client.create(LB, "{}", guid=ZERO_GUID)
    assert any(text.startswith("I12: ") for text in node.guard.breaches)


def test_I12_forgetting_while_hns_is_away() -> None:
    node = ready()
    node.emulator.stop()
    with pytest.raises(HnsError):
        node.client.list_ids(LB)
    node.dataplane.situation.observed.forget_endpoints()
    node.guard.end_pass(SyncReport(HostState.UNAVAILABLE))
    assert node.guard.breaches == ["I12: forgets objects while HNS does not answer"]


def test_I17_a_handle_left_open_and_one_closed_twice() -> None:
    node = ready()
    handle = node.guard.open(LB, node.balancers()[CLUSTER_IP].guid)
    assert found(node) == {"I17"}
    node.guard.breaches.clear()
    node.guard.close(LB, handle)
    node.guard.close(LB, handle)
    assert found(node) == {"I17"}


def test_I18_mixing_families() -> None:
    node = ready()
    with pytest.raises(HnsError):
        node.client.create(LB, document(node, flags=LbFlags.IPV6))
    assert found(node) == {"I18"}


def test_a_breach_fails_the_sync() -> None:
    node = ready()
    node.emulator.watch(lambda _: node.guard.breach("I2", "made up"))
    with pytest.raises(AssertionError, match="made up"):
        node.audit()
