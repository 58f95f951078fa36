"""Everything that is read from outside ends somewhere: files, lists, lines of a watch, what a plugin prints."""

from __future__ import annotations

import asyncio
import errno
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.api_server import ApiServer
from tests.end_to_end.stage import QUICK, until

import hansa.sources.kubernetes.client as client
from hansa.bounded import LONGEST_CONFIG_BYTES, read_file
from hansa.cli.options import read_settings
from hansa.config import Config
from hansa.dataplanes.windows import journal
from hansa.errors import ConfigError, SourceError
from hansa.sources import files
from hansa.sources.kubernetes.client import KubernetesSource, load_connection
from hansa.sources.kubernetes.lines import LineSplitter
from hansa.testing import manifest, node, service


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345678")
    assert read_file(file, 8) == b"12345678"
    with pytest.raises(OSError, match="larger than 7 bytes") as raised:
        read_file(file, 7)
    assert raised.value.errno == errno.EFBIG


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_kubeconfig_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load_connection("/dev/zero", "", {})


def test_a_line_without_end_is_refused() -> None:
    splitter = LineSplitter(longest_bytes=10)
    assert splitter.feed(b"1234567890\n12345") == [b"1234567890"]
    assert splitter.feed(b"67890\n") == [b"1234567890"]
    assert splitter.feed(b"12345") == []
    with pytest.raises(SourceError, match="line of more than 10 bytes"):
        splitter.feed(b"678901")


async def status_of(server: ApiServer, settings: client.ClientSettings = QUICK) -> str:
    source = KubernetesSource(server.connection(), Config(node_name="n1"), settings)

    async def read() -> None:
        async with aclosing(source.changes()) as batches:
            async for _ in batches:
                pass

    task = asyncio.create_task(read())
    try:
        await until(lambda: source.troubled)
        return source.status
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_a_list_that_is_too_long_is_trouble_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source goes on asking, and the process keeps its memory."""
    monkeypatch.setattr(client, "LONGEST_LIST_BYTES", 2000)
    async with ApiServer() as server:
        server.mood.refuse_watch_list = 422
        server.put(
            node("n1"), *(service(f"web-{number}", cluster_ips=[f"10.96.0.{number}"]) for number in range(1, 20))
        )
        assert "the answer is longer than 2000 bytes" in await status_of(server)


@pytest.mark.asyncio
async def test_a_watch_event_that_does_not_end_is_trouble_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineSplitter.__init__, "__defaults__", (4000,))
    async with ApiServer() as server:
        server.put(node("n1"), service("web"))
        big = manifest(service("big"))
        big["metadata"]["annotations"] = {f"note-{number}": "x" * 60 for number in range(100)}
        server.put(big)
        assert "a line of more than 4000 bytes" in await status_of(server)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform == "win32", reason="the plugin is a shell script")
async def test_a_plugin_that_prints_without_end_fails_within_its_time(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text("#!/bin/sh\nhead -c 8000000 /dev/zero\n")
    plugin.chmod(0o755)
    (tmp_path / "kubeconfig").write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], "
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], "
        "users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, "
        "interactiveMode: Never}}}]}"
    )
    connection = load_connection(str(tmp_path / "kubeconfig"), "", {})
    with pytest.raises(SourceError, match="plugin"):
        await client.read_nodes(connection)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"#" * (LONGEST_CONFIG_BYTES + 1), "larger than"),
        (b"mode: \xff\xfe\x00", "is not YAML"),
        (b"mode: 2026-13-45", "is not YAML"),
        (b"[" * 1200, "is not YAML"),
    ],
    ids=["too large", "no text", "no date", "nested without end"],
)
def test_a_configuration_that_cannot_be_read_says_so(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "config"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        read_settings(file, [], "n1")


def test_a_journal_that_is_none_is_a_fault_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LONGEST_BYTES", 10)
    path = tmp_path / "journal"
    path.write_bytes(b"+" * 11)
    file = journal.JournalFile(str(path))
    assert not file.load().made
    assert "larger than 10 bytes" in file.fault


def test_a_manifest_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_DUMP_BYTES", 10)
    file = tmp_path / "cluster.yaml"
    file.write_bytes(b"x" * 11)
    with pytest.raises(SourceError, match="larger than 10 bytes"):
        files.read_once(str(file))
