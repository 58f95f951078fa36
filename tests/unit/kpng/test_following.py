"""What a client makes of odd streams: of KPNG's own brains, of broken ones, of newer ones."""

from __future__ import annotations

from typing import Any

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import EndpointSlice, Node, Service
from hansa.net import IPFamily, Protocol
from hansa.services.model import GivenView
from hansa.sources.kpng import shared
from hansa.sources.kpng.following import ClusterFollowing, LocalFollowing, NodeFollowing
from hansa.sources.kpng.wire import globalv1, localv1, nodev1
from hansa.testing import config

SYNC = localv1.OpItem(Sync=localv1.EmptyOp())
RESET = localv1.OpItem(Reset=localv1.EmptyOp())
SERVICES, ENDPOINTS = localv1.Set.ServicesSet, localv1.Set.EndpointsSet

WEB = localv1.Service(
    Namespace="default",
    Name="web",
    Type="ClusterIP",
    IPs=localv1.ServiceIPs(ClusterIPs=localv1.IPSet(V4=["10.96.0.10"], V6=["fd00::10"])),
    Ports=[localv1.PortMapping(Name="http", Protocol=localv1.Protocol.TCP, Port=80, TargetPort=8080)],
)


def op(kind: Any, path: str, message: Any) -> localv1.OpItem:
    return localv1.OpItem.FromString(shared.set_op(kind, path, message.SerializeToString()))


def gone(kind: Any, path: str) -> localv1.OpItem:
    return localv1.OpItem.FromString(shared.delete_op(kind, path))


def local_endpoint(*v4: str, v6: str = "", port: int = 8080, **fields: Any) -> localv1.Endpoint:
    ips = localv1.IPSet(V4=v4, V6=[v6] if v6 else [])
    return localv1.Endpoint(IPs=ips, PortOverrides=[localv1.PortName(Name="http", Port=port)], **fields)


def feed(following: Any, *messages: Any) -> list[Any]:
    """What a batch passes on; nothing may come before its end."""
    *before, last = messages
    assert [following.receive(one) for one in before] == [None] * len(before)
    found = following.receive(last)
    assert found is not None
    return [one for one in found if not isinstance(one, Synced)]


def endpoints(news: list[Any], family: IPFamily = IPFamily.IPV4) -> list[str]:
    (view,) = news
    (port,) = [one for one in view.ports if one.port.family is family]
    return [str(one) for one in port.selection.cluster]


def test_k09_k10_after_a_reset_only_differences_and_the_deletes_of_what_was_not_resent() -> None:
    following = LocalFollowing(config())
    first = feed(
        following,
        *(RESET, op(SERVICES, "default/web", WEB), op(ENDPOINTS, "default/web/web-0", local_endpoint("10.1.0.5"))),
        *(
            op(SERVICES, "default/api", localv1.Service(Namespace="default", Name="api", IPs=WEB.IPs, Ports=WEB.Ports)),
            SYNC,
        ),
    )
    assert [str(one.service) for one in first] == ["default/api", "default/web"]
    again = feed(
        following,
        *(
            RESET,
            op(SERVICES, "default/web", WEB),
            op(ENDPOINTS, "default/web/web-0", local_endpoint("10.1.0.5")),
            SYNC,
        ),
    )
    assert again == [GivenView(first[0].service, ())]
    # A Reset in the middle of a batch: what came before it is void.
    following.receive(RESET)
    following.receive(op(ENDPOINTS, "default/web/web-9", local_endpoint("10.1.0.9")))
    assert feed(following, RESET, op(SERVICES, "default/web", WEB), SYNC) != []
    assert feed(following, RESET, op(SERVICES, "default/web", WEB), SYNC) == []


def test_w18_k17_unknown_sets_operations_and_fields_are_skipped() -> None:
    following = LocalFollowing(config())
    unknown_set = localv1.OpItem.FromString(bytes.fromhex("1207" + "0a05" + "0863" + "120178"))
    assert unknown_set.Set.Ref.Set == 99
    unknown_op = localv1.OpItem.FromString(bytes.fromhex("2a00"))  # field 5
    newer = op(SERVICES, "default/web", WEB)
    newer.Set.Bytes += bytes.fromhex("fa3f0568656c6c6f")  # field 1023: "hello"
    news = feed(following, RESET, unknown_set, unknown_op, newer, gone(99, "x"), SYNC)
    assert [str(one.service) for one in news] == ["default/web"]
    assert following.trouble == {}


def test_d11_an_endpoint_without_its_service_waits_for_it() -> None:
    following = LocalFollowing(config())
    assert feed(following, RESET, op(ENDPOINTS, "default/web/web-0", local_endpoint("10.1.0.5")), SYNC) == []
    assert endpoints(feed(following, op(SERVICES, "default/web", WEB), SYNC)) == ["10.1.0.5:8080"]


def test_w21_the_two_families_of_a_pod_share_a_path_and_the_last_one_counts() -> None:
    following = LocalFollowing(config())
    path = "default/web/web-0"
    news = feed(
        following,
        *(RESET, op(SERVICES, "default/web", WEB), op(ENDPOINTS, path, local_endpoint("10.1.0.5"))),
        *(op(ENDPOINTS, path, local_endpoint(v6="fd00:1::5")), SYNC),
    )
    assert endpoints(news) == []
    assert endpoints(news, IPFamily.IPV6) == ["[fd00:1::5]:8080"]


def test_broken_messages_cost_only_themselves() -> None:
    following = LocalFollowing(config())
    feed(following, RESET, op(SERVICES, "default/web", WEB), SYNC)
    bad = localv1.Service(Namespace="default", Name="web", IPs=localv1.ServiceIPs(ClusterIPs=localv1.IPSet(V4=["x"])))
    assert feed(following, op(SERVICES, "default/web", bad), SYNC) == [], "the last good form stays in force"
    assert "default/web" in following.trouble
    no_message = localv1.OpItem(
        Set=localv1.Value(Ref=localv1.Ref(Set=ENDPOINTS, Path="default/web/web-0"), Bytes=b"\xff\xff")
    )
    wrong_path = op(SERVICES, "default/web/too/long", WEB)
    other = localv1.Service(Namespace="default", Name="api", IPs=WEB.IPs, Ports=WEB.Ports)
    news = feed(following, no_message, wrong_path, op(SERVICES, "default/api", other), SYNC)
    assert [str(one.service) for one in news] == ["default/api"]
    mended = localv1.Service(Namespace="default", Name="web", IPs=WEB.IPs, Ports=[])
    feed(following, op(SERVICES, "default/web", mended), SYNC)
    assert "default/web" not in following.trouble


def test_scopes_are_kept_to_where_they_are_given() -> None:
    """Both for KPNG's meaning of them and for hansa's, whose sets may differ by more than locality."""
    following = LocalFollowing(config())
    web = localv1.Service()
    web.CopyFrom(WEB)
    web.Ports[0].NodePort = 30080
    web.Type = "NodePort"
    web.ExternalTrafficToLocal = True
    near = local_endpoint("10.1.0.5", Local=True, Scopes=localv1.EndpointScopes(Internal=False, External=True))
    far = local_endpoint("10.1.0.6", Scopes=localv1.EndpointScopes(Internal=True))
    news = feed(
        following,
        *(RESET, op(SERVICES, "default/web", web)),
        *(op(ENDPOINTS, "default/web/a", near), op(ENDPOINTS, "default/web/b", far), SYNC),
    )
    (port, _) = news[0].ports
    assert [str(one) for one in port.selection.cluster] == ["10.1.0.6:8080"]
    assert [str(one) for one in port.selection.local] == ["10.1.0.5:8080"]


# --- globalv1, as KPNG's own brains say it ---


def info(address: str, *, node: str | None = "n1", source: str = "web-a", port: int = 8080, **fields: Any) -> Any:
    ips = localv1.IPSet(V4=[address]) if "." in address else localv1.IPSet(V6=[address])
    topology = {"Topology": globalv1.TopologyInfo(Node=node)} if node is not None else {}
    return globalv1.EndpointInfo(
        Namespace="default",
        SourceName=source,
        ServiceName="web",
        Endpoint=localv1.Endpoint(IPs=ips, PortOverrides=[localv1.PortName(Name="http", Port=port)]),
        **topology,
        **fields,
    )


def service_info() -> localv1.OpItem:
    return op(localv1.Set.GlobalServiceInfos, "default|web||", globalv1.ServiceInfo(Hash=7, Service=WEB))


def set_endpoint(path: str, value: Any) -> localv1.OpItem:
    return op(localv1.Set.GlobalEndpointInfos, path, value)


def objects(news: list[Any], kind: type[Any]) -> list[Any]:
    return [one.object for one in news if isinstance(one, Upsert) and isinstance(one.object, kind)]


def test_w17_an_endpoint_that_comes_under_two_paths_is_one_in_either_order() -> None:
    first, second = "default|web|web-a|1f", "default||web-a|1f"
    for paths in ((first, second), (second, first), (first,), (second,)):
        following = ClusterFollowing()
        news = feed(following, RESET, service_info(), *(set_endpoint(one, info("10.1.0.5")) for one in paths), SYNC)
        (piece,) = objects(news, EndpointSlice)
        assert [str(one.address) for one in piece.endpoints] == ["10.1.0.5"]
        assert (piece.name, piece.service) == ("web-a", "web")
        deletes = [gone(localv1.Set.GlobalEndpointInfos, one) for one in paths]
        assert [str(one.key) for one in feed(following, *deletes, SYNC)] == ["EndpointSlice default/web-a"]


def test_an_endpoint_that_changes_comes_under_a_new_key_before_the_old_one_goes() -> None:
    following = ClusterFollowing()
    feed(following, RESET, service_info(), set_endpoint("default|web|web-a|1f", info("10.1.0.5")), SYNC)
    news = feed(
        following,
        set_endpoint("default|web|web-a|2f", info("10.1.0.5", Conditions=globalv1.EndpointConditions(Ready=False))),
        *(gone(localv1.Set.GlobalEndpointInfos, "default|web|web-a|1f"), SYNC),
    )
    (piece,) = objects(news, EndpointSlice)
    assert [(one.ready, one.serving) for one in piece.endpoints] == [(False, False)]


def test_k14_a_path_with_three_parts_is_skipped() -> None:
    following = ClusterFollowing()
    short = set_endpoint("default|web|web-a", info("10.1.0.5"))
    news = feed(following, RESET, service_info(), short, set_endpoint("default|web|web-a|1", info("10.1.0.6")), SYNC)
    assert [str(one.address) for one in objects(news, EndpointSlice)[0].endpoints] == ["10.1.0.6"]
    assert "3 parts instead of 4" in following.trouble["default|web|web-a"]


def test_k15_an_endpoint_without_topology_and_conditions_is_ready_and_nowhere() -> None:
    following = ClusterFollowing()
    news = feed(
        following, RESET, service_info(), set_endpoint("default|web|web-a|1", info("10.1.0.5", node=None)), SYNC
    )
    (one,) = objects(news, EndpointSlice)[0].endpoints
    assert (one.node_name, one.ready, one.serving, one.terminating) == (None, True, True, False)


def test_slices_of_kpng_have_neither_families_nor_protocols_and_get_both_back() -> None:
    following = ClusterFollowing()
    web = localv1.Service()
    web.CopyFrom(WEB)
    web.Ports.append(localv1.PortMapping(Name="dns", Protocol=localv1.Protocol.UDP, Port=53))
    two = info("10.1.0.5")
    two.Endpoint.PortOverrides.append(localv1.PortName(Name="dns", Port=5353))
    news = feed(
        following,
        RESET,
        op(localv1.Set.GlobalServiceInfos, "default|web||", globalv1.ServiceInfo(Hash=0, Service=web)),
        *(set_endpoint("default|web|web-a|1", two), set_endpoint("default|web|web-a|2", info("fd00:1::5")), SYNC),
    )
    pieces = {one.family: one for one in objects(news, EndpointSlice)}
    assert {(one.name, one.protocol, one.port) for one in pieces[IPFamily.IPV4].ports} == {
        ("http", Protocol.TCP, 8080),
        ("dns", Protocol.UDP, 5353),
    }
    assert {one.name for one in pieces[IPFamily.IPV6].ports} == {"http"}
    assert len({one.name for one in pieces.values()}) == 2


def test_endpoints_before_their_service_get_their_ports_when_it_comes() -> None:
    following = ClusterFollowing()
    news = feed(following, RESET, set_endpoint("default|web|web-a|1", info("10.1.0.5")), SYNC)
    assert objects(news, EndpointSlice)[0].ports == ()
    news = feed(following, service_info(), SYNC)
    assert [one.port for one in objects(news, EndpointSlice)[0].ports] == [8080]
    assert len(objects(news, Service)) == 1


def test_nodes_and_deletes_of_a_cluster() -> None:
    following = ClusterFollowing()
    held = globalv1.NodeInfo(
        Hash=1, Node=globalv1.Node(Name="n1", Topology=globalv1.TopologyInfo(Node="n1", Zone="za"))
    )
    news = feed(following, RESET, op(localv1.Set.GlobalNodeInfos, "|n1||", held), service_info(), SYNC)
    assert objects(news, Node) == [Node("n1", zone="za")]
    assert feed(following, RESET, op(localv1.Set.GlobalNodeInfos, "|n1||", held), service_info(), SYNC) == []
    news = feed(following, RESET, SYNC)
    assert {str(one.key) for one in news if isinstance(one, Delete)} == {"Node n1", "Service default/web"}


def test_what_is_lost_depends_on_who_speaks() -> None:
    """A brain of KPNG does not tell whether an endpoint serves, one of hansa does."""
    following = ClusterFollowing()
    feed(following, RESET, service_info(), set_endpoint("default|web|web-a|1", info("10.1.0.5")), SYNC)
    assert any("serving" in line for line in following.lost)
    conditions = globalv1.EndpointConditions(Ready=True, Serving=True, Terminating=False)
    told = set_endpoint("default|web|web-a|1", info("10.1.0.5", Conditions=conditions))
    feed(following, RESET, service_info(), told, SYNC)
    assert not any("serving" in line for line in following.lost)


# --- the node API ---


def view(address: str) -> nodev1.Service:
    return nodev1.Service(
        namespace="default",
        name="web",
        ports=[
            nodev1.Port(
                name="http",
                protocol=nodev1.Protocol.TCP,
                family=nodev1.Family.IPV4,
                port=80,
                cluster_ip="10.96.0.10",
                endpoints=[nodev1.Endpoint(address=address, port=8080, ready=True, serving=True)],
                internal=nodev1.Decision(verdict=nodev1.Verdict.FORWARD, endpoints=[0]),
            )
        ],
    )


def test_the_node_api_passes_differences_on_and_keeps_what_cannot_be_read() -> None:
    following = NodeFollowing("n1")
    first = nodev1.WatchResponse(reset=True, set=[view("10.1.0.5")], revision=3, sync=True)
    assert [str(one.service) for one in feed(following, first)] == ["default/web"]
    assert following.revision == 3
    assert feed(following, first) == []
    bad = view("no address")
    assert feed(following, nodev1.WatchResponse(reset=True, set=[bad], revision=4, sync=True)) == []
    assert "default/web" in following.trouble
    unknown = nodev1.WatchResponse.FromString(first.SerializeToString() + bytes.fromhex("fa3f0568656c6c6f"))
    assert feed(following, unknown) == []
    assert following.trouble == {}
    assert feed(following, nodev1.WatchResponse(reset=True, revision=5, sync=True)) == [
        GivenView(feed_key(view("x")), ())
    ]


def feed_key(service: nodev1.Service) -> Any:
    from hansa.api.objects import ServiceKey

    return ServiceKey(service.namespace, service.name)


def test_a_batch_of_several_messages_is_one() -> None:
    following = NodeFollowing("n1")
    parts = [
        nodev1.WatchResponse(reset=True, set=[view("10.1.0.5")]),
        nodev1.WatchResponse(node=nodev1.NodeObject(name="n1", zone="za", addresses=["192.0.2.1"])),
        nodev1.WatchResponse(service_ranges=nodev1.ServiceRanges(prefixes=["10.96.0.0/16"]), revision=1, sync=True),
    ]
    news = feed(following, *parts)
    assert {type(one).__name__ for one in news} == {"GivenView", "Upsert"}
    assert {str(one.key) for one in news} == {"Service default/web", "Node n1", "ServiceCIDR brain"}


def test_another_sort_of_stream_goes_on_from_what_was_passed_on() -> None:
    """A brain that is replaced by an older one: what both say is passed on once, what only the first said goes."""
    node_api = NodeFollowing("n1")
    feed(node_api, nodev1.WatchResponse(reset=True, set=[view("10.1.0.5")], revision=1, sync=True))
    local = LocalFollowing(config())
    local.take_over(node_api)
    assert feed(local, RESET, SYNC) == [GivenView(feed_key(view("x")), ())]
