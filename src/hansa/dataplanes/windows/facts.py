"""HNS's network, its endpoints and the Node to `HostFacts`. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hansa.config import Config
from hansa.dataplanes.windows.objects import HostFacts, RemoteSubnet, RemoteSubnets
from hansa.dataplanes.windows.observe import Observed
from hansa.hns.api import HnsVersion
from hansa.hns.schema import HnsEndpoint, RawPolicy
from hansa.net import Address, IPFamily, family_of
from hansa.rules.model import Surroundings


def derive_facts(
    observed: Observed, surroundings: Surroundings, config: Config, *, version: HnsVersion, host_mac: str
) -> HostFacts:
    """`observed.network` must be known."""
    network = observed.network
    assert network is not None
    settings = config.windows
    node = surroundings.node
    source_vips = {family_of(address): address for address in reversed(settings.source_vip)}
    for address in _addresses_of(observed, settings.source_vip_endpoint):
        source_vips.setdefault(family_of(address), address)
    forwards = settings.forward_health_check_vip
    root = _addresses_of(observed, settings.root_endpoint_name if forwards else "")
    return HostFacts(
        network_id=network.guid,
        network_name=network.name,
        network_type=network.type.value.lower(),
        version=version,
        node_name=config.node_name,
        management_ip=network.management_ip,
        remote_subnets=RemoteSubnets(
            RemoteSubnet(route.prefix, route.provider_address) for route in network.remote_subnets
        ),
        subnets=tuple(subnet.prefix for subnet in network.subnets if subnet.prefix is not None),
        host_mac=host_mac,
        node_ips=dict(node.node_ips),
        node_addresses=node.addresses,
        source_vips=source_vips,
        root_addresses={family_of(address): address for address in reversed(root)},
    )


def node_address(observed: Observed, surroundings: Surroundings) -> Address | None:
    """The address whose interface carries the pod network: the IPv4 node IP, else HNS's management address."""
    found = surroundings.node.node_ips.get(IPFamily.IPV4)
    if found is None and observed.network is not None:
        return observed.network.management_ip
    return found


def _addresses_of(observed: Observed, name: str) -> list[Address]:
    """Addresses of the local endpoints of that name, in the order of their GUIDs; () for the empty name."""
    if not name:
        return []
    named = [endpoint for endpoint in observed.endpoints.values() if endpoint.name == name and not endpoint.remote]
    return [address for endpoint in sorted(named, key=_guid) for address in endpoint.addresses]


def _guid(endpoint: HnsEndpoint) -> str:
    return endpoint.guid


def host_conditions(observed: Observed, facts: HostFacts) -> Iterable[str]:
    """Sentences about what is missing or wrong on the host, and who must act."""
    network = observed.network
    assert network is not None
    if facts.overlay and IPFamily.IPV4 not in facts.source_vips:
        yield (
            "source VIP missing: set winkernel.sourceVip, or name the CNI's endpoint in winkernel.sourceVipEndpoint; "
            "load balancers with backends on other nodes wait for it"
        )
    if facts.overlay and not facts.host_mac:
        yield "the MAC of this node's interface is not known: check the node IP; service VIPs on overlay need it"
    for policy in network.policies:
        if isinstance(policy, RawPolicy) and policy.fault:
            yield f"network {network.name}: policy {policy.type} is skipped: {policy.fault}"
