"""One pass of the scheduler: reconcile, observe, decide, then step after step until the run is settled.

A crash anywhere in here is only a pause: the next tick observes, finds the open run, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import assert_never

import msgspec

from batchscribe.controller.context import Terms, World, keep, log
from batchscribe.controller.observe import observe
from batchscribe.controller.reconcile import dead_runs, recover
from batchscribe.controller.release import release
from batchscribe.controller.settle import settle
from batchscribe.controller.steps import arm, await_running, dispatch, follow, open_run, provision
from batchscribe.core.messages import Level, Message
from batchscribe.core.policy import Decision, Hold, Launch, Observation, ReasonCode, Reclaim, Resume, decide
from batchscribe.core.runs import Outcome, Run, Step, next_step
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    NotStoppedError,
    TransientError,
)

ACTS = {
    Step.ARM: arm,
    Step.PROVISION: provision,
    Step.AWAIT_RUNNING: await_running,
    Step.DISPATCH: dispatch,
    Step.FOLLOW: follow,
}
FAILED = {
    Step.ARM: Outcome.START_FAILED,
    Step.PROVISION: Outcome.START_FAILED,
    Step.AWAIT_RUNNING: Outcome.START_FAILED,
    Step.DISPATCH: Outcome.LAUNCH_FAILED,
    Step.FOLLOW: Outcome.WORKER_FAILED,
}
MAX_RUNS = 8
"""Runs that one tick may close or go on with: a bound, not a target."""
ALERT_EVERY_HOURS = 6


@dataclass(frozen=True, slots=True)
class Ticked:
    """What a tick saw, decided and did."""

    seen: Observation
    decision: Decision
    runs: tuple[Run, ...] = ()
    errors: tuple[BatchscribeError, ...] = ()


def tick(world: World, terms: Terms, *, once: bool = False) -> Ticked:
    """One tick, under the lock that the caller holds. `once` makes one step of one run and returns."""
    recover(world, terms)
    runs: list[Run] = []
    errors: list[BatchscribeError] = []
    while True:
        world.shield.check()
        seen = observe(world, terms)
        decision = decide(seen, terms.policy)
        log.info("decided", decision=type(decision).__name__, reason=decision.reason.sentence)
        run = _begin(world, terms, seen, decision)
        if run is None:
            return Ticked(seen, decision, tuple(runs), tuple(errors))
        runs.append(drive(world, terms, run, errors, once=once))
        if once or isinstance(decision, Launch) or len(runs) >= MAX_RUNS:
            return Ticked(seen, decision, tuple(runs), tuple(errors))


def reconcile(world: World, terms: Terms) -> tuple[Run, ...]:
    """Stops what should not run, starts nothing, and leaves live work alone."""
    recover(world, terms)
    errors: list[BatchscribeError] = []
    runs = tuple(drive(world, terms, run, errors) for run in dead_runs(world))
    if errors:
        raise errors[0]
    return runs


def drive(world: World, terms: Terms, run: Run, errors: list[BatchscribeError], *, once: bool = False) -> Run:
    """Steps a run on until it is settled, or once. What went wrong on the way is added to `errors`.

    Raises NotStoppedError where its instance could not be proved stopped.
    """
    with world.run_log(run):
        return _drive(world, terms, run, errors, once=once)


def _drive(world: World, terms: Terms, run: Run, errors: list[BatchscribeError], *, once: bool) -> Run:
    patience: float | None = None
    while step := next_step(run):
        before = run
        run = _advance(world, terms, run, step, errors)
        if once:
            return run
        if step is Step.RELEASE and next_step(run) is Step.RELEASE:
            patience = patience or world.clock.monotonic() + terms.waits.stop
            if world.clock.monotonic() >= patience:
                raise _not_stopped(world, terms, run)
        if run.state is before.state:
            run = _pause(world, terms, run, step, errors)
    return run


def _begin(world: World, terms: Terms, seen: Observation, decision: Decision) -> Run | None:
    """The run that the decision is about, ready to be driven; None where there is nothing to do."""
    match decision:
        case Hold():
            _record_hold(world, seen, decision)
            return None
        case Launch():
            world.preflight()
            run = open_run(world, terms, decision)
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


def _advance(world: World, terms: Terms, run: Run, step: Step, errors: list[BatchscribeError]) -> Run:
    """One step. The way out is shielded from signals: a release is not cut short by impatience."""
    if step in ACTS:
        return _attempt(world, terms, run, step, errors)
    with world.shield.shielded():
        return settle(world, terms, run) if step is Step.SETTLE else _release(world, terms, run)


def _attempt(world: World, terms: Terms, run: Run, step: Step, errors: list[BatchscribeError]) -> Run:
    """A step that may fail: a trouble that may pass is waited out, any other leads to the release."""
    try:
        return _act(world, terms, run, step)
    except InterruptedRunError as error:
        return _give_up(world, run, Outcome.INTERRUPTED, error, errors)
    except TransientError as error:
        log.warning("will be tried again", run=run.id, step=step.value, error=str(error))
        return run
    except BatchscribeError as error:
        return _give_up(world, run, FAILED[step], error, errors)
    except Exception as error:  # noqa: BLE001  whatever broke, a GPU that may run is released
        log.exception("internal error", run=run.id, step=step.value)
        wrapped = BatchscribeError(f"internal error in step {step.value}: {type(error).__name__}")
        return _give_up(world, run, FAILED[step], wrapped, errors)


def _act(world: World, terms: Terms, run: Run, step: Step) -> Run:
    if world.clock.now() >= run.deadline:
        log.warning("out of time", run=run.id, deadline=run.deadline.isoformat())
        hours = terms.policy.max_runtime.total_seconds() / 3600
        detail = f"stopped at the longest runtime of {hours:g} h; finished transcripts are kept"
        return keep(world, run.releasing(Outcome.TIMED_OUT, detail))
    return ACTS[step](world, terms, run)


def _release(world: World, terms: Terms, run: Run) -> Run:
    """A look at the way out that insists: whatever goes wrong, it is tried again."""
    try:
        return release(world, terms, run)
    except InterruptedRunError:
        raise
    except BatchscribeError as error:
        log.warning("release will be tried again", run=run.id, error=str(error))
    except Exception:  # noqa: BLE001  whatever broke, the stop is asked for again
        log.exception("internal error while releasing", run=run.id)
    return world.ledger.run(run.id) or run


def _give_up(
    world: World, run: Run, outcome: Outcome, error: BatchscribeError, errors: list[BatchscribeError]
) -> Run:
    """The run on its way out, from where it really is: a step may have recorded more than it returned."""
    with world.shield.shielded():
        errors.append(error)
        log.warning("giving up", run=run.id, outcome=outcome.value, error=str(error))
        latest = world.ledger.run(run.id) or run
        return keep(world, latest.releasing(outcome, str(error)), "giving up")


def _pause(world: World, terms: Terms, run: Run, step: Step, errors: list[BatchscribeError]) -> Run:
    """Waits for the next look. On the way out, a signal no longer cuts the wait short."""
    if step is Step.RELEASE:
        with world.shield.shielded():
            world.clock.sleep(terms.waits.poll)
        return run
    try:
        world.clock.sleep(terms.waits.poll)
    except InterruptedRunError as error:
        return _give_up(world, run, Outcome.INTERRUPTED, error, errors)
    return run


def _not_stopped(world: World, terms: Terms, run: Run) -> NotStoppedError:
    error = NotStoppedError(
        f"instance {run.instance} could not be proved stopped in {terms.waits.stop / 60:.0f} min; "
        "its transcripts are kept. Look at it, stop it by hand, then run `batchscribe reconcile`"
    )
    world.notifier.send(Message("batchscribe: a GPU may still be running", str(error), Level.FAILURE))
    return error


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
        _alert(world, seen, decision)


def _alert(world: World, seen: Observation, decision: Hold) -> None:
    """Says, now and then, that a chunk will wait longer than promised, since no start is possible."""
    if world.ledger.alert_due("overdue", seen.now, timedelta(hours=ALERT_EVERY_HOURS)):
        text = f"The longest wait is in reach, and no start is possible: {decision.reason.sentence}"
        world.notifier.send(Message("batchscribe: chunks wait too long", text, Level.WARNING))
