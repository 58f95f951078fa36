"""From the API server's socket to HNS: whatever happens on the way, the node ends up holding what the API says.

"What the API says" is computed afresh each time, on a new node, from the objects that the server has at that moment.
Evidence: service-semantics section 1 (I1 to I4); operations.md section 8; windows-proxy F (nothing is undone).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.api_server import ApiServer, Asked, Mood
from tests.end_to_end.cluster import FAR_POD, LOCAL_POD, cluster, fresh_node, shop, wanted
from tests.end_to_end.stage import (
    QUICK,
    Access,
    Stage,
    WriteLog,
    plain,
    stage,
    until,
    with_client_certificate,
    with_token_file,
)

from hansa.hns.api import HnsKind
from hansa.hns.schema import HnsLoadBalancer
from hansa.lab.cni import PodNetwork
from hansa.net import parse_address

pytestmark = pytest.mark.asyncio

KUBE_DNS = parse_address("100.64.0.10")
WATCHES = 4  # Services, EndpointSlices, this Node, ServiceCIDRs


# --- every way to the server ---


@pytest.mark.parametrize("network", PodNetwork, ids=lambda network: network.value)
@pytest.mark.parametrize("reach", [plain, with_client_certificate, with_token_file], ids=lambda reach: reach.__name__)
async def test_what_the_api_says_arrives_in_hns(
    tmp_path: Path, reach: Callable[[Path], Access], network: PodNetwork
) -> None:
    """List and watch, by HTTP and HTTPS: the first state, then an added, a changed and a removed Service."""
    access = reach(tmp_path)
    async with ApiServer(tls=access.tls) as server:
        if access.token_file.exists():
            server.require_token("first")
        server.put(*cluster())
        async with stage(server, access, network=network) as on:
            await on.converged()
            assert [line.split(" from ")[0] for line in on.held if line.startswith("100.64.0.10 17/")] == [
                "100.64.0.10 17/53>53 -> 100.96.1.3 100.96.1.8"
            ]
            server.put(*shop(LOCAL_POD, FAR_POD))
            await on.converged()
            assert any(line.startswith("100.64.200.1 6/80>8080 -> 100.96.2.31 100.96.3.31") for line in on.held)
            server.put(*shop(FAR_POD))
            await on.converged()
            assert any(line.startswith("100.64.200.1 6/80>8080 -> 100.96.3.31 from") for line in on.held)
            server.delete(*shop())
            await on.converged()
            assert not any("100.64.200.1 " in line for line in on.held)
            assert {one.kind for one in server.requests} == {"Service", "EndpointSlice", "Node", "ServiceCIDR"}


# --- nothing is written before both kinds are complete ---


def _slices(asked: Asked) -> bool:
    return asked.kind == "EndpointSlice"


def _services(asked: Asked) -> bool:
    return asked.kind == "Service"


def _second_page_of_slices(asked: Asked) -> bool:
    return asked.kind == "EndpointSlice" and "continue" in asked.query


@pytest.mark.parametrize(
    ("kept_back", "mood"),
    [
        (_slices, Mood()),
        (_services, Mood()),
        (_slices, Mood(refuse_watch_list=422)),
        (_second_page_of_slices, Mood(refuse_watch_list=422)),
    ],
    ids=["no slices yet", "no services yet", "no slices yet, as a list", "half of the slices"],
)
async def test_nothing_is_written_before_services_and_slices_have_been_listed(
    tmp_path: Path, kept_back: Callable[[Asked], bool], mood: Mood
) -> None:
    """I1. HNS is not even asked anything, however often a sync is demanded and the connection breaks meanwhile."""
    settings = replace(QUICK, watch=replace(QUICK.watch, page_limit=1))
    async with ApiServer(mood=mood) as server:
        server.put(*cluster())
        server.mood.missing.add("ServiceCIDR")  # a kind that may be missing is not waited for
        gate = server.hold(kept_back)
        async with stage(server, plain(tmp_path), full_check_period_s=0.01, settings=settings) as on:
            for attempt in range(1, 4):
                await until(lambda: len([one for one in server.requests if kept_back(one)]) >= attempt)  # noqa: B023
                on.engine.request(full=True)
                await on.engine.settled()
                assert on.emulator.call_count == 0
                assert not on.engine.state.ready
                server.cut()
            gate.set()
            await on.converged()
            assert on.engine.state.ready
            assert on.writes > 0


async def test_a_node_that_is_right_already_is_only_read(tmp_path: Path) -> None:
    """A restart of hansa: a new engine that remembers nothing writes nothing on a node that holds what it should."""
    async with ApiServer() as server:
        server.put(*cluster(), *shop())
        emulator = fresh_node(server.manifests())
        async with stage(server, plain(tmp_path), emulator=emulator) as on:
            await on.converged()
        written = WriteLog(emulator)
        async with stage(server, plain(tmp_path), emulator=emulator, full_check_period_s=0.01) as on:
            await on.audits(5)
            await on.converged()
        assert written.calls == []


# --- troubles: after each one the node holds what the API says ---


class Turns:
    """Changes of the cluster, each of them different: a Service comes, one goes, and a pod of web is ready or not."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._count = 0

    def __call__(self) -> None:
        self._count += 1
        self._server.put(*shop(number=self._count))
        if self._count > 1:
            self._server.delete(*shop(number=self._count - 1))
        (web,) = [one for one in self._server.manifests() if one["metadata"]["name"].startswith("web-")]
        web["endpoints"][1]["conditions"]["ready"] = self._count % 2 == 1
        self._server.put(web)


Trouble = Callable[[Stage, Turns], Awaitable[None]]


async def dropped_connections(on: Stage, turn: Turns) -> None:
    on.server.cut()
    turn()


async def a_line_cut_in_half(on: Stage, turn: Turns) -> None:
    on.server.cut_mid_line()
    turn()


async def watches_that_end_in_order(on: Stage, turn: Turns) -> None:
    on.server.end_watches()
    turn()


async def gone_in_the_middle_of_a_watch(on: Stage, turn: Turns) -> None:
    on.server.say_gone()
    turn()
    on.server.compact()


async def gone_while_away(on: Stage, turn: Turns) -> None:
    """The server comes back and has forgotten what happened meanwhile: an ERROR event in the watch says so."""
    await on.server.stop()
    turn()
    on.server.compact()
    await on.server.start()


async def gone_while_away_as_a_status(on: Stage, turn: Turns) -> None:
    on.server.mood.gone_as_status = True
    await gone_while_away(on, turn)
    await until(lambda: on.server.watch_count == WATCHES)
    on.server.mood.gone_as_status = False


async def gone_and_no_streaming_lists(on: Stage, turn: Turns) -> None:
    """After 410 the objects are listed in pages, as servers before 1.34 want it."""
    on.server.mood.refuse_watch_list = 422
    await gone_while_away(on, turn)


async def forgotten_history_after_a_bookmark(on: Stage, turn: Turns) -> None:
    """A bookmark has moved every watch on, so nothing is missed and nothing is listed again."""
    (other,) = [one for one in on.server.manifests() if one["metadata"]["name"] == "linux-1"]
    on.server.put(other)  # a version further, by an object that none of the watches is about
    on.server.bookmark()
    await until(lambda: on.versions == {str(on.server.version)})
    on.server.compact()
    before = len(on.server.requests)
    on.server.cut()
    turn()
    await on.converged()
    assert not any("sendInitialEvents" in one.query for one in on.server.requests[before:])


async def a_restart(on: Stage, turn: Turns) -> None:
    await on.server.stop()
    turn()
    await on.server.start()


async def several_restarts(on: Stage, turn: Turns) -> None:
    for _ in range(3):
        await a_restart(on, turn)


async def errors_and_overload(on: Stage, turn: Turns) -> None:
    on.server.fail(500, 429, 503, 504, 502, 429)
    on.server.cut()
    turn()


async def a_backup_restored(on: Stage, turn: Turns) -> None:
    """The server's versions start again below those that hansa has seen."""
    await on.server.stop()
    on.server.restore(7)
    turn()
    await on.server.start()
    await until(lambda: on.server.watch_count == WATCHES)
    on.server.bookmark()


TROUBLES: tuple[Trouble, ...] = (
    dropped_connections,
    a_line_cut_in_half,
    watches_that_end_in_order,
    gone_in_the_middle_of_a_watch,
    gone_while_away,
    gone_while_away_as_a_status,
    gone_and_no_streaming_lists,
    forgotten_history_after_a_bookmark,
    a_restart,
    several_restarts,
    errors_and_overload,
    a_backup_restored,
)


def _kube_dns(on: Stage) -> list[HnsLoadBalancer]:
    with on.lock:
        return [one for one in on.emulator.load_balancers() if KUBE_DNS in one.frontend_vips]


@pytest.mark.parametrize("reach", [plain, with_token_file], ids=lambda reach: reach.__name__)
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_after_the_trouble_the_node_holds_what_the_api_says(
    tmp_path: Path, trouble: Trouble, reach: Callable[[Path], Access]
) -> None:
    """And what the changes in the trouble did not concern is never touched on the host."""
    access = reach(tmp_path)
    async with ApiServer(tls=access.tls) as server:
        server.put(*cluster())
        turn = Turns(server)
        async with stage(server, access) as on:
            turn()
            await on.converged()
            await until(lambda: server.watch_count == WATCHES)
            untouched, asked = _kube_dns(on), len(server.requests)
            written = WriteLog(on.emulator)
            await trouble(on, turn)
            await on.converged()
            assert len(server.requests) > asked, "the trouble was noticed"
            turn()
            await on.converged()
            assert _kube_dns(on) == untouched
            assert written.calls
            assert not [one for one in written.calls if isinstance(one.value, HnsLoadBalancer) and _is_dns(one.value)]


def _is_dns(balancer: HnsLoadBalancer) -> bool:
    return KUBE_DNS in balancer.frontend_vips


@pytest.mark.parametrize("seed", [1, 2])
async def test_all_troubles_one_after_another_in_one_life(tmp_path: Path, seed: int) -> None:
    access = with_client_certificate(tmp_path)
    story = random.Random(seed).sample(TROUBLES, len(TROUBLES))
    async with ApiServer(tls=access.tls) as server:
        server.put(*cluster())
        turn = Turns(server)
        async with stage(server, access) as on:
            await on.converged()
            for trouble in story:
                await until(lambda: server.watch_count == WATCHES, trouble.__name__)
                await trouble(on, turn)
                await on.converged()
            assert len(on.records) > len(story)


async def test_an_expired_token_is_waited_out_until_the_file_is_renewed(tmp_path: Path) -> None:
    access = with_token_file(tmp_path)
    async with ApiServer(tls=access.tls) as server:
        server.require_token("first")
        server.put(*cluster())
        async with stage(server, access, full_check_period_s=0.01) as on:
            await on.converged()
            before = on.writes
            server.require_token("second")
            server.cut()
            server.put(*shop())
            await until(lambda: "the server does not accept these credentials" in on.status)
            await on.audits(5)
            assert on.writes == before
            access.token_file.write_text("second\n")
            await on.converged()
            await until(lambda: on.status == f"connected to {server.url}")


# --- losing the API changes nothing on the host ---


async def test_losing_the_api_changes_nothing_and_the_host_is_still_looked_after(tmp_path: Path) -> None:
    """I4: rules stay; what somebody deletes behind hansa's back comes back, although the API is away."""
    async with ApiServer() as server:
        server.put(*cluster(), *shop())
        async with stage(server, plain(tmp_path), full_check_period_s=0.01) as on:
            await on.converged()
            await on.audits(2)
            before, written = on.held, WriteLog(on.emulator)
            await server.stop()
            await until(lambda: on.status.startswith("retrying in"))
            await on.audits(10)
            assert written.calls == []
            assert on.held == before

            with on.lock:
                on.emulator.remove(HnsKind.LOAD_BALANCER, on.emulator.load_balancers()[0].guid)
                assert len(before) > len(on.emulator.load_balancers())
            await on.converged()
            assert len(written.calls) == 1, "one load balancer was created, and nothing else happened"

            server.put(*shop(number=2))
            await on.audits(3)
            assert on.held == before
            await server.start()
            await on.converged()
            assert on.held != before


async def test_a_start_without_the_api_leaves_the_node_as_it_is(tmp_path: Path) -> None:
    """What a former hansa left stays in force until the API has been heard, and is then adopted, not made anew."""
    async with ApiServer() as server:
        server.put(*cluster(), *shop())
        emulator = fresh_node(server.manifests())
        async with stage(server, plain(tmp_path), emulator=emulator) as on:
            await on.converged()
        await server.stop()
        written = WriteLog(emulator)
        async with stage(server, plain(tmp_path), emulator=emulator) as on:
            await until(lambda: "cannot connect" in on.status)
            on.engine.request(full=True)
            await on.engine.settled()
            assert written.calls == []
            await server.start()
            await on.after_a_run(lambda: on.engine.state.last_ok_at is not None, "a first run")
            assert written.calls == []
            server.put(*shop(number=2))
            await on.converged()
            assert written.calls
            assert not [one for one in written.calls if isinstance(one.value, HnsLoadBalancer) and _is_dns(one.value)]


async def test_services_that_the_api_no_longer_has_after_an_absence_are_removed(tmp_path: Path) -> None:
    """The other side of it: when the server is back, its word counts, also that something is gone."""
    async with ApiServer() as server:
        server.put(*cluster(), *shop())
        async with stage(server, plain(tmp_path)) as on:
            await on.converged()
            await server.stop()
            server.delete(*shop())
            server.compact()
            await server.start()
            await on.converged()
            assert on.held == wanted(cluster())
