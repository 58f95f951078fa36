"""Everything that the rules ask of this host, indexed so that one touched rule costs the same at any cluster size.

`Wanted` is a store without I/O: rules in, desired objects out. A frontend (address, protocol, port) has at most one
desired load balancer, whoever asks for it (windows-proxy H.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Set
from typing import TypeVar

from hansa.config import Config
from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.diff import diff
from hansa.dataplanes.windows.objects import (
    DesiredEndpoint,
    DesiredLoadBalancer,
    HostFacts,
    LbRole,
    Touched,
)
from hansa.dataplanes.windows.translate import (
    RenderedRule,
    general_shortfalls,
    merged,
    remote_endpoint,
    render_rule,
    service_vip_endpoint,
    source_vip_endpoints,
)
from hansa.net import Address, Protocol
from hansa.rules.model import FrontendKey, FrontendKind, Rule, RuleChanges

K = TypeVar("K", bound=Hashable)
NOTHING = RenderedRule()
NO_USERS: Set[FrontendKey] = frozenset()


class Wanted:
    """Desired objects of all rules. Without `facts` (no HNS network yet) rules are kept and nothing is desired."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.facts: HostFacts | None = None
        self.rules: dict[FrontendKey, Rule] = {}
        self.balancers: dict[FrontendKey, DesiredLoadBalancer] = {}
        self._rendered: dict[FrontendKey, RenderedRule] = {}
        self._health: dict[FrontendKey, dict[FrontendKey, DesiredLoadBalancer]] = {}  # shared: who asks -> what for
        self._users: dict[Address, set[FrontendKey]] = {}
        self._local_users: Counter[Address] = Counter()
        self._cluster_ips: Counter[Address] = Counter()
        self.node_ports: Counter[FrontendKey] = Counter()  # health check node ports, too
        self._shortfalls: Counter[Shortfall] = Counter()
        self._shortfall_list: tuple[Shortfall, ...] | None = None
        self._source_vips: dict[Address, DesiredEndpoint] = {}

    # --- taking in ---

    def take(self, changes: RuleChanges) -> Touched:
        """Take changed rules in; returns what is to be compared with the host."""
        touched = Touched()
        for frontend, rule in self._differing(changes):
            self._put_rule(frontend, rule, touched)
        return touched

    def _differing(self, changes: RuleChanges) -> Iterable[tuple[FrontendKey, Rule | None]]:
        if changes.complete:
            given = {frontend: rule for frontend, rule in changes.rules.items() if rule is not None}
            return [(frontend, given.get(frontend)) for frontend in diff(given, self.rules).touched]
        return [(frontend, rule) for frontend, rule in changes.rules.items() if self.rules.get(frontend) != rule]

    def use(self, facts: HostFacts) -> Touched:
        """Render everything anew if the facts about the host have changed."""
        touched = Touched()
        if facts == self.facts:
            return touched
        self.facts = facts
        self._shortfall_list = None
        vips = {endpoint.address: endpoint for endpoint in source_vip_endpoints(facts, self._config)}
        touched.addresses.update(diff(vips, self._source_vips).touched)
        self._source_vips = vips
        for frontend, rule in self.rules.items():
            self._put_rendered(frontend, render_rule(rule, facts, self._config), touched)
        if facts.overlay:  # providers and MACs of any endpoint may have changed
            touched.addresses.update(self._users, self._cluster_ips)
        return touched

    def _put_rule(self, frontend: FrontendKey, rule: Rule | None, touched: Touched) -> None:
        for known, change in ((self.rules.get(frontend), -1), (rule, 1)):
            if known is not None and known.kind is FrontendKind.CLUSTER_IP and known.key.address is not None:
                self._count(self._cluster_ips, known.key.address, change)
                touched.addresses.add(known.key.address)
            if known is not None and (known.kind is FrontendKind.NODE_PORT or known.health_check_node_port):
                for port in _node_ports(known):
                    self._count(self.node_ports, port, change)
        if rule is None:
            self.rules.pop(frontend, None)
        else:
            self.rules[frontend] = rule
        if self.facts is not None:
            rendered = NOTHING if rule is None else render_rule(rule, self.facts, self._config)
            self._put_rendered(frontend, rendered, touched)

    def _put_rendered(self, frontend: FrontendKey, new: RenderedRule, touched: Touched) -> None:
        old = self._rendered.get(frontend, NOTHING)
        if new == old:
            return
        if new == NOTHING:
            del self._rendered[frontend]
        else:
            self._rendered[frontend] = new
        if new.shortfalls != old.shortfalls:
            self._shortfall_list = None
            self._shortfalls.subtract(old.shortfalls)
            self._shortfalls.update(new.shortfalls)
            for shortfall in old.shortfalls:
                if self._shortfalls[shortfall] <= 0:
                    del self._shortfalls[shortfall]
        at = {balancer.key.frontend for balancer in (*old.load_balancers, *new.load_balancers)}
        for balancer in old.load_balancers:
            if balancer.key.role is LbRole.HEALTH:
                self._health[balancer.key.frontend].pop(frontend, None)
        for balancer in new.load_balancers:
            if balancer.key.role is LbRole.HEALTH:
                self._health.setdefault(balancer.key.frontend, {})[frontend] = balancer
        for place in at:
            self._settle(place, touched)

    def _settle(self, frontend: FrontendKey, touched: Touched) -> None:
        """Decide what is desired at this frontend: the service's own load balancer, else the shared health check."""
        own = self._rendered.get(frontend, NOTHING).load_balancers
        new = next((balancer for balancer in own if balancer.key.frontend == frontend), None)
        if new is None and self._health.get(frontend):
            new = merged(self._health[frontend].values())
        elif not self._health.get(frontend):
            self._health.pop(frontend, None)
        old = self.balancers.pop(frontend, None)
        if new is not None:
            self.balancers[frontend] = new
        if new != old:
            touched.frontends.add(frontend)
            self._recount(frontend, old, new, touched)

    def _recount(
        self,
        frontend: FrontendKey,
        old: DesiredLoadBalancer | None,
        new: DesiredLoadBalancer | None,
        touched: Touched,
    ) -> None:
        before = (frozenset(old.backends), old.local) if old else (frozenset(), frozenset())
        after = (frozenset(new.backends), new.local) if new else (frozenset(), frozenset())
        for address in before[0] - after[0]:
            self._users[address].discard(frontend)
            if not self._users[address]:
                del self._users[address]
        for address in after[0] - before[0]:
            self._users.setdefault(address, set()).add(frontend)
        for address in before[1] - after[1]:
            self._count(self._local_users, address, -1)
        for address in after[1] - before[1]:
            self._count(self._local_users, address, 1)
        touched.addresses.update(before[0] ^ after[0], before[1] ^ after[1])

    @staticmethod
    def _count(counter: Counter[K], key: K, change: int) -> None:
        counter[key] += change
        if counter[key] <= 0:
            del counter[key]

    # --- reading ---

    def users(self, address: Address) -> Set[FrontendKey]:
        """Frontends whose desired load balancer has this backend."""
        return self._users.get(address, NO_USERS)

    def addresses(self) -> set[Address]:
        """Every address for which an HNS endpoint is wanted, or awaited."""
        assert self.facts is not None
        own = {*self._users, *self._source_vips}
        return own | set(self._cluster_ips) if self.facts.overlay else own

    @property
    def locals(self) -> Set[Address]:
        """Backends on this node."""
        return self._local_users.keys()

    def makes_source_vip(self, address: Address) -> bool:
        """Whether hansa is to make the endpoint of this source VIP; else the CNI did, or none is needed."""
        return address in self._source_vips

    def waits_for_local(self, address: Address) -> bool:
        """A backend on this node by node name: only an HNS endpoint that the CNI made will do.

        A stand-in there would keep the CNI from making it (F47). This node's own addresses are the exception (F83).
        """
        if address not in self._local_users:
            return False
        assert self.facts is not None
        return address not in self.facts.node_addresses and address not in self.facts.node_ips.values()

    def endpoint(self, address: Address) -> DesiredEndpoint | None:
        """The endpoint that hansa makes if the network has none with this address; None = none is to be made."""
        facts = self.facts
        assert facts is not None
        if address in self._source_vips:
            return self._source_vips[address]
        if facts.overlay and address in self._cluster_ips:
            return service_vip_endpoint(address, facts)
        if address in self._users and not self.waits_for_local(address):
            return remote_endpoint(address, facts)
        return None

    @property
    def shortfalls(self) -> tuple[Shortfall, ...]:
        """Distinct, sorted by owner; kept until a rule changes what is lost."""
        if self._shortfall_list is None:
            general = [] if self.facts is None else general_shortfalls(self.facts, self._config)
            self._shortfall_list = (*general, *sorted(self._shortfalls, key=_shortfall_order))
        return self._shortfall_list


def _node_ports(rule: Rule) -> Iterator[FrontendKey]:
    """Every port of the node itself that a rule needs."""
    if rule.kind is FrontendKind.NODE_PORT:
        yield rule.key
    if rule.health_check_node_port:
        yield FrontendKey(rule.key.family, None, Protocol.TCP, rule.health_check_node_port)


def _shortfall_order(shortfall: Shortfall) -> tuple[str, str, str, str]:
    return (str(shortfall.owner or ""), shortfall.feature, str(shortfall.frontend or ""), shortfall.text)
