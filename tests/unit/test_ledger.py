from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.errors import DamagedLedgerError, MisconfiguredError, RefusedError, TransientError
from batchscribe.ledger import Ledger
from batchscribe.ledger.schema import migrations, queries

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RUN = Run(
    id="r1",
    provider="ec2",
    machines=(Machine(id="i-1"),),
    policy="threshold",
    reason="100 chunks pending",
    created=NOW,
    deadline=NOW + 2 * HOUR,
    rate=Rate(per_hour=Usd(526_000), source="test", as_of="2026-11-23"),
)
DEFAULT = Priors(speed=20.0, setup_seconds=150.0, release_seconds=60.0, bytes_per_second={"wav": 32_000.0})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


def learn(ledger: Ledger, run: str, *, speed: float, at: datetime = NOW, **changes: object) -> None:
    lesson = {"engine": "faster-whisper", "model": "small.en", "instance_type": "g4dn.xlarge"}
    lesson |= {name: str(changes.pop(name)) for name in lesson if name in changes}
    usual = Priors(setup_seconds=100.0, release_seconds=30.0, bytes_per_second={"mp3": 6000.0})
    measured = replace(usual, speed=speed, **changes)  # type: ignore[arg-type]
    ledger.learn(run=run, at=at, measured=measured, **lesson)


def priors(ledger: Ledger, model: str = "small.en") -> Priors:
    return ledger.priors(engine="faster-whisper", model=model, instance_type="g4dn.xlarge", default=DEFAULT)


def test_it_is_durable_and_reopens(path: Path) -> None:
    with Ledger(path) as first:
        first.save_run(RUN, at=NOW, note="intent")
        modes = [
            first._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    assert modes == ["wal", 2]
    with Ledger(path) as second:
        assert second.run("r1") == RUN
        assert second.run("r2") is None


def test_a_run_is_updated_and_its_history_grows(ledger: Ledger) -> None:
    ledger.save_run(RUN, at=NOW, note="planned")
    armed = replace(RUN, state=RunState.ARMED)
    ledger.save_run(armed, at=NOW + HOUR, note="armed")
    assert ledger.open_runs() == (armed,)
    history = [(event.at, event.state, event.note) for event in ledger.events("r1")]
    assert history == [(NOW, "planned", "planned"), (NOW + HOUR, "armed", "armed")]


def settled(name: str, at: datetime, micros: int = 0) -> Run:
    return replace(
        RUN, id=name, state=RunState.SETTLED, outcome=Outcome.COMPLETED, settled=at, cost=Usd(micros)
    )


def test_a_period_holds_what_was_settled_in_it_and_what_is_open(ledger: Ledger) -> None:
    old, new = settled("old", NOW - 30 * HOUR, 7), settled("new", NOW - HOUR, 5)
    running = replace(RUN, id="open", created=NOW + HOUR)
    for run in (old, new, running):
        ledger.save_run(run, at=NOW)
    assert ledger.runs(NOW - 24 * HOUR) == (new, running)
    assert ledger.open_runs() == (running,)
    assert ledger.spent(NOW - 24 * HOUR) == Usd(5)
    assert ledger.spent(NOW - 48 * HOUR) == Usd(12)


def test_a_time_without_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="zone"):
        ledger.save_run(RUN, at=datetime(2026, 11, 23))  # noqa: DTZ001


def test_text_that_utf8_cannot_hold_is_kept_readable(ledger: Ledger) -> None:
    ledger.save_run(replace(RUN, detail="lost \udcff.wav"), at=NOW, note="\udcff")
    kept = ledger.run("r1")
    assert kept is not None
    assert kept.detail == "lost \\udcff.wav"


def test_samples_come_back_in_order(ledger: Ledger) -> None:
    for minutes in (0, 60):
        ledger.save_sample(
            QueueSample(
                at=NOW + timedelta(minutes=minutes),
                pending=40,
                triggering=39,
                waiting=2,
                oldest=NOW - HOUR if minutes else None,
                decision="below-threshold",
                sentence="39 chunks pending, below the threshold of 100",
                numbers={"threshold": 100, "hours": 0.5, "run": None},
            )
        )
    first, second = ledger.samples(NOW)
    assert (first.at, first.oldest, first.pending, first.triggering, first.waiting) == (NOW, None, 40, 39, 2)
    assert (second.at, second.oldest) == (NOW + HOUR, NOW - HOUR)
    assert second.numbers == {"threshold": 100, "hours": 0.5, "run": None}
    assert ledger.samples(NOW + timedelta(minutes=1)) == (second,)


def test_the_last_tick_is_the_last_thing_written(ledger: Ledger) -> None:
    assert ledger.last_tick() is None
    ledger.save_run(RUN, at=NOW)
    assert ledger.last_tick() == NOW


def test_nothing_learned_is_the_default(ledger: Ledger) -> None:
    assert priors(ledger) == DEFAULT


def test_priors_are_medians_of_the_latest_lessons(ledger: Ledger) -> None:
    learn(ledger, "ancient", speed=1.0, at=NOW - 100 * HOUR)
    for number in range(10):
        learn(ledger, f"r{number}", speed=50.0 + number, at=NOW + number * HOUR)
    learned = priors(ledger)
    assert learned.speed == 54.5
    assert (learned.setup_seconds, learned.release_seconds, learned.learned) == (100.0, 30.0, True)
    assert learned.setup_p95_seconds == 100.0
    assert learned.bytes_per_second == {"wav": 32_000.0, "mp3": 6000.0}


def test_a_slow_set_up_is_the_slowest_of_ten_and_until_then_at_least_the_assumed_one(ledger: Ledger) -> None:
    learn(ledger, "r0", speed=50.0, setup_seconds=250.0)
    assert priors(ledger).setup_p95_seconds == DEFAULT.setup_p95_seconds == 300.0
    learn(ledger, "r1", speed=50.0, setup_seconds=400.0)
    assert priors(ledger).setup_p95_seconds == 400.0
    for number in range(10):
        learn(ledger, f"r{number + 2}", speed=50.0, setup_seconds=90.0 + number, at=NOW + HOUR)
    assert priors(ledger).setup_p95_seconds == 99.0


def test_speed_belongs_to_the_model_and_bytes_to_the_recordings(ledger: Ledger) -> None:
    learn(ledger, "r1", speed=80.0)
    other = priors(ledger, model="large-v3")
    assert (other.speed, other.learned) == (20.0, False)
    assert other.bytes_per_second["mp3"] == 6000.0


def test_a_lesson_is_learned_once_and_what_is_unknown_is_not_learned(ledger: Ledger) -> None:
    learn(ledger, "r1", speed=80.0, bytes_per_second={"mp3": 1.0, "ogg": 0.0})
    learn(ledger, "r1", speed=60.0, setup_seconds=0.0, bytes_per_second={"wav": 16_000.0})
    learned = priors(ledger)
    assert (learned.speed, learned.setup_seconds) == (60.0, 150.0)
    assert learned.bytes_per_second == {"wav": 16_000.0}


def test_small_facts_are_put_replaced_and_forgotten(ledger: Ledger) -> None:
    assert ledger.get("paused_until") is None
    ledger.put("paused_until", "x")
    ledger.put("paused_until", "y")
    assert ledger.get("paused_until") == "y"
    ledger.put("paused_until", None)
    assert ledger.get("paused_until") is None


def test_an_alert_is_due_once_in_its_interval_across_restarts(path: Path) -> None:
    with Ledger(path) as first:
        assert first.is_alert_due("overdue", NOW, 6 * HOUR)
        first.record_alert("overdue", NOW)
        assert not first.is_alert_due("overdue", NOW + 5 * HOUR, 6 * HOUR)
        assert first.is_alert_due("another", NOW + 5 * HOUR, 6 * HOUR)
    with Ledger(path) as second:
        assert not second.is_alert_due("overdue", NOW + 5 * HOUR, 6 * HOUR)
        assert second.is_alert_due("overdue", NOW + 6 * HOUR, 6 * HOUR)


def test_a_failure_between_two_statements_changes_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.save_run(RUN, at=NOW)
    monkeypatch.setitem(queries(), "save_event", "INSERT INTO no_such_table VALUES (:run)")
    with pytest.raises(MisconfiguredError):
        ledger.save_run(replace(RUN, state=RunState.ARMED), at=NOW)
    assert ledger.run("r1") == RUN


def test_a_death_between_two_statements_changes_nothing(path: Path) -> None:
    with Ledger(path) as before:
        before.save_run(RUN, at=NOW)
    script = (
        "import os, sys; from pathlib import Path; from batchscribe.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "with ledger._open_transaction():\n"
        "    ledger._execute_query('put', {'key': 'half', 'value': 'done'})\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    with Ledger(path) as after:
        assert (after.run("r1"), after.get("half")) == (RUN, None)


def test_a_held_ledger_is_transient(path: Path, ledger: Ledger) -> None:
    with Ledger(path, pragmas={"busy_timeout": "1"}) as other, ledger._open_transaction():
        with pytest.raises(TransientError, match="held by another process"):
            other.put("key", "value")
        assert other.get("key") is None


def test_a_damaged_file_is_named_and_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, and yet it is long enough to look like one" * 40)
    before = path.read_bytes()
    with pytest.raises(DamagedLedgerError, match=r"damaged.*the store still has") as caught:
        Ledger(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_pages_that_were_overwritten_are_damage_before_anything_is_read_from_them(path: Path) -> None:
    with Ledger(path) as ledger:
        for number in range(100):
            ledger.save_run(replace(RUN, id=f"r{number}"), at=NOW)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(DamagedLedgerError):
        Ledger(path)


def test_a_table_that_is_gone_is_damage(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._db.execute("DROP TABLE runs")
    with pytest.raises(DamagedLedgerError, match="no table runs"):
        Ledger(path)


def test_a_full_disk_is_told_as_one(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(MisconfiguredError, match=r"is full: nothing was changed"):
        ledger.put("key", "x" * 1_000_000)
    assert ledger.get("key") is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MisconfiguredError, match="cannot be used"):
        Ledger(tmp_path / "file" / "ledger")


def test_a_ledger_of_a_newer_batchscribe_is_left_alone(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._db.execute("INSERT INTO migrations VALUES (9999)")
    with pytest.raises(MisconfiguredError, match="newer batchscribe"):
        Ledger(path)


@pytest.mark.parametrize("change", [("planned", "hibernating"), ('"version":3', '"version":4')], ids=str)
def test_a_run_that_cannot_be_read_keeps_no_other_from_being_stopped(
    ledger: Ledger, change: tuple[str, str]
) -> None:
    for name in ("newer", "r1"):
        ledger.save_run(replace(RUN, id=name), at=NOW)
    ledger._db.execute("UPDATE runs SET document = replace(document, ?, ?) WHERE id = 'newer'", change)
    assert ledger.open_runs() == (RUN,)
    assert [problem for problem in ledger.unreadable if problem]
    with pytest.raises(MisconfiguredError, match="cannot read"):
        ledger.run("newer")
    ledger._db.execute("UPDATE runs SET state = 'settled' WHERE id = 'newer'")
    assert ledger.open_runs() == (RUN,)
    assert not ledger.unreadable


def test_a_migration_is_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(path) as ledger:
        ledger.save_run(RUN, at=NOW)
    monkeypatch.setitem(migrations(), 3, "CREATE TABLE half (x); CREATE TABLE half (x);")
    with pytest.raises(MisconfiguredError, match="already exists"):
        Ledger(path)
    monkeypatch.setitem(migrations(), 3, "CREATE TABLE half (x); -- one; two\nCREATE TABLE other (x);")
    with Ledger(path) as ledger:
        assert ledger.run("r1") == RUN
        assert ledger._db.execute("SELECT number FROM migrations").fetchall() == [(1,), (2,), (3,)]


def test_every_query_can_be_prepared(ledger: Ledger) -> None:
    for name, query in queries().items():
        values: dict[str, object] = dict.fromkeys(
            (
                "id",
                "run",
                "since",
                "key",
                "value",
                "at",
                "state",
                "note",
                "outcome",
                "created",
                "settled",
                "cost_micros",
                "document",
                "pending",
                "triggering",
                "waiting",
                "oldest",
                "decision",
                "sentence",
                "numbers",
                "engine",
                "model",
                "instance_type",
                "speed",
                "setup_seconds",
                "release_seconds",
                "type",
                "bytes_per_second",
                "last",
                "count",
                "skip",
                "before",
                "prefix",
                "session",
                "chunks",
                "audio_seconds",
                "waited_seconds",
                "longest_seconds",
                "late",
            )
        )
        assert sqlite3.complete_statement(query), name
        ledger._db.execute(f"EXPLAIN {query}", values)


def test_a_ledger_that_may_not_be_written_is_told(path: Path) -> None:
    Ledger(path).close()
    with (
        Ledger(path, pragmas={"query_only": "1"}) as ledger,
        pytest.raises(MisconfiguredError, match="owner and rights"),
    ):
        ledger.put("key", "value")


def test_a_settled_run_is_not_opened_again(ledger: Ledger) -> None:
    """A controller that lost its lock, and does not know it yet, must not bring a closed run back."""
    over = replace(RUN, state=RunState.SETTLED, settled=NOW)
    ledger.save_run(over, at=NOW)
    with pytest.raises(RefusedError):
        ledger.save_run(replace(over, state=RunState.RELEASING, settled=None), at=NOW)
    assert ledger.run(over.id) == over


def test_speeds_are_medians_for_each_engine_model_and_type(ledger: Ledger) -> None:
    learn(ledger, "r1", speed=80.0)
    learn(ledger, "r2", speed=90.0, at=NOW + HOUR)
    learn(ledger, "r3", speed=100.0, at=NOW + 2 * HOUR)
    learn(ledger, "r4", speed=0.0, at=NOW + 3 * HOUR)
    learn(ledger, "r5", speed=10.0, engine="parakeet", model="m", instance_type="")
    assert [(each.engine, each.instance_type, each.speed, each.runs) for each in ledger.speeds()][1:] == [
        ("parakeet", "", 10.0, 1)
    ]
    assert (ledger.speeds()[0].speed, ledger.speeds()[0].runs) == (90.0, 3)


def test_pruning_takes_old_rows_of_settled_runs_only(ledger: Ledger) -> None:
    before, old = NOW, NOW - HOUR
    closed, open_run = settled("old", old), replace(RUN, id="open", created=old)
    recent = settled("recent", NOW)
    for run in (closed, open_run, recent):
        ledger.save_run(run, at=old)
        for key in (f"once/{run.id}", f"scan/{run.id}", f"watch/{run.id}/0", f"outside/{run.id}"):
            ledger.put(key, "x")
    ledger.put("paused_until", "x")
    for at in (old, NOW):
        ledger.save_sample(
            QueueSample(at=at, pending=1, triggering=1, waiting=0, oldest=None, decision="d", sentence="s")
        )
    ledger.record_alert("tick-failed", old)
    learn(ledger, "old", speed=7.0, at=old)
    ledger.prune(before)
    assert [sample.at for sample in ledger.samples(old)] == [NOW]
    assert [bool(ledger.events(run.id)) for run in (closed, open_run, recent)] == [False, True, True]
    assert {run.id for run in ledger.runs(old)} == {"old", "open", "recent"}
    assert priors(ledger, "small.en").speed == 7.0
    assert set(ledger.facts("")) == {
        *(f"{kind}/{run}" for kind in ("once", "scan") for run in ("open", "recent")),
        *(f"watch/{run}/0" for run in ("open", "recent")),
        *(f"outside/{run}" for run in ("old", "open", "recent")),
        "paused_until",
    }
    assert ledger.is_alert_due("tick-failed", NOW, timedelta(days=1)), "its last alert is forgotten"
