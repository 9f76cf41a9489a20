from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from batchscribe.adapters.output.reports import write_report
from batchscribe.cli.app import App
from batchscribe.cli.report import render_csv, report
from batchscribe.core.decide.hosted import format_savings, make_savings
from batchscribe.core.decide.money import FREE, Rate, Usd
from batchscribe.core.decide.packing import Estimate
from batchscribe.core.figures import render_block
from batchscribe.core.run.cost_block import cost_block, estimate_block
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.period import period_of
from batchscribe.core.run.report import (
    QueueSample,
    RunEvent,
    RunReport,
    build,
    encode,
    phases,
    totals,
)
from batchscribe.core.run.runs import Machine, Run, RunState, RunWorker
from batchscribe.core.scan.backlog import Backlog
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.values import meter, metered

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RATE = Rate(per_hour=Usd(526_000), source="AWS list, on-demand, us-east-2", as_of="2026-11-23")
RUN = Run(
    id="r1",
    state=RunState.SETTLED,
    outcome=Outcome.COMPLETED,
    provider="ec2",
    machines=(
        Machine(
            id="i-1",
            meter=meter(
                start_requested=NOW + MINUTE,
                idle_until=NOW + 2 * MINUTE,
                running_since=NOW + 3 * MINUTE,
                running_until=NOW + 31 * MINUTE,
                stopped=NOW + 32 * MINUTE,
            ),
        ),
    ),
    workers=(RunWorker(manifest="manifest", machine="i-1", launched=True, ended=NOW + 30 * MINUTE),),
    policy="threshold",
    reason="120 chunks pending, threshold 100 reached",
    created=NOW,
    deadline=NOW + 120 * MINUTE,
    rate=RATE,
    instance_type="g4dn.xlarge",
    planned_chunks=120,
    planned_audio_seconds=3500.0,
    launch="boot",
    dispatched=NOW + 4 * MINUTE,
    worker_since=NOW + MINUTE + timedelta(seconds=230),
    first_window=NOW + 5 * MINUTE,
    stop_requested=Moment(NOW + 31 * MINUTE),
    settled=NOW + 33 * MINUTE,
    chunks_done=118,
    chunks_failed=2,
    audio_seconds=3600.0,
)
RUN = replace(RUN, cost=RUN.bill())


def event(minutes: int, state: str) -> RunEvent:
    return RunEvent(at=NOW + minutes * MINUTE, state=state)


def sample(minutes: int) -> QueueSample:
    return QueueSample(
        at=NOW - minutes * MINUTE,
        pending=40,
        triggering=40,
        waiting=0,
        oldest=NOW - 90 * MINUTE,
        decision="below-threshold",
        sentence="40 chunks pending, below the threshold of 100",
        numbers={"threshold": 100},
    )


def test_a_report_says_what_was_seen() -> None:
    built = build(
        RUN,
        events=[event(0, "planned"), event(1, "provisioning"), event(33, "settled")],
        samples=[sample(60)],
        backlog=Backlog(sessions=3, pending=120, done=7),
        lock="4711 2026-11-23T12:00:00+00:00",
    )
    document = json.loads(encode(built))
    assert (document["status"], document["success"], document["reason"]) == ("completed", True, RUN.reason)
    assert document["lock"].startswith("4711 ")
    assert document["gpu"] == {
        "provider": "ec2",
        "instance": "i-1",
        "type": "g4dn.xlarge",
        "tried": [],
        "was_running": False,
        "started_by_us": True,
        "start": "2026-11-23T12:01:00Z",
        "running": "2026-11-23T12:03:00Z",
        "stop": "2026-11-23T12:31:00Z",
        "stopped": "2026-11-23T12:32:00Z",
        "seconds": 1800.0,
        "cost": 0.263,
        "cost_micros": 263_000,
        "rate": 0.526,
        "rate_micros": 526_000,
        "source": RATE.source,
        "as_of": RATE.as_of,
        "machines": [],
    }
    assert document["transcription"] == {
        "done": 118,
        "failed": 2,
        "failures": {},
        "audio_seconds": 3600.0,
    }
    assert document["verification"] == {"complete": True, "gpu_seen_stopped": True}
    assert (document["scan"]["sessions"], document["scan"]["pending"], document["scan"]["done"]) == (
        3,
        120,
        7,
    )
    assert document["performance"]["phases"] == {"planned": 60.0, "provisioning": 1920.0}
    assert (document["performance"]["launch"], document["performance"]["to_running"]) == ("boot", 120.0)
    assert document["performance"]["to_worker"] == 230.0
    assert (document["performance"]["setup"], document["performance"]["work"]) == (240.0, 1500.0)
    assert document["performance"]["audio_per_second"] == 2.4
    assert document["queue"][0]["sentence"] == sample(60).sentence
    assert msgspec.json.decode(encode(built), type=RunReport) == built


def test_what_was_not_seen_is_not_claimed() -> None:
    bare = Run(
        id="r2",
        provider="ec2",
        machines=(Machine(id="i-1"),),
        policy="now",
        reason="",
        created=NOW,
        deadline=NOW,
        rate=RATE,
        outcome=Outcome.NO_CAPACITY,
    )
    built = build(bare)
    assert (built.status, built.success) == ("no-capacity", False)
    assert (built.gpu.started_by_us, built.gpu.seconds, built.gpu.cost_micros) == (False, 0.0, 0)
    assert built.verification.gpu_seen_stopped is False
    assert built.performance.work is None
    assert built.performance.audio_per_second is None


def test_a_borrowed_gpu_was_running_and_not_started_by_us() -> None:
    gpu = build(replace(RUN, borrowed=True)).gpu
    assert (gpu.was_running, gpu.started_by_us) == (True, False)


def test_a_state_entered_twice_adds_up() -> None:
    events = [event(0, "a"), event(2, "b"), event(3, "a"), event(7, "b"), event(9, "c")]
    assert phases(events) == {"a": 360.0, "b": 180.0}


def test_the_cost_block_is_an_upper_bound_with_its_source() -> None:
    text = render_block(cost_block(build(RUN)))
    assert text.splitlines() == [
        "Cost Tracking:",
        "  GPU Type:       g4dn.xlarge",
        "  Hourly Rate:    $0.526 (AWS list, on-demand, us-east-2, as of 2026-11-23)",
        "  GPU Time:       at most 0.500 hours (1800 s)",
        "  GPU Cost:       at most $0.26",
        "  Chunks/Dollar:  ~449",
        "  $/Audio Hour:   at most $0.26, 1.00 h of audio",
        "  Savings:        at least $0.0970: AWS Transcribe charges $0.36 for the same audio",
    ]


@pytest.mark.parametrize(
    ("cost", "hours", "text"),
    [
        ("0.10", 1.0, "at least $0.26: AWS Transcribe charges $0.36 for the same audio"),
        ("0.0088", 0.01, "none, $0.0052 dearer: AWS Transcribe charges $0.0036 for the same audio"),
        ("0.0088", 0.0, "no audio"),
        ("0", 10.0, "at least $3.60: AWS Transcribe charges $3.60 for the same audio"),
    ],
)
def test_savings_are_against_a_named_price_and_a_loss_is_named(cost: str, hours: float, text: str) -> None:
    assert format_savings(make_savings(Usd.parse(cost), hours), NOW) == text


def test_a_report_has_the_savings_as_numbers() -> None:
    savings = build(RUN).savings
    assert savings is not None
    assert savings.saved_micros == 360_000 - RUN.cost.micros
    assert (savings.against, savings.hosted) == ("AWS Transcribe", 0.36)
    assert totals([RUN, RUN]).savings == make_savings(Usd(2 * RUN.cost.micros), 2.0)


def test_the_cost_block_of_nothing_divides_by_nothing() -> None:
    lines = dict(cost_block(build(replace(RUN, cost=Usd(0), audio_seconds=0.0))))
    assert (lines["Chunks/Dollar"], lines["$/Audio Hour"]) == ("no cost", "no audio")


def test_an_estimate_is_called_one() -> None:
    planned = Estimate(
        chunks=100,
        audio_seconds=1000.0,
        setup_seconds=150.0,
        work_seconds=1590.0,
        release_seconds=60.0,
        cost=Usd(263_000),
        rate=RATE,
    )
    lines = dict(estimate_block(planned, "g4dn.xlarge", NOW))
    assert (lines["Estimated Time"], lines["Estimated Cost"]) == ("0.500 hours (1800 s)", "$0.26")
    assert lines["Chunks/Dollar"] == "~380"


def test_a_bill_of_the_minimum_is_explained() -> None:
    end = NOW + timedelta(seconds=21)
    short = metered(RUN, meter(idle_until=NOW, running_since=NOW, running_until=NOW, stopped=end))
    lines = dict(cost_block(build(replace(short, cost=short.bill()))))
    assert lines["GPU Time"] == "at most 0.006 hours (21 s), billed as 60 s: the minimum of a start"
    assert lines["GPU Cost"] == "at most $0.0088"
    for without in (replace(short, borrowed=True), replace(short, rate=FREE)):
        assert "minimum" not in dict(cost_block(build(without)))["GPU Time"]


def test_the_minimum_of_each_of_several_starts_is_explained() -> None:
    used = meter(idle_until=NOW, running_since=NOW, running_until=NOW, stopped=NOW + timedelta(seconds=40))
    machines = tuple(Machine(id=f"r1-{number}", meter=used) for number in range(2))
    lines = dict(cost_block(build(replace(RUN, machines=machines))))
    assert lines["GPU Time"] == "at most 0.022 hours (80 s), each start billed as 60 s at least"


def test_totals_count_settled_runs_only() -> None:
    running = replace(RUN, id="r2", state=RunState.TRANSCRIBING, settled=None, cost=Usd(9))
    refused = replace(metered(RUN, Meter()), id="r3", cost=Usd(0))
    sums = totals([RUN, running, refused])
    assert (sums.runs, sums.starts, sums.chunks_done, sums.chunks_failed) == (2, 1, 236, 4)
    assert (sums.cost_micros, sums.audio_hours, sums.billed_hours) == (263_000, 2.0, 0.5)
    assert sums.cost_per_audio_hour == 0.1315


def test_reports_never_overwrite_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "batch-reports"
    first = write_report(folder, build(RUN))
    second = write_report(folder, build(replace(RUN, id="r2")))
    assert (first.name, second.name) == ("batch-2026-11-23-123300.json", "batch-2026-11-23-123300-2.json")
    assert [json.loads(path.read_text())["run"] for path in (first, second)] == ["r1", "r2"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([first.name, second.name])


def test_a_report_that_cannot_be_written_says_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MisconfiguredError, match=r"r1 cannot be written .* settled and in the ledger"):
        write_report(tmp_path / "file", build(RUN))


def call(folder: Path, *arguments: str) -> str:
    app = App()
    # What a cached property would have computed: the settings of this folder, whatever the shell says.
    app.__dict__["settings"] = load({}, folder=folder)
    result = CliRunner().invoke(report, list(arguments), obj=app, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_tells_a_period_as_json(tmp_path: Path) -> None:
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        ledger.save_run(RUN, at=NOW)
    document = json.loads(call(tmp_path, "--last", "9999w", "--format", "json"))
    assert document["totals"]["cost_micros"] == 263_000
    assert document["runs"][0]["status"] == "completed"
    assert document["runs"][0]["cost"] == 0.263


def test_the_command_tells_a_period_as_a_table(tmp_path: Path) -> None:
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        ledger.save_run(replace(RUN, timeline={"load": 7.0, "teardown": 30.04}), at=NOW)
        ledger.save_run(replace(RUN, id="r0", created=NOW - MINUTE, timeline={"load": 9.0}), at=NOW)
    output = call(tmp_path, "--last", "9999w")
    for text in (
        "Timeline of r1: load 7.0 s, teardown 30.0 s",
        "r1",
        "completed",
        "g4dn.xlarge",
        "$0.26",
        "$0.526",
        "at most $0.26 per audio hour",
        "2 runs settled, 2 GPU starts;",
    ):
        assert text in output


def test_an_old_rate_is_marked_in_the_table(tmp_path: Path) -> None:
    old = replace(RUN, rate=replace(RATE, as_of="2026-08-01"))
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        ledger.save_run(old, at=NOW)
    assert "$0.526, 114 days old" in call(tmp_path, "--last", "9999w")


@pytest.mark.parametrize(("width", "left_out"), [(200, set()), (80, {"$/h", "Started", "GPU"})])
def test_the_table_fits_the_width_without_folding_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, left_out: set[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = "20261129-143500-8b3114"
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        ledger.save_run(replace(RUN, id=name, outcome=Outcome.INTERRUPTED), at=NOW)
    lines = call(tmp_path, "--last", "9999w").splitlines()
    assert max(map(len, lines)) <= width
    assert lines[1].startswith(f"{name}  ")
    assert {each for each in ("$/h", "Started", "GPU", "Done", "Cost") if each not in lines[0]} <= left_out


def test_short_audio_is_not_shown_as_hours(tmp_path: Path) -> None:
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        ledger.save_run(replace(RUN, audio_seconds=21.0), at=NOW)
    assert "21 s of audio in 0.50 h of GPU." in " ".join(call(tmp_path, "--last", "9999w").split())


def test_without_runs_the_command_says_so_and_leaves_no_trace(tmp_path: Path) -> None:
    assert "No runs since" in call(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_csv_has_a_line_for_each_run() -> None:
    rows = list(csv.DictReader(render_csv(period_of([RUN], NOW, NOW)).splitlines()))
    assert [(row["run"], row["cost_micros"]) for row in rows] == [("r1", "263000")]


@pytest.mark.parametrize("text", ["0d", "7", "d7", "7y", "-1d", ""])
def test_a_period_that_is_none_is_wrong_usage(text: str) -> None:
    result = CliRunner().invoke(report, ["--last", text], obj=App())
    assert result.exit_code == 2
    assert "24h, 7d, 30d" in result.output
