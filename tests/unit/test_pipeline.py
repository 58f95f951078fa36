"""Stages 2 and 3 driven by changes: what is answered, when, and what it costs."""

from __future__ import annotations

import cProfile
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import changes, clusters

from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import EndpointSlice, Kind, ServiceKey
from hansa.config import Config, DetectLocalMode, NodePortAddresses
from hansa.errors import Fault
from hansa.net import Address, IPFamily, parse_address
from hansa.pipeline import HealthCheck, HealthCheckKey, Pipeline, in_force, merge
from hansa.rules.model import FrontendKey, Rule, RuleChanges
from hansa.testing import (
    L1,
    L2,
    NODE,
    NODE_ADDRESSES,
    R1,
    WEB,
    WEB_KEY,
    config,
    endpoint,
    endpoint_slice,
    node,
    port,
    service,
    service_cidr,
    slice_port,
)

laws = settings(max_examples=50, deadline=None, derandomize=True)
SERVICES_LISTED = Synced(Kind.SERVICE)
SLICES_LISTED = Synced(Kind.ENDPOINT_SLICE)
SLICE = endpoint_slice("web-a", [L1, R1])


def pipeline(*batch: Change, settings: Config | None = None, since: float = 0.0) -> Pipeline:
    made = Pipeline(settings or config(), NODE_ADDRESSES, since=since)
    made.apply(batch)
    return made


def ready(*batch: Change, since: float = 0.0) -> Pipeline:
    """A pipeline whose first message has been taken."""
    made = pipeline(Upsert(NODE), *batch, SERVICES_LISTED, SLICES_LISTED, since=since)
    assert taken(made).complete
    return made


def taken(of: Pipeline, *, full: bool = False) -> RuleChanges:
    message = of.take(full=full)
    assert message is not None
    return message


def shown(message: RuleChanges) -> dict[str, bool]:
    """The frontends of a message; False = gone."""
    return {str(key): rule is not None for key, rule in message.rules.items()}


@pytest.mark.scenario("t187")
@pytest.mark.parametrize("listed", [(), (SERVICES_LISTED,), (SLICES_LISTED,)])
def test_i1_i20_nothing_is_said_before_services_and_slices_are_complete(listed: tuple[Change, ...]) -> None:
    waiting = pipeline(Upsert(WEB), Upsert(SLICE), Upsert(NODE), *listed, Synced(Kind.NODE))
    assert not waiting.ready
    assert not waiting.pending
    assert waiting.take() is None
    assert waiting.take(full=True) is None


def test_i2_node_and_service_cidrs_are_not_waited_for() -> None:
    started = pipeline(Upsert(WEB), Upsert(SLICE), SERVICES_LISTED, SLICES_LISTED)
    assert started.pending
    assert "10.96.0.10:80/tcp" in shown(taken(started))


def test_the_first_message_is_complete_even_if_there_is_nothing() -> None:
    started = pipeline(SERVICES_LISTED, SLICES_LISTED)
    assert started.pending
    assert taken(started) == RuleChanges({}, started.surroundings, complete=True)
    assert not started.pending


def test_a_message_names_the_frontends_that_changed_and_no_others() -> None:
    running = ready(Upsert(WEB), Upsert(SLICE), Upsert(service("api", cluster_ips=["10.96.0.11"])))
    running.apply([Upsert(endpoint_slice("api-a", [R1], service="api"))])
    assert running.pending
    message = taken(running)
    assert shown(message) == {"10.96.0.11:80/tcp": True}
    assert not message.complete


def test_a_deleted_service_is_said_to_be_gone() -> None:
    running = ready(Upsert(service("web")), Upsert(SLICE))
    running.apply([Delete(WEB.object_key)])
    assert shown(taken(running)) == {"10.96.0.10:80/tcp": False}


def test_without_changes_a_message_is_empty_and_full_ones_are_complete() -> None:
    running = ready(Upsert(service("web")), Upsert(SLICE))
    assert taken(running) == RuleChanges({}, running.surroundings)
    assert taken(running, full=True) == taken(running, full=True)
    assert shown(taken(running, full=True)) == {"10.96.0.10:80/tcp": True}


def test_p6_changes_that_no_proxy_can_notice_are_not_pending() -> None:
    running = ready(Upsert(WEB), Upsert(SLICE))
    running.apply([Upsert(service("other", cluster_ips=[], ports=[])), Upsert(SLICE), Upsert(WEB)])
    running.apply([Malformed(WEB.object_key, (Fault("spec", "is odd"),)), Delete(endpoint_slice("no").object_key)])
    assert not running.pending


@pytest.mark.parametrize(
    "change",
    [
        Upsert(node(zone="zb")),
        Upsert(node(addresses=["192.0.2.200"])),
        Upsert(service_cidr()),
    ],
)
def test_b9_when_the_surroundings_change_the_message_is_complete(change: Change) -> None:
    running = ready(Upsert(WEB), Upsert(SLICE))
    running.apply([change])
    message = taken(running)
    assert message.complete
    assert len(message.rules) == 4
    assert message.surroundings == running.surroundings


def test_t12_a_changed_zone_is_computed_into_the_rules() -> None:
    hinted = endpoint_slice(
        "web-a", [endpoint("10.1.1.11", zone_hints=["za"]), endpoint("10.1.3.31", zone_hints=["zb"])]
    )
    running = ready(Upsert(service("web")), Upsert(hinted))
    running.apply([Upsert(node(zone="zb"))])
    (rule,) = taken(running).rules.values()
    assert rule is not None
    assert [str(one) for one in rule.endpoints] == ["10.1.3.31:8080"]


def test_r11_a_service_cidr_is_handed_on_at_once() -> None:
    running = ready(Upsert(service_cidr("one")), Upsert(service_cidr("two")))
    running.apply([Delete(service_cidr("one").object_key)])
    assert not running.pending  # the other object still holds the range
    running.apply([Delete(service_cidr("two").object_key)])
    assert taken(running).surroundings.service_cidrs == ()


@pytest.mark.scenario("t051")
def test_n7_new_addresses_of_the_machine_reach_the_surroundings_without_new_rules() -> None:
    settings = config()
    running = pipeline(Upsert(NODE), Upsert(WEB), Upsert(SLICE), SERVICES_LISTED, SLICES_LISTED, settings=settings)
    first = taken(running)
    new = parse_address("192.0.2.101")
    running.set_host_addresses(NODE_ADDRESSES | {new})
    assert running.pending
    message = taken(running)
    assert new in message.surroundings.node.addresses
    assert message.complete
    assert message.rules == first.rules
    running.set_host_addresses(NODE_ADDRESSES | {new})
    assert not running.pending


def test_views_give_the_reasons_also_for_services_that_are_not_handled() -> None:
    running = ready(Upsert(WEB), Upsert(SLICE))
    (view,) = running.view(WEB_KEY)
    assert [str(one) for one in view.selection.cluster or ()] == ["10.1.1.11:8080", "10.1.2.21:8080"]
    assert running.view(ServiceKey("d", "ghost")) == ()


def checked(name: str = "web", **fields: object) -> Upsert:
    return Upsert(
        service(
            name,
            **{  # type: ignore[arg-type]
                "type": "LoadBalancer",
                "external_policy": "Local",
                "health_check_node_port": 32000,
                "load_balancer_vips": ["203.0.113.80"],
                **fields,
            },
        )
    )


@pytest.mark.scenario("t159")
def test_h6_health_checks_count_addresses_of_ready_local_endpoints_over_all_ports() -> None:
    ports = [port("http"), port("https", 443)]
    numbers = endpoint_slice("web-a", [L1, R1, endpoint("10.1.1.13", node="n1", ready=False)])
    second = endpoint_slice("web-b", [L1], ports=[slice_port("https", 8443)])
    running = ready(checked(ports=ports), Upsert(numbers), Upsert(second))
    key = HealthCheckKey(WEB_KEY, IPFamily.IPV4)
    assert running.health_checks == {key: HealthCheck(32000, 1)}
    before = running.health_checks
    running.apply([Upsert(endpoint_slice("web-b", [L2]))])
    taken(running)
    assert running.health_checks == {key: HealthCheck(32000, 2)}
    assert before == {key: HealthCheck(32000, 1)}
    running.apply([checked(external_policy="Cluster")])
    taken(running)
    assert running.health_checks == {}


def test_f88_counts_grow_only_where_the_own_frontends_are_in_place_and_fall_at_once() -> None:
    key, other = HealthCheckKey(WEB_KEY, IPFamily.IPV4), HealthCheckKey(WEB_KEY, IPFamily.IPV6)
    running = ready(checked(), Upsert(endpoint_slice("web-a", [L1, L2])))
    taken_now = running.health_checks
    assert taken_now[key].frontends == {"203.0.113.80:80/tcp"}
    one = {key: HealthCheck(32000, 1)}
    for before, lacking, count in (
        ({}, {"203.0.113.80:80/tcp"}, 0),
        (one, {"203.0.113.80:80/tcp"}, 1),
        ({key: HealthCheck(31999, 1)}, {"203.0.113.80:80/tcp"}, 0),
        (one, {"203.0.113.81:80/tcp", "endpoint 10.1.1.11"}, 2),
        ({key: HealthCheck(32000, 3)}, {"203.0.113.80:80/tcp"}, 2),
    ):
        assert in_force(before, taken_now, pending=lacking) == {key: HealthCheck(32000, count)}
    six = {other: HealthCheck(32000, 2)}
    assert in_force({}, six, pending=set(), failed={IPFamily.IPV4}) == six
    assert in_force({}, six, pending=set(), failed={IPFamily.IPV6}) == {other: HealthCheck(32000, 0)}


def triggered(moment: float | None, *endpoints: object) -> Upsert:
    return Upsert(endpoint_slice("web-a", endpoints, trigger_time=moment))  # type: ignore[arg-type]


def test_o2_o4_each_slice_change_that_matters_is_one_sample() -> None:
    running = ready(Upsert(WEB), since=100.0)
    running.apply([triggered(101.0, L1), triggered(102.0, L1, R1), triggered(103.0, L1, R1)])
    assert running.take_trigger_times() == ((IPFamily.IPV4, 101.0), (IPFamily.IPV4, 102.0))
    assert running.take_trigger_times() == ()


@pytest.mark.scenario("t190")
def test_o3_o5_no_sample_for_old_triggers_absent_ones_and_deleted_slices() -> None:
    running = ready(Upsert(WEB), since=100.0)
    running.apply([triggered(100.0, L1)])
    running.apply([triggered(None, R1)])
    assert running.take_trigger_times() == ()
    running.apply([triggered(101.0, L1), Delete(SLICE.object_key)])
    assert running.take_trigger_times() == ()


class Broken(frozenset[str]):
    """Hints that a bug of ours cannot stand."""

    def __and__(self, other: object) -> frozenset[str]:
        raise ZeroDivisionError("a bug")

    __contains__ = __and__  # type: ignore[assignment]
    isdisjoint = __and__  # type: ignore[assignment]


def broken_slice() -> EndpointSlice:
    hinted = endpoint("10.1.1.12", node="n1", zone_hints=["za"])
    object.__setattr__(hinted, "zone_hints", Broken({"za"}))
    return endpoint_slice("web-a", [hinted])


def test_i19_a_service_that_meets_a_bug_keeps_its_rules_and_costs_nobody_else() -> None:
    running = ready(Upsert(service("web")), Upsert(SLICE))
    api = Upsert(service("api", cluster_ips=["10.96.0.11"]))
    running.apply([Upsert(broken_slice()), api])
    assert shown(taken(running)) == {"10.96.0.11:80/tcp": True}
    assert isinstance(running.take_failures()[WEB_KEY], ZeroDivisionError)
    assert running.take_failures() == {}
    assert shown(taken(running, full=True))["10.96.0.10:80/tcp"]  # still the rules it had
    assert WEB_KEY in running.take_failures()
    running.apply([Upsert(endpoint_slice("web-a", [R1]))])
    assert shown(taken(running)) == {"10.96.0.10:80/tcp": True}
    assert running.take_failures() == {}
    taken(running, full=True)
    assert running.take_failures() == {}


def accumulated(messages: Iterable[RuleChanges]) -> dict[FrontendKey, Rule]:
    """What a dataplane knows that has taken these messages in."""
    known: dict[FrontendKey, Rule] = {}
    for message in messages:
        if message.complete:
            known.clear()
        for key, rule in message.rules.items():
            if rule is None:
                known.pop(key, None)
            else:
                known[key] = rule
    return known


ADDRESS_SETS: st.SearchStrategy[frozenset[Address]] = st.frozensets(st.sampled_from(sorted(NODE_ADDRESSES, key=str)))


@laws
@given(clusters(), st.lists(st.tuples(st.lists(changes(), max_size=4), ADDRESS_SETS), max_size=5), st.data())
def test_messages_add_up_to_the_whole_and_merging_them_loses_nothing(
    cluster: object, history: list[tuple[list[Change], frozenset[Address]]], data: st.DataObject
) -> None:
    running = Pipeline(config(), NODE_ADDRESSES)
    messages: list[RuleChanges] = []
    running.apply(cluster.changes)  # type: ignore[attr-defined]
    messages.append(taken(running))
    for batch, addresses in history:
        running.set_host_addresses(addresses)
        running.apply(batch)
        messages.append(taken(running, full=data.draw(st.booleans())))
    whole = taken(running, full=True)
    assert accumulated(messages) == whole.rules
    known: dict[FrontendKey, Rule] = {}
    for message in messages:
        message.apply_to(known)
    assert known == whole.rules
    assert not running.take_failures()
    split = data.draw(st.integers(0, len(messages) - 1))
    merged = messages[split]
    for later in messages[split + 1 :]:
        merged = merge(merged, later)
    assert accumulated([*messages[:split], merged]) == whole.rules
    assert merged.surroundings == whole.surroundings
    assert merged.conflicts == whole.conflicts
    assert None not in merged.rules.values() or not merged.complete


@laws
@given(clusters(), st.lists(changes(), max_size=8), ADDRESS_SETS, st.data())
def test_working_ahead_changes_no_message(
    cluster: object, later: list[Change], addresses: frozenset[Address], data: st.DataObject
) -> None:
    """Whatever was built before the lists were complete: the first message is that of a pipeline that waited."""
    listed = [one for one in (*cluster.changes, *later) if not isinstance(one, Synced)]  # type: ignore[attr-defined]
    listed = data.draw(st.permutations([*listed, Upsert(NODE)]))
    ahead, waiting = Pipeline(config(), frozenset()), Pipeline(config(), frozenset())
    for one in listed:
        ahead.apply([one])
        waiting.apply([one])
        if data.draw(st.booleans()):
            ahead.prepare(data.draw(st.integers(1, 3)))
    for each in (ahead, waiting):
        each.set_host_addresses(addresses)
        assert each.take() is None
        each.apply([SERVICES_LISTED, SLICES_LISTED])
        assert each.pending
    assert taken(ahead) == taken(waiting)
    assert ahead.health_checks == waiting.health_checks
    assert ahead.without_local_endpoints == waiting.without_local_endpoints
    assert not ahead.pending


def test_what_was_built_ahead_is_not_built_again() -> None:
    listed = pipeline(Upsert(NODE), Upsert(WEB), Upsert(SLICE), Upsert(service("late", cluster_ips=["10.96.0.99"])))
    assert not listed.prepare(10)
    assert listed.rules.rules_of(WEB.key)
    listed.apply([Upsert(endpoint_slice("late-a", [L1], service="late")), SERVICES_LISTED, SLICES_LISTED])
    watched = cProfile.Profile()
    message = watched.runcall(taken, listed)
    assert "10.96.0.99:80/tcp" in shown(message)
    built = [entry.callcount for entry in watched.getstats() if getattr(entry.code, "co_name", "") == "build_view"]
    assert built == [1]
    assert not listed.prepare(10), "there is nothing to be ahead of any more"


def test_nothing_is_built_ahead_before_the_node_is_known() -> None:
    listed = pipeline(Upsert(WEB), Upsert(SLICE))
    assert not listed.prepare(10)
    assert len(listed.rules) == 0
    listed.apply([Upsert(NODE)])
    listed.prepare(10)
    assert len(listed.rules) > 0


def test_another_zone_voids_what_was_built_ahead() -> None:
    listed = pipeline(Upsert(NODE), Upsert(WEB), Upsert(SLICE))
    listed.prepare(10)
    listed.apply([Upsert(replace(NODE, zone="elsewhere")), SERVICES_LISTED, SLICES_LISTED])
    assert not listed.prepare(10)
    waited = pipeline(
        Upsert(replace(NODE, zone="elsewhere")), Upsert(WEB), Upsert(SLICE), SERVICES_LISTED, SLICES_LISTED
    )
    assert taken(listed) == taken(waited)


def large(count: int) -> Pipeline:
    """`count` Services of ten endpoints each."""
    made = Pipeline(config(), NODE_ADDRESSES)
    for number in range(count):
        address = f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}"
        made.apply([Upsert(service(f"s{number}", cluster_ips=[address])), Upsert(large_slice(number))])
    made.apply([SERVICES_LISTED, SLICES_LISTED])
    taken(made)
    return made


def large_slice(number: int, count: int = 10) -> EndpointSlice:
    endpoints = [endpoint(f"10.1.{number % 256}.{last}", node="n1") for last in range(1, count + 1)]
    return endpoint_slice(f"s{number}-a", endpoints, service=f"s{number}")


def test_the_cost_of_a_change_does_not_grow_with_the_cluster() -> None:
    """Counted in function calls, so that a busy machine does not matter; 1 % is for hash tables that differ."""
    small, big = calls_of_one_change(large(10)), calls_of_one_change(large(1000))
    assert big <= small * 1.01


def calls_of_one_change(running: Pipeline) -> int:
    profile = cProfile.Profile()
    profile.enable()
    running.apply([Upsert(large_slice(5, count=9))])
    message = running.take()
    profile.disable()
    assert message is not None
    assert len(message.rules) == 1
    return sum(entry.callcount for entry in profile.getstats())


if __name__ == "__main__":
    started = time.perf_counter()
    running = large(10_000)
    print(f"10,000 Services: {time.perf_counter() - started:.2f} s")
    for repeat in range(5):
        started = time.perf_counter()
        running.apply([Upsert(large_slice(5, count=9 - repeat))])
        running.take()
        print(f"one slice change: {(time.perf_counter() - started) * 1e3:.3f} ms")


@pytest.mark.parametrize(
    "other",
    [
        {"masquerade_all": True},
        {"allow_external_ips": False},
        {"node_port_addresses": NodePortAddresses(primary=False)},
        {"cluster_cidrs": ()},
        {"bind_addresses": (parse_address("192.0.2.77"),)},
        {"detect_local_mode": DetectLocalMode.NODE_CIDR},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_configuration_makes_what_a_new_start_with_it_would(other: dict[str, object]) -> None:
    web = replace(WEB, external_ips=(parse_address("198.51.100.7"),))
    batch = (Upsert(NODE), Upsert(web), Upsert(SLICE), SERVICES_LISTED, SLICES_LISTED)
    before = config()
    after = replace(before, **other)  # type: ignore[arg-type]
    running = pipeline(*batch, settings=before)
    taken(running)
    running.reconfigure(after)
    assert running.pending
    message, fresh = taken(running, full=True), taken(pipeline(*batch, settings=after))
    assert {key: rule for key, rule in message.rules.items() if rule is not None} == dict(fresh.rules)
    assert message.surroundings == fresh.surroundings
    old = taken(pipeline(*batch, settings=before))
    assert (dict(old.rules), old.surroundings) != (dict(fresh.rules), fresh.surroundings), "it makes a difference"
    running.apply([Upsert(replace(web, external_ips=()))])
    assert running.pending or not after.allow_external_ips, "changes are judged by the new one"
