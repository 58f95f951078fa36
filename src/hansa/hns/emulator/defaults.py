"""What HNS fills into documents that leave it open. Pure. Evidence: hcn.md 2.2-2.4; most of it is inferred."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from hansa.hns.api import ZERO_GUID, Guid
from hansa.hns.emulator.builds import Build, Machine
from hansa.hns.emulator.documents import PolicyRequest
from hansa.hns.emulator.refusals import is_reserved, refuse
from hansa.hns.emulator.state import State
from hansa.hns.schema import (
    LB_STATE_APPLIED,
    DrMacAddress,
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    IpConfiguration,
    MacRange,
    NetworkType,
    Policy,
    ProviderAddress,
    RemoteSubnetRoute,
    Subnet,
)
from hansa.net import Address, parse_address

ENDPOINT_NAME = "Ethernet"  # how endpoints that were created without a name show up (operator output)
_MAC_RANGE = MacRange("00-15-5D-7E-40-00", "00-15-5D-7E-4F-FF")
_SWITCHED = (NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.OVERLAY, NetworkType.TRANSPARENT)


def network(asked: HnsNetwork, machine: Machine, new_guid: Callable[[], Guid]) -> HnsNetwork:
    """Ids of subnets, the MAC pool, the management IP and, on overlay, the router's MAC."""
    policies = asked.policies
    if asked.type in _SWITCHED and asked.management_ip is None:
        policies = (*policies, ProviderAddress(parse_address(machine.addresses[0])))
    if asked.type is NetworkType.OVERLAY and not any(isinstance(each, DrMacAddress) for each in policies):
        policies = (*policies, DrMacAddress(_mac(_MAC_RANGE, 0x401)))
    ipams = tuple(
        replace(ipam, subnets=tuple(_with_guid(subnet, new_guid) for subnet in ipam.subnets)) for ipam in asked.ipams
    )
    return replace(asked, policies=policies, ipams=ipams, mac_ranges=asked.mac_ranges or (_MAC_RANGE,))


def _with_guid(subnet: Subnet, new_guid: Callable[[], Guid]) -> Subnet:
    return replace(subnet, guid=new_guid()) if subnet.guid == ZERO_GUID else subnet


def without_management_ip(value: HnsNetwork) -> HnsNetwork:
    """As it shows just after its creation."""
    return replace(value, policies=tuple(each for each in value.policies if not isinstance(each, ProviderAddress)))


def endpoint(asked: HnsEndpoint, on: HnsNetwork, state: State) -> HnsEndpoint:
    """Name, network, MAC, address of a local endpoint, prefix length. Raises Refused if no address is free."""
    addresses = asked.ip_configurations
    if not addresses and not asked.remote and on.subnets:
        addresses = (IpConfiguration(_free_address(on, state)),)
    return replace(
        asked,
        name=asked.name or ENDPOINT_NAME,
        network=on.guid,
        namespace=None,  # read only: set by attaching
        ip_configurations=tuple(_with_length(each, on) for each in addresses),
        mac_address=asked.mac_address or _free_mac(on, state),
        state=EndpointState.CREATED,
    )


def _with_length(configuration: IpConfiguration, on: HnsNetwork) -> IpConfiguration:
    if configuration.prefix_length:
        return configuration
    address = configuration.address
    prefixes = [subnet.prefix for subnet in on.subnets] + [route.prefix for route in on.remote_subnets]
    lengths = (prefix.prefixlen for prefix in prefixes if prefix is not None and address in prefix)
    return IpConfiguration(address, next(lengths, address.max_prefixlen))


def _free_address(on: HnsNetwork, state: State) -> Address:
    prefixed = ((subnet, subnet.prefix) for subnet in on.subnets if subnet.prefix is not None)
    free = (
        address
        for subnet, prefix in prefixed
        for address in prefix.hosts()
        if not is_reserved(address, subnet) and not state.endpoints_at(on.guid, address)
    )
    found = next(free, None)
    if found is None:
        refuse("HX-19")
    return found


def _free_mac(on: HnsNetwork, state: State) -> str:
    pool = on.mac_ranges[0] if on.mac_ranges else _MAC_RANGE
    taken = {state.endpoints[guid].mac_address for guid in state.endpoints_of(on.guid)}
    number = 1
    while _mac(pool, number) in taken:
        number += 1
    return _mac(pool, number)


def _mac(pool: MacRange, offset: int) -> str:
    digits = f"{int(pool.start.replace('-', ''), 16) + offset:012X}"
    return "-".join(digits[index : index + 2] for index in range(0, 12, 2))


def load_balancer(asked: HnsLoadBalancer, state: State, build: Build) -> HnsLoadBalancer:
    """State, and the network that its first back end is on."""
    own: Guid | None = None
    if build.tells_lb_network:
        own = asked.network or state.endpoints[asked.endpoints[0]].network
    return replace(asked, network=own, state=LB_STATE_APPLIED)


def policies_after(policies: tuple[Policy, ...], request: PolicyRequest) -> tuple[Policy, ...]:
    """What a policy request leaves. A remote subnet is removed by its prefix, others by equality. Raises Refused."""
    match request.request:
        case "Update":
            return request.policies
        case "Add":
            return (*policies, *request.policies)
        case _:
            rest = list(policies)
            for unwanted in request.policies:
                found = next((each for each in rest if _identifies(unwanted, each)), None)
                if found is None:
                    refuse("HX-20")
                rest.remove(found)
            return tuple(rest)


def _identifies(unwanted: Policy, present: Policy) -> bool:
    if isinstance(unwanted, RemoteSubnetRoute) and isinstance(present, RemoteSubnetRoute):
        return unwanted.prefix == present.prefix
    return unwanted == present
