"""Which Nodes are known before a source is followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa.cli import inputs
from hansa.demo import cluster_manifests
from hansa.sources.kubernetes.kubeconfig import Connection


def ask_nobody() -> Connection:
    raise AssertionError("an API server is asked for")


@pytest.mark.parametrize(
    ("source", "fresh"), [("kpng://127.0.0.1:1", True), ("kpng-file:state.yaml", True), ("kubernetes", False)]
)
def test_no_api_server_is_asked_without_need(source: str, fresh: bool) -> None:
    """A brain's node reaches no API server, and a real node must start while that is away."""
    assert inputs.nodes_ahead(source, ask_nobody, fresh=fresh) == ()


def test_a_fresh_node_is_laid_out_by_the_nodes_of_the_cluster() -> None:
    with pytest.raises(AssertionError, match="an API server is asked for"):
        inputs.nodes_ahead("kubernetes", ask_nobody, fresh=True)


@pytest.mark.parametrize("fresh", [True, False])
def test_manifests_tell_their_nodes(tmp_path: Path, fresh: bool) -> None:
    file = tmp_path / "demo.yaml"
    file.write_text(cluster_manifests(), encoding="utf-8")
    names = [node.name for node in inputs.nodes_ahead(str(file), ask_nobody, fresh=fresh)]
    assert names == ["linux-1", "win-1", "win-2"]
