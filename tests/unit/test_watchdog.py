"""The minute timer's pass in a world of doubles: what it advances, stops, and leaves alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.controller import tick as ticks
from batchscribe.controller.context import World
from batchscribe.controller.tick import Watched, tick, watch
from batchscribe.core import keys
from batchscribe.core.decide.policy import INTENT_LASTS
from batchscribe.core.messages import Message
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Claim, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    InterruptedRunError,
    LockHeldError,
    MisconfiguredError,
    NotStoppedError,
    StoreUnavailableError,
)
from batchscribe.ledger import Ledger
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import Fault
from batchscribe.testing.lock import FakeLock
from support.played_tick import MINUTE, DeadError, die, watch_for
from support.world import INSTANCE, Stage

NO_REPLY = Fault(ComputeUnavailableError("no reply"))
HANGS = """
import signal, sys
from pathlib import Path
from batchscribe.adapters.machine.clock import SystemClock, TimeLimit
from batchscribe.adapters.machine.lock_file import FileTickLock
with TimeLimit(0.2) as limit, FileTickLock(Path(sys.argv[1]), SystemClock(), copy=None).held():
    limit.restart()
    print("held", flush=True)
    while True:
        signal.pause()
"""


@pytest.fixture
def at(at: Stage) -> Stage:
    at.upload(120)
    at.clock.sleep(600)
    return at


@pytest.fixture
def lock() -> FakeLock:
    return FakeLock()


def state(at: Stage) -> InstanceState:
    return at.compute.describe(INSTANCE).state


def open_run(at: Stage) -> Run:
    (run,) = at.ledger.open_runs()
    return run


def orphan(at: Stage) -> Run:
    """The run of a controller that was killed while its worker worked."""
    die(at, 120)
    assert open_run(at).state is RunState.TRANSCRIBING
    return open_run(at)


def pass_once(at: Stage, lock: FakeLock | None = None) -> Watched:
    return watch(at.world, at.config, locked=(lock or FakeLock()).held)


def listings(at: Stage) -> list[str]:
    """The listings of the store from here on."""
    listed: list[str] = []

    def note(method: str, key: str) -> None:
        if method == "list":
            listed.append(key)

    at.store.before = note
    return listed


def alarms(at: Stage, title: str) -> int:
    return [message.title for message in at.notes.messages].count(f"batchscribe: {title}")


# while no run is open


def test_while_no_run_is_open_a_pass_is_one_poll_and_no_listing(at: Stage) -> None:
    listed, before = listings(at), len(at.compute.calls)
    assert pass_once(at) == Watched(found=f"no run is open, and {INSTANCE} is stopped")
    assert at.compute.calls[before:] == [("describe", INSTANCE)]
    assert listed == []


def test_a_gpu_in_this_machine_is_not_even_polled(at: Stage) -> None:
    listed, before = listings(at), len(at.compute.calls)
    assert watch(at.world, replace(at.config, shared_machine=True)) == Watched(found="no run is open")
    assert (at.compute.calls[before:], listed) == ([], [])


def test_a_poll_that_fails_for_a_moment_is_no_error(at: Stage) -> None:
    at.compute.fail("describe", NO_REPLY)
    assert "the instance could not be polled: no reply" in pass_once(at).found
    assert at.notes.messages == []


def test_what_keeps_it_from_polling_is_an_error_and_one_alert_in_hours(at: Stage) -> None:
    for _ in range(3):
        at.compute.fail("describe", Fault(CredentialsError("the token has expired")))
        with pytest.raises(CredentialsError) as raised:
            pass_once(at)
        assert raised.value.exit_code == 2
        at.clock.sleep(MINUTE)
    assert alarms(at, "the watchdog failed") == 1
    at.clock.sleep(6 * 60 * MINUTE)
    at.compute.fail("describe", Fault(CredentialsError("the token has expired")))
    with pytest.raises(CredentialsError):
        pass_once(at)
    assert alarms(at, "the watchdog failed") == 2


def test_an_alert_of_a_process_that_died_while_it_was_sent_is_sent_again(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_message: Message) -> None:
        raise DeadError

    expired = Fault(CredentialsError("the token has expired"))
    at.compute.fail("describe", expired, expired)
    with monkeypatch.context() as patch:
        patch.setattr(at.notes, "send", die)
        with pytest.raises(DeadError):
            pass_once(at)
    with pytest.raises(CredentialsError):
        pass_once(at)
    assert alarms(at, "the watchdog failed") == 1


def test_a_foreign_gpu_is_polled_and_left_alone(at: Stage) -> None:
    deadline = at.clock.now() + timedelta(hours=1)
    at.compute.start(Claim(instance=INSTANCE, run="20261123-000000-ffffff", deadline=deadline))
    at.clock.sleep(60)
    assert pass_once(at).runs == ()
    assert state(at) is InstanceState.RUNNING
    assert at.ledger.open_runs() == ()


@pytest.mark.parametrize("running", [True, False])
def test_a_lost_ledger_is_noticed_by_the_tag(at: Stage, tmp_path: Path, running: bool) -> None:
    run = orphan(at)
    if not running:
        at.compute.stop(INSTANCE)
        at.clock.sleep(10 * MINUTE)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        at.world = replace(at.world, ledger=ledger)
        closed = watch_for(at, 30)
        assert ledger.open_runs() == ()
    assert [each.id for each in closed] == [run.id]
    assert state(at) is InstanceState.STOPPED


def test_what_a_settled_run_could_not_clean_up_is_cleaned_up(at: Stage) -> None:
    at.compute.fail("release", NO_REPLY)
    (run,) = tick(at.world, at.config).runs
    assert at.compute.describe(INSTANCE).run == run.id
    assert pass_once(at).found == "no run is open"
    assert at.compute.describe(INSTANCE).run is None


# the lock, and processes that die


def test_a_lock_that_is_held_turns_it_away(at: Stage, lock: FakeLock) -> None:
    orphan(at)
    before, events = list(at.compute.calls), at.ledger.events(open_run(at).id)
    lock.held_by = "another process"
    with pytest.raises(LockHeldError) as raised:
        pass_once(at, lock)
    assert raised.value.exit_code == 0
    assert (at.compute.calls, at.ledger.events(open_run(at).id)) == (before, events)
    assert at.notes.messages == []


def test_a_pass_takes_the_lock_once_and_never_waits(at: Stage, lock: FakeLock) -> None:
    orphan(at)
    begun = at.clock.monotonic()
    assert "is transcribing" in pass_once(at, lock).found
    assert (lock.taken, at.clock.monotonic()) == (1, begun)


def test_a_process_that_hangs_is_killed_and_its_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hangs = subprocess.Popen([sys.executable, "-c", HANGS, str(path)], stdout=subprocess.PIPE)
    said, _ = hangs.communicate(timeout=60)
    assert (said, hangs.returncode) == (b"held\n", -signal.SIGALRM)
    assert FileTickLock(path, FakeClock(), copy=None).holder() is None


@pytest.mark.parametrize("after", [0.5, 5, 25, 31, 120, 250, 270])
def test_wherever_a_controller_dies_its_run_is_only_paused(at: Stage, after: float) -> None:
    die(at, after)
    (closed,) = watch_for(at, 20)
    assert (closed.outcome, closed.chunks_done) == (Outcome.COMPLETED, 120)
    assert state(at) is InstanceState.STOPPED
    assert at.guard.standing(INSTANCE) == frozenset()
    assert at.compute.describe(INSTANCE).run is None
    assert closed.billed_seconds >= at.compute.billed_seconds(INSTANCE)


@pytest.mark.parametrize("dead", [timedelta(minutes=1), INTENT_LASTS])
def test_a_start_that_was_decided_on_is_asked_for_unless_it_is_out_of_date(
    at: Stage, monkeypatch: pytest.MonkeyPatch, dead: timedelta
) -> None:
    def dies(*_run: object) -> None:
        raise DeadError

    with monkeypatch.context() as patch:
        patch.setattr(ticks, "advance", dies)
        with pytest.raises(DeadError):
            tick(at.world, at.config, wait=False)
    assert open_run(at).state is RunState.PLANNED
    at.clock.sleep(dead.total_seconds())
    (closed,) = watch_for(at, 20)
    starts = at.compute.calls.count(("start", INSTANCE))
    assert (closed.outcome, starts) == (
        (Outcome.ABANDONED, 0) if dead == INTENT_LASTS else (Outcome.COMPLETED, 1)
    )


def test_a_signal_ends_a_pass_and_no_run(at: Stage) -> None:
    orphan(at)
    at.clock.sleep(MINUTE)
    at.compute.fail("describe", Fault(InterruptedRunError("interrupted (SIGTERM)")))
    with pytest.raises(InterruptedRunError):
        pass_once(at)
    assert (open_run(at).state, open_run(at).outcome) == (RunState.TRANSCRIBING, None)
    assert at.notes.messages == []


# open runs


def test_stalled_work_is_stopped_and_live_work_is_not(at: Stage) -> None:
    run = orphan(at)
    at.worker.seconds_each = 1e6
    assert watch_for(at, 15) == []
    assert open_run(at).state is RunState.TRANSCRIBING
    (closed,) = watch_for(at, 5)
    assert (closed.id, closed.outcome) == (run.id, Outcome.WORKER_LOST)
    assert "no progress for 15 min" in closed.detail
    assert state(at) is InstanceState.STOPPED


def test_work_that_goes_on_is_never_stalled(at: Stage) -> None:
    orphan(at)
    at.worker.seconds_each = 4 * MINUTE
    assert watch_for(at, 60) == []
    assert open_run(at).state is RunState.TRANSCRIBING


def test_a_host_that_boots_has_time_to_report(at: Stage) -> None:
    run = orphan(at)
    at.launcher.is_alive = lambda _worker: None  # type: ignore[assignment, return-value]
    booting = replace(
        run.with_machine(INSTANCE, reaching_since=run.machines[0].meter.running_since),
        launch=ClaimLaunch.BOOT.value,
        worker_since=None,
        first_window=None,
    )
    at.ledger.save_run(booting, at=at.clock.now())
    at.worker.started[run.id, 0].die()
    at.store.delete(keys.progress(run.id, 0))
    assert watch_for(at, 8) == []
    (closed,) = watch_for(at, 6)
    assert closed.outcome is Outcome.LAUNCH_FAILED
    assert state(at) is InstanceState.STOPPED


def test_a_run_past_its_deadline_is_stopped(at: Stage) -> None:
    run = orphan(at)
    at.worker.seconds_each = 1e6
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    (closed,) = watch_for(at, 5)
    assert closed.outcome is Outcome.TIMED_OUT
    assert state(at) is InstanceState.STOPPED
    assert closed.machines[0].meter.stopped is not None
    assert closed.machines[0].meter.stopped.at - run.deadline <= timedelta(minutes=3)


def test_a_stop_that_hangs_is_forced(at: Stage) -> None:
    orphan(at)
    at.clock.at(4 * MINUTE, lambda: at.compute.hold(INSTANCE))
    watch_for(at, 20)
    assert at.ledger.open_runs() == ()
    assert state(at) is InstanceState.STOPPED


def test_a_stop_that_is_not_observed_is_exit_code_3_and_one_alert_in_hours(at: Stage) -> None:
    run = orphan(at)
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    at.compute.fail("stop", *[NO_REPLY] * 5000)
    for _ in range(10):
        assert "is releasing" in pass_once(at).found
        at.clock.sleep(MINUTE)
    for _ in range(30):
        with pytest.raises(NotStoppedError) as raised:
            pass_once(at)
        assert raised.value.exit_code == 3
        at.clock.sleep(MINUTE)
    assert alarms(at, "a GPU may still be running") == 1
    at.clock.sleep(6 * 60 * MINUTE)
    with pytest.raises(NotStoppedError):
        pass_once(at)
    assert alarms(at, "a GPU may still be running") == 2
    at.compute._faults.clear()
    with pytest.raises(NotStoppedError):
        pass_once(at)  # asks for the stop again, and has not observed it yet
    at.clock.sleep(MINUTE)
    (closed,) = pass_once(at).runs
    assert (closed.id, state(at)) == (run.id, InstanceState.STOPPED)


def test_a_paid_run_that_cannot_be_followed_is_one_alert_and_goes_on(at: Stage) -> None:
    orphan(at)

    def unreachable(_method: str, _key: str) -> None:
        raise StoreUnavailableError("the store did not answer")

    for _ in range(40):
        at.store.before = unreachable
        pass_once(at)
        at.store.before = lambda _method, _key: None
        at.clock.sleep(MINUTE)
    assert open_run(at).state is RunState.TRANSCRIBING
    assert alarms(at, "a run cannot be followed") == 1
    (closed,) = watch_for(at, 10)
    assert closed.outcome is Outcome.COMPLETED


# each run by itself

ELSEWHERE = "memory://elsewhere"


def beside(at: Stage, *, older: bool) -> Run:
    """An open run of earlier settings, whose world is `ELSEWHERE`."""
    run = open_run(at)
    created = run.created + timedelta(hours=-1 if older else 1)
    other = replace(run, id="another", created=created, output=ELSEWHERE, deadline=run.deadline)
    at.ledger.save_run(other, at=at.clock.now())
    return other


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("error", [MisconfiguredError("no such bucket"), ValueError("a mistake of ours")])
def test_a_run_that_fails_does_not_keep_another_from_being_stopped(
    at: Stage, error: Exception, older: bool
) -> None:
    run = orphan(at)
    other = beside(at, older=older)

    def elsewhere(_world: World, _run: Run) -> World:
        raise error

    at.world = replace(at.world, elsewhere=elsewhere)
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    for _ in range(4):
        why = r"no such bucket|internal error ValueError"
        with capture_logs(), pytest.raises(BatchscribeError, match=why):
            pass_once(at)
        at.clock.sleep(MINUTE)
    assert [each.id for each in at.ledger.open_runs()] == [other.id]
    closed = at.ledger.run(run.id)
    assert closed is not None
    assert closed.outcome is Outcome.TIMED_OUT
    assert state(at) is InstanceState.STOPPED


def test_the_worst_error_of_a_pass_is_the_one_that_is_raised(at: Stage) -> None:
    run = orphan(at)
    beside(at, older=True)

    def elsewhere(_world: World, _run: Run) -> World:
        raise MisconfiguredError("no such bucket")

    at.world = replace(at.world, elsewhere=elsewhere)
    at.compute.fail("stop", *[NO_REPLY] * 5000)
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    with pytest.raises(MisconfiguredError):
        pass_once(at)
    at.clock.sleep(at.config.waits.stop)
    with pytest.raises(NotStoppedError):
        pass_once(at)


def test_a_run_of_earlier_settings_is_stopped_where_it_was_opened(at: Stage) -> None:
    run = orphan(at)
    here, asked = at.world, []

    def elsewhere(_world: World, opened: Run) -> World:
        asked.append(opened.id)
        return here

    at.world = replace(at.world, elsewhere=elsewhere)
    at.config = replace(at.config, region="eu-west-1", instances=("i-0fedcba9876543210",))
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    (closed,) = watch_for(at, 5)
    assert (closed.id, closed.outcome, set(asked)) == (run.id, Outcome.TIMED_OUT, {run.id})
    assert state(at) is InstanceState.STOPPED


@pytest.mark.parametrize("dead", [False, True], ids=["at work", "dead"])
def test_only_a_worker_that_lives_gets_time_for_its_last_window(at: Stage, dead: bool) -> None:
    while not at.ledger.open_runs() or open_run(at).state is not RunState.TRANSCRIBING:
        tick(at.world, at.config, wait=False)
        at.clock.sleep(5)
    at.worker.deaf = True
    run = open_run(at)
    if dead:
        at.worker.kill(run.name_of(0))
    at.ledger.save_run(run.to_teardown(Outcome.INTERRUPTED), at=at.clock.now())
    watch(at.world, at.config)
    assert (state(at) is InstanceState.RUNNING) is not dead
