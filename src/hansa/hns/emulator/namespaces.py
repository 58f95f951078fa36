"""Namespaces of an emulated host: what CNI plug-ins and runtimes attach endpoints by. Pure.

hansa itself needs none, so they are no kind of `HnsApi`; `hansa.hns.emulator.server` offers them to other programs.
Which endpoints a namespace has is told by the endpoints. Evidence: hcn.md 2.7, 2.9, 6; what is inferred says so here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsError, HnsKind, HResult, parse_guid
from hansa.hns.emulator.documents import read_filter
from hansa.hns.emulator.refusals import RULES, Refused, system_text
from hansa.hns.emulator.service import Emulator
from hansa.hns.emulator.wire import Answer, Request
from hansa.hns.record import E_INVALIDARG, RPC_SERVER_UNAVAILABLE, S_OK
from hansa.hns.schema import SCHEMA_VERSION, EndpointState, HnsEndpoint, parse_json

_SPACE = uuid.UUID("8f3c6a8e-7d1b-5c0e-9a54-6e616d657370")  # any fixed one: ids must be the same in every run
_TYPES = ("Host", "HostDefault", "Guest", "GuestDefault")
_FIRST_COMPARTMENT = 2  # 1 is the host's own (inferred)
DEFAULT_EXISTS = HResult(0x803B0029)
NOT_ATTACHED = HResult(0x803B0034)
UNSUPPORTED = HResult(0x803B0015)
INVALID_JSON = HResult(0x803B001B)


@dataclass(slots=True)
class _Namespace:
    number: int
    type: str
    containers: list[str] = field(default_factory=list)


class Namespaces:
    """The namespaces of one emulated HNS; used by one thread at a time, like the emulator."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._held: dict[Guid, _Namespace] = {}
        self._handles: dict[int, Guid] = {}
        self._count = 0
        self._calls: dict[str, Callable[[Request], Answer]] = {
            "HcnEnumerateNamespaces": self._enumerate,
            "HcnOpenNamespace": self._open,
            "HcnQueryNamespaceProperties": self._query,
            "HcnCreateNamespace": self._create,
            "HcnModifyNamespace": self._modify,
            "HcnDeleteNamespace": self._delete,
            "HcnCloseNamespace": self._close,
        }

    def knows(self, function: str) -> bool:
        """Whether it is a call about namespaces."""
        return function in self._calls

    def answer(self, request: Request) -> Answer:
        """Do one call. Raises HnsError as HNS refuses."""
        if not self._emulator.running:
            raise HnsError(request.function, RPC_SERVER_UNAVAILABLE)
        try:
            return self._calls[request.function](request)
        except Refused as refused:
            raise HnsError(request.function, refused.hresult, refused.text) from None

    # --- calls ---

    def _enumerate(self, request: Request) -> Answer:
        (query,) = _texts(request, 1)
        wanted = read_filter(query).get("id")
        found = [guid.lower() for guid in self._held if wanted is None or guid == wanted.upper()]
        return Answer(S_OK, out=msgspec.json.encode(found).decode())

    def _open(self, request: Request) -> Answer:
        (text,) = _texts(request, 1)
        return self._handle(_known(request, self._held, text))

    def _query(self, request: Request) -> Answer:
        guid = self._behind(request)
        one = self._held[guid]
        resources = [
            {"Type": "Endpoint", "Data": {"Id": endpoint.guid.lower()}} for endpoint in self._endpoints_of(guid)
        ]
        resources += [{"Type": "Container", "Data": {"Id": name}} for name in one.containers]
        document = {
            "ID": guid.lower(),
            "NamespaceId": one.number,
            "NamespaceGuid": guid.lower(),
            "Type": one.type,
            "Resources": resources,
            "SchemaVersion": SCHEMA_VERSION,
        }
        return Answer(S_OK, out=msgspec.json.encode(document).decode())

    def _create(self, request: Request) -> Answer:
        text, settings = _texts(request, 2)
        asked = _guid(request, text)
        fields = _fields(request, settings)
        kind = str(fields.get("type") or "Host")
        if kind not in _TYPES:
            raise HnsError(request.function, E_INVALIDARG, f"{kind} is no type of namespace. ")
        if asked in self._held:
            raise _refusal(request, RULES["EV-03"].hresult)
        if kind.endswith("Default") and any(one.type == kind for one in self._held.values()):
            raise _refusal(request, DEFAULT_EXISTS)
        self._count += 1
        new = Guid(str(uuid.uuid5(_SPACE, f"{self._emulator.seed}/{self._count}")).upper())
        guid = new if asked == ZERO_GUID else asked
        self._held[guid] = _Namespace(_FIRST_COMPARTMENT + self._count - 1, kind)
        return self._handle(guid)

    def _modify(self, request: Request) -> Answer:
        """Endpoints come and go; containers are only remembered."""
        guid = self._behind(request)
        fields = _fields(request, str(request.arguments[1]))
        inner = fields.get("settings")
        settings = {str(name).lower(): value for name, value in inner.items()} if isinstance(inner, dict) else {}
        match fields.get("resourcetype"), fields.get("requesttype"):
            case "Endpoint", "Add" | 0:
                self._attach(request, guid, settings)
            case "Endpoint", "Remove" | 1:
                self._detach(request, guid, settings)
            case "Container", "Add" | 0:
                self._held[guid].containers.append(str(settings.get("containerid", "")))
            case "Container", "Remove" | 1:
                name = str(settings.get("containerid", ""))
                self._held[guid].containers = [one for one in self._held[guid].containers if one != name]
            case _:
                raise _refusal(request, UNSUPPORTED)
        return Answer(S_OK)

    def _attach(self, request: Request, guid: Guid, settings: dict[str, object]) -> None:
        self._emulator.attach(_guid(request, str(settings.get("endpointid", ""))), guid)

    def _detach(self, request: Request, guid: Guid, settings: dict[str, object]) -> None:
        endpoint = self._emulator.get(HnsKind.ENDPOINT, _guid(request, str(settings.get("endpointid", ""))))
        if not isinstance(endpoint, HnsEndpoint):
            raise _refusal(request, RULES["EV-26"].hresult)
        if endpoint.namespace != guid:
            raise _refusal(request, NOT_ATTACHED)
        self._emulator.alter(HnsKind.ENDPOINT, endpoint.guid, namespace=None, state=EndpointState.DETACHED)

    def _delete(self, request: Request) -> Answer:
        """What is left in it is detached (inferred)."""
        (text,) = _texts(request, 1)
        guid = _known(request, self._held, text)
        for endpoint in self._endpoints_of(guid):
            self._emulator.alter(HnsKind.ENDPOINT, endpoint.guid, namespace=None, state=EndpointState.DETACHED)
        del self._held[guid]
        return Answer(S_OK)

    def _close(self, request: Request) -> Answer:
        match request.arguments:
            case (int(handle),):
                self._handles.pop(handle, None)
                return Answer(S_OK)
            case _:
                raise _wrong(request)

    # --- parts ---

    def _handle(self, guid: Guid) -> Answer:
        handle = 1 + max(self._handles, default=0)
        self._handles[handle] = guid
        return Answer(S_OK, handle=Handle(handle))

    def _behind(self, request: Request) -> Guid:
        match request.arguments:
            case (int(handle), str()):
                if handle not in self._handles:
                    raise _refusal(request, RULES["HX-03"].hresult)
                if self._handles[handle] not in self._held:
                    raise _refusal(request, RULES["HX-01"].hresult)
                return self._handles[handle]
            case _:
                raise _wrong(request)

    def _endpoints_of(self, guid: Guid) -> list[HnsEndpoint]:
        return [one for one in self._emulator.endpoints() if one.namespace == guid]


def _texts(request: Request, count: int) -> list[str]:
    texts = [one for one in request.arguments if isinstance(one, str)]
    if len(texts) != count or len(request.arguments) != count:
        raise _wrong(request)
    return texts


def _guid(request: Request, text: str) -> Guid:
    try:
        return parse_guid(text)
    except ValueError as error:
        raise HnsError(request.function, E_INVALIDARG, f"{error}. ") from None


def _known(request: Request, held: dict[Guid, _Namespace], text: str) -> Guid:
    guid = _guid(request, text)
    if guid not in held:
        raise _refusal(request, RULES["EV-02"].hresult)
    return guid


def _fields(request: Request, settings: str) -> dict[str, object]:
    """With folded names."""
    try:
        document = parse_json(settings or "{}")
    except ValueError:
        raise _refusal(request, INVALID_JSON) from None
    if not isinstance(document, dict):
        raise _refusal(request, INVALID_JSON)
    return {str(name).lower(): value for name, value in document.items()}


def _refusal(request: Request, hresult: HResult) -> HnsError:
    return HnsError(request.function, hresult, system_text(hresult))


def _wrong(request: Request) -> HnsError:
    return HnsError(request.function, E_INVALIDARG, f"Wrong arguments for {request.function}. ")
