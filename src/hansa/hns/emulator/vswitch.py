"""The packet path of one node: what its virtual switch does with a frame, by what HNS holds.

What comes in: a `Switch` (the emulator's objects as values), the connections that it remembers, a frame and the port
at which it arrives. What goes out: a `Passage`: every step, how it ended, the connections then.
Who calls it: the lab, `hansa trace`, tests.
What it must never do: look at Kubernetes, at what hansa wanted, at a clock.
Evidence: hcn.md section 5; each step names its row of `BEHAVIOURS`, and that has a grade.

A pod's packet passes LB_DSR, ACL, SLB_NAT and, on overlay, VNET on its way OUT of the pod, and the same layers in
reverse on its way IN. What is for the host meets hairpin and load balancers at the host's port first.

>>> from hansa.hns.emulator import l2bridge_node
>>> from hansa.hns.emulator.vswitch_model import Frame, Header, pod_port
>>> from hansa.net import Protocol, parse_address
>>> node = l2bridge_node()
>>> one, two = (node.add_pod(f"10.40.3.{number}") for number in (11, 12))
>>> header = Header(parse_address("10.40.3.11"), 49152, parse_address("10.40.3.12"), 8080, Protocol.TCP)
>>> passage = forward(switch_of(node), Frame(header), pod_port(one))
>>> passage.end == Delivered(pod_port(two))
True
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from hansa.hns.api import Guid
from hansa.hns.emulator.builds import Build
from hansa.hns.emulator.service import Emulator
from hansa.hns.emulator.vswitch_acl import blocks, deciding_acl, denies_unmatched
from hansa.hns.emulator.vswitch_model import (
    EXTERNAL_PORT,
    HOST_PORT,
    Cause,
    Choose,
    Delivered,
    Direction,
    Dropped,
    End,
    Flow,
    Flows,
    Frame,
    Header,
    Hop,
    OnWire,
    Outer,
    Passage,
    Port,
    PortKind,
    pod_port,
)
from hansa.hns.schema import (
    Distribution,
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    LbFlags,
    MappingFlags,
    NetworkType,
    OutBoundNat,
    PortMapping,
    RemoteSubnetRoute,
    Vsid,
)
from hansa.net import Address, parse_address, parse_prefix

IN, OUT = Direction.IN, Direction.OUT
LB_DSR, ACL, SLB_NAT, VNET = "LB_DSR", "VFP ACL", "SLB_NAT_LAYER", "VNET_ENCAP_LAYER"
LB, SLB_LB, HAIRPIN, MAC_REWRITE, DECAP, SWITCH = "LB", "SLB_LB_LAYER", "SLB_HAIRPIN_LAYER", "MAC rewrite", "VNET", "-"
SERVICE_NETWORKS = (NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.OVERLAY)
_ATTACHED = (EndpointState.ATTACHED, EndpointState.ATTACHED_SHARING)
MAX_TURNS = 8  # through the switch; the longest way that ends, a hairpin through two translations, takes four
NAT_PORTS = (49152, 64)  # where a load balancer without a block of its own, and OutBoundNAT, take their ports


@dataclass(frozen=True, slots=True)
class Switch:
    """What HNS holds, as values. port_blocks: first of the ports that a load balancer without DSR rewrites to."""

    build: Build
    host_addresses: tuple[Address, ...]
    networks: tuple[HnsNetwork, ...]
    endpoints: Mapping[Guid, HnsEndpoint]
    load_balancers: tuple[HnsLoadBalancer, ...]
    port_blocks: Mapping[Guid, int] = field(default_factory=dict)

    @property
    def network(self) -> HnsNetwork | None:
        """The one for pods and services."""
        return next((each for each in self.networks if each.type in SERVICE_NETWORKS), None)

    def has_port(self, endpoint: HnsEndpoint) -> bool:
        """Whether something is attached, so that the endpoint is more than a name.

        Where HNS tells neither state nor namespace, all local ones count but those that hold a source VIP.
        """
        if endpoint.remote:
            return False
        if endpoint.state == EndpointState.UNINITIALIZED and endpoint.namespace is None:
            held = {each.source_vip for each in self.load_balancers}
            return held.isdisjoint(endpoint.addresses)
        return endpoint.state in _ATTACHED or endpoint.namespace is not None

    def attached_at(self, address: Address) -> HnsEndpoint | None:
        """The endpoint of this node with that address and a port."""
        held = (each for each in self.endpoints.values() if address in each.addresses and self.has_port(each))
        return next(held, None)


def switch_of(emulator: Emulator) -> Switch:
    """The switch under an emulated HNS, as of now."""
    balancers = emulator.load_balancers()
    blocks_held = {each.guid: emulator.port_block(each.guid) for each in balancers}
    return Switch(
        emulator.build,
        emulator.host_addresses,
        emulator.networks(),
        {each.guid: each for each in emulator.endpoints()},
        balancers,
        {guid: first for guid, first in blocks_held.items() if first is not None},
    )


def spread(seed: int = 0) -> Choose:
    """The usual choice: a hash that is the same in every run."""

    def choose(key: tuple[object, ...], candidates: tuple[Address, ...]) -> int:
        return zlib.crc32(f"{seed}/{'/'.join(map(str, key))}".encode()) % len(candidates)

    return choose


def forward(
    switch: Switch, frame: Frame, at: Port, *, flows: Flows | None = None, choose: Choose | None = None
) -> Passage:
    """Send a frame into the switch: from a pod or the host at its port, from the wire at the external port."""
    network = switch.network
    if network is None:
        return Passage(frame, Dropped(Cause.NO_NETWORK), (), flows or Flows())
    walk = _Walk(switch, network, frame, flows or Flows(), choose or spread())
    end = walk.enter(at)
    return Passage(walk.frame, end, tuple(walk.hops), walk.flows)


class _Walk:
    """One frame on its way; methods named after the place that it has reached."""

    def __init__(self, switch: Switch, network: HnsNetwork, frame: Frame, flows: Flows, choose: Choose) -> None:
        self.frame = frame
        self.flows = flows
        self.hops: list[Hop] = []
        self._switch = switch
        self._network = network
        self._overlay = network.type is NetworkType.OVERLAY
        self._choose = choose
        self._turns = 0

    # --- where it comes in ---

    def enter(self, at: Port) -> End:
        match at.kind:
            case PortKind.POD:
                endpoint = self._switch.endpoints.get(at.endpoint) if at.endpoint else None
                if endpoint is None or not self._switch.has_port(endpoint):
                    return Dropped(Cause.NO_PORT)
                return self._out_of_pod(endpoint)
            case PortKind.HOST:
                return self._out_of_host()
            case PortKind.EXTERNAL:
                return self._from_wire()

    def _out_of_pod(self, endpoint: HnsEndpoint) -> End:
        port = pod_port(endpoint.guid)
        picked: HnsEndpoint | None = None
        seen_by_acl = self._header  # as the pod sent it
        flow = self._known(port, LB_DSR, OUT)
        if flow is not None:
            picked = self._switch.endpoints.get(flow.backend) if flow.backend else None
            self._translate(port, OUT, LB_DSR, flow.after, "known connection: as before", "VP-25", flow)
        elif not self._is_reply(port, SLB_NAT, IN):
            balancer = self._balancer(dsr=True)
            if balancer is not None:
                backend = self._pick(balancer, port, LB_DSR)
                if isinstance(backend, Dropped):
                    return backend
                picked = backend
                self._to_backend(port, LB_DSR, balancer, backend, "VP-01")
        if not self._switch.build.acl_sees_vip:
            seen_by_acl = self._header
        denied = self._acl(endpoint, seen_by_acl, OUT)
        if denied is not None:
            return denied
        translated = self._out_slb_nat(endpoint, port)
        if picked is not None and picked.guid == endpoint.guid and not translated:
            return Dropped(Cause.HAIRPIN, str(self._header.source), endpoint.guid, "VP-30")
        return self._to(picked, origin=endpoint)

    def _out_slb_nat(self, endpoint: HnsEndpoint, port: Port) -> bool:
        """Replies are changed back; what goes out may get the node's address. Whether the source is another now."""
        header = self._header
        reply = self.flows.reply_to(port, SLB_NAT, IN, header)
        if reply is not None:
            if reply.before != reply.after:
                restored = reply.before.reversed()
                text = f"reply: the source becomes {restored.source} again"
                self._translate(port, OUT, SLB_NAT, restored, text, "VP-06", reply, rule="ALLOW_NAT")
            return False
        known = self.flows.same_way(port, SLB_NAT, OUT, header)
        if known is not None:
            self._translate(port, OUT, SLB_NAT, known.after, "known connection: as before", "VP-25", known)
            return known.before != known.after
        policy = _outbound_nat(endpoint, header.destination)
        if policy is None:
            return False
        if not header.protocol.has_ports:
            self._hop(port, OUT, SLB_NAT, "OutBoundNAT passes ICMP by", "VP-14")
            return False
        source = policy.virtual_ip or self._host_address(header.destination)
        if source is None:
            return False
        after = header._replace(source=source, source_port=_nat_port(header, NAT_PORTS[0]))
        behaviour = "VP-13" if policy.destinations else "VP-12"
        self._remember(Flow(port, SLB_NAT, OUT, header, after))
        rule = f"SNAT_{header.protocol.name}_OUTBOUNDNAT_{header.port}_{source}"
        self._translate(port, OUT, SLB_NAT, after, f"OutBoundNAT: the source becomes {source}", behaviour, rule=rule)
        return True

    def _out_of_host(self) -> End:
        """A process of the host sends: only node ports with LocalRoutedVip meet a load balancer."""
        flow = self._known(HOST_PORT, LB, OUT)
        if flow is not None:
            return self._along_host_flow(flow)
        balancer = self._balancer(routed_only=True)
        if balancer is not None:
            return self._balance_at_host(balancer)
        other = self._balancer()
        if other is not None:
            text = "a process of the host asks: its packets meet no load balancer but those of node ports"
            self._hop(HOST_PORT, OUT, LB, text, "VP-24", balancer=other)
            return self._leave_by_default()
        return self._to(None, origin=None)

    def _from_wire(self) -> End:
        outer = self.frame.outer
        if outer is not None:
            return self._unpack(outer)
        destination = self._header.destination
        pod = self._switch.attached_at(destination)
        if self._overlay and pod is not None:
            return Dropped(Cause.NOT_ENCAPSULATED, str(destination), pod.guid)
        if pod is not None:
            self._hop(EXTERNAL_PORT, IN, MAC_REWRITE, f"for {destination}, a pod of this node", "VP-22")
            return self._into_pod(pod)
        self._hop(EXTERNAL_PORT, IN, SWITCH, f"for {destination}: the host's port", "VP-04")
        return self._into_host()

    def _unpack(self, outer: Outer) -> End:
        if not self._overlay or outer.destination not in self._switch.host_addresses:
            return Dropped(Cause.OTHER_NODE, str(outer))
        if outer.vni not in self._vnis():
            return Dropped(Cause.OTHER_VNI, f"{outer.vni} instead of {sorted(self._vnis())}")
        inner = Frame(self._header)
        self._hop(EXTERNAL_PORT, IN, DECAP, f"unpacked: came from node {outer.source}", "VP-28", after=inner)
        destination = self._header.destination
        pod = self._switch.attached_at(destination)
        if pod is not None:
            return self._into_pod(pod)
        if destination in self._switch.host_addresses or self._unattached(destination) is not None:
            return self._into_host()
        return Dropped(Cause.OTHER_NODE, str(destination))

    # --- from port to port ---

    def _to(self, picked: HnsEndpoint | None, origin: HnsEndpoint | None) -> End:
        """The switch's own decision. picked: by a load balancer; it counts more than the address."""
        self._turns += 1
        if self._turns > MAX_TURNS:
            return Dropped(Cause.LOOP, str(self._header))
        destination = self._header.destination
        if picked is not None:
            return self._to_endpoint(picked, self._port_of(origin))
        if destination in self._switch.host_addresses:
            return self._for_host_address()
        hidden = self._switch.attached_at(destination)
        remote = self._remote_at(destination)
        if remote is not None:
            if hidden is not None:
                self._hop(self._port_of(origin), OUT, VNET, f"a remote endpoint hides {destination}", "VP-21")
            return self._to_remote(remote)
        if hidden is not None:
            self._hop(self._port_of(origin), OUT, SWITCH, f"{destination} is on this switch", "VP-18")
            return self._into_pod(hidden)
        if self._unattached(destination) is not None or self._balancer() is not None:
            return self._into_host()
        if self._overlay:
            route = self._subnet_route(destination)
            if route is not None:
                return self._encapsulate(route.provider_address, f"{route.prefix} is on node", "VP-20", route)
        return self._leave_by_default()

    def _to_endpoint(self, endpoint: HnsEndpoint, port: Port) -> End:
        """Rules name endpoints by their addresses, so a remote endpoint with the same one hides a pod."""
        if endpoint.remote and self._address_of(endpoint) in self._switch.host_addresses:
            if port.kind is PortKind.POD:
                return Dropped(Cause.OWN_NODE, str(self._header.destination), endpoint.guid, "VP-32")
            self._hop(port, IN, SWITCH, f"{self._address_of(endpoint)} is this node", "VP-33")
            return Delivered(HOST_PORT)
        if endpoint.remote:
            return self._to_remote(endpoint)
        twin = self._remote_at(self._address_of(endpoint))
        if twin is not None:
            self._hop(port, OUT, VNET, f"a remote endpoint hides {self._address_of(endpoint)}", "VP-21")
            return self._to_remote(twin)
        if not self._switch.has_port(endpoint):
            return Dropped(Cause.NO_PORT, str(self._header.destination), endpoint.guid)
        return self._into_pod(endpoint)

    def _to_remote(self, endpoint: HnsEndpoint) -> End:
        """A stand-in: on overlay it says where to, elsewhere routing does."""
        if not self._overlay:
            return self._leave(f"{self._header.destination} is elsewhere: routing knows where", "VP-22")
        provider = endpoint.provider_address
        if provider is None:
            return Dropped(Cause.NO_PROVIDER, str(self._header.destination), endpoint.guid)
        if provider in self._switch.host_addresses:
            if self._header.destination in endpoint.addresses and self._is_frontend(self._header.destination):
                text = f"{self._header.destination} has an endpoint at this node: to the host's port"
                self._hop(HOST_PORT, IN, VNET, text, "VP-29")
                return self._into_host()
            return self._leave(f"{self._header.destination} is outside the overlay", "VP-19")
        if provider == self._header.destination:
            return self._leave(f"{provider} is a node: not encapsulated", "VP-19")
        return self._encapsulate(provider, "the remote endpoint says node", "VP-19")

    def _encapsulate(self, provider: Address, why: str, behaviour: str, route: RemoteSubnetRoute | None = None) -> End:
        own = self._host_address(provider)
        if own is None:
            return Dropped(Cause.NO_PROVIDER, f"this node has no address of {provider}'s family")
        vni = route.isolation_id if route is not None else min(self._vnis(), default=0)
        packed = Frame(self._header, Outer(own, provider, vni))
        self._hop(EXTERNAL_PORT, OUT, VNET, f"encapsulated: {why} {provider}", behaviour, after=packed)
        return OnWire()

    def _leave_by_default(self) -> End:
        return self._leave("leaves by the default route", "VP-31")

    def _leave(self, text: str, behaviour: str) -> End:
        self._hop(EXTERNAL_PORT, OUT, SWITCH if self._overlay else MAC_REWRITE, text, behaviour)
        return OnWire()

    def _for_host_address(self) -> End:
        """The host's own address: perhaps a reply to a pod's connection that had got this address by OutBoundNAT."""
        pod = self._owner_of_nat(self._header)
        if pod is not None:
            return self._into_pod(pod)
        return self._into_host()

    def _owner_of_nat(self, header: Header) -> HnsEndpoint | None:
        for guid, endpoint in self._switch.endpoints.items():
            reply = self.flows.reply_to(pod_port(guid), SLB_NAT, OUT, header)
            if reply is not None and self._switch.has_port(endpoint):
                return endpoint
        return None

    # --- where it arrives ---

    def _into_pod(self, endpoint: HnsEndpoint) -> End:
        port = pod_port(endpoint.guid)
        header = self._header
        reply = self.flows.reply_to(port, SLB_NAT, OUT, header)
        if reply is not None:
            restored = reply.before.reversed()
            text = f"reply: the destination becomes {restored.destination} again"
            self._translate(port, IN, SLB_NAT, restored, text, "VP-12")
        else:
            self._in_slb_nat(endpoint, port)
        denied = self._acl(endpoint, self._header, IN)
        if denied is not None:
            return denied
        undone = self.flows.reply_to(port, LB_DSR, OUT, self._header)
        if undone is not None and undone.before != undone.after:
            restored = undone.before.reversed()
            text = f"reply: the source becomes {restored.source_text} again"
            self._translate(port, IN, LB_DSR, restored, text, "VP-02", undone)
        return Delivered(port)

    def _in_slb_nat(self, endpoint: HnsEndpoint, port: Port) -> None:
        """A VIP that came through untouched becomes this pod; whatever comes in may be answered."""
        header = self._header
        known = self.flows.same_way(port, SLB_NAT, IN, header)
        if known is not None:
            self._translate(port, IN, SLB_NAT, known.after, "known connection: as before", "VP-25", known)
            return
        balancer = None if header.destination in endpoint.addresses else self._balancer(dsr=True, backend=endpoint)
        after, mapping = header, None if balancer is None else self._mapping(balancer)
        if balancer is not None and mapping is not None:
            if mapping.flags & MappingFlags.PRESERVE_DIP:
                text = f"the destination stays {header.destination}: the pod must own it"
                self._hop(port, IN, SLB_NAT, text, "VP-08", balancer=balancer)
            else:
                own = next(one for one in endpoint.addresses if one.version == header.destination.version)
                after = header._replace(destination=own, port=mapping.internal_port)
        if self.flows.reply_to(port, LB_DSR, OUT, header) is None:  # else it is itself a reply
            self._remember(Flow(port, SLB_NAT, IN, header, after, balancer.guid if balancer else None, endpoint.guid))
        if after != header and balancer is not None:
            text = f"the VIP becomes {after.target_text}"
            self._translate(port, IN, SLB_NAT, after, text, "VP-06", rule=self._rule("NAT", balancer), by=balancer)

    def _into_host(self) -> End:
        self._turns += 1
        if self._turns > MAX_TURNS:
            return Dropped(Cause.LOOP, str(self._header))
        header = self._header
        if header.destination in self._switch.host_addresses:
            pod = self._owner_of_nat(header)
            if pod is not None:
                return self._into_pod(pod)
        undone = self.flows.reply_to(HOST_PORT, LB, OUT, header)
        if undone is not None:
            restored = undone.before.reversed()
            text = f"reply: {header.source_text} becomes {restored.source_text} again, for {restored.target_text}"
            self._translate(HOST_PORT, IN, LB, restored, text, "VP-03", undone)
            return self._to(None, origin=None)
        known = self._known(HOST_PORT, LB, OUT)
        if known is not None:
            return self._along_host_flow(known)
        balancer = self._balancer()
        if balancer is not None and self._is_turned_round(balancer):
            rule = self._rule("HairPin", balancer) if balancer.flags & LbFlags.DSR else ""
            text = "a load balancer's: turned round"
            self._hop(HOST_PORT, IN, HAIRPIN, text, "VP-04", balancer=balancer, rule=rule)
            return self._balance_at_host(balancer)
        if balancer is not None and any(
            self._address_of(one) in self._switch.host_addresses for one in self._backends(balancer)
        ):
            return Dropped(Cause.OWN_NODE, header.target_text, balancer.guid, "VP-32")
        if header.destination in self._switch.host_addresses:
            return Delivered(HOST_PORT)
        held = self._unattached(header.destination)
        if held is not None:
            return Dropped(Cause.NO_FLOW, str(header), held.guid)
        self._hop(HOST_PORT, IN, SWITCH, "no load balancer is about it", "VP-23")
        return Dropped(Cause.NO_LOAD_BALANCER, header.target_text, behaviour="VP-23")

    def _is_turned_round(self, balancer: HnsLoadBalancer) -> bool:
        """A HairPin rule is there if an endpoint is on this node; without DSR the load balancer has its own."""
        local = any(not each.remote for each in self._backends(balancer))
        return local or not balancer.flags & LbFlags.DSR

    def _along_host_flow(self, flow: Flow) -> End:
        self._translate(HOST_PORT, OUT, LB, flow.after, "known connection: as before", "VP-25", flow)
        backend = self._switch.endpoints.get(flow.backend) if flow.backend else None
        return self._to(backend, origin=None)

    def _balance_at_host(self, balancer: HnsLoadBalancer) -> End:
        dsr = bool(balancer.flags & LbFlags.DSR)
        only_local = all(not each.remote for each in self._backends(balancer))
        layer = SLB_LB if dsr and only_local else LB
        backend = self._pick(balancer, HOST_PORT, layer)
        if isinstance(backend, Dropped):
            return backend
        if dsr and self._address_of(backend) in self._switch.host_addresses:
            return Dropped(Cause.OWN_NODE, str(self._address_of(backend)), balancer.guid, "VP-32")
        header = self._header
        mapping = self._mapping(balancer)
        assert mapping is not None, "the load balancer was found by its mapping"
        if dsr and (only_local or not backend.remote):
            rule = self._rule("SLB_LB", balancer)
            text = f"goes to {self._address_of(backend)}, addresses untouched"
            self._hop(HOST_PORT, OUT, layer, text, "VP-05", balancer=balancer, rule=rule)
            return self._to_endpoint(backend, HOST_PORT)
        after = header
        if not mapping.flags & MappingFlags.PRESERVE_DIP:
            after = after._replace(destination=self._address_of(backend), port=mapping.internal_port)
        if dsr:
            self._remember(self._flow(HOST_PORT, LB, after, balancer, backend))
            rule = self._rule("LB_HOST", balancer)
            self._translate(
                HOST_PORT, OUT, LB, after, f"to {after.target_text}, source kept", "VP-07", rule=rule, by=balancer
            )
            return self._to(backend, origin=None)
        source, behaviour = self._source_vip(balancer)
        if source is not None:
            first = self._switch.port_blocks.get(balancer.guid, NAT_PORTS[0])
            after = after._replace(source=source, source_port=_nat_port(header, first))
        self._remember(self._flow(HOST_PORT, LB, after, balancer, backend))
        text = f"to {after.target_text}, the source becomes {after.source}"
        self._translate(HOST_PORT, OUT, LB, after, text, behaviour, rule=self._rule("LB", balancer), by=balancer)
        return self._to(backend, origin=None)

    def _source_vip(self, balancer: HnsLoadBalancer) -> tuple[Address | None, str]:
        if balancer.source_vip is not None:
            return balancer.source_vip, "VP-09"
        if self._switch.build.empty_source_vip_is_vip and balancer.frontend_vips:
            return self._header.destination, "VP-11"
        return self._host_address(self._header.destination), "VP-10"

    # --- load balancers ---

    def _balancer(
        self, *, dsr: bool = False, routed_only: bool = False, backend: HnsEndpoint | None = None
    ) -> HnsLoadBalancer | None:
        """The load balancer that serves the frame's destination. dsr: only with DSR; backend: only with this endpoint.

        One for the address itself comes before one for all of the node's.
        """
        if self._header.port is None:
            return None
        found = [
            each
            for each in self._switch.load_balancers
            if (mapping := self._mapping(each)) is not None
            and (not dsr or each.flags & LbFlags.DSR)
            and (not routed_only or mapping.flags & MappingFlags.LOCAL_ROUTED_VIP)
            and (backend is None or backend.guid in each.endpoints)
        ]
        return min(found, key=lambda each: (not each.frontend_vips, each.guid), default=None)

    def _mapping(self, balancer: HnsLoadBalancer) -> PortMapping | None:
        """The mapping through which it serves the frame's destination; None if it does not."""
        header = self._header
        if balancer.frontend_vips:
            meant = header.destination in balancer.frontend_vips
        else:
            own_family = isinstance(header.destination, IPv6Address) == bool(balancer.flags & LbFlags.IPV6)
            meant = own_family and header.destination in self._switch.host_addresses
        if not meant:
            return None
        return next(
            (
                each
                for each in balancer.port_mappings
                if each.protocol == header.protocol.value and each.external_port == header.port
            ),
            None,
        )

    def _is_frontend(self, address: Address) -> bool:
        """Whether an address serves as a VIP, or is in no subnet of this network, so that it can only be one."""
        return not any(address in subnet.prefix for subnet in self._network.subnets if subnet.prefix is not None)

    def _backends(self, balancer: HnsLoadBalancer) -> list[HnsEndpoint]:
        """Those of its endpoints that HNS still holds, by address: the order in which they were given plays no role."""
        held = (self._switch.endpoints.get(guid) for guid in balancer.endpoints)
        return sorted(
            (each for each in held if each is not None and each.addresses), key=lambda each: int(self._address_of(each))
        )

    def _pick(self, balancer: HnsLoadBalancer, port: Port, layer: str) -> HnsEndpoint | Dropped:
        candidates = self._backends(balancer)
        if not candidates:
            return Dropped(Cause.NO_BACKEND, self._header.target_text, balancer.guid)
        mapping = self._mapping(balancer)
        assert mapping is not None, "the load balancer was found by its mapping"
        header = self._header
        key: tuple[object, ...]
        behaviour = "VP-26"
        match mapping.distribution:
            case Distribution.SOURCE_IP:
                key, by = (header.source,), "client address"
            case Distribution.SOURCE_IP_PROTOCOL:
                key, by = (header.source, header.protocol), "client address and protocol"
            case _:
                key, by, behaviour = tuple(header), "connection", "VP-27"
        addresses = tuple(self._address_of(each) for each in candidates)
        chosen = candidates[self._choose(key, addresses)]
        if len(candidates) > 1:
            text = f"one of {len(candidates)} endpoints, by {by}: {self._address_of(chosen)}"
            self._hop(port, OUT, layer, text, behaviour, balancer=balancer, candidates=addresses)
        return chosen

    def _to_backend(
        self, port: Port, layer: str, balancer: HnsLoadBalancer, backend: HnsEndpoint, behaviour: str
    ) -> None:
        mapping = self._mapping(balancer)
        assert mapping is not None, "the load balancer was found by its mapping"
        if mapping.flags & MappingFlags.PRESERVE_DIP:
            self._remember(self._flow(port, layer, self._header, balancer, backend))
            text = f"to {self._address_of(backend)}, the destination stays"
            self._hop(port, OUT, layer, text, "VP-08", balancer=balancer)
            return
        after = self._header._replace(destination=self._address_of(backend), port=mapping.internal_port)
        self._remember(self._flow(port, layer, after, balancer, backend))
        rule = self._rule("LB_DSR", balancer)
        text = f"the destination becomes {after.target_text}, the source stays"
        self._translate(port, OUT, layer, after, text, behaviour, rule=rule, by=balancer)

    def _flow(self, port: Port, layer: str, after: Header, balancer: HnsLoadBalancer, backend: HnsEndpoint) -> Flow:
        sticky = any(each.flags & MappingFlags.VIP_EXTERNAL_IP for each in balancer.port_mappings)
        return Flow(port, layer, OUT, self._header, after, balancer.guid, backend.guid, sticky)

    def _rule(self, name: str, balancer: HnsLoadBalancer) -> str:
        """What Microsoft's scripts look for; the star is a part that nobody has told. Evidence: hcn.md 5.2."""
        management = self._host_address(self._header.destination)
        vip = self._header.destination if balancer.frontend_vips else management
        mapping = self._mapping(balancer)
        assert mapping is not None, "the load balancer was found by its mapping"
        outer, inner, protocol = mapping.external_port, mapping.internal_port, mapping.protocol
        match name:
            case "NAT" | "ALLOW_NAT":
                return f"{name}_*_{vip}_{outer}_{protocol}"
            case "HairPin":
                return f"{name}_*_{vip}_{outer}_{outer}_{protocol}"
            case "SLB_LB":
                return f"{'NAT' if len(balancer.endpoints) == 1 else 'LB'}_*_{vip}_{outer}_{outer}_{protocol}"
            case "LB_HOST":
                return f"{name}_*_{vip}_{outer}_{inner}_{protocol}"
            case _:
                return f"{name}_*_{management}_{vip}_{outer}_{inner}_{protocol}"

    # --- flows, policies, addresses ---

    def _known(self, port: Port, layer: str, direction: Direction) -> Flow | None:
        """A connection that is remembered and whose rule is still there (or that outlives it)."""
        flow = self.flows.same_way(port, layer, direction, self._header)
        if flow is None or flow.before == flow.after:
            return None
        there = any(each.guid == flow.balancer for each in self._switch.load_balancers)
        return flow if flow.sticky or there or flow.balancer is None else None

    def _is_reply(self, port: Port, layer: str, direction: Direction) -> bool:
        return self.flows.reply_to(port, layer, direction, self._header) is not None

    def _remember(self, flow: Flow) -> None:
        self.flows = self.flows.with_flows((flow,))

    def _acl(self, endpoint: HnsEndpoint, header: Header, direction: Direction) -> Dropped | None:
        port = pod_port(endpoint.guid)
        opposite = IN if direction is OUT else OUT
        if self.flows.reply_to(port, ACL, opposite, header) is not None:
            return None
        acl = deciding_acl(endpoint, self._network, header, direction)
        if acl is not None and blocks(acl):
            named = acl.guid or f"priority {acl.priority}"
            self._hop(port, direction, ACL, f"blocked by {named}", "VP-15", rule=acl.guid)
            return Dropped(Cause.ACL, f"{named} on {header}", endpoint.guid, "VP-15")
        if acl is None and denies_unmatched(endpoint, direction, self._switch.build):
            self._hop(port, direction, ACL, "no policy allows it", "VP-15")
            return Dropped(Cause.ACL, f"this build denies what no policy is about: {header}", endpoint.guid)
        if acl is not None:
            self._hop(port, direction, ACL, f"allowed by {acl.guid or f'priority {acl.priority}'}", "VP-15")
        self._remember(Flow(port, ACL, direction, self._header, self._header))
        return None

    def _remote_at(self, address: Address) -> HnsEndpoint | None:
        held = (each for each in self._switch.endpoints.values() if each.remote and address in each.addresses)
        return next(held, None)

    def _unattached(self, address: Address) -> HnsEndpoint | None:
        """A local endpoint without a port: that is how a source VIP is held."""
        return next(
            (
                each
                for each in self._switch.endpoints.values()
                if address in each.addresses and not each.remote and not self._switch.has_port(each)
            ),
            None,
        )

    def _subnet_route(self, address: Address) -> RemoteSubnetRoute | None:
        """The longest prefix counts."""
        fitting = [route for route in self._network.remote_subnets if address in route.prefix]
        return max(fitting, key=lambda route: route.prefix.prefixlen, default=None)

    def _vnis(self) -> set[int]:
        policies = (policy for subnet in self._network.subnets for policy in subnet.policies)
        return {policy.isolation_id for policy in policies if isinstance(policy, Vsid)}

    def _host_address(self, like: Address) -> Address | None:
        return next((each for each in self._switch.host_addresses if each.version == like.version), None)

    def _address_of(self, endpoint: HnsEndpoint) -> Address:
        fitting = (each for each in endpoint.addresses if each.version == self._header.destination.version)
        return next(fitting, endpoint.addresses[0])

    def _port_of(self, origin: HnsEndpoint | None) -> Port:
        return HOST_PORT if origin is None else pod_port(origin.guid)

    # --- telling ---

    @property
    def _header(self) -> Header:
        return self.frame.header

    def _translate(
        self,
        port: Port,
        direction: Direction,
        layer: str,
        after: Header,
        text: str,
        behaviour: str,
        flow: Flow | None = None,
        *,
        rule: str = "",
        by: HnsLoadBalancer | None = None,
    ) -> None:
        if by is None and flow is not None:
            by = next((each for each in self._switch.load_balancers if each.guid == flow.balancer), None)
        self._hop(port, direction, layer, text, behaviour, after=Frame(after, self.frame.outer), rule=rule, balancer=by)

    def _hop(
        self,
        port: Port,
        direction: Direction,
        layer: str,
        text: str,
        behaviour: str,
        *,
        after: Frame | None = None,
        rule: str = "",
        balancer: HnsLoadBalancer | None = None,
        candidates: Iterable[Address] = (),
    ) -> None:
        before = self.frame
        self.frame = before if after is None else after
        guid = None if balancer is None else balancer.guid
        self.hops.append(
            Hop(port, direction, layer, text, before, self.frame, behaviour, rule, guid, tuple(candidates))
        )


def _outbound_nat(endpoint: HnsEndpoint, destination: Address) -> OutBoundNat | None:
    """The first OutBoundNAT policy that is about this destination."""
    for policy in endpoint.policies:
        if not isinstance(policy, OutBoundNat):
            continue
        if policy.destinations:
            if _among(destination, policy.destinations):
                return policy
        elif not _among(destination, policy.exceptions):
            return policy
    return None


def _among(address: Address, texts: Iterable[str]) -> bool:
    return any(
        address in parse_prefix(text) if "/" in text else address == parse_address(text) for text in texts if text
    )


def _nat_port(header: Header, first: int) -> int:
    """A port of the block, the same for the same connection."""
    return first + zlib.crc32(str(header).encode()) % NAT_PORTS[1]
