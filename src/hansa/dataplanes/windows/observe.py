"""What HNS holds, as last seen, and the bounded reads that keep it true.

`Observed` is a store without I/O: objects by GUID, indexed by frontend, by address and by reference. `Observer` fills
it: a deep snapshot reads everything, a presence check reads only what it has not seen before, verification re-reads a
few objects a time. Evidence: windows-proxy H.7; hcn.md 1.4 (listing), 5.10 (partial objects).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Set
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from hansa.dataplanes.windows.objects import Touched
from hansa.errors import DataplaneError
from hansa.hns.api import ZERO_GUID, Guid, HnsError, HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.errors import ErrorClass, classify
from hansa.hns.schema import (
    Dns,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    MalformedHnsObject,
    NetworkType,
    decode_endpoint,
    decode_load_balancer,
    decode_network,
)
from hansa.net import Address, Protocol
from hansa.rules.model import FrontendKey

# Beyond this share of changed GUIDs memory is worth nothing and everything is read again (windows-proxy H.7) ...
DEEP_SHARE = 0.1
DEEP_FLOOR = 20  # ... unless so few objects changed that reading them is cheap anyway
NO_GUIDS: Set[Guid] = frozenset()
NO_DNS = Dns()
K = TypeVar("K", bound=Hashable)
S = TypeVar("S", HnsNetwork, HnsEndpoint, HnsLoadBalancer)


class HnsDown(DataplaneError):
    """HNS does not answer: the pass ends, and nothing may be concluded about any object."""


def raise_if_down(error: HnsError) -> ErrorClass:
    """The class of a refusal; raises HnsDown if it is none, because nobody answered."""
    error_class = classify(error)
    if error_class is ErrorClass.UNAVAILABLE:
        raise HnsDown(str(error)) from error
    return error_class


def claims_of(balancer: HnsLoadBalancer) -> tuple[FrontendKey, ...]:
    """Every frontend that this load balancer serves; () for partial objects and protocols that no service has."""
    found = []
    for mapping in balancer.port_mappings:
        try:
            protocol = Protocol(mapping.protocol)
        except ValueError:
            continue
        for vip in balancer.frontend_vips or (None,):
            found.append(FrontendKey(balancer.family, vip, protocol, mapping.external_port))
    return tuple(found)


class Observed:
    """HNS's objects as last seen. `changes` collects frontends and addresses whose objects changed, until taken.

    unreadable: objects that exist but make no sense, with the reason; they are left alone.
    """

    def __init__(self) -> None:
        self.network: HnsNetwork | None = None
        self.endpoints: dict[Guid, HnsEndpoint] = {}
        self.balancers: dict[Guid, HnsLoadBalancer] = {}
        self.unreadable: dict[Guid, str] = {}
        self.changes = Touched()
        self._claims: dict[Guid, tuple[FrontendKey, ...]] = {}
        self._by_frontend: dict[FrontendKey, tuple[Guid, ...]] = {}  # sorted; nearly always one
        self._by_address: dict[Address, tuple[Guid, ...]] = {}
        self._references: dict[Guid, set[Guid]] = {}
        self.placeless: set[Guid] = set()  # load balancers without a frontend that can be read
        self.turns: dict[Guid, None] = {}  # whose content was read longest ago comes first
        self.seen_all = False  # the last look has read, or found unreadable, whatever HNS listed

    def at_frontend(self, frontend: FrontendKey) -> list[HnsLoadBalancer]:
        """Load balancers that serve it, sorted by GUID; more than one is possible."""
        return [self.balancers[guid] for guid in self._by_frontend.get(frontend, ())]

    def at_address(self, address: Address) -> list[HnsEndpoint]:
        """Endpoints of the network with this address, sorted by GUID."""
        return [self.endpoints[guid] for guid in self._by_address.get(address, ())]

    def claims(self, guid: Guid) -> tuple[FrontendKey, ...]:
        return self._claims.get(guid, ())

    def references(self, endpoint: Guid) -> Set[Guid]:
        """GUIDs of all load balancers of the host that name this endpoint."""
        return self._references.get(endpoint, NO_GUIDS)

    def put_endpoint(self, endpoint: HnsEndpoint) -> None:
        endpoint = _slim(endpoint)
        old = self.endpoints.get(endpoint.guid)
        if old == endpoint:
            return
        self.drop_endpoint(endpoint.guid)
        self.endpoints[endpoint.guid] = endpoint
        self.turns[endpoint.guid] = None
        for address in endpoint.addresses:
            _add(self._by_address, address, endpoint.guid)
        self.changes.addresses.update(endpoint.addresses)

    def drop_endpoint(self, guid: Guid) -> None:
        self.unreadable.pop(guid, None)
        old = self.endpoints.pop(guid, None)
        if old is None:
            return
        del self.turns[guid]
        for address in old.addresses:
            _remove(self._by_address, address, guid)
        self.changes.addresses.update(old.addresses)
        for user in self.references(guid):
            self.changes.frontends.update(self.claims(user))

    def put_balancer(self, balancer: HnsLoadBalancer) -> None:
        known = self.endpoints  # share the texts of GUIDs that are known already
        guids = tuple(known[guid].guid if guid in known else guid for guid in balancer.endpoints)
        balancer = msgspec.structs.replace(balancer, endpoints=guids)
        old = self.balancers.get(balancer.guid)
        if old == balancer:
            return
        self.drop_balancer(balancer.guid)
        guid = balancer.guid
        self.balancers[guid] = balancer
        self.turns[guid] = None
        claims = self._claims[guid] = claims_of(balancer)
        for frontend in claims:
            _add(self._by_frontend, frontend, guid)
        for endpoint in balancer.endpoints:
            self._references.setdefault(endpoint, set()).add(guid)
        if not claims:
            self.placeless.add(guid)
            self.changes.strays.add(guid)
        self.changes.frontends.update(claims)

    def drop_balancer(self, guid: Guid) -> None:
        self.unreadable.pop(guid, None)
        old = self.balancers.pop(guid, None)
        if old is None:
            return
        del self.turns[guid]
        claims = self._claims.pop(guid)
        for frontend in claims:
            _remove(self._by_frontend, frontend, guid)
        for endpoint in old.endpoints:
            self._drop_reference(endpoint, guid)
            if endpoint in self.endpoints:  # it may now be free to go
                self.changes.addresses.update(self.endpoints[endpoint].addresses)
        self.placeless.discard(guid)
        self.changes.frontends.update(claims)

    def _drop_reference(self, endpoint: Guid, balancer: Guid) -> None:
        users = self._references.get(endpoint)
        if users is not None:
            users.discard(balancer)
            if not users:
                del self._references[endpoint]

    def take_changes(self) -> Touched:
        changes, self.changes = self.changes, Touched()
        return changes

    def forget_endpoints(self) -> None:
        """The network is another one now: its endpoints are not those that were seen."""
        for guid in list(self.endpoints):
            self.drop_endpoint(guid)


def _add(index: dict[K, tuple[Guid, ...]], key: K, guid: Guid) -> None:
    index[key] = tuple(sorted((*index.get(key, ()), guid)))


def _remove(index: dict[K, tuple[Guid, ...]], key: K, guid: Guid) -> None:
    rest = tuple(other for other in index.get(key, ()) if other != guid)
    if rest:
        index[key] = rest
    else:
        index.pop(key, None)


def _slim(endpoint: HnsEndpoint) -> HnsEndpoint:
    """Without what is never looked at in remote endpoints: there may be a hundred thousand of them."""
    if not endpoint.remote:
        return endpoint
    return msgspec.structs.replace(endpoint, name="", dns=NO_DNS, routes=(), namespace=None, network=ZERO_GUID)


def _identified(value: S, guid: Guid) -> S:
    """HNS's document under the GUID by which it was read, should it not name its own."""
    return value if value.guid == guid else msgspec.structs.replace(value, guid=guid)


@dataclass(frozen=True, slots=True)
class NoNetwork:
    """A healthy HNS says that there is no such network, or no way to choose one."""

    text: str


SERVICE_NETWORK_TYPES = frozenset({NetworkType.L2BRIDGE, NetworkType.OVERLAY, NetworkType.L2TUNNEL})


class Observer:
    """Reads HNS into `Observed`. Methods raise HnsDown, and HnsError if a listing is refused; never for one object."""

    def __init__(self, client: HnsClient, observed: Observed) -> None:
        self._client = client
        self._observed = observed

    def find_network(self, name: str) -> HnsNetwork | NoNetwork:
        """4 calls by name. Without a name, the only network that services can use: 1 call and 3 per network."""
        ids = self._list(HnsKind.NETWORK, name=name or None)
        networks = [network for guid in ids if (network := self._read_network(guid)) is not None]
        if name:
            networks = [network for network in networks if network.name == name]
        else:
            networks = [network for network in networks if network.type in SERVICE_NETWORK_TYPES]
        if len(networks) == 1:
            return networks[0]
        wanted = f"named {name}" if name else "of type l2bridge, l2tunnel or overlay"
        if not networks:
            return NoNetwork(f"HNS has no network {wanted}; the CNI makes it")
        return NoNetwork(f"HNS has {len(networks)} networks {wanted}; set the network's name in the configuration")

    def probe(self) -> None:
        """One cheap call that only succeeds if HNS answers."""
        self._list(HnsKind.NETWORK)

    def read_all(self) -> None:
        """Deep snapshot: 2 calls and 3 per object. Objects that vanish meanwhile are skipped (F32)."""
        self._look(deep=True)

    def check_presence(self) -> None:
        """2 calls, and 3 for each object not seen before; a deep snapshot if much has changed."""
        self._look(deep=False)

    def verify(self, count: int, is_ours: Callable[[Guid], bool]) -> None:
        """Read up to `count` of our objects again, in turn: silent changes of content are found within a round."""
        turns = self._observed.turns
        for _ in range(len(turns)):
            if count <= 0:
                return
            guid = next(iter(turns))
            turns[guid] = turns.pop(guid)
            if is_ours(guid):
                count -= 1
                self.read(HnsKind.ENDPOINT if guid in self._observed.endpoints else HnsKind.LOAD_BALANCER, guid)

    def read(self, kind: HnsKind, guid: Guid) -> None:
        """Read one load balancer or endpoint into memory: 3 calls. One that is gone is dropped."""
        observed = self._observed
        drop = observed.drop_endpoint if kind is HnsKind.ENDPOINT else observed.drop_balancer
        try:
            text = self._client.read(kind, guid)
            if kind is HnsKind.ENDPOINT:
                observed.put_endpoint(_identified(decode_endpoint(text), guid))
            else:
                observed.put_balancer(_identified(decode_load_balancer(text), guid))
            observed.unreadable.pop(guid, None)
        except HnsError as error:
            if raise_if_down(error) is ErrorClass.GONE:
                drop(guid)
                return
        except MalformedHnsObject as error:
            drop(guid)
            observed.unreadable[guid] = str(error)

    def _look(self, *, deep: bool) -> None:
        network = self._observed.network
        assert network is not None
        balancers = self._list(HnsKind.LOAD_BALANCER)
        endpoints = self._list(HnsKind.ENDPOINT, network=network.guid)
        self._forget_absent({*balancers, *endpoints})
        known = {*self._observed.balancers, *self._observed.endpoints, *self._observed.unreadable}
        new = len({*balancers, *endpoints} - known)
        deep = deep or new > max(DEEP_FLOOR, DEEP_SHARE * (len(balancers) + len(endpoints)))
        for kind, ids in ((HnsKind.ENDPOINT, endpoints), (HnsKind.LOAD_BALANCER, balancers)):
            for guid in ids:
                if deep or guid not in known:
                    self.read(kind, guid)
        seen = {*self._observed.balancers, *self._observed.endpoints, *self._observed.unreadable}
        self._observed.seen_all = seen.issuperset((*balancers, *endpoints))

    def _forget_absent(self, present: Set[Guid]) -> None:
        observed = self._observed
        for guid in [guid for guid in observed.balancers if guid not in present]:
            observed.drop_balancer(guid)
        for guid in [guid for guid in observed.endpoints if guid not in present]:
            observed.drop_endpoint(guid)
        for guid in [guid for guid in observed.unreadable if guid not in present]:
            del observed.unreadable[guid]

    def _read_network(self, guid: Guid) -> HnsNetwork | None:
        """None if it is gone meanwhile or makes no sense."""
        try:
            return _identified(decode_network(self._client.read(HnsKind.NETWORK, guid)), guid)
        except HnsError as error:
            if raise_if_down(error) is ErrorClass.GONE:
                return None
            raise
        except MalformedHnsObject as error:
            self._observed.unreadable[guid] = str(error)
            return None

    def _list(self, kind: HnsKind, *, name: str | None = None, network: Guid | None = None) -> tuple[Guid, ...]:
        try:
            return self._client.list_ids(kind, name=name, network=network)
        except HnsError as error:
            raise_if_down(error)
            raise
