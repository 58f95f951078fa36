"""What an emulated HNS holds: objects with their indexes, ports and reservations. No rule is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from hansa.hns.api import Guid, HnsKind
from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer, HnsNetwork, HnsObject, LbFlags, kind_of
from hansa.net import Address, IPFamily

K = TypeVar("K")


class LbFrontend(NamedTuple):
    """What HNS reserves for a load balancer (hcn.md 5.9, inferred). address: None = the node's own."""

    family: IPFamily
    address: Address | None
    protocol: int
    port: int


class Listener(NamedTuple):
    """A socket of the host. address: None = all addresses."""

    protocol: int
    port: int
    address: Address | None = None


class PortPool:
    """Blocks of dynamic ports that load balancers without DSR take (EV-15)."""

    def __init__(self, start: int, count: int, block: int) -> None:
        self.block = block
        self.excluded: list[tuple[int, int]] = []  # first port and count, taken away by other users of the host
        self._free = list(range(start, start + count - block + 1, block)) if block else []

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        """First port of a block; None if there is none left."""
        return self._free.pop(0) if self._free else None

    def take_at(self, start: int) -> None:
        """That block, if it is free."""
        if start in self._free:
            self._free.remove(start)

    def give_back(self, start: int) -> None:
        if self._usable(start):
            self._free.append(start)
            self._free.sort()

    def exclude(self, first: int, count: int) -> None:
        """Free blocks that overlap these ports are gone; taken ones go when they are given back."""
        self.excluded.append((first, count))
        self._free = [start for start in self._free if self._usable(start)]

    def _usable(self, start: int) -> bool:
        return all(start + self.block <= first or start >= first + count for first, count in self.excluded)


@dataclass(slots=True)
class State:
    """Objects by GUID, in the order of their creation. Written only through `put` and `drop`, which keep the indexes.

    host_addresses: the node's own; a load balancer on one of them counts as one on the node. blocks: load balancer →
    first port of its block. broken_ports: endpoints whose switch port has vanished.
    """

    pool: PortPool
    host_addresses: tuple[Address, ...]
    networks: dict[Guid, HnsNetwork] = field(default_factory=dict)
    endpoints: dict[Guid, HnsEndpoint] = field(default_factory=dict)
    load_balancers: dict[Guid, HnsLoadBalancer] = field(default_factory=dict)
    listeners: set[Listener] = field(default_factory=set)
    leaked: set[LbFrontend] = field(default_factory=set)
    blocks: dict[Guid, int] = field(default_factory=dict)
    broken_ports: set[Guid] = field(default_factory=set)
    created_at: dict[Guid, float] = field(default_factory=dict)
    _by_frontend: dict[LbFrontend, list[Guid]] = field(default_factory=dict)
    _by_address: dict[tuple[Guid, Address], list[Guid]] = field(default_factory=dict)
    _users: dict[Guid, list[Guid]] = field(default_factory=dict)

    def get(self, kind: HnsKind, guid: Guid | str) -> HnsObject | None:
        return self.of_kind(kind).get(Guid(guid))

    def of_kind(self, kind: HnsKind) -> dict[Guid, HnsNetwork] | dict[Guid, HnsEndpoint] | dict[Guid, HnsLoadBalancer]:
        match kind:
            case HnsKind.NETWORK:
                return self.networks
            case HnsKind.ENDPOINT:
                return self.endpoints
            case HnsKind.LOAD_BALANCER:
                return self.load_balancers

    def everything(self) -> Iterator[HnsObject]:
        """Networks, endpoints, load balancers."""
        yield from tuple(self.networks.values())
        yield from tuple(self.endpoints.values())
        yield from tuple(self.load_balancers.values())

    def put(self, value: HnsObject) -> None:
        """Add it, or replace the object of that GUID in its place."""
        old = self.get(kind_of(value), value.guid)
        if old is not None:
            self._unindex(old)
        match value:
            case HnsNetwork():
                self.networks[value.guid] = value
            case HnsEndpoint():
                self.endpoints[value.guid] = value
                for address in value.addresses:
                    self._by_address.setdefault((value.network, address), []).append(value.guid)
            case HnsLoadBalancer():
                self.load_balancers[value.guid] = value
                for frontend in self.frontends(value):
                    self._by_frontend.setdefault(frontend, []).append(value.guid)
                for endpoint in set(value.endpoints):
                    self._users.setdefault(endpoint, []).append(value.guid)

    def drop(self, kind: HnsKind, guid: Guid) -> HnsObject | None:
        """Remove it with its port block; None if it was not there."""
        value = self.of_kind(kind).pop(guid, None)
        if value is None:
            return None
        self._unindex(value)
        self.broken_ports.discard(guid)
        self.created_at.pop(guid, None)
        block = self.blocks.pop(guid, None)
        if block is not None:
            self.pool.give_back(block)
        return value

    def frontends(self, balancer: HnsLoadBalancer) -> tuple[LbFrontend, ...]:
        """Every (address or node, protocol, external port) that this load balancer serves."""
        family = IPFamily.IPV6 if balancer.flags & LbFlags.IPV6 else IPFamily.IPV4
        addresses: Iterable[Address | None] = balancer.frontend_vips or (None,)
        return tuple(
            LbFrontend(
                balancer.family if address is not None else family,
                None if address in self.host_addresses else address,
                mapping.protocol,
                mapping.external_port,
            )
            for mapping in balancer.port_mappings
            for address in addresses
        )

    def owners(self, frontend: LbFrontend) -> tuple[Guid, ...]:
        return tuple(self._by_frontend.get(frontend, ()))

    def users(self, endpoint: Guid) -> tuple[Guid, ...]:
        """Load balancers that name this endpoint, whether it exists or not."""
        return tuple(self._users.get(endpoint, ()))

    def endpoints_at(self, network: Guid, address: Address) -> tuple[HnsEndpoint, ...]:
        return tuple(self.endpoints[guid] for guid in self._by_address.get((network, address), ()))

    def endpoints_of(self, network: Guid) -> tuple[Guid, ...]:
        return tuple(guid for guid, endpoint in self.endpoints.items() if endpoint.network == network)

    def _unindex(self, value: HnsObject) -> None:
        match value:
            case HnsNetwork():
                pass
            case HnsEndpoint():
                for address in value.addresses:
                    _discard(self._by_address, (value.network, address), value.guid)
            case HnsLoadBalancer():
                for frontend in self.frontends(value):
                    _discard(self._by_frontend, frontend, value.guid)
                for endpoint in set(value.endpoints):
                    _discard(self._users, endpoint, value.guid)


def _discard(index: dict[K, list[Guid]], key: K, guid: Guid) -> None:
    index[key].remove(guid)
    if not index[key]:
        del index[key]
