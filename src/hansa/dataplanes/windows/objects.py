"""What the Windows host must hold, keyed by address and frontend, and what is known about the host.

Desired objects never carry a GUID: those live in `observe.Observed` and meet the keys only when a step is performed.
Evidence: windows-proxy H.2, H.3; 0.1 for the numbers behind the flags.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import NamedTuple

from hansa.hns.api import Guid, HnsVersion
from hansa.hns.features import Feature, supports
from hansa.hns.schema import Distribution, LbFlags, MappingFlags
from hansa.net import Address, IPFamily, Prefix, Protocol, family_of
from hansa.rules.model import FrontendKey

NO_LB_FLAGS = LbFlags(0)
NO_MAPPING_FLAGS = MappingFlags(0)


class LbRole(enum.Enum):
    """Why a load balancer exists: for a frontend of a service, or to hand its health check to this host."""

    SERVICE = "service"
    HEALTH = "health check"


class LbKey(NamedTuple):
    """Identity of a load balancer; `vip` None means every address of this host (NodePort)."""

    role: LbRole
    family: IPFamily
    vip: Address | None
    protocol: Protocol
    port: int

    @property
    def frontend(self) -> FrontendKey:
        """The tuple that HNS allows only once, whatever the role."""
        return FrontendKey(self.family, self.vip, self.protocol, self.port)

    def __str__(self) -> str:
        return str(self.frontend) + (" (health check)" if self.role is LbRole.HEALTH else "")


def service_key(frontend: FrontendKey) -> LbKey:
    return LbKey(LbRole.SERVICE, *frontend)


def address_order(address: Address) -> tuple[int, int]:
    return (address.version, int(address))


@dataclass(frozen=True, slots=True)
class DesiredLoadBalancer:
    """One load balancer as HNS must hold it.

    backends: distinct addresses in numeric order, never empty. local: those of them on this node by node name; they
    resolve to an HNS endpoint that the CNI made, or wait for it. source_vip: None = not known yet, so that the load
    balancer can be neither created nor replaced. owners: names of the service ports that ask for it, sorted.
    """

    key: LbKey
    backends: tuple[Address, ...]
    local: frozenset[Address]
    internal_port: int
    source_vip: Address | None
    distribution: Distribution = Distribution.NONE
    lb_flags: LbFlags = NO_LB_FLAGS
    mapping_flags: MappingFlags = NO_MAPPING_FLAGS
    owners: tuple[str, ...] = ()
    critical: bool = False

    @property
    def dsr(self) -> bool:
        return LbFlags.DSR in self.lb_flags


class EndpointKind(enum.Enum):
    """Why hansa makes an HNS endpoint. Only SOURCE_VIP is local in HNS's sense."""

    REMOTE = "remote endpoint"
    SERVICE_VIP = "service-VIP endpoint"
    SOURCE_VIP = "source-VIP endpoint"


@dataclass(frozen=True, slots=True)
class DesiredEndpoint:
    """An HNS endpoint that hansa makes if the network has none with this address.

    provider: node that carries the address on overlay; None = no ProviderAddress policy.
    """

    address: Address
    kind: EndpointKind
    mac: str
    provider: Address | None = None

    def __str__(self) -> str:
        return f"{self.kind.value} {self.address}"


@dataclass(slots=True)
class Touched:
    """Places to look at: frontends, addresses, and load balancers (`strays`) without a frontend that can be read."""

    frontends: set[FrontendKey] = field(default_factory=set)
    addresses: set[Address] = field(default_factory=set)
    strays: set[Guid] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.frontends or self.addresses or self.strays)

    def add(self, other: Touched) -> None:
        self.frontends |= other.frontends
        self.addresses |= other.addresses
        self.strays |= other.strays


class RemoteSubnet(NamedTuple):
    """A RemoteSubnetRoute: pods of `prefix` live on the node `provider`."""

    prefix: Prefix
    provider: Address


class RemoteSubnets:
    """All RemoteSubnetRoutes of a network, for look-ups whose cost does not grow with the number of nodes."""

    __slots__ = ("_by_network", "_lengths", "_providers", "subnets")

    def __init__(self, subnets: Iterable[RemoteSubnet] = ()) -> None:
        self.subnets = tuple(subnets)
        self._providers = frozenset(subnet.provider for subnet in self.subnets)
        self._by_network: dict[Prefix, Address] = {}
        for subnet in self.subnets:
            self._by_network.setdefault(subnet.prefix, subnet.provider)
        lengths = {(prefix.version, prefix.prefixlen) for prefix in self._by_network}
        self._lengths = sorted(lengths, reverse=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteSubnets) and self.subnets == other.subnets

    def __hash__(self) -> int:
        return hash(self.subnets)

    def __repr__(self) -> str:
        return f"RemoteSubnets({self.subnets!r})"

    def is_provider(self, address: Address) -> bool:
        return address in self._providers

    def provider_of(self, address: Address) -> Address | None:
        """The node behind `address`: itself if it is one, else that of the longest matching prefix. Evidence: D.3."""
        if address in self._providers:
            return address
        bits = address.max_prefixlen
        for version, length in self._lengths:
            if version == address.version:
                base = int(address) >> (bits - length) << (bits - length)
                provider = self._by_network.get(_network(version, base, length))
                if provider is not None:
                    return provider
        return None


def _network(version: int, base: int, length: int) -> Prefix:
    return IPv4Network((base, length)) if version == 4 else IPv6Network((base, length))


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What rendering and planning need to know about the host; derived anew when HNS or the Node changes.

    network_type: HNS's word in lower case (`l2bridge`, `overlay`, ...). management_ip: None = HNS has not told it.
    subnets: this node's own pod subnets. host_mac: MAC of the node's interface, "" = unknown. source_vips: configured,
    or found by endpoint name; a family may be missing. root_addresses: addresses of the root HNS endpoint, empty if
    health checks are not forwarded or it was not found. node_ips, node_addresses: see NodeFacts.
    """

    network_id: Guid
    network_name: str
    network_type: str
    version: HnsVersion
    node_name: str = ""
    management_ip: Address | None = None
    remote_subnets: RemoteSubnets = field(default_factory=RemoteSubnets)
    subnets: tuple[Prefix, ...] = ()
    host_mac: str = ""
    node_ips: Mapping[IPFamily, Address] = field(default_factory=dict)
    node_addresses: frozenset[Address] = frozenset()
    source_vips: Mapping[IPFamily, Address] = field(default_factory=dict)
    root_addresses: Mapping[IPFamily, Address] = field(default_factory=dict)

    @property
    def overlay(self) -> bool:
        return self.network_type == "overlay"

    def supports(self, feature: Feature) -> bool:
        return supports(self.version, feature)

    def node_ip(self, family: IPFamily) -> Address | None:
        """This node's address of the family; where the Node object names none, HNS's own management address."""
        found = self.node_ips.get(family)
        if found is None and self.management_ip is not None and family_of(self.management_ip) is family:
            return self.management_ip
        return found

    def is_own(self, address: Address) -> bool:
        """An address of this node itself, or of its own pod subnets."""
        return (
            address in self.node_addresses
            or address == self.node_ip(family_of(address))
            or any(address in subnet for subnet in self.subnets)
        )


def conjured_mac(address: Address) -> str:
    """The MAC of a remote endpoint: never on the wire, but different for each address. Evidence: windows-proxy D.2.

    >>> from hansa.net import parse_address
    >>> conjured_mac(parse_address("192.168.2.3"))
    '02-11-C0-A8-02-03'
    """
    tail = address.packed if isinstance(address, IPv4Address) else hashlib.sha256(address.packed).digest()[:4]
    return "02-11-" + tail.hex("-").upper()


def kube_proxy_mac(address: Address) -> str:
    """The MAC that kube-proxy gives a remote endpoint: the same for IPv4, the last four bytes reversed for IPv6."""
    if isinstance(address, IPv4Address):
        return conjured_mac(address)
    return "02-11-" + address.packed[:-5:-1].hex("-").upper()
