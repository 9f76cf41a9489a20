"""Savings, waits and days of a period, on ledgers made by hand: exact numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchscribe.cli.app import App
from batchscribe.cli.report import render_csv, report
from batchscribe.core.decide.arrivals import match_arrivals
from batchscribe.core.decide.baselines import Baseline, format_baseline
from batchscribe.core.decide.hours import parse_hours
from batchscribe.core.decide.money import FREE, Rate, Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.period import Period, period_of
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Machine, Run, RunState, RunWorker
from batchscribe.core.run.usage import make_history
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.values import NOW, meter, run

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
RATE = Rate(per_hour=Usd.parse("3.6"), source="test", as_of="2026-11-23")
"""A tenth of a cent for each second."""


def work(name: str, hours: float, chunks: int, **changes: Any) -> Run:
    """A settled run: 100 s of set-up, 60 s for each chunk of ten minutes, 20 s to stop."""
    begin = NOW + hours * HOUR
    window, end = begin + 100 * SECOND, begin + (100 + 60 * chunks) * SECOND
    stopped = end + 20 * SECOND
    metered = meter(
        start_requested=begin,
        idle_until=begin,
        running_since=begin + 30 * SECOND,
        running_until=end,
        stopped=stopped,
    )
    values: dict[str, Any] = {
        "id": name,
        "created": begin,
        "state": RunState.SETTLED,
        "outcome": Outcome.COMPLETED,
        "machines": (Machine(id="i-1", meter=metered),),
        "workers": (RunWorker(manifest="m", machine="i-1", launched=True, ended=end),),
        "rate": RATE,
        "first_window": window,
        "settled": stopped + 10 * SECOND,
        "chunks_done": chunks,
        "audio_seconds": 600.0 * chunks,
    }
    made = run(**(values | changes))
    return replace(made, cost=made.bill())


def sample(hours: float, pending: int) -> QueueSample:
    return QueueSample(
        at=NOW + hours * HOUR + 7 * SECOND,
        pending=pending,
        triggering=pending,
        waiting=0,
        oldest=None,
        decision="below-threshold",
        sentence="",
    )


RUNS = (work("20261123-150000-8b3114", 3, 2), work("20261124-080000-8b3115", 20, 1))
SAMPLES = (sample(-1, 0), sample(1, 1), sample(2, 2), sample(19, 1), sample(23, 1))
"""Two chunks on the first day, two on the second; the last one is pending."""


def reported(
    runs: Sequence[Run] = RUNS, samples: Sequence[QueueSample] = SAMPLES, policy: Policy | None = None
) -> Period:
    history = make_history(samples, runs, policy or Policy())
    return period_of(runs, NOW, NOW + 24 * HOUR, history=history)


def test_chunks_are_matched_with_runs_the_oldest_first() -> None:
    matched = match_arrivals(SAMPLES, RUNS)
    taken = [((each.at - NOW) // HOUR, each.run.id if each.run else None) for each in matched]
    first, second = (run.id for run in RUNS)
    assert taken == [(1, first), (2, first), (19, second), (23, None)]


def test_a_run_leaves_the_newest_chunks() -> None:
    only = work("a", 3, 1)
    matched = match_arrivals(SAMPLES[:3], [only])
    assert [each.run for each in matched] == [only, None]


def test_the_bill_is_compared_with_each_baseline_and_a_loss_is_negative() -> None:
    period = reported()
    assert period.totals.cost_micros == 420_000  # 240 s and 180 s
    found = {each.against: (each.cost_micros, each.saved_micros) for each in period.baselines}
    assert found["each-arrival"] == (540_000, 120_000)  # three starts of 180 s
    assert found["threshold-100"] == (300_000, -120_000)  # one start at the longest wait
    assert found["optimum"] == (300_000, -120_000)
    always_on, saved = found["always-on"]
    assert (always_on, saved) == (86_400_000, 86_400_000 - 420_000)


def test_each_baseline_is_a_line_of_its_own() -> None:
    assert [format_baseline(each) for each in reported().baselines] == [
        "Against one start per arrival: about $0.12 of its $0.54 saved",
        "Against the original rule, 100 chunks: none, about $0.12 dearer than its $0.30",
        "Against an always-on GPU (upper bound): at most $85.98 of its $86.40 saved",
        "Regret against the optimum: about $0.12 more than its $0.30",
    ]


def test_a_bill_below_the_estimated_optimum_is_shown_as_such() -> None:
    cheap = Baseline(against="optimum", cost=0.3, cost_micros=300_000, saved=0.1, saved_micros=100_000)
    assert format_baseline(cheap) == "Regret against the optimum: about $0.10 less than its $0.30"


def test_without_recorded_arrivals_savings_are_unknown() -> None:
    period = reported(samples=())
    assert [each.cost_micros for each in period.baselines] == [None, None, 86_400_000 - 3 * 3_600_000, None]
    assert format_baseline(period.baselines[3]) == "Regret against the optimum: unknown: no arrivals recorded"
    assert (period.usage.mean_wait_hours, period.usage.late) == (None, None)
    assert [(day.arrived_hours, day.queue_hours) for day in period.days] == [(None, None), (None, None)]


def test_runs_without_a_price_have_no_baselines() -> None:
    assert reported([work("a", 3, 2, rate=FREE)]).baselines == ()


def test_a_start_without_a_transcript_counts_against_the_savings() -> None:
    failed = work("c", 10, 0, outcome=Outcome.WORKER_FAILED)
    found = {each.against: each.saved_micros for each in reported((RUNS[0], failed, RUNS[1])).baselines}
    assert (found["each-arrival"], found["optimum"]) == (0, -240_000)  # 120 s more


def test_a_check_some_seconds_late_is_replayed_as_the_check_that_it_was() -> None:
    (only,) = runs = [work("a", 2, 2)]
    period = reported(runs, (sample(-1, 0), sample(1, 1)))
    assert period.baselines[0].cost_micros == 2 * 180_000
    assert only.cost.micros == 240_000


def test_the_optimum_keeps_the_longest_wait() -> None:
    runs = [work("a", 2, 1), work("b", 5, 1)]
    samples = (sample(-1, 0), sample(1, 1), sample(4, 1))
    limits = [Policy(max_wait=hours * HOUR) for hours in (2, 24)]
    costs = [reported(runs, samples, limit).baselines[3].cost_micros for limit in limits]
    assert costs == [360_000, 240_000]  # two starts, or one


def test_hours_and_budget_do_not_bind_the_baselines() -> None:
    bound = Policy(hours=parse_hours("mon-fri 22:00-06:00 UTC"), daily_budget=Usd(1))
    assert reported(policy=bound).baselines == reported().baselines


def test_runs_of_another_type_do_not_count_for_the_speed() -> None:
    slow = work("z", 3, 2, instance_type="g3", first_window=NOW + 3 * HOUR + 200 * SECOND)
    assert reported((slow, RUNS[1])).baselines == reported().baselines


def test_chunks_without_sound_are_a_start_too() -> None:
    silent = work("s", 22, 1, audio_seconds=0.0)
    found = reported((*RUNS, silent), (*SAMPLES[:4], sample(21, 1))).baselines[0]
    assert found.cost_micros == 540_000 + 120_000


def test_usage_has_yield_and_waits() -> None:
    usage = reported().usage
    assert usage.cost_per_audio_hour == 0.84
    assert usage.chunks_per_dollar == pytest.approx(3 / 0.42)
    assert usage.audio_per_gpu_second == pytest.approx(1800 / 420)
    # From the check that listed the chunk, 7 s after the hour, to the end of the work.
    waits = (2 * 3600 + 213, 3600 + 213, 3600 + 153)
    assert usage.mean_wait_hours == pytest.approx(sum(waits) / 3 / 3600)
    assert usage.p95_wait_hours == usage.max_wait_hours == pytest.approx(waits[0] / 3600)
    assert usage.late == 0


def test_a_chunk_beyond_the_longest_wait_is_late() -> None:
    period = reported(policy=Policy(max_wait=2 * HOUR))
    assert (period.usage.late, [row.usage.late for row in period.runs]) == (1, [1, 0])


def test_chunks_of_runs_before_the_first_check_have_no_waits() -> None:
    period = reported(samples=SAMPLES[3:])
    assert [row.usage.mean_wait_hours is None for row in period.runs] == [True, False]


def test_arrivals_before_the_period_count_for_its_runs_alone() -> None:
    history = make_history(SAMPLES, RUNS, Policy())
    period = period_of(RUNS[1:], NOW + 12 * HOUR, NOW + 24 * HOUR, history=history)
    found = {each.against: each.cost_micros for each in period.baselines}
    assert found == {
        "each-arrival": 180_000,
        "threshold-100": 180_000,
        "always-on": 43_200_000,
        "optimum": 180_000,
    }
    assert [day.day for day in period.days] == ["2026-11-24"]


def test_days_show_the_trend_of_the_queue_and_the_time_of_the_gpu() -> None:
    period = reported()
    assert [(day.day, day.starts, day.chunks_done, day.cost_micros) for day in period.days] == [
        ("2026-11-23", 1, 2, 240_000),
        ("2026-11-24", 1, 1, 180_000),
    ]
    assert [day.arrived_hours for day in period.days] == pytest.approx([1 / 3, 1 / 3])
    assert [day.queue_hours for day in period.days] == pytest.approx([0.0, 1 / 6])
    assert [day.gpu_share for day in period.days] == pytest.approx([240 / 43_200, 180 / 43_200])
    assert period.recorded_hours == 24.0
    assert period.gpu_share == pytest.approx(420 / 86_400)


def test_several_machines_at_once_are_up_once() -> None:
    """Three that overlap, in a period that is no longer: never more than all of it."""
    first = work("r", 0, 2)
    later = replace(
        first.machines[0],
        id="i-2",
        meter=meter(start_requested=NOW + HOUR, up_since=NOW, stopped=NOW + 2 * HOUR),
    )
    several = replace(first, machines=(first.machines[0], replace(first.machines[0], id="i-3"), later))
    period = period_of([several], NOW, NOW + 2 * HOUR)
    assert period.totals.billed_hours == pytest.approx(2 * 240 / 3600 + 1)
    assert period.gpu_share == pytest.approx((240 / 3600 + 1) / 2)
    short = period_of([several], NOW, NOW + 300 * SECOND)
    assert short.gpu_share == 1.0
    assert short.days[0].gpu_share == 1.0


def test_a_day_without_a_run_shows_what_arrived() -> None:
    days = reported(samples=(*SAMPLES, sample(40, 3))).days
    assert [(day.day, day.runs) for day in days][-1] == ("2026-11-25", 0)
    assert days[-1].queue_hours == pytest.approx(1 / 3)
    assert (days[-1].usage.cost_per_audio_hour, days[-1].usage.audio_per_gpu_second) == (None, None)


def test_the_period_begins_with_its_first_record() -> None:
    period = period_of(RUNS, NOW - 1000 * HOUR, NOW + 24 * HOUR)
    assert period.recorded_hours == 21.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        for each in RUNS:
            ledger.save_run(each, at=each.settled or NOW)
        for checked in SAMPLES:
            ledger.save_sample(checked)
    return tmp_path


def call(folder: Path, *words: str) -> str:
    app = App()
    app.__dict__["settings"] = load({}, folder=folder)
    arguments = ["--last", "9999w", *words]
    result = CliRunner().invoke(report, arguments, obj=app, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_reads_arrivals_from_the_ledger(home: Path) -> None:
    lines = call(home).splitlines()
    assert "Against one start per arrival: about $0.12 of its $0.54 saved." in lines
    assert "Regret against the optimum: about $0.12 more than its $0.30." in lines
    assert "Waits: mean 1.39 h, p95 2.06 h, longest 2.06 h; no chunk late." in lines


@pytest.mark.parametrize("by", ["run", "day"])
def test_both_tables_fit_80_columns_without_folding(
    home: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(home, "--by", by).splitlines()
    assert max(map(len, lines)) <= 80
    names = [row.run for row in reported().runs] if by == "run" else ["2026-11-23", "2026-11-24"]
    assert [line.split()[0] for line in lines[1:3]] == names


def test_the_days_are_a_table(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [line.split() for line in call(home, "--by", "day").splitlines()[:3]]
    assert rows == [
        ["Day", "Starts", "Done", "Failed", "Audio", "Queue", "GPU", "up", "Cost", "Late"],
        ["2026-11-23", "1", "2", "0", "0:20:00", "+0:00:00", "0.5", "%", "$0.24", "0"],
        ["2026-11-24", "1", "1", "0", "0:10:00", "+0:10:00", "0.2", "%", "$0.18", "0"],
    ]


def test_csv_has_a_line_for_each_day(home: Path) -> None:
    rows = list(csv.DictReader(call(home, "--format", "csv", "--by", "day").splitlines()))
    assert [(row["day"], row["cost_micros"], row["late"]) for row in rows] == [
        ("2026-11-23", "240000", "0"),
        ("2026-11-24", "180000", "0"),
    ]


def test_csv_keeps_its_columns_and_appends_the_usage() -> None:
    header = render_csv(reported()).splitlines()[0].split(",")
    assert header[:2] == ["run", "created"]
    assert header[-2:] == ["max_wait_hours", "late"]
    assert "usage" not in header


def test_json_has_runs_days_and_baselines(home: Path) -> None:
    document = json.loads(call(home, "--json"))
    assert [day["day"] for day in document["days"]] == ["2026-11-23", "2026-11-24"]
    assert document["runs"][0]["usage"]["late"] == 0
    against = [each["against"] for each in document["baselines"]]
    assert against == ["each-arrival", "threshold-100", "always-on", "optimum"]
    assert document["baselines"][1]["saved"] == -0.12
    assert datetime.fromisoformat(document["since"]) < NOW
