"""`hansa doctor` on a Linux node: what it sees in a kernel, with another proxy's rules, and while hansa works."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.host.linux.namespaces import missing

from hansa.demo import cluster_manifests

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
]

HANSA = Path(sys.executable).with_name("hansa")
NODE = ("--source", "cluster.yaml", "--node-name", "linux-1", "--dataplane", "nftables", "--lock", "lock")
OFF = ("--healthz-bind-address", "", "--metrics-bind-address", "")
FORWARD = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"


def on_a_node(folder: Path, before: str, *more: str) -> tuple[int, list[tuple[str, str, str]]]:
    """The doctor's exit code and findings in a network namespace of its own, after `before` as a shell does it."""
    (folder / "cluster.yaml").write_text(cluster_manifests(), encoding="utf-8")
    doctor = shlex.join([str(HANSA), "doctor", *NODE, "--exit-code", "-o", "json", *more])
    script = f"set -e; ip link set lo up; {before}; {doctor}"
    done = subprocess.run(
        # What runs in the background ends with the shell, the first process of a namespace in which no others are seen.
        ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    return done.returncode, [(each["topic"], each["result"], each["text"]) for each in found]


def test_a_node_that_hansa_serves_is_well(tmp_path: Path) -> None:
    run = shlex.join([str(HANSA), "run", *NODE, *OFF])
    wait = "until grep -q 'number=1 ' log; do kill -0 $! && sleep 0.05; done"
    code, found = on_a_node(tmp_path, f"{FORWARD}; {run} 2> log & {wait}")
    assert code == 0, found
    assert {result for _, result, _ in found} == {"well"}
    assert [text.partition(" (pid")[0] for topic, _, text in found if topic == "proxies"] == ["hansa run"]
    assert ("rules", "well", "the kernel holds what it should") in found


def test_a_node_that_nobody_has_prepared(tmp_path: Path) -> None:
    code, found = on_a_node(tmp_path, "true", "--set", "conntrack.tcpBeLiberal=true")
    assert code == 5
    wrong = {(topic, result) for topic, result, _ in found if result != "well"}
    assert wrong == {("proxies", "warning"), ("settings", "error"), ("settings", "warning"), ("rules", "warning")}
    assert any("tcp_be_liberal is 0, the configuration asks for 1" in text for *_, text in found)


def test_another_proxys_rules_are_named(tmp_path: Path) -> None:
    rules = "nft add table ip kube-proxy; iptables -t nat -N KUBE-SERVICES"
    code, found = on_a_node(tmp_path, f"{FORWARD}; {rules}", "--set", "takeover=false")
    assert code == 5
    (text,) = [text for topic, result, text in found if (topic, result) == ("proxies", "error")]
    assert "chain KUBE-SERVICES in iptables-" in text
    _, found = on_a_node(tmp_path, "nft add table ip kube-proxy")
    assert ("proxies", "note", "table ip kube-proxy is kube-proxy's; hansa replaces it when it starts") in found


def test_rules_that_somebody_took_away(tmp_path: Path) -> None:
    """While hansa is stopped, so that it cannot heal: the doctor is to see it, not hansa."""
    run = shlex.join([str(HANSA), "run", *NODE, *OFF])
    wait = "until grep -q 'number=1 ' log; do kill -0 $! && sleep 0.05; done"
    code, found = on_a_node(tmp_path, f"{FORWARD}; {run} 2> log & {wait}; kill -STOP $!; nft flush map ip hansa slots")
    assert code == 5, found
    (text,) = [text for topic, result, text in found if (topic, result) == ("rules", "error")]
    assert "missing or not as they should be" in text
