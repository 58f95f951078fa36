"""What the campaign has found, each as the shortest story that shows it."""

from __future__ import annotations

import pytest
from tests.guarantees.node import (
    LOCAL_1,
    REMOTE_1,
    REMOTE_2,
    WITHOUT_MODIFY,
    GuardedNode,
    at_frontend,
    bridge,
    plain,
)

from hansa.hns.api import HnsKind, HnsVerb, HResult
from hansa.hns.emulator import WS2022, WS2025, ZN23H2, LeavePartial, LoseReply, Modify, Refuse
from hansa.net import parse_address
from hansa.testing import L1, R1, R2, endpoint_slice, service

LB, EP = HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT
WEB_IP, API_IP = "10.96.0.10:80/tcp", "10.96.0.11:80/tcp"
WEB, API = service(), service("api", cluster_ips=["10.96.0.11"])
# HNS keeps neither the GUID that we ask for nor our Owner, and takeover is over: only the journal tells what is ours.
NO_MARKS = plain(WS2022, keeps_caller_guid=False, echoes_owner=False)


def unmarked(*objects: object, folder: object) -> GuardedNode:
    node = bridge(*objects, build=NO_MARKS, takeover=False, journal_path=f"{folder}/journal")  # type: ignore[arg-type]
    node.settle()
    return node


@pytest.mark.parametrize("modify", [Modify.DOES_NOTHING, Modify.UNSUPPORTED], ids=["lies", "refuses"])
def test_load_balancers_move_off_an_endpoint_though_modify_turns_out_not_to_work(modify: Modify) -> None:
    """The other way was taken with the endpoint that they were to leave: the pass failed, with gaps for nothing."""
    build = plain(WS2025, version=ZN23H2.version, modify=modify)
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build)
    node.settle()
    node.emulator.alter(EP, node.endpoint_at(REMOTE_1).guid, mac_address="02-11-00-00-00-01")
    report = node.period()
    assert report.ok
    assert report.retry_at is None
    assert node.endpoint_at(REMOTE_1).mac_address == "02-11-0A-01-02-15"
    assert node.backends(WEB_IP) == [LOCAL_1, REMOTE_1]


def test_of_two_leftovers_at_a_frontend_the_second_goes_before_the_first_is_replaced() -> None:
    """HNS would refuse the new one as long as the second holds the frontend, which was bare until a retry."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    for _ in range(2):
        node.add_balancer("10.96.0.10", foreign=False)
    report = node.sync()
    assert report.ok
    assert report.retry_at is None
    assert node.emulator.refusals["EV-13"] == 0
    assert node.served() == {WEB_IP: [LOCAL_1]}


def test_a_wrong_gone_does_not_cost_a_load_balancer_its_mark(tmp_path: object) -> None:
    """HNS says that the network is gone when asked to delete: the load balancer is still there, and still ours."""
    node = unmarked(WEB, endpoint_slice("web-a", [R1]), folder=tmp_path)
    node.refuse(0x803B0001, HnsVerb.DELETE, LB)
    node.delete(WEB)
    node.sync()
    node.wait(31.0)
    node.audit()
    assert node.settle().ok
    assert node.served() == {}
    assert node.remotes() == []


def test_a_partial_load_balancer_is_claimed_although_the_first_look_for_it_fails(tmp_path: object) -> None:
    """Its create was refused, and so was the list right after: the next look that succeeds finds whose it is."""
    node = unmarked(API, endpoint_slice("api-a", [L1], service="api"), folder=tmp_path)
    node.put(WEB, endpoint_slice("web-a", [L1]))
    node.break_call(LeavePartial(), HnsVerb.CREATE, LB)
    node.refuse(0x803B0007, HnsVerb.ENUMERATE)
    node.sync()
    assert any(name.startswith("partial") for name in node.served())
    assert node.settle().ok
    assert node.served() == {WEB_IP: [LOCAL_1], API_IP: [LOCAL_1]}


def test_a_partial_load_balancer_is_claimed_although_it_cannot_be_read_at_first(tmp_path: object) -> None:
    """The look that came first could list it and not open it."""
    node = unmarked(API, endpoint_slice("api-a", [L1], service="api"), folder=tmp_path)
    node.put(WEB, endpoint_slice("web-a", [L1]))
    node.break_call(LeavePartial(), HnsVerb.CREATE, LB)
    node.refuse(0x803B000D, HnsVerb.OPEN, LB)
    node.sync()
    assert node.settle().ok
    assert node.served() == {WEB_IP: [LOCAL_1], API_IP: [LOCAL_1]}


def test_a_partial_load_balancer_is_claimed_although_the_same_pass_has_made_another(tmp_path: object) -> None:
    """To move off an endpoint takes two creates: the second made forget what the first, which failed, had asked for."""
    build = plain(WS2022, keeps_caller_guid=False, echoes_owner=False, modify=Modify.UNSUPPORTED)
    journal = f"{tmp_path}/journal"
    node = bridge(WEB, endpoint_slice("web-a", [L1, R1]), build=build, takeover=False, journal_path=journal)
    node.settle()
    node.emulator.alter(EP, node.endpoint_at(REMOTE_1).guid, mac_address="02-11-00-00-00-01")
    node.break_call(LeavePartial(), HnsVerb.CREATE, LB)
    node.period()
    assert node.settle().ok
    assert node.served() == {WEB_IP: [LOCAL_1, REMOTE_1]}
    assert len(node.emulator.load_balancers()) == 1


@pytest.mark.parametrize("lost", ["reply", "reading"])
def test_an_endpoint_whose_making_was_not_confirmed_is_ours_all_the_same(lost: str, tmp_path: object) -> None:
    """It was made, the answer was an error: when nothing wants it any more, it goes, so that its address is free."""
    node = unmarked(WEB, endpoint_slice("web-a", [L1]), folder=tmp_path)
    if lost == "reply":
        node.break_call(LoseReply(), HnsVerb.CREATE, EP)
    else:
        node.refuse(0x80070490, HnsVerb.QUERY, EP)
    node.put(endpoint_slice("web-a", [L1, R1]))
    node.sync()
    assert node.remotes() == [REMOTE_1]
    node.put(endpoint_slice("web-a", [L1]))
    assert node.settle().ok
    assert node.remotes() == []


def test_a_partial_load_balancer_of_ours_goes_before_others_move_off_its_endpoint() -> None:
    """It kept the endpoint in use, so that all others moved off and back for nothing."""
    node = bridge(WEB, endpoint_slice("web-a", [R1, R2]), build=WITHOUT_MODIFY)
    node.settle()
    stuck = node.add_balancer(
        "10.96.0.10", foreign=False, port_mappings=(), owner="hansa", endpoints=(node.endpoint_at(REMOTE_1).guid,)
    )
    node.emulator.alter(EP, node.endpoint_at(REMOTE_1).guid, mac_address="02-11-00-00-00-01")
    assert node.period().ok
    assert node.emulator.get(LB, stuck) is None
    assert node.backends(WEB_IP) == [REMOTE_1, REMOTE_2]
    assert node.count(HnsVerb.CREATE, LB) == 2, "off and on, once"


def test_a_refused_replacement_is_made_good_within_two_seconds() -> None:
    """A frontend whose second half of a replacement failed: the shortest time that HNS lets it be bare."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]))
    node.settle()
    node.break_call(Refuse(HResult(0x803B0007)), HnsVerb.CREATE, LB, where=at_frontend(WEB_IP))
    node.put(endpoint_slice("web-a", [R1]))
    report = node.sync()
    assert node.served() == {}
    assert report.retry_at is not None
    assert report.retry_at - node.now <= 2.0
    node.wait(2.0)
    assert node.sync().ok
    assert node.served() == {WEB_IP: [REMOTE_1]}
    assert parse_address(REMOTE_1) in node.endpoint_at(REMOTE_1).addresses
