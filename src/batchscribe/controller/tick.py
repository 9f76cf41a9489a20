"""One pass of the scheduler: reconcile, observe, decide, then step after step until the run is settled.

A crash anywhere in here is only a pause: the next tick observes, finds the open run, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

import msgspec

from batchscribe.controller.alerts import alert
from batchscribe.controller.context import Terms, World, keep, log, noted, refuse_unfit
from batchscribe.controller.drive import drive
from batchscribe.controller.observe import observe
from batchscribe.controller.outside import disarm_settled, sweep
from batchscribe.controller.reconcile import dead_runs, recover
from batchscribe.controller.retention import compact_loose
from batchscribe.controller.steps import open_run
from batchscribe.core.policy import (
    Decision,
    Hold,
    Launch,
    Observation,
    Reason,
    ReasonCode,
    Reclaim,
    Resume,
    decide,
    fit,
    wait_in_reach,
)
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    NotStoppedError,
    ObjectNotFoundError,
)

MAX_RUNS = 8
"""Runs that one tick may close or go on with: a bound, not a target."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """What a tick decided and did. `seen` is None where an open run came before any look around."""

    seen: Observation | None
    decision: Decision
    runs: tuple[Run, ...] = ()
    errors: tuple[BatchscribeError, ...] = ()


def tick(world: World, terms: Terms, *, once: bool = False) -> Ticked:
    """One tick, under the lock that the caller holds. `once` makes one step of one run and returns.

    Raises what keeps it from a decision; people are told of that, now and then.
    """
    try:
        return _tick(world, terms, once=once)
    except (InterruptedRunError, NotStoppedError):
        raise
    except BatchscribeError as error:
        alert(world, "tick-failed", "batchscribe: the tick failed", str(error))
        raise


def _tick(world: World, terms: Terms, *, once: bool) -> Ticked:
    runs: list[Run] = []
    errors: list[BatchscribeError] = []
    # First of all, from the ledger alone: a listing that fails must not keep an orphan running.
    for run, reason in _overdue(world):
        runs.append(drive(world, terms, run, errors, once=once))
        if once:
            return Ticked(None, Reclaim(reason, run), tuple(runs), tuple(errors))
    recover(world, terms)
    sweep(world)
    while True:
        world.shield.check()
        seen = observe(world, terms)
        decision = decide(seen, terms.policy)
        log.info("decided", decision=type(decision).__name__, reason=decision.reason.sentence)
        begun = _begin(world, terms, seen, decision)
        if begun is None:
            return Ticked(seen, decision, tuple(runs), tuple(errors))
        runs.append(drive(world, terms, begun, errors, once=once))
        _tell_of_waits(world, terms, seen, runs[-1])
        if once or isinstance(decision, Launch) or len(runs) >= MAX_RUNS:
            return Ticked(seen, decision, tuple(runs), tuple(errors))


def reconcile(world: World, terms: Terms) -> tuple[Run, ...]:
    """Stops what should not run, starts nothing, and leaves live work alone."""
    errors: list[BatchscribeError] = []
    runs = [drive(world, terms, run, errors) for run, _reason in _overdue(world)]
    try:
        recover(world, terms)
    except BatchscribeError as error:
        errors.append(error)
    runs += [drive(world, terms, run, errors) for run in dead_runs(world, terms)]
    sweep(world)
    try:
        disarm_settled(world, terms.instances[0])
    except BatchscribeError as error:
        errors.append(error)
    if errors:
        raise errors[0]
    return tuple(runs)


def forget_run(world: World, run_id: str) -> Run:
    """Closes an open run by a person's word: its instance is gone for good, and cannot be looked at.

    Its cost is what was seen of it. Raises ObjectNotFoundError where no such run is open.
    """
    run = world.ledger.run(run_id)
    if run is None or not run.open:
        raise ObjectNotFoundError(f"no run {run_id!r} is open; `batchscribe status` shows the one that is")
    out = run.releasing(Outcome.INSTANCE_LOST, "closed by hand: its instance was not looked at")
    closed = replace(
        out, state=RunState.SETTLED, settled=world.clock.now(), abandoned_gpu=True, cost=out.bill()
    )
    return keep(world, closed, "closed by hand")


def _overdue(world: World) -> Iterator[tuple[Run, Reason]]:
    """Open runs that are to be released whatever the world looks like: late, or on their way out."""
    now = world.clock.now()
    for run in world.ledger.open_runs():
        if run.state in {RunState.RELEASING, RunState.VERIFYING}:
            yield run, Reason(ReasonCode.OPEN_RUN, f"run {run.id} is {run.state}: it goes on")
        elif now >= run.deadline:
            reason = Reason(ReasonCode.DEADLINE, f"run {run.id} is past its deadline: it is released")
            outcome = Outcome.ABANDONED if run.start_requested is None else Outcome.TIMED_OUT
            yield noted(world, run.releasing(outcome, reason.sentence), "reclaimed"), reason


def _begin(world: World, terms: Terms, seen: Observation, decision: Decision) -> Run | None:
    """The run that the decision is about, ready to be driven; None where there is nothing to do."""
    match decision:
        case Hold():
            _record_hold(world, seen, decision)
            compact_loose(world)
            # Told while it costs nothing, not with the first start, which may be days away.
            refuse_unfit(terms.unfit)
            return None
        case Launch():
            refuse_unfit(terms.unfit)
            world.preflight()
            run = open_run(world, terms, decision, seen.instance)
            world.ledger.put(
                f"scan/{run.id}", msgspec.json.encode(replace(seen.backlog, candidates=())).decode()
            )
            return run
        case Resume():
            return decision.run
        case Reclaim():
            never = decision.reason.code is ReasonCode.NEVER_STARTED
            outcome = Outcome.ABANDONED if never else Outcome.TIMED_OUT
            return keep(world, decision.run.releasing(outcome, decision.reason.sentence), "reclaimed")
        case _:
            assert_never(decision)


def _record_hold(world: World, seen: Observation, decision: Hold) -> None:
    world.ledger.save_sample(
        at=seen.now,
        pending=seen.backlog.pending,
        triggering=seen.backlog.triggering,
        waiting=seen.backlog.waiting,
        oldest=seen.backlog.oldest,
        decision=decision.reason.code.value,
        sentence=decision.reason.sentence,
        numbers=msgspec.json.encode(dict(decision.reason.numbers)).decode(),
    )
    if decision.overdue:
        text = f"The longest wait is in reach, and no start is possible: {decision.reason.sentence}"
        alert(world, "overdue", "batchscribe: chunks wait too long", text)


def _tell_of_waits(world: World, terms: Terms, seen: Observation, run: Run) -> None:
    """An alert before a chunk's longest wait is missed: this start failed, and the next may come too late."""
    if run.outcome is None or not run.outcome.no_start:
        return
    if wait_in_reach(seen, terms.policy, fit(seen, terms.policy)):
        text = f"The longest wait is in reach, and the start failed ({run.outcome}): {run.detail}"
        alert(world, "overdue", "batchscribe: chunks wait too long", text)
