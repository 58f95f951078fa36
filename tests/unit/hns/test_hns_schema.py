"""Reading is tolerant, writing is exact, and no text raises anything but MalformedHnsObject (hcn.md section 2)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import DataplaneError
from hansa.hns.api import ZERO_GUID, HnsKind, parse_guid
from hansa.hns.schema import (
    Acl,
    Distribution,
    DrMacAddress,
    EncapOverhead,
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HostRoute,
    Ipam,
    IpConfiguration,
    L2Driver,
    LbFlags,
    MalformedHnsObject,
    MappingFlags,
    NetAdapterName,
    NetworkFlags,
    NetworkType,
    OutBoundNat,
    PortMapping,
    PortMappingPolicy,
    ProviderAddress,
    RawPolicy,
    RemoteSubnetRoute,
    Route,
    SdnRoute,
    SourceMacAddress,
    Subnet,
    Vlan,
    Vsid,
    VxlanPort,
    decode,
    decode_endpoint,
    decode_guids,
    decode_load_balancer,
    decode_network,
    encode,
    encode_policy_request,
)
from hansa.net import IPFamily

GUID = "6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"
EP1, EP2 = "A90BE7D2-1F60-4C35-8A51-20B6D1C3E101", "A90BE7D2-1F60-4C35-8A51-20B6D1C3E102"

OVERLAY_NETWORK = {
    "ID": GUID,
    "Name": "hansa-vx",
    "Type": "Overlay",
    "Policies": [
        {"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": "Ethernet 2"}},
        {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.21"}},
        {"Type": "DrMacAddress", "Settings": {"Address": "00-15-5D-7E-44-01"}},
        {"Type": "HostRoute", "Settings": {}},
        {
            "Type": "RemoteSubnetRoute",
            "Settings": {
                "DestinationPrefix": "10.41.8.0/24",
                "IsolationId": 4100,
                "ProviderAddress": "192.0.2.22",
                "DistributedRouterMacAddress": "0e-88-c0-00-02-17",
            },
        },
    ],
    "MacPool": {"Ranges": [{"StartMacAddress": "00-15-5D-7E-40-00", "EndMacAddress": "00-15-5D-7E-4F-FF"}]},
    "Dns": {},
    "Ipams": [
        {
            "Type": "Static",
            "Subnets": [
                {
                    "ID": "6f1c0a10-52d4-4e0b-9b77-0d4c7a10e0aa",
                    "IpAddressPrefix": "10.41.7.0/24",
                    "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4100}}],
                    "Routes": [{"NextHop": "10.41.7.1", "DestinationPrefix": "0.0.0.0/0"}],
                }
            ],
        }
    ],
    "Flags": 8,
    "Health": {"Extra": {}},
    "SchemaVersion": {"Major": 2, "Minor": 0},
}

BALANCER = {
    "HostComputeEndpoints": [EP1.lower(), EP2],
    "SourceVIP": "10.41.7.2",
    "FrontendVIPs": ["172.21.30.7"],
    "PortMappings": [{"Protocol": 6, "InternalPort": 8080, "ExternalPort": 80, "DistributionType": 2}],
    "SchemaVersion": {"Major": 2, "Minor": 0},
    "Flags": 1,
}


def test_a_network_as_hns_tells_it() -> None:
    network = decode_network(json.dumps(OVERLAY_NETWORK))
    assert network.guid == GUID
    assert network.type is NetworkType.OVERLAY
    assert network.flags == NetworkFlags.ENABLE_NON_PERSISTENT
    assert network.management_ip == IPv4Address("192.0.2.21")
    assert network.subnets[0].gateway == IPv4Address("10.41.7.1")
    assert network.subnets[0].policies == (Vsid(4100),)
    assert network.remote_subnets == (
        RemoteSubnetRoute(ip_network("10.41.8.0/24"), 4100, IPv4Address("192.0.2.22"), "0E-88-C0-00-02-17"),
    )


def test_a_load_balancer_as_hns_tells_it() -> None:
    balancer = decode_load_balancer(json.dumps(BALANCER))
    assert balancer == HnsLoadBalancer(
        endpoints=(parse_guid(EP1), parse_guid(EP2)),
        source_vip=IPv4Address("10.41.7.2"),
        frontend_vips=(IPv4Address("172.21.30.7"),),
        port_mappings=(
            PortMapping(protocol=6, internal_port=8080, external_port=80, distribution=Distribution.SOURCE_IP),
        ),
        flags=LbFlags.DSR,
    )
    assert balancer.family is IPFamily.IPV4


def test_a_network_without_type_is_nat() -> None:
    assert decode_network("{}").type is NetworkType.NAT


@pytest.mark.parametrize(
    "document",
    [
        {"hostcomputeendpoints": [EP1], "portmappings": [{"protocol": 6, "EXTERNALPORT": 80}], "FLAGS": 3},
        {"HostComputeEndpoints": ["{" + EP1.lower() + "}"], "PortMappings": [{"Protocol": "TCP", "ExternalPort": 80}]},
        {"HostComputeEndpoints": [EP1], "PortMappings": [{"Protocol": "6", "ExternalPort": 80.0}], "Flags": "3"},
        {
            "HostComputeEndpoints": [EP1],
            "PortMappings": [{"Protocol": 6, "ExternalPort": 80, "New": [1]}, None],
            "Flags": "EnableDirectServerReturn, EnableIPv6",
            "SourceVIP": None,
            "FrontendVIPs": None,
            "Tags": {"x": 1},
        },
    ],
    ids=["case", "braces and words", "numbers as texts", "null, unknown and flag words"],
)
def test_spelling_does_not_matter(document: dict[str, object]) -> None:
    balancer = decode_load_balancer(json.dumps(document))
    assert balancer.endpoints == (EP1,)
    assert balancer.port_mappings == (PortMapping(protocol=6, internal_port=0, external_port=80),)
    assert int(balancer.flags) in (0, 3)
    assert bool(balancer.flags) == any(key.lower() == "flags" for key in document)
    assert balancer.frontend_vips == ()
    assert balancer.source_vip is None


def test_an_exact_name_wins_over_its_variant() -> None:
    assert decode_endpoint('{"name": "other", "Name": "web"}').name == "web"


@pytest.mark.parametrize("text", ["fd00::A", "FD00:0:0:0:0:0:0:A", "fd00:0000:0000:0000:0000:0000:0000:000a"])
def test_addresses_are_values_whatever_their_spelling(text: str) -> None:
    endpoint = decode_endpoint(json.dumps({"IpConfigurations": [{"IpAddress": text}]}))
    assert endpoint.addresses == (IPv6Address("fd00::a"),)


def test_partial_objects_are_read() -> None:
    """B3: a failed create leaves a load balancer without port mappings; endpoints without address exist too."""
    assert decode_load_balancer('{"PortMappings": []}').port_mappings == ()
    assert decode_endpoint('{"IpConfigurations": [{"IpAddress": ""}]}').addresses == ()


@pytest.mark.parametrize(
    "kind, document, field",
    [
        (HnsKind.NETWORK, {"ID": GUID, "Type": "Banana"}, "Type"),
        (HnsKind.NETWORK, {"ID": GUID, "Type": 99}, "Type"),
        (
            HnsKind.NETWORK,
            {"ID": GUID, "Ipams": [{"Subnets": [{"IpAddressPrefix": "10.0.0.0"}]}]},
            "Ipams[0].Subnets[0].IpAddressPrefix",
        ),
        (
            HnsKind.ENDPOINT,
            {"ID": GUID, "IpConfigurations": [{"IpAddress": "10.0.0.300"}]},
            "IpConfigurations[0].IpAddress",
        ),
        (HnsKind.ENDPOINT, {"ID": GUID, "Flags": "Quick"}, "Flags"),
        (HnsKind.ENDPOINT, {"ID": GUID, "HostComputeNetwork": "here"}, "HostComputeNetwork"),
        (HnsKind.LOAD_BALANCER, {"ID": GUID, "FrontendVIPs": ["10.0.0.1", "x"]}, "FrontendVIPs[1]"),
        (HnsKind.LOAD_BALANCER, {"ID": GUID, "HostComputeEndpoints": [7]}, "HostComputeEndpoints[0]"),
        (HnsKind.LOAD_BALANCER, {"ID": GUID, "HostComputeEndpoints": {}}, "HostComputeEndpoints"),
        (
            HnsKind.LOAD_BALANCER,
            {"ID": GUID, "PortMappings": [{"ExternalPort": 65536}]},
            "PortMappings[0].ExternalPort",
        ),
        (HnsKind.LOAD_BALANCER, {"ID": GUID, "PortMappings": [{"InternalPort": -1}]}, "PortMappings[0].InternalPort"),
        (HnsKind.LOAD_BALANCER, {"ID": GUID, "PortMappings": [{"Protocol": True}]}, "PortMappings[0].Protocol"),
        (
            HnsKind.LOAD_BALANCER,
            {"ID": GUID, "PortMappings": [{"DistributionType": 3}]},
            "PortMappings[0].DistributionType",
        ),
        (HnsKind.LOAD_BALANCER, {"ID": GUID, "PortMappings": [7]}, "PortMappings[0]"),
    ],
)
def test_a_malformed_object_is_named_with_its_field(kind: HnsKind, document: dict[str, object], field: str) -> None:
    with pytest.raises(MalformedHnsObject) as caught:
        decode(kind, json.dumps(document))
    assert (caught.value.kind, caught.value.guid, caught.value.field) == (kind, GUID, field)
    assert isinstance(caught.value, DataplaneError)


@pytest.mark.parametrize("text", ["", "null", "[]", "7", "{", '"x"', "[" * 100_000, b"\xff", '{"ID": "\\ud800"}'])
@pytest.mark.parametrize("kind", HnsKind)
def test_no_text_breaks_the_reader(kind: HnsKind, text: str | bytes) -> None:
    with pytest.raises(MalformedHnsObject):
        decode(kind, text)


def test_a_bad_policy_costs_only_itself() -> None:
    """windows-proxy F64: a malformed remote subnet is skipped and reported."""
    bad = {"Type": "RemoteSubnetRoute", "Settings": {"DestinationPrefix": "10.41.9.0/24"}}
    document = {**OVERLAY_NETWORK, "Policies": [bad, *OVERLAY_NETWORK["Policies"]]}  # type: ignore[misc]
    network = decode_network(json.dumps(document))
    assert len(network.remote_subnets) == 1
    first = network.policies[0]
    assert isinstance(first, RawPolicy)
    assert "ProviderAddress" in first.fault
    assert json.loads(first.settings) == bad["Settings"]


# Above the IPv4-mapped ones, which hansa reads as IPv4.
ADDRESS = st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(2**64, 2**128 - 1).map(IPv6Address)
PREFIX = ADDRESS.map(lambda address: ip_network((address, address.max_prefixlen // 2), strict=False))
# Texts as HNS may contain them: any but lone surrogates, which no JSON reader takes.
WORD = st.text(st.characters(codec="utf-8"), max_size=12)
PORT = st.integers(0, 65535)
U32 = st.integers(0, 2**32 - 1)
GUIDS = st.sampled_from([parse_guid(text) for text in (GUID, EP1, EP2)])
MAC = st.binary(min_size=6, max_size=6).map(lambda value: value.hex("-").upper())
POLICIES = st.one_of(
    st.builds(ProviderAddress, ADDRESS),
    st.builds(RemoteSubnetRoute, PREFIX, U32, ADDRESS, MAC),
    st.builds(DrMacAddress, MAC),
    st.builds(NetAdapterName, WORD),
    st.builds(SourceMacAddress, MAC),
    st.just(HostRoute()),
    st.builds(VxlanPort, PORT),
    st.builds(Vsid, U32),
    st.builds(Vlan, U32),
    st.builds(OutBoundNat, st.tuples(WORD), st.tuples(WORD, WORD), st.none() | ADDRESS, U32, PORT),
    st.builds(SdnRoute, PREFIX, st.none() | ADDRESS, st.booleans()),
    st.builds(Acl, WORD, WORD, WORD, WORD, WORD, priority=PORT),
    st.builds(PortMappingPolicy, U32, PORT, PORT, st.none() | ADDRESS, U32),
    st.just(L2Driver()),
    st.builds(EncapOverhead, PORT),
    st.just(RawPolicy("QOS", b'{"MaximumOutgoingBandwidthInBytes":1}')),
)
ROUTES = st.builds(Route, PREFIX, st.none() | ADDRESS, PORT)
SUBNETS = st.builds(Subnet, st.none() | PREFIX, st.tuples(ROUTES), st.tuples(POLICIES), guid=GUIDS)
NETWORKS = st.builds(
    HnsNetwork,
    guid=GUIDS,
    name=WORD,
    type=st.sampled_from(NetworkType),
    policies=st.lists(POLICIES, max_size=4).map(tuple),
    ipams=st.tuples(st.builds(Ipam, st.tuples(SUBNETS))),
    owner=WORD,
)
ENDPOINTS = st.builds(
    HnsEndpoint,
    guid=GUIDS,
    name=WORD,
    network=GUIDS,
    namespace=st.none() | GUIDS,
    policies=st.lists(POLICIES, max_size=4).map(tuple),
    ip_configurations=st.lists(st.builds(IpConfiguration, ADDRESS, st.integers(0, 128)), max_size=3).map(tuple),
    routes=st.lists(ROUTES, max_size=2).map(tuple),
    mac_address=MAC,
    flags=st.sampled_from(list(EndpointFlags)),
    owner=WORD,
    state=PORT,
)
BALANCERS = st.builds(
    HnsLoadBalancer,
    guid=GUIDS,
    network=st.none() | GUIDS,
    endpoints=st.lists(GUIDS, max_size=4).map(tuple),
    source_vip=st.none() | ADDRESS,
    frontend_vips=st.lists(ADDRESS, max_size=3).map(tuple),
    port_mappings=st.lists(
        st.builds(
            PortMapping,
            protocol=U32,
            internal_port=PORT,
            external_port=PORT,
            distribution=st.sampled_from(Distribution),
            flags=st.integers(0, 31).map(MappingFlags),
        ),
        max_size=2,
    ).map(tuple),
    flags=st.integers(0, 3).map(LbFlags),
    owner=WORD,
    state=PORT,
)


@settings(max_examples=50, deadline=None)
@given(NETWORKS | ENDPOINTS | BALANCERS)
def test_what_is_written_reads_back(value: HnsNetwork | HnsEndpoint | HnsLoadBalancer) -> None:
    kind = {HnsNetwork: HnsKind.NETWORK, HnsEndpoint: HnsKind.ENDPOINT, HnsLoadBalancer: HnsKind.LOAD_BALANCER}
    text = encode(value)
    again = decode(kind[type(value)], text)
    assert encode(again) == text
    assert again == value


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORD
    | st.sampled_from([GUID, "10.0.0.1", "10.0.0.0/8", "TCP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "ID",
        "Name",
        "Type",
        "Policies",
        "Settings",
        "MacPool",
        "Ranges",
        "Dns",
        "Ipams",
        "Subnets",
        "IpAddressPrefix",
        "Routes",
        "NextHop",
        "DestinationPrefix",
        "Metric",
        "Flags",
        "HostComputeNetwork",
        "HostComputeNamespace",
        "IpConfigurations",
        "IpAddress",
        "PrefixLength",
        "MacAddress",
        "State",
        "Owner",
        "HostComputeEndpoints",
        "SourceVIP",
        "FrontendVIPs",
        "PortMappings",
        "Protocol",
        "InternalPort",
        "ExternalPort",
        "DistributionType",
        "flags",
        "id",
        "portmappings",
        "POLICIES",
    ]
)
OBJECTS = st.recursive(
    JSON_VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=8),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, OBJECTS, max_size=10) | OBJECTS, st.sampled_from(HnsKind))
def test_any_json_is_read_or_malformed(value: object, kind: HnsKind) -> None:
    """Never anything else: HNS's answers must not be able to end the process (windows-proxy I19)."""
    with contextlib.suppress(MalformedHnsObject):
        encode(decode(kind, json.dumps(value)))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64) | st.text(max_size=64), st.sampled_from(HnsKind))
def test_any_text_is_read_or_malformed(text: str | bytes, kind: HnsKind) -> None:
    for read in (lambda: decode(kind, text), lambda: decode_guids(kind, text)):
        with contextlib.suppress(MalformedHnsObject):
            read()


def test_numbers_beyond_all_bounds() -> None:
    with pytest.raises(MalformedHnsObject, match="not within"):
        decode_endpoint('{"Flags": ' + "9" * 25 + "}")
    odd = '{"Policies": [{"Type": "New", "Settings": {"N": ' + "9" * 400 + "}}]}"
    assert isinstance(decode_endpoint(odd).policies[0], RawPolicy)
    with pytest.raises(MalformedHnsObject):
        decode_endpoint('{"State": ' + "9" * 5000 + "}")


@pytest.mark.parametrize(
    "text, expected",
    [("null", ()), ("[]", ()), (f'["{EP1.lower()}","{{{EP2}}}"]', (EP1, EP2))],
)
def test_enumerations(text: str, expected: tuple[str, ...]) -> None:
    assert decode_guids(HnsKind.ENDPOINT, text) == expected


@pytest.mark.parametrize("text", ["", "{}", '["x"]', "[7]", "7"])
def test_what_is_no_enumeration(text: str) -> None:
    with pytest.raises(MalformedHnsObject, match="not a list of GUIDs"):
        decode_guids(HnsKind.ENDPOINT, text)


# hcn.md section 6: the five load balancers as a Go client writes them.
ALL_BALANCERS: tuple[tuple[Callable[[], HnsLoadBalancer], str], ...] = (
    (
        lambda: HnsLoadBalancer(
            endpoints=(parse_guid(EP1), parse_guid(EP2)),
            source_vip=IPv4Address("10.41.7.2"),
            frontend_vips=(IPv4Address("172.21.30.7"),),
            port_mappings=(
                PortMapping(protocol=6, internal_port=8080, external_port=80, distribution=Distribution.SOURCE_IP),
            ),
            flags=LbFlags.DSR,
        ),
        f'{{"HostComputeEndpoints":["{EP1}","{EP2}"],"SourceVIP":"10.41.7.2","FrontendVIPs":["172.21.30.7"],'
        '"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":80,"DistributionType":2}],'
        '"SchemaVersion":{"Major":2,"Minor":0},"Flags":1}',
    ),
    (
        lambda: HnsLoadBalancer(
            endpoints=(parse_guid(EP1),),
            source_vip=IPv4Address("10.41.7.2"),
            port_mappings=(
                PortMapping(
                    protocol=6,
                    internal_port=8080,
                    external_port=30480,
                    flags=MappingFlags.LOCAL_ROUTED_VIP | MappingFlags.VIP_EXTERNAL_IP,
                ),
            ),
        ),
        f'{{"HostComputeEndpoints":["{EP1}"],"SourceVIP":"10.41.7.2",'
        '"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":30480,"Flags":18}],'
        '"SchemaVersion":{"Major":2,"Minor":0}}',
    ),
)


@pytest.mark.parametrize("make, text", ALL_BALANCERS, ids=["cluster-ip", "node-port"])
def test_load_balancers_are_written_as_hcn_expects(make: Callable[[], HnsLoadBalancer], text: str) -> None:
    assert encode(make()) == text


def test_an_endpoint_is_written_with_its_empty_structs() -> None:
    """hcn.md 2.1: scalars that are zero are left out, structs never are."""
    endpoint = HnsEndpoint(
        network=parse_guid(GUID),
        policies=(ProviderAddress(IPv4Address("192.0.2.22")),),
        ip_configurations=(IpConfiguration(IPv4Address("10.41.8.20")),),
        mac_address="02-11-0A-29-08-14",
        flags=EndpointFlags.REMOTE,
    )
    assert encode(endpoint) == (
        f'{{"HostComputeNetwork":"{GUID}",'
        '"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.22"}}],'
        '"IpConfigurations":[{"IpAddress":"10.41.8.20"}],"Dns":{},"MacAddress":"02-11-0A-29-08-14","Flags":1,'
        '"Health":{"Extra":{}},"SchemaVersion":{"Major":2,"Minor":0}}'
    )
    assert endpoint.remote
    assert endpoint.provider_address == IPv4Address("192.0.2.22")


def test_a_network_is_written_with_its_empty_structs() -> None:
    assert encode(HnsNetwork(name="n", type=NetworkType.L2BRIDGE)) == (
        '{"Name":"n","Type":"L2Bridge","MacPool":{},"Dns":{},"Health":{"Extra":{}},'
        '"SchemaVersion":{"Major":2,"Minor":0}}'
    )


def test_an_acl_always_has_action_and_direction() -> None:
    text = encode(HnsEndpoint(policies=(Acl("", ""),)))
    assert '{"Type":"ACL","Settings":{"Action":"","Direction":""}}' in text


def test_the_modify_envelope() -> None:
    assert json.loads(encode_policy_request("Add", [HostRoute()])) == {
        "ResourceType": "Policy",
        "RequestType": "Add",
        "Settings": {"Policies": [{"Type": "HostRoute", "Settings": {}}]},
    }


@pytest.mark.parametrize("text", [EP1, EP1.lower(), "{" + EP1.lower() + "}"])
def test_guids_have_one_form(text: str) -> None:
    assert parse_guid(text) == EP1


@pytest.mark.parametrize("text", ["", "{}", EP1[:-1], EP1 + "0", "{" + EP1, EP1.replace("-", ""), "G" + EP1[1:]])
def test_what_is_no_guid(text: str) -> None:
    with pytest.raises(ValueError, match="GUID"):
        parse_guid(text)


def test_an_object_without_id_has_the_zero_guid() -> None:
    assert decode_endpoint("{}").guid == ZERO_GUID
