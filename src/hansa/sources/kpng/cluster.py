"""globalv1: the whole cluster as ServiceInfos, EndpointInfos and NodeInfos, in messages of KPNG, and back.

A brain of hansa fills in, under numbers from 100 on, what KPNG's messages have no place for; from a brain of KPNG that
is missing, and `LOST_BY_KPNG` says so.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hansa.api.objects import EndpointSlice, Node, Service, SliceEndpoint, SlicePort
from hansa.errors import Fault, MalformedObject
from hansa.net import IPFamily, Prefix, family_of, parse_address, parse_prefix
from hansa.sources.kpng import shared
from hansa.sources.kpng.local import Item
from hansa.sources.kpng.wire import globalv1, localv1

LOST_BY_KPNG = (
    "serving and terminating endpoints: no fallback while the last ready ones go",
    "hints for single nodes, the Node's addresses, pod ranges, taints and deletion",
    "ipMode: addresses of load balancers that work as proxies count as well",
)
"""What a brain of KPNG does not tell by globalv1 and one of hansa does, for people."""
LOST = (
    "the ranges of ClusterIPs: an address that no Service has is not guarded",
    "acknowledgements: the brain does not hear what this node has applied",
)


class EndpointPath(NamedTuple):
    """The parts of `namespace|service|slice|key`; service is "" in the second form that KPNG sends, too."""

    namespace: str
    service: str
    source: str
    key: str


def service_item(service: Service) -> Item:
    message = globalv1.ServiceInfo(Service=shared.service_message(service))
    message.Hash = _hash(message.SerializeToString(deterministic=True))
    path = f"{service.namespace}|{service.name}||"
    return Item(path, shared.set_op(localv1.Set.GlobalServiceInfos, path, message.SerializeToString()))


def node_message(node: Node) -> globalv1.NodeInfo:
    """Without its hash."""
    return globalv1.NodeInfo(
        Node=globalv1.Node(
            Name=node.name,
            Labels={"kubernetes.io/hostname": node.name}
            | ({"topology.kubernetes.io/zone": node.zone} if node.zone else {}),
            Topology=globalv1.TopologyInfo(Node=node.name, Zone=node.zone or ""),
            Addresses=[str(one) for one in node.addresses],
            PodCIDRs=[str(one) for one in node.pod_cidrs],
            TaintKeys=sorted(node.taint_keys),
            Deleting=node.deleting,
        )
    )


def node_item(node: Node) -> Item:
    message = node_message(node)
    message.Hash = _hash(message.SerializeToString(deterministic=True))
    path = f"|{node.name}||"
    return Item(path, shared.set_op(localv1.Set.GlobalNodeInfos, path, message.SerializeToString()))


def endpoint_items(service: Service, pieces: Iterable[EndpointSlice]) -> tuple[Item, ...]:
    """Every endpoint of a Service's slices, by path."""
    found = {}
    for path, message in endpoint_infos(service, pieces):
        message.Hash = _hash(message.SerializeToString(deterministic=True))
        found[path] = shared.set_op(localv1.Set.GlobalEndpointInfos, path, message.SerializeToString())
    return tuple(Item(path, found[path]) for path in sorted(found))


def endpoint_infos(service: Service, pieces: Iterable[EndpointSlice]) -> Iterator[tuple[str, globalv1.EndpointInfo]]:
    """Path and message of every endpoint, without its hash."""
    for piece in pieces:
        if piece.family is None:
            continue
        overrides = _overrides(service, piece)
        seen: Counter[str] = Counter()  # a slice may list an address twice; which entry counts is for the node to say
        for one in piece.endpoints:
            message = _endpoint_info(piece, one)
            message.Endpoint.PortOverrides.extend(overrides)
            key = f"v{one.address.version}-{one.address}"
            seen[key] += 1
            twin = f"~{seen[key]}" if seen[key] > 1 else ""
            yield f"{piece.namespace}|{service.name}|{piece.name}|{key}{twin}", message


def _overrides(service: Service, piece: EndpointSlice) -> list[localv1.PortName]:
    """A slice's ports, under the names by which backends look for them, too."""
    ports = {port.name: port for port in piece.ports}
    for spec in service.ports:
        for port in piece.ports:
            if (port.name, port.protocol) == (spec.name, spec.protocol):
                ports[shared.port_key(spec)] = port
    return [
        localv1.PortName(Name=name, Port=port.port, Protocol=shared.PROTOCOLS[port.protocol])
        for name, port in sorted(ports.items())
    ]


def _endpoint_info(piece: EndpointSlice, one: SliceEndpoint) -> globalv1.EndpointInfo:
    return globalv1.EndpointInfo(
        Namespace=piece.namespace,
        SourceName=piece.name,
        ServiceName=piece.service or "",
        Endpoint=localv1.Endpoint(IPs=shared.ip_set((one.address,))),
        Conditions=globalv1.EndpointConditions(Ready=one.ready, Serving=one.serving, Terminating=one.terminating),
        Topology=globalv1.TopologyInfo(Node=one.node_name or ""),
        Hints=globalv1.TopologyHints(Zones=sorted(one.zone_hints), Nodes=sorted(one.node_hints)),
        TriggerTime=piece.trigger_time or 0.0,
    )


def _hash(value: bytes) -> int:
    """An opaque mark of the content; never 0, which Go clients take for "no change" (W7)."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big") or 1


# -- and back ----------------------------------------------------------------------------------------------------------


def read_path(path: str) -> tuple[str, str, str, str]:
    """The four parts of a global path. Raises MalformedObject if there are more or fewer."""
    parts = path.split("|")
    if len(parts) != 4:
        raise MalformedObject(f"path {path!r}", (Fault("Path", f"{len(parts)} parts instead of 4"),))
    return (parts[0], parts[1], parts[2], parts[3])


def read_node(message: globalv1.NodeInfo) -> Node:
    """Raises MalformedObject."""
    node = message.Node
    try:
        return Node(
            name=node.Name,
            addresses=tuple(parse_address(text) for text in node.Addresses),
            zone=node.Topology.Zone or None,
            pod_cidrs=_prefixes(node.PodCIDRs),
            taint_keys=frozenset(node.TaintKeys),
            deleting=node.Deleting,
        )
    except ValueError as error:
        raise MalformedObject(f"Node {node.Name}", (Fault("Addresses", str(error)),)) from None


def _prefixes(texts: Iterable[str]) -> tuple[Prefix, ...]:
    return tuple(parse_prefix(text) for text in texts)


def read_slices(
    path: EndpointPath, entries: Iterable[globalv1.EndpointInfo], service: Service | None
) -> tuple[EndpointSlice, ...]:
    """The endpoints that one slice of a Service has, as slices again: one for each family and set of ports.

    service: tells which ports there are and their protocols, which KPNG drops of slices; None = it is not known yet,
    and its endpoints have no ports until it is. Raises MalformedObject.
    """
    subject = f"EndpointSlice {path.namespace}/{path.source}"
    groups: dict[tuple[IPFamily, tuple[SlicePort, ...]], list[SliceEndpoint]] = {}
    trigger_time = 0.0
    for entry in entries:
        ports = _slice_ports(entry.Endpoint, service)
        trigger_time = max(trigger_time, entry.TriggerTime)
        for address in shared.addresses(entry.Endpoint.IPs, subject=subject):
            conditions = entry.Conditions
            # No Conditions at all means ready, as KPNG has it.
            ready = conditions.Ready if entry.HasField("Conditions") else True
            one = SliceEndpoint(
                address=address,
                ready=ready,
                serving=conditions.Serving if conditions.HasField("Serving") else ready,
                terminating=conditions.Terminating,
                node_name=entry.Topology.Node or None,
                zone_hints=frozenset(entry.Hints.Zones),
                node_hints=frozenset(entry.Hints.Nodes),
            )
            groups.setdefault((family_of(address), ports), []).append(one)
    ordered = sorted(groups, key=lambda one: (one[0], tuple((p.name, p.protocol, p.port) for p in one[1])))
    return tuple(
        EndpointSlice(
            namespace=path.namespace,
            name=path.source if number == 0 else f"{path.source}~{number}",
            service=path.service,
            family=family,
            ports=ports,
            endpoints=tuple(sorted(groups[family, ports], key=lambda one: (one.address.version, int(one.address)))),
            trigger_time=trigger_time or None,
        )
        for number, (family, ports) in enumerate(ordered)
    )


def _slice_ports(endpoint: localv1.Endpoint, service: Service | None) -> tuple[SlicePort, ...]:
    if service is None:
        return ()
    found = []
    for spec in service.ports:
        either = (localv1.Protocol.UnknownProtocol, shared.PROTOCOLS[spec.protocol])
        overrides = {one.Name: one.Port for one in endpoint.PortOverrides if one.Protocol in either}
        number = shared.endpoint_port(spec, overrides)
        if number and 0 < number < 65536:
            found.append(SlicePort(spec.name, spec.protocol, number))
    return tuple(found)
