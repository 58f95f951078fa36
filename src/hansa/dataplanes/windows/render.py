"""Rules and host facts to everything that the host must hold, as plain values. Pure; golden files are made of it."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from hansa.config import Config
from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.windows.objects import (
    DesiredEndpoint,
    DesiredLoadBalancer,
    EndpointKind,
    HostFacts,
    address_order,
)
from hansa.dataplanes.windows.wanted import Wanted
from hansa.hns.api import ZERO_GUID, Guid
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    PortMapping,
    ProviderAddress,
    to_document,
)
from hansa.rules.model import Rule, RuleChanges, Surroundings
from hansa.rules.ruleset import frontend_order
from hansa.services.model import NodeFacts


@dataclass(frozen=True, slots=True)
class Rendered:
    """Everything that a set of rules asks of the host, sorted by key.

    endpoints: remote stand-ins for backends that are not on this node, service VIPs and source VIPs. Where the network
    already has a local HNS endpoint with that address, none is made.
    """

    load_balancers: tuple[DesiredLoadBalancer, ...]
    endpoints: tuple[DesiredEndpoint, ...]
    shortfalls: tuple[Shortfall, ...]


def render(rules: Iterable[Rule], facts: HostFacts, config: Config) -> Rendered:
    """What a set of rules asks of a host with these facts; equal input gives equal output, whatever its order."""
    wanted = Wanted(config)
    wanted.use(facts)
    everything = {rule.key: rule for rule in rules}
    wanted.take(RuleChanges(everything, Surroundings(NodeFacts(facts.node_name)), complete=True))
    return rendered(wanted)


def rendered(wanted: Wanted) -> Rendered:
    """The content of a store as plain values."""
    endpoints = [wanted.endpoint(address) for address in sorted(wanted.addresses(), key=address_order)]
    return Rendered(
        tuple(wanted.balancers[frontend] for frontend in sorted(wanted.balancers, key=frontend_order)),
        tuple(endpoint for endpoint in endpoints if endpoint is not None),
        wanted.shortfalls,
    )


def balancer_object(desired: DesiredLoadBalancer, endpoints: Set[Guid], owner: str = "") -> HnsLoadBalancer:
    """The HNS object for a desired load balancer whose endpoints have these ids."""
    key = desired.key
    mapping = PortMapping(
        protocol=key.protocol.value,
        internal_port=desired.internal_port,
        external_port=key.port,
        distribution=desired.distribution,
        flags=desired.mapping_flags,
    )
    return HnsLoadBalancer(
        endpoints=tuple(sorted(endpoints)),
        source_vip=desired.source_vip,
        frontend_vips=() if key.vip is None else (key.vip,),
        port_mappings=(mapping,),
        flags=desired.lb_flags,
        owner=owner,
    )


def endpoint_object(desired: DesiredEndpoint, network: Guid, owner: str = "") -> HnsEndpoint:
    """The HNS object for a desired endpoint on this network."""
    local = desired.kind is EndpointKind.SOURCE_VIP
    return HnsEndpoint(
        network=network,
        policies=() if desired.provider is None else (ProviderAddress(desired.provider),),
        ip_configurations=(IpConfiguration(desired.address),),
        mac_address=desired.mac,
        flags=EndpointFlags(0) if local else EndpointFlags.REMOTE,
        owner=owner,
    )


def as_documents(found: Rendered) -> dict[str, list[dict[str, object]]]:
    """The same in HCN's words, for people and programs, with addresses where a host would have ids."""
    balancers = [
        {
            "For": list(one.owners),
            "HostComputeEndpoints": [str(address) for address in one.backends],
            **to_document(balancer_object(one, frozenset())),
        }
        for one in found.load_balancers
    ]
    endpoints = [{"Role": one.kind.value, **to_document(endpoint_object(one, ZERO_GUID))} for one in found.endpoints]
    for document in (*balancers, *endpoints):
        document.pop("HostComputeNetwork", None)
    return {"HostComputeLoadBalancers": balancers, "HostComputeEndpoints": endpoints}
