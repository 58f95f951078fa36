"""windows-proxy section G: each scenario of kube-proxy's own Windows tests, under its name, with hansa's outcome.

Where hansa decides otherwise, the docstring says why. The standing example of hansa.testing takes the place of the
addresses there: node n1 is 192.0.2.1, the pods of 10.1.2.0/24 are behind 192.0.2.2.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from tests.guarantees.node import (
    BRIDGE_DUAL,
    LOCAL_1,
    LOCAL_2,
    MAC,
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

from hansa.api.objects import EndpointSlice, Policy
from hansa.config import config_warnings, make_config
from hansa.dataplanes.base import HostState, Outcome
from hansa.dataplanes.windows.objects import conjured_mac
from hansa.errors import ConfigError, Fault
from hansa.hns.api import Guid, HnsError, HnsKind, HnsVerb
from hansa.hns.client import HnsClient
from hansa.hns.emulator import WS2022, Build
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    IpConfiguration,
    ProviderAddress,
    decode_endpoint,
    decode_network,
    encode,
)
from hansa.net import IPFamily, parse_address
from hansa.testing import L1, L2, NODE_IP, R1, R2, WEB, endpoint, endpoint_slice, port, service

LB, EP, NET = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT, HnsKind.NETWORK
CLUSTER_IP, API_IP = "10.96.0.10:80/tcp", "10.96.0.11:80/tcp"
EXTERNAL_IP, VIP, HEALTH = "203.0.113.7:80/tcp", "203.0.113.80:80/tcp", "203.0.113.80:32000/tcp"
NODE_PORT = "node:30080/tcp"
API = service("api", cluster_ips=["10.96.0.11"])
ETP_LOCAL = replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000, external_ips=())
TWINS = plain(WS2022, allows_local_remote_twins=True)


def api_slice(*endpoints: object) -> EndpointSlice:
    return endpoint_slice("api-a", endpoints, service="api")  # type: ignore[arg-type]


# --- G.1 proxier ---


def test_G_CreateServiceVip() -> None:
    """A service without backends gets its service-VIP endpoint on an overlay, and no load balancer."""
    node = overlay(service(), enable_dsr=True)
    assert node.sync().ok
    made = node.endpoint_at("10.96.0.10")
    assert (made.remote, made.mac_address, made.provider_address) == (True, MAC, NODE_IP)
    assert node.served() == {}


def test_G_CreateRemoteEndpointOverlay() -> None:
    """Source VIP, service VIP and the pod's endpoint are made; there is no counter that could be wrong (F51)."""
    node = overlay(service(), endpoint_slice("web-a", [R1]), pods=())
    assert node.sync().ok
    assert sorted(line for line in node.written() if "endpoint" in line) == [
        f"create endpoint {SOURCE_VIP}",
        f"create endpoint {REMOTE_1}",
        "create endpoint 10.96.0.10",
    ]
    pod = node.endpoint_at(REMOTE_1)
    assert (pod.remote, str(pod.provider_address)) == (True, "192.0.2.2")
    assert pod.mac_address == conjured_mac(R1.address) == "02-11-0A-01-02-15"


def test_G_CreateRemoteEndpointL2Bridge() -> None:
    """The pod's endpoint is the first thing made; it has no provider address."""
    node = bridge(service(), endpoint_slice("web-a", [R1]), pods=())
    assert node.sync().ok
    assert node.written()[0] == f"create endpoint {REMOTE_1}"
    pod = node.endpoint_at(REMOTE_1)
    assert (pod.remote, pod.provider_address, pod.policies) == (True, None, ())


def test_G_DsrEndpointsAreCreatedCorrectly() -> None:
    """With DSR on an overlay the remote backend's endpoint exists, and the load balancer names it."""
    node = overlay(service(), endpoint_slice("web-a", [R1]), enable_dsr=True)
    assert node.sync().ok
    assert node.balancers()[CLUSTER_IP].endpoints == (node.endpoint_at(REMOTE_1).guid,)


def test_G_DsrNotAppliedToClusterTrafficPolicy() -> None:
    """enableDSR is for ClusterIPs; external frontends of policy Cluster use all endpoints, without DSR."""
    node = overlay(WEB, endpoint_slice("web-a", [L1, R1]), enable_dsr=True)
    assert node.sync().ok
    assert {name: int(each.flags) for name, each in node.balancers().items()} == {
        CLUSTER_IP: 1,
        NODE_PORT: 0,
        EXTERNAL_IP: 0,
        VIP: 0,
    }
    assert node.backends(VIP) == [LOCAL_1, REMOTE_1]


def test_G_WinDSRWithOverlayEnabled() -> None:
    """External policy Local on an overlay: DSR, and endpoints on this node only."""
    node = overlay(ETP_LOCAL, endpoint_slice("web-a", [L1, R1]), enable_dsr=True)
    assert node.sync().ok
    assert [int(node.balancers()[name].flags) for name in (NODE_PORT, VIP)] == [1, 1]
    assert [node.backends(name) for name in (NODE_PORT, VIP)] == [[LOCAL_1], [LOCAL_1]]


@pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
def test_G_ClusterIPSvcWithITPLocal(build: Build) -> None:
    """A second local pod joins; a remote one changes nothing. The id stays: it is derived from the frontend (H.5)."""
    node = bridge(service(internal_policy=Policy.LOCAL), endpoint_slice("web-a", [L1]), build=build)
    node.settle()
    made = node.balancers()[CLUSTER_IP].guid
    node.put(endpoint_slice("web-a", [L1, L2]))
    assert node.sync().ok
    assert node.served() == {CLUSTER_IP: [LOCAL_1, LOCAL_2]}
    assert node.balancers()[CLUSTER_IP].guid == made
    node.forget()
    node.put(endpoint_slice("web-a", [L1, L2, R1]))
    assert node.sync().ok
    assert node.writes == []


def test_G_SharedRemoteEndpointDelete() -> None:
    """Two services share a remote address; one goes, the endpoint stays for the other."""
    node = bridge(service(), endpoint_slice("web-a", [R1]), API, api_slice(R1))
    node.settle()
    shared = node.endpoint_at(REMOTE_1)
    node.delete(service(), endpoint_slice("web-a"))
    assert node.sync().ok
    assert node.endpoint_at(REMOTE_1) == shared
    assert node.served() == {API_IP: [REMOTE_1]}


def test_G_SharedRemoteEndpointUpdate() -> None:
    """One of two services gets another node port and other slice ports: the shared endpoint is the same one."""
    web = service(type="NodePort", node_port=30080)
    node = bridge(web, endpoint_slice("web-a", [R1]), API, api_slice(R1))
    node.settle()
    shared = node.endpoint_at(REMOTE_1)
    node.put(
        replace(web, ports=(port(node_port=30081),)),
        endpoint_slice("web-a", [R1], ports=[replace(endpoint_slice().ports[0], port=9090)]),
    )
    assert node.sync().ok
    assert node.endpoint_at(REMOTE_1) == shared
    assert node.balancers()[CLUSTER_IP].port_mappings[0].internal_port == 9090
    assert set(node.served()) == {CLUSTER_IP, "node:30081/tcp", API_IP}
    assert not any("endpoint" in line for line in node.written())


@pytest.mark.parametrize("dsr", [False, True])
def test_G_CreateLoadBalancer_without_and_with_DSR(dsr: bool) -> None:
    """CreateLoadBalancerWithoutDSR, CreateLoadBalancerWithDSR: flags 0 and 1 on an overlay's ClusterIP."""
    node = overlay(service(), endpoint_slice("web-a", [R1]), enable_dsr=dsr)
    assert node.sync().ok
    assert int(node.balancers()[CLUSTER_IP].flags) == int(dsr)


def test_G_UpdateLoadBalancerWhenSupported() -> None:
    """A backend is replaced: the same load balancer, the old endpoint gone, the new one there."""
    node = bridge(service(), endpoint_slice("web-a", [R1]), build=WITH_MODIFY)
    node.settle()
    made = node.balancers()[CLUSTER_IP].guid
    node.put(endpoint_slice("web-a", [R2]))
    assert node.sync().ok
    assert node.written() == [
        f"create endpoint {REMOTE_2}",
        f"modify {CLUSTER_IP}",
        f"delete endpoint {REMOTE_1}",
    ]
    assert node.balancers()[CLUSTER_IP].guid == made


def test_G_UpdateLoadBalancerWhenUnsupported() -> None:
    """The same by delete and create, next to each other. Another id is not needed for it: ids come from the key."""
    node = bridge(service(), endpoint_slice("web-a", [R1]))
    node.settle()
    node.put(endpoint_slice("web-a", [R2]))
    assert node.sync().ok
    assert node.written() == [
        f"create endpoint {REMOTE_2}",
        f"delete {CLUSTER_IP}",
        f"create {CLUSTER_IP}",
        f"delete endpoint {REMOTE_1}",
    ]
    assert node.served() == {CLUSTER_IP: [REMOTE_2]}


def test_G_CreateDsrLoadBalancer() -> None:
    """External policy Local with a health port: all four exist after one pass.

    The order within a pass is by importance and age, not by kind of frontend (H.4): none waits for another.
    """
    node = overlay(ETP_LOCAL, endpoint_slice("web-a", [L1]), forward_health_check_vip=True)
    assert node.sync().ok
    assert node.served() == {
        CLUSTER_IP: [LOCAL_1],
        NODE_PORT: [LOCAL_1],
        VIP: [LOCAL_1],
        HEALTH: ["10.1.1.3"],
    }
    assert int(node.balancers()[VIP].flags) == 1


def test_G_ClusterIPLBInCreateDsrLoadBalancer() -> None:
    """External policy Local, only a remote backend: the ClusterIP's load balancer alone.

    kube-proxy makes no health check either; hansa makes it, so that the cloud learns that no pod is here (F87).
    """
    node = overlay(ETP_LOCAL, endpoint_slice("web-a", [R1]), forward_health_check_vip=True)
    assert node.sync().ok
    assert node.served() == {CLUSTER_IP: [REMOTE_1], HEALTH: ["10.1.1.3"]}


def test_G_EndpointSliceWithInternalPortDifferentFromServicePort() -> None:
    """Slice port 8080, service port and target port 80: one mapping, 80 to 8080."""
    node = bridge(service(ports=[port(number=80, target_port=80)]), endpoint_slice("web-a", [L1]))
    assert node.sync().ok
    (mapping,) = node.balancers()[CLUSTER_IP].port_mappings
    assert (mapping.external_port, mapping.internal_port) == (80, 8080)


def test_G_EndpointSlice() -> None:
    """A service and a slice come in as events: its load balancer and endpoint exist."""
    node = bridge()
    assert node.sync().ok
    node.put(service())
    node.put(endpoint_slice("web-a", [R1]))
    assert node.sync().ok
    assert node.served() == {CLUSTER_IP: [REMOTE_1]}


def test_G_NoopEndpointSlice() -> None:
    """Empty slices, also before anything is known: no failure, and no call that writes."""
    node = bridge(endpoint_slice("web-a"), endpoint_slice("web-b"))
    assert node.sync().ok
    node.delete(endpoint_slice("web-a"))
    node.put(endpoint_slice("web-b", []))
    assert node.sync().state is HostState.HEALTHY
    assert node.writes == []


def test_G_FindRemoteSubnetProviderAddress() -> None:
    """The provider of a node is itself, of a pod its node; an address outside has none.

    Such a backend gets this node as provider, as kube-proxy does, and the node IP as source VIP (C.3).
    """
    backends = [endpoint("192.0.2.2", node="n2"), R1, endpoint("198.51.100.9")]
    node = overlay(service(), endpoint_slice("web-a", backends))
    assert node.sync().ok
    assert {
        str(each.addresses[0]): str(each.provider_address) for each in node.emulator.endpoints() if each.remote
    } == {
        "192.0.2.2": "192.0.2.2",
        REMOTE_1: "192.0.2.2",
        "198.51.100.9": "192.0.2.1",
        "10.96.0.10": "192.0.2.1",
    }


@pytest.mark.parametrize("preference", ["PreferDualStack", "RequireDualStack"])
@pytest.mark.parametrize("policy", [Policy.LOCAL, Policy.CLUSTER], ids=["ETPLocal", "ETPCluster"])
def test_G_ETPLocal_ETPCluster_by_PreferDualStack_RequireDualStack(policy: Policy, preference: str) -> None:
    """Both families, each with its VIP and flags; what the API asked for (prefer, require) is settled before us.

    Eight load balancers with policy Local. With Cluster there are six: no health check without a port of its own (F42).
    """
    web = service(
        type="LoadBalancer",
        cluster_ips=["10.96.0.10", "fd00::10"],
        node_port=30080,
        load_balancer_vips=["203.0.113.80", "2001:db8:7::80"],
        external_policy=policy,
        health_check_node_port=32000 if policy is Policy.LOCAL else 0,
        uid=preference,
    )
    slices = (
        endpoint_slice("web-4", [L1, R1]),
        endpoint_slice("web-6", [endpoint("fd01::11", node="n1"), endpoint("fd02::21", node="n2")]),
    )
    node = bridge(
        web, *slices, layout=BRIDGE_DUAL, pods=(LOCAL_1, "fd01::11"), forward_health_check_vip=True, enable_dsr=True
    )
    assert node.sync().ok
    balancers = node.balancers()
    assert len(balancers) == (8 if policy is Policy.LOCAL else 6)
    for name, each in balancers.items():
        six = name.startswith(("[", "node6"))
        assert bool(int(each.flags) & 2) is six, name
        assert each.family is (IPFamily.IPV6 if six else IPFamily.IPV4)
    external = 1 if policy is Policy.LOCAL else 2
    assert [len(balancers[name].endpoints) for name in (VIP, "[2001:db8:7::80]:80/tcp")] == [external, external]
    assert [len(balancers[name].endpoints) for name in (CLUSTER_IP, "[fd00::10]:80/tcp")] == [2, 2]
    assert node.remotes() == [REMOTE_1, "fd02::21"]


def test_G_RemoteAndLocalEndpointsSameIP() -> None:
    """One address, here for svc1 and elsewhere for svc2 by node name: both use the local HNS endpoint."""
    node = bridge(service(), endpoint_slice("web-a", [L1]), API, api_slice(endpoint(LOCAL_1, node="n2")))
    report = node.sync()
    local = node.endpoint_at(LOCAL_1)
    assert {name: each.endpoints for name, each in node.balancers().items()} == {
        CLUSTER_IP: (local.guid,),
        API_IP: (local.guid,),
    }
    assert not local.remote
    assert node.remotes() == []
    assert report.state is HostState.HEALTHY


def test_G_RemoteEndpointDeleteDoesNotAffectLocalEndpointWithSameIP() -> None:
    """A shared remote endpoint, then a pod with its address, then both services go: the pod's endpoint stays."""
    recycled = endpoint("10.1.1.77", node="n2")
    node = bridge(service(), endpoint_slice("web-a", [recycled]), API, api_slice(recycled), build=TWINS)
    node.settle()
    node.add_pod("10.1.1.77")
    local = next(each for each in node.endpoints_at("10.1.1.77") if not each.remote)
    node.delete(service(), API, endpoint_slice("web-a"), api_slice())
    assert node.sync().ok
    assert node.endpoints_at("10.1.1.77") == [local]


def test_G_EndpointTransitionWithLBFailures() -> None:
    """Four backends shrink to two while deletes fail: the old load balancers stay, and name what exists.

    kube-proxy deletes the removed endpoints all the same; hansa keeps them until no load balancer uses them (I4).
    """
    four = [R1, R2, endpoint("10.1.2.22", node="n2"), endpoint("10.1.3.32", node="n3")]
    node = bridge(service(), endpoint_slice("web-a", four))
    node.settle()
    before = node.served()
    node.refuse(0x80004005, HnsVerb.DELETE, LB, times=None)
    node.put(endpoint_slice("web-a", four[:2]))
    report = node.sync()
    assert node.served() == before
    assert len(node.remotes()) == 4
    assert report.pending == (CLUSTER_IP,)
    assert {result.outcome for result in report.results if result.change.kind == "load balancer"} == {Outcome.FAILED}
    node.emulator.faults.clear()
    node.wait(31.0)
    assert node.sync().ok
    assert node.served() == {CLUSTER_IP: [REMOTE_1, REMOTE_2]}
    assert node.remotes() == [REMOTE_1, REMOTE_2]


# --- G.2 HNS wrapper: the verbs of HnsClient against an HNS ---


@pytest.fixture
def on() -> GuardedNode:
    return bridge(layout=BRIDGE_DUAL, build=TWINS)


@pytest.fixture
def client(on: GuardedNode) -> HnsClient:
    return HnsClient(on.emulator)


def remote(address: str, provider: str = "") -> HnsEndpoint:
    return HnsEndpoint(
        ip_configurations=(IpConfiguration(parse_address(address)),),
        mac_address=conjured_mac(parse_address(address)),
        flags=EndpointFlags.REMOTE,
        policies=(ProviderAddress(parse_address(provider)),) if provider else (),
    )


def network_of(on: GuardedNode) -> Guid:
    return on.emulator.networks()[0].guid


def test_G_GetNetworkByName(on: GuardedNode, client: HnsClient) -> None:
    """Found by its name, in four calls; no other name finds it."""
    (guid,) = client.list_ids(NET, name="hansa-br")
    assert decode_network(client.read(NET, guid)).name == "hansa-br"
    assert client.calls == 4
    assert client.list_ids(NET, name="hansa-b") == ()


def test_G_GetAllEndpointsByNetwork(on: GuardedNode, client: HnsClient) -> None:
    """One endpoint with addresses of both families is listed once and found by both."""
    addresses = tuple(IpConfiguration(parse_address(text)) for text in ("10.1.1.50", "fd01::50"))
    made = on.emulator.add(HnsEndpoint(network=network_of(on), ip_configurations=addresses))
    assert client.list_ids(EP, network=network_of(on)).count(made) == 1
    on.sync()
    observed = on.dataplane.situation.observed
    assert [each.guid for each in observed.at_address(parse_address("10.1.1.50"))] == [made]
    assert [each.guid for each in observed.at_address(parse_address("fd01::50"))] == [made]


def test_G_GetAllEndpointsByNetworkWithDupEP(on: GuardedNode) -> None:
    """A remote and a local endpoint with one address: the local one is used, ours goes, in either family."""
    for address in ("10.1.1.60", "fd01::60"):
        on.add_remote(address, mac=conjured_mac(parse_address(address)))
        on.add_pod(address)
    on.put(service(cluster_ips=["10.96.0.10", "fd00::10"]))
    on.put(endpoint_slice("web-4", ["10.1.1.60"]), endpoint_slice("web-6", ["fd01::60"]))
    assert on.sync().ok
    assert on.remotes() == []
    assert on.served() == {CLUSTER_IP: ["10.1.1.60"], "[fd00::10]:80/tcp": ["fd01::60"]}


def test_G_GetEndpointByID_and_GetEndpointByIpAddressAndName(on: GuardedNode, client: HnsClient) -> None:
    """By id, by name and by address it is the same one."""
    made = decode_endpoint(client.create(EP, encode(remote(REMOTE_1)), network=network_of(on)))
    assert decode_endpoint(client.read(EP, made.guid)) == made
    named = on.emulator.add_pod("10.1.1.61", name="named")
    assert client.list_ids(EP, name="named") == (named,)
    on.sync()
    observed = on.dataplane.situation.observed
    assert [each.guid for each in observed.at_address(parse_address("10.1.1.61"))] == [named]


def test_G_CreateEndpointLocal(on: GuardedNode, client: HnsClient) -> None:
    """Without the remote flag, and with what HNS fills in."""
    local = HnsEndpoint(ip_configurations=(IpConfiguration(parse_address("10.1.1.62")),))
    made = decode_endpoint(client.create(EP, encode(local), network=network_of(on)))
    assert not made.remote
    assert made.mac_address
    assert client.calls == 5


def test_G_CreateEndpointRemote() -> None:
    """The provider address is kept."""
    node = overlay()
    client = HnsClient(node.emulator)
    made = decode_endpoint(client.create(EP, encode(remote(REMOTE_1, "192.0.2.2")), network=network_of(node)))
    assert made.remote
    assert str(made.provider_address) == "192.0.2.2"


def test_G_DeleteEndpoint(on: GuardedNode, client: HnsClient) -> None:
    """Afterwards nothing finds it."""
    made = decode_endpoint(client.create(EP, encode(remote(REMOTE_1)), network=network_of(on)))
    client.delete(EP, made.guid)
    assert made.guid not in client.list_ids(EP)
    with pytest.raises(HnsError):
        client.read(EP, made.guid)


def test_G_GetLoadBalancerExisting() -> None:
    """One that has all the content already is adopted, whoever made it: no write."""
    node = bridge(service(), endpoint_slice("web-a", [L1]))
    pod = node.endpoint_at(LOCAL_1).guid
    made = node.add_balancer("10.96.0.10", foreign=False, endpoints=(pod,))
    assert node.sync().ok
    assert node.writes == []
    assert node.balancers()[CLUSTER_IP].guid == made


def test_G_GetLoadBalancerNew_and_DeleteLoadBalancer() -> None:
    """Made once and listed; deleted once and listed no more."""
    node = bridge(service(), endpoint_slice("web-a", [L1]))
    assert node.sync().ok
    assert node.served() == {CLUSTER_IP: [LOCAL_1]}
    node.delete(service())
    assert node.sync().ok
    assert node.written() == [f"create {CLUSTER_IP}", f"delete {CLUSTER_IP}"]
    assert node.served() == {}


def test_G_HashEndpoints() -> None:
    """The order in which HNS lists a load balancer's endpoints does not matter. There is no hash: they are a set."""
    node = bridge(service(), endpoint_slice("web-a", [L1, L2, R1]))
    node.settle()
    for order in permutations(node.balancers()[CLUSTER_IP].endpoints):
        node.alter_balancer(CLUSTER_IP, endpoints=order)
        node.start()
        assert node.sync().ok
    assert node.writes == []


# --- G.3 server ---


def test_G_sourceVip_of_the_right_family_and_of_the_wrong_one() -> None:
    """The right family is used; the wrong one is a warning, not fatal, and IPv4 services work as without it."""
    four = frozenset({IPFamily.IPV4})

    def warnings(source_vip: str) -> tuple[Fault, ...]:
        values = {"clusterCIDR": "10.1.0.0/16", "winkernel": {"sourceVip": source_vip}}
        return config_warnings(make_config(values, node_name="n1"), four)

    assert warnings("10.1.1.2") == ()
    (warning,) = warnings("fd01::2")
    assert (warning.field, "no address of that family" in warning.text) == ("winkernel.sourceVip", True)
    node = bridge(service(), endpoint_slice("web-a", [L1]), source_vip=(parse_address("fd01::2"),))
    assert node.sync().ok
    assert node.balancers()[CLUSTER_IP].source_vip == NODE_IP
    on_overlay = overlay(service(), endpoint_slice("web-a", [L1]), source_vip=(parse_address("fd01::2"),))
    assert on_overlay.sync().ok
    assert on_overlay.endpoints_at("fd01::2") == []


def test_G_kernelspace_takes_the_sync_periods_of_iptables() -> None:
    """As kube-proxy's files have them; hansa's own top-level keys win."""
    values = {"mode": "kernelspace", "iptables": {"syncPeriod": "10s", "minSyncPeriod": "2s"}}
    config = make_config(values, node_name="n1")
    assert (config.sync_period_s, config.min_sync_period_s) == (10.0, 2.0)
    assert make_config({**values, "syncPeriod": "20s"}, node_name="n1").sync_period_s == 20.0


@pytest.mark.parametrize("mode", ["kernelspace", "iptables", "ipvs", "nftables", ""])
def test_G_modes_of_kube_proxy(mode: str) -> None:
    """kube-proxy refuses the modes of the other system; hansa takes the dataplane from elsewhere and refuses none.

    A node whose file was written for another system should come up, and say what has no effect.
    """
    assert make_config({"mode": mode}, node_name="n1").node_name == "n1"
    with pytest.raises(ConfigError):
        make_config({"mode": 7}, node_name="n1")
