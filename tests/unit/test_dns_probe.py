"""The cluster DNS is tried through its frontend, and made anew if only its endpoints answer (windows-proxy F10)."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine_stage import in_loop
from tests.guarantees.node import GuardedNode, bridge
from tests.guarantees.stage import Stage, served, stage

from hansa.dns_probe import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MISSES,
    DnsProbe,
    Judgement,
    answers,
    question,
)
from hansa.net import Address, parse_address
from hansa.testing import L1, R1, endpoint_slice, port, service, slice_port

VIP = parse_address("10.96.0.53")
DNS = service(
    "kube-dns",
    namespace="kube-system",
    cluster_ips=[VIP],
    ports=[port("dns", 53, protocol="UDP"), port("dns-tcp", 53), port("metrics", 9153)],
)
PODS = endpoint_slice(
    "dns-a",
    [L1, R1],
    namespace="kube-system",
    service="kube-dns",
    ports=[slice_port("dns", 53, protocol="UDP"), slice_port("dns-tcp", 53), slice_port("metrics", 9153)],
)


# --- judging ---


def judged(*rounds: tuple[bool, bool], pause_s: float = 15.0) -> list[bool]:
    judgement = Judgement()
    found = [(frontend, endpoint, number * pause_s) for number, (frontend, endpoint) in enumerate(rounds)]
    return [judgement.judge(frontend=frontend, endpoint=endpoint, now=now) for frontend, endpoint, now in found]


WORKS, BROKEN, DEAD = (True, False), (False, True), (False, False)


def test_three_misses_in_a_row_with_an_endpoint_that_answers_are_enough() -> None:
    assert judged(WORKS, BROKEN, BROKEN, BROKEN) == [False, False, False, True]


@pytest.mark.parametrize(
    "rounds",
    [
        [BROKEN] * 10,  # it has never answered from here: this node may not reach ClusterIPs at all
        [WORKS, *[DEAD] * 10],  # nobody is behind it
        [WORKS, BROKEN, BROKEN, WORKS, BROKEN, BROKEN],
        [WORKS, BROKEN, BROKEN, DEAD, BROKEN, BROKEN],
    ],
    ids=["never worked", "no endpoint", "comes and goes", "endpoints come and go"],
)
def test_anything_else_proves_nothing(rounds: list[tuple[bool, bool]]) -> None:
    assert not any(judged(*rounds))


def test_where_it_does_not_help_it_is_done_less_and_less_often() -> None:
    found = judged(WORKS, *[BROKEN] * 4000, pause_s=15.0)
    times = [number * 15.0 for number, made in enumerate(found) if made]
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(pauses) == LONGEST_PAUSE_S
    assert pauses == sorted(pauses)


def test_after_an_hour_of_answers_all_is_forgotten() -> None:
    trouble = [BROKEN] * 30
    found = judged(WORKS, *trouble, *[WORKS] * 600, *trouble, pause_s=15.0)
    first, second = found[: len(trouble) + 1], found[-len(trouble) :]
    assert sum(first) == sum(second) > 1


@given(st.lists(st.sampled_from([WORKS, BROKEN, DEAD]), max_size=60))
def test_nothing_is_made_anew_before_it_has_worked_nor_more_often_than_every_minute(
    rounds: list[tuple[bool, bool]],
) -> None:
    found = judged(*rounds, pause_s=15.0)
    times = [number * 15.0 for number, made in enumerate(found) if made]
    assert all(after - before >= FIRST_PAUSE_S for before, after in pairwise(times))
    for number, made in enumerate(found):
        if made:
            assert WORKS in rounds[:number]
            assert rounds[number - MISSES + 1 : number + 1] == [BROKEN] * MISSES


# --- on a node ---


@dataclass
class Wire:
    """What answers; the load balancer of the frontend may be broken until it is made anew."""

    node: GuardedNode
    broken: str = ""  # GUID of the load balancer that the kernel has wrong
    asked: list[str] = field(default_factory=list)

    async def ask(self, address: Address, number: int) -> bool:
        self.asked.append(f"{address}:{number}")
        if address == VIP:
            held = self.node.balancers().get(f"{VIP}:53/udp")
            return held is not None and held.guid != self.broken
        return True


def probe_of(on: Stage, wire: Wire) -> DnsProbe:
    windows = dataclasses.replace(on.node.config.windows, dns_probe_period_s=15.0)
    config = dataclasses.replace(on.node.config, windows=windows)
    return DnsProbe(on.engine, config, clock=on.clock, ask=wire.ask)


@in_loop
async def test_a_frontend_that_the_kernel_has_lost_is_made_anew_and_answers_again() -> None:
    on_node = bridge(DNS, PODS)
    async with stage(on_node, min_sync_period_s=0.0) as on:
        wire = Wire(on_node)
        probe = probe_of(on, wire)
        await probe.look()
        assert wire.asked == [f"{VIP}:53"], "as long as it answers nobody else is asked"
        before = on_node.balancers()
        wire.broken = before[f"{VIP}:53/udp"].guid
        for _ in range(MISSES):
            await asyncio.wait_for(probe.look(), 10)
            await on.pass_time(15.0)
        after = on_node.balancers()
        assert {name for name in after if after[name].guid != before[name].guid} == {f"{VIP}:53/udp"}
        assert await wire.ask(VIP, 53)
        on_node.forget()
        for _ in range(5):
            await probe.look()
            await on.pass_time(15.0)
        assert on_node.writes == []


@in_loop
async def test_the_probe_runs_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Address] = []

    async def ask(address: Address, _: int) -> bool:
        asked.append(address)
        return True

    monkeypatch.setattr("hansa.dns_probe.answers", ask)
    for period in (0.0, 15.0):
        on_node = bridge(DNS, PODS)
        windows = dataclasses.replace(on_node.config.windows, dns_probe_period_s=period)
        async with served(on_node, windows=windows) as on:
            await on.on.pass_time(60.0)
            assert len(asked) == (4 if period else 0)


# --- the question ---


class Responder(asyncio.DatagramProtocol):
    def __init__(self, how: str) -> None:
        self._how = how
        self.heard: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        self.heard.append(data)
        match self._how:
            case "no such name":
                self.transport.sendto(data[:2] + b"\x81\x83" + data[4:], sender)
            case "its own question":
                self.transport.sendto(data, sender)
            case "another's answer":
                self.transport.sendto(b"\0\0\x81\x83" + data[4:], sender)
                self.transport.sendto(b"x", sender)


@pytest.mark.parametrize(
    ("how", "answered"),
    [("no such name", True), ("its own question", False), ("another's answer", False), ("silence", False)],
)
def test_only_an_answer_to_this_question_counts(how: str, answered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.dns_probe.ANSWER_WITHIN_S", 2.0 if answered else 0.2)

    @in_loop
    async def ask() -> None:
        loop = asyncio.get_running_loop()
        transport, responder = await loop.create_datagram_endpoint(lambda: Responder(how), local_addr=("127.0.0.1", 0))
        number = transport.get_extra_info("sockname")[1]
        assert await answers(parse_address("127.0.0.1"), number) is answered
        assert len(responder.heard) == 1
        transport.close()
        await asyncio.sleep(0)
        assert not await answers(parse_address("127.0.0.1"), number), "nobody is there any more"

    ask()


def test_the_question_is_laid_out_as_the_rfc_says() -> None:
    assert question(b"\x12\x34") == (
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
        b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"
    )
