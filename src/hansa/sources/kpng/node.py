"""The node API, hansa.node.v1: views with their decisions, what surrounds them, and what the node reports. Both ways.

>>> from hansa.api.change import Upsert
>>> from hansa.services.store import Store
>>> from hansa.services.view import build_view
>>> from hansa.testing import L1, NODE_FACTS, R1, WEB, config, endpoint_slice
>>> store = Store(config())
>>> for item in (WEB, endpoint_slice("web-a", [L1, R1])):
...     _ = store.apply(Upsert(item))
>>> view = build_view(store, WEB.key, NODE_FACTS, config())
>>> read_service(service_message(WEB.key, view), "n1").ports == view
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hansa.api.change import Upsert
from hansa.api.objects import Node, Policy, ServiceCIDR, ServiceKey, ServiceType
from hansa.errors import Fault, MalformedObject
from hansa.net import Address, IPFamily, Prefix, Protocol, parse_address, parse_prefix
from hansa.services.model import (
    Endpoint,
    GivenView,
    Reason,
    Selection,
    ServicePort,
    ServicePortName,
    ServicePortView,
    TopologyMode,
)
from hansa.sources.kpng.wire import nodev1

SERVICE_RANGES = "brain"
"""Name of the ServiceCIDR object under which a node keeps the ranges that a brain has told."""

_PROTOCOLS: Mapping[Protocol, nodev1.Protocol] = {
    Protocol.TCP: nodev1.Protocol.TCP,
    Protocol.UDP: nodev1.Protocol.UDP,
    Protocol.SCTP: nodev1.Protocol.SCTP,
}
_FAMILIES: Mapping[IPFamily, nodev1.Family] = {
    IPFamily.IPV4: nodev1.Family.IPV4,
    IPFamily.IPV6: nodev1.Family.IPV6,
}
_POLICIES: Mapping[Policy, nodev1.Policy] = {
    Policy.CLUSTER: nodev1.Policy.CLUSTER,
    Policy.LOCAL: nodev1.Policy.LOCAL,
}
_MODES: Mapping[TopologyMode, nodev1.Topology] = {
    TopologyMode.ALL: nodev1.Topology.ALL,
    TopologyMode.SAME_ZONE: nodev1.Topology.SAME_ZONE,
    TopologyMode.SAME_NODE: nodev1.Topology.SAME_NODE,
}
_REASONS: Mapping[Reason, nodev1.Reason] = {
    Reason.NOT_READY: nodev1.Reason.NOT_READY,
    Reason.TERMINATING: nodev1.Reason.TERMINATING,
    Reason.NOT_SERVING: nodev1.Reason.NOT_SERVING,
    Reason.OTHER_ZONE: nodev1.Reason.OTHER_ZONE,
    Reason.OTHER_NODE: nodev1.Reason.OTHER_NODE,
    Reason.NOT_LOCAL: nodev1.Reason.NOT_LOCAL,
}
_PROTOCOL_OF = {number: one for one, number in _PROTOCOLS.items()}
_FAMILY_OF = {number: one for one, number in _FAMILIES.items()}
_MODE_OF = {number: one for one, number in _MODES.items()}
_REASON_OF = {number: one for one, number in _REASONS.items()}
_TYPE_OF = {one.value: one for one in ServiceType}


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node tells its brain. Revisions: 0 = none yet. failures: key and the host's words, the first few of them.

    host_state: "" = there was no sync yet.
    """

    applied_revision: int = 0
    received_revision: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    shortfalls: tuple[str, ...] = ()
    dataplane: str = ""
    version: str = ""
    pending_count: int = 0
    host_state: str = ""

    @property
    def failing(self) -> bool:
        return bool(self.pending_count or self.failures) or self.host_state not in ("", "healthy")


def service_message(key: ServiceKey, view: Sequence[ServicePortView]) -> nodev1.Service:
    """What a node is told of one Service: every port, every endpoint with its fate, and the decisions."""
    return nodev1.Service(namespace=key.namespace, name=key.name, ports=[_port_message(one) for one in view])


def _port_message(view: ServicePortView) -> nodev1.Port:
    port, chosen = view.port, view.selection
    endpoints = _all_endpoints(view)
    places = {id(endpoint): number for number, (endpoint, _) in enumerate(endpoints)}

    def decision(found: tuple[Endpoint, ...] | None, *, fallback: bool) -> nodev1.Decision:
        if found:
            verdict = nodev1.Verdict.FORWARD
        else:
            verdict = nodev1.Verdict.DROP if chosen.any_usable else nodev1.Verdict.REJECT
        indexes = [places[id(endpoint)] for endpoint in found or ()]
        return nodev1.Decision(verdict=verdict, endpoints=indexes, fallback=fallback)

    def of_policy(policy: Policy) -> nodev1.Decision:
        if policy is Policy.LOCAL:
            return decision(chosen.local, fallback=chosen.local_fallback)
        return decision(chosen.cluster, fallback=chosen.cluster_fallback)

    message = nodev1.Port(
        name=port.name.port,
        protocol=_PROTOCOLS[port.name.protocol],
        family=_FAMILIES[port.family],
        port=port.port,
        cluster_ip=str(port.cluster_ip),
        node_port=port.node_port,
        external_ips=[str(one) for one in port.external_ips],
        load_balancer_ips=[str(one) for one in port.load_balancer_vips],
        internal_policy=_POLICIES[port.internal_policy],
        external_policy=_POLICIES[port.external_policy],
        affinity_timeout_s=port.affinity_timeout_s,
        health_check_node_port=port.health_check_node_port,
        service_type=port.service_type.value,
        preserve_destination=port.preserve_destination,
        created=port.created,
        endpoints=[_endpoint_message(endpoint, reason) for endpoint, reason in endpoints],
        internal=of_policy(port.internal_policy),
        topology=_MODES[chosen.topology],
    )
    if port.source_ranges is not None:
        message.source_ranges.prefixes.extend(str(one) for one in port.source_ranges)
    if port.externally_accessible:
        message.external.CopyFrom(of_policy(port.external_policy))
        if port.external_policy is Policy.LOCAL:
            message.short_circuit.CopyFrom(decision(chosen.cluster, fallback=chosen.cluster_fallback))
    return message


def _all_endpoints(view: ServicePortView) -> list[tuple[Endpoint, Reason | None]]:
    """Chosen ones first, by the sets' own order, then those left out, in theirs."""
    found: dict[int, tuple[Endpoint, Reason | None]] = {}
    for endpoint in (*(view.selection.cluster or ()), *(view.selection.local or ())):
        found[id(endpoint)] = (endpoint, None)
    for endpoint, reason in view.selection.excluded:
        found[id(endpoint)] = (endpoint, reason)
    return list(found.values())


def _endpoint_message(endpoint: Endpoint, reason: Reason | None) -> nodev1.Endpoint:
    return nodev1.Endpoint(
        address=str(endpoint.address),
        port=endpoint.port,
        node=endpoint.node or "",
        ready=endpoint.ready,
        serving=endpoint.serving,
        terminating=endpoint.terminating,
        reason=nodev1.Reason.CHOSEN if reason is None else _REASONS[reason],
    )


def node_message(node: Node) -> nodev1.NodeObject:
    return nodev1.NodeObject(
        name=node.name,
        addresses=[str(one) for one in node.addresses],
        zone=node.zone or "",
        pod_cidrs=[str(one) for one in node.pod_cidrs],
        taint_keys=sorted(node.taint_keys),
        deleting=node.deleting,
    )


def report_message(report: NodeReport) -> nodev1.Report:
    return nodev1.Report(
        applied_revision=report.applied_revision,
        received_revision=report.received_revision,
        failures=[nodev1.Failure(key=key, error=error) for key, error in report.failures],
        shortfalls=report.shortfalls,
        dataplane=report.dataplane,
        version=report.version,
        pending_count=report.pending_count,
        host_state=report.host_state,
    )


# -- and back ----------------------------------------------------------------------------------------------------------


def read_service(message: nodev1.Service, node_name: str) -> GivenView:
    """The view of one Service on the node of that name. Raises MalformedObject; then the view in force stays."""
    subject = f"Service {message.namespace}/{message.name}"
    try:
        key = ServiceKey(message.namespace, message.name)
        return GivenView(key, tuple(_read_port(key, one, node_name) for one in message.ports))
    except (ValueError, KeyError, IndexError) as error:
        raise MalformedObject(subject, (Fault("ports", f"cannot be read: {error!r}"),)) from error


def _read_port(key: ServiceKey, message: nodev1.Port, node_name: str) -> ServicePortView:
    port = ServicePort(
        name=ServicePortName(key.namespace, key.name, message.name, _PROTOCOL_OF[message.protocol]),
        family=_FAMILY_OF[message.family],
        port=message.port,
        cluster_ip=parse_address(message.cluster_ip),
        node_port=message.node_port,
        external_ips=_addresses(message.external_ips),
        load_balancer_vips=_addresses(message.load_balancer_ips),
        source_ranges=_prefixes(message.source_ranges.prefixes) if message.HasField("source_ranges") else None,
        internal_policy=_policy(message.internal_policy),
        external_policy=_policy(message.external_policy),
        affinity_timeout_s=message.affinity_timeout_s if message.HasField("affinity_timeout_s") else None,
        health_check_node_port=message.health_check_node_port,
        service_type=_TYPE_OF.get(message.service_type, ServiceType.CLUSTER_IP),
        preserve_destination=message.preserve_destination,
        created=message.created,
    )
    endpoints = [
        Endpoint(
            address=parse_address(one.address),
            port=one.port,
            local=one.node == node_name,
            ready=one.ready,
            serving=one.serving,
            terminating=one.terminating,
            node=one.node or None,
        )
        for one in message.endpoints
    ]
    local_ready = frozenset(one.address for one in endpoints if one.local and one.ready)
    return ServicePortView(port, _selection(message, port, endpoints), local_ready)


def _selection(message: nodev1.Port, port: ServicePort, endpoints: Sequence[Endpoint]) -> Selection:
    by_policy: dict[Policy, nodev1.Decision] = {port.internal_policy: message.internal}
    if message.HasField("external"):
        by_policy[port.external_policy] = message.external
    if message.HasField("short_circuit"):
        by_policy[Policy.CLUSTER] = message.short_circuit
    cluster, local = by_policy.get(Policy.CLUSTER), by_policy.get(Policy.LOCAL)
    left_out = tuple(
        (endpoint, _REASON_OF.get(one.reason, Reason.NOT_READY))
        for one, endpoint in zip(message.endpoints, endpoints, strict=True)
        if one.reason != nodev1.Reason.CHOSEN
    )
    return Selection(
        cluster=None if cluster is None else tuple(endpoints[place] for place in cluster.endpoints),
        local=None if local is None else tuple(endpoints[place] for place in local.endpoints),
        any_usable=any(one.verdict != nodev1.Verdict.REJECT for one in by_policy.values()),
        topology=_MODE_OF.get(message.topology, TopologyMode.ALL),
        cluster_fallback=cluster is not None and cluster.fallback,
        local_fallback=local is not None and local.fallback,
        excluded=left_out,
    )


def read_node(message: nodev1.NodeObject) -> Upsert:
    """Raises MalformedObject."""
    try:
        return Upsert(
            Node(
                name=message.name,
                addresses=_addresses(message.addresses),
                zone=message.zone or None,
                pod_cidrs=_prefixes(message.pod_cidrs),
                taint_keys=frozenset(message.taint_keys),
                deleting=message.deleting,
            )
        )
    except ValueError as error:
        raise MalformedObject(f"Node {message.name}", (Fault("addresses", str(error)),)) from None


def read_service_ranges(message: nodev1.ServiceRanges) -> Upsert:
    """Raises MalformedObject."""
    try:
        return Upsert(ServiceCIDR(SERVICE_RANGES, _prefixes(message.prefixes)))
    except ValueError as error:
        raise MalformedObject("ServiceCIDR", (Fault("prefixes", str(error)),)) from None


def read_report(message: nodev1.Report) -> NodeReport:
    return NodeReport(
        applied_revision=message.applied_revision,
        received_revision=message.received_revision,
        failures=tuple((one.key, one.error) for one in message.failures),
        shortfalls=tuple(message.shortfalls),
        dataplane=message.dataplane,
        version=message.version,
        pending_count=message.pending_count,
        host_state=message.host_state,
    )


def _policy(number: nodev1.Policy) -> Policy:
    return Policy.LOCAL if number == nodev1.Policy.LOCAL else Policy.CLUSTER


def _addresses(texts: Sequence[str]) -> tuple[Address, ...]:
    return tuple(parse_address(text) for text in texts)


def _prefixes(texts: Sequence[str]) -> tuple[Prefix, ...]:
    return tuple(parse_prefix(text) for text in texts)
