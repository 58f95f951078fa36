"""localv1: one node's view as Services and endpoints, in messages of KPNG, and back.

What a brain of hansa decides goes out as the plain endpoints that this node may use, so that backends that know
nothing of terminating endpoints or hints are right all the same. What localv1 has no words for is `LOST`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hansa.api.objects import Policy, Service
from hansa.config import Config
from hansa.net import Address, address_port, family_of
from hansa.services.model import Endpoint, Selection, ServicePort, ServicePortView
from hansa.services.view import service_ports
from hansa.sources.kpng import shared
from hansa.sources.kpng.wire import localv1

LOST = (
    "endpoints elsewhere if both traffic policies are Local: pods and the node reach external addresses here only",
    "whether nobody serves or only nobody here: both are rejected where a Local policy would drop",
    "which endpoints are terminating, left out by hints or not ready, and why",
    "the Node: its addresses come from this machine, its zone, pod ranges, taints and deletion stay unknown",
    "the ranges of ClusterIPs: an address that no Service has is not guarded",
    "acknowledgements: the brain does not hear what this node has applied",
)
"""What a node that is told by localv1 does not get, for people."""


class Item(NamedTuple):
    """One object of a set as it travels: its path, and the operation that sets it, ready for the stream."""

    path: str
    op: bytes


class LocalItems(NamedTuple):
    """A Service of one view. service: None = nothing of it is on this node. endpoints: by path."""

    service: Item | None
    endpoints: tuple[Item, ...] = ()


NOTHING = LocalItems(None)


@dataclass(slots=True)
class _Merged:
    """One address behind a Service: its ports by name, and for which traffic it may be used."""

    local: bool = False
    internal: bool = False
    external: bool = False
    ports: dict[str, int] | None = None


def local_items(service: Service, view: Sequence[ServicePortView], memo: dict[tuple[str, bytes], Item]) -> LocalItems:
    """What localv1 says of a Service on one node; `view` is that node's, () = the Service is not handled.

    memo: items made before for the same Service; equal ones are shared, since most nodes get most of them.
    """
    if not view:
        return NOTHING
    path = f"{service.namespace}/{service.name}"
    specs = {(spec.name, spec.protocol): spec for spec in service.ports}
    merged: dict[Address, _Merged] = {}
    for one in view:
        key = shared.port_key(specs[one.port.name.port, one.port.name.protocol])
        internal, external = _scopes(one)
        for endpoint in internal:
            _merge(merged, endpoint, key).internal = True
        for endpoint in external:
            _merge(merged, endpoint, key).external = True
    service_value = shared.service_message(service).SerializeToString(deterministic=True)
    endpoints = []
    for address, found in merged.items():
        value = _endpoint_message(address, found).SerializeToString(deterministic=True)
        endpoint_path = f"{path}/v{address.version}-{address}"
        endpoints.append(_item(memo, localv1.Set.EndpointsSet, endpoint_path, value))
    endpoints.sort()
    return LocalItems(_item(memo, localv1.Set.ServicesSet, path, service_value), tuple(endpoints))


def _scopes(view: ServicePortView) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """For traffic to the ClusterIP, and to other addresses; what neither may use is never sent (W14)."""
    port, chosen = view.port, view.selection
    internal = chosen.local if port.internal_policy is Policy.LOCAL else chosen.cluster
    if not port.externally_accessible:
        return internal or (), internal or ()
    external = chosen.local if port.external_policy is Policy.LOCAL else chosen.cluster
    return internal or (), external or ()


def _merge(merged: dict[Address, _Merged], endpoint: Endpoint, key: str) -> _Merged:
    found = merged.setdefault(endpoint.address, _Merged(ports={}))
    found.local = found.local or endpoint.local
    assert found.ports is not None
    found.ports[key] = endpoint.port
    return found


def _endpoint_message(address: Address, found: _Merged) -> localv1.Endpoint:
    return localv1.Endpoint(
        IPs=shared.ip_set((address,)),
        Local=found.local,
        PortOverrides=[localv1.PortName(Name=name, Port=port) for name, port in sorted((found.ports or {}).items())],
        Scopes=localv1.EndpointScopes(Internal=found.internal, External=found.external),
    )


def _item(memo: dict[tuple[str, bytes], Item], kind: localv1.Set, path: str, value: bytes) -> Item:
    found = memo.get((path, value))
    if found is None:
        found = memo[path, value] = Item(path, shared.set_op(kind, path, value))
    return found


# -- and back ----------------------------------------------------------------------------------------------------------


def read_view(
    service: localv1.Service, endpoints: Iterable[localv1.Endpoint], config: Config
) -> tuple[ServicePortView, ...]:
    """A Service and its endpoints on this node, as the view that this node would have made; () = not handled.

    Selections are the sender's: an endpoint is used where its scopes say so; without scopes, everywhere. Raises
    MalformedObject if the Service or one of its endpoints cannot be read.
    """
    known = shared.read_service(service, proxy_name=config.proxy_name)
    specs = {(spec.name, spec.protocol): spec for spec in known.ports}
    subject = f"Service {known.namespace}/{known.name}"
    entries = [
        (address, one, {each.Name: each.Port for each in one.PortOverrides})
        for one in endpoints
        for address in shared.addresses(one.IPs, subject=subject)
    ]
    views = []
    for port in service_ports(known, config):
        spec = specs[port.name.port, port.name.protocol]
        found: dict[Endpoint, localv1.EndpointScopes | None] = {}
        for address, message, overrides in entries:
            number = shared.endpoint_port(spec, overrides)
            if number and family_of(address) is port.family:
                scopes = message.Scopes if message.HasField("Scopes") else None
                node = config.node_name if message.Local else None
                found[Endpoint(address, number, message.Local, node=node)] = scopes
        views.append(_port_view(port, found))
    return tuple(views)


def _port_view(port: ServicePort, found: Mapping[Endpoint, localv1.EndpointScopes | None]) -> ServicePortView:
    ordered = sorted(found, key=lambda one: address_port(one.address, one.port))
    internal = tuple(one for one in ordered if (scopes := found[one]) is None or scopes.Internal)
    external = tuple(one for one in ordered if (scopes := found[one]) is None or scopes.External)
    internal_local = port.internal_policy is Policy.LOCAL
    external_local = port.externally_accessible and port.external_policy is Policy.LOCAL
    cluster: tuple[Endpoint, ...] | None = None
    if not internal_local:
        cluster = internal
    elif port.externally_accessible:
        cluster = external if not external_local else tuple(ordered)  # the rest for the short-circuit was not sent
    local: tuple[Endpoint, ...] | None = None
    if internal_local or external_local:
        local = tuple(one for one in (internal if internal_local else external) if one.local)
    selection = Selection(cluster, local, any_usable=bool(ordered))
    return ServicePortView(port, selection, frozenset(one.address for one in ordered if one.local))
