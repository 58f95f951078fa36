"""Namespaces, as CNI plug-ins and runtimes use them (hcn.md 2.7, 2.9)."""

from __future__ import annotations

import json

import pytest

from hansa.hns.api import ZERO_GUID, HnsError, HnsKind
from hansa.hns.emulator import Emulator, l2bridge_node
from hansa.hns.emulator.namespaces import Namespaces
from hansa.hns.emulator.wire import Answer, Request
from hansa.hns.schema import EndpointState, HnsEndpoint, IpConfiguration
from hansa.net import parse_address


@pytest.fixture
def node() -> Emulator:
    return l2bridge_node()


@pytest.fixture
def held(node: Emulator) -> Namespaces:
    return Namespaces(node)


def call(held: Namespaces, function: str, *arguments: int | str) -> Answer:
    return held.answer(Request(function, arguments))


def made(held: Namespaces, kind: str = "Host") -> int:
    handle = call(held, "HcnCreateNamespace", ZERO_GUID, json.dumps({"Type": kind})).handle
    assert handle is not None
    return handle


def read(held: Namespaces, handle: int) -> dict[str, object]:
    out = call(held, "HcnQueryNamespaceProperties", handle, "").out
    assert out is not None
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def pod(node: Emulator) -> str:
    one = HnsEndpoint(
        network=node.networks()[0].guid,
        ip_configurations=(IpConfiguration(parse_address("10.40.3.14")),),
        state=EndpointState.CREATED,
    )
    return node.add(one)


def change(held: Namespaces, handle: int, request: str, endpoint: str) -> Answer:
    document = {"ResourceType": "Endpoint", "RequestType": request, "Settings": {"EndpointId": endpoint}}
    return call(held, "HcnModifyNamespace", handle, json.dumps(document))


def test_a_namespace_has_an_id_a_number_and_a_type(held: Namespaces) -> None:
    first, second = made(held), made(held, "Guest")
    one, other = read(held, first), read(held, second)
    assert (one["Type"], other["Type"]) == ("Host", "Guest")
    assert one["NamespaceId"] != other["NamespaceId"]
    assert json.loads(call(held, "HcnEnumerateNamespaces", "").out or "") == [one["ID"], other["ID"]]
    filtered = json.dumps({"Filter": json.dumps({"ID": other["ID"]})})
    assert json.loads(call(held, "HcnEnumerateNamespaces", filtered).out or "") == [other["ID"]]


def test_an_endpoint_is_attached_and_detached(node: Emulator, held: Namespaces) -> None:
    handle, endpoint = made(held), pod(node)
    change(held, handle, "Add", endpoint)
    assert read(held, handle)["Resources"] == [{"Type": "Endpoint", "Data": {"Id": endpoint.lower()}}]
    attached = node.get(HnsKind.ENDPOINT, endpoint)
    assert isinstance(attached, HnsEndpoint)
    assert attached.state == EndpointState.ATTACHED_SHARING
    with pytest.raises(HnsError) as again:
        change(held, handle, "Add", endpoint)
    assert again.value.hresult == 0x803B0014  # EV-25
    change(held, handle, "Remove", endpoint)
    assert read(held, handle)["Resources"] == []
    with pytest.raises(HnsError) as gone:
        change(held, handle, "Remove", endpoint)
    assert gone.value.hresult == 0x803B0034


def test_a_namespace_that_goes_lets_its_endpoints_go(node: Emulator, held: Namespaces) -> None:
    handle, endpoint = made(held), pod(node)
    change(held, handle, "Add", endpoint)
    call(held, "HcnDeleteNamespace", str(read(held, handle)["ID"]))
    left = node.get(HnsKind.ENDPOINT, endpoint)
    assert isinstance(left, HnsEndpoint)
    assert (left.namespace, left.state) == (None, EndpointState.DETACHED)
    with pytest.raises(HnsError) as dead:
        read(held, handle)
    assert dead.value.hresult == 0x803B0031
    call(held, "HcnCloseNamespace", handle)


def test_containers_are_remembered(held: Namespaces) -> None:
    handle = made(held)
    for request in ("Add", "Remove"):
        document = {"ResourceType": "Container", "RequestType": request, "Settings": {"ContainerId": "c1"}}
        call(held, "HcnModifyNamespace", handle, json.dumps(document))
        expected = [{"Type": "Container", "Data": {"Id": "c1"}}] if request == "Add" else []
        assert read(held, handle)["Resources"] == expected


@pytest.mark.parametrize(
    ("function", "arguments", "hresult"),
    [
        ("HcnOpenNamespace", ("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001",), 0x80070490),  # EV-02
        ("HcnDeleteNamespace", ("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001",), 0x80070490),
        ("HcnQueryNamespaceProperties", (99, ""), 0x80070006),
        ("HcnCreateNamespace", (ZERO_GUID, '{"Type":"Moon"}'), 0x80070057),
        ("HcnCreateNamespace", (ZERO_GUID, "{"), 0x803B001B),  # EV-01
        ("HcnCreateNamespace", (ZERO_GUID, "[" * 100_000), 0x803B001B),
        ("HcnCreateNamespace", (ZERO_GUID,), 0x80070057),
        ("HcnCreateNamespace", ("no guid", "{}"), 0x80070057),
        ("HcnCreateNamespace", (ZERO_GUID, '{"Type":"HostDefault"}'), 0x803B0029),
        ("HcnModifyNamespace", (1, '{"ResourceType":"Moon","RequestType":"Add"}'), 0x803B0015),
        ("HcnEnumerateNamespaces", ("{",), 0x803B001B),
    ],
)
def test_refusals(held: Namespaces, function: str, arguments: tuple[int | str, ...], hresult: int) -> None:
    made(held, "HostDefault")
    with pytest.raises(HnsError) as refused:
        call(held, function, *arguments)
    assert refused.value.hresult == hresult


def test_without_hns_there_are_no_namespaces(node: Emulator, held: Namespaces) -> None:
    node.stop()
    with pytest.raises(HnsError) as refused:
        call(held, "HcnEnumerateNamespaces", "")
    assert refused.value.hresult == 0x800706BA
