"""A brain and many nodes on one machine: `make bench ARGS="--only kpng"`.

Three processes: the brain, with a cluster that is changed by command; the nodes, as many streams of the node API in one
process, which look at nothing but revisions; and the one that measures. Wall-clock seconds unless said otherwise: what
counts is when the last node has been told, and both processes share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

import cluster

NODES = 500
CHURN_PER_S, CHURN_S = 100, 60
SINGLE_CHANGES = 10
QUIET_S = 0.3


def missing() -> str:
    try:
        import grpc  # noqa: F401
    except ImportError:
        return "needs the extra hansa[kpng]"
    return ""


def run(report: Any, *, services: int, endpoints: int, nodes: int = NODES, churn_s: int = CHURN_S) -> None:
    with tempfile.TemporaryDirectory() as folder:
        brain = Child("--brain", folder, services=services, endpoints=endpoints)
        built = brain.answer()
        report.result("kpng: cluster taken in, CPU", built["cpu_s"], "s")
        empty_mb = built["rss_mb"]
        # What the first node is told is kept for all others.
        single = Child("--nodes", folder, nodes=1)
        report.result("kpng: first state of the first node", single.answer()["seconds"], "s")
        one_mb = brain.ask("facts")["rss_mb"]
        single.close()
        clients = Child("--nodes", folder, nodes=nodes)
        try:
            measure(report, brain, clients, nodes=nodes, churn_s=churn_s)
            rss_mb = brain.ask("facts")["rss_mb"]
            report.result("kpng: brain, resident memory without nodes", empty_mb, "MB")
            report.result("kpng: brain, resident memory with one node", one_mb, "MB")
            report.result("kpng: brain, resident memory with all nodes", rss_mb, "MB")
            report.result("kpng: brain, memory per further node", (rss_mb - one_mb) / nodes, "MB")
            clients.close()
            one = Child("--localv1", folder)
            found = one.answer()
            report.result("kpng: localv1, first state of one client", found["seconds"], "s")
            report.result("kpng: localv1, operations a second", found["operations"] / found["seconds"], "1/s")
            one.close()
        finally:
            clients.close()
            brain.close()


def measure(report: Any, brain: Child, clients: Child, *, nodes: int, churn_s: int) -> None:
    before = brain.ask("facts")
    first = clients.answer()  # once every node has had its first Sync
    after = brain.ask("facts")
    report.result(f"kpng: first state of {nodes} nodes", first["seconds"], "s")
    report.result("kpng: first state, brain's CPU", after["cpu_s"] - before["cpu_s"], "s")
    report.result("kpng: first state, bytes a node", first["bytes"] / nodes / 1e6, "MB")
    times, cpu = [], []
    for number in range(SINGLE_CHANGES):
        time.sleep(QUIET_S)
        start = brain.ask("facts")
        changed = brain.ask(f"change {number}")
        seen = clients.ask(f"reached {changed['revision']}")
        times.append(seen["last"] - changed["at"])
        cpu.append(brain.ask("facts")["cpu_s"] - start["cpu_s"])
    report.result("kpng: one slice change to the last node's Sync, median", statistics.median(times), "s")
    report.result("kpng: one slice change to the last node's Sync, worst of 10", max(times), "s")
    report.result("kpng: one slice change, brain's CPU", statistics.median(cpu), "s")
    start = brain.ask("facts")
    begin = time.monotonic()
    churned = brain.ask(f"churn {CHURN_PER_S} {churn_s}")
    seen = clients.ask(f"reached {churned['revisions'][-1][0]}")
    took = time.monotonic() - begin
    end = brain.ask("facts")
    lags = clients.ask("lags " + json.dumps(churned["revisions"]))["lags"]
    report.result("kpng: churn, change to the last node's Sync, median", statistics.median(lags), "s")
    report.result("kpng: churn, change to the last node's Sync, p99", sorted(lags)[int(len(lags) * 0.99)], "s")
    report.result("kpng: churn, changes a second", len(lags) / took, "1/s")
    report.result("kpng: churn, brain's CPU", (end["cpu_s"] - start["cpu_s"]) / took, "cores")


class Child:
    """A process of this file that answers a line with a line of JSON."""

    def __init__(self, part: str, folder: str, **numbers: int) -> None:
        arguments = [f"--{name}={value}" for name, value in numbers.items()]
        command = [sys.executable, __file__, part.replace("--", "part="), folder, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.kill()
        self._process.wait()


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def lines() -> Any:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line.strip()


def facts() -> dict[str, float]:
    return {"cpu_s": time.process_time(), "rss_mb": psutil.Process().memory_info().rss / 1e6}


# --- the brain ---


async def brain(folder: str, *, services: int, endpoints: int) -> None:
    from hansa.api.change import Synced, Upsert
    from hansa.api.decode import decode
    from hansa.api.objects import Kind
    from hansa.brain.cluster import Cluster
    from hansa.brain.server import Brain, Settings, parse_listen
    from hansa.config import Config

    gc.disable()
    held = Cluster(Config(node_name=""))
    for start in range(0, services, 500):
        numbers = range(start, min(start + 500, services))
        found = [decode(Kind.SERVICE, raw) for raw in cluster.as_bytes([cluster.service(n) for n in numbers])]
        slices = cluster.as_bytes([cluster.endpoint_slice(n, endpoints) for n in numbers])
        held.apply([*found, *(decode(Kind.ENDPOINT_SLICE, raw) for raw in slices)])
    nodes = cluster.as_bytes([cluster.node(n) for n in range(cluster.NODES)])
    held.apply([*(decode(Kind.NODE, raw) for raw in nodes), *(Synced(kind) for kind in Kind)])
    gc.enable()
    gc.collect()
    gc.freeze()
    assert all(isinstance(one, Upsert) for one in found)

    def change(number: int) -> int:
        (raw,) = cluster.as_bytes([cluster.endpoint_slice(number % services, endpoints, shift=1 + number)])
        held.apply([decode(Kind.ENDPOINT_SLICE, raw)])
        return held.revision

    async with Brain(held, Settings((parse_listen(f"unix:{folder}/brain.sock"),))):
        say(**facts())
        async for line in lines():
            word, *rest = line.split()
            match word:
                case "change":
                    at = time.monotonic()
                    say(revision=change(10_000 + int(rest[0])), at=at)
                case "churn":
                    per_s, seconds = int(rest[0]), int(rest[1])
                    begin, revisions = time.monotonic(), []
                    for number in range(per_s * seconds):
                        await asyncio.sleep(max(0.0, begin + number / per_s - time.monotonic()))
                        at = time.monotonic()
                        revisions.append((change(20_000 + number), at))
                    say(revisions=revisions)
                case _:
                    say(**facts())


# --- the nodes ---


def head(raw: bytes) -> tuple[int, bool]:
    """Revision and sync of a message, without its Services: 500 nodes on one machine cannot read them all."""
    at = revision = 0
    sync = False

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = raw[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        field, kind = divmod(varint(), 8)
        if field == 3:
            break
        value = varint()
        if kind == 2:
            at += value
        elif field == 2:
            revision = value
        elif field == 7:
            sync = bool(value)
    return revision, sync


class Node:
    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = 0
        self.revision = 0
        self.reached: list[tuple[int, float]] = []

    async def follow(self, channel: Any, news: asyncio.Condition) -> None:
        from hansa.sources.kpng.wire import nodev1

        ask = nodev1.WatchRequest(node_name=self.name).SerializeToString()
        call = channel.stream_stream("/hansa.node.v1.Node/Watch")()
        await call.write(ask)
        while True:
            raw = await call.read()
            assert isinstance(raw, bytes), f"the brain has ended the stream of {self.name}"
            self.bytes += len(raw)
            revision, sync = head(raw)
            if sync:
                self.revision = revision
                self.reached.append((revision, time.monotonic()))
                async with news:
                    news.notify_all()
                await call.write(ask)


async def nodes(folder: str, *, count: int) -> None:
    import grpc

    options = [("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.use_local_subchannel_pool", 1)]
    news = asyncio.Condition()
    found = [Node(f"node-{number}") for number in range(count)]
    start = time.monotonic()
    channels = [grpc.aio.insecure_channel(f"unix:{folder}/brain.sock", options=options) for _ in found]
    tasks = [asyncio.create_task(one.follow(channel, news)) for one, channel in zip(found, channels, strict=True)]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            print(f"{task.exception()}", file=sys.stderr)
            os._exit(1)  # nothing that is measured with fewer nodes is of use

    for task in tasks:
        task.add_done_callback(ended)

    async def reached(revision: int) -> float:
        async with news:
            await news.wait_for(lambda: all(one.revision >= revision for one in found))
        return max(next(at for reached, at in one.reached if reached >= revision) for one in found)

    last = await reached(1)
    say(seconds=last - start, bytes=sum(one.bytes for one in found))
    async for line in lines():
        word, _, rest = line.partition(" ")
        if word == "reached":
            say(last=await reached(int(rest)))
        else:
            say(lags=lags(found, json.loads(rest)))
    for task in tasks:
        task.cancel()


def lags(found: list[Node], revisions: list[tuple[int, float]]) -> list[float]:
    """For each change, how long it took until the last node had it."""
    latest = [0.0] * len(revisions)
    for one in found:
        at = 0
        for index, (revision, _) in enumerate(revisions):
            while one.reached[at][0] < revision:
                at += 1
            latest[index] = max(latest[index], one.reached[at][1])
    return [moment - begun for moment, (_, begun) in zip(latest, revisions, strict=True)]


async def localv1(folder: str) -> None:
    """How long one client of KPNG's API needs for everything, its own reading included."""
    import grpc

    from hansa.sources.kpng.wire import localv1 as wire

    async with grpc.aio.insecure_channel(f"unix:{folder}/brain.sock") as channel:
        call = channel.stream_stream("/localv1.Sets/Watch")()
        start, operations = time.monotonic(), 0
        await call.write(wire.WatchReq(NodeName="node-1").SerializeToString())
        while (await call.read()) != b"\x0a\x00":
            operations += 1
        say(seconds=time.monotonic() - start, operations=operations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("folder")
    parser.add_argument("--services", type=int, default=0)
    parser.add_argument("--endpoints", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=0)
    arguments = parser.parse_args()
    match arguments.part:
        case "part=brain":
            asyncio.run(brain(arguments.folder, services=arguments.services, endpoints=arguments.endpoints))
        case "part=nodes":
            asyncio.run(nodes(arguments.folder, count=arguments.nodes))
        case _:
            asyncio.run(localv1(arguments.folder))


if __name__ == "__main__":
    main()
