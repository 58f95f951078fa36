"""One brain and two nodes: nftables in a network namespace, and a Windows node on the HNS emulator, all as processes.

The brain is killed and started again, a connection is cut, Services change meanwhile: both nodes end where a hansa that
reads the manifests itself would have them, nothing is written twice, and a steady client never meets a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.cluster import writes
from tests.end_to_end.stage import WriteLog
from tests.host.linux.hansa_node import BOTH, HANSA, START_LIMIT_S, Node, lab_of_two, plain, steady_client, until
from tests.host.linux.namespaces import Lab, missing

from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import l2bridge_node
from hansa.hns.emulator.builds import FUTURE
from hansa.hns.emulator.server import serve
from hansa.sources.kpng.client import read_nodes
from hansa.sources.kpng.target import Target
from hansa.sources.kpng.wire import nodev1
from hansa.testing import L1, R1, endpoint, endpoint_slice, node, service, slice_port

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("nft-run"),
]

WINDOWS_POD = endpoint("10.40.3.11", node="win-1")


class Cut:
    """A wire between two processes that can be cut: TCP in, TCP out."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._is_open = True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self._is_open:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self._to_port), 1.0)
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    @staticmethod
    def _carry(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                for one in select.select([client, server], [], [], 60.0)[0]:
                    data = one.recv(65536)
                    if not data:
                        raise ConnectionResetError
                    (server if one is client else client).sendall(data)
        for one in (client, server):
            one.close()

    def cut(self) -> None:
        self._is_open = False
        for pair in self._pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        self._pairs.clear()

    def mend(self) -> None:
        self._is_open = True

    def close(self) -> None:
        self.cut()
        self._listener.close()


class Cluster:
    """The manifests in `on.folder`, the brain that reads them, and the two agents."""

    def __init__(self, on: Node, folder: Path) -> None:
        self.on = on
        self.folder = folder
        self.emulator = l2bridge_node(FUTURE)
        self.emulator.add_pod(str(WINDOWS_POD.address))
        self.lock = threading.Lock()
        self.log = WriteLog(self.emulator)
        self._hns = serve(
            self.emulator,
            f"unix:{folder}/hns.sock",
            lock=self.lock,
            machine=dict.fromkeys(self.emulator.host_addresses, self.emulator.machine.mac_address),
        )
        self._hns.__enter__()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.wire = Cut(self.port)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str, inside: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen([*inside, str(HANSA), *arguments], stderr=log, stdout=log, env=plain())
        self.processes.append(process)
        return process

    def brain(self) -> subprocess.Popen[bytes]:
        return self.start(
            "brain",
            *("brain", "--source", str(self.on.folder), "--metrics-bind-address", ""),
            *("--listen", f"unix://{self.folder}/brain.sock", "--listen", f"tcp://127.0.0.1:{self.port}"),
        )

    def agents(self) -> None:
        inside = ("nsenter", f"--net=/run/netns/{self.on.lab.node.name}")
        common = ("--set", "clusterCIDR=10.1.0.0/16", "--set", "minSyncPeriod=0")
        self.start(
            "linux",
            *("run", "--source", f"unix:{self.folder}/brain.sock", "--node-name", "n1", "--dataplane", "nftables"),
            *("--lock", f"{self.folder}/linux.lock", *common),
            inside=inside,
        )
        self.start(
            "windows",
            *("run", "--source", f"kpng://127.0.0.1:{self.wire.port}", "--node-name", "win-1"),
            *("--hns", f"remote:unix:{self.folder}/hns.sock", "--lock", f"{self.folder}/windows.lock"),
            *("--healthz-bind-address", "", "--metrics-bind-address", "", *common),
        )

    def told(self) -> dict[str, nodev1.NodeState]:
        """What the brain knows of its nodes; nothing while it is away."""
        import grpc

        try:
            found = asyncio.run(read_nodes(Target(f"127.0.0.1:{self.port}")))
        except grpc.aio.AioRpcError:
            return {}
        return {one.name: one for one in found.nodes if one.connected}

    def converged(self, *names: str, revision: int = 1) -> None:
        def is_so() -> bool:
            for process in self.processes:
                assert process.poll() in (None, -signal.SIGKILL), self.logs()
            told = self.told()
            return set(names) <= told.keys() and all(
                told[name].state == "applied" and told[name].sent_revision >= revision for name in names
            )

        until(is_so, START_LIMIT_S, lambda: f"{self.told()}\n{self.logs()}")

    def nothing_to_do(self) -> None:
        """By commands that read the manifests themselves."""
        assert "Nothing to do" in self.on.output("plan", *self.on.common)
        arguments = [
            "plan",
            "--source",
            str(self.on.folder),
            "--node-name",
            "win-1",
            "--set",
            "clusterCIDR=10.1.0.0/16",
        ]
        arguments += ["--hns", f"remote:unix:{self.folder}/hns.sock"]
        done = subprocess.run([str(HANSA), *arguments], capture_output=True, text=True, check=False, env=plain())
        assert "Nothing to do" in done.stdout, done.stdout + done.stderr

    @property
    def hns_writes(self) -> int:
        with self.lock:
            return writes(self.emulator)

    def logs(self) -> str:
        return "\n".join(f"--- {one.name}\n{one.read_text()[-2000:]}" for one in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.wire.close()
        self._hns.__exit__(None, None, None)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_of_two() as found:
        yield found


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[Cluster]:
    on = Node(lab, tmp_path)
    on.put(node("win-1", addresses=["192.0.2.21"], pod_cidrs=["10.40.3.0/24"]))
    on.put(endpoint_slice("web-a", [L1, R1]))
    on.put(service("windows-only", cluster_ips=["10.96.0.30"], internal_policy="Local"))
    on.put(endpoint_slice("windows-only-a", [WINDOWS_POD], service="windows-only"))
    found = Cluster(on, tmp_path)
    try:
        yield found
    finally:
        found.close()
        on.close()


def test_a_brain_and_two_nodes_that_lose_each_other(cluster: Cluster) -> None:
    on = cluster.on
    first = cluster.brain()
    cluster.agents()
    cluster.converged("n1", "win-1")
    cluster.nothing_to_do()
    assert on.met(20) == BOTH
    told = cluster.told()
    assert (told["n1"].report.dataplane, told["win-1"].report.dataplane) == ("nftables", "windows")

    with steady_client(on.lab) as failures:
        # The brain is killed and starts again, nothing has changed: nobody writes anything.
        generation, hns_writes = on.generation(), cluster.hns_writes
        first.kill()
        first.wait()
        assert on.met(8) <= BOTH
        second = cluster.brain()
        cluster.converged("n1", "win-1")
        assert (on.generation(), cluster.hns_writes) == (generation, hns_writes)

        # The wire to the Windows node is cut, and what changes meanwhile reaches the other one.
        cluster.wire.cut()
        on.put(endpoint_slice("web-a", [L1]))
        until(lambda: on.met(6) == {"10.1.1.11:8080"}, START_LIMIT_S, cluster.logs)
        assert cluster.hns_writes == hns_writes

        # The brain is killed, too, and more changes before anybody is there to tell it.
        second.kill()
        second.wait()
        on.put(service("api", cluster_ips=["10.96.0.40"]))
        on.put(endpoint_slice("api-a", [R1], service="api", ports=[slice_port()]))
        cluster.brain()
        cluster.wire.mend()
        cluster.converged("n1", "win-1")
        cluster.nothing_to_do()
        assert on.met(20) == {"10.1.1.11:8080"}
    assert failures == [], failures[:3]

    # On the Windows node, too, no load balancer of a Service that stayed was ever taken away.
    deleted = [one for one in cluster.log.calls if one.verb is HnsVerb.DELETE and one.kind is HnsKind.LOAD_BALANCER]
    assert deleted == []
    with cluster.lock:
        vips = {str(vip) for one in cluster.emulator.load_balancers() for vip in one.frontend_vips}
    assert {"10.96.0.10", "10.96.0.20", "10.96.0.30", "10.96.0.40"} <= vips
