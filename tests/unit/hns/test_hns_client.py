"""HnsClient: prices of windows-proxy 0.2, by the emulator's own counter, and no handle left open on any path."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from hansa.hns.api import ZERO_GUID, Guid, HnsError, HnsKind, HnsVerb, HResult
from hansa.hns.client import HnsClient, list_query
from hansa.hns.emulator import ZN23H2, Emulator, Fault, LoseReply, Refuse, l2bridge_node
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HostRoute,
    IpConfiguration,
    LbFlags,
    NetworkType,
    PortMapping,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
    encode,
    encode_policy_request,
)

NETWORK, ENDPOINT, BALANCER = HnsKind.NETWORK, HnsKind.ENDPOINT, HnsKind.LOAD_BALANCER
UNKNOWN = Guid("A90BE7D2-1F60-4C35-8A51-20B6D1C3E101")


def remote_endpoint(address: str) -> str:
    ip = IPv4Address(address)
    return encode(HnsEndpoint(ip_configurations=(IpConfiguration(ip),), flags=EndpointFlags.REMOTE))


def load_balancer(*endpoints: Guid, port: int = 80) -> str:
    return encode(
        HnsLoadBalancer(
            endpoints=endpoints,
            source_vip=IPv4Address("192.0.2.21"),
            frontend_vips=(IPv4Address("172.21.30.7"),),
            port_mappings=(PortMapping(protocol=6, internal_port=8080, external_port=port),),
            flags=LbFlags.DSR,
        )
    )


class Node:
    """An emulated node with one pod, one remote endpoint and one load balancer, and the client under test."""

    def __init__(self) -> None:
        self.emulator = l2bridge_node(ZN23H2)
        self.client = HnsClient(self.emulator)
        self.network = self.emulator.networks()[0].guid
        self.pod = self.emulator.add_pod("10.40.3.14")
        self.remote = decode_endpoint(
            self.client.create(ENDPOINT, remote_endpoint("10.40.4.20"), network=self.network)
        ).guid
        self.balancer = decode_load_balancer(self.client.create(BALANCER, load_balancer(self.pod))).guid
        self.client.calls = 0
        self.emulator.calls.clear()


@pytest.fixture
def node() -> Node:
    return Node()


VERBS: dict[str, tuple[int, Callable[[Node], object]]] = {
    "version": (1, lambda n: n.client.version()),
    "list": (1, lambda n: n.client.list_ids(BALANCER)),
    "list by name": (1, lambda n: n.client.list_ids(NETWORK, name="hansa-br")),
    "list by network": (1, lambda n: n.client.list_ids(ENDPOINT, network=n.network)),
    "read": (3, lambda n: n.client.read(BALANCER, n.balancer)),
    "create load balancer": (3, lambda n: n.client.create(BALANCER, load_balancer(n.pod, port=81))),
    "create network": (3, lambda n: n.client.create(NETWORK, encode(HnsNetwork(name="n", type=NetworkType.INTERNAL)))),
    "create endpoint": (5, lambda n: n.client.create(ENDPOINT, remote_endpoint("10.40.4.21"), network=n.network)),
    "modify load balancer": (4, lambda n: n.client.modify(BALANCER, n.balancer, load_balancer(n.pod, n.remote))),
    "modify network": (4, lambda n: n.client.modify(NETWORK, n.network, encode_policy_request("Add", [HostRoute()]))),
    "delete load balancer": (1, lambda n: n.client.delete(BALANCER, n.balancer)),
    "delete endpoint": (1, lambda n: n.client.delete(ENDPOINT, n.remote)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_price_of_a_verb(node: Node, verb: str) -> None:
    price, do = VERBS[verb]
    do(node)
    assert node.emulator.call_count == price
    assert node.client.calls == price
    assert node.emulator.open_handles == 0


def test_a_refused_verb_costs_what_it_called(node: Node) -> None:
    with pytest.raises(HnsError):
        node.client.read(BALANCER, UNKNOWN)
    assert (node.client.calls, node.emulator.call_count) == (1, 1)


@pytest.mark.parametrize("effect", [Refuse(), LoseReply()], ids=["refused", "reply lost"])
@pytest.mark.parametrize("nth", range(1, 6))
@pytest.mark.parametrize("verb", VERBS)
def test_every_handle_is_closed_whatever_call_fails(
    node: Node, verb: str, nth: int, effect: Refuse | LoseReply
) -> None:
    """windows-proxy I17."""
    price, do = VERBS[verb]
    node.emulator.faults.add(Fault(effect=effect, skip=nth - 1))
    try:
        do(node)
    except HnsError:
        assert node.emulator.faults.hits == 1
    else:
        assert node.emulator.faults.hits == 0
        closes = sum(count for name, count in node.emulator.calls.items() if name.startswith("HcnClose"))
        assert nth > price - closes  # closing never fails
    assert node.emulator.open_handles == 0
    assert node.emulator.bad_closes == 0
    assert node.client.calls == node.emulator.call_count


@pytest.mark.parametrize("kind", HnsKind)
@pytest.mark.parametrize("guid", ["", ZERO_GUID])
def test_an_empty_guid_never_reaches_hns(node: Node, kind: HnsKind, guid: str) -> None:
    """windows-proxy H.7: forbidden are by-id calls with an empty id."""
    for verb in (
        lambda: node.client.delete(kind, Guid(guid)),
        lambda: node.client.read(kind, Guid(guid)),
        lambda: node.client.modify(kind, Guid(guid), "{}"),
        lambda: node.client.list_ids(ENDPOINT, network=Guid(guid)),
        lambda: node.client.create(ENDPOINT, "{}", network=Guid(guid)),
    ):
        with pytest.raises(ValueError, match="empty GUID"):
            verb()
    assert node.emulator.call_count == 0


def test_conditions_that_hns_would_not_understand(node: Node) -> None:
    with pytest.raises(ValueError, match="empty name"):
        node.client.list_ids(NETWORK, name="")
    with pytest.raises(ValueError, match="by network"):
        node.client.list_ids(BALANCER, network=node.network)
    with pytest.raises(ValueError, match="exactly endpoints"):
        node.client.create(ENDPOINT, "{}")
    with pytest.raises(ValueError, match="exactly endpoints"):
        node.client.create(BALANCER, "{}", network=node.network)
    assert node.emulator.call_count == 0


def test_nothing_found_is_no_error(node: Node) -> None:
    assert node.client.list_ids(NETWORK, name="other") == ()
    assert node.client.list_ids(ENDPOINT, network=UNKNOWN) == ()


def test_what_is_created_is_told_back(node: Node) -> None:
    made = decode_load_balancer(node.client.create(BALANCER, load_balancer(node.remote, port=8), guid=UNKNOWN))
    assert made.guid == UNKNOWN
    assert made == decode_load_balancer(node.client.read(BALANCER, UNKNOWN))
    assert node.network == decode_network(node.client.read(NETWORK, node.network)).guid


def test_the_filter_is_json_within_json() -> None:
    """hcn.md 1.4, byte for byte."""
    assert list_query(Name="hansa-br") == (
        '{"SchemaVersion":{"Major":2,"Minor":0},"Filter":"{\\"Name\\":\\"hansa-br\\"}"}'
    )
    assert list_query() == '{"SchemaVersion":{"Major":2,"Minor":0}}'


def test_a_created_object_may_exist_although_create_failed(node: Node) -> None:
    fault = Fault(verb=HnsVerb.CREATE, kind=BALANCER, effect=LoseReply(HResult(0x800706BE)))
    node.emulator.faults.add(fault)
    with pytest.raises(HnsError) as caught:
        node.client.create(BALANCER, load_balancer(node.pod, port=99))
    assert caught.value.hresult == 0x800706BE
    assert len(node.emulator.load_balancers()) == 2


def test_a_deep_snapshot_costs_one_call_and_three_per_object() -> None:
    """windows-proxy 0.2: listing K objects costs 1 + 3K."""
    emulator: Emulator = l2bridge_node()
    client = HnsClient(emulator)
    for index in range(20):
        emulator.add_pod(f"10.40.3.{10 + index}")
    read = [decode_endpoint(client.read(ENDPOINT, guid)) for guid in client.list_ids(ENDPOINT)]
    assert len(read) == 21  # with the root endpoint
    assert client.calls == 1 + 3 * 21
