"""Rehearsal: kill a controller during its run, check the GPU's stop.

It uses a separate prefix in the store, its own run in the ledger, and the real instance, GPU host and guard.
In any case the instance is observed stopped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

import msgspec

from batchscribe.controller.advance import finish_teardown
from batchscribe.controller.capacity import poll_one
from batchscribe.controller.context import RunConfig, World, log, refuse_unsupported, save
from batchscribe.controller.external_state import read_instance_record
from batchscribe.controller.records import by_our_clock, read_exit, read_host_end
from batchscribe.controller.rehearsal_place import FOLDER, make_rehearsal_world
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import GUARD_FIRST, GUARD_LAST, Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.errors import (
    BatchscribeError,
    LaunchError,
    MisconfiguredError,
    RefusedError,
)

PROVED = "rehearsed/"
"""Ledger facts: the last proof of each act."""
PRECISION = timedelta(minutes=1)
"""A cloud's scheduler may fire this much early or late."""


class Act(StrEnum):
    BOX = "box"
    """The GPU host finishes its claim and powers itself off."""
    GUARD = "guard"
    """The GPU host does nothing, and the guard's order stops it."""


LAUNCH = {Act.BOX: ClaimLaunch.BOOT, Act.GUARD: ClaimLaunch.HELD}
RUNTIME = {Act.BOX: timedelta(minutes=20), Act.GUARD: timedelta(minutes=5)}
"""From the intent to the deadline: short for the guard's act, since the wait costs money."""
LONGEST = {
    Act.BOX: RUNTIME[Act.BOX],
    Act.GUARD: RUNTIME[Act.GUARD] + GUARD_LAST + PRECISION,
}
"""From the intent to the timeout."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one act."""

    act: str
    at: datetime
    run: str
    proved: bool
    seconds: float | None
    """From the end of the work (host), or from the deadline (guard), to the poll that showed it stopped."""
    detail: str


class Victim(Protocol):
    """A controller in a separate process."""

    def kill(self) -> None:
        """Sends SIGKILL: no exit record, no clean-up. Harmless if it has ended."""

    def ended(self) -> str | None:
        """Its output if it has ended; None while it runs."""


def check(world: World, config: RunConfig, act: Act, *, guarded: bool) -> Instance:
    """Returns the stopped instance. Raises if this act cannot be rehearsed now."""
    if config.shared_machine:
        raise MisconfiguredError("the GPU is in this machine: no instance could be left running")
    refuse_unsupported(config.unsupported)
    if run := next(iter(world.ledger.open_runs()), None):
        raise RefusedError(f"run {run.id} is open: nothing was started; rehearse once it is settled")
    if not config.instances:
        raise MisconfiguredError(
            "a rehearsal stops an existing instance, but each run creates its machines here; "
            "nothing was started"
        )
    record = read_instance_record(world, config.instances[0])
    if record is None or record.launch(LAUNCH[act]) is not LAUNCH[act]:
        raise MisconfiguredError(
            f"{config.instances[0]} does not start its work at boot, so its power-off cannot be rehearsed: "
            "`batchscribe gpu setup --start` installs the units, if the host has systemd and its user sudo"
        )
    if act is Act.GUARD and not guarded:
        raise MisconfiguredError(f"no guard to rehearse: {world.guard.description}")
    seen = poll_one(world, config.instances[0])
    if seen.state is not InstanceState.STOPPED:
        raise RefusedError(f"{seen.id} is {seen.state}: a rehearsal needs a stopped instance")
    return seen


def make_config(config: RunConfig, act: Act) -> RunConfig:
    """Settings of a rehearsed run: starts at once, with a short deadline."""
    policy = Policy(
        name=PolicyName.NOW,
        manual=True,
        max_runtime=RUNTIME[act],
        check_interval=config.policy.check_interval,
        daily_budget=config.policy.daily_budget,
    )
    return replace(config, launch=LAUNCH[act].value, policy=policy, first_offer_only=True)


def put_speech(world: World, name: str, speech: Mapping[str, bytes]) -> None:
    """Stores a tiny batch below the rehearsal's prefix."""
    for key, data in speech.items():
        world.home.create(f"{FOLDER}{name}/{key}", data)


def rehearse(world: World, config: RunConfig, act: Act, name: str, begin: Callable[[], Victim]) -> Proof:
    """Rehearses one act and records its proof, under the tick's lock.

    `begin` starts a tick in the rehearsal `name`. Raises LaunchError if no worker started, and
    NotStoppedError if the instance was not observed stopped at the end.
    """
    there, config = make_rehearsal_world(world, name), make_config(config, act)
    victim = begin()
    try:
        run = _await_dispatch(there, config, victim)
        victim.kill()
        log.info("controller.killed", run=run.id, act=act.value)
        proof = _await_stop(there, config, act, run)
    finally:
        victim.kill()
        with world.shield.shielded():
            _finish_run(there, config)
            for info in list(world.home.list(f"{FOLDER}{name}/")):
                world.home.delete(info.key)
    world.ledger.put(f"{PROVED}{act}", msgspec.json.encode(proof).decode())
    return proof


def decode_proofs(facts: Mapping[str, str]) -> tuple[Proof, ...]:
    """The last proof of each act, from the ledger's facts."""
    return tuple(msgspec.json.decode(text, type=Proof) for text in facts.values())


def describe_proof(proof: Proof) -> str:
    """The proof in one sentence."""
    if proof.seconds is None:
        return proof.detail
    since = "its work ended" if proof.act == Act.BOX else "the deadline"
    return f"{proof.detail}, and it was observed stopped {proof.seconds:.0f} s after {since}"


def _await_dispatch(world: World, config: RunConfig, victim: Victim) -> Run:
    """Waits until the victim's run has dispatched its manifest, and returns it."""
    while True:
        output = victim.ended()
        if output is not None:
            raise LaunchError(f"the rehearsal's controller ended before its worker started: {output}")
        run = _find_run(world)
        if run is not None and run.dispatched is not None:
            return run
        world.keep_alive()
        world.clock.sleep(config.waits.poll)


def _await_stop(world: World, config: RunConfig, act: Act, run: Run) -> Proof:
    """Only polls, until the instance is stopped or the time is over."""
    end = run.created + LONGEST[act]
    while world.clock.now() < end:
        try:
            seen = poll_one(world, run.instance)
            if seen.state.proved_stopped:
                return _assess_stop(world, act, run, world.clock.now())
        except BatchscribeError as error:
            log.warning("instance.poll_failed", run=run.id, error=str(error))
        world.keep_alive()
        world.clock.sleep(config.waits.poll)
    minutes = LONGEST[act].total_seconds() / 60
    detail = f"{run.instance} was not stopped {minutes:.0f} min after the intent: it was stopped from here"
    return _make_proof(world, act, run, detail=detail)


def _assess_stop(world: World, act: Act, run: Run, stopped: datetime) -> Proof:
    end = read_host_end(world, run, run.instance)
    if act is Act.BOX:
        record = read_exit(world, run.name_of(len(run.workers) - 1))
        if end is None or record is None:
            return _make_proof(world, act, run, detail="it was stopped, but not by the GPU host")
        since = by_our_clock(run, record.at, world.clock.now())
        seconds = (stopped - since).total_seconds()
        return _make_proof(world, act, run, seconds, f"the GPU host powered itself off: {end.why}")
    seconds = (stopped - run.deadline).total_seconds()
    if end is not None or stopped < run.deadline + GUARD_FIRST - PRECISION:
        return _make_proof(world, act, run, detail="it was stopped, but not by the guard")
    return _make_proof(world, act, run, seconds, "the guard stopped it")


def _make_proof(world: World, act: Act, run: Run, seconds: float | None = None, detail: str = "") -> Proof:
    return Proof(
        act=act.value,
        at=world.clock.now(),
        run=run.id,
        proved=seconds is not None,
        seconds=seconds,
        detail=detail,
    )


def _find_run(world: World) -> Run | None:
    return next((run for run in world.ledger.open_runs() if run.output == world.output.url), None)


def _finish_run(world: World, config: RunConfig) -> None:
    """Tears down and settles the killed controller's run, like a tick."""
    run = _find_run(world)
    if run is not None:
        over = run.with_work_ended(world.clock.now())
        ending = save(world, over.to_teardown(Outcome.INTERRUPTED, "a rehearsal: its controller was killed"))
        finish_teardown(world, config, ending)
