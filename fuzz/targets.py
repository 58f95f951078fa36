"""What is given bytes that somebody else wrote, what may come of it, and what bytes to begin with.

A target takes any bytes and returns, or raises one of its `refusals`; everything else is a bug, as is a law that does
not hold. `fuzz/run.py` drives the targets by coverage, tests/fuzz by chance. An input that showed a bug goes to
fuzz/cases/TARGET/, and every test run tries it again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError as WireError

from hansa.api.decode import decode as decode_api
from hansa.api.objects import Kind
from hansa.config import Config, parse_duration
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.objects import Part, SetSpec
from hansa.dataplanes.windows.ownership import read_journal
from hansa.errors import ConfigError, MalformedObject, SourceError
from hansa.explain.checkup import skew_s
from hansa.hns import port_ranges, schema
from hansa.hns.api import HnsError, HnsKind, parse_guid
from hansa.hns.dumps import DumpFile, read_dumps
from hansa.hns.emulator import documents, snapshot
from hansa.hns.emulator.refusals import Refused
from hansa.hns.emulator.wire import MalformedLine, decode_answer, decode_request, encode_request
from hansa.hns.record import read_error_record, read_version_response
from hansa.kubeproxy import configuration, flags
from hansa.kubeproxy.configuration import DecodeError
from hansa.kubeproxy.flags import FlagError
from hansa.lab.reading import read_lab
from hansa.net import IPFamily, Protocol, parse_address, parse_prefix
from hansa.netlink import codec, conntrack
from hansa.netlink import nftables as nf
from hansa.sources.kpng import cluster as kpng_cluster
from hansa.sources.kpng import node as kpng_node
from hansa.sources.kpng.file import read_state
from hansa.sources.kpng.wire import globalv1, nodev1
from hansa.sources.kubernetes.calls import Tried
from hansa.sources.kubernetes.client import read_refusal
from hansa.sources.kubernetes.credentials import parse_exec_credential
from hansa.sources.kubernetes.kubeconfig import ExecPlugin, parse_kubeconfig
from hansa.sources.kubernetes.lines import LineSplitter
from hansa.sources.kubernetes.watch import Watch, WatchSettings
from hansa.sources.manifests import read_manifest
from hansa.sources.selection import selection
from hansa.sources.yaml_text import YamlFault, load, split_documents
from hansa.testing import endpoint_slice, manifest, node, service, service_cidr

T = TypeVar("T")

CONFIG = Config(node_name="n1")
CASES = Path(__file__).parent / "cases"


def attempt(read: Callable[..., T], *arguments: object, but: tuple[type[Exception], ...]) -> T | None:
    """What it makes of the arguments; None if it refuses them in its own words."""
    with suppress(*but):
        return read(*arguments)
    return None


@dataclass(frozen=True)
class Target:
    """refusals: exceptions by which `run` may say that the bytes are not what it reads."""

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refusals: tuple[type[Exception], ...] = ()

    def try_input(self, data: bytes) -> None:
        """Raises whatever shows a bug."""
        attempt(self.run, data, but=self.refusals)

    def cases(self) -> list[Path]:
        """Inputs that have shown bugs."""
        return sorted((CASES / self.name).glob("*"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# -- the API server ---------------------------------------------------------------------------------------------------

OBJECTS = {
    Kind.SERVICE: manifest(service("web", external_ips=["203.0.113.7"])),
    Kind.ENDPOINT_SLICE: manifest(endpoint_slice("web-a", ["10.1.1.11", "10.1.1.12"])),
    Kind.NODE: manifest(node("n1")),
    Kind.SERVICE_CIDR: manifest(service_cidr()),
}


def _event(kind: Kind, verb: str = "ADDED") -> bytes:
    return json.dumps({"type": verb, "object": OBJECTS[kind]}).encode()


BOOKMARK = (
    b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7",'
    b'"annotations":{"k8s.io/initial-events-end":"true"}}}}'
)
ERROR = b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"old","details":{"retryAfterSeconds":1}}}'


def watch_lines(data: bytes) -> None:
    """Events of a watch, in every state; whatever comes, the machine has a next request and a pause."""
    for kind in Kind:
        for streams in (True, False):
            machine = Watch(selection(kind, CONFIG), WatchSettings(watch_list=streams))
            request = machine.next_request(0.0, 0.5)
            machine.receive_status(200)
            if not request.is_stream:
                machine.receive_page(b'{"metadata":{"resourceVersion":"5"},"items":[]}')
                machine.closed(1.0, 0.5)
                machine.next_request(1.0, 0.5)
                machine.receive_status(200)
            for line in LineSplitter(1 << 20).feed(data + b"\n"):
                machine.receive_line(line)
            pause = machine.closed(2.0, 0.5)
            assert 0 <= pause < 1e9, pause
            machine.next_request(3.0, 0.5)


def list_page(data: bytes) -> None:
    for kind in Kind:
        machine = Watch(selection(kind, CONFIG), WatchSettings(watch_list=False))
        machine.next_request(0.0, 0.5)
        machine.receive_status(200)
        machine.receive_page(data)
        assert 0 <= machine.closed(1.0, 0.5) < 1e9


def refusal(data: bytes) -> None:
    machine = Watch(selection(Kind.SERVICE, CONFIG))
    machine.next_request(0.0, 0.5)
    machine.receive_status(500, body=data)
    read_refusal(500, data, "")


def lines(data: bytes) -> None:
    """However a stream is cut, the same lines come out."""
    whole = [line for line in data.split(b"\n")[:-1] if line.strip()]
    for size in (1, 3, 7, len(data) or 1):
        splitter = LineSplitter(1 << 20)
        found = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
        assert found == whole


def api_object(data: bytes) -> None:
    for kind in Kind:
        attempt(decode_api, kind, data, but=(MalformedObject,))


PLUGIN = ExecPlugin("plugin", (), environment=(), api_version="client.authentication.k8s.io/v1")


# -- files ------------------------------------------------------------------------------------------------------------

KUBECONFIG = b"""\
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443", tls-server-name: x}}]
users: [{name: u, user: {tokenFile: token, exec: {apiVersion: client.authentication.k8s.io/v1, command: ./x}}}]
"""
PROXY_CONFIG = b"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 5}
conntrack: {maxPerCore: 32768, tcpEstablishedTimeout: 24h0m0s}
nodePortAddresses: [primary]
featureGates: {AllAlpha: false}
iptables: {masqueradeAll: true, syncPeriod: 30s}
"""


def yaml_documents(data: bytes) -> None:
    for document in split_documents(_text(data)):
        attempt(load, document, but=(YamlFault,))


def proxy_config(data: bytes) -> None:
    for document in split_documents(_text(data)):
        configuration.decode(load(document))


def manifests(data: bytes) -> None:
    for name in ("x.yaml", "x.json"):
        reading = read_manifest(data, name=name, config=CONFIG)
        assert all(fault.field and fault.text for fault in reading.faults)


def journal(data: bytes) -> None:
    """What was read is written so that it reads the same."""
    found = read_journal(data.decode("utf-8", "replace").splitlines())
    again = read_journal(found.lines())
    assert (again.made, again.taken_over, again.not_echoed) == (found.made, found.taken_over, found.not_echoed)


def words(data: bytes) -> None:
    """Small texts that people, flags and headers give."""
    text = _text(data)
    for read in (parse_duration, parse_address, parse_prefix, parse_guid, flags.read_quantity):
        attempt(read, text, but=(ValueError,))
    skew_s(Tried(200, date=text))


LAB = b"""\
kind: Lab
name: two
network: overlay
podCIDR: 10.244.0.0/16
serviceCIDR: 10.96.0.0/12
nodes: [{name: n1, os: windows, address: 192.0.2.1}]
faults: [drop-rule n1 x]
"""
STATE = b"""\
nodes: [{Name: n1, Topology: {Zone: a}}]
services:
- service: {Name: web, Type: ClusterIP, IPs: {ClusterIPs: {V4: [10.96.0.10]}}, Ports: [{Port: 80, TargetPort: 8080}]}
  endpoints: [{NodeName: n1, Endpoint: {IPs: {V4: [10.1.1.11]}}}]
"""


# -- over gRPC ---------------------------------------------------------------------------------------------------------


def brain_messages(data: bytes) -> None:
    """What a brain tells a node, and what nodes tell it, as protobuf has it on the wire."""
    refusals = (MalformedObject, WireError)
    for message, read in (
        (nodev1.Service, lambda found: kpng_node.read_service(found, "n1")),
        (nodev1.NodeObject, kpng_node.read_node),
        (nodev1.ServiceRanges, kpng_node.read_service_ranges),
        (nodev1.Report, kpng_node.read_report),
        (globalv1.NodeInfo, kpng_cluster.read_node),
    ):
        attempt(lambda message=message, read=read: read(message.FromString(data)), but=refusals)


# -- HNS --------------------------------------------------------------------------------------------------------------

GUID = "5f0e3b6c-16d1-4b5e-9d27-55b2c3f6a001"
NETWORK = json.dumps(
    {
        "ID": GUID,
        "Name": "vx",
        "Type": "Overlay",
        "Ipams": [{"Type": "Static", "Subnets": [{"IpAddressPrefix": "10.1.1.0/24"}]}],
        "Policies": [
            {"Type": "RemoteSubnetRoute", "Settings": {"DestinationPrefix": "10.1.2.0/24", "IsolationId": 4096}}
        ],
        "SchemaVersion": {"Major": 2, "Minor": 0},
    }
).encode()
ENDPOINT = json.dumps(
    {
        "ID": GUID,
        "HostComputeNetwork": GUID,
        "IpConfigurations": [{"IpAddress": "10.1.1.2", "PrefixLength": 24}],
        "Policies": [{"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.1"}}],
        "Flags": 1,
        "MacAddress": "02-11-0a-01-01-02",
    }
).encode()
BALANCER = json.dumps(
    {
        "ID": GUID,
        "HostComputeEndpoints": [GUID],
        "SourceVIP": "10.1.1.9",
        "FrontendVIPs": ["10.96.0.10"],
        "PortMappings": [{"Protocol": 6, "InternalPort": 8080, "ExternalPort": 80, "DistributionType": 0, "Flags": 16}],
        "Flags": 1,
    }
).encode()


def hns_object(data: bytes) -> None:
    """What is understood is written so that it is understood the same."""
    for kind in HnsKind:
        found = attempt(schema.decode, kind, data, but=(schema.MalformedHnsObject,))
        assert found is None or schema.decode(kind, schema.encode(found)) == found
        attempt(schema.decode_guids, kind, data, but=(schema.MalformedHnsObject,))


def hns_record(data: bytes) -> None:
    text = data.decode("utf-16-le", "replace")
    for one in (text, _text(data)):
        read_error_record(one)
        attempt(read_version_response, one, but=(HnsError,))


def hns_dump(data: bytes) -> None:
    read_dumps([DumpFile("hnsdiag.txt", data)])


def hns_request(data: bytes) -> None:
    asked = attempt(decode_request, data, but=(MalformedLine,))
    assert asked is None or decode_request(encode_request(asked)) == asked
    attempt(decode_answer, data, but=(MalformedLine,))


def hns_documents(data: bytes) -> None:
    """What callers of the emulator give it."""
    text = data.decode("utf-8", "replace")
    for kind in HnsKind:
        attempt(documents.read_object, kind, text, but=(Refused,))
    attempt(documents.read_modify_request, text, but=(Refused,))
    attempt(documents.read_filter, text, but=(Refused,))


def hns_snapshot(data: bytes) -> None:
    snapshot.read(_text(data))


def netsh(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    port_ranges.parse_dynamic(text)
    port_ranges.parse_excluded(text)


# -- the kernel -------------------------------------------------------------------------------------------------------

SPEC = SetSpec("slots", (Part.ADDRESS, Part.PROTOCOL, Part.PORT), data=(Part.ADDRESS, Part.PORT))
VERDICTS = SetSpec("services", (Part.ADDRESS, Part.PROTOCOL, Part.PORT), data=())
ENTRY = conntrack.encode_entry(
    conntrack.Entry(
        IPFamily.IPV4, 17, bytes([10, 0, 0, 1]), 1000, bytes([10, 0, 0, 2]), 53, bytes([10, 0, 0, 3]), 53, 7
    )
)
# What a message that is cut or bent raises; the kernel makes none.
BROKEN = (ValueError, KeyError, IndexError, struct.error)


def netlink(data: bytes) -> None:
    """Attributes and messages survive being written again; whatever the bytes, reading comes to an end."""
    for message in codec.messages(data):
        again = codec.message(message.type, message.flags, message.sequence, message.payload)
        (back,) = codec.messages(again)
        assert back.payload[: len(message.payload)] == message.payload
        codec.answer(message)
    found = list(codec.attributes(data))
    assert list(codec.attributes(b"".join(codec.attribute(kind, value) for kind, value in found))) == found


def nftables(data: bytes) -> None:
    for read in (nf.read_set, nf.read_chain, nf.read_rule, nf.read_table, nf.read_generation, nf.read_trace):
        attempt(read, data, but=BROKEN)
    for spec in (SPEC, VERDICTS):
        for family in IPFamily:
            attempt(wire.decode_elements, spec, data, family, but=BROKEN)


def connections(data: bytes) -> None:
    for family in IPFamily:
        for protocol in (Protocol.UDP, Protocol.SCTP):
            attempt(conntrack.decode_entry, data, family, protocol, but=BROKEN)
    attempt(conntrack.read_count, data, but=BROKEN)


def _nft_messages() -> tuple[bytes, ...]:
    shape = wire.set_shape(SPEC, IPFamily.IPV4)
    table = "hansa"
    return (
        nf.table(2, table),
        nf.chain(2, table, "in", base=("nat", 0, -100)),
        nf.new_set(2, table, "slots", shape=shape, set_id=1),
        nf.set_elements(2, table, "services", [nf.element(b"\n`\0\n\x06\0\0\0\0P\0\0", nf.verdict_data(-4, "pick-1"))]),
        nf.set_elements(2, table, "slots", nf.plain_elements([(bytes(12), bytes(8))], 12, 8)),
    )


TARGETS: tuple[Target, ...] = (
    Target(
        "watch-lines",
        watch_lines,
        (*(_event(kind) for kind in Kind), _event(Kind.SERVICE, "DELETED"), BOOKMARK, ERROR),
        (SourceError,),
    ),
    Target(
        "list-page",
        list_page,
        tuple(
            json.dumps({"metadata": {"resourceVersion": "5", "continue": "x"}, "items": [each]}).encode()
            for each in OBJECTS.values()
        ),
    ),
    Target("refusal", refusal, (b'{"kind":"Status","code":403,"message":"no","details":{"causes":[{"reason":"x"}]}}',)),
    Target("lines", lines, (b"one\ntwo\n\n three", b"\n\n")),
    Target("api-object", api_object, tuple(json.dumps(each).encode() for each in OBJECTS.values())),
    Target(
        "exec-credential",
        lambda data: parse_exec_credential(data, PLUGIN),
        (
            b'{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1",'
            b'"status":{"token":"t","expirationTimestamp":"2026-01-01T00:00:00Z"}}',
        ),
        (SourceError,),
    ),
    Target("kubeconfig", lambda data: parse_kubeconfig(_text(data), folder="/x"), (KUBECONFIG,), (ConfigError,)),
    Target("yaml", yaml_documents, (KUBECONFIG, b"a: &x [1, *x]\n---\nb: !!int 3\n", b"a: {b: [c, 'd', \"e\"]}\n")),
    Target("proxy-config", proxy_config, (PROXY_CONFIG,), (DecodeError, YamlFault)),
    Target(
        "proxy-flags",
        lambda data: flags.parse(_text(data).split("\0"), windows=False),
        (b"--config=/x\0--hostname-override=n1\0-v2", b"--feature-gates=A=true,B=false\0--cluster-cidr\x0010.0.0.0/8"),
        (FlagError,),
    ),
    Target(
        "manifests",
        manifests,
        (
            b"kind: Service\napiVersion: v1\nmetadata: {name: web, namespace: d}\nspec: {clusterIP: 10.96.0.1}\n",
            json.dumps({"kind": "List", "apiVersion": "v1", "items": list(OBJECTS.values())}).encode(),
        ),
    ),
    Target("lab", lambda data: read_lab(data.decode("utf-8", "replace"), name="lab.yaml"), (LAB,), (ConfigError,)),
    Target(
        "kpng-state",
        lambda data: read_state(data.decode("utf-8", "replace"), name="state.yaml"),
        (STATE,),
        (SourceError,),
    ),
    Target("brain-messages", brain_messages, (b"\n\x01d\x12\x03web", b"\n\x02n1\x12\x0510.0.", b"")),
    Target("journal", journal, (b"+5f0e3b6c\n-5f0e3b6c\nT\n",)),
    Target("words", words, (b"1h15m0.5s", b"10.96.0.10", b"fd00::1/64", GUID.encode(), b"10Gi")),
    Target("hns-object", hns_object, (NETWORK, ENDPOINT, BALANCER, f'["{GUID}"]'.encode())),
    Target("hns-record", hns_record, (b'{"Success":false,"Error":"no","ErrorCode":2151350278}', b'{"Success":true}')),
    Target("hns-dump", hns_dump, (b"\xef\xbb\xbf[" + BALANCER + b"]", b"Name : x\n" + NETWORK + b"\n" + ENDPOINT)),
    Target("hns-request", hns_request, (b'["HcnOpenNetwork","x",1]', b'[0,1,"{}",null]')),
    Target(
        "hns-documents",
        hns_documents,
        (
            NETWORK,
            BALANCER,
            b'{"RequestType":0,"ResourceType":"Policy","Settings":{"Policies":[]}}',
            b'{"Filter":"{}"}',
        ),
    ),
    Target(
        "hns-snapshot",
        hns_snapshot,
        (b'{"format":1,"networks":[],"endpoints":[],"load_balancers":[]}',),
        (ConfigError,),
    ),
    Target("netsh", netsh, (b"Start Port : 49152\nNumber of Ports : 16384\n", b"  5357   5357\n 50000  50059   *\n")),
    Target(
        "netlink",
        netlink,
        (codec.message(2, 0, 1, struct.pack("=i", -2) + bytes(16)), codec.attribute(1, b"abcde") + codec.text(2, "x")),
        BROKEN,
    ),
    Target("nftables", nftables, _nft_messages()),
    Target("connections", connections, (ENTRY,)),
)


def target(name: str) -> Target:
    return next(each for each in TARGETS if each.name == name)
