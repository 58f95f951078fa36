"""What people type about a lab, as an `Ask`: who wants to reach what. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hansa.api.change import Upsert
from hansa.api.objects import Service, ServiceKey, ServicePortSpec
from hansa.errors import ConfigError, Fault
from hansa.hns.emulator.vswitch_model import Header
from hansa.lab.model import LabPod
from hansa.lab.world import FIRST_PORT, Ask, Client, FromNode, FromOutside, FromPod, World
from hansa.net import Address, Protocol, parse_address, parse_protocol

FORM = "SOURCE -> TARGET, like 'pod/default/client -> svc/kube-system/kube-dns:53/udp'"
SOURCES = "pod/NAMESPACE/NAME, node/NAME, outside, or an address"
TARGETS = (
    "svc/NAMESPACE/NAME:PORT, vip/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT, node/NAME:PORT, outside:PORT or "
    "ADDRESS:PORT"
)
_LINE = re.compile(r"(?P<source>\S+)\s*->\s*(?P<target>\S+)(?:\s+via\s+(?:node/)?(?P<via>\S+))?")
_TARGET = re.compile(
    r"(?P<what>(?:svc|vip|pod)/[^/:]+/[^/:]+|node/[^/:]+|outside|\[[0-9a-fA-F:.]+\]|[0-9.]+)"
    r"(?::(?P<port>[^/:]+))?(?:/(?P<protocol>[a-zA-Z]\w*))?"
)


def read_ask(text: str, world: World, *, source_port: int = FIRST_PORT) -> Ask:
    """`SOURCE -> TARGET[/PROTOCOL] [via NODE]`; via: the node that an external load balancer takes. Raises ConfigError.

    SOURCE: `pod/NAMESPACE/NAME`, `node/NAME`, `outside`, or an address. TARGET: `svc/NAMESPACE/NAME:PORT` for the
    ClusterIP, `vip/...` for the load balancer's address, `pod/...`, `node/NAME:PORT`, `ADDRESS:PORT`. A port may be a
    Service's name for it, and may be left out where there is but one. Without protocol TCP, or the Service's.
    """
    match = _LINE.fullmatch(text.strip())
    if match is None:
        raise _fault(f"{text!r} is no packet", f"write {FORM}")
    try:
        destination, port, protocol = _target(match["target"], world)
    except ValueError as error:  # an address, or a protocol
        raise _fault(str(error), f"give {TARGETS}") from error
    client, source = _client(match["source"], destination, world)
    via = match["via"] or ""
    if via and world.lab.node(via) is None:
        raise _fault(f"no node is called {via}", f"the lab has {', '.join(node.name for node in world.lab.nodes)}")
    from_port = None if port is None else source_port
    return Ask(client, Header(source, from_port, destination, port, protocol), via)


def _fault(text: str, remedy: str) -> ConfigError:
    return ConfigError(Fault("PACKET", text, remedy))


def _client(text: str, like: Address, world: World) -> tuple[Client, Address]:
    if text == "outside":
        address = _of_family(world.lab.outside, like, "the outside")
        return FromOutside(address), address
    kind, _, rest = text.partition("/")
    if kind == "node":
        node = world.lab.node(rest)
        if node is None:
            raise _fault(f"no node is called {rest}", f"the lab has {', '.join(each.name for each in world.lab.nodes)}")
        return FromNode(node.name), _of_family(node.addresses, like, text)
    if kind == "pod" and rest:
        pod = _pod(rest, world)
        return FromPod(pod), _of_family(pod.addresses, like, text)
    try:
        address = parse_address(text)
    except ValueError as error:
        raise _fault(f"{text!r} is no source", f"give {SOURCES}") from error
    if address.version != like.version:
        raise _fault(f"{text} and {like} are of two families", "give two addresses of one family")
    found = world.pod_at(address)
    if found is not None:
        return FromPod(found), address
    named = world.node_at(address)
    return (FromNode(named) if named else FromOutside(address)), address


def _of_family(addresses: tuple[Address, ...], like: Address, what: str) -> Address:
    found = next((each for each in addresses if each.version == like.version), None)
    if found is None:
        raise _fault(f"{what} has no IPv{like.version} address", "ask for an address of another family")
    return found


def _pod(text: str, world: World) -> LabPod:
    namespace, _, name = text.rpartition("/")
    for pod in world.lab.pods:
        if pod.name == name and pod.namespace == (namespace or "default"):
            return pod
    known = ", ".join(f"{pod.namespace}/{pod.name}" for pod in world.lab.pods)
    raise _fault(f"no pod is called {text}", f"the lab has {known}")


def _target(text: str, world: World) -> tuple[Address, int | None, Protocol]:
    match = _TARGET.fullmatch(text)
    if match is None:
        raise _fault(f"{text!r} is no target", f"give {TARGETS}")
    what, port = match["what"], match["port"]
    protocol = parse_protocol(match["protocol"]) if match["protocol"] else None
    if what.startswith(("svc/", "vip/")):
        return _service_target(what, port, protocol, world)
    address = _plain_address(what, world)
    chosen = protocol or Protocol.TCP
    if (port is not None) != chosen.has_ports or (port is not None and not port.isdigit()):
        raise _fault(f"{text!r} has no port that {chosen} could have", f"give {TARGETS}")
    return address, None if port is None else int(port), chosen


def _plain_address(what: str, world: World) -> Address:
    if what.startswith("pod/"):
        return _pod(what.removeprefix("pod/"), world).addresses[0]
    if what.startswith("node/"):
        node = world.lab.node(what.removeprefix("node/"))
        if node is None:
            raise _fault(f"{what} is no node", f"the lab has {', '.join(each.name for each in world.lab.nodes)}")
        return node.addresses[0]
    if what == "outside":
        return world.lab.outside[0]
    return parse_address(what.strip("[]"))


def _service_target(
    what: str, port: str | None, protocol: Protocol | None, world: World
) -> tuple[Address, int | None, Protocol]:
    kind, namespace, name = what.split("/")
    service = next((one for one in _services(world) if one.key == ServiceKey(namespace, name)), None)
    if service is None:
        known = ", ".join(sorted(str(one.key) for one in _services(world)))
        raise _fault(f"no Service is called {namespace}/{name}", f"the lab has {known}")
    addresses = service.cluster_ips if kind == "svc" else service.load_balancer_vips
    if not addresses:
        raise _fault(f"{namespace}/{name} has no {'ClusterIP' if kind == 'svc' else 'load balancer address'}", "")
    found = [one for one in service.ports if _is_meant(one, port, protocol)]
    if len(found) != 1:
        known = ", ".join(f"{one.port}/{one.protocol}{one.name and f' ({one.name})'}" for one in service.ports)
        asked = f"{port or ''}{f'/{protocol}' if protocol else ''}"
        text = f"no port {asked}" if asked and not found else f"{len(found)} ports that {asked or 'this'} may mean"
        raise _fault(f"{namespace}/{name} has {text}", f"give one of {known}")
    return addresses[0], found[0].port, found[0].protocol


def _is_meant(one: ServicePortSpec, port: str | None, protocol: Protocol | None) -> bool:
    return (port is None or port in (one.name, str(one.port))) and protocol in (None, one.protocol)


def _services(world: World) -> Iterator[Service]:
    for change in world.lab.changes:
        if isinstance(change, Upsert) and isinstance(change.object, Service):
            yield change.object
