"""Health and metrics of `hansa run` as a process, over real sockets: probes, a scrape, a host that goes away.

Evidence: operations.md 10, 16 and 17; service-semantics sections 14 and 15.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.end_to_end.cluster import NODE_NAME, cluster
from tests.end_to_end.processes import Command, Shell, shell
from tests.end_to_end.stage import until
from tests.ports import free_port

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM for others nor unix sockets"),
]

ANY_PORTS = ("--healthz-bind-address", "127.0.0.1:0", "--metrics-bind-address", "127.0.0.1:0")
LISTENS = re.compile(r"listening server=(\w+) address=127\.0\.0\.1 port=(\d+)")


def manifests(folder: Path, number: int) -> Path:
    """The demo's cluster, in which the Service `web` has this healthCheckNodePort."""
    items = cluster()
    for item in items:
        if item["kind"] == "Service" and item["metadata"]["name"] == "web":
            item["spec"]["healthCheckNodePort"] = number
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump_all(items))
    return file


async def ports(run: Command) -> dict[str, int]:
    """Where the servers listen, as the log says."""
    await until(lambda: len(LISTENS.findall("\n".join(run.log))) == 2, lambda: f"{run.log}")
    return {name: int(number) for name, number in LISTENS.findall("\n".join(run.log))}


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        yield session


async def get(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with session.get(url) as response:
        return response.status, await response.text()


async def eventually(session: aiohttp.ClientSession, url: str, code: int) -> Any:
    """Return the JSON body once the answer has this code."""
    found: tuple[int, str] = (0, "")
    async with asyncio.timeout(20):
        while True:
            found = await get(session, url)
            if found[0] == code:
                return json.loads(found[1])
            await asyncio.sleep(0.02)


async def test_probes_and_a_scrape_of_a_running_proxy(tmp_path: Path) -> None:
    number = free_port()
    async with shell(tmp_path) as on, client() as session:
        run = await on.hansa(
            *("run", "--source", manifests(tmp_path, number), "--node-name", NODE_NAME, "--hns", "emulator"),
            # The emulated node's addresses are not this machine's, so the port listens on all that there are.
            *("--set", "nodePortAddresses=[]", *ANY_PORTS),
        )
        at = await ports(run)
        health, metrics = (f"http://127.0.0.1:{at[name]}" for name in ("healthz", "metrics"))
        await eventually(session, f"{health}/readyz", 200)
        assert (await eventually(session, f"{health}/healthz", 200))["nodeEligible"] is True
        assert (await eventually(session, f"{health}/livez", 200))["status"]["IPv4"]["healthy"] is True
        assert await get(session, f"{health}/") == (404, "404 page not found\n")

        await until(lambda: can_connect(number))
        told = await eventually(session, f"http://127.0.0.1:{number}/anything", 200)
        assert told == {
            "service": {"namespace": "default", "name": "web"},
            "localEndpoints": 1,
            "serviceProxyHealthy": True,
        }

        assert await get(session, f"{metrics}/healthz") == (200, "ok")
        assert await get(session, f"{metrics}/proxyMode") == (200, "kernelspace")
        code, text = await get(session, f"{metrics}/configz")
        settings = json.loads(text)["kubeproxy.config.k8s.io"]
        assert (code, settings["hostnameOverride"], settings["nodePortAddresses"]) == (200, NODE_NAME, [])
        code, text = await get(session, f"{metrics}/metrics")
        values = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert values["hansa_syncs_total", "full", "ok"] == 1
        assert values["kubeproxy_sync_proxy_rules_duration_seconds_count", "IPv4"] == 1
        assert values["hansa_health_check_ports", "listening"] == 1
        assert values["kubeproxy_proxy_healthz_total", "200"] == 1
        assert values["hansa_host_calls_total", "create", "ok"] > 0
        assert values["process_resident_memory_bytes",] > 10 * 2**20
        code, text = await get(session, f"{metrics}/debug/state?service=default/web")
        (web,) = json.loads(text)["services"]
        assert {rule["kind"] for rule in web["rules"]} == {"ClusterIP", "NodePort", "LoadBalancerIP"}

        assert await run.terminate() == 143
        for one in (*at.values(), number):
            assert not can_connect(one)


def can_connect(number: int) -> bool:
    with contextlib.closing(socket.socket()) as one:
        return one.connect_ex(("127.0.0.1", number)) == 0


async def test_a_host_that_is_away_for_two_sync_periods_takes_the_node_out(tmp_path: Path) -> None:
    """The rules are still there and hansa still answers, but balancers turn away until the host is back."""
    address = f"unix:{tmp_path}/node.sock"
    source = manifests(tmp_path, 0)
    async with shell(tmp_path) as on, client() as session:
        serving = await serve_node(on, address, source)
        run = await on.hansa(
            *("run", "--source", source, "--node-name", NODE_NAME, "--hns", f"remote:{address}", *ANY_PORTS),
            *("--set", "winkernel.sourceVip=100.96.2.2", "--set", "syncPeriod=500ms", "--set", "minSyncPeriod=0s"),
        )
        health = f"http://127.0.0.1:{(await ports(run))['healthz']}"
        await eventually(session, f"{health}/healthz", 200)
        await eventually(session, f"{health}/readyz", 200)
        serving.kill()
        await serving.ended()
        body = await eventually(session, f"{health}/healthz", 503)
        assert (body["healthy"], body["nodeEligible"]) == (False, True)
        assert (await eventually(session, f"{health}/livez", 503))["lastUpdated"] < body["currentTime"]
        await eventually(session, f"{health}/readyz", 200)
        (tmp_path / "node.sock").unlink()
        await serve_node(on, address, source)
        await eventually(session, f"{health}/healthz", 200)
        assert await run.terminate() == 143


async def test_sigterm_ends_it_within_two_seconds_with_all_rules_in_place_also_while_the_host_hangs(
    tmp_path: Path,
) -> None:
    address = f"unix:{tmp_path}/node.sock"
    source = manifests(tmp_path, 0)
    async with shell(tmp_path) as on, client() as session:
        serving = await serve_node(on, address, source)
        run = await on.hansa(
            *("run", "--source", source, "--node-name", NODE_NAME, "--hns", f"remote:{address}", *ANY_PORTS),
            *("--set", "winkernel.sourceVip=100.96.2.2", "--set", "fullCheckPeriod=200ms", "--set", "minSyncPeriod=0s"),
        )
        at = await ports(run)
        await eventually(session, f"http://127.0.0.1:{at['healthz']}/readyz", 200)
        held = await on.output("hns", "ls", "--hns", f"remote:{address}")
        assert "100.64.0.10" in held

        serving.process.send_signal(signal.SIGSTOP)
        try:
            running: list[str | None] = []
            while len(running) < 2 or running[-1] is None or running[-1] != running[-2]:
                await asyncio.sleep(0.3)  # longer than a check takes: the same one twice is one that hangs
                _, text = await get(session, f"http://127.0.0.1:{at['metrics']}/debug/state")
                running.append(json.loads(text)["runningSince"])
            started = time.monotonic()
            assert await run.terminate() == 143
            took_s = time.monotonic() - started
        finally:
            serving.process.send_signal(signal.SIGCONT)
        assert any("sync abandoned" in line for line in run.log), run.log
        assert took_s < 2.0
        assert await on.output("hns", "ls", "--hns", f"remote:{address}") == held


async def serve_node(on: Shell, address: str, source: Path) -> Command:
    serving = await on.hansa("hns", "serve", "--listen", address, "--source", source, "--node-name", NODE_NAME)
    await serving.says(f"serving HNS at {address}")
    return serving


async def test_a_taken_port_is_said_and_does_not_end_hansa_unless_it_is_to(tmp_path: Path) -> None:
    source = manifests(tmp_path, 0)
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = (
            *("run", "--source", source, "--node-name", NODE_NAME, "--hns", "emulator"),
            *("--healthz-bind-address", at, "--metrics-bind-address", ""),
        )
        async with shell(tmp_path) as on:
            run = await on.hansa(*arguments)
            await run.says("sync number=1 kind=full")
            said = [line for line in run.log if "FailedToStart" in line]
            assert said == [
                "W hansa.health event reason=FailedToStartProxierHealthcheck action=StartKubeProxy "
                f'object="Node {NODE_NAME}" note="failed to start the healthz server: listen on {at}: '
                'Address already in use"'
            ]
            assert await run.terminate() == 143
            hard = await on.hansa(*arguments, "--set", "bindAddressHardFail=true")
            assert await hard.ended() == 4
            assert hard.log[-1] == (
                f"hansa: host: cannot listen on {at}: Address already in use; bindAddressHardFail is set"
            )
