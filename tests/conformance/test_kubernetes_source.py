"""KubernetesSource against an API server on loopback: whatever happens to the connection, it ends with the same state.

Evidence: service-semantics section 1, I1-I4; operations.md section 8.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import stat
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from tests.api_server import ApiServer, Mood

from hansa import __version__
from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey
from hansa.config import Config
from hansa.errors import SourceError
from hansa.sources.kubernetes.client import ClientSettings, KubernetesSource, load_connection, read_nodes
from hansa.sources.kubernetes.kubeconfig import (
    BasicAuth,
    ClientCertificate,
    Connection,
    ExecPlugin,
    PemData,
    PemFile,
    Token,
    TokenFile,
)
from hansa.sources.kubernetes.watch import WatchSettings
from hansa.testing import config, endpoint_slice, manifest, manifest_service, node, service, service_cidr

pytestmark = pytest.mark.asyncio

# Real back-off begins at 0.8 s; here a whole story has to fit into less.
QUICK = WatchSettings(first_delay_s=0.01, longest_delay_s=0.05, absent_s=0.05)
SETTINGS = ClientSettings(watch=QUICK, connect_timeout_s=2, list_idle_s=2, watch_idle_s=5)
WITHIN_S = 10.0


class Follower:
    """Reads a source in a task and holds what it has said: the state that the engine would have."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.log: list[Change] = []
        self.objects: dict[ObjectKey, ApiObject] = {}
        self.synced: set[Kind] = set()

    async def read(self) -> None:
        async with aclosing(self.source.changes()) as batches:
            async for batch in batches:
                assert batch, "an empty batch is no news"
                for change in batch:
                    self.take(change)

    def take(self, change: Change) -> None:
        self.log.append(change)
        match change:
            case Upsert(found):
                self.objects[change.key] = found
            case Delete(key):
                del self.objects[key]
            case Synced(kind):
                assert kind not in self.synced
                self.synced.add(kind)
            case Malformed():
                pass

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not reached():
                await asyncio.sleep(0.002)

    async def until_objects(self, *items: ApiObject) -> None:
        wanted = {item.object_key: item for item in items}
        try:
            await self.until(lambda: self.objects == wanted and self.synced == set(Kind))
        except TimeoutError:
            raise AssertionError(f"{self.source.status}: {self.objects} is not {wanted}") from None


@asynccontextmanager
async def following(
    connection: Connection, settings: ClientSettings = SETTINGS, of: Config | None = None
) -> AsyncIterator[Follower]:
    follower = Follower(KubernetesSource(connection, of or config(), settings))
    task = asyncio.create_task(follower.read())
    try:
        yield follower
        assert not task.done(), "a source never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result()


WEB, API = service("web"), service("api", cluster_ips=["10.96.0.11"])
WEB_A = endpoint_slice("web-a", ["10.1.1.11"])
CLUSTER = (WEB, WEB_A, node(), service_cidr())


async def test_lists_then_watches() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            server.put(API)
            await follower.until_objects(*CLUSTER, API)
            changed = replace(WEB, external_ips=service(external_ips=["203.0.113.7"]).external_ips)
            server.put(changed)
            await follower.until_objects(changed, *CLUSTER[1:], API)
            server.delete(API)
            await follower.until_objects(changed, *CLUSTER[1:])
            assert follower.source.status == f"connected to {server.url}"


async def test_asks_as_kube_proxy_does() -> None:
    """operations.md section 8: selectors, watch list, bookmarks, timeouts, and how hansa calls itself."""
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
        asked = {one.kind: one for one in server.requests}
    assert len(asked) == len(server.requests) == 4, "one watch list for each kind is enough"
    assert asked["Service"].query["labelSelector"] == "!service.kubernetes.io/service-proxy-name"
    assert asked["Service"].query["fieldSelector"] == "spec.clusterIP!=None"
    assert asked["EndpointSlice"].query["labelSelector"] == "!service.kubernetes.io/headless"
    assert asked["Node"].query["fieldSelector"] == "metadata.name=n1"
    assert "labelSelector" not in asked["ServiceCIDR"].query
    assert "fieldSelector" not in asked["ServiceCIDR"].query
    for one in server.requests:
        assert one.query["sendInitialEvents"] == "true"
        assert one.query["resourceVersionMatch"] == "NotOlderThan"
        assert one.query["allowWatchBookmarks"] == "true"
        assert 300 <= int(one.query["timeoutSeconds"]) <= 600
        assert one.headers["User-Agent"] == f"hansa/{__version__} (kube-proxy compatible)"
        assert "Authorization" not in one.headers


async def test_services_are_listed_before_slices() -> None:
    async with ApiServer(mood=Mood(refuse_watch_list=422)) as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
        assert follower.log.index(Synced(Kind.SERVICE)) < follower.log.index(Upsert(WEB_A))
        assert follower.log.index(Upsert(WEB_A)) < follower.log.index(Synced(Kind.ENDPOINT_SLICE))


async def test_an_object_that_stops_matching_is_deleted_and_back_again() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER, manifest_service("other", proxy_name="other"), manifest_service("none", headless=True))
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            server.put(replace(WEB, proxy_name="other"))
            await follower.until_objects(*CLUSTER[1:])
            server.put(WEB)
            await follower.until_objects(*CLUSTER)


async def test_own_proxy_name_selects_by_label() -> None:
    mine = replace(WEB, proxy_name="hansa")
    async with ApiServer() as server:
        server.put(API, mine)
        async with following(server.connection(), of=config(proxy_name="hansa")) as follower:
            await follower.until_objects(mine)


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_lists_in_pages_where_streaming_is_refused(status: int) -> None:
    services = [service(f"web-{number:02}") for number in range(25)]
    async with ApiServer(mood=Mood(refuse_watch_list=status)) as server:
        server.put(*CLUSTER, *services)
        settings = replace(SETTINGS, watch=replace(QUICK, page_limit=10))
        async with following(server.connection(), settings) as follower:
            await follower.until_objects(*CLUSTER, *services)
            lists = [one.query for one in server.requests if one.kind == "Service" and not one.is_watch]
            assert [one.get("limit") for one in lists] == ["10"] * 3
            assert ["continue" in one for one in lists] == [False, True, True]
            server.put(API)
            await follower.until_objects(*CLUSTER, *services, API)


async def test_a_continue_token_that_expires_restarts_the_list() -> None:
    services = [service(f"web-{number:02}") for number in range(25)]
    async with ApiServer(mood=Mood(refuse_watch_list=422, delay_s=0.02)) as server:
        server.put(*CLUSTER, *services)
        settings = replace(SETTINGS, watch=replace(QUICK, page_limit=10))
        async with following(server.connection(), settings) as follower:
            await follower.until(lambda: Upsert(services[0]) in follower.log)
            server.delete(services[0])
            server.compact()
            await follower.until_objects(*CLUSTER, *services[1:])
            lists = [one.query for one in server.requests if one.kind == "Service" and not one.is_watch]
            assert "limit" not in lists[-1], "in one page it cannot happen again"


async def test_dropped_connections_and_cut_lines() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            for number in range(5):
                if number % 2:
                    server.cut()
                else:
                    server.cut_mid_line()
                server.put(service(f"new-{number}"))
                await follower.until(lambda: len(follower.objects) == len(CLUSTER) + number + 1)  # noqa: B023
            assert not any(isinstance(change, Malformed | Delete) for change in follower.log)
            assert sum(1 for one in server.requests if "sendInitialEvents" in one.query) == 4, "no second list"


async def test_a_watch_that_ends_in_order_goes_on_where_it_was() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            for number in range(3):
                server.end_watches()
                server.put(service(f"new-{number}"))
                await follower.until(lambda: len(follower.objects) == len(CLUSTER) + number + 1)  # noqa: B023
            assert len(follower.log) == len(CLUSTER) + 4 + 3, "nothing was said twice"


@pytest.mark.parametrize("refuse_watch_list", [0, 422])
@pytest.mark.parametrize("gone_as_status", [False, True])
async def test_gone_versions_lead_to_a_list_of_differences(refuse_watch_list: int, gone_as_status: bool) -> None:
    async with ApiServer(mood=Mood(refuse_watch_list=refuse_watch_list, gone_as_status=gone_as_status)) as server:
        server.put(*CLUSTER, API)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER, API)
            said = len(follower.log)
            await server.stop()
            server.delete(API)
            server.put(service("new"))
            server.compact()
            await server.start()
            await follower.until_objects(*CLUSTER, service("new"))
            assert follower.log[said:] == [Upsert(service("new")), Delete(API.object_key)]


async def test_gone_in_the_middle_of_a_watch() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            said = len(follower.log)
            server.say_gone()
            server.delete(WEB_A)
            await follower.until_objects(WEB, *CLUSTER[2:])
            assert follower.log[said:] == [Delete(WEB_A.object_key)]


async def test_bookmarks_keep_a_quiet_watch_young() -> None:
    """After a bookmark the watch resumes from its version, although the last event of its kind is long forgotten."""
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            server.put(*(service(f"busy-{number}") for number in range(3)))
            server.bookmark()
            await follower.until(lambda: len(follower.objects) == len(CLUSTER) + 3)
            await asyncio.sleep(0.02)
            server.compact()
            server.requests.clear()
            server.cut()
            await follower.until(lambda: len(server.requests) >= 4 and server.watch_count == 4)
            assert {one.query.get("resourceVersion") for one in server.requests} == {str(server.version)}


async def test_losing_the_server_says_nothing_until_it_is_back() -> None:
    """I4: existing rules stay; here nothing is emitted at all, and `status` says what is going on."""
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            said = len(follower.log)
            await server.stop()
            await follower.until(lambda: "Connect" in follower.source.status or "connect" in follower.source.status)
            await follower.until(lambda: follower.source.status.startswith("retrying in"))
            assert follower.source.troubled
            assert len(follower.log) == said
            await server.start()
            server.put(API)
            await follower.until_objects(*CLUSTER, API)
            await follower.until(lambda: follower.source.status == f"connected to {server.url}")
            assert not follower.source.troubled


async def test_starts_before_the_server_does() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        connection = server.connection()
        await server.stop()
        async with following(connection) as follower:
            await follower.until(lambda: "connect" in follower.source.status.lower())
            assert not follower.log
            await server.start()
            await follower.until_objects(*CLUSTER)


async def test_server_errors_and_overload_are_waited_out() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        server.fail(500, 503, 429, 502, 504, 429, retry_after_s=0.0)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            assert not any("limit" in one.query for one in server.requests), "an error is no refusal to stream"


async def test_a_redirect_is_not_followed_with_our_credentials() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        server.fail(302)
        async with following(server.connection(credentials=Token("secret"))) as follower:
            await follower.until_objects(*CLUSTER)


async def test_slow_answers_and_silent_servers() -> None:
    """A server that does not answer is given up and asked again; nothing waits for ever."""
    async with ApiServer(mood=Mood(delay_s=5)) as server:
        server.put(*CLUSTER)
        settings = replace(SETTINGS, list_idle_s=0.1, watch_idle_s=0.1)
        async with following(server.connection(), settings) as follower:
            await follower.until(lambda: "no answer in time" in follower.source.status)
            server.mood.delay_s = 0.02
            await follower.until_objects(*CLUSTER)
            server.put(API)
            await follower.until_objects(*CLUSTER, API)
            await follower.until(lambda: len(server.requests) > 16)  # silent watches are opened again
            assert len(follower.log) == len(CLUSTER) + 4 + 1


async def test_a_server_without_service_cidrs() -> None:
    async with ApiServer(mood=Mood(missing={"ServiceCIDR"})) as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER[:3])
            await follower.until(lambda: follower.source.status == f"connected to {server.url}")
            server.mood.missing.clear()
            await follower.until_objects(*CLUSTER)


async def test_a_restored_server_with_lower_versions() -> None:
    """Equal versions mean nothing once the server has gone back in time."""
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            await server.stop()
            server.restore(5)
            server.put(API)
            await server.start()
            server.bookmark()
            async with asyncio.timeout(WITHIN_S):
                while not follower.objects.get(API.object_key):
                    server.bookmark()
                    await asyncio.sleep(0.02)
            await follower.until_objects(*CLUSTER, API)


async def test_malformed_objects_do_not_stop_the_others() -> None:
    broken = manifest_service("broken")
    broken["spec"]["ports"][0]["port"] = "http"
    async with ApiServer() as server:
        server.put(*CLUSTER, broken)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            (found,) = [change for change in follower.log if isinstance(change, Malformed)]
            assert found.key == ObjectKey(Kind.SERVICE, "d", "broken")
            assert found.faults[0].field == "spec.ports[0].port"
            server.put(service("broken"))
            await follower.until_objects(*CLUSTER, service("broken"))
            server.put(broken)
            await follower.until(lambda: follower.log[-1] == found)
            server.delete(service("broken"))
            await follower.until_objects(*CLUSTER)


async def test_nonsense_in_the_stream_is_survived() -> None:
    async with ApiServer() as server:
        server.put(*CLUSTER)
        async with following(server.connection()) as follower:
            await follower.until_objects(*CLUSTER)
            for line in (
                b"not json\n",
                b"\n\n",
                b'{"type":"ADDED"}\n',
                b'{"type":"NOVEL","object":{}}\n',
                b"\xff\xfe\n",
            ):
                server.say(line)
            server.put(API)
            await follower.until_objects(*CLUSTER, API)


@pytest.mark.parametrize("endpoint_count", [1000])
async def test_lines_and_pages_longer_than_any_buffer(endpoint_count: int) -> None:
    """An event of megabytes comes through, compressed in a list and plain in a watch."""
    large = endpoint_slice("large", [f"10.2.{one // 250}.{one % 250}" for one in range(endpoint_count)])
    padded = manifest(large)
    padded["metadata"]["managedFields"] = [{"manager": "x" * 500_000}] * 5
    async with ApiServer(mood=Mood(refuse_watch_list=422, gzip=True)) as server:
        server.put(padded)
        async with following(server.connection(), replace(SETTINGS, compress=True)) as follower:
            await follower.until_objects(large)
            again = manifest(replace(large, service="other"))
            again["metadata"]["managedFields"] = padded["metadata"]["managedFields"]
            server.put(again)
            await follower.until_objects(replace(large, service="other"))
        assert all("gzip" in one.headers["Accept-Encoding"] for one in server.requests)


async def test_no_compression_on_this_machine() -> None:
    async with ApiServer() as server:
        async with following(server.connection()) as follower:
            await follower.until_objects()
        assert {one.headers["Accept-Encoding"] for one in server.requests} == {"identity"}


async def test_cancelling_while_nobody_reads() -> None:
    """The queue is full, the server is busy, the reader goes: everything ends at once and without a warning."""
    async with ApiServer() as server:
        server.put(*CLUSTER)
        batches = KubernetesSource(server.connection(), config(), SETTINGS).changes()
        assert await anext(batches)
        for number in range(100):
            server.put(service(f"web-{number}"))
            await asyncio.sleep(0)
        async with asyncio.timeout(WITHIN_S):
            await batches.aclose()
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not any(name.startswith("watch ") for name in names)


# Credentials


async def test_a_rotated_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with ApiServer() as server:
        server.put(*CLUSTER)
        server.require_token("first")
        async with following(server.connection(credentials=TokenFile(str(file)))) as follower:
            await follower.until_objects(*CLUSTER)
            server.require_token("second")
            server.cut()
            await follower.until(lambda: "does not accept these credentials" in follower.source.status)
            server.put(API)
            file.write_text("second\n")
            await follower.until_objects(*CLUSTER, API)
            file.unlink()
            server.cut()
            await follower.until(lambda: f"{file} cannot be read" in follower.source.status)
            file.write_text("second\n")
            await follower.until(lambda: follower.source.status == f"connected to {server.url}")


@pytest.mark.parametrize(
    ("credentials", "header"),
    [
        (Token("secret"), "Bearer secret"),
        (BasicAuth("admin", "pass:word"), "Basic " + base64.b64encode(b"admin:pass:word").decode()),
    ],
)
async def test_fixed_credentials(credentials: Token | BasicAuth, header: str) -> None:
    async with ApiServer() as server:
        async with following(server.connection(credentials=credentials)) as follower:
            await follower.until_objects()
        assert {one.headers["Authorization"] for one in server.requests} == {header}


def _plugin(folder: Path, body: str) -> ExecPlugin:
    """A credential plugin in Python; it counts its runs in the file `runs`."""
    script = folder / "plugin.py"
    head = f"""
        import json, os, pathlib, sys
        folder = pathlib.Path({str(folder)!r})
        runs = folder / "runs"
        count = int(runs.read_text()) + 1 if runs.exists() else 1
        runs.write_text(str(count))
        info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
        def issue(**status):
            print(json.dumps({{"apiVersion": info["apiVersion"], "kind": "ExecCredential", "status": status}}))
    """
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return ExecPlugin(sys.executable, (str(script), "argument"), (("GREETING", "hello"),), wants_cluster=True)


async def test_exec_plugin_issues_tokens_and_is_asked_again_after_401(tmp_path: Path) -> None:
    plugin = _plugin(
        tmp_path,
        """
        assert sys.argv[1] == "argument" and os.environ["GREETING"] == "hello"
        assert info["kind"] == "ExecCredential" and info["spec"]["interactive"] is False
        assert info["spec"]["cluster"]["server"].startswith("http://127.0.0.1:")
        assert sys.stdin.read() == ""
        issue(token=f"token-{count}", expirationTimestamp="2999-01-01T00:00:00Z")
        """,
    )
    async with ApiServer() as server:
        server.put(*CLUSTER)
        server.require_token("token-1")
        async with following(server.connection(credentials=plugin)) as follower:
            await follower.until_objects(*CLUSTER)
            assert (tmp_path / "runs").read_text() == "1", "one run serves all watches"
            server.require_token("token-2")
            server.cut()
            server.put(API)
            await follower.until_objects(*CLUSTER, API)
            assert (tmp_path / "runs").read_text() == "2", "four refusals at once are one reason to ask again"


async def test_exec_plugin_is_asked_again_once_its_token_has_expired(tmp_path: Path) -> None:
    plugin = _plugin(tmp_path, 'issue(token="good", expirationTimestamp="2001-01-01T00:00:00Z")')
    async with ApiServer() as server:
        server.require_token("good")
        async with following(server.connection(credentials=plugin)) as follower:
            await follower.until_objects()
        assert (tmp_path / "runs").read_text() == "4"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print('nonsense')", "printed no ExecCredential"),
        ("sys.exit('please log in')", "ended with 1: please log in"),
        ("issue()", "neither a token nor a certificate"),
        ("issue(token='x', clientKeyData='y')", "without its certificate"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
    ],
)
async def test_exec_plugin_failures_are_told_and_waited_out(tmp_path: Path, body: str, expected: str) -> None:
    settings = replace(SETTINGS, plugin_timeout_s=0.5)
    async with ApiServer() as server, following(server.connection(credentials=_plugin(tmp_path, body)), settings) as it:
        await it.until(lambda: expected in it.source.status)
        assert not it.log
        assert not server.requests


async def test_exec_plugin_that_is_not_installed() -> None:
    plugin = ExecPlugin("/nowhere/plugin", install_hint="apt install plugin")
    async with ApiServer() as server, following(server.connection(credentials=plugin)) as follower:
        await follower.until(lambda: "cannot start /nowhere/plugin" in follower.source.status)
        assert "apt install plugin" in follower.source.status


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _server_tls(authority: trustme.CA, *names: str, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names or ("127.0.0.1",)).configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _ca(authority: trustme.CA) -> PemData:
    return PemData(authority.cert_pem.bytes())


async def test_https_with_the_cluster_authority(authority: trustme.CA) -> None:
    async with ApiServer(tls=_server_tls(authority)) as server:
        server.put(*CLUSTER)
        async with following(server.connection(ca=_ca(authority))) as follower:
            await follower.until_objects(*CLUSTER)
            server.cut()
            server.put(API)
            await follower.until_objects(*CLUSTER, API)


async def test_an_unknown_authority_is_not_trusted(authority: trustme.CA) -> None:
    async with ApiServer(tls=_server_tls(authority)) as server:
        async with following(server.connection(ca=_ca(trustme.CA()))) as follower:
            await follower.until(lambda: "certificate is not trusted" in follower.source.status)
            assert not follower.log
        assert not server.requests
        async with following(server.connection(skip_tls_verify=True)) as follower:
            await follower.until_objects()


async def test_another_server_name(authority: trustme.CA) -> None:
    async with ApiServer(tls=_server_tls(authority, "kubernetes.example")) as server:
        async with following(server.connection(ca=_ca(authority))) as follower:
            await follower.until(lambda: "certificate is not trusted" in follower.source.status)
        connection = server.connection(ca=_ca(authority), tls_server_name="kubernetes.example")
        async with following(connection) as follower:
            await follower.until_objects()


@pytest.mark.parametrize("as_files", [False, True])
async def test_client_certificate(authority: trustme.CA, tmp_path: Path, as_files: bool) -> None:
    mine = authority.issue_cert("n1")
    chain = b"".join(blob.bytes() for blob in mine.cert_chain_pems)
    (tmp_path / "cert").write_bytes(chain)
    (tmp_path / "key").write_bytes(mine.private_key_pem.bytes())
    pair = ClientCertificate(PemData(chain), PemData(mine.private_key_pem.bytes()))
    if as_files:
        pair = ClientCertificate(PemFile(str(tmp_path / "cert")), PemFile(str(tmp_path / "key")))
    async with ApiServer(tls=_server_tls(authority, clients=authority)) as server:
        server.put(*CLUSTER)
        async with following(server.connection(ca=_ca(authority), client_certificate=pair)) as follower:
            await follower.until_objects(*CLUSTER)


async def test_a_rotated_client_certificate_is_read_again(authority: trustme.CA, tmp_path: Path) -> None:
    old, new = trustme.CA().issue_cert("n1"), authority.issue_cert("n1")
    cert, key = tmp_path / "cert", tmp_path / "key"

    def write(issued: trustme.LeafCert) -> None:
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())

    write(old)
    pair = ClientCertificate(PemFile(str(cert)), PemFile(str(key)))
    async with (
        ApiServer(tls=_server_tls(authority, clients=authority)) as server,
        following(server.connection(ca=_ca(authority), client_certificate=pair)) as follower,
    ):
        await follower.until(lambda: follower.source.status.startswith("retrying"))
        write(new)
        await follower.until_objects()


async def test_exec_plugin_issues_a_certificate(authority: trustme.CA, tmp_path: Path) -> None:
    mine = authority.issue_cert("n1")
    (tmp_path / "cert").write_bytes(mine.cert_chain_pems[0].bytes())
    (tmp_path / "key").write_bytes(mine.private_key_pem.bytes())
    body = 'issue(clientCertificateData=(folder / "cert").read_text(), clientKeyData=(folder / "key").read_text())'
    async with ApiServer(tls=_server_tls(authority, clients=authority)) as server:
        connection = server.connection(ca=_ca(authority), credentials=_plugin(tmp_path, body))
        async with following(connection) as follower:
            await follower.until_objects()


async def test_unusable_certificates_are_told(tmp_path: Path, authority: trustme.CA) -> None:
    async with ApiServer(tls=_server_tls(authority)) as server:
        async with following(server.connection(ca=PemFile(str(tmp_path / "missing")))) as follower:
            await follower.until(lambda: "missing cannot be read" in follower.source.status)
        async with following(server.connection(ca=PemData(b"nonsense"))) as follower:
            await follower.until(lambda: "authority is not usable" in follower.source.status)
        bad = ClientCertificate(PemData(b"nonsense"), PemData(b"nonsense"))
        async with following(server.connection(ca=_ca(authority), client_certificate=bad)) as follower:
            await follower.until(lambda: "client certificate is not usable" in follower.source.status)


async def test_keys_given_as_data_lie_in_private_files_and_not_for_long(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libraries.md section 18: mode 0600, and removed."""
    modes = []
    load = ssl.SSLContext.load_cert_chain

    def watched(context: ssl.SSLContext, certfile: str, keyfile: str, password: str) -> None:
        assert Path(keyfile).is_relative_to(tmp_path)
        modes.extend(stat.S_IMODE(os.stat(path).st_mode) for path in (certfile, keyfile))
        load(context, certfile, keyfile, password)

    mine = authority.issue_cert("n1")
    pair = ClientCertificate(PemData(mine.cert_chain_pems[0].bytes()), PemData(mine.private_key_pem.bytes()))
    async with ApiServer(tls=_server_tls(authority)) as server:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
        async with following(server.connection(ca=_ca(authority), client_certificate=pair)) as follower:
            await follower.until_objects()
    # Windows has access lists instead of modes: here those of the user's own temporary folder.
    assert set(modes) == {0o600 if sys.platform != "win32" else 0o666}
    assert not list(tmp_path.iterdir())


@asynccontextmanager
async def _proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP proxy that knows CONNECT; yields its URL and the first lines of what it was asked."""
    asked: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b"\r\n")[0])
        host, port = head.split()[1].decode().split(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pumps = [asyncio.create_task(pump(reader, there_writer)), asyncio.create_task(pump(there_reader, writer))]
        tasks.update(pumps)
        await asyncio.gather(*pumps)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await asyncio.gather(*tasks)
        await server.wait_closed()


async def test_by_way_of_a_proxy(authority: trustme.CA) -> None:
    async with (
        ApiServer(tls=_server_tls(authority, "kubernetes.example")) as server,
        _proxy() as (proxy, asked),
    ):
        server.put(*CLUSTER)
        connection = server.connection(ca=_ca(authority), tls_server_name="kubernetes.example", proxy=proxy)
        async with following(connection) as follower:
            await follower.until_objects(*CLUSTER)
        assert asked
        assert set(asked) == {f"CONNECT {server.url.removeprefix('https://')} HTTP/1.1".encode()}


async def test_by_kubeconfig_from_a_file(authority: trustme.CA, tmp_path: Path) -> None:
    async with ApiServer(tls=_server_tls(authority)) as server:
        server.put(*CLUSTER)
        server.require_token("good")
        (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
        (tmp_path / "token").write_text("good")
        (tmp_path / "kubeconfig").write_text(
            textwrap.dedent(f"""
                apiVersion: v1
                kind: Config
                current-context: default
                contexts: [{{name: default, context: {{cluster: c, user: u}}}}]
                clusters: [{{name: c, cluster: {{server: "{server.url}/", certificate-authority: ca.crt}}}}]
                users: [{{name: u, user: {{tokenFile: token}}}}]
                """)
        )
        connection = load_connection(str(tmp_path / "kubeconfig"), "", {})
        async with following(connection) as follower:
            await follower.until_objects(*CLUSTER)


async def test_every_node_once() -> None:
    nodes = [node(f"n{number}") for number in range(5)]
    async with ApiServer() as server:
        server.put(*nodes, *CLUSTER[:2])
        settings = replace(SETTINGS, watch=replace(QUICK, page_limit=2))
        assert await read_nodes(server.connection(), settings) == tuple(nodes)
        server.require_token("good")
        with pytest.raises(SourceError, match="does not accept these credentials"):
            await read_nodes(server.connection(), settings)
        await server.stop()
        with pytest.raises(SourceError, match="cannot connect"):
            await read_nodes(server.connection(), settings)
