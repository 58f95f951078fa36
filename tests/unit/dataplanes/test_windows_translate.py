"""Rules to load balancers: windows-proxy C.2 to C.4 (fields), D.2 and D.3 (endpoints), and what HNS cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.dataplanes.windows_node import HOST_MAC, NODE, NODE_IP, local, make_config, make_rule, remote

from hansa.config import Config
from hansa.dataplanes.windows.objects import (
    DesiredLoadBalancer,
    EndpointKind,
    HostFacts,
    LbRole,
    RemoteSubnet,
    RemoteSubnets,
    conjured_mac,
    kube_proxy_mac,
)
from hansa.dataplanes.windows.render import Rendered, render
from hansa.dataplanes.windows.translate import MAX_BACKENDS, MAX_BACKENDS_DSR
from hansa.hns.api import Guid, HnsVersion
from hansa.hns.schema import Distribution
from hansa.net import IPFamily, Protocol, parse_address, parse_prefix
from hansa.rules.model import FrontendKind, Rule
from hansa.services.model import Endpoint

L, R = "10.40.3.10", "10.40.4.7"
ROOT = parse_address("10.40.3.2")
WS2019, WS2022 = HnsVersion(9, 5), HnsVersion(13, 3)
L2 = HostFacts(
    network_id=Guid("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"),
    network_name="hansa-br",
    network_type="l2bridge",
    version=WS2022,
    node_name="n1",
    management_ip=NODE_IP,
    subnets=(parse_prefix("10.40.3.0/24"),),
    host_mac=HOST_MAC,
    node_ips=NODE.node_ips,
    node_addresses=NODE.addresses,
    root_addresses={IPFamily.IPV4: ROOT, IPFamily.IPV6: parse_address("2001:db8:40:3::2")},
)
SOURCE_VIP = parse_address("10.41.7.2")
OVERLAY = replace(
    L2,
    network_name="hansa-vx",
    network_type="overlay",
    subnets=(parse_prefix("10.41.7.0/24"),),
    remote_subnets=RemoteSubnets(
        (
            RemoteSubnet(parse_prefix("10.41.8.0/24"), parse_address("192.0.2.22")),
            RemoteSubnet(parse_prefix("10.41.0.0/16"), parse_address("192.0.2.29")),
            RemoteSubnet(parse_prefix("10.41.9.0/24"), parse_address("192.0.2.23")),
        )
    ),
    source_vips={IPFamily.IPV4: SOURCE_VIP},
)
PLAIN, DSR = make_config(), make_config(enable_dsr=True)


def both(port: int = 8080) -> tuple[Endpoint, ...]:
    return (*local(f"{L}:{port}"), *remote(f"{R}:{port}"))


def service_rules(*, external_local: bool = False, internal_local: bool = False, preserve: bool = False) -> list[Rule]:
    """The service of C.4: one local and one remote endpoint, port 80 -> 8080, node port 30001."""
    fields = {"preserve_destination": preserve, "health_check_node_port": 32000 if external_local else 0}
    endpoints = both()
    return [
        make_rule("10.96.0.10:80", endpoints, policy_local=internal_local, **fields),
        make_rule("node:30001", endpoints, policy_local=external_local, **fields),
        make_rule("203.0.113.7:80", endpoints, FrontendKind.EXTERNAL_IP, policy_local=external_local, **fields),
        make_rule("203.0.113.80:80", endpoints, FrontendKind.LOAD_BALANCER_IP, policy_local=external_local, **fields),
    ]


def summary(balancer: DesiredLoadBalancer) -> str:
    """As C.4 writes it: backends, LB flags / mapping flags."""
    names = {parse_address(L): "l", parse_address(R): "r", ROOT: "gw"}
    behind = ",".join(sorted(names.get(address, "gw6") for address in balancer.backends))
    return f"{{{behind}}} {int(balancer.lb_flags)}/{int(balancer.mapping_flags)}"


def by_frontend(rendered: Rendered) -> dict[str, DesiredLoadBalancer]:
    return {str(balancer.key): balancer for balancer in rendered.load_balancers}


def features(rendered: Rendered) -> set[str]:
    return {shortfall.feature for shortfall in rendered.shortfalls}


C4 = ("10.96.0.10:80/tcp", "node(IPv4):30001/tcp", "203.0.113.7:80/tcp", "203.0.113.80:80/tcp")
HEALTH = "203.0.113.80:32000/tcp (health check)"


@pytest.mark.parametrize(
    "rules, config, expected, health",
    [
        (service_rules(), PLAIN, ("{l,r} 0/0", "{l,r} 0/18", "{l,r} 0/16", "{l,r} 0/16"), None),
        (service_rules(), DSR, ("{l,r} 1/0", "{l,r} 0/18", "{l,r} 0/16", "{l,r} 0/16"), None),
        (
            service_rules(external_local=True),
            PLAIN,
            ("{l,r} 0/0", "{l} 1/18", "{l} 1/16", "{l} 1/16"),
            "{gw} 0/0",
        ),
        (service_rules(external_local=True), DSR, ("{l,r} 1/0", "{l} 1/18", "{l} 1/16", "{l} 1/16"), "{gw} 0/0"),
        (service_rules(internal_local=True), PLAIN, ("{l} 0/0", "{l,r} 0/18", "{l,r} 0/16", "{l,r} 0/16"), None),
        (
            service_rules(internal_local=True, external_local=True),
            PLAIN,
            ("{l} 0/0", "{l} 1/18", "{l} 1/16", "{l} 1/16"),
            "{gw} 0/0",
        ),
        (service_rules(preserve=True), PLAIN, ("{l,r} 0/0", "{l} 0/18", "{l,r} 0/16", "{l} 1/28"), None),
        (
            service_rules(preserve=True, external_local=True),
            PLAIN,
            ("{l,r} 0/0", "{l} 1/18", "{l} 1/16", "{l} 1/28"),
            "{gw} 0/12",
        ),
    ],
    ids=["cluster", "dsr", "etp-local", "etp-local-dsr", "itp-local", "both-local", "preserve", "preserve-etp-local"],
)
def test_worked_matrix(rules: list[Rule], config: Config, expected: tuple[str, ...], health: str | None) -> None:
    """C.4. Health checks of ETP Cluster are left out on purpose (F42)."""
    found = by_frontend(render(rules, L2, config))
    assert tuple(summary(found[frontend]) for frontend in C4) == expected
    assert (summary(found[HEALTH]) if HEALTH in found else None) == health
    assert {balancer.source_vip for balancer in found.values()} == {NODE_IP}
    assert {balancer.internal_port for name, balancer in found.items() if name != HEALTH} == {8080}


def test_matrix_of_ipv6_has_the_ipv6_flag_everywhere() -> None:
    """C.4, last row; on the health check as well (F87)."""
    endpoints = (*local("[2001:db8:40:3::10]:8080"), *remote("[2001:db8:40:4::7]:8080"))
    rules = [
        make_rule("[fd00::10]:80", endpoints),
        make_rule("node:30001", endpoints, family=IPFamily.IPV6),
        make_rule(
            "[2001:db8:7::80]:80",
            endpoints,
            FrontendKind.LOAD_BALANCER_IP,
            policy_local=True,
            health_check_node_port=32000,
        ),
    ]
    found = render(rules, L2, PLAIN).load_balancers
    assert {str(each.key): int(each.lb_flags) for each in found} == {
        "[fd00::10]:80/tcp": 2,
        "node(IPv6):30001/tcp": 2,
        "[2001:db8:7::80]:80/tcp": 3,
        "[2001:db8:7::80]:32000/tcp (health check)": 2,
    }
    assert {str(each.source_vip) for each in found} == {"2001:db8:0:1::21"}


def test_etp_local_with_only_remote_endpoints_leaves_the_cluster_ip() -> None:
    """C.4: only the ClusterIP (F16), and the health check, which has to say "not here"."""
    rules = [
        make_rule("10.96.0.10:80", remote(f"{R}:8080")),
        make_rule("node:30001", remote(f"{R}:8080"), policy_local=True),
        make_rule(
            "203.0.113.80:80",
            remote(f"{R}:8080"),
            FrontendKind.LOAD_BALANCER_IP,
            policy_local=True,
            health_check_node_port=32000,
        ),
    ]
    rendered = render(rules, L2, PLAIN)
    assert set(by_frontend(rendered)) == {"10.96.0.10:80/tcp", HEALTH}
    verdicts = [shortfall for shortfall in rendered.shortfalls if shortfall.feature == "verdict"]
    assert [str(each.frontend) for each in verdicts] == ["203.0.113.80:80/tcp", "node(IPv4):30001/tcp"]


@pytest.mark.parametrize("feature_version, expected", [(WS2022, Distribution.SOURCE_IP), (WS2019, Distribution.NONE)])
def test_session_affinity(feature_version: HnsVersion, expected: Distribution) -> None:
    """F74: distribution 2 where HNS knows it; the time limit is never settable."""
    rendered = render(
        [make_rule("10.96.0.10:80", both(), affinity_timeout_s=60)],
        replace(L2, version=feature_version),
        PLAIN,
    )
    assert rendered.load_balancers[0].distribution is expected
    name = "session-affinity-timeout" if expected is Distribution.SOURCE_IP else "session-affinity"
    assert features(rendered) == {name}


def test_without_dsr_local_policies_keep_to_this_node_and_say_what_is_lost() -> None:
    """F65, and preserve-destination; HNS 10.0 has no DSR."""
    rules = [
        make_rule(
            "203.0.113.80:80", both(), FrontendKind.LOAD_BALANCER_IP, policy_local=True, preserve_destination=True
        )
    ]
    rendered = render(rules, replace(L2, version=HnsVersion(10, 0)), DSR)
    assert summary(rendered.load_balancers[0]) == "{l} 0/16"
    assert features(rendered) == {"dsr", "client-ip", "preserve-destination", "short-circuit"}


def test_shortfalls_of_a_service_are_told_once() -> None:
    rendered = render(service_rules(external_local=True), L2, PLAIN)
    assert [shortfall.feature for shortfall in rendered.shortfalls] == ["short-circuit"]
    assert rendered.shortfalls[0].frontend is None


def test_source_ranges_are_reported() -> None:
    """F84."""
    rule = make_rule(
        "203.0.113.80:80",
        both(),
        FrontendKind.LOAD_BALANCER_IP,
        source_ranges=(parse_prefix("198.51.100.0/24"),),
    )
    assert features(render([rule], L2, PLAIN)) == {"source-ranges"}


def test_sctp_is_left_out() -> None:
    """F81."""
    rendered = render([make_rule("10.96.0.10:80", both(), protocol=Protocol.SCTP)], L2, PLAIN)
    assert rendered.load_balancers == ()
    assert features(rendered) == {"sctp"}


@pytest.mark.parametrize(
    "facts, feature",
    [
        (OVERLAY, "ipv6"),
        (replace(L2, version=WS2019), "ipv6"),
        (replace(L2, node_ips={IPFamily.IPV4: NODE_IP}), "family"),
    ],
    ids=["overlay", "old-hns", "no-address"],
)
def test_ipv6_where_it_is_impossible(facts: HostFacts, feature: str) -> None:
    """S21, F77: a missing family is not programmed, and said."""
    rendered = render([make_rule("[fd00::10]:80", remote("[2001:db8:40:4::7]:8080"))], facts, PLAIN)
    assert rendered.load_balancers == ()
    assert features(rendered) == {feature}


def test_the_largest_group_of_backend_ports_is_programmed() -> None:
    """F79: never a wrong port; of equal groups the lower port."""
    endpoints = (*remote("10.40.4.7:9090", "10.40.4.8:9090"), *local(f"{L}:8080"))
    rendered = render([make_rule("10.96.0.10:80", endpoints)], L2, PLAIN)
    (balancer,) = rendered.load_balancers
    assert balancer.internal_port == 9090
    assert [str(address) for address in balancer.backends] == ["10.40.4.7", "10.40.4.8"]
    assert features(rendered) == {"endpoint-ports"}
    assert f"{L}:8080" in rendered.shortfalls[0].text
    tie = render([make_rule("10.96.0.10:80", (*remote("10.40.4.7:9090"), *local(f"{L}:8080")))], L2, PLAIN)
    assert tie.load_balancers[0].internal_port == 8080


@pytest.mark.parametrize("config, limit", [(PLAIN, MAX_BACKENDS), (DSR, MAX_BACKENDS_DSR)])
def test_backends_beyond_the_limit(config: Config, limit: int) -> None:
    """F85, EV-17: a fixed subset, local ones first, another one on another node."""
    away = remote(*(f"10.{50 + number // 250}.4.{number % 250 + 1}:8080" for number in range(limit + 40)))
    here = local(f"{L}:8080", "10.40.3.11:8080")
    rule = make_rule("10.96.0.10:80", (*away, *here))
    (balancer,) = render([rule], L2, config).load_balancers
    assert len(balancer.backends) == limit
    assert {parse_address(L), parse_address("10.40.3.11")} <= set(balancer.backends)
    assert features(render([rule], L2, config)) == {"backend-limit"}
    (elsewhere,) = render([rule], replace(L2, node_name="n2"), config).load_balancers
    assert elsewhere.backends != balancer.backends


def test_the_same_address_twice_is_one_backend() -> None:
    """F54."""
    endpoints = (*remote(f"{R}:8080"), *local(f"{R}:8080"))
    (balancer,) = render([make_rule("10.96.0.10:80", endpoints)], L2, PLAIN).load_balancers
    assert [str(address) for address in balancer.backends] == [R]
    assert balancer.local == {parse_address(R)}


# --- health checks ---


def test_one_health_check_for_all_ports_of_a_vip() -> None:
    """F08, F75: shared by its owners, TCP even for a UDP service; gone with the last owner."""
    rules = [
        make_rule(
            f"203.0.113.80:{port}",
            local(f"{L}:8080"),
            FrontendKind.LOAD_BALANCER_IP,
            protocol=protocol,
            policy_local=True,
            health_check_node_port=32000,
            owner=owner,
        )
        for port, protocol, owner in ((80, Protocol.TCP, "d/web"), (53, Protocol.UDP, "d/dns"))
    ]
    found = by_frontend(render(rules, L2, PLAIN))
    assert found[HEALTH].owners == ("d/dns:http", "d/web:http")
    assert found[HEALTH].key.role is LbRole.HEALTH
    assert by_frontend(render(rules[:1], L2, PLAIN))[HEALTH].owners == ("d/web:http",)
    assert HEALTH not in by_frontend(render([], L2, PLAIN))


def test_no_health_check_without_root_endpoint() -> None:
    rendered = render(service_rules(external_local=True), replace(L2, root_addresses={}), PLAIN)
    assert HEALTH not in by_frontend(rendered)


def test_a_service_wins_its_frontend_from_a_health_check() -> None:
    """I8: one load balancer per frontend, whoever asks."""
    rules = service_rules(external_local=True)
    rules.append(make_rule("203.0.113.80:32000", remote(f"{R}:1"), FrontendKind.LOAD_BALANCER_IP, owner="d/other"))
    found = by_frontend(render(rules, L2, PLAIN))
    assert "203.0.113.80:32000/tcp" in found
    assert HEALTH not in found


# --- source VIP (C.3) ---


@pytest.mark.parametrize(
    "endpoints, expected, mixed",
    [
        (remote("10.41.8.20:80", "10.41.9.20:80"), SOURCE_VIP, False),
        ((*local("10.41.7.9:80"), *remote("10.41.8.20:80")), SOURCE_VIP, False),
        (remote("192.0.2.22:80"), NODE_IP, False),
        (remote("198.51.100.4:80"), NODE_IP, False),
        (remote("198.51.100.4:80", "10.41.8.20:80"), NODE_IP, True),
        (remote("192.0.2.23:80", "10.41.8.20:80"), NODE_IP, True),
        (local("192.0.2.21:80"), SOURCE_VIP, False),
        (remote("10.41.7.9:80"), SOURCE_VIP, False),
        (remote("192.0.2.21:80"), SOURCE_VIP, False),
    ],
    ids=["pods", "pods-2", "node", "public", "mix-public", "mix-node", "own", "own-pod-no-name", "own-ip-no-name"],
)
def test_source_vip_on_overlay(endpoints: tuple[Endpoint, ...], expected: object, mixed: bool) -> None:
    """KEP-5100 (F59, F60): another node or outside the cluster -> node IP; everything else -> source VIP."""
    rendered = render([make_rule("10.96.0.10:80", endpoints)], OVERLAY, PLAIN)
    assert rendered.load_balancers[0].source_vip == expected
    assert ("source-vip-mix" in features(rendered)) == mixed


def test_source_vip_of_all_frontends_of_a_service_with_a_node_as_endpoint() -> None:
    """C.4: node IP on all of them."""
    endpoints = remote("192.0.2.22:80", "10.41.8.20:80")
    rules = [make_rule("10.96.0.10:80", endpoints), make_rule("node:30001", endpoints)]
    assert {each.source_vip for each in render(rules, OVERLAY, PLAIN).load_balancers} == {NODE_IP}


def test_missing_source_vip_holds_back_only_who_needs_it() -> None:
    """F57, F58: local-only load balancers, and those with DSR, work without."""
    facts = replace(OVERLAY, source_vips={})
    rules = [
        make_rule("10.96.0.10:80", local("10.41.7.9:80")),
        make_rule("10.96.0.11:80", remote("10.41.8.20:80")),
        make_rule("10.96.0.12:80", remote("198.51.100.4:80")),
    ]
    found = by_frontend(render(rules, facts, PLAIN))
    assert found["10.96.0.10:80/tcp"].source_vip == NODE_IP
    assert found["10.96.0.11:80/tcp"].source_vip is None
    assert found["10.96.0.12:80/tcp"].source_vip == NODE_IP
    assert by_frontend(render(rules, facts, DSR))["10.96.0.11:80/tcp"].source_vip == NODE_IP


def test_source_vip_on_l2bridge() -> None:
    """F56: never empty; the node IP, or what is configured."""
    rule = make_rule("10.96.0.10:80", remote(f"{R}:80"))
    assert render([rule], L2, PLAIN).load_balancers[0].source_vip == NODE_IP
    configured = replace(L2, source_vips={IPFamily.IPV4: parse_address("10.40.3.254")})
    assert str(render([rule], configured, PLAIN).load_balancers[0].source_vip) == "10.40.3.254"


# --- endpoints (D.2 to D.4) ---


def test_macs() -> None:
    """D.2: the address in the MAC for IPv4; a hash for IPv6, where kube-proxy reverses the last four bytes."""
    assert conjured_mac(parse_address("192.168.2.3")) == "02-11-C0-A8-02-03"
    assert kube_proxy_mac(parse_address("192.168.2.3")) == "02-11-C0-A8-02-03"
    assert kube_proxy_mac(parse_address("fd00::1:2:304")) == "02-11-04-03-02-00"
    one, other = parse_address("fd00:1::304"), parse_address("fd00:2::304")
    assert kube_proxy_mac(one) == kube_proxy_mac(other)
    assert conjured_mac(one) != conjured_mac(other)
    assert conjured_mac(one).startswith("02-11-")


@pytest.mark.parametrize(
    "address, provider",
    [
        ("10.41.8.20", "192.0.2.22"),
        ("10.41.200.1", "192.0.2.29"),
        ("192.0.2.23", "192.0.2.23"),
        ("198.51.100.4", "192.0.2.21"),
    ],
    ids=["longest-prefix", "wider-prefix", "a-node", "outside"],
)
def test_provider_address(address: str, provider: str) -> None:
    """D.3: the longest prefix wins, wherever it stands; none means this node."""
    rendered = render([make_rule("10.96.0.10:80", remote(f"{address}:80"))], OVERLAY, PLAIN)
    (made,) = [each for each in rendered.endpoints if each.kind is EndpointKind.REMOTE]
    assert (str(made.address), made.mac, str(made.provider)) == (address, conjured_mac(made.address), provider)


def test_endpoints_on_l2bridge_have_no_provider_and_are_made_for_remote_backends_only() -> None:
    rendered = render([make_rule("10.96.0.10:80", both())], L2, PLAIN)
    assert [(str(each.address), each.kind, each.provider) for each in rendered.endpoints] == [
        (R, EndpointKind.REMOTE, None)
    ]


def test_service_vip_endpoint_on_overlay() -> None:
    """D.4, F61: one per ClusterIP, with or without endpoints; host MAC, node IP as provider."""
    rules = [make_rule("10.96.0.10:80", ()), make_rule("10.96.0.10:443", ())]
    rendered = render(rules, OVERLAY, PLAIN)
    assert [(str(each), each.mac, each.provider) for each in rendered.endpoints] == [
        ("service-VIP endpoint 10.96.0.10", HOST_MAC, NODE_IP)
    ]
    assert render(rules, L2, PLAIN).endpoints == ()


def test_source_vip_endpoint() -> None:
    """D.4: made by us if configured and not left to the CNI."""
    ours = make_config(source_vip=(SOURCE_VIP,))
    assert [str(each) for each in render([], OVERLAY, ours).endpoints] == ["source-VIP endpoint 10.41.7.2"]
    assert render([], OVERLAY, make_config(source_vip=(SOURCE_VIP,), create_source_vip=False)).endpoints == ()
    assert render([], OVERLAY, PLAIN).endpoints == ()


def test_the_order_of_rules_does_not_matter() -> None:
    rules = service_rules(external_local=True)
    assert render(rules, L2, PLAIN) == render(reversed(rules), L2, PLAIN)


def test_critical_services_are_marked() -> None:
    found = render([make_rule("10.96.0.10:53", both(), owner="kube-system/kube-dns")], L2, PLAIN)
    assert found.load_balancers[0].critical
