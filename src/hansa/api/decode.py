"""Bytes or a parsed manifest become an API object, defaults settled; or MalformedObject, naming every bad field.

`decode()` is the fast way: msgspec reads only the fields that a proxy uses straight from the bytes. It stops at the
first value of a wrong type; then the object is read again, slowly, to list all its faults. Both ways end in the same
`_..._from()` functions, which settle defaults and judge values, so they cannot decide differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from typing import assert_never

import msgspec
from msgspec import UnsetType

from hansa.api import wire
from hansa.api.change import Upsert
from hansa.api.objects import (
    ApiObject,
    EndpointSlice,
    Kind,
    Node,
    ObjectKey,
    Policy,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from hansa.errors import Fault, MalformedObject
from hansa.net import SERVICE_PROTOCOLS, Address, IPFamily, Prefix, Protocol, family_of, parse_address, parse_prefix

__all__ = ["decode", "decode_object", "object_key", "raw_key"]

DEFAULT_AFFINITY_TIMEOUT_S = 10800  # three hours; Evidence: service-semantics Y2
MAX_AFFINITY_TIMEOUT_S = 86400  # one day; Evidence: service-semantics Y2
MAX_PORT = 65535

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_NAMES: frozenset[str] = frozenset()
_NO_CONDITIONS = wire.Conditions()
_PROTOCOLS = {protocol.name: protocol for protocol in SERVICE_PROTOCOLS}
_FAMILIES = {family.value: family for family in IPFamily}
_SERVICE_TYPES = {one.value: one for one in ServiceType}

_WireObject = wire.ServiceObject | wire.SliceObject | wire.NodeObject | wire.ServiceCIDRObject
_SHAPES: dict[Kind, type[_WireObject]] = {
    Kind.SERVICE: wire.ServiceObject,
    Kind.ENDPOINT_SLICE: wire.SliceObject,
    Kind.NODE: wire.NodeObject,
    Kind.SERVICE_CIDR: wire.ServiceCIDRObject,
}
_DECODERS = {kind: msgspec.json.Decoder(shape) for kind, shape in _SHAPES.items()}
_BARE_DECODER = msgspec.json.Decoder(wire.BareObject)

# API group and the versions whose fields are those that are read here, per kind.
_VERSIONS: dict[Kind, tuple[str, frozenset[str]]] = {
    Kind.SERVICE: ("", frozenset({"v1"})),
    Kind.ENDPOINT_SLICE: ("discovery.k8s.io", frozenset({"v1"})),
    Kind.NODE: ("", frozenset({"v1"})),
    Kind.SERVICE_CIDR: ("networking.k8s.io", frozenset({"v1", "v1beta1"})),
}
_CLUSTER_WIDE = frozenset({Kind.NODE, Kind.SERVICE_CIDR})


def decode(kind: Kind, raw: bytes | msgspec.Raw) -> Upsert:
    """Read one object from its JSON; `kind` is what was asked for, the text's own `kind` is not looked at.

    Raises MalformedObject with every fault of the object.
    """
    try:
        found = _DECODERS[kind].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_slowly(kind, _parse(kind, raw))
    return _settle(kind, found)


def decode_object(obj: object) -> Upsert:
    """Read one object from a parsed manifest; its kind is the manifest's own.

    Raises MalformedObject with every fault of the object, also for a kind or version that hansa does not read.
    """
    kind = _kind_of(obj)
    if kind is None:
        raise MalformedObject("manifest", (_not_ours(obj),))
    version = _version_fault(kind, obj)
    if version is None:
        try:
            found = msgspec.convert(obj, _SHAPES[kind])
        except (msgspec.ValidationError, RecursionError):
            pass
        else:
            return _settle(kind, found)
    return _decode_slowly(kind, obj, *([version] if version else []))


def object_key(obj: object) -> ObjectKey | None:
    """Name a parsed manifest, however broken: None if its kind is none that hansa reads, name "" if it has none."""
    kind = _kind_of(obj)
    return _key(kind, wire.salvage(obj, wire.BareObject)[0]) if kind is not None else None


def raw_key(kind: Kind, raw: bytes | msgspec.Raw) -> ObjectKey:
    """Name an object from its JSON, however broken; name "" if that cannot be told."""
    try:
        bare = _BARE_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            bare, _ = wire.salvage(_parse(kind, raw), wire.BareObject)
        except MalformedObject:
            bare = wire.BareObject()
    return _key(kind, bare)


class _Report:
    """What is wrong with the object at hand. `broken` are the fields that already had the wrong type."""

    __slots__ = ("broken", "faults", "skipped")

    def __init__(self, broken: tuple[Fault, ...] = ()) -> None:
        self.broken = broken
        self.faults: list[Fault] = []
        self.skipped: list[Fault] = []

    def fault(self, field: str, text: str, remedy: str = "") -> None:
        """The object cannot be used; but a field that was not even readable has had its fault."""
        if not any(_covers(one.field, field) for one in self.broken):
            self.faults.append(Fault(field, text, remedy))

    def skip(self, field: str, text: str, remedy: str = "") -> None:
        """This entry is left out, the rest of the object is used."""
        self.skipped.append(Fault(field, text, remedy))

    def is_broken(self, field: str) -> bool:
        """Whether something at or below `field` had the wrong type."""
        return any(_covers(field, one.field) for one in self.broken)


def _covers(field: str, other: str) -> bool:
    """Whether `other` is the field itself or lies within it."""
    return field in (other, wire.ROOT) or other.startswith((f"{field}.", f"{field}["))


def _decode_slowly(kind: Kind, tree: object, *broken: Fault) -> Upsert:
    try:
        found, wrong_types = wire.salvage(tree, _SHAPES[kind])
    except RecursionError:
        raise MalformedObject(str(kind), (Fault(wire.ROOT, "nested too deeply"),)) from None
    return _settle(kind, found, (*broken, *wrong_types))


def _settle(kind: Kind, found: _WireObject, broken: tuple[Fault, ...] = ()) -> Upsert:
    """From the wire's fields to the object; the one place where a malformed object is refused."""
    report = _Report(broken)
    settled: ApiObject
    match found:
        case wire.ServiceObject():
            settled = _service_from(found, report)
        case wire.SliceObject():
            settled = _slice_from(found, report)
        case wire.NodeObject():
            settled = _node_from(found, report)
        case wire.ServiceCIDRObject():
            settled = _service_cidr_from(found, report)
        case _:
            assert_never(found)
    if broken or report.faults:
        key = settled.object_key
        raise MalformedObject(str(key) if key.name else str(kind), (*broken, *report.faults))
    return Upsert(settled, tuple(report.skipped))


def _parse(kind: Kind, raw: bytes | msgspec.Raw) -> object:
    try:
        tree: object = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedObject(str(kind), (Fault(wire.ROOT, f"is not JSON: {error}"),)) from None
    except RecursionError:
        raise MalformedObject(str(kind), (Fault(wire.ROOT, "nested too deeply"),)) from None
    return tree


def _kind_of(obj: object) -> Kind | None:
    """The kind of a manifest by `kind` and API group: a Service of another group is not a Service."""
    if not isinstance(obj, dict):
        return None
    for kind, (group, _) in _VERSIONS.items():
        if obj.get("kind") == kind.value:
            given = obj.get("apiVersion")
            return kind if not isinstance(given, str) or given.rpartition("/")[0] == group else None
    return None


def _version_fault(kind: Kind, obj: object) -> Fault | None:
    given = obj.get("apiVersion") if isinstance(obj, dict) else None
    if given is None:
        return None
    group, versions = _VERSIONS[kind]
    if isinstance(given, str) and given.rpartition("/")[2] in versions:
        return None
    newest = min(versions, key=len)
    shown = wire.quoted(given) if isinstance(given, str) else "what stands here"
    return Fault("apiVersion", f"{shown} is not read", f"write {group}/{newest}" if group else f"write {newest}")


def _not_ours(obj: object) -> Fault:
    if not isinstance(obj, dict):
        return Fault(wire.ROOT, "expected an object with apiVersion, kind and metadata")
    shown = " ".join(str(obj[name]) for name in ("apiVersion", "kind") if isinstance(obj.get(name), str))
    return Fault("kind", f"{wire.quoted(shown)} is not read", "hansa reads " + ", ".join(str(kind) for kind in Kind))


def _key(kind: Kind, bare: wire.BareObject) -> ObjectKey:
    metadata = bare.metadata or wire.BareMetadata()
    namespace = "" if kind in _CLUSTER_WIDE else _namespace(metadata.namespace)
    return ObjectKey(kind, namespace, metadata.name or "")


def _namespace(given: str | None) -> str:
    """Manifests may leave the namespace out; objects of the API never do."""
    return intern(given) if given else "default"


def _name(given: str | None, report: _Report) -> str:
    if not given:
        report.fault("metadata.name", "is missing", "every object needs a name")
    return given or ""


# Service


def _service_from(found: wire.ServiceObject, report: _Report) -> Service:
    metadata = found.metadata or wire.ServiceMetadata()
    spec = found.spec or wire.ServiceSpec()
    kind = _service_type(spec.type, report)
    external_policy = _policy(spec.externalTrafficPolicy)
    health_check_node_port = _port(spec.healthCheckNodePort, "spec.healthCheckNodePort", report)
    if kind is ServiceType.LOAD_BALANCER and external_policy is Policy.LOCAL and not health_check_node_port:
        report.skip(
            "spec.healthCheckNodePort",
            "is missing, so no load balancer can ask for local endpoints",
            "the API server allocates it when the Service is written",
        )
    annotations = metadata.annotations
    return Service(
        namespace=_namespace(metadata.namespace),
        name=_name(metadata.name, report),
        type=kind,
        headless=spec.clusterIP == "None",
        cluster_ips=_cluster_ips(spec, report),
        ports=_service_ports(spec.ports or (), report),
        external_ips=_external_ips(spec.externalIPs or (), report),
        load_balancer_vips=_vips(found.status, report),
        source_ranges=_source_ranges(spec.loadBalancerSourceRanges or (), report),
        internal_policy=_policy(spec.internalTrafficPolicy),
        external_policy=external_policy,
        affinity_timeout_s=_affinity_timeout_s(spec, report),
        health_check_node_port=health_check_node_port,
        proxy_name=_proxy_name(metadata.labels),
        preserve_destination=annotations is not None and annotations.preserve_destination == "true",
        created=_seconds(metadata.creationTimestamp) if metadata.creationTimestamp else 0.0,
        uid=metadata.uid or "",
    )


def _service_type(given: str | None, report: _Report) -> ServiceType:
    kind = _SERVICE_TYPES.get(given) if given else ServiceType.CLUSTER_IP
    if kind is None:
        report.fault("spec.type", f"{wire.quoted(given or '')} is not a type", "one of " + ", ".join(_SERVICE_TYPES))
        return ServiceType.CLUSTER_IP
    return kind


def _policy(given: str | None) -> Policy:
    """X1, X5: only the exact text Local is Local."""
    return Policy.LOCAL if given == Policy.LOCAL.value else Policy.CLUSTER


def _proxy_name(labels: wire.ServiceLabels | None) -> str | None:
    """S4: present without a value is still present."""
    if labels is None or isinstance(labels.proxy_name, UnsetType):
        return None
    return labels.proxy_name or ""


def _cluster_ips(spec: wire.ServiceSpec, report: _Report) -> tuple[Address, ...]:
    """A1 to A3. `clusterIPs` left out means `[clusterIP]`, as the API server fills it in."""
    if not spec.clusterIP or spec.clusterIP == "None":
        return ()
    if not spec.ipFamilies:
        only = _address(spec.clusterIP, "spec.clusterIP", report)
        return () if only is None else (only,)
    texts = spec.clusterIPs or [spec.clusterIP]
    found: dict[IPFamily, Address] = {}
    for index, name in enumerate(spec.ipFamilies):
        family = _FAMILIES.get(name) if name is not None else None
        if family is None:
            report.fault(f"spec.ipFamilies[{index}]", f"{wire.quoted(name or '')} is no family", "IPv4 or IPv6")
            continue
        text = texts[index] if index < len(texts) else None
        if not text or family in found:
            continue
        address = _address(text, f"spec.clusterIPs[{index}]", report)
        if address is None:
            continue
        if family_of(address) is family:
            found[family] = address
        else:
            report.skip(f"spec.clusterIPs[{index}]", f"{address} is not {family}, as spec.ipFamilies[{index}] says")
    return tuple(found.values())


def _address(text: str, field: str, report: _Report) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        report.fault(field, f"{wire.quoted(text)} is not an IP address")
        return None


def _service_ports(entries: Sequence[wire.ServicePortEntry | None], report: _Report) -> tuple[ServicePortSpec, ...]:
    ports: dict[tuple[str, Protocol], ServicePortSpec] = {}
    for index, given in enumerate(entries):
        field = f"spec.ports[{index}]"
        entry = given or wire.ServicePortEntry()
        name = intern(entry.name) if entry.name else ""
        protocol = _protocol(entry.protocol, field, report)
        if not entry.port:
            report.fault(f"{field}.port", "is missing", f"give a number from 1 to {MAX_PORT}")
        number = _port(entry.port, f"{field}.port", report)
        node_port = _port(entry.nodePort, f"{field}.nodePort", report)
        if report.broken and report.is_broken(field):
            continue  # its name or protocol may be a stand-in
        key = (name, protocol)
        if key in ports:
            shown = wire.quoted(name) if name else "no name"
            report.fault(f"{field}.name", f"a second {protocol} port with {shown}", "give each port its own name")
        ports[key] = ServicePortSpec(name, protocol, number, node_port, entry.targetPort)
    return tuple(ports.values())


def _protocol(given: str | None, field: str, report: _Report) -> Protocol:
    """P4, E6: missing means TCP."""
    if not given:
        return Protocol.TCP
    protocol = _PROTOCOLS.get(given)
    if protocol is None:
        report.fault(f"{field}.protocol", f"{wire.quoted(given)} is not a protocol", "one of " + ", ".join(_PROTOCOLS))
        return Protocol.TCP
    return protocol


def _port(given: int | None, field: str, report: _Report) -> int:
    """A port number, 0 for none."""
    if not given:
        return 0
    if not 0 < given <= MAX_PORT:
        shown = given if abs(given) < 10**20 else "this"
        report.fault(field, f"{shown} is not a port", f"give a number from 1 to {MAX_PORT}")
        return 0
    return given


def _external_ips(texts: Sequence[str | None], report: _Report) -> tuple[Address, ...]:
    """A4: blank entries are skipped silently, unparsable ones with a word."""
    return _addresses([(f"spec.externalIPs[{index}]", text) for index, text in enumerate(texts)], report)


def _vips(status: wire.ServiceStatus | None, report: _Report) -> tuple[Address, ...]:
    """A6, A7: an ingress entry counts if it has an IP that is to be served here."""
    balancer = status.loadBalancer if status is not None else None
    ingress = balancer.ingress if balancer is not None else None
    if not ingress:
        return ()
    entries = [
        (f"status.loadBalancer.ingress[{index}].ip", entry.ip)
        for index, entry in enumerate(ingress)
        if entry is not None and entry.ipMode in (None, "VIP")
    ]
    return _addresses(entries, report)


def _addresses(entries: Sequence[tuple[str, str | None]], report: _Report) -> tuple[Address, ...]:
    """The addresses among (field, text) entries; what cannot be read is left out."""
    found = []
    for field, text in entries:
        if text and not text.isspace():
            try:
                found.append(parse_address(text.strip()))
            except ValueError:
                report.skip(field, f"{wire.quoted(text)} is not an IP address")
    return tuple(found)


def _source_ranges(texts: Sequence[str | None], report: _Report) -> tuple[Prefix, ...]:
    """F1: trimmed; what cannot be read is left out."""
    found = []
    for index, text in enumerate(texts):
        try:
            found.append(parse_prefix((text or "").strip()))
        except ValueError:
            report.skip(f"spec.loadBalancerSourceRanges[{index}]", f"{wire.quoted(text or '')} is not a CIDR")
    return tuple(found)


def _affinity_timeout_s(spec: wire.ServiceSpec, report: _Report) -> int | None:
    """Y1, Y2: only ClientIP is an affinity; without a number it lasts three hours."""
    if spec.sessionAffinity != "ClientIP":
        return None
    client_ip = spec.sessionAffinityConfig.clientIP if spec.sessionAffinityConfig else None
    given = client_ip.timeoutSeconds if client_ip else None
    if given is None:
        return DEFAULT_AFFINITY_TIMEOUT_S
    if not 0 < given <= MAX_AFFINITY_TIMEOUT_S:
        report.fault(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "is out of range",
            f"give a number from 1 to {MAX_AFFINITY_TIMEOUT_S}",
        )
    return given


# EndpointSlice


def _slice_from(found: wire.SliceObject, report: _Report) -> EndpointSlice:
    metadata = found.metadata or wire.SliceMetadata()
    labels, annotations = metadata.labels, metadata.annotations
    family = _address_type(found.addressType, report)
    return EndpointSlice(
        namespace=_namespace(metadata.namespace),
        name=_name(metadata.name, report),
        service=(labels.service_name or None) if labels is not None else None,
        family=family,
        ports=_slice_ports(found.ports or (), report),
        endpoints=() if family is None else _slice_endpoints(found.endpoints or (), family, report),
        trigger_time=_trigger_time(annotations.trigger_time) if annotations is not None else None,
    )


def _address_type(given: str | None, report: _Report) -> IPFamily | None:
    if given == "FQDN":
        report.skip("addressType", "FQDN: endpoints without IP addresses are not used")
        return None
    family = _FAMILIES.get(given) if given else None
    if family is None:
        text = f"{wire.quoted(given)} is not an address type" if given else "is missing"
        report.fault("addressType", text, "one of IPv4, IPv6, FQDN")
    return family


def _slice_ports(entries: Sequence[wire.SlicePortEntry | None], report: _Report) -> tuple[SlicePort, ...]:
    """E4 to E6."""
    ports = []
    for index, given in enumerate(entries):
        field = f"ports[{index}]"
        entry = given or wire.SlicePortEntry()
        protocol = _protocol(entry.protocol, field, report)
        number = _port(entry.port, f"{field}.port", report)
        if entry.name is None:
            report.skip(f"{field}.name", "is missing", 'an unnamed port has the name ""')
        elif not number:
            report.skip(f"{field}.port", "is missing; that does not mean every port")
        else:
            ports.append(SlicePort(intern(entry.name), protocol, number))
    return tuple(ports)


def _slice_endpoints(
    entries: Sequence[wire.EndpointEntry | None], family: IPFamily, report: _Report
) -> tuple[SliceEndpoint, ...]:
    """E9, C1 to C3. The loop that runs for every endpoint of the cluster."""
    version = 4 if family is IPFamily.IPV4 else 6
    endpoints = []
    for index, entry in enumerate(entries):
        text = entry.addresses[0] if entry is not None and entry.addresses else None
        if entry is None or not text:
            report.skip(f"endpoints[{index}].addresses", "is empty")
            continue
        try:
            address = parse_address(text)
        except ValueError:
            report.skip(f"endpoints[{index}].addresses[0]", f"{wire.quoted(text)} is not an IP address")
            continue
        if address.version != version:
            report.skip(f"endpoints[{index}].addresses[0]", f"{address} is not {family}, as addressType says")
            continue
        conditions = entry.conditions or _NO_CONDITIONS
        hints = entry.hints
        endpoints.append(
            SliceEndpoint(
                address,
                conditions.ready is not False,
                conditions.serving is not False,
                conditions.terminating is True,
                intern(entry.nodeName) if entry.nodeName else None,
                _hint_names(hints.forZones) if hints is not None else _NO_NAMES,
                _hint_names(hints.forNodes) if hints is not None else _NO_NAMES,
            )
        )
    return tuple(endpoints)


def _hint_names(hints: Sequence[wire.Hint | None] | None) -> frozenset[str]:
    if not hints:
        return _NO_NAMES
    return _shared_names(tuple(sorted(hint.name for hint in hints if hint is not None and hint.name)))


@lru_cache(maxsize=4096)
def _shared_names(names: tuple[str, ...]) -> frozenset[str]:
    """One set for all endpoints with the same hints: a cluster has few zones, and 10,000 nodes rarely matter here."""
    return frozenset(intern(name) for name in names)


def _trigger_time(text: str | None) -> float | None:
    """O3: what cannot be read gives no sample, and is nobody's fault."""
    if not text:
        return None
    try:
        return _seconds(msgspec.convert(text, datetime))
    except msgspec.ValidationError:
        return None


def _seconds(moment: datetime) -> float:
    """Seconds since the epoch; a time without a zone is UTC, as Kubernetes writes all its times."""
    return ((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


# Node and ServiceCIDR


def _node_from(found: wire.NodeObject, report: _Report) -> Node:
    metadata = found.metadata or wire.NodeMetadata()
    spec = found.spec or wire.NodeSpec()
    given = [
        (index, entry)
        for index, entry in enumerate((found.status.addresses if found.status else None) or ())
        if entry is not None
    ]
    # I6: every internal address before every external one; host names and the like are no addresses.
    entries = [
        (f"status.addresses[{index}].address", entry.address)
        for kind in ("InternalIP", "ExternalIP")
        for index, entry in given
        if entry.type == kind
    ]
    return Node(
        name=_name(metadata.name, report),
        addresses=_addresses(entries, report),
        zone=metadata.labels.zone if metadata.labels is not None else None,
        pod_cidrs=_pod_cidrs(spec, report),
        taint_keys=frozenset(taint.key for taint in spec.taints or () if taint is not None and taint.key),
        deleting=metadata.deletionTimestamp is not None,
    )


def _pod_cidrs(spec: wire.NodeSpec, report: _Report) -> tuple[Prefix, ...]:
    """`podCIDRs`, or the older single field where only that is filled in."""
    given = [(f"spec.podCIDRs[{index}]", text) for index, text in enumerate(spec.podCIDRs or ())]
    found = []
    for field, text in given or [("spec.podCIDR", spec.podCIDR)]:
        if text:
            try:
                found.append(parse_prefix(text))
            except ValueError:
                report.skip(field, f"{wire.quoted(text)} is not a CIDR")
    return tuple(found)


def _service_cidr_from(found: wire.ServiceCIDRObject, report: _Report) -> ServiceCIDR:
    metadata = found.metadata or wire.BareMetadata()
    prefixes = []
    for index, text in enumerate((found.spec.cidrs if found.spec else None) or ()):
        try:
            prefixes.append(parse_prefix(text or ""))
        except ValueError:
            report.fault(f"spec.cidrs[{index}]", f"{wire.quoted(text or '')} is not a CIDR")
    return ServiceCIDR(_name(metadata.name, report), tuple(prefixes))
