"""Reasons, as services, rules, render and plan have given them; on a node, on an emulated HNS and in a lab."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.errors import ConfigError
from hansa.explain.why import Case, Line, read_question, why
from hansa.hns.schema import HnsLoadBalancer, PortMapping
from hansa.lab.cluster import Cluster
from hansa.net import parse_address

LAB = Path(__file__).parents[3] / "examples" / "labs" / "overlay.yaml"

SLICE = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: news-b, namespace: default, labels: {kubernetes.io/service-name: news}}
endpoints:
- {addresses: [10.41.8.13], conditions: {ready: true}, nodeName: win-2}
- {addresses: [10.41.7.11], conditions: {ready: false}, nodeName: win-1}
- {addresses: [10.41.8.12], conditions: {ready: false, terminating: true, serving: true}, nodeName: win-2}
- {addresses: [10.41.7.99], conditions: {ready: true}, nodeName: win-1}
ports: [{name: http, port: 8080, protocol: TCP}]
"""


def up(extra: str = "", *faults: str) -> Cluster:
    return Cluster.read(LAB.read_text(encoding="utf-8") + extra, name="lab", faults=faults)


def ask(cluster: Cluster, node: str, question: str) -> tuple[Line, ...]:
    one = cluster.windows[node]
    message = one.pipeline.take(full=True)
    assert message is not None
    situation = one.situation
    return why(Case(one.pipeline, message, situation, situation.wanted.shortfalls), read_question(question))


def texts(lines: tuple[Line, ...], stage: str) -> str:
    return "\n".join(line.text for line in lines if line.stage == stage)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.41.7.11", "not used, not ready"),
        ("10.41.8.12", "not used, terminating, and a ready endpoint exists"),
        ("10.41.8.13", "chosen for traffic policy Cluster"),
    ],
)
def test_why_an_endpoint_is_not_used(address: str, reason: str) -> None:
    lines = ask(up(SLICE), "win-1", f"endpoint {address} for svc/default/news")
    assert "EndpointSlice default/news-b" in texts(lines, "sources")
    assert reason in texts(lines, "services")
    leads = "leads nobody there" not in texts(lines, "rules")
    assert leads is reason.startswith("chosen")


def test_a_pod_that_the_cni_has_not_made_is_waited_for() -> None:
    lines = ask(up(SLICE), "win-1", "endpoint 10.41.7.99")
    assert "waits for the CNI" in texts(lines, "plan")
    assert "HNS holds no endpoint with 10.41.7.99" in texts(lines, "host")


def test_an_address_that_no_slice_names() -> None:
    lines = ask(up(), "win-1", "endpoint 10.41.7.98 for svc/default/web")
    assert lines[0] == Line("sources", "no EndpointSlice of default/web names 10.41.7.98")
    assert ask(up(), "win-1", "endpoint 10.41.7.98")[0].stage == "sources"


def test_a_service_that_is_not_there() -> None:
    assert "no Service is called default/nobody" in texts(ask(up(), "win-1", "frontend svc/default/nobody"), "services")


def test_why_a_frontend_is_rejected_or_dropped() -> None:
    cluster = up()
    rejected = ask(cluster, "win-1", "frontend 172.21.30.99:80/tcp")
    assert "reject, no usable endpoint anywhere" in texts(rejected, "rules")
    assert "verdict" in texts(rejected, "render")
    dropped = ask(cluster, "win-1", "frontend node:30481")
    assert "drop, traffic policy Local and no usable endpoint on this node (if outside asks)" in texts(dropped, "rules")
    unused = ask(cluster, "win-1", "frontend 172.21.30.7:81/tcp")
    assert "reject, the ClusterIP is in use, but not on this port and protocol" in texts(unused, "rules")
    assert "drop, inside a ServiceCIDR" in texts(ask(cluster, "win-1", "frontend 172.21.99.9:81/tcp"), "rules")


def test_two_services_that_want_one_frontend() -> None:
    other = LAB.read_text(encoding="utf-8").split("---\n")[1].replace("name: kubernetes", "name: zwei")
    lines = ask(up("---\n" + other), "win-1", "frontend 172.21.0.1:443/tcp")
    assert "belongs to default/kubernetes:https; default/zwei:https claims it too" in texts(lines, "rules")


def test_why_a_load_balancer_exists() -> None:
    cluster = up()
    emulator = cluster.windows["win-1"].emulator
    ours = next(one for one in emulator.load_balancers() if parse_address("172.21.30.7") in one.frontend_vips)
    lines = ask(cluster, "win-1", f"loadbalancer {ours.guid[:8]}")
    assert texts(lines, "plan").splitlines() == [
        f"{ours.guid[:8].lower()}: {text}" for text in ("hansa has made it", "as desired")
    ]
    assert "wanted for default/web:http (service)" in texts(lines, "render")
    foreign = emulator.add(
        HnsLoadBalancer(
            endpoints=ours.endpoints,
            frontend_vips=(parse_address("198.51.100.99"),),
            port_mappings=(PortMapping(protocol=6, internal_port=1, external_port=1),),
            owner="somebody",
        )
    )
    lines = ask(cluster, "win-1", f"load balancer {foreign}")
    assert "belongs to other software" in texts(lines, "plan")
    assert "no frontend of a handled Service matches" in texts(lines, "rules")
    assert ask(cluster, "win-1", "loadbalancer ffffffff")[0].text == "HNS holds no load balancer ffffffff"


def test_what_is_missing_is_the_next_step() -> None:
    cluster = up("", "delete-load-balancer win-1 172.21.0.10:53/udp")
    lines = ask(cluster, "win-1", "frontend 172.21.0.10:53/udp")
    assert texts(lines, "plan") == "172.21.0.10:53/udp: create, missing"


@pytest.mark.parametrize("text", ["why?", "endpoint 10.1", "frontend 10.0.0.1:80/frog", "endpoint 10.0.0.1 for svc/x"])
def test_what_is_no_question(text: str) -> None:
    with pytest.raises(ConfigError):
        read_question(text)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["why", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command() -> None:
    question = "endpoint 10.41.7.11 for svc/default/web"
    everywhere = run(str(LAB), question)
    assert [line for line in everywhere.splitlines() if line.endswith(":")] == ["win-1:", "win-2:", "linux-1:"]
    assert "linux-1" not in run(str(LAB), "frontend node:30480", "--node-name", "win-1")
    cluster = Path(__file__).parents[3] / "src/hansa/demo/cluster.yaml"
    node = ("endpoint 100.96.2.15 for svc/default/web", "--source", str(cluster), "--node-name", "win-1")
    assert "not used, not ready" in run(*node, "--dataplane", "nftables")
    assert "HNS holds" in run(*node, "--hns", "emulator")
    assert '"stage": "services"' in run(*node, "--dataplane", "nftables", "-o", "json")
