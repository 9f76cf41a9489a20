"""Passes of the watchdog without systemd: after a killed tick, and beside one that stopped moving."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path

import pytest

from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.ledger import Ledger
from support.cli import Desk, finish_by_timer, local_desk, put_speech, wait_for
from support.forked import Forked

pytestmark = pytest.mark.e2e
CHUNKS = 9


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = local_desk(tmp_path, BATCH_THRESHOLD="1", BATCH_POLL_SECONDS="120")
    put_speech(made.bucket, "team-meeting", "morning-walk")
    return made


@pytest.fixture
def tick(desk: Desk) -> Iterator[Forked]:
    """A tick in the middle of its work, between two of its passes."""
    process = desk.start("tick")
    wait_for("transcribing" in desk.json("watchdog").get("found", "") for _ in repeat(None))
    wait_for(bool(list(desk.bucket.rglob("transcription-*.json"))) for _ in repeat(None))
    yield process
    process.kill()
    process.communicate()


def read_run(desk: Desk) -> Run:
    with Ledger(desk.home / ".batchscribe" / "ledger.sqlite") as ledger:
        (run,) = ledger.runs(datetime(2020, 1, 1, tzinfo=UTC))
    return run


def is_running(desk: Desk) -> bool:
    return (desk.home / ".batchscribe" / "local-instance.json").exists()


def is_all_done(desk: Desk) -> bool:
    run = read_run(desk)
    return (run.state, run.outcome, run.chunks_done) == (RunState.SETTLED, Outcome.COMPLETED, CHUNKS)


def test_a_tick_that_was_killed_leaves_a_run_that_the_timer_finishes(desk: Desk, tick: Forked) -> None:
    tick.kill()
    tick.wait()
    assert (read_run(desk).open, is_running(desk)) == (True, True)
    assert finish_by_timer(desk)["outcome"] == "completed"
    assert is_all_done(desk)
    assert not is_running(desk)
    assert desk.json("watchdog")["found"] == "no run is open"


def test_a_tick_that_stopped_moving_between_two_passes_holds_no_lock(desk: Desk, tick: Forked) -> None:
    tick.send_signal(signal.SIGSTOP)
    assert finish_by_timer(desk)["outcome"] == "completed"
    assert tick.poll() is None, "no other process is touched"
    assert is_all_done(desk)
    assert not is_running(desk)


def test_a_worker_that_was_killed_ends_its_run(desk: Desk, tick: Forked) -> None:
    tick.kill()
    tick.wait()
    (record,) = (desk.home / ".batchscribe" / "workers").glob("*.json")
    os.kill(json.loads(record.read_bytes())["pid"], signal.SIGKILL)
    assert finish_by_timer(desk)["outcome"] == "worker-lost"
    assert not is_running(desk)


def test_the_timer_stops_a_run_past_its_deadline(desk: Desk) -> None:
    for copy in range(4):
        put_speech(desk.bucket / f"copy{copy}", "team-meeting", "morning-walk", "notes")
    desk.json("tick", "--no-wait", BATCH_MAX_RUNTIME_HOURS="0.0001")
    assert finish_by_timer(desk)["outcome"] == "timed-out"
    assert not is_running(desk)
