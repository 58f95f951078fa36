"""What an operator gets from a running hansa: every metric of the documented table, Events, and no secrets anywhere.

Evidence: operations.md 10, 11, 12 and 15.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.api_server import ApiServer
from tests.end_to_end.cluster import FAR_POD, LOCAL_POD, NODE_NAME, cluster, decoded, fresh_node, shop
from tests.end_to_end.processes import HANSA, Command, shell
from tests.end_to_end.stage import plain, with_token_file
from tests.ports import free_port

from hansa.hns.api import HnsKind, HnsVerb, HResult
from hansa.hns.emulator.faults import Fault, Refuse
from hansa.hns.emulator.server import serve
from hansa.hns.emulator.service import Emulator
from hansa.lab.cni import add_local_pods, spare_source_vips
from hansa.testing import manifest_endpoint_slice, manifest_service

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM for others nor unix sockets"),
]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE)
LIMIT_S = 60.0  # for one thing to be seen, on a machine that is busy with other tests
CONFLICT = HResult(0x803B0013)
# What only the nftables dataplane has; without root, or without nft, it is left out.
OF_NFTABLES = re.compile("kubeproxy_(sync_proxy_rules_nftables|conntrack)_.*")


class Row(NamedTuple):
    type: str
    labels: frozenset[str]


def documented() -> dict[str, Row]:
    """The tables of the page."""
    found = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {name: Row(kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in found}


def scraped(*texts: str) -> dict[str, Row]:
    """What scrapes show, by prometheus-client's own parser."""
    found: dict[str, Row] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert family.samples, f"{name} is there without a series"
            for sample in family.samples:
                row = Row(family.type, frozenset(sample.labels) - {"le"})
                assert found.setdefault(name, row) == row, name
    return found


@dataclass
class Node:
    """A proxy on an emulated Windows node that outlives it, with its API server."""

    server: ApiServer
    emulator: Emulator
    lock: threading.Lock
    proxy: Command
    client: aiohttp.ClientSession
    health: str
    metrics: str

    async def get(self, url: str, **more: Any) -> str:
        async with self.client.get(url, **more) as answer:
            return await answer.text()

    async def ready(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with self.client.get(f"{self.health}/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)

    async def shows(self, line: str) -> None:
        """Return once the metrics have a line that begins like this."""
        text = ""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not any(one.startswith(line) for one in text.splitlines()):
                    text = await self.get(f"{self.metrics}/metrics")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{line} is not in\n{text}") from None


@contextlib.asynccontextmanager
async def node(
    folder: Path, *flags: str, server: ApiServer | None = None, kubeconfig: Path | None = None
) -> AsyncIterator[Node]:
    items = cluster()
    emulator = fresh_node(items)
    add_local_pods(emulator, decoded(items), NODE_NAME)
    machine = dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address)
    lock, health, metrics = threading.Lock(), free_port(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        hns = stack.enter_context(serve(emulator, f"unix:{folder}/node.sock", lock=lock, machine=machine))
        api = server or await stack.enter_async_context(ApiServer())
        api.put(*items)
        on = await stack.enter_async_context(shell(folder))
        config = folder / "config.conf"
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig or plain(folder).kubeconfig(api)), "qps": 50},
            "healthzBindAddress": f"127.0.0.1:{health}",
            "metricsBindAddress": f"127.0.0.1:{metrics}",
            "winkernel": {"sourceVip": spare_source_vips(emulator)[0].compressed},
            "nodePortAddresses": [],  # the emulated node's addresses are not this machine's
            "enableProfiling": True,
        }
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        proxy = await on.hansa(
            *("proxy", f"--config={config}", f"--hostname-override={NODE_NAME}", f"--hns=remote:{hns.address}"),
            *("--config-override=fullCheckPeriod=300ms", *flags),
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        made = Node(api, emulator, lock, proxy, client, f"http://127.0.0.1:{health}", f"http://127.0.0.1:{metrics}")
        await made.ready()
        yield made
        assert await proxy.terminate() == 143


def odd_services() -> Iterable[dict[str, Any]]:
    """One that Windows cannot do in full, and one that is malformed."""
    ranged = manifest_service("ranged", cluster_ips=["100.64.200.51"], type="LoadBalancer", node_port=30051)
    ranged["spec"]["loadBalancerSourceRanges"] = ["198.51.100.0/24"]
    ranged["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.51"}]}}
    yield ranged
    yield manifest_endpoint_slice("ranged-a", (LOCAL_POD, FAR_POD), service="ranged")
    broken = manifest_service("broken", cluster_ips=["100.64.200.52"])
    broken["spec"]["ports"] = [{"port": "http"}]
    yield broken


async def windows_scrape(folder: Path) -> str:
    """A scrape of a node that has met all that is counted."""
    async with ApiServer() as server:
        server.fail(503)
        async with node(folder, server=server) as at:
            at.server.put(*odd_services())
            await at.shows("hansa_shortfalls{")
            triggered = manifest_endpoint_slice("shop-1-a", (LOCAL_POD, FAR_POD), service="shop-1")
            now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
            triggered["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": now}
            at.server.put(shop()[0], triggered)
            await at.shows("kubeproxy_network_programming_duration_seconds_count{")
            balancers = list(at.emulator.load_balancers())
            with at.lock:  # somebody deletes one behind hansa's back
                at.emulator.remove(HnsKind.LOAD_BALANCER, balancers[0].guid)
            await at.shows("hansa_drift_healed_total{")
            with at.lock:  # and another, which HNS does not take back at once
                refusal = Fault(effect=Refuse(CONFLICT), verb=HnsVerb.CREATE, kind=HnsKind.LOAD_BALANCER)
                at.emulator.faults.add(refusal)
                at.emulator.remove(HnsKind.LOAD_BALANCER, balancers[1].guid)
            await at.shows("hansa_backoff_objects{")
            text = await at.get(f"{at.metrics}/metrics")
            await at.shows('hansa_pending_objects{ip_family="IPv4"} 0')
            async with at.client.post(f"{at.metrics}/debug/heal", json={"service": "default/web"}) as answer:
                assert answer.status == 200, await answer.text()
            await at.shows("hansa_disruptive_steps_total{")
            await at.get(f"{at.health}/healthz")
            await at.get(f"{at.health}/livez")
            await at.shows("rest_client_request_duration_seconds_count{")
            return text + await at.get(f"{at.metrics}/metrics")


async def nftables_scrape(folder: Path) -> str:
    """A scrape of a node in a network namespace of its own, whose table another program holds at first."""
    manifests = folder / "cluster.yaml"
    manifests.write_text(yaml.safe_dump_all(cluster()))
    port = free_port()
    script = folder / "node.sh"
    script.write_text(
        f"""
        ip link set lo up
        (echo 'add table ip hansa {{ flags owner; }}'; sleep 5) | nft -i >/dev/null &
        sleep 0.5
        {HANSA} run --source {manifests} --node-name {NODE_NAME} --dataplane nftables --lock {folder}/lock \\
            --healthz-bind-address '' --metrics-bind-address 127.0.0.1:{port} --set clusterCIDR=100.96.0.0/16 &
        for _ in $(seq 100); do
            curl -s -o metrics http://127.0.0.1:{port}/metrics
            grep -q conntrack_reconciler_deleted metrics && grep -q nftables_sync_failures metrics && break
            sleep 0.2
        done
        kill %2; wait %2
        """
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "bash", "-m", str(script)), cwd=folder, stderr=asyncio.subprocess.PIPE
    )
    _, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert (folder / "metrics").exists(), complaints.decode()
    return (folder / "metrics").read_text(encoding="utf-8") + f"# {complaints.decode()!r}\n"


def has_nftables() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and all(map(shutil.which, ("nft", "unshare", "curl", "ip")))


async def test_real_scrapes_together_equal_the_documented_table(tmp_path: Path) -> None:
    """Names, types and labels: nothing is served that the page does not have, and nothing is missing."""
    (tmp_path / "windows").mkdir()
    (tmp_path / "linux").mkdir()
    texts = [await windows_scrape(tmp_path / "windows")]
    expected = documented()
    assert len(expected) > 60
    if has_nftables():
        texts.append(await nftables_scrape(tmp_path / "linux"))
    else:
        expected = {name: row for name, row in expected.items() if not OF_NFTABLES.fullmatch(name)}
    assert scraped(*texts) == expected, texts[-1][-3000:]


SECRET = "top-secret-token-5d41402abc4b2a76b9719d911017c592"


async def test_no_token_is_in_logs_pages_metrics_or_events(tmp_path: Path) -> None:
    """Everything that hansa says anywhere, at the highest verbosity, also about a server that refuses it."""
    access = with_token_file(tmp_path)
    access.token_file.write_text(f"{SECRET}\n")
    async with ApiServer(tls=access.tls) as server:
        server.require_token(SECRET)
        async with node(tmp_path, "-v=10", server=server, kubeconfig=access.kubeconfig(server)) as at:
            server.require_token("another")  # from now on it is refused
            server.end_watches()
            await at.shows("hansa_sources_troubled 1")
            said = [str(server.told)]
            for page in (
                *("/metrics", "/metrics/slis", "/configz", "/flagz", "/statusz", "/debug/state", "/debug/hansa/state"),
                *("/debug/hansa/rules", "/debug/hansa/objects", "/debug/hansa/last-good", "/debug/hansa/last-failed"),
                *("/debug/hansa/memory?types=1", "/debug/hansa/profile?seconds=0.1"),
            ):
                said.append(await at.get(f"{at.metrics}{page}"))
                assert len(said[-1]) > 10 or "profile" in page, page  # nothing is met where nothing runs
            said.append(await at.get(f"{at.health}/healthz"))
        said += [at.proxy.raw_log, at.proxy.out]
    assert "config.k8s.io" in "".join(said), "there is something to look at"
    authority = (tmp_path / "ca.crt").read_text(encoding="utf-8").splitlines()[1]
    for text in said:
        assert SECRET not in text
        assert authority not in text
