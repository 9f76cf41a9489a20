"""What looks at an instance tell of a run: what it is billed for, and whether it is still ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchscribe.controller import advance
from batchscribe.controller.context import read_moment
from batchscribe.controller.follow import follow
from batchscribe.controller.steps import claim_of
from batchscribe.controller.teardown import teardown
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    StoreUnavailableError,
)
from batchscribe.ledger import Ledger
from batchscribe.testing.compute import FakeCompute, Fault
from support.world import INSTANCE, Stage, once


def started(at: Stage, state: RunState) -> None:
    """Steps a run on until it is in that state, as if its controller died there."""
    at.upload(120)
    at.clock.sleep(600)
    for _ in range(30):
        once(at)
        at.clock.sleep(5)
        if at.ledger.open_runs()[0].state is state:
            return
    raise AssertionError(f"never {state}")


def test_what_ran_while_nobody_looked_is_billed(at: Stage) -> None:
    started(at, RunState.PROVISIONING)
    assert at.ledger.open_runs()[0].machines[0].meter.up_since is None
    once(at)
    at.clock.sleep(1800)
    at.compute.stop(INSTANCE)  # the guard, or the box itself
    at.clock.sleep(600)
    (run,) = reconcile(at.world, at.config)
    truth = at.compute.billed_seconds(INSTANCE)
    assert truth > 1700
    assert truth <= run.billed_seconds <= truth + 1200


def test_what_never_left_stopped_is_not_billed(at: Stage) -> None:
    at.upload(120)
    at.clock.sleep(600)
    at.compute.fail("start", *[Fault(ComputeUnavailableError("no answer"))] * 200)
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.billed_seconds) == (Outcome.THROTTLED, 0.0)


def test_an_instance_that_somebody_started_again_is_theirs_although_our_tag_is_on_it(at: Stage) -> None:
    started(at, RunState.TRANSCRIBING)
    at.compute.stop(INSTANCE)
    at.clock.sleep(60)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(600)
    stops = at.compute.calls.count(("stop", INSTANCE))
    (run,) = reconcile(at.world, at.config)
    assert (run.outcome, run.abandoned_gpu) == (Outcome.INSTANCE_LOST, True)
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING
    assert at.compute.calls.count(("stop", INSTANCE)) == stops
    assert at.compute.describe(INSTANCE).run is None, "our claim is off it"


def test_what_somebody_starts_before_our_start_was_asked_for_is_theirs_from_pending_on(at: Stage) -> None:
    started(at, RunState.PROVISIONING)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(600)  # nobody looks; the looks from now on are as old as that start
    at.compute.lag = timedelta(seconds=595)
    assert at.compute.describe(INSTANCE).state is InstanceState.PENDING
    (run,) = reconcile(at.world, at.config)
    assert run.abandoned_gpu
    assert ("stop", INSTANCE) not in at.compute.calls


def test_a_look_that_grew_old_in_a_call_that_hung_is_no_ground_for_a_stop(at: Stage) -> None:
    started(at, RunState.TRANSCRIBING)
    reached = iter([True])

    def hang(method: str, key: str) -> None:
        if method == "get" and key.endswith("exit.json") and next(reached, False):
            at.compute.stop(INSTANCE)
            at.clock.sleep(120)
            at.compute.start_unclaimed(INSTANCE)
            at.clock.sleep(300)

    at.worker.deaf = True
    at.store.before = hang
    (run,) = at.ledger.open_runs()
    at.ledger.save_run(run.to_teardown(Outcome.INTERRUPTED), at=at.clock.now())
    (closed,) = reconcile(at.world, at.config)
    assert closed.abandoned_gpu
    assert at.compute.calls.count(("stop", INSTANCE)) == 1, "only the one from outside"
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING


def test_a_start_that_fell_back_and_came_up_at_the_second_try_is_billed_to_its_end(at: Stage) -> None:
    at.upload(120)
    at.clock.sleep(600)
    at.compute.fail("start", Fault(ComputeUnavailableError("reply lost"), applied=True))
    at.compute.break_boot(INSTANCE)
    at.clock.at(25, lambda: at.compute.break_boot(INSTANCE, broken=False))
    at.clock.at(200, lambda: at.compute.stop(INSTANCE))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.INSTANCE_LOST
    assert run.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 100


def test_a_start_after_one_that_fell_back_is_billed_to_its_own_end_although_nobody_saw_it_up(
    at: Stage,
) -> None:
    at.upload(120)
    at.clock.sleep(600)
    at.compute.fail("start", Fault(ComputeUnavailableError("reply lost"), applied=True))
    at.compute.break_boot(INSTANCE)
    while not (runs := at.ledger.open_runs()) or runs[0].machines[0].meter.start_accepted is None:
        at.clock.sleep(5)
        once(at)
    assert at.compute.calls.count(("start", INSTANCE)) == 2
    at.compute.break_boot(INSTANCE, broken=False)
    at.clock.sleep(1200)  # its controller died right then
    at.compute.stop(INSTANCE)
    at.clock.sleep(120)
    (run,) = reconcile(at.world, at.config)
    truth = at.compute.billed_seconds(INSTANCE)
    assert truth > 1000
    assert truth <= run.billed_seconds <= truth + 300


def test_an_end_is_no_earlier_than_the_answer_that_showed_it(at: Stage) -> None:
    started(at, RunState.TRANSCRIBING)
    at.clock.sleep(40)
    (run,) = at.ledger.open_runs()

    def slow() -> Instance:
        at.clock.sleep(40)
        at.compute.stop(INSTANCE)
        return at.compute.describe(INSTANCE)

    world = replace(at.world, capacity=replace(at.capacity, compute=_Shows(at.compute, slow)))
    seen = follow(world, at.config, run)
    assert seen.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 40


def test_a_look_older_than_our_start_is_no_reason_to_let_go(at: Stage) -> None:
    at.upload(120)
    at.clock.sleep(600)
    (run,) = tick(at.world, at.config).runs
    at.upload(120, session="t")
    at.clock.sleep(600)
    older = at.compute.describe(INSTANCE)
    stale = replace(older, tags=Claim(instance=INSTANCE, run=run.id, deadline=run.deadline).tags)
    once(at)
    once(at)
    (begun,) = at.ledger.open_runs()
    assert begun.machines[0].meter.start_accepted is None
    at.compute.start(claim_of(begun, INSTANCE))  # and its controller died before it could write that down
    assert _released_with(at, stale).state is RunState.RELEASING
    assert begun.id in at.world.guard.armed(INSTANCE)


def _released_with(at: Stage, seen: Instance) -> Run:
    """A look at the way out of the open run that shows this."""
    (run,) = at.ledger.open_runs()
    out = replace(run.to_teardown(Outcome.INTERRUPTED), stop_requested=read_moment(at.world))
    world = replace(at.world, capacity=replace(at.capacity, compute=_Shows(at.compute, lambda: seen)))
    return teardown(world, at.config, out)


class _Shows:
    """A cloud whose looks are somebody else's to answer; all else is the double's."""

    def __init__(self, compute: FakeCompute, look: Callable[[], Instance]) -> None:
        self._compute = compute
        self._look = look

    def describe(self, _instance: str) -> Instance:
        return self._look()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compute, name)


def test_the_first_look_that_shows_the_end_ends_the_bill(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    started(at, RunState.TRANSCRIBING)
    at.clock.sleep(at.config.waits.describe)
    at.compute.stop(INSTANCE)
    monkeypatch.setattr(advance, "teardown", _dies)
    with pytest.raises(_DeadError):
        reconcile(at.world, at.config)
    monkeypatch.undo()
    truth = at.compute.billed_seconds(INSTANCE)
    at.clock.sleep(3600)
    (run,) = reconcile(at.world, at.config)
    assert run.billed_seconds <= truth + timedelta(minutes=2).total_seconds()


def test_a_step_that_failed_goes_on_from_what_it_wrote_down(at: Stage) -> None:
    started(at, RunState.TRANSCRIBING)
    at.clock.sleep(60)
    read_at: list[datetime] = []

    def break_first_read(method: str, key: str) -> None:
        if method == "get" and key.endswith("exit.json"):
            read_at.append(at.clock.now())
            if len(read_at) == 1:
                raise StoreUnavailableError("now")

    at.compute.stop(INSTANCE)
    at.clock.sleep(1)
    at.store.before = break_first_read
    (run,) = tick(at.world, at.config).runs
    assert len(read_at) > 1
    assert run.machines[0].meter.stopped is not None
    assert run.machines[0].meter.stopped.at == read_at[0]


class _DeadError(BaseException):
    """The controller's death: nothing catches it."""


def _dies(*_arguments: object, **_named: object) -> None:
    raise _DeadError(BatchscribeError)


def test_what_ran_is_billed_although_only_its_launch_time_tells(at: Stage, tmp_path: Path) -> None:
    """The ledger is lost after the tags were given back, and before anything else was written."""
    started(at, RunState.PROVISIONING)
    (run,) = at.ledger.open_runs()
    at.compute.start(claim_of(run, INSTANCE))
    at.clock.sleep(300)
    at.compute.stop(INSTANCE)
    at.clock.sleep(120)
    at.compute.release(INSTANCE)
    fresh = Ledger(tmp_path / "another.sqlite")
    (found,) = reconcile(replace(at.world, ledger=fresh), at.config)
    assert found.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 250
    fresh.close()
