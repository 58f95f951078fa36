"""Rules and host facts to everything that the host must hold, as plain values. Pure; golden files are made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hansa.config import Config
from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.windows.objects import (
    DesiredEndpoint,
    DesiredLoadBalancer,
    HostFacts,
    address_order,
)
from hansa.dataplanes.windows.wanted import Wanted
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
