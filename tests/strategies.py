"""Random clusters and histories, as values, for the property tests of every stage.

The pools are small on purpose: Services share names, addresses and node ports, slices repeat endpoints and change
their owner, so that the cases that hurt come up within the few examples of an ordinary run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import (
    ApiObject,
    EndpointSlice,
    Kind,
    Node,
    ObjectKey,
    Policy,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from hansa.errors import Fault
from hansa.net import Address, IPFamily, Packet, Prefix, Protocol, parse_address, parse_prefix
from hansa.testing import NODE_ADDRESSES, Client


def _pool(*texts: str) -> tuple[Address, ...]:
    return tuple(parse_address(text) for text in texts)


NAMESPACE = "d"
SERVICE_NAMES = ("api", "dns", "web")
SLICE_NAMES = ("api-a", "web-a", "web-b", "web-c")
NODE_NAMES = ("n1", "n2", "n3")
ZONES = ("za", "zb")
PORT_KEYS = (
    ("http", Protocol.TCP),
    ("http", Protocol.TCP),
    ("http", Protocol.TCP),
    ("dns", Protocol.UDP),
    ("dns", Protocol.TCP),
    ("", Protocol.TCP),
    ("http", Protocol.SCTP),
)
PORTS = (53, 80, 443)
TARGET_PORTS = (53, 8080, 8081)
NODE_PORTS = (0, 30053, 30080)
CLUSTER_IPS = {
    IPFamily.IPV4: _pool("10.96.0.10", "10.96.0.11", "10.96.0.12"),
    IPFamily.IPV6: _pool("fd00::10", "fd00::11", "fd00::12"),
}
EXTERNAL_IPS = _pool("203.0.113.7", "203.0.113.8", "2001:db8:7::7")
VIPS = _pool("203.0.113.80", "203.0.113.7", "2001:db8:7::80")
ENDPOINT_ADDRESSES = {
    IPFamily.IPV4: _pool("10.1.1.11", "10.1.1.12", "10.1.2.21", "10.1.3.31", "192.0.2.1"),
    IPFamily.IPV6: _pool("fd01::11", "fd01::21", "fd01::31"),
}
SOURCE_RANGES = tuple(
    parse_prefix(text) for text in ("198.51.100.0/25", "192.0.2.0/24", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32")
)
SERVICE_PREFIXES = tuple(parse_prefix(text) for text in ("10.96.0.0/16", "10.96.0.0/24", "fd00::/112"))
SOURCES = (Client.P, Client.Q, Client.N, Client.X, Client.Y, *ENDPOINT_ADDRESSES[IPFamily.IPV4])
SOURCES_V6 = _pool("fd01::5", "2001:db8::1", "2001:db8:9::99", "fd01::11")

_PROTOCOLS = st.sampled_from((Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.SCTP))
_POLICIES = st.sampled_from((Policy.CLUSTER, Policy.LOCAL))


@dataclass(frozen=True, slots=True)
class Cluster:
    """All objects of a cluster at one moment; keys are unique."""

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    node: Node | None
    service_cidrs: tuple[ServiceCIDR, ...]

    @property
    def objects(self) -> tuple[ApiObject, ...]:
        node = () if self.node is None else (self.node,)
        return (*self.services, *self.slices, *node, *self.service_cidrs)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What a source says at its start: every object, and then that this was all."""
        return (*(Upsert(item) for item in self.objects), *(Synced(kind) for kind in Kind))


def subsets(pool: Sequence[Address] | Sequence[Prefix], *, max_size: int = 2) -> st.SearchStrategy[tuple]:
    return st.lists(st.sampled_from(pool), max_size=max_size, unique=True).map(tuple)


def families() -> st.SearchStrategy[tuple[IPFamily, ...]]:
    return st.sampled_from(
        (
            (IPFamily.IPV4,),
            (IPFamily.IPV4,),
            (IPFamily.IPV4, IPFamily.IPV6),
            (IPFamily.IPV6, IPFamily.IPV4),
            (IPFamily.IPV6,),
        )
    )


@st.composite
def service_ports(draw: st.DrawFn) -> tuple[ServicePortSpec, ...]:
    keys = draw(st.lists(st.sampled_from(PORT_KEYS), max_size=3, unique=True))
    return tuple(
        ServicePortSpec(name, protocol, draw(st.sampled_from(PORTS)), draw(st.sampled_from(NODE_PORTS)), 8080)
        for name, protocol in keys
    )


@st.composite
def services(draw: st.DrawFn, names: Sequence[str] = SERVICE_NAMES) -> Service:
    """Services of all kinds; most of them are handled by the default proxy."""
    headless = draw(st.sampled_from((False,) * 7 + (True,)))
    cluster_ips = () if headless else tuple(draw(st.sampled_from(CLUSTER_IPS[one])) for one in draw(families()))
    return Service(
        namespace=NAMESPACE,
        name=draw(st.sampled_from(names)),
        type=draw(st.sampled_from((*ServiceType, ServiceType.LOAD_BALANCER, ServiceType.NODE_PORT))),
        headless=headless,
        cluster_ips=cluster_ips,
        ports=draw(service_ports()),
        external_ips=draw(subsets(EXTERNAL_IPS)),
        load_balancer_vips=draw(subsets(VIPS)),
        source_ranges=draw(subsets(SOURCE_RANGES)),
        internal_policy=draw(_POLICIES),
        external_policy=draw(_POLICIES),
        affinity_timeout_s=draw(st.sampled_from((None, None, 60, 10800))),
        health_check_node_port=draw(st.sampled_from((0, 32000, 32001))),
        proxy_name=draw(st.sampled_from((None,) * 8 + ("", "other"))),
        preserve_destination=draw(st.sampled_from((False, False, True))),
        created=draw(st.sampled_from((0.0, 1.0, 2.0))),
    )


@st.composite
def slice_endpoints(draw: st.DrawFn, family: IPFamily) -> SliceEndpoint:
    """Endpoints in every condition; hints are drawn apart from the endpoint's own node, as T10 allows."""
    ready, serving, terminating = draw(
        st.sampled_from(
            (
                (True, True, False),
                (True, True, False),
                (True, False, True),
                (False, True, True),
                (False, True, False),
                (False, False, True),
                (False, False, False),
            )
        )
    )
    hinted = draw(st.booleans())
    return SliceEndpoint(
        address=draw(st.sampled_from(ENDPOINT_ADDRESSES[family])),
        ready=ready,
        serving=serving,
        terminating=terminating,
        node_name=draw(st.sampled_from((None, *NODE_NAMES))),
        zone_hints=draw(st.frozensets(st.sampled_from(ZONES), min_size=1)) if hinted else frozenset(),
        node_hints=draw(st.frozensets(st.sampled_from(NODE_NAMES), max_size=2)) if hinted else frozenset(),
    )


@st.composite
def endpoint_slices(draw: st.DrawFn, names: Sequence[str] = SLICE_NAMES) -> EndpointSlice:
    """Slices of the Services above, of an unknown one, or of none; FQDN slices have no endpoints."""
    family = draw(st.sampled_from((IPFamily.IPV4, IPFamily.IPV4, IPFamily.IPV4, IPFamily.IPV6, IPFamily.IPV6, None)))
    keys = draw(st.lists(st.sampled_from((*PORT_KEYS, ("metrics", Protocol.TCP))), max_size=4))
    return EndpointSlice(
        namespace=NAMESPACE,
        name=draw(st.sampled_from(names)),
        service=draw(st.sampled_from((*SERVICE_NAMES, "web", "web", "web", "ghost", None))),
        family=family,
        ports=tuple(SlicePort(name, protocol, draw(st.sampled_from(TARGET_PORTS))) for name, protocol in keys),
        endpoints=() if family is None else tuple(draw(st.lists(slice_endpoints(family), max_size=5))),
    )


@st.composite
def nodes(draw: st.DrawFn, names: Sequence[str] = NODE_NAMES[:1]) -> Node:
    return Node(
        name=draw(st.sampled_from(names)),
        addresses=draw(subsets(_pool("192.0.2.1", "192.0.2.100", "2001:db8::1"))),
        zone=draw(st.sampled_from((None, "", *ZONES))),
        pod_cidrs=draw(st.sampled_from(((), (parse_prefix("10.1.1.0/24"),)))),
        taint_keys=draw(st.sampled_from((frozenset(), frozenset({"ToBeDeletedByClusterAutoscaler"})))),
        deleting=draw(st.booleans()),
    )


@st.composite
def service_cidrs(draw: st.DrawFn) -> ServiceCIDR:
    return ServiceCIDR(draw(st.sampled_from(("kubernetes", "more"))), draw(subsets(SERVICE_PREFIXES)))


def api_objects() -> st.SearchStrategy[ApiObject]:
    return st.one_of(services(), endpoint_slices(), endpoint_slices(), nodes(NODE_NAMES), service_cidrs())


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """A cluster of up to three Services, four slices, this node and two ServiceCIDRs."""
    return Cluster(
        services=tuple(draw(services((name,))) for name in SERVICE_NAMES if draw(st.integers(0, 3))),
        slices=tuple(draw(endpoint_slices((name,))) for name in SLICE_NAMES if draw(st.integers(0, 3))),
        node=draw(st.none() | nodes()),
        service_cidrs=tuple(draw(st.lists(service_cidrs(), max_size=2, unique_by=lambda one: one.name))),
    )


def changes() -> st.SearchStrategy[Change]:
    """Any one change: of objects known or not, good or malformed."""
    keys = api_objects().map(lambda item: item.object_key)
    return st.one_of(
        *([api_objects().map(Upsert)] * 4),
        keys.map(Delete),
        keys.map(lambda key: Malformed(key, (Fault("spec", "is odd"),))),
        st.sampled_from(Kind).map(Synced),
    )


def histories(*, max_size: int = 12) -> st.SearchStrategy[list[Change]]:
    """What a source may say over time, one change after the other."""
    return st.lists(changes(), max_size=max_size)


def final_objects(history: Sequence[Change]) -> dict[ObjectKey, ApiObject]:
    """What is in force at the end of a history. A Node stays when it is deleted (service-semantics Z8)."""
    found: dict[ObjectKey, ApiObject] = {}
    for change in history:
        if isinstance(change, Upsert):
            found[change.key] = change.object
        elif isinstance(change, Delete) and change.key.kind is not Kind.NODE:
            found.pop(change.key, None)
    return found


@st.composite
def packets(draw: st.DrawFn, family: IPFamily | None = None) -> Packet:
    """Packets from every sort of origin to every sort of address that the strategies above hand out."""
    of_family = draw(st.sampled_from(IPFamily)) if family is None else family
    version = 4 if of_family is IPFamily.IPV4 else 6
    targets = [
        *CLUSTER_IPS[of_family],
        *(one for one in (*EXTERNAL_IPS, *VIPS, *NODE_ADDRESSES) if one.version == version),
        parse_address("10.96.77.77" if version == 4 else "fd00::7777"),
    ]
    return Packet(
        source=draw(st.sampled_from(SOURCES if version == 4 else SOURCES_V6)),
        destination=draw(st.sampled_from(sorted(set(targets), key=int))),
        protocol=draw(_PROTOCOLS),
        port=draw(st.sampled_from((*PORTS, *NODE_PORTS[1:], 9999))),
    )
