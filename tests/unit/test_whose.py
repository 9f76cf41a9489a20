"""Whose an instance is that we look at: ours, another scheduler's, or a person's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from batchscribe.controller import advance, teardown
from batchscribe.controller.steps import claim_of
from batchscribe.controller.tick import reconcile, tick, watch
from batchscribe.core import keys
from batchscribe.core.objects import Blob
from batchscribe.core.run.instances import RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import encode_run
from batchscribe.core.run.runs import RunState
from batchscribe.errors import ComputeUnavailableError, NoCapacityError
from batchscribe.testing.compute import Fault
from support.world import INSTANCE, Stage, once

NO_REPLY = Fault(ComputeUnavailableError("no reply"), applied=True)
THROTTLED = Fault(ComputeUnavailableError("throttled"))


@pytest.fixture
def at(at: Stage) -> Stage:
    at.upload(120)
    at.clock.sleep(600)
    return at


def asked(at: Stage) -> None:
    """A run that is about to ask for its start, and whose controller died there."""
    once(at)
    once(at)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.PROVISIONING


def state(at: Stage) -> InstanceState:
    return at.compute.describe(INSTANCE).state


def end(at: Stage) -> None:
    """Puts the open run on its way out, as a signal does."""
    (run,) = at.ledger.open_runs()
    at.ledger.save_run(run.to_teardown(Outcome.INTERRUPTED), at=at.clock.now())


def forced(at: Stage, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What every call of `stop` from here on says about force."""
    said: list[bool] = []
    whole = at.compute.stop

    def stop(instance: str, *, force: bool = False) -> None:
        said.append(force)
        whole(instance, force=force)

    monkeypatch.setattr(at.compute, "stop", stop)
    return said


def test_a_lost_start_reply_and_lost_tags_leave_nothing_running(at: Stage) -> None:
    at.compute.fail("start", NO_REPLY)
    at.clock.at(60, lambda: at.compute.untag(INSTANCE))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert state(at) is InstanceState.STOPPED


def test_a_tag_that_shows_late_is_no_strangers(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """States and tags come from different parts of a cloud: it is seen running before its tag is."""
    at.compute.fail("start", NO_REPLY)
    whole = at.compute.describe
    late = at.clock.now() + timedelta(seconds=45)

    def describe(instance: str) -> Instance:
        seen = whole(instance)
        return replace(seen, tags={}) if at.clock.now() < late else seen

    monkeypatch.setattr(at.compute, "describe", describe)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert state(at) is InstanceState.STOPPED


def test_what_never_shows_our_tag_is_let_go(at: Stage) -> None:
    """Somebody was faster: nothing of theirs is touched, however long we look."""
    asked(at)
    at.compute.start_unclaimed(INSTANCE)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is not Outcome.COMPLETED
    assert run.abandoned_gpu
    assert state(at) is InstanceState.RUNNING


def test_an_emptied_tag_is_no_lost_tag(at: Stage) -> None:
    """The claim was given back and the record of that got lost: who started it since is left alone."""
    asked(at)
    (run,) = at.ledger.open_runs()
    at.compute.start(claim_of(run, INSTANCE))
    at.clock.sleep(120)
    at.compute.stop(INSTANCE)
    at.clock.sleep(120)
    at.compute.release(INSTANCE)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    end(at)
    (done,) = reconcile(at.world, at.config)
    assert done.abandoned_gpu
    assert state(at) is InstanceState.RUNNING


def test_another_schedulers_claim_is_not_overwritten_while_a_start_is_repeated(at: Stage) -> None:
    at.compute.fail("start", *[THROTTLED] * 3)
    theirs = Claim(instance=INSTANCE, run="theirs", deadline=at.clock.now() + timedelta(hours=2))
    at.clock.at(7, lambda: at.compute.tag(INSTANCE, theirs.tags))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.ABANDONED
    assert at.compute.describe(INSTANCE).run == "theirs"


@pytest.mark.parametrize(("repeats", "shows"), [(0, 40), (16, 130)])
def test_a_tag_that_shows_only_after_the_way_out_is_emptied_later(
    at: Stage, monkeypatch: pytest.MonkeyPatch, repeats: int, shows: int
) -> None:
    """The tag is put down, the start refused, and the next look is older than both."""
    whole, start = at.compute.describe, at.compute.start
    late = at.clock.now() + timedelta(seconds=shows)

    def tagged(claim: Claim) -> None:
        at.compute.tag(claim.instance, claim.tags)
        start(claim)

    def describe(instance: str) -> Instance:
        seen = whole(instance)
        return replace(seen, tags={}) if at.clock.now() < late else seen

    at.compute.fail("start", *[THROTTLED] * repeats, Fault(NoCapacityError("no capacity")))
    monkeypatch.setattr(at.compute, "start", tagged)
    monkeypatch.setattr(at.compute, "describe", describe)
    tick(at.world, at.config)
    at.clock.sleep(120)
    reconcile(at.world, at.config)
    assert at.compute.describe(INSTANCE).run is None
    assert not at.ledger.facts("outside/")


class Killed(BaseException):
    """The controller is gone."""


def dies(*_arguments: object, **_options: object) -> None:
    raise Killed


def test_a_start_that_is_asked_for_late_and_never_confirmed_still_lands(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for again minutes after the first time, then the way out begins: polls are older than that."""
    asked(at)
    (run,) = at.ledger.open_runs()
    at.clock.sleep(300)
    whole = at.compute.describe
    before, fresh = whole(INSTANCE), at.clock.now() + timedelta(seconds=40)
    at.compute.start(claim_of(run, INSTANCE))
    monkeypatch.setattr(
        at.compute, "describe", lambda instance: before if at.clock.now() < fresh else whole(instance)
    )
    end(at)
    reconcile(at.world, at.config)
    assert whole(INSTANCE).state is InstanceState.STOPPED


@pytest.mark.parametrize("reply", [None, NO_REPLY], ids=["accepted", "no reply"])
def test_an_empty_tag_that_is_older_than_our_start_is_not_believed(
    at: Stage, monkeypatch: pytest.MonkeyPatch, reply: Fault | None
) -> None:
    """It is seen running beside the tag that the run before left empty, and the controller dies."""
    whole, begun = at.compute.describe, at.clock.now()
    fresh = begun + timedelta(seconds=45)

    def describe(instance: str) -> Instance:
        if (seen := whole(instance)).state is InstanceState.RUNNING and at.clock.now() < fresh:
            return replace(seen, tags=dict.fromkeys(seen.tags, ""))
        return seen

    at.compute.fail("start", reply)
    monkeypatch.setattr(at.compute, "describe", describe)
    at.clock.at(32, dies)
    with pytest.raises(Killed):
        tick(at.world, at.config)
    assert state(at) is InstanceState.RUNNING
    end(at)
    (run,) = reconcile(at.world, at.config)
    assert not run.abandoned_gpu
    assert whole(INSTANCE).state is InstanceState.STOPPED


def test_what_is_stopping_under_nobodys_tag_is_not_forced(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person was faster than our start, and the stop of that hangs: it is not ours to force."""
    asked(at)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    at.compute.hold(INSTANCE)
    at.compute.stop(INSTANCE)
    at.clock.sleep(60)
    said = forced(at, monkeypatch)
    end(at)
    (run,) = reconcile(at.world, at.config)
    assert run.abandoned_gpu
    assert not said


def test_a_crash_right_behind_the_first_look_at_stopping_bills_nobody_elses_session(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(at)
    (run,) = at.ledger.open_runs()
    at.compute.start(claim_of(run, INSTANCE))
    at.clock.sleep(180)
    at.compute.stop(INSTANCE)
    end(at)
    with monkeypatch.context() as patch:
        patch.setattr(teardown, "_stop_machine", dies)
        with pytest.raises(Killed):
            reconcile(at.world, at.config)
    at.clock.sleep(3600)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    (done,) = reconcile(at.world, at.config)
    assert done.abandoned_gpu
    assert 0 < done.billed_seconds < 600


def test_what_ran_for_us_before_somebody_else_took_it_is_billed(at: Stage) -> None:
    """Its start was accepted, and nobody looked until it was up for another."""
    asked(at)
    once(at)
    at.clock.sleep(180)
    at.compute.stop(INSTANCE)
    ran = at.compute.billed_seconds(INSTANCE)
    at.clock.sleep(120)
    at.compute.release(INSTANCE)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    (done,) = reconcile(at.world, at.config)
    assert done.abandoned_gpu
    assert done.billed_seconds >= ran > 0


def test_what_somebody_starts_again_under_our_tag_is_not_ours(at: Stage) -> None:
    """It came up and was stopped between two looks; before our tag is emptied a person is there."""
    asked(at)
    once(at)
    at.clock.sleep(30)
    at.compute.stop(INSTANCE)
    at.compute.hold(INSTANCE)
    at.clock.sleep(40)
    once(at)
    at.compute.hold(INSTANCE, stuck=False)
    at.clock.sleep(60)
    ran = at.compute.billed_seconds(INSTANCE)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    (done,) = tick(at.world, at.config).runs
    assert (done.outcome, done.abandoned_gpu) == (Outcome.INSTANCE_LOST, True)
    assert state(at) is InstanceState.RUNNING
    assert 0 < ran <= done.billed_seconds <= ran + 60


def test_a_launch_time_of_before_the_run_proves_that_nothing_ran(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call for the start hangs for minutes and fails; the reply to the next is lost."""
    start = at.compute.start
    calls: list[Claim] = []

    def hangs(claim: Claim) -> None:
        calls.append(claim)
        at.clock.sleep(400 if len(calls) == 1 else 0)
        start(claim)

    at.compute.fail("start", THROTTLED, NO_REPLY)
    monkeypatch.setattr(at.compute, "start", hangs)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert run.billed_seconds < at.compute.billed_seconds(INSTANCE) + 120


def test_the_first_stop_after_a_crash_is_not_a_forced_one(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    said = forced(at, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(advance, "teardown", dies)
        with pytest.raises(Killed):
            tick(at.world, at.config)
    at.clock.sleep(600)
    reconcile(at.world, at.config)
    assert said == [False]


def test_a_stop_that_was_only_throttled_is_not_forced(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    said = forced(at, monkeypatch)
    at.compute.fail("stop", *[THROTTLED] * 48)
    tick(at.world, at.config)
    assert len(said) == 49
    assert not any(said)


def test_a_stop_that_hangs_is_forced(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    said = forced(at, monkeypatch)
    at.clock.at(60, lambda: at.compute.hold(INSTANCE))
    tick(at.world, at.config)
    assert said[:2] == [False, True]
    assert state(at) is InstanceState.STOPPED


@pytest.mark.parametrize("late", [False, True], ids=["soon", "when the record is out of date"])
def test_a_ledger_that_was_rolled_back_leaves_no_started_instance_behind(at: Stage, late: bool) -> None:
    once(at)
    (older,) = at.ledger.open_runs()
    assert not older.started
    for _ in range(3):
        once(at)
        at.clock.sleep(5)
    with closing(sqlite3.connect(at.ledger.path)) as file, file:  # the copy of an hour ago
        file.execute("UPDATE runs SET document = ?", (encode_run(older).decode(),))
    at.clock.sleep(1200 if late else 60)
    assert at.compute.describe(INSTANCE).run == older.id
    while at.ledger.open_runs():
        watch(at.world, at.config)
        at.clock.sleep(60)
    run = at.ledger.run(older.id)
    assert run is not None
    assert state(at) is InstanceState.STOPPED
    assert run.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 0
    assert run.outcome is (Outcome.ABANDONED if late else Outcome.COMPLETED)


@pytest.mark.parametrize("lie", [1, 2])
def test_one_wrong_stopped_leaves_no_instance_behind(
    at: Stage, lie: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2 answers `stopped` once during the teardown, before and after our stop request."""
    polls = list[InstanceState]()
    truth = at.compute.describe

    def describe(instance: str) -> Instance:
        seen = truth(instance)
        runs = at.ledger.open_runs()
        if runs and runs[0].state is RunState.RELEASING and runs[0].machines[0].meter.ran:
            polls.append(seen.state)
            if len(polls) == lie:
                return replace(seen, state=InstanceState.STOPPED)
        return seen

    monkeypatch.setattr(at.compute, "describe", describe)
    (run,) = tick(at.world, at.config).runs
    assert polls[lie - 1] is not InstanceState.STOPPED
    assert state(at) is InstanceState.STOPPED
    assert run.outcome is Outcome.COMPLETED
    assert run.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 0


def test_a_record_that_was_once_unreadable_is_read_again_while_its_run_is_tagged(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is lost, and the first answer for the run's record is cut off."""
    for _ in range(4):
        once(at)
        at.clock.sleep(5)
    (run,) = at.ledger.open_runs()
    assert state(at) is not InstanceState.STOPPED
    with closing(sqlite3.connect(at.ledger.path)) as file, file:
        file.execute("DELETE FROM runs")
    whole, cut = at.store.get, list[str]()

    def get(key: str, *, limit: int | None = None) -> Blob:
        found = whole(key, limit=limit)
        if key == keys.intent(run.id) and not cut:
            cut.append(key)
            return replace(found, data=found.data[: len(found.data) // 2])
        return found

    monkeypatch.setattr(at.store, "get", get)
    watch(at.world, at.config)
    assert cut
    assert at.ledger.run(run.id) is None
    reconcile(at.world, at.config)
    recovered = at.ledger.run(run.id)
    assert recovered is not None
    while at.ledger.open_runs():
        watch(at.world, at.config)
        at.clock.sleep(60)
    assert state(at) is InstanceState.STOPPED


def test_a_stop_that_hangs_is_forced_although_no_record_of_its_run_is_left(at: Stage) -> None:
    """The ledger is lost, its record in the store was deleted, and only the tag names the run."""
    for _ in range(4):
        once(at)
        at.clock.sleep(20)
    (run,) = at.ledger.open_runs()
    at.compute.hold(INSTANCE)
    at.compute.stop(INSTANCE)
    with closing(sqlite3.connect(at.ledger.path)) as file, file:
        file.execute("DELETE FROM runs")
    at.store.delete(keys.intent(run.id))
    at.clock.sleep(4 * 3600)
    assert state(at) is InstanceState.STOPPING
    for _ in range(20):
        watch(at.world, at.config)
        at.clock.sleep(60)
    assert state(at) is InstanceState.STOPPED
    assert not at.compute.describe(INSTANCE).run


def test_an_adopted_run_whose_owner_released_it_after_all_is_let_go(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the tag gave us the right to stop it: a wrong clock may have made it look abandoned."""
    theirs = Claim(instance=INSTANCE, run="theirs", deadline=at.clock.now() + timedelta(minutes=10))
    at.compute.start(theirs)
    at.clock.sleep(300)
    at.compute.hold(INSTANCE)
    at.compute.stop(INSTANCE)
    at.clock.sleep(700)
    watch(at.world, at.config)
    (run,) = at.ledger.open_runs()
    assert (run.id, run.adopted) == ("theirs", True)
    at.compute.tag(INSTANCE, RELEASED_TAGS)
    calls = forced(at, monkeypatch)
    for _ in range(20):
        watch(at.world, at.config)
        at.clock.sleep(60)
    assert (at.ledger.open_runs(), calls) == ((), [])


@pytest.mark.parametrize("later", [330.0, 1200.0])
def test_a_start_after_the_deadline_in_the_tag_is_another_users(
    at: Stage, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """A tag outlives its run if both hosts were down: a later start is its user's own."""
    theirs = Claim(instance=INSTANCE, run="theirs", deadline=at.clock.now() + timedelta(minutes=10))
    at.compute.start(theirs)
    at.clock.sleep(300)
    at.compute.stop(INSTANCE)
    at.clock.sleep(later)
    at.compute.start(replace(theirs, run=""))
    at.compute.tag(INSTANCE, theirs.tags)
    calls = forced(at, monkeypatch)
    for _ in range(10):
        watch(at.world, at.config)
        at.clock.sleep(60)
    assert (at.ledger.open_runs(), calls, state(at)) == ((), [], InstanceState.RUNNING)
