"""Schema 1, the shape of `Get-Hns*` and HNSCall, as documents of schema 2. Pure.

Each function takes a parsed JSON object and gives the document that HCN would tell for it; `hns.schema` reads that.
`CONVERSIONS` says which field becomes which, and from where that is known. Fields that schema 1 does not tell are named
in `Untold`, so that nobody takes their absence for a zero. Evidence: hcn.md 1.8, 7.2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from hansa.hns.api import HnsKind
from hansa.hns.schema import (
    Dns,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    LbFlags,
    MappingFlags,
    NetAdapterName,
    Policy,
    ProviderAddress,
    SourceMacAddress,
    policy_document,
)

NO_FLAGS = MappingFlags(0)
NETWORK, ENDPOINT, LOAD_BALANCER = HnsKind.NETWORK, HnsKind.ENDPOINT, HnsKind.LOAD_BALANCER


class Conversion(NamedTuple):
    """One field: name in schema 1, place in schema 2, and where we know it from."""

    kind: HnsKind
    old: str
    new: str
    evidence: str


_FIELDS = "fields of schema 1 in hcsshim"
_LISTED = "listings of Get-HnsPolicyList in public issues"
_SAME = "inferred: same name and meaning in both schemas"

CONVERSIONS: tuple[Conversion, ...] = (
    Conversion(NETWORK, "ID", "ID", _SAME),
    Conversion(NETWORK, "Name", "Name", _SAME),
    Conversion(NETWORK, "Type", "Type", _SAME + ", whatever its case"),
    Conversion(NETWORK, "NetworkAdapterName", "policy NetAdapterName", _FIELDS),
    Conversion(NETWORK, "SourceMac", "policy SourceMacAddress", _FIELDS),
    Conversion(NETWORK, "ManagementIP", "policy ProviderAddress", "flannel reads one or the other"),
    Conversion(NETWORK, "MacPools", "MacPool.Ranges", _FIELDS),
    Conversion(NETWORK, "Subnets", "Ipams[0].Subnets", _FIELDS),
    Conversion(NETWORK, "Subnets[].AddressPrefix", "IpAddressPrefix", _FIELDS),
    Conversion(NETWORK, "Subnets[].GatewayAddress", "default route in Routes", "hnslib: the gateway is its next hop"),
    Conversion(NETWORK, "Subnets[].Policies", "Policies", _FIELDS),
    Conversion(NETWORK, "Policies", "Policies", "types by hcsshim; others keep their fields (inferred)"),
    Conversion(NETWORK, "DNSSuffix", "Dns.Domain", _FIELDS),
    Conversion(NETWORK, "DNSServerList", "Dns.ServerList", _FIELDS + ": a comma text"),
    Conversion(ENDPOINT, "ID", "ID", _SAME),
    Conversion(ENDPOINT, "Name", "Name", _SAME),
    Conversion(ENDPOINT, "VirtualNetwork", "HostComputeNetwork", "hnslib filters by the name of schema 1"),
    Conversion(ENDPOINT, "IPAddress", "IpConfigurations", _FIELDS),
    Conversion(ENDPOINT, "PrefixLength", "IpConfigurations[].PrefixLength", _FIELDS),
    Conversion(ENDPOINT, "IPv6Address", "IpConfigurations", _FIELDS),
    Conversion(ENDPOINT, "IPv6PrefixLength", "IpConfigurations[].PrefixLength", _FIELDS),
    Conversion(ENDPOINT, "GatewayAddress", "default route in Routes", _FIELDS),
    Conversion(ENDPOINT, "GatewayAddressV6", "default route in Routes", _FIELDS),
    Conversion(ENDPOINT, "MacAddress", "MacAddress", _SAME),
    Conversion(ENDPOINT, "IsRemoteEndpoint", "Flags 1", _FIELDS + "; flag 1 in hnslib"),
    Conversion(ENDPOINT, "DisableICC", "Flags 2", _FIELDS + "; flag inferred from its name"),
    Conversion(ENDPOINT, "EnableLowMetric", "Flags 8", _FIELDS + "; flag inferred from its name"),
    Conversion(ENDPOINT, "Namespace", "HostComputeNamespace", _FIELDS),
    Conversion(ENDPOINT, "EncapOverhead", "policy EncapOverhead", _FIELDS),
    Conversion(ENDPOINT, "Policies", "Policies", "types by hcsshim; others keep their fields (inferred)"),
    Conversion(ENDPOINT, "DNSSuffix", "Dns.Domain", _FIELDS),
    Conversion(ENDPOINT, "DNSServerList", "Dns.ServerList", _FIELDS + ": a comma text"),
    Conversion(ENDPOINT, "State", "State", _FIELDS),
    Conversion(LOAD_BALANCER, "ID", "ID", _SAME),
    Conversion(LOAD_BALANCER, "References", "HostComputeEndpoints", _FIELDS + ": /endpoints/GUID"),
    Conversion(LOAD_BALANCER, "HostComputeNetwork", "HostComputeNetwork", _LISTED),
    Conversion(LOAD_BALANCER, "State", "State", "Microsoft's networkhealth.ps1: 2 healthy, 4 degraded"),
    Conversion(LOAD_BALANCER, "Policies[].VIPs", "FrontendVIPs", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].SourceVIP", "SourceVIP", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].Protocol", "PortMappings[].Protocol", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].InternalPort", "PortMappings[].InternalPort", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].ExternalPort", "PortMappings[].ExternalPort", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].IsDSR", "Flags 1", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].ILB", "PortMappings[].Flags 1", _FIELDS),
    Conversion(LOAD_BALANCER, "Policies[].LocalRoutedVip", "PortMappings[].Flags 2", _LISTED),
    Conversion(LOAD_BALANCER, "Policies[].IsVipExternalIp", "PortMappings[].Flags 16", _LISTED),
)


@dataclass(frozen=True, slots=True)
class Untold:
    """What a listing does not tell of a load balancer. fields: `source VIP`, `distribution`; mapping_flags: bits."""

    fields: frozenset[str] = frozenset()
    mapping_flags: MappingFlags = NO_FLAGS

    def __bool__(self) -> bool:
        return bool(self.fields or self.mapping_flags)


TOLD = Untold()


class CutOff(ValueError):
    """`ConvertTo-Json` has put a text where it was not to go deeper."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field}: PowerShell cut it off; run again with `ConvertTo-Json -Depth 20`")


class Fields:
    """Fields of one JSON object by name, whatever their case."""

    __slots__ = ("_folded",)

    def __init__(self, raw: object, name: str = "document") -> None:
        if isinstance(raw, str):
            raise CutOff(name)
        if not isinstance(raw, Mapping):
            raise ValueError(f"{name}: expected an object")
        self._folded = {str(key).lower(): value for key, value in raw.items()}

    def __contains__(self, name: str) -> bool:
        """Present and not null."""
        return self._folded.get(name.lower()) is not None

    def get(self, name: str) -> object:
        """None if absent or null."""
        return self._folded.get(name.lower())

    def items(self, name: str) -> list[object]:
        """A list without its nulls; a single value, as PowerShell makes it of a list of one, counts as that list."""
        value = self.get(name)
        if isinstance(value, str) and value.startswith(("@{", "System.")):
            raise CutOff(name)
        if value is None or value == "":
            return []
        return [each for each in value if each is not None] if isinstance(value, list) else [value]

    def rest(self, *without: str) -> dict[str, object]:
        """All other fields, with folded names: schema 2 is read whatever their case."""
        return {name: value for name, value in self._folded.items() if name not in without and value is not None}


def network_document(fields: Fields) -> dict[str, object]:
    """A network. Raises ValueError if its lists are none."""
    policies = [_policy(each) for each in fields.items("Policies")]
    for name, kind, setting in (
        ("NetworkAdapterName", "NetAdapterName", "NetworkAdapterName"),
        ("SourceMac", "SourceMacAddress", "SourceMacAddress"),
        ("ManagementIP", "ProviderAddress", "ProviderAddress"),
    ):
        if fields.get(name):
            policies.append({"Type": kind, "Settings": {setting: fields.get(name)}})
    return {
        "ID": fields.get("ID"),
        "Name": fields.get("Name"),
        "Type": fields.get("Type"),
        "Policies": policies,
        "MacPool": {"Ranges": fields.items("MacPools")},
        "Ipams": [{"Subnets": [_subnet(Fields(each, "Subnets")) for each in fields.items("Subnets")]}],
        "Dns": _dns(fields),
    }


def _subnet(fields: Fields) -> dict[str, object]:
    return {
        "ID": fields.get("ID"),
        "IpAddressPrefix": fields.get("AddressPrefix"),
        "Routes": _default_routes(fields, "GatewayAddress"),
        "Policies": [_policy(each) for each in fields.items("Policies")],
    }


def _default_routes(fields: Fields, *names: str) -> list[dict[str, object]]:
    gateways = [str(fields.get(name)) for name in names if fields.get(name)]
    return [{"NextHop": each, "DestinationPrefix": "::/0" if ":" in each else "0.0.0.0/0"} for each in gateways]


def _dns(fields: Fields) -> dict[str, object]:
    servers = str(fields.get("DNSServerList") or "")
    return {
        "Domain": fields.get("DNSSuffix"),
        "ServerList": [each.strip() for each in servers.split(",") if each.strip()],
    }


def endpoint_document(fields: Fields) -> dict[str, object]:
    """An endpoint. Raises ValueError if its lists are none."""
    policies = [_policy(each) for each in fields.items("Policies")]
    if fields.get("EncapOverhead"):
        policies.append({"Type": "EncapOverhead", "Settings": {"Overhead": fields.get("EncapOverhead")}})
    flags = {"IsRemoteEndpoint": 1, "DisableICC": 2, "EnableLowMetric": 8}
    namespace = fields.get("Namespace")
    return {
        "ID": fields.get("ID"),
        "Name": fields.get("Name"),
        "HostComputeNetwork": fields.get("VirtualNetwork"),
        "HostComputeNamespace": Fields(namespace).get("ID") if isinstance(namespace, Mapping) else namespace,
        "IpConfigurations": [
            {"IpAddress": fields.get(address), "PrefixLength": fields.get(length)}
            for address, length in (("IPAddress", "PrefixLength"), ("IPv6Address", "IPv6PrefixLength"))
            if fields.get(address)
        ],
        "Routes": _default_routes(fields, "GatewayAddress", "GatewayAddressV6"),
        "MacAddress": fields.get("MacAddress"),
        "Flags": sum(bit for name, bit in flags.items() if fields.get(name) is True),
        "Policies": policies,
        "Dns": _dns(fields),
        "State": fields.get("State"),
    }


def balancer_document(fields: Fields) -> tuple[dict[str, object], Untold]:
    """A policy list of type ELB; without any policy it is one that HNS left behind unfinished.

    The family of one without VIP is not told: it is that of its endpoints. Raises ValueError if its lists are none.
    """
    policies = [Fields(each, "Policies") for each in fields.items("Policies")]
    balancers = [policy for policy in policies if str(policy.get("Type")).upper() == "ELB"]
    vips = list(dict.fromkeys(vip for policy in balancers for vip in _texts(policy, "VIPs")))
    document: dict[str, object] = {
        "ID": fields.get("ID"),
        "HostComputeNetwork": fields.get("HostComputeNetwork"),
        "HostComputeEndpoints": [
            str(each).rpartition("/")[2]
            for each in fields.items("References")
            if "/networks/" not in str(each).lower()  # a list may refer to its network, too (inferred)
        ],
        "FrontendVIPs": vips,
        "SourceVIP": next((policy.get("SourceVIP") for policy in balancers if policy.get("SourceVIP")), None),
        "PortMappings": [_port_mapping(policy) for policy in balancers],
        "Flags": int(any(policy.get("IsDSR") is True for policy in balancers)) | ipv6_flag(vips),
        "State": fields.get("State"),
    }
    untold = MappingFlags.USE_MUX | MappingFlags.PRESERVE_DIP
    for name, bit in _MAPPING_BITS.items():
        if any(name not in policy for policy in balancers):
            untold |= bit
    return document, Untold(frozenset({"distribution"}), untold)


def policy_list(balancer: HnsLoadBalancer) -> dict[str, object]:
    """A load balancer as schema 1 shows it, the way back of `balancer_document`; partial ones have no policy."""
    return {
        "ID": balancer.guid.lower(),
        "References": [f"/endpoints/{guid.lower()}" for guid in balancer.endpoints],
        "Policies": [
            {
                "Type": "ELB",
                "Protocol": mapping.protocol,
                "InternalPort": mapping.internal_port,
                "ExternalPort": mapping.external_port,
                "VIPs": [str(vip) for vip in balancer.frontend_vips],
                "SourceVIP": "" if balancer.source_vip is None else str(balancer.source_vip),
                "IsDSR": bool(balancer.flags & LbFlags.DSR),
                **{name: bool(mapping.flags & bit) for name, bit in _MAPPING_BITS.items()},
            }
            for mapping in balancer.port_mappings
        ],
        "State": balancer.state,
    }


_MAPPING_BITS = {
    "ILB": MappingFlags.ILB,
    "LocalRoutedVip": MappingFlags.LOCAL_ROUTED_VIP,
    "IsVipExternalIp": MappingFlags.VIP_EXTERNAL_IP,
}


def _port_mapping(policy: Fields) -> dict[str, object]:
    return {
        "Protocol": policy.get("Protocol"),
        "InternalPort": policy.get("InternalPort"),
        "ExternalPort": policy.get("ExternalPort"),
        "Flags": sum(int(bit) for name, bit in _MAPPING_BITS.items() if policy.get(name) is True),
    }


def ipv6_flag(addresses: list[str]) -> int:
    """HCN's flag for load balancers of IPv6 (hcn.md 2.4)."""
    return 2 if any(":" in each for each in addresses) else 0


def _texts(fields: Fields, name: str) -> list[str]:
    """A list of words; cut off by PowerShell it is one text with blanks in between."""
    return [word for each in fields.items(name) for word in str(each).split()]


def only_routes(fields: Fields) -> bool:
    """Whether a policy list is a list of routes: those are no load balancers."""
    types = {str(Fields(each, "Policies").get("Type")).upper() for each in fields.items("Policies")}
    return types == {"ROUTE"}


def report_document(fields: Fields) -> tuple[dict[str, object], Untold]:
    """A load balancer as networkhealth.ps1 reports it (hcn.md 7.4); whether `Endpoints` are GUIDs is for the caller."""
    # Type 2 is a node port, for which the script shows the management IP in the place of the missing VIP.
    vips = [] if fields.get("ServiceType") == 2 else _texts(fields, "VIP")
    document: dict[str, object] = {
        "ID": fields.get("Identifier"),
        "HostComputeNetwork": fields.get("NetworkId"),
        "HostComputeEndpoints": _texts(fields, "Endpoints"),
        "FrontendVIPs": vips,
        "PortMappings": [
            {
                "Protocol": fields.get("Protocol"),
                "InternalPort": fields.get("InternalPort"),
                "ExternalPort": fields.get("ExternalPort"),
                "Flags": 2 if fields.get("LocalRoutedVip") is True else 0,
            }
        ],
        "Flags": int(fields.get("IsDSR") is True) | ipv6_flag(vips),
        "State": fields.get("State"),
    }
    told = MappingFlags.LOCAL_ROUTED_VIP if "LocalRoutedVip" in fields else NO_FLAGS
    every = MappingFlags(sum(int(flag) for flag in MappingFlags))
    return document, Untold(frozenset({"distribution", "source VIP"}), every & ~told)


# --- the way back: networks and endpoints as schema 1 shows them ---


def network_listing(network: HnsNetwork) -> dict[str, object]:
    """A network, the way back of `network_document`; what schema 1 has fields for is no policy there."""
    own = (NetAdapterName, SourceMacAddress, ProviderAddress)
    rest = [each for each in network.policies if not isinstance(each, own)]
    return {
        "ID": network.guid,
        "Name": network.name,
        "Type": network.type.value,
        "NetworkAdapterName": next((one.name for one in network.policies if isinstance(one, NetAdapterName)), ""),
        "SourceMac": next((one.address for one in network.policies if isinstance(one, SourceMacAddress)), ""),
        "ManagementIP": "" if network.management_ip is None else str(network.management_ip),
        "MacPools": [{"StartMacAddress": one.start, "EndMacAddress": one.end} for one in network.mac_ranges],
        "Subnets": [
            {
                "ID": subnet.guid.lower(),
                "AddressPrefix": "" if subnet.prefix is None else str(subnet.prefix),
                "GatewayAddress": next((str(one.next_hop) for one in subnet.routes if one.prefix.prefixlen == 0), ""),
                "Policies": [_old_policy(each) for each in subnet.policies],
            }
            for subnet in network.subnets
        ],
        "Policies": [_old_policy(each) for each in rest],
        **_old_dns(network.dns),
    }


def endpoint_listing(endpoint: HnsEndpoint, network_name: str) -> dict[str, object]:
    """An endpoint, the way back of `endpoint_document`. Of each family it has one address (hcn.md 2.3)."""
    listing: dict[str, object] = {
        "ID": endpoint.guid.lower(),
        "Name": endpoint.name,
        "VirtualNetwork": endpoint.network,
        "VirtualNetworkName": network_name,
        "MacAddress": endpoint.mac_address,
        "IsRemoteEndpoint": endpoint.remote,
        "Policies": [_old_policy(each) for each in endpoint.policies],
        "State": endpoint.state,
        **_old_dns(endpoint.dns),
    }
    if endpoint.namespace is not None:
        listing["Namespace"] = {"ID": endpoint.namespace.lower()}
    for entry in endpoint.ip_configurations:
        address, length = ("IPv6Address", "IPv6PrefixLength") if entry.address.version == 6 else _IPV4_FIELDS
        listing[address], listing[length] = str(entry.address), entry.prefix_length
    for route in endpoint.routes:
        if route.prefix.prefixlen == 0 and route.next_hop is not None:
            listing["GatewayAddressV6" if route.prefix.version == 6 else "GatewayAddress"] = str(route.next_hop)
    return listing


_IPV4_FIELDS = ("IPAddress", "PrefixLength")


def _old_dns(dns: Dns) -> dict[str, object]:
    return {"DNSSuffix": dns.domain, "DNSServerList": ",".join(dns.servers)}


def _old_policy(policy: Policy) -> dict[str, object]:
    """The way back of `_policy`; types that are alike in both schemas keep their fields."""
    document = policy_document(policy)
    settings = document["Settings"]
    fields = dict(settings) if isinstance(settings, dict) else json.loads(msgspec.json.encode(settings))
    match document["Type"]:
        case "ProviderAddress":
            return {"Type": "PA", "PA": fields.get("ProviderAddress")}
        case "VSID" | "VLAN" as kind:
            return {"Type": kind, str(kind): fields.get("IsolationId")}
        case "OutBoundNAT":
            exceptions = fields.pop("Exceptions", [])
            vip = {"VIP": fields.pop("VirtualIP")} if fields.get("VirtualIP") else {}
            return {"Type": "OutBoundNAT", **vip, "ExceptionList": exceptions, **fields}
        case "SDNRoute":
            return {"Type": "ROUTE", **fields}
        case "PortMapping":
            reserved = {"ExternalPortReserved": True} if int(fields.pop("Flags", 0)) & 4 else {}
            return {"Type": "NAT", **fields, **reserved}
        case kind:
            return {"Type": kind, **fields}


# --- policies ---


def _policy(raw: object) -> dict[str, object]:
    """Schema 1 writes the settings next to the type, some of them under other names (hcn.md 1.8)."""
    fields = Fields(raw, "Policies")
    kind = str(fields.get("Type") or "")
    if "Settings" in fields:
        return {"Type": kind, "Settings": fields.get("Settings")}
    match kind.lower():
        case "pa":
            return {"Type": "ProviderAddress", "Settings": {"ProviderAddress": fields.get("PA")}}
        case "vsid" | "vlan":
            isolation = fields.get(kind) if kind in fields else fields.get("IsolationId")
            return {"Type": kind, "Settings": {"IsolationId": isolation}}
        case "outboundnat":
            settings = {"VirtualIP": fields.get("VIP"), "Exceptions": fields.items("ExceptionList")}
            return {"Type": "OutBoundNAT", "Settings": settings | fields.rest("type", "vip", "exceptionlist")}
        case "route":
            return {"Type": "SDNRoute", "Settings": fields.rest("type")}
        case "nat":
            reserved = 4 if fields.get("ExternalPortReserved") is True else 0
            return {"Type": "PortMapping", "Settings": {**fields.rest("type"), "Flags": reserved}}
        case "acl":
            return {"Type": "ACL", "Settings": _acl(fields)}
        case "proxy":
            return {"Type": "L4Proxy", "Settings": fields.rest("type")}
        case _:
            return {"Type": kind, "Settings": fields.rest("type")}


def _acl(fields: Fields) -> dict[str, object]:
    """Protocol 256 is any, which schema 2 says by leaving it out."""
    protocols = fields.get("Protocols") or (
        "" if fields.get("Protocol") in (None, 256) else str(fields.get("Protocol"))
    )
    ports = {
        f"{side}Ports": str(fields.get(f"{side}Ports") or fields.get(f"{side}Port") or "")
        for side in ("Local", "Remote")
    }
    return {**fields.rest("type", "protocol", "localport", "remoteport"), "Protocols": protocols} | {
        name: text for name, text in ports.items() if text not in ("", "0")
    }
