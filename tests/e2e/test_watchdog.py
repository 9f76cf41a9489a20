"""The watchdog beside a real tick without systemd: one that hangs, one that works, one that is another."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.detached import descendants, end, identity
from batchscribe.ledger import Ledger
from support.cli import Desk, local_desk, put_speech, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = local_desk(tmp_path, BATCH_THRESHOLD="1")
    for copy in range(12):
        put_speech(made.bucket / f"copy{copy}", "team-meeting", "morning-walk", "notes")
    return made


@pytest.fixture
def tick(desk: Desk) -> Iterator[subprocess.Popen[str]]:
    """A tick in the middle of its work, that stands still."""
    process = desk.start("tick")
    wait_for(bool(list(desk.bucket.rglob("transcription-*.json"))) for _ in range(9999))
    process.send_signal(signal.SIGSTOP)
    below = descendants(process.pid)
    yield process
    for each in (identity(process.pid), *below):
        if each is not None:
            end(each, force=True)
    process.communicate()


def says(desk: Desk, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes what the holder of the lock says of itself."""
    record = desk.home / ".batchscribe" / "tick.holder"
    said = json.loads(record.read_bytes())
    record.write_text(json.dumps(said | change(said)))


def hung(said: dict[str, Any]) -> dict[str, Any]:
    return {"alive": said["alive"] - 1200, "since": said["since"] - 1200}


def the_run(desk: Desk) -> Run:
    with Ledger(desk.home / ".batchscribe" / "ledger.sqlite") as ledger:
        (run,) = ledger.runs(datetime(2020, 1, 1, tzinfo=UTC))
    return run


def test_a_tick_that_hangs_is_ended_with_its_worker_and_its_run_settled(
    desk: Desk, tick: subprocess.Popen[str]
) -> None:
    below = descendants(tick.pid)
    assert below, "the worker is its child"
    says(desk, hung)
    document = desk.json("watchdog")
    assert document["ended"] == tick.pid
    assert tick.wait() == -signal.SIGKILL
    assert not any(identity(each.pid) == each for each in below)
    run = the_run(desk)
    assert document["released"] == [{"run": run.id, "outcome": "hung"}]
    assert (run.state, run.outcome) == (RunState.SETTLED, Outcome.HUNG)
    assert not (desk.home / ".batchscribe" / "local-instance.json").exists(), "the instance runs"
    assert desk.json("watchdog")["found"] == "no run is open"


def test_whoever_got_the_number_of_a_tick_is_not_ended_for_it(
    desk: Desk, tick: subprocess.Popen[str]
) -> None:
    says(desk, lambda said: hung(said) | {"ticks": said["ticks"] - 1})
    document = desk.json("watchdog")
    assert "left alone" in document["found"]
    assert document["ended"] is None
    assert tick.poll() is None
    assert the_run(desk).outcome is None


def test_a_tick_that_showed_life_a_moment_ago_is_left_alone(desk: Desk, tick: subprocess.Popen[str]) -> None:
    events = the_run(desk)
    assert "is at work: left alone" in desk.run("watchdog").stdout
    assert tick.poll() is None
    assert the_run(desk) == events


def test_a_tick_that_works_shows_life(desk: Desk, tick: subprocess.Popen[str]) -> None:
    says(desk, hung)
    record = desk.home / ".batchscribe" / "tick.holder"
    before = json.loads(record.read_bytes())
    tick.send_signal(signal.SIGCONT)
    wait_for(json.loads(record.read_bytes())["alive"] > before["alive"] + 1200 for _ in range(9999))
    assert "is at work: left alone" in desk.run("watchdog").stdout
