"""The Windows dataplane when HNS, the CNI or other programs misbehave: windows-proxy H.6 and the F rows named here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.unit.dataplanes.windows_node import (
    HOST_MAC,
    NODE_IP,
    WindowsNode,
    local,
    make_config,
    make_rule,
    plain,
    remote,
)

from hansa.dataplanes.base import HostState, Outcome, Verb
from hansa.dataplanes.windows.objects import conjured_mac
from hansa.dataplanes.windows.ownership import OWNER
from hansa.hns.api import Guid, HnsKind, HnsVerb, HResult
from hansa.hns.emulator import (
    FUTURE,
    WS2019,
    WS2022,
    WS2025,
    ZN23H2,
    Build,
    Call,
    Fault,
    LeakReservation,
    LoseReply,
    Machine,
    Modify,
    Refuse,
    l2bridge_node,
    overlay_node,
)
from hansa.hns.emulator import L2BRIDGE as L2BRIDGE_LAYOUT
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    LbFlags,
    PortMapping,
    ProviderAddress,
    RawPolicy,
    RemoteSubnetRoute,
)
from hansa.net import Address, parse_address, parse_prefix
from hansa.rules.model import FrontendKind, Rule

POD = "10.40.3.10"
FAR, FARTHER, NEW = "10.40.4.7", "10.40.5.9", "10.40.6.6"
WEB = make_rule("10.96.0.10:80", remote(f"{FAR}:8080"))
WEB_2 = make_rule("10.96.0.10:80", remote(f"{FARTHER}:8080"))
DNS = make_rule("10.96.0.11:53", remote(f"{FAR}:53", f"{FARTHER}:53"), owner="kube-system/kube-dns")
SOURCE_VIP = parse_address("10.41.7.2")
OVERLAY_CONFIG = make_config(source_vip=(SOURCE_VIP,))


def l2_node(*rules: Rule, build: Build = WS2022, **windows: object) -> WindowsNode:
    node = WindowsNode(l2bridge_node(plain(build)), make_config(**windows))
    node.emulator.add_pod(POD)
    node.want(*rules)
    return node


def refuse(
    node: WindowsNode, code: int, verb: HnsVerb | None = None, kind: HnsKind | None = None, **when: object
) -> None:
    node.emulator.faults.add(Fault(effect=Refuse(HResult(code)), verb=verb, kind=kind, **when))  # type: ignore[arg-type]


def at_vip(vip: str) -> object:
    wanted = parse_address(vip)
    return lambda call: isinstance(call.value, HnsLoadBalancer) and wanted in call.value.frontend_vips


def add_balancer(node: WindowsNode, vip: str, **fields: object) -> Guid:
    """As another program would have made it; on the pod's endpoint unless told otherwise."""
    pod = node.endpoint_at(POD)
    made = {
        "endpoints": (pod.guid,) if pod else (),
        "source_vip": NODE_IP,
        "frontend_vips": (parse_address(vip),),
        "port_mappings": (PortMapping(protocol=6, internal_port=8080, external_port=80),),
        **fields,
    }
    return node.emulator.add(HnsLoadBalancer(**made))  # type: ignore[arg-type]


def add_remote(node: WindowsNode, address: str, mac: str = "", **fields: object) -> Guid:
    value: Address = parse_address(address)
    return node.emulator.add(
        HnsEndpoint(
            network=node.emulator.networks()[0].guid,
            ip_configurations=(IpConfiguration(value, 32),),
            mac_address=mac or conjured_mac(value),
            flags=EndpointFlags.REMOTE,
            **fields,  # type: ignore[arg-type]
        )
    )


# --- each step fails once, or its reply is lost ---

STEPS = [
    (HnsVerb.CREATE, HnsKind.ENDPOINT),
    (HnsVerb.CREATE, HnsKind.LOAD_BALANCER),
    (HnsVerb.MODIFY, HnsKind.LOAD_BALANCER),
    (HnsVerb.DELETE, HnsKind.LOAD_BALANCER),
    (HnsVerb.DELETE, HnsKind.ENDPOINT),
    (HnsVerb.OPEN, HnsKind.ENDPOINT),
    (HnsVerb.QUERY, HnsKind.LOAD_BALANCER),
]


@pytest.mark.parametrize("build", [WS2022, ZN23H2], ids=["replace", "modify"])
@pytest.mark.parametrize("verb, kind", STEPS, ids=lambda value: value.name.lower())
@pytest.mark.parametrize(
    "effect",
    [Refuse(HResult(0x803B0007)), Refuse(HResult(0x80070490)), Refuse(HResult(0x803B0013)), LoseReply()],
    ids=["transient", "gone", "conflict", "reply-lost"],
)
def test_every_step_may_fail_once(build: Build, verb: HnsVerb, kind: HnsKind, effect: Refuse | LoseReply) -> None:
    node = l2_node(WEB, DNS, build=build)
    node.settle()
    node.put(make_rule("10.96.0.10:80", remote(f"{NEW}:8080")), make_rule("10.96.0.12:80", local(f"{POD}:80")))
    node.drop(DNS)
    node.emulator.faults.add(Fault(effect=effect, verb=verb, kind=kind))
    node.sync()
    assert node.emulator.faults.hits == 1 or (build is WS2022 and verb is HnsVerb.MODIFY)
    for _ in range(3):
        node.wait(31.0)
        report = node.audit()
    assert report.ok
    assert {name: node.backends(name) for name in node.balancers()} == {
        "10.96.0.10:80/tcp": [NEW],
        "10.96.0.12:80/tcp": [POD],
    }
    assert {str(each.addresses[0]) for each in node.emulator.endpoints() if each.remote} == {NEW}


def test_a_failure_is_retried_by_itself_within_two_seconds_and_delays_nobody() -> None:
    """F17, F18, F31: no API event, no audit."""
    node = l2_node(WEB, make_rule("node:30080", remote(f"{FAR}:8080")))
    refuse(node, 0x803B0007, HnsVerb.CREATE, HnsKind.LOAD_BALANCER, where=at_vip("10.96.0.10"))
    report = node.sync()
    assert report.pending == ("10.96.0.10:80/tcp",)
    assert list(node.balancers()) == ["node:30080/tcp"]
    assert report.retry_at is not None
    assert 0.0 < report.retry_at - node.now <= 2.0
    node.wait(report.retry_at - node.now)
    assert node.sync().ok
    assert len(node.balancers()) == 2


def test_rejected_is_tried_again_slowly_and_at_once_with_other_content() -> None:
    """H.6: one minute, doubled up to half an hour; not before, whatever wakes hansa; the condition is told as long."""
    node = l2_node(WEB)
    refuse(node, 0x803B000D, HnsVerb.CREATE, HnsKind.LOAD_BALANCER, times=None)
    report = node.sync()
    pauses = []
    for _ in range(7):
        assert report.pending == ("10.96.0.10:80/tcp",)
        assert report.backing_off == {"rejected": 1}
        (waiting,) = report.waiting
        assert waiting[:2] == ("10.96.0.10:80/tcp", "rejected")
        assert (waiting.failures, waiting.retry_at) == (len(pauses) + 1, report.retry_at)
        assert any("10.96.0.10:80/tcp" in text and "0x803B000D" in text for text in report.conditions)
        assert report.retry_at is not None
        pauses.append(report.retry_at - node.now)
        for share in (0.3, 0.6):
            node.wait(pauses[-1] * 0.3)
            node.forget()
            assert node.sync(audit=share > 0.5).pending
            assert not node.writes()
        node.wait(report.retry_at - node.now)
        report = node.sync()
        assert len(node.writes()) == 1
    expected = [60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0]
    assert all(0.8 * want <= got <= 1.2 * want for want, got in zip(expected, pauses, strict=True))
    node.emulator.faults.clear()
    node.put(WEB_2)
    report = node.sync()
    assert report.ok
    assert report.backing_off == {}


def test_a_frontend_in_backoff_whose_backends_vanish_is_no_longer_missing() -> None:
    """I15: what waits for its retry is judged by what is desired now."""
    node = l2_node(make_rule("10.96.0.10:80", local(f"{POD}:80")))
    refuse(node, 0x8007000E, HnsVerb.CREATE, HnsKind.LOAD_BALANCER)
    assert node.sync().pending == ("10.96.0.10:80/tcp",)
    pod = node.endpoint_at(POD)
    assert pod is not None
    node.emulator.remove(HnsKind.ENDPOINT, pod.guid)
    assert node.audit().pending == ()


def test_rejected_is_tried_again_when_its_backends_change() -> None:
    """H.6: the host has changed, and with it the document."""
    node = l2_node(make_rule("10.96.0.10:80", local(f"{POD}:80", "10.40.3.11:80")))
    refuse(node, 0x803B000D, HnsVerb.CREATE, HnsKind.LOAD_BALANCER)
    node.sync()
    node.emulator.add_pod("10.40.3.11")
    assert node.audit().ok


# --- HNS away ---


def test_an_outage_is_probed_cheaply_and_nothing_is_concluded() -> None:
    """H.6, F09: 0.5, 1, 2 ... 10 s; after it everything is read again and kept objects are adopted."""
    node = l2_node(WEB, DNS)
    node.settle()
    node.emulator.stop()
    report = node.audit()
    assert report.state is HostState.UNAVAILABLE
    pauses = []
    for _ in range(7):
        assert report.retry_at is not None
        pauses.append(report.retry_at - node.now)
        node.wait(pauses[-1] / 2)
        assert node.sync(audit=True).host_calls == 0
        node.wait(pauses[-1] / 2)
        report = node.sync()
        assert report.host_calls == 1
        assert not report.results
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    node.emulator.start()
    node.forget()
    node.wait(10.0)
    assert node.sync().ok
    assert node.writes() == []


def test_after_a_purging_restart_everything_comes_back_in_one_pass() -> None:
    """F12."""
    node = l2_node(WEB, DNS)
    node.settle()
    node.emulator.restart(purge=True)
    assert node.balancers() == {}
    assert node.audit().ok
    assert set(node.balancers()) == {"10.96.0.10:80/tcp", "10.96.0.11:53/tcp"}


def test_objects_that_hns_restores_late_are_adopted() -> None:
    """F09: 0xB7 after a restart means that it is there, not that it cannot be made."""
    node = l2_node(WEB, DNS)
    node.settle()
    lost = node.emulator.restart(purge=True)
    restored = False

    def restore_before_the_first_create(call: Call) -> None:
        nonlocal restored
        if call.verb is HnsVerb.CREATE and not restored:
            restored = True
            node.emulator.restore(lost)

    node.emulator.watch(restore_before_the_first_create)
    node.audit()
    node.wait(3.0)
    assert node.sync().ok
    assert {each.guid for each in lost} == {
        *(each.guid for each in node.emulator.load_balancers()),
        *(each.guid for each in node.emulator.endpoints() if each.remote),
    }


# --- the network ---


def test_a_failed_network_query_changes_nothing() -> None:
    """F21."""
    node = l2_node(WEB)
    node.settle()
    refuse(node, 0x80004005, HnsVerb.ENUMERATE, HnsKind.NETWORK)
    report = node.audit()
    assert node.writes() == []
    assert any("HNS cannot be read" in condition for condition in report.conditions)
    assert node.sync().retry_at == pytest.approx(node.now + 1.0)
    node.wait(1.0)
    assert not any("HNS cannot be read" in condition for condition in node.sync().conditions)


def test_a_network_is_lost_only_if_missed_twice() -> None:
    """F21: two looks, two seconds apart; nothing is deleted even then; rebuilt when it is back."""
    node = l2_node(WEB)
    node.settle()
    network = node.emulator.networks()[0]
    node.emulator.alter(HnsKind.NETWORK, network.guid, name="renamed")
    first = node.audit()
    assert first.state is HostState.HEALTHY
    assert first.retry_at == node.now + 2.0
    node.wait(2.0)
    second = node.sync()
    assert second.state is HostState.WAITING
    assert any("no network" in condition for condition in second.conditions)
    assert node.writes() == []
    node.put(WEB_2)
    assert node.sync().state is HostState.WAITING
    node.emulator.alter(HnsKind.NETWORK, network.guid, name="hansa-br")
    node.wait(2.0)
    assert node.sync().ok
    assert node.backends("10.96.0.10:80/tcp") == [FARTHER]


def test_waiting_for_the_network_is_a_state_not_a_hang() -> None:
    """F38, A.4."""
    node = l2_node(WEB)
    network = node.emulator.networks()[0]
    for endpoint in node.emulator.endpoints():
        node.emulator.remove(HnsKind.ENDPOINT, endpoint.guid)
    node.emulator.remove(HnsKind.NETWORK, network.guid)
    report = node.sync()
    assert report.state is HostState.WAITING
    assert any("the CNI makes it" in condition for condition in report.conditions)
    node.emulator.add(network)
    node.wait(2.0)
    assert node.sync().ok


def test_two_usable_networks_need_a_name() -> None:
    node = l2_node(WEB)
    twin = msgspec.structs.replace(
        node.emulator.networks()[0], guid=Guid("11111111-1111-1111-1111-111111111111"), name="second"
    )
    node.emulator.add(twin)
    report = node.sync()
    assert report.state is HostState.WAITING
    assert any("set the network's name" in condition for condition in report.conditions)
    assert node.writes() == []


# --- Modify ---


@pytest.mark.parametrize("modify", [Modify.UNSUPPORTED, Modify.DOES_NOTHING])
def test_modify_that_does_not_work_is_learned_within_the_pass(modify: Modify) -> None:
    """S5, F70: the other way in the same pass, and from the start the next time."""
    node = l2_node(WEB, build=plain(FUTURE, modify=modify))
    node.settle()
    node.forget()
    node.put(WEB_2)
    assert node.sync().ok
    assert node.count(HnsVerb.MODIFY) == 1
    assert node.backends("10.96.0.10:80/tcp") == [FARTHER]
    node.put(WEB)
    assert node.sync().ok
    assert node.count(HnsVerb.MODIFY) == 1


def test_modify_is_not_tried_where_the_version_is_known_to_lie() -> None:
    """F70: HNS 15.4."""
    node = l2_node(WEB, build=WS2025)
    node.settle()
    node.put(WEB_2)
    assert node.sync().ok
    assert node.count(HnsVerb.MODIFY) == 0


def test_a_vanished_load_balancer_is_made_again_when_modify_says_gone() -> None:
    """F13."""
    node = l2_node(WEB, build=ZN23H2)
    node.settle()
    node.emulator.remove(HnsKind.LOAD_BALANCER, node.balancers()["10.96.0.10:80/tcp"].guid)
    node.put(WEB_2)
    assert node.sync().ok
    assert node.backends("10.96.0.10:80/tcp") == [FARTHER]


def test_delete_has_one_immediate_second_try() -> None:
    """F05: Server 2019."""
    node = l2_node(WEB, build=plain(WS2019, lb_delete_fails_every=1))
    node.settle()
    node.emulator.build = replace(node.emulator.build, lb_delete_fails_every=2)
    node.forget()
    node.want()
    node.sync()
    assert 1 <= node.count(HnsVerb.DELETE, HnsKind.LOAD_BALANCER) <= 2
    assert node.balancers() == {}


# --- what the CNI and others do ---


def test_a_local_endpoint_that_appears_joins_within_a_period() -> None:
    """F19, F20, F26: partial until then, and said."""
    node = l2_node(make_rule("10.96.0.10:80", (*local("10.40.3.11:80"), *remote(f"{FAR}:80"))))
    report = node.audit()
    assert report.ok
    assert node.backends("10.96.0.10:80/tcp") == [FAR]
    assert any("10.40.3.11" in condition for condition in report.conditions)
    node.emulator.add_pod("10.40.3.11")
    report = node.audit()
    assert node.backends("10.96.0.10:80/tcp") == ["10.40.3.11", FAR]
    assert not report.conditions
    assert [change.key for change in report.drift] == ["10.96.0.10:80/tcp"]


def test_a_load_balancer_whose_backends_all_wait_is_absent() -> None:
    """H.2: and it comes as soon as one is there."""
    node = l2_node(make_rule("10.96.0.10:80", local("10.40.3.11:80")))
    assert node.audit().ok
    assert node.balancers() == {}
    node.emulator.add_pod("10.40.3.11")
    node.audit()
    assert node.backends("10.96.0.10:80/tcp") == ["10.40.3.11"]


@pytest.mark.parametrize("build", [WS2022, plain(FUTURE, allows_local_remote_twins=True)], ids=["replace", "modify"])
def test_a_local_twin_takes_over_all_load_balancers_in_one_pass(build: Build) -> None:
    """F49, F50: those of other services too; then the remote one goes."""
    other = make_rule("10.96.0.12:80", remote(f"{FAR}:80"), owner="d/other")
    node = l2_node(WEB, other, build=build)
    node.settle()
    pod = node.emulator.add_pod(FAR, force=True)
    assert node.audit().ok
    assert [each.guid for each in node.emulator.endpoints() if parse_address(FAR) in each.addresses] == [pod]
    assert {node.balancers()[f"10.96.0.{n}:80/tcp"].endpoints for n in (10, 12)} == {(pod,)}


def test_a_remote_endpoint_whose_address_left_all_slices_goes_at_once() -> None:
    """F47: or a new pod with that address would get no network."""
    node = l2_node(WEB)
    node.settle()
    node.put(make_rule("10.96.0.10:80", ()))
    node.sync()
    assert node.endpoint_at(FAR) is None


def test_a_backend_that_is_to_be_here_frees_its_address_for_the_cni() -> None:
    """F47: a recycled address."""
    node = l2_node(WEB)
    node.settle()
    node.put(make_rule("10.96.0.10:80", local(f"{FAR}:8080")))
    report = node.sync()
    assert node.endpoint_at(FAR) is None
    assert node.balancers() == {}
    assert any(FAR in condition for condition in report.conditions)


def test_an_endpoint_that_became_local_is_not_deleted() -> None:
    """F48: read again right before the delete."""
    node = l2_node(WEB)
    node.settle()
    remote_guid = node.endpoint_at(FAR)
    assert remote_guid is not None
    node.emulator.alter(HnsKind.ENDPOINT, remote_guid.guid, flags=EndpointFlags(0))
    node.want()
    node.sync()
    assert node.endpoint_at(FAR) is not None
    assert node.count(HnsVerb.DELETE, HnsKind.ENDPOINT) == 0


@pytest.mark.parametrize("field", ["flags", "source_vip", "endpoints", "port_mappings"])
def test_silent_changes_of_content_are_put_right(field: str) -> None:
    """H.7: rotating verification."""
    node = l2_node(DNS)
    node.settle()
    balancer = node.balancers()["10.96.0.11:53/tcp"]
    other = PortMapping(protocol=6, internal_port=54, external_port=53)
    value = {"flags": LbFlags.DSR, "source_vip": None, "endpoints": balancer.endpoints[:1], "port_mappings": (other,)}
    node.emulator.alter(HnsKind.LOAD_BALANCER, balancer.guid, **{field: value[field]})
    report = node.audit()
    assert [change.key for change in report.drift] == ["10.96.0.11:53/tcp"]
    assert msgspec.structs.asdict(node.balancers()["10.96.0.11:53/tcp"]) == msgspec.structs.asdict(balancer)


def test_a_load_balancer_deleted_behind_our_back_returns_within_a_period() -> None:
    """F11."""
    node = l2_node(WEB)
    node.settle()
    node.emulator.remove(HnsKind.LOAD_BALANCER, node.balancers()["10.96.0.10:80/tcp"].guid)
    report = node.audit()
    assert "10.96.0.10:80/tcp" in node.balancers()
    assert [(change.verb, change.key) for change in report.drift] == [(Verb.CREATE, "10.96.0.10:80/tcp")]


def test_a_misplaced_backend_is_used_and_reported() -> None:
    """F67, F67b: the HNS flag decides what is used, and the disagreement is said."""
    node = l2_node(make_rule("10.96.0.10:80", remote(f"{POD}:80")))
    report = node.audit()
    assert node.backends("10.96.0.10:80/tcp") == [POD]
    assert any("is the node name right" in condition for condition in report.conditions)


def test_a_backend_with_the_node_address_gets_a_stand_in() -> None:
    """F83: HostProcess pods of this node."""
    node = l2_node(make_rule("10.96.0.10:80", local("192.0.2.21:80")))
    assert node.audit().ok
    assert node.backends("10.96.0.10:80/tcp") == ["192.0.2.21"]


# --- other programs ---


def test_a_frontend_held_by_another_program_is_reported_and_taken_when_free() -> None:
    """H.3, F36."""
    node = l2_node(WEB)
    guid = add_balancer(node, "10.96.0.10", owner="somebody")
    report = node.audit()
    assert report.pending == ("10.96.0.10:80/tcp",)
    assert any(guid in condition for condition in report.conditions)
    assert [call.kind for call in node.writes()] == [HnsKind.ENDPOINT]
    node.emulator.remove(HnsKind.LOAD_BALANCER, guid)
    assert node.audit().ok


def test_foreign_objects_elsewhere_are_left_alone() -> None:
    """F36."""
    node = l2_node(WEB)
    foreign = {
        add_balancer(node, "198.51.100.1"),
        add_balancer(node, "10.96.0.99", owner="somebody"),
        add_balancer(node, "10.96.0.98", frontend_vips=(parse_address("10.96.0.98"), parse_address("10.96.0.97"))),
        add_remote(node, "10.40.9.9", mac="02-AA-00-00-00-01"),
    }
    for _ in range(5):
        node.wait(30.0)
        assert node.audit().ok
    assert not foreign & {call.guid for call in node.writes()}
    assert foreign <= {each.guid for each in (*node.emulator.load_balancers(), *node.emulator.endpoints())}


def test_a_foreign_remote_endpoint_is_used_as_it_is() -> None:
    node = l2_node(WEB)
    guid = add_remote(node, FAR, mac="02-AA-00-00-00-01", owner="cni")
    assert node.audit().ok
    assert node.balancers()["10.96.0.10:80/tcp"].endpoints == (guid,)
    node.want()
    assert node.sync().ok
    assert node.endpoint_at(FAR) is not None


def test_kube_proxys_objects_are_taken_over_and_its_leftovers_go_after_a_grace() -> None:
    """H.5: what is desired is adopted or replaced at once; the rest goes two audits after the first pass."""
    node = l2_node(WEB)
    adopted = add_balancer(node, "10.96.0.10", source_vip=None)
    kept_endpoint = add_remote(node, FAR)
    add_balancer(node, "10.96.0.77")
    add_balancer(
        node,
        "0.0.0.0",
        frontend_vips=(),
        port_mappings=(PortMapping(protocol=6, internal_port=1, external_port=31000),),
    )
    add_remote(node, "10.40.8.8")
    assert node.audit().ok
    assert adopted not in {each.guid for each in node.emulator.load_balancers()}
    assert node.balancers()["10.96.0.10:80/tcp"].endpoints == (kept_endpoint,)
    assert {"10.96.0.77:80/tcp", "node:31000/tcp"} <= set(node.balancers())
    for _ in range(3):
        node.wait(30.0)
        report = node.audit()
    assert report.ok
    assert set(node.balancers()) == {"10.96.0.10:80/tcp"}
    assert {str(each.addresses[0]) for each in node.emulator.endpoints() if each.remote} == {FAR}


def test_without_takeover_leftovers_stay() -> None:
    node = l2_node(WEB, takeover=False)
    leftovers = {add_balancer(node, "10.96.0.77"), add_remote(node, "10.40.8.8")}
    for _ in range(5):
        node.wait(30.0)
        assert node.audit().ok
    assert leftovers <= {each.guid for each in (*node.emulator.load_balancers(), *node.emulator.endpoints())}


def test_takeover_ends_with_the_first_start_that_finished_it(tmp_path: Path) -> None:
    """H.5: the journal remembers; a later start deletes no unmarked object any more."""
    node = l2_node(WEB, journal_path=str(tmp_path / "journal"))
    for _ in range(5):
        node.wait(30.0)
        node.audit()
    node.start()
    leftover = add_balancer(node, "10.96.0.77")
    for _ in range(5):
        node.wait(30.0)
        assert node.audit().ok
    assert leftover in {each.guid for each in node.emulator.load_balancers()}


def test_complete_empty_rules_remove_exactly_what_is_ours() -> None:
    """F40."""
    node = l2_node(WEB, DNS, make_rule("node:30080", local(f"{POD}:80")))
    foreign = {add_balancer(node, "198.51.100.1"), add_remote(node, "10.40.9.9", mac="02-AA-00-00-00-01")}
    before = {each.guid for each in node.emulator.endpoints()}
    node.settle()
    node.start()
    node.want()
    assert node.sync().ok
    assert {each.guid for each in node.emulator.load_balancers()} == foreign - before
    assert {each.guid for each in node.emulator.endpoints()} == before


# --- marks ---

UNMARKED = plain(WS2022, keeps_caller_guid=False, echoes_owner=False)


def test_objects_carry_our_marks() -> None:
    """H.5: a GUID of our choice, the same in every life, and our Owner."""
    node, again = l2_node(WEB), l2_node(WEB)
    node.settle()
    again.settle()
    assert node.balancers()["10.96.0.10:80/tcp"].owner == OWNER
    assert node.balancers()["10.96.0.10:80/tcp"].guid == again.balancers()["10.96.0.10:80/tcp"].guid


@pytest.mark.parametrize(
    "build",
    [WS2022, plain(WS2022, keeps_caller_guid=False), plain(WS2022, echoes_owner=False), UNMARKED],
    ids=["both", "owner", "guid", "none"],
)
def test_a_restart_adopts_without_journal_and_without_a_write(build: Build) -> None:
    """F35."""
    node = l2_node(WEB, DNS, make_rule("node:30080", local(f"{POD}:80")), build=build)
    node.settle()
    node.start()
    node.forget()
    assert node.audit().ok
    assert node.writes() == []


def test_the_journal_tells_what_is_ours_where_hns_keeps_no_mark(tmp_path: Path) -> None:
    outside = make_rule("203.0.113.7:80", remote(f"{FAR}:80"), FrontendKind.EXTERNAL_IP)
    for path, expected in (("", {"203.0.113.7:80/tcp"}), (str(tmp_path / "journal"), set())):
        node = l2_node(outside, build=UNMARKED, journal_path=path, takeover=False)
        node.settle()
        node.want()
        node.start()
        node.audit()
        assert set(node.balancers()) == expected


def test_a_journal_that_cannot_be_written_is_a_condition(tmp_path: Path) -> None:
    node = l2_node(WEB, journal_path=str(tmp_path / "missing" / "journal"))
    report = node.audit()
    assert report.ok
    assert any("journal" in condition for condition in report.conditions)


# --- resources ---


def test_exhausted_ports_stop_creates_without_dsr_only() -> None:
    """F44: after three such answers one pass gives up, and says so; deletes go on."""
    few = replace(L2BRIDGE_LAYOUT, machine=Machine(dynamic_ports=(49152, 64 * 4)))
    build = replace(WS2022, pool_exhausted=HResult(0x8007000E))
    node = WindowsNode(l2bridge_node(build, layout=few))
    node.emulator.add_pod(POD)
    rules = [make_rule(f"10.96.0.{n}:80", local(f"{POD}:80")) for n in range(10, 30)]
    local_only = make_rule("203.0.113.80:80", local(f"{POD}:80"), FrontendKind.LOAD_BALANCER_IP, policy_local=True)
    node.want(*rules, local_only)
    report = node.sync()
    refused = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert node.count(HnsVerb.CREATE, HnsKind.LOAD_BALANCER) == 4 + 3 + 1
    assert {result.error_class for result in refused} == {"exhausted"}
    assert "203.0.113.80:80/tcp" in node.balancers()
    assert any("run out of ports" in condition for condition in report.conditions)
    assert report.retry_at is not None
    assert report.retry_at >= node.now + 30.0
    node.drop(*rules[:18])
    node.sync()
    node.wait(31.0)
    assert node.sync().ok


def test_a_leaked_reservation_waits_longer_each_time_and_blocks_nobody() -> None:
    """F43."""
    node = l2_node(WEB, build=WS2022)
    node.settle()
    node.emulator.faults.add(Fault(effect=LeakReservation(), verb=HnsVerb.DELETE, kind=HnsKind.LOAD_BALANCER))
    node.put(WEB_2, make_rule("10.96.0.12:80", local(f"{POD}:80")))
    report = node.sync()
    assert report.pending == ("10.96.0.10:80/tcp",)
    assert "10.96.0.12:80/tcp" in node.balancers()
    pauses = []
    for _ in range(4):
        assert report.retry_at is not None
        pauses.append(report.retry_at - node.now)
        node.wait(pauses[-1])
        report = node.sync()
    assert pauses == [2.0, 4.0, 8.0, 16.0]
    node.emulator.forget_leaks()
    node.wait(301.0)
    assert node.sync().ok


def test_a_partial_load_balancer_is_removed_by_its_mark() -> None:
    """F23, hcn.md 5.10 B3."""
    node = l2_node(WEB)
    node.emulator.add(HnsLoadBalancer(frontend_vips=(parse_address("10.96.0.10"),), owner=OWNER))
    foreign = node.emulator.add(HnsLoadBalancer(frontend_vips=(parse_address("10.96.0.10"),)))
    assert node.audit().ok
    assert {each.guid for each in node.emulator.load_balancers()} == {
        foreign,
        node.balancers()["10.96.0.10:80/tcp"].guid,
    }


def test_a_critical_service_alarms_after_ten_seconds() -> None:
    """F22."""
    node = l2_node(DNS)
    refuse(node, 0x803B0007, HnsVerb.CREATE, HnsKind.LOAD_BALANCER, times=None)
    report = node.sync()
    assert not any("critical" in condition for condition in report.conditions)
    node.wait(11.0)
    report = node.sync()
    assert any(condition.startswith("critical: 10.96.0.11:53/tcp") for condition in report.conditions)


# --- overlay ---


def overlay(*rules: Rule, build: Build = WS2022, config: object = OVERLAY_CONFIG) -> WindowsNode:
    node = WindowsNode(overlay_node(plain(build)), config)  # type: ignore[arg-type]
    node.want(*rules)
    return node


PODS_FAR = remote("10.41.8.20:80", "10.41.9.20:80")


def test_overlay_makes_source_vip_service_vip_and_remote_endpoints() -> None:
    """D.4."""
    node = overlay(make_rule("10.96.0.10:80", PODS_FAR))
    assert node.sync().ok
    source, service = node.endpoint_at(str(SOURCE_VIP)), node.endpoint_at("10.96.0.10")
    assert source is not None
    assert service is not None
    assert (source.remote, source.mac_address, source.policies) == (False, HOST_MAC, ())
    assert (service.remote, service.mac_address, service.provider_address) == (True, HOST_MAC, NODE_IP)
    far = node.endpoint_at("10.41.8.20")
    assert far is not None
    assert str(far.provider_address) == "192.0.2.22"
    assert node.balancers()["10.96.0.10:80/tcp"].source_vip == SOURCE_VIP


def test_the_service_vip_endpoint_outlives_endpoint_changes_and_ports() -> None:
    """F61."""
    http, https = make_rule("10.96.0.10:80", PODS_FAR), make_rule("10.96.0.10:443", PODS_FAR)
    node = overlay(http, https)
    node.settle()
    made = node.endpoint_at("10.96.0.10")
    assert made is not None
    node.put(make_rule("10.96.0.10:80", PODS_FAR[:1]))
    node.drop(https)
    assert node.sync().ok
    assert made.guid not in {call.guid for call in node.writes() if call.verb is HnsVerb.DELETE}
    node.want()
    assert node.sync().ok
    assert node.endpoint_at("10.96.0.10") is None
    assert node.endpoint_at(str(SOURCE_VIP)) is not None


def test_a_missing_source_vip_holds_back_only_who_needs_it() -> None:
    """F57: a waiting state that says who must act."""
    node = overlay(
        make_rule("10.96.0.10:80", PODS_FAR),
        make_rule("10.96.0.11:80", local("10.41.7.9:80")),
        config=make_config(),
    )
    node.emulator.add_pod("10.41.7.9")
    report = node.sync()
    assert report.state is HostState.WAITING
    assert report.pending == ("10.96.0.10:80/tcp",)
    assert any("source VIP missing" in condition for condition in report.conditions)
    assert set(node.balancers()) == {"10.96.0.11:80/tcp"}


def test_the_source_vip_is_found_by_the_name_of_the_cnis_endpoint() -> None:
    """F57 (#123014)."""
    node = overlay(make_rule("10.96.0.10:80", PODS_FAR), config=make_config(source_vip_endpoint="vip_ep"))
    assert node.sync().state is HostState.WAITING
    node.emulator.add_pod("10.41.7.77", name="vip_ep")
    report = node.audit()
    assert report.ok
    assert str(node.balancers()["10.96.0.10:80/tcp"].source_vip) == "10.41.7.77"


def test_an_invalid_source_vip_holds_back_only_who_needs_it() -> None:
    """F58: the error names the address; the rest works."""
    node = overlay(
        make_rule("10.96.0.10:80", PODS_FAR),
        make_rule("10.96.0.11:80", local("10.41.7.9:80")),
        config=make_config(source_vip=(parse_address("172.30.0.1"),)),
    )
    node.emulator.add_pod("10.41.7.9")
    report = node.sync()
    assert report.state is HostState.WAITING
    assert report.pending == ("10.96.0.10:80/tcp", "endpoint 172.30.0.1")
    assert {result.error_class for result in report.results if result.error} == {"rejected"}
    assert "10.96.0.11:80/tcp" in node.balancers()


@pytest.mark.parametrize("build", [WS2022, ZN23H2], ids=["replace", "modify"])
def test_a_provider_change_replaces_the_endpoint_in_one_group(build: Build) -> None:
    """F63, H.3: users move off and back on; a second backend keeps serving meanwhile where Modify works."""
    both = make_rule("10.96.0.10:80", PODS_FAR)
    alone = make_rule("10.96.0.11:80", PODS_FAR[:1])
    node = overlay(both, alone, build=build)
    node.settle()
    network = node.emulator.networks()[0]
    moved = tuple(
        msgspec.structs.replace(policy, provider_address=parse_address("192.0.2.99"))
        if isinstance(policy, RemoteSubnetRoute) and policy.prefix == parse_prefix("10.41.8.0/24")
        else policy
        for policy in network.policies
    )
    node.emulator.alter(HnsKind.NETWORK, network.guid, policies=moved)
    node.forget()
    report = node.audit()
    assert report.ok
    far = node.endpoint_at("10.41.8.20")
    assert far is not None
    assert str(far.provider_address) == "192.0.2.99"
    assert node.backends("10.96.0.10:80/tcp") == ["10.41.8.20", "10.41.9.20"]
    assert node.backends("10.96.0.11:80/tcp") == ["10.41.8.20"]
    if build is ZN23H2:
        assert node.count(HnsVerb.DELETE, HnsKind.LOAD_BALANCER) == 1


def test_an_endpoint_in_foreign_use_is_not_replaced() -> None:
    """I2, I4."""
    node = overlay(make_rule("10.96.0.10:80", PODS_FAR[:1]))
    node.settle()
    far = node.endpoint_at("10.41.8.20")
    assert far is not None
    add_balancer(node, "198.51.100.1", endpoints=(far.guid,), owner="somebody")
    wrong = (ProviderAddress(parse_address("192.0.2.98")),)
    node.emulator.alter(HnsKind.ENDPOINT, far.guid, policies=wrong)
    node.forget()
    report = node.audit()
    assert node.writes() == []
    assert report.pending == ("endpoint 10.41.8.20",)
    assert any("of another program uses it" in condition for condition in report.conditions)


def test_a_malformed_remote_subnet_is_skipped_and_reported() -> None:
    """F64."""
    node = overlay(make_rule("10.96.0.10:80", PODS_FAR))
    network = node.emulator.networks()[0]
    bad = RawPolicy("RemoteSubnetRoute", b'{"DestinationPrefix":"nonsense"}')
    node.emulator.alter(HnsKind.NETWORK, network.guid, policies=(*network.policies, bad))
    report = node.sync()
    assert report.ok
    assert any("RemoteSubnetRoute is skipped" in condition for condition in report.conditions)


def test_plan_reads_and_writes_nothing() -> None:
    node = l2_node(WEB)
    node.settle()
    node.put(WEB_2)
    node.forget()
    changes = node.dataplane.plan(node.changes(), now=node.now)
    assert node.writes() == []
    assert [(change.verb, change.key) for change in changes] == [
        (Verb.CREATE, FARTHER),
        (Verb.REPLACE, "10.96.0.10:80/tcp"),
        (Verb.DELETE, FAR),
    ]
    assert [change.disruptive for change in changes] == [False, True, False]
    node.told = None
    assert node.sync().ok
    assert node.dataplane.plan(node.changes(), now=node.now) == ()
