"""The dataplane on the kernel through churn, vandals, restarts and time."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network

import pytest
from tests.host.linux.namespaces import LIMIT_S, Lab, Namespace, missing, namespace

from hansa.dataplanes.nftables import plan as planning
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.dataplanes.nftables.frame import PICKS, is_of_flavours
from hansa.dataplanes.nftables.objects import Do, Target
from hansa.dataplanes.nftables.render import render
from hansa.net import IPFamily, Packet, Protocol, parse_address
from hansa.rules.model import Because, Drop, Forward, FrontendKey, FrontendKind, Reject, Rule, RuleChanges, Surroundings
from hansa.services.model import Endpoint, ServicePortName
from hansa.testing import NODE_FACTS, Client

WHY_NOT = missing()
pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]

V4 = IPFamily.IPV4
SURROUNDINGS = Surroundings(
    NODE_FACTS,
    pod_prefixes={V4: ip_network("10.1.0.0/16")},
    service_cidrs=(ip_network("10.96.0.0/16"),),
)
CLUSTER_IP = parse_address("10.96.0.10")
L1, L2, R1 = (Endpoint(parse_address(text), 8080) for text in ("10.1.1.11", "10.1.1.12", "10.1.2.21"))


def forward_rule(
    key: FrontendKey, *endpoints: Endpoint, owner: str = "web", affinity_timeout_s: int | None = None
) -> Rule:
    pod = Forward(endpoints, False, Because.CLUSTER_POLICY)
    rest = Forward(endpoints, True, Because.CLUSTER_POLICY)
    name = ServicePortName("d", owner, "http", key.protocol)
    kind = FrontendKind.NODE_PORT if key.address is None else FrontendKind.CLUSTER_IP
    return Rule(kind, key, name, pod, rest, rest, affinity_timeout_s=affinity_timeout_s)


def tcp(port: int = 80, protocol: Protocol = Protocol.TCP) -> FrontendKey:
    return FrontendKey(V4, CLUSTER_IP, protocol, port)


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespace("churn") as found:
        yield found


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    found = Lab()
    try:
        found.create()
        for endpoint in (L1, L2, R1):
            for protocol in (Protocol.TCP, Protocol.UDP):
                found.ensure_endpoint(endpoint.address, endpoint.port, protocol)
        yield found
    finally:
        found.delete()


def random_rule(chance: random.Random, number: int) -> Rule:
    address = None if chance.random() < 0.2 else parse_address(f"10.96.1.{number}")
    key = FrontendKey(V4, address, chance.choice((Protocol.TCP, Protocol.UDP, Protocol.SCTP)), 1000 + number)
    pool = [Endpoint(parse_address(f"10.1.1.{one}"), 8080) for one in range(1, 9)]
    owner = ServicePortName("d", f"svc{number}", "http", key.protocol)
    cluster = tuple(chance.sample(pool, chance.randint(1, 6)))
    local = tuple(chance.sample(pool, chance.randint(1, 3)))
    kind = FrontendKind.NODE_PORT if address is None else FrontendKind.LOAD_BALANCER_IP
    ranges = (ip_network("10.0.0.0/8"), ip_network("198.51.100.0/25")) if address and chance.random() < 0.3 else None
    affinity = chance.choice((None, None, 60, 10800))
    nobody = Reject(Because.NO_ENDPOINTS)
    outside = chance.choice((Forward(local, False, Because.LOCAL_POLICY), Drop(Because.NO_LOCAL_ENDPOINTS)))
    pod, node = (Forward(cluster, masquerade, Because.SHORT_CIRCUIT) for masquerade in (False, True))
    actions = chance.choice(((nobody, nobody, nobody), (pod, node, outside), (pod, node, node), (node, node, node)))
    return Rule(kind, key, owner, *actions, source_ranges=ranges, affinity_timeout_s=affinity)


def check(space: Namespace, host: KernelRuleset, rules: dict[FrontendKey, Rule]) -> None:
    """The kernel holds what a fresh start would load, numbers of affinity and spare chains aside."""
    wanted = render(rules.values(), SURROUNDINGS, V4)[0]
    found = host.read(V4)
    assert found is not None
    for name, elements in wanted.elements.items():
        if "sticky" in name:
            assert len(found.elements[name]) == len(elements), name
            found.elements[name] = elements
    for name in found.chains.keys() - wanted.chains.keys():
        assert is_of_flavours(name)
        del found.chains[name]
        found.elements[PICKS] = {key: one for key, one in found.elements[PICKS].items() if one != Target(Do.GOTO, name)}
    step, changes = planning.compare(wanted, wire.judge(found, wanted))
    assert not step, changes


@pytest.mark.parametrize("seed", range(4))
def test_churn_with_vandals_and_restarts(space: Namespace, seed: int) -> None:
    chance = random.Random(seed)
    host = space.call(KernelRuleset)
    with closing(host):
        dataplane = NftablesDataplane(host)
        rules: dict[FrontendKey, Rule] = {}
        dataplane.sync(RuleChanges({}, SURROUNDINGS, complete=True), now=0, audit=False)
        for turn in range(40):
            changes: dict[FrontendKey, Rule | None] = {}
            for _ in range(chance.randint(1, 4)):
                rule = random_rule(chance, chance.randrange(12))
                changes[rule.key] = rule
            for key in list(rules):
                if chance.random() < 0.1:
                    changes.setdefault(key, None)
            event = chance.random()
            if event < 0.15:
                vandalize(space, chance)
            elif event < 0.25:
                dataplane = NftablesDataplane(host)
                dataplane.sync(RuleChanges(dict(rules), SURROUNDINGS, complete=True), now=turn, audit=False)
            report = dataplane.sync(RuleChanges(changes, SURROUNDINGS), now=turn, audit=False)
            assert report.ok, report.conditions
            for key, change in changes.items():
                if change is None:
                    rules.pop(key, None)
                else:
                    rules[key] = change
            if chance.random() < 0.5:
                assert dataplane.sync(RuleChanges({}, SURROUNDINGS), now=turn, audit=True).ok
                check(space, host, rules)
        assert dataplane.sync(RuleChanges({}, SURROUNDINGS), now=99, audit=True).ok
        check(space, host, rules)


VANDALS = (
    "flush ruleset",
    "delete table ip hansa",
    "flush map ip hansa slots",
    "flush map ip hansa services",
    "flush chain ip hansa dispatch",
    "add rule ip hansa prerouting accept",
    "insert rule ip hansa dispatch drop",
    "add chain ip hansa stray",
    "add set ip hansa stray { type ipv4_addr; }",
    "add element ip hansa services { 9.9.9.9 . tcp . 9 : 1:1 }",
    "add element ip hansa picks { 7:7 : drop }",
    "add element ip hansa cluster-ips { 9.9.9.9 }",
    "add element ip hansa services { 9.9.9.9 . esp . 9 : 9:9 }",
    "add element ip hansa picks { 8:8 : accept }",
    "flush map ip hansa picks",
    "add element ip hansa permitted-sources { 9.9.9.9 . tcp . 9 . 9.9.0.0/16 }",
    "add chain ip hansa late { type filter hook forward priority 0; policy drop; }",
    "add table ip another",
)


def vandalize(space: Namespace, chance: random.Random) -> None:
    space.nft("-f", "-", stdin=chance.choice(VANDALS) + "\n")


@pytest.mark.parametrize("vandal", VANDALS)
def test_an_audit_mends_what_others_did(space: Namespace, vandal: str) -> None:
    """ARCHITECTURE 1.3: without any event from the API."""
    host = space.call(KernelRuleset)
    with closing(host):
        rules = {rule.key: rule for rule in (forward_rule(tcp(), L1, R1), forward_rule(tcp(81), L2))}
        dataplane = NftablesDataplane(host)
        message = RuleChanges(dict(rules), SURROUNDINGS, complete=True)
        dataplane.sync(message, now=0, audit=False)
        space.nft("-f", "-", stdin=vandal + "\n")
        report = dataplane.sync(RuleChanges({}, SURROUNDINGS), now=1, audit=True)
        assert report.ok
        assert bool(report.drift) == (vandal != "add table ip another"), report
        check(space, host, rules)
        assert "another" not in vandal or "table ip another" in space.nft("list", "ruleset")
        assert "another" not in vandal or report.host_calls == 1, "other tables are nobody's business"
        quiet = dataplane.sync(RuleChanges({}, SURROUNDINGS), now=2, audit=True)
        assert (quiet.results, quiet.host_calls) == ((), 1)


def test_a_change_of_the_surroundings_exchanges_chains_only(space: Namespace) -> None:
    host = space.call(KernelRuleset)
    with closing(host):
        rules = {rule.key: rule for rule in (forward_rule(tcp(), L1, R1),)}
        dataplane = NftablesDataplane(host)
        dataplane.sync(RuleChanges(dict(rules), SURROUNDINGS, complete=True), now=0, audit=False)
        other = replace(SURROUNDINGS, pod_prefixes={V4: ip_network("10.2.0.0/15")}, service_cidrs=())
        assert dataplane.sync(RuleChanges(dict(rules), other, complete=True), now=1, audit=False).ok
        found = host.read(V4)
        wanted = render(rules.values(), other, V4)[0]
        assert found is not None
        assert not planning.compare(wanted, wire.judge(found, wanted))[0]
        assert "10.2.0.0/15" in space.nft("list", "table", "ip", "hansa")


def test_the_refusal_of_the_kernel_names_the_object(space: Namespace) -> None:
    host = space.call(KernelRuleset)
    with closing(host):
        host.commit(planning.creation(render([forward_rule(tcp(), L1)], SURROUNDINGS, V4)[0]))
        key = bytes(12)
        with pytest.raises(planning.Refused, match=r"delete in services: 0\.0\.0\.0 \. .*ENOENT"):
            host.commit(planning.Transaction(V4, (planning.DeleteElements("services", {key: b""}),)))


# -- traffic ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataplane(lab: Lab) -> Iterator[NftablesDataplane]:
    lab.node.nft("flush", "ruleset")
    found = NftablesDataplane(lab.node.call(KernelRuleset))
    found.sync(RuleChanges({}, SURROUNDINGS, complete=True), now=0, audit=False)
    yield found
    lab.close_connections()
    found.close()


def put(dataplane: NftablesDataplane, *rules: Rule) -> None:
    assert dataplane.sync(RuleChanges({rule.key: rule for rule in rules}, SURROUNDINGS), now=1, audit=False).ok


def remembered(lab: Lab) -> list[int]:
    """The seconds that are left to each entry of the memory; nft prints them as `9s996ms`."""
    text = lab.node.nft("list", "map", "ip", "hansa", "affinity")
    left = []
    for entry in re.findall(r"expires ([0-9a-z]+)", text):
        units = {unit: int(number) for number, unit in re.findall(r"(\d+)(ms|[smhd])", entry)}
        left.append(units.get("d", 0) * 86400 + units.get("h", 0) * 3600 + units.get("m", 0) * 60 + units.get("s", 0))
    return left


@pytest.mark.scenario("t154")
def test_the_timer_is_the_services_and_restarts_with_each_connection(lab: Lab, dataplane: NftablesDataplane) -> None:
    """Y2, Y5."""
    packet = Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80)
    put(dataplane, forward_rule(tcp(), L1, R1, affinity_timeout_s=10800))
    first = lab.send(packet)
    (left,) = remembered(lab)
    assert 10790 < left <= 10800
    time.sleep(1.2)
    assert remembered(lab)[0] < left
    assert lab.send(packet).endpoint == first.endpoint
    assert remembered(lab)[0] >= 10798


@pytest.mark.scenario("t150")
@pytest.mark.scenario("t151")
def test_memory_ends_after_the_timeout(lab: Lab, dataplane: NftablesDataplane) -> None:
    """With two seconds instead of sixty: used every second it lasts, idle it goes."""
    packet = Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80)
    put(dataplane, forward_rule(tcp(), L1, L2, R1, affinity_timeout_s=2))
    first = lab.send(packet)
    for _ in range(3):
        time.sleep(1)
        assert lab.send(packet).endpoint == first.endpoint
    assert remembered(lab)
    time.sleep(2.1)
    met = set()
    for _ in range(60):
        if not remembered(lab) and len(met) < 2:
            met.add(lab.send(packet).endpoint)
            lab.node.nft("flush", "map", "ip", "hansa", "affinity")
    assert len(met) == 2


@pytest.mark.scenario("t155")
def test_memory_survives_changes_of_others_and_of_other_endpoints(lab: Lab, dataplane: NftablesDataplane) -> None:
    """Y7, Y8."""
    packet = Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80)
    put(dataplane, forward_rule(tcp(), L1, L2, R1, affinity_timeout_s=60))
    first = lab.send(packet).endpoint
    assert first is not None
    others = [one for one in (L1, L2, R1) if one.address != first[0]]
    kept = next(one for one in (L1, L2, R1) if one.address == first[0])
    for endpoints in ((kept, others[0]), (others[1], kept), (L1, L2, R1), (kept,)):
        put(dataplane, forward_rule(tcp(), *endpoints, affinity_timeout_s=60))
        put(dataplane, forward_rule(tcp(81), L2, owner="api", affinity_timeout_s=60))
        assert lab.send(packet).endpoint == first
    put(dataplane, forward_rule(tcp(), *others, affinity_timeout_s=60))
    second = lab.send(packet).endpoint
    assert second != first
    put(dataplane, forward_rule(tcp(), L1, L2, R1, affinity_timeout_s=60))
    assert {lab.send(packet).endpoint for _ in range(5)} == {second}


def test_an_endpoint_that_comes_back_is_not_remembered(lab: Lab, dataplane: NftablesDataplane) -> None:
    """Y7: what was remembered of a removed endpoint is gone, even if nobody asked meanwhile."""
    packets = [Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80), Packet(Client.X, CLUSTER_IP, Protocol.TCP, 80)]
    put(dataplane, forward_rule(tcp(), L1, affinity_timeout_s=60))
    for packet in packets:
        lab.send(packet)
    put(dataplane, forward_rule(tcp(), L2, affinity_timeout_s=60))
    put(dataplane, forward_rule(tcp(), L1, L2, R1, affinity_timeout_s=60))
    met = set()
    for _ in range(60):
        met.add(lab.send(packets[0]).endpoint)
        lab.node.nft("flush", "map", "ip", "hansa", "affinity")
        if len(met) == 3:
            break
    assert len(met) == 3
    assert lab.send(packets[1]).what == "forwarded"


def test_the_choice_is_uniform(lab: Lab, dataplane: NftablesDataplane) -> None:
    """Y1. 300 datagrams to three endpoints: fewer than 60 at one of them happens once in ten million runs."""
    rule = forward_rule(tcp(53, Protocol.UDP), L1, L2, R1)
    put(dataplane, rule)
    met: dict[object, int] = {}
    for _ in range(300):
        seen = lab.send(Packet(Client.P, CLUSTER_IP, Protocol.UDP, 53))
        met[seen.endpoint] = met.get(seen.endpoint, 0) + 1
    assert len(met) == 3
    assert min(met.values()) >= 60, met


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("source", [Client.P, Client.N, Client.X])
def test_stream_and_datagram(lab: Lab, dataplane: NftablesDataplane, protocol: Protocol, source: object) -> None:
    put(dataplane, forward_rule(tcp(80, protocol), L1, R1))
    seen = lab.send(Packet(source, CLUSTER_IP, protocol, 80))  # type: ignore[arg-type]
    assert seen.what == "forwarded"
    rewritten = (seen.source, seen.source_port) != (source, seen.sent_port)
    assert rewritten == (source != Client.P)


def test_sctp(lab: Lab, dataplane: NftablesDataplane) -> None:
    """The kernel here may have no SCTP sockets: an INIT chunk by hand, looked for where it should arrive."""
    put(dataplane, forward_rule(tcp(80, Protocol.SCTP), R1))
    assert lab.send_sctp(Client.P, CLUSTER_IP, 80, at=R1.address) == (Client.P, 8080)
    assert lab.send_sctp(Client.X, CLUSTER_IP, 80, at=R1.address) == (parse_address("192.0.2.1"), 8080)


def test_established_connections_go_on_when_the_last_endpoint_goes(lab: Lab, dataplane: NftablesDataplane) -> None:
    """R9, t145."""
    packet = Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80)
    put(dataplane, forward_rule(tcp(), L1))
    seen, alive = lab.open(packet)
    assert seen.what == "forwarded"
    nobody = Reject(Because.NO_ENDPOINTS)
    put(dataplane, replace(forward_rule(tcp(), L1), pod=nobody, node=nobody, outside=nobody))
    assert alive()
    assert lab.send(packet).what == "refused"


def test_many_connections_during_changes_meet_only_endpoints(lab: Lab, dataplane: NftablesDataplane) -> None:
    """Make before break: while endpoints change all the time, no connection is refused, lost or left untranslated."""
    packet = Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80)
    chance = random.Random(1)
    pool = (L1, L2, R1)
    put(dataplane, forward_rule(tcp(), *pool))
    for _ in range(80):
        put(dataplane, forward_rule(tcp(), *chance.sample(pool, chance.randint(1, 3))))
        seen = lab.send(packet, patience_s=LIMIT_S)
        assert seen.what == "forwarded"


def test_localhost_node_ports(lab: Lab) -> None:
    """N11: on 127.0.0.1, masqueraded; nobody else gets at what listens on loopback."""
    surroundings = replace(SURROUNDINGS, localhost_node_ports=True)
    rule = forward_rule(FrontendKey(V4, None, Protocol.TCP, 30080), R1)
    rule = replace(rule, pod=rule.node)
    lab.node.nft("flush", "ruleset")
    dataplane = NftablesDataplane(lab.node.call(KernelRuleset))
    with closing(dataplane):
        message = RuleChanges({rule.key: rule}, surroundings, complete=True)
        assert lab.node.call(lambda: dataplane.sync(message, now=0, audit=False)).ok
        loopback = parse_address("127.0.0.1")
        seen = lab.send(Packet(loopback, loopback, Protocol.TCP, 30080))
        assert (seen.what, seen.source) == ("forwarded", parse_address("192.0.2.1"))
        lab.close_connections()


@pytest.mark.parametrize("affinity_timeout_s", [None, 60])
@pytest.mark.parametrize("source", [Client.P, Client.N, Client.X])
def test_no_packet_leaves_with_a_number_of_ours(
    lab: Lab, dataplane: NftablesDataplane, source: object, affinity_timeout_s: int | None
) -> None:
    """The priority carries numbers from rule to rule; queues behind the node must not see them."""
    lab.node.nft(
        "-f",
        "-",
        stdin="table inet watch {\nchain last {\ntype filter hook postrouting priority 500;\n"
        "ct status dnat counter comment ours\n"
        "ct status dnat meta priority & ffff:0 != none counter comment leaks\n}\n}\n",
    )
    put(dataplane, forward_rule(tcp(), L1, R1, affinity_timeout_s=affinity_timeout_s))
    assert lab.send(Packet(source, CLUSTER_IP, Protocol.TCP, 80)).what == "forwarded"  # type: ignore[arg-type]
    listed = lab.node.nft("list", "table", "inet", "watch")
    assert re.search(r'counter packets [1-9]\d* bytes \d+ comment "ours"', listed)
    assert re.search(r'counter packets 0 bytes 0 comment "leaks"', listed)


NODE_ADDRESS = parse_address("192.0.2.1")
HOST_NETWORK = Endpoint(NODE_ADDRESS, 8088, local=True)


@pytest.mark.parametrize("source", [Client.P, Client.Q, Client.N, Client.X])
@pytest.mark.parametrize("affinity_timeout_s", [None, 60])
@pytest.mark.parametrize("more", [(), (L1,)])
def test_endpoints_on_the_nodes_own_address(
    lab: Lab, dataplane: NftablesDataplane, source: object, affinity_timeout_s: int | None, more: tuple[Endpoint, ...]
) -> None:
    """A hostNetwork pod of this node: whoever asks gets there and gets answers, and a pod keeps its address (M1).

    What is delivered on the node itself passes no postrouting, so nobody from elsewhere is masqueraded: answers come
    from here anyway.
    """
    lab._listen("node", Protocol.TCP, str(NODE_ADDRESS), HOST_NETWORK.port)
    put(dataplane, forward_rule(tcp(), HOST_NETWORK, *more, affinity_timeout_s=affinity_timeout_s))
    met = set()
    for _ in range(12):
        seen, alive = lab.open(Packet(source, CLUSTER_IP, Protocol.TCP, 80))  # type: ignore[arg-type]
        assert seen.what == "forwarded"
        assert alive()
        met.add(seen.endpoint)
        if seen.endpoint == (NODE_ADDRESS, HOST_NETWORK.port) and source != Client.N:
            assert seen.source == source
        lab.close_connections()
    assert (NODE_ADDRESS, HOST_NETWORK.port) in met or more


@pytest.mark.parametrize("affinity_timeout_s", [None, 60])
def test_an_endpoint_that_is_given_to_itself(
    lab: Lab, dataplane: NftablesDataplane, affinity_timeout_s: int | None
) -> None:
    """M6, with the way through a node port as well: the pod sees the node's address, and the connection lives."""
    put(
        dataplane,
        forward_rule(tcp(), L1, affinity_timeout_s=affinity_timeout_s),
        replace(forward_rule(FrontendKey(V4, None, Protocol.TCP, 30080), L1), affinity_timeout_s=affinity_timeout_s),
    )
    for target, port in ((CLUSTER_IP, 80), (NODE_ADDRESS, 30080)):
        seen, alive = lab.open(Packet(L1.address, target, Protocol.TCP, port))
        assert (seen.what, seen.endpoint) == ("forwarded", (L1.address, L1.port))
        assert seen.source not in (L1.address, None)
        assert alive()
        lab.close_connections()
