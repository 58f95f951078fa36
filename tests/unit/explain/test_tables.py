"""Tables show what they are given: an IPv6 frontend has brackets, and those are no markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app

ROOT = Path(__file__).parents[3]
LAB = ROOT / "examples/labs/mixed.yaml"


def run(*words: str) -> str:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """The lab's Services, and a Node of both families with an endpoint."""
    services = "---".join(LAB.read_text(encoding="utf-8").split("---")[1:])
    more = """
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.40.7.0/24, "fd40:0:0:7::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.21}, {type: InternalIP, address: "2001:db8:0:1::21"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv6
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
endpoints: [{addresses: ["fd40:0:0:8::a"], conditions: {ready: true}, nodeName: n2}]
ports: [{name: http, port: 8080, protocol: TCP}]
"""
    file = tmp_path / "cluster.yaml"
    file.write_text(services + more, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "--hns", "emulator", "--network", "l2bridge"),
        ("render", "--dataplane", "windows", "--network", "l2bridge", "-o", "table"),
        ("render", "--dataplane", "nftables", "-o", "table"),
    ],
)
def test_ipv6_frontends_are_in_the_tables(command: tuple[str, ...], manifests: Path) -> None:
    out = run(*command, "--source", str(manifests), "--node-name", "n1")
    assert "[fd21::7]:80/tcp" in out


def test_and_in_the_one_of_who_made_what() -> None:
    assert "load balancer [fd21::7]:80/tcp for default/web:http" in run("lab", "run", str(LAB))
