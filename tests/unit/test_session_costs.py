"""A run's cost by session: divided at its settlement, summed in reports."""

from __future__ import annotations

import csv
import json
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.cli.app import App
from batchscribe.cli.report import report
from batchscribe.controller.tick import tick
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.runs import RunState
from batchscribe.core.run.session_costs import DoneChunk, SessionShare, divide_by_session, sum_by_session
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.values import NOW, run
from support.world import stage

MINUTE = timedelta(minutes=1)


def done(session: str, size: int, waited: int = 10) -> DoneChunk:
    return DoneChunk(session=session, key=f"{session}1.wav", size=size, arrived=NOW - waited * MINUTE)


def test_a_bill_is_divided_by_audio() -> None:
    settled = run(settled=NOW, cost=Usd(1_000), audio_seconds=40.0)
    parts = divide_by_session(
        settled, [done("a/", 300, 5), done("b/", 100, 70), done("a/", 0, 15)], {"wav": 10.0}, 60 * MINUTE
    )
    assert [(part.session, part.chunks, part.audio_seconds, part.cost_micros) for part in parts] == [
        ("a/", 2, 30.0, 750),
        ("b/", 1, 10.0, 250),
    ]
    assert [(part.waited_seconds, part.longest_seconds, part.late) for part in parts] == [
        (1200, 900, 0),
        (4200, 4200, 1),
    ]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 10**9)), min_size=1), st.integers(0, 10**9))
def test_the_parts_add_up_to_the_bill(chunks: list[tuple[str, int]], micros: int) -> None:
    settled = run(settled=NOW, cost=Usd(micros), audio_seconds=100.0)
    parts = divide_by_session(settled, [done(*each) for each in chunks], {}, MINUTE)
    assert sum(part.cost_micros for part in parts) == micros
    assert sum(part.audio_seconds for part in parts) == pytest.approx(100.0)
    assert sum(row.cost_micros for row in sum_by_session(parts)) == micros


def test_a_run_without_transcripts_has_no_parts() -> None:
    assert divide_by_session(run(settled=NOW, cost=Usd(5)), [], {}, MINUTE) == ()


def test_a_settlement_records_the_sessions_of_its_run(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(threshold=3))
    at.upload(2, session="one")
    at.upload(1, session="two")
    at.clock.sleep(600)
    (settled,) = tick(at.world, at.config).runs
    parts = at.ledger.sessions(NOW)
    assert [(part.run, part.session, part.chunks) for part in parts] == [
        (settled.id, "one/", 2),
        (settled.id, "two/", 1),
    ]
    assert sum(part.cost_micros for part in parts) == settled.cost.micros
    assert sum(part.audio_seconds for part in parts) == pytest.approx(settled.audio_seconds)
    assert parts[0].longest_seconds > 600
    at.ledger.save_sessions(settled.id, parts[:1])
    assert at.ledger.sessions(NOW) == parts[:1], "a settlement may be repeated"
    at.ledger.close()


def share(name: str, session: str, micros: int) -> SessionShare:
    return SessionShare(
        run=name,
        session=session,
        chunks=2,
        audio_seconds=1800.0,
        cost_micros=micros,
        waited_seconds=7200.0,
        longest_seconds=5400.0,
        late=1,
    )


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Two runs with sessions, one of an earlier version, one without a transcript."""
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        for name, micros, chunks in (
            ("r1", 300_000, 4),
            ("r2", 100_000, 2),
            ("old", 50_000, 1),
            ("none", 7, 0),
        ):
            settled = run(
                id=name,
                state=RunState.SETTLED,
                settled=NOW,
                cost=Usd(micros),
                chunks_done=chunks,
                audio_seconds=3600.0,
            )
            ledger.save_run(settled, at=NOW)
        ledger.save_sessions("r1", [share("r1", "a/", 200_000), share("r1", "b/", 100_000)])
        ledger.save_sessions("r2", [share("r2", "b/", 100_000)])
    made = App()
    made.__dict__["settings"] = load({}, folder=tmp_path)
    return made


def shown(app: App, *words: str) -> str:
    done = CliRunner().invoke(report, ["--last", "3000d", *words], obj=app)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_report_by_session(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(app, "--by", "session").splitlines()
    names = "Session Runs Done Audio Cost Longest wait Late $/audio hour Mean wait"
    assert lines[0].split() == names.split()
    assert lines[1].split() == ["a/", "1", "2", "0:30:00", "$0.20", "1.50", "h", "1", "0.4000", "1.00", "h"]
    assert lines[2].split() == ["b/", "2", "4", "1:00:00", "$0.20", "1.50", "h", "2", "0.2000", "1.00", "h"]
    assert "In no session: $0.0500. 1 run of an earlier version recorded no sessions." in lines


def test_documents_have_the_sessions_too(app: App) -> None:
    document = json.loads(shown(app, "--json"))
    assert [(row["session"], row["cost"], row["late"]) for row in document["sessions"]] == [
        ("a/", 0.2, 1),
        ("b/", 0.2, 2),
    ]
    assert (document["runs_without_sessions"], document["cost_without_session_micros"]) == (1, 50_007)
    rows = list(csv.DictReader(shown(app, "--by", "session", "--format", "csv").splitlines()))
    assert [(row["session"], row["chunks_done"], row["mean_wait_hours"]) for row in rows] == [
        ("a/", "2", "1.0"),
        ("b/", "4", "1.0"),
    ]
