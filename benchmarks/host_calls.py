"""How many host calls (DLL calls) a node makes: hansa counted on the emulator, today's proxy by its formulas.

    .venv/bin/python benchmarks/host_calls.py                 2,000 services, 5,000 endpoints: counts, compares, prints
    .venv/bin/python benchmarks/host_calls.py --write         and puts the tables into docs/windows/host-calls.md
    .venv/bin/python benchmarks/host_calls.py --services 100 --endpoints 250

Counts do not depend on the machine, so they can be tested: a smaller size has to obey the same formulas.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Service, SliceEndpoint
from hansa.config import Config, WindowsConfig
from hansa.dataplanes.base import SyncReport
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.hns.api import HnsVerb
from hansa.hns.client import HnsClient
from hansa.hns.emulator import FUTURE, WS2022, Build, Call, ManualClock, l2bridge_node
from hansa.hns.emulator.nodes import L2BRIDGE
from hansa.pipeline import Pipeline
from hansa.testing import NODE, NODE_ADDRESSES, config, endpoint, endpoint_slice, service

PAGE = Path(__file__).parent.parent / "docs/windows/host-calls.md"
BEGIN, END = "<!-- tables: benchmarks/host_calls.py -->", "<!-- end of tables -->"
FIRST_VIP, FIRST_POD, FIRST_NEW = IPv4Address("10.96.0.10"), IPv4Address("10.128.0.1"), IPv4Address("10.200.0.1")
WRITES = frozenset({HnsVerb.CREATE, HnsVerb.MODIFY, HnsVerb.DELETE})
VERIFY = WindowsConfig().verify_per_period

# What one verb costs (windows-proxy 0.2).
READ, MAKE_LB, MODIFY_LB, DELETE, MAKE_ENDPOINT = 3, 3, 4, 1, 5


@dataclass(frozen=True, slots=True)
class Size:
    """services: each with one ClusterIP port. endpoints: remote ones, spread evenly. pods: local ones, with the root.

    rolling: how many endpoints a rolling update replaces, each in a service of its own.
    """

    services: int = 2000
    endpoints: int = 5000
    pods: int = 16
    rolling: int = 500

    @property
    def objects(self) -> int:
        return self.services + self.endpoints + self.pods


@dataclass(frozen=True, slots=True)
class Costs:
    """Host calls by situation. None = the sheet has no formula for it."""

    start: int
    restart: int
    one_change: int
    rolling_update: int
    rolling_at_once: int
    hns_kept: int | None
    hns_purged: int | None
    idle_check: int


SITUATIONS = {
    "start": "start, nothing programmed yet",
    "restart": "restart of the proxy, nothing has changed",
    "one_change": "one endpoint is replaced by another",
    "rolling_update": "{rolling} endpoints are replaced, one sync for each",
    "rolling_at_once": "{rolling} endpoints are replaced, all in one sync",
    "hns_kept": "HNS restarts and has kept its objects",
    "hns_purged": "HNS restarts and has lost them",
    "idle_check": "check every 30 s, nothing has changed",
}


def hansa(size: Size) -> Costs:
    """windows-proxy H.7, with or without Modify: a replacement costs as much (1 + 3) as a Modify (4)."""
    look = 4 + 2  # the network by name, two lists of GUIDs
    program = size.services * MAKE_LB + size.endpoints * MAKE_ENDPOINT
    change = MAKE_ENDPOINT + MODIFY_LB + READ + DELETE
    outage = 1 + 1  # the call that is not answered, the probe that is
    return Costs(
        start=1 + look + READ * size.pods + program,
        restart=1 + look + READ * size.objects,
        one_change=change,
        rolling_update=size.rolling * change,
        rolling_at_once=size.rolling * change,
        hns_kept=outage + look + READ * size.objects,
        hns_purged=outage + look + READ * size.pods + program,
        idle_check=look + READ * min(VERIFY, size.services + size.endpoints),
    )


def todays_proxy(size: Size, *, modify: bool) -> Costs:
    """windows-proxy E.4 (Kubernetes 1.36.2, l2bridge, one family), each change in a sync of its own.

    What HNS restarts cost is not in the sheet: services are torn down and rebuilt, or fail with "exists already".
    """

    def sync(endpoints: int, balancers: int) -> int:
        return 10 + 3 * endpoints + 3 * balancers

    idle = sync(size.endpoints + size.pods, size.services)
    wipe = 1 + 3 * size.services + size.services
    work = (4 if modify else 5 + 3) + 5 + 9
    return Costs(
        start=1 + sync(size.pods, 0) + 9 * size.endpoints + MAKE_LB * size.services,
        restart=wipe + sync(size.endpoints + size.pods, 0) + MAKE_LB * size.services,
        one_change=idle + work,
        rolling_update=size.rolling * (idle + work),
        rolling_at_once=idle + size.rolling * work,
        hns_kept=None,
        hns_purged=None,
        idle_check=idle,
    )


# --- counting ---


def pods_of(size: Size, number: int) -> list[IPv4Address]:
    first, last = (size.endpoints * each // size.services for each in (number, number + 1))
    return [FIRST_POD + each for each in range(first, last)]


def slice_of(number: int, addresses: list[IPv4Address]) -> EndpointSlice:
    entries: list[SliceEndpoint] = [endpoint(address, node="n2") for address in addresses]
    return endpoint_slice(f"s{number}-a", entries, service=f"s{number}")


def cluster(size: Size) -> Iterator[Change]:
    yield Upsert(NODE)
    for number in range(size.services):
        one: Service = service(f"s{number}", cluster_ips=[FIRST_VIP + number])
        yield Upsert(one)
        yield Upsert(slice_of(number, pods_of(size, number)))
    yield from (Synced(kind) for kind in Kind)


class Node:
    """The proxy over an emulated HNS; counts calls and writes. Budgets are the product's own."""

    def __init__(self, size: Size, build: Build) -> None:
        self.size = size
        self.clock = ManualClock()
        self.now = 0.0
        layout = replace(L2BRIDGE, pod_prefixes=("10.1.0.0/16",))
        self.emulator = l2bridge_node(replace(build, lb_block_ports=0), layout=layout, clock=self.clock)
        for number in range(size.pods - 1):
            self.emulator.add_pod(f"10.1.1.{10 + number}")
        self.emulator.watch(self._note)
        self.writes = 0
        settings: Config = config(windows=WindowsConfig(network_name=L2BRIDGE.network))
        self.config = settings
        self.start()

    def _note(self, call: Call) -> None:
        self.writes += call.verb in WRITES

    def start(self) -> None:
        self.pipeline = Pipeline(self.config, NODE_ADDRESSES)
        self.pipeline.apply(cluster(self.size))
        self.client = HnsClient(self.emulator)
        self.plane = WindowsDataplane(
            self.client, self.config, mac_of=lambda _: None, rng=random.Random(0), clock=self.clock.now
        )

    def sync(self, *, audit: bool = False) -> SyncReport:
        """Passes until there is nothing left to do."""
        while True:
            report = self.plane.sync(self.pipeline.take(), now=self.now, audit=audit)  # type: ignore[arg-type]
            audit = False
            if not report.again:
                return report

    def cost(self, *, audit: bool = False) -> int:
        before = self.client.calls
        report = self.sync(audit=audit)
        assert report.ok, report
        return self.client.calls - before

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.clock.advance(seconds)


def measure(size: Size, build: Build) -> tuple[Costs, int]:
    """Counted costs, and how many writes the restart made."""
    node = Node(size, build)
    start = node.cost()
    node.start()
    writes = node.writes
    restart = node.cost()
    restart_writes = node.writes - writes
    node.wait(30.0)
    idle = node.cost(audit=True)
    changes = []
    for number in range(size.rolling):
        replace_one(node, number, FIRST_NEW + number)
        changes.append(node.cost())
    for number in range(size.rolling):
        replace_one(node, number, FIRST_NEW + size.rolling + number)
    at_once = node.cost()
    kept = hns_restart(node, purge=False)
    purged = hns_restart(node, purge=True)
    costs = Costs(start, restart, changes[0], sum(changes), at_once, kept, purged, idle)
    return costs, restart_writes


def replace_one(node: Node, number: int, new: IPv4Address) -> None:
    """The last endpoint of a service gives way to another."""
    node.pipeline.apply([Upsert(slice_of(number, [*pods_of(node.size, number)[:-1], new]))])


def hns_restart(node: Node, *, purge: bool) -> int:
    node.wait(30.0)
    node.emulator.restart(purge=purge, unavailable_calls=1)
    before = node.client.calls
    node.sync(audit=True)
    node.wait(1.0)
    node.cost()
    return node.client.calls - before


# --- telling ---


def tables(size: Size) -> str:
    """The comparison and the formulas, as Markdown; computed from the formulas, which `main` and a test check."""
    ours, theirs = hansa(size), [todays_proxy(size, modify=modify) for modify in (False, True)]
    title = f"{size.services:,} services, {size.endpoints:,} remote endpoints, {size.pods} local ones"
    lines = [
        f"| {title} | hansa | kube-proxy 1.36.2, no Modify | kube-proxy 1.36.2, Modify |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, text in SITUATIONS.items():
        values = [getattr(costs, name) for costs in (ours, *theirs)]
        cells = ["no figure" if value is None else f"{value:,}" for value in values]
        lines.append(f"| {text.format(rolling=size.rolling)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Size()
    for name in ("services", "endpoints", "pods", "rolling"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--write", action="store_true", help="put the table into docs/windows/host-calls.md")
    arguments = parser.parse_args()
    size = Size(arguments.services, arguments.endpoints, arguments.pods, arguments.rolling)
    for build in (WS2022, FUTURE):
        counted, writes = measure(size, build)
        if counted != hansa(size) or writes:
            sys.exit(f"{build.name}: counted {counted}, {writes} writes at the restart; the formulas say {hansa(size)}")
        print(f"{build.name}: counted as the formulas say, no write at the restart")
    print(tables(size))
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables(size)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
