"""A lab that is up: emulated Windows nodes with hansa's own pipeline and dataplane on each, Linux nodes by their rules.

What comes in: a `Lab`. What goes out: a `World` that packets can be sent through, who made what, the state as text.
Time is a number that is moved by hand; nothing here reads a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec

from hansa.api.change import Change, Upsert
from hansa.api.objects import EndpointSlice, Node
from hansa.config import Config, make_config
from hansa.dataplanes.base import Outcome, Shortfall, SyncReport, Verb
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.dataplanes.windows.compare import Situation
from hansa.errors import ConfigError
from hansa.errors import Fault as SettingFault
from hansa.hns.api import ZERO_GUID, HnsError, HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator.nodes import L2BRIDGE, OVERLAY
from hansa.hns.emulator.service import Emulator
from hansa.hns.emulator.vswitch import switch_of
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    LbFlags,
    ProviderAddress,
    RemoteSubnetRoute,
)
from hansa.lab.cni import Cni, PodNetwork, PodPlan, emulated_node, hold_address, make_pod, spare_source_vips
from hansa.lab.linux import LinuxHost
from hansa.lab.model import FaultKind, Lab, LabFault, LabNode, Made, System
from hansa.lab.reading import read_lab
from hansa.lab.world import NodeRules, World
from hansa.net import Address, Prefix, parse_address, parse_prefix
from hansa.pipeline import Pipeline
from hansa.rules.model import RuleChanges

FORMAT = 1  # of the saved text; raised when an old one could be misread
QUIET_S = 60.0  # how long hansa may need, on the lab's own time, until a node is as desired
SOURCE_VIP_ENDPOINT = "Calico_ep"  # the name under which Calico's agent holds the source VIP (KEP-5100)
MACS = "00-15-5D-20-{:02X}-01"


@dataclass(slots=True)
class WindowsNode:
    """An emulated Windows node and the hansa on it. report: of the last sync, None = none yet."""

    node: LabNode
    config: Config
    emulator: Emulator
    pipeline: Pipeline
    dataplane: WindowsDataplane
    report: SyncReport | None = None

    @property
    def situation(self) -> Situation:
        """What is wanted and what HNS holds, read anew; for reading."""
        assert self.pipeline.ready
        return self.dataplane.survey(_everything(self.pipeline), now=0.0)

    @property
    def shortfalls(self) -> tuple[Shortfall, ...]:
        return self.situation.wanted.shortfalls if self.report is None else self.report.shortfalls


class Cluster:
    """All nodes of a lab. Used by one thread."""

    def __init__(self, lab: Lab) -> None:
        """Nodes as their CNI leaves them, with pods and without any load balancer; `settle` has hansa do its work."""
        self.lab = lab
        self.now = 0.0
        self.made: list[Made] = []
        self.windows: dict[str, WindowsNode] = {}
        self.linux: dict[str, Pipeline] = {}
        self._text = ""
        self._note_controllers()
        for node in lab.nodes:
            match node.system:
                case System.WINDOWS:
                    self._add(node, self._prepare(node))
                case System.LINUX:
                    self._add_linux(node)

    @classmethod
    def read(cls, text: str, *, name: str, faults: Iterable[str] = ()) -> Cluster:
        """Bring up what a lab file describes, hansa and faults included. Raises ConfigError."""
        cluster = cls(read_lab(text, name=name, extra_faults=faults))
        cluster._text = text
        cluster.settle()
        for fault in cluster.lab.faults:
            cluster.break_by(fault)
        return cluster

    # --- making ---

    def _note_controllers(self) -> None:
        for change in self.lab.changes:
            if isinstance(change, Upsert) and isinstance(change.object, EndpointSlice):
                piece = change.object
                if piece.service_key in self.lab.controlled:
                    targets = ", ".join(str(each.address) for each in piece.endpoints) or "no endpoints"
                    text = f"EndpointSlice {piece.namespace}/{piece.name}: {targets}"
                    self.made.append(Made("endpoint slice controller", "-", text))

    def _api_nodes(self) -> list[Node]:
        return [one.object for one in self.lab.changes if isinstance(one, Upsert) and isinstance(one.object, Node)]

    def _prepare(self, node: LabNode) -> Emulator:
        """The CNI's part: network, routes, endpoints of the pods."""
        lab = self.lab
        own = next(each for each in self._api_nodes() if each.name == node.name)
        layout = OVERLAY if lab.network is PodNetwork.OVERLAY else L2BRIDGE
        layout = replace(layout, vni=lab.vni, root_offset=None if lab.cni is Cni.AZURE else layout.root_offset)
        try:
            emulator = emulated_node(own, self._api_nodes(), network=lab.network, build=node.build, layout=layout)
        except HnsError as error:
            raise ConfigError(SettingFault(node.name, f"its HNS refuses the CNI's network: {error}")) from error
        emulator.machine = replace(emulator.machine, mac_address=MACS.format(lab.nodes.index(node) + 1))
        self._note_network(node, emulator)
        exempt = (*lab.pod_cidrs, *lab.service_cidrs)
        services = tuple(prefix for prefix in lab.service_cidrs if prefix.version == node.addresses[0].version)
        plan = PodPlan(lab.network, node.addresses[0], exempt, services, lab.cni, lab.loopback_dsr)
        for pod in lab.pods:
            if pod.node != node.name or pod.host_network:
                continue
            try:
                endpoint = make_pod(
                    emulator, pod.addresses, replace(plan, extra=pod.policies), name=f"{pod.namespace}-{pod.name}_eth0"
                )
            except HnsError as error:
                raise ConfigError(
                    SettingFault(str(pod), f"HNS of {node.name} refuses its endpoint: {error}")
                ) from error
            addresses = ", ".join(str(each) for each in pod.addresses)
            policies = ", ".join(dict.fromkeys(type(each).__name__ for each in endpoint.policies))
            text = f"endpoint {addresses} for {pod} ({policies})"
            self.made.append(Made(f"{lab.cni.plugin(lab.network)} (CNI)", node.name, text))
        return emulator

    def _note_network(self, node: LabNode, emulator: Emulator) -> None:
        who = f"{self.lab.cni.agent()} (CNI)"
        network = emulator.networks()[0]
        prefixes = ", ".join(str(subnet.prefix) for subnet in network.subnets)
        self.made.append(Made(who, node.name, f"network {network.name} ({network.type.value}), pods in {prefixes}"))
        for route in network.remote_subnets:
            text = f"route to pods {route.prefix}: node {route.provider_address}, VNI {route.isolation_id}"
            self.made.append(Made(who, node.name, text))
        for endpoint in emulator.endpoints():
            addresses = ", ".join(str(each) for each in endpoint.addresses)
            self.made.append(Made(who, node.name, f"endpoint {addresses}, {endpoint.name}: the host's own"))
        if self.lab.cni is Cni.CALICO:
            for address in spare_source_vips(emulator):
                hold_address(emulator, address, name=SOURCE_VIP_ENDPOINT, mac=emulator.machine.mac_address)
                text = f"endpoint {address}, {SOURCE_VIP_ENDPOINT}: holds the source VIP"
                self.made.append(Made(who, node.name, text))

    def _config(self, node: LabNode) -> Config:
        values: dict[str, object] = {"clusterCIDR": ",".join(str(each) for each in self.lab.pod_cidrs)}
        values |= self.lab.settings
        values["hostnameOverride"] = node.name
        return make_config(values, node_name=node.name)

    def _add(self, node: LabNode, emulator: Emulator) -> None:
        config = self._config(node)
        settings = config.windows
        if not settings.source_vip and not settings.source_vip_endpoint:
            if self.lab.cni is Cni.CALICO and self.lab.network is PodNetwork.OVERLAY:
                settings = replace(settings, source_vip_endpoint=SOURCE_VIP_ENDPOINT)
            else:
                settings = replace(settings, source_vip=spare_source_vips(emulator))
        config = replace(config, windows=settings)
        pipeline = Pipeline(config, frozenset(emulator.host_addresses))
        pipeline.apply(self.lab.changes)
        dataplane = WindowsDataplane(
            HnsClient(emulator),
            config,
            mac_of=dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address).get,
            rng=random.Random(0),
            clock=lambda: self.now,
        )
        self.windows[node.name] = WindowsNode(node, config, emulator, pipeline, dataplane)

    def _add_linux(self, node: LabNode) -> None:
        pipeline = Pipeline(self._config(node), frozenset(node.addresses))
        pipeline.apply(self.lab.changes)
        pipeline.take()
        self.linux[node.name] = pipeline
        who = f"{self.lab.cni.agent()} (CNI)"
        prefixes = ", ".join(str(prefix) for prefix in node.pod_cidrs)
        self.made.append(Made(who, node.name, f"bridge cni0, pods in {prefixes}"))
        if self.lab.network is PodNetwork.OVERLAY:
            self.made.append(Made(who, node.name, f"device flannel.1, VNI {self.lab.vni}"))

    # --- hansa's part ---

    def settle(self, *, audit: bool = False) -> None:
        """Have hansa bring every Windows node to the desired state, as far as it can."""
        for name in self.windows:
            self._settle(name, audit=audit)

    def apply(self, changes: Iterable[Change]) -> None:
        """The API says something new, to every node."""
        told = tuple(changes)
        for node in self.windows.values():
            node.pipeline.apply(told)
        for pipeline in self.linux.values():
            pipeline.apply(told)
            pipeline.take()
        self.lab = replace(self.lab, changes=(*self.lab.changes, *told))

    def sync(self, name: str, *, audit: bool) -> SyncReport:
        """One sync of one Windows node, as of now."""
        node = self.windows[name]
        message = node.pipeline.take()
        assert message is not None, "a lab tells of every kind that it is complete"
        report = node.dataplane.sync(message, now=self.now, audit=audit)
        node.report = report
        self._note_report(node, report)
        return report

    def _settle(self, name: str, *, audit: bool) -> None:
        end = self.now + QUIET_S
        while True:
            report = self.sync(name, audit=audit)
            if report.ok or self.now >= end:
                return
            self.now = max(self.now + 0.1, report.retry_at or self.now)
            audit = False

    def _note_report(self, node: WindowsNode, report: SyncReport) -> None:
        for result in report.results:
            change = result.change
            if result.outcome is not Outcome.DONE:
                continue
            owners = f" for {', '.join(change.owners)}" if change.owners else ""
            verb = "" if change.verb is Verb.CREATE else f"{change.verb.value} "
            self.made.append(Made("hansa", node.node.name, f"{verb}{_kind_and_key(change.kind, change.key)}{owners}"))

    # --- breaking ---

    def break_by(self, fault: LabFault) -> None:
        """Break something behind hansa's back. Raises ConfigError if there is nothing of the kind."""
        emulator = self.windows[fault.node].emulator
        if not _strike(emulator, fault):
            raise ConfigError(
                SettingFault("fault", f"{fault}: HNS of {fault.node} holds no such thing", "see `hansa hns ls`")
            )
        self.made.append(Made("fault", fault.node, str(fault)))

    # --- looking ---

    def world(self) -> World:
        """Everything as it is now, as values."""
        lab = self.lab
        rules = {
            name: NodeRules(node.pipeline.rules, node.pipeline.surroundings) for name, node in self.windows.items()
        }
        rules |= {name: NodeRules(pipeline.rules, pipeline.surroundings) for name, pipeline in self.linux.items()}
        return World(
            lab,
            windows={name: switch_of(node.emulator) for name, node in self.windows.items()},
            linux={name: self._linux_host(name, rules[name]) for name in self.linux},
            rules=rules,
            served=frozenset(_served(lab.changes)),
            shortfalls={name: node.shortfalls for name, node in self.windows.items()},
        )

    def _linux_host(self, name: str, rules: NodeRules) -> LinuxHost:
        lab = self.lab
        node = lab.node(name)
        assert node is not None
        overlay = lab.network is PodNetwork.OVERLAY
        peers: dict[Prefix, Address] = {
            prefix: other.addresses[0] for other in lab.nodes if other is not node for prefix in other.pod_cidrs
        }
        pods = frozenset(
            address for pod in lab.pods if pod.node == name and not pod.host_network for address in pod.addresses
        )
        return LinuxHost(
            node.addresses,
            node.pod_cidrs,
            lab.pod_cidrs,
            pods,
            rules.rules,
            rules.surroundings,
            overlay=overlay,
            vni=lab.vni,
            peers=peers if overlay else {},
        )

    # --- keeping ---

    def save(self) -> str:
        """The lab with everything that its Windows nodes hold."""
        kept = _Kept(FORMAT, self.lab.name, self._text, {k: v.emulator.dump() for k, v in self.windows.items()})
        kept.made = self.made
        return msgspec.json.encode(kept).decode()

    @classmethod
    def load(cls, text: str, *, name: str, faults: Iterable[str] = ()) -> Cluster:
        """A lab as `save` has written it; hansa does nothing to it. Raises ConfigError."""
        try:
            kept = msgspec.json.decode(text, type=_Kept)
        except msgspec.DecodeError as error:
            raise ConfigError(
                SettingFault(name, f"is no saved lab: {error}", "give a file of `hansa lab run --save`")
            ) from error
        if kept.format != FORMAT:
            raise ConfigError(SettingFault(name, f"has format {kept.format}, this version of hansa reads {FORMAT}"))
        cluster = cls(read_lab(kept.lab, name=name, extra_faults=faults))
        cluster._text = kept.lab
        cluster.made = kept.made
        for node in cluster.lab.nodes:
            if node.name in kept.nodes:
                cluster._add(node, Emulator.load(kept.nodes[node.name]))
                cluster.windows[node.name].pipeline.take()
        for fault in cluster.lab.faults[len(cluster.lab.faults) - len(tuple(faults)) :]:
            cluster.break_by(fault)
        return cluster


class _Kept(msgspec.Struct):
    """The saved text's own form. nodes: the emulators' dumps."""

    format: int
    name: str
    lab: str
    nodes: dict[str, str]
    made: list[Made] = []


def _everything(pipeline: Pipeline) -> RuleChanges:
    message = pipeline.take(full=True)
    assert message is not None
    return message


def _kind_and_key(kind: str, key: str) -> str:
    return key if key.startswith(kind) else f"{kind} {key}"


def _served(changes: Iterable[Change]) -> Iterator[tuple[Address, int]]:
    for change in changes:
        if isinstance(change, Upsert) and isinstance(change.object, EndpointSlice):
            for endpoint in change.object.endpoints:
                for port in change.object.ports:
                    yield endpoint.address, port.port


# -- faults ----------------------------------------------------------------------------------------------------------


def _strike(emulator: Emulator, fault: LabFault) -> bool:
    """Do it; False if there is nothing to do it to."""
    match fault.kind:
        case FaultKind.DELETE_LOAD_BALANCER:
            return _each_balancer(emulator, fault, lambda one: emulator.remove(HnsKind.LOAD_BALANCER, one.guid))
        case FaultKind.NO_SOURCE_VIP:
            return _each_balancer(
                emulator, fault, lambda one: emulator.alter(HnsKind.LOAD_BALANCER, one.guid, source_vip=None)
            )
        case FaultKind.DSR:
            return _each_balancer(
                emulator,
                fault,
                lambda one: emulator.alter(HnsKind.LOAD_BALANCER, one.guid, flags=one.flags | LbFlags.DSR),
            )
        case FaultKind.DELETE_ENDPOINT:
            found = [one for one in emulator.endpoints() if parse_address(fault.what) in one.addresses]
            for one in found:
                emulator.remove(HnsKind.ENDPOINT, one.guid)
            return bool(found)
        case FaultKind.STALE_REMOTE_ENDPOINT:
            assert fault.provider is not None
            emulator.add(_stand_in(emulator, parse_address(fault.what), fault.provider))
            return True
        case FaultKind.WRONG_PROVIDER:
            assert fault.provider is not None
            remote = [one for one in emulator.endpoints() if one.remote and parse_address(fault.what) in one.addresses]
            for one in remote:
                emulator.alter(HnsKind.ENDPOINT, one.guid, policies=(ProviderAddress(fault.provider),))
            return bool(remote)
        case FaultKind.FORGET_ROUTE:
            return _forget_route(emulator, parse_prefix(fault.what))


def _stand_in(emulator: Emulator, address: Address, provider: Address) -> HnsEndpoint:
    return HnsEndpoint(
        guid=ZERO_GUID,
        name="Ethernet",
        network=emulator.networks()[0].guid,
        ip_configurations=(IpConfiguration(address),),
        mac_address="02-11-" + address.packed[-4:].hex("-").upper(),
        flags=EndpointFlags.REMOTE,
        policies=(ProviderAddress(provider),),
    )


def _each_balancer(emulator: Emulator, fault: LabFault, act: Callable[[HnsLoadBalancer], None]) -> bool:
    found = [one for one in emulator.load_balancers() if fault.what in _frontends(one)]
    for one in found:
        act(one)
    return bool(found)


def _frontends(balancer: HnsLoadBalancer) -> set[str]:
    """`ADDRESS:PORT/protocol` and `node:PORT/protocol`, as a fault names them."""
    hosts = [f"[{vip}]" if vip.version == 6 else str(vip) for vip in balancer.frontend_vips] or ["node"]
    return {
        f"{host}:{mapping.external_port}/{_PROTOCOLS.get(mapping.protocol, mapping.protocol)}"
        for host in hosts
        for mapping in balancer.port_mappings
    }


_PROTOCOLS = {6: "tcp", 17: "udp"}


def _forget_route(emulator: Emulator, prefix: Prefix) -> bool:
    network = emulator.networks()[0]
    kept = tuple(one for one in network.policies if not (isinstance(one, RemoteSubnetRoute) and one.prefix == prefix))
    emulator.alter(HnsKind.NETWORK, network.guid, policies=kept)
    return len(kept) < len(network.policies)
