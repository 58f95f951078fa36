"""build_view(): slices, hints and policies of one Service, joined into what this node has to do for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hansa.api.objects import Policy, Service, ServiceKey, ServiceType
from hansa.config import Config
from hansa.net import Address, IPFamily, Prefix, family_of
from hansa.services.endpoints import select_endpoints
from hansa.services.model import NodeFacts, ServicePort, ServicePortName, ServicePortView
from hansa.services.slices import Candidate, merge_slices

if TYPE_CHECKING:
    from hansa.services.store import Store

_NO_ADDRESSES: frozenset[Address] = frozenset()


def build_view(store: Store, service_key: ServiceKey, node: NodeFacts, config: Config) -> tuple[ServicePortView, ...]:
    """The ports of one Service in both families, by port name, protocol and family; () if it is not handled.

    Costs what this Service's own endpoints cost. A Service that the store does not know gives (), which is how a
    deletion reaches the next stage.
    """
    service = store.services.get(service_key)
    if service is None:
        return ()
    ports = service_ports(service, config)
    if not ports:
        return ()
    slices = store.slices_of(service_key)
    merged = {
        family: merge_slices(slices, family=family, node_name=node.name) for family in {port.family for port in ports}
    }
    views = []
    for port in ports:
        candidates = merged[port.family].get((port.name.port, port.name.protocol), ())
        views.append(ServicePortView(port, select_endpoints(port, candidates, node), _local_ready(candidates)))
    return tuple(views)


def is_handled(service: Service, config: Config) -> bool:
    """S1 to S5 and S7: whether this proxy serves the Service at all. The family is judged by `service_ports` (S6)."""
    return (
        service.proxy_name == config.proxy_name
        and not service.headless
        and service.type is not ServiceType.EXTERNAL_NAME
        and bool(service.cluster_ips)
        and bool(service.ports)
    )


def service_ports(service: Service, config: Config) -> tuple[ServicePort, ...]:
    """The service ports that a Service has on this proxy, by port name, protocol and family; () if not handled.

    This is the derived data on which a change of the Service is judged (P6).
    Evidence: service-semantics sections 2, 4, 5, 10 (X2) and 14 (H1).
    """
    if not is_handled(service, config):
        return ()
    ports = [port for cluster_ip in service.cluster_ips for port in _ports_of_family(service, config, cluster_ip)]
    return tuple(ports) if len(ports) == 1 else tuple(sorted(ports, key=lambda port: (port.name, port.family)))


def _ports_of_family(service: Service, config: Config, cluster_ip: Address) -> Iterable[ServicePort]:
    family = family_of(cluster_ip)
    given_external_ips = service.external_ips if config.allow_external_ips else ()
    external_ips = _of_family(given_external_ips, family)
    load_balancer_vips = _of_family(service.load_balancer_vips, family)
    source_ranges = _source_ranges(service.source_ranges, family)
    # X2: on a plain ClusterIP Service the field does not count.
    outside_world = service.type is not ServiceType.CLUSTER_IP or bool(given_external_ips)
    external_policy = service.external_policy if outside_world else Policy.CLUSTER
    health_checked = service.type is ServiceType.LOAD_BALANCER and external_policy is Policy.LOCAL
    for spec in service.ports:
        yield ServicePort(
            name=ServicePortName(service.namespace, service.name, spec.name, spec.protocol),
            family=family,
            port=spec.port,
            cluster_ip=cluster_ip,
            node_port=spec.node_port,
            external_ips=external_ips,
            load_balancer_vips=load_balancer_vips,
            source_ranges=source_ranges,
            internal_policy=service.internal_policy,
            external_policy=external_policy,
            affinity_timeout_s=service.affinity_timeout_s,
            health_check_node_port=service.health_check_node_port if health_checked else 0,
            service_type=service.type,
            preserve_destination=service.preserve_destination,
            created=service.created,
        )


def _of_family(addresses: tuple[Address, ...], family: IPFamily) -> tuple[Address, ...]:
    """Each address of the family once, sorted: the order in the object means nothing."""
    if not addresses:
        return ()
    return tuple(sorted({address for address in addresses if family_of(address) is family}, key=int))


def _source_ranges(ranges: tuple[Prefix, ...], family: IPFamily) -> tuple[Prefix, ...] | None:
    """F2, F3: None = everybody, if there is no range of the family or one that covers all of it."""
    own = {prefix for prefix in ranges if family_of(prefix) is family}
    if not own or any(prefix.prefixlen == 0 for prefix in own):
        return None
    return tuple(sorted(own, key=lambda prefix: (int(prefix.network_address), prefix.prefixlen)))


def _local_ready(candidates: Sequence[Candidate]) -> frozenset[Address]:
    """H6: the distinct IPs of local ready endpoints, whatever was selected."""
    found = [one.endpoint.address for one in candidates if one.endpoint.local and one.endpoint.ready]
    return frozenset(found) if found else _NO_ADDRESSES
