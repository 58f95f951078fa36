"""Which scenarios of the corpus hold on which dataplane: the feature table of the site, by running them.

Both dataplanes are run in memory. nftables: its table, followed for the packet. Windows: the load balancers that it
would make on an l2bridge node, and where a packet that meets one may end. A scenario holds if every packet in it ends
as the case says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from tests.case_format import Case, CaseNode, PacketLine, all_cases
from tests.nft_comparing import check_packet

from hansa.dataplanes.nftables.apply import NftablesDataplane
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.dataplanes.windows.objects import DesiredLoadBalancer, HostFacts
from hansa.dataplanes.windows.translate import render_rule
from hansa.hns.api import ZERO_GUID
from hansa.hns.emulator import WS2022
from hansa.net import IPFamily, Packet, family_of
from hansa.rules.decide import origin_of
from hansa.rules.model import Forward, FrontendKey, NotHandled, Origin
from hansa.testing import NODE_IP, NODE_IP_V6

# Areas of the scenarios, by their numbers; those about health, timing and conntrack are not about a single packet.
AREAS = {
    "which Services are handled": (1, 14),
    "addresses and families": (15, 28),
    "source ranges": (29, 40),
    "node ports": (41, 51),
    "EndpointSlices": (52, 69),
    "ready, serving, terminating": (70, 83),
    "topology hints": (84, 100),
    "traffic policies": (101, 124),
    "masquerading": (125, 137),
    "refusing and dropping": (138, 146),
    "session affinity": (147, 155),
}


EVERYWHERE = "node ports answer on every address"


@dataclass(slots=True)
class Area:
    """How many scenarios there are, and how many of them hold; why: what Windows lacked in those that do not."""

    total: int = 0
    nftables: int = 0
    windows: int = 0
    why: Counter[str] = field(default_factory=Counter)


@cache
def areas() -> dict[str, Area]:
    found = {name: Area() for name in AREAS}
    for case in all_cases():
        name = _area_of(case)
        if name is None or not any(step.packets for step in case.steps):
            continue
        area = found[name]
        area.total += 1
        area.nftables += _holds_in_nftables(case)
        lacking = frozenset(_lacking_in_windows(case))
        area.windows += not lacking
        area.why.update(lacking)
    return found


def not_in_windows() -> Iterator[tuple[Case, frozenset[str]]]:
    """The scenarios that do not hold there, with what is lacking."""
    for case in all_cases():
        if _area_of(case) is not None and case.steps and (lacking := frozenset(_lacking_in_windows(case))):
            yield case, lacking


def _area_of(case: Case) -> str | None:
    if not case.spec.startswith("t"):
        return None
    number = int(case.spec[1:])
    return next((name for name, (first, last) in AREAS.items() if first <= number <= last), None)


def _situations(case: Case) -> Iterator[tuple[CaseNode, tuple[PacketLine, ...], bool]]:
    """After each step: the node, the packets to ask about, whether it has been told anything yet."""
    node, told = CaseNode(case.make_config()), False
    for step in case.steps:
        told = node.take(step) is not None or told
        yield node, step.packets, told


def _holds_in_nftables(case: Case) -> bool:
    node = CaseNode(case.make_config())
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host)
    for step in case.steps:
        message = node.take(step)
        if message is None:
            continue
        if dataplane.sync(message, now=0.0, audit=False).shortfalls:
            return False
        for line in step.packets:
            try:
                table = host.tables[family_of(line.packet.destination)]
                check_packet(table, node, node.surroundings, line.packet)
            except AssertionError:
                return False
    return True


def _lacking_in_windows(case: Case) -> Iterator[str]:
    for node, packets, _ in _situations(case):
        balancers = _balancers(node, case)
        for line in packets:
            wanted = node.decide(line.packet)
            met = _meets(node, balancers, line.packet)
            if isinstance(wanted, Forward):
                here = {(each.address, each.port) for each in wanted.endpoints}
                if met is None or {(each, met.internal_port) for each in met.backends} != here:
                    yield _why(node, line.packet, reached=True)
                elif line.expected.affinity:
                    yield "no timeout for affinity"
            elif met is not None or not isinstance(wanted, NotHandled):
                unowned = isinstance(wanted, NotHandled)
                yield EVERYWHERE if unowned else _why(node, line.packet, reached=met is not None)


def _why(node: CaseNode, packet: Packet, *, reached: bool) -> str:
    if node.surroundings.node.addresses and origin_of(node.surroundings, packet) is Origin.NODE:
        return "packets of the node itself"
    return "who asks makes no difference" if reached else "nothing is refused or dropped"


def _balancers(node: CaseNode, case: Case) -> dict[FrontendKey, DesiredLoadBalancer]:
    facts = HostFacts(
        ZERO_GUID,
        "pods",
        "l2bridge",
        WS2022.version,
        node_name="n1",
        node_ips={IPFamily.IPV4: NODE_IP, IPFamily.IPV6: NODE_IP_V6},
        node_addresses=node.surroundings.node.addresses,
    )
    config = case.make_config()
    made = (balancer for rule in node.rules.values() for balancer in render_rule(rule, facts, config).load_balancers)
    return {balancer.key.frontend: balancer for balancer in made}


def _meets(
    node: CaseNode, balancers: dict[FrontendKey, DesiredLoadBalancer], packet: Packet
) -> DesiredLoadBalancer | None:
    """The load balancer that catches the packet, by address or on any of the node's; the node itself meets none."""
    if packet.port is None or origin_of(node.surroundings, packet) is Origin.NODE:
        return None
    family = family_of(packet.destination)
    found = balancers.get(FrontendKey(family, packet.destination, packet.protocol, packet.port))
    if found is None and packet.destination in node.surroundings.node.addresses:
        found = balancers.get(FrontendKey(family, None, packet.protocol, packet.port))
    return found
