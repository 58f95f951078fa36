"""The bytes of KPNG's messages, as its Go programs write and read them; and that the generated code is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import Message

from hansa.api.change import Synced, Upsert
from hansa.api.objects import Kind
from hansa.brain.batches import local_batch
from hansa.brain.cluster import Cluster
from hansa.sources.kpng import shared
from hansa.sources.kpng.wire import globalv1, localv1, nodev1
from hansa.testing import config, endpoint, endpoint_slice, node, port, service

ROOT = Path(__file__).parents[3]

PORT = localv1.PortMapping(Name="http", Protocol=localv1.Protocol.TCP, Port=80, TargetPort=8080)
WEB = localv1.Service(
    Namespace="default",
    Name="web",
    Type="ClusterIP",
    IPs=localv1.ServiceIPs(ClusterIPs=localv1.IPSet(V4=["10.96.0.10"])),
    Ports=[PORT],
)
ENDPOINT = localv1.Endpoint(
    IPs=localv1.IPSet(V4=["10.1.0.5"]),
    Local=True,
    PortOverrides=[localv1.PortName(Name="http", Port=8080)],
    Scopes=localv1.EndpointScopes(Internal=True, External=True),
)
SERVICES, ENDPOINTS = localv1.Set.ServicesSet, localv1.Set.EndpointsSet

# Recorded between KPNG's Go programs and other peers (k11, W1).
GOLDEN = (
    (localv1.WatchReq(NodeName="n1"), "0a026e31"),
    (globalv1.GlobalWatchReq(), ""),
    (localv1.OpItem(Sync=localv1.EmptyOp()), "0a00"),
    (localv1.OpItem(Reset=localv1.EmptyOp()), "2200"),
    (
        localv1.OpItem(Delete=localv1.Ref(Set=ENDPOINTS, Path="default/web/web-0")),
        "1a150802121164656661756c742f7765622f7765622d30",
    ),
    (localv1.OpItem(Delete=localv1.Ref(Set=SERVICES, Path="default/web")), "1a0f0801120b64656661756c742f776562"),
    (
        localv1.OpItem.FromString(shared.set_op(SERVICES, "default/web", WEB.SerializeToString())),
        "124b0a0f0801120b64656661756c742f77656212380a0764656661756c7412037765621a09436c75737465724950220e0a0c0a0a"
        "31302e39362e302e3130320d0a04687474701001185028903f",
    ),
    (
        localv1.OpItem.FromString(shared.set_op(ENDPOINTS, "default/web/web-0", ENDPOINT.SerializeToString())),
        "12380a150802121164656661756c742f7765622f7765622d30121f120a0a0831302e312e302e35180122090a046874747010903f"
        "2a0408011001",
    ),
)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=[f"{number}" for number in range(len(GOLDEN))])
def test_k11_messages_have_the_recorded_bytes(message: Message, golden: str) -> None:
    assert message.SerializeToString().hex() == golden
    assert type(message).FromString(bytes.fromhex(golden)) == message


def test_constant_operations_have_the_recorded_bytes() -> None:
    assert (shared.RESET.hex(), shared.SYNC.hex()) == ("2200", "0a00")
    assert shared.delete_op(SERVICES, "default/web").hex() == "1a0f0801120b64656661756c742f776562"


def test_a_brain_says_the_recorded_service_and_endpoint() -> None:
    """The same Service and endpoint, told by a brain. Only the path of the endpoint is hansa's own (W13)."""
    cluster = Cluster(config())
    follower = cluster.follow()
    cluster.apply(
        [
            Upsert(service("web", namespace="default", ports=[port(target_port=8080)])),
            Upsert(endpoint_slice("web-a", [endpoint("10.1.0.5", node="n1")], namespace="default")),
            Upsert(node("n1")),
            *(Synced(kind) for kind in Kind),
        ]
    )
    service_op, endpoint_op = [op for op in local_batch(follower.take("n1")) if op]
    assert service_op.hex() == GOLDEN[6][1]
    found = localv1.OpItem.FromString(endpoint_op).Set
    assert found.Ref.Path == "default/web/v4-10.1.0.5"
    assert found.Bytes == ENDPOINT.SerializeToString()


# name -> number, of every message: what a peer that was built from KPNG's own files relies on.
NUMBERS: dict[type[Message], str] = {
    localv1.WatchReq: "NodeName=1",
    localv1.OpItem: "Sync=1 Set=2 Delete=3 Reset=4",
    localv1.EmptyOp: "",
    localv1.Ref: "Set=1 Path=2",
    localv1.Value: "Ref=1 Bytes=2",
    localv1.Service: "Namespace=1 Name=2 Type=3 IPs=4 MapIP=5 Ports=6 ExternalTrafficToLocal=7 Labels=8 Annotations=9 "
    "IPFilters=10 ClientIP=11 InternalTrafficToLocal=12 HealthCheckNodePort=13",
    localv1.ServiceIPs: "ClusterIPs=1 ExternalIPs=2 Headless=3 LoadBalancerIPs=4",
    localv1.IPSet: "V4=1 V6=2",
    localv1.IPFilter: "TargetIPs=1 SourceRanges=2",
    localv1.PortMapping: "Name=1 Protocol=2 Port=3 NodePort=4 TargetPort=5 TargetPortName=6",
    localv1.ClientIPAffinity: "TimeoutSeconds=1",
    localv1.Endpoint: "Hostname=1 IPs=2 Local=3 PortOverrides=4 Scopes=5",
    localv1.EndpointScopes: "Internal=1 External=2",
    localv1.PortName: "Name=1 Port=2",
    globalv1.GlobalWatchReq: "",
    globalv1.ServiceInfo: "Hash=1 Service=2",
    globalv1.EndpointInfo: "Hash=1 Namespace=2 SourceName=3 ServiceName=4 Endpoint=6 Conditions=7 PodName=8 Topology=9 "
    "Hints=10",
    globalv1.EndpointConditions: "Ready=1",
    globalv1.TopologyInfo: "Node=1 Zone=2",
    globalv1.TopologyHints: "Zones=1",
    globalv1.NodeInfo: "Hash=1 Node=2",
    globalv1.Node: "Name=1 Labels=2 Annotations=3 Topology=4",
}


@pytest.mark.parametrize("message", NUMBERS, ids=lambda one: one.DESCRIPTOR.full_name)
def test_fields_have_the_numbers_of_kpng_and_our_own_begin_at_100(message: type[Message]) -> None:
    fields = message.DESCRIPTOR.fields
    assert " ".join(f"{one.name}={one.number}" for one in fields if one.number < 100) == NUMBERS[message]
    # W12: nothing new below 100, and no new member of the oneof that clients switch on.
    assert len(localv1.OpItem.DESCRIPTOR.oneofs_by_name["Op"].fields) == 4


def test_enums_have_the_values_of_kpng() -> None:
    assert dict(localv1.Set.items()) == {
        "UnknownSet": 0,
        "ServicesSet": 1,
        "EndpointsSet": 2,
        "GlobalServiceInfos": 10,
        "GlobalEndpointInfos": 11,
        "GlobalNodeInfos": 12,
    }
    assert dict(localv1.Protocol.items()) == {"UnknownProtocol": 0, "TCP": 1, "UDP": 2, "SCTP": 3}


def test_methods_have_the_names_of_kpng() -> None:
    for file, name in ((localv1, "localv1.Sets"), (globalv1, "globalv1.Sets")):
        (found,) = file.DESCRIPTOR.services_by_name.values()
        (method,) = found.methods
        assert (found.full_name, method.name) == (name, "Watch")
        assert method.client_streaming
        assert method.server_streaming


def test_the_generated_code_is_that_of_the_proto_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "make-wire", "--into", tmp_path], check=True)
    checked_in = Path(nodev1.__file__).parent
    for made in tmp_path.iterdir():
        assert made.read_text() == (checked_in / made.name).read_text(), f"{made.name} is out of date: make wire"
