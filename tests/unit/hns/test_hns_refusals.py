"""Every rule of the refusal table strikes, with its code: EV-01 to EV-30 of hcn.md 1.7 and hansa's own HX rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import IPv4Address

import msgspec
import pytest

from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsError, HnsKind, HnsVersion, HResult
from hansa.hns.client import HnsClient
from hansa.hns.emulator import (
    FUTURE,
    L2BRIDGE_DUAL_STACK,
    WS2019,
    WS2022,
    WS2025,
    ZN23H2,
    Build,
    Emulator,
    Grade,
    Machine,
    l2bridge_node,
    overlay_node,
)
from hansa.hns.emulator.refusals import RULES
from hansa.hns.schema import (
    Acl,
    Distribution,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HostRoute,
    Ipam,
    IpConfiguration,
    LbFlags,
    MappingFlags,
    NetAdapterName,
    NetworkType,
    OutBoundNat,
    Policy,
    PortMapping,
    PortMappingPolicy,
    ProviderAddress,
    RawPolicy,
    RemoteSubnetRoute,
    Route,
    Subnet,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
    encode,
    encode_policy_request,
)
from hansa.net import parse_address, parse_prefix

NETWORK, ENDPOINT, BALANCER = HnsKind.NETWORK, HnsKind.ENDPOINT, HnsKind.LOAD_BALANCER
UNKNOWN = Guid("0BADF00D-1F60-4C35-8A51-20B6D1C3E199")
VIP, NODE_IP = IPv4Address("172.21.30.7"), IPv4Address("192.0.2.21")
TCP, UDP = 6, 17


def mapping(port: int = 80, *, protocol: int = TCP, internal: int = 8080, flags: int = 0) -> PortMapping:
    return PortMapping(protocol=protocol, internal_port=internal, external_port=port, flags=MappingFlags(flags))


class Host:
    """An emulated node with two pods, and short verbs."""

    def __init__(self, node: Emulator) -> None:
        self.node = node
        self.client = HnsClient(node)
        self.network = node.networks()[0].guid
        prefix = node.networks()[0].subnets[0].prefix
        assert prefix is not None
        self.pods = tuple(node.add_pod(str(prefix[offset])) for offset in (14, 15))

    def balance(self, *back_ends: Guid, **fields: object) -> HnsLoadBalancer:
        """Create a DSR load balancer on the VIP, port 80, with changes."""
        asked = HnsLoadBalancer(
            endpoints=back_ends or self.pods,
            source_vip=NODE_IP,
            frontend_vips=(VIP,),
            port_mappings=(mapping(),),
            flags=LbFlags.DSR,
        )
        text = encode(msgspec.structs.replace(asked, **fields))
        return decode_load_balancer(self.client.create(BALANCER, text))

    def endpoint(self, address: str | None, *policies: Policy, remote: bool = False) -> HnsEndpoint:
        configurations = (IpConfiguration(parse_address(address)),) if address else ()
        asked = HnsEndpoint(
            ip_configurations=configurations, policies=policies, flags=EndpointFlags(1 if remote else 0)
        )
        return decode_endpoint(self.client.create(ENDPOINT, encode(asked), network=self.network))

    def net(self, **fields: object) -> HnsNetwork:
        asked = msgspec.structs.replace(HnsNetwork(name="n", type=NetworkType.L2BRIDGE), **fields)
        return decode_network(self.client.create(NETWORK, encode(asked)))

    def attach_port(self, guid: Guid) -> None:
        self.client.modify(ENDPOINT, guid, '{"RequestType":"Add","ResourceType":"Port","Settings":{}}')

    def dead_handle(self, guid: Guid) -> Handle:
        handle = self.node.open(ENDPOINT, guid)
        self.node.delete(ENDPOINT, guid)
        return handle


def bridge(build: Build = WS2022) -> Host:
    return Host(l2bridge_node(build))


def with_switches(build: Build, **switches: object) -> Build:
    return dataclasses.replace(build, **switches)  # type: ignore[arg-type]


def remote_pods(host: Host, count: int) -> tuple[Guid, ...]:
    return tuple(host.endpoint(f"10.42.{index // 200}.{1 + index % 200}", remote=True).guid for index in range(count))


def subnet(prefix: str, *routes: Route) -> tuple[Ipam, ...]:
    return (Ipam((Subnet(parse_prefix(prefix), routes),)),)


def ev03(host: Host) -> None:
    host.client.create(ENDPOINT, "{}", guid=host.pods[0], network=host.network)


def ev12(host: Host) -> None:
    for _ in range(2):
        host.endpoint(None, PortMappingPolicy(TCP, 80, 8080))


def ev13(host: Host) -> None:
    host.balance()
    host.balance(port_mappings=(mapping(internal=9),))


def ev15(host: Host) -> None:
    while True:
        host.balance(flags=LbFlags(0), port_mappings=(mapping(80 + host.node.call_count),))


def ev16(host: Host) -> None:
    host.node.break_port(host.pods[0])
    host.balance()


def ev23(host: Host) -> None:
    for port in (80, 81, 82):
        host.client.delete(BALANCER, host.balance(port_mappings=(mapping(port),)).guid)


def ev30(host: Host) -> None:
    guid = host.balance().guid
    host.node.alter(BALANCER, guid, state=4)
    host.client.delete(BALANCER, guid)


def ev30_endpoint(host: Host) -> None:
    host.node.alter(ENDPOINT, host.pods[0], state=5)
    host.client.delete(ENDPOINT, host.pods[0])


def hx02(host: Host) -> None:
    handle = host.node.open(NETWORK, host.network)
    host.node.restart()
    host.node.query(NETWORK, handle, "")


def hx14(host: Host) -> None:
    nat = host.net(name="nat", type=NetworkType.NAT, ipams=subnet("172.16.0.0/16", DEFAULT)).guid
    text = encode(HnsEndpoint())
    host.balance(decode_endpoint(host.client.create(ENDPOINT, text, network=nat)).guid)


def hx15(host: Host) -> None:
    made = host.balance()
    wanted = msgspec.structs.replace(made, source_vip=IPv4Address("192.0.2.99"))
    host.client.modify(BALANCER, made.guid, encode(wanted))


def hx19(host: Host) -> None:
    network = host.net(ipams=subnet("10.9.0.0/30", Route(parse_prefix("0.0.0.0/0"), IPv4Address("10.9.0.1")))).guid
    for _ in range(2):
        host.client.create(ENDPOINT, "{}", network=network)


DEFAULT = Route(parse_prefix("0.0.0.0/0"), IPv4Address("172.16.0.1"))
V6_VIP = parse_address("fd00::7")
DUAL: Callable[[], Host] = lambda: Host(l2bridge_node(WS2022, layout=L2BRIDGE_DUAL_STACK))  # noqa: E731

# rule, the host, what is asked of it
SCENARIOS: tuple[tuple[str, Callable[[], Host], Callable[[Host], object]], ...] = (
    ("EV-01", bridge, lambda h: h.client.create(BALANCER, "{")),
    ("EV-01", bridge, lambda h: h.node.enumerate(BALANCER, '{"Filter":"{"}')),
    ("EV-02", bridge, lambda h: h.node.open(BALANCER, UNKNOWN)),
    ("EV-02", bridge, lambda h: h.client.delete(NETWORK, UNKNOWN)),
    ("EV-03", bridge, ev03),
    ("EV-04", bridge, lambda h: h.net(name="hansa-br")),
    ("EV-05", bridge, lambda h: h.client.create(NETWORK, '{"Type":"L2Bridge","Flags":"Fast"}')),
    ("EV-05", bridge, lambda h: h.net(policies=(RawPolicy("ProviderAddress", b"{}"),))),
    ("EV-05t", bridge, lambda h: h.client.create(NETWORK, '{"Type":"Banana"}')),
    (
        "EV-06",
        lambda: Host(l2bridge_node(layout=dataclasses.replace(L2BRIDGE_DUAL_STACK, machine=ONE_ADAPTER))),
        lambda h: h.net(policies=(NetAdapterName("Ethernet 9"),)),
    ),
    ("EV-07", bridge, lambda h: h.net(ipams=subnet("10.9.0.0/24"))),
    ("EV-07", bridge, lambda h: h.net(ipams=subnet("10.9.0.0/24", DEFAULT, Route(parse_prefix("10.8.0.0/16"))))),
    ("EV-08", bridge, lambda h: h.endpoint("10.50.0.9")),
    ("EV-08", bridge, lambda h: h.node.add_pod("10.50.0.9")),
    ("EV-09", bridge, lambda h: h.endpoint("10.40.3.1")),
    ("EV-09", bridge, lambda h: h.endpoint("10.40.3.0")),
    ("EV-09", bridge, lambda h: h.endpoint("10.40.3.255")),
    ("EV-10", bridge, lambda h: h.endpoint(None, Acl("Allow", "In", remote_addresses="Any"))),
    ("EV-10", bridge, lambda h: h.endpoint(None, OutBoundNat(exceptions=("10.0.0.0/8", "all/8")))),
    (
        "EV-10",
        bridge,
        lambda h: h.client.modify(
            ENDPOINT, h.pods[0], encode_policy_request("Update", [RawPolicy("SDNRoute", b'{"DestinationPrefix":1}')])
        ),
    ),
    ("EV-11", bridge, lambda h: h.endpoint(None, OutBoundNat(exceptions=("172.17.0.1/16",)))),
    ("EV-12", bridge, ev12),
    ("EV-13", bridge, ev13),
    ("EV-14", lambda: listening(WS2019, 80), lambda h: h.balance()),
    ("EV-14", lambda: listening(WS2022, 80), lambda h: h.balance(frontend_vips=())),
    ("EV-14", lambda: listening(WS2022, 80, NODE_IP), lambda h: h.balance(frontend_vips=(NODE_IP,))),
    ("EV-15", bridge, ev15),
    ("EV-16", bridge, ev16),
    ("EV-17", bridge, lambda h: h.balance(*remote_pods(h, 65), flags=LbFlags(0))),
    ("EV-18", bridge, lambda h: h.balance(endpoints=())),
    ("EV-19", bridge, lambda h: h.balance(UNKNOWN)),
    ("EV-20", bridge, lambda h: h.balance(port_mappings=(mapping(internal=0),))),
    ("EV-21", bridge, lambda h: h.client.modify(BALANCER, h.balance().guid, "{}")),
    ("EV-23", lambda: bridge(with_switches(WS2019, lb_delete_fails_every=3)), ev23),
    (
        "EV-24",
        lambda: bridge(with_switches(WS2022, lb_delete_says_invalid_ip=True)),
        lambda h: h.client.delete(BALANCER, h.balance().guid),
    ),
    ("EV-25", bridge, lambda h: h.node.attach(h.pods[0])),
    ("EV-25", bridge, lambda h: h.attach_port(h.pods[0])),
    ("EV-26", bridge, lambda h: h.node.attach(UNKNOWN)),
    ("EV-26", bridge, lambda h: h.node.modify(ENDPOINT, h.dead_handle(h.pods[0]), "{}")),
    ("EV-27", bridge, lambda h: h.attach_port(h.endpoint("10.42.0.1", remote=True).guid)),
    ("EV-28", bridge, lambda h: (h.balance(), h.client.delete(ENDPOINT, h.pods[0]))),
    (
        "EV-29",
        lambda: bridge(with_switches(WS2022, refuses_delete_of_used_network=True)),
        lambda h: h.client.delete(NETWORK, h.network),
    ),
    ("EV-30", bridge, ev30),
    ("EV-30", bridge, ev30_endpoint),
    ("HX-01", bridge, lambda h: h.node.query(ENDPOINT, h.dead_handle(h.pods[0]), "")),
    ("HX-02", bridge, hx02),
    ("HX-03", bridge, lambda h: h.node.query(ENDPOINT, Handle(99), "")),
    ("HX-03", bridge, lambda h: h.node.query(ENDPOINT, h.node.open(NETWORK, h.network), "")),
    ("HX-04", bridge, lambda h: h.client.create(ENDPOINT, '{"IpConfigurations":7}', network=h.network)),
    ("HX-05", bridge, lambda h: h.client.create(BALANCER, '{"FrontendVIPs":["x"]}')),
    ("HX-06", bridge, lambda h: h.endpoint("10.40.3.14")),
    ("HX-06", lambda: bridge(WS2025), lambda h: h.endpoint("10.40.3.14", remote=True)),
    ("HX-06", bridge, lambda h: (h.endpoint("10.42.0.1", remote=True), h.endpoint("10.42.0.1", remote=True))),
    ("HX-07", bridge, lambda h: h.endpoint(None, remote=True)),
    ("HX-08", lambda: Host(overlay_node()), lambda h: h.endpoint("10.41.8.20", remote=True)),
    ("HX-09", lambda: bridge(WS2019), lambda h: h.endpoint("fd00::20", remote=True)),
    ("HX-09", lambda: Host(overlay_node()), lambda h: h.endpoint("fd00::20", ProviderAddress(NODE_IP), remote=True)),
    (
        "HX-09",
        lambda: bridge(WS2019),
        lambda h: h.balance(flags=LbFlags.IPV6, frontend_vips=(V6_VIP,), source_vip=None),
    ),
    ("HX-10", bridge, lambda h: h.balance(frontend_vips=(V6_VIP,))),
    ("HX-10", bridge, lambda h: h.balance(source_vip=V6_VIP)),
    (
        "HX-10",
        bridge,
        lambda h: h.balance(flags=LbFlags.DSR | LbFlags.IPV6, frontend_vips=(V6_VIP,), source_vip=None),
    ),
    ("HX-11", lambda: bridge(with_switches(WS2019, version=HnsVersion(9, 2))), lambda h: h.balance()),
    ("HX-12", bridge, lambda h: h.balance(port_mappings=(mapping(protocol=132),))),
    ("HX-13", bridge, lambda h: h.balance(port_mappings=())),
    ("HX-13", bridge, lambda h: h.balance(port_mappings=(mapping(0),))),
    ("HX-14", bridge, hx14),
    ("HX-15", lambda: bridge(ZN23H2), hx15),
    ("HX-16", bridge, lambda h: h.client.modify(NETWORK, h.network, '{"RequestType":"Add","ResourceType":"DNS"}')),
    ("HX-16", bridge, lambda h: h.client.modify(ENDPOINT, h.pods[0], "{}")),
    ("HX-17", bridge, lambda h: h.node.enumerate(NETWORK, '{"SchemaVersion":{"Major":1,"Minor":0}}')),
    ("HX-18", bridge, lambda h: h.node.create(ENDPOINT, ZERO_GUID, "{}", None)),
    ("HX-18", bridge, lambda h: h.node.create(BALANCER, ZERO_GUID, "{}", h.node.open(NETWORK, h.network))),
    ("HX-19", bridge, hx19),
    (
        "HX-20",
        bridge,
        lambda h: h.client.modify(
            NETWORK,
            h.network,
            encode_policy_request(
                "Remove", [RemoteSubnetRoute(parse_prefix("10.9.0.0/16"), 4096, NODE_IP, "00-15-5D-00-00-01")]
            ),
        ),
    ),
)

ONE_ADAPTER = Machine(adapters=("Ethernet 2",))


def listening(build: Build, port: int, address: IPv4Address | None = None) -> Host:
    host = bridge(build)
    host.node.listen(TCP, port, address)
    return host


@pytest.mark.parametrize(
    "rule, make, ask", SCENARIOS, ids=[f"{rule}-{number}" for number, (rule, _, _) in enumerate(SCENARIOS)]
)
def test_a_rule_strikes_with_its_code(rule: str, make: Callable[[], Host], ask: Callable[[Host], object]) -> None:
    host = make()
    with pytest.raises(HnsError) as caught:
        ask(host)
    assert host.node.refusals == {rule: 1}
    assert caught.value.hresult == RULES[rule].hresult
    assert caught.value.text.strip()


def test_every_rule_has_a_scenario_and_a_grade() -> None:
    assert {rule for rule, _, _ in SCENARIOS} == RULES.keys()
    for rule in RULES.values():
        assert rule.condition
        assert rule.evidence
        assert rule.grade in Grade


def test_every_ev_rule_is_emulated() -> None:
    """EV-22 is no refusal: see test_modify_on_15_4_changes_nothing."""
    assert {f"EV-{number:02}" for number in range(1, 31)} - RULES.keys() == {"EV-22"}


def refused(ask: Callable[[], object]) -> HResult:
    with pytest.raises(HnsError) as caught:
        ask()
    return caught.value.hresult


def test_a_refused_create_leaves_nothing_behind() -> None:
    host = bridge()
    host.balance()
    before = host.node.dump()
    assert refused(host.balance) == 0x803B0013
    assert refused(lambda: host.balance(UNKNOWN, port_mappings=(mapping(81),))) == 0x803B0002
    assert refused(lambda: host.balance(endpoints=(), port_mappings=(mapping(82),), flags=LbFlags(0))) == 0x80070057
    after = host.node.dump()
    assert [line for line in after.splitlines() if "last_guid" not in line] == [
        line for line in before.splitlines() if "last_guid" not in line
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"frontend_vips": (IPv4Address("172.21.30.8"),)},
        {"port_mappings": (mapping(81),)},
        {"port_mappings": (mapping(protocol=UDP),)},
        {"frontend_vips": ()},
    ],
    ids=["address", "port", "protocol", "node"],
)
def test_frontends_that_do_not_collide(changes: dict[str, object]) -> None:
    host = bridge()
    host.balance()
    host.balance(**changes)
    assert len(host.node.load_balancers()) == 2


def test_node_ports_collide_with_each_other_and_with_the_node_address() -> None:
    """hcn.md 5.9: key is (VIP or node IP, protocol, external port)."""
    host = bridge()
    host.balance(frontend_vips=())
    assert refused(lambda: host.balance(frontend_vips=())) == 0x803B0013
    assert refused(lambda: host.balance(frontend_vips=(NODE_IP,))) == 0x803B0013


def test_node_ports_of_both_families_live_together() -> None:
    host = DUAL()
    pod = host.node.add_pod("2001:db8:40:3::30")
    host.balance(frontend_vips=())
    v6 = LbFlags.DSR | LbFlags.IPV6
    host.balance(pod, frontend_vips=(), flags=v6, source_vip=parse_address("2001:db8:0:1::21"))
    assert refused(lambda: host.balance(pod, frontend_vips=(), flags=v6, source_vip=None)) == 0x803B0013


def test_one_load_balancer_may_have_several_vips() -> None:
    host = bridge()
    other = IPv4Address("172.21.30.8")
    host.balance(frontend_vips=(VIP, other))
    assert refused(lambda: host.balance(frontend_vips=(other,))) == 0x803B0013


def test_dsr_has_no_limit_of_back_ends() -> None:
    host = bridge()
    assert len(host.balance(*remote_pods(host, 65)).endpoints) == 65


def test_the_code_of_an_unknown_back_end_is_a_switch() -> None:
    host = bridge(with_switches(WS2022, unknown_endpoint=HResult(0x803B000D)))
    assert refused(lambda: host.balance(UNKNOWN)) == 0x803B000D


def test_port_blocks() -> None:
    """EV-15: 64 ports per load balancer without DSR, given back with it; the code is a switch."""
    build = with_switches(WS2022, pool_exhausted=HResult(0x8007000E))
    layout = dataclasses.replace(L2BRIDGE_DUAL_STACK, machine=Machine(dynamic_ports=(49152, 200)))
    host = Host(l2bridge_node(build, layout=layout))
    assert host.node.free_port_blocks == 3
    made = [host.balance(flags=LbFlags(0), port_mappings=(mapping(80 + index),)).guid for index in range(3)]
    assert [host.node.port_block(guid) for guid in made] == [49152, 49216, 49280]
    assert refused(lambda: host.balance(flags=LbFlags(0), port_mappings=(mapping(90),))) == 0x8007000E
    assert host.node.port_block(host.balance(port_mappings=(mapping(91),)).guid) is None
    host.client.delete(BALANCER, made[1])
    assert host.node.port_block(host.balance(flags=LbFlags(0), port_mappings=(mapping(90),)).guid) == 49216


def test_ports_taken_by_others_are_no_blocks() -> None:
    layout = dataclasses.replace(L2BRIDGE_DUAL_STACK, machine=Machine(dynamic_ports=(49152, 192)))
    host = Host(l2bridge_node(layout=layout))
    made = host.balance(flags=LbFlags(0)).guid
    host.node.exclude_ports(49200, 30)
    assert host.node.free_port_blocks == 1
    host.client.delete(BALANCER, made)
    assert host.node.free_port_blocks == 1


def test_a_wildcard_listener_is_no_trouble_after_ws2019() -> None:
    assert listening(WS2022, 80).balance()
    assert listening(WS2019, 81).balance()
    gone = listening(WS2019, 80)
    gone.node.unlisten(TCP, 80)
    assert gone.balance()


def test_a_delete_that_fails_once_works_at_the_second_try() -> None:
    """EV-23."""
    host = bridge(with_switches(WS2019, lb_delete_fails_every=2))
    one, two = (host.balance(port_mappings=(mapping(port),)).guid for port in (80, 81))
    host.client.delete(BALANCER, one)
    assert refused(lambda: host.client.delete(BALANCER, two)) == 0x80070057
    host.client.delete(BALANCER, two)
    assert host.node.load_balancers() == ()


def test_modify_on_15_4_changes_nothing() -> None:
    """EV-22: S_OK, yet the back ends are as before."""
    host = bridge(WS2025)
    made = host.balance(host.pods[0])
    wanted = msgspec.structs.replace(made, endpoints=host.pods)
    assert decode_load_balancer(host.client.modify(BALANCER, made.guid, encode(wanted))) == made


@pytest.mark.parametrize("build", [ZN23H2, FUTURE], ids=lambda build: build.name)
def test_modify_changes_back_ends_where_it_works(build: Build) -> None:
    host = bridge(build)
    made = host.balance(host.pods[0])
    for back_ends in (host.pods, (host.pods[1],)):
        wanted = msgspec.structs.replace(made, endpoints=back_ends, guid=ZERO_GUID)
        told = decode_load_balancer(host.client.modify(BALANCER, made.guid, encode(wanted)))
        assert told == msgspec.structs.replace(made, endpoints=back_ends)
    host.client.delete(ENDPOINT, host.pods[0])  # no longer in use


def test_modify_is_checked_like_create() -> None:
    host = bridge(ZN23H2)
    made = host.balance()
    for back_ends, code in (((), 0x80070057), ((UNKNOWN,), 0x803B0002)):
        text = encode(msgspec.structs.replace(made, endpoints=back_ends))
        assert refused(lambda text=text: host.client.modify(BALANCER, made.guid, text)) == code


def test_modify_may_change_more_if_the_switch_says_so() -> None:
    host = bridge(with_switches(ZN23H2, modify_changes_everything=True))
    made = host.balance()
    changed = msgspec.structs.replace(
        made,
        port_mappings=(
            PortMapping(protocol=TCP, internal_port=9, external_port=80, distribution=Distribution.SOURCE_IP),
        ),
    )
    assert decode_load_balancer(host.client.modify(BALANCER, made.guid, encode(changed))) == changed


def test_deleting_a_used_endpoint_may_leave_a_dangling_id() -> None:
    """EV-28 with its switch off."""
    host = bridge(with_switches(WS2022, refuses_delete_of_used_endpoint=False))
    host.balance()
    host.client.delete(ENDPOINT, host.pods[0])
    assert host.node.load_balancers()[0].endpoints == host.pods


def test_deleting_a_network_takes_its_endpoints_along() -> None:
    """EV-29, the default."""
    host = bridge()
    host.client.delete(NETWORK, host.network)
    assert host.node.endpoints() == ()


def test_twins_exist_where_they_have_been_seen() -> None:
    """B1: Windows Server 2019 and 2022 accept a local and a remote endpoint with one address."""
    for build in (WS2019, WS2022):
        assert bridge(build).endpoint("10.40.3.14", remote=True).remote


def test_a_stale_remote_endpoint_keeps_a_pod_from_starting() -> None:
    """windows-proxy F47."""
    host = bridge(WS2025)
    host.endpoint("10.40.3.40", remote=True)
    assert refused(lambda: host.node.add_pod("10.40.3.40")) == 0x80071392
    host.node.add_pod("10.40.3.40", force=True)
    twins = [each for each in host.node.endpoints() if each.addresses == (IPv4Address("10.40.3.40"),)]
    assert sorted(each.remote for each in twins) == [False, True]


def test_exceptions_with_host_bits_pass_on_ws2019() -> None:
    assert bridge(WS2019).endpoint(None, OutBoundNat(exceptions=("172.17.0.1/16", "192.0.2.21")))
    assert bridge(WS2022).endpoint(None, OutBoundNat(exceptions=("172.17.0.0/16", "192.0.2.21")))


def test_a_policy_may_be_changed_in_place() -> None:
    host = bridge()
    for request, policies, expected in (
        ("Update", (PortMappingPolicy(TCP, 80, 8080),), 1),
        ("Add", (OutBoundNat(exceptions=("10.0.0.0/8",)),), 2),
        ("Remove", (PortMappingPolicy(TCP, 80, 8080),), 1),
        ("Update", (), 0),
    ):
        text = encode_policy_request(request, policies)
        told = decode_endpoint(host.client.modify(ENDPOINT, host.pods[0], text))
        assert len(told.policies) == expected


def test_remote_subnets_come_and_go_with_the_nodes() -> None:
    host = Host(overlay_node())
    route = RemoteSubnetRoute(parse_prefix("10.41.10.0/24"), 4100, IPv4Address("192.0.2.24"), "00-15-5D-7E-44-04")
    told = decode_network(host.client.modify(NETWORK, host.network, encode_policy_request("Add", [route, HostRoute()])))
    assert told.remote_subnets[-1] == route
    # flannel sends the whole setting, others only what identifies it
    short = msgspec.structs.replace(route, dr_mac_address="")
    told = decode_network(host.client.modify(NETWORK, host.network, encode_policy_request("Remove", [short])))
    assert route not in told.remote_subnets
    assert len(told.remote_subnets) == 2
