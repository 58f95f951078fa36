"""How many HNS objects are desired, ours and others', for metrics. Pure; goes through all of them, so rarely called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from hansa.dataplanes.base import ObjectCounts, Outcome, Result, Verb
from hansa.dataplanes.windows.compare import Situation
from hansa.dataplanes.windows.ownership import Standing
from hansa.dataplanes.windows.plan import LOAD_BALANCER

ENDPOINT = "endpoint"
_MADE = (Verb.CREATE, Verb.REPLACE)


def census(situation: Situation) -> Mapping[str, ObjectCounts]:
    """By kind, in the words of steps. Endpoints: those that hansa makes or refers to; observed are ours of them.

    An endpoint of a pod is the CNI's, hence foreign, also where a load balancer of ours refers to it. Empty before HNS
    has been read.
    """
    wanted, observed = situation.wanted, situation.observed
    if wanted.facts is None or observed.network is None:
        return {}
    balancers = [situation.standing_of(one) is Standing.FOREIGN for one in observed.balancers.values()]
    network = situation.network
    endpoints = [
        situation.ownership.of_endpoint(one, network) is Standing.FOREIGN for one in observed.endpoints.values()
    ]
    desired = sum(wanted.endpoint(address) is not None for address in wanted.addresses())
    return {
        LOAD_BALANCER: ObjectCounts(len(wanted.balancers), balancers.count(False), balancers.count(True)),
        ENDPOINT: ObjectCounts(desired, endpoints.count(False), endpoints.count(True)),
    }


def made(results: Iterable[Result]) -> Counter[str]:
    """How many objects steps have made, by the kinds of `census`."""
    return Counter(
        LOAD_BALANCER if one.change.kind == LOAD_BALANCER else ENDPOINT
        for one in results
        if one.outcome is Outcome.DONE and one.change.verb in _MADE
    )


def adopted(found: Mapping[str, ObjectCounts], new: Counter[str]) -> Mapping[str, int]:
    """What of our objects was there before hansa made `new`. One that was replaced twice counts against others."""
    return {kind: max(0, (counts.observed or 0) - new[kind]) for kind, counts in found.items()}
