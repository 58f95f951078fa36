"""A Kubernetes API server for tests: real sockets, HTTP and TLS; the objects and moods of a real one in memory.

    async with ApiServer() as server:
        server.put(service("web"))                  # an ApiObject, or a manifest as a dict
        source = KubernetesSource(server.connection(), config())
        ...
        server.delete(service("web"))
        server.compact()                            # old versions answer 410
        server.cut()                                # every connection breaks

It lists in consistent pages with continue tokens, watches from any version it still remembers, streams initial events,
sends bookmarks, translates events for selectors, compresses, checks tokens, client certificates and permissions, and
can be told to fail, to be slow, to keep an answer back, and to go away and come back on the same port. `requests`
records what it was asked, `forbidden` what it refused for lack of permission. It takes Events as a real one does, with
its checks, and keeps them in `told`.
Evidence: Kubernetes API concepts; what the API server of 1.36 was seen to answer.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from aiohttp import web

from hansa.api.objects import ApiObject
from hansa.sources.kubernetes.kubeconfig import Connection
from hansa.testing import manifest

Manifest = dict[str, Any]
Identity = tuple[str, str]  # namespace ("" for cluster-wide kinds) and name

RESOURCES = {
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "Node": "/api/v1/nodes",
    "ServiceCIDR": "/apis/networking.k8s.io/v1/servicecidrs",
}
API_VERSIONS = {
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Node": "v1",
    "ServiceCIDR": "networking.k8s.io/v1",
}
EVENTS = "/apis/events.k8s.io/v1"
CLUSTER_WIDE = ("Node", "ServiceCIDR")
INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}


@dataclass(frozen=True)
class Event:
    """old, new: None = the object did not exist before, or does not exist any more."""

    version: int
    old: Manifest | None
    new: Manifest | None


@dataclass
class Asked:
    """A request as it came."""

    kind: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


class Access(NamedTuple):
    """What the authorizer of a server is asked: may this account do that to this resource?"""

    verb: str
    group: str
    resource: str


def access_of(method: str, path: str, query: Mapping[str, str]) -> Access:
    """As a real server reads it off a request. Evidence: Kubernetes, "Determine the Request Verb"."""
    parts = [part for part in path.split("/") if part]
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    read = "watch" if query.get("watch") == "true" else "get" if len(rest) > 1 else "list"
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, read)
    return Access(verb, group, rest[0])


@dataclass
class Mood:
    """How the server feels; a test changes it at any time.

    refuse_watch_list: status for streaming lists, 0 = it can do them. missing: kinds that answer 404. delay_s: before
    each answer. gzip: compress lists if the client accepts that. gone_as_status: a watch from a forgotten version is
    answered with HTTP 410, not with an ERROR event. permitted: what the account may do, None = everything; what else it
    asks for is answered with 403. terminating: namespaces in which nothing new may be made.
    """

    refuse_watch_list: int = 0
    missing: set[str] = field(default_factory=set)
    delay_s: float = 0.0
    gzip: bool = False
    gone_as_status: bool = False
    permitted: Set[Access] | None = None
    terminating: set[str] = field(default_factory=set)


class ApiServer:
    """`async with` starts and ends it. tls: serve HTTPS with this context."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, mood: Mood | None = None) -> None:
        self.mood = mood or Mood()
        self.requests: list[Asked] = []
        self.forbidden: list[Access] = []
        self.told: dict[Identity, Manifest] = {}
        self.version = 1000
        self._tls = tls
        self._objects: dict[str, dict[Identity, Manifest]] = {kind: {} for kind in RESOURCES}
        self._events: dict[str, list[Event]] = {kind: [] for kind in RESOURCES}
        self._oldest = self.version
        self._snapshots: dict[str, list[Manifest]] = {}
        self._tokens: frozenset[str] | None = None
        self._failures: list[tuple[int, float]] = []
        self._holds: list[tuple[Callable[[Asked], bool], asyncio.Event]] = []
        self._watches: set[_Watcher] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    # Starting and stopping

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve; the second time on the same port as before."""
        application = web.Application(middlewares=[self._authorize])
        for kind, path in RESOURCES.items():
            application.router.add_get(path, self._handler(kind))
        application.router.add_get(f"{RESOURCES['Node']}/{{name}}", self._get_node)
        application.router.add_post(f"{EVENTS}/namespaces/{{namespace}}/events", self._create_event)
        application.router.add_patch(f"{EVENTS}/namespaces/{{namespace}}/events/{{name}}", self._patch_event)
        # As in a real server, a watch ends when its client goes.
        self._runner = web.AppRunner(
            application, handle_signals=False, handler_cancellation=True, shutdown_timeout=0.01, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Go away with every connection; objects and history stay."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def connection(self, **fields: Any) -> Connection:
        return Connection(self.url, **fields)

    # Objects

    def put(self, *items: ApiObject | Manifest) -> None:
        """Create or replace objects."""
        for item in items:
            kind, new = _manifest(item)
            self.version += 1
            new["metadata"]["resourceVersion"] = str(self.version)
            identity = _identity(kind, new)
            old = self._objects[kind].get(identity)
            self._objects[kind][identity] = new
            self._record(kind, Event(self.version, old, new))

    def delete(self, *items: ApiObject | Manifest) -> None:
        """Delete objects; only their names count."""
        for item in items:
            kind, wanted = _manifest(item)
            old = self._objects[kind].pop(_identity(kind, wanted))
            self.version += 1
            last = copy.deepcopy(old)
            last["metadata"]["resourceVersion"] = str(self.version)
            self._record(kind, Event(self.version, last, None))

    def compact(self) -> None:
        """Forget the past: watches from before now and continue tokens answer 410."""
        self._oldest = self.version
        self._snapshots.clear()
        for events in self._events.values():
            events.clear()

    def restore(self, version: int) -> None:
        """Go back to a lower version with the objects as they are, as after restoring a backup of etcd."""
        self.version = version
        self.compact()

    def manifests(self) -> list[Manifest]:
        """Every object as it is now; copies."""
        return [copy.deepcopy(item) for items in self._objects.values() for _, item in sorted(items.items())]

    # Moods

    def hold(self, which: Callable[[Asked], bool]) -> asyncio.Event:
        """Requests that `which` picks are answered only once the event that this returns is set."""
        gate = asyncio.Event()
        self._holds.append((which, gate))
        return gate

    def require_token(self, *tokens: str) -> None:
        """From now on only these tokens are good; none at all means that no token is needed."""
        self._tokens = frozenset(tokens) or None

    def fail(self, *statuses: int, retry_after_s: float = 0.0) -> None:
        """Answer the next requests with these statuses, one each."""
        self._failures += [(status, retry_after_s) for status in statuses]

    def cut(self) -> None:
        """Break every connection at once, without a word."""
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        self.end_watches()

    def cut_mid_line(self) -> None:
        """Every watch gets half an event, and then its connection breaks."""
        self._say(b'{"type":"MODIFIED","object":{"metadata":{"name":"we')
        asyncio.get_running_loop().call_later(0.01, self.cut)

    def end_watches(self) -> None:
        """End every watch in order, as a server does when its timeout has passed."""
        self._say(None)

    def say_gone(self) -> None:
        """Every watch is told by an ERROR event that its version is too old."""
        self.say(_event("ERROR", _status(410, "Expired", "too old resource version")))
        self.end_watches()

    def bookmark(self) -> None:
        """Every watch gets a bookmark now."""
        for one in self._watches:
            one.queue.put_nowait(_bookmark(one.kind, self.version))

    def say(self, line: bytes) -> None:
        """Every watch gets these bytes."""
        self._say(line)

    @property
    def watch_count(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    def _say(self, line: bytes | None) -> None:
        for one in self._watches:
            one.queue.put_nowait(line)

    def _record(self, kind: str, event: Event) -> None:
        self._events[kind].append(event)
        for one in self._watches:
            if one.kind == kind:
                one.tell(event)

    # Answers

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        access = access_of(request.method, request.path, request.query)
        if self.mood.permitted is None or access in self.mood.permitted:
            return await handler(request)
        self.forbidden.append(access)
        in_group = f'in API group "{access.group}" at the cluster scope'
        message = f'{access.resource} is forbidden: User "hansa" cannot {access.verb} resource "{access.resource}" '
        return _refuse(403, "Forbidden", message + in_group)

    def _handler(self, kind: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            asked = Asked(kind, dict(request.query), dict(request.headers))
            self.requests.append(asked)
            for which, gate in self._holds:
                if which(asked):
                    await gate.wait()
            if self.mood.delay_s:
                await asyncio.sleep(self.mood.delay_s)
            refusal = self._refusal(kind, request)
            if refusal is not None:
                return refusal
            if request.query.get("watch") == "true":
                return await self._watch(kind, request)
            return self._list(kind, request)

        return handle

    async def _get_node(self, request: web.Request) -> web.Response:
        """One object by its name: other proxies ask for their node so."""
        name = request.match_info["name"]
        found = self._objects["Node"].get(("", name))
        if found is None:
            return _refuse(404, "NotFound", f'nodes "{name}" not found')
        return web.json_response(found)

    async def _create_event(self, request: web.Request) -> web.Response:
        refusal = await self._event_refusal(request)
        if refusal is not None:
            return refusal
        event, namespace = await request.json(), request.match_info["namespace"]
        identity = (namespace, event["metadata"]["name"])
        faults = event_faults(event, namespace)
        if faults:
            return _refuse(422, "Invalid", f'Event.events.k8s.io "{identity[1]}" is invalid: {"; ".join(faults)}')
        if identity in self.told:
            return _refuse(409, "AlreadyExists", f'events "{identity[1]}" already exists')
        self.told[identity] = event
        return web.json_response(event, status=201)

    async def _patch_event(self, request: web.Request) -> web.Response:
        refusal = await self._event_refusal(request)
        if refusal is not None:
            return refusal
        assert request.content_type == "application/merge-patch+json"
        identity = (request.match_info["namespace"], request.match_info["name"])
        if identity not in self.told:
            return _refuse(404, "NotFound", f'events.events.k8s.io "{identity[1]}" not found')
        change = await request.json()
        if set(change) != {"series"}:
            return _refuse(422, "Invalid", "field is immutable")
        self.told[identity] |= change
        return web.json_response(self.told[identity])

    async def _event_refusal(self, request: web.Request) -> web.Response | None:
        self.requests.append(Asked("Event", dict(request.query), dict(request.headers)))
        for which, gate in self._holds:
            if which(self.requests[-1]):
                await gate.wait()
        namespace = request.match_info["namespace"]
        if namespace in self.mood.terminating:
            text = f"unable to create new content in namespace {namespace} because it is being terminated"
            status = _status(403, "Forbidden", text)
            status["details"] = {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}
            return web.json_response(status, status=403)
        return self._refusal("Event", request)

    def _refusal(self, kind: str, request: web.Request) -> web.Response | None:
        if self._failures:
            code, retry_after_s = self._failures.pop(0)
            return _refuse(code, "Failure", "as told", retry_after_s=retry_after_s)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self._tokens is not None and (scheme != "Bearer" or token not in self._tokens):
            return _refuse(401, "Unauthorized", "Unauthorized")
        if kind in self.mood.missing:
            return web.Response(status=404, text="404 page not found")
        if "sendInitialEvents" in request.query and self.mood.refuse_watch_list:
            return _refuse(self.mood.refuse_watch_list, "Invalid", "sendInitialEvents is forbidden for watch")
        return None

    def _selected(self, kind: str, selects: Selects) -> list[Manifest]:
        return [item for _, item in sorted(self._objects[kind].items()) if selects(item)]

    def _list(self, kind: str, request: web.Request) -> web.Response:
        token = request.query.get("continue", "")
        if token and token not in self._snapshots:
            return _refuse(410, "Expired", "The provided continue parameter is too old")
        items = self._snapshots[token] if token else self._selected(kind, selector(request.query))
        version = token.split(":")[0] if token else str(self.version)
        limit = int(request.query.get("limit", len(items) or 1))
        page, rest = items[:limit], items[limit:]
        metadata: Manifest = {"resourceVersion": version}
        if rest:
            metadata["continue"] = f"{version}:{len(self._snapshots)}"
            metadata["remainingItemCount"] = len(rest)
            self._snapshots[metadata["continue"]] = rest
        # As of a real server, the items of a list do not say what they are.
        bare = [{name: value for name, value in item.items() if name not in ("kind", "apiVersion")} for item in page]
        body = {"kind": f"{kind}List", "apiVersion": API_VERSIONS[kind], "metadata": metadata, "items": bare}
        response = web.json_response(body)
        if self.mood.gzip and "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _watch(self, kind: str, request: web.Request) -> web.StreamResponse:
        query = request.query
        selects = selector(query)
        since = int(query.get("resourceVersion") or 0)
        is_gone = 0 < since < self._oldest
        if is_gone and self.mood.gone_as_status:
            return _refuse(410, "Expired", f"too old resource version: {since} ({self._oldest})")
        watcher = _Watcher(kind, selects)
        if is_gone:
            watcher.queue.put_nowait(_event("ERROR", _status(410, "Expired", "too old resource version")))
            watcher.queue.put_nowait(None)
        elif since:
            for event in self._events[kind]:
                if event.version > since:
                    watcher.tell(event)
        else:
            for item in self._selected(kind, selects):
                watcher.queue.put_nowait(_event("ADDED", item))
            if query.get("sendInitialEvents") == "true":
                watcher.queue.put_nowait(_bookmark(kind, self.version, INITIAL_EVENTS_END))
        self._watches.add(watcher)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            async with asyncio.timeout(float(query.get("timeoutSeconds", "600"))):
                while (line := await watcher.queue.get()) is not None:
                    await response.write(line)
            await response.write_eof()
        except (TimeoutError, ConnectionError):
            pass  # the client has gone, or its time is over
        finally:
            self._watches.discard(watcher)
        return response


def event_faults(event: Manifest, namespace: str) -> list[str]:
    """What a server of 1.36 refuses in a new Event. Evidence: Kubernetes, validation of events.k8s.io/v1."""
    faults = []
    regarding = event.get("regarding", {})
    if event["metadata"].get("namespace") != namespace:
        faults.append("metadata.namespace: does not match the request")
    if regarding.get("namespace", "") != namespace and (regarding.get("namespace") or namespace != "default"):
        faults.append("involvedObject.namespace: does not match event.namespace")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event.get("eventTime", "")):
        faults.append("eventTime: Required value")
    for name, most in (("reportingController", 0), ("reportingInstance", 128), ("action", 128), ("reason", 128)):
        if not event.get(name) or (most and len(event[name]) > most):
            faults.append(f"{name}: Required value, or too long")
    if len(event.get("note", "").encode()) > 1024:
        faults.append("note: can have at most 1024 bytes")
    if event.get("type") not in ("Normal", "Warning"):
        faults.append("type: Invalid value")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", event["metadata"].get("name", "")):
        faults.append("metadata.name: Invalid value")
    return faults


Selects = Callable[[Manifest], bool]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Watcher:
    """An open watch. queue: what to write, None = end."""

    def __init__(self, kind: str, selects: Selects) -> None:
        self.kind = kind
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._selects = selects

    def tell(self, event: Event) -> None:
        """An object that starts matching the selectors is ADDED, one that stops matching is DELETED."""
        before = event.old if event.old is not None and self._selects(event.old) else None
        after = event.new if event.new is not None and self._selects(event.new) else None
        if after is not None:
            self.queue.put_nowait(_event("ADDED" if before is None else "MODIFIED", after))
        elif before is not None:
            last = copy.deepcopy(before)
            last["metadata"]["resourceVersion"] = str(event.version)
            self.queue.put_nowait(_event("DELETED", last))


def _manifest(item: ApiObject | Manifest) -> tuple[str, Manifest]:
    found = copy.deepcopy(item) if isinstance(item, dict) else manifest(item)
    found.setdefault("metadata", {})
    return found["kind"], found


def _identity(kind: str, item: Manifest) -> Identity:
    metadata = item["metadata"]
    return ("" if kind in CLUSTER_WIDE else metadata.get("namespace", "default"), metadata["name"])


def selector(query: Mapping[str, str]) -> Selects:
    """The label and field selectors of a request."""
    labels = [part for part in query.get("labelSelector", "").split(",") if part]
    fields = [part for part in query.get("fieldSelector", "").split(",") if part]

    def selects(item: Manifest) -> bool:
        given = item["metadata"].get("labels") or {}
        return all(_label_matches(part, given) for part in labels) and all(
            _field_matches(part, item) for part in fields
        )

    return selects


def _label_matches(part: str, labels: Mapping[str, str]) -> bool:
    if part.startswith("!"):
        return part[1:] not in labels
    name, equals, value = part.partition("=")
    return labels.get(name) == value if equals else name in labels


def _field_matches(part: str, item: Manifest) -> bool:
    path, _, wanted = part.partition("=")
    found: Any = item
    for name in path.removesuffix("!").split("."):
        found = (found or {}).get(name)
    return ((found or "") == wanted) != path.endswith("!")


def _event(event_type: str, item: Manifest) -> bytes:
    return json.dumps({"type": event_type, "object": item}, separators=(",", ":")).encode() + b"\n"


def _bookmark(kind: str, version: int, annotations: Mapping[str, str] | None = None) -> bytes:
    metadata: Manifest = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return _event("BOOKMARK", {"kind": kind, "apiVersion": "v1", "metadata": metadata})


def _status(code: int, reason: str, message: str) -> Manifest:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _refuse(code: int, reason: str, message: str, *, retry_after_s: float = 0.0) -> web.Response:
    headers = {"Retry-After": f"{retry_after_s:g}"} if retry_after_s else None
    return web.json_response(_status(code, reason, message), status=code, headers=headers)
