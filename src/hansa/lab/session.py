"""A lab that somebody plays with: commands in, lines out, and time that passes when it is told to.

Pure like the rest of the lab; the shell around it (`cli.lab_shell`) shows tables, reads keys and has a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from hansa.api.change import Change, Upsert
from hansa.api.objects import EndpointSlice, Service, SliceEndpoint
from hansa.dataplanes.base import Outcome
from hansa.errors import ConfigError, Fault
from hansa.hns.api import HnsKind, parse_guid
from hansa.lab.asking import read_ask
from hansa.lab.cluster import Cluster, WindowsNode
from hansa.lab.model import LabPod, System
from hansa.lab.reading import read_fault
from hansa.lab.world import FIRST_PORT, Journey, Memory, World, travel

AUDIT_S = 30.0  # how often hansa compares everything with the host: its default sync period

HELP = (
    "trace PACKET: send it, e.g. trace pod/default/client -> svc/default/web",
    "fault KIND NODE ...: break something (`hansa lab faults`)",
    "delete ID [NODE]: delete a load balancer behind hansa's back; as much of its id as you like",
    "kill NODE, start NODE: HNS stops answering, and comes back",
    "crash NODE: HNS restarts and has lost load balancers and remote endpoints",
    "drain NAMESPACE/POD, ready NAMESPACE/POD: it terminates but still serves; it is ready again",
    "wait SECONDS: let time pass",
    "audit: have hansa compare everything now",
    "help",
)


class NodeRow(NamedTuple):
    """state: as the last sync reports it."""

    name: str
    system: str
    address: str
    load_balancers: int
    endpoints: int
    state: str


class PodRow(NamedTuple):
    """state: `ready`, `draining`, or `-` if no Service has it."""

    name: str
    node: str
    address: str
    state: str


class BalancerRow(NamedTuple):
    """One load balancer of one node. guid: in full."""

    node: str
    guid: str
    frontend: str
    owner: str
    endpoints: int


class Session:
    """One lab and its time. Every command returns what is to be read; what is wrong raises ConfigError."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._journey: tuple[World, Journey] | None = None
        self._memory = Memory()
        self._next_audit = cluster.now + AUDIT_S
        self._port = FIRST_PORT
        self._commands: dict[str, Callable[[str], list[str]]] = {
            "trace": self._trace,
            "fault": self._fault,
            "delete": self._delete,
            "kill": self._kill,
            "start": self._start,
            "crash": self._crash,
            "drain": lambda name: self._drain(name, draining=True),
            "ready": lambda name: self._drain(name, draining=False),
            "wait": self._wait,
            "audit": lambda _: self._audit(),
            "help": lambda _: list(HELP),
        }

    def do(self, line: str) -> list[str]:
        """One command, see HELP; "" does nothing."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return []
        if word not in self._commands:
            raise ConfigError(Fault("command", f"{word!r} is none", f"give one of {', '.join(self._commands)}"))
        return self._commands[word](rest.strip())

    def take_journey(self) -> tuple[World, Journey] | None:
        """What the last command sent, once; None = it sent nothing."""
        journey, self._journey = self._journey, None
        return journey

    def tick(self, seconds: float) -> list[str]:
        """Let time pass: hansa retries what is due, and compares everything when its period is over."""
        self.cluster.now += seconds
        audit = self.cluster.now >= self._next_audit
        if audit:
            self._next_audit = self.cluster.now + AUDIT_S
        return [line for name in self.cluster.windows for line in self._sync(name, audit=audit)]

    def _sync(self, name: str, *, audit: bool) -> Iterator[str]:
        before = self.cluster.windows[name].report
        report = self.cluster.sync(name, audit=audit)
        if before is not None and before.state is not report.state:
            yield f"{name}: HNS is {report.state.value}"
        for result in report.results:
            change = result.change
            done = "" if result.outcome is Outcome.DONE else f" {result.outcome.value}: {result.error}"
            yield f"{name}: {change.verb.value} {change.kind} {change.key}, {change.why}{done}"

    # --- commands ---

    def _trace(self, packet: str) -> list[str]:
        world = self.cluster.world()
        self._port += 1
        ask = read_ask(packet, world, source_port=self._port)
        journey = travel(world, ask, memory=self._memory)
        self._memory = journey.memory
        self._journey = (world, journey)
        return []

    def _fault(self, text: str) -> list[str]:
        fault = read_fault(text)
        self._windows(fault.node)
        self.cluster.break_by(fault)
        return [f"broken: {fault}"]

    def _delete(self, text: str) -> list[str]:
        guid, _, node = text.lower().partition(" ")
        held = [row for row in self.balancers() if row.node == node or not node]
        found = [row for row in held if row.guid.lower().startswith(guid)] if guid else []
        if not found:
            raise ConfigError(Fault("delete", f"no load balancer's id begins with {text!r}", "see the table"))
        for row in found:
            self.cluster.windows[row.node].emulator.remove(HnsKind.LOAD_BALANCER, parse_guid(row.guid))
        return [f"{row.node}: load balancer {row.guid[:8].lower()} of {row.frontend} is gone" for row in found]

    def _kill(self, name: str) -> list[str]:
        self._windows(name).emulator.stop()
        return [f"{name}: HNS does not answer"]

    def _start(self, name: str) -> list[str]:
        self._windows(name).emulator.start()
        return [f"{name}: HNS answers again"]

    def _crash(self, name: str) -> list[str]:
        lost = self._windows(name).emulator.restart(purge=True)
        return [f"{name}: HNS has restarted, {len(lost)} objects are lost"]

    def _drain(self, name: str, *, draining: bool) -> list[str]:
        pod = self._pod(name)
        changes = tuple(_with_conditions(self.cluster.lab.changes, pod, draining=draining))
        if not changes:
            raise ConfigError(Fault("drain", f"{pod} is no endpoint of any Service", "see the table of pods"))
        self.cluster.apply(changes)
        what = "terminates and still serves" if draining else "is ready"
        return [f"{pod} {what}", *self.tick(0.0)]

    def _wait(self, text: str) -> list[str]:
        try:
            seconds = float(text)
        except ValueError as error:
            raise ConfigError(Fault("wait", f"{text!r} is no number of seconds", "write wait 5")) from error
        lines: list[str] = []
        while seconds > 0:
            step = min(1.0, seconds)
            seconds -= step
            lines += self.tick(step)
        return lines or ["nothing to do"]

    def _audit(self) -> list[str]:
        lines = [line for name in self.cluster.windows for line in self._sync(name, audit=True)]
        return lines or ["everything is as desired"]

    def _windows(self, name: str) -> WindowsNode:
        if name not in self.cluster.windows:
            known = ", ".join(self.cluster.windows)
            raise ConfigError(Fault("node", f"no Windows node is called {name!r}", f"the lab has {known}"))
        return self.cluster.windows[name]

    def _pod(self, name: str) -> LabPod:
        namespace, _, plain = name.removeprefix("pod/").rpartition("/")
        for pod in self.cluster.lab.pods:
            if (pod.namespace, pod.name) == (namespace or "default", plain):
                return pod
        raise ConfigError(Fault("pod", f"no pod is called {name!r}", "see the table of pods"))

    # --- tables ---

    def nodes(self) -> list[NodeRow]:
        """In the lab's order."""
        return [self._node_row(node.name) for node in self.cluster.lab.nodes]

    def _node_row(self, name: str) -> NodeRow:
        node = self.cluster.lab.node(name)
        assert node is not None
        address = str(node.addresses[0])
        if node.system is System.LINUX:
            return NodeRow(name, node.system.value, address, 0, 0, "by its rules")
        held = self.cluster.windows[name]
        report = held.report
        pending = f", {len(report.pending)} pending" if report is not None and report.pending else ""
        state = f"{report.state.value}{pending}" if report is not None else "not asked yet"
        emulator = held.emulator
        return NodeRow(
            name, node.system.value, address, len(emulator.load_balancers()), len(emulator.endpoints()), state
        )

    def pods(self) -> list[PodRow]:
        """In the lab's order."""
        states = {one.address: one for _, one in _endpoints(self.cluster.lab.changes)}
        return [
            PodRow(
                f"{pod.namespace}/{pod.name}",
                pod.node,
                str(pod.addresses[0]),
                "-" if (one := states.get(pod.addresses[0])) is None else "ready" if one.ready else "draining",
            )
            for pod in self.cluster.lab.pods
        ]

    def services(self) -> list[str]:
        """Names, sorted."""
        told = (one.object for one in self.cluster.lab.changes if isinstance(one, Upsert))
        return sorted({str(one.key) for one in told if isinstance(one, Service)})

    def balancers(self) -> list[BalancerRow]:
        """By node, then by frontend."""
        found = []
        for name, node in self.cluster.windows.items():
            rules = node.pipeline.rules
            for balancer in node.emulator.load_balancers():
                claims = node.dataplane.situation.observed.claims(balancer.guid)
                owners = [str(rule.owner) for claim in claims if (rule := rules.get(claim)) is not None]
                frontend = ", ".join(str(claim) for claim in claims) or ", ".join(map(str, balancer.frontend_vips))
                found.append(BalancerRow(name, balancer.guid, frontend, ", ".join(owners), len(balancer.endpoints)))
        return sorted(found, key=lambda row: (row.node, row.frontend, row.guid))


def _latest(changes: tuple[Change, ...]) -> dict[object, EndpointSlice]:
    """Slices as last told."""
    return {one.key: one.object for one in changes if isinstance(one, Upsert) and isinstance(one.object, EndpointSlice)}


def _endpoints(changes: tuple[Change, ...]) -> Iterator[tuple[EndpointSlice, SliceEndpoint]]:
    for piece in _latest(changes).values():
        for endpoint in piece.endpoints:
            yield piece, endpoint


def _with_conditions(changes: tuple[Change, ...], pod: LabPod, *, draining: bool) -> Iterator[Change]:
    """The slices that name a pod, with its endpoints in another condition."""
    own = set(pod.addresses)
    for piece in _latest(changes).values():
        if own.isdisjoint(one.address for one in piece.endpoints):
            continue
        endpoints = tuple(
            replace(one, ready=not draining, serving=True, terminating=draining) if one.address in own else one
            for one in piece.endpoints
        )
        yield Upsert(replace(piece, endpoints=endpoints))
