"""The watchdog in a world of doubles: whom it ends, whom it never touches, and what it stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.controller.drive import drive
from batchscribe.controller.tick import tick
from batchscribe.controller.watchdog import Watchdog, Watched
from batchscribe.core.box import ClaimLaunch
from batchscribe.core.instances import Claim, InstanceState
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.policy import Hold, Launch, Policy, ReasonCode
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    InterruptedRunError,
    NotStoppedError,
)
from batchscribe.ledger import Ledger
from batchscribe.testing.compute import Fault
from support.played_tick import PID, PlayedTick, hang
from support.world import INSTANCE, Stage, once, stage

MINUTE = 60.0


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path)
    made.upload(120)
    made.clock.sleep(600)
    yield made
    made.ledger.close()


@pytest.fixture
def played(at: Stage) -> PlayedTick:
    return PlayedTick(at.clock)


def watch(at: Stage, played: PlayedTick) -> Watched:
    """The watchdog as a process of its own: it shares the ledger's file and the clock of the machine."""
    with Ledger(at.ledger.path) as ledger:
        return Watchdog(replace(at.world, ledger=ledger), at.terms, played, played).watch()


def state(at: Stage) -> InstanceState:
    return at.compute.describe(INSTANCE).state


def open_run(at: Stage) -> Run:
    (run,) = at.ledger.open_runs()
    return run


def test_a_hung_tick_is_asked_then_killed_and_its_gpu_is_seen_stopped(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    run = open_run(at)
    assert run.state is RunState.TRANSCRIBING
    at.worker.seconds_each = 1e6
    at.clock.sleep(16 * MINUTE)
    seen = watch(at, played)
    assert played.signals == [(PID, False), (PID, True)]
    assert seen.ended is not None
    (settled,) = seen.runs
    assert (settled.id, settled.state, settled.outcome) == (run.id, RunState.SETTLED, Outcome.HUNG)
    assert "no sign of life for 16 min" in settled.detail
    assert state(at) is InstanceState.STOPPED
    assert settled.billed_seconds >= at.compute.billed_seconds(INSTANCE)
    assert at.notes.guarded == {}
    assert [message.title for message in at.notes.messages] == [
        "batchscribe: a tick hung",
        f"batchscribe: run {run.id} hung",
    ]


@pytest.mark.parametrize("after", [0.5, 5, 25, 31])
def test_wherever_a_tick_hangs_its_run_is_released(at: Stage, played: PlayedTick, after: float) -> None:
    hang(at, played, after)
    at.clock.sleep(16 * MINUTE)
    watch(at, played)
    assert at.ledger.open_runs() == ()
    assert state(at) is InstanceState.STOPPED
    assert at.notes.guarded == {}


def test_a_tick_that_shows_life_is_left_to_itself_and_so_is_all_else(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    events = at.ledger.events(open_run(at).id)
    calls = list(at.compute.calls)
    for _ in range(30):
        at.clock.sleep(14.9 * MINUTE)
        seen = watch(at, played)
        assert "is at work" in seen.found
        played.beat()
        if at.clock.now() > open_run(at).deadline:
            break
    assert (played.signals, played.taken) == ([], 0)
    assert at.ledger.events(open_run(at).id) == events
    assert at.compute.calls == calls
    assert at.notes.messages == []


def test_a_machine_that_slept_wakes_its_tick_and_its_watchdog_at_once(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(60 * MINUTE)
    at.clock.at(10, played.beat)
    assert "is at work" in watch(at, played).found
    assert played.signals == []
    assert open_run(at).outcome is None


def test_a_tick_that_wakes_up_when_it_is_asked_makes_its_own_way_out(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(20 * MINUTE)

    def wake() -> None:
        played.beat()
        at.clock.at(30, played.beat)
        at.clock.at(80, played.beat)
        at.clock.at(130, leave)

    def leave() -> None:
        played.die()
        drive(at.world, at.terms, open_run(at), [])

    played.on_ask = wake
    watch(at, played)
    assert played.signals == [(PID, False)]
    (run,) = at.ledger.runs(at.clock.now() - timedelta(hours=2))
    assert (run.state, run.outcome) == (RunState.SETTLED, Outcome.HUNG)
    at.clock.sleep(60)  # the played tick's waits ran inside a wait of the watchdog
    assert state(at) is InstanceState.STOPPED


def test_a_tick_that_only_pretends_to_end_is_killed_at_last(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(20 * MINUTE)

    def pretend() -> None:
        if played.living:
            played.beat()
            at.clock.at(30, pretend)

    played.on_ask = pretend
    asked = at.clock.now()
    watch(at, played)
    assert played.signals == [(PID, False), (PID, True)]
    assert at.clock.now() - asked >= timedelta(seconds=at.terms.waits.stop)
    assert at.ledger.open_runs() == ()


def test_its_last_word_does_not_keep_the_run_open(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    run = open_run(at)
    at.worker.seconds_each = 1e6
    at.clock.sleep(20 * MINUTE)
    played.on_ask = lambda: at.ledger.save_run(run, at=at.clock.now(), note="as if nothing had been")
    (settled,) = watch(at, played).runs
    assert settled.outcome is Outcome.HUNG


def test_a_number_that_somebody_else_has_now_is_nobody_s_death(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    played.living = {(PID, 8)}
    at.clock.sleep(60 * MINUTE)
    assert "left alone" in watch(at, played).found
    assert played.signals == []
    assert open_run(at).outcome is None


def test_a_holder_that_did_not_say_who_it_is_is_left_alone(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    played.record = None
    at.clock.sleep(60 * MINUTE)
    assert "nothing is known" in watch(at, played).found
    assert played.signals == []


def test_what_cannot_be_killed_is_told(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(60 * MINUTE)
    played.on_kill = lambda: None
    with pytest.raises(BatchscribeError, match="cannot be killed"):
        watch(at, played)
    assert at.notes.messages[-1].title == "batchscribe: the watchdog failed"


def test_its_unit_may_be_first_to_release_what_was_killed(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(60 * MINUTE)

    def die() -> None:
        played.living = set()  # and the lock goes on to the unit's reconcile at once

    played.on_kill = die
    seen = watch(at, played)
    assert "reconcile is at work" in seen.found
    assert open_run(at).outcome is Outcome.HUNG


def test_a_long_listing_without_a_run_costs_nothing_and_is_left_for_long(
    at: Stage, played: PlayedTick
) -> None:
    played.begin()
    at.clock.sleep(149 * MINUTE)
    assert "is at work" in watch(at, played).found
    at.clock.sleep(2 * MINUTE)
    seen = watch(at, played)
    assert played.signals == [(PID, False), (PID, True)]
    assert seen.runs == ()


def test_a_tick_that_verifies_pays_no_gpu(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    run = replace(open_run(at), state=RunState.VERIFYING, stopped=at.clock.now())
    at.ledger.save_run(run, at=at.clock.now())
    at.clock.sleep(30 * MINUTE)
    assert "is at work" in watch(at, played).found


def test_a_tick_that_moves_but_does_not_end_is_ended(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.worker.seconds_each = 1e6
    at.clock.sleep((open_run(at).deadline - at.clock.now()).total_seconds() + 39 * MINUTE)
    played.beat()
    assert "is at work" in watch(at, played).found, "a rehearsal of the guard looks on for half an hour"
    at.clock.sleep(2 * MINUTE)
    played.beat()
    assert watch(at, played).ended is not None
    assert state(at) is InstanceState.STOPPED


def test_a_new_tick_has_its_time_with_a_run_that_is_long_overdue(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(24 * 60 * MINUTE)
    played.begin()
    at.clock.sleep(5 * MINUTE)
    played.beat()
    assert "is at work" in watch(at, played).found


def test_a_hung_tick_whose_ledger_is_lost_is_found_by_the_store(
    at: Stage, played: PlayedTick, tmp_path: Path
) -> None:
    hang(at, played, 120)
    run = open_run(at)
    at.clock.sleep(16 * MINUTE)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        seen = Watchdog(replace(at.world, ledger=ledger), at.terms, played, played).watch()
    assert [each.id for each in seen.runs] == [run.id]
    assert state(at) is InstanceState.STOPPED


def orphaned(at: Stage, played: PlayedTick) -> Run:
    """The run of a controller that was killed while its worker worked."""
    hang(at, played, 120)
    played.die()
    return open_run(at)


def test_live_work_without_a_controller_is_left_and_silent_work_is_not(at: Stage, played: PlayedTick) -> None:
    run = orphaned(at, played)
    at.worker.seconds_each = 1e6
    for _ in range(3):
        at.clock.sleep(5 * MINUTE)
        assert watch(at, played).runs == ()
        assert open_run(at).state is RunState.TRANSCRIBING
    at.clock.sleep(5 * MINUTE)
    (released,) = watch(at, played).runs
    assert (released.id, released.outcome) == (run.id, Outcome.WORKER_LOST)
    assert "no progress for 15 min" in released.detail
    assert state(at) is InstanceState.STOPPED


def test_work_that_goes_on_is_never_silent(at: Stage, played: PlayedTick) -> None:
    orphaned(at, played)
    at.worker.seconds_each = 4 * MINUTE
    for _ in range(12):
        at.clock.sleep(5 * MINUTE)
        assert watch(at, played).runs == ()
    assert open_run(at).state is RunState.TRANSCRIBING


def test_a_box_that_boots_without_its_controller_has_time_to_show_itself(
    at: Stage, played: PlayedTick
) -> None:
    run = orphaned(at, played)
    at.launcher.fail("alive", *[BatchscribeError("nobody can be asked")] * 4)
    booting = replace(run, launch=ClaimLaunch.BOOT.value, reaching_since=at.clock.now())
    at.ledger.save_run(booting, at=at.clock.now())
    at.store.delete(f"_batchscribe/runs/{run.id}/workers/0/progress.json")
    at.worker.alive[run.id, 0] = False
    at.clock.sleep(5 * MINUTE)
    assert watch(at, played).runs == ()
    at.clock.sleep(6 * MINUTE)
    (released,) = watch(at, played).runs
    assert released.outcome is Outcome.WORKER_LOST


def test_ended_work_is_settled_and_its_gpu_stopped(at: Stage, played: PlayedTick) -> None:
    orphaned(at, played)
    at.clock.sleep(10 * MINUTE)
    (released,) = watch(at, played).runs
    assert (released.outcome, released.chunks_done) == (Outcome.COMPLETED, 120)
    assert state(at) is InstanceState.STOPPED


def test_a_run_past_its_deadline_is_released(at: Stage, played: PlayedTick) -> None:
    run = orphaned(at, played)
    at.worker.seconds_each = 1e6
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    (released,) = watch(at, played).runs
    assert released.outcome is Outcome.TIMED_OUT
    assert state(at) is InstanceState.STOPPED


def test_a_controller_that_dies_before_its_worker_lives_leaves_nothing_running(
    at: Stage, played: PlayedTick
) -> None:
    hang(at, played, 15)
    assert open_run(at).state is RunState.PROVISIONING
    played.die()
    (released,) = watch(at, played).runs
    assert released.outcome is Outcome.INTERRUPTED
    assert state(at) is InstanceState.STOPPED


def test_a_run_that_is_stepped_on_by_short_ticks_has_its_controller(at: Stage, played: PlayedTick) -> None:
    for _ in range(4):
        once(at)
        at.clock.sleep(5)
    assert watch(at, played).runs == ()
    at.clock.sleep(3 * MINUTE)
    assert len(watch(at, played).runs) == 1


def test_where_nothing_is_open_nothing_is_listed(at: Stage, played: PlayedTick) -> None:
    listed: list[str] = []
    whole = at.store.list

    def listing(prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        listed.append(prefix)
        return whole(prefix, after=after)

    at.store.list = listing  # type: ignore[method-assign]
    assert watch(at, played).found == f"no run is open, and {INSTANCE} is stopped"
    assert (listed, played.taken) == ([], 0)
    at.compute.fail("describe", Fault(ComputeUnavailableError("no reply")))
    assert "could not be looked at" in watch(at, played).found
    assert at.notes.messages == []
    at.compute.fail("describe", Fault(CredentialsError("the token has expired")))
    with pytest.raises(CredentialsError):
        watch(at, played)
    assert at.notes.messages[-1].title == "batchscribe: the watchdog failed"


def test_a_stranger_s_gpu_is_looked_at_and_left_alone(at: Stage, played: PlayedTick) -> None:
    deadline = at.clock.now() + timedelta(hours=1)
    at.compute.start(Claim(instance=INSTANCE, run="20261123-000000-ffffff", deadline=deadline))
    at.clock.sleep(60)
    assert watch(at, played).runs == ()
    assert state(at) is InstanceState.RUNNING


def test_a_lost_ledger_is_read_back_before_anything_is_judged(
    at: Stage, played: PlayedTick, tmp_path: Path
) -> None:
    run = orphaned(at, played)
    at.clock.sleep(20 * MINUTE)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        seen = Watchdog(replace(at.world, ledger=ledger), at.terms, played, played).watch()
    assert [each.id for each in seen.runs] == [run.id]
    assert state(at) is InstanceState.STOPPED


def test_a_stop_that_is_not_observed_is_exit_code_3_and_one_alert_in_hours(
    at: Stage, played: PlayedTick
) -> None:
    orphaned(at, played)
    at.clock.sleep(10 * MINUTE)
    lost = Fault(ComputeUnavailableError("no reply"))
    at.compute.fail("stop", *[lost] * 5000)
    for _ in range(3):
        with pytest.raises(NotStoppedError) as raised:
            watch(at, played)
        assert raised.value.exit_code == 3
        at.clock.sleep(5 * MINUTE)
    alarms = [m for m in at.notes.messages if m.title == "batchscribe: a GPU may still be running"]
    assert len(alarms) == 1
    at.clock.sleep(6 * 60 * MINUTE)
    with pytest.raises(NotStoppedError):
        watch(at, played)
    alarms = [m for m in at.notes.messages if m.title == "batchscribe: a GPU may still be running"]
    assert len(alarms) == 2


def test_a_stop_that_hangs_is_forced(at: Stage, played: PlayedTick) -> None:
    orphaned(at, played)
    at.clock.sleep(10 * MINUTE)
    at.clock.at(15, lambda: at.compute.hold(INSTANCE))
    watch(at, played)
    assert state(at) is InstanceState.STOPPED


def test_a_signal_ends_the_watchdog_s_own_waiting(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(20 * MINUTE)
    at.clock.at(10, at.clock.interrupt)
    with pytest.raises(InterruptedRunError):
        watch(at, played)
    assert played.signals == []
    assert at.notes.messages == []


def test_after_a_hung_run_the_next_start_waits(at: Stage, played: PlayedTick) -> None:
    for pause in (60, 120, 240):
        hang(at, played, 120)
        at.clock.sleep(20 * MINUTE)
        watch(at, played)
        at.upload(300, session=f"more-{pause}")
        at.clock.sleep((pause - 1) * MINUTE)
        held = tick(at.world, at.terms).decision
        assert isinstance(held, Hold)
        assert held.reason.code is ReasonCode.BACKING_OFF
        assert "ended by the watchdog" in held.reason.sentence
        at.clock.sleep(MINUTE)
    assert isinstance(tick(at.world, at.terms).decision, Launch)
    at.upload(300, session="at-last")
    at.clock.sleep(10 * MINUTE)
    assert isinstance(tick(at.world, at.terms).decision, Launch), "a run that ended well makes an end of it"


def test_a_person_may_start_at_once(at: Stage, played: PlayedTick) -> None:
    hang(at, played, 120)
    at.clock.sleep(20 * MINUTE)
    watch(at, played)
    at.upload(5, session="now")
    asked = replace(at.terms, policy=Policy(by_hand=True))
    assert isinstance(tick(at.world, asked).decision, Launch)
