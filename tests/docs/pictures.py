"""Pictures of the site, made from what hansa says: nobody draws one by hand.

Each is a function that gives the text of a Mermaid flowchart; `reference.TABLES` puts it into the pages. What a command
can draw by itself (`-o mermaid`) stands on its page with that command instead.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from examples.bench import Bench
from tests.docs.pages import Session

from hansa.demo import cluster_manifests
from hansa.hns.schema import HnsEndpoint, LbFlags, MappingFlags

NODE = "win-1"


def mermaid(lines: Iterable[str]) -> str:
    return "".join(("```mermaid\n", "flowchart LR\n", *(f"  {line}\n" for line in lines), "```\n"))


@cache
def rendered() -> dict[str, Any]:
    """What the demo's Windows node has to hold, as `hansa render -o json` prints it."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))
        session.shell("hansa demo --manifests > cluster.yaml")
        command = f"hansa render --source cluster.yaml --node-name {NODE} --dataplane windows -o json"
        found: dict[str, Any] = json.loads(session.shell(command))
        return found


def objects(services: frozenset[str]) -> str:
    """Service, load balancers, HNS endpoints: what stands on the node for these services; empty = for all."""
    found = rendered()
    behind = {one["IpConfigurations"][0]["IpAddress"]: one for one in found["HostComputeEndpoints"]}
    lines: list[str] = []
    names: dict[str, str] = {}

    def box(key: str, text: str) -> str:
        if key not in names:
            names[key] = f"n{len(names)}"
            lines.append(f'{names[key]}["{text}"]')
        return names[key]

    for balancer in found["HostComputeLoadBalancers"]:
        owners = {owner.partition(":")[0] for owner in balancer["For"]}
        if services and not owners & services:
            continue
        mapping = balancer["PortMappings"][0]
        protocol = {6: "tcp", 17: "udp"}[mapping["Protocol"]]
        vip = balancer.get("FrontendVIPs", ["any address of the node"])[0]
        flags = [
            flag.name or ""
            for kind, value in ((LbFlags, balancer.get("Flags", 0)), (MappingFlags, mapping.get("Flags", 0)))
            for flag in kind(value)
        ]
        frontend = f"{vip}:{mapping['ExternalPort']}/{protocol}"
        shown = f"load balancer<br/>{frontend}" + (f"<br/>{', '.join(flags)}" if flags else "")
        middle = box(frontend, shown)
        for owner in sorted(owners):
            lines.append(f"{box(owner, f'Service<br/>{owner}')} --> {middle}")
        for address in balancer["HostComputeEndpoints"]:
            remote = behind.get(address)
            provider = remote["Policies"][0]["Settings"]["ProviderAddress"] if remote else ""
            kind = (
                f"remote endpoint<br/>behind node {provider}" if remote else "the CNI's endpoint<br/>pod on this node"
            )
            lines.append(f"{middle} -->|port {mapping['InternalPort']}| {box(address, f'{address}<br/>{kind}')}")
    return mermaid(lines)


def slices() -> str:
    """Service, EndpointSlice, endpoints and their nodes, of kube-dns in the demo's cluster."""
    items = yaml.safe_load(cluster_manifests())["items"]
    service = next(one for one in items if one["kind"] == "Service" and one["metadata"]["name"] == "kube-dns")
    lines = [f'service["Service kube-dns<br/>{service["spec"]["clusterIP"]}"]']
    ports = ", ".join(f"{one['name']} {one['port']}" for one in service["spec"]["ports"])
    for item in items:
        labels = item["metadata"].get("labels", {})
        if item["kind"] != "EndpointSlice" or labels.get("kubernetes.io/service-name") != "kube-dns":
            continue
        lines.append(f'slice["EndpointSlice {item["metadata"]["name"]}"]')
        lines.append(f'service -. "found by label;<br/>ports joined by name: {ports}" .-> slice')
        for number, each in enumerate(item["endpoints"]):
            address, pod = each["addresses"][0], each["targetRef"]["name"]
            ready = "ready" if each["conditions"]["ready"] else "not ready"
            lines.append(f'slice --> e{number}["{address}<br/>{ready}"]')
            lines.append(f'e{number} --> p{number}["pod {pod}<br/>on {each["nodeName"]}"]')
    return mermaid(lines)


def makers() -> str:
    """Who made which HNS object on an overlay node: the CNI before the proxy came, the proxy after."""
    bench = Bench("overlay", pods=["10.41.7.14"], settings={"winkernel": {"sourceVip": "10.41.7.2"}})
    network = bench.host.networks()[0]
    before = {each.guid for each in bench.host.endpoints()}
    bench.give(bench.service(), bench.slice("10.41.7.14", "10.41.8.7"))

    def label(each: HnsEndpoint) -> str:
        place = "remote" if each.remote else "local"
        return f"{place} endpoint<br/>{each.addresses[0]}"

    lines = ['subgraph cni["made by the CNI"]', f'network["network {network.name}<br/>{network.type.value}"]']
    mine = [each for each in bench.host.endpoints() if each.guid in before]
    lines += [f'c{n}["{label(each)}<br/>{each.name}"]' for n, each in enumerate(mine)]
    lines += [f"network --- c{n}" for n in range(len(mine))]
    lines += ["end", 'subgraph proxy["made by the proxy"]']
    purposes = {"10.41.7.2": "source VIP", "10.96.0.10": "service VIP", "10.41.8.7": "backend on another node"}
    theirs = [each for each in bench.host.endpoints() if each.guid not in before]
    number = {each.guid: f"c{n}" for n, each in enumerate(mine)} | {each.guid: f"p{n}" for n, each in enumerate(theirs)}
    lines += [f'p{n}["{label(each)}<br/>{purposes[str(each.addresses[0])]}"]' for n, each in enumerate(theirs)]
    for n, balancer in enumerate(bench.host.load_balancers()):
        lines.append(f'lb{n}["load balancer<br/>{balancer.frontend_vips[0]}:80"]')
        lines += [f"lb{n} --> {number[guid]}" for guid in balancer.endpoints]
    return mermaid([*lines, "end"])


PICTURES: dict[str, Callable[[], str]] = {
    "picture-web": lambda: objects(frozenset({"default/web"})),
    "picture-load-balancers": lambda: objects(frozenset()),
    "picture-slices": slices,
    "picture-makers": makers,
}
