"""Holds a table against the oracle: `trace` and `walk` must say what `decide` says."""

from __future__ import annotations

from hansa.dataplanes.nftables.objects import Ruleset
from hansa.dataplanes.nftables.trace import trace, walk
from hansa.net import Packet
from hansa.rules.decide import RuleLookup, decide, masqueraded
from hansa.rules.model import Forward, Surroundings, Verdict


def told(verdict: Verdict) -> object:
    """A verdict without its reason: a table does not say why."""
    if isinstance(verdict, Forward):
        return (sorted(str(endpoint) for endpoint in verdict.endpoints), verdict.masquerade)
    return type(verdict).__name__


def check_packet(ruleset: Ruleset, rules: RuleLookup, surroundings: Surroundings, packet: Packet) -> None:
    """The table and the oracle agree on the packet, and on the masquerading at each endpoint (M6)."""
    own = surroundings.node.addresses
    wanted = decide(rules, surroundings, packet)
    found = trace(ruleset, packet, own)
    assert told(found) == told(wanted), f"{packet}: {found}, wanted {wanted}"
    if isinstance(wanted, Forward):
        for number in range(len(wanted.endpoints)):
            fate = walk(ruleset, packet, own, choose=lambda modulus, n=number: n % modulus, memory={})
            (met,) = [one for one in wanted.endpoints if (one.address, one.port) == fate.endpoint]
            assert fate.masqueraded == masqueraded(wanted, packet, met), f"{packet} to {met}: {fate.steps}"
