"""`hansa demo`: an emulated Windows node, from empty to healed, with what each step cost.

What comes in: a small cluster of manifests (`cluster.yaml`). What goes out: text for people. Who calls it: the command,
and a test. What it must never do: anything that a real node would not do; it runs the same pipeline and dataplane, on
the emulator, with a clock that it moves by hand. Evidence: the emulator's own, graded in `hns.emulator.builds`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from rich.console import Console
from rich.table import Table

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Node
from hansa.config import Config, make_config
from hansa.dataplanes.base import SyncReport
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.errors import ConfigError, Fault
from hansa.explain.text import report_line, service_table
from hansa.hns.api import HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator.builds import BUILDS
from hansa.hns.emulator.service import Emulator
from hansa.lab.cni import PodNetwork, add_local_pods, emulated_node, spare_source_vips
from hansa.net import parse_address
from hansa.pipeline import Pipeline
from hansa.sources.manifests import differences, read_manifest

NODE_NAME = "win-1"
WRITES = ("Create", "Modify", "Delete")
UNREADY_POD = parse_address("100.96.2.15")
KUBE_DNS = parse_address("100.64.0.10")


def cluster_manifests() -> str:
    """The demo's cluster, as `kubectl get svc,endpointslices,nodes -A -o yaml` would print it."""
    return resources.files(__name__).joinpath("cluster.yaml").read_text(encoding="utf-8")


def run(console: Console, *, network: str = "overlay", build: str = "ws2022") -> None:
    """Print the whole story. Raises ConfigError for a network or build that does not exist."""
    kinds = {kind.value: kind for kind in PodNetwork}
    if network not in kinds:
        raise ConfigError(Fault("--network", f"{network!r} is no pod network", f"give one of {', '.join(kinds)}"))
    if build not in BUILDS:
        raise ConfigError(Fault("--build", f"{build!r} is no emulated build", f"give one of {', '.join(BUILDS)}"))
    Story(console, kinds[network], build).tell()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took: calls of the HNS DLL, and how many of them wrote."""

    title: str
    calls: int
    writes: int


class Story:
    """The node, the proxy on it, and the steps of the demo."""

    def __init__(self, console: Console, network: PodNetwork, build: str) -> None:
        self.console = console
        objects = read_manifest(cluster_manifests().encode(), name="cluster.yaml").objects
        self.changes: tuple[Change, ...] = (*differences({}, objects), *(Synced(kind) for kind in Kind))
        nodes = [one.object for one in self.changes if isinstance(one, Upsert) and isinstance(one.object, Node)]
        own = next(node for node in nodes if node.name == NODE_NAME)
        self.emulator: Emulator = emulated_node(own, nodes, network=network, build=BUILDS[build])
        add_local_pods(self.emulator, self.changes, NODE_NAME)
        self.config = self._config()
        self.now = 0.0
        self.costs: list[Cost] = []
        self._start_hansa()

    def _config(self) -> Config:
        config = make_config({"hostnameOverride": NODE_NAME}, node_name=NODE_NAME)
        return replace(config, windows=replace(config.windows, source_vip=spare_source_vips(self.emulator)))

    def _start_hansa(self) -> None:
        """A new process: nothing is remembered."""
        self.pipeline = Pipeline(self.config, frozenset(self.emulator.host_addresses))
        self.dataplane = WindowsDataplane(
            HnsClient(self.emulator),
            self.config,
            mac_of=dict.fromkeys(self.emulator.host_addresses, self.emulator.machine.mac_address).get,
            rng=random.Random(0),
            clock=lambda: self.now,
        )

    def tell(self) -> None:
        build, network = self.emulator.build, self.emulator.networks()[0]
        self.console.print(
            f"An emulated Windows node ([bold]{build.windows}[/], HNS {build.version}): the CNI has made "
            f"network {network.name} ({network.type.value}) and {len(self.emulator.endpoints())} HNS endpoints."
        )
        self._step("hansa starts and programs the cluster's services", self._first_sync)
        self.console.print(service_table(self.dataplane.table()))
        self._step(f"the pod {UNREADY_POD} of default/web becomes ready", self._pod_becomes_ready)
        self._step(
            "somebody deletes the load balancer of kube-dns 53/UDP behind hansa's back", self._delete_behind_back
        )
        self._step("HNS crashes and comes back without load balancers and remote endpoints", self._hns_restarts)
        self._step("hansa restarts: a new process that remembers nothing", self._hansa_restarts)
        self._summary()

    def _step(self, title: str, act: Callable[[], Iterable[str]]) -> None:
        before, written = self.emulator.call_count, self._written()
        lines = list(act())
        cost = Cost(title, self.emulator.call_count - before, self._written() - written)
        self.costs.append(cost)
        self.console.print(f"\n[bold]{len(self.costs)}. {title}[/]")
        for line in lines:
            self.console.print(f"   {line}")

    def _written(self) -> int:
        return sum(count for function, count in self.emulator.calls.items() if any(verb in function for verb in WRITES))

    # --- the steps; each says what happened ---

    def _first_sync(self) -> Iterable[str]:
        self.pipeline.apply(self.changes)
        yield from self._sync_until_quiet()

    def _pod_becomes_ready(self) -> Iterable[str]:
        self.pipeline.apply([_with_ready(self.changes, "web-8lq2k")])
        yield from self._sync_until_quiet()

    def _delete_behind_back(self) -> Iterable[str]:
        victim = next(
            balancer
            for balancer in self.emulator.load_balancers()
            if KUBE_DNS in balancer.frontend_vips and balancer.port_mappings[0].protocol == 17
        )
        self.emulator.remove(HnsKind.LOAD_BALANCER, victim.guid)
        yield f"HNS: load balancer {victim.guid[:8].lower()} is gone; no API event tells of it"
        yield from self._sync_until_quiet(audit=True)

    def _hns_restarts(self) -> Iterable[str]:
        lost = self.emulator.restart(purge=True, unavailable_calls=2)
        yield f"HNS: {len(lost)} objects lost, all handles dead, the next calls fail"
        yield from self._sync_until_quiet(audit=True)

    def _hansa_restarts(self) -> Iterable[str]:
        written = self._written()
        self._start_hansa()
        self.pipeline.apply([*self.changes, _with_ready(self.changes, "web-8lq2k")])
        yield from self._sync_until_quiet()
        if self._written() == written:
            yield "[green]not a single write: every load balancer and endpoint was adopted[/]"
        else:
            yield "[red]something was written although nothing had changed: this is a bug[/]"

    def _sync_until_quiet(self, *, audit: bool = False) -> Iterable[str]:
        """What the engine does, by hand: sync, and again when the report asks for it, at most a minute of its time."""
        end = self.now + 60.0
        while True:
            message = self.pipeline.take()
            assert message is not None, "the manifests were read to their end"
            report = self.dataplane.sync(message, now=self.now, audit=audit)
            yield f"t={self.now:>4.1f} s  {report_line(report)}"
            yield from self._details(report)
            if report.ok or self.now >= end:
                return
            self.now = max(self.now + 0.1, report.retry_at or self.now)
            audit = False

    def _details(self, report: SyncReport) -> Iterable[str]:
        for result in report.results[:4]:
            change = result.change
            yield f"          {change.verb.value} {change.kind} {change.key}: {result.error or change.why}"
        if len(report.results) > 4:
            yield f"          ... and {len(report.results) - 4} more"
        if report.drift:
            yield f"          drift found: {len(report.drift)} object{'s' if len(report.drift) > 1 else ''}"

    def _summary(self) -> None:
        table = Table(title=None, box=None, pad_edge=False, header_style="bold")
        table.add_column("STEP")
        table.add_column("HOST CALLS", justify="right")
        table.add_column("OF THEM WRITES", justify="right")
        for cost in self.costs:
            table.add_row(cost.title, str(cost.calls), str(cost.writes))
        self.console.print()
        self.console.print(table)
        self.console.print(f"open HNS handles: {self.emulator.open_handles}")


def _with_ready(changes: Sequence[Change], name: str) -> Upsert:
    """The slice of that name with every endpoint ready, as the endpoint controller would send it."""
    piece = next(
        one.object
        for one in changes
        if isinstance(one, Upsert) and isinstance(one.object, EndpointSlice) and one.object.name == name
    )
    return Upsert(replace(piece, endpoints=tuple(replace(each, ready=True, serving=True) for each in piece.endpoints)))
