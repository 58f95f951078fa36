"""A brain as KPNG's programs meet it: over sockets, by a client that shares no code with it.

Evidence: KPNG's protocol as seen between its Go programs and other peers; scenarios k01 to k16 and k20.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.end_to_end.stage import WITHIN_S, until

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind
from hansa.brain.cluster import Cluster
from hansa.brain.server import Brain, Settings, TlsFiles, parse_listen, server_credentials
from hansa.config import BindAddress
from hansa.errors import ConfigError
from hansa.net import parse_address
from hansa.sources.kpng.wire import nodev1
from hansa.testing import config, endpoint, endpoint_slice, node, port, service

PEER = Path(__file__).parents[1] / "kpng_peer" / "peer.py"
LOOPBACK = parse_listen("tcp://127.0.0.1:0")
SYNCED = [Synced(kind) for kind in Kind]
QUIET_S = 0.15  # how long nothing must come; what comes needs a few milliseconds

WEB = service("web", namespace="default")
POD = endpoint("10.1.0.5", node="n1")
SLICE = endpoint_slice("web-a", [POD], namespace="default")


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kpng_stubs")


class Peer:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, name: str = "n1") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n".encode())
        await self._process.stdin.drain()

    async def read(self, *, within_s: float = WITHIN_S) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        assert line, "the peer has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    async def batch(self) -> list[str]:
        """Operations up to the Sync, in brief."""
        found = []
        while True:
            op = await self.read()
            found.append(" ".join(filter(None, (op["op"], op.get("path", "")))))
            if op["op"] in ("Sync", "error"):
                return found

    async def silence(self) -> None:
        with pytest.raises(TimeoutError):
            print(await self.read(within_s=QUIET_S))


@contextlib.asynccontextmanager
async def peer(stubs: Path, target: str, api: str = "local", *files: str) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, PEER, stubs, target, api, *files),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Peer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def brain(*objects: ApiObject, **settings: Any) -> AsyncIterator[tuple[Cluster, Brain]]:
    cluster = Cluster(config())
    if objects:
        cluster.apply([*map(Upsert, objects), *SYNCED])
    async with Brain(cluster, Settings(**{"listen": (LOOPBACK,), **settings})) as server:
        yield cluster, server


def say(cluster: Cluster, *objects: ApiObject) -> None:
    cluster.apply([Upsert(one) for one in objects])


@pytest.mark.asyncio
async def test_k01_to_k06_one_stream_from_reset_to_the_last_delete(stubs: Path) -> None:
    async with brain() as (cluster, server), peer(stubs, server.targets[0]) as client:
        # k01: Reset comes at once, before anything is complete.
        await client.ask()
        assert await client.read() == {"op": "Reset"}
        await client.silence()
        # k02
        cluster.apply([Upsert(WEB), Upsert(SLICE), *SYNCED])
        assert await client.batch() == ["Set default/web", "Set default/web/v4-10.1.0.5", "Sync"]
        # k03: nobody has asked.
        say(cluster, endpoint_slice("web-a", [POD, "10.1.0.6"], namespace="default"))
        say(cluster, endpoint_slice("web-a", [POD, "10.1.0.7"], namespace="default"))
        say(cluster, service("web", namespace="default", affinity_timeout_s=30))
        await client.silence()
        # k04: the net difference, in one batch.
        await client.ask()
        assert await client.batch() == ["Set default/web", "Set default/web/v4-10.1.0.7", "Sync"]
        # k05: there and back again between two requests is nothing.
        say(cluster, endpoint_slice("web-a", [POD], namespace="default"))
        say(cluster, endpoint_slice("web-a", [POD, "10.1.0.7"], namespace="default"))
        await client.ask()
        await client.silence()
        # k06, and order within a group: ascending when set, descending when deleted.
        cluster.apply([Delete(WEB.object_key), Upsert(service("api", namespace="default", cluster_ips=["10.96.0.11"]))])
        assert await client.batch() == [
            *("Set default/api", "Delete default/web/v4-10.1.0.7", "Delete default/web/v4-10.1.0.5"),
            *("Delete default/web", "Sync"),
        ]


@pytest.mark.asyncio
async def test_what_does_not_concern_a_node_is_not_sent_to_it(stubs: Path) -> None:
    """Policy Local: n1 hears of its own endpoints; a change elsewhere is no batch, not even a Sync."""
    local = service("web", namespace="default", internal_policy="Local")
    async with brain(local, SLICE, node("n1")) as (cluster, server), peer(stubs, server.targets[0]) as client:
        await client.ask()
        assert await client.batch() == ["Reset", "Set default/web", "Set default/web/v4-10.1.0.5", "Sync"]
        await client.ask()
        say(cluster, endpoint_slice("web-b", [endpoint("10.1.9.9", node="n9")], namespace="default"))
        await client.silence()
        say(cluster, endpoint_slice("web-c", [endpoint("10.1.0.8", node="n1")], namespace="default"))
        assert await client.batch() == ["Set default/web/v4-10.1.0.8", "Sync"]


@pytest.mark.asyncio
async def test_k07_another_node_in_a_request_gets_the_difference_at_once(stubs: Path) -> None:
    web = service("web", namespace="default", internal_policy="Local")
    both = endpoint_slice("web-a", [POD, endpoint("10.1.0.6", node="n2")], namespace="default")
    async with brain(web, both) as (_, server), peer(stubs, server.targets[0]) as client:
        await client.ask("n1")
        await client.batch()
        await client.ask("n2")
        assert await client.batch() == ["Delete default/web/v4-10.1.0.5", "Set default/web/v4-10.1.0.6", "Sync"]


@pytest.mark.asyncio
async def test_k08_an_empty_cluster_is_synced_too(stubs: Path) -> None:
    async with brain() as (cluster, server), peer(stubs, server.targets[0]) as client:
        cluster.apply(SYNCED)
        await client.ask()
        assert await client.batch() == ["Reset", "Sync"]


@pytest.mark.asyncio
async def test_k12_k13_both_families_of_a_pod_reach_the_client_under_paths_that_stay(stubs: Path) -> None:
    dual = service("web", namespace="default", cluster_ips=["10.96.0.10", "fd00::10"])
    six = endpoint_slice("web-6", [endpoint("fd00:1::5", node="n1")], namespace="default")
    async with brain(dual, SLICE, six) as (cluster, server), peer(stubs, server.targets[0]) as client:
        await client.ask()
        assert await client.batch() == [
            *("Reset", "Set default/web"),
            *("Set default/web/v4-10.1.0.5", "Set default/web/v6-fd00:1::5", "Sync"),
        ]
        say(cluster, endpoint_slice("web-a", [POD], namespace="default", ports=[]))
        say(cluster, SLICE)
        await client.ask()
        await client.silence()


@pytest.mark.asyncio
async def test_values_are_what_backends_of_kpng_read(stubs: Path) -> None:
    """W10, W13: canonical addresses, protocols, ports by the name that a backend looks for."""
    web = service(
        "web",
        namespace="default",
        type="LoadBalancer",
        ports=[port("", 80, target_port=8080, node_port=30080), port("dns", 53, protocol="UDP", target_port="dns")],
        external_ips=["203.0.113.7"],
        load_balancer_vips=["203.0.113.80"],
        source_ranges=["198.51.100.0/24"],
        external_policy="Local",
        affinity_timeout_s=30,
        health_check_node_port=31000,
    )
    from hansa.testing import slice_port

    piece = endpoint_slice(
        "web-a", [POD], namespace="default", ports=[slice_port("", 9090), slice_port("dns", 5353, protocol="UDP")]
    )
    async with brain(web, piece) as (_, server), peer(stubs, server.targets[0]) as client:
        await client.ask()
        await client.read()
        told, found = (await client.read())["value"], (await client.read())["value"]
    assert told == {
        "Namespace": "default",
        "Name": "web",
        "Type": "LoadBalancer",
        "IPs": {
            "ClusterIPs": {"V4": ["10.96.0.10"]},
            "ExternalIPs": {"V4": ["203.0.113.7"]},
            "LoadBalancerIPs": {"V4": ["203.0.113.80"]},
        },
        "Ports": [
            {"Protocol": "TCP", "Port": 80, "NodePort": 30080, "TargetPort": 8080, "TargetPortName": "port-80"},
            {"Name": "dns", "Protocol": "UDP", "Port": 53, "TargetPortName": "dns"},
        ],
        "ExternalTrafficToLocal": True,
        "IPFilters": [{"SourceRanges": ["198.51.100.0/24"]}],
        "ClientIP": {"TimeoutSeconds": 30},
        "HealthCheckNodePort": 31000,
    }
    # A port without a name is found by its TargetPortName, with the slice's own number (D7).
    assert found == {
        "IPs": {"V4": ["10.1.0.5"]},
        "Local": True,
        "PortOverrides": [{"Name": "dns", "Port": 5353}, {"Name": "port-80", "Port": 9090}],
        "Scopes": {"Internal": True, "External": True},
    }


@pytest.mark.asyncio
async def test_old_backends_are_sent_no_endpoint_that_they_must_not_use(stubs: Path) -> None:
    """D2, D3, W14: readiness, fallback and hints are settled in the brain; scopes tell the two policies apart."""
    web = service("web", namespace="default", node_port=30080, type="NodePort", external_policy="Local")
    draining = endpoint("10.1.0.6", node="n2", ready=False, terminating=True)
    async with brain(web, node("n1")) as (cluster, server), peer(stubs, server.targets[0]) as client:
        say(cluster, endpoint_slice("web-a", [POD, draining], namespace="default"))
        await client.ask()
        assert await client.batch() == ["Reset", "Set default/web", "Set default/web/v4-10.1.0.5", "Sync"]
        # The last ready one goes: whoever still serves is used, for what the policies allow.
        say(cluster, endpoint_slice("web-a", [draining], namespace="default"))
        await client.ask()
        await client.read()
        assert (await client.read())["value"]["Scopes"] == {"Internal": True}
        assert (await client.read())["op"] == "Sync"
        # Hints count only if every endpoint has one.
        hinted = [endpoint("10.1.0.7", zone_hints=["za"]), endpoint("10.1.0.8", zone_hints=["zb"])]
        say(cluster, endpoint_slice("web-a", hinted, namespace="default"))
        await client.ask()
        assert await client.batch() == ["Delete default/web/v4-10.1.0.6", "Set default/web/v4-10.1.0.7", "Sync"]
        # k16: a change of hints alone is a change.
        say(cluster, endpoint_slice("web-a", [hinted[0], endpoint("10.1.0.8")], namespace="default"))
        await client.ask()
        assert await client.batch() == ["Set default/web/v4-10.1.0.8", "Sync"]


@pytest.mark.asyncio
async def test_globalv1_has_nodes_paths_and_hashes_that_go_programs_can_live_with(stubs: Path) -> None:
    """W6 to W8: four parts, nothing missing that Go would crash on, hashes of everything that is sent."""
    async with brain(WEB, SLICE, node("n1")) as (cluster, server), peer(stubs, server.targets[0], "global") as client:
        await client.ask("")
        ops = [await client.read() for _ in range(5)]
        assert [op.get("path", op["op"]) for op in ops] == [
            *("Reset", "|n1||", "default|web||", "default|web|web-a|v4-10.1.0.5", "Sync"),
        ]
        held, _, found = ops[1:4]
        assert {"Hash", "Node"} == set(held["fields"])
        assert held["value"]["Node"]["Topology"] == {"Node": "n1", "Zone": "za"}
        assert {"Hash", "Topology", "Conditions", "Endpoint"} <= set(found["fields"])
        assert found["value"]["Topology"] == {"Node": "n1"}
        hashes = [int(op["value"]["Hash"]) for op in ops[1:4]]
        assert 0 not in hashes
        # Hints are not in KPNG's own hash, and are in ours.
        changed = endpoint("10.1.0.5", node="n1", zone_hints=["za"])
        say(cluster, endpoint_slice("web-a", [changed], namespace="default"))
        await client.ask("")
        op = await client.read()
        assert op["path"] == "default|web|web-a|v4-10.1.0.5"
        assert int(op["value"]["Hash"]) != hashes[2]
        assert (await client.read())["op"] == "Sync"
        cluster.apply([Delete(WEB.object_key), Delete(node("n1").object_key)])
        await client.ask("")
        assert await client.batch() == [
            *("Delete default|web|web-a|v4-10.1.0.5", "Delete default|web||", "Delete |n1||", "Sync"),
        ]


@pytest.mark.asyncio
async def test_globalv1_endpoints_without_node_or_hints_have_the_messages_all_the_same(stubs: Path) -> None:
    bare = endpoint_slice("web-a", ["10.1.0.5"], namespace="default")
    async with brain(WEB, bare) as (_, server), peer(stubs, server.targets[0], "global") as client:
        await client.ask("")
        ops = [await client.read() for _ in range(4)]
        assert {"Topology", "Conditions", "Endpoint"} <= set(ops[2]["fields"])


@pytest.mark.asyncio
async def test_requests_ahead_are_queued_and_one_client_does_not_hold_up_another(stubs: Path) -> None:
    async with (
        brain(WEB, SLICE) as (cluster, server),
        peer(stubs, server.targets[0]) as eager,
        peer(stubs, server.targets[0]) as idle,
    ):
        await idle.ask()
        await idle.batch()
        for _ in range(3):
            await eager.ask()
        await eager.batch()
        say(cluster, endpoint_slice("web-a", ["10.1.0.6"], namespace="default"))
        assert (await eager.batch())[-1] == "Sync"
        say(cluster, endpoint_slice("web-a", ["10.1.0.7"], namespace="default"))
        assert (await eager.batch())[-1] == "Sync"
        # Who has not asked for a while gets one batch, and costs no more than one entry meanwhile.
        assert max(one.waiting for one in cluster._followers) == 1
        await idle.ask()
        assert await idle.batch() == ["Delete default/web/v4-10.1.0.5", "Set default/web/v4-10.1.0.7", "Sync"]


@pytest.mark.asyncio
async def test_a_client_that_goes_is_forgotten_at_once(stubs: Path) -> None:
    async with brain(WEB, SLICE) as (cluster, server):
        async with peer(stubs, server.targets[0]) as client:
            await client.ask()
            await client.batch()
            await client.ask()
            await client.silence()
            assert cluster.followers == 1
        await until(lambda: cluster.followers == 0)


@pytest.mark.asyncio
async def test_a_unix_socket_is_for_owner_and_group_and_a_stale_one_makes_way(stubs: Path, tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    import socket

    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with brain(WEB, SLICE, listen=(parse_listen(f"unix://{path}"),)) as (_, server):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        async with peer(stubs, server.targets[0]) as client:
            await client.ask()
            assert (await client.batch())[0] == "Reset"
        with pytest.raises(ConfigError, match="somebody listens"):
            async with brain(listen=(parse_listen(f"unix://{path}"),)):
                pass
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(ConfigError, match="is no socket"):
        async with brain(listen=(parse_listen(f"unix:{path}"),)):
            pass


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = self._write("ca.crt", self.authority.cert_pem.bytes())
        self.server = self._pair("server", "127.0.0.1")
        self.client = self._pair("client", "n1")
        other = trustme.CA()
        self.stranger = self._pair("stranger", "n1", other)

    def _write(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)

    def _pair(self, name: str, identity: str, authority: trustme.CA | None = None) -> tuple[str, str]:
        made = (authority or self.authority).issue_cert(identity)
        certificate = self._write(f"{name}.crt", b"".join(one.bytes() for one in made.cert_chain_pems))
        return certificate, self._write(f"{name}.key", made.private_key_pem.bytes())

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(key=self.server[1], certificate=self.server[0], ca=self.ca)


@pytest.mark.asyncio
async def test_k20_mutual_tls_lets_in_whom_the_ca_knows_and_nobody_else(stubs: Path, tmp_path: Path) -> None:
    known = Certificates(tmp_path)
    async with brain(WEB, SLICE, tls=known.files) as (_, server):
        target = server.targets[0]
        async with peer(stubs, target, "local", known.ca, *known.client) as client:
            await client.ask()
            assert (await client.batch())[0] == "Reset"
        for files in ((), (known.ca, "", ""), (known.ca, *known.stranger)):
            async with peer(stubs, target, "local", *files) as client:
                await client.ask()
                assert await client.batch() == ["error"]


def test_k20_tls_that_cannot_work_is_refused_at_the_start(tmp_path: Path) -> None:
    known = Certificates(tmp_path)
    broken = tmp_path / "broken.crt"
    broken.write_text("no certificate")
    good = known.files
    for files, text in (
        (TlsFiles(good.key, good.certificate, str(broken)), "holds no certificate"),
        (TlsFiles(good.key, good.certificate, str(tmp_path / "missing")), "cannot be read"),
        (TlsFiles(known.client[1], good.certificate), "do not go together"),
        (TlsFiles("", good.certificate), "--tls-key: is missing"),
        (TlsFiles(good.key, ""), "--tls-cert: is missing"),
        (TlsFiles("", "", good.ca), "needs a key"),
    ):
        with pytest.raises(ConfigError, match=text):
            server_credentials(files)


@pytest.mark.asyncio
async def test_d14_plain_connections_from_elsewhere_must_be_wanted() -> None:
    anywhere = (parse_listen("tcp://:0"),)
    with pytest.raises(ConfigError, match="--insecure"):
        async with brain(listen=anywhere):
            pass
    async with brain(listen=anywhere, insecure=True) as (_, server):
        assert server.targets


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("tcp://:12090", "[::]:12090"),
        ("tcp://10.0.0.1:1", "10.0.0.1:1"),
        ("[::1]:5", "[::1]:5"),
        ("localhost", "localhost:12090"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
    ],
)
def test_addresses_to_listen_at(text: str, target: str) -> None:
    assert parse_listen(text).target == target


@pytest.mark.parametrize("text", ["", "tcp://:99999", "unix:relative", "http://x", "unix://"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


@pytest.mark.asyncio
async def test_health_reflection_and_metrics() -> None:
    at = BindAddress(parse_address("127.0.0.1"), 0)
    async with brain(metrics=at) as (cluster, server), grpc.aio.insecure_channel(server.targets[0]) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> str:
            found = await health.Check(health_pb2.HealthCheckRequest(service=name))
            return health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)

        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.metrics_port}") as web:
            assert await status("localv1.Sets") == "NOT_SERVING"
            assert (await web.get("/readyz")).status == 503
            assert (await web.get("/healthz")).status == 200
            cluster.apply([Upsert(WEB), *SYNCED])
            await server._tell_health()
            assert await status("") == "SERVING"
            assert (await web.get("/readyz")).status == 200
            text = await (await web.get("/metrics")).text()
            assert (await web.get("/nothing")).status == 404
        families = {one.name: one for one in text_string_to_metric_families(text)}
        assert families["hansa_brain_revision"].samples[0].value == 1
        assert families["kpng_k8s_api_events"].samples[0].value == 1

        async def asked() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in stub.ServerReflectionInfo(asked()):
            names = {one.name for one in answer.list_services_response.service}
            assert {"localv1.Sets", "globalv1.Sets", "hansa.node.v1.Node", "hansa.node.v1.Brain"} <= names
            break


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_costs_others_nothing() -> None:
    """It is stuck in the middle of its first batch; another gets everything, and what changes then."""
    services = [service(f"s{n}", cluster_ips=[f"10.96.{n // 250}.{n % 250}"]) for n in range(1500)]
    slices = [endpoint_slice(f"s{n}", [f"10.1.1.{i}" for i in range(8)], service=f"s{n}") for n in range(1500)]
    ask = nodev1.WatchRequest(node_name="n1").SerializeToString()
    async with (
        brain(*services, *slices) as (cluster, server),
        grpc.aio.insecure_channel(server.targets[0]) as stuck_channel,
        grpc.aio.insecure_channel(server.targets[0], options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        stuck = stuck_channel.stream_stream("/hansa.node.v1.Node/Watch")()
        await stuck.write(ask)
        await until(lambda: cluster.followers == 1 and not cluster._followers[0].has_news)
        call = channel.stream_stream("/hansa.node.v1.Node/Watch")()

        async def batch() -> int:
            count = 0
            await call.write(ask)
            while True:
                message = nodev1.WatchResponse.FromString(await call.read())
                count += len(message.set)
                if message.sync:
                    return count

        assert await asyncio.wait_for(batch(), WITHIN_S) == 1500
        for number in range(3):
            say(cluster, endpoint_slice("s7", [f"10.1.2.{number}"], service="s7"))
            assert await asyncio.wait_for(batch(), WITHIN_S) == 1
        stuck.cancel()
        call.cancel()
