from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from batchscribe.core.money import Usd
from batchscribe.core.runs import LEGAL, Outcome, RunState, next_step
from batchscribe.errors import RefusedError
from support.values import NOW, run


def test_every_state_but_the_last_has_a_step_and_a_way_to_the_end() -> None:
    for state in RunState:
        assert (next_step(run(state=state)) is None) == (state is RunState.SETTLED)
        reached, frontier = set(), {state}
        while frontier:
            reached |= frontier
            frontier = {after for at in frontier for after in LEGAL[at]} - reached
        assert RunState.SETTLED in reached


def test_no_way_to_the_end_leads_past_the_release() -> None:
    for state, after in LEGAL.items():
        if RunState.VERIFYING in after:
            assert state is RunState.RELEASING


def test_an_illegal_move_is_refused() -> None:
    with pytest.raises(RefusedError):
        run().moved(RunState.SETTLED)


def test_the_first_outcome_stands() -> None:
    out = run(state=RunState.TRANSCRIBING).releasing(Outcome.TIMED_OUT, "late")
    assert out.releasing(Outcome.INTERRUPTED, "ctrl-c") is out
    assert (out.state, out.outcome, out.detail) == (RunState.RELEASING, Outcome.TIMED_OUT, "late")


def test_billed_time_is_an_upper_bound_from_looks() -> None:
    seen = run(
        start_requested=NOW,
        idle_until=NOW + timedelta(seconds=20),
        seen_up=NOW + timedelta(seconds=25),
        running_since=NOW + timedelta(seconds=25),
        running_until=NOW + timedelta(seconds=900),
        stopped=NOW + timedelta(seconds=920),
    )
    assert seen.billed_seconds == 900
    assert seen.bill() == Usd(131_500)  # 900 s at $0.526 an hour


def test_a_start_that_never_ran_costs_nothing() -> None:
    assert run(start_requested=NOW, stopped=NOW + timedelta(minutes=10)).bill() == Usd(0)


def test_a_minute_is_the_least_that_a_start_costs_but_not_a_loan() -> None:
    seen = {
        "start_requested": NOW,
        "seen_up": NOW,
        "running_since": NOW,
        "stopped": NOW + timedelta(seconds=6),
    }
    assert run(**seen).bill() == Usd(8767)
    assert run(**seen, borrowed=True).bill() == Usd(877)


@pytest.mark.parametrize(
    ("before", "now", "since"),
    [
        (None, None, False),
        (None, NOW - timedelta(minutes=5), True),  # it had never run before, whatever our clock says
        (NOW, None, False),
        (NOW, NOW, False),
        (NOW, NOW + timedelta(seconds=1), True),
    ],
)
def test_a_start_since_is_told_by_the_clouds_own_clock(
    before: datetime | None, now: datetime | None, *, since: bool
) -> None:
    assert run(launched_before=before).started_since(now) is since


@pytest.mark.parametrize(("pending", "billed"), [(20, 580), (300, 300), (301, 600)])
def test_what_is_pending_long_after_our_start_may_be_a_second_one(pending: float, billed: float) -> None:
    begun = run(start_requested=NOW, seen_up=NOW, stopped=NOW + timedelta(seconds=600))
    assert begun.idle(NOW + timedelta(seconds=pending)).billed_seconds == billed


def test_what_was_seen_running_is_not_idle_by_an_older_look() -> None:
    begun = run(start_requested=NOW, running_since=NOW, stopped=NOW + timedelta(seconds=600))
    assert begun.idle(NOW + timedelta(seconds=60)) is begun
