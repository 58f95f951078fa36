"""A brain as a source: connected, lost, found again, older than this node, slow, and told what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from tests.conformance.test_brain import LOOPBACK, SYNCED, Certificates
from tests.dictionary_dataplane import DictionaryDataplane, DictionaryHost
from tests.end_to_end.stage import until
from tests.ports import free_port

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject
from hansa.brain import agent
from hansa.brain.cluster import Cluster
from hansa.brain.server import NODE, Brain, Settings, parse_listen
from hansa.dataplanes.base import SyncReport
from hansa.engine import Engine, SyncRecord
from hansa.errors import ConfigError
from hansa.services.model import GivenView
from hansa.sources.kpng.client import ClientSettings, KpngSource, read_nodes
from hansa.sources.kpng.target import Target, is_target, parse_target
from hansa.testing import L1, L2, R1, WEB, config, endpoint_slice, node, service, service_cidr

QUICK = ClientSettings(first_delay_s=0.01, longest_delay_s=0.05)
SLICE = endpoint_slice("web-a", [L1, R1])
NODE_N1 = node()


class WithoutNodeApi(Brain):
    """A brain as KPNG has it: localv1 and globalv1 alone."""

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        for handler in super()._handlers():
            if handler.service_name() not in (NODE,):  # type: ignore[attr-defined]
                yield handler


def cluster_of(*objects: ApiObject) -> Cluster:
    cluster = Cluster(config())
    cluster.apply([*map(Upsert, objects), *SYNCED])
    return cluster


class Heard:
    """What a source says, in one list."""

    def __init__(self, source: KpngSource) -> None:
        self.source = source
        self.batches: list[tuple[Any, ...]] = []

    async def _follow(self) -> None:
        async for batch in self.source.changes():
            self.batches.append(batch)

    async def __aenter__(self) -> Heard:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def source_of(server: Brain, **fields: Any) -> KpngSource:
    return KpngSource(Target(server.targets[0], **fields), config(), QUICK)


@pytest.mark.asyncio
async def test_the_node_api_brings_views_the_node_and_the_ranges() -> None:
    async with (
        Brain(cluster_of(WEB, SLICE, NODE_N1, service_cidr()), Settings((LOOPBACK,))) as server,
        Heard(source_of(server)) as heard,
    ):
        await until(lambda: len(heard.batches) == 1)
        (first,) = heard.batches
        assert {str(one.key) for one in first if not isinstance(one, Synced)} == {
            *("Node n1", "ServiceCIDR brain", "Service d/web"),
        }
        assert sum(isinstance(one, Synced) for one in first) == 4
        assert heard.source.status.endswith("by hansa.node.v1, revision 1")
        assert not heard.source.troubled
        server.cluster.apply([Upsert(endpoint_slice("web-a", [L1]))])
        await until(lambda: len(heard.batches) == 2)
        (view,) = heard.batches[1]
        assert isinstance(view, GivenView)
        server.cluster.apply([Delete(WEB.object_key)])
        await until(lambda: len(heard.batches) == 3)
        assert heard.batches[2] == (GivenView(WEB.key, ()),)


@pytest.mark.asyncio
async def test_losing_the_brain_says_nothing_and_finding_it_again_says_only_what_is_new() -> None:
    """W15, W20: a delay, a Reset, and differences alone."""
    port = free_port()
    listen = Settings((parse_listen(f"tcp://127.0.0.1:{port}"),))
    cluster = cluster_of(WEB, SLICE, NODE_N1)
    source = KpngSource(Target(f"127.0.0.1:{port}"), config(), QUICK)
    async with Heard(source) as heard:
        await until(lambda: "retrying in" in source.status)
        assert source.troubled
        async with Brain(cluster, listen):
            await until(lambda: len(heard.batches) == 1)
        await until(lambda: source.troubled)
        async with Brain(cluster_of(WEB, SLICE, NODE_N1), listen):
            await until(lambda: source.connects == 2 and not source.troubled and "revision" in source.status)
        await until(lambda: source.troubled)
        changed = cluster_of(WEB, SLICE, NODE_N1, service("api", cluster_ips=["10.96.0.11"]))
        async with Brain(changed, listen):
            await until(lambda: len(heard.batches) == 2)
        assert [str(one.key) for one in heard.batches[1]] == ["Service d/api"]


@pytest.mark.asyncio
async def test_a_brain_that_is_not_complete_yet_empties_nothing() -> None:
    """W16: Reset and then silence; a brain that has just started knows nothing yet."""
    port = free_port()
    listen = Settings((parse_listen(f"tcp://127.0.0.1:{port}"),))
    source = KpngSource(Target(f"127.0.0.1:{port}", api="local"), config(), QUICK)
    async with Heard(source) as heard:
        async with Brain(cluster_of(WEB, SLICE), listen):
            await until(lambda: len(heard.batches) == 1)
        young = Cluster(config())
        async with Brain(young, listen):
            await until(lambda: "waiting for the first Sync" in source.status)
            await asyncio.sleep(0.05)
            assert len(heard.batches) == 1
            young.apply([Upsert(WEB), *SYNCED[:2]])
            await asyncio.sleep(0.05)
            assert len(heard.batches) == 1, "slices without Nodes are not complete"
            young.apply([Upsert(SLICE), *SYNCED])
            await until(lambda: "waiting" not in source.status)
            assert len(heard.batches) == 1


@pytest.mark.asyncio
async def test_without_the_node_api_localv1_is_used_and_what_it_loses_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "hansa.sources.kpng")
    async with (
        WithoutNodeApi(cluster_of(WEB, SLICE, NODE_N1), Settings((LOOPBACK,))) as server,
        Heard(source_of(server)) as heard,
    ):
        await until(lambda: len(heard.batches) == 1)
        assert heard.source.api == "local"
        views = [one for one in heard.batches[0] if isinstance(one, GivenView)]
        assert [str(one) for one in views[0].ports[0].selection.cluster or ()] == [
            "10.1.1.11:8080",
            "10.1.2.21:8080",
        ]
    said = "\n".join(caplog.messages)
    for words in ("short", "terminating", "acknowledgements", "ranges of ClusterIPs"):
        assert words in said or words == "short", said
    assert said.count("not told by localv1") == 6


@pytest.mark.asyncio
async def test_a_brain_that_learns_the_node_api_is_followed_by_it_without_a_change() -> None:
    port = free_port()
    listen = Settings((parse_listen(f"tcp://127.0.0.1:{port}"),))
    plain = service("web")
    source = KpngSource(Target(f"127.0.0.1:{port}"), config(), QUICK)
    async with Heard(source) as heard:
        async with WithoutNodeApi(cluster_of(plain, SLICE), listen):
            await until(lambda: len(heard.batches) == 1)
        async with Brain(cluster_of(plain, SLICE), listen):
            await until(lambda: source.api == "node" and "revision" in source.status)
            assert len(heard.batches) == 1, heard.batches[1:]


@pytest.mark.asyncio
async def test_by_globalv1_a_brain_follows_a_brain() -> None:
    async with Brain(cluster_of(WEB, SLICE, NODE_N1), Settings((LOOPBACK,))) as first:
        second_cluster = Cluster(config())
        async with Brain(second_cluster, Settings((LOOPBACK,))) as second:
            following = asyncio.create_task(second.follow(source_of(first, api="global")))
            try:
                await until(lambda: second_cluster.ready)
                assert [str(key) for key in second_cluster.services] == ["d/web"]
                assert set(second_cluster.nodes) == {"n1"}
                first.cluster.apply([Upsert(endpoint_slice("web-a", [L1, L2]))])
                (state,) = second_cluster.services.values()
                await until(lambda: second_cluster.services[WEB.key] is not state)
                (piece,) = second_cluster.services[WEB.key].pieces
                assert piece.endpoints == (L1, L2)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


# --- a whole agent ---


@contextlib.asynccontextmanager
async def node_agent(server: Brain, host: DictionaryHost, **fields: Any) -> AsyncIterator[tuple[Engine, KpngSource]]:
    settings = config(min_sync_period_s=0.0, **fields)
    source = KpngSource(Target(server.targets[0]), settings, QUICK)
    engine = Engine(settings, [source], dataplane=DictionaryDataplane(host), read_addresses=frozenset)
    agent.attend(engine, source)
    running = asyncio.create_task(engine.run())
    try:
        yield engine, source
    finally:
        engine.stop()
        await running


@pytest.mark.asyncio
async def test_d15_the_brain_hears_what_has_been_applied_and_what_fails() -> None:
    host = DictionaryHost()
    async with Brain(cluster_of(WEB, SLICE, NODE_N1), Settings((LOOPBACK,))) as server:
        async with node_agent(server, host) as (engine, source):

            def entry() -> Any:
                return server.book.entries.get(("n1", NODE))

            await until(lambda: entry() is not None and entry().state == "applied")
            assert len(host.frontends) == 4
            report = entry().report
            assert (report.applied_revision, report.dataplane, report.host_state) == (1, "dictionary", "healthy")
            # A change that the host refuses: the node says so, in the host's words, and goes on trying.
            key = next(one for one in host.frontends if str(one).startswith("10.96.0.10"))
            host.refuse.add(key)
            server.cluster.apply([Upsert(endpoint_slice("web-a", [L1]))])
            # The first word of the failure may come a moment before the batch has been counted as received.
            await until(lambda: entry().state == "failing" and entry().report.received_revision == 2)
            report = entry().report
            assert (report.applied_revision, report.received_revision, report.pending_count) == (1, 2, 1)
            assert report.failures == (("frontend 10.96.0.10:80/tcp", "refused"),)
            host.refuse.clear()
            engine.request()
            await until(lambda: entry().state == "applied")
            assert entry().report.applied_revision == 2
            # The same, as `hansa state --nodes` asks for it; who only looks is not in the book.
            looker = KpngSource(Target(server.targets[0]), config(node_name="n2"), QUICK)
            async with Heard(looker) as heard:
                await until(lambda: bool(heard.batches))
            told = await read_nodes(Target(server.targets[0]))
            assert [(one.name, one.state, one.report.applied_revision) for one in told.nodes] == [("n1", "applied", 2)]
            assert source.revision == 2
        await until(lambda: entry().state == "absent")


@pytest.mark.asyncio
async def test_the_brain_is_asked_at_the_pace_of_the_host() -> None:
    """W15: as long as a sync runs nothing is asked for, and what has changed meanwhile comes as one batch."""
    import threading

    gate = threading.Event()
    host = DictionaryHost()
    cluster = cluster_of(WEB, SLICE, NODE_N1)
    async with Brain(cluster, Settings((LOOPBACK,))) as server:
        settings = config(min_sync_period_s=0.0)
        source = KpngSource(Target(server.targets[0]), settings, QUICK)
        plane = DictionaryDataplane(host)
        engine = Engine(settings, [source], dataplane=plane, read_addresses=frozenset)
        agent.attend(engine, source)
        records: list[SyncRecord] = []

        def note(record: SyncRecord, _: SyncReport | None) -> None:
            records.append(record)

        engine.on_sync(note)
        running = asyncio.create_task(engine.run())
        try:
            await until(lambda: len(records) == 1)
            plane.before_sync = lambda: gate.wait(10) and None  # type: ignore[func-returns-value]
            cluster.apply([Upsert(endpoint_slice("web-a", [L1]))])
            await until(lambda: source.revision == 2)
            for last in range(10):
                cluster.apply([Upsert(endpoint_slice("web-a", [L1, f"10.1.1.{100 + last}"]))])
            await asyncio.sleep(0.05)
            assert source.revision == 2
            gate.set()
            await until(lambda: source.revision == 12)
            await engine.settled()
            await until(lambda: len(records) == 3)
        finally:
            gate.set()
            engine.stop()
            await running


@pytest.mark.asyncio
async def test_rules_stay_while_the_brain_is_away_and_a_new_one_writes_nothing() -> None:
    port = free_port()
    listen = Settings((parse_listen(f"tcp://127.0.0.1:{port}"),))
    host = DictionaryHost()
    settings = config(min_sync_period_s=0.0)
    source = KpngSource(Target(f"127.0.0.1:{port}"), settings, QUICK)
    engine = Engine(settings, [source], dataplane=DictionaryDataplane(host), read_addresses=frozenset)
    agent.attend(engine, source)
    running = asyncio.create_task(engine.run())
    try:
        async with Brain(cluster_of(WEB, SLICE, NODE_N1), listen):
            await until(lambda: len(host.frontends) == 4)
        held, writes = dict(host.frontends), len(host.writes)
        await until(lambda: source.troubled)
        assert engine.state.troubled_sources == 1
        async with Brain(cluster_of(WEB, SLICE, NODE_N1), listen) as server:
            await until(lambda: bool(server.book.entries) and server.book.ordered()[0].state == "applied")
        assert (host.frontends, len(host.writes)) == (held, writes)
    finally:
        engine.stop()
        await running


@pytest.mark.asyncio
async def test_mutual_tls_between_agent_and_brain(tmp_path: Any) -> None:
    known = Certificates(tmp_path)
    async with Brain(cluster_of(WEB, SLICE), Settings((LOOPBACK,), known.files)) as server:
        certificate, key = known.client
        good = source_of(server, ca=known.ca, certificate=certificate, key=key, server_name="127.0.0.1")
        async with Heard(good) as heard:
            await until(lambda: len(heard.batches) == 1)
        plain = source_of(server)
        async with Heard(plain) as heard:
            await until(lambda: "retrying in" in plain.status)
            assert not heard.batches
    with pytest.raises(ConfigError, match="cannot be read"):
        KpngSource(Target("x:1", ca=str(tmp_path / "missing")), config())
    (tmp_path / "no.crt").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used"):
        KpngSource(Target("x:1", ca=str(tmp_path / "no.crt")), config())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("kpng://brain", "brain:12090"),
        ("kpng://10.0.0.1:99", "10.0.0.1:99"),
        ("kpng://[::1]:99", "[::1]:99"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("kpng://unix:///run/x.sock", "unix:/run/x.sock"),
    ],
)
def test_w20_where_a_brain_is(text: str, address: str) -> None:
    assert is_target(text)
    assert parse_target(text).address == address


def test_settings_of_a_target() -> None:
    found = parse_target("kpng://brain?api=local&ca=a&cert=b&key=c&server-name=d")
    assert found == Target("brain:12090", "local", "a", "b", "c", "d")
    assert found.is_secure
    assert parse_target("kpng://brain?tls=1").is_secure
    assert not parse_target("kpng://brain").is_secure
    for text in ("kpng://", "unix:", "kpng://b?api=x", "kpng://b?foo=1", "kpng://b?cert=a", "kpng://b:x", "kpng://b/c"):
        with pytest.raises(ConfigError, match="--source"):
            parse_target(text)
