"""The lab against the oracle: what happens to a packet is what `decide` says, except where HNS is known not to do it.

Clusters, nodes and connections are drawn; every client asks every frontend. A difference that no shortfall and no
documented limit of HNS explains is a bug, of the dataplane, of the packet path, or of what we wrote about HNS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.api.change import Synced, Upsert
from hansa.api.objects import (
    ApiObject,
    EndpointSlice,
    Kind,
    Node,
    Policy,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from hansa.hns.emulator.builds import WIN11, WS2019, WS2022, WS2025
from hansa.hns.emulator.vswitch import spread
from hansa.hns.emulator.vswitch_model import Header
from hansa.lab.cluster import Cluster
from hansa.lab.cni import Cni, PodNetwork
from hansa.lab.diagnosis import contradictions, excuses
from hansa.lab.model import Lab, LabNode, LabPod, System
from hansa.lab.world import FIRST_PORT, Ask, Client, FromNode, FromOutside, FromPod, Journey, World, travel
from hansa.net import Address, Protocol, family_of, parse_address, parse_prefix
from hansa.rules.model import Forward, FrontendKind

CLUSTERS = 40  # examples; each sends some 250 packets or more
PACKETS = 5000  # at least, in one run
ROUNDS = 5  # at most: one is nearly always enough, but what is drawn may forward too few packets to prove much
OUTSIDE = parse_address("203.0.113.9")
OUTSIDE_V6 = parse_address("2001:db8:9::9")
BUILDS = (WS2022, WS2022, WIN11, WS2025, WS2019)
# Of an HNS that does these things in part, which says that some endpoints get nothing, and never that a client waits.
NARROWED = {"endpoint-ports", "backend-limit", "short-circuit"}
VIPS = tuple(parse_address(f"198.51.100.{number}") for number in range(40, 44))
VIPS_V6 = tuple(parse_address(f"2001:db8:7::{number}") for number in range(40, 44))
NODE_PORTS = (30480, 30481, 30482)
PORTS = (80, 443, 53)
UNUSED = (parse_address("172.21.99.99"), parse_address("192.0.2.250"), parse_address("fd21::9999"))
PROTOCOLS = (Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.SCTP)
CONDITIONS = ((True, True, False),) * 4 + ((False, True, True), (False, False, False), (False, False, True))
RANGES = tuple(parse_prefix(text) for text in ("203.0.113.0/24", "10.0.0.0/8", "198.18.0.0/15"))

seen: Counter[str] = Counter()


@st.composite
def labs(draw: st.DrawFn) -> Lab:
    network = draw(st.sampled_from(PodNetwork))
    build = draw(st.sampled_from(BUILDS))
    dual = network is PodNetwork.L2BRIDGE and build is not WS2019 and draw(st.booleans())  # hcn.md 3: WS2022 and later
    nodes = tuple(
        LabNode(
            name,
            system,
            _both(f"192.0.2.{number}", f"2001:db8:0:1::{number}", dual),
            tuple(parse_prefix(text) for text in (f"10.41.{number}.0/24", f"fd41:0:0:{number}::/64")[: 1 + dual]),
            build=build,
        )
        for name, system, number in (
            ("win-1", System.WINDOWS, 21),
            ("win-2", System.WINDOWS, 22),
            ("linux-1", System.LINUX, 11),
        )
    )
    pods = [
        LabPod("d", f"{node.name}-{number}", node.name, tuple(one[10 + number] for one in node.pod_cidrs))
        for node in nodes
        for number in range(2)
    ]
    if draw(st.booleans()):
        node = draw(st.sampled_from(nodes))
        pods.append(LabPod("d", "host", node.name, node.addresses, host_network=True))
    objects: list[ApiObject] = [Node(one.name, one.addresses, None, one.pod_cidrs) for one in nodes]
    cidrs = tuple(parse_prefix(text) for text in ("172.21.0.0/16", "fd21::/112")[: 1 + dual])
    objects.append(ServiceCIDR("kubernetes", cidrs))
    for number in range(draw(st.integers(1, 3))):
        service = draw(services(number, dual))
        objects.append(service)
        objects += draw(slices(service, tuple(pods)))
    return Lab(
        name="drawn",
        network=network,
        cni=draw(st.sampled_from(Cni)),
        vni=4100,
        pod_cidrs=tuple(parse_prefix(text) for text in ("10.41.0.0/16", "fd41::/32")[: 1 + dual]),
        service_cidrs=cidrs,
        nodes=nodes,
        pods=tuple(pods),
        outside=(OUTSIDE, OUTSIDE_V6),
        changes=(*(Upsert(one) for one in objects), *(Synced(kind) for kind in Kind)),
        settings={
            "winkernel": {"enableDSR": draw(st.booleans())},
            "nodePortAddresses": draw(st.sampled_from(([], [], [], ["198.18.0.0/15"], ["primary"], ["192.0.2.22/32"]))),
        },
        vips=frozenset((*VIPS, *VIPS_V6)),
        loopback_dsr=draw(st.booleans()),
    )


def _both(text: str, other: str, dual: bool) -> tuple[Address, ...]:
    return tuple(parse_address(one) for one in (text, other)[: 1 + dual])


@st.composite
def services(draw: st.DrawFn, number: int, dual: bool) -> Service:
    ports = tuple(
        ServicePortSpec(
            f"p{one}",
            draw(st.sampled_from(PROTOCOLS)),
            PORTS[one],
            draw(st.sampled_from((0, NODE_PORTS[number]))),
            8080,
        )
        for one in range(draw(st.integers(1, 2)))
    )
    keys = {(one.protocol, one.node_port) for one in ports if one.node_port}
    if len(keys) < sum(bool(one.node_port) for one in ports):  # the API server never gives a node port twice
        ports = ports[:1]
    return Service(
        namespace="d",
        name=f"s{number}",
        type=ServiceType.LOAD_BALANCER,
        cluster_ips=_both(f"172.21.30.{number + 1}", f"fd21::{number + 1}", dual),
        ports=ports,
        load_balancer_vips=(VIPS[number], VIPS_V6[number])[: 1 + dual] if draw(st.booleans()) else (),
        external_ips=(VIPS[3],) if number == 0 and draw(st.booleans()) else (),
        source_ranges=tuple(draw(st.lists(st.sampled_from(RANGES), max_size=1))),
        internal_policy=draw(st.sampled_from((Policy.CLUSTER, Policy.CLUSTER, Policy.LOCAL))),
        external_policy=draw(st.sampled_from((Policy.CLUSTER, Policy.LOCAL))),
        affinity_timeout_s=draw(st.sampled_from((None, None, 10800))),
        preserve_destination=draw(st.sampled_from((False, False, False, True))),
        created=float(number),
    )


@st.composite
def slices(draw: st.DrawFn, service: Service, pods: tuple[LabPod, ...]) -> list[EndpointSlice]:
    """One or two slices of each family; the second may have other target ports."""
    found = []
    for number, address in [
        (one, address) for one in range(draw(st.integers(1, 2))) for address in service.cluster_ips
    ]:
        family = family_of(address)
        chosen = draw(st.lists(st.sampled_from(pods), max_size=4, unique=True))
        target = draw(st.sampled_from((8080, 8080, 8080, 9090)))
        endpoints = tuple(
            _endpoint(own, draw(st.sampled_from(CONDITIONS)), pod.node)
            for pod in chosen
            if (own := pod.address(family)) is not None
        )
        ports = tuple(SlicePort(one.name, one.protocol, target) for one in service.ports)
        found.append(EndpointSlice("d", f"{service.name}-{number}-{family}", service.name, family, ports, endpoints))
    return found


def _endpoint(address: Address, conditions: tuple[bool, bool, bool], node: str) -> SliceEndpoint:
    ready, serving, terminating = conditions
    return SliceEndpoint(address, ready, serving, terminating, node)


def asks(lab: Lab) -> Iterator[Ask]:
    """Every client to every frontend, to some that nobody has, and pods to each other."""
    clients: list[tuple[Client, Address]] = [(FromPod(pod), address) for pod in lab.pods for address in pod.addresses]
    clients += [(FromNode(node.name), address) for node in lab.nodes for address in node.addresses]
    clients += [(FromOutside(address), address) for address in lab.outside]
    targets = set(_frontends(lab)) | {(address, 80, Protocol.TCP) for address in UNUSED}
    targets |= {(one, 8080, Protocol.TCP) for pod in lab.pods if not pod.host_network for one in pod.addresses}
    ordered = sorted(targets, key=lambda one: (int(one[0]), one[1], one[2].value))
    for number, (client, source) in enumerate(clients):
        for place, (destination, port, protocol) in enumerate(ordered):
            if destination.version != source.version or (destination == source and isinstance(client, FromPod)):
                continue  # a pod talks to itself without any node
            yield Ask(client, Header(source, FIRST_PORT + 97 * number + place, destination, port, protocol))


def _frontends(lab: Lab) -> Iterator[tuple[Address, int, Protocol]]:
    for change in lab.changes:
        if not isinstance(change, Upsert) or not isinstance(change.object, Service):
            continue
        service = change.object
        for one in service.ports:
            for address in (*service.cluster_ips, *service.load_balancer_vips, *service.external_ips):
                yield address, one.port, one.protocol
                yield address, 81, one.protocol  # of a known address another port
            if one.node_port:
                for node in lab.nodes:
                    for address in node.addresses:
                        yield address, one.node_port, one.protocol


def client_address_lost(world: World, journey: Journey) -> bool:
    """Traffic policy Local keeps the client's address at external frontends (X-rows); True if it did not."""
    rule = world.rule(journey.node, journey.met) if journey.node else None
    if rule is None or rule.kind is FrontendKind.CLUSTER_IP or not rule.local or journey.endpoint is None:
        return False
    outside = isinstance(journey.ask.client, FromOutside) and isinstance(journey.wanted, Forward)
    return outside and journey.endpoint.header.source != journey.ask.header.source


@settings(max_examples=CLUSTERS, suppress_health_check=list(HealthCheck), deadline=None)
@given(labs(), st.integers(0, 3))
def check_packets(lab: Lab, seed: int) -> None:
    cluster = Cluster(lab)
    cluster.settle()
    world = cluster.world()
    for ask in asks(lab):
        journey = travel(world, ask, choose=spread(seed))
        seen["packets"] += 1
        seen[type(journey.wanted).__name__ if journey.works else "lost"] += 1
        wrong = contradictions(world, journey)
        why = excuses(world, journey)
        if wrong and why:
            seen["excused: " + why[0].split(":")[0]] += 1
        story = "\n".join(f"{one.place} {one.text} | {one.after}" for one in journey.steps)
        assert why or not wrong, f"{ask.header} by {ask.client}: {wrong}; {journey.loss}\n{journey.wanted}\n{story}"
        if wrong and isinstance(journey.wanted, Forward) and {one.split(":")[0] for one in why} <= NARROWED:
            assert journey.works, f"{ask.header} by {ask.client}: {why} does not explain {journey.loss}\n{story}"
        if client_address_lost(world, journey):
            raise AssertionError(f"{ask.header}: the endpoint does not see the client\n{story}")


def test_packets_go_where_the_rules_want_them() -> None:
    seen.clear()
    for _ in range(ROUNDS):
        check_packets()
        if seen["packets"] >= PACKETS and seen["Forward"] > PACKETS // 10:
            break
    assert seen["packets"] >= PACKETS, seen
    assert seen["Forward"] > PACKETS // 10, seen
    assert seen["lost"] > PACKETS // 100, seen
