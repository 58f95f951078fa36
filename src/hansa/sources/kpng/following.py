"""What a client makes of a stream, without sockets: messages in, differences to what it knew before out.

A Reset forgets nothing: it opens a second memory, which takes the place of the first at the next Sync, and only where
the two differ is anything passed on. So neither a lost connection nor a brain that starts anew reaches the host.
Between Reset and Sync, and in the middle of a batch, nothing is passed on at all.

>>> following = LocalFollowing(config=None)
>>> following.receive(localv1.OpItem(Reset=localv1.EmptyOp())) is None
True
>>> [str(change.kind) for change in following.receive(localv1.OpItem(Sync=localv1.EmptyOp()))]
['Service', 'EndpointSlice', 'Node', 'ServiceCIDR']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey, Service, ServiceKey
from hansa.config import Config
from hansa.errors import MalformedObject
from hansa.services.model import GivenView, ServicePortView
from hansa.sources import News
from hansa.sources.kpng import cluster, local, node, shared
from hansa.sources.kpng.wire import globalv1, localv1, nodev1

_Message = TypeVar("_Message")
Batch = tuple[News, ...]


class Following(Generic[_Message]):
    """One stream after another of the same sort; remembers across them what has been passed on.

    trouble: what of the last batch could not be read, with the object; its last good form stays in force.
    """

    def __init__(self) -> None:
        self.trouble: dict[str, str] = {}
        self._views: dict[ServiceKey, GivenView] = {}
        self._objects: dict[ObjectKey, ApiObject] = {}
        self._is_synced = False

    def receive(self, message: _Message) -> Batch | None:
        """None as long as the batch goes on; at its end what is new, () if nothing is."""
        raise NotImplementedError

    @property
    def lost(self) -> Sequence[str]:
        """What this sort of stream cannot say, for people; known after the first Sync."""
        return ()

    def take_over(self, other: Following[_Message]) -> None:
        """Go on from what another sort of stream has passed on."""
        self._views, self._objects, self._is_synced = other._views, other._objects, other._is_synced

    def _pass_on(self, news: Iterable[News]) -> Batch:
        """What is not known yet of `news`; at the end of the first batch every kind is complete."""
        found: list[News] = []
        for one in news:
            match one:
                case GivenView(key, ports):
                    known = self._views.get(key)
                    if (known.ports if known else ()) != ports:
                        found.append(one)
                        if ports:
                            self._views[key] = one
                        else:
                            del self._views[key]
                case Upsert(item):
                    if self._objects.get(one.key) != item:
                        self._objects[one.key] = item
                        found.append(one)
                case Delete(key):
                    if self._objects.pop(key, None) is not None:
                        found.append(one)
                case _:
                    found.append(one)
        if not self._is_synced:
            self._is_synced = True
            found += [Synced(kind) for kind in Kind]
        return tuple(found)

    def _read(self, subject: str, read: Callable[[], GivenView | Upsert]) -> list[News]:
        try:
            found = read()
        except (MalformedObject, DecodeError) as error:
            self.trouble[subject] = str(error)
            return []
        self.trouble.pop(subject, None)
        return [found]


@dataclass(slots=True)
class _LocalMemory:
    services: dict[str, localv1.Service] = field(default_factory=dict)
    endpoints: dict[str, dict[str, localv1.Endpoint]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)


class LocalFollowing(Following[localv1.OpItem]):
    """localv1. config: this node's; None only where no view is ever read."""

    def __init__(self, config: Config | None) -> None:
        super().__init__()
        self._config = config
        self._memory = _LocalMemory()
        self._fresh: _LocalMemory | None = None

    @property
    def lost(self) -> Sequence[str]:
        return local.LOST

    def receive(self, message: localv1.OpItem) -> Batch | None:
        memory = self._fresh if self._fresh is not None else self._memory
        match message.WhichOneof("Op"):
            case "Reset":
                self._fresh = _LocalMemory()
            case "Set":
                self._set(memory, message.Set)
            case "Delete":
                _delete(memory, message.Delete)
            case "Sync":
                return self._sync()
            case _:
                pass  # an operation that is not known is none of ours (W18)
        return None

    def _set(self, memory: _LocalMemory, value: localv1.Value) -> None:
        path = value.Ref.Path
        parts = path.split("/")
        try:
            match value.Ref.Set, len(parts):
                case localv1.Set.ServicesSet, 2:
                    memory.services[path] = localv1.Service.FromString(value.Bytes)
                    memory.touched.add(path)
                case localv1.Set.EndpointsSet, 3:
                    owner = f"{parts[0]}/{parts[1]}"
                    endpoint = localv1.Endpoint.FromString(value.Bytes)
                    memory.endpoints.setdefault(owner, {})[parts[2]] = endpoint
                    memory.touched.add(owner)
                case ((localv1.Set.ServicesSet | localv1.Set.EndpointsSet), _):
                    self.trouble[path] = f"{path!r} is no path of this set"
                case _:
                    pass  # a set that is not known (W18)
        except DecodeError as error:
            self.trouble[path] = str(error)

    def _sync(self) -> Batch:
        if self._fresh is not None:
            gone = self._memory.services.keys() - self._fresh.services.keys()
            self._memory, self._fresh = self._fresh, None
            # A service that was passed on by another sort of stream is not in this memory.
            touched = self._memory.touched | gone | {str(key) for key in self._views}
        else:
            touched = self._memory.touched
        self._memory.touched = set()
        news = [one for path in sorted(touched) for one in self._read(path, partial(self._view, path))]
        return self._pass_on(news)

    def _view(self, path: str) -> GivenView:
        namespace, _, name = path.partition("/")
        service = self._memory.services.get(path)
        ports: tuple[ServicePortView, ...] = ()
        if service is not None:
            assert self._config is not None
            endpoints = self._memory.endpoints.get(path, {}).values()
            ports = local.read_view(service, endpoints, self._config)
        return GivenView(ServiceKey(namespace, name), ports)


def _delete(memory: _LocalMemory, ref: localv1.Ref) -> None:
    parts = ref.Path.split("/")
    match ref.Set, len(parts):
        case localv1.Set.ServicesSet, 2:
            memory.services.pop(ref.Path, None)
            memory.touched.add(ref.Path)
        case localv1.Set.EndpointsSet, 3:
            owner = f"{parts[0]}/{parts[1]}"
            of_service = memory.endpoints.get(owner, {})
            of_service.pop(parts[2], None)
            if not of_service:
                memory.endpoints.pop(owner, None)
            memory.touched.add(owner)
        case _:
            pass


class NodeFollowing(Following[nodev1.WatchResponse]):
    """The node API, for the node of that name. revision: that of the last Sync; 0 = none yet."""

    def __init__(self, node_name: str) -> None:
        super().__init__()
        self._node_name = node_name
        self.revision = 0
        self._messages: list[nodev1.WatchResponse] = []

    def receive(self, message: nodev1.WatchResponse) -> Batch | None:
        if message.reset:
            self._messages = []
        self._messages.append(message)
        if not message.sync:
            return None
        batch, self._messages = self._messages, []
        self.revision = message.revision
        return self._pass_on(self._news(batch))

    def _news(self, batch: list[nodev1.WatchResponse]) -> Iterable[News]:
        if batch[0].reset:
            named = {ServiceKey(one.namespace, one.name) for message in batch for one in message.set}
            for key in sorted(self._views.keys() - named):
                yield GivenView(key, ())
            if not any(message.HasField("service_ranges") for message in batch):
                yield Delete(ObjectKey(Kind.SERVICE_CIDR, "", node.SERVICE_RANGES))
        for message in batch:
            if message.HasField("node"):
                yield from self._read("Node", partial(node.read_node, message.node))
            if message.HasField("service_ranges"):
                held = message.service_ranges
                yield from self._read("ServiceCIDR", partial(node.read_service_ranges, held))
            for path in message.delete:
                namespace, _, name = path.partition("/")
                yield GivenView(ServiceKey(namespace, name), ())
            for one in message.set:
                yield from self._read(f"{one.namespace}/{one.name}", partial(node.read_service, one, self._node_name))


_Owner = tuple[str, str]


@dataclass(slots=True)
class _ClusterMemory:
    """endpoints: by namespace and Service, then by slice, then by key. second_form: the path of the first form."""

    services: dict[_Owner, localv1.Service] = field(default_factory=dict)
    endpoints: dict[_Owner, dict[str, dict[str, globalv1.EndpointInfo]]] = field(default_factory=dict)
    second_form: dict[str, cluster.EndpointPath] = field(default_factory=dict)
    nodes: dict[str, globalv1.NodeInfo] = field(default_factory=dict)
    touched: set[_Owner] = field(default_factory=set)
    touched_nodes: set[str] = field(default_factory=set)


class ClusterFollowing(Following[localv1.OpItem]):
    """globalv1. proxy_name: by which the brain has selected Services."""

    def __init__(self, proxy_name: str | None = None) -> None:
        super().__init__()
        self._proxy_name = proxy_name
        self._memory = _ClusterMemory()
        self._fresh: _ClusterMemory | None = None
        self._slices: dict[_Owner, frozenset[ObjectKey]] = {}

    @property
    def lost(self) -> Sequence[str]:
        slices = (entries for of_service in self._memory.endpoints.values() for entries in of_service.values())
        is_hansa = all(info.Conditions.HasField("Serving") for entries in slices for info in entries.values())
        return cluster.LOST if is_hansa else (*cluster.LOST_BY_KPNG, *cluster.LOST)

    def receive(self, message: localv1.OpItem) -> Batch | None:
        memory = self._fresh if self._fresh is not None else self._memory
        try:
            match message.WhichOneof("Op"):
                case "Reset":
                    self._fresh = _ClusterMemory()
                case "Set":
                    _set_global(memory, message.Set)
                case "Delete":
                    _delete_global(memory, message.Delete)
                case "Sync":
                    return self._sync()
                case _:
                    pass
        except (MalformedObject, DecodeError) as error:
            self.trouble[message.Set.Ref.Path or message.Delete.Path] = str(error)
        return None

    def _sync(self) -> Batch:
        owners, nodes = self._memory.touched, self._memory.touched_nodes
        if self._fresh is not None:
            old, self._memory, self._fresh = self._memory, self._fresh, None
            owners = self._memory.touched | old.services.keys() | old.endpoints.keys()
            nodes = self._memory.touched_nodes | old.nodes.keys()
        self._memory.touched, self._memory.touched_nodes = set(), set()
        return self._pass_on([*self._node_news(nodes), *(one for owner in sorted(owners) for one in self._news(owner))])

    def _node_news(self, names: Iterable[str]) -> Iterable[News]:
        for name in sorted(names):
            known = self._memory.nodes.get(name)
            if known is None:
                yield Delete(ObjectKey(Kind.NODE, "", name))
            else:
                yield from self._read(f"Node {name}", partial(_read_node, known))

    def _news(self, owner: _Owner) -> Iterable[News]:
        """The Service first, then its slices; the Service goes last."""
        subject = f"Service {owner[0]}/{owner[1]}"
        message = self._memory.services.get(owner)
        service: Service | None = None
        if message is not None:
            read = self._read(subject, lambda: Upsert(shared.read_service(message, proxy_name=self._proxy_name)))
            yield from read
            service = (
                read[0].object if read and isinstance(read[0], Upsert) and isinstance(read[0].object, Service) else None
            )
            if service is None:
                return  # it stays as it was, and so do its slices
        now: set[ObjectKey] = set()
        for source, entries in sorted(self._memory.endpoints.get(owner, {}).items()):
            path = cluster.EndpointPath(*owner, source, "")
            try:
                pieces = cluster.read_slices(path, (entries[key] for key in sorted(entries)), service)
            except MalformedObject as error:
                self.trouble[f"EndpointSlice {owner[0]}/{source}"] = str(error)
                now |= {key for key in self._slices.get(owner, ()) if key.name.partition("~")[0] == source}
                continue
            self.trouble.pop(f"EndpointSlice {owner[0]}/{source}", None)
            for piece in pieces:
                now.add(piece.object_key)
                yield Upsert(piece)
        for key in sorted(self._slices.get(owner, frozenset()) - now, key=str):
            yield Delete(key)
        self._slices[owner] = frozenset(now)
        if not now:
            del self._slices[owner]
        if message is None:
            yield Delete(ObjectKey(Kind.SERVICE, *owner))


def _read_node(message: globalv1.NodeInfo) -> Upsert:
    return Upsert(cluster.read_node(message))


def _set_global(memory: _ClusterMemory, value: localv1.Value) -> None:
    match value.Ref.Set:
        case localv1.Set.GlobalServiceInfos:
            namespace, name, _, _ = cluster.read_path(value.Ref.Path)
            memory.services[namespace, name] = globalv1.ServiceInfo.FromString(value.Bytes).Service
            memory.touched.add((namespace, name))
        case localv1.Set.GlobalEndpointInfos:
            namespace, service, source, key = cluster.read_path(value.Ref.Path)
            info = globalv1.EndpointInfo.FromString(value.Bytes)
            path = cluster.EndpointPath(namespace, service or info.ServiceName, source, key)
            if not service:
                memory.second_form[value.Ref.Path] = path
            memory.endpoints.setdefault((namespace, path.service), {}).setdefault(source, {})[key] = info
            memory.touched.add((namespace, path.service))
        case localv1.Set.GlobalNodeInfos:
            _, name, _, _ = cluster.read_path(value.Ref.Path)
            memory.nodes[name] = globalv1.NodeInfo.FromString(value.Bytes)
            memory.touched_nodes.add(name)
        case _:
            pass


def _delete_global(memory: _ClusterMemory, ref: localv1.Ref) -> None:
    match ref.Set:
        case localv1.Set.GlobalServiceInfos:
            namespace, name, _, _ = cluster.read_path(ref.Path)
            memory.services.pop((namespace, name), None)
            memory.touched.add((namespace, name))
        case localv1.Set.GlobalEndpointInfos:
            path = cluster.EndpointPath(*cluster.read_path(ref.Path))
            path = memory.second_form.pop(ref.Path, path)
            owner = (path.namespace, path.service)
            sources: Mapping[str, dict[str, globalv1.EndpointInfo]] = memory.endpoints.get(owner, {})
            sources.get(path.source, {}).pop(path.key, None)
            if not sources.get(path.source, True):
                del memory.endpoints[owner][path.source]
            if not memory.endpoints.get(owner, True):
                del memory.endpoints[owner]
            memory.touched.add(owner)
        case localv1.Set.GlobalNodeInfos:
            _, name, _, _ = cluster.read_path(ref.Path)
            memory.nodes.pop(name, None)
            memory.touched_nodes.add(name)
        case _:
            pass
