"""Store: the API objects as last heard of, and which Services a change touches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, assert_never

from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Node, ObjectKey, Service, ServiceCIDR, ServiceKey
from hansa.config import Config
from hansa.errors import Fault
from hansa.net import Prefix
from hansa.services.node import node_facts, node_name
from hansa.services.view import is_handled, service_ports

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Touched:
    """What has to be built anew; false if nothing has.

    services: their views may differ. everything: all views or what surrounds them may differ, because the Node or the
    ServiceCIDRs do, or because the store has just become ready.
    """

    services: frozenset[ServiceKey] = frozenset()
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.services)

    def __or__(self, other: Touched) -> Touched:
        return Touched(self.services | other.services, self.everything or other.everything)


_NOTHING = Touched()
_EVERYTHING = Touched(everything=True)


class Store:
    """The only mutable state of stages 1 to 3 besides the rule set; used by one thread.

    A change costs what its own object costs, however large the cluster is. Whether it touches anything is judged by the
    data that stage 2 derives, never by the object's text (P6, P7).
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._services: dict[ServiceKey, Service] = {}
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        self._slices_by_service: dict[ServiceKey, dict[str, EndpointSlice]] = {}
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self._node: Node | None = None
        self._malformed: dict[ObjectKey, tuple[Fault, ...]] = {}
        self._skipped: dict[ObjectKey, tuple[Fault, ...]] = {}
        self._synced: frozenset[Kind] = frozenset()

    def reconfigure(self, config: Config) -> None:
        """Judge changes by another configuration from now on; whoever calls has all views made anew."""
        self._config = config

    def apply(self, change: Change) -> Touched:
        """Take one change in and say what it touches.

        Replaying changes, deleting what is unknown, and changes that a proxy cannot notice touch nothing. A malformed
        object leaves its last good form in force.
        """
        match change:
            case Upsert():
                key = change.object.object_key
                self._malformed.pop(key, None)
                _keep(self._skipped, key, change.skipped)
                return self._upsert(change)
            case Delete(key):
                self._malformed.pop(key, None)
                self._skipped.pop(key, None)
                return self._delete(key)
            case Malformed(key, faults):
                self._malformed[key] = faults
                return _NOTHING
            case Synced(kind):
                was_ready = self.ready
                self._synced |= {kind}
                return _EVERYTHING if self.ready and not was_ready else _NOTHING
            case _:
                assert_never(change)

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        """Every Service, handled or not, by key; a live view."""
        return MappingProxyType(self._services)

    @property
    def slices(self) -> Mapping[ObjectKey, EndpointSlice]:
        """Every slice, with or without a Service; a live view."""
        return MappingProxyType(self._slices)

    def slices_of(self, service_key: ServiceKey) -> tuple[EndpointSlice, ...]:
        """The slices whose label names this Service, in no particular order; () also if the Service is unknown."""
        return tuple(self._slices_by_service.get(service_key, {}).values())

    @property
    def node(self) -> Node | None:
        """This node's Node object, None until it was seen; once seen, its last form stays after a deletion (Z8)."""
        return self._node

    @property
    def service_cidrs(self) -> tuple[Prefix, ...]:
        """The prefixes that some ServiceCIDR object holds, each once, sorted (R11)."""
        prefixes = {prefix for held in self._service_cidrs.values() for prefix in held.prefixes}
        return tuple(sorted(prefixes, key=lambda one: (one.version, int(one.network_address), one.prefixlen)))

    @property
    def malformed(self) -> Mapping[ObjectKey, tuple[Fault, ...]]:
        """The objects whose newest form cannot be used, and why; a live view."""
        return MappingProxyType(self._malformed)

    @property
    def skipped(self) -> Mapping[ObjectKey, tuple[Fault, ...]]:
        """The objects in use of which some entries were left out, and why; a live view."""
        return MappingProxyType(self._skipped)

    @property
    def synced(self) -> frozenset[Kind]:
        """The kinds whose objects have all been delivered once."""
        return self._synced

    @property
    def ready(self) -> bool:
        """I1, I2: nothing may be programmed before Services and EndpointSlices are complete; the rest may follow."""
        return Kind.SERVICE in self._synced and Kind.ENDPOINT_SLICE in self._synced

    def _upsert(self, change: Upsert) -> Touched:
        match change.object:
            case Service() as service:
                old = self._services.get(service.key)
                self._services[service.key] = service
                return self._service_changed(old, service)
            case EndpointSlice() as piece:
                old_piece = self._remove_slice(piece.object_key)
                self._slices[piece.object_key] = piece
                owner = piece.service_key
                if owner is not None:
                    self._slices_by_service.setdefault(owner, {})[piece.name] = piece
                return self._slice_changed(old_piece, piece)
            case Node() as node:
                return self._node_changed(node)
            case ServiceCIDR() as held:
                before = self.service_cidrs
                self._service_cidrs[held.name] = held
                return _EVERYTHING if self.service_cidrs != before else _NOTHING
            case _:
                assert_never(change.object)

    def _delete(self, key: ObjectKey) -> Touched:
        match key.kind:
            case Kind.SERVICE:
                return self._service_changed(self._services.pop(ServiceKey(key.namespace, key.name), None), None)
            case Kind.ENDPOINT_SLICE:
                return self._slice_changed(self._remove_slice(key), None)
            case Kind.NODE:
                # The node that this process runs on is there; losing its object must not move any traffic.
                return _NOTHING
            case Kind.SERVICE_CIDR:
                before = self.service_cidrs
                self._service_cidrs.pop(key.name, None)
                return _EVERYTHING if self.service_cidrs != before else _NOTHING
            case _:
                assert_never(key.kind)

    def _service_changed(self, old: Service | None, new: Service | None) -> Touched:
        if old == new:
            return _NOTHING
        before = service_ports(old, self._config) if old is not None else ()
        after = service_ports(new, self._config) if new is not None else ()
        either = new or old
        if before == after or either is None:
            return _NOTHING
        return Touched(frozenset({either.key}))

    def _remove_slice(self, key: ObjectKey) -> EndpointSlice | None:
        """Take a slice out of both indexes, wherever its label had put it (E16)."""
        old = self._slices.pop(key, None)
        owner = old.service_key if old is not None else None
        if owner is not None:
            of_service = self._slices_by_service[owner]
            del of_service[key.name]
            if not of_service:
                del self._slices_by_service[owner]
        return old

    def _slice_changed(self, old: EndpointSlice | None, new: EndpointSlice | None) -> Touched:
        """The handled Services that lose or gain by it; a slice of none of them makes no work (P8)."""
        if old == new:
            return _NOTHING
        owners = {piece.service_key for piece in (old, new) if piece is not None and _contributes(piece)}
        return Touched(frozenset(owner for owner in owners if owner is not None and self._handles(owner)))

    def _handles(self, key: ServiceKey) -> bool:
        service = self._services.get(key)
        return service is not None and is_handled(service, self._config)

    def _node_changed(self, node: Node) -> Touched:
        """Only this proxy's own node, and only what the stages read of it: zone, addresses, podCIDRs (T12)."""
        if node.name != node_name(self._config):
            return _NOTHING
        before = node_facts(self._node, self._config, frozenset())
        self._node = node
        return _EVERYTHING if node_facts(node, self._config, frozenset()) != before else _NOTHING


def _contributes(piece: EndpointSlice) -> bool:
    """E1, E2: an FQDN slice, and one without ports or endpoints, adds nothing to any Service."""
    return piece.family is not None and bool(piece.ports) and bool(piece.endpoints)


def _keep(table: dict[ObjectKey, _V], key: ObjectKey, value: _V) -> None:
    """Store a value, or nothing in the place of an empty one."""
    if value:
        table[key] = value
    else:
        table.pop(key, None)
