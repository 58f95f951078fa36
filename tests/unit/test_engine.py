"""The shell: what is synced when, what survives what, and how it ends. Time is a number that the tests move."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.dictionary_dataplane import RETRY_S, DictionaryDataplane
from tests.engine_stage import API, LISTED, START, WEB, FakeClock, ListedSource, in_loop, stage

from hansa.api.change import Delete, Malformed, Synced, Upsert
from hansa.api.objects import Kind
from hansa.dataplanes.base import HostState
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.engine import SOURCE_RESTART_S, STOP_GRACE_S, SYNCS_FROM, Engine, SyncRecord, SystemClock, run
from hansa.errors import Fault
from hansa.hns.api import HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator import l2bridge_node
from hansa.net import parse_address
from hansa.schedule import RunKind
from hansa.testing import L1, L2, NODE, NODE_ADDRESSES, R1, WEB_KEY, config, endpoint_slice, service


@pytest.mark.scenario("t187")
@in_loop
async def test_i1_nothing_is_written_before_services_and_slices_are_listed() -> None:
    async with stage() as on:
        await on.say(Upsert(WEB), Upsert(endpoint_slice("web-a", [L1])), Synced(Kind.SERVICE), Synced(Kind.NODE))
        on.engine.request(full=True)
        await on.pass_time(7200)
        assert on.dataplane.messages == []
        assert not on.engine.state.ready
        await on.synced(Synced(Kind.ENDPOINT_SLICE))
        assert on.host == ["10.96.0.10:80/tcp"]
        assert on.engine.state.ready


@pytest.mark.scenario("t182")
@in_loop
async def test_b1_a_change_on_an_idle_node_is_synced_at_once() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(10)
        await on.synced(Upsert(API))
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]
        assert on.records[-1].started_at == on.clock.now()
        assert on.kinds == [RunKind.FULL, RunKind.PARTIAL]
        assert on.dataplane.audits == [True, False]


@pytest.mark.scenario("t183")
@in_loop
async def test_b3_changes_in_the_pause_are_one_sync() -> None:
    async with stage() as on:
        await on.synced(*START)
        for number in range(3):
            await on.pass_time(0.2)
            await on.synced(Upsert(service(f"s{number}", cluster_ips=[f"10.96.1.{number}"])))
        assert len(on.records) == 1
        await on.pass_time(0.4)
        assert len(on.records) == 2
        assert on.records[1].frontends == 3
        assert on.records[1].started_at == on.records[0].finished_at + 1


@in_loop
async def test_f34_events_are_taken_in_while_a_sync_runs_and_start_the_next_one_after_the_pause() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        release = threading.Event()
        on.dataplane.before_sync = lambda: release.wait(10) and None
        await on.say(Upsert(API))
        await on.until(lambda: len(on.dataplane.messages) == 2)
        for last in range(1, 50):
            await on.say(Upsert(service("more", cluster_ips=[f"10.96.2.{last}"])))
        async with on.engine.reading() as pipeline:
            assert pipeline.pending  # all of it is in the pipeline, while the sync is still running
        assert on.engine.state.running_since == on.clock.now()
        release.set()
        await on.until(lambda: len(on.records) == 2)
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]  # a sync works on what it was given
        await on.pass_time(1)
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp", "10.96.2.49:80/tcp"]
        assert len(on.records) == 3


@in_loop
async def test_another_configuration_is_handed_over_in_full_and_its_times_count() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        count = len(on.records)
        await on.engine.reconfigure(replace(config(), masquerade_all=True, min_sync_period_s=3.0))
        await on.until(lambda: len(on.records) == count + 1)
        assert on.records[-1].kind is RunKind.FULL
        assert on.records[-1].complete
        await on.say(Upsert(API))
        await on.pass_time(1)
        assert len(on.records) == count + 1, "the pause is a longer one now"
        await on.pass_time(2)
        assert on.records[-1].started_at == on.records[-2].finished_at + 3


@in_loop
async def test_all_syncs_run_in_one_thread_that_is_not_the_loops() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(60)
        assert len(on.dataplane.messages) > 1
        assert len(on.dataplane.threads) == 1
        assert threading.get_ident() not in on.dataplane.threads


@pytest.mark.scenario("t188")
@in_loop
async def test_b6_i3_an_exception_in_the_first_sync_is_a_failure_and_is_repeated() -> None:
    async with stage() as on:
        on.dataplane.before_sync = failing(ZeroDivisionError("a bug"))
        await on.synced(*START)
        assert on.host == []
        assert on.records[0].error == "ZeroDivisionError: a bug"
        assert not on.task.done()
        on.dataplane.before_sync = lambda: None
        await on.pass_time(29.9)
        assert len(on.records) == 1
        await on.pass_time(0.1)
        assert on.host == ["10.96.0.10:80/tcp"]
        assert on.kinds == [RunKind.FULL, RunKind.FULL]


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@in_loop
async def test_b8_after_an_exception_everything_is_handed_over_anew() -> None:
    """The dataplane that raised may not have taken in what it was given."""
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        on.dataplane.before_sync = failing(ZeroDivisionError("a bug"))
        await on.synced(Upsert(API))
        on.dataplane.before_sync = lambda: None
        await on.pass_time(5)
        await on.synced(Upsert(service("more", cluster_ips=["10.96.0.12"])))
        assert on.dataplane.messages[-1].complete
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp", "10.96.0.12:80/tcp"]


@in_loop
async def test_f31_a_refused_frontend_is_retried_when_the_dataplane_says_and_holds_up_nobody() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        (web_key,) = on.dataplane.host.frontends
        on.dataplane.host.refuse.add(web_key)
        await on.synced(Upsert(endpoint_slice("web-a", [R1])), Upsert(API))
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]
        assert on.records[-1].failed == 1
        assert on.engine.state.waiting_since == on.clock.now()
        on.dataplane.host.refuse.clear()
        await on.pass_time(RETRY_S)
        assert [str(one) for one in on.dataplane.host.frontends[web_key].endpoints] == ["10.1.2.21:8080"]
        assert on.kinds == [RunKind.FULL, RunKind.PARTIAL, RunKind.PARTIAL]
        assert not on.dataplane.messages[-1].rules  # nothing new to say: the dataplane knows what is missing
        assert on.engine.state.waiting_since is None


@in_loop
async def test_f29_a_frontend_that_the_host_will_never_take_causes_no_full_syncs() -> None:
    """H.6, rejected: no retry until something changes. The check of the host goes on, and health stays bad."""
    async with stage() as on:
        await on.synced(*START)
        (web_key,) = on.dataplane.host.frontends
        on.dataplane.host.refuse.add(web_key)
        on.dataplane.host.hopeless = True
        await on.pass_time(5)
        since = on.clock.now()
        await on.synced(Upsert(endpoint_slice("web-a", [R1])))
        await on.pass_time(100)
        assert on.kinds == [RunKind.FULL, RunKind.PARTIAL, RunKind.AUDIT, RunKind.AUDIT, RunKind.AUDIT]
        assert on.engine.state.waiting_since == since


@in_loop
async def test_an_absent_host_is_asked_again_and_nothing_is_concluded() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        on.dataplane.host.away = True
        await on.synced(Upsert(API))
        assert on.records[-1].state is HostState.UNAVAILABLE
        assert on.host == ["10.96.0.10:80/tcp"]
        on.dataplane.host.away = False
        await on.pass_time(RETRY_S)
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]


@in_loop
async def test_f30_what_others_do_to_the_host_is_put_right_within_a_period_without_any_event() -> None:
    async with stage() as on:
        await on.synced(*START)
        on.dataplane.host.frontends.clear()
        await on.pass_time(29)
        assert on.host == []
        await on.pass_time(1)
        assert on.host == ["10.96.0.10:80/tcp"]
        assert on.kinds == [RunKind.FULL, RunKind.AUDIT]
        assert on.engine.counts.drift == 1


@in_loop
async def test_b4_every_hour_everything_is_handed_over_anew() -> None:
    async with stage(full_check_period_s=1e6) as on:
        await on.synced(*START)
        await on.pass_time(3600)
        assert on.kinds == [RunKind.FULL, RunKind.FULL]
        assert on.dataplane.messages[-1].complete


@in_loop
async def test_losing_the_sources_changes_nothing_and_they_are_started_again() -> None:
    async with stage() as on:
        await on.synced(*START)
        writes = list(on.dataplane.host.writes)
        await on.source.break_down(ConnectionError("gone"))
        await on.until(lambda: on.engine.counts.source_failures == 1)
        await on.pass_time(SOURCE_RESTART_S / 2)
        assert on.source.starts == 1
        await on.pass_time(SOURCE_RESTART_S / 2)
        assert on.engine.state.sources == ("started 2 times",)
        await on.pass_time(120)
        assert on.dataplane.host.writes == writes
        await on.synced(*START, Upsert(API))
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]


@in_loop
async def test_n7_addresses_of_the_machine_are_read_before_each_check() -> None:
    found = set(NODE_ADDRESSES)
    async with stage(read_addresses=lambda: frozenset(found)) as on:
        await on.synced(*START)
        new = parse_address("192.0.2.101")
        found.add(new)
        await on.pass_time(30)
        assert on.dataplane.surroundings is not None
        assert new in on.dataplane.surroundings.node.addresses


@in_loop
async def test_addresses_that_cannot_be_read_do_not_hold_up_a_sync(caplog: pytest.LogCaptureFixture) -> None:
    def unreadable() -> frozenset[Any]:
        raise PermissionError("no")

    async with stage(read_addresses=unreadable) as on:
        await on.synced(*START)
        assert on.host == ["10.96.0.10:80/tcp"]
    assert "addresses of this machine cannot be read" in caplog.text


@in_loop
async def test_i4_stopping_leaves_the_rules_in_place_and_releases_the_dataplane() -> None:
    async with stage() as on:
        await on.synced(*START)
        writes = list(on.dataplane.host.writes)
        on.engine.stop()
        await asyncio.wait_for(on.task, 10)
        assert on.host == ["10.96.0.10:80/tcp"]
        assert on.dataplane.host.writes == writes
        assert on.dataplane.closed == 1


@in_loop
async def test_stopping_waits_for_the_sync_under_way() -> None:
    async with stage() as on:
        release = threading.Event()
        on.dataplane.before_sync = lambda: release.wait(10) and None
        await on.say(*START)
        await on.until(lambda: bool(on.dataplane.messages))
        on.engine.stop()
        await on.until(lambda: on.clock.is_awaited(on.clock.now() + STOP_GRACE_S))
        assert not on.task.done()
        release.set()
        await asyncio.wait_for(on.task, 10)
        assert on.host == ["10.96.0.10:80/tcp"]
        assert on.dataplane.closed == 1


@in_loop
async def test_stopping_gives_up_a_sync_that_hangs_within_a_bounded_time(caplog: pytest.LogCaptureFixture) -> None:
    async with stage() as on:
        release = threading.Event()
        on.dataplane.before_sync = lambda: release.wait(10) and None
        await on.say(*START)
        await on.until(lambda: bool(on.dataplane.messages))
        on.engine.stop()
        await on.until(lambda: on.clock.is_awaited(on.clock.now() + STOP_GRACE_S))

        async def nothing() -> None: ...

        await on.clock.advance(STOP_GRACE_S, nothing)
        await asyncio.wait_for(on.task, 10)
        assert on.dataplane.closed == 0  # its thread is still inside the host
        release.set()
    assert "sync abandoned" in caplog.text


@in_loop
async def test_the_loop_goes_on_answering_while_a_sync_hangs() -> None:
    """Section 20: health must be able to tell that a sync hangs."""
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        since = on.clock.now()
        release = threading.Event()
        on.dataplane.before_sync = lambda: release.wait(10) and None
        await on.say(Upsert(API))
        await on.until(lambda: len(on.dataplane.messages) == 2)
        assert on.engine.state.waiting_since == since
        assert on.engine.state.running_since == since
        release.set()
        await on.until(lambda: len(on.records) == 2)
        assert on.engine.state.waiting_since is None
        assert on.engine.state.last_ok_at == since


@pytest.mark.scenario("t189")
@in_loop
async def test_o2_o6_latencies_are_reported_by_the_sync_that_reached_the_host() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        on.dataplane.before_sync = failing(ZeroDivisionError("a bug"))
        caused_at = on.clock.wall() - 0.4
        await on.synced(Upsert(endpoint_slice("web-a", [L2], trigger_time=caused_at)))
        assert on.records[-1].latencies_s == ()
        on.dataplane.before_sync = lambda: None
        await on.pass_time(
            25
        )  # the check of the host is due before the retry, and is full like any run after a failure
        assert on.records[-1].latencies_s == pytest.approx((25.4,))
        await on.synced(Upsert(endpoint_slice("web-a", [L1, L2], trigger_time=on.clock.wall() - 0.1)))
        await on.pass_time(1)
        assert on.records[-1].latencies_s == pytest.approx((1.1,))


@in_loop
async def test_h11_health_check_answers_change_only_after_a_sync_that_reached_the_host() -> None:
    checked = service(
        "web",
        type="LoadBalancer",
        external_policy="Local",
        health_check_node_port=32000,
        load_balancer_vips=["203.0.113.80"],
    )
    async with stage() as on:
        await on.synced(Upsert(NODE), Upsert(checked), Upsert(endpoint_slice("web-a", [L1])), *LISTED)
        await on.pass_time(5)
        on.dataplane.host.away = True
        await on.synced(Upsert(endpoint_slice("web-a", [L1, L2])))
        counts = [check.local_count for check in on.engine.state.health_checks.values()]
        assert counts == [1]
        on.dataplane.host.away = False
        await on.pass_time(RETRY_S)
        ((key, check),) = on.engine.state.health_checks.items()
        assert (key.service, check.port, check.local_count) == (WEB_KEY, 32000, 2)


@in_loop
async def test_observers_see_every_run_and_their_own_errors_go_no_further(caplog: pytest.LogCaptureFixture) -> None:
    async with stage() as on:
        seen: list[int] = []

        def broken(record: SyncRecord, report: object) -> None:
            raise KeyError("display")

        on.engine.on_sync(broken)
        on.engine.on_sync(lambda record, _: seen.append(record.number))
        await on.synced(*START)
        await on.pass_time(60)
        assert seen == [1, 2, 3]
    assert "observer failed" in caplog.text


@in_loop
async def test_a_service_that_meets_a_bug_is_named_in_the_log_and_the_rest_is_synced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        odd = endpoint_slice("web-a", [L2])
        object.__setattr__(odd, "endpoints", (None,))
        await on.synced(Upsert(odd), Upsert(API))
        assert on.host == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]
        assert on.engine.counts.build_failures == 1
    assert re.search("service left as it was err=.* service=d/web", caplog.text)


@in_loop
async def test_i19_an_object_that_cannot_be_used_is_named_once_with_its_field_and_its_rules_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "hansa")
    bad = Malformed(WEB.object_key, (Fault("spec.ports[0].port", "99999 is not a port", "give a number"),))
    async with stage() as on:
        await on.synced(*START)
        before = on.host
        caplog.clear()
        for _ in range(3):
            await on.synced(bad)
            await on.pass_time(5)
        assert on.host == before
        (line,) = [record.getMessage() for record in caplog.records]
        assert 'object="Service d/web"' in line
        assert "spec.ports[0].port: 99999 is not a port (give a number)" in line
        await on.synced(Upsert(WEB))
        assert "object mended" in caplog.text


@in_loop
async def test_one_line_per_sync_with_work_and_none_when_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO - SYNCS_FROM, "hansa")
    async with stage() as on:
        await on.synced(*START)
        (line,) = [record for record in caplog.records if record.name == "hansa.engine"]
        assert line.getMessage().startswith("sync number=1 kind=full ")
        assert line.__dict__["fields"]["done"] == 1
        caplog.clear()
        await on.pass_time(3600)
        await on.synced(Upsert(WEB))
        assert len(on.records) > 100
        assert caplog.records == []


@in_loop
async def test_a_failing_step_and_an_exception_are_told_once_not_at_each_retry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "hansa")
    async with stage() as on:
        await on.synced(*START)
        (web_key,) = on.dataplane.host.frontends
        on.dataplane.host.refuse.add(web_key)
        await on.pass_time(5)
        await on.synced(Upsert(endpoint_slice("web-a", [R1])))
        await on.pass_time(20 * RETRY_S)
        assert caplog.text.count("step failed verb=modify kind=frontend key=10.96.0.10:80/tcp") == 1
        on.dataplane.host.refuse.clear()
        await on.pass_time(RETRY_S)
        assert caplog.text.count("step mended") == 1
        on.dataplane.host.refuse.add(web_key._replace(address=parse_address("10.96.0.11")))
        for _ in range(2):  # a frontend that never came about and is no longer wanted is forgotten
            await on.pass_time(5)
            await on.synced(Upsert(API))
            await on.pass_time(5)
            await on.synced(Delete(API.object_key))
        assert caplog.text.count("step failed verb=create kind=frontend key=10.96.0.11:80/tcp") == 2
        on.dataplane.before_sync = failing(ZeroDivisionError("a bug"))
        await on.pass_time(300)
        assert caplog.text.count("sync failed") > 5
        assert caplog.text.count("Traceback") == 1


@in_loop
async def test_the_history_is_kept_and_counted() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        await on.synced(Delete(WEB.object_key))
        assert [record.number for record in on.engine.history] == [1, 2]
        assert on.engine.counts.syncs == {("full", "ok"): 1, ("partial", "ok"): 1}
        assert on.engine.counts.steps == {("create", "done"): 1, ("delete", "done"): 1}
        assert on.engine.counts.changes == len(START) + 1
        assert on.engine.state.last == on.records[-1]


@in_loop
async def test_an_operator_can_ask_for_a_full_sync() -> None:
    async with stage() as on:
        await on.synced(*START)
        await on.pass_time(5)
        on.dataplane.host.frontends.clear()
        on.engine.request(full=True)
        await on.engine.settled()
        assert on.host == ["10.96.0.10:80/tcp"]


@in_loop
async def test_a_bug_in_the_engine_itself_ends_the_run_with_that_error() -> None:
    class Stopped(FakeClock):
        async def wait(self, event: asyncio.Event, until: float | None) -> None:
            raise RuntimeError("no clock")

    made = Engine(config(), [], dataplane=DictionaryDataplane(), clock=Stopped(), read_addresses=lambda: NODE_ADDRESSES)
    with pytest.raises(RuntimeError, match="no clock"):
        await asyncio.wait_for(made.run(), 10)


@in_loop
async def test_the_system_clock_waits_for_the_event_or_the_time() -> None:
    clock, event = SystemClock(), asyncio.Event()
    await clock.wait(event, clock.now() - 1)
    await clock.wait(event, clock.now() + 0.001)
    event.set()
    await clock.wait(event, None)
    assert abs(clock.wall() - time.time()) < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process on Windows")
def test_signals_end_the_run_with_rules_in_place_and_handlers_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    async def main() -> int | None:
        source, dataplane = ListedSource(), DictionaryDataplane()
        made = Engine(config(), [source], dataplane=dataplane, read_addresses=lambda: NODE_ADDRESSES)
        task = asyncio.create_task(run(made))
        await source.say(*START)
        await made.settled()
        os.kill(os.getpid(), number)
        got = await asyncio.wait_for(task, 10)
        assert len(dataplane.host.frontends) == 1
        assert dataplane.closed == 1
        return got

    assert asyncio.run(main()) == number
    assert signal.getsignal(number) is before


@in_loop
async def test_a_dataplane_that_raises_stop_iteration_fails_instead_of_hanging() -> None:
    async with stage() as on:
        on.dataplane.before_sync = failing(StopIteration())
        await on.synced(*START)
        assert "StopIteration" in on.records[0].error


@in_loop
async def test_on_a_windows_node_outages_and_deletions_behind_our_back_are_healed_in_time() -> None:
    """The whole way on an emulated HNS, with the dataplane's own retry times."""
    emulator = l2bridge_node()
    clock, source = FakeClock(), ListedSource()
    dataplane = WindowsDataplane(
        HnsClient(emulator), config(), mac_of=lambda _: "00-15-5D-20-21-01", rng=random.Random(7), clock=clock.now
    )
    made = Engine(config(), [source], dataplane=dataplane, clock=clock, read_addresses=lambda: NODE_ADDRESSES)
    task = asyncio.create_task(made.run())
    remote = [Upsert(NODE), Upsert(WEB), Upsert(endpoint_slice("web-a", [R1])), *LISTED]
    await source.say(*remote)
    await made.settled()
    assert len(emulator.load_balancers()) == 1

    emulator.remove(HnsKind.LOAD_BALANCER, emulator.load_balancers()[0].guid)
    await clock.advance(30, made.settled)
    assert len(emulator.load_balancers()) == 1
    assert made.counts.drift == 1

    emulator.stop()
    await source.say(Upsert(API), Upsert(endpoint_slice("api-a", [R1], service="api")))
    await made.settled()
    await clock.advance(120, made.settled)
    assert made.state.last is not None
    assert made.state.last.state is HostState.UNAVAILABLE
    assert made.state.waiting_since == clock.now() - 120
    emulator.start()
    await clock.advance(11, made.settled)  # probes come at most 10 s apart
    assert len(emulator.load_balancers()) == 2
    assert made.state.waiting_since is None
    writes = made.counts.steps.total()
    await clock.advance(300, made.settled)
    assert made.counts.steps.total() == writes
    made.stop()
    await asyncio.wait_for(task, 10)
    assert len(emulator.load_balancers()) == 2
