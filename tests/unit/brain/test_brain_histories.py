"""Whatever happens in a cluster, and whenever a node asks: what it has been told is what it would have decided itself.

The three APIs are told the same histories; the other end of each is hansa's own client, and beside that a reader of
localv1 which holds the stream against the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.strategies import NODE_NAMES, changes

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Service, ServiceKey
from hansa.brain.batches import global_batch, local_batch, node_batch
from hansa.brain.cluster import Cluster, Difference
from hansa.pipeline import Pipeline
from hansa.rules.model import Rule
from hansa.sources.kpng import shared
from hansa.sources.kpng.following import ClusterFollowing, Following, LocalFollowing, NodeFollowing
from hansa.sources.kpng.node import read_service
from hansa.sources.kpng.wire import localv1, nodev1
from hansa.testing import R1, config, endpoint, endpoint_slice, service

SYNCED: list[Change] = [Synced(kind) for kind in Kind]


def as_api_servers_allow(change: Change) -> Change:
    """A port's name is unique within its object, whatever its protocol; KPNG's messages rely on that."""
    if not isinstance(change, Upsert) or not isinstance(change.object, Service | EndpointSlice):
        return change
    ports: dict[str, Any] = {}
    for one in change.object.ports:
        ports.setdefault(one.name, one)
    return replace(change, object=replace(change.object, ports=tuple(ports.values())))


HISTORIES = st.lists(st.lists(changes().map(as_api_servers_allow), max_size=5), min_size=1, max_size=4)


def rules(pipeline: Pipeline) -> dict[str, Rule]:
    message = pipeline.take(full=True)
    assert message is not None
    return {str(key): rule for key, rule in message.rules.items() if rule is not None}


def told(difference: Difference, api: str) -> Iterator[Any]:
    """A batch as the client gets it; nothing at all if there is nothing to say."""
    if api == "node":
        yield from (nodev1.WatchResponse.FromString(one) for one in node_batch(difference) if one)
        return
    ops = [one for one in (local_batch if api == "local" else global_batch)(difference) if one]
    if ops or difference.is_first:
        reset = [shared.RESET] if difference.is_first else []
        yield from (localv1.OpItem.FromString(one) for one in (*reset, *ops, shared.SYNC))


def run(
    history: Sequence[Sequence[Change]],
    api: str,
    following: Following[Any],
    check: Callable[[int], None] = lambda _: None,
) -> tuple[Pipeline, Pipeline]:
    """A pipeline that follows the brain, and one that hears everything itself; both on n1."""
    cluster = Cluster(config())
    follower = cluster.follow()
    fed, own = Pipeline(config(), frozenset()), Pipeline(config(), frozenset())
    for number, batch in enumerate(history):
        cluster.apply([*batch, *SYNCED])
        own.apply([*batch, *SYNCED])
        for message in told(follower.take(None if api == "global" else "n1"), api):
            news = following.receive(message)
            if news is not None:
                fed.apply(news)
        check(number)
    return fed, own


@settings(max_examples=50)
@given(HISTORIES)
def test_a_node_that_is_told_decisions_has_the_rules_that_it_would_have_made_itself(
    history: list[list[Change]],
) -> None:
    fed, own = run(history, "node", NodeFollowing("n1"))
    assert rules(fed) == rules(own)
    assert fed.health_checks == own.health_checks
    assert fed.without_local_endpoints == own.without_local_endpoints


# A slice that lists an address twice, on different nodes.
TWINS = [Upsert(service("web")), Upsert(endpoint_slice("web-a", [R1, endpoint("10.1.2.21", node="n1")]))]


@settings(max_examples=50)
@example([TWINS])
@given(HISTORIES)
def test_a_node_that_is_told_the_cluster_by_a_brain_of_hansa_has_the_same_rules(history: list[list[Change]]) -> None:
    fed, own = run(history, "global", ClusterFollowing())
    assert rules(fed) == rules(own)


@settings(max_examples=50)
@given(HISTORIES, st.sampled_from(NODE_NAMES))
def test_every_stream_of_localv1_keeps_to_the_protocol_and_ends_where_a_new_one_begins(
    history: list[list[Change]], name: str
) -> None:
    cluster = Cluster(config())
    follower = cluster.follow()
    held: dict[str, bytes] = {}
    for batch in history:
        cluster.apply([*batch, *SYNCED])
        for op in told(follower.take(name), "local"):
            apply_strictly(held, op)
    fresh: dict[str, bytes] = {}
    for op in told(cluster.follow().take(name), "local"):
        apply_strictly(fresh, op)
    assert held == fresh


def apply_strictly(held: dict[str, bytes], op: localv1.OpItem) -> None:
    """W2 to W5: a service comes before its endpoints and goes after them; what is deleted was there."""
    match op.WhichOneof("Op"):
        case "Reset":
            assert not held, "Reset comes first, and only then"
        case "Set":
            path = op.Set.Ref.Path
            expected = localv1.Set.EndpointsSet if path.count("/") == 2 else localv1.Set.ServicesSet
            assert op.Set.Ref.Set == expected
            if path.count("/") == 2:
                assert path.rpartition("/")[0] in held
            assert held.get(path) != op.Set.Bytes, "what is as it was is not sent"
            held[path] = op.Set.Bytes
        case "Delete":
            path = op.Delete.Path
            assert not [one for one in held if one.startswith(f"{path}/")]
            del held[path]


@settings(max_examples=50)
@given(HISTORIES, st.lists(st.sampled_from((*NODE_NAMES, "elsewhere")), min_size=4, max_size=4))
def test_a_client_that_changes_its_node_gets_the_difference_of_the_two_views(
    history: list[list[Change]], names: list[str]
) -> None:
    """k07, also while the cluster and the zones of nodes change."""
    cluster = Cluster(config())
    follower = cluster.follow()
    held: dict[ServiceKey, nodev1.Service] = {}
    for batch, name in zip(history, names, strict=False):
        cluster.apply([*batch, *SYNCED])
        for message in told(follower.take(name), "node"):
            for path in message.delete:
                del held[ServiceKey(*path.split("/"))]
            held |= {ServiceKey(one.namespace, one.name): one for one in message.set}
        point = cluster.viewpoint(name)
        expected = {key: state.view(point) for key, state in cluster.services.items() if state.view(point)}
        assert {key: read_service(one, name).ports for key, one in held.items()} == expected


@settings(max_examples=50)
@given(HISTORIES)
def test_by_localv1_a_node_forwards_nowhere_where_it_would_not_by_itself(history: list[list[Change]]) -> None:
    """What localv1 has no words for may be missing; what is there is right."""
    fed, own = run(history, "local", LocalFollowing(config()))
    known = rules(own)
    for key, rule in rules(fed).items():
        assert {str(one) for one in rule.endpoints} <= {str(one) for one in known[key].endpoints}
        # Where the node's own address is known, a filter lets its load balancer's address in as well.
        assert set(rule.source_ranges or ()) <= set(known[key].source_ranges or ())
        assert (rule.source_ranges is None) == (known[key].source_ranges is None)
        assert rule.affinity_timeout_s == known[key].affinity_timeout_s
        assert rule.owner == known[key].owner


@settings(max_examples=50)
@given(HISTORIES, st.integers(0, 3))
def test_a_stream_that_breaks_anywhere_and_begins_anew_passes_on_differences_only(
    history: list[list[Change]], breaks_at: int
) -> None:
    """k09, k10: after the Reset, what the node heard before and what is new, and nothing twice."""
    cluster = Cluster(config())
    following = LocalFollowing(config())
    follower = cluster.follow()
    for number, batch in enumerate(history):
        cluster.apply([*batch, *SYNCED])
        messages = list(told(follower.take("n1"), "local"))
        if number == breaks_at:
            for message in messages[: len(messages) // 2]:
                assert following.receive(message) is None
            follower = cluster.follow()
            messages = list(told(follower.take("n1"), "local"))
        for message in messages:
            following.receive(message)
    again = [following.receive(message) for message in told(cluster.follow().take("n1"), "local")]
    assert again[:-1] == [None] * (len(again) - 1)
    assert again[-1] == (), "a reconnect without any change passes nothing on"
