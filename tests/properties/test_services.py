"""Laws of stages 1 and 2 over random objects, histories and texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import (
    Cluster,
    api_objects,
    changes,
    clusters,
    endpoint_slices,
    final_objects,
    histories,
    service_ports,
    services,
)

from hansa.api import wire
from hansa.api.change import Change, Synced, Upsert
from hansa.api.decode import _decode_slowly, decode, decode_object, object_key, raw_key
from hansa.api.objects import ApiObject, EndpointSlice, Kind, Node, Policy, ServiceKey
from hansa.config import Config
from hansa.errors import Fault, MalformedObject
from hansa.net import IPFamily
from hansa.services.endpoints import select_endpoints
from hansa.services.model import NodeFacts, Reason, ServicePort, ServicePortName, ServicePortView, TopologyMode
from hansa.services.node import node_facts
from hansa.services.slices import merge_slices
from hansa.services.store import Store, Touched
from hansa.services.view import build_view
from hansa.testing import CLUSTER_IP, EXTERNAL_IP, NODE_ADDRESSES, NODE_FACTS, config, manifest, manifest_json

laws = settings(max_examples=50, deadline=None, derandomize=True)
many = settings(laws, max_examples=100)
View = dict[ServiceKey, tuple[ServicePortView, ...]]


def facts_of(store: Store, settings: Config) -> NodeFacts:
    return node_facts(store.node, settings, NODE_ADDRESSES)


def views_of(store: Store) -> View:
    """The views of every Service that has one."""
    built = {key: build_view(store, key, facts_of(store, config()), config()) for key in store.services}
    return {key: view for key, view in built.items() if view}


def replay(history: Sequence[Change]) -> Store:
    store = Store(config())
    for change in history:
        store.apply(change)
    return store


# Store


@laws
@given(histories())
def test_an_incremental_view_equals_one_built_from_scratch(history: list[Change]) -> None:
    """P5: only the state at the end counts, not the way there."""
    fresh = replay([Upsert(item) for item in final_objects(history).values()])
    store = replay(history)
    assert views_of(store) == views_of(fresh)
    assert store.service_cidrs == fresh.service_cidrs


@laws
@given(clusters(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(cluster: Cluster, random: Any) -> None:
    """P8: a Service may come before its slices or after them."""
    shuffled = list(cluster.changes)
    random.shuffle(shuffled)
    assert views_of(replay(shuffled)) == views_of(replay(cluster.changes))


@laws
@given(histories(), changes())
def test_what_a_change_does_not_touch_stays_the_same(history: list[Change], change: Change) -> None:
    """P6, P7: a view that changes is always among those named."""
    store = replay(history)
    before, prefixes = views_of(store), store.service_cidrs
    touched = store.apply(change)
    after = views_of(store)
    if not touched.everything:
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed <= touched.services
        assert store.service_cidrs == prefixes


@laws
@given(histories(), changes())
def test_a_repeated_change_touches_nothing(history: list[Change], change: Change) -> None:
    """P5, E15: what is known already makes no work."""
    store = replay(history)
    store.apply(change)
    assert not store.apply(change)


@laws
@given(histories())
def test_views_built_from_touched_services_alone_are_complete(history: list[Change]) -> None:
    """Full build equals incremental: whoever rebuilds only what is named ends with the whole truth."""
    store, kept = Store(config()), {}
    for change in history:
        touched = store.apply(change)
        names = (kept.keys() | store.services.keys()) if touched.everything else touched.services
        for key in names:
            kept[key] = build_view(store, key, facts_of(store, config()), config())
    assert {key: view for key, view in kept.items() if view} == views_of(store)


@laws
@given(histories(), st.integers(0, 12))
def test_touched_values_add_up(history: list[Change], cut: int) -> None:
    """Batches may be joined in any way: `|` is associative and nothing is lost."""
    store = Store(config())
    touched = [store.apply(change) for change in history]
    left = Touched()
    for one in touched[:cut]:
        left |= one
    right = Touched()
    for one in touched[cut:]:
        right |= one
    assert bool(left | right) == any(touched)
    assert (left | right).services == frozenset(key for one in touched for key in one.services)


@laws
@given(histories(max_size=20))
def test_the_indexes_agree(history: list[Change]) -> None:
    """E16: a slice is found under the Service that its label names now, and nowhere else."""
    store = replay(history)
    owners = {piece.service_key for piece in store.slices.values() if piece.service_key is not None}
    found = [piece for owner in owners for piece in store.slices_of(owner)]
    assert sorted(piece.name for piece in found) == sorted(
        piece.name for piece in store.slices.values() if piece.service_key is not None
    )
    assert all(piece in store.slices_of(piece.service_key) for piece in found if piece.service_key)
    assert not store.slices_of(ServiceKey("d", "nobody"))


# Slices and selection


@laws
@given(st.lists(endpoint_slices(), max_size=4, unique_by=lambda one: one.name), st.randoms(use_true_random=False))
def test_merging_is_a_set_operation_in_textual_order(slices: list[EndpointSlice], random: Any) -> None:
    """E3, E14."""
    merged = merge_slices(slices, family=IPFamily.IPV4, node_name="n1")
    shuffled = list(slices)
    random.shuffle(shuffled)
    assert merge_slices(shuffled, family=IPFamily.IPV4, node_name="n1") == merged
    for candidates in merged.values():
        texts = [str(one.endpoint) for one in candidates]
        assert texts == sorted(set(texts))


@laws
@given(
    st.lists(endpoint_slices(), min_size=1, max_size=4, unique_by=lambda one: one.name),
    st.sampled_from(IPFamily),
)
def test_each_place_is_held_by_its_best_claimant(slices: list[EndpointSlice], family: IPFamily) -> None:
    """E10, E11: non-terminating before terminating, ready before not, then the lexically first slice name."""
    merged = merge_slices(slices, family=family, node_name="n1")
    claims: dict[tuple[Any, str], list[tuple[Any, ...]]] = {}
    for piece in slices:
        if piece.family is family:
            for port in piece.ports:
                for index, one in enumerate(piece.endpoints):
                    place = ((port.name, port.protocol), f"{one.address}:{port.port}")
                    order = (one.terminating, not one.ready, one.terminating and not one.serving, piece.name, index)
                    claims.setdefault(place, []).append((*order, one))
    found = {
        (key, f"{one.endpoint.address}:{one.endpoint.port}"): one
        for key, candidates in merged.items()
        for one in candidates
    }
    assert found.keys() == claims.keys()
    for place, entries in claims.items():
        best = min(entries, key=lambda entry: entry[:5])[5]
        held = found[place]
        assert (held.endpoint.ready, held.endpoint.terminating) == (best.ready, best.terminating)
        assert held.endpoint.local == (best.node_name == "n1")
        assert held.zone_hints == best.zone_hints


@st.composite
def selections(draw: st.DrawFn) -> tuple[ServicePort, tuple[Any, ...], NodeFacts]:
    """A port with any policies and frontends, any candidates, and this node in some zone."""
    pieces = draw(st.lists(endpoint_slices(), max_size=3, unique_by=lambda one: one.name))
    merged = merge_slices(pieces, family=IPFamily.IPV4, node_name="n1")
    candidates = draw(st.sampled_from([*merged.values(), ()]))
    port = ServicePort(
        name=ServicePortName("d", "web", "http", draw(service_ports().filter(bool))[0].protocol),
        family=IPFamily.IPV4,
        port=80,
        cluster_ip=CLUSTER_IP,
        node_port=draw(st.sampled_from((0, 30080))),
        external_ips=draw(st.sampled_from(((), (EXTERNAL_IP,)))),
        internal_policy=draw(st.sampled_from(Policy)),
        external_policy=draw(st.sampled_from(Policy)),
    )
    return port, candidates, replace(NODE_FACTS, zone=draw(st.sampled_from((None, "za", "zb"))))


@laws
@given(selections())
def test_selection_follows_the_six_steps(given: tuple[ServicePort, Any, NodeFacts]) -> None:
    """Section 10, steps 1 to 4, in the plainest words that Python has."""
    port, candidates, node = given
    chosen = select_endpoints(port, candidates, node)
    ready = [one for one in candidates if one.endpoint.ready]
    draining = [
        one for one in candidates if not one.endpoint.ready and one.endpoint.serving and one.endpoint.terminating
    ]

    cluster_wanted = port.internal_policy is not Policy.LOCAL or port.externally_accessible
    local_wanted = port.internal_policy is Policy.LOCAL or (
        port.external_policy is Policy.LOCAL and port.externally_accessible
    )
    assert (chosen.cluster is not None, chosen.local is not None) == (cluster_wanted, local_wanted)
    if cluster_wanted:
        hinted = ready
        if ready and all(one.node_hints for one in ready) and any(node.name in one.node_hints for one in ready):
            hinted = [one for one in ready if node.name in one.node_hints]
        elif node.zone and all(one.zone_hints for one in ready) and any(node.zone in one.zone_hints for one in ready):
            hinted = [one for one in ready if node.zone in one.zone_hints]
        assert chosen.cluster == tuple(one.endpoint for one in (hinted or draining))
    if local_wanted:
        near = [one.endpoint for one in ready if one.endpoint.local]
        assert chosen.local == tuple(near or [one.endpoint for one in draining if one.endpoint.local])
    assert chosen.any_usable == (bool(chosen.cluster) or (local_wanted and bool(ready or draining)))


@laws
@given(selections())
def test_every_endpoint_is_chosen_or_has_a_reason(given: tuple[ServicePort, Any, NodeFacts]) -> None:
    """The chosen and the excluded are all candidates, each once; reasons fit the endpoint."""
    port, candidates, node = given
    chosen = select_endpoints(port, candidates, node)
    reachable, excluded = chosen.reachable, [one for one, _ in chosen.excluded]
    assert sorted(map(str, (*reachable, *excluded))) == [str(one.endpoint) for one in candidates]
    assert list(map(str, reachable)) == sorted(map(str, reachable))
    usable = [str(one.endpoint) for one in candidates if one.endpoint.ready or one.endpoint.serving]
    assert list(map(str, chosen.enduring)) == usable
    for one, reason in chosen.excluded:
        match reason:
            case Reason.NOT_READY:
                assert not one.ready
                assert not one.terminating
            case Reason.NOT_SERVING:
                assert not one.ready
                assert not one.serving
            case Reason.TERMINATING:
                assert any(other.endpoint.ready for other in candidates)
                assert one.terminating
            case Reason.NOT_LOCAL:
                assert not one.local
                assert chosen.cluster is None
            case Reason.OTHER_ZONE:
                assert chosen.topology is TopologyMode.SAME_ZONE
            case Reason.OTHER_NODE:
                assert chosen.topology is TopologyMode.SAME_NODE
            case _:
                pytest.fail(f"{reason} is no reason to exclude")


@laws
@given(selections())
def test_hints_never_reach_the_local_set_nor_a_fallback(given: tuple[ServicePort, Any, NodeFacts]) -> None:
    """T1, C9."""
    port, candidates, node = given
    bare = tuple(one._replace(zone_hints=frozenset(), node_hints=frozenset()) for one in candidates)
    with_hints, without = select_endpoints(port, candidates, node), select_endpoints(port, bare, node)
    assert with_hints.local == without.local
    assert with_hints.any_usable == without.any_usable
    if with_hints.cluster_fallback:
        assert with_hints.cluster == without.cluster
    assert (not with_hints.cluster) == (not without.cluster)


@laws
@given(clusters())
def test_views_are_sorted_and_of_one_family(cluster: Cluster) -> None:
    """Section 0: each family is decided from its own data; E14 and P1 give the order."""
    for key, view in views_of(replay(cluster.changes)).items():
        keys = [one.key for one in view]
        assert keys == sorted(keys)
        assert len(set(keys)) == len(keys)
        for one in view:
            addresses = (one.port.cluster_ip, *one.port.external_ips, *one.port.load_balancer_vips, *one.local_ready)
            version = 4 if one.port.family is IPFamily.IPV4 else 6
            assert {address.version for address in addresses} == {version}
            assert {endpoint.address.version for endpoint in one.selection.reachable} <= {version}
            assert one.port.name.service_key == key


# Decoding


@laws
@given(api_objects())
def test_a_manifest_decodes_to_the_object_that_it_was_made_of(item: ApiObject) -> None:
    """A11, C1-C3, E4-E9, Y2: nothing is lost or added on the way."""
    assert decode_object(manifest(item)).object == item
    assert decode(item.object_key.kind, manifest_json(item)).object == item


_ODD: tuple[object, ...] = (
    None,
    "",
    "x",
    "80",
    "None",
    0,
    -1,
    70000,
    1.5,
    10**30,
    True,
    [],
    {},
    [None],
    [{}],
    [5],
    {"name": 5},
    "::ffff:1.2.3.4",
    "010.001.002.003",
    "10.0.0.0/8",
    "FQDN",
    "Local",
    "ClientIP",
    "2026-01-02T03:04:05Z",
)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        found += _places(value, (*path, name))
    return found


@st.composite
def bent_manifests(draw: st.DrawFn) -> dict[str, Any]:
    """A good manifest with up to three values replaced by odd ones, or removed."""
    tree = json.loads(manifest_json(draw(st.one_of(api_objects(), services(), endpoint_slices()))))
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _places(tree) if place not in (("kind",), ("apiVersion",))]
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        target = tree
        for step in above:
            target = target[step]
        if draw(st.booleans()) or isinstance(last, int):
            target[last] = deepcopy(draw(st.sampled_from(_ODD)))  # a later change may bend it again
        else:
            del target[last]
    return tree


Outcome = Upsert | tuple[str, tuple[Fault, ...]]


def outcome(read: Callable[[], Upsert]) -> Outcome:
    """What was read, or the faults, of which there is at least one. Any other exception fails the test."""
    try:
        return read()
    except MalformedObject as error:
        return (error.subject, error.faults) if error.faults else ("no fault", ())


def fast(kind: Kind, tree: object) -> Outcome:
    return outcome(lambda: decode(kind, json.dumps(tree).encode()))


def slow(kind: Kind, tree: object) -> Outcome:
    """The tolerant walk alone, put to the same judgement as the fast way."""
    return outcome(lambda: _decode_slowly(kind, tree))


def faults_of(found: Outcome) -> tuple[Fault, ...]:
    return () if isinstance(found, Upsert) else found[1]


@many
@given(bent_manifests())
def test_the_slow_way_decides_as_the_fast_one(tree: dict[str, Any]) -> None:
    """Decoding: listing all faults must not change what counts as one."""
    kind = Kind(tree["kind"])
    assert slow(kind, tree) == fast(kind, tree)


@many
@given(bent_manifests())
def test_each_fault_stands_alone(tree: dict[str, Any]) -> None:
    """Every fault is listed once, at a field of its own, and parsed manifests are judged like bytes."""
    kind = Kind(tree["kind"])
    found = fast(kind, tree)
    fields = [fault.field for fault in faults_of(found)]
    assert bool(fields) != isinstance(found, Upsert)
    assert len(set(fields)) == len(fields)
    assert outcome(lambda: decode_object(tree)) == found
    assert object_key(tree) == raw_key(kind, json.dumps(tree).encode())


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("metadata", "spec", "status", "ports", "endpoints", "name", "port", "labels", "addresses", "kind", "x")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@many
@given(st.sampled_from(Kind), _json)
def test_any_json_is_decoded_or_refused(kind: Kind, tree: object) -> None:
    """Nothing crashes: an object or its faults, and the same by both ways."""
    assert fast(kind, tree) == slow(kind, tree)
    raw_key(kind, json.dumps(tree).encode())
    if isinstance(tree, dict):
        tree["kind"] = str(kind)
        assert object_key(tree) is not None


@many
@given(st.sampled_from(Kind), st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(kind: Kind, raw: bytes) -> None:
    """Nothing crashes: what is not JSON is a fault like any other."""
    found = outcome(lambda: decode(kind, raw))
    assert isinstance(found, Upsert) or faults_of(found)
    assert raw_key(kind, raw).kind is kind


_yaml_like = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.dates() | st.datetimes() | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("name", "port", "spec", "metadata")) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@many
@given(st.sampled_from(Kind), _yaml_like, _yaml_like)
def test_whatever_yaml_can_say_is_decoded_or_refused(kind: Kind, metadata: object, spec: object) -> None:
    """Manifests hold dates, bytes and keys that are no text; that is the author's fault, not a crash."""
    tree = {"kind": str(kind), "metadata": metadata, "spec": spec, "ports": spec}
    found = outcome(lambda: decode_object(tree))
    assert isinstance(found, Upsert) or faults_of(found)


@laws
@given(bent_manifests())
def test_salvage_without_a_fault_is_a_plain_conversion(tree: dict[str, Any]) -> None:
    """The tolerant walk is msgspec's own reading, leaf by leaf."""
    shape = {
        Kind.SERVICE: wire.ServiceObject,
        Kind.ENDPOINT_SLICE: wire.SliceObject,
        Kind.NODE: wire.NodeObject,
        Kind.SERVICE_CIDR: wire.ServiceCIDRObject,
    }[Kind(tree["kind"])]
    found, faults = wire.salvage(tree, shape)
    if faults:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(tree, shape)
    else:
        assert found == msgspec.convert(tree, shape)


@laws
@given(clusters())
def test_a_start_makes_everything_due_exactly_once(cluster: Cluster) -> None:
    """I1: readiness comes with the second of the two kinds, and once."""
    store = Store(config())
    touched = [store.apply(change) for change in cluster.changes]
    assert store.ready
    marks = [
        one
        for one, change in zip(touched, cluster.changes, strict=True)
        if isinstance(change, Synced) and one.everything
    ]
    assert len(marks) == 1


@laws
@given(histories())
def test_the_last_seen_node_stays(history: list[Change]) -> None:
    """Z8: only this proxy's Node counts, and a deletion does not forget it."""
    seen = [one.object for one in history if isinstance(one, Upsert) and isinstance(one.object, Node)]
    own = [node for node in seen if node.name == "n1"]
    assert replay(history).node == (own[-1] if own else None)
