"""Holds a table against the oracle: `trace` and `walk` must say what `decide` says."""

from __future__ import annotations

from hansa.dataplanes.nftables.frame import FROM_NODE, FROM_PODS, PICKS, VERDICTS, Place, flavour_named, is_of_flavours
from hansa.dataplanes.nftables.objects import Labelled, Ruleset, Target, pack_number
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


def without_spares(ruleset: Ruleset) -> Ruleset:
    """The table without the chains that no frontend leads to; a fresh start makes none."""
    used = {pack_number(number) for number in VERDICTS}
    for place in Place:
        for suffix in ("", FROM_PODS, FROM_NODE):
            found = ruleset.elements[place.frontends + suffix].values()
            used |= {value.data for value in found if isinstance(value, Labelled)}
    picks = {key: value for key, value in ruleset.elements[PICKS].items() if key in used}
    kept = {value.chain for value in picks.values() if isinstance(value, Target)}
    kept |= {flavour.stick for chain in kept if (flavour := flavour_named(chain)) is not None}
    chains = {name: chain for name, chain in ruleset.chains.items() if name in kept or not is_of_flavours(name)}
    return Ruleset(ruleset.family, ruleset.sets, chains, ruleset.elements | {PICKS: picks})
