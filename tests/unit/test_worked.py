"""What the workers of a run say of their time, from their last words to what people and programs read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchscribe.cli.report import describe_totals, render_csv
from batchscribe.cli.terminal.render import render_run
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.engine_time import (
    flag_text,
    format_engine_time,
    make_engine_time,
    measure_engine_time,
    sum_engine_time,
)
from batchscribe.core.run.manifest import EngineTimeSummary, ExitRecord, Timings
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.period import period_of
from batchscribe.core.run.records import decode_run, decode_settlement
from batchscribe.core.run.report import RunReport, build, encode, totals
from batchscribe.core.run.runs import RunState
from batchscribe.core.text import flags
from batchscribe.settings import load
from support.values import NOW, run
from support.world import Stage, stage

SAID = Timings(
    loaded=4.1,
    elapsed=104.1,
    busy=96.2,
    starved=3.5,
    blocked=0.3,
    starved_by={"fetch": 0.5, "decode": 3.0},
)
COUNTED = {"no-speech": 4, "repaired": 3, "partial": 1, "rerun": 2, "low-confidence": 1}
DONE = run(
    state=RunState.SETTLED, outcome=Outcome.COMPLETED, settled=NOW, worked=measure_engine_time(SAID, COUNTED)
)


def lines(**changes: Any) -> list[str]:
    return format_engine_time(
        make_engine_time(measure_engine_time(msgspec.structs.replace(SAID, **changes), {}))
    )


def test_the_engine_line_names_the_stage_that_starved_it() -> None:
    assert lines() == ["Engine: load 4.1 s, busy 96.2 %, starved 3.5 % (decode), blocked 0.3 %"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"starved": 3.0}, "starved 3.0 %, blocked 0.3 %"),
        (
            {"starved": 3.1, "starved_by": {"fetch": 3.0, "decode": 0.1}},
            "starved 3.1 % (fetch), blocked 0.3 %",
        ),
        ({"starved": 50.0, "starved_by": {}}, "starved 50.0 %, blocked 0.3 %"),
        ({"blocked": 3.1, "starved": 0.0}, "starved 0.0 %, blocked 3.1 % (publishing)"),
        ({"blocked": 9.0}, "starved 3.5 % (decode), blocked 9.0 % (publishing)"),
    ],
    ids=str,
)
def test_only_what_took_more_than_three_percent_is_blamed(changes: dict[str, Any], said: str) -> None:
    (line,) = lines(**changes)
    assert line.endswith(said)


def test_an_engine_that_never_loaded_has_no_shares() -> None:
    assert lines(loaded=None) == []
    assert make_engine_time(EngineTimeSummary()) is None
    work = make_engine_time(measure_engine_time(Timings(loaded=2.0, elapsed=2.0), {}))
    assert work is not None
    assert (work.load_seconds, work.busy_share, work.to_blame) == (2.0, None, ())


def test_flags_come_in_one_order_and_a_new_one_after_them() -> None:
    everything = "3 repaired, 1 partial, 2 rerun, 1 low-confidence, 4 no-speech"
    assert flag_text(COUNTED) == everything
    assert flag_text(COUNTED | {"alien": 2}) == f"{everything}, 2 alien"
    assert flag_text({flags.PARTIAL: 0}) == ""


def test_several_workers_are_one_sum() -> None:
    other = Timings(loaded=6.0, elapsed=56.0, busy=30.0, starved=20.0, starved_by={"decode": 20.0})
    never = Timings(elapsed=900.0)
    sums = sum_engine_time(
        [
            measure_engine_time(SAID, COUNTED),
            measure_engine_time(other, {"partial": 2, "alien": 1}),
            measure_engine_time(never, {}),
        ]
    )
    assert (sums.workers, sums.load, sums.after_load) == (3, 10.1, 150.0)
    assert (sums.busy, sums.starved, sums.blocked) == (126.2, 23.5, 0.3)
    assert sums.starved_by == {"fetch": 0.5, "decode": 23.0}
    assert sums.flags == COUNTED | {"partial": 3, "alien": 1}


def test_a_run_s_report_has_it_for_people_and_programs(tmp_path: Path) -> None:
    document = json.loads(encode(build(DONE)))
    assert document["work"] == {
        "workers": 1,
        "load_seconds": 4.1,
        "after_load_seconds": 100.0,
        "busy_seconds": 96.2,
        "starved_seconds": 3.5,
        "blocked_seconds": 0.3,
        "starved_by": {"fetch": 0.5, "decode": 3.0},
        "busy_share": 0.962,
        "starved_share": 0.035,
        "blocked_share": 0.003,
        "to_blame": ["decode"],
        "flags": COUNTED,
    }
    told = "\n".join(render_run(DONE, load({}, folder=tmp_path), left=None))
    assert "Flags: 3 repaired, 1 partial" in told


def test_a_period_sums_its_runs() -> None:
    silent = replace(DONE, id="silent", worked=EngineTimeSummary())
    period = period_of([DONE, DONE, silent], NOW, NOW)
    assert period.totals.work is not None
    assert (period.totals.work.workers, period.totals.work.flags["repaired"]) == (2, 6)
    assert [row.busy_share for row in period.runs] == [0.962, 0.962, None]
    table = list(csv.DictReader(render_csv(period).splitlines()))
    assert (table[0]["to_blame"], table[0]["flags"]) == ("decode", flag_text(COUNTED))
    assert (table[2]["busy_share"], table[2]["flags"]) == ("", "")
    assert describe_totals(totals([silent]), NOW).count("\n") == 2


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW, max_runtime=timedelta(hours=1)))
    yield made
    made.ledger.close()


def speaks(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a worker's last word has all of it."""
    whole = at.store.create

    def create(key: str, data: bytes) -> bool:
        if key.endswith("/exit.json"):
            record = wire.decode(data, ExitRecord)
            data = wire.encode(msgspec.structs.replace(record, timings=SAID, flags=COUNTED))
        return whole(key, data)

    monkeypatch.setattr(at.store, "create", create)


def test_what_a_worker_said_last_survives_the_run_and_the_ledger(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.upload(3)
    at.clock.sleep(600)
    speaks(at, monkeypatch)
    (closed,) = tick(at.world, at.config).runs
    assert closed.worked == measure_engine_time(SAID, COUNTED)
    assert at.ledger.run(closed.id) == closed
    stored = at.store.get(keys.settlement(closed.id)).data
    assert decode_settlement(stored, replace(closed, worked=EngineTimeSummary())) == closed


def test_a_worker_without_a_last_word_is_believed_by_its_last_report(at: Stage) -> None:
    at.upload(3)
    at.clock.sleep(600)
    at.worker.dies_after = 2
    (closed,) = tick(at.world, at.config).runs
    assert closed.outcome is Outcome.WORKER_LOST
    assert (closed.worked.workers, closed.worked.busy, closed.worked.flags) == (1, 6.0, {})


def without(document: Any, *names: str) -> bytes:
    plain = msgspec.to_builtins(document)
    return msgspec.json.encode({name: value for name, value in plain.items() if name not in names})


def test_what_was_written_before_reads_as_before(at: Stage) -> None:
    at.ledger.save_run(DONE, at=NOW)
    with at.ledger._open_transaction():
        old = without(DONE, "worked").decode()
        at.ledger._db.execute("UPDATE runs SET document = ?", (old,))
    assert at.ledger.run(DONE.id) == replace(DONE, worked=EngineTimeSummary())
    report = build(replace(DONE, worked=EngineTimeSummary()))
    assert msgspec.json.decode(without(report, "work"), type=RunReport) == report
    assert decode_run(without(DONE, "worked")) == replace(DONE, worked=EngineTimeSummary())


def test_a_result_has_at_most_ten_lines(tmp_path: Path) -> None:
    failures = {f"s/chunk-{number:03}.wav": "not audio" for number in range(3)}
    worst = replace(DONE, chunks_done=90, chunks_failed=7, failures=failures, audio_seconds=600.0)
    shown = list(render_run(worst, load({}, folder=tmp_path), left=3))
    assert shown[0] == ""
    assert shown[1].endswith("completed, 90 done, 3 left, 7 quarantined: `batchscribe quarantine list`")
    retried = list(render_run(replace(worst, outcome=Outcome.INCOMPLETE), load({}, folder=tmp_path), left=0))
    assert "90 done, 7 failed: `batchscribe why s/chunk-000.wav` shows the attempts left" in retried[1]
    assert len("\n".join(shown[1:]).splitlines()) <= 10
    assert [line for line in shown if line.startswith(("Cost: at most $", "Savings: "))] == shown[-4:-2]


def test_without_a_disk_the_report_is_the_ledger_s(tmp_path: Path) -> None:
    settings = load({"BATCH_STATE_DIR": "s3://state", "GPU_PROVIDER": "ec2"}, folder=tmp_path)
    last = list(render_run(DONE, settings, left=None))[-1]
    assert last == "Report: `batchscribe report`, from the ledger in s3://state"
