"""Lists of states, named after what happens in them. The last state of each is what every telling must end in."""

from __future__ import annotations

from tests.histories.expanders import State

from hansa.testing import (
    L1,
    L2,
    NODE,
    R1,
    R2,
    WEB,
    endpoint,
    endpoint_slice,
    node,
    port,
    service,
    service_cidr,
    slice_port,
)

LOCAL_WEB = service(
    "web",
    type="LoadBalancer",
    node_port=30080,
    external_policy="Local",
    load_balancer_vips=["203.0.113.80"],
    health_check_node_port=32000,
)
DNS_PORTS = [port("dns", 53, protocol="UDP"), port("dns-tcp", 53)]
DNS = service("dns", cluster_ips=["10.96.0.53"], ports=DNS_PORTS)
DNS_SLICE_PORTS = [slice_port("dns", 53, protocol="UDP"), slice_port("dns-tcp", 53)]
OLD = service("old", cluster_ips=["10.96.0.20"], external_ips=["203.0.113.7"], created=1.0)
NEW = service("new", cluster_ips=["10.96.0.21"], external_ips=["203.0.113.7"], created=2.0)
HINTED = endpoint_slice(
    "web-a", [endpoint("10.1.1.11", node="n1", zone_hints=["za"]), endpoint("10.1.3.31", node="n3", zone_hints=["zb"])]
)
DRAINING = endpoint("10.1.1.11", node="n1", ready=False, terminating=True)
GONE_BAD = endpoint("10.1.1.11", node="n1", ready=False)
SLICE = endpoint_slice("web-a", [L1, R1])
OLD_SLICE = endpoint_slice("old-a", [R1], service="old")
NEW_SLICE = endpoint_slice("new-a", [R2], service="new")


def a(*endpoints: object, name: str = "web-a", **fields: object):  # type: ignore[no-untyped-def]
    return endpoint_slice(name, endpoints, **fields)  # type: ignore[arg-type]


STORIES: dict[str, tuple[State, ...]] = {
    "a service comes before its endpoints": ((NODE,), (NODE, WEB), (NODE, WEB, SLICE)),
    "endpoints come before their service": ((NODE,), (NODE, SLICE), (NODE, WEB, SLICE)),
    "a rolling update": (
        (NODE, WEB, a(L1, R1)),
        (NODE, WEB, a(L1, R1), a(R2, name="web-b")),
        (NODE, WEB, a(DRAINING, R1), a(R2, name="web-b")),
        (NODE, WEB, a(R1), a(R2, L2, name="web-b")),
        (NODE, WEB, a(R2, L2, name="web-b")),
    ),
    "scaled to nothing and back": ((NODE, WEB, a(L1, R1)), (NODE, WEB, a()), (NODE, WEB), (NODE, WEB, a(L2))),
    "all endpoints go bad": ((NODE, WEB, a(L1)), (NODE, WEB, a(GONE_BAD))),
    "a service is deleted": ((NODE, WEB, SLICE, DNS), (NODE, SLICE, DNS)),
    "everything is deleted": ((NODE, WEB, SLICE, DNS, service_cidr()), (NODE,)),
    "a service is made anew under another address": (
        (NODE, WEB, SLICE),
        (NODE, SLICE),
        (NODE, SLICE, service("web", cluster_ips=["10.96.0.99"])),
    ),
    "an address passes from one service to another": (
        (NODE, service("web"), SLICE, service("api", cluster_ips=["10.96.0.11"])),
        (NODE, service("web", cluster_ips=["10.96.0.12"]), SLICE, service("api", cluster_ips=["10.96.0.10"])),
    ),
    "ports are renamed, renumbered and swapped": (
        (NODE, service("web", ports=[port("http", 80), port("https", 443)]), SLICE),
        (NODE, service("web", ports=[port("http", 443), port("https", 80)]), SLICE),
        (NODE, service("web", ports=[port("https", 443), port("http", 81)]), SLICE),
    ),
    "policies change": (
        (NODE, LOCAL_WEB, a(R1)),
        (NODE, LOCAL_WEB, a(L1, R1)),
        (NODE, WEB, a(L1, R1)),
        (NODE, LOCAL_WEB, a(L1, L2, R1)),
    ),
    "the winner of a contested address goes": (
        (NODE, NEW, NEW_SLICE),
        (NODE, NEW, NEW_SLICE, OLD, OLD_SLICE),
        (NODE, NEW, NEW_SLICE),
    ),
    "the loser of a contested address goes": (
        (NODE, NEW, NEW_SLICE, OLD, OLD_SLICE),
        (NODE, OLD, OLD_SLICE),
    ),
    "a slice moves to another service": (
        (NODE, OLD, NEW, a(L1, name="x", service="old")),
        (NODE, OLD, NEW, a(L1, name="x", service="new")),
    ),
    "an endpoint moves between slices": (
        (NODE, WEB, a(L1, R1), a(R2, name="web-b")),
        (NODE, WEB, a(R1), a(R2, L1, name="web-b")),
    ),
    "target ports differ and change": (
        (NODE, WEB, a(L1), a(R1, name="web-b", ports=[slice_port("http", 8081)])),
        (NODE, WEB, a(L1, ports=[slice_port("http", 8082)]), a(R1, name="web-b", ports=[slice_port("http", 8082)])),
    ),
    "the node changes its zone": ((NODE, WEB, HINTED), (node(zone="zb"), WEB, HINTED)),
    "the node gets another address": ((NODE, WEB, SLICE), (node(addresses=["192.0.2.100"]), WEB, SLICE)),
    "service CIDRs overlap and one goes": (
        (NODE, WEB, SLICE, service_cidr("one"), service_cidr("two")),
        (NODE, WEB, SLICE, service_cidr("two")),
        (NODE, WEB, SLICE, service_cidr("two", ["10.97.0.0/16"])),
    ),
    "two protocols share a port number": (
        (NODE, DNS, a(R1, name="dns-a", service="dns", ports=DNS_SLICE_PORTS)),
        (NODE, service("dns", cluster_ips=["10.96.0.53"], ports=DNS_PORTS[:1]), a(R1, name="dns-a", service="dns")),
        (NODE, DNS, a(R1, L1, name="dns-a", service="dns", ports=DNS_SLICE_PORTS)),
    ),
    "a service leaves for another proxy and returns": (
        (NODE, WEB, SLICE),
        (NODE, service("web", proxy_name="other"), SLICE),
        (NODE, service("web"), SLICE),
    ),
    "families come and go": (
        (NODE, service("web"), SLICE),
        (NODE, service("web", cluster_ips=["10.96.0.10", "fd00::10"]), SLICE, a("fd01::21", name="web-v6")),
        (NODE, service("web", cluster_ips=["fd00::10"]), SLICE, a("fd01::21", "fd01::31", name="web-v6")),
    ),
}
