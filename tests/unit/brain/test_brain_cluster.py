"""What nodes share, what they do not, and what a follower costs."""

from __future__ import annotations

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import Kind, Node
from hansa.brain.batches import node_batch
from hansa.brain.book import NodeBook
from hansa.brain.cluster import Cluster, Viewpoint
from hansa.sources.kpng.node import NodeReport
from hansa.sources.kpng.wire import nodev1
from hansa.testing import L1, R1, WEB, config, endpoint, endpoint_slice, node, service, service_cidr

SYNCED = [Synced(kind) for kind in Kind]


def made(*objects: object) -> Cluster:
    cluster = Cluster(config())
    cluster.apply([*(Upsert(one) for one in objects), *SYNCED])  # type: ignore[arg-type]
    return cluster


def test_nodes_without_endpoints_share_one_view_and_its_bytes() -> None:
    cluster = made(WEB, endpoint_slice("web-a", [L1, R1]), *(node(f"m{number}") for number in range(50)))
    (state,) = cluster.services.values()
    batches = {f"m{n}": [one for one in node_batch(cluster.follow().take(f"m{n}")) if one] for n in range(50)}
    views = {id(state.view(cluster.viewpoint(name))) for name in batches}
    assert len(views) == 1
    assert state.view(cluster.viewpoint("n1")) != state.view(cluster.viewpoint("m1"))
    # The bytes of the Service are one object, however many are told.
    raw = nodev1.WatchResponse.FromString(batches["m1"][-1]).set[0].SerializeToString()
    assert state.plain
    assert raw in state.plain
    # With policy Local a node with endpoints is told something of its own, and all others are told the same.
    web = service("web", internal_policy="Local")
    (state,) = made(web, endpoint_slice("web-a", [L1, R1])).services.values()
    told = {state.told_from(Viewpoint(name)) for name in ("n1", "n2", "m1", "m2", "m3")}
    assert told == {Viewpoint("n1"), Viewpoint("n2"), Viewpoint("")}


def test_zones_matter_only_where_hints_name_them() -> None:
    hinted = endpoint_slice("web-a", [endpoint("10.1.0.1", zone_hints=["za"]), endpoint("10.1.0.2", zone_hints=["zb"])])
    (state,) = made(WEB, hinted).services.values()
    assert state.seen_from(Viewpoint("m1", "za")) == Viewpoint("", "za")
    assert state.seen_from(Viewpoint("m1", "zc")) == Viewpoint("", "")
    assert [str(one) for one in state.view(Viewpoint("m1", "zb"))[0].selection.cluster or ()] == ["10.1.0.2:8080"]
    assert len(state.view(Viewpoint("m1", "zc"))[0].selection.cluster or ()) == 2


def test_k23_with_both_policies_local_the_short_circuit_set_holds_remote_endpoints() -> None:
    web = service("web", type="NodePort", node_port=30080, internal_policy="Local", external_policy="Local")
    cluster = made(web, endpoint_slice("web-a", [R1]))
    (raw,) = [one for one in node_batch(cluster.follow().take("n1")) if one]
    (port,) = nodev1.WatchResponse.FromString(raw).set[0].ports
    assert port.short_circuit.verdict == nodev1.Verdict.FORWARD
    assert [port.endpoints[place].address for place in port.short_circuit.endpoints] == ["10.1.2.21"]
    assert port.internal.verdict == port.external.verdict == nodev1.Verdict.DROP
    assert not port.internal.endpoints


def test_d2_the_fallback_of_each_policy_is_told_apart() -> None:
    draining = endpoint("10.1.1.12", node="n1", ready=False, terminating=True)
    web = service("web", type="NodePort", node_port=30080, external_policy="Local")
    cluster = made(web, endpoint_slice("web-a", [R1, draining]))
    (raw,) = [one for one in node_batch(cluster.follow().take("n1")) if one]
    (port,) = nodev1.WatchResponse.FromString(raw).set[0].ports
    assert [port.endpoints[place].address for place in port.external.endpoints] == ["10.1.1.12"]
    assert (port.external.fallback, port.internal.fallback) == (True, False)


def test_a_follower_holds_one_entry_for_each_service_that_changed_however_often() -> None:
    cluster = made(WEB, endpoint_slice("web-a", [L1]))
    follower = cluster.follow()
    follower.take("n1")
    for number in range(20):
        cluster.apply([Upsert(endpoint_slice("web-a", [L1, f"10.1.3.{number}"]))])
    assert follower.waiting == 1
    assert cluster.revision == 21
    cluster.apply([Upsert(endpoint_slice("web-a", [L1]))])
    assert not [one for one in node_batch(follower.take("n1")) if one], "there and back again is nothing"


def test_what_makes_no_difference_raises_no_revision() -> None:
    cluster = made(WEB, endpoint_slice("web-a", [L1], trigger_time=1.0), node())
    cluster.apply([Upsert(WEB), Upsert(endpoint_slice("web-a", [L1], trigger_time=2.0)), Upsert(node()), *SYNCED])
    cluster.apply([Delete(service("unknown").object_key)])
    assert cluster.revision == 1
    assert cluster.events == 7


def test_a_node_is_told_of_itself_and_of_no_other() -> None:
    cluster = made(node("n1"), node("n2"), service_cidr())
    follower = cluster.follow()
    (raw,) = node_batch(follower.take("n1"))
    first = nodev1.WatchResponse.FromString(raw)
    assert (first.node.name, first.node.zone) == ("n1", "za")
    assert list(first.service_ranges.prefixes) == ["10.96.0.0/16"]
    cluster.apply([Upsert(node("n2", zone="zz"))])
    assert not [one for one in node_batch(follower.take("n1")) if one]
    cluster.apply([Upsert(node("n1", deleting=True))])
    (raw,) = node_batch(follower.take("n1"))
    assert nodev1.WatchResponse.FromString(raw).node.deleting


def test_a_node_that_gets_a_zone_sees_services_from_there() -> None:
    hinted = endpoint_slice("web-a", [endpoint("10.1.0.1", zone_hints=["za"]), endpoint("10.1.0.2", zone_hints=["zb"])])
    cluster = made(WEB, hinted, Node("n1"))
    follower = cluster.follow()
    follower.take("n1")
    cluster.apply([Upsert(Node("n1", zone="zb"))])
    (raw,) = node_batch(follower.take("n1"))
    (port,) = nodev1.WatchResponse.FromString(raw).set[0].ports
    assert [port.endpoints[place].address for place in port.internal.endpoints] == ["10.1.0.2"]


def test_nothing_is_complete_before_services_slices_and_nodes_are() -> None:
    """D9: what is not complete yet must not look like what is gone."""
    cluster = Cluster(config())
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
        cluster.apply([Synced(kind)])
        assert not cluster.ready
    cluster.apply([Synced(Kind.NODE)])
    assert cluster.ready


def test_large_batches_come_in_several_messages_of_which_the_last_has_the_sync() -> None:
    services = [service(f"s{number}", cluster_ips=[f"10.96.{number // 250}.{number % 250}"]) for number in range(2500)]
    slices = [endpoint_slice(f"s{n}", [f"10.1.1.{i}" for i in range(4)], service=f"s{n}") for n in range(2500)]
    cluster = made(*services, *slices)
    messages = [one for one in node_batch(cluster.follow().take("n1")) if one]
    assert len(messages) >= 2
    assert max(map(len, messages)) < 1024 * 1024, "far below what gRPC's clients refuse"
    parsed = [nodev1.WatchResponse.FromString(one) for one in messages]
    assert [one.sync for one in parsed] == [False] * (len(parsed) - 1) + [True]
    assert [one.reset for one in parsed] == [True] + [False] * (len(parsed) - 1)
    assert sum(len(one.set) for one in parsed) == 2500


def test_the_book_says_who_is_where() -> None:
    book = NodeBook()
    entry = book.join("n1", "hansa.node.v1.Node", peer="ipv4:1", now=1.0)
    assert entry.state == "waiting"
    entry.sent_revision = 5
    assert entry.state == "sent"
    entry.report = NodeReport(applied_revision=4, received_revision=5)
    assert entry.state == "behind"
    entry.report = NodeReport(applied_revision=5, received_revision=5, host_state="healthy")
    assert entry.state == "applied"
    entry.report = NodeReport(applied_revision=5, received_revision=5, failures=(("a", "b"),))
    assert entry.state == "failing"
    entry.report = NodeReport(applied_revision=5, received_revision=5, host_state="unavailable")
    assert entry.state == "failing"
    book.leave(entry)
    assert entry.state == "absent"
    for number in range(1100):
        book.leave(book.join(f"m{number}", "x", peer="", now=10.0 + number))
    assert len(book.entries) == 1000
    assert ("n1", "hansa.node.v1.Node") not in book.entries, "who has been away longest is forgotten first"
