"""node_facts(): the Node object, the configuration and the machine's addresses become what the stages ask of a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hansa.api.objects import Node
from hansa.config import Config
from hansa.net import Address, IPFamily, Prefix, family_of
from hansa.services.model import NodeFacts


def node_facts(node: Node | None, config: Config, host_addresses: frozenset[Address]) -> NodeFacts:
    """What is known about this node; `node` is None as long as the API has not shown it.

    A family whose node IP is unknown is missing from `node_ips`; loopback addresses never count, neither as node IP
    nor among the machine's addresses. Evidence: service-semantics I5, I6.
    """
    known = node or Node(name=node_name(config))
    node_ips = _first_of_each_family(
        address
        for address in (*config.bind_addresses, *known.addresses)
        if not (address.is_unspecified or address.is_loopback)
    )
    host = frozenset(address for address in host_addresses if not address.is_loopback)
    pod_cidrs: dict[IPFamily, Prefix] = {}
    for prefix in known.pod_cidrs:
        pod_cidrs.setdefault(family_of(prefix), prefix)
    return NodeFacts(
        name=node_name(config),
        zone=known.zone or None,
        node_ips=node_ips,
        addresses=host | frozenset(node_ips.values()),
        pod_cidrs=pod_cidrs,
    )


def node_name(config: Config) -> str:
    """I5: trimmed and in lower case; what `nodeName` in slices and `metadata.name` of the Node must equal."""
    return config.node_name.strip().lower()


def _first_of_each_family(addresses: Iterable[Address]) -> Mapping[IPFamily, Address]:
    found: dict[IPFamily, Address] = {}
    for address in addresses:
        found.setdefault(family_of(address), address)
    return found
