"""`hansa brain` and `hansa state` as people type them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.api_server import ApiServer
from tests.end_to_end.processes import shell
from tests.end_to_end.stage import QUICK, until
from tests.end_to_end.stage import plain as plain_access

from hansa.api.change import Synced, Upsert
from hansa.api.objects import Kind
from hansa.brain.cluster import Cluster
from hansa.brain.server import Brain, Settings, parse_listen
from hansa.cli import state
from hansa.config import Config
from hansa.demo import cluster_manifests
from hansa.sources.kubernetes.client import KubernetesSource, load_connection
from hansa.sources.selection import Header, HeaderMetadata, is_selected, selection
from hansa.testing import L1, R1, WEB, config, endpoint_slice, manifest, node, service


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    file = tmp_path / "cluster.yaml"
    file.write_text(cluster_manifests(), encoding="utf-8")
    return str(file)


@pytest.fixture
def brain() -> Iterator[str]:
    """A brain with one Service, in a thread with a loop of its own; its address as a source."""
    started: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        held = Cluster(config())
        held.apply([Upsert(WEB), Upsert(endpoint_slice("web-a", [L1, R1])), Upsert(node())])
        held.apply([Synced(kind) for kind in Kind])
        async with Brain(held, Settings((parse_listen("tcp://127.0.0.1:0"),))) as server:
            started.append(f"kpng://{server.targets[0]}")
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(20)
    yield started[0]
    done.set()
    thread.join()


def test_state_of_a_cluster_in_every_form(hansa, cluster: str) -> None:
    code, out, err = hansa("state", "--source", cluster)
    assert code == 0, err
    assert (
        "default/web           LoadBalancer  100.64.17.25  80:30080/tcp              2 of 3 ready" in out.splitlines()
    )
    as_json = json.loads(hansa("state", "--source", cluster, "-o", "json")[1])
    as_yaml = yaml.safe_load(hansa("state", "--source", cluster, "-o", "yaml")[1])
    assert as_json == as_yaml
    assert as_json["default/web"]["service"]["HealthCheckNodePort"] > 0
    assert as_json["node/win-1"]["zone"] == "zone-a"
    assert len(as_json["default/web"]["endpoints"]) == 3


def test_state_of_a_node_says_why_endpoints_are_left_out(hansa, cluster: str) -> None:
    out = hansa("state", "--source", cluster, "--node", "win-1")[1]
    assert "100.96.2.15:8080: not ready" in out
    found = json.loads(hansa("state", "--source", cluster, "--node", "win-1", "-o", "json")[1])
    (port,) = found["default/web"]["ports"]
    assert [port["endpoints"][place]["address"] for place in port["external"].get("endpoints", [])] == ["100.96.2.14"]


def test_kpng_file_there_and_back(hansa, cluster: str, tmp_path: Path) -> None:
    first, second = tmp_path / "one.yaml", tmp_path / "two.yaml"
    assert hansa("state", "--source", cluster, "-o", "kpng", "--write", str(first))[0] == 0
    assert hansa("state", "--source", f"kpng-file:{first}", "-o", "kpng", "--write", str(second))[0] == 0
    assert first.read_text() == second.read_text()
    before = hansa("state", "--source", cluster)[1]
    assert hansa("state", "--source", f"kpng-file:{second}")[1] == before
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")], "no draft is left behind"


def test_state_of_a_brain_by_each_of_its_apis(hansa, brain: str) -> None:
    node_api = hansa("state", "--source", brain, "--node", "n1")[1]
    assert "10.1.1.11:8080*, 10.1.2.21:8080" in node_api
    assert hansa("state", "--source", f"{brain}?api=local", "--node", "n1")[1] == node_api
    assert hansa("state", "--source", f"{brain}?api=global", "--node", "n1")[1] == node_api
    assert "LoadBalancer" in hansa("state", "--source", f"{brain}?api=global")[1]
    assert hansa("state", "--source", brain, "--nodes")[1].splitlines()[0] == "revision 2"
    assert json.loads(hansa("state", "--source", brain, "--nodes", "-o", "json")[1])["revision"] == "2"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("state", "--source", "x.yaml", "--nodes"), "only a brain knows its nodes"),
        (("state", "--source", "x.yaml", "-o", "xml"), "'xml' is no output form"),
        (("state", "--source", "kpng://127.0.0.1:1", "-o", "kpng"), "holds a cluster"),
        (("state", "--source", "kpng://127.0.0.1:1?api=x"), "api=x is unknown"),
        (("brain", "--source", "x.yaml", "--listen", "tcp://:0"), "open to other machines"),
        (("brain", "--source", "x.yaml", "--listen", "here/there"), "is no address"),
        (("brain", "--source", "x.yaml", "--tls-ca", "missing.crt"), "missing.crt cannot be read"),
        (("brain", "--source", "x.yaml", "--metrics-bind-address", "x"), "neither IP nor IP:port"),
        (("plan", "--source", "kpng://"), "names no host"),
        (("plan", "--source", "x.yaml", "--dataplane", "exec:"), "names no command"),
        (("cleanup", "--dataplane", "userspace"), "keeps nothing"),
    ],
)
def test_what_cannot_be_is_said(hansa, arguments: tuple[str, ...], text: str) -> None:
    code, out, err = hansa(*arguments)
    assert (code, out) == (2, ""), err
    assert text in err


def test_a_node_that_the_source_does_not_know(hansa, cluster: str) -> None:
    code, out, err = hansa("state", "--source", cluster, "--node", "win-9")
    assert (code, out) == (2, "")
    assert "--node: no Node is called 'win-9' (the source has linux-1, win-1, win-2)" in err


def test_a_brain_whose_metrics_port_is_taken(hansa, cluster: str, tmp_path: Path) -> None:
    arguments = ("brain", "--source", cluster, "--listen", f"unix:{tmp_path}/brain.sock", "--metrics-bind-address")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = hansa(*arguments, f"127.0.0.1:{port}")
    assert code == 2
    assert f"--metrics-bind-address: 127.0.0.1:{port} cannot be opened: Address already in use" in err
    assert not (tmp_path / "brain.sock").exists(), "nobody would answer there"


def test_nobody_is_there(hansa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "COMPLETE_WITHIN_S", 0.3)
    code, _, err = hansa("state", "--source", "kpng://127.0.0.1:1")
    assert code != 0
    assert "127.0.0.1:1" in err
    code, _, err = hansa("state", "--source", "kpng://127.0.0.1:1", "--nodes")
    assert code != 0
    assert "UNAVAILABLE" in err


def test_without_grpc_it_says_what_to_install(hansa, monkeypatch: pytest.MonkeyPatch, cluster: str) -> None:
    monkeypatch.setattr("hansa.cli.inputs._is_there", lambda module: module != "grpc")
    for arguments in (("state", "--source", cluster), ("brain", "--source", cluster), ("plan", "--source", "kpng://x")):
        code, _, err = hansa(*arguments)
        assert code == 2
        assert "pip install 'hansa[kpng]'" in err


@pytest.mark.asyncio
async def test_watch_follows_a_file_that_another_one_is_written_from(tmp_path: Path) -> None:
    """A whole chain of processes: manifests, a brain, KPNG's file written from it, and somebody who watches that."""
    source = tmp_path / "cluster.json"

    def put(*objects: object) -> None:
        draft = tmp_path / "draft"
        items = [manifest(one) for one in objects]  # type: ignore[arg-type]
        draft.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        draft.replace(source)

    put(WEB, endpoint_slice("web-a", [L1, R1]), node())
    socket = f"unix:{tmp_path}/brain.sock"
    file = tmp_path / "state.yaml"
    async with shell(tmp_path) as sh:
        brain = await sh.hansa("brain", "--source", source, "--listen", socket, "--metrics-bind-address", "")
        await brain.says("serving at")
        writer = await sh.hansa(
            *("state", "--source", f"{socket}?api=global", "--watch", "-o", "kpng", "--write", file),
        )
        await until(file.exists)
        watcher = await sh.hansa("state", "--source", f"kpng-file:{file}", "--watch")
        await watcher.says("d/web")
        put(WEB, service("api", cluster_ips=["10.96.0.11"]), endpoint_slice("web-a", [L1]), node())
        await watcher.says("added d/api")
        await watcher.says("changed d/web")
        for one in (watcher, writer, brain):
            one.process.send_signal(signal.SIGTERM)
            await one.ended()
        assert await brain.ended() == 128 + signal.SIGTERM


def test_a_brain_watches_all_nodes() -> None:
    everywhere = Config(node_name="")
    assert selection(Kind.NODE, everywhere).field_selector == ""
    assert selection(Kind.NODE, config()).field_selector == "metadata.name=n1"
    other = Header(metadata=HeaderMetadata(name="n2"))
    assert is_selected(Kind.NODE, other, everywhere)
    assert not is_selected(Kind.NODE, other, config())


@pytest.mark.asyncio
async def test_a_brain_of_a_cluster_behind_an_api_server(tmp_path: Path) -> None:
    async with ApiServer() as server:
        server.put(*(manifest(one) for one in (WEB, endpoint_slice("web-a", [L1, R1]), node("n1"), node("n2"))))
        access = plain_access(tmp_path)
        connection = load_connection(str(access.kubeconfig(server)), "", {})
        held = Cluster(config())
        async with Brain(held, Settings((parse_listen("tcp://127.0.0.1:0"),))) as brain:
            source = KubernetesSource(connection, Config(node_name=""), QUICK)
            following = asyncio.create_task(brain.follow(source))
            try:
                await until(lambda: held.ready)
                assert set(held.nodes) == {"n1", "n2"}
                assert [str(key) for key in held.services] == ["d/web"]
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
