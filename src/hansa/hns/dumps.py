"""What operators save of a node, read back as HNS objects: hnsdiag, PowerShell, files of collectlogs. Pure.

A file is text in which JSON values stand between lines that are none: tables, headings, prompts. Every value is
searched for networks, endpoints and load balancers, in schema 2, in schema 1, or as networkhealth.ps1 reports them.
What looks like one of them and cannot be read is named with file and line, and the rest goes on. Namespaces and route
lists are known and not needed. Evidence: hcn.md 1.8, 2, 7.1, 7.2, 7.4.
"""

from __future__ import annotations

import enum
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from hansa.hns.api import ZERO_GUID, Guid, HnsKind, HnsVersion
from hansa.hns.emulator.builds import BUILDS, Build, Machine
from hansa.hns.emulator.service import Emulator
from hansa.hns.schema import (
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HnsObject,
    LbFlags,
    MalformedHnsObject,
    NetworkType,
    SourceMacAddress,
    decode,
)
from hansa.hns.schema1 import (
    TOLD,
    Fields,
    Untold,
    balancer_document,
    endpoint_document,
    network_document,
    only_routes,
    report_document,
)
from hansa.net import Address, parse_address


@dataclass(frozen=True, slots=True)
class DumpFile:
    """A file's name, for messages, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be understood: where, and why. line: 0 = the file as a whole."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.text}"


@dataclass(frozen=True, slots=True)
class Hints:
    """What listings tell beside the objects, or fail to tell.

    untold: load balancers that are known in part. states: of endpoints, as far as listed. not_applied: load balancers
    that HNS lists but says not to have applied.
    """

    untold: Mapping[Guid, Untold] = field(default_factory=dict)
    states: Mapping[Guid, int] = field(default_factory=dict)
    not_applied: frozenset[Guid] = frozenset()


NO_HINTS = Hints()


@dataclass(frozen=True, slots=True)
class Dump:
    """Objects of all files, each once, sorted by GUID. version: of the newest HNS that made one of them, if told."""

    networks: tuple[HnsNetwork, ...] = ()
    endpoints: tuple[HnsEndpoint, ...] = ()
    load_balancers: tuple[HnsLoadBalancer, ...] = ()
    hints: Hints = NO_HINTS
    unread: tuple[Unread, ...] = ()
    version: HnsVersion | None = None

    @property
    def management_addresses(self) -> tuple[Address, ...]:
        """This node's own addresses, as networks for services tell them; () if none does."""
        told = (network.management_ip for network in self.networks if network.type in _SERVICE_NETWORKS)
        return tuple(dict.fromkeys(address for address in told if address is not None))

    @property
    def host_mac(self) -> str:
        """MAC of the node's interface, "" = not told: that of service VIPs on overlay, else the network's own."""
        macs = Counter(
            each.mac_address
            for each in self.endpoints
            if each.remote and each.mac_address and not each.mac_address.startswith(_CONJURED)
        )
        if macs:
            return min(macs, key=lambda mac: (-macs[mac], mac))
        policies = (policy for network in self.networks for policy in network.policies)
        return next((policy.address for policy in policies if isinstance(policy, SourceMacAddress)), "")

    @property
    def source_vips(self) -> tuple[Address, ...]:
        """Overlay: the source VIP that most load balancers have and that lies in the node's own subnets, per family."""
        subnets = [
            subnet.prefix
            for network in self.networks
            if network.type is NetworkType.OVERLAY
            for subnet in network.subnets
            if subnet.prefix is not None
        ]
        used = Counter(each.source_vip for each in self.load_balancers if each.source_vip is not None)
        found: dict[int, Address] = {}
        for address, _ in sorted(used.items(), key=lambda item: (-item[1], str(item[0]))):
            if any(address in prefix for prefix in subnets):
                found.setdefault(address.version, address)
        return tuple(found[version] for version in sorted(found))


_SERVICE_NETWORKS = frozenset({NetworkType.L2BRIDGE, NetworkType.OVERLAY, NetworkType.L2TUNNEL})
_CONJURED = "02-11-"  # how the MACs of stand-ins for backends elsewhere begin (hcn.md 3)


def read_dumps(files: Iterable[DumpFile]) -> Dump:
    """All objects of all files; an object that several files tell of is taken from the one that tells most."""
    gathered = _Gathered()
    for file in files:
        before = gathered.seen, len(gathered.unread)
        for place, value in _values(file, gathered.unread):
            _take(gathered, place, value)
        if before == (gathered.seen, len(gathered.unread)):
            text = (
                "no network, endpoint or load balancer in JSON; give `hnsdiag list all -d`, or `... | ConvertTo-Json`"
            )
            gathered.unread.append(Unread(file.name, 0, text))
    return _dump(gathered)


# --- text to JSON values ---


def decode_text(content: bytes) -> str:
    """UTF-16 as Windows PowerShell writes files, with or without its mark, UTF-8, or else any one-byte code page."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"\xef\xbb\xbf", "utf-8")):
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors="replace")
    head = content[:64]
    if head[1::2].count(0) > len(head) // 4:
        return content.decode("utf-16-le", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


@dataclass(frozen=True, slots=True)
class _Place:
    """salvaged: inside a value that as a whole is broken, so that pieces of objects come along."""

    file: str
    line: int
    salvaged: bool = False

    def unread(self, text: str) -> Unread:
        return Unread(self.file, self.line, text)


_OPENING = re.compile(r"[\[{]")
_SEEMS_JSON = re.compile(r'\{\s*(?:"|\}|$)|\[\s*(?:[{\["\]]|$)')
_DECODER = json.JSONDecoder()


def _values(file: DumpFile, unread: list[Unread]) -> Iterator[tuple[_Place, object]]:
    """Every JSON list and object. What begins like one and is none goes to `unread`; its parts are still tried."""
    text = decode_text(file.content)
    at = 0
    line, counted = 1, 0
    broken = False
    while (match := _OPENING.search(text, at)) is not None:
        start = match.start()
        line, counted = line + text.count("\n", counted, start), start
        at_margin = start == 0 or text[start - 1] == "\n"
        try:
            value, at = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            at = start + 1
            if (at_margin or not broken) and _SEEMS_JSON.match(text, start):
                broken = True
                unread.append(_broken(file.name, line, error))
            continue
        broken = broken and not at_margin
        yield _Place(file.name, line, broken), value


def _broken(file: str, line: int, error: Exception) -> Unread:
    if isinstance(error, json.JSONDecodeError):
        return Unread(file, error.lineno, f"broken JSON: {error.msg}; it began in line {line}")
    return Unread(file, line, f"JSON that cannot be read: {error}")


# --- JSON values to objects ---


class _Shape(enum.Enum):
    """What an object is; for those that are read, how much the shape tells: more is better."""

    REPORT = 1  # a load balancer in networkhealth.ps1's words
    OLD = 2  # schema 1
    NEW = 3  # schema 2
    KNOWN = 0  # namespaces, routes: understood, and not needed


@dataclass(slots=True)
class _Found:
    value: HnsObject
    shape: _Shape
    place: _Place
    untold: Untold = TOLD
    not_applied: bool = False
    addresses: tuple[str, ...] = ()  # a report's word for endpoints that it does not name by GUID


@dataclass(slots=True)
class _Gathered:
    found: dict[tuple[HnsKind, Guid], _Found] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)
    network_names: dict[Guid, str] = field(default_factory=dict)  # endpoint -> name, where no GUID is told
    version: HnsVersion | None = None
    seen: int = 0


_DEPTH = 4  # of wrappings around objects: `value`, `Output`, lists by kind, dictionaries by id


def _take(gathered: _Gathered, place: _Place, value: object, depth: int = 0) -> int:
    """Take all objects out of a value; returns how many it had."""
    if isinstance(value, list):
        return sum(_take(gathered, place, each, depth) for each in value)
    if not isinstance(value, dict) or not value:
        return 0
    fields = Fields(value)
    kind = _kind_of(fields)
    if kind is None:
        if fields.get("Success") is False:
            gathered.unread.append(place.unread(f"HNS refused to answer: {fields.get('Error')}"))
            return 1
        inner = 0
        if depth < _DEPTH:
            inner = sum(_take(gathered, replace(place, salvaged=True), each, depth + 1) for each in value.values())
        if not inner and not depth and not place.salvaged:
            names = ", ".join(list(value)[:4])
            gathered.unread.append(place.unread(f"an object of a kind that hansa does not know: {names}"))
        return inner
    if place.salvaged and not any(name in fields for name in ("ID", "Identifier")):
        return 0
    gathered.seen += 1
    shape, hns_kind = kind
    if shape is not _Shape.KNOWN:
        _read(gathered, place, fields, value, (shape, hns_kind))
    return 1


def _kind_of(fields: Fields) -> tuple[_Shape, HnsKind] | None:
    """By the field names that only one kind and schema has; None = no object of HNS. Evidence: hcn.md 1.8, 2, 7."""

    def has(*names: str) -> bool:
        return any(name in fields for name in names)

    if has("NamespaceId", "CompartmentId", "CompartmentGuid", "ResourceList"):
        return _Shape.KNOWN, HnsKind.NETWORK
    if has("References"):
        try:
            routes = only_routes(fields)
        except ValueError:
            routes = False
        return (_Shape.KNOWN if routes else _Shape.OLD), HnsKind.LOAD_BALANCER
    if has("Identifier") and has("ExternalPort", "VIP", "EndpointIpAddresses"):
        return _Shape.REPORT, HnsKind.LOAD_BALANCER
    if has("PortMappings", "FrontendVIPs"):
        return _Shape.NEW, HnsKind.LOAD_BALANCER
    if has("HostComputeEndpoints"):
        return (_Shape.KNOWN if has("Routes", "Setting") else _Shape.NEW), HnsKind.LOAD_BALANCER
    if has("VirtualNetwork", "VirtualNetworkName") or (has("ID") and has("IPAddress", "IsRemoteEndpoint")):
        return _Shape.OLD, HnsKind.ENDPOINT
    if has("IpConfigurations", "HostComputeNetwork"):
        return _Shape.NEW, HnsKind.ENDPOINT
    if has("Ipams", "MacPool"):
        return _Shape.NEW, HnsKind.NETWORK
    if has("ID", "Name") and has("Subnets", "MacPools", "ManagementIP", "NetworkAdapterName", "CurrentEndpointCount"):
        return _Shape.OLD, HnsKind.NETWORK
    return None


def _read(
    gathered: _Gathered, place: _Place, fields: Fields, raw: dict[str, object], what: tuple[_Shape, HnsKind]
) -> None:
    shape, kind = what
    try:
        document, untold = _document(fields, raw, shape, kind)
        value = decode(kind, msgspec.json.encode(document))
    except MalformedHnsObject as error:
        gathered.unread.append(
            place.unread(f"{kind} {_name(fields)} left out: {error.field or 'document'}: {error.text}")
        )
        return
    except ValueError as error:
        gathered.unread.append(place.unread(f"{kind} {_name(fields)} left out: {error}"))
        return
    if value.guid == ZERO_GUID:
        gathered.unread.append(place.unread(f"{kind} left out: it has no ID"))
        return
    if isinstance(value, HnsEndpoint) and value.network == ZERO_GUID:
        gathered.network_names[value.guid] = str(fields.get("VirtualNetworkName") or "")
    _note_version(gathered, fields.get("Version"))
    addresses = tuple(str(each) for each in fields.items("EndpointIpAddresses")) if shape is _Shape.REPORT else ()
    _put(gathered, _Found(value, shape, place, untold, fields.get("IsApplied") is False, addresses))


def _document(fields: Fields, raw: dict[str, object], shape: _Shape, kind: HnsKind) -> tuple[dict[str, object], Untold]:
    if shape is _Shape.NEW:
        return raw, TOLD
    if shape is _Shape.REPORT:
        document, untold = report_document(fields)
        guids = [each for each in fields.items("Endpoints") if isinstance(each, str) and _GUID.fullmatch(each)]
        return {**document, "HostComputeEndpoints": guids}, untold
    match kind:
        case HnsKind.NETWORK:
            return network_document(fields), TOLD
        case HnsKind.ENDPOINT:
            return endpoint_document(fields), TOLD
        case HnsKind.LOAD_BALANCER:
            return balancer_document(fields)


_GUID = re.compile(r"\{?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?")


def _name(fields: Fields) -> str:
    return str(fields.get("ID") or fields.get("Identifier") or fields.get("Name") or "without ID")[:60]


def _note_version(gathered: _Gathered, version: object) -> None:
    """An object's Version is that of the HNS that made it: major << 32 | minor (hcn.md 2.1)."""
    if isinstance(version, int) and 1 << 32 <= version < 1 << 63:
        told = HnsVersion(version >> 32, version & 0xFFFF_FFFF)
        gathered.version = max(told, gathered.version) if gathered.version else told


def _put(gathered: _Gathered, new: _Found) -> None:
    """The shape that tells most wins, of equals the later one; states are kept from whoever tells them."""
    key = (_hns_kind(new.value), new.value.guid)
    old = gathered.found.get(key)
    if old is not None:
        best, other = (old, new) if old.shape.value > new.shape.value else (new, old)
        best.not_applied = best.not_applied or (other.shape is not best.shape and other.not_applied)
        if isinstance(best.value, HnsNetwork) or best.value.state or isinstance(other.value, HnsNetwork):
            pass
        elif other.value.state:
            best.value = msgspec.structs.replace(best.value, state=other.value.state)
        new = best
    gathered.found[key] = new


def _hns_kind(value: HnsObject) -> HnsKind:
    match value:
        case HnsNetwork():
            return HnsKind.NETWORK
        case HnsEndpoint():
            return HnsKind.ENDPOINT
        case HnsLoadBalancer():
            return HnsKind.LOAD_BALANCER


# --- putting it together: what one object does not tell, others may ---


def _dump(gathered: _Gathered) -> Dump:
    found = [gathered.found[key] for key in sorted(gathered.found, key=lambda key: key[1])]
    networks = tuple(each.value for each in found if isinstance(each.value, HnsNetwork))
    endpoints = tuple(
        _on_network(each.value, networks, gathered) for each in found if isinstance(each.value, HnsEndpoint)
    )
    balancers = tuple(
        _completed(each, each.value, endpoints, gathered) for each in found if isinstance(each.value, HnsLoadBalancer)
    )
    told = [each for each in found if isinstance(each.value, HnsLoadBalancer)]
    hints = Hints(
        untold={each.value.guid: each.untold for each in told if each.untold},
        states={each.guid: each.state for each in endpoints if each.state},
        not_applied=frozenset(each.value.guid for each in told if each.not_applied),
    )
    return Dump(networks, endpoints, balancers, hints, tuple(gathered.unread), gathered.version)


def _on_network(endpoint: HnsEndpoint, networks: tuple[HnsNetwork, ...], gathered: _Gathered) -> HnsEndpoint:
    """Schema 1 may name the network only by its name; the only network there is will do, too."""
    if endpoint.network != ZERO_GUID:
        return endpoint
    name = gathered.network_names.get(endpoint.guid, "")
    fitting = [network.guid for network in networks if network.name == name or not name]
    if len(fitting) != 1:
        text = f"endpoint {endpoint.guid}: its network {name or '(not named)'} is in none of the files"
        gathered.unread.append(gathered.found[HnsKind.ENDPOINT, endpoint.guid].place.unread(text))
        return endpoint
    return msgspec.structs.replace(endpoint, network=fitting[0])


def _completed(
    found: _Found, balancer: HnsLoadBalancer, endpoints: tuple[HnsEndpoint, ...], gathered: _Gathered
) -> HnsLoadBalancer:
    """A report's endpoints by their addresses; the family of a load balancer without VIP by its endpoints."""
    if found.shape is _Shape.NEW:
        return balancer
    if found.addresses and not balancer.endpoints:
        guids = []
        for text in found.addresses:
            guid = _endpoint_at(text, endpoints)
            if guid is not None:
                guids.append(guid)
            else:
                note = f"load balancer {balancer.guid}: no endpoint in the files has the address {text}"
                gathered.unread.append(found.place.unread(note))
        balancer = msgspec.structs.replace(balancer, endpoints=tuple(guids))
    if balancer.frontend_vips or balancer.flags & LbFlags.IPV6:
        return balancer
    versions = {a.version for each in endpoints if each.guid in balancer.endpoints for a in each.addresses}
    if versions == {6}:
        return msgspec.structs.replace(balancer, flags=balancer.flags | LbFlags.IPV6)
    return balancer


def _endpoint_at(text: str, endpoints: tuple[HnsEndpoint, ...]) -> Guid | None:
    """A local one before any remote one."""
    try:
        address = parse_address(text)
    except ValueError:
        return None
    here = [each for each in endpoints if address in each.addresses]
    return min(here, key=lambda each: (each.remote, each.guid)).guid if here else None


# --- a dump as an emulated node ---


def likely_build(version: HnsVersion | None, default: Build) -> Build:
    """The emulated build of that HNS version: of those that are not newer, the newest; with that very version."""
    if version is None:
        return default
    older = [build for build in BUILDS.values() if build.version <= version]
    build = max(older, key=lambda each: each.version) if older else min(BUILDS.values(), key=lambda each: each.version)
    return replace(build, version=version)


def emulate(dump: Dump, build: Build, addresses: Iterable[Address] = ()) -> Emulator:
    """A node that holds what the files tell. addresses: the node's own, () = as the networks tell.

    Raises ValueError if nobody tells the node's address.
    """
    own = tuple(addresses) or dump.management_addresses
    if not own:
        raise ValueError("no network in the files tells this node's address")
    machine = Machine(addresses=tuple(str(address) for address in own))
    if dump.host_mac:
        machine = replace(machine, mac_address=dump.host_mac)
    emulator = Emulator(build, machine=machine)
    objects: tuple[HnsObject, ...] = (*dump.networks, *dump.endpoints, *dump.load_balancers)
    for value in objects:
        emulator.add(value)
    return emulator
