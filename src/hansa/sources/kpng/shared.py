"""What localv1 and globalv1 have in common: Services, IP sets, operations, and how a port finds its number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from hansa.api.objects import Policy, Service, ServicePortSpec, ServiceType
from hansa.errors import Fault, MalformedObject
from hansa.net import Address, Prefix, Protocol, parse_address, parse_prefix
from hansa.sources.kpng.wire import localv1

PROTOCOLS: Mapping[Protocol, localv1.Protocol] = {
    Protocol.TCP: localv1.Protocol.TCP,
    Protocol.UDP: localv1.Protocol.UDP,
    Protocol.SCTP: localv1.Protocol.SCTP,
}
_PROTOCOL_OF = {number: protocol for protocol, number in PROTOCOLS.items()}
_TYPES = {one.value: one for one in ServiceType}

RESET = localv1.OpItem(Reset=localv1.EmptyOp()).SerializeToString()
SYNC = localv1.OpItem(Sync=localv1.EmptyOp()).SerializeToString()


def set_op(kind: localv1.Set, path: str, value: bytes) -> bytes:
    ref = localv1.Ref(Set=kind, Path=path)
    return localv1.OpItem(Set=localv1.Value(Ref=ref, Bytes=value)).SerializeToString()


def delete_op(kind: localv1.Set, path: str) -> bytes:
    return localv1.OpItem(Delete=localv1.Ref(Set=kind, Path=path)).SerializeToString()


def ip_set(addresses: Iterable[Address]) -> localv1.IPSet:
    """Canonical texts, by family, sorted, each once (W10)."""
    ordered = sorted(set(addresses), key=lambda one: (one.version, int(one)))
    v4 = [str(one) for one in ordered if isinstance(one, IPv4Address)]
    v6 = [str(one) for one in ordered if not isinstance(one, IPv4Address)]
    return localv1.IPSet(V4=v4, V6=v6)


def addresses(found: localv1.IPSet, *, subject: str) -> tuple[Address, ...]:
    """Both families, IPv4 first. Raises MalformedObject."""
    return tuple(_address(text, subject) for text in (*found.V4, *found.V6))


def _address(text: str, subject: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise MalformedObject(subject, (Fault("IPs", str(error)),)) from None


def port_key(spec: ServicePortSpec) -> str:
    """Under which name a backend of KPNG finds this port's number among an endpoint's PortOverrides.

    A backend looks for the port's name; for a port without one it looks for TargetPortName, and without that it takes
    TargetPort, whatever the slice says. So a port without a name always gets a TargetPortName.
    """
    if spec.name:
        return spec.name
    return spec.target_port if isinstance(spec.target_port, str) else f"port-{spec.port}"


def service_message(service: Service) -> localv1.Service:
    """A Service as KPNG says it; hansa's own fields added."""
    message = localv1.Service(
        Namespace=service.namespace,
        Name=service.name,
        Type=service.type.value,
        IPs=localv1.ServiceIPs(
            ClusterIPs=ip_set(service.cluster_ips),
            ExternalIPs=ip_set(service.external_ips) if service.external_ips else None,
            Headless=service.headless,
            LoadBalancerIPs=ip_set(service.load_balancer_vips) if service.load_balancer_vips else None,
        ),
        Ports=[_port_message(spec) for spec in service.ports],
        ExternalTrafficToLocal=service.external_policy is Policy.LOCAL,
        InternalTrafficToLocal=service.internal_policy is Policy.LOCAL,
        HealthCheckNodePort=service.health_check_node_port,
        Created=service.created,
        PreserveDestination=service.preserve_destination,
    )
    if service.source_ranges:
        message.IPFilters.append(localv1.IPFilter(SourceRanges=[str(one) for one in service.source_ranges]))
    if service.affinity_timeout_s is not None:
        message.ClientIP.TimeoutSeconds = service.affinity_timeout_s
    return message


def _port_message(spec: ServicePortSpec) -> localv1.PortMapping:
    target_name = spec.target_port if isinstance(spec.target_port, str) else ""
    return localv1.PortMapping(
        Name=spec.name,
        Protocol=PROTOCOLS[spec.protocol],
        Port=spec.port,
        NodePort=spec.node_port,
        TargetPort=spec.target_port if isinstance(spec.target_port, int) else 0,
        TargetPortName=target_name if spec.name else port_key(spec),
    )


def read_service(message: localv1.Service, *, proxy_name: str | None = None) -> Service:
    """The Service of a message. proxy_name: the brain has selected by it. Raises MalformedObject.

    A port whose protocol nobody knows is left out, since nothing can be done for it.
    """
    subject = f"Service {message.Namespace}/{message.Name}"
    if not message.Name or not message.Namespace:
        raise MalformedObject(subject, (Fault("Name", "namespace or name is missing"),))
    ips = message.IPs
    ranges = [_prefix(text, subject) for one in message.IPFilters for text in one.SourceRanges]
    affinity = message.ClientIP.TimeoutSeconds if message.HasField("ClientIP") else None
    return Service(
        namespace=message.Namespace,
        name=message.Name,
        type=_TYPES.get(message.Type, ServiceType.CLUSTER_IP),
        headless=ips.Headless,
        cluster_ips=addresses(ips.ClusterIPs, subject=subject),
        ports=tuple(_read_port(one) for one in message.Ports if one.Protocol in _PROTOCOL_OF),
        external_ips=addresses(ips.ExternalIPs, subject=subject),
        load_balancer_vips=addresses(ips.LoadBalancerIPs, subject=subject),
        source_ranges=tuple(ranges),
        internal_policy=Policy.LOCAL if message.InternalTrafficToLocal else Policy.CLUSTER,
        external_policy=Policy.LOCAL if message.ExternalTrafficToLocal else Policy.CLUSTER,
        affinity_timeout_s=affinity,
        health_check_node_port=message.HealthCheckNodePort,
        proxy_name=proxy_name,
        preserve_destination=message.PreserveDestination,
        created=message.Created,
    )


def _read_port(one: localv1.PortMapping) -> ServicePortSpec:
    target: int | str | None = one.TargetPortName or one.TargetPort or None
    return ServicePortSpec(one.Name, _PROTOCOL_OF[one.Protocol], one.Port, one.NodePort, target)


def _prefix(text: str, subject: str) -> Prefix:
    try:
        return parse_prefix(text)
    except ValueError as error:
        raise MalformedObject(subject, (Fault("IPFilters", str(error)),)) from None


def endpoint_port(spec: ServicePortSpec, overrides: Mapping[str, int]) -> int | None:
    """The number behind a port at one endpoint; None = the endpoint does not have this port.

    As a backend of KPNG would find it, except that a port without a name takes the slice's own number where that can
    be told, which KPNG's brains send under the empty name.
    """
    if spec.name:
        return overrides.get(spec.name)
    if isinstance(spec.target_port, str) and spec.target_port in overrides:
        return overrides[spec.target_port]
    if "" in overrides:
        return overrides[""]
    return spec.target_port if isinstance(spec.target_port, int) else None
