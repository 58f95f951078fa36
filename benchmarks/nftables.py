"""The nftables part of the benchmarks: one cluster size on the kernel of a network namespace of its own. Needs root.

hansa's table is held against a plain one of kube-proxy's shape, made here and loaded by `nft -f`: a chain per service
port, which draws a number and goes to a chain per endpoint. The ratios compare the shape and the way to the kernel, not
kube-proxy itself, whose own work (informers, listing its table) comes on top.

Results named "CPU" are the process's CPU seconds, the kernel's work for it included; others are wall-clock seconds.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cluster
import proxies
import psutil

# (services, endpoints of each)
SIZES = ((100, 10), (1_000, 10), (10_000, 10), (50_000, 10), (10, 5_000))
# What Kubernetes puts into one EndpointSlice at most.
SLICE_ENDPOINTS = 1_000
# The peer's load grows faster than the cluster: at 10,000 services it takes a minute or more; larger ones are left out.
PEER_ENDPOINTS = 100_000
PEER_LIMIT_S = 240.0
CHANGES = 300
NEW_CHAINS = 9
# What hansa asks an API server for at once.
PAGE = 500
PEER_CHANGES = 10
BURST = 1_000


class Took(NamedTuple):
    wall: float
    cpu: float


class Load(NamedTuple):
    """while_arriving: into the store, views and rules, up to the last page. last_page: the same for that one, and the
    message. to_kernel: the message. after_lists: both, from the moment the last page is there until the commit."""

    while_arriving: Took
    last_page: Took
    to_kernel: Took
    after_lists: Took


def timed(action: Callable[[], Any]) -> tuple[Took, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = action()
    return Took(time.perf_counter() - wall, time.process_time() - cpu), value


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def missing() -> str:
    """Why this part cannot run here, "" if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root, for a network namespace of its own"
    absent = [name for name in ("unshare", "nft") if shutil.which(name) is None]
    return f"needs the programs {', '.join(absent)}" if absent else ""


def slices(number: int, endpoints: int, shift: int = 0) -> list[dict[str, Any]]:
    """All EndpointSlices of one service; `shift` moves the first endpoint of each to another address."""
    if endpoints <= SLICE_ENDPOINTS:
        return [cluster.endpoint_slice(number, endpoints, shift)]
    parts = -(-endpoints // SLICE_ENDPOINTS)
    found = []
    for part in range(parts):
        size = min(SLICE_ENDPOINTS, endpoints - part * SLICE_ENDPOINTS)
        item = cluster.endpoint_slice(number * parts + part, size, shift)
        item["metadata"] |= {"name": f"svc-{number}-{part}", "namespace": f"team-{number % 50}"}
        item["metadata"]["labels"] = {"kubernetes.io/service-name": f"svc-{number}"}
        found.append(item)
    return found


def write_cluster(file: str, *, services: int, endpoints: int) -> None:
    objects = [cluster.service(number) for number in range(services)]
    objects += [one for number in range(services) for one in slices(number, endpoints)]
    objects += [cluster.node(number) for number in range(cluster.NODES)]
    Path(file).write_bytes(cluster.as_list(objects))


class Node:
    """A whole node but for the network: objects go in, the kernel holds what follows."""

    def __init__(self) -> None:
        from hansa.config import make_config
        from hansa.dataplanes.nftables.host import open_dataplane
        from hansa.pipeline import Pipeline

        self.config = make_config({"clusterCIDR": "10.128.0.0/9"}, node_name="node-1")
        self.pipeline = Pipeline(self.config, frozenset())
        self._open = lambda: open_dataplane(self.config)[0]
        self.plane = self._open()

    def load(self, pages: list[list[Any]]) -> Load:
        """The first lists, page by page as the engine takes them in, and the first sync; nothing of it is kept."""
        from hansa.api.change import Synced
        from hansa.api.objects import Kind
        from hansa.engine import AHEAD

        def arrive(page: list[Any]) -> None:
            self.pipeline.apply(page)
            while self.pipeline.prepare(AHEAD):
                pass

        *earlier, last = pages
        while_arriving, _ = timed(lambda: [arrive(page) for page in earlier])

        def finish() -> tuple[Took, Took]:
            taken, message = timed(lambda: (arrive([*last, *map(Synced, Kind)]), self.pipeline.take())[1])
            loaded, report = timed(lambda: self.plane.sync(message, now=0.0, audit=False))
            assert report.ok, report
            return taken, loaded

        whole, (taken, loaded) = timed(finish)
        return Load(while_arriving, taken, loaded, whole)

    def restart(self) -> None:
        self.plane.close()
        self.plane = self._open()

    def take(self, items: Iterable[dict[str, Any]], *, full: bool = False) -> Took:
        """EndpointSlices as JSON, to the kernel."""
        from hansa.api.decode import decode
        from hansa.api.objects import Kind

        raws = cluster.as_bytes(list(items))

        def change() -> None:
            self.pipeline.apply([decode(Kind.ENDPOINT_SLICE, raw) for raw in raws])
            done = self.plane.sync(self.pipeline.take(full=full), now=0.0, audit=False)
            assert done.ok, done
            assert done.results or not raws, "nothing was written"

        return timed(change)[0]


def bench(report: Any, file: str, *, services: int, endpoints: int) -> None:
    """Everything about one size. report: as in run.py."""
    from hansa.sources.manifests import differences, read_manifest

    node = Node()
    gc.disable()  # as the engine does until the first sync
    reading = read_manifest(Path(file).read_bytes(), name="cluster.json", config=node.config)
    changes = list(differences({}, reading.objects))
    del reading
    load = node.load(pages_of(changes))
    del changes
    report.result("nftables: store, views and rules while lists arrive, CPU", load.while_arriving.cpu, "s")
    report.result("nftables: first load, rules to kernel, CPU", load.to_kernel.cpu, "s")
    report.result("nftables: first load, rules to kernel", load.to_kernel.wall, "s")
    report.result("nftables: first load, last page of the lists to kernel, CPU", load.after_lists.cpu, "s")
    report.result("nftables: first load, last page of the lists to kernel", load.after_lists.wall, "s")
    total = sum(part.cpu for part in (load.while_arriving, load.after_lists))
    report.result("nftables: first load, all objects to kernel, CPU", total, "s")
    gc.enable()
    gc.collect()
    gc.freeze()
    change = bench_changes(report, node, services=services, endpoints=endpoints)
    if services >= BURST:
        burst = node.take(slices(number, endpoints, 5000 + number)[0] for number in range(BURST))
        report.result(f"nftables: burst of {BURST} changed services", burst.wall, "s")
        report.result(f"nftables: burst of {BURST} changed services, CPU", burst.cpu, "s")
    report.result("nftables: resident memory", psutil.Process().memory_info().rss / 1e6, "MB")
    took, idle = timed(lambda: node.plane.sync(node.pipeline.take(), now=31.0, audit=True))
    assert not idle.results
    report.result("nftables: idle check", took.wall, "s")
    node.restart()
    took, again = timed(lambda: node.plane.sync(node.pipeline.take(full=True), now=60.0, audit=False))
    assert again.ok, again
    assert not again.results, again.results[:3]
    report.result("nftables: restart with nothing to do, rules to kernel", took.wall, "s")
    report.result("nftables: restart with nothing to do, rules to kernel, CPU", took.cpu, "s")
    node.plane.close()
    if services * endpoints <= PEER_ENDPOINTS and endpoints <= SLICE_ENDPOINTS:
        bench_peer(report, services, endpoints, loaded=load.to_kernel, change=change)


def pages_of(changes: list[Any]) -> list[list[Any]]:
    """As an API server lists them: this node first, as it is alone in its list, then page by page."""
    from hansa.api.objects import Kind

    by_kind = {kind: [one for one in changes if one.key.kind is kind] for kind in Kind}
    pages = [by_kind[Kind.NODE]]
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
        found = by_kind[kind]
        pages += [found[start : start + PAGE] for start in range(0, len(found), PAGE)]
    return pages


def bench_changes(report: Any, node: Node, *, services: int, endpoints: int) -> float:
    """One slice after another changes, JSON to kernel: an endpoint is replaced, or one goes or comes back."""

    def one_by_one(name: str, items: Callable[[int], dict[str, Any]], turns: int = CHANGES) -> float:
        took = [node.take([items(turn)]) for turn in range(turns)]
        median = statistics.median(one.wall for one in took)
        report.result(f"nftables: {name}, p50", median, "s")
        report.result(f"nftables: {name}, p99", percentile((one.wall for one in took), 0.99), "s")
        report.result(f"nftables: {name}, p50 CPU", statistics.median(one.cpu for one in took), "s")
        return median

    def fewer(turn: int) -> dict[str, Any]:
        """The last endpoint of a service goes, and comes back with the next turn."""
        number = NEW_CHAINS + turn // 2 % (services - NEW_CHAINS)
        item = slices(number, endpoints)[-1]
        if turn % 2 == 0:
            item["endpoints"].pop()
        return item

    def fewest(turn: int) -> dict[str, Any]:
        """Another service with a number of endpoints that none had before, so that a chain must be made."""
        item = slices(turn % (services - 1), endpoints)[-1]
        del item["endpoints"][-1 - turn :]
        return item

    change = one_by_one("one endpoint replaced", lambda turn: slices(turn % services, endpoints, 1 + turn)[0])
    one_by_one("a number of endpoints that never was", fewest, min(NEW_CHAINS, endpoints - 1))
    one_by_one("one endpoint less or more", fewer)
    return change


# -- the peer --------------------------------------------------------------------------------------------------------


def bench_peer(report: Any, services: int, endpoints: int, *, loaded: Took, change: float) -> None:
    took = nft("".join(peer_table(services, endpoints)))
    if took is None:
        report.result("nftables: peer, given up after", PEER_LIMIT_S, "s")
        return
    report.result("nftables: peer, nft -f", took.wall, "s")
    report.result("nftables: peer, nft -f, CPU", took.cpu, "s")
    report.result("nftables: first load, how many times faster than the peer", took.wall / loaded.wall, "ratio")
    report.result("nftables: first load, how many times less CPU than the peer", took.cpu / loaded.cpu, "ratio")
    times = [nft("".join(peer_change(turn % services, endpoints))) for turn in range(PEER_CHANGES)]
    median = statistics.median(one.wall for one in times if one is not None)
    report.result("nftables: peer, one service written anew by nft -f, p50", median, "s")
    report.result("nftables: one change, how many times faster than the peer", median / change, "ratio")


def nft(text: str) -> Took | None:
    """Load it; None: it took too long and was ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    try:
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, timeout=PEER_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def peer_table(services: int, endpoints: int) -> Iterator[str]:
    yield "table ip peer {\n"
    yield "chain mark-for-masquerade {\nmeta mark set mark or 0x4000\n}\n"
    for number in range(services):
        (piece,) = slices(number, endpoints)
        for place, entry in enumerate(piece["endpoints"]):
            (address,) = entry["addresses"]
            yield f"chain endpoint-{number}-{place} {{\nip saddr {address} jump mark-for-masquerade\n"
            yield f"meta l4proto tcp dnat to {address}:8080\n}}\n"
        yield f"chain service-{number} {{\n{peer_service(number, endpoints)}}}\n"
    addresses = (cluster.service(number)["spec"]["clusterIP"] for number in range(services))
    verdicts = ",\n".join(f"{address} . tcp . 80 : goto service-{number}" for number, address in enumerate(addresses))
    yield f"map service-ips {{\ntype ipv4_addr . inet_proto . inet_service : verdict\nelements = {{ {verdicts} }}\n}}\n"
    for hook in ("prerouting", "output"):
        yield f"chain {hook} {{\ntype nat hook {hook} priority -100;\n"
        yield "ip daddr . meta l4proto . th dport vmap @service-ips\n}\n"
    yield "}\n"


def peer_service(number: int, endpoints: int) -> str:
    targets = ", ".join(f"{place} : goto endpoint-{number}-{place}" for place in range(endpoints))
    return f"ip saddr != 10.128.0.0/9 jump mark-for-masquerade\nnumgen random mod {endpoints} vmap {{ {targets} }}\n"


def peer_change(number: int, endpoints: int) -> Iterator[str]:
    """A service whose first endpoint has been replaced: its chain and that endpoint's are written anew."""
    yield f"flush chain ip peer endpoint-{number}-0\n"
    yield f"add rule ip peer endpoint-{number}-0 meta l4proto tcp dnat to 10.250.0.{number % 250 + 1}:8080\n"
    yield f"flush chain ip peer service-{number}\n"
    for rule in peer_service(number, endpoints).splitlines():
        yield f"add rule ip peer service-{number} {rule}\n"


def run(folder: str, script: str, sizes: Iterable[tuple[int, int]]) -> None:
    """Each size in a process and a namespace of its own; one that fails does not hold up the others."""
    for services, endpoints in sizes:
        file = f"{folder}/nftables-{services}-{endpoints}.json"
        write_cluster(file, services=services, endpoints=endpoints)
        command = ["unshare", "--net", sys.executable, script, "--inside", file, "--only", "nftables"]
        command += ["--services", str(services), "--endpoints", str(endpoints)]
        done = subprocess.run(command, check=False)
        if done.returncode:
            size = {"services": services, "endpoints": endpoints}
            print(json.dumps({"name": "nftables: failed", "value": done.returncode, "unit": "exit code", **size}))
        Path(file).unlink()
        if os.environ.get("KUBE_PROXY") and services * endpoints <= PEER_ENDPOINTS and endpoints <= SLICE_ENDPOINTS:
            for peer in proxies.peers():
                subprocess.run([*command, "--proxy", peer.name], check=False)
