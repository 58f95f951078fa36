"""Benchmarks: one line of JSON per result. Never part of the tests.

Seconds of stages and windows are CPU seconds: machines are shared. nftables says which are which.

    make bench                         everything, 10,000 services x 10 endpoints
    make bench ARGS="--services 1000"  smaller
    make bench ARGS="--only windows"   one part: stages, windows, nftables (root; has sizes of its own), kpng

Each size runs in a process of its own, so that resident memory is that of one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

import cluster
import kpng
import nftables
import proxies

PARTS = ("stages", "windows", "nftables", "kpng")
DEFAULT_SERVICES, DEFAULT_ENDPOINTS = 10_000, 10
# The targets that the results are read against, for 10,000 services of 10 endpoints; seconds, megabytes.
TARGETS = {
    "windows: full plan computed": 5.0,
    "windows: one slice change, without host calls": 0.005,
    "resident memory": 250.0,
    "nftables: first load, last page of the lists to kernel": 1.0,
    "nftables: one endpoint replaced, p99": 0.05,
    "nftables: one endpoint replaced, p50": 0.01,
    "nftables: one endpoint less or more, p99": 0.05,
    "nftables: a number of endpoints that never was, p99": 0.05,
    "nftables: burst of 1000 changed services": 1.0,
    "nftables: resident memory": 250.0,
}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


class Report:
    """Collects results; every one is printed as soon as it is there."""

    def __init__(self, **parameters: Any) -> None:
        self._parameters = parameters

    def result(self, name: str, value: float, unit: str) -> None:
        line = {"name": name, "value": round(value, 6), "unit": unit, **self._parameters, "commit": commit()}
        line |= {"machine": f"{platform.machine()} x{psutil.cpu_count()}", "python": platform.python_version()}
        if name in TARGETS and self._parameters == {"services": DEFAULT_SERVICES, "endpoints": DEFAULT_ENDPOINTS}:
            line["target"] = TARGETS[name]
            line["met"] = value <= TARGETS[name]
        print(json.dumps(line), flush=True)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = action()
    return time.process_time() - start, value


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def bench(file: str, *, services: int, endpoints: int, part: str) -> None:
    from hansa.api.change import Synced
    from hansa.api.objects import Kind
    from hansa.config import make_config
    from hansa.pipeline import Pipeline
    from hansa.sources.manifests import differences, read_manifest

    report = Report(services=services, endpoints=endpoints)
    if part == "nftables":
        nftables.bench(report, file, services=services, endpoints=endpoints)
        return
    config = make_config({"clusterCIDR": "10.128.0.0/9"}, node_name="node-1")
    pipeline = Pipeline(config, frozenset())

    gc.disable()  # as the engine does until the first sync
    report.result("JSON list", Path(file).stat().st_size / 1e6, "MB")
    took, reading = timed(lambda: read_manifest(Path(file).read_bytes(), name="cluster.json", config=config))
    report.result("JSON list decoded", took, "s")
    took, _ = timed(lambda: pipeline.apply([*differences({}, reading.objects), *(Synced(kind) for kind in Kind)]))
    report.result("objects taken into the store", took, "s")
    reading = None  # a source keeps no list either
    took, message = timed(pipeline.take)
    report.result("views and rules built", took, "s")
    report.result("frontends", len(message.rules), "count")
    if part == "windows":
        bench_windows(report, pipeline, message, services=services, endpoints=endpoints)
        report.result("windows: resident memory, emulated host included", resident_mb(), "MB")
    else:
        first_lists_are_in()
        bench_changes(report, pipeline, services=services, endpoints=endpoints)
        report.result("resident memory", resident_mb(), "MB")


def first_lists_are_in() -> None:
    """What the engine does after the first sync."""
    gc.enable()
    gc.collect()
    gc.freeze()


def write_cluster(file: str, *, services: int, endpoints: int) -> None:
    objects = [cluster.service(number) for number in range(services)]
    objects += [cluster.endpoint_slice(number, endpoints) for number in range(services)]
    objects += [cluster.node(number) for number in range(cluster.NODES)]
    Path(file).write_bytes(cluster.as_list(objects))


def bench_changes(report: Report, pipeline: Any, *, services: int, endpoints: int) -> None:
    """One slice after another changes one endpoint: bytes to rules."""
    from hansa.api.decode import decode
    from hansa.api.objects import Kind

    times = []
    for turn in range(200):
        (raw,) = cluster.as_bytes([cluster.endpoint_slice(turn % services, endpoints, shift=1 + turn)])
        took, _ = timed(lambda raw=raw: (pipeline.apply([decode(Kind.ENDPOINT_SLICE, raw)]), pipeline.take()))
        times.append(took)
    report.result("one slice change: bytes to rules, median", statistics.median(times), "s")
    report.result("one slice change: bytes to rules, worst of 200", max(times), "s")


def bench_windows(report: Report, pipeline: Any, message: Any, *, services: int, endpoints: int) -> None:
    """Render and plan against an emulated node, then apply, then restart, then single changes."""
    from dataclasses import replace

    from hansa.api.decode import decode
    from hansa.api.objects import Kind
    from hansa.config import make_config
    from hansa.dataplanes.windows.apply import WindowsDataplane
    from hansa.hns.client import HnsClient
    from hansa.hns.emulator.builds import FUTURE
    from hansa.hns.emulator.nodes import L2BRIDGE, l2bridge_node

    # Without port blocks, as with DSR: real HNS has room for about 256 load balancers otherwise.
    build = replace(FUTURE, lb_block_ports=0)
    emulator = l2bridge_node(build, layout=replace(L2BRIDGE, pod_prefixes=("10.1.0.0/16",)))
    config = make_config({"winkernel": {"callBudget": 10**9, "passBudget": "1h"}}, node_name="node-x")
    api = Timed(emulator)

    def dataplane() -> WindowsDataplane:
        client = HnsClient(api)
        return WindowsDataplane(client, config, mac_of=lambda _: None, rng=random.Random(0), clock=time.monotonic)

    plane = dataplane()
    api.spent_s = 0.0
    took, steps = timed(lambda: plane.plan(message, now=0.0))
    report.result("windows: full plan computed", took - api.spent_s, "s")
    report.result("windows: steps in the plan", len(steps), "count")
    api.spent_s = 0.0
    took, first = timed(lambda: plane.sync(message, now=0.0, audit=False))
    report.result("windows: first sync, without host calls", took - api.spent_s, "s")
    report.result("windows: first sync, host calls", first.host_calls, "count")
    first_lists_are_in()
    times = []
    for turn in range(100):
        (raw,) = cluster.as_bytes([cluster.endpoint_slice(turn % services, endpoints, shift=1000 + turn)])
        upsert = decode(Kind.ENDPOINT_SLICE, raw)
        api.spent_s = 0.0

        def change(upsert: Any = upsert) -> Any:
            pipeline.apply([upsert])
            return plane.sync(pipeline.take(), now=1.0, audit=False)

        took, done = timed(change)
        assert done.ok, done
        times.append(took - api.spent_s)
    report.result("windows: one slice change, without host calls", statistics.median(times), "s")
    report.result("windows: one slice change, without host calls, worst of 100", max(times), "s")
    report.result("windows: one slice change, host calls", done.host_calls, "count")
    api.spent_s = 0.0
    took, idle = timed(lambda: plane.sync(pipeline.take(), now=31.0, audit=True))
    report.result("windows: idle check, without host calls", took - api.spent_s, "s")
    report.result("windows: idle check, host calls", idle.host_calls, "count")
    if services <= 2000:  # the restart reads every object once: 3 calls each
        again = dataplane()
        api.spent_s = 0.0
        took, restart = timed(lambda: again.sync(pipeline.take(full=True), now=60.0, audit=False))
        report.result("windows: restart, without host calls", took - api.spent_s, "s")
        report.result("windows: restart, host calls", restart.host_calls, "count")
        report.result("windows: restart, writes", len(restart.results), "count")


class Timed:
    """An HnsApi that measures how long the one behind it takes, so that it can be left out of the account."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.spent_s = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._api, name)

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return method(*arguments, **named)
            finally:
                self.spent_s += time.process_time() - start

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, help=f"default: {DEFAULT_SERVICES}")
    parser.add_argument("--endpoints", type=int, help=f"default: {DEFAULT_ENDPOINTS}")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--proxy", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = {
        "services": arguments.services or DEFAULT_SERVICES,
        "endpoints": arguments.endpoints or DEFAULT_ENDPOINTS,
    }
    if arguments.proxy:
        report = Report(**size)
        if proxies.bench(report, **size, name=arguments.proxy) is None:
            raise SystemExit(1)
        return
    if arguments.inside:
        bench(arguments.inside, **size, part=arguments.only[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.only or PARTS:
            if part == "nftables":
                if why_not := nftables.missing():
                    print(f"nftables: left out: {why_not}", file=sys.stderr)
                    continue
                given = arguments.services or arguments.endpoints
                nftables.run(folder, __file__, [tuple(size.values())] if given else nftables.SIZES)
                continue
            if part == "kpng":
                if why_not := kpng.missing():
                    print(f"kpng: left out: {why_not}", file=sys.stderr)
                else:
                    kpng.run(Report(**size), **size)
                continue
            file = f"{folder}/cluster.json"
            if not Path(file).exists():
                write_cluster(file, **size)
            command = [sys.executable, __file__, "--inside", file, "--only", part]
            command += ["--services", str(size["services"]), "--endpoints", str(size["endpoints"])]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
