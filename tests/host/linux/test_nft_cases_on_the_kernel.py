"""Every case of the corpus on the real kernel: connections between namespaces meet what `decide` says.

The table is never emptied between cases: each begins by adopting what the one before left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from tests.case_format import Case, CaseNode, Connect, GoesOn, PacketLine, Step, Wait, all_cases
from tests.host.linux.namespaces import LIMIT_S, PATIENCE_S, Lab, Seen, missing

from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.net import Packet, address_port
from hansa.rules.decide import masqueraded
from hansa.rules.model import Drop, Forward, NotHandled, Reject
from hansa.services.model import Endpoint

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("nft-cases"),
]

CASES = [pytest.param(case, id=case.name, marks=pytest.mark.scenario(case.spec)) for case in all_cases() if case.steps]
# With three endpoints, the chance to miss one of them in so many connections is one in ten million.
ATTEMPTS = 45


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    found = Lab()
    try:
        found.create()
        yield found
    finally:
        found.delete()


class Node:
    """A case's node in the lab."""

    def __init__(self, case: Case, lab: Lab) -> None:
        self.lab = lab
        self.rules = CaseNode(case.make_config())
        self.dataplane = NftablesDataplane(lab.node.call(KernelRuleset))
        self.synced = False

    def close(self) -> None:
        self.lab.close_connections()
        self.dataplane.close()

    def take(self, step: Step) -> None:
        self.lab.set_node_addresses(step.host_addresses)
        message = self.rules.take(step)
        if message is not None:
            report = self.lab.node.call(lambda: self.dataplane.sync(message, now=0.0, audit=False))
            assert report.ok, report.conditions
            assert not report.conditions
            self.synced = True
        for rule in self.rules.rules.values():
            for endpoint in rule.endpoints:
                self.lab.ensure_endpoint(endpoint.address, endpoint.port, rule.key.protocol)

    def check(self, packet: Packet) -> None:
        """One packet, or as many as it takes to meet every endpoint."""
        verdict = self.rules.decide(packet)
        wanted = {Drop: "dropped", Reject: "refused", NotHandled: "untouched", Forward: "forwarded"}[type(verdict)]
        patience_s = PATIENCE_S if wanted == "dropped" else LIMIT_S
        left = {str(one): one for one in verdict.endpoints} if isinstance(verdict, Forward) else {}
        for _ in range(ATTEMPTS):
            if self.rules.affinity(packet):
                self.forget_clients()
            seen = self.lab.send(packet, patience_s=patience_s)
            assert seen.what == wanted, f"{packet}: {seen}, wanted {verdict}"
            if not isinstance(verdict, Forward) or seen.endpoint is None:
                break
            name = address_port(*seen.endpoint)
            (met,) = [one for one in verdict.endpoints if str(one) == name]
            self.check_source(packet, seen, met, masquerade=masqueraded(verdict, packet, met))
            left.pop(name, None)
            if not left:
                break
        assert not left, f"{packet}: never met {sorted(left)}"

    def forget_clients(self) -> None:
        for family in ("ip", "ip6"):
            self.lab.node.nft("flush", "map", family, "hansa", "affinity")

    def check_source(self, packet: Packet, seen: Seen, met: Endpoint, *, masquerade: bool) -> None:
        """What the endpoint saw. The node's own address stays the same when masqueraded, but the port does not (M9)."""
        rewritten = seen.source != packet.source or seen.source_port != seen.sent_port
        assert rewritten == masquerade, f"{packet} to {met}: {seen}"
        if masquerade:
            assert seen.source in self.lab.node_addresses, f"{packet} to {met}: {seen}"


@pytest.mark.parametrize("case", CASES)
def test_packets_meet_what_the_rules_say(lab: Lab, case: Case) -> None:
    skipped = []
    with closing(Node(case, lab)) as node:
        for step in case.steps:
            node.take(step)
            for line in step.packets if node.synced else ():
                if can_be_sent(lab, line.packet):
                    check_line(node, lab, line)
                else:
                    skipped.append(line.text)
    assert all(text.startswith("VIP ->") or "127.0.0.1" in text for text in skipped), skipped


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0].has_connections])
def test_connections(lab: Lab, case: Case) -> None:
    """Section 13 and R9 with real connections. Waiting is left to the tests of timers: a minute here is a minute."""
    lab.node.nft("flush", "ruleset")  # what earlier cases remember of P must not decide
    opened: dict[str, tuple[Seen, Callable[[], bool]]] = {}
    with closing(Node(case, lab)) as node:
        for step in case.steps:
            node.take(step)
            for line in step.connections:
                match line:
                    case Wait():
                        return
                    case Connect():
                        opened[line.name] = connect(lab, line, opened)
                    case GoesOn():
                        assert opened[line.name][1](), line.text


def connect(
    lab: Lab, line: Connect, opened: dict[str, tuple[Seen, Callable[[], bool]]]
) -> tuple[Seen, Callable[[], bool]]:
    seen, alive = lab.open(line.packet)
    assert seen.endpoint is not None, f"{line.text}: {seen}"
    assert not line.one_of or address_port(*seen.endpoint) in line.one_of, f"{line.text}: {seen}"
    assert not line.same_as or seen.endpoint == opened[line.same_as][0].endpoint, f"{line.text}: {seen}"
    return seen, alive


def can_be_sent(lab: Lab, packet: Packet) -> bool:
    """Somebody has the source address, and loopback addresses are asked for by the node alone."""
    owner = lab.owners.get(packet.source)
    return owner is not None and (owner == "node" or not packet.destination.is_loopback)


def check_line(node: Node, lab: Lab, line: PacketLine) -> None:
    leg = lab.owners[line.packet.source]
    if line.packet.interface is None:
        node.check(line.packet)
        return
    lab.rename_leg(leg, line.packet.interface)
    try:
        node.check(line.packet)
    finally:
        lab.rename_leg(leg, "")
