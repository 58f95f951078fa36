"""Commands that look once at a cluster's API: `render` and `plan`, and the emulated node that `run` starts with."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.api_server import ApiServer, Mood
from tests.end_to_end.cluster import NODE_NAME, cluster, shop
from tests.end_to_end.stage import plain, with_token_file

from hansa import cli

pytestmark = pytest.mark.asyncio

Output = tuple[int, str, str]


@pytest.fixture
def hansa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command in a thread of its own, while the API server answers in this one."""

    async def call(*arguments: object) -> Output:
        monkeypatch.setattr("sys.argv", ["hansa", *map(str, arguments)])

        def main() -> int:
            with pytest.raises(SystemExit) as ended:
                cli.main()
            return ended.value.code if isinstance(ended.value.code, int) else 0

        code = await asyncio.to_thread(main)
        gc.collect()  # what was left open speaks up now
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    for name in ("KUBE_NETWORK", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    return call


@pytest.mark.parametrize("mood", [Mood(), Mood(refuse_watch_list=422)], ids=["streaming lists", "lists in pages"])
async def test_a_cluster_renders_as_its_manifests_do(hansa, tmp_path: Path, mood: Mood) -> None:
    """Also what depends on other Nodes: on overlay, which of them a pod is behind."""
    items = [*cluster(), *shop()]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump_all(items), encoding="utf-8")
    common = ("render", "--dataplane", "windows", "--node-name", NODE_NAME, "-o", "json", "--source")
    async with ApiServer(mood=mood) as server:
        server.put(*items)
        kubeconfig = plain(tmp_path).kubeconfig(server)
        code, of_server, err = await hansa(*common, "kubernetes", "--kubeconfig", kubeconfig)
    assert (code, err) == (0, "")
    _, of_file, _ = await hansa(*common, tmp_path / "cluster.yaml")
    assert json.loads(of_server) == json.loads(of_file)
    providers = {
        policy["Settings"]["ProviderAddress"]
        for one in json.loads(of_server)["HostComputeEndpoints"]
        for policy in one.get("Policies", [])
    }
    assert {"192.0.2.11", "192.0.2.22"} <= providers


@pytest.mark.parametrize("command", [("render",), ("plan", "--hns", "emulator"), ("run", "--hns", "emulator")])
async def test_a_node_name_that_the_cluster_does_not_have_is_refused(
    hansa, tmp_path: Path, command: tuple[str, ...]
) -> None:
    async with ApiServer() as server:
        server.put(*cluster())
        kubeconfig = plain(tmp_path).kubeconfig(server)
        code, _, err = await hansa(
            *command, "--source", "kubernetes", "--kubeconfig", kubeconfig, "--node-name", "win-9"
        )
    assert code == 2
    assert "no Node is called 'win-9' (the input has linux-1, win-1, win-2)" in err


async def _away(server: ApiServer) -> None:
    await server.stop()


async def _refusing(server: ApiServer) -> None:
    server.require_token("another")


@pytest.mark.parametrize(
    ("trouble", "says"),
    [(_away, "cannot connect"), (_refusing, "refused with 401, the server does not accept these credentials")],
)
async def test_a_cluster_that_cannot_be_read_is_told_at_once(
    hansa, tmp_path: Path, trouble: Callable[[ApiServer], object], says: str
) -> None:
    async with ApiServer() as server:
        kubeconfig = plain(tmp_path).kubeconfig(server)
        await trouble(server)
        code, out, err = await hansa(
            *("render", "--source", "kubernetes", "--kubeconfig", kubeconfig, "--node-name", NODE_NAME)
        )
        assert (code, out) == (3, "")
        assert err.startswith(f"hansa: source: {server.url}: {says}")


async def test_in_a_pod_without_any_argument(
    hansa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTPS with the service account's authority and token; a warning that this address is one hansa itself serves."""
    access = with_token_file(tmp_path)
    account = tmp_path / "mount" / "var" / "run" / "secrets" / "kubernetes.io" / "serviceaccount"
    account.mkdir(parents=True)
    for name in ("ca.crt", "token"):
        (account / name).write_bytes((tmp_path / name).read_bytes())
    async with ApiServer(tls=access.tls) as server:
        server.require_token("first")
        server.put(*cluster())
        host, port = server.url.removeprefix("https://").split(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setenv("CONTAINER_SANDBOX_MOUNT_POINT", str(tmp_path / "mount"))
        with caplog.at_level(logging.WARNING, "hansa"):
            code, out, err = await hansa("render", "--source", "kubernetes", "--node-name", NODE_NAME)
    assert code == 0, err
    assert "100.64.17.25" in out
    (warning,) = [one.getMessage() for one in caplog.records if one.name == "hansa.config"]
    assert warning.startswith(f"API connection: KUBERNETES_SERVICE_HOST: {host} is as a rule the address of a Service")
