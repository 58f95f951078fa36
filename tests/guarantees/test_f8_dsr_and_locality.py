"""windows-proxy F.8: DSR, traffic policies and what counts as local."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.guarantees.node import (
    LOCAL_1,
    LOCAL_2,
    REMOTE_1,
    REMOTE_2,
    WITH_MODIFY,
    WITHOUT_MODIFY,
    GuardedNode,
    bridge,
    plain,
)

from hansa.api.objects import Policy
from hansa.cli.options import check_node_name
from hansa.errors import ConfigError
from hansa.hns.api import HnsKind, HnsVerb, HnsVersion
from hansa.hns.emulator import WS2019, WS2025, Build, Modify
from hansa.testing import L1, L2, NODE, R1, R2, WEB, endpoint, endpoint_slice, service

LB = HnsKind.LOAD_BALANCER
BOTH = pytest.mark.parametrize("build", [WITHOUT_MODIFY, WITH_MODIFY], ids=["replace", "modify"])
CLUSTER_IP, NODE_PORT = "10.96.0.10:80/tcp", "node:30080/tcp"
EXTERNAL_IP, VIP, HEALTH = "203.0.113.7:80/tcp", "203.0.113.80:80/tcp", "203.0.113.80:32000/tcp"
LOCAL = replace(WEB, external_policy=Policy.LOCAL, health_check_node_port=32000)
NO_DSR = plain(WS2019, version=HnsVersion(10, 1))


def flags(node: GuardedNode) -> dict[str, str]:
    """`LB flags/mapping flags` by frontend, as table C.4 writes them."""
    return {
        name: f"{int(each.flags)}/{int(each.port_mappings[0].flags)}" for name, each in sorted(node.balancers().items())
    }


def test_F65_without_dsr_in_hns_external_policy_local_still_uses_local_pods_only() -> None:
    """And it is said that the client's address is not preserved, with the version that would."""
    node = bridge(LOCAL, endpoint_slice("web-a", [L1, R1]), build=NO_DSR)
    report = node.sync()
    assert report.ok
    assert node.served() == {
        CLUSTER_IP: [LOCAL_1, REMOTE_1],
        NODE_PORT: [LOCAL_1],
        EXTERNAL_IP: [LOCAL_1],
        VIP: [LOCAL_1],
    }
    (told,) = [one for one in report.shortfalls if one.feature == "client-ip"]
    assert (told.found, told.needed) == ("HNS 10.1", "HNS 9.3 to 9.x, or 10.2 or later")


@pytest.mark.parametrize(
    "web, settings, expected",
    [
        (WEB, {}, {CLUSTER_IP: "0/0", EXTERNAL_IP: "0/16", VIP: "0/16", NODE_PORT: "0/18"}),
        (WEB, {"enable_dsr": True}, {CLUSTER_IP: "1/0", EXTERNAL_IP: "0/16", VIP: "0/16", NODE_PORT: "0/18"}),
        (LOCAL, {}, {CLUSTER_IP: "0/0", EXTERNAL_IP: "1/16", HEALTH: "0/0", VIP: "1/16", NODE_PORT: "1/18"}),
        (
            LOCAL,
            {"enable_dsr": True},
            {CLUSTER_IP: "1/0", EXTERNAL_IP: "1/16", HEALTH: "0/0", VIP: "1/16", NODE_PORT: "1/18"},
        ),
        (
            replace(WEB, preserve_destination=True),
            {},
            {CLUSTER_IP: "0/0", EXTERNAL_IP: "0/16", VIP: "1/28", NODE_PORT: "0/18"},
        ),
        (
            replace(LOCAL, preserve_destination=True),
            {},
            {CLUSTER_IP: "0/0", EXTERNAL_IP: "1/16", HEALTH: "0/12", VIP: "1/28", NODE_PORT: "1/18"},
        ),
    ],
    ids=["Cluster", "Cluster+DSR", "Local", "Local+DSR", "preserve", "Local+preserve"],
)
def test_F66_flags_are_those_of_table_C2_and_the_status_lists_them_per_frontend(
    web: object, settings: dict[str, object], expected: dict[str, str]
) -> None:
    """The worked matrix C.4; health checks only where the service has a port for them (F42)."""
    node = bridge(web, endpoint_slice("web-a", [L1, R1]), forward_health_check_vip=True, **settings)  # type: ignore[arg-type]
    assert node.sync().ok
    assert flags(node) == expected
    words = {str(row.frontend): set(row.flags) for row in node.dataplane.table()}
    assert ("DSR" in words[CLUSTER_IP]) is expected[CLUSTER_IP].startswith("1")
    assert "VIP_EXTERNAL_IP" in words[VIP]
    assert ("PRESERVE_DIP" in words[VIP]) is expected[VIP].endswith("28")


def test_F67_a_wrong_node_name_is_found_at_start_and_by_what_hns_shows() -> None:
    """The API has no such Node: refused at start. All slices name another node for pods that are here: a condition."""
    node = bridge(WEB, endpoint_slice("web-a", [L1, L2]))
    with pytest.raises(ConfigError, match="no Node is called 'N1'"):
        check_node_name(replace(node.config, node_name="N1"), [NODE])
    check_node_name(node.config, [NODE])
    node.start(replace(node.config, node_name="other"))
    report = node.sync()
    (told,) = [text for text in report.conditions if "is the node name right?" in text]
    assert LOCAL_1 in told
    assert LOCAL_2 in told
    assert node.backends(CLUSTER_IP) == [LOCAL_1, LOCAL_2], "and the traffic flows all the same"
    assert node.remotes() == []


def test_F67b_the_node_name_decides_policy_and_the_hns_flag_decides_what_is_made() -> None:
    """An endpoint here that its slice places elsewhere: not for Local frontends, no stand-in for it, and reported."""
    node = bridge(LOCAL, endpoint_slice("web-a", [L1, endpoint(LOCAL_2, node="n2")]))
    report = node.sync()
    assert node.served()[VIP] == [LOCAL_1]
    assert node.served()[CLUSTER_IP] == [LOCAL_1, LOCAL_2]
    assert node.remotes() == []
    assert any(text.endswith(f"is the node name right? {LOCAL_2}") for text in report.conditions)


def test_F68_a_vip_of_a_local_policy_service_without_pod_here_is_reported_and_the_cluster_ip_works() -> None:
    """HNS cannot tell pods of this node from outside clients; what they lose by that is a shortfall."""
    node = bridge(LOCAL, endpoint_slice("web-a", [R1]))
    report = node.sync()
    assert report.ok
    assert node.served() == {CLUSTER_IP: [REMOTE_1]}
    told = {str(one.frontend) for one in report.shortfalls if one.feature == "verdict"}
    assert told == {"node(IPv4):30080/tcp", EXTERNAL_IP, VIP}
    node.put(endpoint_slice("web-a", [L1, R1]))
    report = node.sync()
    assert [one.feature for one in report.shortfalls] == ["short-circuit"]


@BOTH
def test_F69_while_scaling_flows_are_kept_as_far_as_hns_lets_us(build: Build) -> None:
    """Flag 16 on external frontends, Modify before replace, and load balancers that do not change are not written."""
    other = service("api", cluster_ips=["10.96.0.11"])
    node = bridge(WEB, endpoint_slice("web-a", [L1]), other, endpoint_slice("api-a", [L1], service="api"), build=build)
    node.settle()
    assert all(node.balancers()[name].port_mappings[0].flags & 16 for name in (NODE_PORT, EXTERNAL_IP, VIP))
    before = {name: each.guid for name, each in node.balancers().items()}
    for present in ([L1, L2], [L1, L2, R1], [L2, R1]):
        node.put(endpoint_slice("web-a", present))
        assert node.sync().ok
    verbs = {call.verb for call in node.writes if call.kind is LB}
    assert verbs == ({HnsVerb.MODIFY} if build is WITH_MODIFY else {HnsVerb.DELETE, HnsVerb.CREATE})
    assert {name: each.guid for name, each in node.balancers().items()} == before
    assert not any("10.96.0.11" in line for line in node.written())


@pytest.mark.parametrize("modify", [Modify.DOES_NOTHING, Modify.UNSUPPORTED])
def test_F70_a_modify_that_changes_nothing_is_noticed_and_replaced_in_the_same_pass(modify: Modify) -> None:
    """HNS claims the feature by its version and lies: the answer is compared, Modify is off from then on."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(WS2025, version=HnsVersion(15, 5), modify=modify))
    node.settle()
    node.put(endpoint_slice("web-a", [L2]))
    assert node.sync().ok
    assert set(map(tuple, node.served().values())) == {(LOCAL_2,)}
    assert node.count(HnsVerb.MODIFY) == 1
    node.forget()
    node.put(endpoint_slice("web-a", [L1, R2]))
    assert node.sync().ok
    assert node.count(HnsVerb.MODIFY) == 0
    assert node.backends(CLUSTER_IP) == [LOCAL_1, REMOTE_2]


def test_F70_on_hns_15_4_modify_is_not_tried_at_all() -> None:
    """The version that is known for it (Server 2025)."""
    node = bridge(WEB, endpoint_slice("web-a", [L1]), build=plain(WS2025))
    node.settle()
    node.put(endpoint_slice("web-a", [L2]))
    assert node.sync().ok
    assert node.count(HnsVerb.MODIFY) == 0
    assert set(map(tuple, node.served().values())) == {(LOCAL_2,)}
