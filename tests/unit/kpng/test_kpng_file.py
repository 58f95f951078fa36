"""KPNG's file: read kindly, written strictly, and watched without losing anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from tests.end_to_end.stage import until

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, EndpointSlice, Node, Policy, Service
from hansa.errors import SourceError
from hansa.net import Protocol
from hansa.sources.kpng.file import read_state, write_state
from hansa.sources.kpng.file_source import KpngFileSource
from hansa.testing import endpoint, endpoint_slice, node, port, service, slice_port

SAMPLE = """
nodes:
- {name: n1, labels: {kubernetes.io/hostname: n1}, topology: {node: n1, zone: za}}
services:
- service:
    namespace: default
    name: web
    type: ClusterIP
    ips: {clusterips: {v4: [10.96.0.10]}}
    ports: [{name: http, protocol: 1, port: 80, targetport: 8080}]
  endpoints:
  - podname: web-0
    endpoint: {ips: {v4: [10.1.0.5]}, portoverrides: [{name: http, port: 8080}]}
    topology: {node: n1, zone: za}
"""


def of(objects: tuple[ApiObject, ...], kind: type[ApiObject]) -> list[ApiObject]:
    return [one for one in objects if isinstance(one, kind)]


def test_k19_the_file_of_kpng_is_read_and_protocol_1_is_tcp() -> None:
    found = read_state(SAMPLE, name="state.yaml")
    (held,) = of(found, Node)
    assert (held.name, held.zone) == ("n1", "za")
    (web,) = of(found, Service)
    assert web == service("web", namespace="default", ports=[port(protocol=Protocol.TCP, target_port=8080)])
    (piece,) = of(found, EndpointSlice)
    assert piece.endpoints == (endpoint("10.1.0.5", node="n1"),)
    assert piece.ports == (slice_port("http", 8080),)


@pytest.mark.parametrize("text", ["protocol: TCP", "protocol: tcp", "protocol: 1"])
def test_protocols_have_names_too(text: str) -> None:
    (web,) = of(read_state(SAMPLE.replace("protocol: 1", text), name="f"), Service)
    assert web.ports[0].protocol is Protocol.TCP


def test_what_crashes_kpng_is_read() -> None:
    """No topology, no conditions; session affinity; a default namespace; not ready by conditions."""
    text = SAMPLE.replace("    topology: {node: n1, zone: za}\n", "    conditions: {ready: false}\n")
    text = text.replace("    namespace: default\n", "    clientip: {timeoutseconds: 30}\n")
    found = read_state(text, name="f")
    (web,) = of(found, Service)
    assert (web.namespace, web.affinity_timeout_s) == ("default", 30)
    (piece,) = of(found, EndpointSlice)
    assert piece.endpoints == (endpoint("10.1.0.5", ready=False, serving=False),)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("podname", "podName", "services[0].endpoints[0]: unknown key 'podName'"),
        ("port: 80,", "port: eighty,", "services[0].service.ports[0].port"),
        ("protocol: 1", "protocol: ICMP", "services[0].service.ports[0].protocol"),
        ("10.96.0.10", "10.96.0.300", "web"),
        ("services:", "service:", "unknown key 'service'"),
        ("nodes:", "nodes: [", "is not YAML"),
        ("- podname: web-0\n    endpoint:", "- [podname]\n  - endpoint:", "services[0].endpoints[0]: is no mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(old: str, new: str, place: str) -> None:
    with pytest.raises(SourceError) as raised:
        read_state(SAMPLE.replace(old, new, 1), name="state.yaml")
    assert place in str(raised.value)


def test_what_is_written_is_read_again_and_written_the_same() -> None:
    text = write_state(read_state(SAMPLE, name="f"))
    assert write_state(read_state(text, name="g")) == text
    assert [one.key for one in of(read_state(text, name="g"), Service)] == [
        one.key for one in of(read_state(SAMPLE, name="f"), Service)
    ]


def test_everything_that_the_file_has_a_place_for_comes_back() -> None:
    objects: list[ApiObject] = [
        node("n1", addresses=[], pod_cidrs=[]),
        service(
            "web",
            type="LoadBalancer",
            cluster_ips=["10.96.0.10", "fd00::10"],
            ports=[port("http", 80, node_port=30080), port("dns", 53, protocol="UDP", target_port="dns")],
            external_ips=["203.0.113.7"],
            load_balancer_vips=["203.0.113.80"],
            source_ranges=["198.51.100.0/24"],
            external_policy=Policy.LOCAL,
            internal_policy=Policy.LOCAL,
            health_check_node_port=31000,
        ),
        endpoint_slice(
            "web",
            [endpoint("10.1.1.11", node="n1", zone_hints=["za"]), endpoint("10.1.2.21", ready=False, serving=False)],
            ports=[slice_port("dns", 5353, protocol="UDP"), slice_port("http", 8080)],
        ),
        endpoint_slice("web~1", ["fd00:1::5"], ports=[slice_port("dns", 5353, protocol="UDP"), slice_port()]),
    ]
    found = read_state(write_state(objects), name="f")
    assert of(found, Node) == [objects[0]]
    assert of(found, Service) == [objects[1]]
    expected = {one.family: (one.endpoints, frozenset(one.ports)) for one in objects if isinstance(one, EndpointSlice)}
    assert {
        one.family: (one.endpoints, frozenset(one.ports)) for one in found if isinstance(one, EndpointSlice)
    } == expected


def test_what_is_written_holds_nothing_that_kpng_does_not_read() -> None:
    data = yaml.safe_load(
        write_state(
            [
                node("n1", taint_keys=["x"], deleting=True),
                service("web", affinity_timeout_s=10, created=5.0),
                endpoint_slice("web-a", [endpoint("10.1.1.11", node="n1", node_hints=["n1"], terminating=True)]),
            ]
        )
    )
    assert set(data["nodes"][0]) <= {"name", "labels", "annotations", "topology"}
    (entry,) = data["services"]
    assert not {"clientip", "created", "preservedestination"} & set(entry["service"])
    (held,) = entry["endpoints"]
    assert set(held) == {"endpoint", "topology"}
    assert all(isinstance(one["protocol"], int) for one in entry["service"]["ports"])


@pytest.mark.asyncio
async def test_k18_a_file_that_cannot_be_read_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "state.yaml"
    file.write_text(SAMPLE)
    source = KpngFileSource(str(file), poll_interval_s=0.01)
    batches = []

    async def follow() -> None:
        async for batch in source.changes():
            batches.append(batch)

    following = asyncio.create_task(follow())
    try:
        await until(lambda: len(batches) == 1)
        assert sum(isinstance(one, Synced) for one in batches[0]) == 4
        file.write_text(SAMPLE + "\nextra: 1\n")
        await until(lambda: source.troubled)
        assert "unknown key 'extra'" in source.status
        assert len(batches) == 1
        file.write_text(SAMPLE.replace("10.1.0.5", "10.1.0.55"))
        await until(lambda: not source.troubled and len(batches) == 2)
        assert [str(one.key) for one in batches[1] if isinstance(one, Upsert)] == ["EndpointSlice default/web"]
        file.write_text("services: []\n")
        await until(lambda: len(batches) == 3)
        assert {str(one.key) for one in batches[2] if isinstance(one, Delete)} == {
            *("Node n1", "Service default/web", "EndpointSlice default/web"),
        }
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
