"""Listings become HNS objects: every shape, every encoding; what cannot be read is named, the rest goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.hns import hnsdiag
from hansa.hns.api import HnsKind, HnsVersion, parse_guid
from hansa.hns.dumps import Dump, DumpFile, decode_text, emulate, likely_build, read_dumps
from hansa.hns.emulator import WS2019, WS2022, WS2025, Emulator, l2bridge_node, overlay_node
from hansa.hns.schema import (
    Acl,
    Distribution,
    EncapOverhead,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    LbFlags,
    MappingFlags,
    NetAdapterName,
    NetworkType,
    OutBoundNat,
    PortMapping,
    PortMappingPolicy,
    ProviderAddress,
    RawPolicy,
    SdnRoute,
    SourceMacAddress,
    Vsid,
    encode,
)
from hansa.hns.schema1 import CONVERSIONS, Untold
from hansa.net import parse_address

RECORDED = Path(__file__).parent.parent.parent / "recorded"
NET = "6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"
POD = "A90BE7D2-1F60-4C35-8A51-20B6D1C3E101"
POD6 = "A90BE7D2-1F60-4C35-8A51-20B6D1C3E106"
BALANCER = "A90BE7D2-1F60-4C35-8A51-20B6D1C3E201"

NETWORK_1: dict[str, Any] = {
    "ID": NET,
    "Name": "pods",
    "Type": "l2bridge",
    "NetworkAdapterName": "Ethernet 2",
    "SourceMac": "00-15-5D-20-21-01",
    "ManagementIP": "192.0.2.21",
    "MacPools": [{"StartMacAddress": "00-15-5D-3A-10-00", "EndMacAddress": "00-15-5D-3A-1F-FF"}],
    "Subnets": [
        {
            "AddressPrefix": "10.40.3.0/24",
            "GatewayAddress": "10.40.3.1",
            "Policies": [{"Type": "VSID", "VSID": 4100}],
        }
    ],
    "Policies": [{"Type": "HostRoute"}],
    "DNSSuffix": "hansa.example",
    "DNSServerList": "172.21.0.10, 172.21.0.11",
}
ENDPOINT_1: dict[str, Any] = {
    "ID": POD,
    "Name": "5f1c_eth0",
    "VirtualNetwork": NET.lower(),
    "IPAddress": "10.40.3.14",
    "PrefixLength": 24,
    "IPv6Address": "2001:db8:40:3::14",
    "IPv6PrefixLength": 64,
    "GatewayAddress": "10.40.3.1",
    "GatewayAddressV6": "2001:db8:40:3::1",
    "MacAddress": "00-15-5d-3a-10-0e",
    "IsRemoteEndpoint": True,
    "DisableICC": True,
    "EnableLowMetric": True,
    "Namespace": {"ID": "3d7e2b11-8d0a-4a7e-b0a4-9e6f5512f001"},
    "EncapOverhead": 50,
    "Policies": [
        {"Type": "PA", "PA": "192.0.2.22"},
        {"Type": "OutBoundNAT", "VIP": "192.0.2.21", "ExceptionList": ["10.40.0.0/16"], "MaxPortPoolUsage": 80},
        {"Type": "ROUTE", "DestinationPrefix": "172.21.0.0/16", "NeedEncap": True},
        {"Type": "NAT", "Protocol": "TCP", "InternalPort": 80, "ExternalPort": 8080, "ExternalPortReserved": True},
        {"Type": "ACL", "Protocol": 6, "Action": "Allow", "Direction": "In", "LocalPort": 8080, "Priority": 900},
        {"Type": "ACL", "Protocol": 256, "Action": "Block", "Direction": "Out", "LocalPorts": "80,443"},
        {"Type": "PROXY", "IP": "10.40.3.14", "Port": "15001"},
        {"Type": "Firewall", "Level": 3},
    ],
    "DNSSuffix": "hansa.example",
    "DNSServerList": "172.21.0.10",
    "State": 3,
}
BALANCER_1: dict[str, Any] = {
    "ID": BALANCER,
    "References": [f"/endpoints/{POD.lower()}"],
    "HostComputeNetwork": NET,
    "State": 2,
    "IsApplied": True,
    "Policies": [
        {
            "Type": "ELB",
            "Protocol": 6,
            "InternalPort": 8080,
            "ExternalPort": 80,
            "VIPs": ["172.21.30.7"],
            "SourceVIP": "192.0.2.21",
            "IsDSR": True,
            "ILB": True,
            "LocalRoutedVip": True,
            "IsVipExternalIp": True,
        }
    ],
}
EXAMPLES = {HnsKind.NETWORK: NETWORK_1, HnsKind.ENDPOINT: ENDPOINT_1, HnsKind.LOAD_BALANCER: BALANCER_1}


def read(*values: object, name: str = "file.txt") -> Dump:
    return read_text("\n".join(json.dumps(value) for value in values), name=name)


def read_text(text: str, name: str = "file.txt") -> Dump:
    return read_dumps([DumpFile(name, text.encode())])


def without(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**document, **fields}


def altered(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The example of a load balancer with its ELB policy changed."""
    copy = json.loads(json.dumps(BALANCER_1))
    change(copy["Policies"][0])
    return dict(copy)


# --- schema 1 ---


def test_a_network_of_schema_1() -> None:
    network = read(NETWORK_1).networks[0]
    assert (network.guid, network.name, network.type) == (NET, "pods", NetworkType.L2BRIDGE)
    assert network.management_ip == parse_address("192.0.2.21")
    assert NetAdapterName("Ethernet 2") in network.policies
    assert SourceMacAddress("00-15-5D-20-21-01") in network.policies
    subnet = network.subnets[0]
    assert (str(subnet.prefix), str(subnet.gateway), subnet.policies) == ("10.40.3.0/24", "10.40.3.1", (Vsid(4100),))
    assert network.dns.servers == ("172.21.0.10", "172.21.0.11")
    assert network.mac_ranges[0].end == "00-15-5D-3A-1F-FF"


def test_an_endpoint_of_schema_1() -> None:
    endpoint = read(ENDPOINT_1).endpoints[0]
    assert endpoint.network == NET
    assert [str(each) for each in endpoint.addresses] == ["10.40.3.14", "2001:db8:40:3::14"]
    assert [each.prefix_length for each in endpoint.ip_configurations] == [24, 64]
    assert [str(each.next_hop) for each in endpoint.routes] == ["10.40.3.1", "2001:db8:40:3::1"]
    assert endpoint.mac_address == "00-15-5D-3A-10-0E"
    assert endpoint.flags == EndpointFlags(1 | 2 | 8)
    assert (endpoint.state, endpoint.namespace) == (3, parse_guid("3d7e2b11-8d0a-4a7e-b0a4-9e6f5512f001"))
    kinds = {type(policy) for policy in endpoint.policies}
    assert kinds == {ProviderAddress, OutBoundNat, SdnRoute, PortMappingPolicy, Acl, RawPolicy, EncapOverhead}
    assert endpoint.provider_address == parse_address("192.0.2.22")
    allow, block = (policy for policy in endpoint.policies if isinstance(policy, Acl))
    assert (allow.protocols, allow.local_ports, allow.priority) == ("6", "8080", 900)
    assert (block.protocols, block.local_ports) == ("", "80,443")
    nat = next(policy for policy in endpoint.policies if isinstance(policy, PortMappingPolicy))
    assert (nat.protocol, nat.internal_port, nat.external_port, nat.flags) == (6, 80, 8080, 4)
    assert not [policy for policy in endpoint.policies if isinstance(policy, RawPolicy) and policy.fault]


def test_a_policy_list_becomes_a_load_balancer() -> None:
    found = read(BALANCER_1)
    assert found.load_balancers == (
        HnsLoadBalancer(
            guid=parse_guid(BALANCER),
            network=parse_guid(NET),
            endpoints=(parse_guid(POD),),
            source_vip=parse_address("192.0.2.21"),
            frontend_vips=(parse_address("172.21.30.7"),),
            port_mappings=(
                PortMapping(protocol=6, internal_port=8080, external_port=80, flags=MappingFlags(1 | 2 | 16)),
            ),
            flags=LbFlags.DSR,
            state=2,
        ),
    )
    assert found.hints.untold[parse_guid(BALANCER)] == Untold(frozenset({"distribution"}), MappingFlags(4 | 8))


@pytest.mark.parametrize("row", CONVERSIONS, ids=lambda row: f"{row.kind.value}-{row.old}")
def test_every_field_of_the_table_is_converted(row: Any) -> None:
    """Without the field the result is another one."""
    whole = json.loads(json.dumps(EXAMPLES[row.kind]))
    lacking = json.loads(json.dumps(whole))
    outer, _, inner = row.old.partition("[].")
    if inner:
        del lacking[outer][0][inner]
    else:
        del lacking[outer]
    if row.old == "References":  # without it, it is no policy list at all
        lacking["References"] = []
    assert read(whole) != read(lacking)
    assert row.new
    assert row.evidence


def test_a_field_that_is_not_listed_is_not_told_to_be_zero() -> None:
    """hcn.md 1.8: LocalRoutedVip and IsVipExternalIp are only "also seen"."""
    bare = read(altered(lambda policy: [policy.pop(name) for name in ("ILB", "LocalRoutedVip", "IsVipExternalIp")]))
    assert bare.hints.untold[parse_guid(BALANCER)].mapping_flags == MappingFlags(1 | 2 | 4 | 8 | 16)


def test_a_policy_list_without_policies_is_a_leftover_of_a_failed_create() -> None:
    found = read(without(BALANCER_1, Policies=[]))
    assert found.load_balancers[0].port_mappings == ()
    assert not found.unread


def test_a_list_of_routes_is_no_load_balancer_and_no_fault() -> None:
    routes = without(BALANCER_1, Policies=[{"Type": "ROUTE", "DestinationPrefix": "10.0.0.0/8", "NextHop": "10.0.0.1"}])
    assert read(routes) == Dump()


def test_a_listing_that_says_not_applied_is_remembered() -> None:
    """F27: the load balancer is listed but not applied in the switch."""
    assert read(without(BALANCER_1, IsApplied=False)).hints.not_applied == {parse_guid(BALANCER)}
    assert not read(BALANCER_1).hints.not_applied


def test_the_family_of_a_node_port_is_that_of_its_endpoints() -> None:
    pod6 = {"ID": POD6, "VirtualNetwork": NET, "IPv6Address": "2001:db8::1", "Name": "x"}
    for endpoint, flags in ((POD6, LbFlags.IPV6 | LbFlags.DSR), (POD, LbFlags.DSR)):
        node_port = altered(lambda policy: policy.update(VIPs=[]))
        found = read(without(node_port, References=[f"/endpoints/{endpoint}"]), pod6, ENDPOINT_1)
        assert found.load_balancers[0].flags == flags


def test_a_vip_of_ipv6_sets_the_flag() -> None:
    found = read(altered(lambda policy: policy.update(VIPs=["2001:db8::7"], IsDSR=False)))
    assert found.load_balancers[0].flags == LbFlags.IPV6


def test_the_network_may_be_named_only() -> None:
    named = {key: value for key, value in ENDPOINT_1.items() if key != "VirtualNetwork"} | {
        "VirtualNetworkName": "pods"
    }
    assert read(named, NETWORK_1).endpoints[0].network == NET
    lost = read(named)
    assert [str(each) for each in lost.unread] == [
        f"file.txt:1: endpoint {POD}: its network pods is in none of the files"
    ]


@pytest.mark.parametrize("key", ["id", "policies", "references", "state"])
def test_names_count_whatever_their_case(key: str) -> None:
    folded = {name.lower() if name.lower() == key else name.upper(): value for name, value in BALANCER_1.items()}
    assert read(folded).load_balancers == read(BALANCER_1).load_balancers


# --- what PowerShell makes of objects ---


def test_what_convertto_json_has_cut_off_is_named_with_the_remedy() -> None:
    """Its default depth makes texts of inner objects; the rest of the file goes on."""
    cut = without(BALANCER_1, Policies=["@{ExternalPort=80; InternalPort=8080; Type=ELB}"])
    found = read([cut, without(BALANCER_1, ID=POD)], name="policy.txt")
    assert len(found.load_balancers) == 1
    assert [str(each) for each in found.unread] == [
        f"policy.txt:1: load balancer {BALANCER} left out: Policies: PowerShell cut it off; "
        "run again with `ConvertTo-Json -Depth 20`"
    ]


def test_lists_that_powershell_has_unrolled_or_joined() -> None:
    unrolled = without(BALANCER_1, References=f"/endpoints/{POD}", Policies=BALANCER_1["Policies"][0])
    assert read(unrolled).load_balancers == read(BALANCER_1).load_balancers
    joined = read(altered(lambda policy: policy.update(VIPs="172.21.30.7 172.21.30.8")))
    assert [str(vip) for vip in joined.load_balancers[0].frontend_vips] == ["172.21.30.7", "172.21.30.8"]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda each: [each],
        lambda each: {"value": [each], "Count": 1},
        lambda each: {"Success": True, "Output": [each]},
        lambda each: {BALANCER: each},
        lambda each: {"LoadBalancers": [[each]]},
    ],
)
def test_objects_are_found_inside_whatever_wraps_them(wrapped: Callable[[object], object]) -> None:
    assert read(wrapped(BALANCER_1)) == read(BALANCER_1)


def test_a_refusal_in_the_place_of_an_answer_is_named() -> None:
    found = read({"Success": False, "Error": "The parameter is incorrect. ", "ErrorCode": 2147942487})
    assert [str(each) for each in found.unread] == ["file.txt:1: HNS refused to answer: The parameter is incorrect. "]


@pytest.mark.parametrize(
    "encode_text",
    [
        lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-le"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: b"\xef\xbb\xbf" + text.encode("utf-8"),
        lambda text: text.encode("utf-8"),
        lambda text: text.encode("latin-1"),
    ],
)
def test_every_encoding_that_windows_writes(encode_text: Callable[[str], bytes]) -> None:
    text = f"Netzwerke f\u00fcr Beh\u00e4lter\r\n{json.dumps(BALANCER_1)}\r\n"
    assert decode_text(encode_text(text)) == text
    assert read_dumps([DumpFile("f", encode_text(text))]).load_balancers


# --- text around, and broken JSON ---


def test_json_between_tables_headings_and_prompts() -> None:
    text = f"""PS C:\\> Get-HnsPolicyList | ft
ID                                   Policies                References
--                                   --------                ----------
{BALANCER} {{@{{ExternalPort=80; Type=ELB}}}} {{/endpoints/{POD}}}
{{{POD}}}  {{}}  []  [1, 2]
PS C:\\> Get-HnsPolicyList | ConvertTo-Json -Depth 20
{json.dumps(BALANCER_1, indent=4)}
{json.dumps([NETWORK_1], indent=4)} {json.dumps(ENDPOINT_1)}
"""
    found = read_text(text)
    assert (len(found.networks), len(found.endpoints), len(found.load_balancers)) == (1, 1, 1)
    assert not found.unread


def test_broken_json_is_named_with_its_line_and_whole_objects_around_it_are_kept() -> None:
    other = without(BALANCER_1, ID=POD)
    items = f'{json.dumps(BALANCER_1)},\n  {{"ID": broken}},\n  {json.dumps(other)}'
    text = f"heading\n[\n  {items}\n]\n{json.dumps(NETWORK_1)}\n"
    found = read_text(text, "policy.txt")
    assert [each.guid for each in found.load_balancers] == [POD, BALANCER]
    assert len(found.networks) == 1
    assert [str(each) for each in found.unread] == ["policy.txt:4: broken JSON: Expecting value; it began in line 2"]


def test_a_file_that_was_cut_short_keeps_its_whole_objects() -> None:
    text = json.dumps([NETWORK_1, ENDPOINT_1, BALANCER_1], indent=2)
    found = read_text(text[: text.rindex("ExternalPort")])
    assert (len(found.networks), len(found.endpoints), len(found.load_balancers)) == (1, 1, 0)
    assert "it began in line 1" in str(found.unread[0])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (without(BALANCER_1, ID="x"), "load balancer x left out: ID: 'x' is not a GUID"),
        (without(BALANCER_1, ID=None), "load balancer left out: it has no ID"),
        (
            altered(lambda policy: policy.update(VIPs=["300.1.1.1"])),
            "FrontendVIPs[0]: '300.1.1.1' is not an IP address",
        ),
        (
            altered(lambda policy: policy.update(ExternalPort=70000)),
            "PortMappings[0].ExternalPort: 70000 is not within",
        ),
        (without(ENDPOINT_1, IPAddress="here"), "IpConfigurations[0].IpAddress: 'here' is not an IP address"),
        (without(NETWORK_1, Type="cable"), "Type: unknown network type 'cable'"),
        (without(NETWORK_1, Subnets=[7]), "Subnets: expected an object"),
        ({"ID": BALANCER, "FrontendVIPs": 3}, "FrontendVIPs: expected a list, found a number"),
        ({"Colour": "red", "Size": 3}, "an object of a kind that hansa does not know: Colour, Size"),
        ("no JSON", "no network, endpoint or load balancer in JSON"),
    ],
)
def test_what_cannot_be_understood_is_named_and_the_rest_goes_on(value: object, says: str) -> None:
    good = DumpFile("good.txt", json.dumps(NETWORK_1).encode())
    found = read_dumps([DumpFile("bad.txt", json.dumps(value).encode()), good])
    assert len(found.networks) == 1
    assert len(found.unread) == 1
    assert found.unread[0].file == "bad.txt"
    assert says in str(found.unread[0])


def test_namespaces_are_known_and_not_needed() -> None:
    old = {"ActivityId": NET, "CompartmentId": 3, "CompartmentGuid": NET, "IsDefault": False, "ResourceList": []}
    new = {"ID": NET, "NamespaceId": 7, "Type": "Host", "Resources": [], "SchemaVersion": {"Major": 2, "Minor": 0}}
    route = {"ID": NET, "HostComputeNetwork": NET, "HostComputeEndpoints": [POD], "Routes": []}
    assert read(old, new, route) == Dump()


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything(content: bytes) -> None:
    read_dumps([DumpFile("f", content)])


@given(st.data())
def test_damage_never_raises_and_never_goes_unsaid(data: st.DataObject) -> None:
    """Cut a piece out of a listing: either everything is still there, or something is named."""
    text = (RECORDED / "ws2022-overlay" / "hnsdiag.txt").read_text(encoding="utf-8")
    whole = read_text(text)
    start = data.draw(st.integers(0, len(text)))
    damaged = read_text(text[:start] + text[start + data.draw(st.integers(1, 300)) :])
    counts = [len(each.networks) + len(each.endpoints) + len(each.load_balancers) for each in (whole, damaged)]
    assert damaged.unread or counts[0] - counts[1] <= 1, counts


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([NET, POD, "/endpoints/x"])
_NAMES = st.sampled_from(
    [*NETWORK_1, *ENDPOINT_1, *BALANCER_1, *BALANCER_1["Policies"][0], "Settings", "Identifier", "EndpointIpAddresses"]
)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=6), max_leaves=20
)


@given(_JSON)
def test_known_names_with_any_values_raise_nothing(value: object) -> None:
    read(value)


# --- schema 2, and several files ---


def damaged_node(build: Any = WS2022) -> Emulator:
    node = overlay_node(build)
    pod = node.add_pod("10.41.7.14")
    node.add(
        HnsLoadBalancer(
            endpoints=(pod,),
            source_vip=parse_address("10.41.7.2"),
            frontend_vips=(parse_address("172.21.30.7"),),
            port_mappings=(
                PortMapping(protocol=6, internal_port=8080, external_port=80, distribution=Distribution.SOURCE_IP),
            ),
        )
    )
    return node


def objects(node: Emulator) -> list[Any]:
    return [*node.networks(), *node.endpoints(), *node.load_balancers()]


def test_documents_of_schema_2_come_back_as_they_were() -> None:
    node = damaged_node()
    framed = "Networks:\n" + "\n".join(encode(value) for value in objects(node)) + "\nEnd.\n"
    for text in (framed, hnsdiag.list_json(objects(node))):
        found = read_text(text)
        assert sorted((*found.networks, *found.endpoints, *found.load_balancers), key=repr) == sorted(
            objects(node), key=repr
        )
        assert found.hints.untold == {}
        assert not found.unread


def test_a_saved_emulated_node_can_be_read_as_a_dump() -> None:
    node = damaged_node()
    found = read_text(node.dump())
    assert set(found.endpoints) == set(node.endpoints())
    assert set(found.load_balancers) == set(node.load_balancers())


@pytest.mark.parametrize("order", [1, -1])
def test_the_file_that_tells_most_wins(order: int) -> None:
    """Schema 2 tells affinity, schema 1 the state: both are kept, whichever file comes first."""
    new = HnsLoadBalancer(
        guid=parse_guid(BALANCER),
        endpoints=(parse_guid(POD),),
        frontend_vips=(parse_address("172.21.30.7"),),
        port_mappings=(
            PortMapping(protocol=6, internal_port=8080, external_port=80, distribution=Distribution.SOURCE_IP),
        ),
    )
    files = [
        DumpFile("hnsdiag.txt", encode(new).encode()),
        DumpFile("policy.txt", json.dumps(without(BALANCER_1, State=4, IsApplied=False)).encode()),
    ]
    found = read_dumps(files[::order])
    assert found.load_balancers == (msgspec.structs.replace(new, state=4),)
    assert found.hints.untold == {}
    assert found.hints.not_applied == {BALANCER}


def test_of_equals_the_later_one_counts() -> None:
    found = read(BALANCER_1, without(BALANCER_1, State=4))
    assert [each.state for each in found.load_balancers] == [4]


def test_states_of_endpoints_are_hints() -> None:
    found = read(without(ENDPOINT_1, State=4))
    assert found.hints.states == {parse_guid(POD): 4}


REPORT = {
    "Identifier": BALANCER,
    "NetworkId": NET,
    "State": 2,
    "VIP": "172.21.30.7",
    "ExternalPort": 80,
    "InternalPort": 8080,
    "Protocol": "TCP",
    "IsDSR": True,
    "LocalRoutedVip": False,
    "Endpoints": ["/endpoints/unclear"],
    "EndpointIpAddresses": ["10.40.3.14"],
    "ServiceType": 1,
}


def test_the_report_of_networkhealth() -> None:
    found = read([REPORT], ENDPOINT_1)
    balancer = found.load_balancers[0]
    assert (balancer.endpoints, balancer.flags, balancer.state) == ((POD,), LbFlags.DSR, 2)
    mapping = balancer.port_mappings[0]
    assert (mapping.protocol, mapping.internal_port, mapping.external_port) == (6, 8080, 80)
    untold = found.hints.untold[balancer.guid]
    assert untold == Untold(frozenset({"distribution", "source VIP"}), MappingFlags(1 | 4 | 8 | 16))


def test_the_report_shows_the_management_address_where_a_node_port_has_no_vip() -> None:
    found = read([{**REPORT, "ServiceType": 2, "VIP": "192.0.2.21", "LocalRoutedVip": True}], ENDPOINT_1)
    assert found.load_balancers[0].frontend_vips == ()
    assert found.load_balancers[0].port_mappings[0].flags == MappingFlags.LOCAL_ROUTED_VIP


def test_an_endpoint_of_a_report_that_no_file_has_is_named() -> None:
    found = read([REPORT])
    assert found.load_balancers[0].endpoints == ()
    assert "no endpoint in the files has the address 10.40.3.14" in str(found.unread[0])


# --- the constructed listings, and a dump as a node ---


@pytest.mark.parametrize(
    ("folder", "counts", "version"),
    [("ws2019-l2bridge", (2, 14, 12), HnsVersion(9, 5)), ("ws2022-overlay", (1, 16, 10), HnsVersion(13, 3))],
)
def test_the_constructed_listings_are_read_in_full(
    folder: str, counts: tuple[int, int, int], version: HnsVersion
) -> None:
    files = [DumpFile(path.name, path.read_bytes()) for path in sorted((RECORDED / folder).iterdir())]
    found = read_dumps(file for file in files if file.name != "cluster.yaml")
    assert not found.unread
    assert (len(found.networks), len(found.endpoints), len(found.load_balancers)) == counts
    assert found.version == version
    assert found.management_addresses == (parse_address("192.0.2.21"),)


def test_a_node_of_a_dump_holds_what_the_files_tell_and_survives_being_saved() -> None:
    files = [DumpFile("hnsdiag.txt", (RECORDED / "ws2022-overlay" / "hnsdiag.txt").read_bytes())]
    dump = read_dumps(files)
    node = emulate(dump, WS2022)
    again = Emulator.load(node.dump())
    assert set(again.endpoints()) == set(dump.endpoints)
    assert set(again.load_balancers()) == set(dump.load_balancers)
    assert again.machine.mac_address == dump.host_mac == "00-15-5D-20-21-01"
    assert dump.source_vips == (parse_address("10.41.7.2"),)


def test_somebody_must_tell_the_address_of_the_node() -> None:
    dump = read(BALANCER_1)
    with pytest.raises(ValueError, match="tells this node's address"):
        emulate(dump, WS2022)
    assert emulate(dump, WS2022, [parse_address("192.0.2.9")]).host_addresses == (parse_address("192.0.2.9"),)


@pytest.mark.parametrize(
    ("version", "build"),
    [
        (None, WS2022),
        (HnsVersion(9, 5), WS2019),
        (HnsVersion(9, 2), WS2019),
        (HnsVersion(13, 3), WS2022),
        (HnsVersion(14, 1), WS2022),
        (HnsVersion(15, 4), WS2025),
    ],
)
def test_the_build_is_the_newest_that_is_not_newer(version: HnsVersion | None, build: Any) -> None:
    found = likely_build(version, WS2022)
    assert found.name == build.name
    assert found.version == (version or build.version)


def test_the_hosts_mac_is_told_by_service_vips_or_by_the_network() -> None:
    assert read(NETWORK_1).host_mac == "00-15-5D-20-21-01"
    assert read(without(NETWORK_1, SourceMac="")).host_mac == ""
    stand_in = without(ENDPOINT_1, MacAddress="02-11-0a-28-03-0e")
    assert read(stand_in).host_mac == ""


@pytest.mark.parametrize("make", [l2bridge_node, overlay_node])
def test_what_hns_answers_is_read_like_what_was_saved(make: Callable[..., Emulator]) -> None:
    node = make()
    found = read_text(hnsdiag.list_json([*node.networks(), *node.endpoints()]))
    assert isinstance(found.networks[0], HnsNetwork)
    assert isinstance(found.endpoints[0], HnsEndpoint)
    assert emulate(found, WS2022).networks() == node.networks()
