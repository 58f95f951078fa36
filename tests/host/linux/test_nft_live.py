"""`hansa trace --live` with real packets: what the kernel tells of them, in hansa's words, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from tests.host.linux.hansa_node import HANSA, plain, until
from tests.host.linux.namespaces import LIMIT_S, PATIENCE_S, Lab, Seen, missing

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import Kind
from hansa.config import make_config
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.dataplanes.nftables.live import follow
from hansa.dataplanes.nftables.trace import SeenPacket
from hansa.explain.trace import Explanation, explain_by_nftables, read_packet, seen_difference, seen_lines
from hansa.net import Protocol
from hansa.pipeline import Pipeline
from hansa.rules.model import RuleChanges
from hansa.testing import L1, NODE, NODE_ADDRESSES, R1, WEB, endpoint, endpoint_slice, manifest, service

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("nft-live"),
]

SETTINGS = {"clusterCIDR": "10.1.0.0/16"}
DUAL = service("dual", cluster_ips=["10.96.0.60", "fd00::60"])
OBJECTS = (
    NODE,
    WEB,
    DUAL,
    service("idle", cluster_ips=["10.96.0.20"]),
    service("ranged", cluster_ips=["10.96.0.30"], type="LoadBalancer", load_balancer_vips=["203.0.113.90"],
            source_ranges=["198.51.100.0/28"]),
    endpoint_slice("web-a", [L1, R1]),
    endpoint_slice("dual-6", [endpoint("fd01:0:0:1::11")], service="dual"),
    endpoint_slice("ranged-a", [L1], service="ranged"),
)  # fmt: skip


def objects() -> list[Change]:
    return [*(Upsert(one) for one in OBJECTS), *(Synced(kind) for kind in Kind)]


class Node:
    """The standing example and a few more services, in the kernel of the lab's node."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pipeline = Pipeline(make_config(SETTINGS, node_name="n1"), NODE_ADDRESSES)
        self.pipeline.apply(objects())
        message = self.pipeline.take()
        assert message is not None
        self.message: RuleChanges = message
        with closing(NftablesDataplane(lab.node.call(KernelRuleset))) as plane:
            assert lab.node.call(lambda: plane.sync(message, now=0.0, audit=False)).ok
        for rule in message.rules.values():
            for one in rule.endpoints if rule is not None else ():
                lab.ensure_endpoint(one.address, one.port, Protocol.TCP)

    def explain(self, text: str) -> Explanation:
        return explain_by_nftables(read_packet(text, self.pipeline), self.pipeline, self.message)

    def seen(self, text: str, send: Callable[[], object] | None = None) -> tuple[Explanation, SeenPacket]:
        """What the kernel tells of such a packet, which is sent meanwhile."""
        found = self.explain(text)
        sent: list[Seen] = []

        def act() -> None:
            until(lambda: "hansa-trace-" in self.tables(), LIMIT_S, lambda: "no table")
            (send or (lambda: sent.append(self.lab.send(found.packet, patience_s=PATIENCE_S))))()

        thread = threading.Thread(target=act)
        thread.start()
        seen = self.lab.node.call(lambda: follow(found.packet, found.ruleset, seconds=LIMIT_S))
        thread.join()
        self.lab.close_connections()
        assert "hansa-trace-" not in self.tables()
        assert len(seen) == 1
        return found, seen[0]

    def tables(self) -> str:
        return self.lab.node.nft("list", "tables")


@pytest.fixture(scope="module")
def on() -> Iterator[Node]:
    lab = Lab()
    try:
        lab.create()
        yield Node(lab)
    finally:
        lab.delete()


def test_a_forwarded_packet_meets_the_rules_that_were_foretold(on: Node) -> None:
    found, seen = on.seen("198.51.100.99 -> svc/d/web")
    lines = seen_lines(seen, found)
    assert lines[:3] == [
        "seen: 198.51.100.99 -> 10.96.0.10:80/tcp",
        "  prerouting: jump dispatch",
        "  dispatch: meta priority set ip daddr . meta l4proto . th dport map @services meta priority vmap @picks"
        " -> goto pick-masquerade-node-outside-2",
    ]
    assert lines[-1] == "as the rules want it"
    assert [(one.chain, one.rule) for one in seen.rules] == [(one.chain, one.rule) for one in found.fate.met]
    assert seen.target in {(L1.address, 8080), (R1.address, 8080)}
    assert lines[-2] == f"  so it went to {seen.target[0]}:8080"


def test_ipv6(on: Node) -> None:
    found, seen = on.seen("fd01:0:0:1::5 -> svc/d/dual")
    assert seen_difference(seen, found) == ""
    assert seen_lines(seen, found)[-2] == "  so it went to [fd01:0:0:1::11]:8080"


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("10.1.1.5 -> svc/d/idle", "  so it was refused"),
        ("10.1.1.5 -> 10.96.0.10:81", "  so it was refused"),
        ("198.51.100.99 -> 203.0.113.90:80", "  so it was dropped, by ip hansa dispatch"),
        ("node -> svc/d/idle", "  so it was refused"),
    ],
)
def test_what_does_not_get_through(on: Node, text: str, ending: str) -> None:
    found, seen = on.seen(text)
    assert seen_lines(seen, found)[-2:] == [ending, "as the rules want it"]


def test_a_later_packet_of_a_connection_asks_nobody(on: Node) -> None:
    first = on.explain("10.1.1.5 -> svc/d/web")
    _, alive = on.lab.open(first.packet)
    found, seen = on.seen("10.1.1.5 -> svc/d/web", alive)
    assert not seen.asked_hansa
    assert seen_lines(seen, found)[-1] == "  hansa's table was not asked: a later packet of a connection"


def test_another_table_that_drops_it_is_named(on: Node) -> None:
    on.lab.node.nft("-f", "-", stdin="""
        table ip firewall { chain forward {
            type filter hook forward priority 0;
            ip daddr { 10.1.1.11, 10.1.2.21 } tcp dport 8080 drop
        }
        }""")  # fmt: skip
    try:
        found, seen = on.seen("198.51.100.99 -> svc/d/web")
    finally:
        on.lab.node.nft("delete", "table", "ip", "firewall")
    lines = seen_lines(seen, found)
    assert any(line.startswith("  ip firewall forward: rule ") and line.endswith(" -> drop") for line in lines), lines
    assert lines[-2] == "  so it was dropped, by ip firewall forward"
    assert lines[-1].startswith("difference: rules: forward to ")


def test_a_table_that_does_something_else_is_found_out(on: Node) -> None:
    element = "{ 10.96.0.20 . tcp . 80"
    on.lab.node.nft("delete", "element", "ip", "hansa", "services", element + " }")
    on.lab.node.nft("add", "element", "ip", "hansa", "services", element + " : 1e:2 }")  # pick-masquerade-2
    on.lab.node.nft("add", "element", "ip", "hansa", "slots", "{ 10.96.0.20 . tcp . 80 . 1:1 : 10.1.1.11 . 8080 }")
    on.lab.node.nft("add", "element", "ip", "hansa", "slots", "{ 10.96.0.20 . tcp . 80 . 1:2 : 10.1.1.11 . 8080 }")
    found, seen = on.seen("10.1.1.5 -> svc/d/idle")
    with closing(NftablesDataplane(on.lab.node.call(KernelRuleset))) as plane:
        assert on.lab.node.call(lambda: plane.sync(on.message, now=0.0, audit=False)).results
    assert seen_difference(seen, found) == "rules: reject; it was not refused"


def test_nothing_comes_by_and_nothing_is_left(on: Node) -> None:
    found = on.explain("10.1.1.5 -> svc/d/web")
    began = time.monotonic()
    assert on.lab.node.call(lambda: follow(found.packet, found.ruleset, seconds=0.3)) == ()
    assert time.monotonic() - began < LIMIT_S
    assert "hansa-trace-" not in on.tables()


# -- the command -----------------------------------------------------------------------------------------------------


def start(on: Node, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump_all([manifest(one) for one in OBJECTS]), encoding="utf-8")
    inside = ["nsenter", f"--net=/run/netns/{on.lab.node.name}", str(HANSA)]
    common = ("trace", "--live", "--source", str(file), "--node-name", "n1", "--set", "clusterCIDR=10.1.0.0/16")
    process = subprocess.Popen(
        [*inside, *common, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=plain(),
        # Who runs the tests in the background of a shell has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: "hansa-trace-" in on.tables() or process.poll() is not None, 60.0, lambda: "no table")
    return process


def test_the_command(on: Node, tmp_path: Path) -> None:
    process = start(on, tmp_path, "--seconds", "30", "-o", "json", "10.1.1.5 -> svc/d/web")
    on.lab.send(on.explain("10.1.1.5 -> svc/d/web").packet)
    on.lab.close_connections()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    (seen,) = json.loads(out)["seen"]
    assert (seen["askedHansa"], seen["difference"]) == (True, None)


def test_the_command_says_when_nothing_came(on: Node, tmp_path: Path) -> None:
    out, err = start(on, tmp_path, "--seconds", "0.5", "10.1.1.5 -> svc/d/web").communicate(timeout=60)
    assert out.splitlines()[-2:] == ["rules and objects agree", "no such packet came by within 0.5 s"]
    assert err == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_table_goes_however_the_command_ends(on: Node, tmp_path: Path, number: signal.Signals) -> None:
    process = start(on, tmp_path, "--seconds", "300", "10.1.1.5 -> svc/d/web")
    assert "hansa-trace-" in on.tables()
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    until(lambda: "hansa-trace-" not in on.tables(), LIMIT_S, on.tables)


def test_without_the_privilege_the_command_says_so(on: Node, tmp_path: Path) -> None:
    inside = ["nsenter", f"--net=/run/netns/{on.lab.node.name}", "setpriv", "--bounding-set", "-net_admin", str(HANSA)]
    done = subprocess.run(
        [*inside, "trace", "--live", "--source", "-", "--node-name", "n1", "--dataplane", "nftables",
         "10.1.1.5 -> 10.96.0.10:80"],
        input="", capture_output=True, text=True, check=False, env=plain(),
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("hansa: host: run hansa as root: this process lacks the right to change rules")
