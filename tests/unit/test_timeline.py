"""The phases of a run's paid time, from the reports of worker and agent and the polls of the controller."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from batchscribe.cli.report import render_csv
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.run.manifest import ExitRecord, Timings, decode
from batchscribe.core.run.meter import Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.period import period_of
from batchscribe.core.run.records import decode_run, encode_run
from batchscribe.core.run.report import build
from batchscribe.core.run.runs import Machine, Run, RunState, RunWorker
from batchscribe.core.run.timeline import format_timeline, measure_timeline
from support.values import meter

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
FIRST = Timings(
    since_boot=12.0,
    manifest=2.0,
    loaded=9.0,
    first_audio=3.0,
    first_window=9.5,
    last_result=39.5,
    published=40.0,
    elapsed=41.0,
)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def run(**changes: Any) -> Run:
    """Boot at 6 s, worker at 18 s, exit record at 59 s, stop at 62 s, stopped at 92 s."""
    made = Run(
        id="r1",
        state=RunState.SETTLED,
        outcome=Outcome.COMPLETED,
        provider="ec2",
        machines=(Machine(id="i-1", meter=meter(start_requested=START, stopped=after(92))),),
        workers=(RunWorker(manifest="m", machine="i-1", launched=True, ended=after(59)),),
        policy="threshold",
        reason="",
        created=START,
        deadline=after(3600),
        rate=Rate(per_hour=Usd(526_000), source="", as_of=""),
        # By a poll that came late: the timeline does not depend on it.
        worker_since=after(50),
        stop_requested=Moment(after(62)),
    )
    return replace(made, **changes)


def test_the_phases_follow_one_another_and_audio_is_beside_the_model() -> None:
    found = measure_timeline(run(), FIRST, FIRST, agent=10.0)
    assert found == {
        "start": 6.0,
        "boot": 10.0,
        "agent": 2.0,
        "manifest": 2.0,
        "load": 7.0,
        "audio": 1.0,
        "first_window": 0.5,
        "work": 30.0,
        "publish": 0.5,
        "end": 4.0,
        "teardown": 30.0,
    }
    assert sum(found.values()) - found["audio"] == 92.0, "nothing of the paid time is missing"
    assert list(found)[:3] == ["start", "boot", "agent"]


def test_the_first_window_waits_for_what_came_last() -> None:
    slow = msgspec.structs.replace(FIRST, first_audio=9.3)
    found = measure_timeline(run(), slow, slow, agent=10.0)
    assert (found["load"], found["audio"], found["first_window"]) == (7.0, 7.3, 0.2)


@pytest.mark.parametrize("agent", [None, 10.0])
def test_a_host_that_was_up_before_has_neither_start_nor_boot(agent: float | None) -> None:
    up = msgspec.structs.replace(FIRST, since_boot=86_400.0)
    found = measure_timeline(run(), up, up, agent=agent)
    assert list(found)[:2] == ["worker", "manifest"]
    assert found["worker"] == 18.0


def test_the_work_lasts_until_the_last_worker_s_last_window() -> None:
    last = Timings(last_result=15.0, published=15.5, elapsed=16.0)
    workers = (*run().workers, RunWorker(manifest="n", machine="i-1", launched=True, ended=after(80)))
    both = run(workers=workers, stop_requested=Moment(after(81)))
    found = measure_timeline(both, FIRST, last, agent=10.0)
    assert found["work"] == 79.0 - 27.5
    assert (found["publish"], found["end"]) == (0.5, 1.5)


def test_a_worker_of_0_1_or_one_that_died_has_the_phases_that_it_reported() -> None:
    old = Timings(loaded=9.0, first_window=9.5, elapsed=41.0)
    assert list(measure_timeline(run(), old, old)) == ["worker", "load", "first_window", "end", "teardown"]
    nothing = run(workers=(), worker_since=None)
    assert list(measure_timeline(nothing, Timings(), Timings())) == ["end", "teardown"]


def test_an_exit_record_without_the_new_times_is_read() -> None:
    data = (
        b'{"run":"r1","worker":0,"end":"finished","at":"2026-11-23T12:00:00Z","tally":{},'
        b'"timings":{"loaded":2.0,"elapsed":3.0}}'
    )
    timings = decode(data, ExitRecord).timings
    assert (timings.loaded, timings.manifest, timings.published) == (2.0, None, None)


def test_a_run_keeps_its_timeline_and_one_without_is_read() -> None:
    timed = run(timeline={"load": 7.0})
    assert decode_run(encode_run(timed)).timeline == {"load": 7.0}
    fields = msgspec.json.decode(encode_run(timed))
    del fields["timeline"]
    assert decode_run(msgspec.json.encode(fields)).timeline == {}


def test_reports_show_it() -> None:
    timed = run(timeline={"manifest": 0.94, "first_window": 0.06})
    assert build(timed).performance.timeline == timed.timeline
    assert format_timeline(timed.timeline) == "manifest 0.9 s, first window 0.1 s"
    period = period_of([timed], START, after(3600))
    assert period.runs[0].timeline == timed.timeline
    assert '"manifest 0.9 s, first window 0.1 s"' in render_csv(period)
