"""Whole proxies side by side: hansa and, if KUBE_PROXY names its binary, kube-proxy in its nftables mode. Needs root.

Each runs by itself in a network namespace of its own, against the API server of the tests, and is watched from outside:
seconds from the start of its process until the kernel holds a rule for every Service, its CPU seconds until then (its
children included, the kernel's work for it too), and from an EndpointSlice's change until the kernel's rules change.

    KUBE_PROXY=/path/to/kube-proxy make bench ARGS="--only nftables"

KUBE_PROXY_ARGS: more arguments for it (`--feature-gates=NFTablesProxyMode=true` for 1.29 and 1.30).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster
import psutil

ROOT = Path(__file__).parents[1]
NODE = "node-1"
CLUSTER_CIDR = "10.128.0.0/9"
# kube-proxy lists its table with nft at the start and before each change, which takes longer than anything else here.
SYNC_LIMIT_S = 300.0
CHANGE_LIMIT_S = 120.0
CHANGES = 20
# kube-proxy lets a second pass between two syncs; a change that comes later than that is taken up at once.
REST_S = 1.5
POLL_S = 0.002
TOLD_LINES = 15


class NotSynced(Exception):
    """A proxy ended, or did not get there in time."""


@dataclass(frozen=True)
class Peer:
    """A proxy. table, map, chain: it is in place once the map has an element for every Service and the chain exists.

    listed: from its log, how many seconds ago, at a time of day, it had the first lists; None = it does not tell.
    """

    name: str
    command: Callable[[Path], list[str]]
    table: str
    map: str
    chain: str
    listed: Callable[[str, float], float | None]


def since_hansas_lists(log: str, _: float) -> float | None:
    """The first sync begins when the lists are there."""
    found = re.search(r'"?sync"? number=1 .*?duration_s=([0-9.]+)', log)
    return float(found[1]) if found else None


def since_kube_proxys_lists(log: str, now: float) -> float | None:
    """klog's time of day, in UTC as the process is told."""
    found = re.findall(
        r"^I\d{4} (\d\d):(\d\d):([\d.]+) .*Caches are synced for endpoint slice config", log, re.MULTILINE
    )
    if not found:
        return None
    hours, minutes, seconds = found[-1]
    return (now - (int(hours) * 3600 + int(minutes) * 60 + float(seconds))) % 86400


def hansa(kubeconfig: Path) -> list[str]:
    settings = (f"clusterCIDR={CLUSTER_CIDR}", "minSyncPeriod=0", "metricsBindAddress=127.0.0.1:0")
    lock = kubeconfig.with_name("lock")
    command = [sys.executable, "-m", "hansa", "run", "--source", "kubernetes", "--kubeconfig", str(kubeconfig)]
    command += ["--node-name", NODE, "--dataplane", "nftables", "--lock", str(lock)]
    return [*command, *(word for one in settings for word in ("--set", one))]


def kube_proxy(binary: str, more: Sequence[str]) -> Callable[[Path], list[str]]:
    def command(kubeconfig: Path) -> list[str]:
        # The connection table's size belongs to the machine and cannot be set from inside a namespace.
        fixed = (
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        return [
            binary,
            f"--kubeconfig={kubeconfig}",
            "--kube-api-content-type=application/json",
            "--proxy-mode=nftables",
            f"--hostname-override={NODE}",
            f"--cluster-cidr={CLUSTER_CIDR}",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            *fixed,
            *more,
        ]

    return command


def peers() -> list[Peer]:
    found = [Peer("hansa", hansa, "hansa", "services", "dispatch", since_hansas_lists)]
    if binary := os.environ.get("KUBE_PROXY"):
        command = kube_proxy(binary, shlex.split(os.environ.get("KUBE_PROXY_ARGS", "")))
        names = ("kube-proxy", "service-ips", "nat-prerouting")
        found.append(Peer("kube-proxy", command, *names, since_kube_proxys_lists))
    return found


@contextlib.contextmanager
def api_server(items: list[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """An API server on loopback with these objects; yields how to put another one. Its URL is `api_server.url`."""
    sys.path.insert(0, str(ROOT))
    from tests.api_server import ApiServer

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    server = ApiServer()
    server.put(*items)
    server.compact()
    run(server.start())
    api_server.url = server.url  # type: ignore[attr-defined]
    try:
        yield lambda item: loop.call_soon_threadsafe(server.put, item)  # type: ignore[misc]
    finally:
        run(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def write_kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    known = {"name": "bench", "cluster": {"server": url}}
    context = {"name": "bench", "context": {"cluster": "bench", "user": "bench"}}
    user = {"name": "bench", "user": {"token": "bench"}}
    text = {"apiVersion": "v1", "kind": "Config", "clusters": [known], "contexts": [context], "users": [user]}
    path.write_text(json.dumps(text | {"current-context": "bench"}), encoding="utf-8")
    return path


class Kernel:
    """What the kernel holds, asked cheaply."""

    def __init__(self) -> None:
        from hansa.netlink import nftables as nf
        from hansa.netlink.socket import NetfilterSocket

        self._nf, self._socket = nf, NetfilterSocket()

    def generation(self) -> int:
        nf = self._nf
        (reply, *_) = self._socket.request(nf.message_type(nf.GET_GENERATION), 0, nf.nfgenmsg(0))
        return nf.read_generation(reply.payload)

    def is_in_place(self, peer: Peer, services: int) -> bool:
        from hansa.netlink.socket import NetlinkError

        nf = self._nf
        try:
            self._socket.request(nf.message_type(nf.GET_CHAIN), 0, nf.chain(nf.FAMILY_IPV4, peer.table, peer.chain))
            (reply, *_) = self._socket.request(
                nf.message_type(nf.GET_SET), 0, nf.set_name(nf.FAMILY_IPV4, peer.table, peer.map)
            )
        except NetlinkError:
            return False
        count = nf.read_set_count(reply.payload)
        if count is None:
            listed = self._socket.dump(
                nf.message_type(nf.GET_ELEMENT), nf.set_name(nf.FAMILY_IPV4, peer.table, peer.map)
            )
            count = sum(1 for one in listed for _ in nf.decode_elements(one.payload))
        return count >= services

    def close(self) -> None:
        self._socket.close()


class Running:
    """A proxy's process, and what it says."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._log = (folder / "log").open("w+b")
        self.started = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}
        environment["TZ"] = "UTC"
        try:
            self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, env=environment)
        except OSError as error:
            self._log.close()
            raise NotSynced(f"{command[0]} cannot be run: {error}") from error

    def wait_until(self, holds: Callable[[], bool], limit_s: float, what: str) -> float:
        """Seconds until it holds."""
        start = time.perf_counter()
        while not holds():
            if (code := self._process.poll()) is not None:
                raise NotSynced(f"it ended with exit code {code} before {what}; its last words:\n{self.words}")
            if time.perf_counter() - start > limit_s:
                raise NotSynced(f"{limit_s:g} s passed before {what}; its last words:\n{self.words}")
            time.sleep(POLL_S)
        return time.perf_counter() - start

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def words(self) -> str:
        return "\n".join(self.log.splitlines()[-TOLD_LINES:])

    @property
    def cpu_s(self) -> float:
        """Its own, that of children that have ended, and that of those at work, as kube-proxy's nft is just now."""
        main = psutil.Process(self._process.pid)
        used = [main.cpu_times()]
        for child in main.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                used.append(child.cpu_times())
        return sum(one.user + one.system + one.children_user + one.children_system for one in used)

    @property
    def memory_mb(self) -> float:
        return psutil.Process(self._process.pid).memory_info().rss / 1e6

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@dataclass(frozen=True)
class Pace:
    """limit_s: for the start. changes: how many EndpointSlices change. rest_s: before each of them."""

    limit_s: float = SYNC_LIMIT_S
    changes: int = CHANGES
    rest_s: float = REST_S


def watch(report: Any, peer: Peer, *, services: int, endpoints: int, pace: Pace) -> dict[str, float]:
    """Start one proxy in this namespace, and measure. Raises NotSynced."""
    items = [cluster.node(number) for number in range(cluster.NODES)]
    items += [cluster.service(number) for number in range(services)]
    items += [cluster.endpoint_slice(number, endpoints) for number in range(services)]
    found: dict[str, float] = {}

    def tell(name: str, value: float, unit: str) -> None:
        found[name] = value
        report.result(f"proxies: {peer.name}, {name}", value, unit)

    with contextlib.closing(Kernel()) as kernel, tempfile.TemporaryDirectory() as name, api_server(items) as put:
        folder = Path(name)
        running = Running(peer.command(write_kubeconfig(folder, api_server.url)), folder)  # type: ignore[attr-defined]
        try:
            in_place = f"every Service is in map {peer.map} of table ip {peer.table}"
            took = running.wait_until(lambda: kernel.is_in_place(peer, services), pace.limit_s, in_place)
            tell("start to rules", took, "s")
            now = time.time() % 86400
            tell("start to rules, CPU", running.cpu_s, "s")
            time.sleep(pace.rest_s)  # what it says of that comes a moment later
            if (after := peer.listed(running.log, now)) is not None:
                tell("lists to rules", after, "s")
            times = []
            for turn in range(pace.changes):
                time.sleep(pace.rest_s)
                before = kernel.generation()
                put(cluster.endpoint_slice(turn % services, endpoints, shift=1 + turn))
                changed = f"a changed EndpointSlice ({turn + 1} of {pace.changes}) reached the kernel"
                times.append(
                    running.wait_until(lambda before=before: kernel.generation() != before, CHANGE_LIMIT_S, changed)
                )
            tell("one endpoint replaced, p50", statistics.median(times), "s")
            tell("one endpoint replaced, worst", max(times), "s")
            tell("resident memory", running.memory_mb, "MB")
        finally:
            running.end()
    return found


def bench(report: Any, *, services: int, endpoints: int, name: str) -> dict[str, float] | None:
    """One proxy in this namespace; None, and why on stderr, if it did not get there."""
    for command in (
        "link set lo up",
        "link add uplink type veth peer name other",
        "link set other up",
        "link set uplink up",
        "address add 192.0.2.2/24 dev uplink",
        "route add default via 192.0.2.254",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    peer = next(one for one in peers() if one.name == name)
    try:
        return watch(report, peer, services=services, endpoints=endpoints, pace=Pace())
    except NotSynced as error:
        print(f"proxies: {name}: {error}", file=sys.stderr)
        return None
