"""Cluster: what the sources say, what each node makes of it, and what each follower has not been told yet.

A Service at one moment is a `ServiceState`, which never changes: a change makes another. So whatever somebody was told
can be compared with what there is now, however long ago that was, and a follower that waits costs one entry for each
Service that has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal, NamedTuple

from hansa.api.change import Delete, Malformed, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Node, ObjectKey, Policy, Service, ServiceKey
from hansa.config import Config
from hansa.net import Prefix
from hansa.services.model import GivenView, NodeFacts, ServicePortView
from hansa.services.store import Store
from hansa.services.view import build_view
from hansa.sources import News


class Viewpoint(NamedTuple):
    """All that a view depends on of a node. zone: "" = it has none, or nobody knows the node."""

    name: str
    zone: str = ""


class ServiceState:
    """One Service with its slices, as of one revision; immutable but for what has been worked out of it so far.

    memo: for encoders; shared by everybody who is told of this state. is_plain: every node is told the same, where
    nodes are told the node of each endpoint. plain: for the encoder of that; False = not made yet.
    """

    __slots__ = (
        "_config",
        "_has_local_policy",
        "_named",
        "_node_hints",
        "_views",
        "_zones",
        "is_plain",
        "memo",
        "pieces",
        "plain",
        "service",
    )

    def __init__(self, service: Service, pieces: Sequence[EndpointSlice], config: Config) -> None:
        self.service = service
        self.pieces = tuple(sorted(pieces, key=attrgetter("name")))
        self.memo: dict[object, object] = {}
        self._config = config
        named: set[str] = set()
        node_hints: set[str] = set()
        zones: set[str] = set()
        for piece in self.pieces:
            for one in piece.endpoints:
                if one.node_name:
                    named.add(one.node_name)
                node_hints |= one.node_hints
                zones |= one.zone_hints
        self._named, self._zones = frozenset(named | node_hints), frozenset(zones)
        self._node_hints = frozenset(node_hints)
        self._has_local_policy = Policy.LOCAL in (service.internal_policy, service.external_policy)
        self.is_plain = not (node_hints or zones or self._has_local_policy)
        self.plain: bytes | Literal[False] | None = False
        self._views: dict[Viewpoint, tuple[ServicePortView, ...]] = {}

    def seen_from(self, viewpoint: Viewpoint) -> Viewpoint:
        """The viewpoint from which everything looks as it does from this one; most nodes of a zone have the same.

        A node of which no endpoint and no hint knows sees what any other such node sees, and a zone that no hint names
        might as well be none.
        """
        zone = viewpoint.zone if viewpoint.zone in self._zones else ""
        return Viewpoint(viewpoint.name if viewpoint.name in self._named else "", zone)

    def told_from(self, viewpoint: Viewpoint) -> Viewpoint:
        """The same where each endpoint's node is told: then only policies Local and hints tell nodes apart."""
        if viewpoint.name in self._named and (self._has_local_policy or viewpoint.name in self._node_hints):
            return self.seen_from(viewpoint)
        return Viewpoint("", viewpoint.zone if viewpoint.zone in self._zones else "")

    def view(self, viewpoint: Viewpoint) -> tuple[ServicePortView, ...]:
        """What stage 2 makes of the Service on such a node; () = no proxy handles it."""
        seen_from = self.seen_from(viewpoint)
        found = self._views.get(seen_from)
        if found is None:
            facts = NodeFacts(seen_from.name, seen_from.zone or None)
            found = self._views[seen_from] = build_view(self._store(), self.service.key, facts, self._config)
        return found

    def _store(self) -> Store:
        store = Store(self._config)
        store.apply(Upsert(self.service))
        for piece in self.pieces:
            store.apply(Upsert(piece))
        return store


class ServiceChange(NamedTuple):
    """before: as the follower was told, None = it knows nothing of it. after: as it is, None = it is gone."""

    key: ServiceKey
    before: ServiceState | None
    after: ServiceState | None


class NodeChange(NamedTuple):
    name: str
    before: Node | None
    after: Node | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What a follower has to be told to know the cluster as of `revision`.

    is_first: of its stream. before, after: from where it has looked and looks now; None = at all of it. services: in no
    particular order, also such that look the same from there. service_ranges: None = as before.
    """

    revision: int
    is_first: bool
    before: Viewpoint | None
    after: Viewpoint | None
    services: tuple[ServiceChange, ...]
    nodes: tuple[NodeChange, ...]
    service_ranges: tuple[Prefix, ...] | None


class Cluster:
    """The one mutable state of a brain, besides its followers; used by one thread.

    revision: grows by one with every batch of changes after which something is different. events: how many changes
    came, whatever came of them.
    """

    def __init__(self, config: Config) -> None:
        """`config`: which Services are this brain's (proxyName), and whether external IPs count."""
        self._config = replace(config, node_name="")
        self._store = Store(self._config)
        self._states: dict[ServiceKey, ServiceState] = {}
        self._nodes: dict[str, Node] = {}
        self._followers: list[Follower] = []
        self.revision = 0
        self.events = 0

    def apply(self, batch: Iterable[News]) -> None:
        """Take changes in, and note for every follower what is different now."""
        services: set[ServiceKey] = set()
        nodes: dict[str, Node | None] = {}
        was_ready, ranges = self.ready, self._store.service_cidrs
        for change in batch:
            if not isinstance(change, Synced):
                self.events += 1
            match change:
                case GivenView():
                    continue  # what another brain has decided for one node says nothing of the cluster
                case Upsert(Node() as node):
                    nodes.setdefault(node.name, self._nodes.get(node.name))
                    self._nodes[node.name] = node
                case Delete(ObjectKey(kind=Kind.NODE, name=name)):
                    nodes.setdefault(name, self._nodes.pop(name, None))
                case _:
                    services |= self._touched(change)
                    self._store.apply(change)
        changed: dict[ServiceKey, ServiceState | None] = {}
        for key in services:
            before = self._states.get(key)
            if self._renew(key, before):
                changed[key] = before
        nodes = {name: before for name, before in nodes.items() if self._nodes.get(name) != before}
        has_new_ranges = self._store.service_cidrs != ranges
        if changed or nodes or has_new_ranges or self.ready != was_ready:
            self.revision += 1
            for follower in self._followers:
                follower.note(changed, nodes, has_new_ranges=has_new_ranges)

    def _renew(self, key: ServiceKey, before: ServiceState | None) -> bool:
        """Make the state of a Service anew; whether it is another one now."""
        service = self._store.services.get(key)
        if service is None or service.proxy_name != self._config.proxy_name:
            return self._states.pop(key, None) is not None
        pieces = self._store.slices_of(key)
        if before is not None and before.service == service and same_pieces(before.pieces, pieces):
            return False
        self._states[key] = ServiceState(service, pieces, self._config)
        return True

    def _touched(self, change: Upsert | Delete | Malformed | Synced) -> set[ServiceKey]:
        """The Services that may look different after this; judged by everything that is sent, also what few read."""
        match change:
            case Upsert(Service() as service):
                return {service.key}
            case Upsert(EndpointSlice() as piece):
                old = self._store.slices.get(piece.object_key)
                return {one for one in (piece.service_key, old.service_key if old else None) if one is not None}
            case Delete(ObjectKey(kind=Kind.SERVICE) as key):
                return {ServiceKey(key.namespace, key.name)}
            case Delete(ObjectKey(kind=Kind.ENDPOINT_SLICE) as key):
                old = self._store.slices.get(key)
                return {old.service_key} if old is not None and old.service_key is not None else set()
            case _:
                return set()

    @property
    def ready(self) -> bool:
        """Whether Services, EndpointSlices and Nodes are complete; before that nobody is told anything."""
        return {Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE} <= self._store.synced

    @property
    def services(self) -> Mapping[ServiceKey, ServiceState]:
        return self._states

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    @property
    def service_ranges(self) -> tuple[Prefix, ...]:
        return self._store.service_cidrs

    @property
    def followers(self) -> int:
        return len(self._followers)

    def viewpoint(self, name: str) -> Viewpoint:
        node = self._nodes.get(name)
        return Viewpoint(name, (node.zone if node is not None else None) or "")

    def follow(self, on_news: Callable[[], None] = lambda: None) -> Follower:
        """on_news: called whenever there may be something new for this follower."""
        follower = Follower(self, on_news)
        self._followers.append(follower)
        return follower

    def forget(self, follower: Follower) -> None:
        self._followers.remove(follower)


class Follower:
    """What one client has not been told yet. viewpoint: from where it looks; None = at everything, or nothing yet.

    As long as it has been told nothing it costs nothing. Afterwards it holds, for each Service that has changed since,
    the state that it knows.
    """

    def __init__(self, cluster: Cluster, on_news: Callable[[], None]) -> None:
        self._cluster = cluster
        self._on_news = on_news
        self._is_first = True
        self._services: dict[ServiceKey, ServiceState | None] = {}
        self._nodes: dict[str, Node | None] = {}
        self._has_new_ranges = True
        self.viewpoint: Viewpoint | None = None

    def note(
        self,
        services: Mapping[ServiceKey, ServiceState | None],
        nodes: Mapping[str, Node | None],
        *,
        has_new_ranges: bool,
    ) -> None:
        """Something is different from what it was, which is given here."""
        if not self._is_first:
            for key, before in services.items():
                self._services.setdefault(key, before)
            for name, node in nodes.items():
                self._nodes.setdefault(name, node)
            self._has_new_ranges |= has_new_ranges
        self._on_news()

    @property
    def has_news(self) -> bool:
        """Whether a difference taken now might say something."""
        return self._is_first or bool(self._services or self._nodes or self._has_new_ranges)

    @property
    def waiting(self) -> int:
        """How many Services have changed since the last difference."""
        return len(self._services)

    def take(self, name: str | None) -> Difference:
        """Everything from what was taken before to what is; from then on the follower counts as told. None = all nodes.

        Only to be asked for once the cluster is ready.
        """
        cluster = self._cluster
        before, after = self.viewpoint, None if name is None else cluster.viewpoint(name)
        if self._is_first:
            services = [ServiceChange(key, None, state) for key, state in cluster.services.items()]
            nodes = [NodeChange(name, None, node) for name, node in cluster.nodes.items()]
        else:
            # Who looks from elsewhere may see any Service otherwise, also one that has not changed.
            keys = self._services if before == after else {**cluster.services, **self._services}
            services = [
                ServiceChange(key, self._services.get(key, now), now)
                for key in keys
                for now in (cluster.services.get(key),)
            ]
            nodes = [NodeChange(name, known, cluster.nodes.get(name)) for name, known in self._nodes.items()]
            if before is not None and after is not None and before.name != after.name:
                nodes.append(NodeChange(after.name, None, cluster.nodes.get(after.name)))
        found = Difference(
            revision=cluster.revision,
            is_first=self._is_first,
            before=before,
            after=after,
            services=tuple(services),
            nodes=tuple(sorted(nodes, key=attrgetter("name"))),
            service_ranges=cluster.service_ranges if self._has_new_ranges else None,
        )
        self._is_first, self._has_new_ranges = False, False
        self._services, self._nodes = {}, {}
        self.viewpoint = after
        return found


def by_path(services: Iterable[ServiceChange]) -> list[ServiceChange]:
    """In the order of their paths, and of the paths of what belongs to them."""
    return sorted(services, key=_path_order)


def _path_order(change: ServiceChange) -> str:
    return f"{change.key.namespace}/{change.key.name}/"


def same_pieces(old: Sequence[EndpointSlice], new: Sequence[EndpointSlice]) -> bool:
    """Whether two sets of slices say the same; when their cause happened does not count."""
    return len(old) == len(new) and all(a == b for a, b in zip(old, sorted(new, key=attrgetter("name")), strict=True))
