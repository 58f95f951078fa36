"""HNS objects as typed values, and the JSON that HCN (schema 2) reads and writes.

Reading is tolerant: field names in any case, enums as words or numbers, absent or null = zero, unknown fields ignored,
GUIDs in any spelling, addresses parsed. Whatever cannot be read raises `MalformedHnsObject` and nothing else, so that
one bad object costs only itself. A policy that cannot be read stays as `RawPolicy` with the reason in `fault`.
Writing is exact: HCN's own spelling, zero values left out, structs never. Evidence: hcn.md section 2.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, TypeVar, assert_never

import msgspec
from msgspec import Struct

from hansa.errors import DataplaneError
from hansa.hns.api import ZERO_GUID, Guid, HnsKind, parse_guid
from hansa.net import Address, IPFamily, Prefix, family_of, parse_address, parse_prefix

SCHEMA_VERSION = {"Major": 2, "Minor": 0}  # what every known client sends (hcn.md 1.4)


class MalformedHnsObject(DataplaneError):
    """HNS answered with an object that cannot be read. guid: "" if not even that is readable; field: "" = all of it."""

    def __init__(self, kind: HnsKind, guid: str, field: str, text: str) -> None:
        self.kind = kind
        self.guid = guid
        self.field = field
        self.text = text
        super().__init__(f"{kind} {guid or 'without a readable ID'}: {field or 'document'}: {text}")


# --- enums (hcn.md 2.2-2.7); the alias tables hold the words of the schema page next to ours ---


class NetworkType(enum.Enum):
    NAT = "NAT"  # enum 0: HNS leaves it out
    ICS = "ICS"
    TRANSPARENT = "Transparent"
    L2BRIDGE = "L2Bridge"
    L2TUNNEL = "L2Tunnel"
    OVERLAY = "Overlay"
    PRIVATE = "Private"
    INTERNAL = "Internal"
    MIRRORED = "Mirrored"
    INFINIBAND = "Infiniband"
    CONSTRAINED_ICS = "ConstrainedICS"


class NetworkFlags(enum.IntFlag):
    ENABLE_DNS_PROXY = 1
    ENABLE_DHCP_SERVER = 2
    ENABLE_MIRRORING = 4
    ENABLE_NON_PERSISTENT = 8
    ENABLE_PERSISTENT = 16
    ISOLATE_VSWITCH = 32
    ENABLE_FLOW_STEERING = 64
    DISABLE_SHARING = 128
    ENABLE_FIREWALL = 256
    SUPPRESS_MEDIA_DISCONNECT = 512
    DISABLE_HOST_PORT = 1024
    WEAK_HOST_RECEIVE_ADAPTER = 2048
    WEAK_HOST_SEND_ADAPTER = 4096
    ENABLE_IOV = 8192


class SubnetFlags(enum.IntFlag):
    DO_NOT_RESERVE_GATEWAY_ADDRESS = 1


class EndpointFlags(enum.IntFlag):
    REMOTE = 1
    DISABLE_INTER_COMPUTE_COMMUNICATION = 2
    ENABLE_MIRRORING = 4
    ENABLE_LOW_INTERFACE_METRIC = 8
    OVERRIDE_DNS_SERVER_ORDER = 16
    ENABLE_DHCP = 32


class LbFlags(enum.IntFlag):
    DSR = 1
    IPV6 = 2


class MappingFlags(enum.IntFlag):
    ILB = 1
    LOCAL_ROUTED_VIP = 2
    USE_MUX = 4
    PRESERVE_DIP = 8
    VIP_EXTERNAL_IP = 16


class Distribution(enum.IntEnum):
    NONE = 0  # five-tuple
    SOURCE_IP_PROTOCOL = 1
    SOURCE_IP = 2


class EndpointState(enum.IntEnum):
    """hcn.md 1.8; 0 also stands for an answer without State."""

    UNINITIALIZED = 0
    CREATED = 1
    ATTACHED = 2
    ATTACHED_SHARING = 3
    DETACHED = 4
    DEGRADED = 5
    DESTROYED = 6


LB_STATE_APPLIED = 2  # policy list applied and healthy (hcn.md 1.8)
LB_STATE_DEGRADED = 4

_LB_WORDS = {"ENABLEDIRECTSERVERRETURN": 1, "ENABLEIPV6": 2}
_MAPPING_WORDS = {
    "ENABLEINTERNALLOADBALANCER": 1,
    "LOCALROUTEDVIP": 2,
    "NOTUSED": 4,
    "USEMUX": 4,
    "ENABLEPRESERVEDIP": 8,
    "VIPEXTERNALIP": 16,
}
_ENDPOINT_WORDS = {"REMOTEENDPOINT": 1}
_PROTOCOL_WORDS = {
    "UNKNOWN": 0,
    "ICMPV4": 1,
    "IGMP": 2,
    "TCP": 6,
    "UDP": 17,
    "ICMPV6": 58,
    "SCTP": 132,
}


# --- policies ---


class ProviderAddress(Struct, frozen=True):
    """Network: this node's management IP. Endpoint: the underlay address behind which it lives."""

    address: Address


class RemoteSubnetRoute(Struct, frozen=True):
    """Overlay: pods of `prefix` are reached through `provider_address`."""

    prefix: Prefix
    isolation_id: int
    provider_address: Address
    dr_mac_address: str


class DrMacAddress(Struct, frozen=True):
    address: str


class NetAdapterName(Struct, frozen=True):
    name: str


class SourceMacAddress(Struct, frozen=True):
    address: str


class HostRoute(Struct, frozen=True):
    pass


class VxlanPort(Struct, frozen=True):
    port: int


class Vsid(Struct, frozen=True):
    isolation_id: int


class Vlan(Struct, frozen=True):
    isolation_id: int


class OutBoundNat(Struct, frozen=True):
    """Exceptions and destinations stay texts: whether they have host bits matters to HNS (EV-11)."""

    exceptions: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    virtual_ip: Address | None = None
    flags: int = 0
    max_port_pool_usage: int = 0


class SdnRoute(Struct, frozen=True):
    prefix: Prefix
    next_hop: Address | None = None
    need_encap: bool = False


class Acl(Struct, frozen=True):
    """All lists are comma texts as HNS takes them (hcn.md 2.6)."""

    action: str
    direction: str
    guid: str = ""  # field `Id`: free text
    protocols: str = ""
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    rule_type: str = ""
    priority: int = 0


class PortMappingPolicy(Struct, frozen=True):
    """A host port of an endpoint (not of a load balancer)."""

    protocol: int
    internal_port: int
    external_port: int
    virtual_ip: Address | None = None
    flags: int = 0


class L2Driver(Struct, frozen=True):
    pass


class EncapOverhead(Struct, frozen=True):
    overhead: int


class RawPolicy(Struct, frozen=True):
    """A policy of a type that hansa does not read, or one that cannot be read (then `fault` says why)."""

    type: str
    settings: bytes  # compact JSON
    fault: str = ""


Policy = (
    ProviderAddress
    | RemoteSubnetRoute
    | DrMacAddress
    | NetAdapterName
    | SourceMacAddress
    | HostRoute
    | VxlanPort
    | Vsid
    | Vlan
    | OutBoundNat
    | SdnRoute
    | Acl
    | PortMappingPolicy
    | L2Driver
    | EncapOverhead
    | RawPolicy
)


# --- objects ---


class MacRange(Struct, frozen=True):
    start: str
    end: str


class Dns(Struct, frozen=True):
    domain: str = ""
    search: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Route(Struct, frozen=True):
    """next_hop: None if HNS names none."""

    prefix: Prefix
    next_hop: Address | None = None
    metric: int = 0


class Subnet(Struct, frozen=True):
    """prefix: None for DHCP subnets without one. guid: ZERO_GUID in documents that HNS has not seen."""

    prefix: Prefix | None
    routes: tuple[Route, ...] = ()
    policies: tuple[Policy, ...] = ()
    flags: SubnetFlags = SubnetFlags(0)
    guid: Guid = ZERO_GUID

    @property
    def gateway(self) -> Address | None:
        """Next hop of the default route."""
        return next((route.next_hop for route in self.routes if route.prefix.prefixlen == 0), None)


class Ipam(Struct, frozen=True):
    subnets: tuple[Subnet, ...] = ()
    type: str = "Static"


class IpConfiguration(Struct, frozen=True):
    """prefix_length: 0 = not given."""

    address: Address
    prefix_length: int = 0


class HnsNetwork(Struct, frozen=True, kw_only=True):
    guid: Guid = ZERO_GUID
    name: str = ""
    type: NetworkType = NetworkType.NAT
    policies: tuple[Policy, ...] = ()
    mac_ranges: tuple[MacRange, ...] = ()
    dns: Dns = Dns()
    ipams: tuple[Ipam, ...] = ()
    flags: NetworkFlags = NetworkFlags(0)
    owner: str = ""

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(subnet for ipam in self.ipams for subnet in ipam.subnets)

    @property
    def management_ip(self) -> Address | None:
        """None until HNS has filled it in, which it does after the network's creation has returned."""
        return next((policy.address for policy in self.policies if isinstance(policy, ProviderAddress)), None)

    @property
    def remote_subnets(self) -> tuple[RemoteSubnetRoute, ...]:
        """In HNS's order."""
        return tuple(policy for policy in self.policies if isinstance(policy, RemoteSubnetRoute))


class HnsEndpoint(Struct, frozen=True, kw_only=True):
    """ip_configurations may be empty (a partial object). mac_address: upper case with dashes, "" = not given."""

    guid: Guid = ZERO_GUID
    name: str = ""
    network: Guid = ZERO_GUID
    namespace: Guid | None = None
    policies: tuple[Policy, ...] = ()
    ip_configurations: tuple[IpConfiguration, ...] = ()
    dns: Dns = Dns()
    routes: tuple[Route, ...] = ()
    mac_address: str = ""
    flags: EndpointFlags = EndpointFlags(0)
    owner: str = ""
    state: int = 0

    @property
    def remote(self) -> bool:
        return bool(self.flags & EndpointFlags.REMOTE)

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(configuration.address for configuration in self.ip_configurations)

    @property
    def provider_address(self) -> Address | None:
        return next((policy.address for policy in self.policies if isinstance(policy, ProviderAddress)), None)


class PortMapping(Struct, frozen=True, kw_only=True):
    """protocol: IANA number; foreign load balancers may have any."""

    protocol: int
    internal_port: int
    external_port: int
    distribution: Distribution = Distribution.NONE
    flags: MappingFlags = MappingFlags(0)


class HnsLoadBalancer(Struct, frozen=True, kw_only=True):
    """frontend_vips empty = the node's addresses. port_mappings may be empty (a partial object, hcn.md 5.10 B3)."""

    guid: Guid = ZERO_GUID
    network: Guid | None = None
    endpoints: tuple[Guid, ...] = ()
    source_vip: Address | None = None
    frontend_vips: tuple[Address, ...] = ()
    port_mappings: tuple[PortMapping, ...] = ()
    flags: LbFlags = LbFlags(0)
    owner: str = ""
    state: int = 0

    @property
    def family(self) -> IPFamily:
        if self.frontend_vips:
            return family_of(self.frontend_vips[0])
        return IPFamily.IPV6 if self.flags & LbFlags.IPV6 else IPFamily.IPV4


HnsObject = HnsNetwork | HnsEndpoint | HnsLoadBalancer


def kind_of(value: HnsObject) -> HnsKind:
    match value:
        case HnsNetwork():
            return HnsKind.NETWORK
        case HnsEndpoint():
            return HnsKind.ENDPOINT
        case HnsLoadBalancer():
            return HnsKind.LOAD_BALANCER
        case _:
            assert_never(value)


# --- reading ---


class _Unreadable(Exception):
    """Inside this module only: which field, and why."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        self.text = text
        super().__init__(field, text)


T = TypeVar("T")
E = TypeVar("E", bound=enum.IntFlag)
U8, U16, U32 = 0xFF, 0xFFFF, 0xFFFF_FFFF


# HCN's own spelling of field names. An object that has only these needs no folding of case; a name that is missing here
# costs time, never correctness.
_EXACT_SPELLINGS = """
    ID Owner Name Type Version AdditionalParams Health SchemaVersion Telemetry State Policies Settings MacPool Ranges
    StartMacAddress EndMacAddress Dns Domain Search ServerList Options Ipams Subnets Flags HostComputeNetwork
    HostComputeNamespace HostComputeEndpoints IpAddressPrefix IpConfigurations IpAddress PrefixLength IpSubnetId Routes
    NextHop DestinationPrefix Metric MacAddress SourceVIP FrontendVIPs PortMappings Protocol InternalPort ExternalPort
    DistributionType ProviderAddress IsolationId DistributedRouterMacAddress Address NetworkAdapterName SourceMacAddress
    Port Exceptions Destinations VirtualIP MaxPortPoolUsage NeedEncap Id Protocols Action Direction LocalAddresses
    RemoteAddresses LocalPorts RemotePorts RuleType Priority VIP Overhead
"""
_EXACT_NAMES = frozenset(_EXACT_SPELLINGS.split())


class _Reader:
    """Fields of one JSON object by name, whatever their case; an exact name wins over its variants."""

    __slots__ = ("_exact", "_folded", "_name", "_parent")

    def __init__(self, raw: object, parent: _Reader | None = None, name: str = "", index: int | None = None) -> None:
        self._parent = parent
        self._name = name if index is None else f"{name}[{index}]"
        if not isinstance(raw, dict):
            raise _Unreadable(self.path(""), f"expected an object, found {_json_type(raw)}")
        self._exact: dict[str, object] = raw
        self._folded = None if raw.keys() <= _EXACT_NAMES else {key.lower(): value for key, value in raw.items()}

    def get(self, name: str) -> object:
        """None if absent or null."""
        value = self._exact.get(name)
        if value is None and self._folded is not None:
            return self._folded.get(name.lower())
        return value

    def path(self, name: str) -> str:
        """Made only for messages, since most answers are in order."""
        own = self._parent.path(self._name) if self._parent else self._name
        return ".".join(filter(None, (own, name)))

    def fail(self, name: str, text: str) -> NoReturn:
        raise _Unreadable(self.path(name), text)

    def text(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fail(name, f"expected a text, found {_json_type(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._text_item(name, index, item) for index, item in enumerate(self.items(name)))

    def _text_item(self, name: str, index: int, item: object) -> str:
        if not isinstance(item, str):
            self.fail(f"{name}[{index}]", f"expected a text, found {_json_type(item)}")
        return item

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value not in (None, 0, 1):
            self.fail(name, f"expected true or false, found {_json_type(value)}")
        return bool(value)

    def number(self, name: str, limit: int, words: Mapping[str, int] | None = None) -> int:
        """A count from 0 to `limit`; digits in a text and, if `words` are given, enum words count as numbers too."""
        value = self.get(name)
        if value is None:
            return 0
        if isinstance(value, str):
            value = self._number_of_text(name, value, words)
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(name, f"expected a number, found {_json_type(value)}")
        if not 0 <= value <= limit:
            self.fail(name, f"{_clip(value)} is not within 0..{limit}")
        return value

    def _number_of_text(self, name: str, text: str, words: Mapping[str, int] | None) -> int:
        total = 0
        for word in text.replace("|", ",").split(","):
            word = word.strip()
            if word.isascii() and word.isdigit() and len(word) <= 10:
                total |= int(word)
            elif words and (known := words.get(word.replace("_", "").upper())) is not None:
                total |= known
            elif word:
                self.fail(name, f"unknown word {_clip(word)!r}")
        return total

    def address(self, name: str) -> Address | None:
        text = self.text(name)
        return self._address(name, text) if text else None

    def needed_address(self, name: str) -> Address:
        return self._address(name, self.text(name))

    def addresses(self, name: str) -> tuple[Address, ...]:
        return tuple(self._address(f"{name}[{index}]", text) for index, text in enumerate(self.texts(name)) if text)

    def _address(self, name: str, text: str) -> Address:
        try:
            return parse_address(text)
        except ValueError:
            self.fail(name, f"{_clip(text)!r} is not an IP address")

    def prefix(self, name: str) -> Prefix:
        text = self.text(name)
        try:
            return parse_prefix(text)
        except ValueError:
            self.fail(name, f"{_clip(text)!r} is not a CIDR")

    def guid(self, name: str) -> Guid | None:
        text = self.text(name)
        return self._guid(name, text) if text else None

    def guids(self, name: str) -> tuple[Guid, ...]:
        return tuple(self._guid(f"{name}[{index}]", text) for index, text in enumerate(self.texts(name)))

    def _guid(self, name: str, text: str) -> Guid:
        try:
            return parse_guid(text)
        except ValueError:
            self.fail(name, f"{_clip(text)!r} is not a GUID")

    def items(self, name: str) -> list[object]:
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, f"expected a list, found {_json_type(value)}")
        return value

    def child(self, name: str) -> _Reader:
        """The object of that field; empty if absent."""
        value = self.get(name)
        return _Reader({} if value is None else value, self, name)

    def children(self, name: str) -> list[_Reader]:
        """Null items are left out."""
        return [_Reader(item, self, name, index) for index, item in enumerate(self.items(name)) if item is not None]


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def _clip(value: object) -> str:
    """Enough of a foreign value to recognise it: answers may be of any size."""
    try:
        text = str(value)
    except ValueError:  # more digits than Python prints
        text = "a very large number"
    return text if len(text) <= 60 else text[:57] + "..."


def _mac(text: str) -> str:
    return text.upper().replace(":", "-")


def decode_network(text: str | bytes) -> HnsNetwork:
    """One network as HNS tells it. Raises MalformedHnsObject."""
    return _decode(HnsKind.NETWORK, text, _read_network)


def decode_endpoint(text: str | bytes) -> HnsEndpoint:
    """One endpoint as HNS tells it. Raises MalformedHnsObject."""
    return _decode(HnsKind.ENDPOINT, text, _read_endpoint)


def decode_load_balancer(text: str | bytes) -> HnsLoadBalancer:
    """One load balancer as HNS tells it. Raises MalformedHnsObject."""
    return _decode(HnsKind.LOAD_BALANCER, text, _read_load_balancer)


def decode(kind: HnsKind, text: str | bytes) -> HnsObject:
    """Any of the three. Raises MalformedHnsObject."""
    match kind:
        case HnsKind.NETWORK:
            return decode_network(text)
        case HnsKind.ENDPOINT:
            return decode_endpoint(text)
        case HnsKind.LOAD_BALANCER:
            return decode_load_balancer(text)


def decode_guids(kind: HnsKind, text: str | bytes) -> tuple[Guid, ...]:
    """The answer of an enumeration; `null` counts as none (hcn.md 1.2). Raises MalformedHnsObject."""
    try:
        raw = parse_json(text)
        if raw is None:
            return ()
        return _Reader({"": raw}).guids("")
    except (_Unreadable, ValueError) as error:
        raise MalformedHnsObject(kind, "", "", f"not a list of GUIDs: {error.args[-1]}") from None


def read_policies(settings: object) -> tuple[Policy, ...]:
    """The policies in the settings of a modify envelope (`{"Policies": [...]}`), parsed JSON. Raises ValueError."""
    try:
        return _policies(_Reader(settings))
    except _Unreadable as error:
        raise ValueError(f"{error.field}: {error.text}") from None


def parse_json(text: str | bytes) -> object:
    """Plain JSON values. Raises ValueError for anything that is not JSON, whatever is wrong with it."""
    try:
        value: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    return value


def _decode(kind: HnsKind, text: str | bytes, read: Callable[[_Reader], T]) -> T:
    guid = ""
    try:
        reader = _Reader(parse_json(text))
        guid = reader.guid("ID") or ""
        return read(reader)
    except _Unreadable as error:
        raise MalformedHnsObject(kind, guid, error.field, error.text) from None
    except ValueError as error:
        raise MalformedHnsObject(kind, guid, "", str(error)) from None


def _read_network(reader: _Reader) -> HnsNetwork:
    return HnsNetwork(
        guid=reader.guid("ID") or ZERO_GUID,
        name=reader.text("Name"),
        type=_network_type(reader),
        policies=_policies(reader),
        mac_ranges=tuple(
            MacRange(_mac(item.text("StartMacAddress")), _mac(item.text("EndMacAddress")))
            for item in reader.child("MacPool").children("Ranges")
        ),
        dns=_dns(reader),
        ipams=tuple(_ipam(item) for item in reader.children("Ipams")),
        flags=_flags(reader, "Flags", NetworkFlags),
        owner=reader.text("Owner"),
    )


def _network_type(reader: _Reader) -> NetworkType:
    value = reader.get("Type")
    types = tuple(NetworkType)
    if value is None or value == "":
        return NetworkType.NAT
    if isinstance(value, str):
        for known in types:
            if known.value.lower() == value.lower():
                return known
        reader.fail("Type", f"unknown network type {_clip(value)!r}")
    number = reader.number("Type", U16)
    if number >= len(types):
        reader.fail("Type", f"unknown network type {number}")
    return types[number]


def _flags(reader: _Reader, name: str, flags: type[E], words: Mapping[str, int] | None = None) -> E:
    value = reader.get(name)
    if value is None:
        return flags(0)
    known = _flag_words(flags) | dict(words or {}) if isinstance(value, str) else None
    return flags(reader.number(name, U32, known))


def _flag_words(flags: type[enum.IntFlag]) -> dict[str, int]:
    return {member.name.replace("_", ""): int(member) for member in flags if member.name}


def _dns(reader: _Reader) -> Dns:
    if not reader.get("Dns"):
        return Dns()
    dns = reader.child("Dns")
    return Dns(dns.text("Domain"), dns.texts("Search"), dns.texts("ServerList"), dns.texts("Options"))


def _ipam(reader: _Reader) -> Ipam:
    return Ipam(tuple(_subnet(item) for item in reader.children("Subnets")), reader.text("Type") or "Static")


def _subnet(reader: _Reader) -> Subnet:
    return Subnet(
        prefix=reader.prefix("IpAddressPrefix") if reader.text("IpAddressPrefix") else None,
        routes=_routes(reader),
        policies=_policies(reader),
        flags=_flags(reader, "Flags", SubnetFlags),
        guid=reader.guid("ID") or ZERO_GUID,
    )


def _routes(reader: _Reader) -> tuple[Route, ...]:
    return tuple(
        Route(item.prefix("DestinationPrefix"), item.address("NextHop"), item.number("Metric", U16))
        for item in reader.children("Routes")
    )


def _read_endpoint(reader: _Reader) -> HnsEndpoint:
    return HnsEndpoint(
        guid=reader.guid("ID") or ZERO_GUID,
        name=reader.text("Name"),
        network=reader.guid("HostComputeNetwork") or ZERO_GUID,
        namespace=reader.guid("HostComputeNamespace"),
        policies=_policies(reader),
        ip_configurations=tuple(
            IpConfiguration(address, item.number("PrefixLength", U8))
            for item in reader.children("IpConfigurations")
            if (address := item.address("IpAddress")) is not None
        ),
        dns=_dns(reader),
        routes=_routes(reader),
        mac_address=_mac(reader.text("MacAddress")),
        flags=_flags(reader, "Flags", EndpointFlags, _ENDPOINT_WORDS),
        owner=reader.text("Owner"),
        state=reader.number("State", U16),
    )


def _read_load_balancer(reader: _Reader) -> HnsLoadBalancer:
    return HnsLoadBalancer(
        guid=reader.guid("ID") or ZERO_GUID,
        network=reader.guid("HostComputeNetwork"),
        endpoints=reader.guids("HostComputeEndpoints"),
        source_vip=reader.address("SourceVIP"),
        frontend_vips=reader.addresses("FrontendVIPs"),
        port_mappings=tuple(_port_mapping(item) for item in reader.children("PortMappings")),
        flags=_flags(reader, "Flags", LbFlags, _LB_WORDS),
        owner=reader.text("Owner"),
        state=reader.number("State", U16),
    )


def _port_mapping(reader: _Reader) -> PortMapping:
    words = {"NONE": 0, "SOURCEIPPROTOCOL": 1, "SOURCEIP": 2}
    distribution = reader.number("DistributionType", U32, words)
    if distribution > max(Distribution):
        reader.fail("DistributionType", f"unknown distribution {distribution}")
    return PortMapping(
        protocol=reader.number("Protocol", U32, _PROTOCOL_WORDS),
        internal_port=reader.number("InternalPort", U16),
        external_port=reader.number("ExternalPort", U16),
        distribution=Distribution(distribution),
        flags=_flags(reader, "Flags", MappingFlags, _MAPPING_WORDS),
    )


def _policies(reader: _Reader) -> tuple[Policy, ...]:
    return tuple(_policy(item) for item in reader.children("Policies"))


def _policy(reader: _Reader) -> Policy:
    kind = reader.text("Type")
    settings = reader.get("Settings")
    read = _POLICY_READERS.get(kind.lower())
    fault = ""
    if read is not None:
        try:
            return read(reader.child("Settings"))
        except _Unreadable as error:
            fault = f"{error.field}: {error.text}"
    return RawPolicy(kind, msgspec.json.encode({} if settings is None else settings), fault)


_POLICY_READERS: dict[str, Callable[[_Reader], Policy]] = {
    "provideraddress": lambda r: ProviderAddress(r.needed_address("ProviderAddress")),
    "remotesubnetroute": lambda r: RemoteSubnetRoute(
        r.prefix("DestinationPrefix"),
        r.number("IsolationId", U32),
        r.needed_address("ProviderAddress"),
        _mac(r.text("DistributedRouterMacAddress")),
    ),
    "drmacaddress": lambda r: DrMacAddress(_mac(r.text("Address"))),
    "netadaptername": lambda r: NetAdapterName(r.text("NetworkAdapterName")),
    "sourcemacaddress": lambda r: SourceMacAddress(_mac(r.text("SourceMacAddress"))),
    "hostroute": lambda _: HostRoute(),
    "vxlanport": lambda r: VxlanPort(r.number("Port", U16)),
    "vsid": lambda r: Vsid(r.number("IsolationId", U32)),
    "vlan": lambda r: Vlan(r.number("IsolationId", U32)),
    "outboundnat": lambda r: OutBoundNat(
        r.texts("Exceptions"),
        r.texts("Destinations"),
        r.address("VirtualIP"),
        r.number("Flags", U32),
        r.number("MaxPortPoolUsage", U16),
    ),
    "sdnroute": lambda r: SdnRoute(r.prefix("DestinationPrefix"), r.address("NextHop"), r.flag("NeedEncap")),
    "acl": lambda r: Acl(
        action=r.text("Action"),
        direction=r.text("Direction"),
        guid=r.text("Id"),
        protocols=r.text("Protocols"),
        local_addresses=r.text("LocalAddresses"),
        remote_addresses=r.text("RemoteAddresses"),
        local_ports=r.text("LocalPorts"),
        remote_ports=r.text("RemotePorts"),
        rule_type=r.text("RuleType"),
        priority=r.number("Priority", U16),
    ),
    "portmapping": lambda r: PortMappingPolicy(
        r.number("Protocol", U32, _PROTOCOL_WORDS),
        r.number("InternalPort", U16),
        r.number("ExternalPort", U16),
        r.address("VIP"),
        r.number("Flags", U32),
    ),
    "l2driver": lambda _: L2Driver(),
    "encapoverhead": lambda r: EncapOverhead(r.number("Overhead", U16)),
}


# --- writing ---


def encode(value: HnsObject) -> str:
    """The document as HCN spells it; zero values are left out, structs are not (hcn.md 2.1)."""
    return msgspec.json.encode(to_document(value)).decode()


def to_document(value: HnsObject) -> dict[str, object]:
    """The same as a JSON object. Raw policy settings are `msgspec.Raw`."""
    match value:
        case HnsNetwork():
            return _network_document(value)
        case HnsEndpoint():
            return _endpoint_document(value)
        case HnsLoadBalancer():
            return _load_balancer_document(value)
        case _:
            assert_never(value)


def _network_document(network: HnsNetwork) -> dict[str, object]:
    ranges = [{"StartMacAddress": each.start, "EndMacAddress": each.end} for each in network.mac_ranges]
    return _without_zeros(
        ID=_own_guid(network.guid),
        Owner=network.owner,
        Name=network.name,
        Type=network.type.value,
        Policies=_policy_documents(network.policies),
        MacPool=_Kept(_without_zeros(Ranges=ranges)),
        Dns=_Kept(_dns_document(network.dns)),
        Ipams=[_without_zeros(Type=each.type, Subnets=_subnet_documents(each.subnets)) for each in network.ipams],
        Flags=int(network.flags),
        Health=_Kept({"Extra": {}}),
        SchemaVersion=_Kept(SCHEMA_VERSION),
    )


def _subnet_documents(subnets: Iterable[Subnet]) -> list[dict[str, object]]:
    return [
        _without_zeros(
            ID=_own_guid(subnet.guid),
            IpAddressPrefix=_text(subnet.prefix),
            Policies=_policy_documents(subnet.policies),
            Routes=_route_documents(subnet.routes),
            Flags=int(subnet.flags),
        )
        for subnet in subnets
    ]


def _route_documents(routes: Iterable[Route]) -> list[dict[str, object]]:
    return [
        _without_zeros(NextHop=_text(route.next_hop), DestinationPrefix=str(route.prefix), Metric=route.metric)
        for route in routes
    ]


def _dns_document(dns: Dns) -> dict[str, object]:
    return _without_zeros(
        Domain=dns.domain, Search=list(dns.search), ServerList=list(dns.servers), Options=list(dns.options)
    )


def _endpoint_document(endpoint: HnsEndpoint) -> dict[str, object]:
    return _without_zeros(
        ID=_own_guid(endpoint.guid),
        Owner=endpoint.owner,
        Name=endpoint.name,
        HostComputeNetwork=_own_guid(endpoint.network),
        HostComputeNamespace=endpoint.namespace or "",
        Policies=_policy_documents(endpoint.policies),
        IpConfigurations=[
            _without_zeros(IpAddress=str(each.address), PrefixLength=each.prefix_length)
            for each in endpoint.ip_configurations
        ],
        Dns=_Kept(_dns_document(endpoint.dns)),
        Routes=_route_documents(endpoint.routes),
        MacAddress=endpoint.mac_address,
        Flags=int(endpoint.flags),
        State=endpoint.state,
        Health=_Kept({"Extra": {}}),
        SchemaVersion=_Kept(SCHEMA_VERSION),
    )


def _load_balancer_document(balancer: HnsLoadBalancer) -> dict[str, object]:
    return _without_zeros(
        ID=_own_guid(balancer.guid),
        Owner=balancer.owner,
        HostComputeNetwork=balancer.network or "",
        HostComputeEndpoints=list(balancer.endpoints),
        SourceVIP=_text(balancer.source_vip),
        FrontendVIPs=[str(vip) for vip in balancer.frontend_vips],
        PortMappings=[
            _without_zeros(
                Protocol=mapping.protocol,
                InternalPort=mapping.internal_port,
                ExternalPort=mapping.external_port,
                DistributionType=int(mapping.distribution),
                Flags=int(mapping.flags),
            )
            for mapping in balancer.port_mappings
        ],
        SchemaVersion=_Kept(SCHEMA_VERSION),
        Flags=int(balancer.flags),
        State=balancer.state,
    )


def policy_document(policy: Policy) -> dict[str, object]:
    """`{"Type": ..., "Settings": ...}` as HCN spells it."""
    kind, settings = _policy_settings(policy)
    return {"Type": kind, "Settings": settings}


def encode_policy_request(request: str, policies: Iterable[Policy]) -> str:
    """The modify envelope of networks and endpoints; `request` is Add, Remove or Update (replaces all) (hcn.md 2.9)."""
    settings = {"Policies": _policy_documents(policies)}
    return msgspec.json.encode({"ResourceType": "Policy", "RequestType": request, "Settings": settings}).decode()


def _policy_documents(policies: Iterable[Policy]) -> list[dict[str, object]]:
    return [policy_document(policy) for policy in policies]


def _policy_settings(policy: Policy) -> tuple[str, object]:
    match policy:
        case ProviderAddress():
            return "ProviderAddress", {"ProviderAddress": str(policy.address)}
        case RemoteSubnetRoute():
            return "RemoteSubnetRoute", {
                "DestinationPrefix": str(policy.prefix),
                "IsolationId": policy.isolation_id,
                "ProviderAddress": str(policy.provider_address),
                "DistributedRouterMacAddress": policy.dr_mac_address,
            }
        case DrMacAddress():
            return "DrMacAddress", _without_zeros(Address=policy.address)
        case NetAdapterName():
            return "NetAdapterName", _without_zeros(NetworkAdapterName=policy.name)
        case SourceMacAddress():
            return "SourceMacAddress", _without_zeros(SourceMacAddress=policy.address)
        case HostRoute():
            return "HostRoute", {}
        case VxlanPort():
            return "VxlanPort", {"Port": policy.port}
        case Vsid():
            return "VSID", {"IsolationId": policy.isolation_id}
        case Vlan():
            return "VLAN", {"IsolationId": policy.isolation_id}
        case OutBoundNat():
            return "OutBoundNAT", _without_zeros(
                VirtualIP=_text(policy.virtual_ip),
                Exceptions=list(policy.exceptions),
                Destinations=list(policy.destinations),
                Flags=policy.flags,
                MaxPortPoolUsage=policy.max_port_pool_usage,
            )
        case SdnRoute():
            return "SDNRoute", _without_zeros(
                DestinationPrefix=str(policy.prefix), NextHop=_text(policy.next_hop), NeedEncap=policy.need_encap
            )
        case Acl():
            return "ACL", _acl_settings(policy)
        case PortMappingPolicy():
            return "PortMapping", _without_zeros(
                Protocol=policy.protocol,
                InternalPort=policy.internal_port,
                ExternalPort=policy.external_port,
                VIP=_text(policy.virtual_ip),
                Flags=policy.flags,
            )
        case L2Driver():
            return "L2Driver", {}
        case EncapOverhead():
            return "EncapOverhead", _without_zeros(Overhead=policy.overhead)
        case RawPolicy():
            return policy.type, msgspec.Raw(policy.settings)
        case _:
            assert_never(policy)


def _acl_settings(acl: Acl) -> dict[str, object]:
    return _without_zeros(
        Id=acl.guid,
        Protocols=acl.protocols,
        Action=_Kept(acl.action),
        Direction=_Kept(acl.direction),
        LocalAddresses=acl.local_addresses,
        RemoteAddresses=acl.remote_addresses,
        LocalPorts=acl.local_ports,
        RemotePorts=acl.remote_ports,
        RuleType=acl.rule_type,
        Priority=acl.priority,
    )


class _Kept:
    """A value that is written even if it is empty."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def _without_zeros(**fields: object) -> dict[str, object]:
    return {
        name: value.value if isinstance(value, _Kept) else value
        for name, value in fields.items()
        if isinstance(value, _Kept) or value
    }


def _own_guid(guid: Guid) -> str:
    return "" if guid == ZERO_GUID else guid


def _text(value: Address | Prefix | None) -> str:
    return "" if value is None else str(value)
