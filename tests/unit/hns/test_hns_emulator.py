"""The emulator as a host: faults, outages, what others do behind a client's back, defaults, spellings, clock, dumps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import IPv4Address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import ConfigError
from hansa.hns.api import ZERO_GUID, Guid, HnsError, HnsKind, HnsVerb, HResult
from hansa.hns.client import DEFAULT_QUERY, HnsClient
from hansa.hns.emulator import (
    BUILDS,
    L2BRIDGE,
    L2BRIDGE_DUAL_STACK,
    OVERLAY,
    WS2019,
    WS2022,
    ZN23H2,
    Build,
    Call,
    Delay,
    Emulator,
    Fault,
    GuidSpelling,
    Ipv6Spelling,
    LeakReservation,
    LeavePartial,
    LoseReply,
    Machine,
    ManualClock,
    Refuse,
    Spelling,
    l2bridge_node,
    overlay_node,
)
from hansa.hns.errors import ErrorClass, classify
from hansa.hns.schema import (
    DrMacAddress,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HnsObject,
    IpConfiguration,
    LbFlags,
    NetworkType,
    PortMapping,
    decode,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
    encode,
)

NETWORK, ENDPOINT, BALANCER = HnsKind.NETWORK, HnsKind.ENDPOINT, HnsKind.LOAD_BALANCER


def balancer(*endpoints: Guid, port: int = 80, dsr: bool = True) -> HnsLoadBalancer:
    return HnsLoadBalancer(
        endpoints=endpoints,
        source_vip=IPv4Address("192.0.2.21"),
        frontend_vips=(IPv4Address("172.21.30.7"),),
        port_mappings=(PortMapping(protocol=6, internal_port=8080, external_port=port),),
        flags=LbFlags.DSR if dsr else LbFlags(0),
    )


def remote(address: str) -> HnsEndpoint:
    ip = (IpConfiguration(IPv4Address(address)),)
    return HnsEndpoint(ip_configurations=ip, flags=EndpointFlags.REMOTE, mac_address="02-11-0A-28-04-14")


class Host:
    def __init__(self, node: Emulator | None = None) -> None:
        self.node = node or l2bridge_node()
        self.client = HnsClient(self.node)
        self.network = self.node.networks()[0].guid
        self.pod = self.node.add_pod("10.40.3.14")

    def balance(self, port: int = 80, *, dsr: bool = True) -> Guid:
        text = encode(balancer(self.pod, port=port, dsr=dsr))
        return decode_load_balancer(self.client.create(BALANCER, text)).guid

    def add_remote(self, address: str) -> Guid:
        return decode_endpoint(self.client.create(ENDPOINT, encode(remote(address)), network=self.network)).guid


@pytest.fixture
def host() -> Host:
    return Host()


def error_of(ask: Callable[[], object]) -> HnsError:
    with pytest.raises(HnsError) as caught:
        ask()
    return caught.value


# --- faults ---


def test_the_nth_call_fails(host: Host) -> None:
    host.node.faults.add(Fault(effect=Refuse(HResult(0x803B0007)), verb=HnsVerb.CREATE, kind=BALANCER, skip=1, times=2))
    outcomes = []
    for port in (80, 81, 82, 83):
        try:
            host.balance(port)
            outcomes.append(0)
        except HnsError as error:
            outcomes.append(error.hresult)
    assert outcomes == [0, 0x803B0007, 0x803B0007, 0]
    assert len(host.node.load_balancers()) == 2
    assert not host.node.faults


def test_a_fault_may_look_at_the_object(host: Host) -> None:
    def asks_for_81(call: Call) -> bool:
        return isinstance(call.value, HnsLoadBalancer) and call.value.port_mappings[0].external_port == 81

    host.node.faults.add(Fault(effect=Refuse(), verb=HnsVerb.CREATE, where=asks_for_81, times=None))
    guid = host.balance(80)
    for _ in range(3):
        assert classify(error_of(lambda: host.balance(81))) is ErrorClass.UNAVAILABLE
    host.node.faults.clear()
    host.balance(81)
    host.node.faults.add(Fault(effect=Refuse(), verb=HnsVerb.DELETE, where=lambda call: call.guid == guid))
    error_of(lambda: host.client.delete(BALANCER, guid))
    host.client.delete(BALANCER, guid)


def test_a_lost_reply_has_done_its_work(host: Host) -> None:
    host.node.faults.add(Fault(effect=LoseReply(), verb=HnsVerb.DELETE))
    guid = host.balance()
    assert classify(error_of(lambda: host.client.delete(BALANCER, guid))) is ErrorClass.UNAVAILABLE
    assert host.node.load_balancers() == ()
    host.node.faults.add(Fault(effect=LoseReply(), verb=HnsVerb.CREATE))
    error_of(host.balance)
    assert len(host.node.load_balancers()) == 1
    assert host.node.open_handles == 0


def test_a_lost_reply_of_something_refused_is_refused(host: Host) -> None:
    host.node.faults.add(Fault(effect=LoseReply(), verb=HnsVerb.CREATE))
    assert error_of(lambda: host.client.create(BALANCER, "{")).hresult == 0x803B001B


def test_a_failed_create_may_leave_a_partial_object(host: Host) -> None:
    """B3."""
    host.node.faults.add(Fault(effect=LeavePartial(), verb=HnsVerb.CREATE, kind=BALANCER))
    assert error_of(host.balance).hresult == 0x803B0013
    (left,) = host.node.load_balancers()
    assert left.port_mappings == ()
    assert decode_load_balancer(host.client.read(BALANCER, left.guid)).endpoints == (host.pod,)
    host.balance()


def test_a_deleted_load_balancer_may_leave_its_reservation(host: Host) -> None:
    """windows-proxy F43."""
    guid = host.balance()
    host.node.faults.add(Fault(effect=LeakReservation(), verb=HnsVerb.DELETE, kind=BALANCER))
    host.client.delete(BALANCER, guid)
    assert error_of(host.balance).hresult == 0x803B0013
    host.balance(81)
    host.node.forget_leaks()
    host.balance()


def test_a_delay_moves_only_the_fake_clock(host: Host) -> None:
    host.node.faults.add(Fault(effect=Delay(2.5), verb=HnsVerb.ENUMERATE))
    host.client.list_ids(BALANCER)
    host.client.list_ids(BALANCER)
    assert host.node.clock.now() == 2.5


def test_a_fault_may_be_bound_to_time() -> None:
    clock = ManualClock()
    host = Host(l2bridge_node(clock=clock))
    host.node.faults.add(Fault(effect=Refuse(), times=None, since=10, until=20))
    host.client.version()
    clock.advance(10)
    error_of(host.client.version)
    error_of(lambda: host.client.list_ids(NETWORK))
    clock.advance(10)
    host.client.version()


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="back"):
        ManualClock().advance(-1)


# --- outages ---


@pytest.mark.parametrize("kind", HnsKind)
def test_a_stopped_hns_answers_nothing(host: Host, kind: HnsKind) -> None:
    handle = host.node.open(NETWORK, host.network)
    host.node.stop()
    for call in (
        host.node.version,
        lambda: host.node.enumerate(kind, ""),
        lambda: host.node.open(kind, host.network),
        lambda: host.node.query(NETWORK, handle, ""),
        lambda: host.node.create(kind, ZERO_GUID, "{}"),
        lambda: host.node.modify(NETWORK, handle, "{}"),
        lambda: host.node.delete(kind, host.pod),
    ):
        error = error_of(call)
        assert classify(error) is ErrorClass.UNAVAILABLE
        assert error.text == ""
    host.node.close(NETWORK, handle)
    host.node.start()
    assert host.client.list_ids(ENDPOINT, network=host.network)


def test_handles_die_with_a_restart_and_still_need_closing(host: Host) -> None:
    handle = host.node.open(NETWORK, host.network)
    host.node.restart()
    assert classify(error_of(lambda: host.node.query(NETWORK, handle, ""))) is ErrorClass.UNAVAILABLE
    assert host.node.open_handles == 1
    host.node.close(NETWORK, handle)
    assert (host.node.open_handles, host.node.bad_closes) == (0, 0)
    host.node.close(NETWORK, handle)
    assert host.node.bad_closes == 1


def test_a_restart_keeps_loses_or_picks(host: Host) -> None:
    host.balance(80, dsr=False)
    host.balance(81)
    far = host.add_remote("10.40.4.20")
    assert host.node.restart() == ()
    assert len(host.node.load_balancers()) == 2

    def on_81(value: HnsObject) -> bool:
        return isinstance(value, HnsLoadBalancer) and value.port_mappings[0].external_port == 81

    assert len(host.node.restart(on_81)) == 1
    lost = host.node.restart(purge=True)
    assert [type(value) for value in lost] == [HnsEndpoint, HnsLoadBalancer]
    assert host.node.load_balancers() == ()
    assert far not in {each.guid for each in host.node.endpoints()}
    assert host.pod in {each.guid for each in host.node.endpoints()}
    assert host.node.networks()


def test_what_was_lost_may_come_back(host: Host) -> None:
    """B4: objects are loaded from the store again, with their ids; creating one again says 'already exists'."""
    guid = host.balance(80, dsr=False)
    lost = host.node.restart(purge=True)
    host.node.restore(lost)
    assert [each.guid for each in host.node.load_balancers()] == [guid]
    assert host.node.port_block(guid) is not None
    text = encode(balancer(host.pod, port=99))
    assert error_of(lambda: host.client.create(BALANCER, text, guid=guid)).hresult == 0x800700B7


def test_some_calls_fail_while_hns_comes_up(host: Host) -> None:
    host.node.restart(unavailable_calls=2)
    for _ in range(2):
        assert classify(error_of(host.client.version)) is ErrorClass.UNAVAILABLE
    assert host.client.version() == WS2022.version


# --- behind a client's back ---


def test_objects_vanish_and_change(host: Host) -> None:
    guid = host.balance()
    host.node.alter(BALANCER, guid, source_vip=IPv4Address("192.0.2.99"))
    assert decode_load_balancer(host.client.read(BALANCER, guid)).source_vip == IPv4Address("192.0.2.99")
    host.node.alter(BALANCER, guid, port_mappings=())
    host.balance()  # the frontend is free now
    host.node.remove(ENDPOINT, host.pod)
    assert host.pod in decode_load_balancer(host.client.read(BALANCER, guid)).endpoints
    host.node.remove(BALANCER, guid)
    for call in (
        lambda: host.node.remove(BALANCER, guid),
        lambda: host.node.alter(BALANCER, guid, source_vip=None),
    ):
        with pytest.raises(KeyError):
            call()


def test_an_endpoint_may_lose_its_address(host: Host) -> None:
    host.node.alter(ENDPOINT, host.pod, ip_configurations=())
    assert decode_endpoint(host.client.read(ENDPOINT, host.pod)).addresses == ()
    host.node.add_pod("10.40.3.14")


def test_a_network_comes_back_with_another_id(host: Host) -> None:
    host.balance()
    again = host.node.recreate_network(host.network)
    assert again != host.network
    assert host.client.list_ids(NETWORK, name="hansa-br") == (again,)
    assert host.node.endpoints() == ()
    assert len(host.node.load_balancers()) == 1
    host.node.add_pod("10.40.3.14")


def test_foreign_objects_appear(host: Host) -> None:
    guid = host.node.add(balancer(host.pod, dsr=False))
    assert host.client.list_ids(BALANCER) == (guid,)
    assert host.node.port_block(guid) is not None
    twin = host.node.add(msgspec.structs.replace(remote("10.40.3.14"), network=host.network))
    assert twin in host.client.list_ids(ENDPOINT, network=host.network)


def test_observers_see_every_call_before_it_is_served(host: Host) -> None:
    seen: list[Call] = []
    host.node.watch(seen.append)
    guid = host.balance()
    host.client.list_ids(BALANCER)
    error_of(lambda: host.client.delete(ENDPOINT, host.pod))
    assert [call.verb for call in seen] == [HnsVerb.CREATE, HnsVerb.QUERY, HnsVerb.ENUMERATE, HnsVerb.DELETE]
    assert isinstance(seen[0].value, HnsLoadBalancer)
    assert seen[1].guid == guid
    assert isinstance(seen[3].value, HnsEndpoint)


# --- defaults ---


def test_what_hns_fills_in(host: Host) -> None:
    made = decode_endpoint(host.client.create(ENDPOINT, "{}", network=host.network))
    assert made.name == "Ethernet"
    assert made.network == host.network
    assert made.ip_configurations == (IpConfiguration(IPv4Address("10.40.3.3"), 24),)
    other = decode_endpoint(host.client.create(ENDPOINT, "{}", network=host.network))
    assert made.mac_address.startswith("00-15-5D-7E-4")
    assert len({made.mac_address, other.mac_address, made.guid, other.guid, ZERO_GUID}) == 5


def test_the_prefix_length_of_a_remote_endpoint_comes_from_its_node() -> None:
    node = overlay_node()
    far = decode_endpoint(
        HnsClient(node).create(
            ENDPOINT,
            '{"IpConfigurations":[{"IpAddress":"10.41.8.20"},{"IpAddress":"203.0.113.9"}],"Flags":1,'
            '"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.22"}}]}',
            network=node.networks()[0].guid,
        )
    )
    assert [each.prefix_length for each in far.ip_configurations] == [24, 32]


def test_a_load_balancer_tells_its_network_from_schema_2_5_on() -> None:
    for build, tells in ((WS2019, False), (WS2022, True)):
        host = Host(l2bridge_node(build))
        told = decode_load_balancer(host.client.read(BALANCER, host.balance()))
        assert told.network == (host.network if tells else None)


def test_management_ip_and_router_mac_are_filled_in_later() -> None:
    """flannel polls for the management IP after it has created the network."""
    clock = ManualClock()
    node = Emulator(machine=Machine(management_ip_after_s=2.0), clock=clock)
    client = HnsClient(node)
    made = decode_network(client.create(NETWORK, encode(HnsNetwork(name="vx", type=NetworkType.OVERLAY))))
    assert made.management_ip is None
    assert any(isinstance(policy, DrMacAddress) for policy in made.policies)
    clock.advance(2.0)
    assert decode_network(client.read(NETWORK, made.guid)).management_ip == IPv4Address("192.0.2.21")


def test_caller_ids_and_owner_are_switches() -> None:
    """Whether HNS keeps them is unverified (windows-proxy H.10)."""
    guid = Guid("0BADF00D-1F60-4C35-8A51-20B6D1C3E199")
    for keeps in (True, False):
        build = dataclasses.replace(WS2022, keeps_caller_guid=keeps, echoes_owner=keeps)
        host = Host(l2bridge_node(build))
        asked = msgspec.structs.replace(balancer(host.pod), owner="hansa")
        told = decode_load_balancer(host.client.create(BALANCER, encode(asked), guid=guid))
        assert (told.guid == guid, told.owner == "hansa") == (keeps, keeps)


def test_a_guid_in_the_document_counts_if_none_is_passed(host: Host) -> None:
    guid = Guid("0BADF00D-1F60-4C35-8A51-20B6D1C3E199")
    asked = msgspec.structs.replace(balancer(host.pod), guid=guid)
    assert decode_load_balancer(host.client.create(BALANCER, encode(asked))).guid == guid


def test_what_is_no_guid_cannot_be_passed(host: Host) -> None:
    for call in (
        lambda: host.node.open(BALANCER, Guid("x")),
        lambda: host.node.delete(BALANCER, Guid("")),
        lambda: host.node.create(BALANCER, Guid("x"), "{}"),
    ):
        assert error_of(call).hresult == 0x80070057


def test_a_nat_network_is_told_without_type() -> None:
    """hcn.md 2.1: NAT is enum 0."""
    node = Emulator()
    text = HnsClient(node).create(NETWORK, encode(HnsNetwork(name="nat", type=NetworkType.NAT)))
    assert '"Type"' not in text
    assert decode_network(text).type is NetworkType.NAT


def test_degraded_objects_say_so(host: Host) -> None:
    guid = host.balance()
    assert '"State"' not in host.client.read(BALANCER, guid)
    host.node.alter(BALANCER, guid, state=4)
    assert decode_load_balancer(host.client.read(BALANCER, guid)).state == 4


# --- spellings ---


@pytest.mark.parametrize("guids", GuidSpelling)
@pytest.mark.parametrize("ipv6", Ipv6Spelling)
@pytest.mark.parametrize("with_extras", [False, True])
def test_readers_do_not_notice_how_answers_are_spelt(
    guids: GuidSpelling, ipv6: Ipv6Spelling, with_extras: bool
) -> None:
    node = l2bridge_node(layout=L2BRIDGE_DUAL_STACK)
    node.add_pod("2001:db8:40:3::a0")
    pods = tuple(each.guid for each in node.endpoints())
    node.add(msgspec.structs.replace(balancer(*pods), owner="hansa"))
    expected = [*node.networks(), *node.endpoints(), *node.load_balancers()]
    node.spelling = Spelling(guids, ipv6, with_extras)
    client = HnsClient(node)
    told = [decode(kind, client.read(kind, guid)) for kind in HnsKind for guid in client.list_ids(kind)]
    assert told == [
        value if isinstance(value, HnsNetwork) else msgspec.structs.replace(value, state=0) for value in expected
    ]


def test_networks_are_spelt_upper_case_and_the_rest_lower(host: Host) -> None:
    """Seen in operators' outputs (hcn.md 2.1)."""
    text = host.node.query(ENDPOINT, host.node.open(ENDPOINT, host.pod), DEFAULT_QUERY)
    assert f'"ID":"{host.pod.lower()}"' in text
    assert f'"HostComputeNetwork":"{host.network}"' in text


# --- counting, clock, determinism ---


def test_calls_are_counted_by_dll_function(host: Host) -> None:
    host.node.calls.clear()
    host.add_remote("10.40.4.20")
    host.client.version()
    assert host.node.calls == {
        "HcnOpenNetwork": 1,
        "HcnCreateEndpoint": 1,
        "HcnQueryEndpointProperties": 1,
        "HcnCloseEndpoint": 1,
        "HcnCloseNetwork": 1,
        "HNSCall": 1,
    }
    assert host.node.call_count == 6


def test_latency_is_spent_on_the_fake_clock(host: Host) -> None:
    host.node.latency_s = {"": 0.25, "HcnCreateEndpoint": 2.0}
    host.add_remote("10.40.4.20")
    assert host.node.clock.now() == 2.0 + 4 * 0.25


def test_ids_are_the_same_in_every_run_and_differ_by_seed() -> None:
    one, same, other = (Host(l2bridge_node(seed=seed)) for seed in (1, 1, 2))
    assert one.node.dump() == same.node.dump()
    assert one.network != other.network


# --- dumps ---


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_node_survives_in_a_file(build: Build) -> None:
    node = l2bridge_node(build, seed=7)
    host = Host(node)
    host.balance(80, dsr=False)
    host.balance(81)
    host.add_remote("10.40.4.20")
    node.listen(6, 10256)
    node.listen(17, 53, IPv4Address("192.0.2.21"))
    node.exclude_ports(60000, 10)
    node.faults.add(Fault(effect=LeakReservation(), verb=HnsVerb.DELETE))
    host.client.delete(BALANCER, host.balance(82))
    node.break_port(host.pod)
    node.clock.advance(3.0)
    again = Emulator.load(node.dump())
    assert again.dump() == node.dump()
    assert again.clock.now() == 3.0
    assert again.call_count == 0
    assert again.build == build
    back = HnsClient(again)
    text = encode(balancer(host.pod, port=82))
    assert error_of(lambda: back.create(BALANCER, text)).hresult == 0x803B0007  # the broken port
    fresh = again.add_pod("10.40.3.77")
    assert fresh not in {each.guid for each in node.endpoints()}
    assert error_of(lambda: back.create(BALANCER, encode(balancer(fresh, port=82)))).hresult == 0x803B0013  # the leak


@pytest.mark.parametrize("change", ["", "{}", "[" * 100_000, "format", "guid"])
def test_what_is_no_dump_is_refused_with_a_remedy(change: str) -> None:
    text = Host().node.dump()
    if change == "format":
        change = text.replace('"format": 1', '"format": 2')
    elif change == "guid":
        change = text.replace('"ID": "', '"ID": "x', 1)
    assert change != text
    with pytest.raises(ConfigError, match="emulated node"):
        Emulator.load(change)


# --- nodes ---


def test_an_l2bridge_node_is_as_a_cni_leaves_it() -> None:
    node = l2bridge_node(layout=L2BRIDGE_DUAL_STACK)
    (network,) = node.networks()
    assert (network.name, network.type) == ("hansa-br", NetworkType.L2BRIDGE)
    assert [str(each.prefix) for each in network.subnets] == ["10.40.3.0/24", "2001:db8:40:3::/64"]
    assert [str(each.gateway) for each in network.subnets] == ["10.40.3.1", "2001:db8:40:3::1"]
    assert network.management_ip == IPv4Address("192.0.2.21")
    (root,) = node.endpoints()
    assert root.name == "cbr0"
    assert [str(address) for address in root.addresses] == ["10.40.3.2", "2001:db8:40:3::2"]
    assert not root.remote
    assert node.call_count == 0


def test_an_overlay_node_knows_the_others() -> None:
    node = overlay_node()
    (network,) = node.networks()
    assert network.type is NetworkType.OVERLAY
    assert [str(each.provider_address) for each in network.remote_subnets] == ["192.0.2.22", "192.0.2.23"]
    assert L2BRIDGE.network != OVERLAY.network
    pod = node.get(ENDPOINT, node.add_pod("10.41.7.14", name="a7c3_eth0"))
    assert isinstance(pod, HnsEndpoint)
    assert pod.name == "a7c3_eth0"
    assert pod.namespace is not None


# --- the indexes never drift from the objects ---

STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "delete", "alter", "remove", "restart", "pod"]), st.integers(0, 5)),
    max_size=25,
)


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_a_node_after_any_history_equals_its_copy(steps: list[tuple[str, int]]) -> None:
    """The copy has its indexes built anew from the dump; both must refuse and accept alike."""
    host = Host(l2bridge_node(ZN23H2))
    for verb, number in steps:
        balancers = host.node.load_balancers()
        picked = balancers[number % len(balancers)].guid if balancers else None
        try:
            match verb:
                case "create":
                    host.balance(80 + number, dsr=number % 2 == 0)
                case "delete" if picked:
                    host.client.delete(BALANCER, picked)
                case "alter" if picked:
                    host.node.alter(BALANCER, picked, port_mappings=balancer(port=80 + number).port_mappings)
                case "remove" if picked:
                    host.node.remove(BALANCER, picked)
                case "restart":
                    host.node.restore(host.node.restart(purge=number % 2 == 0))
                case _:
                    host.pod = host.node.add_pod(f"10.40.3.{20 + number}")
        except HnsError:
            continue
    copy = Emulator.load(host.node.dump())
    for port in range(80, 87):
        text = encode(balancer(host.pod, port=port))
        outcomes = []
        for node in (host.node, copy):
            try:
                HnsClient(node).create(BALANCER, text)
                outcomes.append(0)
            except HnsError as error:
                outcomes.append(error.hresult)
        assert outcomes[0] == outcomes[1]
    assert host.node.free_port_blocks == copy.free_port_blocks
    for guid in (each.guid for each in host.node.load_balancers()):
        host.client.delete(BALANCER, guid)
    assert host.node.free_port_blocks == 256
    assert refusable(host) == 0


def refusable(host: Host) -> int:
    """Once nothing uses it any more, the pod's endpoint can go."""
    try:
        host.client.delete(ENDPOINT, host.pod)
    except HnsError as error:
        return error.hresult
    return 0
