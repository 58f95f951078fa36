"""`hansa run` as an operator meets it: started, looked at, told to stop, killed, started again.

Evidence: operations.md 16 (signals, exit codes); windows-proxy F35 and I14 (a restart writes nothing); I1 to I4.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api_server import ApiServer
from tests.end_to_end.cluster import (
    FAR_POD,
    LOCAL_POD,
    NODE_NAME,
    cluster,
    decoded,
    fresh_node,
    held,
    shop,
    wanted,
)
from tests.end_to_end.processes import Command, Shell, holds, shell
from tests.end_to_end.stage import WriteLog, plain, until, with_token_file

from hansa.hns.emulator.faults import Call
from hansa.hns.emulator.server import serve
from hansa.hns.emulator.service import Emulator
from hansa.hns.schema import HnsLoadBalancer
from hansa.lab.cni import add_local_pods, spare_source_vips

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM for others nor unix sockets"),
]


async def load_balancers(on: Shell, address: str) -> dict[str, int]:
    """What `hansa hns ls` shows: the number of backends by frontend, like `100.64.0.10:53/17`."""
    text = await on.output("hns", "ls", "loadbalancers", "--hns", f"remote:{address}", "-o", "json")
    return {
        f"{''.join(one.get('FrontendVIPs', []))}:{mapping['ExternalPort']}/{mapping['Protocol']}": len(
            one["HostComputeEndpoints"]
        )
        for one in json.loads(text)
        for mapping in one["PortMappings"]
    }


async def test_a_whole_life_with_an_emulated_node_and_https(tmp_path: Path) -> None:
    """Start, look, change objects on the server, look again, SIGTERM: exit code 143, one line, nothing left behind."""
    access = with_token_file(tmp_path)
    socket = tmp_path / "hns.sock"
    address = f"unix:{socket}"
    async with ApiServer(tls=access.tls) as server, shell(tmp_path) as on:
        server.require_token("first")
        server.put(*cluster())
        run = await on.hansa(
            *("run", "--source", "kubernetes", "--kubeconfig", access.kubeconfig(server), "--node-name", NODE_NAME),
            *("--hns", "emulator", "--hns-listen", address),
        )
        await run.says("sync number=1 kind=full")
        await holds(address, wanted(server.manifests()), by=run)  # the Node may have come after the first sync
        assert await load_balancers(on, address) == {
            "100.64.0.1:443/6": 1,
            "100.64.0.10:53/6": 2,
            "100.64.0.10:53/17": 2,
            "100.64.0.10:9153/6": 2,
            "100.64.17.25:80/6": 2,
            "203.0.113.80:80/6": 1,
            ":30080/6": 1,
        }
        server.put(*shop(LOCAL_POD, FAR_POD))
        await holds(address, wanted(server.manifests()), by=run)
        assert (await load_balancers(on, address))["100.64.200.1:80/6"] == 2

        before = len(run.log)
        assert await run.terminate() == 143
        assert run.log[before:] == ["I hansa.engine stopping signal=SIGTERM"]
        assert run.out == ""
        assert not socket.exists()
        await until(lambda: server.watch_count == 0, "the API server is rid of this client")
        assert not any(" E " in f" {line}" for line in run.log)


async def documents(on: Shell, address: str) -> dict[str, dict[str, Any]]:
    """Every object that HNS holds, by its id."""
    text = await on.output("hns", "ls", "--hns", f"remote:{address}", "-o", "json")
    return {one["ID"]: one for one in json.loads(text)}


@dataclass
class ServedNode:
    """An emulated node that outlives the hansas that work on it, with what its HNS was asked to write."""

    emulator: Emulator
    address: str
    lock: threading.Lock
    written: WriteLog

    def arguments(self, kubeconfig: Path) -> tuple[str, ...]:
        return (
            *("run", "--source", "kubernetes", "--kubeconfig", str(kubeconfig), "--node-name", NODE_NAME),
            *("--hns", f"remote:{self.address}", "--set", "fullCheckPeriod=1s"),
            *("--set", f"winkernel.sourceVip={spare_source_vips(self.emulator)[0]}"),
        )

    @property
    def held(self) -> list[str]:
        with self.lock:
            return held(self.emulator)

    async def holds(self, goal: list[str], by: Command) -> None:
        await until(lambda: self.held == goal, lambda: f"{set(goal) ^ set(self.held)} {by.log}")


def touched_frontends(calls: Iterable[Call]) -> set[str]:
    """VIPs of the load balancers among these calls."""
    balancers = [call.value for call in calls if isinstance(call.value, HnsLoadBalancer)]
    return {str(vip) for balancer in balancers for vip in balancer.frontend_vips}


async def test_a_restart_writes_nothing_also_after_kill_9_in_the_middle_of_the_work(tmp_path: Path) -> None:
    """The node's HNS lives on elsewhere; each hansa is a new process that remembers nothing."""
    items = [*cluster(), *shop()]
    emulator = fresh_node(items)
    add_local_pods(emulator, decoded(items), NODE_NAME)
    machine = dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address)
    lock = threading.Lock()
    with serve(emulator, f"unix:{tmp_path}/node.sock", lock=lock, machine=machine) as hns:
        async with ApiServer() as server, shell(tmp_path) as on:
            server.put(*items)
            node = ServedNode(emulator, hns.address, lock, WriteLog(emulator))
            arguments = node.arguments(plain(tmp_path).kubeconfig(server))
            goal = wanted(items)
            objects = len(goal) + 1  # load balancers, remote endpoints, and the source VIP's, which is no remote one

            # Killed while the sixth object is being made: HNS makes it, and nobody hears the answer.
            victim: list[Command] = []
            dead = threading.Event()

            def strike(call: Call) -> None:
                if len(node.written) == 6 and not dead.is_set():
                    dead.set()
                    victim[0].kill()

            emulator.watch(strike)
            victim.append(await on.hansa(*arguments))
            assert await victim[0].ended() == -9
            await until(lambda: not hns_connections(), "what the dead process had open is closed")
            assert len(node.written) == 6
            assert len(node.held) < len(goal)

            # The next one goes on where the first was stopped: each object has been made once, none twice or anew.
            second = await on.hansa(*arguments)
            await node.holds(goal, second)
            made = [one.verb.name for one in node.written.calls if one.verb is not None]
            assert made == ["CREATE"] * objects

            # Killed while idle. The third one finds everything in order; what it writes is a later change only.
            second.kill()
            await second.ended()
            done = len(node.written)
            third = await on.hansa(*arguments)
            await until(lambda: server.watch_count == 4)
            server.put(*shop(number=2))
            await node.holds(wanted(server.manifests()), third)
            assert touched_frontends(node.written.calls[done:]) == {"100.64.200.2"}
            assert await third.terminate() == 143
            assert node.held == wanted(server.manifests())
            assert emulator.bad_closes == 0


def hns_connections() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hns-connection"]


async def test_hns_serve_in_a_process_of_its_own_outlives_hansa(tmp_path: Path) -> None:
    """`hansa hns serve` is the node; two `hansa run` after each other: the second leaves every object as it is."""
    items = [*cluster(), *shop()]
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump_all(items))
    address = f"unix:{tmp_path}/node.sock"
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*items)
        serving = await on.hansa(
            *("hns", "serve", "--listen", address, "--source", "nodes.yaml", "--node-name", NODE_NAME)
        )
        await serving.says(f"serving HNS at {address}")
        arguments = (
            *("run", "--source", "kubernetes", "--kubeconfig", plain(tmp_path).kubeconfig(server)),
            *("--node-name", NODE_NAME, "--hns", f"remote:{address}"),
            *("--set", "winkernel.sourceVip=100.96.2.2", "--set", "fullCheckPeriod=1s"),
        )
        first = await on.hansa(*arguments)
        await first.says("sync number=1 kind=full")
        await holds(address, wanted(items), by=first)
        assert await first.terminate() == 143
        before = await documents(on, address)
        assert len([one for one in before.values() if "PortMappings" in one]) == 8

        second = await on.hansa(*arguments)
        await until(lambda: server.watch_count == 4)
        server.put(*shop(number=2))
        await second.says("sync number=")
        await holds(address, wanted(server.manifests()), by=second)
        assert await second.terminate() == 143
        syncs = [line for line in second.log if " sync number=" in line]
        done = sum(int(line.split(" done=")[1].split()[0]) for line in syncs)
        assert done == 2, "only what came new was made"
        after = await documents(on, address)
        assert {guid: after[guid] for guid in before} == before
        assert len(after) == len(before) + 2, "the new Service's load balancer, and the endpoint of its ClusterIP"
        assert await serving.terminate() == 143
        assert not (tmp_path / "node.sock").exists()


async def test_a_wrong_kubeconfig_is_refused_with_everything_that_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(
        """\
current-context: here
contexts: [{name: here, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "ftp://api.example", proxy-url: "socks5://proxy.example"}}]
users: [{name: u, user: {token: a, username: b, client-certificate: client.crt}}]
"""
    )
    async with shell(tmp_path) as on:
        run = await on.hansa("run", "--kubeconfig", "kubeconfig", "--node-name", NODE_NAME, "--hns", "emulator")
        assert await run.ended() == 2
        assert sorted(line.removeprefix("hansa: configuration: ") for line in run.log) == [
            "clusters[0].cluster.proxy-url: 'socks5://proxy.example' is not a proxy that hansa can use "
            "(http:// or https://)",
            "clusters[0].cluster.server: 'ftp://api.example' is not the address of a server (write https://HOST:PORT)",
            "users[0].user.client-key: is missing (certificate and key are needed together)",
            "users[0].user: gives token and username, of which only one can be used (leave the others out)",
        ]


STUCK_RESOLVER = """
import socket, sys, time

def lookup(*arguments, **options):
    print("looking up", arguments[0], file=sys.stderr, flush=True)
    time.sleep(600)

socket.getaddrinfo = lookup
"""


async def test_a_dead_name_server_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """operations.md 16: a service is given seconds to end, and the system waits for an answer for far longer."""
    (tmp_path / "sitecustomize.py").write_text(STUCK_RESOLVER)
    with serve(fresh_node(cluster()), f"unix:{tmp_path}/node.sock") as hns:
        async with shell(tmp_path) as on:
            run = await on.hansa(
                *("run", "--master", "https://api.example.test:6443", "--node-name", NODE_NAME),
                *("--hns", f"remote:{hns.address}"),
                environment={"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))},
            )
            await run.says("looking up api.example.test")
            assert await run.terminate() == 143
