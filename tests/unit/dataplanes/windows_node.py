"""A Windows node for tests: an emulated HNS, the dataplane over it, and short ways to say what the rules are."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tests.hns_double.route import through

from hansa.config import Config, WindowsConfig
from hansa.dataplanes.base import SyncReport
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.client import HnsClient
from hansa.hns.emulator import Build, Call, Emulator, ManualClock
from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer
from hansa.net import Address, IPFamily, Protocol, family_of, parse_address, parse_prefix
from hansa.rules.model import (
    Because,
    Drop,
    Forward,
    FrontendKey,
    FrontendKind,
    Reject,
    Rule,
    RuleChanges,
    Surroundings,
)
from hansa.services.model import Endpoint, NodeFacts, ServicePortName

NODE_NAME = "n1"
NODE_IP = parse_address("192.0.2.21")
NODE_IP_V6 = parse_address("2001:db8:0:1::21")
HOST_MAC = "00-15-5D-20-21-01"
SERVICE_CIDR = parse_prefix("10.96.0.0/16")
NODE = NodeFacts(
    NODE_NAME,
    node_ips={IPFamily.IPV4: NODE_IP, IPFamily.IPV6: NODE_IP_V6},
    addresses=frozenset({NODE_IP, NODE_IP_V6}),
)
SURROUNDINGS = Surroundings(NODE, service_cidrs=(SERVICE_CIDR,))
WRITES = frozenset({HnsVerb.CREATE, HnsVerb.MODIFY, HnsVerb.DELETE})


def split(text: str) -> tuple[Address, int]:
    host, _, port = text.rpartition(":")
    return parse_address(host.strip("[]")), int(port)


def endpoint(text: str, *, local: bool = False) -> Endpoint:
    address, port = split(text)
    return Endpoint(address, port, local=local)


def forward(*endpoints: Endpoint, because: Because = Because.CLUSTER_POLICY) -> Forward | Reject | Drop:
    """Rejects without endpoints, as stage 3 does; drops where only local ones would have counted."""
    if endpoints:
        return Forward(tuple(sorted(endpoints, key=str)), masquerade=True, because=because)
    if because is Because.LOCAL_POLICY:
        return Drop(Because.NO_LOCAL_ENDPOINTS)
    return Reject(Because.NO_ENDPOINTS)


def remote(*texts: str) -> tuple[Endpoint, ...]:
    return tuple(endpoint(text) for text in texts)


def local(*texts: str) -> tuple[Endpoint, ...]:
    return tuple(endpoint(text, local=True) for text in texts)


def make_rule(
    frontend: str,
    endpoints: Iterable[Endpoint],
    kind: FrontendKind = FrontendKind.CLUSTER_IP,
    *,
    family: IPFamily = IPFamily.IPV4,
    protocol: Protocol = Protocol.TCP,
    policy_local: bool = False,
    owner: str = "d/web",
    **fields: object,
) -> Rule:
    """`frontend` is `address:port`, or `node:port` for a node port of `family`.

    policy_local: the traffic policy of this frontend is Local: endpoints on this node only, and for external frontends
    pods may use all of them, as stage 3 says.
    """
    chosen = tuple(endpoints)
    if frontend.startswith("node:"):
        address, port, kind = None, int(frontend[5:]), FrontendKind.NODE_PORT
    else:
        address, port = split(frontend)
        family = family_of(address)
    namespace, _, service = owner.partition("/")
    everybody = forward(*chosen)
    limited = forward(*(each for each in chosen if each.local), because=Because.LOCAL_POLICY)
    short = forward(*chosen, because=Because.SHORT_CIRCUIT)
    if kind is FrontendKind.CLUSTER_IP:
        pod = node = outside = limited if policy_local else everybody
    else:
        outside = limited if policy_local else everybody
        pod = node = short if policy_local else everybody
    rule = Rule(
        kind,
        FrontendKey(family, address, protocol, port),
        ServicePortName(namespace, service, "http", protocol),
        pod,
        node,
        outside,
        local=policy_local,
    )
    return replace(rule, **fields)  # type: ignore[arg-type]


def make_config(**windows: object) -> Config:
    return Config(NODE_NAME, windows=WindowsConfig(**windows))  # type: ignore[arg-type]


@dataclass
class WindowsNode:
    """The dataplane over an emulator, and the time that only `wait` moves. `calls` has every call since `forget`."""

    emulator: Emulator
    config: Config = field(default_factory=make_config)
    surroundings: Surroundings = SURROUNDINGS
    now: float = 1000.0
    rules: dict[FrontendKey, Rule] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    told: dict[FrontendKey, Rule] | None = None

    def __post_init__(self) -> None:
        self.emulator.watch(self.calls.append)
        self.start()

    def start(self) -> None:
        """A fresh process: nothing is remembered but what HNS and the journal hold."""
        self.client = HnsClient(through(self.emulator))
        self.told = None
        self.dataplane = WindowsDataplane(
            self.client,
            self.config,
            mac_of=lambda address: HOST_MAC if address in (NODE_IP, NODE_IP_V6) else None,
            rng=random.Random(7),
            clock=self.emulator.clock.now,
        )

    def want(self, *rules: Rule) -> None:
        self.rules = {rule.key: rule for rule in rules}

    def put(self, *rules: Rule) -> None:
        self.rules.update({rule.key: rule for rule in rules})

    def drop(self, *rules: Rule) -> None:
        for rule in rules:
            self.rules.pop(rule.key, None)

    def changes(self) -> RuleChanges:
        """The difference to what the dataplane was told last, as stage 3 sends it; everything the first time."""
        if self.told is None:
            changes = RuleChanges(dict(self.rules), self.surroundings, complete=True)
        else:
            touched = {key: rule for key, rule in self.rules.items() if self.told.get(key) != rule}
            gone: dict[FrontendKey, Rule | None] = {key: None for key in self.told if key not in self.rules}
            changes = RuleChanges({**touched, **gone}, self.surroundings)
        self.told = dict(self.rules)
        return changes

    def sync(self, *, audit: bool = False) -> SyncReport:
        return self.dataplane.sync(self.changes(), now=self.now, audit=audit)

    def audit(self) -> SyncReport:
        return self.sync(audit=True)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        advance(self.emulator, seconds)

    def settle(self, passes: int = 30) -> SyncReport:
        """Audits, with time for every retry in between, until one finds everything in order and writes nothing."""
        for _ in range(passes):
            self.forget()
            report = self.audit()
            if report.ok and not self.writes() and report.retry_at is None:
                return report
            self.wait(301.0)
        raise AssertionError(f"never quiet: {report}")

    def forget(self) -> None:
        self.calls.clear()

    def writes(self) -> list[Call]:
        return [call for call in self.calls if call.verb in WRITES]

    def count(self, verb: HnsVerb, kind: HnsKind | None = None) -> int:
        return sum(call.verb is verb and kind in (None, call.kind) for call in self.calls)

    def balancers(self) -> dict[str, HnsLoadBalancer]:
        """By `vip:port/protocol`, `node:port/protocol` for node ports of IPv4, `node6:` for those of IPv6."""
        return {name_of(balancer): balancer for balancer in self.emulator.load_balancers()}

    def backends(self, name: str) -> list[str]:
        """Addresses behind the load balancer of that name, sorted."""
        endpoints = {each.guid: each for each in self.emulator.endpoints()}
        return sorted(str(endpoints[guid].addresses[0]) for guid in self.balancers()[name].endpoints)

    def endpoint_at(self, address: str) -> HnsEndpoint | None:
        wanted = parse_address(address)
        found = [each for each in self.emulator.endpoints() if wanted in each.addresses]
        assert len(found) < 2, found
        return found[0] if found else None


def advance(emulator: Emulator, seconds: float) -> None:
    assert isinstance(emulator.clock, ManualClock)
    emulator.clock.advance(seconds)


def name_of(balancer: HnsLoadBalancer) -> str:
    if not balancer.port_mappings:
        return f"partial {balancer.guid}"
    mapping = balancer.port_mappings[0]
    node = "node" if balancer.family is IPFamily.IPV4 else "node6"
    host = str(balancer.frontend_vips[0]) if balancer.frontend_vips else node
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{mapping.external_port}/{Protocol(mapping.protocol)}"


def plain(build: Build, **switches: object) -> Build:
    """The build with some switches, and with ports for as many load balancers as a test likes."""
    return replace(build, **{"lb_block_ports": 0, **switches})  # type: ignore[arg-type]
