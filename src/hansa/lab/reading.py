"""A lab file to a `Lab`: one YAML document of kind Lab, then manifests as kubectl knows them. Pure.

Services with a selector get EndpointSlices from the pods of the lab, as the cluster's own controller would make them,
unless the file brings slices of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import yaml

from hansa.api.change import Change, Malformed, Synced, Upsert
from hansa.api.objects import (
    ApiObject,
    EndpointSlice,
    Kind,
    Node,
    Service,
    ServiceCIDR,
    ServiceKey,
    SliceEndpoint,
    SlicePort,
)
from hansa.errors import ConfigError, Fault
from hansa.hns.emulator.builds import BUILDS, WS2022
from hansa.hns.schema import MalformedHnsObject, Policy, read_policies
from hansa.lab.cni import Cni, PodNetwork
from hansa.lab.model import FAULT_FORMS, FaultKind, Lab, LabFault, LabNode, LabPod, System
from hansa.net import Address, IPFamily, Prefix, family_of, parse_address, parse_prefix
from hansa.sources.manifests import read_manifest
from hansa.sources.yaml_text import in_one_line

FIRST_POD = 10  # offset in a node's pod subnet: before it are gateway, source VIP and root endpoint
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is not everywhere
DEFAULT_OUTSIDE = "203.0.113.9"  # a documentation address
DEFAULT_VNI = 4096  # the lowest that Windows takes


class _NodeForm(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    name: str
    os: System
    address: str | list[str]
    pod_cidr: str | list[str] = msgspec.field(name="podCIDR")
    build: str = WS2022.name
    zone: str = ""


class _PodForm(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    name: str
    node: str
    namespace: str = "default"
    address: str | list[str] = ""
    labels: dict[str, str] = {}
    host_network: bool = False
    policies: list[Any] = []


class _LabForm(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    kind: str
    name: str
    network: PodNetwork
    nodes: list[_NodeForm]
    pod_cidr: str | list[str] = msgspec.field(name="podCIDR")
    service_cidr: str | list[str] = msgspec.field(name="serviceCIDR")
    pods: list[_PodForm] = []
    cni: Cni = Cni.FLANNEL
    vni: int = DEFAULT_VNI
    loopback_dsr: bool = msgspec.field(name="loopbackDSR", default=False)
    outside: str | list[str] = DEFAULT_OUTSIDE
    settings: dict[str, Any] = {}
    faults: list[str] = []


def read_lab(text: str, *, name: str, extra_faults: Iterable[str] = ()) -> Lab:
    """The lab that a file describes. name: of the file. extra_faults: written as in the file. Raises ConfigError."""
    try:
        documents = [each for each in yaml.load_all(text, Loader=_LOADER) if isinstance(each, dict)]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, or too many digits
        raise ConfigError(Fault(name, f"is not YAML: {in_one_line(error)}")) from error
    forms = [each for each in documents if each.get("kind") == "Lab"]
    if len(forms) != 1:
        raise ConfigError(Fault(name, f"has {len(forms)} documents of kind Lab", "give it exactly one"))
    try:
        form = msgspec.convert(forms[0], _LabForm)
    except msgspec.ValidationError as error:
        raise ConfigError(Fault(name, str(error), "see docs/lab/index.md")) from error
    try:
        return _lab(form, text, documents, name, extra_faults)
    except (ValueError, MalformedHnsObject) as error:
        raise ConfigError(Fault(name, str(error), "see docs/lab/index.md")) from error


def read_fault(text: str) -> LabFault:
    """`KIND NODE WHAT [PROVIDER]`. Raises ConfigError."""
    words = text.split()
    kinds = {kind.value: kind for kind in FaultKind}
    if not words or words[0] not in kinds:
        raise ConfigError(Fault("fault", f"{text!r} is none that a lab knows", f"give one of {', '.join(kinds)}"))
    kind = kinds[words[0]]
    count = 4 if kind in (FaultKind.STALE_REMOTE_ENDPOINT, FaultKind.WRONG_PROVIDER) else 3
    if len(words) != count:
        raise ConfigError(
            Fault("fault", f"{text!r} has {len(words) - 1} arguments", f"{kind.value} {FAULT_FORMS[kind]}")
        )
    try:
        provider = parse_address(words[3]) if count == 4 else None
    except ValueError as error:
        raise ConfigError(Fault("fault", str(error), f"{kind.value} {FAULT_FORMS[kind]}")) from error
    return LabFault(kind, words[1], words[2], provider)


def _lab(form: _LabForm, text: str, documents: list[dict[str, Any]], name: str, extra: Iterable[str]) -> Lab:
    nodes = tuple(_node(one) for one in form.nodes)
    by_name = {node.name: node for node in nodes}
    pods = tuple(_pods(form.pods, by_name))
    objects = _manifests(text, name)
    selectors = _selectors(documents)
    slices = tuple(_slices(objects, selectors, pods))
    faults = tuple(read_fault(one) for one in (*form.faults, *extra))
    for fault in faults:
        if fault.node not in by_name or by_name[fault.node].system is not System.WINDOWS:
            raise ValueError(f"fault {fault}: no Windows node is called {fault.node}")
    service_cidrs = _prefixes(form.service_cidr)
    made: tuple[ApiObject, ...] = (
        *(Node(one.name, one.addresses, one.zone or None, one.pod_cidrs) for one in nodes),
        *slices,
        ServiceCIDR("kubernetes", service_cidrs),
    )
    services = [one.object for one in objects if isinstance(one, Upsert) and isinstance(one.object, Service)]
    return Lab(
        name=form.name,
        network=form.network,
        cni=form.cni,
        vni=form.vni,
        pod_cidrs=_prefixes(form.pod_cidr),
        service_cidrs=service_cidrs,
        nodes=nodes,
        pods=pods,
        outside=_addresses(form.outside),
        changes=(*objects, *(Upsert(one) for one in made), *(Synced(kind) for kind in Kind)),
        settings=form.settings,
        faults=faults,
        controlled=tuple(one.service_key for one in slices if one.service_key is not None),
        vips=frozenset(vip for one in services for vip in (*one.load_balancer_vips, *one.external_ips)),
        loopback_dsr=form.loopback_dsr,
    )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value)


def _addresses(value: str | list[str]) -> tuple[Address, ...]:
    return tuple(parse_address(one) for one in _listed(value))


def _prefixes(value: str | list[str]) -> tuple[Prefix, ...]:
    return tuple(parse_prefix(one) for one in _listed(value))


def _node(form: _NodeForm) -> LabNode:
    if form.build not in BUILDS:
        raise ValueError(f"node {form.name}: {form.build!r} is no emulated build: give one of {', '.join(BUILDS)}")
    addresses = _addresses(form.address)
    if not addresses:
        raise ValueError(f"node {form.name} has no address")
    return LabNode(form.name, form.os, addresses, _prefixes(form.pod_cidr), BUILDS[form.build], form.zone)


def _pods(forms: Iterable[_PodForm], nodes: Mapping[str, LabNode]) -> Iterator[LabPod]:
    listed = list(forms)
    taken = {address for form in listed for address in _addresses(form.address)}
    for form in listed:
        node = nodes.get(form.node)
        if node is None:
            raise ValueError(f"pod {form.name}: no node is called {form.node!r}")
        addresses = node.addresses if form.host_network else _addresses(form.address)
        if not addresses:
            addresses = tuple(_free(prefix, taken) for prefix in node.pod_cidrs)
            taken.update(addresses)
        policies: tuple[Policy, ...] = read_policies({"Policies": form.policies})
        labels = tuple(sorted(form.labels.items()))
        yield LabPod(form.namespace, form.name, form.node, addresses, labels, form.host_network, policies)


def _free(prefix: Prefix, taken: set[Address]) -> Address:
    number = FIRST_POD
    while prefix[number] in taken:
        number += 1
    return prefix[number]


def _manifests(text: str, name: str) -> tuple[Change, ...]:
    reading = read_manifest(text.encode(), name=name)
    broken = [one for one in reading.objects.values() if isinstance(one, Malformed)]
    faults = (*reading.faults, *(fault for one in broken for fault in one.faults))
    if faults:
        raise ConfigError(*faults)
    return tuple(reading.objects.values())


def _selectors(documents: Iterable[Mapping[str, Any]]) -> dict[ServiceKey, dict[str, str]]:
    """What the proxy does not read: which pods a Service wants."""
    found: dict[ServiceKey, dict[str, str]] = {}
    for document in documents:
        if document.get("kind") == "List":
            found |= _selectors(document.get("items") or ())
        elif document.get("kind") == "Service":
            metadata, spec = document.get("metadata") or {}, document.get("spec") or {}
            if spec.get("selector"):
                key = ServiceKey(str(metadata.get("namespace", "default")), str(metadata.get("name", "")))
                found[key] = {str(label): str(value) for label, value in spec["selector"].items()}
    return found


def _slices(
    objects: Iterable[Change], selectors: Mapping[ServiceKey, Mapping[str, str]], pods: Iterable[LabPod]
) -> Iterator[EndpointSlice]:
    listed = [one.object for one in objects if isinstance(one, Upsert)]
    given = {one.service_key for one in listed if isinstance(one, EndpointSlice)}
    for service in listed:
        if not isinstance(service, Service) or service.key in given or service.key not in selectors:
            continue
        wanted = selectors[service.key].items()
        chosen = [pod for pod in pods if pod.namespace == service.namespace and wanted <= dict(pod.labels).items()]
        families = dict.fromkeys(family_of(address) for address in service.cluster_ips)
        ports = tuple(SlicePort(one.name, one.protocol, _target(one.target_port, one.port)) for one in service.ports)
        for family in families or (IPFamily.IPV4,):
            endpoints = tuple(
                SliceEndpoint(address, node_name=pod.node)
                for pod in chosen
                if (address := pod.address(family)) is not None
            )
            name = f"{service.name}-{family.value.lower()}"
            yield EndpointSlice(service.namespace, name, service.name, family, ports, endpoints)


def _target(target: int | str | None, port: int) -> int:
    """Pods of a lab have no named ports."""
    return target if isinstance(target, int) and target else port
