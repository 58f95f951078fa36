"""The values of the packet path: headers, frames, ports, flows, hops, how a frame ends, and what is known of each step.

The names of ports, layers and rules are those of Microsoft's own scripts. Their order is published nowhere, so every
step names a row of `BEHAVIOURS`, and the row says how well it is known. Evidence: hcn.md section 5.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from hansa.hns.api import Guid
from hansa.hns.emulator.builds import Grade
from hansa.net import Address, Packet, Protocol, address_port


class Header(NamedTuple):
    """Who talks to whom. Ports are None for ICMP."""

    source: Address
    source_port: int | None
    destination: Address
    port: int | None
    protocol: Protocol

    @property
    def packet(self) -> Packet:
        """What rules see of it, if it is the first one of a connection."""
        return Packet(self.source, self.destination, self.protocol, self.port)

    def reversed(self) -> Header:
        """The header of a reply."""
        return Header(self.destination, self.port, self.source, self.source_port, self.protocol)

    @property
    def source_text(self) -> str:
        return _at(self.source, self.source_port)

    @property
    def target_text(self) -> str:
        return f"{_at(self.destination, self.port)}/{self.protocol}"

    def __str__(self) -> str:
        return f"{self.source_text} -> {self.target_text}"


def _at(address: Address, port: int | None) -> str:
    return str(address) if port is None else address_port(address, port)


class Outer(NamedTuple):
    """VXLAN around a frame: from node to node, by provider addresses."""

    source: Address
    destination: Address
    vni: int

    def __str__(self) -> str:
        return f"VXLAN {self.vni} {self.source} -> {self.destination}"


class Frame(NamedTuple):
    """What is on a port or a wire. outer: None = not encapsulated."""

    header: Header
    outer: Outer | None = None

    def __str__(self) -> str:
        return str(self.header) if self.outer is None else f"{self.outer} [{self.header}]"


class PortKind(enum.Enum):
    POD = "pod port"
    HOST = "host port"
    EXTERNAL = "external port"


class Port(NamedTuple):
    """A port of the virtual switch. endpoint: of a pod port, whose name is the endpoint's id."""

    kind: PortKind
    endpoint: Guid | None = None

    def __str__(self) -> str:
        return self.kind.value if self.endpoint is None else f"{self.kind.value} {self.endpoint[:8].lower()}"


HOST_PORT = Port(PortKind.HOST)
EXTERNAL_PORT = Port(PortKind.EXTERNAL)


def pod_port(endpoint: Guid) -> Port:
    return Port(PortKind.POD, endpoint)


class Direction(enum.Enum):
    """As the port sees it: OUT of the adapter into the switch, IN from the switch to the adapter."""

    OUT = "OUT"
    IN = "IN"


class Flow(NamedTuple):
    """What a layer of a port remembers of a connection: how its first packet was changed.

    A packet in the same direction is changed likewise, a reply in the other direction is changed back. balancer: whose
    rule it was, None = no load balancer's. backend: the endpoint that was picked. sticky: it outlives its rule.
    """

    port: Port
    layer: str
    direction: Direction
    before: Header
    after: Header
    balancer: Guid | None = None
    backend: Guid | None = None
    sticky: bool = False


_Key = tuple[Port, str, Direction, Header]


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows of one node's switch; a value: adding makes another one."""

    _forth: Mapping[_Key, Flow] = field(default_factory=lambda: MappingProxyType({}))
    _back: Mapping[_Key, Flow] = field(default_factory=lambda: MappingProxyType({}))

    def with_flows(self, new: tuple[Flow, ...]) -> Flows:
        if not new:
            return self
        forth = {(each.port, each.layer, each.direction, each.before): each for each in new}
        back = {(each.port, each.layer, each.direction, each.after.reversed()): each for each in new}
        return Flows({**self._forth, **forth}, {**self._back, **back})

    def same_way(self, port: Port, layer: str, direction: Direction, header: Header) -> Flow | None:
        """The flow whose first packet came this way with this header."""
        return self._forth.get((port, layer, direction, header))

    def reply_to(self, port: Port, layer: str, direction: Direction, header: Header) -> Flow | None:
        """The flow that left in `direction` and to whose first packet this header replies."""
        return self._back.get((port, layer, direction, header))

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._forth.values())

    def __len__(self) -> int:
        return len(self._forth)


class Behaviour(NamedTuple):
    """One thing that the switch does, and how well that is known."""

    meaning: str
    grade: Grade
    evidence: str


class Hop(NamedTuple):
    """One step of a frame at a port. behaviour: key of `BEHAVIOURS`. rule: name of the VFP rule as scripts show it.

    balancer: the load balancer whose rule it was. candidates: what it chose from, () = nothing was chosen here.
    """

    port: Port
    direction: Direction
    layer: str
    text: str
    before: Frame
    after: Frame
    behaviour: str
    rule: str = ""
    balancer: Guid | None = None
    candidates: tuple[Address, ...] = ()

    @property
    def grade(self) -> Grade:
        return BEHAVIOURS[self.behaviour].grade


class Cause(enum.Enum):
    """Why the switch lets a frame go no further; the value is what people read."""

    NO_NETWORK = "HNS holds no network that this packet could use"
    NO_PORT = "the endpoint is attached to nothing: it has no switch port"
    ACL = "an ACL policy blocks it"
    HAIRPIN = "a pod was sent to itself, and its source was not rewritten: it gets its own address back and drops it"
    OWN_NODE = "a load balancer with DSR sent it to its own node's address, which HNS does not manage"
    NO_BACKEND = "the load balancer has no endpoint that HNS still holds"
    NO_PROVIDER = "no provider address is known for this destination"
    OTHER_NODE = "this node holds no endpoint with this address: the sender's remote endpoint or route is stale"
    OTHER_VNI = "it came with a VNI that this network does not have"
    NOT_ENCAPSULATED = "an address of the overlay came without encapsulation"
    NO_LOAD_BALANCER = "no load balancer of this node serves it, and the address is none of the node's own"
    NO_FLOW = "it came back to the source VIP, but belongs to no connection of this node"
    LOOP = "it goes round in circles within the switch"


class Delivered(NamedTuple):
    """It reached the stack behind a port: of a pod, or of the host."""

    port: Port


class OnWire(NamedTuple):
    """It left by the external port."""


class Dropped(NamedTuple):
    """It ends here. culprit: the HNS object to blame, None = none. behaviour: key of `BEHAVIOURS`, "" = none."""

    cause: Cause
    text: str = ""
    culprit: Guid | None = None
    behaviour: str = ""

    def __str__(self) -> str:
        return f"{self.cause.value}: {self.text}" if self.text else self.cause.value


End = Delivered | OnWire | Dropped


class Passage(NamedTuple):
    """A frame's way through one node's switch."""

    frame: Frame
    end: End
    hops: tuple[Hop, ...]
    flows: Flows


# Picks one of the endpoints, by its place in the second argument; equal keys must give equal places.
Choose = Callable[[tuple[object, ...], tuple[Address, ...]], int]


BEHAVIOURS: dict[str, Behaviour] = {
    "VP-01": Behaviour(
        "a DSR load balancer works at the client pod's own port: destination rewritten, source kept",
        Grade.DOCUMENTED,
        "Microsoft's DSR blog; kubernetes.io Windows networking; hcn.md 5.4, W1",
    ),
    "VP-02": Behaviour(
        "replies of a DSR connection are changed back at the client pod's port", Grade.DOCUMENTED, "hcn.md 5.4, W1"
    ),
    "VP-03": Behaviour(
        "without DSR both ways lead through the host port: destination and source are rewritten there",
        Grade.DOCUMENTED,
        "Microsoft's DSR blog; hcn.md 5.4, W2, W3",
    ),
    "VP-04": Behaviour(
        "what comes for the host and meets a load balancer is turned round, not given to the host",
        Grade.SEEN,
        "an HNS developer in kubernetes/kubernetes#75561; W3",
    ),
    "VP-05": Behaviour(
        "a DSR load balancer with endpoints on this node only picks one at the host port and changes no address",
        Grade.INFERRED,
        "rule names in microsoft/SDN; W4",
    ),
    "VP-06": Behaviour(
        "the endpoint's own port rewrites a VIP to the pod, and the replies back",
        Grade.SEEN,
        "rules NAT_ and ALLOW_NAT_ in microsoft/SDN; W4",
    ),
    "VP-07": Behaviour(
        "a DSR load balancer with endpoints elsewhere rewrites the destination at the host port, not the source",
        Grade.INFERRED,
        "rules LB_HOST_ in microsoft/SDN; hcn.md 5.2",
    ),
    "VP-08": Behaviour(
        "preserve-destination: the packet reaches the pod with the VIP as destination",
        Grade.DOCUMENTED,
        "kubernetes.io Windows networking; W6",
    ),
    "VP-09": Behaviour(
        "the source becomes the load balancer's source VIP", Grade.DOCUMENTED, "hcn.md 5.6; kube-proxy source"
    ),
    "VP-10": Behaviour("without source VIP it is the node's address", Grade.SEEN, "hcn.md 5.6; kubernetes PR 78874"),
    "VP-11": Behaviour(
        "without source VIP it is the VIP itself: replies loop", Grade.SEEN, "kubernetes/community#8890"
    ),
    "VP-12": Behaviour(
        "OutBoundNAT: the source becomes the node's address, but not towards the exceptions",
        Grade.DOCUMENTED,
        "HCN schema; win-bridge and win-overlay; hcn.md 2.5",
    ),
    "VP-13": Behaviour(
        "OutBoundNAT with destinations (loopback DSR): a pod that reaches itself gets another source",
        Grade.SEEN,
        "win-bridge, win-overlay option loopbackDSR; hcn.md 5.7",
    ),
    "VP-14": Behaviour("ICMP is neither balanced nor translated", Grade.DOCUMENTED, "kubernetes.io; W10"),
    "VP-15": Behaviour(
        "ACL policies: the smaller number first, Block before Allow, replies pass", Grade.INFERRED, "hcn.md 2.6"
    ),
    "VP-16": Behaviour("without an ACL everything passes", Grade.DOCUMENTED, "hcn.md 2.6"),
    "VP-17": Behaviour(
        "egress ACLs see the endpoint that a load balancer has picked", Grade.INFERRED, "hcn.md 5.3; a switch of builds"
    ),
    "VP-18": Behaviour(
        "an address on this switch is reached by its port", Grade.DOCUMENTED, "Windows container networking"
    ),
    "VP-19": Behaviour(
        "overlay: a remote endpoint's provider address is where its packets are sent", Grade.DOCUMENTED, "hcn.md 3"
    ),
    "VP-20": Behaviour(
        "overlay: a RemoteSubnetRoute says on which node a pod subnet is", Grade.DOCUMENTED, "hcn.md 2.2, 3"
    ),
    "VP-21": Behaviour(
        "a remote endpoint hides a pod of this node that has the same address",
        Grade.INFERRED,
        "hcn.md 5.10 B1; kubernetes/kubernetes#74766",
    ),
    "VP-22": Behaviour("l2bridge: a pod's MAC becomes the host's at the external port", Grade.DOCUMENTED, "hcn.md 3"),
    "VP-23": Behaviour(
        "what no rule is about goes where routing sends it: no reject, no ICMP answer", Grade.INFERRED, "W5, W9"
    ),
    "VP-24": Behaviour(
        "a process of the host meets load balancers only by node ports (LocalRoutedVip)",
        Grade.DOCUMENTED,
        "Microsoft: no ClusterIP from the host; W7, W8",
    ),
    "VP-25": Behaviour(
        "an established connection keeps its endpoint", Grade.INFERRED, "flow state of VFP (NSDI 2017); hcn.md 5.8"
    ),
    "VP-26": Behaviour(
        "client affinity: the endpoint follows from the client's address alone",
        Grade.DOCUMENTED,
        "DistributionType in the HCN schema; hcn.md 5.8",
    ),
    "VP-27": Behaviour("which endpoint is picked: a stable hash of ours", Grade.INFERRED, "hcn.md 5.8: not published"),
    "VP-28": Behaviour("VXLAN is unpacked if provider address and VNI are this node's", Grade.DOCUMENTED, "hcn.md 3"),
    "VP-29": Behaviour(
        "overlay: the ClusterIP's own endpoint, at this node, leads its packets to the host",
        Grade.SEEN,
        "kube-proxy source; windows-proxy D.4",
    ),
    "VP-30": Behaviour(
        "a pod that a load balancer sends back to itself without another source gets nothing",
        Grade.SEEN,
        "projectcalico/calico#5522; AKS; hcn.md 5.4",
    ),
    "VP-32": Behaviour(
        "nobody reaches the node's own address through a load balancer of that node with DSR",
        Grade.SEEN,
        "kubernetes/kubernetes#126795; W12",
    ),
    "VP-33": Behaviour(
        "without DSR an endpoint that is this node itself is reached", Grade.INFERRED, "reports name DSR only; W12"
    ),
    "VP-31": Behaviour(
        "what is neither on this switch nor on the overlay leaves by the external port",
        Grade.DOCUMENTED,
        "Windows container networking: external virtual switch",
    ),
}
"""What the switch is taken to do. `hansa trace` tells the grade of an inferred row that decided."""
