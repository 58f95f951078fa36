"""The fields that hansa reads of Kubernetes objects, as they are written there, and `salvage()` for broken ones.

Attribute names are the API's own. Everything may be absent or null, as in the API's Go types; what is required or has
a default is settled by `hansa.api.decode`. Labels and annotations are structs too, so that only the keys that count are
decoded. The structs hold trees, never cycles, so the garbage collector need not look at them.
"""

from __future__ import annotations

from datetime import date, datetime
from types import NoneType, UnionType
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from hansa.errors import Fault

_S = TypeVar("_S", bound=Struct)

ROOT = "object"
"""The field of a fault that concerns the whole object."""


class ServiceLabels(Struct, gc=False):
    # Present without a value still hides the Service from other proxies (S4), hence UNSET for "absent".
    proxy_name: str | UnsetType | None = field(default=UNSET, name="service.kubernetes.io/service-proxy-name")


class ServiceAnnotations(Struct, gc=False):
    preserve_destination: str | None = field(default=None, name="preserve-destination")


class ServiceMetadata(Struct, gc=False):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    labels: ServiceLabels | None = None
    annotations: ServiceAnnotations | None = None
    creationTimestamp: datetime | None = None


class ServicePortEntry(Struct, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    nodePort: int | None = None
    targetPort: int | str | None = None


class ClientIPConfig(Struct, gc=False):
    timeoutSeconds: int | None = None


class SessionAffinityConfig(Struct, gc=False):
    clientIP: ClientIPConfig | None = None


class ServiceSpec(Struct, gc=False):
    type: str | None = None
    clusterIP: str | None = None
    clusterIPs: list[str | None] | None = None
    ipFamilies: list[str | None] | None = None
    ports: list[ServicePortEntry | None] | None = None
    externalIPs: list[str | None] | None = None
    loadBalancerSourceRanges: list[str | None] | None = None
    internalTrafficPolicy: str | None = None
    externalTrafficPolicy: str | None = None
    healthCheckNodePort: int | None = None
    sessionAffinity: str | None = None
    sessionAffinityConfig: SessionAffinityConfig | None = None


class Ingress(Struct, gc=False):
    ip: str | None = None
    ipMode: str | None = None


class LoadBalancerStatus(Struct, gc=False):
    ingress: list[Ingress | None] | None = None


class ServiceStatus(Struct, gc=False):
    loadBalancer: LoadBalancerStatus | None = None


class ServiceObject(Struct, gc=False):
    metadata: ServiceMetadata | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class SliceLabels(Struct, gc=False):
    service_name: str | None = field(default=None, name="kubernetes.io/service-name")


class SliceAnnotations(Struct, gc=False):
    trigger_time: str | None = field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")


class SliceMetadata(Struct, gc=False):
    name: str | None = None
    namespace: str | None = None
    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class SlicePortEntry(Struct, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class Conditions(Struct, gc=False):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Struct, gc=False):
    name: str | None = None


class Hints(Struct, gc=False):
    forZones: list[Hint | None] | None = None
    forNodes: list[Hint | None] | None = None


class EndpointEntry(Struct, gc=False):
    addresses: list[str | None] | None = None
    conditions: Conditions | None = None
    nodeName: str | None = None
    hints: Hints | None = None


class SliceObject(Struct, gc=False):
    metadata: SliceMetadata | None = None
    addressType: str | None = None
    ports: list[SlicePortEntry | None] | None = None
    endpoints: list[EndpointEntry | None] | None = None


class NodeLabels(Struct, gc=False):
    zone: str | None = field(default=None, name="topology.kubernetes.io/zone")


class NodeMetadata(Struct, gc=False):
    name: str | None = None
    labels: NodeLabels | None = None
    deletionTimestamp: datetime | None = None


class Taint(Struct, gc=False):
    key: str | None = None


class NodeSpec(Struct, gc=False):
    podCIDR: str | None = None
    podCIDRs: list[str | None] | None = None
    taints: list[Taint | None] | None = None


class NodeAddress(Struct, gc=False):
    type: str | None = None
    address: str | None = None


class NodeStatus(Struct, gc=False):
    addresses: list[NodeAddress | None] | None = None


class NodeObject(Struct, gc=False):
    metadata: NodeMetadata | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class BareMetadata(Struct, gc=False):
    name: str | None = None
    namespace: str | None = None


class ServiceCIDRSpec(Struct, gc=False):
    cidrs: list[str | None] | None = None


class ServiceCIDRObject(Struct, gc=False):
    metadata: BareMetadata | None = None
    spec: ServiceCIDRSpec | None = None


class BareObject(Struct, gc=False):
    """Enough of any object to name it."""

    metadata: BareMetadata | None = None


def salvage(tree: object, wanted: type[_S]) -> tuple[_S, tuple[Fault, ...]]:
    """Read whatever can be read of a parsed object, with one fault for each part that has the wrong type.

    Faulty parts become null. Each leaf is judged by msgspec itself, so that without a fault the outcome is that of
    `msgspec.convert(tree, wanted)`.
    """
    faults: list[Fault] = []
    found = _salvage(tree, wanted, "", faults)
    return (found if isinstance(found, wanted) else wanted()), tuple(faults)


def _salvage(value: object, wanted: object, path: str, faults: list[Fault]) -> object:
    options = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    if value is None and NoneType in options:
        return None
    options = tuple(option for option in options if option not in (NoneType, UnsetType))
    inner = options[0]
    if isinstance(inner, type) and issubclass(inner, Struct):
        if not isinstance(value, dict):
            faults.append(_wrong_type(value, "an object", path))
            return None
        return _salvage_fields(value, inner, path, faults)
    if get_origin(inner) is list:
        if not isinstance(value, list | tuple | set | frozenset):
            faults.append(_wrong_type(value, "a list", path))
            return None
        (item,) = get_args(inner)
        return [_salvage(entry, item, f"{path}[{index}]", faults) for index, entry in enumerate(value)]
    try:
        return msgspec.convert(value, Union[options])  # noqa: UP007 - made from a tuple
    except msgspec.ValidationError:
        faults.append(_wrong_type(value, " or ".join(_NAMES[option] for option in options), path))
        return None


def _salvage_fields(value: dict[object, object], wanted: type[_S], path: str, faults: list[Fault]) -> _S:
    hints = get_type_hints(wanted)
    found = {}
    for one in msgspec.structs.fields(wanted):
        if one.encode_name not in value:
            continue
        if one.name == one.encode_name:
            below = f"{path}.{one.name}" if path else one.name
        else:
            below = f"{path}[{one.encode_name}]"  # as kubectl writes the keys of maps
        found[one.name] = _salvage(value[one.encode_name], hints[one.name], below, faults)
    return wanted(**found)


_NAMES: dict[object, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    datetime: "a time like 2026-01-02T03:04:05Z",
}


def _wrong_type(value: object, expected: str, path: str) -> Fault:
    remedy = ""
    if expected == "text" and isinstance(value, bool | int | float | date):
        remedy = "put it in quotes"
    elif isinstance(value, str) and (value.isdecimal() or value in ("true", "false")) and "time" not in expected:
        remedy = "write it without quotes"
    return Fault(path or ROOT, f"expected {expected}, got {_describe(value)}", remedy)


def _describe(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {quoted(value)}"
        case int() | float():
            return f"the number {value}" if abs(value) < 10**20 else "a huge number"
        case dict():
            return "an object"
        case list() | tuple() | set() | frozenset():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def quoted(text: str) -> str:
    """A text as it is shown in a fault: shortened, because anything may stand in a manifest."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
