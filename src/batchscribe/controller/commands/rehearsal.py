"""A rehearsal: a controller dies in the middle of its run, and something else has to stop the GPU.

It has a small bucket of its own inside the real one, a run of its own in the ledger, and the real
instance, box and guard. Whatever comes of it, the instance is seen stopped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

import msgspec

from batchscribe.controller.advance import finish
from batchscribe.controller.context import Terms, World, log, refuse_unfit, save
from batchscribe.controller.external_state import instance_record
from batchscribe.controller.records import by_our_clock, read_box_end, read_exit
from batchscribe.controller.rehearsal_place import FOLDER, place_of
from batchscribe.core.decide.policy import Policy, PolicyName
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import GUARD_FIRST, GUARD_LAST, Instance, InstanceState
from batchscribe.core.run.runs import Outcome, Run
from batchscribe.errors import (
    BatchscribeError,
    LaunchError,
    MisconfiguredError,
    RefusedError,
)

PROVED = "rehearsed/"
"""Where the ledger keeps the last proof of each act."""
PRECISION = timedelta(minutes=1)
"""A cloud's scheduler may come so much early or late."""


class Act(StrEnum):
    BOX = "box"
    """The box has worked off its claim, and powers itself off."""
    GUARD = "guard"
    """The box holds still, and the order outside stops it."""


LAUNCH = {Act.BOX: ClaimLaunch.BOOT, Act.GUARD: ClaimLaunch.HELD}
RUNTIME = {Act.BOX: timedelta(minutes=20), Act.GUARD: timedelta(minutes=5)}
"""From the intent to the deadline: the guard's act has a near one, since somebody pays for the wait."""
LONGEST = {
    Act.BOX: RUNTIME[Act.BOX],
    Act.GUARD: RUNTIME[Act.GUARD] + GUARD_LAST + PRECISION,
}
"""From the intent to the end of the patience."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one act."""

    act: str
    at: datetime
    run: str
    proved: bool
    seconds: float | None
    """From the end of the work (box), or from the deadline (guard), to the look that saw it stopped."""
    detail: str


class Victim(Protocol):
    """A controller in a process of its own."""

    def kill(self) -> None:
        """SIGKILL: no last word, no tidying up. Harmless where it has ended."""

    def ended(self) -> str | None:
        """What it said at its end; None while it lives."""


def check(world: World, terms: Terms, act: Act, *, guarded: bool) -> Instance:
    """The instance, stopped. Raises where this act cannot be played now."""
    if terms.shared_machine:
        raise MisconfiguredError("the GPU is in this machine: there is nothing that could be left running")
    refuse_unfit(terms.unfit)
    if run := next(iter(world.ledger.open_runs()), None):
        raise RefusedError(f"run {run.id} is open: nothing was started, rehearse when it is settled")
    record = instance_record(world, terms.instances[0])
    if record is None or record.launch(LAUNCH[act]) is not LAUNCH[act]:
        raise MisconfiguredError(
            f"{terms.instances[0]} does not start its work at boot: run `batchscribe gpu setup` first"
        )
    if act is Act.GUARD and not guarded:
        raise MisconfiguredError(f"there is no guard to rehearse: {world.guard.description}")
    seen = world.compute.describe(terms.instances[0])
    if seen.state is not InstanceState.STOPPED:
        raise RefusedError(f"{seen.id} is {seen.state}: a rehearsal starts with a stopped instance")
    return seen


def terms_of(terms: Terms, act: Act) -> Terms:
    """The terms of a run that is only rehearsed: whatever is there, now, and not for long."""
    policy = Policy(
        name=PolicyName.NOW,
        by_hand=True,
        max_runtime=RUNTIME[act],
        check_interval=terms.policy.check_interval,
        daily_budget=terms.policy.daily_budget,
    )
    return replace(terms, launch=LAUNCH[act].value, policy=policy, instance_types=())


def put_speech(world: World, name: str, speech: Mapping[str, bytes]) -> None:
    """A tiny batch, where nobody's audio lies."""
    for key, data in speech.items():
        world.home.create(f"{FOLDER}{name}/{key}", data)


def rehearse(world: World, terms: Terms, act: Act, name: str, begin: Callable[[], Victim]) -> Proof:
    """Plays one act, and remembers what came of it. The caller holds the tick's lock.

    `begin` starts a tick in the place called `name`. Raises LaunchError where it did not come to the
    point, NotStoppedError where the instance was not seen stopped at the end.
    """
    there, terms = place_of(world, name), terms_of(terms, act)
    victim = begin()
    try:
        run = _at_work(there, terms, victim)
        victim.kill()
        log.info("the controller was killed", run=run.id, act=act.value)
        proof = _watched(there, terms, act, run)
    finally:
        victim.kill()
        with world.shield.shielded():
            _finish(there, terms)
            _tidy(world, name)
    world.ledger.put(f"{PROVED}{act}", msgspec.json.encode(proof).decode())
    return proof


def proofs(facts: Mapping[str, str]) -> tuple[Proof, ...]:
    """The last proof of each act, out of the ledger's facts."""
    return tuple(msgspec.json.decode(text, type=Proof) for text in facts.values())


def told(proof: Proof) -> str:
    """The proof in one sentence."""
    if proof.seconds is None:
        return proof.detail
    since = "its work ended" if proof.act == Act.BOX else "the deadline"
    return f"{proof.detail}, and it was seen stopped {proof.seconds:.0f} s after {since}"


def _at_work(world: World, terms: Terms, victim: Victim) -> Run:
    """The victim's run, as soon as its worker has its manifest."""
    while True:
        said = victim.ended()
        if said is not None:
            raise LaunchError(f"the rehearsal did not come to the point: {said}")
        run = _run_of(world)
        if run is not None and run.dispatched is not None:
            return run
        world.keep_alive()
        world.clock.sleep(terms.waits.poll)


def _watched(world: World, terms: Terms, act: Act, run: Run) -> Proof:
    """Looks, and does nothing else, until the instance is stopped or the patience is over."""
    end = run.created + LONGEST[act]
    while world.clock.now() < end:
        try:
            seen = world.compute.describe(run.instance)
            if seen.state.proved_stopped:
                return _judged(world, act, run, world.clock.now())
        except BatchscribeError as error:
            log.warning("will look again", run=run.id, error=str(error))
        world.keep_alive()
        world.clock.sleep(terms.waits.poll)
    minutes = LONGEST[act].total_seconds() / 60
    detail = (
        f"nothing had stopped {run.instance} {minutes:.0f} min after the intent: it was stopped from here"
    )
    return _proof(world, act, run, detail=detail)


def _judged(world: World, act: Act, run: Run, stopped: datetime) -> Proof:
    end = read_box_end(world, run)
    if act is Act.BOX:
        since = _work_ended(world, run)
        if end is None or since is None:
            return _proof(world, act, run, detail="it was stopped, and not by the box")
        seconds = (stopped - since).total_seconds()
        return _proof(world, act, run, seconds, f"the box powered itself off: {end.why}")
    seconds = (stopped - run.deadline).total_seconds()
    if end is not None or stopped < run.deadline + GUARD_FIRST - PRECISION:
        return _proof(world, act, run, detail="it was stopped, and not by the guard")
    return _proof(world, act, run, seconds, "the guard stopped it")


def _proof(world: World, act: Act, run: Run, seconds: float | None = None, detail: str = "") -> Proof:
    return Proof(
        act=act.value,
        at=world.clock.now(),
        run=run.id,
        proved=seconds is not None,
        seconds=seconds,
        detail=detail,
    )


def _work_ended(world: World, run: Run) -> datetime | None:
    record = read_exit(world, run.worker)
    return by_our_clock(run, record.at, world.clock.now()) if record else None


def _run_of(world: World) -> Run | None:
    return next((run for run in world.ledger.open_runs() if run.output == world.output.url), None)


def _finish(world: World, terms: Terms) -> None:
    """The dead controller's run, seen stopped and settled, as the next tick would do it."""
    run = _run_of(world)
    if run is not None:
        over = replace(run, work_ended=run.work_ended or world.clock.now())
        ending = save(world, over.releasing(Outcome.INTERRUPTED, "a rehearsal: its controller was killed"))
        finish(world, terms, ending)


def _tidy(world: World, name: str) -> None:
    for key in list(_keys(world, name)):
        world.home.delete(key)


def _keys(world: World, name: str) -> Iterator[str]:
    return (info.key for info in world.home.list(f"{FOLDER}{name}/"))
