"""The doctor on emulated nodes: a healthy one has no findings, each defect has its own, and healing ends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from tests.unit.dataplanes.windows_node import NODE_IP, SERVICE_CIDR, WindowsNode, local, make_config, make_rule, remote

from hansa.explain.defects import DEFECTS, Severity, Symptom
from hansa.explain.doctor import Diagnosis, Finding, diagnose
from hansa.explain.text import finding_data, finding_notes, finding_table
from hansa.hns.api import Guid, HnsKind
from hansa.hns.dumps import Hints
from hansa.hns.emulator import WS2022, l2bridge_node, overlay_node
from hansa.hns.schema import (
    Distribution,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    LbFlags,
    MappingFlags,
    PortMapping,
    ProviderAddress,
    RawPolicy,
)
from hansa.hns.schema1 import Untold
from hansa.net import Address, Protocol, parse_address
from hansa.rules.model import FrontendKind, RuleChanges

EXTERNAL = "198.51.100.40"
DNS = make_rule(
    "10.96.0.10:53", remote("10.40.1.3:53", "10.40.1.8:53"), protocol=Protocol.UDP, owner="kube-system/kube-dns"
)
WEB = make_rule("10.96.0.7:80", (*local("10.40.3.14:8080"), *remote("10.40.4.9:8080")))
WEB_NODE = make_rule("node:30480", (*local("10.40.3.14:8080"), *remote("10.40.4.9:8080")))
WEB_VIP = make_rule(
    f"{EXTERNAL}:80", local("10.40.3.14:8080"), FrontendKind.LOAD_BALANCER_IP, policy_local=True, created=1.0
)
STICKY = make_rule("10.96.0.8:80", remote("10.40.4.9:8080"), owner="d/sticky", affinity_timeout_s=10800)
RULES = (DNS, WEB, WEB_NODE, WEB_VIP, STICKY)


def healthy(**windows: Any) -> WindowsNode:
    node = WindowsNode(l2bridge_node(WS2022), make_config(**windows))
    node.emulator.add_pod("10.40.3.14")
    node.want(*RULES)
    node.settle()
    return node


def overlay() -> WindowsNode:
    node = WindowsNode(overlay_node(WS2022), make_config(source_vip=(parse_address("10.41.7.2"),)))
    node.emulator.add_pod("10.41.7.14")
    node.want(make_rule("10.96.0.7:80", (*local("10.41.7.14:8080"), *remote("10.41.8.9:8080"))))
    node.settle()
    return node


def examine(node: WindowsNode, **more: Any) -> Diagnosis:
    """As a fresh process would, which remembers nothing but the journal."""
    node.start()
    changes = RuleChanges(dict(node.rules), node.surroundings, complete=True)
    return diagnose(node.dataplane.survey(changes, now=node.now), **more)


def balancer(node: WindowsNode, name: str) -> HnsLoadBalancer:
    return node.balancers()[name]


def alter(node: WindowsNode, name: str, **fields: object) -> None:
    node.emulator.alter(HnsKind.LOAD_BALANCER, balancer(node, name).guid, **fields)


def alter_mapping(node: WindowsNode, name: str, **fields: object) -> None:
    mapping = msgspec.structs.replace(balancer(node, name).port_mappings[0], **fields)
    alter(node, name, port_mappings=(mapping,))


def add_balancer(node: WindowsNode, vip: str | None, port: int, **fields: Any) -> Guid:
    """One without any mark, as kube-proxy makes them."""
    endpoints = fields.pop("endpoints", (endpoint(node, "10.40.4.9").guid,))
    mapping = PortMapping(
        protocol=6,
        internal_port=fields.pop("internal_port", 8080),
        external_port=port,
        flags=fields.pop("mapping_flags", 0),
    )
    vips = (parse_address(vip),) if vip else ()
    return node.emulator.add(
        HnsLoadBalancer(
            **{
                "endpoints": endpoints,
                "source_vip": NODE_IP,
                "frontend_vips": vips,
                "port_mappings": (mapping,),
                **fields,
            }
        )
    )


def endpoint(node: WindowsNode, address: str) -> HnsEndpoint:
    wanted = parse_address(address)
    return next(each for each in node.emulator.endpoints() if wanted in each.addresses)


def add_remote(node: WindowsNode, address: str, **fields: Any) -> Guid:
    """As kube-proxy makes them."""
    ip = parse_address(address)
    network = node.emulator.networks()[0].guid
    mac = "02-11-" + ip.packed.hex("-").upper()
    value = HnsEndpoint(
        network=network, ip_configurations=(IpConfiguration(ip),), mac_address=mac, flags=EndpointFlags.REMOTE
    )
    return node.emulator.add(msgspec.structs.replace(value, **fields))


def remove_balancer(node: WindowsNode, name: str) -> HnsLoadBalancer:
    gone = balancer(node, name)
    node.emulator.remove(HnsKind.LOAD_BALANCER, gone.guid)
    return gone


def lose_endpoint(node: WindowsNode, address: str) -> HnsEndpoint:
    gone = endpoint(node, address)
    node.emulator.remove(HnsKind.ENDPOINT, gone.guid)
    return gone


def use_twin(node: WindowsNode) -> None:
    twin = add_remote(node, "10.40.3.14")
    pod = endpoint(node, "10.40.3.14").guid
    used = tuple(twin if each == pod else each for each in balancer(node, "10.96.0.7:80/tcp").endpoints)
    alter(node, "10.96.0.7:80/tcp", endpoints=used)


def without_pods(node: WindowsNode) -> None:
    """The service loses its last endpoint, and HNS refused to delete its load balancer."""
    held = balancer(node, "10.96.0.8:80/tcp")
    node.put(make_rule("10.96.0.8:80", (), owner="d/sticky"))
    node.settle()
    node.emulator.add(held)


def lose_many(node: WindowsNode) -> None:
    for each in node.emulator.load_balancers():
        node.emulator.remove(HnsKind.LOAD_BALANCER, each.guid)


WEB_NAME, DNS_NAME, NODE_NAME, VIP_NAME = (
    "10.96.0.7:80/tcp",
    "10.96.0.10:53/udp",
    "node:30480/tcp",
    f"{EXTERNAL}:80/tcp",
)


@dataclass(frozen=True)
class Case:
    """damage: what happens to the node. heals: whether hansa puts it right by itself."""

    symptom: Symptom
    known_as: str
    damage: Callable[[WindowsNode], object]
    step: str
    owner: str = "d/web:http"
    text: str = ""
    heals: bool = True


CASES = [
    Case(
        Symptom.LB_DANGLING,
        "F07",
        lambda node: alter(
            node,
            WEB_NAME,
            endpoints=(*balancer(node, WEB_NAME).endpoints, Guid("A" * 8 + "-1111" * 3 + "-" + "A" * 12)),
        ),
        "replace",
        text="1 of 3 endpoints are not on network hansa-br: aaaaaaaa",
    ),
    Case(
        Symptom.LB_MISSING, "F11", lambda node: remove_balancer(node, WEB_NAME), "create", text="10.40.3.14, 10.40.4.9"
    ),
    Case(
        Symptom.LB_MISSING_CRITICAL,
        "F22",
        lambda node: remove_balancer(node, DNS_NAME),
        "create",
        "kube-system/kube-dns:http",
    ),
    Case(Symptom.LB_MANY_MISSING, "F12", lose_many, "create"),
    Case(Symptom.LB_STALE, "F01", lambda node: add_balancer(node, "10.96.0.99", 80), "delete after two checks", ""),
    Case(Symptom.LB_STALE, "F01", lambda node: add_balancer(node, None, 31000), "delete after two checks", ""),
    Case(
        Symptom.LB_STALE,
        "F01",
        lambda node: add_balancer(node, EXTERNAL, 443, mapping_flags=MappingFlags.VIP_EXTERNAL_IP),
        "nothing: it may be another program's",
        heals=False,
    ),
    Case(Symptom.LB_STALE_EMPTY, "F04", without_pods, "delete", "d/sticky:http", "none is wanted"),
    Case(
        Symptom.LB_UNPLACED,
        "F23",
        lambda node: node.emulator.add(HnsLoadBalancer(frontend_vips=(parse_address("10.96.0.7"),))),
        "nothing: it has no mark of hansa",
        heals=False,
    ),
    Case(Symptom.LB_DUPLICATE, "F02", lambda node: add_balancer(node, "10.96.0.7", 80), "delete the surplus"),
    Case(
        Symptom.LB_HELD,
        "F36",
        lambda node: (remove_balancer(node, WEB_NAME), add_balancer(node, "10.96.0.7", 80, owner="others")),
        "nothing: load balancer",
        heals=False,
    ),
    Case(Symptom.LB_DEGRADED, "B7", lambda node: alter(node, WEB_NAME, state=4), "replace", heals=False),
    Case(Symptom.LB_TWIN, "F49", use_twin, "replace", text="10.40.3.14"),
    Case(
        Symptom.LB_BACKENDS_EXTRA,
        "F55",
        lambda node: alter(
            node, WEB_NAME, endpoints=(*balancer(node, WEB_NAME).endpoints, add_remote(node, "10.40.4.77"))
        ),
        "replace",
        text="10.40.4.77",
    ),
    Case(
        Symptom.LB_BACKENDS_MISSING,
        "F19, F20",
        lambda node: alter(node, WEB_NAME, endpoints=balancer(node, WEB_NAME).endpoints[:1]),
        "replace",
    ),
    Case(
        Symptom.LB_BACKEND_PORT,
        "F79",
        lambda node: alter_mapping(node, WEB_NAME, internal_port=80),
        "replace",
        text="sends to port 80, the backends serve 8080",
    ),
    Case(Symptom.LB_SOURCE_VIP_EMPTY, "F56", lambda node: alter(node, WEB_NAME, source_vip=None), "replace"),
    Case(
        Symptom.LB_SOURCE_VIP_WRONG,
        "F59",
        lambda node: alter(node, WEB_NAME, source_vip=parse_address("10.40.3.9")),
        "replace",
        text="10.40.3.9, should be 192.0.2.21",
    ),
    Case(Symptom.LB_DSR_LOST, "F65", lambda node: alter(node, VIP_NAME, flags=LbFlags(0)), "replace"),
    Case(
        Symptom.LB_DSR_DIFFERS,
        "F66",
        lambda node: alter(node, WEB_NAME, flags=LbFlags.DSR),
        "replace",
        text="winkernel.enableDSR decides",
    ),
    Case(Symptom.LB_FAMILY, "F76", lambda node: alter(node, WEB_NAME, flags=LbFlags.IPV6), "replace"),
    Case(
        Symptom.LB_AFFINITY,
        "F74",
        lambda node: alter_mapping(node, "10.96.0.8:80/tcp", distribution=Distribution.NONE),
        "replace",
        "d/sticky:http",
    ),
    Case(
        Symptom.LB_FLOWS,
        "F69",
        lambda node: alter_mapping(node, NODE_NAME, flags=MappingFlags.LOCAL_ROUTED_VIP),
        "replace",
        text="mapping flags 2, should be 18",
    ),
    Case(
        Symptom.LB_NODE_PORT_FLAG,
        "F85",
        lambda node: alter_mapping(node, NODE_NAME, flags=MappingFlags.VIP_EXTERNAL_IP),
        "replace",
    ),
    Case(Symptom.LB_OTHER, "", lambda node: alter_mapping(node, WEB_NAME, flags=MappingFlags.ILB), "replace"),
    Case(
        Symptom.LB_HEALTHZ,
        "F42",
        lambda node: add_balancer(node, EXTERNAL, 10256, internal_port=10256),
        "nothing: it may be another program's",
        heals=False,
    ),
    Case(Symptom.EP_TWIN, "F49", lambda node: add_remote(node, "10.40.3.14"), "delete"),
    Case(Symptom.EP_DUPLICATE, "F39", lambda node: add_remote(node, "10.40.4.9"), "delete", "d/sticky:http"),
    Case(Symptom.EP_LEFTOVER, "F39", lambda node: add_remote(node, "10.40.4.50"), "delete", ""),
    Case(
        Symptom.EP_HELD,
        "F47",
        lambda node: (lose_endpoint(node, "10.40.3.14"), add_remote(node, "10.40.3.14")),
        "delete",
    ),
    Case(
        Symptom.EP_OTHER,
        "",
        lambda node: node.emulator.alter(
            HnsKind.ENDPOINT, endpoint(node, "10.40.1.3").guid, mac_address="02-11-00-00-00-01"
        ),
        "replace",
        "kube-system/kube-dns:http",
        "MAC differs",
    ),
    Case(
        Symptom.EP_DEGRADED,
        "",
        lambda node: node.emulator.alter(HnsKind.ENDPOINT, endpoint(node, "10.40.3.14").guid, state=5),
        "nothing: local endpoints are the CNI's",
        heals=False,
    ),
    Case(
        Symptom.POD_WITHOUT_EP,
        "F26",
        lambda node: lose_endpoint(node, "10.40.3.14"),
        "nothing: the CNI makes it",
        heals=False,
    ),
    Case(
        Symptom.POD_MISPLACED,
        "F67",
        lambda node: (lose_endpoint(node, "10.40.4.9"), node.emulator.add_pod("10.40.4.9", force=True)),
        "nothing: names decide",
        heals=False,
    ),
    Case(
        Symptom.POLICY,
        "F64",
        lambda node: node.emulator.alter(
            HnsKind.NETWORK,
            node.emulator.networks()[0].guid,
            policies=(*node.emulator.networks()[0].policies, RawPolicy("VxlanPort", b'{"Port": "many"}')),
        ),
        "nothing: it is skipped",
        "",
        heals=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.known_as}-{case.symptom.value}")
def test_a_defect_is_found_named_and_explained(case: Case) -> None:
    node = healthy()
    case.damage(node)
    found = [each for each in examine(node).findings if each.symptom is case.symptom]
    assert found, examine(node)
    one = next((each for each in found if case.owner in each.owners or not case.owner), found[0])
    assert one.defect.known_as == case.known_as
    assert one.severity is one.defect.severity
    assert one.step.startswith(case.step)
    assert case.text in one.text
    assert not case.owner or case.owner in one.owners
    assert case.owner or not one.owners


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.heals], ids=lambda case: f"{case.known_as}-{case.symptom.value}"
)
def test_what_hansa_says_it_would_do_ends_the_finding(case: Case) -> None:
    node = healthy()
    case.damage(node)
    node.start()
    for _ in range(5):
        node.audit()
        node.wait(301.0)
    left = [each for each in examine(node).findings if each.severity is not Severity.NOTE]
    pods = [each for each in left if each.symptom is not Symptom.POD_WITHOUT_EP]
    assert not pods


@pytest.mark.parametrize("make", [healthy, overlay])
def test_a_healthy_node_has_no_findings(make: Callable[[], WindowsNode]) -> None:
    node = make()
    addresses = {address for each in node.emulator.endpoints() for address in each.addresses}
    found = examine(node, named=addresses)
    assert found == Diagnosis((), ())
    assert found.healthy


def test_reading_writes_nothing() -> None:
    node = healthy()
    use_twin(node)
    node.forget()
    examine(node)
    assert not node.writes()
    assert node.emulator.open_handles == 0


def test_findings_come_in_the_order_of_their_weight_and_always_alike() -> None:
    node = healthy()
    for case in CASES:
        if case.symptom in (Symptom.LB_MISSING_CRITICAL, Symptom.LB_STALE, Symptom.EP_TWIN, Symptom.EP_LEFTOVER):
            case.damage(node)
    found = examine(node)
    ranks = [list(Severity).index(each.severity) for each in found.findings]
    assert ranks == sorted(ranks)
    assert found == examine(node)
    assert not found.healthy


def test_an_object_that_makes_no_sense_is_named_and_left_alone() -> None:
    node = healthy()
    changes = RuleChanges(dict(node.rules), node.surroundings, complete=True)
    situation = node.dataplane.survey(changes, now=node.now)
    situation.observed.unreadable[Guid("X")] = "load balancer X: FrontendVIPs: expected a list"
    (one,) = diagnose(situation).findings
    assert (one.symptom, one.step) == (Symptom.UNREADABLE, "nothing: it is left alone")


# --- objects of others ---


def test_other_software_is_named_and_no_step_ever_touches_it() -> None:
    node = healthy()
    outside = add_balancer(node, "203.0.113.200", 9100)
    several = node.emulator.add(
        HnsLoadBalancer(
            frontend_vips=(parse_address("10.96.0.200"), parse_address("10.96.0.201")),
            port_mappings=(PortMapping(protocol=6, internal_port=1, external_port=1),),
        )
    )
    owned = add_balancer(node, "10.96.0.202", 80, owner="others")
    stand_in = add_remote(node, "10.40.9.9", mac_address="66-00-00-00-00-01")
    found = examine(node)
    assert not found.findings
    assert {each.guid: each.why for each in found.foreign} == {
        outside: "nothing shows that a service proxy made it",
        several: "it serves several frontends",
        owned: "its Owner is others",
        stand_in: "nothing shows that a service proxy made it",
    }
    node.settle()
    assert {outside, several, owned} <= {each.guid for each in node.emulator.load_balancers()}
    assert stand_in in {each.guid for each in node.emulator.endpoints()}


def test_without_takeover_leftovers_are_said_to_stay() -> None:
    node = healthy(takeover=False)
    add_balancer(node, "10.96.0.99", 80)
    add_remote(node, "10.40.4.50")
    assert {each.step for each in examine(node).findings} == {"nothing: takeover is off"}


def test_without_a_service_cidr_a_single_vip_counts_as_a_proxys() -> None:
    """Clusters before ServiceCIDR objects do not tell where ClusterIPs lie."""
    node = healthy()
    add_balancer(node, "10.96.0.99", 80)
    assert node.surroundings.service_cidrs == (SERVICE_CIDR,)
    node.surroundings = replace(node.surroundings, service_cidrs=())
    found = examine(node).findings
    assert [(each.symptom, each.step) for each in found] == [(Symptom.LB_STALE, "nothing: it may be another program's")]


# --- local endpoints ---


def test_a_local_endpoint_that_no_slice_names_is_noted_and_one_out_of_use_is_a_warning() -> None:
    node = healthy()
    pod = node.emulator.add_pod("10.40.3.50", name="0e42_eth0")
    named = {parse_address("10.40.3.14")}
    (one,) = examine(node, named=named).findings
    assert (one.symptom, one.severity, one.key) == (Symptom.EP_ORPHAN, Severity.NOTE, "10.40.3.50")
    (one,) = examine(node, named=named, hints=Hints(states={pod: 4})).findings
    assert one.severity is Severity.WARNING
    assert "in use by no container" in one.text
    assert not examine(node, named={*named, parse_address("10.40.3.50")}).findings
    assert not examine(node).findings, "nobody said which pods there are"


def test_the_hosts_own_endpoints_are_no_leftovers() -> None:
    node = healthy()
    node.emulator.add_pod("10.40.3.60", name="hansa-br_ep")
    named: set[Address] = {parse_address("10.40.3.14")}
    assert not examine(node, named=named).findings
    assert [each.key for each in examine(node, named=named, root_name="other").findings] == ["10.40.3.2"]


# --- what a listing does not tell ---


def test_fields_that_a_listing_does_not_tell_are_not_compared() -> None:
    node = healthy()
    alter_mapping(node, NODE_NAME, flags=MappingFlags(0))
    alter_mapping(node, "10.96.0.8:80/tcp", distribution=Distribution.NONE)
    alter(node, WEB_NAME, source_vip=None)
    silent = Untold(
        frozenset({"distribution", "source VIP"}), MappingFlags.VIP_EXTERNAL_IP | MappingFlags.LOCAL_ROUTED_VIP
    )
    untold = {each.guid: silent for each in node.emulator.load_balancers()}
    assert len(examine(node).findings) == 4
    assert not examine(node, hints=Hints(untold=untold)).findings


def test_of_flags_only_those_that_are_told_count() -> None:
    node = healthy()
    alter_mapping(node, NODE_NAME, flags=MappingFlags(0))
    untold = {balancer(node, NODE_NAME).guid: Untold(mapping_flags=MappingFlags.VIP_EXTERNAL_IP)}
    assert [each.symptom for each in examine(node, hints=Hints(untold=untold)).findings] == [Symptom.LB_NODE_PORT_FLAG]


def test_a_load_balancer_that_hns_has_not_applied() -> None:
    node = healthy()
    hints = Hints(not_applied=frozenset({balancer(node, WEB_NAME).guid}))
    (one,) = examine(node, hints=hints).findings
    assert (one.symptom, one.defect.known_as) == (Symptom.LB_NOT_APPLIED, "F27")


def test_an_empty_source_vip_is_harmless_under_dsr() -> None:
    node = healthy()
    alter(node, VIP_NAME, source_vip=None)
    (one,) = examine(node).findings
    assert (one.symptom, one.severity) == (Symptom.LB_SOURCE_VIP_EMPTY, Severity.NOTE)


# --- overlay ---


def overlay_finding(node: WindowsNode, symptom: Symptom) -> Finding:
    return next(each for each in examine(node).findings if each.symptom is symptom)


def test_overlay_without_source_vip() -> None:
    node = overlay()
    node.config = make_config()
    assert overlay_finding(node, Symptom.SOURCE_VIP_MISSING).defect.known_as == "F57"


def test_a_source_vip_outside_of_the_pods_subnets() -> None:
    node = overlay()
    node.config = make_config(source_vip=(parse_address("10.99.0.2"),))
    assert "10.99.0.2 is not in 10.41.7.0/24" in overlay_finding(node, Symptom.SOURCE_VIP_OUTSIDE).text


def test_a_service_vip_that_nobody_answers_for() -> None:
    node = overlay()
    lose_endpoint(node, "10.96.0.7")
    one = overlay_finding(node, Symptom.EP_VIP_MISSING)
    assert (one.key, one.owners, one.step) == ("10.96.0.7", ("d/web:http",), "create")


def test_an_endpoint_behind_the_wrong_node() -> None:
    node = overlay()
    wrong = (ProviderAddress(parse_address("192.0.2.99")),)
    node.emulator.alter(HnsKind.ENDPOINT, endpoint(node, "10.41.8.9").guid, policies=wrong)
    one = overlay_finding(node, Symptom.EP_PROVIDER)
    assert (one.text, one.step) == ("provider address 192.0.2.99, should be 192.0.2.22", "replace")


# --- the table, and how it is shown ---


def test_every_symptom_has_a_defect_and_every_defect_a_symptom() -> None:
    assert set(DEFECTS) == set(Symptom)
    for symptom, defect in DEFECTS.items():
        assert defect.meaning, symptom
        assert defect.remedy, symptom
        assert all("#" in issue and "/" in issue for issue in defect.issues), symptom


def test_the_ways_to_show_it_hold_every_finding() -> None:
    node = healthy()
    use_twin(node)
    add_balancer(node, "203.0.113.200", 9100)
    found = examine(node)
    data = finding_data(found)
    assert [each["symptom"] for each in data["findings"]] == [each.symptom.value for each in found.findings]
    assert data["findings"][0]["upstream"][0] == "kubernetes/kubernetes#137381"
    assert [each["key"] for each in data["foreign"]] == ["203.0.113.200:9100/tcp"]
    assert finding_table(found).row_count == len(found.findings)
    assert len(finding_notes(found)) == 2 * len({each.symptom for each in found.findings})
