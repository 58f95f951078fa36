"""RuleSet: replacing, contested frontends, and the messages for dataplanes."""

from __future__ import annotations

import itertools

import pytest

from hansa.api.objects import ServiceKey
from hansa.net import IPFamily, Protocol, parse_address
from hansa.rules.model import Because, Conflict, Forward, FrontendKey, FrontendKind, Reject, Rule
from hansa.rules.ruleset import RuleSet, frontend_order
from hansa.rules.surroundings import make_surroundings
from hansa.services.model import Endpoint, ServicePortName
from hansa.testing import NODE_FACTS, config

WEB, API, OLD = ServiceKey("d", "web"), ServiceKey("d", "api"), ServiceKey("a", "old")
SURROUNDINGS = make_surroundings(NODE_FACTS, config(), ())
REJECT = Reject(Because.NO_ENDPOINTS)


def frontend(address: str | None, port: int = 80, protocol: Protocol = Protocol.TCP) -> FrontendKey:
    ip = None if address is None else parse_address(address)
    return FrontendKey(IPFamily.IPV4 if ip is None or ip.version == 4 else IPFamily.IPV6, ip, protocol, port)


SHARED = frontend("203.0.113.7")


def rule(
    service: ServiceKey,
    key: FrontendKey = SHARED,
    *,
    kind: FrontendKind = FrontendKind.EXTERNAL_IP,
    port: str = "http",
    created: float = 1.0,
) -> Rule:
    owner = ServicePortName(*service, port, key.protocol)
    return Rule(kind, key, owner, REJECT, REJECT, REJECT, created=created)


def changed_to(one: Rule) -> Rule:
    forward = Forward((Endpoint(parse_address("10.1.1.11"), 8080),), False, Because.CLUSTER_POLICY)
    return Rule(one.kind, one.key, one.owner, forward, forward, forward, created=one.created)


def test_replacing_tells_what_changed() -> None:
    rules = RuleSet()
    first, second = rule(WEB), rule(WEB, frontend("203.0.113.8"))
    assert rules.replace(WEB, [first, second]) == {first.key, second.key}
    assert rules.replace(WEB, [second, first]) == frozenset()
    assert rules.replace(WEB, [changed_to(first), second]) == {first.key}
    assert rules.get(first.key) == changed_to(first)
    assert rules.replace(WEB, [second]) == {first.key}
    assert rules.get(first.key) is None
    assert rules.services == {WEB}
    assert rules.rules_of(WEB) == (second,)
    assert rules.replace(WEB, ()) == {second.key}
    assert (len(rules), list(rules), set(rules.services), rules.rules_of(WEB)) == (0, [], set(), ())
    assert rules.replace(WEB, ()) == frozenset()


def test_the_oldest_service_has_a_contested_frontend() -> None:
    """A12, in every order of arrival."""
    claims = {WEB: rule(WEB, created=2.0), API: rule(API, created=3.0), OLD: rule(OLD, created=1.0)}
    for order in itertools.permutations(claims):
        rules = RuleSet()
        for service in order:
            rules.replace(service, [claims[service]])
        assert rules.get(SHARED) == claims[OLD]
        assert rules.conflicts == (
            Conflict(SHARED, claims[OLD].owner, claims[WEB].owner),
            Conflict(SHARED, claims[OLD].owner, claims[API].owner),
        )


@pytest.mark.parametrize(
    "winner, loser",
    [
        (rule(API), rule(WEB)),  # equally old: namespace, then name
        (rule(ServiceKey("c", "zzz")), rule(API)),
        (rule(WEB, created=1.0), rule(API, created=2.0)),
        (rule(WEB, port="a"), rule(WEB, port="b")),  # one Service: its ports by name
        (rule(WEB, port="b", kind=FrontendKind.LOAD_BALANCER_IP), rule(WEB, port="a")),  # the stricter kind first
        (rule(WEB, port="b", kind=FrontendKind.CLUSTER_IP), rule(WEB, port="a")),
        (rule(WEB, created=1.0), rule(API, created=2.0, kind=FrontendKind.LOAD_BALANCER_IP)),  # age before kind
    ],
)
def test_precedence(winner: Rule, loser: Rule) -> None:
    for order in ((winner, loser), (loser, winner)):
        rules = RuleSet()
        if winner.owner.service_key == loser.owner.service_key:
            rules.replace(winner.owner.service_key, order)
        else:
            for one in order:
                rules.replace(one.owner.service_key, [one])
        assert rules.get(SHARED) == winner
        assert rules.conflicts == (Conflict(SHARED, winner.owner, loser.owner),)


def test_the_loser_takes_over_when_the_frontend_is_free() -> None:
    rules = RuleSet()
    winner, loser = rule(OLD, created=1.0), rule(WEB, created=2.0)
    rules.replace(OLD, [winner])
    assert rules.replace(WEB, [loser]) == frozenset()  # for a dataplane nothing has happened
    assert rules.replace(WEB, [changed_to(loser)]) == frozenset()
    assert rules.replace(OLD, []) == {SHARED}
    assert rules.get(SHARED) == changed_to(loser)
    assert rules.conflicts == ()
    assert rules.replace(OLD, [winner]) == {SHARED}
    assert rules.get(SHARED) == winner


def test_a_port_that_claims_a_frontend_twice_is_not_in_conflict() -> None:
    """An external IP that is also the load balancer's: the rule with the source ranges is in force."""
    rules = RuleSet()
    strict, lax = rule(WEB, kind=FrontendKind.LOAD_BALANCER_IP), rule(WEB)
    rules.replace(WEB, [lax, strict])
    assert (rules.get(SHARED), rules.conflicts) == (strict, ())
    assert rules.replace(WEB, [lax]) == {SHARED}


def test_which_cluster_ips_are_in_use() -> None:
    """R5: as long as one port of one Service has the address."""
    rules = RuleSet()
    http, https = (rule(WEB, frontend("10.96.0.10", port), kind=FrontendKind.CLUSTER_IP) for port in (80, 443))
    external = rule(API, frontend("10.96.0.10", 8080))
    rules.replace(WEB, [http, https])
    rules.replace(API, [external])
    rules.replace(WEB, [https])
    assert rules.is_cluster_ip(parse_address("10.96.0.10"))
    assert not rules.is_cluster_ip(parse_address("10.96.0.11"))
    rules.replace(WEB, [])
    assert not rules.is_cluster_ip(parse_address("10.96.0.10"))


IN_ORDER = [
    frontend(None, 30053, Protocol.UDP),
    frontend(None, 30080),
    frontend("10.0.1.2"),
    frontend("10.0.1.10", 80),
    frontend("10.0.1.10", 443),
    frontend("10.0.1.10", 80, Protocol.UDP),
    frontend("fd00::10"),
]


def test_rules_come_in_a_stable_order() -> None:
    """By family, node ports first, addresses as numbers and not as text."""
    in_order = sorted(IN_ORDER, key=frontend_order)
    assert [key.address for key in in_order if key.address] == [key.address for key in IN_ORDER if key.address]
    assert {key.address for key in in_order[:2]} == {None}
    for keys in (IN_ORDER, IN_ORDER[::-1]):
        rules = RuleSet()
        for number, key in enumerate(keys):
            rules.replace(ServiceKey("d", f"s{number}"), [rule(ServiceKey("d", f"s{number}"), key)])
        assert [one.key for one in rules] == in_order
        assert list(rules.everything(SURROUNDINGS).rules) == in_order
        assert list(rules.changes(keys, SURROUNDINGS).rules) == in_order


def test_messages_for_dataplanes() -> None:
    rules = RuleSet()
    one, other = rule(OLD, created=1.0), rule(WEB, created=2.0)
    rules.replace(OLD, [one])
    rules.replace(WEB, [other])
    conflict = (Conflict(SHARED, one.owner, other.owner),)
    whole = rules.everything(SURROUNDINGS)
    assert (whole.rules, whole.complete, whole.conflicts) == ({SHARED: one}, True, conflict)
    assert whole.surroundings is SURROUNDINGS
    gone = frontend("203.0.113.99")
    part = rules.changes({SHARED, gone}, SURROUNDINGS)
    assert (part.rules, part.complete, part.conflicts) == ({SHARED: one, gone: None}, False, conflict)
    rules.replace(OLD, [])
    assert whole.rules == {SHARED: one}  # a message does not change after it was given
