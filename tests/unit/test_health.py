"""Health over real loopback sockets, with an engine whose time the tests move. Service-semantics sections 14 and 15."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from tests.api_server import ApiServer
from tests.dictionary_dataplane import RETRY_S, DictionaryDataplane
from tests.engine_stage import API, LISTED, START, FakeClock, ListedSource, Stage, in_loop, stage
from tests.ports import free_port
from tests.replies import Reply, ask

from hansa.api.change import Upsert
from hansa.config import BindAddress, NodePortAddresses
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.engine import Engine
from hansa.errors import DataplaneError
from hansa.events import Event
from hansa.health import Servers, serving
from hansa.health_answers import Listener
from hansa.health_http import RETRY_S as BIND_RETRY_S
from hansa.health_http import is_local
from hansa.hns.api import HnsKind, HnsVerb, HResult
from hansa.hns.client import HnsClient
from hansa.hns.emulator import l2bridge_node
from hansa.hns.emulator.faults import Fault, Refuse
from hansa.net import IPFamily, Protocol, parse_address
from hansa.pipeline import HealthCheckKey
from hansa.rules.model import Forward, FrontendKey
from hansa.sources.kubernetes.client import KubernetesSource
from hansa.testing import (
    L1,
    L2,
    NODE,
    NODE_ADDRESSES,
    R1,
    VIP,
    WEB_KEY,
    config,
    endpoint,
    endpoint_slice,
    node,
    port,
    service,
    slice_port,
)

LOOPBACK = BindAddress(parse_address("127.0.0.1"), 0)
EVERYWHERE = NodePortAddresses(primary=False)
FAR_V6 = endpoint("fd00:10:1:2::21", node="n2")
TIMEOUT_S = 60.0  # twice the sync period


@dataclass
class Health:
    """The engine's stage, its servers, and what they told."""

    on: Stage
    servers: Servers
    client: aiohttp.ClientSession
    events: list[Event] = field(default_factory=list)

    async def get(self, path: str, *, method: str = "GET", **more: Any) -> Reply:
        """From the health server."""
        assert self.servers.healthz is not None
        return await self.ask(f"http://127.0.0.1:{self.servers.healthz.port}{path}", method=method, **more)

    async def ask(self, url: str, *, method: str = "GET", **more: Any) -> Reply:
        return await ask(self.client, url, method=method, **more)

    async def codes(self) -> tuple[int, int]:
        """Of /healthz and /livez."""
        return (await self.get("/healthz")).code, (await self.get("/livez")).code

    async def checked(self, number: int, path: str = "/", **more: Any) -> Reply:
        """From a healthCheckNodePort."""
        return await self.ask(f"http://127.0.0.1:{number}{path}", **more)

    async def listening(self, *ports: int) -> None:
        """Return once exactly these healthCheckNodePorts listen."""
        wanted = sorted(ports)
        await self.on.until(lambda: sorted(one.port for one in self.servers.health_checks.listening.values()) == wanted)


@asynccontextmanager
async def health(**settings: Any) -> AsyncIterator[Health]:
    """The metrics server is off unless a test asks for it."""
    settings = {
        "healthz_bind_address": LOOPBACK,
        "metrics_bind_address": None,
        "node_port_addresses": EVERYWHERE,
        **settings,
    }
    events: list[Event] = []
    addresses = settings.pop("read_addresses", lambda: NODE_ADDRESSES)
    cluster: KubernetesSource | None = settings.pop("cluster", None)
    async with (
        stage(read_addresses=addresses, **settings) as on,
        serving(on.engine, config(**settings), clock=on.clock, tell=events.append, cluster=cluster) as servers,
        aiohttp.ClientSession() as client,
    ):
        yield Health(on, servers, client, events)


def taken(number: int, address: str = "0.0.0.0") -> socket.socket:
    one = socket.socket()
    one.bind((address, number))
    one.listen()
    return one


def checked(number: int, name: str = "web", **fields: Any) -> Upsert:
    """A Service with a healthCheckNodePort."""
    return Upsert(
        service(
            name,
            **{
                "type": "LoadBalancer",
                "external_policy": "Local",
                "health_check_node_port": number,
                "load_balancer_vips": ["203.0.113.80"],
                **fields,
            },
        )
    )


def pods(*endpoints: Any, name: str = "web-a", **more: Any) -> Upsert:
    return Upsert(endpoint_slice(name, endpoints, **more))


# --- healthCheckNodePort ---


@pytest.mark.scenario("t156")
@in_loop
async def test_h5_h10_two_local_endpoints_answer_anything_with_weight_two() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(L1, L2, R1), *LISTED)
        await at.listening(number)
        reply = await at.checked(number, "/anything")
        assert reply.code == 200
        assert reply.headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.text == (
            '{\n\t"service": {\n\t\t"namespace": "d",\n\t\t"name": "web"\n\t},\n'
            '\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
        )
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"):
            other = await at.checked(number, "/x?y=1", method=method)
            assert (other.code, other.text) == (reply.code, reply.text), method


@pytest.mark.scenario("t157")
@in_loop
async def test_h6_without_local_endpoints_it_is_503_with_weight_zero() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(R1), *LISTED)
        await at.listening(number)
        reply = await at.checked(number)
        assert (reply.code, reply.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
        assert reply.data == {
            "service": {"namespace": "d", "name": "web"},
            "localEndpoints": 0,
            "serviceProxyHealthy": True,
        }


@pytest.mark.scenario("t158")
@in_loop
async def test_h7_a_terminating_endpoint_does_not_count_though_traffic_still_goes_to_it() -> None:
    number = free_port()
    leaving = endpoint(L1.address, node="n1", ready=False, serving=True, terminating=True)
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(leaving), *LISTED)
        await at.listening(number)
        reply = await at.checked(number)
        assert (reply.code, reply.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
        async with at.on.engine.reading() as pipeline:
            rule = pipeline.rules.get(FrontendKey(IPFamily.IPV4, VIP, Protocol.TCP, 80))
        assert rule is not None
        assert isinstance(rule.outside, Forward)
        assert [one.address for one in rule.outside.endpoints] == [L1.address]


@pytest.mark.scenario("t159")
@in_loop
async def test_h6_an_address_counts_once_however_many_ports_it_has() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(
            Upsert(NODE),
            checked(number, ports=[port("http"), port("https", 443)]),
            pods(L1),
            pods(L1, name="web-b", ports=[slice_port("https", 8443)]),
            *LISTED,
        )
        await at.listening(number)
        reply = await at.checked(number)
        assert (reply.code, reply.headers["X-Load-Balancing-Endpoint-Weight"]) == (200, "1")


@pytest.mark.scenario("t160")
@in_loop
async def test_h8_an_overdue_sync_makes_it_503_and_keeps_the_weight() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(L1, L2), *LISTED)
        await at.listening(number)
        await at.on.pass_time(5)
        at.on.dataplane.host.away = True
        await at.on.synced(Upsert(API))
        await at.on.pass_time(TIMEOUT_S - 1)
        assert (await at.checked(number)).code == 200
        await at.on.pass_time(1)
        reply = await at.checked(number)
        assert (reply.code, reply.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "2")
        assert reply.data["serviceProxyHealthy"] is False


@pytest.mark.scenario("t161")
@in_loop
async def test_h9_a_node_about_to_be_deleted_goes_on_answering() -> None:
    number = free_port()
    tainted = Upsert(node("n1", addresses=NODE.addresses, taint_keys=["ToBeDeletedByClusterAutoscaler"]))
    async with health() as at:
        await at.on.synced(tainted, checked(number), pods(L1), *LISTED)
        await at.listening(number)
        assert (await at.checked(number)).code == 200
        assert await at.codes() == (503, 200)


@pytest.mark.scenario("t162")
@in_loop
async def test_h13_a_service_that_loses_its_port_closes_it() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(L1), *LISTED)
        await at.listening(number)
        await at.on.pass_time(5)
        await at.on.synced(checked(number, external_policy="Cluster"))
        await at.listening()
        with pytest.raises(aiohttp.ClientConnectorError):
            await at.checked(number)


@pytest.mark.scenario("t163")
@in_loop
async def test_h14_a_taken_port_is_told_once_and_tried_again_at_the_next_sync() -> None:
    number, other = free_port(), free_port()
    async with ApiServer() as server, health(cluster=KubernetesSource(server.connection(), config())) as at:
        with closing(taken(number)):
            await at.on.synced(
                Upsert(NODE),
                checked(number),
                checked(other, "api", cluster_ips=["10.96.0.11"], load_balancer_vips=["203.0.113.81"]),
                pods(L1),
                *LISTED,
            )
            await at.listening(other)
            await at.on.pass_time(90)
            await at.on.until(lambda: bool(at.servers.health_checks.failures))
            (event,) = at.events
            assert (event.reason, event.action) == ("FailedToStartServiceHealthcheck", "Listen")
            assert str(event.regarding) == "Service d/web"
            assert event.is_warning
            assert re.search(rf"on port {number}: .+", event.note), "the system's own words"
            assert at.servers.events is not None
            await at.servers.events.written()
            starting, sent = server.told.values()
            assert (starting["reason"], starting["type"], starting["note"]) == ("Starting", "Normal", "")
            assert (sent["reason"], sent["type"]) == ("FailedToStartServiceHealthcheck", "Warning")
            assert sent["regarding"] == {"kind": "Service", "apiVersion": "v1", "namespace": "d", "name": "web"}
            assert (sent["note"], "series" in sent) == (event.note, False)
        await at.on.pass_time(30)
        await at.listening(number, other)
        assert at.servers.health_checks.failures == {}
        assert (await at.checked(number)).code == 200


@pytest.mark.scenario("t164")
@in_loop
async def test_h2_each_family_answers_for_itself() -> None:
    number = free_port()
    both = checked(number, cluster_ips=["10.96.0.10", "2001:db8:96::10"])
    async with health() as at:
        await at.on.synced(Upsert(NODE), both, pods(L1), pods(FAR_V6, name="web-6"), *LISTED)
        await at.listening(number, number)
        assert (await at.checked(number)).code == 200
        assert (await at.ask(f"http://[::1]:{number}/")).code == 503


@pytest.mark.scenario("t165")
@in_loop
async def test_h1_a_service_of_type_node_port_has_none() -> None:
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(free_port(), type="NodePort"), pods(L1), *LISTED)
        await at.on.pass_time(30)
        await at.listening()


@in_loop
async def test_h3_h4_on_the_accepted_addresses_all_of_them_or_none() -> None:
    """127.0.0.x stands for the node's addresses: all of it is this machine's, and none of it need be set up."""
    number = free_port()
    async with health() as at:
        # The engine never takes loopback addresses for a node's own, so the servers are told directly.
        key = HealthCheckKey(WEB_KEY, IPFamily.IPV4)
        addresses = tuple(parse_address(f"127.0.0.{last}") for last in (2, 3))
        with closing(taken(number, "127.0.0.3")):
            await at.servers.health_checks.follow({key: Listener(number, addresses)})
            assert key in at.servers.health_checks.failures
            taken(number, "127.0.0.2").close()  # is free: neither listens
        await at.servers.health_checks.follow({key: Listener(number, addresses)})
        for address in addresses:
            assert (await at.ask(f"http://{address}:{number}/")).code == 503
        with pytest.raises(aiohttp.ClientConnectorError):
            await at.ask(f"http://127.0.0.1:{number}/")
        await at.servers.health_checks.follow({key: Listener(number, addresses[:1])})
        with pytest.raises(aiohttp.ClientConnectorError):
            await at.ask(f"http://127.0.0.3:{number}/")


@in_loop
async def test_h11_counts_change_only_after_a_sync_that_reached_the_host() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(L1), *LISTED)
        await at.listening(number)
        await at.on.pass_time(5)
        at.on.dataplane.host.away = True
        await at.on.synced(pods(L1, L2))
        assert (await at.checked(number)).data["localEndpoints"] == 1
        at.on.dataplane.host.away = False
        await at.on.pass_time(RETRY_S)
        assert (await at.checked(number)).data["localEndpoints"] == 2


@in_loop
async def test_f88_a_count_grows_only_when_the_services_own_frontends_are_in_place_and_falls_at_once() -> None:
    number = free_port()
    async with health() as at:
        key = FrontendKey(IPFamily.IPV4, VIP, Protocol.TCP, 80)
        at.on.dataplane.host.refuse.add(key)
        await at.on.synced(Upsert(NODE), checked(number), pods(L1, L2), *LISTED)
        await at.listening(number)
        assert (await at.checked(number)).data["localEndpoints"] == 0
        at.on.dataplane.host.refuse.clear()
        await at.on.pass_time(RETRY_S)
        assert (await at.checked(number)).data["localEndpoints"] == 2
        at.on.dataplane.host.refuse.add(key)
        await at.on.pass_time(5)
        await at.on.synced(pods(L2))
        assert at.on.records[-1].failed == 1
        assert (await at.checked(number)).data["localEndpoints"] == 1


@in_loop
async def test_h12_another_number_closes_the_old_port_and_opens_the_new_one() -> None:
    first, second = free_port(), free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(first), pods(L1), *LISTED)
        await at.listening(first)
        await at.on.pass_time(5)
        await at.on.synced(checked(second))
        await at.listening(second)
        assert (await at.checked(second)).code == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await at.checked(first)


@in_loop
async def test_without_a_health_server_the_proxy_counts_as_healthy() -> None:
    number = free_port()
    async with health(healthz_bind_address=None) as at:
        assert at.servers.healthz is None
        await at.on.synced(Upsert(NODE), checked(number), pods(L1), *LISTED)
        await at.listening(number)
        at.on.dataplane.host.away = True
        await at.on.pass_time(5)
        await at.on.synced(Upsert(API))
        await at.on.pass_time(2 * TIMEOUT_S)
        assert (await at.checked(number)).code == 200


# --- /healthz and /livez ---


@pytest.mark.scenario("t166")
@in_loop
async def test_z3_nothing_pending_is_healthy_however_long_ago_the_last_sync_was() -> None:
    async with health(full_check_period_s=3600.0) as at:
        await at.on.synced(*START)
        await at.on.pass_time(600)
        assert await at.codes() == (200, 200)


@pytest.mark.scenario("t167")
@in_loop
async def test_z3_a_change_may_wait_for_less_than_two_sync_periods() -> None:
    async with health() as at:
        await at.on.synced(*START)
        await at.on.pass_time(5)
        at.on.dataplane.host.away = True
        await at.on.synced(Upsert(API))
        await at.on.pass_time(59)
        assert await at.codes() == (200, 200)
        await at.on.pass_time(1)
        assert await at.codes() == (503, 503)


@pytest.mark.scenario("t168")
@pytest.mark.parametrize("fields", [{"taint_keys": ["ToBeDeletedByClusterAutoscaler"]}, {"deleting": True}])
@in_loop
async def test_z6_a_node_about_to_go_is_not_eligible_but_alive(fields: dict[str, Any]) -> None:
    async with health() as at:
        await at.on.synced(*START)
        await at.on.say(Upsert(node("n1", addresses=NODE.addresses, zone=NODE.zone, **fields)))
        assert await at.codes() == (503, 200)
        body = (await at.get("/healthz")).data
        assert (body["nodeEligible"], body["healthy"]) == (False, True)


@pytest.mark.scenario("t169")
@in_loop
async def test_z7_other_taints_do_not_matter() -> None:
    keys = ["node.kubernetes.io/unschedulable", "node.kubernetes.io/not-ready", "DeletionCandidateOfClusterAutoscaler"]
    async with health() as at:
        await at.on.synced(*START)
        await at.on.say(Upsert(node("n1", addresses=NODE.addresses, zone=NODE.zone, taint_keys=keys)))
        assert await at.codes() == (200, 200)


@pytest.mark.scenario("t170")
@in_loop
async def test_z8_a_node_that_was_never_seen_is_not_eligible() -> None:
    async with health() as at:
        await at.on.synced(*START[1:])
        assert await at.codes() == (503, 200)


@pytest.mark.scenario("t171")
@in_loop
async def test_z5_one_overdue_family_is_enough_and_the_status_tells_which() -> None:
    async with health() as at:
        await overdue_v6(at)
        reply = await at.get("/healthz")
        assert reply.code == 503
        assert {family: one["healthy"] for family, one in reply.data["status"].items()} == {"IPv4": True, "IPv6": False}
        assert reply.data["healthy"] is False
        newest = max(one["lastUpdated"] for one in reply.data["status"].values())
        assert reply.data["lastUpdated"] == newest


@pytest.mark.scenario("t172")
@in_loop
async def test_z12_when_the_overdue_family_syncs_the_answer_is_200_and_last_updated_is_now() -> None:
    async with health() as at:
        await overdue_v6(at)
        at.on.dataplane.host.refuse.clear()
        await at.on.pass_time(RETRY_S)
        await at.on.pass_time(1)
        for path in ("/healthz", "/livez"):
            reply = await at.get(path)
            assert reply.code == 200
            assert reply.data["lastUpdated"] == reply.data["currentTime"]
            assert all(one["healthy"] for one in reply.data["status"].values())


async def overdue_v6(at: Health) -> None:
    """An IPv6 frontend that the host does not take, for longer than is allowed."""
    address = parse_address("2001:db8:96::10")
    at.on.dataplane.host.refuse.add(FrontendKey(IPFamily.IPV6, address, Protocol.TCP, 80))
    both = Upsert(service("web", cluster_ips=["10.96.0.10", "2001:db8:96::10"]))
    await at.on.synced(Upsert(NODE), both, pods(L1), pods(FAR_V6, name="web-6"), *LISTED)
    assert at.on.host == ["10.96.0.10:80/tcp"]
    await at.on.pass_time(TIMEOUT_S)


@in_loop
async def test_z11_bodies_headers_and_other_paths() -> None:
    async with health() as at:
        before = await at.get("/healthz")
        assert before.code == 503, "no Node yet"
        await at.on.synced(*START)
        reply = await at.get("/healthz")
        at.on.clock._now += 0.25
        live = await at.get("/livez", method="POST")
        assert reply.text == (
            '{"lastUpdated":"1970-01-12T13:48:20Z","currentTime":"1970-01-12T13:48:20Z","nodeEligible":true,'
            '"healthy":true,"status":{"IPv4":{"lastUpdated":"1970-01-12T13:48:20Z","healthy":true},'
            '"IPv6":{"lastUpdated":"1970-01-12T13:48:20Z","healthy":true}}}'
        )
        assert live.text == (
            '{"lastUpdated":"1970-01-12T13:48:20.25Z","currentTime":"1970-01-12T13:48:20.25Z",'
            '"healthy":true,"status":{"IPv4":{"lastUpdated":"1970-01-12T13:48:20Z","healthy":true},'
            '"IPv6":{"lastUpdated":"1970-01-12T13:48:20Z","healthy":true}}}'
        )
        for one in (reply, live):
            assert one.headers["Content-Type"] == "application/json"
            assert one.headers["X-Content-Type-Options"] == "nosniff"
        for path in ("/", "/foo", "/healthz/", "/healthzz", "/metrics", "/debug/state"):
            lost = await at.get(path)
            assert (lost.code, lost.text) == (404, "404 page not found\n"), path
            assert lost.headers["Content-Type"].startswith("text/plain")


@in_loop
async def test_ready_means_that_the_rules_were_written_once() -> None:
    async with health() as at:
        reply = await at.get("/readyz")
        assert reply.code == 503
        assert "not complete" in reply.data["waitingFor"]
        at.on.dataplane.host.away = True
        await at.on.synced(*START)
        assert (await at.get("/readyz")).code == 503
        at.on.dataplane.host.away = False
        await at.on.pass_time(RETRY_S)
        reply = await at.get("/readyz")
        assert (reply.code, reply.data["ready"], reply.data["waitingFor"]) == (200, True, None)
        at.on.dataplane.host.away = True
        await at.on.synced(Upsert(API))
        assert (await at.get("/readyz")).code == 200, "a ready node does not become unready again"


@in_loop
async def test_answers_come_while_a_sync_hangs() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(L1), *LISTED)
        await at.listening(number)
        await at.on.pass_time(5)
        release = threading.Event()
        at.on.dataplane.before_sync = lambda: release.wait(10) and None
        await at.on.say(Upsert(API))
        await at.on.until(lambda: len(at.on.dataplane.messages) == 2)
        at.on.clock._now += TIMEOUT_S  # nobody can wait for the engine to settle now
        assert await at.codes() == (503, 503)
        assert (await at.checked(number)).code == 503
        assert (await at.get("/readyz")).code == 200
        release.set()
        await at.on.until(lambda: len(at.on.records) == 2)
        assert await at.codes() == (200, 200)


# --- I15: a desired object is missing or different ---


@in_loop
async def test_i15_a_refused_object_makes_unhealthy_after_the_timeout_even_if_it_is_hopeless() -> None:
    async with health() as at:
        await at.on.synced(*START)
        (web_key,) = at.on.dataplane.host.frontends
        at.on.dataplane.host.refuse.add(web_key)
        at.on.dataplane.host.hopeless = True
        await at.on.pass_time(5)
        await at.on.synced(pods(R1))
        await at.on.pass_time(TIMEOUT_S - 0.1)
        assert await at.codes() == (200, 200)
        await at.on.pass_time(0.1)
        assert await at.codes() == (503, 503)


@in_loop
async def test_i15_two_objects_that_are_missing_one_after_the_other_are_not_one_that_is_missing_for_long() -> None:
    async with health() as at:
        await at.on.synced(*START)
        (web_key,) = at.on.dataplane.host.frontends
        api_key = web_key._replace(address=parse_address("10.96.0.11"))
        at.on.dataplane.host.refuse.add(web_key)
        await at.on.pass_time(5)
        await at.on.synced(pods(R1))
        await at.on.pass_time(40)
        at.on.dataplane.host.refuse.add(api_key)
        await at.on.synced(Upsert(API))
        at.on.dataplane.host.refuse.remove(web_key)
        await at.on.pass_time(40)
        assert await at.codes() == (200, 200)
        await at.on.pass_time(21)
        assert await at.codes() == (503, 503)


@in_loop
async def test_i15_drift_that_cannot_be_mended_counts_from_its_discovery() -> None:
    async with health() as at:
        await at.on.synced(*START)
        (web_key,) = at.on.dataplane.host.frontends
        at.on.dataplane.host.refuse.add(web_key)
        at.on.dataplane.host.frontends.clear()
        await at.on.pass_time(30)
        assert at.on.records[-1].drift == 1
        await at.on.pass_time(TIMEOUT_S - 0.1)
        assert await at.codes() == (200, 200)
        await at.on.pass_time(0.1)
        assert await at.codes() == (503, 503)


@in_loop
async def test_f86_a_windows_node_on_which_every_load_balancer_fails_is_taken_out() -> None:
    emulator, clock, source = l2bridge_node(), FakeClock(), ListedSource()
    settings = config(healthz_bind_address=LOOPBACK, metrics_bind_address=None)
    plane = WindowsDataplane(
        HnsClient(emulator), settings, mac_of=lambda _: "00-15-5D-20-21-01", rng=random.Random(7), clock=clock.now
    )
    engine = Engine(settings, [source], dataplane=plane, clock=clock, read_addresses=lambda: NODE_ADDRESSES)
    refusal = Fault(effect=Refuse(HResult(0x80070057)), verb=HnsVerb.CREATE, kind=HnsKind.LOAD_BALANCER, times=10_000)
    emulator.faults.add(refusal)
    async with serving(engine, settings, clock=clock) as servers, aiohttp.ClientSession() as client:
        assert servers.healthz is not None
        url = f"http://127.0.0.1:{servers.healthz.port}/healthz"
        task = asyncio.create_task(engine.run())
        await source.say(*START[:2], pods(R1), *LISTED)
        await asyncio.wait_for(engine.settled(), 10)
        assert emulator.load_balancers() == ()
        for passed_s, code in ((59.0, 200), (1.0, 503)):
            await clock.advance(passed_s, engine.settled)
            async with client.get(url) as response:
                assert response.status == code
                status = (await response.json())["status"]
        assert [status["IPv4"]["healthy"], status["IPv6"]["healthy"]] == [False, True]
        engine.stop()
        await asyncio.wait_for(task, 10)


# --- Events ---


@in_loop
async def test_a_sync_that_fails_is_told_of_the_node_once_and_that_it_is_over() -> None:
    """Wish 3: one Node event per state change; syncs themselves never wait for the API server."""
    async with ApiServer() as server, health(cluster=KubernetesSource(server.connection(), config())) as at:
        await at.on.synced(*START)
        at.on.dataplane.host.away = True
        await at.on.synced(Upsert(API))
        await at.on.pass_time(90)
        await told(at, server, "Starting", "SyncFailing")
        at.on.dataplane.host.away = False
        await at.on.pass_time(30)
        await told(at, server, "Starting", "SyncFailing", "SyncRecovered")
        await at.on.pass_time(600)
        await told(at, server, "Starting", "SyncFailing", "SyncRecovered")
        assert all(one["regarding"]["name"] == "n1" for one in server.told.values())


async def told(at: Health, server: ApiServer, *reasons: str) -> None:
    assert at.servers.events is not None
    async with asyncio.timeout(10):
        while [one["reason"] for one in server.told.values()] != list(reasons):
            await asyncio.sleep(0.01)
            await at.servers.events.written()


@in_loop
async def test_an_api_server_that_is_away_or_slow_holds_up_nothing() -> None:
    async with ApiServer() as server:
        gate = server.hold(lambda asked: asked.kind == "Event")
        async with health(cluster=KubernetesSource(server.connection(), config())) as at:
            await at.on.synced(*START)
            assert await at.codes() == (200, 200)
            await server.stop()
            await at.on.synced(Upsert(API))
            await at.on.pass_time(60)
            assert await at.codes() == (200, 200)
            assert len(at.on.host) == 2
        gate.set()


# --- where the servers listen ---


@in_loop
async def test_z14_a_taken_port_is_told_once_and_tried_again_every_five_seconds() -> None:
    number = free_port()
    with closing(taken(number, "127.0.0.1")) as holder:
        async with health(healthz_bind_address=BindAddress(LOOPBACK.address, number)) as at:
            await at.on.synced(*START)
            assert at.servers.healthz is not None
            assert at.servers.healthz.port is None
            await at.on.pass_time(3 * BIND_RETRY_S + 1)
            (event,) = at.events
            assert event.reason == "FailedToStartProxierHealthcheck"
            assert str(event.regarding) == "Node n1"
            holder.close()
            await at.on.pass_time(BIND_RETRY_S - 1.5)
            assert at.servers.healthz.port is None
            await at.on.pass_time(0.5)
            await at.on.until(lambda: at.servers.healthz is not None and at.servers.healthz.port == number)
            assert await at.codes() == (200, 200)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("healthz", "FailedToStartProxierHealthcheck"), ("metrics", "FailedToStartMetricServer")],
)
@in_loop
async def test_z14_with_hard_fail_a_taken_port_is_an_error(name: str, reason: str) -> None:
    number = free_port()
    where = {"healthz_bind_address": None, "metrics_bind_address": None}
    where[f"{name}_bind_address"] = BindAddress(LOOPBACK.address, number)
    settings = config(**where, bind_address_hard_fail=True)
    engine = Engine(settings, [], dataplane=DictionaryDataplane(), clock=FakeClock())
    events: list[Event] = []
    with closing(taken(number, "127.0.0.1")), pytest.raises(DataplaneError, match=f"cannot listen on .*:{number}"):
        async with serving(engine, settings, tell=events.append):
            raise AssertionError("not reached")
    assert [event.reason for event in events] == [reason]


@pytest.mark.parametrize("text", ["0.0.0.0", "::"])
@in_loop
async def test_an_unspecified_address_is_all_of_both_families(text: str) -> None:
    async with health(healthz_bind_address=BindAddress(parse_address(text), 0)) as at:
        await at.on.synced(*START)
        assert at.servers.healthz is not None
        number = at.servers.healthz.port
        assert (await at.ask(f"http://127.0.0.1:{number}/livez")).code == 200
        assert (await at.ask(f"http://[::1]:{number}/livez")).code == 200


@in_loop
async def test_servers_are_gone_when_the_context_ends_and_idle_clients_do_not_hold_it_up() -> None:
    number = free_port()
    async with health() as at:
        await at.on.synced(Upsert(NODE), checked(number), pods(L1), *LISTED)
        await at.listening(number)
        assert at.servers.healthz is not None
        main = at.servers.healthz.port
        idle = [await asyncio.open_connection("127.0.0.1", one) for one in (number, main)]
    for _, writer in idle:
        writer.close()
    for one in (number, main):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", one)


# --- the metrics port ---


@in_loop
async def test_the_metrics_port_answers_what_kube_proxys_does() -> None:
    async with health(metrics_bind_address=LOOPBACK) as at:
        await at.on.synced(*START)
        assert at.servers.metrics is not None
        base = f"http://127.0.0.1:{at.servers.metrics.port}"
        alive = await at.ask(f"{base}/healthz")
        assert (alive.code, alive.text) == (200, "ok")
        assert alive.headers["Content-Type"].startswith("text/plain")
        mode = await at.ask(f"{base}/proxyMode")
        assert (mode.code, mode.text) == (200, "dictionary")
        assert mode.headers["Content-Type"] == "text/plain; charset=utf-8"
        settings = await at.ask(f"{base}/configz")
        assert settings.headers["Content-Type"] == "application/json"
        document = settings.data["kubeproxy.config.k8s.io"]
        assert (document["kind"], document["hostnameOverride"]) == ("KubeProxyConfiguration", "n1")
        for path in ("/livez", "/readyz", "/version", "/"):
            assert (await at.ask(base + path)).code == 404


@in_loop
async def test_metrics_are_text_compressed_on_request() -> None:
    async with health(metrics_bind_address=LOOPBACK) as at:
        await at.on.synced(*START)
        await at.codes()
        assert at.servers.metrics is not None
        url = f"http://127.0.0.1:{at.servers.metrics.port}/metrics"
        plain = await at.ask(url, headers={"Accept-Encoding": "identity"})
        assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
        assert int(plain.headers["Process-Start-Time-Unix"]) > 0
        assert "Content-Encoding" not in plain.headers
        assert 'kubeproxy_proxy_healthz_total{code="200"} 1\n' in plain.text
        assert 'kubeproxy_proxy_livez_total{code="200"} 1\n' in plain.text
        packed = await at.ask(url, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert 'hansa_syncs_total{kind="full",result="ok"} 1\n' in packed.text


@in_loop
async def test_debug_state_tells_views_rules_and_what_is_pending() -> None:
    async with health(metrics_bind_address=LOOPBACK) as at:
        (web_key,) = [FrontendKey(IPFamily.IPV4, parse_address("10.96.0.10"), Protocol.TCP, 80)]
        at.on.dataplane.host.refuse.add(web_key)
        more = [Upsert(service(f"s{n}", cluster_ips=[f"10.96.1.{n}"])) for n in range(120)]
        await at.on.synced(*START[:-2], *more, *LISTED)
        assert at.servers.metrics is not None
        url = f"http://127.0.0.1:{at.servers.metrics.port}/debug/state"
        found = (await at.ask(url)).data
        assert found["pending"] == ["10.96.0.10:80/tcp"]
        assert found["lastSync"]["failed"] == 1
        assert len(found["services"]) == 121
        (web,) = (await at.ask(f"{url}?service=d/web")).data["services"]
        assert web["ports"][0]["cluster"] == ["10.1.1.11:8080"]
        assert web["rules"][0]["actions"]["pod"]["action"] == "forward"
        assert (await at.ask(f"{url}?service=d/none")).data["services"] == []
        for host, code in (("localhost:1", 200), ("[::1]:1", 200), ("127.0.0.1", 200), ("hansa.example:1", 403)):
            assert (await at.ask(url, headers={"Host": host})).code == code, host


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.9", False),
        ("fe80::1%eth0", False),
        (None, False),
    ],
)
def test_only_this_machine_may_look_at_the_state(remote: str | None, local: bool) -> None:
    request = make_mocked_request("GET", "/debug/state", headers={"Host": "localhost"}).clone(remote=remote)
    assert is_local(request) is local


@in_loop
async def test_a_port_that_is_being_opened_when_all_ends_is_closed() -> None:
    """At whichever step: an open socket that nobody holds would be a warning, and that a failure."""
    for steps in range(6):
        number = free_port()
        async with health() as at:
            await at.on.synced(Upsert(NODE), checked(number), pods(L1), *LISTED)
            for _ in range(steps):
                await asyncio.sleep(0)
        gc.collect()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)
