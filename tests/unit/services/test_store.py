"""Tables for Store: what is kept, and what a change touches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey, ServiceKey
from hansa.errors import Fault
from hansa.net import parse_prefix
from hansa.services.store import Store, Touched
from hansa.services.view import build_view
from hansa.testing import (
    L1,
    NODE,
    NODE_FACTS,
    R1,
    WEB,
    WEB_KEY,
    config,
    endpoint_slice,
    node,
    port,
    service,
    service_cidr,
    slice_port,
)

WEB_A = endpoint_slice("web-a", [L1])
API = service("api", cluster_ips=["10.96.0.11"])
NOTHING = Touched()
EVERYTHING = Touched(everything=True)
FAULTS = (Fault("spec", "is odd"),)


def touching(*keys: ServiceKey) -> Touched:
    return Touched(frozenset(keys))


def store_with(*objects: ApiObject) -> Store:
    store = Store(config())
    for item in objects:
        store.apply(Upsert(item))
    return store


def endpoints(store: Store, key: ServiceKey = WEB_KEY) -> list[str]:
    return [str(one) for view in build_view(store, key, NODE_FACTS, config()) for one in view.selection.reachable]


@pytest.mark.parametrize(
    "known, change, expected",
    [
        # Services
        ([], Upsert(WEB), touching(WEB_KEY)),
        ([WEB], Upsert(WEB), NOTHING),
        ([WEB], Upsert(replace(WEB, uid="u2")), NOTHING),  # P6
        ([WEB], Upsert(replace(WEB, external_ips=())), touching(WEB_KEY)),
        ([WEB], Delete(WEB.object_key), touching(WEB_KEY)),
        ([], Delete(WEB.object_key), NOTHING),
        ([], Upsert(service(headless=True)), NOTHING),  # S1
        ([WEB], Upsert(service(headless=True)), touching(WEB_KEY)),
        ([service(headless=True)], Delete(WEB.object_key), NOTHING),
        ([service(proxy_name="other")], Upsert(service()), touching(WEB_KEY)),  # t008
        ([service()], Upsert(service(external_policy="Local")), NOTHING),  # X2: void on a plain ClusterIP Service
        ([service()], Upsert(service(ports=[port(target_port=9)])), NOTHING),  # E7: targetPort is never read
        ([service()], Upsert(service(health_check_node_port=32000)), NOTHING),  # H1
        ([service()], Upsert(service(ports=[port("http", 81)])), touching(WEB_KEY)),  # P2, t010
        # Slices
        ([], Upsert(WEB_A), NOTHING),  # t069
        ([WEB], Upsert(WEB_A), touching(WEB_KEY)),
        ([WEB, WEB_A], Upsert(WEB_A), NOTHING),
        ([WEB, WEB_A], Upsert(replace(WEB_A, trigger_time=5.0)), NOTHING),  # P7, t066
        ([WEB, WEB_A], Upsert(endpoint_slice("web-a", [R1])), touching(WEB_KEY)),
        ([WEB, WEB_A], Delete(WEB_A.object_key), touching(WEB_KEY)),
        ([WEB], Delete(WEB_A.object_key), NOTHING),  # E15
        ([WEB, API, WEB_A], Upsert(replace(WEB_A, service="api")), touching(WEB_KEY, API.key)),  # E16, t065
        ([WEB, WEB_A], Upsert(replace(WEB_A, service="ghost")), touching(WEB_KEY)),
        ([WEB, WEB_A], Upsert(replace(WEB_A, service=None)), touching(WEB_KEY)),  # E1
        ([WEB], Upsert(replace(WEB_A, service=None)), NOTHING),
        ([WEB], Upsert(endpoint_slice("web-a", family=None)), NOTHING),  # E2
        ([WEB], Upsert(endpoint_slice("web-a")), NOTHING),  # no endpoints in it
        ([WEB], Upsert(endpoint_slice("web-a", [L1], ports=())), NOTHING),  # E5: no ports in it
        ([service(proxy_name="other")], Upsert(WEB_A), NOTHING),  # S4
        # Node
        ([], Upsert(NODE), EVERYTHING),
        ([NODE], Upsert(NODE), NOTHING),
        ([NODE], Upsert(node(zone="zb")), EVERYTHING),  # T12, t098
        ([node(zone=None)], Upsert(node(zone="")), NOTHING),  # T7
        ([NODE], Upsert(node(addresses=["192.0.2.9"])), EVERYTHING),
        ([NODE], Upsert(node(pod_cidrs=["10.1.9.0/24"])), EVERYTHING),
        ([NODE], Upsert(node(taint_keys=["ToBeDeletedByClusterAutoscaler"], deleting=True)), NOTHING),  # H9
        ([NODE], Upsert(node("n2", zone="zb")), NOTHING),
        ([NODE], Delete(NODE.object_key), NOTHING),  # Z8
        # ServiceCIDRs
        ([], Upsert(service_cidr()), EVERYTHING),  # R11, t143
        ([service_cidr()], Upsert(service_cidr()), NOTHING),
        ([service_cidr()], Upsert(service_cidr("more")), NOTHING),
        ([service_cidr(), service_cidr("more")], Delete(service_cidr("more").object_key), NOTHING),  # R11, t144
        ([service_cidr()], Delete(service_cidr().object_key), EVERYTHING),
        ([], Delete(service_cidr().object_key), NOTHING),
        # the rest
        ([WEB], Malformed(WEB.object_key, FAULTS), NOTHING),
        ([], Synced(Kind.SERVICE), NOTHING),
    ],
)
def test_what_a_change_touches(known: list[ApiObject], change: Change, expected: Touched) -> None:
    """P6, P7: compared on derived data; what a proxy cannot notice makes no work."""
    assert store_with(*known).apply(change) == expected


def test_add_and_delete_between_two_syncs() -> None:
    """P5: add then delete = nothing (t011)."""
    store = Store(config())
    store.apply(Upsert(WEB))
    store.apply(Delete(WEB.object_key))
    assert build_view(store, WEB_KEY, NODE_FACTS, config()) == ()
    assert not store.services


def test_slices_before_their_service() -> None:
    """P8: a Service may be added after its slices (t013)."""
    store = store_with(WEB_A)
    assert store.apply(Upsert(WEB)) == touching(WEB_KEY)
    assert endpoints(store) == ["10.1.1.11:8080"]


def test_a_deleted_slice_takes_only_what_it_brought() -> None:
    """E12: the same endpoint in another slice stays (t053)."""
    store = store_with(WEB, WEB_A, endpoint_slice("web-b", [L1, R1]))
    store.apply(Delete(WEB_A.object_key))
    assert endpoints(store) == ["10.1.1.11:8080", "10.1.2.21:8080"]
    store.apply(Delete(ObjectKey(Kind.ENDPOINT_SLICE, "d", "web-b")))
    assert endpoints(store) == []
    assert store.slices_of(WEB_KEY) == ()
    assert not store.slices


def test_a_slice_that_changes_its_owner() -> None:
    """E16: removed from a, added to b (t065)."""
    store = store_with(WEB, API, WEB_A)
    store.apply(Upsert(replace(WEB_A, service="api")))
    assert endpoints(store) == []
    assert endpoints(store, API.key) == ["10.1.1.11:8080"]
    assert len(store.slices) == 1


def test_two_ports_of_one_slice() -> None:
    """E13: endpoints of a port that the Service does not have are kept, and used once it has it (t064)."""
    store = store_with(service(), endpoint_slice("web-a", [L1], ports=[slice_port(), slice_port("metrics", 9100)]))
    assert endpoints(store) == ["10.1.1.11:8080"]
    store.apply(Upsert(service(ports=[port(), port("metrics", 9100)])))
    assert endpoints(store) == ["10.1.1.11:8080", "10.1.1.11:9100"]


def test_malformed_keeps_the_last_good_form() -> None:
    """A malformed object leaves its last good form in force; its faults are known until it is good again or gone."""
    store = store_with(WEB)
    store.apply(Malformed(WEB.object_key, FAULTS))
    assert store.services[WEB_KEY] == WEB
    assert store.malformed == {WEB.object_key: FAULTS}
    assert store.apply(Upsert(WEB)) == NOTHING
    assert store.malformed == {}
    store.apply(Malformed(WEB.object_key, FAULTS))
    assert store.apply(Delete(WEB.object_key)) == touching(WEB_KEY)
    assert store.malformed == {}


def test_skipped_entries_are_kept_beside_the_object() -> None:
    """A4: what was left out can be asked for."""
    store = Store(config())
    store.apply(Upsert(WEB, skipped=FAULTS))
    assert store.skipped == {WEB.object_key: FAULTS}
    assert store.apply(Upsert(WEB)) == NOTHING
    assert store.skipped == {}


def test_ready() -> None:
    """I1, I2: Services and EndpointSlices both, whatever the others do; then everything is due, once (t187)."""
    store = Store(config())
    assert not store.ready
    assert store.apply(Synced(Kind.NODE)) == NOTHING
    assert store.apply(Synced(Kind.SERVICE)) == NOTHING
    assert not store.ready
    assert store.apply(Synced(Kind.ENDPOINT_SLICE)) == EVERYTHING
    assert store.ready
    assert store.apply(Synced(Kind.ENDPOINT_SLICE)) == NOTHING
    assert store.apply(Synced(Kind.SERVICE_CIDR)) == NOTHING
    assert store.synced == frozenset(Kind)


def test_service_cidrs() -> None:
    """R11: reference-counted by object, each prefix once."""
    store = store_with(service_cidr(), service_cidr("more", ["10.97.0.0/16", "10.96.0.0/16", "fd00::/112"]))
    assert store.service_cidrs == tuple(map(parse_prefix, ("10.96.0.0/16", "10.97.0.0/16", "fd00::/112")))
    store.apply(Delete(service_cidr().object_key))
    assert parse_prefix("10.96.0.0/16") in store.service_cidrs
    store.apply(Upsert(service_cidr("more", [])))
    assert store.service_cidrs == ()


def test_the_node_is_ours_and_stays() -> None:
    """Z8: after the Node object vanishes the last seen one is used; I5: names are compared in lower case."""
    store = Store(config(node_name=" N1 "))
    assert store.node is None
    store.apply(Upsert(node("n2")))
    assert store.node is None
    store.apply(Upsert(NODE))
    store.apply(Delete(NODE.object_key))
    assert store.node == NODE


def test_own_proxy_name() -> None:
    """S5: started with its own name, a proxy is touched by its own Services only."""
    store = Store(config(proxy_name="hansa"))
    assert store.apply(Upsert(service())) == NOTHING
    assert store.apply(Upsert(WEB_A)) == NOTHING
    assert store.apply(Upsert(service(proxy_name="hansa"))) == touching(WEB_KEY)
    assert store.apply(Delete(WEB_A.object_key)) == touching(WEB_KEY)


def test_touched_adds_up() -> None:
    """P5: changes between two syncs collapse."""
    both = touching(WEB_KEY) | touching(API.key)
    assert both == touching(WEB_KEY, API.key)
    assert (both | EVERYTHING).everything
    assert not (NOTHING | NOTHING)
    assert both
    assert EVERYTHING
