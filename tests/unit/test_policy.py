from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import HostFault, IfRunning, Policy, PolicyName, ReasonCode
from batchscribe.core.decide.policy import FOREVER, PATIENT_STARTS, Hold, Launch, Reclaim, Resume, decide
from batchscribe.core.run.instances import InstanceState
from support.values import NOW, backlog, instance, observation, run

POLICY = Policy()


def test_threshold_reached_launches_with_the_numbers() -> None:
    decision = decide(observation(backlog(100)), POLICY)
    assert isinstance(decision, Launch)
    assert decision.reason.code is ReasonCode.THRESHOLD
    assert decision.reason.sentence == "100 chunks pending, threshold 100 reached"
    assert decision.reason.numbers["pending"] == 100
    assert decision.reason.numbers["estimated_dollars"] == decision.batch.estimate.cost.dollars
    assert not decision.borrowed


def test_one_chunk_less_holds_and_says_why() -> None:
    decision = decide(observation(backlog(99)), POLICY)
    assert isinstance(decision, Hold)
    assert not decision.overdue
    assert decision.reason.code is ReasonCode.BELOW_THRESHOLD
    assert decision.reason.sentence == "99 chunks pending, below the threshold of 100"


def test_nothing_pending_holds_under_every_policy() -> None:
    for name in PolicyName:
        assert isinstance(decide(observation(), replace(POLICY, name=name)), Hold)
    assert isinstance(decide(observation(), replace(POLICY, manual=True)), Hold)


@pytest.mark.parametrize(
    ("hours_old", "launches"), [(22.0, False), (22.9, False), (22.96, True), (23.5, True), (80.0, True)]
)
def test_the_longest_wait_counts_the_next_check_and_the_lead(hours_old: float, launches: bool) -> None:
    # 24 h minus 1 h to the next check minus 150 s of set-up: a start is due from 22.958 h on
    decision = decide(observation(backlog(1, hours_old=hours_old)), POLICY)
    assert isinstance(decision, Launch) is launches
    if launches:
        assert decision.reason.code is ReasonCode.MAX_WAIT


def test_policy_now_starts_for_one_chunk() -> None:
    decision = decide(observation(backlog(1)), replace(POLICY, name=PolicyName.NOW))
    assert isinstance(decision, Launch)


def test_chunks_that_failed_before_start_nothing_but_a_person_may() -> None:
    seen = observation(backlog(150, troubled=150, oldest=None))
    decision = decide(seen, POLICY)
    assert isinstance(decision, Hold)
    assert decision.reason.code is ReasonCode.ONLY_FAILED_BEFORE
    assert isinstance(decide(seen, replace(POLICY, name=PolicyName.NOW)), Hold)
    asked = decide(seen, replace(POLICY, manual=True))
    assert isinstance(asked, Launch)
    assert asked.reason.sentence == "requested by the user: 150 chunks pending, 150 of them failed before"


def test_a_running_gpu_that_is_not_ours_is_left_alone() -> None:
    seen = observation(backlog(200), instance=instance(InstanceState.RUNNING))
    decision = decide(seen, POLICY)
    assert isinstance(decision, Hold)
    assert decision.reason.code is ReasonCode.GPU_IN_USE
    assert not decision.overdue


def test_a_running_gpu_may_be_used() -> None:
    seen = observation(backlog(200), instance=instance(InstanceState.RUNNING))
    decision = decide(seen, replace(POLICY, if_running=IfRunning.USE))
    assert isinstance(decision, Launch)
    assert decision.borrowed


def test_an_overdue_chunk_behind_a_foreign_gpu_is_worth_an_alert() -> None:
    seen = observation(backlog(1, hours_old=23.9), foreign_claim="claimed by another scheduler")
    decision = decide(seen, POLICY)
    assert isinstance(decision, Hold)
    assert decision.overdue


@pytest.mark.parametrize("state", [InstanceState.MISSING, InstanceState.TERMINATED, InstanceState.PENDING])
def test_an_instance_that_cannot_be_started_holds(state: InstanceState) -> None:
    assert isinstance(decide(observation(backlog(200), instance=instance(state)), POLICY), Hold)


def test_a_stopping_instance_is_waited_for() -> None:
    decision = decide(observation(backlog(200), instance=instance(InstanceState.STOPPING)), POLICY)
    assert isinstance(decision, Launch)


def test_a_pause_holds_until_it_ends() -> None:
    seen = observation(backlog(200), paused_until=NOW + timedelta(minutes=1))
    assert decide(seen, POLICY).reason.code is ReasonCode.PAUSED
    assert isinstance(decide(replace(seen, paused_until=NOW), POLICY), Launch)
    held = decide(replace(seen, paused_until=FOREVER), POLICY)
    assert held.reason.sentence == "paused until `batchscribe resume`"


def test_an_open_run_comes_before_everything_else() -> None:
    started = run(start_requested=NOW)
    seen = observation(backlog(200), open_run=started, paused_until=NOW + timedelta(hours=1))
    assert isinstance(decide(seen, POLICY), Resume)
    late = replace(seen, now=started.deadline)
    assert decide(late, POLICY) == Reclaim(decide(late, POLICY).reason, started)


def test_a_run_that_asked_for_no_start_for_long_is_closed_not_resumed() -> None:
    planned = run(created=NOW - timedelta(minutes=9))
    assert isinstance(decide(observation(open_run=planned), POLICY), Resume)
    decision = decide(observation(open_run=replace(planned, created=NOW - timedelta(minutes=10))), POLICY)
    assert isinstance(decision, Reclaim)
    assert decision.reason.code is ReasonCode.NEVER_STARTED


def test_a_batch_is_what_fits_into_the_runtime() -> None:
    policy = replace(POLICY, max_runtime=timedelta(minutes=5))
    decision = decide(observation(backlog(10_000)), policy)
    assert isinstance(decision, Launch)
    assert 0 < len(decision.batch.chunks) < 10_000
    assert decision.batch.left == 10_000 - len(decision.batch.chunks)
    assert decision.batch.estimate.seconds <= 300


def test_a_start_that_would_pass_the_budget_is_refused_with_the_sums() -> None:
    seen = observation(backlog(200), spent_today=Usd.parse("1.99"))
    policy = replace(POLICY, daily_budget=Usd.parse("2.00"))
    decision = decide(seen, policy)
    assert isinstance(decision, Hold)
    assert decision.reason.code is ReasonCode.BUDGET
    assert "$1.99 spent today" in decision.reason.sentence
    assert isinstance(decide(replace(seen, spent_today=Usd(0)), policy), Launch)


@given(unproductive=st.integers(0, 200), minutes=st.integers(0, 3 * 24 * 60))
def test_each_start_without_a_chunk_done_doubles_the_pause_up_to_a_day(
    unproductive: int, minutes: int
) -> None:
    ago = NOW - timedelta(minutes=minutes)
    seen = observation(
        backlog(200), unproductive=unproductive, last_unproductive=ago if unproductive else None
    )
    pause = 60 * 2 ** (unproductive - 1) if unproductive >= PATIENT_STARTS else 0
    decision = decide(seen, POLICY)
    if minutes < min(pause, 24 * 60):
        assert isinstance(decision, Hold)
        assert decision.reason.code is ReasonCode.BACKING_OFF
        assert f"the last {unproductive} starts were paid for" in decision.reason.sentence
    else:
        assert isinstance(decision, Launch)
    assert isinstance(decide(seen, replace(POLICY, manual=True)), Launch)


FAULT = HostFault(at=NOW - timedelta(hours=2), cause="the host key differs", access="these settings")


def test_the_same_cause_starts_no_gpu_again_from_the_first_start_on() -> None:
    seen = observation(backlog(200), host_fault=FAULT, access="these settings", unproductive=1)
    decision = decide(seen, POLICY)
    assert isinstance(decision, Hold)
    assert decision.reason.code is ReasonCode.BACKING_OFF
    assert "would fail again: the host key differs" in decision.reason.sentence
    assert not decision.overdue
    late = replace(seen, backlog=backlog(200, hours_old=23.5))
    assert isinstance(held := decide(late, POLICY), Hold)
    assert (held.reason.code, held.overdue) == (ReasonCode.BACKING_OFF, True)
    assert isinstance(decide(seen, replace(POLICY, manual=True)), Launch)


@pytest.mark.parametrize(
    "change",
    [
        {"access": "other settings"},
        {"set_up_at": NOW - timedelta(hours=1)},
        {"now": FAULT.at + timedelta(days=1)},
        {"host_fault": None},
    ],
)
def test_a_start_follows_once_something_changed(change: dict[str, Any]) -> None:
    before = {"access": "these settings", "set_up_at": NOW - timedelta(hours=3), "host_fault": FAULT}
    seen = observation(backlog(200), **before)
    assert isinstance(decide(seen, POLICY), Hold)
    assert isinstance(decide(replace(seen, **change), POLICY), Launch)
