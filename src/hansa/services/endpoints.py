"""select_endpoints(): the Cluster and the Local set of a service port, and why each other endpoint fell out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hansa.api.objects import Policy
from hansa.services.model import Endpoint, NodeFacts, Reason, Selection, ServicePort, TopologyMode
from hansa.services.slices import Candidate
from hansa.services.topology import in_mode, topology_mode


def select_endpoints(port: ServicePort, candidates: Sequence[Candidate], node: NodeFacts) -> Selection:
    """Choose the endpoints that this node may use for `port`, under policy Cluster and under policy Local.

    `candidates` come from `merge_slices`, in its order, which the sets keep. A set is wanted only if some frontend of
    the port uses it, the Cluster set also for the short-circuit (steps 2 and 3). Each set falls back to serving
    endpoints that are terminating if it has no ready one (C8); hints narrow only the ready Cluster set (T1, C9).
    Evidence: service-semantics sections 8 to 10.
    """
    accessible = port.externally_accessible
    internal_local = port.internal_policy is Policy.LOCAL
    cluster_wanted = accessible or not internal_local
    local_wanted = internal_local or (accessible and port.external_policy is Policy.LOCAL)

    ready = [candidate for candidate in candidates if candidate.endpoint.ready]
    draining = (
        [] if len(ready) == len(candidates) else [one.endpoint for one in candidates if _is_draining(one.endpoint)]
    )

    cluster: tuple[Endpoint, ...] | None = None
    mode = TopologyMode.ALL
    if cluster_wanted:
        mode = topology_mode(ready, node)
        chosen = ready if mode is TopologyMode.ALL else [one for one in ready if in_mode(one, mode, node)]
        cluster = tuple([one.endpoint for one in chosen]) or tuple(draining)
    local: tuple[Endpoint, ...] | None = None
    local_ready = False
    if local_wanted:
        local = _on_this_node(one.endpoint for one in ready)
        local_ready = bool(local)
        local = local or _on_this_node(draining)

    return Selection(
        cluster=cluster,
        local=local,
        any_usable=bool(cluster) or (local_wanted and bool(ready or draining)),
        topology=mode,
        cluster_fallback=bool(cluster) and not ready,
        local_fallback=bool(local) and not local_ready,
        excluded=_excluded(candidates, cluster, local, mode),
    )


def _is_draining(endpoint: Endpoint) -> bool:
    """C5: fit for the fallback. Not ready, but still serving while it terminates."""
    return not endpoint.ready and endpoint.serving and endpoint.terminating


def _on_this_node(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(endpoint for endpoint in endpoints if endpoint.local)


def _excluded(
    candidates: Sequence[Candidate],
    cluster: tuple[Endpoint, ...] | None,
    local: tuple[Endpoint, ...] | None,
    mode: TopologyMode,
) -> tuple[tuple[Endpoint, Reason], ...]:
    """The endpoints in neither set, with the reason, in the candidates' order."""
    if len(cluster or local or ()) == len(candidates):
        return ()
    # The sets hold the candidates' own endpoint objects, so identity is membership, and cheaper than hashing.
    chosen = {id(endpoint) for endpoint in (*(cluster or ()), *(local or ()))}
    return tuple(
        (one.endpoint, _reason(one.endpoint, cluster_wanted=cluster is not None, mode=mode))
        for one in candidates
        if id(one.endpoint) not in chosen
    )


def _reason(endpoint: Endpoint, *, cluster_wanted: bool, mode: TopologyMode) -> Reason:
    """Why an endpoint that is in no set is in none: what bars it everywhere comes before what bars it here."""
    if not endpoint.ready and not endpoint.terminating:
        return Reason.NOT_READY
    if not endpoint.ready and not endpoint.serving:
        return Reason.NOT_SERVING
    if not cluster_wanted and not endpoint.local:
        return Reason.NOT_LOCAL
    if not endpoint.ready:
        return Reason.TERMINATING
    return Reason.OTHER_NODE if mode is TopologyMode.SAME_NODE else Reason.OTHER_ZONE
