"""Labs: reading them, bringing them up, asking; and the known pictures of failure, with the cause that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa.errors import ConfigError
from hansa.explain.journey import journey_data, journey_mermaid, journey_svg, tell
from hansa.hns.emulator.vswitch_model import Choose
from hansa.lab.asking import read_ask
from hansa.lab.cluster import Cluster
from hansa.lab.diagnosis import contradictions, diagnose, excuses
from hansa.lab.reading import read_fault, read_lab
from hansa.lab.world import Journey, World, travel
from hansa.net import parse_address

LABS = Path(__file__).parents[3] / "examples" / "labs"
PODS = {"overlay": "10.41", "l2bridge": "10.40"}


def up(name: str, *faults: str, heal: bool = False) -> World:
    cluster = Cluster.read((LABS / f"{name}.yaml").read_text(encoding="utf-8"), name=name, faults=faults)
    if heal:
        cluster.settle(audit=True)
    return cluster.world()


def preferring(text: str) -> Choose:
    wanted = parse_address(text)
    return lambda _, candidates: candidates.index(wanted) if wanted in candidates else 0


def go(world: World, packet: str, endpoint: str = "0.0.0.0") -> Journey:
    return travel(world, read_ask(packet, world), choose=preferring(endpoint))


@pytest.mark.parametrize("name", ["overlay", "l2bridge", "mixed"])
def test_examples_come_up_and_everything_is_as_desired(name: str) -> None:
    cluster = Cluster.read((LABS / f"{name}.yaml").read_text(encoding="utf-8"), name=name)
    assert {node.report.state.value for node in cluster.windows.values() if node.report} == {"healthy"}
    assert not [node.report.pending for node in cluster.windows.values() if node.report and node.report.pending]
    assert {"hansa"} < {one.who for one in cluster.made}


@pytest.mark.parametrize("name", ["overlay", "l2bridge"])
@pytest.mark.parametrize("place", ["7.11", "8.10"])
@pytest.mark.parametrize(
    "packet",
    [
        "pod/default/client -> svc/default/web",
        "pod/default/client -> vip/default/web",
        "pod/default/tool -> svc/default/web",
        "pod/default/client -> svc/default/cart",
        "node/win-1 -> node/win-1:30480",
        "outside -> node/win-1:30480",
        "outside -> node/linux-1:30480",
        "outside -> vip/default/web via win-1",
        "pod/default/client-2 -> svc/default/web",
    ],
)
def test_connections_work_both_ways(name: str, place: str, packet: str) -> None:
    world = up(name)
    address = f"{PODS[name]}.{place}"
    journey = go(world, packet, address)
    assert journey.works, journey.loss
    assert journey.endpoint is not None
    assert str(journey.endpoint.header.destination) == address
    assert not contradictions(world, journey)


def test_traffic_policy_local_keeps_the_client_and_needs_an_endpoint_on_the_node() -> None:
    for name in PODS:
        world = up(name)
        there = go(world, "outside -> node/win-2:30481")
        assert there.works
        assert there.endpoint is not None
        assert str(there.endpoint.header.source) == "203.0.113.9"
        nowhere = go(world, "outside -> node/win-1:30481")
        assert not nowhere.works
        assert not contradictions(world, nowhere)
        assert diagnose(world, nowhere) == (
            "as the rules want it: dropped, traffic policy Local and no usable endpoint on this node",
        )
        assert go(world, "outside -> vip/default/shop").there.steps[1].to == "win-2"


def test_session_affinity_leads_a_client_to_one_endpoint() -> None:
    world = up("overlay")
    reached = set()
    for port in range(49152, 49172):
        ask = read_ask("pod/default/client -> svc/default/cart", world, source_port=port)
        journey = travel(world, ask)
        assert journey.endpoint is not None
        reached.add(journey.endpoint.place)
    assert len(reached) == 1


def test_established_connections_go_on() -> None:
    world = up("overlay")
    first = go(world, "pod/default/client -> svc/default/web", "10.41.8.10")
    again = travel(world, first.ask, memory=first.memory, choose=preferring("10.41.7.11"))
    assert again.endpoint == first.endpoint


@pytest.mark.parametrize(
    ("name", "fault", "packet", "endpoint", "place", "cause"),
    [
        (
            "overlay",
            "no-source-vip win-1 198.51.100.40:80/tcp",
            "outside -> vip/default/web via win-1",
            "10.41.8.10",
            "underlay",
            "missing source VIP",
        ),
        (
            "overlay",
            "delete-endpoint win-1 10.41.7.2",
            "outside -> node/win-1:30480",
            "10.41.8.10",
            "win-1",
            "source-VIP endpoint missing",
        ),
        (
            "overlay",
            "stale-remote-endpoint win-1 10.41.7.11 192.0.2.22",
            "pod/default/client -> svc/default/web",
            "10.41.7.11",
            "win-2",
            "stale remote endpoint, wrong provider address",
        ),
        (
            "l2bridge",
            "stale-remote-endpoint win-1 10.40.7.11 192.0.2.22",
            "pod/default/client -> svc/default/web",
            "10.40.7.11",
            "underlay",
            "stale remote endpoint",
        ),
        (
            "overlay",
            "wrong-provider win-1 10.41.8.10 192.0.2.99",
            "pod/default/client -> svc/default/web",
            "10.41.8.10",
            "underlay",
            "stale remote endpoint, wrong provider address",
        ),
        (
            "overlay",
            "delete-load-balancer win-1 172.21.0.10:53/udp",
            "pod/default/client -> svc/kube-system/kube-dns:53/udp",
            "10.41.1.11",
            "win-1",
            "load balancer missing",
        ),
        (
            "l2bridge",
            "delete-load-balancer win-1 172.21.0.10:53/udp",
            "pod/default/client -> svc/kube-system/kube-dns:53/udp",
            "10.40.1.11",
            "underlay",
            "load balancer missing",
        ),
        (
            "l2bridge",
            "dsr win-1 node:30480/tcp",
            "outside -> node/win-1:30480",
            "10.40.8.10",
            "outside",
            "asymmetric return",
        ),
        (
            "overlay",
            "dsr win-1 node:30480/tcp",
            "outside -> node/win-1:30480",
            "10.41.8.10",
            "underlay",
            "asymmetric return",
        ),
        (
            "overlay",
            "forget-route win-2 10.41.7.0/24",
            "pod/default/client -> svc/default/web",
            "10.41.8.10",
            "underlay",
            "route missing: HNS of win-2 does not know that the pods of 10.41.7.0/24 are on win-1",
        ),
    ],
)
def test_known_failures_are_named_and_hansa_heals_what_it_made(
    name: str, fault: str, packet: str, endpoint: str, place: str, cause: str
) -> None:
    world = up(name, fault)
    journey = go(world, packet, endpoint)
    assert journey.loss is not None
    assert journey.loss.place == place
    assert contradictions(world, journey)
    assert not excuses(world, journey)
    assert diagnose(world, journey)[0].startswith(cause)
    healed = go(up(name, fault, heal=True), packet, endpoint)
    assert healed.works is (fault.split()[0] != "forget-route")  # routes are the CNI's


def test_limits_of_hns_are_excuses() -> None:
    world = up("overlay")
    for packet in ("pod/default/web-1 -> svc/default/web", "node/win-1 -> svc/default/web"):
        journey = go(world, packet, "10.41.7.11")
        assert contradictions(world, journey)
        assert len(excuses(world, journey)) == 1
    assert go(up("l2bridge"), "pod/default/web-1 -> svc/default/web", "10.40.7.11").works


def test_a_lab_is_saved_and_loaded_with_what_its_nodes_hold() -> None:
    text = (LABS / "overlay.yaml").read_text(encoding="utf-8")
    first = Cluster.read(text, name="overlay", faults=("delete-load-balancer win-1 172.21.0.10:53/udp",))
    again = Cluster.load(first.save(), name="state.json")
    assert again.made == first.made
    for node, emulator in first.windows.items():
        assert again.windows[node].emulator.load_balancers() == emulator.emulator.load_balancers()
    assert not go(again.world(), "pod/default/client -> svc/kube-system/kube-dns:53/udp").works


def test_pictures_show_every_place_and_the_loss() -> None:
    world = up("overlay", "delete-load-balancer win-1 172.21.0.10:53/udp")
    told = tell(world, go(world, "pod/default/client -> svc/kube-system/kube-dns:53/udp"))
    drawn = journey_mermaid(told)
    assert drawn.startswith("sequenceDiagram\n    participant p0 as pod default/client\n    participant p1 as win-1\n")
    assert "LOST: no load balancer of this node serves it" in drawn
    assert "load balancer missing" in journey_svg(told)
    data = journey_data(told)
    assert (data["works"], data["lost"]["at"]) == (False, "win-1")


LAB = """
kind: Lab
name: small
network: overlay
podCIDR: 10.41.0.0/16
serviceCIDR: 172.21.0.0/16
nodes:
- {name: win-1, os: windows, address: 192.0.2.21, podCIDR: 10.41.7.0/24}
"""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "is not YAML"),
        ("kind: Service", "has 0 documents of kind Lab"),
        (LAB.replace("overlay", "wifi"), "wifi"),
        (LAB + "unknown: 1", "unknown"),
        (LAB + "pods: [{name: a, node: win-9}]", "no node is called 'win-9'"),
        (LAB + "faults: [explode win-1 all]", "none that a lab knows"),
        (LAB + "faults: [dsr win-1]", "has 1 arguments"),
        (LAB + "faults: [dsr win-9 node:80/tcp]", "no Windows node is called win-9"),
        (LAB.replace("192.0.2.21", "192.0.2"), "192.0.2"),
        (LAB.replace("os: windows", "os: windows, build: vista"), "no emulated build"),
    ],
)
def test_what_is_wrong_in_a_lab_file_is_named(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_lab(text, name="lab.yaml")


@pytest.mark.parametrize(
    ("packet", "part"),
    [
        ("pod/default/client", "is no packet"),
        ("pod/default/nobody -> svc/default/web", "no pod is called default/nobody"),
        ("pod/default/client -> svc/default/nobody", "no Service is called default/nobody"),
        ("pod/default/client -> svc/kube-system/kube-dns", "has 2 ports that this may mean"),
        ("pod/default/client -> svc/default/web:nope", r"has no port nope \(give one of 80/tcp \(http\)\)"),
        ("pod/default/client -> vip/kube-system/kube-dns:53/udp", "has no load balancer address"),
        ("node/win-9 -> svc/default/web", "no node is called win-9"),
        ("outside -> node/win-1", "has no port"),
        ("outside -> 192.0.2.21:80/frog", "is no protocol"),
        ("outside -> vip/default/web via win-9", "no node is called win-9"),
        ("2001:db8::1 -> 192.0.2.21:80", "two families"),
        ("somebody -> 192.0.2.21:80", "is no source"),
    ],
)
def test_what_is_wrong_in_a_packet_is_named(packet: str, part: str) -> None:
    world = up("overlay")
    with pytest.raises(ConfigError, match=part):
        read_ask(packet, world)


def test_addresses_are_pods_nodes_or_the_outside() -> None:
    world = up("overlay")
    for text, place in (("10.41.7.10", "pod default/client"), ("192.0.2.22", "win-2"), ("203.0.113.77", "outside")):
        journey = go(world, f"{text} -> node/win-1:30480", "10.41.7.11")
        assert journey.there.steps[0].place == place
        assert journey.works


def test_a_fault_that_hits_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="holds no such thing"):
        up("overlay", "delete-load-balancer win-1 172.21.99.99:53/udp")
    assert str(read_fault("wrong-provider win-1 10.41.8.10 192.0.2.11")) == "wrong-provider win-1 10.41.8.10 192.0.2.11"


def test_preserve_destination_is_told_to_use_this_node_only() -> None:
    """What the differential test found: the annotation narrows policy Cluster, and nobody said so."""
    text = (LABS / "overlay.yaml").read_text(encoding="utf-8")
    text = text.replace(
        "metadata: {name: web, namespace: default}",
        'metadata: {name: web, namespace: default, annotations: {preserve-destination: "true"}}',
    )
    cluster = Cluster.read(text, name="overlay")
    told = {(one.feature, one.text) for one in cluster.windows["win-1"].shortfalls}
    assert any(feature == "preserve-destination" and "on this node only" in words for feature, words in told)


@pytest.mark.parametrize("cni", ["flannel", "calico", "azure"])
@pytest.mark.parametrize("name", ["overlay", "l2bridge"])
def test_every_manner_of_cni(name: str, cni: str) -> None:
    text = (LABS / f"{name}.yaml").read_text(encoding="utf-8").replace("cni: flannel", f"cni: {cni}")
    cluster = Cluster.read(text, name=name)
    world = cluster.world()
    for place in ("7.11", "8.10"):
        assert go(world, "pod/default/client -> svc/default/web", f"{PODS[name]}.{place}").works
        assert go(world, "outside -> node/win-1:30480", f"{PODS[name]}.{place}").works
    assert any("Calico_ep" in one.what for one in cluster.made) is (cni == "calico" and name == "overlay")
