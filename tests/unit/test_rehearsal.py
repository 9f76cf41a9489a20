"""The rehearsal in a world of doubles: what stops the GPU when its controller is gone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe.controller.commands.rehearsal import (
    RUNTIME,
    Act,
    Proof,
    check,
    decode_proofs,
    make_config,
    put_speech,
    rehearse,
)
from batchscribe.controller.rehearsal_place import FOLDER, make_rehearsal_world
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.host import ClaimLaunch, HostEnd, InstanceRecord
from batchscribe.core.run.instances import GUARD_FIRST, GUARD_LAST, InstanceState
from batchscribe.core.run.manifest import decode
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import LaunchError, MisconfiguredError, RefusedError
from batchscribe.ledger import Ledger
from support.world import INSTANCE, Stage, once, stage

NAME = "20261123-120000-abcdef"
SPEECH = {"rehearsal/chunk-001.ogg": b"a few words"}


@pytest.fixture
def at(at: Stage) -> Stage:
    record = InstanceRecord(instance=INSTANCE, release="1", at=at.clock.now(), boots=True, shows_tags=True)
    at.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))
    return at


class Controller:
    """A controller that makes its steps at once, as far as it is let; killing it undoes nothing."""

    def __init__(self, at: Stage, act: Act, *, steps: int = 9) -> None:
        self.kills = 0
        self.said: str | None = None
        world, config = make_rehearsal_world(at.world, NAME), make_config(at.config, act)
        for _step in range(steps):
            run = next(iter(at.ledger.open_runs()), None)
            if run is not None and run.dispatched is not None:
                break
            tick(world, config, wait=False)
            at.clock.sleep(10)

    def kill(self) -> None:
        self.kills += 1

    def ended(self) -> str | None:
        return self.said


def play(at: Stage, act: Act, **changes: int) -> Proof:
    put_speech(at.world, NAME, SPEECH)
    at.worker.store = make_rehearsal_world(at.world, NAME).output
    return rehearse(at.world, at.config, act, NAME, lambda: Controller(at, act, **changes))


def the_run(at: Stage) -> Run:
    (run,) = at.ledger.runs(at.clock.now() - timedelta(days=1))
    return run


def host_powers_off(at: Stage, seconds: float) -> None:
    """The host's last word, then its power: so many seconds from now."""

    def off() -> None:
        run = the_run(at)
        end = HostEnd(run=run.id, why="work ended", at=at.clock.now())
        make_rehearsal_world(at.world, NAME).output.create(keys.host_end(run.id), msgspec.json.encode(end))
        at.compute.stop(INSTANCE)

    at.clock.at(seconds, off)


def guard_fires(at: Stage, after: timedelta) -> None:
    at.clock.at((RUNTIME[Act.GUARD] + after).total_seconds(), lambda: at.compute.stop(INSTANCE))


def stopped_and_tidy(at: Stage) -> None:
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert at.compute.describe(INSTANCE).run is None
    assert at.guard.armed(INSTANCE) == frozenset()
    assert decode(at.store.get(keys.instance(INSTANCE)).data, InstanceRecord).claim is None
    assert list(at.store.list(FOLDER)) == []
    assert the_run(at).state is RunState.SETTLED


def test_the_host_that_powers_itself_off_is_the_proof(at: Stage) -> None:
    host_powers_off(at, 300)
    proof = play(at, Act.BOX)
    assert (proof.proved, proof.detail) == (True, "the GPU host powered itself off: work ended")
    assert proof.seconds is not None
    assert 270 < proof.seconds < 330
    assert the_run(at).outcome is Outcome.INTERRUPTED
    assert decode_proofs(at.ledger.facts("rehearsed/")) == (proof,)
    stopped_and_tidy(at)


def test_a_host_that_runs_on_is_no_proof_and_is_stopped_from_here(at: Stage) -> None:
    proof = play(at, Act.BOX)
    assert (proof.proved, proof.seconds) == (False, None)
    assert "stopped from here" in proof.detail
    stopped_and_tidy(at)


def test_a_host_that_somebody_stopped_is_no_proof(at: Stage) -> None:
    at.clock.at(300, lambda: at.compute.stop(INSTANCE))
    assert not play(at, Act.BOX).proved
    stopped_and_tidy(at)


def test_the_guard_is_proved_with_a_host_that_holds_still(at: Stage) -> None:
    guard_fires(at, GUARD_FIRST)
    seen: list[ClaimLaunch | None] = []
    at.clock.at(120, lambda: seen.append(_claim(at)))
    proof = play(at, Act.GUARD)
    assert (proof.proved, proof.detail) == (True, "the guard stopped it")
    assert proof.seconds is not None
    assert abs(proof.seconds - GUARD_FIRST.total_seconds()) < 90
    assert seen == [ClaimLaunch.HELD]
    stopped_and_tidy(at)


def _claim(at: Stage) -> ClaimLaunch | None:
    claim = decode(at.store.get(keys.instance(INSTANCE)).data, InstanceRecord).claim
    return claim.launch if claim else None


@pytest.mark.parametrize("early", [timedelta(minutes=-3), timedelta(minutes=5)])
def test_a_stop_before_its_time_is_not_the_guards(at: Stage, early: timedelta) -> None:
    guard_fires(at, early)
    proof = play(at, Act.GUARD)
    assert (proof.proved, proof.detail) == (False, "it was stopped, but not by the guard")
    stopped_and_tidy(at)


def test_a_guard_that_never_fires_is_no_proof_and_the_gpu_is_stopped(at: Stage) -> None:
    begun = at.clock.now()
    assert not play(at, Act.GUARD).proved
    assert at.clock.now() - begun < GUARD_LAST + timedelta(minutes=20)
    stopped_and_tidy(at)


def test_a_controller_that_gives_up_first_is_told(at: Stage) -> None:
    put_speech(at.world, NAME, SPEECH)
    victim = Controller(at, Act.BOX, steps=2)
    victim.said = "no capacity"
    with pytest.raises(LaunchError, match="no capacity"):
        rehearse(at.world, at.config, Act.BOX, NAME, lambda: victim)
    assert victim.kills > 0
    assert list(at.store.list(FOLDER)) == []
    assert [run.open for run in at.ledger.runs(at.clock.now() - timedelta(days=1))] == [False]


def test_a_rehearsal_that_died_is_finished_by_any_tick(at: Stage) -> None:
    put_speech(at.world, NAME, SPEECH)
    Controller(at, Act.GUARD)
    at.clock.sleep(3600)
    tick(at.world, at.config)
    assert the_run(at).outcome is Outcome.TIMED_OUT
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert at.compute.describe(INSTANCE).run is None


def test_a_rehearsal_whose_ledger_was_lost_is_finished_too(at: Stage, tmp_path: Path) -> None:
    put_speech(at.world, NAME, SPEECH)
    Controller(at, Act.GUARD)
    at.clock.sleep(3600)
    fresh = Ledger(tmp_path / "another.sqlite")
    (run,) = reconcile(replace(at.world, ledger=fresh), at.config)
    assert run.id == the_run(at).id
    assert run.output.endswith(f"{FOLDER}{NAME}")
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert at.guard.armed(INSTANCE) == frozenset()
    assert decode(at.store.get(keys.instance(INSTANCE)).data, InstanceRecord).claim is None
    fresh.close()


def test_what_is_rehearsed_teaches_nothing_and_wakes_nobody(at: Stage) -> None:
    host_powers_off(at, 300)
    play(at, Act.BOX)
    assert at.notes.messages == []
    before = at.config.priors
    assert at.ledger.priors(engine="played", model="", instance_type="g4dn.xlarge", default=before) == before
    at.worker.seconds_each = 1e6
    for _run in range(3):
        play(at, Act.GUARD)
    at.worker.store, at.worker.seconds_each = at.store, 2.0
    at.upload(120)
    at.clock.sleep(600)
    assert tick(at.world, at.config).runs[-1].outcome is Outcome.COMPLETED, (
        "it does not count as unproductive"
    )


def test_what_is_rehearsed_is_not_transcribed_as_somebodys_audio(at: Stage) -> None:
    put_speech(at.world, NAME, SPEECH)
    at.clock.sleep(600)
    assert at.world.scanner(True).backlog().pending == 0


def test_it_is_paid_for_and_counted(at: Stage) -> None:
    host_powers_off(at, 300)
    play(at, Act.BOX)
    assert the_run(at).billed_seconds >= at.compute.billed_seconds(INSTANCE) > 0
    assert at.ledger.spent(at.clock.now() - timedelta(days=1)) == the_run(at).cost


def test_what_keeps_it_from_beginning(at: Stage, tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="no guard to rehearse"):
        check(at.world, at.config, Act.GUARD, guarded=False)
    with pytest.raises(MisconfiguredError, match="in this machine"):
        check(at.world, replace(at.config, shared_machine=True), Act.BOX, guarded=True)
    at.compute.start_unclaimed(INSTANCE)
    with pytest.raises(RefusedError, match="pending"):
        check(at.world, at.config, Act.BOX, guarded=True)
    bare = stage(tmp_path / "bare", policy=Policy())
    with pytest.raises(MisconfiguredError, match=r"gpu setup --start.*if the host has systemd"):
        check(bare.world, bare.config, Act.BOX, guarded=True)
    bare.ledger.close()


def test_an_open_run_comes_first(at: Stage) -> None:
    at.upload(120)
    at.clock.sleep(600)
    once(at)
    with pytest.raises(RefusedError, match="is open"):
        check(at.world, at.config, Act.BOX, guarded=True)


def test_a_controller_without_a_lock_ends_with_whoever_holds_it() -> None:
    code = (
        "from batchscribe.cli.rehearse import _end_with_parent; print('here', flush=True); _end_with_parent()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    assert child.poll() is None
    child.communicate(timeout=60)  # closes its standard input, as a death of ours would
    assert child.returncode == 1
