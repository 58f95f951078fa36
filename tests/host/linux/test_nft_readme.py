"""The README's command for a Linux node, as it stands there: kubeconfig, API server, kernel, and real connections."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import ROOT
from tests.host.linux.hansa_node import (
    BOTH,
    HANSA,
    START_LIMIT_S,
    inside,
    lab_of_two,
    met,
    plain,
    until,
    wait_until_ready,
)
from tests.host.linux.namespaces import Lab, missing

from hansa.testing import L1, R1, endpoint_slice, manifest, node, service

sys.path.insert(0, str(ROOT / "benchmarks"))

import proxies

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("nft-run"),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_of_two() as found:
        yield found


def command(kubeconfig: Path) -> list[str]:
    """The line of the README, with what stands there for a person's own cluster filled in."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^hansa run (--kubeconfig .*?)\s+# Linux, as root$", text, re.MULTILINE)
    assert found is not None, "the README shows how to run hansa on a Linux node"
    line = found[1].replace("/path/to/kubeconfig", str(kubeconfig)).replace("NODE", "n1")
    line = re.sub(r"clusterCIDR=\S+", "clusterCIDR=10.1.0.0/16", line)
    return [str(HANSA), "run", *shlex.split(line)]


def test_the_readmes_command_serves_a_cluster(lab: Lab, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        items = [manifest(one) for one in (node("n1", addresses=["192.0.2.1"]), service("web"))]
        items.append(manifest(endpoint_slice("web-a", [L1, R1])))
        put: Any = lab.node.call(lambda: stack.enter_context(proxies.api_server(items)))
        kubeconfig = proxies.write_kubeconfig(tmp_path, proxies.api_server.url)  # type: ignore[attr-defined]
        # The lock of this machine is not the test's to take.
        arguments = [*inside(lab), *command(kubeconfig), "--lock", str(tmp_path / "lock")]
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(arguments, stderr=output, env=plain())

        def words() -> str:
            return log.read_text(encoding="utf-8")

        try:
            wait_until_ready(lab, process, words)
            assert met(lab, 30) == BOTH
            put(manifest(endpoint_slice("web-a", [L1])))
            # With both still there, one alone would be met this often once in 10^9 times.
            until(lambda: met(lab, 30) == {"10.1.1.11:8080"}, START_LIMIT_S, words)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(START_LIMIT_S) == 128 + signal.SIGTERM
            assert met(lab, 10) == {"10.1.1.11:8080"}, "rules stay when hansa ends"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
