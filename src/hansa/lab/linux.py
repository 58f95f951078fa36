"""A Linux node of a lab, modelled by its rules: what `decide` says happens, and conntrack undoes it for replies. Pure.

No table of any dataplane is asked: this is a node on which the service proxy does exactly what the rules want.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from hansa.hns.emulator.vswitch_model import Choose, Frame, Header, Outer
from hansa.net import Address, Prefix, family_of
from hansa.rules.decide import RuleLookup, decide, masqueraded, matching_rule
from hansa.rules.model import Drop, Forward, NotHandled, Reject, Rule, Surroundings

_FIRST_NAT_PORT, _NAT_PORTS = 32768, 28232  # ip_local_port_range of Linux


@dataclass(frozen=True, slots=True)
class LinuxHost:
    """A node. pod_prefixes: its own pods'. cluster: all pods', which keep their addresses. pods: addresses on it.

    peers: for overlay, the node behind each other pod prefix; empty elsewhere, where routing knows.
    """

    addresses: tuple[Address, ...]
    pod_prefixes: tuple[Prefix, ...]
    cluster: tuple[Prefix, ...]
    pods: frozenset[Address]
    rules: RuleLookup
    surroundings: Surroundings
    overlay: bool = False
    vni: int = 0
    peers: Mapping[Prefix, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conntrack:
    """Connections that the node has changed: first header as it came, and as it left."""

    _forth: Mapping[Header, Header] = field(default_factory=lambda: MappingProxyType({}))
    _back: Mapping[Header, Header] = field(default_factory=lambda: MappingProxyType({}))

    def with_entry(self, before: Header, after: Header) -> Conntrack:
        return Conntrack({**self._forth, before: after}, {**self._back, after.reversed(): before})

    def same_way(self, header: Header) -> Header | None:
        return self._forth.get(header)

    def reply(self, header: Header) -> Header | None:
        """A reply's header as it is to leave; None if it answers nothing that is known."""
        before = self._back.get(header)
        return None if before is None else before.reversed()


class ToPod(NamedTuple):
    address: Address


class ToHost(NamedTuple):
    pass


class ToWire(NamedTuple):
    pass


class Refused(NamedTuple):
    """The rules let it go no further."""

    text: str


LinuxEnd = ToPod | ToHost | ToWire | Refused


class LinuxStep(NamedTuple):
    text: str
    before: Frame
    after: Frame
    rule: Rule | None = None


class LinuxPassage(NamedTuple):
    frame: Frame
    end: LinuxEnd
    steps: tuple[LinuxStep, ...]
    flows: Conntrack


def pass_through(host: LinuxHost, frame: Frame, *, flows: Conntrack, choose: Choose) -> LinuxPassage:
    """A frame from a pod, from the node itself or from the wire: conntrack, then the rules, then routing."""
    steps: list[LinuxStep] = []

    def step(text: str, after: Frame, rule: Rule | None = None) -> Frame:
        steps.append(LinuxStep(text, frame, after, rule))
        return after

    if frame.outer is not None:
        frame = step(f"unpacked: came from node {frame.outer.source}", Frame(frame.header))
    header = frame.header
    replied, known = flows.reply(header), flows.same_way(header)
    if replied is not None:
        if replied != header:
            frame = step(f"conntrack: a reply; {header} becomes {replied}", Frame(replied))
    elif known is not None:
        if known != header:
            frame = step("conntrack: known connection, as before", Frame(known))
    else:
        verdict = decide(host.rules, host.surroundings, header.packet)
        rule = matching_rule(host.rules, host.surroundings, header.packet)
        match verdict:
            case Drop() | Reject():
                frame = step(f"rules: {type(verdict).__name__.lower()}, {verdict.because.value}", frame, rule)
                return LinuxPassage(frame, Refused(verdict.because.value), tuple(steps), flows)
            case Forward():
                after = _translated(host, header, verdict, rule, choose)
                flows = flows.with_entry(header, after)
                source = f", the source becomes {after.source}" if after.source != header.source else ""
                frame = step(
                    f"rules: forward to {after.target_text}{source}; {verdict.because.value}", Frame(after), rule
                )
            case NotHandled():
                after = _leaving(host, header)
                if after != header:
                    frame = step(f"leaves the cluster: the source becomes {after.source}", Frame(after))
                flows = flows.with_entry(header, after)
    end, frame, text = _route(host, frame)
    if text:
        steps.append(LinuxStep(text, Frame(frame.header), frame))
    return LinuxPassage(frame, end, tuple(steps), flows)


def _translated(host: LinuxHost, header: Header, verdict: Forward, rule: Rule | None, choose: Choose) -> Header:
    addresses = tuple(each.address for each in verdict.endpoints)
    sticky = rule is not None and rule.affinity_timeout_s is not None
    key: tuple[object, ...] = (header.source,) if sticky else tuple(header)
    endpoint = verdict.endpoints[choose(key, addresses)]
    after = header._replace(destination=endpoint.address, port=endpoint.port)
    return _masqueraded(host, after) if masqueraded(verdict, header.packet, endpoint) else _leaving(host, after)


def _masqueraded(host: LinuxHost, header: Header) -> Header:
    """The address of the interface by which it leaves: towards other nodes' pods that is the VXLAN device's."""
    source = _device_address(host, header.destination)
    if source is None:
        return header
    port = header.source_port
    if port is not None:
        port = _FIRST_NAT_PORT + zlib.crc32(str(header).encode()) % _NAT_PORTS
    return header._replace(source=source, source_port=port)


def _device_address(host: LinuxHost, destination: Address) -> Address | None:
    own = [prefix for prefix in host.pod_prefixes if prefix.version == destination.version]
    if own and destination in own[0]:
        return own[0][1]  # cni0, the pods' gateway
    if own and host.overlay and any(destination in prefix for prefix in host.peers):
        return own[0][0]  # flannel.1
    return next((each for each in host.addresses if each.version == destination.version), None)


def _leaving(host: LinuxHost, header: Header) -> Header:
    """The CNI's masquerading: pods have the node's address outside the cluster."""
    inside = any(header.destination in prefix for prefix in host.cluster)
    from_pod = header.source in host.pods and header.source not in host.addresses
    if inside or not from_pod or not header.protocol.has_ports:
        return header
    if header.destination in host.addresses:
        return header
    own = next((each for each in host.addresses if family_of(each) is family_of(header.destination)), None)
    return header if own is None else header._replace(source=own)


def _route(host: LinuxHost, frame: Frame) -> tuple[LinuxEnd, Frame, str]:
    destination = frame.header.destination
    if destination in host.addresses:
        return ToHost(), frame, ""
    if destination in host.pods:
        return ToPod(destination), frame, ""
    if any(destination in prefix and destination in (prefix[0], prefix[1]) for prefix in host.pod_prefixes):
        return ToHost(), frame, ""  # flannel.1, cni0
    if host.overlay:
        fitting = [prefix for prefix in host.peers if destination in prefix]
        if fitting:
            peer = host.peers[max(fitting, key=lambda prefix: prefix.prefixlen)]
            own = next(each for each in host.addresses if each.version == peer.version)
            packed = Frame(frame.header, Outer(own, peer, host.vni))
            return ToWire(), packed, f"flannel.1: encapsulated for node {peer}"
    return ToWire(), frame, ""
