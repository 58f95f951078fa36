"""A Windows node under guard: API objects go through the real pipeline into the dataplane, and on to an emulated HNS.

Nothing of hansa is replaced. Between the dataplane and HNS stands a `Guard`, which looks at every call before and
after it is served and writes down each breach of an invariant; `GuardedNode.sync` fails if there is one.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.guarantees.guard import Guard
from tests.hns_double.route import through
from tests.unit.dataplanes.windows_node import WRITES, advance, name_of, plain

from hansa.api.change import Change, Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey, Service
from hansa.config import Config, WindowsConfig
from hansa.dataplanes.base import SyncReport
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.hns.api import Guid, HnsKind, HnsVerb, HResult
from hansa.hns.client import HnsClient
from hansa.hns.emulator import (
    WS2022,
    ZN23H2,
    Build,
    Call,
    Emulator,
    Fault,
    Layout,
    Machine,
    Refuse,
    RemoteNode,
    l2bridge_node,
    overlay_node,
)
from hansa.hns.emulator.faults import Effect
from hansa.hns.port_ranges import TakenPorts
from hansa.hns.schema import (
    EndpointFlags,
    HnsEndpoint,
    HnsLoadBalancer,
    IpConfiguration,
    PortMapping,
    ProviderAddress,
)
from hansa.net import Address, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.model import FrontendKey, Rule, RuleChanges
from hansa.services.model import ServicePortName
from hansa.testing import L1, L2, NODE, NODE_ADDRESSES, NODE_IP, R1, R2, config, endpoint, endpoint_slice, service

WITH_MODIFY, WITHOUT_MODIFY = plain(ZN23H2), plain(WS2022)
MAC = "00-15-5D-20-21-01"
MACHINE = Machine(addresses=("192.0.2.1", "2001:db8::1"), mac_address=MAC)
# The standing example of hansa.testing: n1 is this node and has the pods of 10.1.1.0/24.
BRIDGE = Layout("hansa-br", MACHINE, ("10.1.1.0/24",))
BRIDGE_DUAL = Layout("hansa-br", MACHINE, ("10.1.1.0/24", "fd01::/64"))
OVERLAY = Layout(
    "hansa-vx",
    MACHINE,
    ("10.1.1.0/24",),
    root_offset=3,
    vni=4100,
    remote_nodes=(
        RemoteNode("192.0.2.2", "10.1.2.0/24", "00-15-5D-7E-44-02"),
        RemoteNode("192.0.2.3", "10.1.3.0/24", "00-15-5D-7E-44-03"),
    ),
)
SOURCE_VIP = parse_address("10.1.1.2")
LOCAL_1, LOCAL_2, REMOTE_1, REMOTE_2 = (str(one.address) for one in (L1, L2, R1, R2))
PERIOD_S = 30.0  # Config.full_check_period_s

__all__ = [
    "BRIDGE",
    "BRIDGE_DUAL",
    "LOCAL_1",
    "LOCAL_2",
    "MAC",
    "OVERLAY",
    "PERIOD_S",
    "REMOTE_1",
    "REMOTE_2",
    "SOURCE_VIP",
    "WITHOUT_MODIFY",
    "WITH_MODIFY",
    "GuardedNode",
    "at_frontend",
    "bridge",
    "overlay",
    "plain",
]


def synced() -> tuple[Synced, ...]:
    return tuple(Synced(kind) for kind in Kind)


def at_frontend(name: str) -> object:
    """For faults: calls about the load balancer at `vip:port/protocol`, `node:port/protocol` (see `name_of`)."""
    return lambda call: isinstance(call.value, HnsLoadBalancer) and name_of(call.value) == name


@dataclass
class GuardedNode:
    """The proxy of node n1, and the time that only `wait` moves. `calls` has every call since `forget`.

    objects: what the API server has. rules: what the dataplane was told, by frontend. taken_ports: which ports Windows
    gives away by itself, or why it does not tell.
    """

    emulator: Emulator
    config: Config
    now: float = 1000.0
    objects: dict[ObjectKey, ApiObject] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    rules: dict[FrontendKey, Rule] = field(default_factory=dict)
    message: RuleChanges | None = None
    taken_ports: Collection[TakenPorts] | OSError = ()
    asked_for_ports: int = 0

    def __post_init__(self) -> None:
        self.guard = Guard(self)
        self.emulator.watch(self.calls.append)
        self.put(NODE)
        self.start()

    def _tell_taken_ports(self) -> Collection[TakenPorts]:
        self.asked_for_ports += 1
        if isinstance(self.taken_ports, OSError):
            raise self.taken_ports
        return self.taken_ports

    # --- hansa ---

    def start(self, config: Config | None = None) -> None:
        """A fresh process: nothing is remembered but what HNS, the API server and the journal hold."""
        self.config = config or self.config
        self.pipeline = Pipeline(self.config, NODE_ADDRESSES)
        self.pipeline.apply([*(Upsert(item) for item in self.objects.values()), *synced()])
        self.client = HnsClient(through(self.guard))
        self.dataplane = WindowsDataplane(
            self.client,
            self.config,
            mac_of=lambda address: MAC if address in NODE_ADDRESSES else None,
            rng=random.Random(7),
            clock=self.emulator.clock.now,
            taken_ports=self._tell_taken_ports,
        )
        self.rules.clear()
        self.guard.new_process()

    def sync(self, *, audit: bool = False, full: bool = False) -> SyncReport:
        message = self.pipeline.take(full=full)
        assert message is not None
        report = self.hand_over(message, now=self.now, audit=audit)
        assert not self.guard.breaches, "\n".join(self.guard.breaches)
        return report

    def hand_over(self, message: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        """What an engine does with a message of the pipeline, under guard."""
        self.message = message
        if message.complete:
            self.rules.clear()
        for key, rule in message.rules.items():
            if rule is None:
                self.rules.pop(key, None)
            else:
                self.rules[key] = rule
        self.guard.begin_pass()
        report = self.dataplane.sync(message, now=now, audit=audit)
        self.guard.end_pass(report)
        return report

    def renew(self, *owners: ServicePortName, alone: bool = False) -> None:
        """Have the load balancers of these service ports made anew by the next sync."""
        names = {str(owner) for owner in owners}
        wanted = self.dataplane.situation.wanted.balancers
        self.guard.renewing.update(key for key, one in wanted.items() if names.intersection(one.owners))
        self.dataplane.renew(owners, alone=alone)

    def audit(self) -> SyncReport:
        return self.sync(audit=True)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        advance(self.emulator, seconds)

    def period(self) -> SyncReport:
        """The next check of the host."""
        self.wait(PERIOD_S)
        return self.audit()

    def settle(self, passes: int = 30) -> SyncReport:
        """Checks, with time for every retry in between, until one finds everything in order and writes nothing."""
        for _ in range(passes):
            self.forget()
            report = self.audit()
            if report.ok and not self.writes and report.retry_at is None:
                self.forget()
                return report
            self.wait(301.0)
        raise AssertionError(f"never quiet: {report}")

    # --- the API server ---

    def say(self, *changes: Change) -> None:
        for change in changes:
            if isinstance(change, Upsert):
                self.objects[change.key] = change.object
            elif isinstance(change, Delete) and change.key.kind is not Kind.NODE:
                self.objects.pop(change.key, None)
        if hasattr(self, "pipeline"):
            self.pipeline.apply(changes)

    def put(self, *objects: ApiObject) -> None:
        self.say(*(Upsert(item) for item in objects))

    def delete(self, *objects: ApiObject) -> None:
        self.say(*(Delete(item.object_key) for item in objects))

    def edit(self, item: Service, **fields: object) -> Service:
        edited = replace(item, **fields)  # type: ignore[arg-type]
        self.put(edited)
        return edited

    # --- what has gone over to HNS ---

    def forget(self) -> None:
        self.calls.clear()

    @property
    def writes(self) -> list[Call]:
        return [call for call in self.calls if call.verb in WRITES]

    def count(self, verb: HnsVerb, kind: HnsKind | None = None) -> int:
        return sum(call.verb is verb and kind in (None, call.kind) for call in self.calls)

    def written(self) -> list[str]:
        """`create 10.96.0.10:80/tcp`, `delete endpoint 10.1.2.21`, ... in order."""
        return [f"{call.verb.name.lower()} {_what(call)}" for call in self.writes if call.verb]

    # --- what HNS holds ---

    def balancers(self) -> dict[str, HnsLoadBalancer]:
        return {name_of(each): each for each in self.emulator.load_balancers()}

    def served(self) -> dict[str, list[str]]:
        """By frontend: the addresses behind it, sorted. A GUID stands for an endpoint that is not there."""
        endpoints = {each.guid: str(each.addresses[0]) for each in self.emulator.endpoints() if each.addresses}
        return {
            name: sorted(endpoints.get(guid, guid) for guid in each.endpoints)
            for name, each in sorted(self.balancers().items())
        }

    def backends(self, name: str) -> list[str]:
        return self.served()[name]

    def remotes(self) -> list[str]:
        """Addresses of all remote endpoints, in text order; twins twice."""
        return sorted(str(each.addresses[0]) for each in self.emulator.endpoints() if each.remote)

    def locals(self) -> list[str]:
        return sorted(str(each.addresses[0]) for each in self.emulator.endpoints() if not each.remote)

    def endpoints_at(self, address: str) -> list[HnsEndpoint]:
        wanted = parse_address(address)
        return [each for each in self.emulator.endpoints() if wanted in each.addresses]

    def endpoint_at(self, address: str) -> HnsEndpoint:
        (found,) = self.endpoints_at(address)
        return found

    # --- what others do to HNS ---

    def refuse(self, code: int, verb: HnsVerb | None = None, kind: HnsKind | None = None, **when: object) -> None:
        self.break_call(Refuse(HResult(code)), verb, kind, **when)

    def break_call(
        self, effect: Effect, verb: HnsVerb | None = None, kind: HnsKind | None = None, **when: object
    ) -> None:
        self.emulator.faults.add(Fault(effect=effect, verb=verb, kind=kind, **when))  # type: ignore[arg-type]

    def remove_balancer(self, name: str) -> None:
        self.emulator.remove(HnsKind.LOAD_BALANCER, self.balancers()[name].guid)

    def alter_balancer(self, name: str, **fields: object) -> None:
        self.emulator.alter(HnsKind.LOAD_BALANCER, self.balancers()[name].guid, **fields)

    def add_pod(self, *addresses: str, force: bool = False) -> None:
        for address in addresses:
            self.emulator.add_pod(address, force=force)

    def remove_pod(self, address: str) -> None:
        for each in self.endpoints_at(address):
            if not each.remote:
                self.emulator.remove(HnsKind.ENDPOINT, each.guid)

    def add_balancer(self, vip: str | None, *, foreign: bool = True, **fields: object) -> Guid:
        """One that another program made: 80/TCP on the root endpoint unless told otherwise."""
        root = next(each.guid for each in self.emulator.endpoints() if each.name == "cbr0")
        made = {
            "endpoints": (root,),
            "source_vip": NODE_IP,
            "frontend_vips": () if vip is None else (parse_address(vip),),
            "port_mappings": (PortMapping(protocol=6, internal_port=8080, external_port=80),),
            **fields,
        }
        guid = self.emulator.add(HnsLoadBalancer(**made))  # type: ignore[arg-type]
        if foreign:
            self.guard.protect(guid)
        return guid

    def add_remote(
        self, address: str, *, mac: str, provider: Address | None = None, foreign: bool = False, owner: str = ""
    ) -> Guid:
        """A remote endpoint that somebody else made."""
        ip = parse_address(address)
        made = HnsEndpoint(
            network=self.emulator.networks()[0].guid,
            ip_configurations=(IpConfiguration(ip, 32),),
            mac_address=mac,
            flags=EndpointFlags.REMOTE,
            policies=() if provider is None else (ProviderAddress(provider),),
            owner=owner,
        )
        guid = self.emulator.add(made)
        if foreign:
            self.guard.protect(guid)
        return guid


def _what(call: Call) -> str:
    match call.value:
        case HnsLoadBalancer() as balancer:
            return name_of(balancer)
        case HnsEndpoint() as one:
            return f"endpoint {one.addresses[0]}"
        case _:
            return str(call.guid)


def _ready(node: GuardedNode, objects: tuple[ApiObject, ...], pods: tuple[str, ...]) -> GuardedNode:
    node.add_pod(*pods)
    node.put(*objects)
    return node


def bridge(
    *objects: ApiObject,
    build: Build = WITHOUT_MODIFY,
    layout: Layout = BRIDGE,
    pods: tuple[str, ...] = (LOCAL_1, LOCAL_2),
    **windows: object,
) -> GuardedNode:
    """A node on an l2bridge network with these API objects and pods; nothing is synced yet."""
    settings = config(windows=WindowsConfig(**windows))  # type: ignore[arg-type]
    return _ready(GuardedNode(l2bridge_node(build, layout=layout), settings), objects, pods)


def overlay(
    *objects: ApiObject,
    build: Build = WITHOUT_MODIFY,
    layout: Layout = OVERLAY,
    pods: tuple[str, ...] = (LOCAL_1, LOCAL_2),
    **windows: object,
) -> GuardedNode:
    """The same on an overlay network, with a source VIP unless told otherwise."""
    windows = {"source_vip": (SOURCE_VIP,), **windows}
    settings = config(windows=WindowsConfig(**windows))  # type: ignore[arg-type]
    return _ready(GuardedNode(overlay_node(build, layout=layout), settings), objects, pods)


def many(count: int, *, backends: int = 1, first: int = 0, shift: int = 0) -> Iterator[ApiObject]:
    """ClusterIP Services s0, s1, ... at 10.96.16.0 and on, each with remote backends of its own."""
    vip, pod = parse_address("10.96.16.0"), parse_address("10.1.64.0")
    for number in range(first, first + count):
        yield service(f"s{number}", cluster_ips=(vip + number,))
        addresses = [pod + shift + number * backends + each for each in range(backends)]
        entries = [endpoint(address, node="n2") for address in addresses]
        yield endpoint_slice(f"s{number}-a", entries, service=f"s{number}")


def journal(folder: Path) -> str:
    return str(folder / "journal")
