"""A packet on one Windows node: emulated and programmed by hansa, and one that was saved with all its defects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app

ROOT = Path(__file__).parents[3]
CLUSTER = ("--source", str(ROOT / "src/hansa/demo/cluster.yaml"), "--node-name", "win-1", "--hns", "emulator")
SAVED = ROOT / "tests/recorded/ws2019-l2bridge"
DUMP = ("--source", str(SAVED / "cluster.yaml"), "--node-name", "win-1", "--hns", f"dump:{SAVED}")


def trace(packet: str, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["trace", packet, *options])
    return done.exit_code, done.stdout


@pytest.mark.parametrize("network", ["overlay", "l2bridge"])
@pytest.mark.parametrize(
    ("packet", "origin"),
    [
        ("pod 100.96.2.15 -> svc/default/web", "a pod of this node"),
        ("pod 100.96.2.15 -> svc/kube-system/kube-dns:dns", "a pod of this node"),
        ("203.0.113.9 -> node:30080", "the wire"),
        ("203.0.113.9 -> 203.0.113.80:80", "the wire"),
        ("pod 100.96.2.15 -> 100.96.3.7:8080", "a pod of this node"),
    ],
)
def test_a_node_that_hansa_has_programmed_does_what_the_rules_want(network: str, packet: str, origin: str) -> None:
    code, out = trace(packet, *CLUSTER, "--network", network)
    assert code == 0
    assert out.splitlines()[0].endswith(f", from {origin}")
    assert "rules and HNS agree" in out


def test_every_endpoint_that_may_be_picked_is_tried() -> None:
    _, out = trace("pod 100.96.2.15 -> svc/default/web", *CLUSTER, "-o", "json")
    data = json.loads(out)
    assert len(data["hns"]) == 2
    assert {one["end"].split(" -> ")[-1] for one in data["hns"]} == {"100.96.2.14:8080/tcp", "100.96.3.7:8080/tcp]"}
    assert data["differences"] == []


def test_the_node_itself_and_a_cluster_ip_is_a_known_limit() -> None:
    code, out = trace("node -> svc/default/web", *CLUSTER)
    assert code == 0
    assert "difference: HNS does not lead to 100.96.2.14:8080, 100.96.3.7:8080" in out
    assert "known limit: HNS: a process of the node itself" in out


def test_a_saved_node_shows_where_it_goes_another_way_than_the_rules() -> None:
    code, out = trace("203.0.113.9 -> svc/kube-system/kube-dns:dns-tcp", *DUMP)
    assert code == 5
    assert "difference: HNS does not lead to" in out


def test_real_packets_are_for_linux() -> None:
    assert trace("203.0.113.9 -> node:30080", *CLUSTER, "--live")[0] != 0
