"""windows-proxy F.9: conditions, affinity, families, ports and protocols."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.guarantees.node import (
    BRIDGE,
    BRIDGE_DUAL,
    LOCAL_1,
    LOCAL_2,
    REMOTE_1,
    REMOTE_2,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    bridge,
    overlay,
    plain,
)

from hansa.api.objects import Policy, Service
from hansa.hns.emulator import WS2019, Build
from hansa.net import Protocol, parse_address, parse_prefix
from hansa.testing import L1, L2, NODE_IP, R1, R2, WEB, endpoint, endpoint_slice, node, port, service, slice_port

BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
CLUSTER_IP, VIP, HEALTH = "10.96.0.10:80/tcp", "203.0.113.80:80/tcp", "203.0.113.80:32000/tcp"
LOCAL = replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000)


def ending(one: object) -> object:
    return replace(one, ready=False, serving=True, terminating=True)  # type: ignore[type-var]


def unready(one: object) -> object:
    return replace(one, ready=False, serving=False)  # type: ignore[type-var]


@pytest.mark.parametrize("web", [service(), WEB, LOCAL], ids=["ClusterIP", "LoadBalancer", "Local"])
def test_F71_pods_that_are_ending_serve_on_every_frontend_until_there_is_a_ready_one(web: Service) -> None:
    """Terminating and still serving ones are the fallback for every kind of frontend and type of service."""
    on = bridge(web, endpoint_slice("web-a", [ending(L1), ending(L2)]))  # type: ignore[list-item]
    assert on.sync().ok
    assert set(map(tuple, on.served().values())) == {(LOCAL_1, LOCAL_2)}
    on.put(endpoint_slice("web-a", [ending(L1), L2]))  # type: ignore[list-item]
    assert on.sync().ok
    assert set(map(tuple, on.served().values())) == {(LOCAL_2,)}


@pytest.mark.parametrize("web", [WEB, LOCAL], ids=["Cluster", "Local"])
def test_F72_endpoints_that_are_not_ready_never_get_traffic(web: Service) -> None:
    """Neither when all are unready, nor when a Local policy finds no pod here."""
    on = bridge(web, endpoint_slice("web-a", [unready(L1), unready(R1)]))  # type: ignore[list-item]
    on.sync()
    assert on.served() == {}
    on.put(endpoint_slice("web-a", [R1, unready(R2)]))  # type: ignore[list-item]
    on.sync()
    assert set(map(tuple, on.served().values())) == {(REMOTE_1,)}
    assert on.remotes() == [REMOTE_1]


def test_F73_ready_alone_decides_so_publish_not_ready_addresses_works() -> None:
    """Such a slice says ready and not serving: the endpoint gets traffic on every frontend."""
    on = bridge(WEB, endpoint_slice("web-a", [replace(L1, ready=True, serving=False)]))
    assert on.sync().ok
    assert set(map(tuple, on.served().values())) == {(LOCAL_1,)}
    assert len(on.served()) == 4


def test_F74_affinity_is_programmed_where_hns_has_it_and_reported_where_it_has_not() -> None:
    """Distribution 2 from HNS 12.0 on, 0 before; the time limit can be set nowhere, and that is said."""
    sticky = replace(WEB, affinity_timeout_s=600)
    new = bridge(sticky, endpoint_slice("web-a", [L1]))
    report = new.sync()
    assert {each.port_mappings[0].distribution for each in new.emulator.load_balancers()} == {2}
    (told,) = report.shortfalls
    assert told.feature == "session-affinity-timeout"
    assert "600 s" in told.text
    old = bridge(sticky, endpoint_slice("web-a", [L1]), build=plain(WS2019))
    report = old.sync()
    assert {each.port_mappings[0].distribution for each in old.emulator.load_balancers()} == {0}
    (told,) = report.shortfalls
    assert (told.feature, told.found) == ("session-affinity", "HNS 9.5")


def test_F75_the_health_check_of_a_udp_service_is_tcp() -> None:
    """Whatever the service speaks, its health is asked for by HTTP."""
    dns = replace(LOCAL, ports=(port("dns", 53, protocol="UDP"),), external_ips=())
    slices = endpoint_slice("web-a", [L1], ports=[slice_port("dns", 53, protocol="UDP")])
    on = bridge(dns, slices, forward_health_check_vip=True)
    assert on.sync().ok
    assert HEALTH in on.served()
    assert {Protocol(each.port_mappings[0].protocol) for each in on.emulator.load_balancers()} == {
        Protocol.UDP,
        Protocol.TCP,
    }


DUAL = replace(
    WEB,
    cluster_ips=(parse_address("10.96.0.10"), parse_address("fd00::10")),
    load_balancer_vips=(parse_address("203.0.113.80"), parse_address("2001:db8:7::80")),
    external_ips=(),
)
SIX_1, SIX_2 = "fd01::11", "fd01::21"


@BOTH
def test_F76_each_family_has_its_own_load_balancers_and_never_a_backend_of_the_other(build: Build) -> None:
    """One reconciler for both; the family is part of the frontend, IPv6 has flag 2."""
    on = bridge(DUAL, build=build, layout=BRIDGE_DUAL)
    on.put(endpoint_slice("web-4", [L1, R1]), endpoint_slice("web-6", [SIX_1, SIX_2]))
    assert on.sync().ok
    four, six = [LOCAL_1, REMOTE_1], [SIX_1, SIX_2]
    expected = {
        "10.96.0.10:80/tcp": four,
        VIP: four,
        "node:30080/tcp": four,
        "[fd00::10]:80/tcp": six,
        "[2001:db8:7::80]:80/tcp": six,
        "node6:30080/tcp": six,
    }
    assert on.served() == expected
    assert {name for name, each in on.balancers().items() if int(each.flags) & 2} == {
        name for name in expected if "[" in name or "node6" in name
    }
    on.put(endpoint_slice("web-6", [SIX_2]))
    on.forget()
    assert on.sync().ok
    assert not any("10.96" in line or "203.0.113" in line or "node:" in line for line in on.written())


@pytest.mark.parametrize("how", ["old HNS", "overlay", "node without IPv6"])
def test_F77_a_family_that_the_node_lacks_is_simply_not_programmed(how: str) -> None:
    """All of IPv4 works, and each frontend that is missing is a shortfall."""
    slices = endpoint_slice("web-4", [L1]), endpoint_slice("web-6", [SIX_2])
    if how == "overlay":
        on = overlay(DUAL, *slices)
    else:
        on = bridge(DUAL, *slices, build=plain(WS2019) if how == "old HNS" else WITHOUT_MODIFY, layout=BRIDGE)
        if how == "node without IPv6":
            on.put(node(addresses=[NODE_IP]))
    report = on.sync()
    assert report.ok
    assert on.served() == {"10.96.0.10:80/tcp": [LOCAL_1], VIP: [LOCAL_1], "node:30080/tcp": [LOCAL_1]}
    told = {str(one.frontend) for one in report.shortfalls if one.feature in ("ipv6", "family")}
    assert told == {"[fd00::10]:80/tcp", "[2001:db8:7::80]:80/tcp", "node(IPv6):30080/tcp"}


@pytest.mark.parametrize("target", ["http-named", 80, 9999, None])
def test_F78_the_backends_port_is_the_slices_whatever_the_service_says(target: object) -> None:
    """Named, different or absent target port: 8080 of the slice is programmed."""
    web = service(ports=[port(target_port=target)])  # type: ignore[arg-type]
    on = bridge(web, endpoint_slice("web-a", [L1], ports=[slice_port("http", 8080)]))
    assert on.sync().ok
    (mapping,) = on.balancers()[CLUSTER_IP].port_mappings
    assert (mapping.internal_port, mapping.external_port) == (8080, 80)


@BOTH
def test_F79_of_backends_with_different_ports_the_largest_group_serves_and_none_gets_a_wrong_port(build: Build) -> None:
    """The others are named in a shortfall; when the groups change sides, so does the load balancer."""
    on = bridge(
        service(),
        endpoint_slice("web-a", [L1, R1], ports=[slice_port("http", 8080)]),
        endpoint_slice("web-b", [R2], ports=[slice_port("http", 9090)]),
        build=build,
    )
    report = on.sync()
    assert on.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_1]
    assert on.balancers()[CLUSTER_IP].port_mappings[0].internal_port == 8080
    (told,) = report.shortfalls
    assert told.feature == "endpoint-ports"
    assert f"{REMOTE_2}:9090" in told.text
    on.put(endpoint_slice("web-b", [R2, L2, endpoint("10.1.2.22", node="n2")], ports=[slice_port("http", 9090)]))
    assert on.sync().ok
    assert on.backends(CLUSTER_IP) == [LOCAL_2, "10.1.2.22", REMOTE_2]
    assert on.balancers()[CLUSTER_IP].port_mappings[0].internal_port == 9090


def test_F81_sctp_is_not_handled_and_said_so() -> None:
    """Nothing is half programmed: no call for it at all, and a shortfall for each frontend."""
    web = replace(WEB, ports=(port("sctp", 132, protocol="SCTP", node_port=30132),))
    on = bridge(web, endpoint_slice("web-a", [L1], ports=[slice_port("sctp", 132, protocol="SCTP")]))
    report = on.sync()
    assert report.ok
    assert on.writes == []
    assert {one.feature for one in report.shortfalls} == {"sctp"}
    assert len(report.shortfalls) == 4


@BOTH
def test_F83_pods_with_the_nodes_address_are_backends(build: Build) -> None:
    """HostProcess pods: a stand-in where HNS has no endpoint with the node's address, else what HNS has."""
    on = bridge(service(), endpoint_slice("web-a", [endpoint(NODE_IP, node="n1"), R1]), build=build)
    report = on.sync()
    assert report.ok
    assert report.conditions == ()
    assert on.backends(CLUSTER_IP) == sorted([str(NODE_IP), REMOTE_1])
    assert on.endpoint_at(str(NODE_IP)).remote
    with_own = bridge(service(), endpoint_slice("web-a", [endpoint(NODE_IP, node="n1")]), build=build)
    with_own.emulator.add_pod(str(NODE_IP), name="host", force=True)
    assert with_own.sync().ok
    assert not with_own.endpoint_at(str(NODE_IP)).remote
    assert with_own.backends(CLUSTER_IP) == [str(NODE_IP)]


def test_F84_source_ranges_that_cannot_be_enforced_are_reported_per_frontend() -> None:
    """On the load balancer VIPs, where they would count; traffic goes on."""
    web = replace(WEB, source_ranges=(parse_prefix("198.51.100.0/24"),))
    on = bridge(web, endpoint_slice("web-a", [L1]))
    report = on.sync()
    assert report.ok
    assert {str(one.frontend) for one in report.shortfalls if one.feature == "source-ranges"} == {VIP}
    assert len(on.served()) == 4


@pytest.mark.parametrize("dsr, limit", [(True, 1024), (False, 64)], ids=["DSR", "no DSR"])
def test_F85_beyond_the_limit_of_backends_a_steady_subset_with_local_pods_first_is_used(dsr: bool, limit: int) -> None:
    """The same one every time; how many are left out is said."""
    first = parse_address("10.1.64.0")
    far = [endpoint(first + number, node="n2") for number in range(limit + 50)]
    on = bridge(service(), endpoint_slice("web-a", [*far, L1, L2]), enable_dsr=dsr, call_budget=10**9)
    report = on.sync()
    assert report.ok
    chosen = on.backends(CLUSTER_IP)
    assert len(chosen) == limit
    assert {LOCAL_1, LOCAL_2} <= set(chosen)
    (told,) = report.shortfalls
    assert (told.feature, told.needed, told.found) == ("backend-limit", str(limit + 52), str(limit))
    again = bridge(service(), endpoint_slice("web-a", [L2, L1, *reversed(far)]), enable_dsr=dsr, call_budget=10**9)
    again.sync()
    assert again.backends(CLUSTER_IP) == chosen
    on.forget()
    on.put(endpoint_slice("web-a", [L2, L1, *reversed(far)]))
    assert on.sync().host_calls == 0


def test_F80_where_udp_flows_stay_on_a_dead_backend_it_at_least_gets_no_new_ones() -> None:
    """HNS offers no way to end flows; what can be shown here is that the backend leaves in the pass of the event."""
    dns = service("kube-dns", namespace="kube-system", ports=[port("dns", 53, protocol="UDP")])
    ports = [slice_port("dns", 53, protocol="UDP")]

    def piece(*pods: object) -> object:
        return endpoint_slice("dns-a", pods, namespace="kube-system", service="kube-dns", ports=ports)  # type: ignore[arg-type]

    on = bridge(dns, piece(L1, R1))  # type: ignore[arg-type]
    on.settle()
    on.put(piece(L1))  # type: ignore[arg-type]
    assert on.sync().ok
    assert on.served() == {"10.96.0.10:53/udp": [LOCAL_1]}
