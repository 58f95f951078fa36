"""windows-proxy F.2: whatever makes a load balancer vanish or fail, it comes back by itself."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.guarantees.node import (
    BRIDGE_DUAL,
    LOCAL_1,
    LOCAL_2,
    PERIOD_S,
    REMOTE_1,
    REMOTE_2,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    GuardedNode,
    at_frontend,
    bridge,
    many,
)

from hansa.api.objects import Policy
from hansa.dataplanes.base import HostState, Outcome
from hansa.hns.api import Guid, Handle, HnsKind, HnsVerb
from hansa.hns.emulator import Build
from hansa.hns.schema import LB_STATE_DEGRADED, HnsLoadBalancer
from hansa.net import parse_address
from hansa.testing import L1, L2, R1, R2, WEB, endpoint, endpoint_slice, port, service, slice_port

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
SWITCH_PORT_NOT_FOUND = 0x803B0007
CLUSTER_IP = "10.96.0.10:80/tcp"


def web_node(build: Build = WITHOUT_MODIFY, **settings: object) -> GuardedNode:
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build, **settings)
    node.settle()
    return node


@pytest.mark.parametrize("name", [CLUSTER_IP, "203.0.113.7:80/tcp", "203.0.113.80:80/tcp", "node:30080/tcp"])
def test_F11_a_load_balancer_deleted_behind_our_back_returns_within_one_period(name: str) -> None:
    """No API event is needed: the next check of the host finds it missing and makes it again, as drift."""
    node = web_node()
    node.remove_balancer(name)
    report = node.period()
    assert report.ok
    assert node.written() == [f"create {name}"]
    assert [change.key for change in report.drift] == [next(iter(report.results)).change.key]
    assert node.backends(name) == [LOCAL_1, REMOTE_1]


def test_F12_after_hns_has_lost_everything_all_is_back_in_one_run_of_passes() -> None:
    """HNS crashes and its policies are purged: the first pass after its return makes all of them again."""
    node = bridge(*many(120), call_budget=300)
    node.settle()
    before = node.served()
    node.emulator.restart(purge=True, unavailable_calls=2)
    assert node.audit().state is HostState.UNAVAILABLE
    passes = 0
    node.wait(1.0)
    report = node.sync()
    while not report.ok:
        passes += 1
        assert report.again or report.retry_at is not None
        if not report.again:
            node.wait(report.retry_at - node.now)  # type: ignore[operator]
        report = node.sync()
        assert passes < 10
    assert node.served() == before
    assert node.remotes()


def test_F13_a_vanished_load_balancer_is_made_again_when_modify_finds_it_gone() -> None:
    """An endpoint change meets a dead id: the pass looks again and creates, instead of failing for ever."""
    node = web_node(WITH_MODIFY)
    node.remove_balancer(CLUSTER_IP)
    node.put(endpoint_slice("web-a", [L1, R2]))
    assert node.sync().ok
    assert f"create {CLUSTER_IP}" in node.written()
    assert set(map(tuple, node.served().values())) == {(LOCAL_1, REMOTE_2)}


@BOTH
def test_F14_while_scaling_with_internal_policy_local_the_cluster_ip_never_goes_missing(build: Build) -> None:
    """One desired object feeds compare, delete and create; the guard checks after each call that nothing goes bare."""
    local = service(internal_policy=Policy.LOCAL)
    node = bridge(local, endpoint_slice("web-a", [L1]), build=build)
    for present in ([L1, R1], [L1, R1, R2], [L1, L2, R2], [L2], [L2, R1], [L1, L2]):
        node.put(endpoint_slice("web-a", present))
        node.forget()
        assert node.sync().ok
        assert node.backends(CLUSTER_IP) == [str(one.address) for one in present if one in (L1, L2)]
    node.put(endpoint_slice("web-a", [L1, L2, R1, R2]))
    node.forget()
    assert node.sync().ok
    assert node.writes == [], "pods elsewhere are nothing to this frontend"


def test_F15_an_ipv6_health_check_stays_through_every_endpoint_change() -> None:
    """Both families' health checks are there after each of many changes, with the right family flag."""
    web = service(
        type="LoadBalancer",
        cluster_ips=["10.96.0.10", "fd00::10"],
        load_balancer_vips=["203.0.113.80", "2001:db8:7::80"],
        external_policy=Policy.LOCAL,
        health_check_node_port=32000,
    )
    node = bridge(web, layout=BRIDGE_DUAL, forward_health_check_vip=True, pods=())
    node.add_pod("10.1.1.11", "10.1.1.12", "fd01::11", "fd01::12")
    four, six = ("10.1.1.11", "10.1.1.12"), ("fd01::11", "fd01::12")
    for count in (1, 2, 1, 2, 2, 1):
        node.put(
            endpoint_slice("web-4", [endpoint(one, node="n1") for one in four[:count]]),
            endpoint_slice("web-6", [endpoint(one, node="n1") for one in six[:count]]),
        )
        node.forget()
        assert node.sync().ok
        health = {name: each for name, each in node.balancers().items() if ":32000" in name}
        assert {name: int(each.flags) for name, each in health.items()} == {
            "203.0.113.80:32000/tcp": 0,
            "[2001:db8:7::80]:32000/tcp": 2,
        }
    assert node.config.full_check_period_s == PERIOD_S


@BOTH
def test_F16_with_external_policy_local_and_no_pod_here_the_cluster_ip_works(build: Build) -> None:
    """The ClusterIP asks for the internal policy only; the external frontends have no load balancer here."""
    web = service(
        type="LoadBalancer",
        node_port=30080,
        external_ips=["203.0.113.7"],
        load_balancer_vips=["203.0.113.80"],
        external_policy=Policy.LOCAL,
        health_check_node_port=32000,
    )
    node = bridge(web, endpoint_slice("web-a", [R1]), build=build)
    assert node.sync().ok
    assert node.served() == {CLUSTER_IP: [REMOTE_1]}


@pytest.mark.parametrize("name", ["203.0.113.7:80/tcp", "203.0.113.80:80/tcp", "203.0.113.80:32000/tcp"])
def test_F17_an_external_or_health_load_balancer_that_failed_is_tried_again_within_two_seconds(name: str) -> None:
    """Each failed object has a retry of its own; no event, no check of the host is needed for it."""
    web = service(
        type="LoadBalancer",
        external_ips=["203.0.113.7"],
        load_balancer_vips=["203.0.113.80"],
        external_policy=Policy.LOCAL,
        health_check_node_port=32000,
    )
    node = bridge(web, endpoint_slice("web-a", [L1]), forward_health_check_vip=True)
    node.refuse(SWITCH_PORT_NOT_FOUND, HnsVerb.CREATE, LB, where=at_frontend(name))
    report = node.sync()
    assert name not in node.served()
    assert report.retry_at is not None
    assert report.retry_at <= node.now + 2.0
    node.wait(report.retry_at - node.now)
    node.forget()
    assert node.sync().ok
    assert node.written() == [f"create {name}"]


def test_F18_frontends_of_one_port_fail_independently() -> None:
    """The ClusterIP cannot be made; node port, external IP and VIP are there after the same pass."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.refuse(SWITCH_PORT_NOT_FOUND, HnsVerb.CREATE, LB, where=at_frontend(CLUSTER_IP), times=None)
    report = node.sync()
    assert sorted(node.served()) == ["203.0.113.7:80/tcp", "203.0.113.80:80/tcp", "node:30080/tcp"]
    assert report.pending == (CLUSTER_IP,)


@BOTH
def test_F19_a_local_pod_joins_within_one_period_of_its_hns_endpoint(build: Build) -> None:
    """Its slice came first; until its endpoint is there the load balancer works without it, and that is said."""
    node = bridge(service(), endpoint_slice("web-a", [L1, L2]), build=build, pods=(LOCAL_1,))
    report = node.sync()
    assert node.backends(CLUSTER_IP) == [LOCAL_1]
    assert any(LOCAL_2 in text for text in report.conditions)
    node.add_pod(LOCAL_2)
    assert node.period().ok
    assert node.backends(CLUSTER_IP) == [LOCAL_1, LOCAL_2]


def test_F20_a_backend_without_endpoint_leaves_a_partial_load_balancer_that_is_completed() -> None:
    """One remote endpoint cannot be made: the others serve, it is pending, and joins as soon as it can be made."""
    node = bridge(service(), endpoint_slice("web-a", [L1, R1, R2]))
    refused = parse_address(REMOTE_1)
    node.refuse(SWITCH_PORT_NOT_FOUND, HnsVerb.CREATE, EP, times=3, where=lambda call: refused in call.value.addresses)
    report = node.sync()
    assert node.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_2]
    assert f"endpoint {REMOTE_1}" in report.pending
    for _ in range(3):
        assert report.retry_at is not None
        node.wait(report.retry_at - node.now)
        report = node.sync()
    assert report.ok
    assert node.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_1, REMOTE_2]


@pytest.mark.parametrize("code", [0x803B0001, 0x80070490, 0x80070057, 0x800706BA], ids=hex)
def test_F21_one_failed_network_query_changes_nothing(code: int) -> None:
    """Whatever the network's query answers once, no load balancer and no endpoint is touched."""
    node = web_node()
    node.refuse(code, HnsVerb.QUERY, HnsKind.NETWORK)
    before = node.served(), node.remotes()
    node.period()
    assert (node.served(), node.remotes()) == before
    for _ in range(3):
        node.wait(11.0)
        report = node.audit()
    assert report.ok
    assert node.writes == []
    assert (node.served(), node.remotes()) == before


def test_F21_a_network_that_is_really_gone_is_believed_when_missed_twice_and_nothing_is_deleted() -> None:
    """Two looks at least two seconds apart; what HNS drops by itself is not deleted; the new network gets all of it."""
    node = web_node()
    old = node.emulator.networks()[0]
    lost = node.emulator.endpoints()
    for each in lost:
        node.emulator.remove(EP, each.guid)
    node.emulator.remove(HnsKind.NETWORK, old.guid)
    first = node.period()
    assert any("HNS has no network named hansa-br" in text for text in first.conditions)
    assert first.retry_at is not None
    assert first.retry_at - node.now >= 2.0
    for _ in range(3):
        node.wait(2.0)
        assert node.sync().state is HostState.WAITING
    assert node.writes == []
    node.emulator.add(old)
    node.emulator.restore(tuple(each for each in lost if not each.remote))
    node.wait(2.0)
    report = node.sync()
    assert report.ok
    assert node.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_1]


def test_F22_while_the_switch_port_is_missing_dns_is_tried_first_and_alarms_after_ten_seconds() -> None:
    """Pauses of 1, 2, 4 ... at most 30 s; critical services lead every pass; all is well once the port is there."""
    dns = service("kube-dns", namespace="kube-system", cluster_ips=["10.96.0.53"], ports=[port("dns", 53)])
    node = bridge(
        *many(5),
        dns,
        endpoint_slice("dns-a", [R2], namespace="kube-system", service="kube-dns", ports=[slice_port("dns", 53)]),
    )
    node.refuse(SWITCH_PORT_NOT_FOUND, HnsVerb.CREATE, LB, times=None)
    report = node.sync()
    assert node.written()[:2] == [f"create endpoint {REMOTE_2}", "create 10.96.0.53:53/tcp"]
    assert not any("critical" in text for text in report.conditions)
    pauses, since = [], node.now
    while node.now - since < 100.0:
        assert report.retry_at is not None
        pauses.append(report.retry_at - node.now)
        node.wait(pauses[-1])
        node.forget()
        report = node.sync()
        if node.now - since > 10.0:
            assert any(text.startswith("critical: 10.96.0.53:53/tcp") for text in report.conditions)
    assert max(pauses) <= 30.0 * 1.2
    assert len(pauses) < 60, "retries of single keys do not make a busy loop"
    node.emulator.faults.clear()
    node.wait(37.0)
    node.forget()
    report = node.sync()
    assert report.ok
    assert not any("critical" in text for text in report.conditions)
    assert node.written()[0] == "create 10.96.0.53:53/tcp"


def test_F23_a_load_balancer_without_port_mapping_is_reported_and_stops_nothing() -> None:
    """Somebody's partial object, and ours: the first stays, all desired ones are there."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    stray = node.add_balancer("10.96.0.10", port_mappings=())
    assert node.sync().ok
    node.period()
    assert len(node.served()) == 5
    assert node.emulator.get(LB, stray) is not None


NONSENSE = st.one_of(
    st.text(max_size=20),
    st.sampled_from(("", "null", "[]", "{}", '{"ID":7}', '{"Flags":-1}', '{"ID":"no"}', '"x"', "1e999")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(
                ("ID", "HostComputeEndpoints", "PortMappings", "FrontendVIPs", "Flags", "IpConfigurations", "Policies")
            ),
            inner | st.lists(inner, max_size=2),
            max_size=4,
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value)),
)


class Garbling:
    """The guard with answers about one object that make no sense."""

    def __init__(self, node: GuardedNode, victim: Guid, answer: str) -> None:
        self._guard = node.guard
        self._victim = victim
        self._answer = answer
        self._handles: set[Handle] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._guard, name)

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        handle = self._guard.open(kind, guid)
        if guid == self._victim:
            self._handles.add(handle)
        return handle

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        text = self._guard.query(kind, handle, query)
        return self._answer if handle in self._handles else text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NONSENSE, st.integers(0, 9))
def test_F23_any_document_may_be_nonsense_and_costs_only_its_own_object(answer: str, index: int) -> None:
    """Fuzzed documents of load balancers and endpoints: no exception, and every other object is as desired."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), *many(2))
    node.settle()
    expected = node.served()
    objects = [*node.emulator.load_balancers(), *node.emulator.endpoints()]
    victim = objects[index % len(objects)]
    node.start()
    node.client._api = Garbling(node, victim.guid, answer)  # type: ignore[assignment]
    node.sync()
    node.wait(301.0)
    node.guard.breaches.clear()
    node.audit()
    hurt = set() if isinstance(victim, HnsLoadBalancer) else {str(address) for address in victim.addresses}
    for name, behind in node.served().items():
        own = isinstance(victim, HnsLoadBalancer) and node.balancers()[name].guid == victim.guid
        assert own or set(behind) ^ set(expected[name]) <= hurt, name


@pytest.mark.parametrize("verb", [HnsVerb.CREATE, HnsVerb.MODIFY])
def test_F24_a_write_that_answers_nothing_useful_ends_no_pass(verb: HnsVerb) -> None:
    """The document that comes back after a write is empty: the object is in error, all others are done."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=WITH_MODIFY)
    node.settle()
    target = node.balancers()[CLUSTER_IP].guid
    if verb is HnsVerb.CREATE:
        node.remove_balancer(CLUSTER_IP)  # it will be asked for by the same GUID again
    node.client._api = Garbling(node, target, "null")  # type: ignore[assignment]
    node.put(endpoint_slice("web-a", [L2]))
    report = node.audit()
    others = {name: behind for name, behind in node.served().items() if name != CLUSTER_IP}
    assert set(map(tuple, others.values())) == {(LOCAL_2,)}
    assert len(others) == 3
    assert CLUSTER_IP in report.pending or node.backends(CLUSTER_IP) == [LOCAL_2]
    node.client._api = node.guard
    node.wait(31.0)
    assert node.settle().ok
    assert node.backends(CLUSTER_IP) == [LOCAL_2]


@BOTH
def test_F25_a_load_balancer_without_endpoints_is_never_asked_for(build: Build) -> None:
    """No slice, no usable endpoint, or none that HNS has: nothing is created, and nothing loops."""
    waiting = service("waits", cluster_ips=["10.96.0.12"])
    node = bridge(
        service(),
        waiting,
        endpoint_slice("waits-a", [L2], service="waits"),
        build=build,
        pods=(LOCAL_1,),
    )
    for _ in range(3):
        report = node.period()
        assert report.ok
    assert node.writes == []
    node.add_pod(LOCAL_2)
    assert node.period().ok
    assert node.served() == {"10.96.0.12:80/tcp": [LOCAL_2]}


@BOTH
def test_F26_load_balancers_shrink_to_the_pods_that_exist_and_grow_back(build: Build) -> None:
    """After a restart of HNS the endpoints of running pods are gone: the missing addresses are named."""
    node = bridge(service(), endpoint_slice("web-a", [L1, L2, R1]), build=build)
    node.settle()
    node.emulator.restart(unavailable_calls=1)
    node.remove_pod(LOCAL_1)
    node.audit()
    node.wait(1.0)
    report = node.audit()
    assert node.backends(CLUSTER_IP) == [LOCAL_2, REMOTE_1]
    assert any(text.endswith(f"which the CNI makes: {LOCAL_1}") for text in report.conditions)
    node.add_pod(LOCAL_1)
    assert node.period().ok
    assert node.backends(CLUSTER_IP) == [LOCAL_1, LOCAL_2, REMOTE_1]


def test_F27_a_load_balancer_that_hns_calls_degraded_counts_as_drift() -> None:
    """It is not as desired though its content is; it is replaced as soon as HNS lets go of it."""
    node = web_node()
    node.alter_balancer(CLUSTER_IP, state=LB_STATE_DEGRADED)
    report = node.period()
    assert report.pending == (CLUSTER_IP,), "HNS does not delete what is degraded"
    assert {result.outcome for result in report.results} == {Outcome.FAILED}
    dead = node.balancers()[CLUSTER_IP].guid
    node.emulator.alter(LB, dead, state=0)
    served = node.settle()
    assert served.ok
    assert node.balancers()[CLUSTER_IP].state == 0
