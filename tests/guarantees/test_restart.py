"""A restart of hansa on a full node: nothing is written, and every traffic rule is there after each single call."""

from __future__ import annotations

from tests.guarantees.node import WITH_MODIFY, bridge, many, plain

from hansa.hns.emulator import WS2022
from hansa.testing import L1, endpoint_slice, service

SERVICES = 2000


def test_restart_with_2000_unchanged_services_writes_nothing_and_no_rule_is_away_for_a_moment() -> None:
    """F35 at full size. The build has no port blocks, as with DSR: an HNS has room for some 256 others only."""
    node = bridge(*many(SERVICES), build=WITH_MODIFY, call_budget=10**9, pass_budget_s=1e9)
    assert node.sync().ok
    before = node.emulator.load_balancers(), node.emulator.endpoints()
    assert len(before[0]) == SERVICES
    absent: list[int] = []

    def look() -> None:
        if (node.emulator.load_balancers(), node.emulator.endpoints()) != before:
            absent.append(node.guard.calls)

    node.guard.after_call.append(look)
    calls = node.guard.calls
    for _ in range(2):
        node.start()
        node.forget()
        assert node.sync().ok
        assert node.writes == []
    assert not absent
    assert node.guard.calls - calls > 2 * 3 * 2 * SERVICES, "it was looked after each of them"


def test_restart_within_the_call_budget_also_keeps_every_rule() -> None:
    """With budgets so small that adoption takes many passes, and a change to make in the middle of it."""
    node = bridge(*many(200), build=plain(WS2022), call_budget=50)
    while node.sync().again:
        pass
    names = set(node.served())
    gaps: list[set[str]] = []
    node.put(service("new", cluster_ips=["10.96.0.10"]), endpoint_slice("new-a", [L1], service="new"))
    node.guard.after_call.append(lambda: gaps.append(names - set(node.served())))
    node.start()
    node.forget()
    report = node.sync()
    while report.again:
        report = node.sync()
    assert report.ok
    assert node.written() == ["create 10.96.0.10:80/tcp"]
    assert not any(gaps)
