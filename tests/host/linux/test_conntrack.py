"""Stale UDP flows on the real kernel: real flows between namespaces, and the conntrack program as second opinion."""

from __future__ import annotations

import re
import select
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import pytest
from tests.host.linux.namespaces import LIMIT_S, Lab, Namespace, missing, namespace, run

from hansa.api.change import Change, Delete, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, ServiceType, SliceEndpoint
from hansa.dataplanes.base import SyncReport
from hansa.dataplanes.conntrack import Connections
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.net import Address, IPFamily, Packet, Protocol, address_port, parse_address
from hansa.netlink import conntrack
from hansa.netlink.connections import KernelConnections, MemoryConnections
from hansa.netlink.conntrack import Entries, Entry
from hansa.netlink.socket import NetfilterSocket
from hansa.pipeline import Pipeline
from hansa.testing import (
    L1,
    NODE,
    NODE_ADDRESSES,
    R1,
    Client,
    config,
    endpoint,
    endpoint_slice,
    port,
    service,
    slice_port,
)

WHY_NOT = missing() or ("" if shutil.which("conntrack") else "needs the program conntrack (apt-get install conntrack)")
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("conntrack"),
]

V4, V6, UDP = IPFamily.IPV4, IPFamily.IPV6, Protocol.UDP
# With two endpoints, the chance to miss one of them in so many tries is one in a billion.
TRIES = 30
CLUSTER_IP, CLUSTER_IP_V6 = parse_address("10.96.0.10"), parse_address("fd00::10")
ELSEWHERE = parse_address("8.8.8.8")
L1_V6, R1_V6 = endpoint("fd01:0:0:1::11", node="n1"), endpoint("fd01:0:0:2::21", node="n2")
PORTS = (port("dns", 53, protocol=UDP, node_port=30053, target_port=53),)
DNS = service("dns", type=ServiceType.NODE_PORT, ports=PORTS, cluster_ips=(CLUSTER_IP, CLUSTER_IP_V6))


def dns_slice(*endpoints: SliceEndpoint, number: int = 53, family: IPFamily = V4) -> EndpointSlice:
    ports = (slice_port("dns", number, protocol=UDP),)
    return endpoint_slice(f"dns-{family}", endpoints, service="dns", ports=ports, family=family)


class Flow(NamedTuple):
    """An entry as the conntrack program prints it."""

    protocol: str
    source: str
    target: str
    answered_by: str


FIELDS = re.compile(r"(src|dst|sport|dport)=(\S+)")


def flows(space: Namespace, protocol: str = "udp", family: str = "ipv4") -> set[Flow]:
    command = ("nsenter", f"--net=/run/netns/{space.name}", "conntrack", "-L", "-p", protocol, "-f", family)
    found = set()
    for line in run(*command).splitlines():
        (_, source), (_, target), (_, sport), (_, dport), (_, answered_by), _, (_, answered_from), _ = FIELDS.findall(
            line
        )
        ends = ((source, sport), (target, dport), (answered_by, answered_from))
        found.add(Flow(protocol, *(address_port(parse_address(one), int(number)) for one, number in ends)))
    return found


class Conversation:
    """One UDP socket that keeps asking one target, as a resolver does: one flow without an end."""

    def __init__(self, lab: Lab, source: Address, target: Address, number: int) -> None:
        self.lab, self.target = lab, (str(target), number)

        def make() -> socket.socket:
            found = socket.socket(socket.AF_INET if source.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
            found.bind((str(source), 0))
            found.connect(self.target)
            found.setblocking(False)
            return found

        self.socket = lab.spaces[lab.owners[source]].call(make)
        self.source = address_port(source, self.socket.getsockname()[1])

    def ask(self) -> str:
        """Where the question arrives: an endpoint, `untouched` (where it was sent to), or `refused`."""
        listeners = {one: (name, text, number) for (name, protocol, text, number), one in self.lab.listeners.items()
                     if protocol is UDP}  # fmt: skip
        self.socket.send(b"?")
        readable, _, _ = select.select([*listeners, self.socket], [], [], LIMIT_S)
        assert readable, f"{self.source} -> {self.target}: nothing came"
        if self.socket in readable:
            with pytest.raises(ConnectionRefusedError):
                self.socket.recv(1)
            return "refused"
        [arrived] = readable
        arrived.recv(1)
        name, text, number = listeners[arrived]
        return "untouched" if name == "world" else address_port(parse_address(text), number)


class CountingConnections(KernelConnections):
    listings = 0

    def list(self, family: IPFamily, protocol: Protocol) -> Entries:
        self.listings += 1
        return super().list(family, protocol)


class Stage:
    """The standing example's node with hansa on it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pipeline = Pipeline(config(), NODE_ADDRESSES)
        self.pipeline.apply([Upsert(NODE), *(Synced(kind) for kind in Kind)])
        self.connections = lab.node.call(CountingConnections)
        self.dataplane = NftablesDataplane(lab.node.call(KernelRuleset), connections=self.connections)
        self.conversations: list[Conversation] = []
        self.say()

    def close(self) -> None:
        self.dataplane.close()
        self.lab.close_connections()
        for one in self.conversations:
            one.socket.close()

    def say(self, *changes: Change) -> SyncReport:
        self.pipeline.apply(changes)
        message = self.pipeline.take()
        assert message is not None
        for rule in message.rules.values():
            for one in rule.endpoints if rule is not None else ():
                assert rule is not None
                self.lab.ensure_endpoint(one.address, one.port, rule.key.protocol)
        report = self.dataplane.sync(message, now=0.0, audit=False)
        assert report.ok, report
        return report

    def conversation(
        self, arriving: str, *, source: Address = Client.P, target: Address = CLUSTER_IP, number: int = 53
    ) -> Conversation:
        """A conversation whose questions arrive at the place."""
        for _ in range(TRIES):
            found = Conversation(self.lab, source, target, number)
            self.conversations.append(found)
            if found.ask() == arriving:
                return found
        raise AssertionError(f"nothing sent to {target}:{number} arrives at {arriving}")

    def kept(self, conversation: Conversation, *, family: str = "ipv4") -> bool:
        return any(one.source == conversation.source for one in flows(self.lab.node, "udp", family))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    found = Lab()
    try:
        found.create()
        found.spaces["world"].command(f"route add local {ELSEWHERE} dev lo")
        for number in (53, 30053):
            found._listen("world", UDP, "0.0.0.0", number)
        yield found
    finally:
        found.delete()


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    lab.node.nft("flush", "ruleset")
    run("nsenter", f"--net=/run/netns/{lab.node.name}", "conntrack", "-F")
    with closing(Stage(lab)) as found:
        yield found


@pytest.mark.scenario("t173")
def test_flows_to_an_endpoint_that_went_are_cut(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    stale, good = stage.conversation("10.1.1.11:53"), stage.conversation("10.1.2.21:53")
    stage.say(Upsert(dns_slice(R1)))
    assert not stage.kept(stale)
    assert stage.kept(good)
    assert all(one.answered_by != "10.1.1.11:53" for one in flows(stage.lab.node))
    assert stale.ask() == "10.1.2.21:53"


def test_without_cutting_the_client_stays_with_the_endpoint_that_went(stage: Stage) -> None:
    """What all this is for: the rules alone do not reach a flow that has begun."""
    stage.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    stale = stage.conversation("10.1.1.11:53")
    stage.dataplane.close()
    stage.dataplane = NftablesDataplane(stage.lab.node.call(KernelRuleset))
    stage.pipeline.apply([Upsert(dns_slice(R1))])
    message = stage.pipeline.take(full=True)
    assert message is not None
    assert stage.dataplane.sync(message, now=0.0, audit=False).ok
    assert stale.ask() == "10.1.1.11:53"


@pytest.mark.scenario("t173")
def test_flows_of_ipv6(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1_V6, R1_V6, family=V6)))
    source = parse_address("fd01:0:0:1::5")
    stale = stage.conversation("[fd01:0:0:1::11]:53", source=source, target=CLUSTER_IP_V6)
    good = stage.conversation("[fd01:0:0:2::21]:53", source=source, target=CLUSTER_IP_V6)
    stage.say(Upsert(dns_slice(R1_V6, family=V6)))
    assert not stage.kept(stale, family="ipv6")
    assert stage.kept(good, family="ipv6")
    assert stale.ask() == "[fd01:0:0:2::21]:53"


@pytest.mark.scenario("t174")
def test_flows_to_an_endpoint_that_serves_while_it_terminates_go_on(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    draining = stage.conversation("10.1.1.11:53")
    stage.say(Upsert(dns_slice(replace(L1, ready=False, serving=True, terminating=True), R1)))
    assert stage.kept(draining)
    assert draining.ask() == "10.1.1.11:53"


@pytest.mark.scenario("t175")
def test_tcp_is_never_touched(stage: Stage) -> None:
    both = replace(DNS, ports=(*PORTS, port("dns-tcp", 53, target_port=53)))
    ports = (slice_port("dns", 53, protocol=UDP), slice_port("dns-tcp", 53))
    stage.say(Upsert(both), Upsert(replace(dns_slice(L1), ports=ports)))
    seen, alive = stage.lab.open(Packet(Client.P, CLUSTER_IP, Protocol.TCP, 53))
    assert seen.endpoint == (L1.address, 53)
    before = flows(stage.lab.node, "tcp")
    stage.conversation("10.1.1.11:53")
    stage.say(Upsert(replace(dns_slice(), ports=ports)))
    assert flows(stage.lab.node) == set()
    assert flows(stage.lab.node, "tcp") == before != set()
    assert alive()


@pytest.mark.scenario("t176")
def test_untranslated_flows_are_cut_when_the_first_endpoint_comes(stage: Stage) -> None:
    early = stage.conversation("untouched")
    stage.say(Upsert(DNS))
    stage.conversation("refused")
    stage.say(Upsert(dns_slice(L1)))
    assert early.ask() == "10.1.1.11:53"


@pytest.mark.scenario("t177")
def test_all_flows_are_cut_when_the_last_endpoint_goes(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    both = [stage.conversation("10.1.1.11:53"), stage.conversation("10.1.2.21:53")]
    stage.say(Upsert(dns_slice()))
    assert flows(stage.lab.node) == set()
    assert [one.ask() for one in both] == ["refused", "refused"]


@pytest.mark.scenario("t178")
def test_flows_of_a_deleted_service_are_cut(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
    stale = stage.conversation("10.1.1.11:53")
    at_node = stage.conversation("10.1.1.11:53", source=Client.X, target=Client.N, number=30053)
    stage.say(Delete(DNS.object_key))
    assert not stage.kept(stale)
    assert not stage.kept(at_node)
    assert stale.ask() == "untouched"


@pytest.mark.scenario("t178")
def test_a_service_deleted_while_hansa_was_away(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
    stale = stage.conversation("10.1.1.11:53")
    stage.close()
    with closing(Stage(stage.lab)):
        assert not stage.kept(stale)


@pytest.mark.scenario("t179")
def test_at_a_node_port_only_flows_to_this_node_are_cut(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1, R1)))
    stale = stage.conversation("10.1.1.11:53", source=Client.X, target=Client.N, number=30053)
    elsewhere = stage.conversation("untouched", target=ELSEWHERE, number=30053)
    stage.say(Upsert(dns_slice(R1)))
    assert not stage.kept(stale)
    assert stage.kept(elsewhere)
    assert stale.ask() == "10.1.2.21:53"


@pytest.mark.scenario("t180")
def test_flows_to_a_port_that_an_endpoint_left_are_cut(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
    stale = stage.conversation("10.1.1.11:53")
    stage.say(Upsert(dns_slice(L1, number=5353)))
    assert stale.ask() == "10.1.1.11:5353"


@pytest.mark.scenario("t181")
def test_a_change_of_tcp_alone_causes_no_scan(stage: Stage) -> None:
    stage.say(Upsert(DNS), Upsert(dns_slice(L1)))
    stage.connections.listings = 0
    stage.say(Upsert(service("web", cluster_ips=("10.96.0.11",))), Upsert(endpoint_slice("web-a", [L1])))
    stage.say(Upsert(endpoint_slice("web-a", [R1])))
    assert stage.connections.listings == 0


# -- the table itself ------------------------------------------------------------------------------------------------


def entries_of(table: Connections) -> set[Flow]:
    found = table.list(V4, UDP)
    assert found.whole
    return {
        Flow("udp", *(address_port(parse_address(one), number) for one, number in ends))
        for ends in map(ends_of, found.entries)
    }


def ends_of(entry: Entry) -> list[tuple[str, int]]:
    pairs = ((entry.source, entry.source_port), (entry.destination, entry.destination_port),
             (entry.answered_by, entry.answered_from))  # fmt: skip
    return [(socket.inet_ntop(socket.AF_INET, address), number) for address, number in pairs]


NAT = """
table ip nat {
  chain output { type nat hook output priority -100; udp dport 53 dnat to 127.0.0.9:5353; }
}
"""


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespace("connections") as found:
        found.nft("-f", "-", stdin=NAT)
        yield found


def send(space: Namespace, *ports: int) -> None:
    """One datagram to each port of another address, each from a port of its own: 10000, 10001 and so on."""

    def work() -> None:
        for source_port, number in enumerate(ports, 10000):
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one:
                one.bind(("127.0.0.1", source_port))
                one.sendto(b"?", ("127.0.0.8", number))

    space.call(work)


def test_the_table_is_listed_as_the_conntrack_program_lists_it(space: Namespace) -> None:
    send(space, *[53, 54] * 200)

    def stream() -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            socket.create_connection(server.getsockname()).close()

    space.call(stream)
    with closing(space.call(KernelConnections)) as table:
        expected = flows(space)
        assert len(expected) == 400
        assert entries_of(table) == expected
    assert flows(space, "tcp")
    with closing(space.call(NetfilterSocket)) as raw:
        listed = raw.dump(conntrack.message_type(conntrack.GET_ENTRY), conntrack.listing(V4, UDP))
        assert len(listed) == 400, "the kernel itself leaves other protocols out"


@pytest.mark.parametrize("kind", ["memory", "kernel"])
def test_both_tables_delete_alike(space: Namespace, kind: str) -> None:
    send(space, 53, 54)
    kernel = space.call(KernelConnections)
    listed = kernel.list(V4, UDP).entries
    table: Connections = kernel if kind == "kernel" else MemoryConnections(listed)
    first, second = listed
    assert table.delete(first)
    assert not table.delete(first)
    assert table.list(V4, UDP) == Entries([second], whole=True)
    assert table.list(V6, UDP) == Entries([], whole=True)
    assert table.list(V4, Protocol.TCP) == Entries([], whole=True)
    table.close()
    kernel.close()


def test_another_connection_with_the_same_addresses_stays(space: Namespace) -> None:
    """Between listing and deleting, a client may have begun anew, by the new rules: only the number tells."""
    send(space, 53)
    with closing(space.call(KernelConnections)) as table:
        [one] = table.list(V4, UDP).entries
        assert not table.delete(one._replace(number=one.number ^ 1))
        assert table.list(V4, UDP).entries == [one]
        assert table.delete(one)


def test_a_large_table_is_looked_through_quickly(space: Namespace) -> None:
    """20,000 entries take about 0.2 s here; a minute would mean that something grows with the square."""
    send(space, *[54] * 20000)
    with closing(space.call(KernelConnections)) as table:
        begin = time.monotonic()
        assert len(table.list(V4, UDP).entries) > 15000, "the rest has timed out"
        assert time.monotonic() - begin < 60
