"""Every case of the corpus through the table in memory: `trace` says what `decide` says, and affinity holds."""

from __future__ import annotations

import random

import pytest
from tests.case_format import Case, CaseNode, Connect, GoesOn, Step, Wait, all_cases
from tests.nft_comparing import check_packet, without_spares

from hansa.dataplanes.nftables.apply import NftablesDataplane
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.dataplanes.nftables.objects import FIRST_DRAWN, pack_number
from hansa.dataplanes.nftables.render import render
from hansa.dataplanes.nftables.trace import walk
from hansa.net import IPFamily, Packet, Protocol, address_port, family_of, parse_address
from hansa.rules.model import RuleChanges
from hansa.testing import Client

CASES = [pytest.param(case, id=case.name, marks=pytest.mark.scenario(case.spec)) for case in all_cases() if case.steps]
SOURCES = (Client.P, Client.Q, Client.N, Client.X, Client.Y, parse_address("10.1.1.11"), parse_address("fd01::5"),
           parse_address("2001:db8::1"), parse_address("2001:db8:9::9"))  # fmt: skip


class Node:
    """A case's node with the nftables dataplane on a host in memory, and the clients' memory that the kernel keeps."""

    def __init__(self, case: Case) -> None:
        self.rules = CaseNode(case.make_config())
        self.host = MemoryRuleset()
        self.dataplane = NftablesDataplane(self.host)
        self.synced = False
        self.memory: dict[bytes, bytes] = {}
        self.timers: dict[bytes, float] = {}
        self.now = 0.0
        self.random = random.Random(1)

    def take(self, step: Step) -> None:
        message = self.rules.take(step)
        if message is not None:
            report = self.dataplane.sync(message, now=self.now, audit=False)
            assert report.ok, report.conditions
            assert not report.shortfalls
            self.synced = True

    def check(self, packet: Packet) -> None:
        table = self.host.tables[family_of(packet.destination)]
        check_packet(table, self.rules, self.rules.surroundings, packet)

    def connect(self, packet: Packet) -> str:
        """Open a connection; timers run as the kernel's do, from the last use (Y5)."""
        for key in [key for key, end in self.timers.items() if end <= self.now]:
            self.memory.pop(key, None)
            del self.timers[key]
        table = self.host.tables[family_of(packet.destination)]
        own = self.rules.surroundings.node.addresses
        fate = walk(table, packet, own, choose=self.random.randrange, memory=self.memory)
        assert fate.endpoint is not None, f"{packet}: {fate.steps}"
        (timeout_s,) = self.rules.affinity(packet) or (0,)
        for key in self.memory:
            if key.endswith(packet.source.packed):
                self.timers[key] = self.now + timeout_s
        return address_port(*fate.endpoint)


@pytest.mark.parametrize("case", CASES)
def test_the_table_does_what_the_rules_say(case: Case) -> None:
    node = Node(case)
    for step in case.steps:
        node.take(step)
        if not node.synced:
            continue
        for line in step.packets:
            node.check(line.packet)
        for packet in _more_packets(node.rules):
            node.check(packet)


@pytest.mark.parametrize("case", CASES)
def test_steps_and_a_fresh_start_end_alike(case: Case) -> None:
    """A history of changes leaves the table that a start with the final rules would make."""
    node = Node(case)
    for step in case.steps:
        node.take(step)
    if not node.synced:
        return
    for family in IPFamily:
        rules = [rule for rule in node.rules.rules.values() if rule.key.family is family]
        fresh, _ = render(rules, node.rules.surroundings, family)
        table = without_spares(node.host.tables[family])
        assert table.chains == fresh.chains
        if not any("sticky" in name and found for name, found in fresh.elements.items()):
            assert table.elements == fresh.elements


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0].has_connections])
def test_connections(case: Case) -> None:
    """Section 13: clients are remembered by service port, as long as the timeout says and the endpoint serves."""
    node = Node(case)
    met: dict[str, str] = {}
    for step in case.steps:
        node.take(step)
        for line in step.connections:
            match line:
                case Wait():
                    node.now += line.seconds
                case Connect():
                    endpoint = node.connect(line.packet)
                    assert not line.one_of or endpoint in line.one_of, line.text
                    assert not line.same_as or endpoint == met[line.same_as], line.text
                    if line.name:
                        met[line.name] = endpoint
                case GoesOn():
                    assert line.name in met  # established connections pass no nat chain: the kernel's tests look


def _more_packets(rules: CaseNode) -> list[Packet]:
    """From everyone to every frontend, to an unused port of its address, and to addresses that nobody has."""
    found = []
    node_addresses = rules.surroundings.node.addresses
    for key in rules.rules:
        targets = [key.address] if key.address is not None else sorted(node_addresses, key=str)
        for target in targets:
            for source in SOURCES:
                if source.version == target.version and family_of(target) is key.family:
                    found += [
                        Packet(source, target, key.protocol, key.port),
                        Packet(source, target, Protocol.UDP, 9),
                    ]
    for source in SOURCES[:4]:
        found.append(Packet(source, parse_address("10.96.77.77"), Protocol.TCP, 80))
    return found


def test_a_client_meets_every_endpoint_alike() -> None:
    """Y1: without affinity each index leads to another endpoint, so the kernel's uniform choice stays uniform."""
    node = Node(next(case for case in all_cases() if case.name == "t097"))
    for step in node_steps("t097"):
        node.take(step)
    table = node.host.tables[IPFamily.IPV4]
    slots = table.elements["slots"]
    cluster_ip = parse_address("10.96.0.10").packed
    mine = {key: value for key, value in slots.items() if key.startswith(cluster_ip)}
    assert len(mine) == len(set(mine.values())) == 3
    assert {key[-4:] for key in mine} == {pack_number(FIRST_DRAWN + number) for number in range(3)}


def node_steps(name: str) -> tuple[Step, ...]:
    return next(case for case in all_cases() if case.name == name).steps


def test_an_empty_change_sends_nothing() -> None:
    node = Node(next(case for case in all_cases() if case.name == "t125"))
    for step in node_steps("t125"):
        node.take(step)
    before = node.host.commits
    report = node.dataplane.sync(RuleChanges({}, node.rules.surroundings), now=0, audit=True)
    assert report.ok
    assert node.host.commits == before
    assert report.results == report.drift == ()
