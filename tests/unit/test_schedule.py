"""When the next sync is due. The times in the names and comments are those of the scenarios."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.config import Config
from hansa.schedule import Backlog, Due, RunKind, Schedule

laws = settings(max_examples=50, deadline=None, derandomize=True)
NEVER = 1e9
FULL, AUDIT, PARTIAL = RunKind.FULL, RunKind.AUDIT, RunKind.PARTIAL


def schedule(**fields: float) -> Schedule:
    """The defaults, except that the host is never checked unless a test says when."""
    return Schedule(Config(node_name="n1", **{"full_check_period_s": NEVER, **fields}))  # type: ignore[arg-type]


def after_first_run(end: float = 0.2, **fields: float) -> Schedule:
    plan = schedule(**fields)
    plan.request(0.0)
    run(plan, 0.0, end)
    return plan


def run(plan: Schedule, start: float, end: float, *, ok: bool = True, retry_at: float | None = None) -> RunKind:
    kind = plan.started(start)
    plan.finished(end, ok=ok, retry_at=retry_at)
    return kind


def test_nothing_is_due_before_the_first_request() -> None:
    assert schedule().next_sync(0.0) is None


def test_other_times_count_from_the_next_run_on() -> None:
    plan = after_first_run(end=0.2, min_sync_period_s=1.0, full_sync_period_s=100.0)
    plan.reconfigure(Config(node_name="n1", min_sync_period_s=5.0, full_sync_period_s=50.0, full_check_period_s=NEVER))
    plan.request(0.5)
    assert plan.next_sync(0.5) == Due(1.2, PARTIAL), "what was due stays due"
    run(plan, 1.2, 1.3)
    plan.request(1.4)
    assert plan.next_sync(1.4) == Due(6.3, PARTIAL)


@pytest.mark.scenario("t182")
def test_b1_a_request_when_idle_runs_at_once_the_first_included_and_the_first_run_is_full() -> None:
    plan = schedule()
    plan.request(0.0)
    assert plan.next_sync(0.0) == Due(0.0, FULL)
    assert run(plan, 0.0, 0.2) is FULL
    plan.request(50.0)
    assert plan.next_sync(50.0) == Due(50.0, PARTIAL)


def test_b2_no_run_starts_within_the_pause_measured_end_to_start() -> None:
    plan = after_first_run(end=0.2)
    plan.request(0.3)
    assert plan.next_sync(0.3) == Due(pytest.approx(1.2), PARTIAL)


def test_b2_no_pause_if_it_is_zero() -> None:
    plan = after_first_run(end=0.2, min_sync_period_s=0.0)
    plan.request(0.2)
    assert plan.next_sync(0.2) == Due(0.2, PARTIAL)


@pytest.mark.scenario("t183")
def test_b3_requests_during_the_pause_become_one_run() -> None:
    plan = after_first_run(end=0.2)
    for moment in (0.3, 0.5, 0.9):
        plan.request(moment)
    assert plan.next_sync(0.9) == Due(pytest.approx(1.2), PARTIAL)
    run(plan, 1.2, 1.3)
    assert plan.next_sync(1.3) == Due(0.2 + 3600, FULL)


def test_b3_a_request_during_a_run_is_left_for_the_next() -> None:
    plan = after_first_run(end=0.2)
    plan.request(5.0)
    plan.started(5.0)
    plan.request(5.1)
    assert plan.next_sync(5.1) is None
    plan.finished(6.0, ok=True)
    assert plan.next_sync(6.0) == Due(7.0, PARTIAL)


def test_b4_without_requests_a_full_run_comes_after_the_full_period() -> None:
    plan = after_first_run(end=0.2)
    assert plan.next_sync(1.0) == Due(3600.2, FULL)
    assert run(plan, 3600.2, 3601.0) is FULL
    assert plan.next_sync(3601.0) == Due(7201.0, FULL)


@pytest.mark.scenario("t184")
def test_b5_b8_a_failed_run_is_repeated_in_full_after_the_sync_period() -> None:
    plan = after_first_run(end=0.0)
    plan.request(10.0)
    run(plan, 10.0, 10.0, ok=False)
    assert plan.next_sync(10.0) == Due(40.0, FULL)
    assert run(plan, 40.0, 40.1) is FULL
    assert plan.next_sync(41.0) == Due(3640.1, FULL)


@pytest.mark.scenario("t185")
def test_b5_a_successful_run_in_between_cancels_the_retry() -> None:
    plan = after_first_run(end=0.0)
    plan.request(10.0)
    run(plan, 10.0, 10.0, ok=False)
    plan.request(12.0)
    assert run(plan, 12.0, 12.5) is FULL  # B8: after a failure the next one is full, whatever causes it
    assert plan.next_sync(12.5) == Due(3612.5, FULL)


@pytest.mark.scenario("t186")
def test_b5_a_retry_does_not_break_into_the_pause() -> None:
    plan = after_first_run(end=0.0, min_sync_period_s=5.0)
    plan.request(10.0)
    run(plan, 10.0, 10.0, ok=False, retry_at=11.0)
    assert plan.next_sync(10.0) == Due(15.0, PARTIAL)


@pytest.mark.scenario("t188")
def test_i3_a_first_run_that_fails_is_repeated_too() -> None:
    plan = schedule()
    plan.request(0.0)
    run(plan, 0.0, 0.0, ok=False)
    assert plan.next_sync(0.0) == Due(30.0, FULL)


def test_b5_the_retry_waits_no_longer_than_the_full_period() -> None:
    plan = after_first_run(end=0.0, full_sync_period_s=20.0)
    plan.request(10.0)
    run(plan, 10.0, 10.0, ok=False)
    assert plan.next_sync(10.0) == Due(20.0, FULL)  # the full sync that is due anyway
    run(plan, 20.0, 20.0, ok=False)
    assert plan.next_sync(20.0) == Due(40.0, FULL)


def test_f31_a_failure_that_the_dataplane_keeps_account_of_is_retried_when_it_says() -> None:
    plan = after_first_run(end=0.0)
    plan.request(10.0)
    run(plan, 10.0, 10.0, ok=False, retry_at=12.5)
    assert plan.next_sync(10.0) == Due(12.5, PARTIAL)
    assert run(plan, 12.5, 12.6, ok=False, retry_at=16.0) is PARTIAL
    assert plan.next_sync(12.6) == Due(16.0, PARTIAL)
    run(plan, 16.0, 16.1)
    assert plan.next_sync(16.1) == Due(3600.0, FULL)


def test_f30_the_check_of_the_host_has_its_own_period_and_starts_again_after_each_check_or_full_run() -> None:
    plan = after_first_run(end=0.0, full_check_period_s=30.0)
    plan.request(29.0)
    assert (
        run(plan, 29.0, 29.1) is PARTIAL
    )  # a partial run looks at what changed only, so it does not put the check off
    assert plan.next_sync(29.1) == Due(pytest.approx(30.1), AUDIT)
    assert run(plan, 30.1, 30.2) is AUDIT
    assert plan.next_sync(30.2) == Due(pytest.approx(60.2), AUDIT)


def test_b11_an_idle_host_is_checked_every_period_and_fully_synced_every_hour() -> None:
    plan = after_first_run(end=0.0, full_check_period_s=30.0)
    now, kinds = 0.0, []
    while (due := plan.next_sync(now)) and due.at <= 3600.0:
        now = due.at
        kinds.append(run(plan, now, now))
    assert kinds == [AUDIT] * 119 + [FULL]


def test_a_request_and_a_check_that_are_both_due_are_one_run() -> None:
    plan = after_first_run(end=0.0, full_check_period_s=30.0)
    plan.request(31.0)
    assert plan.next_sync(31.0) == Due(30.0, AUDIT)


def test_a_run_that_comes_late_covers_what_has_become_due_meanwhile() -> None:
    plan = after_first_run(end=0.0, full_check_period_s=30.0)
    plan.request(10.0)
    assert plan.next_sync(10.0) == Due(10.0, PARTIAL)
    assert plan.next_sync(31.0) == Due(10.0, AUDIT)


def test_b9_a_full_run_can_be_asked_for_and_an_earlier_plain_request_does_not_lessen_it() -> None:
    plan = after_first_run(end=0.0)
    plan.request(10.0)
    plan.request(10.1, full=True)
    plan.request(10.2)
    assert run(plan, 10.2, 10.3) is FULL
    plan.request(20.0)
    assert run(plan, 20.0, 20.1) is PARTIAL


def test_b9_a_full_request_during_a_run_makes_the_next_one_full() -> None:
    plan = after_first_run(end=0.0)
    plan.request(10.0)
    plan.started(10.0)
    plan.request(10.1, full=True)
    plan.finished(10.2, ok=True)
    assert plan.next_sync(10.2) == Due(pytest.approx(11.2), FULL)


def test_h7_a_run_that_ran_out_of_budget_goes_on_without_a_pause() -> None:
    plan = after_first_run(end=0.0)
    plan.request(10.0)
    plan.started(10.0)
    plan.finished(30.0, ok=False, again=True)
    assert plan.next_sync(30.0) == Due(30.0, PARTIAL)
    plan.started(30.0)
    plan.finished(31.0, ok=True)
    assert plan.next_sync(31.0) == Due(3600.0, FULL)


@dataclass
class Trace:
    """What a simulated loop did: requests made, and runs as (kind, start, end, ok, asked for going on)."""

    requests: list[float] = field(default_factory=list)
    runs: list[tuple[RunKind, float, float, bool, bool]] = field(default_factory=list)


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 40.0),  # time until a request
        st.floats(0.0, 5.0),  # how long the next run takes
        st.sampled_from(["ok", "failed", "retry", "again"]),
    ),
    min_size=1,
    max_size=30,
)


def simulate(plan: Schedule, steps: list[tuple[float, float, str]]) -> Trace:
    """Drive the schedule as the engine does: wait for the earlier of the next request and the next due run."""
    trace, now = Trace(), 0.0
    for wait_s, run_s, outcome in steps:
        request_at = now + wait_s
        due = plan.next_sync(now)
        if due is None or due.at > request_at:
            now = request_at
            plan.request(now)
            trace.requests.append(now)
            due = plan.next_sync(now)
        assert due is not None
        now = max(now, due.at)
        kind = plan.started(now)
        end = now + run_s
        retry_at = end + 2.0 if outcome == "retry" else None
        plan.finished(end, ok=outcome == "ok", retry_at=retry_at, again=outcome == "again")
        trace.runs.append((kind, now, end, outcome in ("ok", "retry", "again"), outcome == "again"))
        now = end
    return trace


@laws
@given(STEPS, st.sampled_from([0.0, 1.0, 5.0]))
def test_laws_that_hold_in_every_history(steps: list[tuple[float, float, str]], pause_s: float) -> None:
    plan = schedule(min_sync_period_s=pause_s, full_check_period_s=30.0)
    trace = simulate(plan, steps)
    assert trace.runs[0][0] is FULL
    for (_, _, end, accounted, again), (kind, start, _, _, _) in zip(trace.runs, trace.runs[1:], strict=False):
        assert start >= end if again else start >= end + pause_s, "B2"
        assert accounted or kind is FULL, "B8"
        assert start <= end + max(30.0, pause_s), "B5, F30: never longer than a period without a run"
    for moment in trace.requests:
        starts = [start for _, start, _, _, _ in trace.runs if start >= moment]
        ends = [end for _, start, end, _, _ in trace.runs if start < moment]
        assert starts[0] <= max([moment, *(end + pause_s for end in ends)]), "B1: at once, but for runs and pauses"


def test_z2_the_oldest_unsatisfied_request_counts_and_a_good_run_clears_it() -> None:
    """Requests at t=0 and t=5: 0 is kept."""
    backlog = Backlog()
    backlog.request(0.0)
    backlog.request(5.0)
    assert backlog.waiting_since == 0.0
    backlog.started(6.0)
    assert backlog.running_since == 6.0
    backlog.finished(7.0, ok=True)
    assert (backlog.waiting_since, backlog.last_ok_at, backlog.running_since) == (None, 7.0, None)


def test_z2_a_request_during_a_run_is_not_satisfied_by_it() -> None:
    backlog = Backlog()
    backlog.request(0.0)
    backlog.started(0.0)
    backlog.request(1.0)
    backlog.request(2.0)
    backlog.finished(3.0, ok=True)
    assert backlog.waiting_since == 1.0
    backlog.started(4.0)
    backlog.finished(5.0, ok=True)
    assert backlog.waiting_since is None


def test_i15_failed_runs_keep_the_oldest_request_and_drift_that_cannot_be_mended_counts_from_its_discovery() -> None:
    backlog = Backlog()
    backlog.request(0.0)
    backlog.started(0.0)
    backlog.request(0.5)
    backlog.finished(1.0, ok=False)
    assert (backlog.waiting_since, backlog.last_ok_at) == (0.0, None)
    backlog = Backlog()
    backlog.started(30.0)
    backlog.finished(31.0, ok=False)
    backlog.started(40.0)
    backlog.finished(41.0, ok=False)
    assert backlog.waiting_since == 30.0


def test_i15_each_key_waits_from_the_request_on_that_it_was_pending_after_first() -> None:
    backlog = Backlog()
    backlog.request(0.0)
    backlog.started(1.0)
    backlog.finished(2.0, ok=False, pending=["a"])
    assert (backlog.waiting_since, backlog.has_pending, backlog.last_ok_at) == (0.0, True, None)
    backlog.request(10.0)
    backlog.started(10.0)
    backlog.request(11.0)
    backlog.finished(12.0, ok=False, pending=["a", "b"])
    assert backlog.waiting_since == 0.0
    backlog.started(13.0)
    backlog.finished(14.0, ok=False, pending=["b"])
    assert backlog.waiting_since == 10.0, "a is there now; the request during the run has been satisfied"
    backlog.started(15.0)
    backlog.finished(16.0, ok=False, pending=None)
    assert backlog.waiting_since == 10.0, "nothing is known of a run that did not reach the host"
    backlog.started(17.0)
    backlog.finished(18.0, ok=True, pending=[])
    assert (backlog.waiting_since, backlog.has_pending, backlog.last_ok_at) == (None, False, 18.0)


def test_i15_what_a_run_finds_wrong_without_being_asked_waits_from_its_start() -> None:
    backlog = Backlog()
    backlog.started(30.0)
    backlog.request(31.0)
    backlog.finished(32.0, ok=False, pending=["a"])
    assert backlog.waiting_since == 30.0
    backlog.started(33.0)
    backlog.finished(34.0, ok=False, pending=["c"])
    assert backlog.waiting_since == 31.0


@laws
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.none() | st.frozensets(st.sampled_from("abc"))), max_size=12)
)
def test_i15_waiting_since_is_the_oldest_thing_that_is_still_wanted(
    steps: list[tuple[bool, bool, frozenset[str] | None]],
) -> None:
    """Against the long way: every request is kept with the keys that it still lacks (None: nobody knows)."""
    backlog, now = Backlog(), 0.0
    wanted: list[tuple[float, frozenset[str] | None]] = []
    for before, during, outcome in steps:
        now += 1
        if before:
            backlog.request(now)
            wanted.append((now, None))
        now += 1
        backlog.started(now)
        began = now
        wanted.append((began, None))  # a run is a request of its own, for whatever it finds wrong
        now += 1
        if during:
            backlog.request(now)
            wanted.append((now, None))
        now += 1
        backlog.finished(now, ok=outcome == frozenset(), pending=outcome)
        if outcome is not None:
            wanted = [
                (since, (outcome if lacks is None else lacks & outcome) if since <= began else None)
                for since, lacks in wanted
            ]
            wanted = [(since, lacks) for since, lacks in wanted if lacks is None or lacks]
        assert backlog.waiting_since == min((since for since, _ in wanted), default=None)
