"""decide(): what must happen to one packet. Slow and obvious on purpose: every dataplane is measured by it.

Only first packets of connections are judged: established ones go on as they began (R9), and which endpoint a client
with session affinity is sent to again depends on what a dataplane remembers.
"""

from __future__ import annotations

from typing import Protocol

from hansa.net import Address, Packet, family_of
from hansa.rules.model import (
    Because,
    Drop,
    Forward,
    FrontendKey,
    NotHandled,
    Origin,
    Reject,
    Rule,
    Surroundings,
    Verdict,
)
from hansa.rules.surroundings import LOOPBACK
from hansa.services.model import Endpoint


class RuleLookup(Protocol):
    """What `decide` reads of a `RuleSet`."""

    def get(self, key: FrontendKey) -> Rule | None:
        """The rule in force at a frontend, None if there is none."""

    def is_cluster_ip(self, address: Address) -> bool:
        """Whether a ClusterIP rule is in force at the address."""


def decide(rules: RuleLookup, surroundings: Surroundings, packet: Packet) -> Verdict:
    """What must happen to the first packet of a connection on this node, and why.

    A frontend's own address comes before this node's node ports, and both before what is left of the cluster's own
    addresses (R5, R6). Evidence: service-semantics sections 5, 6 and 10 to 12.
    """
    rule = matching_rule(rules, surroundings, packet)
    if rule is not None:
        ranges = rule.source_ranges
        if ranges is not None and not any(packet.source in prefix for prefix in ranges):
            return Drop(Because.SOURCE_RANGE)
        return rule.action(origin_of(surroundings, packet))
    if surroundings.guard_cluster_ips:
        if rules.is_cluster_ip(packet.destination):
            return Reject(Because.UNUSED_PORT)
        if any(packet.destination in prefix for prefix in surroundings.service_cidrs):
            return Drop(Because.UNALLOCATED_IP)
    return NotHandled()


def matching_rule(rules: RuleLookup, surroundings: Surroundings, packet: Packet) -> Rule | None:
    """The rule whose frontend the packet aims at; None if it aims at none (R7, R8) or has no port (ICMP)."""
    if packet.port is None:
        return None
    family = family_of(packet.destination)
    rule = rules.get(FrontendKey(family, packet.destination, packet.protocol, packet.port))
    if rule is None and _serves_node_ports(surroundings, packet):
        rule = rules.get(FrontendKey(family, None, packet.protocol, packet.port))
    return rule


def origin_of(surroundings: Surroundings, packet: Packet) -> Origin:
    """Where the packet comes from. Pods first: an address of this machine may lie in the pod range (X6 before X7)."""
    if _is_from_pod(surroundings, packet):
        return Origin.POD
    if packet.source.is_loopback or packet.source in surroundings.node.addresses:
        return Origin.NODE
    return Origin.OUTSIDE


def masqueraded(verdict: Forward, packet: Packet, endpoint: Endpoint) -> bool:
    """Whether the source is rewritten when `endpoint` is picked: as the rule says, and always in a hairpin (M6)."""
    return verdict.masquerade or packet.source == endpoint.address


def _is_from_pod(surroundings: Surroundings, packet: Packet) -> bool:
    prefix = surroundings.pod_prefixes.get(family_of(packet.source))
    if prefix is not None and packet.source in prefix:
        return True
    interface = packet.interface
    if not interface:
        return False
    by_name = interface == surroundings.pod_interface
    by_prefix = bool(surroundings.pod_interface_prefix) and interface.startswith(surroundings.pod_interface_prefix)
    return by_name or by_prefix


def _serves_node_ports(surroundings: Surroundings, packet: Packet) -> bool:
    """Whether the destination is an accepted address of this node (N4-N8); of loopback only 127/8 can be (N11)."""
    destination = packet.destination
    if destination.is_loopback:
        from_here = origin_of(surroundings, packet) is Origin.NODE
        return surroundings.localhost_node_ports and from_here and destination in LOOPBACK
    accepted = surroundings.node_port_addresses.get(family_of(destination))
    return destination in (surroundings.node.addresses if accepted is None else accepted)
