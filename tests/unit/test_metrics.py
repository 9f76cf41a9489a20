"""Metrics: from the ledger alone, in the format of Prometheus, and nothing that is not known."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from batchscribe.cli.app import App
from batchscribe.cli.report import metrics
from batchscribe.controller.commands.rehearsal import PROVED, Proof
from batchscribe.controller.external_state import NOTED
from batchscribe.controller.observe import PAUSED
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import RunState
from batchscribe.dashboard.metrics import COUNTER, METRICS, PREFIX, render_metrics
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.ledgers import settled_run
from support.values import NOW, moment, run

HOUR = timedelta(hours=1)
SETTINGS = {
    "GPU_PROVIDER": "ec2",
    "GPU_INSTANCE_ID": "i-0123456789abcdef0",
    "BATCH_CLOUD_GUARD": "eventbridge",
    "BATCH_MAX_DOLLARS_PER_DAY": "5",
    "BATCH_HOST_HOURLY_COST": "0.0042",
}
OPEN = run(
    id="r9",
    state=RunState.RELEASING,
    created=NOW - HOUR,
    deadline=NOW + HOUR,
    start_requested=NOW - HOUR,
    running_since=NOW - HOUR,
    stop_requested=moment(-120),
)


def sample(hours: float, pending: int = 40, **changes: object) -> QueueSample:
    values: dict[str, object] = {
        "at": NOW + hours * HOUR,
        "pending": pending,
        "triggering": pending - 3,
        "waiting": 2,
        "oldest": NOW - 5 * HOUR,
        "decision": "below-threshold",
        "sentence": "",
        "numbers": {"quarantined": 7},
    }
    return QueueSample(**(values | changes))  # type: ignore[arg-type]


def measured(folder: Path) -> dict[tuple[str, ...], float]:
    """Numbers by name and labels' values, as Prometheus reads them."""
    with Ledger(folder / FILE_NAME) as ledger:
        text = render_metrics(load(SETTINGS, folder=folder), ledger, NOW).decode()
    return {
        (each.name.removeprefix(PREFIX), *each.labels.values()): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger in which every metric has a number."""
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_sample(sample(-1.5))
        for number in range(2):
            settled = settled_run(f"r{number}", NOW - (3 + number) * HOUR, 60)
            ledger.save_run(replace(settled, abandoned_gpu=not number, chunks_failed=number), at=NOW)
        ledger.save_run(OPEN, at=NOW - HOUR)
        ledger.put(f"{NOTED}r0", "i-1")
        ledger.put(f"{NOTED}r9", "i-1")
        ledger.put(PAUSED, (NOW + HOUR).isoformat())
        proof = Proof(act="box", at=NOW - HOUR, run="r0", proved=True, seconds=60.0, detail="")
        ledger.put(f"{PROVED}box", msgspec.json.encode(proof).decode())
    return tmp_path


def test_each_metric_has_a_number(folder: Path) -> None:
    assert {name for name, *_ in measured(folder)} == {each.name for each in METRICS}


def test_the_numbers_are_those_of_the_ledger(folder: Path) -> None:
    found = measured(folder)
    cost = 2 * settled_run("r", NOW, 60).cost.dollars
    expected = {
        ("backlog_chunks", "triggering"): 37,
        ("backlog_chunks", "previously_failed"): 3,
        ("backlog_chunks", "waiting"): 2,
        ("quarantined_chunks",): 7,
        ("oldest_chunk_timestamp_seconds",): (NOW - 5 * HOUR).timestamp(),
        ("max_wait_seconds",): 86_400,
        ("open_runs", "releasing"): 1,
        ("open_runs", "planned"): 0,
        ("run_deadline_timestamp_seconds",): OPEN.deadline.timestamp(),
        ("instances_not_stopped",): 1,
        ("instance_started_timestamp_seconds",): (NOW - HOUR).timestamp(),
        ("stop_requested_timestamp_seconds",): (NOW - timedelta(minutes=2)).timestamp(),
        ("runs_not_proved_stopped_total",): 1,
        ("uncleaned_runs",): 1,
        ("guarded_runs",): 1,
        ("proof_success", "box"): 1,
        ("paused",): 1,
        ("runs_total", "completed"): 2,
        ("chunks_total", "done"): 120,
        ("chunks_total", "failed"): 1,
        ("audio_seconds_total",): 7200,
        ("cost_dollars_total",): pytest.approx(cost),
        ("day_cost_dollars",): pytest.approx(cost),
        ("day_budget_dollars",): 5,
        ("savings_dollars", "AWS Transcribe"): pytest.approx(0.72 - cost),
    }
    assert {key: found[key] for key in expected} == expected


def test_an_empty_ledger_claims_nothing(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert ("last_tick_timestamp_seconds",) not in found
    assert ("oldest_chunk_timestamp_seconds",) not in found
    assert ("run_deadline_timestamp_seconds",) not in found
    assert not [name for name, *_ in found if name == "savings_dollars"]
    assert found["instances_not_stopped",] == 0


def test_an_open_run_that_cannot_be_read_is_counted(folder: Path) -> None:
    before = measured(folder)
    with Ledger(folder / FILE_NAME) as ledger:
        ledger.save_run(replace(OPEN, id="newer"), at=NOW)
        change = "UPDATE runs SET document = replace(document, ?, ?) WHERE id = 'newer'"
        ledger._db.execute(change, ('"version":3', '"version":4'))
    found = measured(folder)
    assert (before["unreadable_runs",], found["unreadable_runs",]) == (0, 1)
    assert found["instances_not_stopped",] == before["instances_not_stopped",]
    assert ("quarantined_chunks",) not in found


def test_a_run_on_the_cpu_lane_is_no_instance_that_must_stop(tmp_path: Path) -> None:
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_run(replace(OPEN, lane=True, provider="local"), at=NOW)
    found = measured(tmp_path)
    assert (found["open_runs", "releasing"], found["instances_not_stopped",], found["guarded_runs",]) == (
        1,
        0,
        0,
    )
    times = {"run_deadline", "instance_started", "stop_requested"}
    assert not times & {name[0].removesuffix("_timestamp_seconds") for name in found}


def test_after_a_run_the_oldest_chunk_is_unknown_until_the_next_check(tmp_path: Path) -> None:
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_sample(sample(-4))
        assert ("oldest_chunk_timestamp_seconds",) in measured(tmp_path)
        ledger.save_run(settled_run("r1", NOW - 3 * HOUR, 60), at=NOW)
        assert ("oldest_chunk_timestamp_seconds",) not in measured(tmp_path)
        ledger.save_sample(sample(-0.5))
    assert ("oldest_chunk_timestamp_seconds",) in measured(tmp_path)


def test_counters_never_fall_when_the_ledger_is_pruned(folder: Path) -> None:
    before = measured(folder)
    with Ledger(folder / FILE_NAME) as ledger:
        ledger.prune(NOW + HOUR)
    after = measured(folder)
    names = {each.name for each in METRICS if each.kind == COUNTER}
    assert {key: value for key, value in after.items() if key[0] in names} == {
        key: value for key, value in before.items() if key[0] in names
    }


def test_names_follow_the_rules_of_prometheus() -> None:
    for each in METRICS:
        assert each.name.endswith("_total") == (each.kind == COUNTER), each.name
        assert not each.meaning.endswith("."), each.name


def call(folder: Path, *arguments: str) -> tuple[int, str]:
    app = App()
    app.__dict__["settings"] = load(SETTINGS, folder=folder)
    result = CliRunner().invoke(metrics, [*arguments], obj=app)
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_file_is_replaced_and_readable_for_node_exporter(tmp_path: Path) -> None:
    file = tmp_path / "batchscribe.prom"
    file.write_text("old")
    assert call(tmp_path, "--textfile", str(file)) == (0, "")
    assert file.read_text() == call(tmp_path)[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("name", "reason"), [("batchscribe.txt", "ends in .prom"), ("no/batchscribe.prom", "create ")]
)
def test_a_file_that_node_exporter_would_not_read_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    code, output = call(tmp_path, "--textfile", str(tmp_path / name))
    assert code == 1
    assert reason in output
    assert list(tmp_path.iterdir()) == []
