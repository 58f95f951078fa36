"""topology_mode(): what the hints of a Service's endpoints mean on this node."""

from __future__ import annotations

from collections.abc import Sequence

from hansa.services.model import NodeFacts, TopologyMode
from hansa.services.slices import Candidate


def topology_mode(ready: Sequence[Candidate], node: NodeFacts) -> TopologyMode:
    """Whether the Cluster set is narrowed to this node or to its zone; `ready` holds every ready endpoint (T2).

    A mode needs a hint of its sort on every ready endpoint, and one that names this node or zone (T3, T4): one missing
    hint, as in a half-finished rollout, switches the mode off (T6). A node without a zone has no zone mode (T7).
    Evidence: service-semantics section 9.
    """
    if not ready:
        return TopologyMode.ALL
    # Mostly there are no hints at all, and the first endpoint shows it.
    if ready[0].node_hints and _every_one_hinted([candidate.node_hints for candidate in ready], node.name):
        return TopologyMode.SAME_NODE
    if (
        node.zone
        and ready[0].zone_hints
        and _every_one_hinted([candidate.zone_hints for candidate in ready], node.zone)
    ):
        return TopologyMode.SAME_ZONE
    return TopologyMode.ALL


def in_mode(candidate: Candidate, mode: TopologyMode, node: NodeFacts) -> bool:
    """Whether a ready endpoint stays in the Cluster set under `mode`."""
    match mode:
        case TopologyMode.ALL:
            return True
        case TopologyMode.SAME_NODE:
            return node.name in candidate.node_hints
        case TopologyMode.SAME_ZONE:
            return node.zone in candidate.zone_hints


def _every_one_hinted(hints: list[frozenset[str]], name: str) -> bool:
    return all(hints) and any(name in one for one in hints)
