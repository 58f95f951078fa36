"""RuleSet: the rules in force on this node, and who wins a frontend that several service ports claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from hansa.api.objects import ServiceKey
from hansa.net import Address
from hansa.rules.model import Conflict, FrontendKey, FrontendKind, Rule, RuleChanges, Surroundings

# Who wins when one Service claims a frontend twice. Source ranges must not be bypassed by naming the same address as
# external IP (the case S15 of windows-proxy C.5), so the kind that filters comes first; the cluster's own allocation
# comes before what the Service's author may write at will.
_STRICTEST_FIRST = {
    FrontendKind.LOAD_BALANCER_IP: 0,
    FrontendKind.CLUSTER_IP: 1,
    FrontendKind.EXTERNAL_IP: 2,
    FrontendKind.NODE_PORT: 3,
}


def frontend_order(key: FrontendKey) -> tuple[str, bool, int, int, int]:
    """Sort key of frontends: by family, node ports first, then by address as a number, protocol and port."""
    address = key.address
    return (key.family.value, address is not None, 0 if address is None else int(address), key.protocol.value, key.port)


class RuleSet:
    """The one holder of rules; used by one thread. Every method costs what it changes or returns, not what it holds.

    A frontend claimed more than once belongs to the oldest Service (creation time, then namespace and name), within one
    Service to the strictest kind of frontend, then to the first port by name. When that claim goes, the next takes
    over. In which order the claims arrived plays no role. Evidence: service-semantics A12.

    >>> from hansa.services.model import NodeFacts
    >>> len(RuleSet()), dict(RuleSet().everything(Surroundings(NodeFacts("n1"))).rules)
    (0, {})
    """

    def __init__(self) -> None:
        self._rules_of: dict[ServiceKey, tuple[Rule, ...]] = {}
        self._claims: dict[FrontendKey, tuple[Rule, ...]] = {}  # never empty, the winner first
        self._conflicts: dict[FrontendKey, tuple[Conflict, ...]] = {}
        self._cluster_ips: dict[Address, int] = {}  # how many ClusterIP rules are in force at the address

    def replace(self, service_key: ServiceKey, rules: Sequence[Rule]) -> frozenset[FrontendKey]:
        """Let `rules` be all that this Service claims; () for a Service that is gone.

        Returns the frontends at which another rule, or none, is in force now.
        """
        new = tuple(rules)
        old = self._rules_of.get(service_key, ())
        if new == old:
            return frozenset()
        if new:
            self._rules_of[service_key] = new
        else:
            del self._rules_of[service_key]
        own: dict[FrontendKey, list[Rule]] = {rule.key: [] for rule in old}
        for rule in new:
            own.setdefault(rule.key, []).append(rule)
        return frozenset(key for key, claims in own.items() if self._settle(key, service_key, claims))

    def _settle(self, key: FrontendKey, service_key: ServiceKey, own: list[Rule]) -> bool:
        """Let `own` be the claims of one Service to a frontend. Returns whether another rule is in force now."""
        before = self._claims.get(key, ())
        others = [claim for claim in before if claim.owner.service_key != service_key]
        after = tuple(sorted((*others, *own), key=_precedence))
        if after:
            self._claims[key] = after
        else:
            self._claims.pop(key, None)
        conflicts = _conflicts(key, after)
        if conflicts:
            self._conflicts[key] = conflicts
        else:
            self._conflicts.pop(key, None)
        if before[:1] == after[:1]:
            return False
        self._count_cluster_ip(before[:1], -1)
        self._count_cluster_ip(after[:1], 1)
        return True

    def _count_cluster_ip(self, in_force: Iterable[Rule], step: int) -> None:
        for rule in in_force:
            address = rule.key.address
            if rule.kind is FrontendKind.CLUSTER_IP and address is not None:
                count = self._cluster_ips.get(address, 0) + step
                if count:
                    self._cluster_ips[address] = count
                else:
                    del self._cluster_ips[address]

    def get(self, key: FrontendKey) -> Rule | None:
        """The rule in force at a frontend; None = no handled Service has it."""
        claims = self._claims.get(key)
        return claims[0] if claims else None

    def is_cluster_ip(self, address: Address) -> bool:
        """Whether a ClusterIP rule is in force at the address, on any port (R5)."""
        return address in self._cluster_ips

    def rules_of(self, service_key: ServiceKey) -> tuple[Rule, ...]:
        """All that a Service claims, whether in force or not, as last given to `replace`; () if nothing."""
        return self._rules_of.get(service_key, ())

    @property
    def services(self) -> Set[ServiceKey]:
        """The Services that claim a frontend; a live view."""
        return self._rules_of.keys()

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Every claim that another service port's claim keeps out of force, by frontend, then by precedence."""
        return tuple(one for key in sorted(self._conflicts, key=frontend_order) for one in self._conflicts[key])

    def __iter__(self) -> Iterator[Rule]:
        """The rules in force, by frontend."""
        return (self._claims[key][0] for key in sorted(self._claims, key=frontend_order))

    def __len__(self) -> int:
        """How many frontends there are."""
        return len(self._claims)

    def changes(self, frontends: Iterable[FrontendKey], surroundings: Surroundings) -> RuleChanges:
        """What a dataplane has to know after `frontends` changed: the rule now in force at each, None = none."""
        rules = {key: self.get(key) for key in sorted(frontends, key=frontend_order)}
        return RuleChanges(rules, surroundings, conflicts=self.conflicts)

    def everything(self, surroundings: Surroundings) -> RuleChanges:
        """All rules in force: what is not among them is gone."""
        rules = {rule.key: rule for rule in self}
        return RuleChanges(rules, surroundings, complete=True, conflicts=self.conflicts)


def _precedence(rule: Rule) -> tuple[float, str, str, int, str]:
    owner = rule.owner
    return (rule.created, owner.namespace, owner.service, _STRICTEST_FIRST[rule.kind], owner.port)


def _conflicts(key: FrontendKey, claims: tuple[Rule, ...]) -> tuple[Conflict, ...]:
    """A port that claims the frontend twice is not in conflict with itself."""
    if len(claims) < 2:
        return ()
    winner = claims[0].owner
    losers = dict.fromkeys(claim.owner for claim in claims[1:] if claim.owner != winner)
    return tuple(Conflict(key, winner, loser) for loser in losers)
