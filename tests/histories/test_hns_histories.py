"""Whatever the order and batching of events: HNS ends with the same objects. Evidence: windows-proxy H.9 I9, I10."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.histories.expanders import EXPANDERS, FLUSHES, LISTED, Story, story_of
from tests.histories.stories import STORIES
from tests.histories.telling import drive, final, messages
from tests.hns_double.route import through
from tests.strategies import Cluster, clusters

from hansa.api.change import Change, Upsert
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.hns.client import HnsClient
from hansa.hns.emulator import WS2019, WS2022, Build, Emulator, Layout, Machine, ManualClock, l2bridge_node
from hansa.net import IPFamily
from hansa.testing import config

laws = settings(max_examples=50, deadline=None, derandomize=True)
Flush = Callable[[Story], Iterator[list[Change]]]
Expander = Callable[[Story], Story]

everywhere = pytest.mark.parametrize("expander", EXPANDERS, ids=lambda one: one.__name__)
each_story = pytest.mark.parametrize("name", list(STORIES))
LAYOUT = Layout(
    "hansa-br",
    Machine(addresses=("192.0.2.1", "192.0.2.100", "2001:db8::1")),
    ("10.1.1.0/24", "fd01:0:0:1::/64"),
)
LAYOUT_V4 = Layout("hansa-br", Machine(addresses=("192.0.2.1", "192.0.2.100")), ("10.1.1.0/24",))
# The oldest build, which replaces what later ones modify and knows IPv4 only, and the one that most nodes run.
HOSTS = {"ws2019": (WS2019, LAYOUT_V4), "ws2022": (WS2022, LAYOUT)}


class WindowsHost:
    """A Windows node of the standing example: L1 and L2 are there as the CNI left them."""

    def __init__(self, build: Build, layout: Layout) -> None:
        self.emulator: Emulator = l2bridge_node(build, layout=layout)
        for address in ("10.1.1.11", "10.1.1.12"):
            self.emulator.add_pod(address)
        self.now = 1000.0
        self.dataplane = WindowsDataplane(
            HnsClient(through(self.emulator)),
            config(),
            mac_of=lambda _: "00-15-5D-20-21-01",
            rng=random.Random(7),
            clock=self.emulator.clock.now,
        )

    def wait(self, seconds: float) -> float:
        assert isinstance(self.emulator.clock, ManualClock)
        self.emulator.clock.advance(seconds)
        self.now += seconds
        return self.now

    def objects(self) -> list[tuple[Any, ...]]:
        """Everything in HNS with addresses in the place of ids, which are drawn anew each time, sorted."""
        address_of = {one.guid: str(one.addresses[0]) for one in self.emulator.endpoints()}
        endpoints = [
            ("endpoint", tuple(map(str, one.addresses)), one.remote, one.mac_address)
            for one in self.emulator.endpoints()
        ]
        balancers = [
            (
                "load balancer",
                tuple(map(str, one.frontend_vips)),
                one.family is IPFamily.IPV6,
                str(one.port_mappings),
                str(one.source_vip),
                int(one.flags),
                tuple(sorted(address_of[guid] for guid in one.endpoints)),
            )
            for one in self.emulator.load_balancers()
        ]
        return sorted([*endpoints, *balancers], key=str)


def hns_after(host_name: str, batches: Iterable[list[Change]]) -> list[tuple[Any, ...]]:
    host = WindowsHost(*HOSTS[host_name])
    drive(host.dataplane, messages(batches), host.wait)
    return host.objects()


@each_story
@everywhere
@pytest.mark.parametrize("host", HOSTS)
def test_hns_ends_with_the_objects_of_one_full_computation(name: str, expander: Expander, host: str) -> None:
    story = expander(story_of(STORIES[name]))
    once = [[*(Upsert(item) for item in STORIES[name][-1]), *LISTED]]
    assert hns_after(host, FLUSHES[0](story)) == hns_after(host, once)


def test_the_comparison_of_hns_objects_can_fail() -> None:
    one, other = (STORIES[name][-1] for name in ("a rolling update", "all endpoints go bad"))
    assert hns_after("ws2022", story_of([one])) != hns_after("ws2022", story_of([other]))


@laws
@given(st.lists(clusters(), min_size=1, max_size=3), st.sampled_from(EXPANDERS), st.sampled_from(FLUSHES))
def test_hns_ends_alike_after_random_histories(states: list[Cluster], expander: Expander, flush: Flush) -> None:
    story = expander(story_of([state.objects for state in states]))
    once = [[*(Upsert(item) for item in final(story)), *LISTED]]
    assert hns_after("ws2022", flush(story)) == hns_after("ws2022", once)
