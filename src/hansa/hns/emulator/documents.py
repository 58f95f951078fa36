"""JSON in and out of the emulated HNS: settings, modify envelopes, queries with filters, answers. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import msgspec

from hansa.hns.api import Guid, HnsKind, parse_guid
from hansa.hns.emulator.builds import Build, GuidSpelling, Ipv6Spelling, Spelling
from hansa.hns.emulator.refusals import refuse, refuse_unreadable
from hansa.hns.schema import (
    LB_STATE_DEGRADED,
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HnsObject,
    MalformedHnsObject,
    NetworkType,
    Policy,
    decode,
    kind_of,
    parse_json,
    read_policies,
    to_document,
)


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """Add, Remove or Update (replace all) policies of a network or endpoint."""

    request: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class PortRequest:
    """Give an endpoint a switch port, or take it."""

    attach: bool


def read_object(kind: HnsKind, settings: str) -> HnsObject:
    """The settings of a create. Raises Refused."""
    _json_object(settings)
    try:
        return decode(kind, settings)
    except MalformedHnsObject as error:
        refuse_unreadable(kind, error.field, f"{error.field}: {error.text}")


def read_modify_request(settings: str) -> PolicyRequest | PortRequest | None:
    """The envelope of hcn.md 2.9; None for requests that are not emulated. Raises Refused."""
    fields = {name.lower(): value for name, value in _json_object(settings).items()}
    request, resource, inner = (fields.get(name) for name in ("requesttype", "resourcetype", "settings"))
    words = ("Add", "Remove", "Update", "Refresh", "Reset")
    if isinstance(request, int) and 0 <= request < len(words):
        request = words[request]
    match resource, request:
        case "Policy", "Add" | "Remove" | "Update":
            try:
                return PolicyRequest(request, read_policies({} if inner is None else inner))
            except ValueError as error:
                refuse("EV-10", str(error))
        case "Port", "Add" | "Remove":
            return PortRequest(request == "Add")
        case _:
            return None


def check_query(query: str) -> dict[str, object]:
    """A HostComputeQuery with folded names; "" is an empty one. Its Filter counts in enumerations only.

    Raises Refused."""
    if not query:
        return {}
    fields = {name.lower(): value for name, value in _json_object(query).items()}
    match fields.get("schemaversion"):
        case {"Major": 1}:
            refuse("HX-17")
        case _:
            pass
    return fields


def read_filter(query: str) -> dict[str, str]:
    """The conditions of an enumeration, names folded. Raises Refused."""
    text = check_query(query).get("filter")
    if not isinstance(text, str) or not text:
        return {}
    return {name.lower(): str(value) for name, value in _json_object(text).items()}


def matches(value: HnsObject, conditions: Mapping[str, str], networks: Mapping[Guid, HnsNetwork]) -> bool:
    """Whether all conditions are equal to the object's fields in schema 1, where HNS filters (hcn.md 1.4)."""
    return all(_matches(value, name, wanted, networks) for name, wanted in conditions.items())


def _matches(value: HnsObject, name: str, wanted: str, networks: Mapping[Guid, HnsNetwork]) -> bool:
    match name, value:
        case "id", _:
            return _same_guid(value.guid, wanted)
        case "name", HnsNetwork() | HnsEndpoint():
            return value.name == wanted
        case "virtualnetwork", HnsEndpoint():
            return _same_guid(value.network, wanted)
        case "virtualnetworkname", HnsEndpoint():
            network = networks.get(value.network)
            return network is not None and network.name == wanted
        case _:
            return False  # a field that the object does not have equals nothing


def _same_guid(guid: Guid, text: str) -> bool:
    try:
        return guid == parse_guid(text)
    except ValueError:
        return False


def _json_object(text: str) -> dict[str, object]:
    try:
        value = parse_json(text)
    except ValueError:
        refuse("EV-01")
    if not isinstance(value, dict):
        refuse("EV-01")
    return value


def write(value: HnsObject, build: Build, spelling: Spelling) -> str:
    """The object as this build tells it."""
    document = to_document(value)
    if not build.echoes_owner:
        document.pop("Owner", None)
    match value:
        case HnsNetwork(type=NetworkType.NAT):
            del document["Type"]  # enum 0 (hcn.md 2.1)
        case HnsEndpoint() if value.state != EndpointState.DEGRADED:
            document.pop("State", None)
        case HnsLoadBalancer() if value.state != LB_STATE_DEGRADED:
            document.pop("State", None)
        case _:
            pass
    _spell(document, kind_of(value), spelling)
    return msgspec.json.encode(document).decode()


def _spell(document: dict[str, object], kind: HnsKind, spelling: Spelling) -> None:
    for name, of_kind in (
        ("ID", kind),
        ("HostComputeNetwork", HnsKind.NETWORK),
        ("HostComputeNamespace", kind),
        ("HostComputeEndpoints", HnsKind.ENDPOINT),
    ):
        match document.get(name):
            case str() as guid:
                document[name] = spell_guid(spelling, of_kind, Guid(guid))
            case list() as guids:
                document[name] = [spell_guid(spelling, of_kind, guid) for guid in guids]
            case _:
                pass
    if spelling.ipv6 is not Ipv6Spelling.COMPRESSED:
        _spell_addresses(document, spelling.ipv6)
    if spelling.with_extras:
        document |= {"Telemetry": {"Data": {"Since": 2.18}}, "AdditionalParams": None, "Policies2": [{"x": None}]}
        document.setdefault("Policies", None)


def _spell_addresses(document: dict[str, object], spelling: Ipv6Spelling) -> None:
    for name in ("SourceVIP", "FrontendVIPs", "IpConfigurations"):
        match document.get(name):
            case str() as text:
                document[name] = _spell_address(text, spelling)
            case list() as items:
                document[name] = [
                    {**item, "IpAddress": _spell_address(item["IpAddress"], spelling)}
                    if isinstance(item, dict)
                    else _spell_address(item, spelling)
                    for item in items
                ]
            case _:
                pass


def _spell_address(text: str, spelling: Ipv6Spelling) -> str:
    match spelling:
        case Ipv6Spelling.COMPRESSED:
            return text
        case Ipv6Spelling.UPPER:
            return text.upper()
        case Ipv6Spelling.EXPLODED:
            return ipaddress.ip_address(text).exploded
        case _:
            assert_never(spelling)


def spell_guid(spelling: Spelling, kind: HnsKind, guid: Guid) -> str:
    match spelling.guids:
        case GuidSpelling.MIXED:
            return guid if kind is HnsKind.NETWORK else guid.lower()
        case GuidSpelling.UPPER:
            return guid
        case GuidSpelling.LOWER:
            return guid.lower()
        case GuidSpelling.BRACES:
            return f"{{{guid}}}"
        case _:
            assert_never(spelling.guids)
