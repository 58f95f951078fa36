"""The packet path: the walks of hcn.md 5.5 and what is known of their parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.hns.api import Guid, HnsKind
from hansa.hns.emulator import L2BRIDGE, WS2022, WS2025, Emulator, l2bridge_node, overlay_node
from hansa.hns.emulator.vswitch import forward, switch_of
from hansa.hns.emulator.vswitch_model import (
    BEHAVIOURS,
    EXTERNAL_PORT,
    HOST_PORT,
    Cause,
    Choose,
    Delivered,
    Dropped,
    Flows,
    Frame,
    Header,
    OnWire,
    Outer,
    Passage,
    Port,
    pod_port,
)
from hansa.hns.schema import (
    Acl,
    Distribution,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    LbFlags,
    MappingFlags,
    OutBoundNat,
    Policy,
    PortMapping,
    ProviderAddress,
)
from hansa.net import Address, Protocol, parse_address

A = parse_address
NODE, OTHER, CLIENT = A("192.0.2.21"), A("192.0.2.22"), A("203.0.113.9")
VIP = A("172.21.30.7")
NO_FLAGS = MappingFlags(0)
EXEMPT = ("10.40.0.0/16", "10.41.0.0/16", "172.21.0.0/16")


def pod(node: Emulator, address: str, *policies: Policy) -> Guid:
    guid = node.add_pod(address)
    node.alter(HnsKind.ENDPOINT, guid, policies=(OutBoundNat(exceptions=EXEMPT), *policies))
    return guid


def remote(node: Emulator, address: str, provider: Address | None = None) -> Guid:
    return node.add(
        HnsEndpoint(
            network=node.networks()[0].guid,
            ip_configurations=(IpConfiguration(A(address)),),
            flags=EndpointFlags.REMOTE,
            policies=() if provider is None else (ProviderAddress(provider),),
        )
    )


def balance(
    node: Emulator,
    *backends: Guid,
    vip: Address | None = VIP,
    dsr: bool = False,
    flags: MappingFlags = NO_FLAGS,
    source: Address | None = NODE,
    distribution: Distribution = Distribution.NONE,
) -> Guid:
    mapping = PortMapping(protocol=6, internal_port=8080, external_port=80, flags=flags, distribution=distribution)
    return node.add(
        HnsLoadBalancer(
            endpoints=backends,
            frontend_vips=() if vip is None else (vip,),
            source_vip=source,
            port_mappings=(mapping,),
            flags=LbFlags.DSR if dsr else LbFlags(0),
        )
    )


def header(source: str | Address, destination: str | Address, port: int | None = 80) -> Header:
    return Header(A(str(source)), 50000 if port else None, A(str(destination)), port, Protocol.TCP)


def send(node: Emulator, one: Header, at: Port, flows: Flows | None = None, *, pick: str = "") -> Passage:
    return forward(switch_of(node), Frame(one), at, flows=flows, choose=picking(pick))


def picking(address: str) -> Choose:
    return lambda _, candidates: candidates.index(A(address)) if address else 0


def back(node: Emulator, passage: Passage, at: Port) -> Passage:
    return send(node, passage.frame.header.reversed(), at, passage.flows)


def test_w1_a_pod_meets_a_dsr_load_balancer_at_its_own_port_and_gets_answers_from_the_vip() -> None:
    node = l2bridge_node()
    client, web = pod(node, "10.40.3.11"), pod(node, "10.40.3.12")
    balance(node, web, dsr=True)
    there = send(node, header("10.40.3.11", VIP), pod_port(client))
    assert (there.end, there.frame.header) == (
        Delivered(pod_port(web)),
        header("10.40.3.11", "10.40.3.12", 8080),  # the source stays
    )
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (Delivered(pod_port(client)), header("10.40.3.11", VIP).reversed())


def test_w1_on_overlay_it_is_encapsulated_to_the_provider_address_of_the_remote_endpoint() -> None:
    node = overlay_node()
    client, web = pod(node, "10.41.7.14"), remote(node, "10.41.8.20", OTHER)
    balance(node, web, dsr=True)
    there = send(node, header("10.41.7.14", VIP), pod_port(client))
    assert there.end == OnWire()
    assert there.frame == Frame(header("10.41.7.14", "10.41.8.20", 8080), Outer(NODE, OTHER, 4100))


def test_w2_without_dsr_the_source_vip_is_seen_and_both_ways_pass_the_host_port() -> None:
    node = overlay_node()
    client, web = pod(node, "10.41.7.14"), pod(node, "10.41.7.15")
    node.add(HnsEndpoint(network=node.networks()[0].guid, ip_configurations=(IpConfiguration(A("10.41.7.2")),)))
    balance(node, web, source=A("10.41.7.2"))
    there = send(node, header("10.41.7.14", VIP), pod_port(client))
    assert there.end == Delivered(pod_port(web))
    assert there.frame.header.source == A("10.41.7.2")
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (Delivered(pod_port(client)), header("10.41.7.14", VIP).reversed())
    assert any(hop.port == HOST_PORT for hop in there.hops)
    assert any(hop.port == HOST_PORT for hop in answer.hops)


@pytest.mark.parametrize("vip", [VIP, None])
def test_w3_from_outside_policy_cluster(vip: Address | None) -> None:
    node = l2bridge_node()
    web = remote(node, "10.40.4.12")
    balance(node, web, vip=vip)
    there = send(node, header(CLIENT, vip or NODE), EXTERNAL_PORT)
    assert (there.end, there.frame.header.source) == (OnWire(), NODE)
    answer = back(node, there, EXTERNAL_PORT)
    assert (answer.end, answer.frame.header) == (OnWire(), header(CLIENT, vip or NODE).reversed())


def test_w4_policy_local_keeps_the_client_and_the_pod_answers_as_the_vip() -> None:
    node = l2bridge_node()
    web = pod(node, "10.40.3.12")
    balance(node, web, vip=None, dsr=True)
    there = send(node, header(CLIENT, NODE), EXTERNAL_PORT)
    assert (there.end, there.frame.header) == (Delivered(pod_port(web)), header(CLIENT, "10.40.3.12", 8080))
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (OnWire(), header(CLIENT, NODE).reversed())


def test_w5_without_load_balancer_a_node_port_reaches_the_host_and_a_vip_dies() -> None:
    node = l2bridge_node()
    assert send(node, header(CLIENT, NODE), EXTERNAL_PORT).end == Delivered(HOST_PORT)
    end = send(node, header(CLIENT, VIP), EXTERNAL_PORT).end
    assert isinstance(end, Dropped)
    assert end.cause is Cause.NO_LOAD_BALANCER


def test_w6_preserve_destination_reaches_the_pod_with_the_vip() -> None:
    node = l2bridge_node()
    web = pod(node, "10.40.3.12")
    kept = MappingFlags.USE_MUX | MappingFlags.PRESERVE_DIP | MappingFlags.VIP_EXTERNAL_IP
    balance(node, web, dsr=True, flags=kept)
    there = send(node, header(CLIENT, VIP), EXTERNAL_PORT)
    assert (there.end, there.frame.header) == (Delivered(pod_port(web)), header(CLIENT, VIP))
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (OnWire(), header(CLIENT, VIP).reversed())


def test_w7_a_process_of_the_host_meets_no_load_balancer_of_a_cluster_ip() -> None:
    node = l2bridge_node()
    balance(node, pod(node, "10.40.3.12"), dsr=True)
    there = send(node, header(NODE, VIP), HOST_PORT)
    assert (there.end, there.frame.header) == (OnWire(), header(NODE, VIP))


@pytest.mark.parametrize("dsr", [True, False])
def test_w8_but_its_own_node_ports(dsr: bool) -> None:
    node = l2bridge_node()
    web = pod(node, "10.40.3.12")
    balance(node, web, vip=None, dsr=dsr, flags=MappingFlags.LOCAL_ROUTED_VIP)
    there = send(node, header(NODE, NODE), HOST_PORT)
    assert there.end == Delivered(pod_port(web))
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (Delivered(HOST_PORT), header(NODE, NODE).reversed())


def test_w9_a_pod_that_asks_a_vip_without_load_balancer_is_not_refused() -> None:
    node = l2bridge_node()
    there = send(node, header("10.40.3.11", VIP), pod_port(pod(node, "10.40.3.11")))
    assert (there.end, there.frame.header) == (OnWire(), header("10.40.3.11", VIP))


def test_w10_icmp_meets_no_load_balancer_and_keeps_its_source() -> None:
    node = l2bridge_node()
    client = pod(node, "10.40.3.11")
    balance(node, pod(node, "10.40.3.12"), dsr=True)
    for destination in (VIP, CLIENT):
        one = Header(A("10.40.3.11"), None, destination, None, Protocol.ICMP)
        assert send(node, one, pod_port(client)).frame.header == one


def test_a_pod_cannot_reach_itself_by_dsr_unless_the_cni_rewrites_its_source() -> None:
    """hcn.md 5.4 and 5.7: loopback DSR is an OutBoundNAT policy with the pod's own address as destination."""
    node = l2bridge_node()
    web = pod(node, "10.40.3.12")
    balance(node, web, dsr=True)
    end = send(node, header("10.40.3.12", VIP), pod_port(web)).end
    assert isinstance(end, Dropped)
    assert end.cause is Cause.HAIRPIN
    loopback = OutBoundNat(destinations=("10.40.3.12",))
    node.alter(HnsKind.ENDPOINT, web, policies=(OutBoundNat(exceptions=EXEMPT), loopback))
    there = send(node, header("10.40.3.12", VIP), pod_port(web))
    assert (there.end, there.frame.header.source) == (Delivered(pod_port(web)), NODE)
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (Delivered(pod_port(web)), header("10.40.3.12", VIP).reversed())


def test_without_dsr_a_pod_reaches_itself() -> None:
    node = l2bridge_node()
    web = pod(node, "10.40.3.12")
    balance(node, web)
    there = send(node, header("10.40.3.12", VIP), pod_port(web))
    answer = back(node, there, pod_port(web))
    assert (answer.end, answer.frame.header) == (Delivered(pod_port(web)), header("10.40.3.12", VIP).reversed())


def test_outbound_nat_spares_its_exceptions_and_answers_find_the_pod() -> None:
    node = l2bridge_node()
    client = pod(node, "10.40.3.11")
    there = send(node, header("10.40.3.11", CLIENT), pod_port(client))
    assert (there.end, there.frame.header.source) == (OnWire(), NODE)
    answer = back(node, there, EXTERNAL_PORT)
    assert (answer.end, answer.frame.header) == (Delivered(pod_port(client)), header("10.40.3.11", CLIENT).reversed())
    assert send(node, header("10.40.3.11", "10.40.4.7"), pod_port(client)).frame.header.source == A("10.40.3.11")


def test_what_came_in_untranslated_is_answered_untranslated() -> None:
    """VFP17: a layer's flow creates the mirror flow; else OutBoundNAT would change the source of every answer."""
    node = l2bridge_node()
    web = pod(node, "10.40.3.12")
    there = send(node, header(CLIENT, "10.40.3.12", 8080), EXTERNAL_PORT)
    assert back(node, there, pod_port(web)).frame.header == header(CLIENT, "10.40.3.12", 8080).reversed()


def test_client_affinity_depends_on_the_clients_address_alone() -> None:
    node = l2bridge_node()
    client, backends = pod(node, "10.40.3.11"), [pod(node, f"10.40.3.{number}") for number in range(20, 40)]
    balance(node, *backends, dsr=True, distribution=Distribution.SOURCE_IP)
    reached = {
        forward(switch_of(node), Frame(header("10.40.3.11", VIP)._replace(source_port=port)), pod_port(client)).end
        for port in range(50000, 50020)
    }
    assert len(reached) == 1


def test_without_affinity_connections_are_spread_and_established_ones_stay() -> None:
    node = l2bridge_node()
    client, backends = pod(node, "10.40.3.11"), [pod(node, f"10.40.3.{number}") for number in range(20, 24)]
    guid = balance(node, *backends, dsr=True)
    passages = {
        port: forward(switch_of(node), Frame(header("10.40.3.11", VIP)._replace(source_port=port)), pod_port(client))
        for port in range(50000, 50020)
    }
    assert len({one.end for one in passages.values()}) > 1
    first = passages[50000]
    assert isinstance(first.end, Delivered)
    node.alter(HnsKind.LOAD_BALANCER, guid, endpoints=tuple(one for one in backends if pod_port(one) != first.end.port))
    assert send(node, header("10.40.3.11", VIP), pod_port(client), first.flows).end == first.end


def test_a_connection_ends_with_its_load_balancer_unless_the_vip_is_external() -> None:
    """hcn.md 5.7, VipExternalIP: established flows stay on their back end."""
    for flags, stays in ((MappingFlags(0), False), (MappingFlags.VIP_EXTERNAL_IP, True)):
        node = l2bridge_node()
        client, web = pod(node, "10.40.3.11"), pod(node, "10.40.3.12")
        guid = balance(node, web, dsr=True, flags=flags)
        first = send(node, header("10.40.3.11", VIP), pod_port(client))
        node.remove(HnsKind.LOAD_BALANCER, guid)
        again = send(node, header("10.40.3.11", VIP), pod_port(client), first.flows)
        assert (again.end == first.end) is stays


def test_without_source_vip_the_node_address_or_by_the_build_the_vip_itself() -> None:
    """hcn.md 5.6 and kubernetes/community#8890: with the VIP in the NAT pool replies loop."""
    for build, seen in ((WS2022, NODE), (replace(WS2022, empty_source_vip_is_vip=True), VIP)):
        node = l2bridge_node(build)
        balance(node, remote(node, "10.40.4.12"), source=None)
        assert send(node, header(CLIENT, VIP), EXTERNAL_PORT).frame.header.source == seen


def test_dsr_with_endpoints_elsewhere_leaves_the_source_as_it_was() -> None:
    node = l2bridge_node()
    balance(node, pod(node, "10.40.3.12"), remote(node, "10.40.4.12"), vip=None, dsr=True)
    there = send(node, header(CLIENT, NODE), EXTERNAL_PORT, pick="10.40.4.12")
    assert (there.end, there.frame.header) == (OnWire(), header(CLIENT, "10.40.4.12", 8080))


def test_answers_to_a_source_vip_that_nobody_holds_leave_the_node() -> None:
    node = overlay_node()
    client, web = pod(node, "10.41.7.14"), pod(node, "10.41.7.15")
    balance(node, web, source=A("10.41.7.2"))
    there = send(node, header("10.41.7.14", VIP), pod_port(client))
    assert back(node, there, pod_port(web)).end == OnWire()


def test_a_remote_endpoint_hides_a_pod_with_its_address() -> None:
    """hcn.md 5.10 B1."""
    node = overlay_node()
    client, web = pod(node, "10.41.7.14"), pod(node, "10.41.7.15")
    balance(node, web, dsr=True)
    remote(node, "10.41.7.15", OTHER)
    for destination in (VIP, A("10.41.7.15")):
        there = send(node, header("10.41.7.14", destination), pod_port(client))
        assert there.frame.outer == Outer(NODE, OTHER, 4100)
        assert "VP-21" in {hop.behaviour for hop in there.hops}


def test_what_comes_encapsulated_for_somebody_else_is_dropped() -> None:
    node = overlay_node()
    web = pod(node, "10.41.7.15")
    one = header("10.41.8.20", "10.41.7.15", 8080)

    def arrive(outer: Outer, inner: Header) -> object:
        end = forward(switch_of(node), Frame(inner, outer), EXTERNAL_PORT).end
        return end.cause if isinstance(end, Dropped) else end

    assert arrive(Outer(OTHER, NODE, 4100), one) == Delivered(pod_port(web))
    assert arrive(Outer(OTHER, NODE, 4101), one) is Cause.OTHER_VNI
    assert arrive(Outer(OTHER, OTHER, 4100), one) is Cause.OTHER_NODE
    assert arrive(Outer(OTHER, NODE, 4100), header("10.41.8.20", "10.41.7.99")) is Cause.OTHER_NODE
    end = send(node, one, EXTERNAL_PORT).end
    assert isinstance(end, Dropped)
    assert end.cause is Cause.NOT_ENCAPSULATED


def test_a_load_balancer_whose_endpoints_are_gone_leads_nowhere() -> None:
    node = l2bridge_node()
    client, web = pod(node, "10.40.3.11"), pod(node, "10.40.3.12")
    guid = balance(node, web, dsr=True)
    node.remove(HnsKind.ENDPOINT, web)
    end = send(node, header("10.40.3.11", VIP), pod_port(client)).end
    assert isinstance(end, Dropped)
    assert (end.cause, end.culprit) == (Cause.NO_BACKEND, guid)


@pytest.mark.parametrize(
    ("acls", "passes"),
    [
        ((), True),
        ((Acl("Block", "In", remote_addresses="10.40.3.11/32", priority=200),), False),
        ((Acl("Block", "In", remote_addresses="10.40.3.99", priority=200),), True),
        ((Acl("Block", "In", local_ports="8000-8090", priority=200),), False),
        ((Acl("Block", "In", local_ports="80,443", priority=200),), True),
        ((Acl("Block", "In", protocols="17", priority=200),), True),
        ((Acl("Block", "In", protocols="256", priority=200),), False),
        ((Acl("Block", "In", priority=200), Acl("Allow", "In", priority=100)), True),
        ((Acl("Allow", "In", priority=200), Acl("Block", "In", priority=200)), False),  # Block wins a tie (inferred)
        ((Acl("Block", "Out", priority=200),), True),  # answers of an allowed connection pass
    ],
)
def test_acls_of_the_receiving_pod(acls: tuple[Acl, ...], passes: bool) -> None:
    node = l2bridge_node()
    client, web = pod(node, "10.40.3.11"), pod(node, "10.40.3.12", *acls)
    there = send(node, header("10.40.3.11", "10.40.3.12", 8080), pod_port(client))
    assert isinstance(there.end, Delivered) is passes
    if passes:
        assert back(node, there, pod_port(web)).end == Delivered(pod_port(client))


def test_egress_acls_see_the_endpoint_and_by_a_switch_the_vip() -> None:
    """hcn.md 5.3."""
    block = Acl("Block", "Out", remote_addresses="10.40.3.12", priority=200)
    for build, passes in ((WS2022, False), (replace(WS2022, acl_sees_vip=True), True)):
        node = l2bridge_node(build)
        client = pod(node, "10.40.3.11", block)
        balance(node, pod(node, "10.40.3.12"), dsr=True)
        assert isinstance(send(node, header("10.40.3.11", VIP), pod_port(client)).end, Delivered) is passes


def test_a_build_may_deny_what_no_acl_is_about() -> None:
    """microsoft/Windows-Containers#616."""
    for build, passes in ((WS2022, True), (WS2025, False)):
        node = l2bridge_node(build)
        client = pod(node, "10.40.3.11", Acl("Allow", "In", priority=1000))
        pod(node, "10.40.3.12")
        there = send(node, header("10.40.3.11", "10.40.3.12", 8080), pod_port(client))
        assert isinstance(there.end, Delivered) is passes


def test_the_source_ports_lie_in_the_block_that_the_load_balancer_holds() -> None:
    """hcn.md 5.9: 64 contiguous ports."""
    node = l2bridge_node()
    guid = balance(node, remote(node, "10.40.4.12"))
    first = node.port_block(guid)
    assert first is not None
    seen = {
        forward(switch_of(node), Frame(header(CLIENT, VIP)._replace(source_port=port)), EXTERNAL_PORT).frame.header
        for port in range(50000, 50050)
    }
    assert all(one.source_port is not None and first <= one.source_port < first + 64 for one in seen)


def test_a_node_without_a_network_for_pods_has_no_way() -> None:
    node = Emulator()
    end = forward(switch_of(node), Frame(header(CLIENT, NODE)), EXTERNAL_PORT).end
    assert end == Dropped(Cause.NO_NETWORK)


def test_ipv6_meets_load_balancers_of_its_own_family() -> None:
    layout = replace(
        L2BRIDGE,
        machine=replace(L2BRIDGE.machine, addresses=("192.0.2.21", "2001:db8:0:1::21")),
        pod_prefixes=("10.40.3.0/24", "2001:db8:40:3::/64"),
    )
    node = l2bridge_node(layout=layout)
    web = node.add_pod("2001:db8:40:3::12")
    guid = balance(node, web, vip=None, source=A("2001:db8:0:1::21"))
    one = header("2001:db8:9::9", "2001:db8:0:1::21")
    assert send(node, one, EXTERNAL_PORT).end == Delivered(HOST_PORT)
    node.alter(HnsKind.LOAD_BALANCER, guid, flags=LbFlags.IPV6)
    assert send(node, one, EXTERNAL_PORT).end == Delivered(pod_port(web))


def test_every_step_has_a_grade() -> None:
    assert all(each.meaning and each.evidence for each in BEHAVIOURS.values())
