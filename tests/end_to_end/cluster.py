"""A cluster for whole runs, and what its Windows node win-1 has to hold for what the API server says at this moment."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import yaml

from hansa.api.change import Change, Synced, Upsert
from hansa.api.objects import Kind, Node
from hansa.config import Config
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.demo import cluster_manifests
from hansa.hns.client import HnsClient
from hansa.hns.emulator.service import Emulator
from hansa.lab.cni import PodNetwork, add_local_pods, emulated_node, spare_source_vips
from hansa.net import Address
from hansa.pipeline import Pipeline
from hansa.sources.manifests import differences, read_manifest
from hansa.testing import SliceEndpoint, endpoint, manifest_endpoint_slice, manifest_service

Manifest = dict[str, Any]

NODE_NAME = "win-1"
WRITING = ("HcnCreate", "HcnModify", "HcnDelete")

# Pods by the demo cluster's plan: win-1 has 100.96.2.0/24, win-2 has 100.96.3.0/24.
LOCAL_POD = endpoint("100.96.2.31", node="win-1")
FAR_POD = endpoint("100.96.3.31", node="win-2")


def cluster() -> list[Manifest]:
    """The demo's cluster: kubernetes, kube-dns with three ports, and web with node port and load balancer."""
    items: list[Manifest] = yaml.safe_load(cluster_manifests())["items"]
    return items


def shop(*pods: SliceEndpoint, number: int = 1) -> list[Manifest]:
    """A further Service, and the slice of its pods. `number` tells several of them apart."""
    name = f"shop-{number}"
    address = f"100.64.200.{number}"
    return [
        manifest_service(name, cluster_ips=[address]),
        manifest_endpoint_slice(f"{name}-a", pods or (LOCAL_POD, FAR_POD), service=name),
    ]


def decoded(items: Iterable[Manifest], config: Config | None = None) -> tuple[Change, ...]:
    """What a source says of these objects; `config` selects as the API server would, None = nothing is left out."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(items)})
    reading = read_manifest(text.encode(), name="server", config=config)
    assert not reading.faults
    return (*differences({}, reading.objects), *(Synced(kind) for kind in Kind))


def nodes(items: Iterable[Manifest]) -> list[Node]:
    changes = decoded(items)
    return [one.object for one in changes if isinstance(one, Upsert) and isinstance(one.object, Node)]


def fresh_node(items: Iterable[Manifest], network: PodNetwork = PodNetwork.OVERLAY) -> Emulator:
    """An emulated win-1 as its CNI leaves it, without pods, with all call counts at zero."""
    known = nodes(items)
    own = next(node for node in known if node.name == NODE_NAME)
    return emulated_node(own, known, network=network)


def node_config(emulator: Emulator, **fields: Any) -> Config:
    config = Config(node_name=NODE_NAME, **fields)
    return replace(config, windows=replace(config.windows, source_vip=spare_source_vips(emulator)))


def dataplane(emulator: Emulator, config: Config, client: HnsClient | None = None) -> WindowsDataplane:
    """`client`: another way to that emulator, for example one that several threads share."""
    macs: dict[Address, str] = dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address)
    return WindowsDataplane(
        client or HnsClient(emulator), config, mac_of=macs.get, rng=random.Random(7), clock=lambda: 0.0
    )


def wanted(items: Iterable[Manifest], network: PodNetwork = PodNetwork.OVERLAY) -> list[str]:
    """What `held` must say for these objects: computed afresh, on a new node, by a hansa that remembers nothing."""
    items = list(items)
    emulator = fresh_node(items, network)
    config = node_config(emulator)
    changes = decoded(items, config)
    add_local_pods(emulator, changes, NODE_NAME)
    pipeline = Pipeline(config, frozenset(emulator.host_addresses))
    pipeline.apply(changes)
    message = pipeline.take()
    assert message is not None
    report = dataplane(emulator, config).sync(message, now=0.0, audit=True)
    assert report.ok, report
    return held(emulator)


def held(emulator: Emulator) -> list[str]:
    """Every load balancer as `frontend -> backend addresses, flags`, and every remote endpoint; sorted, with twins."""
    addresses = {one.guid: " ".join(map(str, one.addresses)) for one in emulator.endpoints()}
    lines = []
    for balancer in emulator.load_balancers():
        backends = " ".join(sorted(addresses.get(guid, f"missing {guid}") for guid in balancer.endpoints))
        vips = " ".join(map(str, balancer.frontend_vips)) or "node"
        for mapping in balancer.port_mappings or (None,):
            ports = f"{mapping.protocol}/{mapping.external_port}>{mapping.internal_port}" if mapping else "no port"
            flags = f"{balancer.flags!r} {mapping.flags!r} {mapping.distribution!r}" if mapping else ""
            lines.append(f"{vips} {ports} -> {backends} from {balancer.source_vip} {flags}")
    lines += [f"remote {addresses[one.guid]} by {one.provider_address}" for one in emulator.endpoints() if one.remote]
    return sorted(lines)


def writes(emulator: Emulator) -> int:
    """How many calls so far asked HNS to create, modify or delete something."""
    return sum(count for function, count in emulator.calls.items() if function.startswith(WRITING))
