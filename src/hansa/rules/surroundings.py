"""make_surroundings(): node, configuration and ServiceCIDRs become the conditions under which all rules hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from hansa.config import Config, DetectLocalMode, NodePortAddresses
from hansa.net import Address, IPFamily, Prefix, family_of, parse_prefix
from hansa.rules.model import Surroundings
from hansa.services.model import NodeFacts

LOOPBACK = parse_prefix("127.0.0.0/8")


def make_surroundings(node: NodeFacts, config: Config, service_cidrs: Iterable[Prefix]) -> Surroundings:
    """Detectors, accepted node port addresses and guarded ranges, per family, as of now.

    To be made again when the node's addresses change: prefixes select from the addresses at hand (N7).
    Evidence: service-semantics N4-N11, S5, R6, and the table of detector modes in section 11.
    """
    prefixes: dict[IPFamily, Prefix] = {}
    interface = interface_prefix = ""
    match config.detect_local_mode:
        case DetectLocalMode.CLUSTER_CIDR:
            given = {family: config.cluster_cidr(family) for family in IPFamily}
            prefixes = {family: prefix for family, prefix in given.items() if prefix is not None}
        case DetectLocalMode.NODE_CIDR:
            prefixes = dict(node.pod_cidrs)
        case DetectLocalMode.BRIDGE_INTERFACE:
            interface = config.bridge_interface
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            interface_prefix = config.interface_name_prefix
        case _:
            assert_never(config.detect_local_mode)
    return Surroundings(
        node=node,
        pod_prefixes=prefixes,
        pod_interface=interface,
        pod_interface_prefix=interface_prefix,
        node_port_addresses={
            family: _node_port_addresses(node, config.node_port_addresses, family) for family in IPFamily
        },
        localhost_node_ports=config.localhost_node_ports and _accepts_loopback(config.node_port_addresses),
        # S5: beside another proxy, an address that is not ours may well be that proxy's.
        guard_cluster_ips=config.proxy_name is None,
        service_cidrs=tuple(service_cidrs),
    )


def detects_pods(surroundings: Surroundings, family: IPFamily) -> bool:
    """Whether packets of pods can be told from others in this family."""
    by_interface = bool(surroundings.pod_interface or surroundings.pod_interface_prefix)
    return by_interface or family in surroundings.pod_prefixes


def _node_port_addresses(node: NodeFacts, accepted: NodePortAddresses, family: IPFamily) -> frozenset[Address] | None:
    """The addresses of one family that serve node ports; None = all that the host owns (N4-N8)."""
    if accepted.primary:
        node_ip = node.node_ips.get(family)
        return None if node_ip is None else frozenset({node_ip})
    prefixes = _of_family(accepted, family)
    if _is_everything(prefixes):
        return None
    return frozenset(address for address in node.addresses if any(address in prefix for prefix in prefixes))


def _accepts_loopback(accepted: NodePortAddresses) -> bool:
    """N11: whether 127.0.0.0/8 is, at least in part, among the accepted addresses."""
    prefixes = _of_family(accepted, IPFamily.IPV4)
    overlapping = any(LOOPBACK.overlaps(prefix) for prefix in prefixes if prefix.version == LOOPBACK.version)
    return not accepted.primary and (_is_everything(prefixes) or overlapping)


def _of_family(accepted: NodePortAddresses, family: IPFamily) -> tuple[Prefix, ...]:
    return tuple(prefix for prefix in accepted.prefixes if family_of(prefix) is family)


def _is_everything(prefixes: tuple[Prefix, ...]) -> bool:
    """N5, N6: no prefix of the family means all, and so does one that covers the family."""
    return not prefixes or any(prefix.prefixlen == 0 for prefix in prefixes)
