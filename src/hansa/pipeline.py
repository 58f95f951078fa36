"""Pipeline: stages 2 and 3 in their order. Changes of API objects go in, messages for a dataplane come out.

`apply` notes what a batch touches; `take` computes views and rules for that and nothing else, and answers with the
difference to what it answered before. Nothing is ever computed, let alone answered, before Services and EndpointSlices
are complete (I1). No clock, no task, no host: the engine owns one pipeline and calls it, one call at a time.

>>> from hansa.api.change import Synced, Upsert
>>> from hansa.api.objects import Kind
>>> from hansa.testing import L1, WEB, config, endpoint_slice
>>> pipeline = Pipeline(config(), frozenset())
>>> pipeline.apply([Upsert(WEB), Synced(Kind.SERVICE)])
>>> pipeline.take() is None
True
>>> pipeline.apply([Upsert(endpoint_slice("web-a", [L1])), Synced(Kind.ENDPOINT_SLICE)])
>>> message = pipeline.take()
>>> message.complete, [str(key) for key in message.rules]
(True, ['node(IPv4):30080/tcp', '10.96.0.10:80/tcp', '203.0.113.7:80/tcp', '203.0.113.80:80/tcp'])
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hansa.api.change import Change, Delete, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, Node, ObjectKey, Policy, ServiceKey
from hansa.config import Config
from hansa.net import Address, IPFamily, Prefix
from hansa.rules.build import build_rules
from hansa.rules.model import FrontendKey, FrontendKind, Rule, RuleChanges, Surroundings
from hansa.rules.ruleset import RuleSet, frontend_order
from hansa.rules.surroundings import make_surroundings
from hansa.services.model import GivenView, ServicePortView
from hansa.services.node import node_facts
from hansa.services.store import Store, Touched
from hansa.services.view import build_view


class HealthCheckKey(NamedTuple):
    """One HTTP server of section 14: per Service and family, never per port (H2)."""

    service: ServiceKey
    family: IPFamily


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a healthCheckNodePort answers.

    local_count: distinct addresses of ready local endpoints (H6). frontends: where clients come in that the port
    vouches for, as a dataplane's report names them.
    """

    port: int
    local_count: int
    frontends: frozenset[str] = field(default=frozenset(), compare=False)


class TriggerTime(NamedTuple):
    """When the cause of a slice change happened, in seconds since the epoch, and the slice's family."""

    family: IPFamily
    moment: float


class LocalPolicy(NamedTuple):
    """`internal` or `external`: which traffic policy Local leaves service ports of the family without endpoints."""

    traffic_policy: str
    family: IPFamily


class Pipeline:
    """The store, the rule set, and what has been touched since the last message. Used by one thread at a time."""

    def __init__(self, config: Config, host_addresses: frozenset[Address], *, since: float = 0.0) -> None:
        """`since`: when this process started, in seconds since the epoch; older trigger times do not count (O3)."""
        self._config = config
        self._host_addresses = host_addresses
        self._since = since
        self._store = Store(config)
        self._rules = RuleSet()
        self._surroundings: Surroundings | None = None  # None: there has been no message yet
        self._given: dict[ServiceKey, tuple[ServicePortView, ...]] = {}  # of Services that somebody else has judged
        self._touched: set[ServiceKey] = set()
        self._everything = False
        self._built_under: _Conditions | None = None  # None: what rules there are, if any, do not count
        self._ahead: dict[ServiceKey, None] = {}  # Services that may be built before the first message, in this order
        self._addresses_changed = False
        self._health_checks: dict[HealthCheckKey, HealthCheck] = {}
        self._without_local: dict[ServiceKey, Counter[LocalPolicy]] = {}  # only Services that lack some
        self._without_local_sum: Counter[LocalPolicy] = Counter()
        self._trigger_times: dict[ServiceKey, list[TriggerTime]] = {}
        self._failed: set[ServiceKey] = set()
        self._failures: dict[ServiceKey | ObjectKey, Exception] = {}

    def apply(self, batch: Iterable[Change | GivenView]) -> None:
        """Take changes in. A change that meets a bug of ours costs only itself (I19); see `take_failures`."""
        for change in batch:
            if isinstance(change, GivenView):
                self._take_over(change)
                continue
            try:
                touched = self._store.apply(change)
            except Exception as error:
                if isinstance(change, Synced):
                    raise
                self._failures[change.key] = error
                continue
            if touched:
                self._touched.update(touched.services)
                self._everything |= touched.everything
                self._note_trigger_time(change, touched)
                if self._surroundings is None:
                    self._ahead.update(dict.fromkeys(key for key in touched.services if self._store.slices_of(key)))

    def set_host_addresses(self, addresses: frozenset[Address]) -> None:
        """Tell which addresses this machine has now; they decide who serves node ports (N7)."""
        if addresses != self._host_addresses:
            self._host_addresses = addresses
            self._addresses_changed = True

    def reconfigure(self, config: Config) -> None:
        """Make everything anew, from another configuration for the same node and the same selection of objects."""
        self._config = config
        self._store.reconfigure(config)
        self._everything = True
        self._built_under = None

    @property
    def ready(self) -> bool:
        """Whether `take` may answer: Services and EndpointSlices are complete (I1, I2)."""
        return self._store.ready

    @property
    def pending(self) -> bool:
        """Whether a message taken now might say something new."""
        return self.ready and (bool(self._touched) or self._everything or self._addresses_changed)

    def prepare(self, limit: int) -> bool:
        """Work ahead while the first lists come in: views and rules of some Services whose slices are there.

        Nothing is answered by that (I1), and what comes later for such a Service, or another Node, has it built anew.
        At most `limit` are built; returns whether more could be. Without this node's object nothing is, for its zone
        and addresses matter everywhere.
        """
        if self._surroundings is not None or self._store.node is None or not self._ahead:
            return False
        surroundings = self._survey()
        conditions = _conditions(surroundings)
        if self._built_under is not None and self._built_under != conditions:
            self._ahead.clear()  # the first message has to begin anyway
            return False
        self._built_under = conditions
        services = list(itertools.islice(self._ahead, limit))
        for key in services:
            del self._ahead[key]
        self._touched.difference_update(services)
        self._rebuild(services, surroundings)
        return bool(self._ahead)

    def take(self, *, full: bool = False) -> RuleChanges | None:
        """The message that brings a dataplane from the one before to now; None as long as the pipeline is not ready.

        Complete are the first message, every message after a change of the surroundings (a dataplane's objects may
        depend on them everywhere), and one asked for by `full`. If nothing was touched, `rules` is empty. A Service
        whose view or rules meet a bug of ours keeps the rules it has (I19), and is tried again when it changes or
        `full` is asked for.
        """
        if not self.ready:
            return None
        before = self._surroundings
        if before is None or self._everything or self._addresses_changed:
            surroundings = self._survey()
        else:
            surroundings = before
        services = self._touched | self._failed if full or before is None else self._touched
        conditions = _conditions(surroundings)
        if self._built_under != conditions:
            services = self._store.services.keys() | self._given.keys() | self._rules.services
        # From here on a failure is a Service's own, so nothing touched can get lost.
        self._surroundings, self._built_under = surroundings, conditions
        self._ahead.clear()
        self._touched, self._everything, self._addresses_changed = set(), False, False
        changed = self._rebuild(services, surroundings)
        if full or before != surroundings:
            return self._rules.everything(surroundings)
        return self._rules.changes(changed, surroundings)

    def take_trigger_times(self) -> tuple[TriggerTime, ...]:
        """The causes of the slice changes since the last call (O2 to O5)."""
        times = tuple(moment for moments in self._trigger_times.values() for moment in moments)
        self._trigger_times.clear()
        return times

    def take_failures(self) -> Mapping[ServiceKey | ObjectKey, Exception]:
        """The objects and Services that met a bug of ours since the last call; their rules are as they were before."""
        failures, self._failures = self._failures, {}
        return failures

    def view(self, service_key: ServiceKey) -> tuple[ServicePortView, ...]:
        """What this node knows about a Service now, with the reasons; () if it is not handled. Computed afresh."""
        return self._view(service_key, self.surroundings)

    def named(self, addresses: Set[Address]) -> frozenset[Address]:
        """Those of the addresses that an EndpointSlice names, in whatever state. Goes through all of them."""
        slices = self._store.slices.values() if addresses else ()
        return frozenset(each.address for piece in slices for each in piece.endpoints if each.address in addresses)

    @property
    def store(self) -> Store:
        """The API objects; for reading."""
        return self._store

    @property
    def rules(self) -> RuleSet:
        """The rules as of the last message; for reading."""
        return self._rules

    @property
    def surroundings(self) -> Surroundings:
        """As of the last message; before the first, as of now."""
        return self._survey() if self._surroundings is None else self._surroundings

    @property
    def node(self) -> Node | None:
        """The Node object as last seen; None if it never was (Z8)."""
        return self._store.node

    @property
    def health_checks(self) -> Mapping[HealthCheckKey, HealthCheck]:
        """What healthCheckNodePorts answer as of the last message; a copy."""
        return dict(self._health_checks)

    @property
    def without_local_endpoints(self) -> Mapping[LocalPolicy, int]:
        """How many service ports policy Local leaves without endpoints while others have some (R2, R3); a copy."""
        return dict(self._without_local_sum)

    @property
    def services(self) -> Set[ServiceKey]:
        """Every Service that is known, as an object or by its view; a copy."""
        return self._store.services.keys() | self._given.keys()

    def _view(self, key: ServiceKey, surroundings: Surroundings) -> tuple[ServicePortView, ...]:
        given = self._given.get(key)
        return given if given is not None else build_view(self._store, key, surroundings.node, self._config)

    def _take_over(self, view: GivenView) -> None:
        if view.ports:
            self._given[view.service] = view.ports
        else:
            self._given.pop(view.service, None)
        self._touched.add(view.service)

    def _survey(self) -> Surroundings:
        facts = node_facts(self._store.node, self._config, self._host_addresses)
        return make_surroundings(facts, self._config, self._store.service_cidrs)

    def _rebuild(self, services: Iterable[ServiceKey], surroundings: Surroundings) -> set[FrontendKey]:
        """Compute some Services anew; returns the frontends at which another rule is in force now."""
        changed: set[FrontendKey] = set()
        for key in services:
            try:
                view = self._view(key, surroundings)
                rules = build_rules(view, self._config, surroundings)
            except Exception as error:  # noqa: BLE001 - handed on by take_failures
                self._failed.add(key)
                self._failures[key] = error
            else:
                self._failed.discard(key)
                changed |= self._rules.replace(key, rules)
                self._note_health_checks(key, view, rules)
                self._note_without_local(key, view)
        return changed

    def _note_health_checks(
        self, service: ServiceKey, view: tuple[ServicePortView, ...], rules: tuple[Rule, ...]
    ) -> None:
        local: dict[IPFamily, frozenset[Address]] = {}
        for one in view:
            if one.port.health_check_node_port:
                local[one.port.family] = local.get(one.port.family, frozenset()) | one.local_ready
        for family in IPFamily:
            if family not in local:
                self._health_checks.pop(HealthCheckKey(service, family), None)
        for family, addresses in local.items():
            # H1: the number is the Service's, so all its ports have the same.
            port = view[0].port.health_check_node_port
            outside = (rule.key for rule in rules if rule.kind is not FrontendKind.CLUSTER_IP)
            frontends = frozenset(str(key) for key in outside if key.family is family)
            self._health_checks[HealthCheckKey(service, family)] = HealthCheck(port, len(addresses), frontends)

    def _note_without_local(self, service: ServiceKey, view: tuple[ServicePortView, ...]) -> None:
        before = self._without_local.pop(service, None)
        if before is not None:
            self._without_local_sum -= before  # Counter's own minus leaves out what has become 0
        lacking = Counter(policy for one in view for policy in _without_local(one))
        if lacking:
            self._without_local[service] = lacking
            self._without_local_sum += lacking

    def _note_trigger_time(self, change: Change, touched: Touched) -> None:
        """O2 to O5: a slice change that touches something is a sample; a deleted slice voids its Service's samples."""
        match change:
            case Upsert(EndpointSlice() as piece):
                owner, moment = piece.service_key, piece.trigger_time
                if owner not in touched.services or owner is None or piece.family is None:
                    return
                if moment is not None and moment > self._since:
                    self._trigger_times.setdefault(owner, []).append(TriggerTime(piece.family, moment))
            case Delete(ObjectKey(kind=Kind.ENDPOINT_SLICE)):
                for service in touched.services:
                    self._trigger_times.pop(service, None)


class _Conditions(NamedTuple):
    """What views and rules depend on besides objects and configuration; not the machine's other addresses."""

    node_name: str
    zone: str | None
    node_ips: Mapping[IPFamily, Address]
    pod_prefixes: Mapping[IPFamily, Prefix]
    pod_interfaces: tuple[str, str]


def _conditions(surroundings: Surroundings) -> _Conditions:
    node = surroundings.node
    interfaces = (surroundings.pod_interface, surroundings.pod_interface_prefix)
    return _Conditions(node.name, node.zone, node.node_ips, surroundings.pod_prefixes, interfaces)


def _without_local(view: ServicePortView) -> Iterable[LocalPolicy]:
    """R2 and R3, for one service port."""
    port, selection = view.port, view.selection
    if not selection.any_usable or selection.local:
        return
    if port.internal_policy is Policy.LOCAL:
        yield LocalPolicy("internal", port.family)
    if port.external_policy is Policy.LOCAL and port.externally_accessible:
        yield LocalPolicy("external", port.family)


def in_force(
    before: Mapping[HealthCheckKey, HealthCheck],
    taken: Mapping[HealthCheckKey, HealthCheck],
    *,
    pending: Set[str],
    failed: Set[IPFamily] = frozenset(),
) -> Mapping[HealthCheckKey, HealthCheck]:
    """What healthCheckNodePorts answer after a run that reached the host and left `pending` frontends behind.

    failed: families all of whose frontends are pending.

    No count grows before the Service's own frontends are as desired: a balancer must not send traffic to a node that
    could not be programmed for it (H11, F88). Endpoints that are gone are gone all the same.
    """
    found = {}
    for key, check in taken.items():
        if key.family in failed or not check.frontends.isdisjoint(pending):
            old = before.get(key)
            known = old.local_count if old is not None and old.port == check.port else 0
            check = replace(check, local_count=min(check.local_count, known))
        found[key] = check
    return found


def merge(older: RuleChanges, newer: RuleChanges) -> RuleChanges:
    """One message instead of two: who missed `older` and gets this is where `newer` leads."""
    if newer.complete:
        return newer
    rules = {**older.rules, **newer.rules}
    if older.complete:
        rules = {key: rule for key, rule in rules.items() if rule is not None}
    ordered = {key: rules[key] for key in sorted(rules, key=frontend_order)}
    return RuleChanges(ordered, newer.surroundings, complete=older.complete, conflicts=newer.conflicts)
