"""The overview of a scheduler: runs, decision, next start, money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.controller.commands import doctor as checks
from batchscribe.controller.commands.overview import overview
from batchscribe.controller.observe import PAUSED
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.policy import Hold
from batchscribe.core.run.host import Grade
from batchscribe.core.run.records import encode_run
from batchscribe.errors import StoreUnavailableError
from support import values
from support.played_tick import put_in_progress
from support.world import Stage, stage


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW))
    yield made
    made.ledger.close()


def test_a_run_in_progress_shows_chunks_time_left_and_cost(at: Stage) -> None:
    put_in_progress(at)
    (shown,) = overview(at.world, at.config).runs
    assert (shown.done, shown.failed, shown.total) == (1, 1, 4)
    assert shown.left == timedelta(seconds=60)
    assert shown.cost.dollars > 0


def test_a_hold_shows_the_next_start_at_the_latest(tmp_path: Path) -> None:
    at = stage(tmp_path)
    at.upload(3)
    uploaded = at.clock.now()
    at.clock.sleep(600)
    seen = overview(at.world, at.config)
    assert isinstance(seen.decision, Hold)
    assert seen.next_start is not None
    latest = uploaded + at.config.policy.max_wait - at.config.policy.check_interval
    assert timedelta(0) < latest - seen.next_start < timedelta(minutes=5)
    at.ledger.close()


def test_the_month_sums_settled_runs(at: Stage) -> None:
    at.upload(4)
    at.clock.sleep(600)
    (run,) = tick(at.world, at.config).runs
    seen = overview(at.world, at.config)
    assert (seen.month, seen.last_runs) == (run.cost, (run,))


def test_a_store_that_fails_leaves_the_rest(at: Stage) -> None:
    at.upload(4)

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no answer")

    at.store.before = refuse
    seen = overview(at.world, at.config)
    assert (seen.observed, seen.decision, seen.error) == (None, None, "no answer")


def put_run_of(at: Stage, scheduler: str, number: int, *, source: str = "") -> None:
    """The record of a run that another scheduler opened now."""
    run = values.run(
        id=f"20261123-120000-{number:06}",
        created=at.clock.now(),
        deadline=at.clock.now() + timedelta(hours=2),
        source=source or at.store.url,
        output=at.store.url,
        scheduler=scheduler,
        host="other-host",
    )
    at.store.create(keys.intent(run.id), encode_run(run))


def test_a_state_folder_that_keeps_no_id_is_no_other_scheduler(tmp_path: Path) -> None:
    at = stage(tmp_path)
    at.upload(3)
    at.clock.sleep(600)
    put_run_of(at, "kept", 1)
    tick(at.world, replace(at.config, scheduler="", host="other-host"))
    assert at.notes.messages == []


def test_another_scheduler_on_the_same_source_is_reported_once(tmp_path: Path) -> None:
    """Its run records are read for the recovery anyway: no request is added."""
    at = stage(tmp_path)
    at.upload(3)
    at.clock.sleep(600)
    put_run_of(at, "0ther", 1, source="memory://elsewhere")
    tick(at.world, at.config)
    assert overview(at.world, at.config).other_scheduler is None
    for number in (2, 3):
        put_run_of(at, "0ther", number)
        tick(at.world, at.config)
    (message,) = at.notes.messages
    assert message.title == "batchscribe: two schedulers on one source"
    assert (
        "scheduler 0ther on other-host works on this source, too (run 20261123-120000-000002" in message.body
    )
    assert "batchscribe uninstall" in message.body
    seen = overview(at.world, at.config).other_scheduler
    assert seen is not None
    assert seen.run == "20261123-120000-000003"
    assert checks.check_other_scheduler(seen).level is Grade.WARN
    at.clock.sleep(timedelta(days=8).total_seconds())
    assert overview(at.world, at.config).other_scheduler is None
    assert checks.check_other_scheduler(None).ok
    at.ledger.close()


def test_a_pause_that_is_over_is_not_shown(at: Stage) -> None:
    at.ledger.put(PAUSED, (at.clock.now() + timedelta(minutes=1)).isoformat())
    assert overview(at.world, at.config).paused_until is not None
    at.clock.sleep(120)
    assert overview(at.world, at.config).paused_until is None
