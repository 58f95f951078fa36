"""What every HnsApi does alike: the emulator, the remote client, the native binding.

An implementation joins by an entry in IMPLEMENTATIONS: a context manager that gives a Host with one l2bridge network
named `hansa-br` (10.40.3.0/24) and nothing else, or skips. Assertions that need to look behind the API (handles left
open) go through the Host.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from tests.hns_double import Counter, double

from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsApi, HnsError, HnsKind, HnsVersion, parse_guid
from hansa.hns.client import DEFAULT_QUERY, HnsClient, list_query
from hansa.hns.emulator import ZN23H2, Layout, Machine, l2bridge_node
from hansa.hns.emulator.server import SharedHns, serve
from hansa.hns.remote import RemoteHns
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    LbFlags,
    PortMapping,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
    encode,
)

NETWORK, ENDPOINT, BALANCER = HnsKind.NETWORK, HnsKind.ENDPOINT, HnsKind.LOAD_BALANCER
UNKNOWN = Guid("0BADF00D-1F60-4C35-8A51-20B6D1C3E199")
LAYOUT = Layout("hansa-br", Machine(), ("10.40.3.0/24",), root_offset=None)


@dataclass(frozen=True, slots=True)
class Host:
    """One implementation on one host. open_handles: None if the implementation cannot tell."""

    api: HnsApi
    version: HnsVersion | None
    open_handles: Callable[[], int] | None


@contextmanager
def emulator() -> Iterator[Host]:
    node = l2bridge_node(ZN23H2, layout=LAYOUT)
    yield Host(node, ZN23H2.version, lambda: node.open_handles)
    assert node.bad_closes == 0


@contextmanager
def shared() -> Iterator[Host]:
    """The emulator as several threads may use it."""
    with emulator() as inner:
        yield Host(SharedHns(inner.api, threading.Lock()), inner.version, inner.open_handles)


@contextmanager
def remote() -> Iterator[Host]:
    """The emulator behind its socket."""
    with emulator() as inner, serve(inner.api, "127.0.0.1:0") as server, RemoteHns(server.address) as api:
        yield Host(api, inner.version, inner.open_handles)


@contextmanager
def native() -> Iterator[Host]:
    """The binding on a DLL whose objects are the emulator's; the DLL's texts must all be freed."""
    dll = double()
    with emulator() as inner, serve(inner.api, "127.0.0.1:0") as server, dll.native() as api:
        dll.connect(server.address)
        before = dll.leaks()
        yield Host(api, inner.version, lambda: dll.count(Counter.HANDLES_OPEN) - before[Counter.HANDLES_OPEN])
        dll.connect("")
        assert dll.leaks() == before


IMPLEMENTATIONS: dict[str, Callable[[], AbstractContextManager[Host]]] = {
    "emulator": emulator,
    "shared": shared,
    "remote": remote,
    "native": native,
}


@pytest.fixture(params=IMPLEMENTATIONS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with IMPLEMENTATIONS[request.param]() as opened:
        yield opened
        if opened.open_handles is not None:
            assert opened.open_handles() == 0, "a test of this suite, or the implementation, leaves a handle open"


@pytest.fixture
def api(host: Host) -> HnsApi:
    return host.api


@pytest.fixture
def network(api: HnsApi) -> Guid:
    return HnsClient(api).list_ids(NETWORK, name="hansa-br")[0]


def remote_endpoint(address: str) -> str:
    return encode(
        HnsEndpoint(
            ip_configurations=(IpConfiguration(IPv4Address(address)),),
            mac_address="02-11-0A-28-04-14",
            flags=EndpointFlags.REMOTE,
        )
    )


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


def made_endpoint(api: HnsApi, network: Guid, address: str = "10.40.4.20") -> Guid:
    return decode_endpoint(HnsClient(api).create(ENDPOINT, remote_endpoint(address), network=network)).guid


def made_balancer(api: HnsApi, *endpoints: Guid, port: int = 80) -> Guid:
    return decode_load_balancer(HnsClient(api).create(BALANCER, load_balancer(*endpoints, port=port))).guid


def refusal(call: Callable[[], object]) -> HnsError:
    with pytest.raises(HnsError) as caught:
        call()
    return caught.value


def test_the_version(host: Host) -> None:
    version = host.api.version()
    assert version >= HnsVersion(9, 2)  # schema 2, which everything here needs
    assert host.version in (None, version)


def test_an_object_lives_from_create_to_delete(api: HnsApi, network: Guid) -> None:
    parent = api.open(NETWORK, network)
    handle = api.create(ENDPOINT, ZERO_GUID, remote_endpoint("10.40.4.20"), parent)
    made = decode_endpoint(api.query(ENDPOINT, handle, DEFAULT_QUERY))
    api.close(ENDPOINT, handle)
    api.close(NETWORK, parent)
    assert made.guid != ZERO_GUID
    assert made.network == network
    assert made.addresses == (IPv4Address("10.40.4.20"),)
    assert made.remote
    assert made.mac_address == "02-11-0A-28-04-14"
    api.delete(ENDPOINT, made.guid)
    assert refusal(lambda: api.open(ENDPOINT, made.guid)).hresult == 0x80070490


def test_a_load_balancer_is_told_back_as_it_was_asked_for(api: HnsApi, network: Guid) -> None:
    """H.3 compares exactly these fields; what HNS adds must not be among them."""
    endpoint = made_endpoint(api, network)
    asked = decode_load_balancer(load_balancer(endpoint))
    told = decode_load_balancer(HnsClient(api).read(BALANCER, made_balancer(api, endpoint)))
    for field in ("endpoints", "source_vip", "frontend_vips", "port_mappings", "flags"):
        assert getattr(told, field) == getattr(asked, field), field


def test_modify_changes_the_back_ends(api: HnsApi, network: Guid) -> None:
    first, second = made_endpoint(api, network), made_endpoint(api, network, "10.40.4.21")
    guid = made_balancer(api, first)
    told = decode_load_balancer(HnsClient(api).modify(BALANCER, guid, load_balancer(first, second)))
    assert told.guid == guid
    assert set(told.endpoints) == {first, second}


def test_a_guid_may_be_chosen_by_the_caller(api: HnsApi, network: Guid) -> None:
    def create(address: str) -> str:
        return HnsClient(api).create(ENDPOINT, remote_endpoint(address), guid=UNKNOWN, network=network)

    assert decode_endpoint(create("10.40.4.20")).guid == UNKNOWN
    assert refusal(lambda: create("10.40.4.21")).hresult == 0x800700B7


def test_the_case_of_a_guid_does_not_matter(api: HnsApi, network: Guid) -> None:
    guid = made_endpoint(api, network)
    for text in (guid, guid.lower()):
        handle = api.open(ENDPOINT, Guid(text))
        assert decode_endpoint(api.query(ENDPOINT, handle, DEFAULT_QUERY)).guid == guid
        api.close(ENDPOINT, handle)
    by_network = api.enumerate(ENDPOINT, list_query(VirtualNetwork=network.lower()))
    assert [parse_guid(text) for text in json.loads(by_network)] == [guid]
    api.delete(ENDPOINT, Guid(guid.lower()))


def test_enumerations_and_filters(api: HnsApi, network: Guid) -> None:
    client = HnsClient(api)
    assert client.list_ids(ENDPOINT) == ()
    assert api.enumerate(BALANCER, "") == "[]"
    one, two = made_endpoint(api, network), made_endpoint(api, network, "10.40.4.21")
    assert set(client.list_ids(ENDPOINT)) == {one, two}
    assert set(client.list_ids(ENDPOINT, network=network)) == {one, two}
    assert client.list_ids(ENDPOINT, network=UNKNOWN) == ()
    assert client.list_ids(NETWORK, name="hansa-br") == (network,)
    assert client.list_ids(NETWORK, name="HANSA-xx") == ()
    assert json.loads(api.enumerate(ENDPOINT, list_query(ID=one))) != []
    assert json.loads(api.enumerate(ENDPOINT, list_query(Colour="red"))) == []


def test_a_filter_counts_only_in_enumerations(api: HnsApi, network: Guid) -> None:
    """hcn.md 1.4: the same query text is sent to Query...Properties, where Filter has no meaning."""
    handle = api.open(NETWORK, network)
    assert decode_network(api.query(NETWORK, handle, list_query(Name="other"))).guid == network
    api.close(NETWORK, handle)


@pytest.mark.parametrize("kind", HnsKind)
def test_what_is_not_there(api: HnsApi, kind: HnsKind) -> None:
    for call in (lambda: api.open(kind, UNKNOWN), lambda: api.delete(kind, UNKNOWN)):
        error = refusal(call)
        assert error.hresult == 0x80070490
        assert error.text
        assert error.call in (f"HcnOpen{kind.value}", f"HcnDelete{kind.value}")


def test_a_refusal_keeps_code_and_words(api: HnsApi, network: Guid) -> None:
    endpoint = made_endpoint(api, network)
    made_balancer(api, endpoint)
    error = refusal(lambda: made_balancer(api, endpoint))
    assert (error.call, error.hresult) == ("HcnCreateLoadBalancer", 0x803B0013)
    assert "already exists" in error.text
    assert made_balancer(api, endpoint, port=81)


@pytest.mark.parametrize("settings", ["", "{", "nothing"])
def test_settings_that_are_no_json(api: HnsApi, settings: str) -> None:
    assert refusal(lambda: api.create(BALANCER, ZERO_GUID, settings)).hresult == 0x803B001B


def test_a_query_that_is_no_json(api: HnsApi, network: Guid) -> None:
    assert refusal(lambda: api.enumerate(ENDPOINT, "{")).hresult == 0x803B001B
    handle = api.open(NETWORK, network)
    assert refusal(lambda: api.query(NETWORK, handle, "{")).hresult == 0x803B001B
    api.close(NETWORK, handle)


def test_delete_needs_no_handle_and_kills_those_that_are_open(api: HnsApi, network: Guid) -> None:
    guid = made_endpoint(api, network)
    handle = api.open(ENDPOINT, guid)
    api.delete(ENDPOINT, guid)
    assert refusal(lambda: api.query(ENDPOINT, handle, DEFAULT_QUERY)).hresult in (0x803B0031, 0x80070490)
    api.close(ENDPOINT, handle)


def test_several_handles_of_one_object(api: HnsApi, network: Guid) -> None:
    handles = [api.open(NETWORK, network) for _ in range(3)]
    assert len(set(handles)) == 3
    api.close(NETWORK, handles[0])
    assert decode_network(api.query(NETWORK, handles[1], DEFAULT_QUERY)).name == "hansa-br"
    for handle in handles[1:]:
        api.close(NETWORK, handle)


def test_no_handle_is_left_when_calls_fail(host: Host, network: Guid) -> None:
    client = HnsClient(host.api)
    endpoint = made_endpoint(host.api, network)
    guid = made_balancer(host.api, endpoint)
    refusal(lambda: client.modify(BALANCER, guid, "{"))
    refusal(lambda: client.create(ENDPOINT, "{", network=network))
    refusal(lambda: client.create(ENDPOINT, remote_endpoint("10.40.4.22"), network=UNKNOWN))
    refusal(lambda: client.create(BALANCER, load_balancer()))
    refusal(lambda: client.read(ENDPOINT, UNKNOWN))
    if host.open_handles is not None:
        assert host.open_handles() == 0


def test_endpoints_need_a_network(api: HnsApi) -> None:
    refusal(lambda: api.create(ENDPOINT, ZERO_GUID, remote_endpoint("10.40.4.20"), None))


def test_closing_never_raises(host: Host, network: Guid) -> None:
    handle: Handle = host.api.open(NETWORK, network)
    assert host.api.close(NETWORK, handle) is None
