"""`hansa run --hns native` as a process of Windows, its HNS emulated on this side: the whole way of a node.

Driven from here by `make test-windows`: manifests, the emulated node and `hansa hns ls` are on this system; the process
is a Windows Python that calls computenetwork.dll.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import yaml
from tests.api_server import ApiServer
from tests.end_to_end.cluster import NODE_NAME, Manifest, cluster, decoded, fresh_node, held, shop, wanted
from tests.end_to_end.processes import Shell, shell
from tests.end_to_end.stage import WriteLog, plain
from tests.ports import free_port

from hansa.cli import heal
from hansa.config import BindAddress
from hansa.hns.api import HnsKind
from hansa.hns.emulator.server import serve
from hansa.hns.emulator.service import Emulator
from hansa.lab.cni import add_local_pods, spare_source_vips
from hansa.net import parse_address
from hansa.sources.host import read_host

TOOL = os.environ.get("HANSA_TEST_WINDOWS", "")

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32" or not TOOL, reason="starts Windows processes: make test-windows"),
]

WITHIN_S = 60.0  # Wine starts within 5 s on a busy machine
KUBE_DNS = parse_address("100.64.0.10")


def manifests() -> list[Manifest]:
    """The demo's cluster, with this machine as win-1: the process asks Windows for the MAC of its node's address."""
    ours = sorted(str(address) for address in read_host().addresses if address.version == 4)
    assert ours, "this machine needs an IPv4 address besides loopback"
    return json.loads(json.dumps(cluster()).replace("192.0.2.21", ours[0]))


class Daemon:
    """A hansa on the other side, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log: list[str] = []
        self._read = asyncio.create_task(self._read_all())

    async def _read_all(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.log.append(line.decode("utf-8", "replace").rstrip())

    async def says(self, text: str) -> None:
        await until(lambda: any(text in line for line in self.log) or self._read.done(), self.log)
        assert any(text in line for line in self.log), self.log

    async def told(self, word: str) -> int:
        """Its exit code, having been told so."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        await self.says("ended ")
        return int(next(line for line in self.log if line.startswith("ended ")).split()[1])

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(WITHIN_S):
            await self._process.wait()
            await self._read


async def until(reached, say: object) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            while not reached():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {WITHIN_S:g} s: {say}") from None


class Node:
    """The emulated node, served here, the manifests of its cluster, and the commands that look at it."""

    def __init__(self, folder: Path, on: Shell) -> None:
        self.items = manifests()
        self.file = folder / "cluster.yaml"
        self.emulator: Emulator = fresh_node(self.items)
        self.lock = threading.Lock()
        self.written = WriteLog(self.emulator)
        self.server = serve(self.emulator, "127.0.0.1:0", lock=self.lock)
        self._shell = on
        self.say()

    def say(self, *more: Manifest) -> None:
        """Further objects, whose pods on this node the CNI has already seen to."""
        self.items += more
        with self.lock:
            add_local_pods(self.emulator, decoded(self.items), NODE_NAME)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(yaml.safe_dump_all(self.items), encoding="utf-8")
        fresh.replace(self.file)

    @property
    def held(self) -> list[str]:
        with self.lock:
            return held(self.emulator)

    @property
    def objects(self) -> set[str]:
        """The id of every object."""
        with self.lock:
            return {each.guid for each in (*self.emulator.endpoints(), *self.emulator.load_balancers())}

    @property
    def frontends(self) -> set[str]:
        """Of all load balancers, as `listed` names them."""
        with self.lock:
            return {
                f"{''.join(map(str, one.frontend_vips))}:{mapping.external_port}/{mapping.protocol}"
                for one in self.emulator.load_balancers()
                for mapping in one.port_mappings
            }

    @property
    def dns_balancers(self) -> set[str]:
        """Ids of kube-dns's load balancers."""
        with self.lock:
            return {each.guid for each in self.emulator.load_balancers() if KUBE_DNS in each.frontend_vips}

    async def converges(self, by: Daemon) -> None:
        goal = wanted(self.items)
        await until(lambda: self.held == goal, by.log)

    async def listed(self) -> set[str]:
        """What `hansa hns ls` shows, as `frontend:port/protocol`."""
        text = await self._shell.output("hns", "ls", "--hns", f"remote:{self.server.address}", "-o", "json")
        return {
            f"{''.join(one.get('FrontendVIPs', []))}:{mapping['ExternalPort']}/{mapping['Protocol']}"
            for one in json.loads(text)
            for mapping in one.get("PortMappings", ())
        }

    @property
    def source_vip(self) -> str:
        return str(spare_source_vips(self.emulator)[0])

    def daemon(self, *options: str) -> AbstractAsyncContextManager[Daemon]:
        """`hansa run`, with manifests."""
        return self._process(
            *("run", "--source", on_windows(self.file), "--node-name", NODE_NAME, "--hns", "native"),
            *("--set", f"winkernel.sourceVip={self.source_vip}", "--set", "fullCheckPeriod=1s"),
            *("--metrics-bind-address", "", *options),
        )

    def kube_proxy(self, kubeconfig: Path, *options: str) -> AbstractAsyncContextManager[Daemon]:
        """`hansa proxy` as the scripts of Windows nodes start kube-proxy."""
        return self._process(
            *("proxy", "--v=2", "--proxy-mode=kernelspace", f"--hostname-override={NODE_NAME}"),
            *(f"--kubeconfig={on_windows(kubeconfig)}", f"--network-name={self.emulator.networks()[0].name}"),
            *(f"--source-vip={self.source_vip}", "--enable-dsr=true", "--feature-gates=WinOverlay=true", *options),
        )

    @contextlib.asynccontextmanager
    async def _process(self, *arguments: str) -> AsyncIterator[Daemon]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, TOOL, "--python", r"tests\windows\console.py", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"HANSA_HNS_ADDRESS": self.server.address},
        )
        made = Daemon(process)
        try:
            yield made
        finally:
            await made.close()


@contextlib.asynccontextmanager
async def node(folder: Path) -> AsyncIterator[Node]:
    async with shell(folder) as on:
        made = Node(folder, on)
        with made.server:
            yield made
        assert made.emulator.bad_closes == 0
        assert made.emulator.open_handles == 0


def on_windows(path: Path) -> str:
    return f"Z:{path}".replace("/", "\\")


async def get(url: str) -> int:
    return (await read(url))[0]


async def read(url: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status), answer.read().decode()

    return await asyncio.to_thread(ask)


async def test_a_windows_process_programs_heals_and_leaves_the_node_as_it_is(tmp_path: Path) -> None:
    async with node(tmp_path) as on:
        port = free_port()
        async with on.daemon("--healthz-bind-address", f"127.0.0.1:{port}") as run:
            await on.converges(run)
            assert await on.listed() == {
                *("100.64.0.1:443/6", "100.64.0.10:53/6", "100.64.0.10:53/17", "100.64.0.10:9153/6"),
                *("100.64.17.25:80/6", "203.0.113.80:80/6", ":30080/6"),
            }
            assert await get(f"http://127.0.0.1:{port}/healthz") == 200

            on.say(*shop())  # a changed file is noticed
            await on.converges(run)

            with on.lock:  # and so is what is deleted behind its back, without any event
                dns = [each for each in on.emulator.load_balancers() if KUBE_DNS in each.frontend_vips]
                on.emulator.remove(HnsKind.LOAD_BALANCER, dns[0].guid)
            assert len(dns) == 3
            await on.converges(run)

            before, writes = on.objects, len(on.written)
            assert await run.told("break") == 128 + 21
            assert any('"stopping" signal="SIGBREAK"' in line for line in run.log)
            assert (on.objects, len(on.written)) == (before, writes)
        assert not [line for line in run.log if re.match(r"E\d{4} ", line)]

        # The next one adopts all of it. Killed, it takes nothing with it either.
        async with on.daemon("--healthz-bind-address", "") as run:
            on.say(*shop(number=2))
            await on.converges(run)
            assert before < on.objects
            assert len(on.objects - before) == 2, "the new Service's load balancer, and the endpoint of its ClusterIP"
            before, writes = on.objects, len(on.written)
            assert await run.told("terminate") == 1
            assert (on.objects, len(on.written)) == (before, writes)


async def test_ctrl_c_ends_it_too(tmp_path: Path) -> None:
    async with node(tmp_path) as on, on.daemon("--healthz-bind-address", "") as run:
        await on.converges(run)
        before = on.objects
        assert await run.told("interrupt") == 128 + 2
        assert on.objects == before


async def test_in_kube_proxys_place_it_programs_what_the_api_server_says(tmp_path: Path) -> None:
    """kube-proxy's flags and kubeconfig, a watch on a real socket, the DLL; and healed on demand from outside."""
    async with node(tmp_path) as on, ApiServer() as server:
        server.put(*on.items)
        kubeconfig = plain(tmp_path).kubeconfig(server)
        health, metrics = free_port(), free_port()
        ports = (f"--healthz-bind-address=127.0.0.1:{health}", f"--metrics-bind-address=127.0.0.1:{metrics}")
        async with on.kube_proxy(kubeconfig, *ports, "--full-check-period=1s") as run:
            await until(lambda: on.frontends >= KUBE_DNS_FRONTENDS, run.log)
            assert await on.listed() >= KUBE_DNS_FRONTENDS
            assert await get(f"http://127.0.0.1:{health}/healthz") == 200
            assert await read(f"http://127.0.0.1:{metrics}/proxyMode") == (200, "kernelspace")

            added = shop()
            server.put(*added)  # one event of the watch
            on.say(*added)
            await until(lambda: any(one.startswith("100.64.200.1:") for one in on.frontends), run.log)

            before = on.dns_balancers
            at = BindAddress(parse_address("127.0.0.1"), metrics)
            healed = await asyncio.to_thread(heal.ask, at, "kube-system/kube-dns")
            assert healed["ok"], healed
            assert len(healed["steps"]) == len(before) == len(on.dns_balancers - before) == 3

            held = on.objects
            assert await run.told("break") == 128 + 21
            assert on.objects == held
        assert not [line for line in run.log if line.startswith("E")]


KUBE_DNS_FRONTENDS = {f"{KUBE_DNS}:53/6", f"{KUBE_DNS}:53/17", f"{KUBE_DNS}:9153/6"}
