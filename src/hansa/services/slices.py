"""merge_slices(): all EndpointSlices of a Service become one ordered set of endpoints per port, duplicates settled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

from hansa.api.objects import EndpointSlice, SliceEndpoint
from hansa.net import IPFamily, Protocol
from hansa.services.model import Endpoint

PortKey = tuple[str, Protocol]
"""What joins a Service's port to a slice's: name and protocol, never a number (E7)."""


class Candidate(NamedTuple):
    """An endpoint before selection, with the hints that selection reads; empty = no hint of that sort."""

    endpoint: Endpoint
    zone_hints: frozenset[str] = frozenset()
    node_hints: frozenset[str] = frozenset()


def merge_slices(
    slices: Iterable[EndpointSlice], *, family: IPFamily, node_name: str
) -> Mapping[PortKey, tuple[Candidate, ...]]:
    """Join the slices of one Service in one family; every tuple is in the order of the "ip:port" text (E3, E14).

    An endpoint that is listed several times counts once: a non-terminating entry wins over a terminating one, a ready
    one over one that is not, then the first in the order of slice names (E10, E11).
    Evidence: service-semantics section 7.
    """
    own = [one for one in slices if one.family is family]
    own.sort(key=attrgetter("name"))
    merged: dict[PortKey, dict[str, tuple[int, Candidate]]] = {}
    for piece in own:
        heads = [f"[{one.address!s}]:" if family is IPFamily.IPV6 else f"{one.address!s}:" for one in piece.endpoints]
        for port in piece.ports:
            number = port.port
            places = merged.setdefault((port.name, port.protocol), {})
            for head, one in zip(heads, piece.endpoints, strict=True):
                rank = 0 if one.ready and not one.terminating else _rank(one)
                text = f"{head}{number}"
                taken = places.get(text)
                if taken is None or rank < taken[0]:
                    local = one.node_name == node_name
                    endpoint = Endpoint(
                        one.address, number, local, one.ready, one.serving, one.terminating, one.node_name
                    )
                    places[text] = (rank, Candidate(endpoint, one.zone_hints, one.node_hints))
    return {key: tuple([places[text][1] for text in sorted(places)]) for key, places in merged.items()}


def _rank(entry: SliceEndpoint) -> int:
    """Which of two entries for one address and port is believed; the lower one. Equal ranks: the earlier entry."""
    if not entry.terminating:
        return 0 if entry.ready else 1
    if entry.ready:
        return 2
    return 3 if entry.serving else 4
