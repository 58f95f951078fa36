"""A connection through a lab: from its client over nodes and the wire to an endpoint, and the answer back. Pure.

What comes in: a `World` (what every node holds, as values), an `Ask` (who wants to reach what). What goes out: a
`Journey`: the way there and the way back, step by step, and where it ended.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, assert_never

from hansa.dataplanes.base import Shortfall
from hansa.hns.api import Guid
from hansa.hns.emulator.vswitch import Switch, forward, spread
from hansa.hns.emulator.vswitch_model import (
    EXTERNAL_PORT,
    HOST_PORT,
    Choose,
    Delivered,
    Dropped,
    Flows,
    Frame,
    Header,
    Hop,
    OnWire,
    PortKind,
    pod_port,
)
from hansa.lab.cni import PodNetwork
from hansa.lab.linux import Conntrack, LinuxHost, Refused, ToHost, ToPod, ToWire, pass_through
from hansa.lab.model import Lab, LabPod
from hansa.net import Address, family_of
from hansa.rules.decide import RuleLookup, decide
from hansa.rules.model import Forward, FrontendKey, NotHandled, Rule, Surroundings, Verdict

OUTSIDE, BALANCER, UNDERLAY = "outside", "load balancer", "underlay"
FIRST_PORT = 49152  # what imagined clients send from, unless told otherwise: the first of Windows' dynamic ports
MAX_NODES = 8  # a frame that has passed more of them goes round in circles


class NodeRules(NamedTuple):
    """What stages 2 and 3 say on one node."""

    rules: RuleLookup
    surroundings: Surroundings


@dataclass(frozen=True, slots=True)
class World:
    """All that a packet can meet.

    served: addresses and ports that slices name, for the nodes' own processes. shortfalls: of the Windows nodes.
    """

    lab: Lab
    windows: Mapping[str, Switch]
    linux: Mapping[str, LinuxHost]
    rules: Mapping[str, NodeRules]
    served: frozenset[tuple[Address, int]] = frozenset()
    shortfalls: Mapping[str, tuple[Shortfall, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def node_at(self, address: Address) -> str | None:
        """The node that has this address itself."""
        return next((node.name for node in self.lab.nodes if address in node.addresses), None)

    def pod_at(self, address: Address) -> LabPod | None:
        """The pod with an address of its own."""
        found = (pod for pod in self.lab.pods if not pod.host_network and address in pod.addresses)
        return next(found, None)

    def rule(self, node: str, header: Header) -> Rule | None:
        """The rule at the very frontend that a header aims at; node ports are found on the node's own addresses."""
        if header.port is None:
            return None
        rules, surroundings = self.rules[node]
        family = family_of(header.destination)
        own = header.destination in surroundings.node.addresses
        key = FrontendKey(family, header.destination, header.protocol, header.port)
        return rules.get(key) or (rules.get(key._replace(address=None)) if own else None)


# -- asking ----------------------------------------------------------------------------------------------------------


class FromPod(NamedTuple):
    pod: LabPod


class FromNode(NamedTuple):
    node: str


class FromOutside(NamedTuple):
    address: Address


Client = FromPod | FromNode | FromOutside


@dataclass(frozen=True, slots=True)
class Ask:
    """A connection that somebody tries. via: the node that an external load balancer picks, "" = by hash."""

    client: Client
    header: Header
    via: str = ""


# -- what happens ----------------------------------------------------------------------------------------------------


class Loss(enum.Enum):
    """How a frame ends outside of a virtual switch; the value is what people read."""

    NO_ROUTE = "nobody on the underlay has this address"
    OVERLAY_ON_WIRE = "an overlay address as source on the underlay: no router passes it on, or knows a way back"
    TURNED_BACK = "routing leads it back to the node that it came from"
    NOT_LISTENING = "no process of the node listens there"
    NO_ENDPOINT = "the pod has no attached HNS endpoint: it has no network"
    RULES = "the rules let it go no further"
    NO_HEALTHY_NODE = "the external load balancer has no node to send it to"
    ASYMMETRIC = "the answer came from another address than the client had asked"
    STRAY = "the answer ended somewhere else than at the client"
    CIRCLES = "it goes from node to node in circles"


class Step(NamedTuple):
    """What one place did to a frame. to: it went from there to another place. hop: on Windows. rule: on Linux."""

    place: str
    text: str
    before: Frame
    after: Frame
    to: str = ""
    hop: Hop | None = None
    rule: Rule | None = None


class Arrived(NamedTuple):
    """pod: None = a process of a node, or the outside."""

    place: str
    header: Header
    pod: LabPod | None = None


class Lost(NamedTuple):
    """cause: the switch's or the world's. culprit: HNS object to blame; behaviour: as in `Dropped`."""

    place: str
    cause: Loss | Dropped
    header: Header
    text: str = ""

    def __str__(self) -> str:
        if isinstance(self.cause, Dropped):
            return str(self.cause)
        return f"{self.cause.value}: {self.text}" if self.text else self.cause.value


@dataclass(frozen=True, slots=True)
class Way:
    """From one end to the other."""

    steps: tuple[Step, ...]
    end: Arrived | Lost


@dataclass(frozen=True, slots=True)
class Memory:
    """The connections that the nodes remember."""

    windows: Mapping[str, Flows] = field(default_factory=lambda: MappingProxyType({}))
    linux: Mapping[str, Conntrack] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Journey:
    """A connection: the way there, the way back (None = it never got there), and what the rules say.

    node: whose rules had to decide, "" = nobody's; met: the header as that node met it; wanted: their verdict.
    loss: where it died, None = it works.
    """

    ask: Ask
    there: Way
    back: Way | None
    node: str
    met: Header
    wanted: Verdict | None
    loss: Lost | None
    memory: Memory

    @property
    def works(self) -> bool:
        return self.loss is None

    @property
    def endpoint(self) -> Arrived | None:
        """What answered, or was reached; None if nothing was."""
        return self.there.end if isinstance(self.there.end, Arrived) else None

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.there.steps, *(self.back.steps if self.back else ()))


def travel(world: World, ask: Ask, *, memory: Memory | None = None, choose: Choose | None = None) -> Journey:
    """Try a connection: the first packet there, and the answer back. choose: which endpoint or node is picked."""
    traveller = _Traveller(world, memory or Memory(), choose or spread())
    there = traveller.request(ask)
    node, met, wanted = _judged(world, ask, list(traveller.entered))
    back: Way | None = None
    loss: Lost | None = None
    match there.end:
        case Lost():
            loss = there.end
        case Arrived() as arrived:
            back = traveller.answer(arrived)
            loss = _unanswered(ask, back)
    return Journey(ask, there, back, node, met, wanted, loss, Memory(traveller.windows, traveller.linux))


def _judged(world: World, ask: Ask, entered: list[tuple[str, Header]]) -> tuple[str, Header, Verdict | None]:
    """The first node whose rules are about the packet, as it came there; else the first that it met."""
    judged = [(node, header, decide(*world.rules[node], header.packet)) for node, header in entered]
    about = (one for one in judged if not isinstance(one[2], NotHandled))
    return next(about, judged[0] if judged else ("", ask.header, None))


def _unanswered(ask: Ask, back: Way) -> Lost | None:
    """Why the client does not take the answer for one; None if it does."""
    if isinstance(back.end, Lost):
        return back.end
    arrived = back.end
    if arrived.place != client_name(ask.client):
        return Lost(arrived.place, Loss.STRAY, arrived.header)
    if arrived.header != ask.header.reversed():
        text = f"{arrived.header.source_text} instead of {ask.header.reversed().source_text}"
        return Lost(arrived.place, Loss.ASYMMETRIC, arrived.header, text)
    return None


def client_name(client: Client) -> str:
    """How a client is called in pictures."""
    match client:
        case FromPod(pod):
            return pod.node if pod.host_network else str(pod)
        case FromNode(node):
            return node
        case FromOutside():
            return OUTSIDE
        case _:
            assert_never(client)


Entry = LabPod | Literal["host", "wire"]  # by whose port a frame comes to a node


class _Traveller:
    """One connection on its way through the world; what nodes remember grows with it."""

    def __init__(self, world: World, memory: Memory, choose: Choose) -> None:
        self.windows = dict(memory.windows)
        self.linux = dict(memory.linux)
        self.entered: list[tuple[str, Header]] = []  # nodes on the way, with the header that came there
        self._world = world
        self._choose = choose
        self._steps: list[Step] = []

    def request(self, ask: Ask) -> Way:
        frame = Frame(ask.header)
        match ask.client:
            case FromPod(pod):
                end = self._from_pod(pod, frame)
            case FromNode(node):
                end = self._on_node(node, frame, "host")
            case FromOutside():
                end = self._on_wire(OUTSIDE, frame, ask.via)
            case _:
                assert_never(ask.client)
        return self._way(end)

    def answer(self, arrived: Arrived) -> Way:
        frame = Frame(arrived.header.reversed())
        if arrived.pod is not None and not arrived.pod.host_network:
            return self._way(self._from_pod(arrived.pod, frame))
        if arrived.place == OUTSIDE:
            return self._way(self._on_wire(OUTSIDE, frame))
        node = arrived.pod.node if arrived.pod is not None else arrived.place
        return self._way(self._on_node(node, frame, "host"))

    def _way(self, end: Arrived | Lost) -> Way:
        steps, self._steps = tuple(self._steps), []
        return Way(steps, end)

    # --- places ---

    def _from_pod(self, pod: LabPod, frame: Frame) -> Arrived | Lost:
        if pod.host_network:
            return self._on_node(pod.node, frame, "host")
        self._move(str(pod), pod.node, frame)
        return self._on_node(pod.node, frame, pod)

    def _on_node(self, node: str, frame: Frame, entry: Entry) -> Arrived | Lost:
        """A frame at a node, and what follows from it; over several nodes if it has to be."""
        for _ in range(MAX_NODES):
            found = self._through(node, frame, entry)
            if not isinstance(found, Frame):
                return found
            after = self._next_node(node, found)
            if isinstance(after, Arrived | Lost):
                return after
            node, frame, entry = after, found, "wire"
        return Lost(node, Loss.CIRCLES, frame.header)

    def _on_wire(self, sender: str, frame: Frame, via: str = "") -> Arrived | Lost:
        after = self._next_node(sender, frame, via)
        if isinstance(after, Arrived | Lost):
            return after
        return self._on_node(after, frame, "wire")

    def _through(self, node: str, frame: Frame, entry: Entry) -> Frame | Arrived | Lost:
        """Through one node; a frame = it left by the wire."""
        self.entered.append((node, frame.header))
        if node in self._world.windows:
            return self._through_windows(node, frame, entry)
        return self._through_linux(node, frame)

    def _through_windows(self, node: str, frame: Frame, entry: Entry) -> Frame | Arrived | Lost:
        switch = self._world.windows[node]
        if isinstance(entry, LabPod):
            guid = _endpoint_of(switch, entry)
            if guid is None:
                return Lost(node, Loss.NO_ENDPOINT, frame.header)
            port = pod_port(guid)
        else:
            port = EXTERNAL_PORT if entry == "wire" else HOST_PORT
        passage = forward(switch, frame, port, flows=self.windows.get(node), choose=self._choose)
        self.windows[node] = passage.flows
        self._steps += [Step(node, hop.text, hop.before, hop.after, hop=hop) for hop in passage.hops]
        match passage.end:
            case OnWire():
                return passage.frame
            case Dropped() as dropped:
                return Lost(node, dropped, passage.frame.header)
            case Delivered(reached):
                if reached.kind is PortKind.POD and reached.endpoint is not None:
                    addresses = switch.endpoints[reached.endpoint].addresses
                    pod = next((each for each in map(self._world.pod_at, addresses) if each), None)
                    if pod is not None:
                        return self._at_pod(node, pod, passage.frame)
                return self._at_host(node, passage.frame)
            case _:
                assert_never(passage.end)

    def _through_linux(self, node: str, frame: Frame) -> Frame | Arrived | Lost:
        host = self._world.linux[node]
        flows = self.linux.get(node, Conntrack())
        passage = pass_through(host, frame, flows=flows, choose=self._choose)
        self.linux[node] = passage.flows
        self._steps += [Step(node, one.text, one.before, one.after, rule=one.rule) for one in passage.steps]
        match passage.end:
            case ToWire():
                return passage.frame
            case Refused(text):
                return Lost(node, Loss.RULES, passage.frame.header, text)
            case ToHost():
                return self._at_host(node, passage.frame)
            case ToPod(address):
                pod = self._world.pod_at(address)
                if pod is None:
                    return Lost(node, Loss.NO_ROUTE, passage.frame.header)
                return self._at_pod(node, pod, passage.frame)
            case _:
                assert_never(passage.end)

    def _at_pod(self, node: str, pod: LabPod, frame: Frame) -> Arrived:
        self._move(node, str(pod), frame)
        return Arrived(str(pod), frame.header, pod)

    def _at_host(self, node: str, frame: Frame) -> Arrived | Lost:
        """A process of the node: one that slices name, or one that awaits this answer."""
        header = frame.header
        pods = [pod for pod in self._world.lab.pods if pod.host_network and pod.node == node]
        if (header.destination, header.port) in self._world.served:
            return Arrived(str(pods[0]) if pods else node, header, pods[0] if pods else None)
        if header.port is None or header.port >= FIRST_PORT:
            return Arrived(node, header)
        return Lost(node, Loss.NOT_LISTENING, header, header.target_text)

    def _next_node(self, sender: str, frame: Frame, via: str = "") -> str | Arrived | Lost:
        """Where the underlay leads a frame."""
        lab, header = self._world.lab, frame.header
        target = frame.outer.destination if frame.outer is not None else header.destination
        overlay = lab.network is PodNetwork.OVERLAY
        if overlay and frame.outer is None and any(header.source in prefix for prefix in lab.pod_cidrs):
            self._move(sender, UNDERLAY, frame)
            return Lost(UNDERLAY, Loss.OVERLAY_ON_WIRE, header, str(header.source))
        node = self._world.node_at(target)
        if node is None and not overlay:
            node = next((each.name for each in lab.nodes if any(target in prefix for prefix in each.pod_cidrs)), None)
        if node is not None:
            self._move(sender, node, frame)
            return node if node != sender else Lost(UNDERLAY, Loss.TURNED_BACK, header, str(target))
        if frame.outer is not None:
            self._move(sender, UNDERLAY, frame)
            return Lost(UNDERLAY, Loss.NO_ROUTE, header, str(target))
        if self._is_balanced(target):
            return self._balance(sender, frame, via)
        if self._is_cluster_address(target):
            self._move(sender, UNDERLAY, frame)
            return Lost(UNDERLAY, Loss.NO_ROUTE, header, str(target))
        self._move(sender, OUTSIDE, frame)
        return Arrived(OUTSIDE, header)

    def _is_cluster_address(self, address: Address) -> bool:
        lab = self._world.lab
        return any(address in prefix for prefix in (*lab.pod_cidrs, *lab.service_cidrs))

    def _is_balanced(self, address: Address) -> bool:
        return address in self._world.lab.vips

    def _balance(self, sender: str, frame: Frame, via: str) -> str | Lost:
        """The external load balancer passes packets on unchanged, to a node that says it can serve them."""
        header = frame.header
        self._move(sender, BALANCER, frame)
        healthy = [name for name in sorted(self._world.rules) if self._serves_outside(name, header)]
        if via:
            healthy = [via]
        if not healthy:
            return Lost(BALANCER, Loss.NO_HEALTHY_NODE, header)
        known = [self._world.lab.node(name) for name in healthy]
        addresses = tuple(node.addresses[0] for node in known if node is not None)
        chosen = healthy[self._choose(("node", *header), addresses)]
        self._move(BALANCER, chosen, frame, f"one of {len(healthy)} nodes" if len(healthy) > 1 else "")
        return chosen

    def _serves_outside(self, node: str, header: Header) -> bool:
        """What its health check node port answers (policy Local), or nobody asks (Cluster)."""
        rule = self._world.rule(node, header)
        return rule is not None and isinstance(rule.outside, Forward)

    def _move(self, place: str, to: str, frame: Frame, text: str = "") -> None:
        self._steps.append(Step(place, text, frame, frame, to=to))


def _endpoint_of(switch: Switch, pod: LabPod) -> Guid | None:
    own = set(pod.addresses)
    held = (one.guid for one in switch.endpoints.values() if not own.isdisjoint(one.addresses) and switch.has_port(one))
    return next(held, None)
