"""The file in which KPNG keeps a cluster, read and written: YAML whose keys are the messages' fields in lower case.

Read more kindly than KPNG reads it: protocols by name or number, topology and conditions may be missing, and session
affinity and hansa's own fields may be given. Written so that KPNG reads it: nothing of that, protocols as numbers.

>>> text = "services: [{service: {name: web, ips: {clusterips: {v4: [10.96.0.10]}}, ports: [{protocol: 1, port: 80}]}}]"
>>> [str(item.object_key) for item in read_state(text, name="state.yaml")]
['Service default/web']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from google.protobuf.message import Message

from hansa.api.objects import ApiObject, EndpointSlice, Node, Service
from hansa.errors import MalformedObject, SourceError
from hansa.sources.kpng import cluster, shared
from hansa.sources.kpng.wire import globalv1, localv1
from hansa.sources.yaml_text import in_one_line

OWN_FIELDS_FROM = 100
"""Fields that KPNG does not have, nor its files."""

# What the file has no place for (KPNG's own reader crashes at session affinity).
LOST = (
    "session affinity, age of Services",
    "serving and terminating endpoints, hints for nodes",
    "addresses, pod ranges, taints and deletion of Nodes",
    "names of EndpointSlices, and what they are split by",
)


def read_state(text: str, *, name: str) -> tuple[ApiObject, ...]:
    """Everything in the file, Nodes first. Raises SourceError with the place of the first thing that is wrong."""
    try:
        data = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, or too many digits
        raise SourceError(f"{name}: is not YAML: {in_one_line(error)}") from None
    _check_keys(data, {"nodes", "services"}, name)
    found: list[ApiObject] = []
    try:
        for number, entry in enumerate(_list(data.get("nodes"), f"{name}: nodes")):
            info = globalv1.NodeInfo()
            _fill(info.Node, entry, f"{name}: nodes[{number}]")
            found.append(cluster.read_node(info))
        for number, entry in enumerate(_list(data.get("services"), f"{name}: services")):
            found.extend(_read_service(entry, f"{name}: services[{number}]"))
    except MalformedObject as error:
        raise SourceError(f"{name}: {error}") from None
    return tuple(found)


def _read_service(entry: object, place: str) -> Iterable[ApiObject]:
    _check_keys(entry, {"service", "endpoints"}, place)
    assert isinstance(entry, Mapping)
    message = localv1.Service(Namespace="default")
    _fill(message, entry.get("service") or {}, f"{place}.service")
    service = shared.read_service(message)
    yield service
    infos = []
    for number, each in enumerate(_list(entry.get("endpoints"), f"{place}.endpoints")):
        info = globalv1.EndpointInfo()
        _fill(info, each, f"{place}.endpoints[{number}]")
        infos.append(info)
    path = cluster.EndpointPath(service.namespace, service.name, service.name, "")
    yield from cluster.read_slices(path, infos, service)


def _check_keys(data: object, known: set[str], place: str) -> None:
    if not isinstance(data, Mapping):
        raise SourceError(f"{place}: is no mapping")
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise SourceError(f"{place}: unknown key {unknown[0]!r}; it may hold {', '.join(sorted(known))}")


def _list(data: object, place: str) -> Sequence[object]:
    if data is None:
        return ()
    if not isinstance(data, list):
        raise SourceError(f"{place}: is no list")
    return data


def _fill(message: Message, data: object, place: str) -> None:
    """Set a message's fields from a mapping. Raises SourceError."""
    fields = {field.name.lower(): field for field in message.DESCRIPTOR.fields}
    _check_keys(data, set(fields), place)
    assert isinstance(data, Mapping)
    for key, value in data.items():
        field, here = fields[key], f"{place}.{key}"
        if value is None:
            continue
        try:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                _check_map(value, here)
                getattr(message, field.name).update(value)
            elif field.message_type is not None and field.is_repeated:
                for number, one in enumerate(_list(value, here)):
                    _fill(getattr(message, field.name).add(), one, f"{here}[{number}]")
            elif field.message_type is not None:
                inner = getattr(message, field.name)
                inner.SetInParent()
                _fill(inner, value, here)
            elif field.is_repeated:
                getattr(message, field.name).extend(_list(value, here))
            else:
                setattr(message, field.name, _enum(field, value))
        except (TypeError, ValueError) as error:
            raise SourceError(f"{here}: {value!r} does not fit: {error}") from None


def _check_map(value: object, place: str) -> None:
    if not isinstance(value, Mapping):
        raise SourceError(f"{place}: is no mapping")


def _enum(field: Any, value: object) -> object:
    """Names of enum values count as well as their numbers."""
    if field.enum_type is None or not isinstance(value, str):
        return value
    for one in field.enum_type.values:
        if one.name.lower() == value.lower():
            return one.number
    raise ValueError(f"known are {', '.join(one.name for one in field.enum_type.values)}")


# -- writing -----------------------------------------------------------------------------------------------------------


def write_state(objects: Iterable[ApiObject]) -> str:
    """The objects as KPNG's file, in the order of their names; `LOST` says what is not in it."""
    services: dict[tuple[str, str], Service] = {}
    pieces: dict[tuple[str, str], list[EndpointSlice]] = {}
    nodes: dict[str, Node] = {}
    for item in objects:
        match item:
            case Service():
                services[item.namespace, item.name] = item
            case EndpointSlice(service=str(owner)):
                pieces.setdefault((item.namespace, owner), []).append(item)
            case Node():
                nodes[item.name] = item
            case _:
                pass
    data: dict[str, Any] = {}
    if nodes:
        data["nodes"] = [_dump(cluster.node_message(nodes[name]).Node) for name in sorted(nodes)]
    if services:
        data["services"] = [_service_entry(services[key], pieces.get(key, [])) for key in sorted(services)]
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)


def _service_entry(service: Service, pieces: Iterable[EndpointSlice]) -> dict[str, Any]:
    message = shared.service_message(service)
    message.ClearField("ClientIP")
    infos = dict(cluster.endpoint_infos(service, pieces))
    endpoints = []
    for path in sorted(infos):
        info = infos[path]
        for name in ("Namespace", "SourceName", "ServiceName"):  # KPNG overwrites them from the Service
            info.ClearField(name)
        entry = _dump(info)
        if info.Conditions.Ready:
            entry.pop("conditions", None)  # that is what a missing entry means
        else:
            entry["conditions"] = {"ready": False}
        entry.setdefault("topology", {})  # without it KPNG crashes
        endpoints.append(entry)
    entry = {"service": _dump(message)}
    if endpoints:
        entry["endpoints"] = endpoints
    return entry


def _dump(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.number >= OWN_FIELDS_FROM:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name.lower()] = dict(sorted(value.items()))
        elif field.message_type is not None and field.is_repeated:
            found[field.name.lower()] = [_dump(one) for one in value]
        elif field.message_type is not None:
            inner = _dump(value)
            if inner:
                found[field.name.lower()] = inner
        elif field.is_repeated:
            found[field.name.lower()] = list(value)
        else:
            found[field.name.lower()] = value
    return found
