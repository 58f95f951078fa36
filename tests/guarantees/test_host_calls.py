"""What a node costs its HNS, in calls: the formulas behind docs/windows/host-calls.md hold, and the page shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks import host_calls
from benchmarks.host_calls import SITUATIONS, Size, hansa, measure, tables, todays_proxy

from hansa.hns.emulator import FUTURE, WS2022, Build


@pytest.mark.parametrize("build", [WS2022, FUTURE], ids=["replace", "modify"])
@pytest.mark.parametrize("size", [Size(30, 75, 4, 10), Size(60, 60, 1, 5), Size(200, 500, 16, 20)], ids=str)
def test_counted_calls_are_those_of_the_formulas(build: Build, size: Size) -> None:
    counted, writes_at_restart = measure(size, build)
    assert counted == hansa(size)
    assert writes_at_restart == 0


def test_a_change_and_an_idle_check_cost_the_same_at_any_size() -> None:
    small, large = (hansa(Size(services, services * 5 // 2)) for services in (100, 10_000))
    assert small.one_change == large.one_change == 13, "4V + 9 with V = 1"
    assert small.idle_check == large.idle_check == 6 + 3 * 32


def test_the_figures_for_todays_proxy_are_those_of_its_formulas() -> None:
    """windows-proxy E.4 evaluates its formula for an idle sync itself."""
    assert todays_proxy(replace(Size(), pods=0), modify=False).idle_check == 21_010
    one = [todays_proxy(Size(), modify=modify).one_change for modify in (False, True)]
    idle = todays_proxy(Size(), modify=False).idle_check
    assert [cost - idle for cost in one] == [8 + 5 + 9, 4 + 5 + 9]


def test_the_page_shows_the_tables_of_the_script() -> None:
    """`benchmarks/host_calls.py --write` counts at full size first, then writes them."""
    page = host_calls.PAGE.read_text(encoding="utf-8")
    shown = page.partition(host_calls.BEGIN)[2].partition(host_calls.END)[0].strip()
    assert shown == tables(Size())
    assert len(SITUATIONS) == 8
