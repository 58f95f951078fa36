"""Tables for merge_slices(): what several slices of a Service add up to."""

from __future__ import annotations

from collections.abc import Iterable

from hansa.api.objects import EndpointSlice
from hansa.net import IPFamily, Protocol
from hansa.services.model import Endpoint
from hansa.services.slices import Candidate, merge_slices
from hansa.testing import L1, NODE_NAME, R1, endpoint, endpoint_slice, slice_port

HTTP = ("http", Protocol.TCP)


def merge(*slices: EndpointSlice, family: IPFamily = IPFamily.IPV4) -> tuple[Candidate, ...]:
    """The candidates of the port http, 8080/TCP."""
    return merge_slices(slices, family=family, node_name=NODE_NAME).get(HTTP, ())


def texts(candidates: Iterable[Candidate]) -> list[str]:
    return [str(one.endpoint) for one in candidates]


def test_no_slices() -> None:
    """Section 10, step 1: no endpoints at all."""
    assert merge_slices((), family=IPFamily.IPV4, node_name=NODE_NAME) == {}


def test_endpoints_of_all_slices() -> None:
    """E3: slices of a Service are merged as a set."""
    assert texts(merge(endpoint_slice("web-a", [L1]), endpoint_slice("web-b", [R1]))) == [
        "10.1.1.11:8080",
        "10.1.2.21:8080",
    ]
    assert texts(merge(endpoint_slice("web-a", [L1]), endpoint_slice("web-b", [L1, L1]))) == ["10.1.1.11:8080"]


def test_only_the_family() -> None:
    """E2: `addressType` must be the pass's family; FQDN is ignored."""
    slices = (
        endpoint_slice("web-a", [L1]),
        endpoint_slice("web-b", ["fd01::11"]),
        endpoint_slice("web-c", family=None),
    )
    assert texts(merge(*slices)) == ["10.1.1.11:8080"]
    assert texts(merge(*slices, family=IPFamily.IPV6)) == ["[fd01::11]:8080"]


def test_numbers_come_from_the_slice() -> None:
    """E8, E18: different slices may carry different numbers for one name; all are used."""
    slices = (
        endpoint_slice("web-a", [L1], ports=[slice_port("http", 8080), slice_port("http", 443)]),
        endpoint_slice("web-b", [R1], ports=[slice_port("http", 8081)]),
    )
    assert texts(merge(*slices)) == ["10.1.1.11:443", "10.1.1.11:8080", "10.1.2.21:8081"]


def test_ports_by_name_and_protocol() -> None:
    """E7, E13: joined by name and protocol; the empty string is a name; unknown names are kept."""
    piece = endpoint_slice(
        "web-a", [L1], ports=[slice_port(), slice_port(protocol="UDP"), slice_port("", 80), slice_port("metrics", 9100)]
    )
    found = merge_slices([piece], family=IPFamily.IPV4, node_name=NODE_NAME)
    assert {key: texts(value) for key, value in found.items()} == {
        HTTP: ["10.1.1.11:8080"],
        ("http", Protocol.UDP): ["10.1.1.11:8080"],
        ("", Protocol.TCP): ["10.1.1.11:80"],
        ("metrics", Protocol.TCP): ["10.1.1.11:9100"],
    }


def test_order() -> None:
    """E14: textual order, 10.0.1.10 before 10.0.1.2."""
    assert texts(merge(endpoint_slice("web-a", ["10.0.1.2", "10.0.1.10", "10.0.1.1"]))) == [
        "10.0.1.10:8080",
        "10.0.1.1:8080",
        "10.0.1.2:8080",
    ]


def test_the_running_one_of_two_pods_with_one_address() -> None:
    """E10: a non-terminating entry always replaces, a terminating one only fills an empty place."""
    running = endpoint("10.1.1.11", ready=False, serving=False)
    leaving = endpoint("10.1.1.11", ready=False, terminating=True)
    for entries in ([running, leaving], [leaving, running]):
        (found,) = merge(endpoint_slice("web-a", entries))
        assert not found.endpoint.terminating
    for names in (("web-a", "web-b"), ("web-b", "web-a")):
        (found,) = merge(endpoint_slice(names[0], [running]), endpoint_slice(names[1], [leaving]))
        assert not found.endpoint.terminating
    (alone,) = merge(endpoint_slice("web-a", [leaving]))
    assert alone.endpoint.terminating


def test_two_running_entries() -> None:
    """E11: prefer ready, then the lexically first slice name."""
    unready = endpoint("10.1.1.11", node="n1", ready=False)
    ready_here, ready_there = endpoint("10.1.1.11", node="n1"), endpoint("10.1.1.11", node="n2")
    (found,) = merge(endpoint_slice("web-a", [unready]), endpoint_slice("web-b", [ready_there]))
    assert found.endpoint.ready
    for slices in (
        [endpoint_slice("web-b", [ready_there]), endpoint_slice("web-a", [ready_here])],
        [endpoint_slice("web-a", [ready_here]), endpoint_slice("web-b", [ready_there])],
    ):
        (found,) = merge(*slices)
        assert found.endpoint.local


def test_two_terminating_entries() -> None:
    """E11, C5: of two that terminate, the one that can still be used."""
    gone = endpoint("10.1.1.11", ready=False, serving=False, terminating=True)
    draining = endpoint("10.1.1.11", ready=False, terminating=True)
    (found,) = merge(endpoint_slice("web-a", [gone]), endpoint_slice("web-b", [draining]))
    assert found.endpoint.serving
    unprepared = endpoint("10.1.1.11", ready=True, serving=False, terminating=True)
    (found,) = merge(endpoint_slice("web-a", [draining]), endpoint_slice("web-b", [unprepared]))
    assert found.endpoint.ready


def test_local_is_by_exact_name() -> None:
    """Section 0: nodeName equals this proxy's node name, exact string; unset is never local (t067, t068)."""
    entries = [endpoint("10.1.1.1", node="n1"), endpoint("10.1.1.2", node="N1"), endpoint("10.1.1.3")]
    assert [one.endpoint.local for one in merge(endpoint_slice("web-a", entries))] == [True, False, False]


def test_hints_and_conditions_travel_along() -> None:
    """T10: only the hints count, so they are kept beside the endpoint."""
    entry = endpoint("10.1.2.21", node="n2", ready=False, terminating=True, zone_hints=["za"], node_hints=["n1"])
    assert merge(endpoint_slice("web-a", [entry])) == (
        Candidate(
            Endpoint(entry.address, 8080, local=False, ready=False, serving=True, terminating=True),
            frozenset({"za"}),
            frozenset({"n1"}),
        ),
    )
