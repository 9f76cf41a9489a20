from __future__ import annotations

from datetime import timedelta

import pytest

from batchscribe.core.decide.money import Usd, cost
from batchscribe.core.run.meter import Meter
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import LEGAL, Machine, RunState
from batchscribe.errors import RefusedError
from support.values import NOW, RATE, meter, moment, run, workers


def test_every_state_has_a_way_to_the_end() -> None:
    for state in RunState:
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
        run().to_state(RunState.SETTLED)


def test_the_first_outcome_stands() -> None:
    out = run(state=RunState.TRANSCRIBING).to_teardown(Outcome.TIMED_OUT, "late")
    assert out.to_teardown(Outcome.INTERRUPTED, "ctrl-c") is out
    assert (out.state, out.outcome, out.detail) == (RunState.RELEASING, Outcome.TIMED_OUT, "late")


def test_billed_time_is_an_upper_bound_from_polls() -> None:
    polled = run(
        start_requested=NOW,
        idle_until=NOW + timedelta(seconds=20),
        up_since=NOW + timedelta(seconds=25),
        running_since=NOW + timedelta(seconds=25),
        running_until=NOW + timedelta(seconds=900),
        stopped=NOW + timedelta(seconds=920),
    )
    assert polled.billed_seconds == 900
    assert polled.bill() == Usd(131_500)  # 900 s at $0.526 an hour


def test_a_start_that_never_ran_costs_nothing() -> None:
    assert run(start_requested=NOW, stopped=NOW + timedelta(minutes=10)).bill() == Usd(0)


def test_a_minute_is_the_least_that_a_start_costs_but_not_a_loan() -> None:
    polled = {
        "start_requested": NOW,
        "up_since": NOW,
        "running_since": NOW,
        "stopped": NOW + timedelta(seconds=6),
    }
    assert run(**polled).bill() == Usd(8767)
    assert run(**polled, borrowed=True).bill() == Usd(877)


def test_a_run_that_was_up_is_never_billed_nothing() -> None:
    """Its polls fell into one instant, or a clock was coarse."""
    polled = run(start_requested=NOW, up_since=NOW, running_since=NOW, stopped=NOW)
    assert polled.billed_seconds == 1.0
    assert polled.bill() == Usd(8767)


def test_a_run_whose_end_was_not_observed_yet_is_not_billed_yet() -> None:
    assert run(start_requested=NOW, up_since=NOW).billed_seconds == 0.0


def test_clocks_that_contradict_each_other_bill_the_whole_time_to_the_deadline() -> None:
    polled = run(start_requested=NOW, up_since=NOW, stopped=NOW - timedelta(hours=5))
    assert polled.billed_seconds == timedelta(hours=2).total_seconds()


def test_a_run_is_started_from_its_request_on() -> None:
    assert not run().started
    assert run(start_requested=NOW).started


def test_the_url_of_a_manifest_is_in_the_output() -> None:
    made = run(output="s3://bucket/", workers=workers("first", "second"))
    assert made.manifest_url(1) == "s3://bucket/second"


def polled(start: float, stop: float | None) -> Meter:
    begin = moment(start)
    ended = {} if stop is None else {"stopped": moment(stop)}
    return meter(start_requested=begin, up_since=begin, running_since=begin, **ended)


def test_the_bill_is_the_sum_of_the_machines_each_with_its_minimum() -> None:
    machines = (Machine(id="i-1", meter=polled(0, 10)), Machine(id="i-2", meter=polled(5, 105)))
    two = run(machines=machines)
    assert two.billed_seconds == 110
    assert two.bill() == cost(RATE, 60) + cost(RATE, 100)
    assert (two.start_requested, two.running_since, two.stopped) == (moment(0), moment(0), moment(105))


def test_a_run_is_stopped_once_all_of_its_machines_are() -> None:
    machines = (Machine(id="i-1", meter=polled(0, 10)), Machine(id="i-2", meter=polled(0, None)))
    assert run(machines=machines).stopped is None
