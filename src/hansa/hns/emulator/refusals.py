"""What HNS refuses, with which code, and how well each refusal is known. Rules as data, checks as pure functions.

A check raises `Refused` or returns; it changes nothing. Evidence: hcn.md 1.7 (EV-01 to EV-30), windows-proxy 0.4.
Rules named HX-.. are not in those tables: they are hansa's reading of neighbouring facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from hansa.errors import HansaError
from hansa.hns.api import ZERO_GUID, Guid, HnsKind, HResult
from hansa.hns.emulator.builds import Build, Grade
from hansa.hns.emulator.state import LbFrontend, State
from hansa.hns.errors import KNOWN_RESULTS
from hansa.hns.features import Feature, supports
from hansa.hns.schema import (
    LB_STATE_DEGRADED,
    Acl,
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HnsObject,
    LbFlags,
    NetAdapterName,
    NetworkType,
    OutBoundNat,
    Policy,
    PortMapping,
    PortMappingPolicy,
    RawPolicy,
    Subnet,
    SubnetFlags,
)
from hansa.net import Address, IPFamily, family_of, parse_prefix


class RefusalRule(NamedTuple):
    """condition: in words. hresult: HNS's answer, or the usual one if the build has a switch for it."""

    calls: str
    condition: str
    hresult: HResult
    grade: Grade
    evidence: str


def _rule(calls: str, condition: str, hresult: int, grade: Grade, evidence: str) -> RefusalRule:
    return RefusalRule(calls, condition, HResult(hresult), grade, evidence)


_MEANING = "the code's meaning"

RULES: dict[str, RefusalRule] = {
    "EV-01": _rule("any", "settings or query are not JSON", 0x803B001B, Grade.INFERRED, _MEANING),
    "EV-02": _rule("Open, Delete", "unknown ID", 0x80070490, Grade.SEEN, "hcsshim test, for namespaces"),
    "EV-03": _rule("Create", "ID in use already", 0x800700B7, Grade.SEEN, "kubernetes/kubernetes#139519"),
    "EV-04": _rule("CreateNetwork", "name in use", 0x803B0010, Grade.SEEN, "sig-windows-tools#249"),
    "EV-05": _rule("CreateNetwork", "document cannot be read", 0x803B000A, Grade.INFERRED, _MEANING),
    "EV-05t": _rule("CreateNetwork", "unknown network type", 0x803B000B, Grade.INFERRED, _MEANING),
    "EV-06": _rule("CreateNetwork", "no such adapter", 0x803B0006, Grade.INFERRED, _MEANING),
    "EV-07": _rule(
        "CreateNetwork",
        "subnet with a prefix without default route, or a route without next hop",
        0x80070057,
        Grade.INFERRED,
        "Go clients refuse it themselves; HNS's own answer is unknown",
    ),
    "EV-08": _rule("CreateEndpoint", "local address outside every subnet", 0x803B001E, Grade.SEEN, "several trackers"),
    "EV-09": _rule(
        "CreateEndpoint",
        "gateway, network or broadcast address",
        0x803B002F,
        Grade.SEEN,
        "kubernetes/kubernetes#100962",
    ),
    "EV-10": _rule(
        "CreateEndpoint, ModifyEndpoint",
        "a policy that cannot be read, or an ACL address that is a word",
        0x803B000D,
        Grade.SEEN,
        "microsoft/hcsshim#1059, projectcalico/calico#8465",
    ),
    "EV-11": _rule(
        "CreateEndpoint", "OutBoundNAT exception with host bits", 0x803B000D, Grade.SEEN, "microsoft/hcsshim#1951"
    ),
    "EV-12": _rule("CreateEndpoint", "host port mapped by another endpoint", 0x803B0013, Grade.SEEN, "hcsshim test"),
    "EV-13": _rule(
        "CreateLoadBalancer",
        "(address or node, protocol, external port, family) served already",
        0x803B0013,
        Grade.SEEN,
        "several trackers; that node ports clash too is inferred",
    ),
    "EV-14": _rule(
        "CreateLoadBalancer", "a host socket listens on the port", 0x803B0013, Grade.SEEN, "kubernetes/community#8883"
    ),
    "EV-15": _rule(
        "CreateLoadBalancer", "no block of dynamic ports left", 0x803B0013, Grade.SEEN, "Azure/AKS#1375, SDN issues"
    ),
    "EV-16": _rule(
        "CreateLoadBalancer", "switch port of a back end gone", 0x803B0007, Grade.SEEN, "microsoft/hcsshim#1043"
    ),
    "EV-17": _rule(
        "CreateLoadBalancer", "more than 64 back ends without DSR", 0x80070057, Grade.SEEN, "issues; limit documented"
    ),
    "EV-18": _rule("CreateLoadBalancer", "no back end", 0x80070057, Grade.INFERRED, "as EV-17"),
    "EV-19": _rule(
        "CreateLoadBalancer", "unknown endpoint", 0x803B0002, Grade.SEEN, "windows-proxy 0.4; Build.unknown_endpoint"
    ),
    "EV-20": _rule("CreateLoadBalancer", "internal port 0 or absent", 0x803B002D, Grade.INFERRED, _MEANING),
    "EV-21": _rule("ModifyLoadBalancer", "HNS without the feature", 0x80004001, Grade.SEEN, "kube-proxy source"),
    "EV-23": _rule("DeleteLoadBalancer", "every nth time", 0x80070057, Grade.SEEN, "kube-proxy source; code invented"),
    "EV-24": _rule(
        "DeleteLoadBalancer", "feature key 140377743 is on", 0x803B001E, Grade.SEEN, "princepereira/Commands"
    ),
    "EV-25": _rule("attach", "attached already", 0x803B0014, Grade.SEEN, "projectcalico/cni-plugin#988"),
    "EV-26": _rule("ModifyEndpoint", "endpoint deleted meanwhile", 0x803B0002, Grade.SEEN, "several trackers"),
    "EV-27": _rule("attach, port operations", "remote endpoint", 0x803B000F, Grade.INFERRED, _MEANING),
    "EV-28": _rule("DeleteEndpoint", "a load balancer names it", 0x803B002C, Grade.INFERRED, "windows-proxy G.4"),
    "EV-29": _rule("DeleteNetwork", "endpoints left", 0x803B002C, Grade.INFERRED, "unverified; off by default"),
    "EV-30": _rule("Modify, Delete", "object is degraded", 0x803B0017, Grade.INFERRED, "microsoft/wcnscripts#21"),
    "HX-01": _rule("Query, Modify", "object deleted while its handle was open", 0x803B0031, Grade.INFERRED, _MEANING),
    "HX-02": _rule("any with a handle", "handle from before a restart", 0x800706F7, Grade.INFERRED, "RPC contexts"),
    "HX-03": _rule("any with a handle", "no such handle", 0x80070006, Grade.INFERRED, "Win32 usage"),
    "HX-04": _rule("CreateEndpoint", "document cannot be read", 0x803B000C, Grade.INFERRED, _MEANING),
    "HX-05": _rule("Create, ModifyLoadBalancer", "document cannot be read", 0x803B000D, Grade.INFERRED, _MEANING),
    "HX-06": _rule(
        "CreateEndpoint",
        "another endpoint of the network has the address",
        0x80071392,
        Grade.SEEN,
        "kubernetes/kubernetes#74766; builds with twins allow it",
    ),
    "HX-07": _rule(
        "CreateEndpoint", "remote endpoint without address", 0x803B001E, Grade.INFERRED, "it is all that it tells VFP"
    ),
    "HX-08": _rule(
        "CreateEndpoint", "overlay, remote, no provider address", 0x803B000D, Grade.INFERRED, "hcn.md 2.5: mandatory"
    ),
    "HX-09": _rule(
        "CreateEndpoint, CreateLoadBalancer",
        "IPv6 on an overlay network or an HNS before 11.10",
        0x803B001E,
        Grade.INFERRED,
        "Kubernetes: IPv6 on l2bridge from Windows Server 2022 only",
    ),
    "HX-10": _rule(
        "CreateLoadBalancer",
        "families of VIPs, back ends and IPv6 flag differ",
        0x80070057,
        Grade.INFERRED,
        "one load balancer has one family (kube-proxy source)",
    ),
    "HX-11": _rule("CreateLoadBalancer", "DSR on an HNS without it", 0x80070057, Grade.INFERRED, "hcn.md 4"),
    "HX-12": _rule("CreateLoadBalancer", "protocol not balanced", 0x80070057, Grade.DOCUMENTED, "HCN schema page"),
    "HX-13": _rule("CreateLoadBalancer", "no port mapping, or external port 0", 0x803B000D, Grade.INFERRED, "0.4"),
    "HX-14": _rule("CreateLoadBalancer", "back end on a network without VFP", 0x803B0037, Grade.INFERRED, _MEANING),
    "HX-15": _rule(
        "ModifyLoadBalancer", "more than the back ends would change", 0x80070057, Grade.INFERRED, "unverified"
    ),
    "HX-16": _rule("ModifyNetwork, ModifyEndpoint", "request not emulated", 0x803B0015, Grade.INFERRED, _MEANING),
    "HX-17": _rule("Query, Enumerate", "schema 1 asked for", 0x80004001, Grade.INFERRED, "not emulated"),
    "HX-18": _rule("Create", "network handle missing or out of place", 0x80070057, Grade.INFERRED, "Win32 usage"),
    "HX-19": _rule("CreateEndpoint", "no free address in the subnet", 0x803B001E, Grade.INFERRED, _MEANING),
    "HX-20": _rule("ModifyNetwork", "policy to remove is not there", 0x803B0008, Grade.INFERRED, _MEANING),
}

# English texts as they have been seen on the wire (hcn.md 1.5); HNS ends them with a blank.
_TEXTS: dict[int, str] = {
    0x803B0013: "The specified port already exists. ",
    0x803B001E: "IP address is either invalid or not part of any configured subnet(s). ",
    0x803B002F: "An address provided is invalid or reserved. ",
    0x80070057: "The parameter is incorrect. ",
    0x80070490: "Element not found. ",
}
_NO_DESTINATIONS = "Unable to initialize VFP LB rule: invalid number of destinations."
MAX_BACK_ENDS_WITHOUT_DSR = 64  # Kubernetes' Windows networking page


class Refused(HansaError):
    """HNS says no. rule: key of RULES."""

    def __init__(self, rule: str, hresult: HResult, text: str) -> None:
        self.rule = rule
        self.hresult = hresult
        self.text = text
        super().__init__(f"{rule}: {text}")


def refuse(rule: str, detail: str = "", hresult: HResult | None = None) -> NoReturn:
    """Refuse by that rule; detail follows the system's text; hresult if a switch of the build names another code."""
    code = RULES[rule].hresult if hresult is None else hresult
    raise Refused(rule, code, system_text(code) + detail)


def system_text(hresult: HResult) -> str:
    """The text of the code in English, ending in a blank as HNS's does."""
    if (text := _TEXTS.get(hresult)) is not None:
        return text
    known = KNOWN_RESULTS.get(hresult)
    return f"{known.meaning.capitalize()}. " if known else "Unknown error. "


def refuse_unreadable(kind: HnsKind, field: str, detail: str) -> NoReturn:
    """For a document that is JSON and yet cannot be read."""
    match kind:
        case HnsKind.NETWORK:
            refuse("EV-05t" if field == "Type" else "EV-05", detail)
        case HnsKind.ENDPOINT:
            refuse("HX-04", detail)
        case HnsKind.LOAD_BALANCER:
            refuse("HX-05", detail)


def check_free(value: HnsObject | None) -> None:
    if value is not None:
        refuse("EV-03")


def check_degraded(value: HnsObject) -> None:
    """A degraded object can be neither changed nor deleted."""
    match value:
        case HnsEndpoint() if value.state == EndpointState.DEGRADED:
            refuse("EV-30")
        case HnsLoadBalancer() if value.state == LB_STATE_DEGRADED:
            refuse("EV-30")
        case _:
            pass


def check_network(network: HnsNetwork, state: State, adapters: tuple[str, ...]) -> None:
    """A network that is to be created; adapters: () = any name exists."""
    if network.name and any(each.name == network.name for each in state.networks.values()):
        refuse("EV-04")
    for policy in network.policies:
        if isinstance(policy, NetAdapterName) and adapters and policy.name not in adapters:
            refuse("EV-06")
        if isinstance(policy, RawPolicy) and policy.fault:
            refuse("EV-05", policy.fault)
    for subnet in network.subnets:
        if any(route.next_hop is None for route in subnet.routes) or (subnet.prefix and subnet.gateway is None):
            refuse("EV-07")


def check_endpoint(endpoint: HnsEndpoint, network: HnsNetwork, state: State, build: Build) -> None:
    """An endpoint that is to be created, defaults filled in."""
    _check_families(endpoint.addresses, network, build)
    if endpoint.remote:
        _check_remote_endpoint(endpoint, network)
    else:
        for address in endpoint.addresses:
            _check_local_address(address, network)
    for address in endpoint.addresses:
        for other in state.endpoints_at(network.guid, address):
            if not _may_be_twins(endpoint, other, build):
                refuse("HX-06")
    check_endpoint_policies(endpoint, state, build)


def _check_remote_endpoint(endpoint: HnsEndpoint, network: HnsNetwork) -> None:
    if not endpoint.addresses:
        refuse("HX-07")
    if network.type is NetworkType.OVERLAY and endpoint.provider_address is None:
        refuse("HX-08")


def _check_families(addresses: Iterable[Address], network: HnsNetwork, build: Build) -> None:
    if any(family_of(address) is IPFamily.IPV6 for address in addresses) and (
        network.type is NetworkType.OVERLAY or not supports(build.version, Feature.IPV6_DUAL_STACK)
    ):
        refuse("HX-09")


def _check_local_address(address: Address, network: HnsNetwork) -> None:
    if not network.subnets:
        return  # DHCP or transparent: HNS has nothing to compare with
    subnet = subnet_of(network, address)
    if subnet is None:
        refuse("EV-08")
    if is_reserved(address, subnet):
        refuse("EV-09")


def subnet_of(network: HnsNetwork, address: Address) -> Subnet | None:
    return next((each for each in network.subnets if each.prefix is not None and address in each.prefix), None)


def is_reserved(address: Address, subnet: Subnet) -> bool:
    """Gateway (unless the subnet says otherwise), network and broadcast address."""
    if address == subnet.gateway:
        return not subnet.flags & SubnetFlags.DO_NOT_RESERVE_GATEWAY_ADDRESS
    prefix = subnet.prefix
    if prefix is None or prefix.num_addresses < 4:
        return False
    return address == prefix.network_address or (address.version == 4 and address == prefix.broadcast_address)


def _may_be_twins(one: HnsEndpoint, other: HnsEndpoint, build: Build) -> bool:
    if one.remote != other.remote:
        return build.allows_local_remote_twins
    return one.remote and build.allows_remote_twins


def check_endpoint_policies(endpoint: HnsEndpoint, state: State, build: Build) -> None:
    """All policies of an endpoint as it is to be after a create or modify."""
    for policy in endpoint.policies:
        _check_endpoint_policy(policy, build)
    mapped = {_host_port(policy) for policy in endpoint.policies if isinstance(policy, PortMappingPolicy)}
    if mapped and any(
        _host_port(policy) in mapped
        for other in state.endpoints.values()
        if other.guid != endpoint.guid
        for policy in other.policies
        if isinstance(policy, PortMappingPolicy)
    ):
        refuse("EV-12")


def _host_port(policy: PortMappingPolicy) -> tuple[int, int]:
    return policy.protocol, policy.external_port


def _check_endpoint_policy(policy: Policy, build: Build) -> None:
    match policy:
        case RawPolicy() if policy.fault:
            refuse("EV-10", policy.fault)
        case Acl():
            for text in (policy.local_addresses, policy.remote_addresses):
                for word in filter(None, (each.strip() for each in text.split(","))):
                    # Ids of address sets are allowed too; of the words, `Any` and its like are known to fail.
                    if word.lower() in ("any", "*", "all"):
                        refuse("EV-10", word)
        case OutBoundNat() if build.refuses_exception_host_bits:
            for exception in policy.exceptions:
                if _has_host_bits(exception):
                    refuse("EV-11", exception)
        case _:
            pass


def _has_host_bits(text: str) -> bool:
    try:
        return "/" in text and str(parse_prefix(text).network_address) != text.partition("/")[0]
    except ValueError:
        refuse("EV-10", text)


def check_load_balancer(balancer: HnsLoadBalancer, state: State, build: Build) -> None:
    """A load balancer as it is to be after a create or modify; one of the same GUID does not stand in its way."""
    if not balancer.port_mappings:
        refuse("HX-13")
    for mapping in balancer.port_mappings:
        _check_mapping(mapping, build)
    dsr = bool(balancer.flags & LbFlags.DSR)
    if dsr and not supports(build.version, Feature.DSR):
        refuse("HX-11")
    _check_back_ends(balancer, state, build)
    if not balancer.endpoints or (not dsr and len(balancer.endpoints) > MAX_BACK_ENDS_WITHOUT_DSR):
        refuse("EV-17" if balancer.endpoints else "EV-18", _NO_DESTINATIONS)
    _check_lb_families(balancer, state, build)
    for frontend in state.frontends(balancer):
        _check_frontend(frontend, balancer.guid, state, build)


def _check_mapping(mapping: PortMapping, build: Build) -> None:
    if mapping.internal_port == 0:
        refuse("EV-20")
    if mapping.external_port == 0:
        refuse("HX-13")
    if mapping.protocol not in build.lb_protocols:
        refuse("HX-12", f"Protocol {mapping.protocol}.")


def _check_back_ends(balancer: HnsLoadBalancer, state: State, build: Build) -> None:
    for guid in balancer.endpoints:
        endpoint = state.endpoints.get(guid)
        if endpoint is None:
            refuse("EV-19", hresult=build.unknown_endpoint)
        if guid in state.broken_ports:
            refuse("EV-16")
        network = state.networks.get(endpoint.network)
        if network is not None and network.type is NetworkType.NAT:
            refuse("HX-14")


def _check_lb_families(balancer: HnsLoadBalancer, state: State, build: Build) -> None:
    family = IPFamily.IPV6 if balancer.flags & LbFlags.IPV6 else IPFamily.IPV4
    if family is IPFamily.IPV6 and not supports(build.version, Feature.IPV6_DUAL_STACK):
        refuse("HX-09")
    addresses = [*balancer.frontend_vips, *((balancer.source_vip,) if balancer.source_vip else ())]
    if any(family_of(address) is not family for address in addresses):
        refuse("HX-10")
    for guid in balancer.endpoints:
        back_end = state.endpoints[guid].addresses
        if back_end and all(family_of(address) is not family for address in back_end):
            refuse("HX-10")


def _check_frontend(frontend: LbFrontend, own: Guid, state: State, build: Build) -> None:
    if any(guid != own for guid in state.owners(frontend)) or frontend in state.leaked:
        refuse("EV-13")
    for listener in state.listeners:
        if (listener.protocol, listener.port) != (frontend.protocol, frontend.port):
            continue
        on_node = frontend.address is None and (
            listener.address is None
            or (listener.address in state.host_addresses and family_of(listener.address) is frontend.family)
        )
        if on_node or (listener.address is None and build.wildcard_listener_blocks_vips):
            refuse("EV-14")


def check_lb_modification(old: HnsLoadBalancer, new: HnsLoadBalancer, build: Build) -> None:
    """What a Modify may change."""
    if not build.modify_changes_everything and _without_back_ends(old) != _without_back_ends(new):
        refuse("HX-15")


def _without_back_ends(balancer: HnsLoadBalancer) -> tuple[object, ...]:
    return balancer.source_vip, frozenset(balancer.frontend_vips), balancer.port_mappings, balancer.flags


def check_attach(endpoint: HnsEndpoint) -> None:
    if endpoint.remote:
        refuse("EV-27")
    if endpoint.state in (EndpointState.ATTACHED, EndpointState.ATTACHED_SHARING):
        refuse("EV-25")


def check_endpoint_delete(guid: Guid, state: State, build: Build) -> None:
    if build.refuses_delete_of_used_endpoint and state.users(guid):
        refuse("EV-28")


def check_network_delete(guid: Guid, state: State, build: Build) -> None:
    if build.refuses_delete_of_used_network and state.endpoints_of(guid):
        refuse("EV-29")


def check_caller_guid(guid: Guid, state: State, kind: HnsKind) -> None:
    if guid != ZERO_GUID:
        check_free(state.get(kind, guid))
