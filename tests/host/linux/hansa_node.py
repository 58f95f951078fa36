"""hansa as a process on the node of a lab, with manifests in a folder and real connections; for several tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import yaml
from tests.host.linux.namespaces import LIMIT_S, Lab

from hansa.api.objects import ApiObject
from hansa.dataplanes.nftables.apply import KernelRuleset
from hansa.net import Packet, Protocol
from hansa.testing import L1, R1, endpoint_slice, manifest, node, service, slice_port

HANSA = Path(sys.executable).with_name("hansa")
# Starting takes about a second; much more when other work fills the machine.
START_LIMIT_S = 60.0
CLIENT = "10.1.1.5"
WEB, STEADY = ("10.96.0.10", 80), ("10.96.0.20", 80)
# Between two connections of the steady client: it has to meet a gap of some milliseconds, and the test bounds it.
PAUSE_S = 0.005
BOTH = {"10.1.1.11:8080", "10.1.2.21:8080"}


@contextlib.contextmanager
def lab_of_two() -> Iterator[Lab]:
    """A lab in which L1 and R1 listen, the endpoints of web."""
    found = Lab()
    try:
        found.create()
        for address in (L1.address, R1.address):
            found.ensure_endpoint(address, 8080, Protocol.TCP)
        yield found
    finally:
        found.close_connections()
        found.delete()


class Node:
    """A node with a folder of manifests, and the hansas that are started on it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder / "manifests"
        self.folder.mkdir()
        self._scratch = folder
        self._started: list[subprocess.Popen[bytes]] = []
        for item in (
            node("n1", addresses=["192.0.2.1"]),
            service("web"),
            service("steady", cluster_ips=[STEADY[0]]),
            endpoint_slice("web-a", [L1, R1]),
            endpoint_slice("steady-a", [L1], service="steady", ports=[slice_port(number=9090)]),
        ):
            self.put(item)

    def put(self, item: ApiObject) -> None:
        """Write a manifest as programs do: beside, then in place."""
        data = manifest(item)
        path = self.folder / f"{data['kind']}-{data['metadata']['name']}.yaml"
        beside = self._scratch / "beside"
        beside.write_text(yaml.safe_dump(data), encoding="utf-8")
        beside.replace(path)

    def command(self, *arguments: str) -> list[str]:
        return [*inside(self.lab), str(HANSA), *arguments, "--node-name", "n1", "--dataplane", "nftables"]

    @property
    def common(self) -> tuple[str, ...]:
        return ("--source", str(self.folder), "--set", "clusterCIDR=10.1.0.0/16")

    def start(self) -> subprocess.Popen[bytes]:
        """Returns once the node is as desired."""
        arguments = ("--lock", str(self._scratch / "lock"), "--set", "minSyncPeriod=0")
        return self.launch(self.command("run", *self.common, *arguments))

    def launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Returns once the node is as desired."""
        with (self._scratch / f"log-{len(self._started)}").open("wb") as log:
            process = subprocess.Popen(command, stderr=log, env=plain())
        self._started.append(process)
        wait_until_ready(self.lab, process, lambda: self.log)
        return process

    def output(self, *arguments: str) -> str:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, env=plain())
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def log(self) -> str:
        return (self._scratch / f"log-{len(self._started) - 1}").read_text(encoding="utf-8")

    @property
    def syncs(self) -> int:
        """How many syncs of the hansa started last had something to do."""
        return self.log.count('] "sync" number=')

    def generation(self) -> int:
        with contextlib.closing(self.lab.node.call(KernelRuleset)) as kernel:
            return kernel.generation()

    def met(self, times: int) -> set[str]:
        """The endpoints at which so many connections to web arrive."""
        return met(self.lab, times)

    def connect(self, to: tuple[str, int]) -> str:
        return connect(self.lab, to)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()


def inside(lab: Lab) -> list[str]:
    """What stands before a command that is to run on the node."""
    return ["nsenter", f"--net=/run/netns/{lab.node.name}"]


def connect(lab: Lab, to: tuple[str, int]) -> str:
    """The endpoint at which a connection arrives, else what became of it."""
    seen = lab.send(Packet(ip_address(CLIENT), ip_address(to[0]), Protocol.TCP, to[1]))
    lab.close_connections()
    return f"{seen.endpoint[0]}:{seen.endpoint[1]}" if seen.endpoint else seen.what


def met(lab: Lab, times: int) -> set[str]:
    """The endpoints at which so many connections to web arrive."""
    return {connect(lab, WEB) for _ in range(times)}


def wait_until_ready(lab: Lab, process: subprocess.Popen[bytes], log: Callable[[], str]) -> None:
    def ready() -> bool:
        assert process.poll() is None, log()
        return lab.node.call(is_ready)

    until(ready, START_LIMIT_S, log)


@contextlib.contextmanager
def steady_client(lab: Lab) -> Iterator[list[str]]:
    """Connects to a service that no change is about, again and again; yields what went wrong."""
    failures: list[str] = []
    counted = [0]
    done = threading.Event()
    server = lab.spaces["l1"].call(lambda: socket.create_server((str(L1.address), 9090), backlog=128))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.close()

    def ask() -> None:
        while not done.wait(PAUSE_S):
            try:
                with socket.create_connection(STEADY, timeout=LIMIT_S) as client:
                    client.recv(1)
                counted[0] += 1
            except OSError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=serve), threading.Thread(target=lambda: lab.spaces["p"].call(ask))]
    for thread in threads:
        thread.start()
    try:
        until(lambda: counted[0] > 0 or bool(failures), LIMIT_S, lambda: "no connection")
        before = counted[0]
        yield failures
        assert counted[0] > before + 50, "hardly any connection was made"
    finally:
        done.set()
        threads[1].join()
        server.shutdown(socket.SHUT_RDWR)
        threads[0].join()
        server.close()


def plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}


def is_ready() -> bool:
    try:
        with urllib.request.urlopen("http://127.0.0.1:10256/readyz", timeout=LIMIT_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def until(holds: Callable[[], bool], limit_s: float, what: Callable[[], object]) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, what()
        time.sleep(0.05)
