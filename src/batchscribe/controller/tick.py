"""One pass of the scheduler: recover, advance open runs, observe, decide, act.

No pass waits. A waiting tick repeats passes until no run is open. If it dies, the next pass, of any process,
continues from the recorded and observed state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

import msgspec

from batchscribe.control_place import find_control_url
from batchscribe.controller.advance import PassResult, advance, advance_all, end_interrupted, end_lanes
from batchscribe.controller.alerts import alert, alert_overdue, send_alert
from batchscribe.controller.commands.redo import quarantine_exhausted
from batchscribe.controller.context import RunConfig, World, is_over, log, refuse_unsupported, save
from batchscribe.controller.external_state import NOTED, disarm_settled, retry_clean_up
from batchscribe.controller.languages import identify_sessions
from batchscribe.controller.observe import observe, paused_until
from batchscribe.controller.recovery import poll_all, recover
from batchscribe.controller.retention import compact_loose
from batchscribe.controller.steps import open_run
from batchscribe.core.decide.observation import Observation, Reason, ReasonCode
from batchscribe.core.decide.offers import CPU, LOCAL
from batchscribe.core.decide.planned_start import plan_start
from batchscribe.core.decide.policy import (
    Decision,
    Hold,
    Launch,
    Reclaim,
    Resume,
    continue_run,
    decide,
    wait_in_reach,
)
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    LockHeldError,
    MisconfiguredError,
    NotStoppedError,
    ObjectNotFoundError,
    TransientError,
    combine_errors,
)

ENGINE = "engine"
"""Ledger fact: engine and model of the last scheduled decision."""
MAX_CHECKS = 8
"""Upper bound on the decisions of one waiting tick."""
Locked = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Result of a tick; `seen` is None if a run was open."""

    seen: Observation | None
    decision: Decision
    runs: tuple[Run, ...] = ()
    errors: tuple[BatchscribeError, ...] = ()
    note: str = ""
    """Sentence about another engine than in the last run; empty if it was noted before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Result of a pass over the open runs: summary and closed runs."""

    found: str
    runs: tuple[Run, ...] = ()


def tick(
    world: World,
    config: RunConfig,
    *,
    locked: Locked = nullcontext,
    wait: bool = True,
    on_decision: Callable[[Ticked], object] = lambda _: None,
) -> Ticked:
    """Advances open runs, decides, and starts a run if that is worthwhile.

    With `wait`, repeats this until no run is open. `locked` is held for each pass, not between them.
    `on_decision` gets each pass's decision before its run is followed. A signal ends the runs that this tick
    opened. Raises any error that prevents a decision, and NotStoppedError; both send an alert.
    """
    passed = PassResult()
    before = {run.id for run in world.ledger.open_runs()}
    ticked = Ticked(None, Hold(Reason(ReasonCode.OPEN_RUN, "interrupted before a decision")))
    try:
        for _ in range(MAX_CHECKS):
            with locked():
                ticked = _run_pass(world, config, passed)
            on_decision(ticked)
            closed = wait and _follow_runs(world, config, passed, locked)
            if not (closed and isinstance(ticked.decision, Resume)):
                break
    except InterruptedRunError as error:
        opened = [run for run in world.ledger.open_runs() if run.id not in before]
        if not wait or not opened:
            raise
        _end_runs(world, config, opened, error=error, passed=passed, locked=locked)
    except BatchscribeError as error:
        send_alert(world, "tick-failed", "batchscribe: the tick failed", str(error))
        if wait:
            _follow_runs(world, config, passed, locked, only_ending=True)
        raise
    if running := next((each for each in passed.stuck.values() if isinstance(each, NotStoppedError)), None):
        raise running
    _refuse_unreadable(world)
    if ticked.seen is not None and isinstance(ticked.decision, Launch):
        _alert_waits(world, config, ticked.seen, tuple(passed.runs.values())[-1])
    return replace(ticked, runs=tuple(_read_latest_runs(world, passed)), errors=passed.all_errors)


def reconcile(world: World, config: RunConfig, *, locked: Locked = nullcontext) -> tuple[Run, ...]:
    """Stops instances that must not run, and starts nothing.

    Live work continues. Waits for runs in teardown, and returns the runs that it closed. Raises all
    errors as one after every run was tried.
    """
    passed = PassResult()
    with locked():
        _collect_error(passed, lambda: passed.errors.extend(recover(world, config)))
        advance_all(world, config, passed, start=False)
        retry_clean_up(world, config)
        for instance in config.instances:
            _collect_error(passed, partial(disarm_settled, world, instance))
    _follow_runs(world, config, passed, locked, only_ending=True)
    if errors := passed.all_errors:
        raise combine_errors(errors)
    _refuse_unreadable(world)
    return _list_closed_runs(passed)


def watch(world: World, config: RunConfig, *, locked: Locked = nullcontext) -> Watched:
    """Runs one pass over the open runs, each minute by a timer.

    Lists nothing while no run is open. Raises and alerts about the error that keeps a run from being closed.
    """
    passed = PassResult()
    try:
        with locked():
            quiet = _find_idle_reason(world, config)
            if not quiet:
                advance_all(world, config, passed)
                retry_clean_up(world, config)
    except BatchscribeError as error:
        if not isinstance(error, (InterruptedRunError, LockHeldError)):
            send_alert(world, "watchdog-failed", "batchscribe: the watchdog failed", str(error))
        raise
    if passed.stuck:
        raise combine_errors(tuple(passed.stuck.values()))
    _refuse_unreadable(world)
    still_open = [f"run {run.id} is {run.state}" for run in passed.runs.values() if run.open]
    return Watched(found=quiet or ", ".join(still_open) or "no run is open", runs=_list_closed_runs(passed))


def forget_run(world: World, run_id: str) -> Run:
    """Closes an open run at the user's request; its instance is gone.

    Its cost follows from earlier polls. Raises ObjectNotFoundError if no such run is open.
    """
    run = world.ledger.run(run_id)
    if run is None or not run.open:
        raise ObjectNotFoundError(f"no run {run_id!r} is open; `batchscribe status` shows the one that is")
    out = run.to_teardown(Outcome.INSTANCE_LOST, "closed manually: its instance was not polled")
    now = world.clock.now()
    closed = replace(out, state=RunState.SETTLED, settled=now, abandoned_gpu=True, cost=out.bill())
    return save(world, closed, "closed manually")


def _run_pass(world: World, config: RunConfig, passed: PassResult) -> Ticked:
    """Runs one pass of a tick; necessary stops come first, by ledger."""
    for run in world.ledger.open_runs():
        if run.in_teardown or is_over(world, run):
            advance(world, config, run, passed)
    passed.errors += recover(world, config)
    for run in world.ledger.open_runs():
        if run.id not in passed.stuck:
            advance(world, config, run, passed)
    retry_clean_up(world, config)
    still_open = world.ledger.open_runs()
    _refuse_moved_control(world, still_open)
    if blocking := next((run for run in still_open if not run.lane), None):
        return Ticked(None, continue_run(world.clock.now(), blocking))
    world.prepare_lane()
    world.keep_alive()
    seen = observe(world, config)
    identify_sessions(world, seen.backlog.candidates)
    # That takes a while: a user may have paused meanwhile.
    seen = replace(seen, paused_until=paused_until(world))
    decision = decide(seen, config.policy)
    log.info("tick.decided", decision=type(decision).__name__, reason=decision.reason.sentence)
    note = _note_engine(world, config)
    _carry_out(world, config, seen, decision, passed)
    return Ticked(seen, decision, note=note)


def _note_engine(world: World, config: RunConfig) -> str:
    """Records the engine of the next runs; returns a sentence about changes."""
    engine = f"{config.engine.engine} {config.engine.model}".strip()
    before = world.ledger.get(ENGINE) or world.ledger.last_engine()
    if config.policy.manual or config.unsupported or before == engine:
        return ""
    if before:
        log.info("engine.changed", before=before, now=engine)
    world.ledger.put(ENGINE, engine)
    sentence = f"New audio is transcribed by {engine}, before it was {before}; existing transcripts stay"
    return sentence if before else ""


def _refuse_moved_control(world: World, still_open: Iterable[Run]) -> None:
    """Raises MisconfiguredError if BATCH_CONTROL was changed during an open run, which continues."""
    for run in still_open:
        if run.control != find_control_url(world.home):
            before = f"BATCH_CONTROL={run.control}" if run.control else "no BATCH_CONTROL"
            raise MisconfiguredError(
                f"BATCH_CONTROL was changed while run {run.id} is open; nothing was started. The run "
                f"continues with {before}: wait until `batchscribe watchdog` settles it, or restore that"
            )


def _carry_out(
    world: World, config: RunConfig, seen: Observation, decision: Decision, passed: PassResult
) -> None:
    """Carries out the decision, as far as that needs no waiting."""
    match decision:
        case Hold():
            _record_hold(world, config, seen, decision)
            compact_loose(world)
            # Reported before the first start, which may be days away.
            refuse_unsupported(config.unsupported)
        case Launch():
            world.preflight()
            refuse_unsupported(config.unsupported)
            end_lanes(world, config, passed)
            run = _open_run(world, config, seen, decision)
            world.ledger.put(
                f"scan/{run.id}", msgspec.json.encode(replace(seen.backlog, candidates=())).decode()
            )
            if decision.outside_hours:
                alert(world, "outside-hours", "batchscribe: a start outside BATCH_HOURS", run.reason)
            advance(world, config, run, passed)
        case Resume() | Reclaim():
            advance(world, config, decision.run, passed)
        case _:
            assert_never(decision)


def _open_run(world: World, config: RunConfig, seen: Observation, decision: Launch) -> Run:
    if decision.lane and config.lane:
        here = Instance(id=LOCAL, state=InstanceState.STOPPED, type=CPU)
        return open_run(world, config.lane, decision, (here,))
    return open_run(world, config, decision, seen.instances)


def _follow_runs(
    world: World, config: RunConfig, passed: PassResult, locked: Locked, *, only_ending: bool = False
) -> bool:
    """Repeats passes until no run can be closed; True without open runs."""
    begin = world.clock.monotonic()
    while still_open := [
        run
        for run in world.ledger.open_runs()
        # If the ledger cannot be written, it lags behind this process.
        if passed.runs.get(run.id, run).in_teardown or not only_ending
    ]:
        patient = world.clock.monotonic() - begin < config.waits.stop
        if all(_is_stuck(passed.stuck.get(run.id), patient=patient) for run in still_open):
            return False
        world.clock.sleep(config.waits.poll)
        try:
            with locked():
                advance_all(world, config, passed, start=not only_ending)
        except LockHeldError:
            continue  # another process runs a pass
    return True


def _is_stuck(error: BatchscribeError | None, *, patient: bool) -> bool:
    """True if another pass cannot help; transient errors are retried while `patient`."""
    return error is not None and not (patient and isinstance(error, (NotStoppedError, TransientError)))


def _end_runs(
    world: World,
    config: RunConfig,
    runs: list[Run],
    *,
    error: InterruptedRunError,
    passed: PassResult,
    locked: Locked,
) -> None:
    """Ends runs on a signal; further ones wait for that."""
    with world.shield.shielded():
        with locked():
            for run in runs:
                end_interrupted(world, config, run, error, passed)
        _follow_runs(world, config, passed, locked, only_ending=True)


def _find_idle_reason(world: World, config: RunConfig) -> str:
    """Reason why there is nothing to advance, after one poll; or empty."""
    if world.ledger.open_runs():
        return ""
    try:
        seen, silent = ((), ()) if config.shared_machine else poll_all(world, config)
    except TransientError as error:
        return f"no run is open, and the instance could not be polled: {error}"
    if all(_is_idle(world, each) for each in seen):
        states = ", ".join(f"{each.id} is {each.state}" for each in seen)
        found = ", and ".join(filter(None, ("no run is open", states, *map(str, silent))))
        return "" if world.ledger.facts(NOTED) else found
    # The tag names a run that only the store remembers (the ledger was lost), or that is settled.
    if errors := recover(world, config):
        raise combine_errors(errors)
    return ""


def _is_idle(world: World, seen: Instance) -> bool:
    """True without a tag, or if stopped with a known run's tag."""
    return seen.run is None or (seen.state.proved_stopped and world.ledger.run(seen.run) is not None)


def _read_latest_runs(world: World, passed: PassResult) -> Iterator[Run]:
    """Yields the present runs: another process may have closed one meanwhile."""
    for run in passed.runs.values():
        recorded = world.ledger.run(run.id) if run.open else None
        yield recorded if recorded and not recorded.open else run


def _list_closed_runs(passed: PassResult) -> tuple[Run, ...]:
    return tuple(run for run in passed.runs.values() if not run.open)


def _collect_error(passed: PassResult, act: Callable[[], object]) -> None:
    try:
        act()
    except InterruptedRunError:
        raise
    except BatchscribeError as error:
        passed.errors.append(error)


def _refuse_unreadable(world: World) -> None:
    """Raises MisconfiguredError if open runs cannot be read."""
    world.ledger.open_runs()
    if world.ledger.unreadable:
        raise MisconfiguredError(
            f"open runs in the ledger that cannot be read: {len(world.ledger.unreadable)} "
            f"({world.ledger.unreadable[0]}); the others were advanced. Install the version that wrote them"
        )


def _record_hold(world: World, config: RunConfig, seen: Observation, decision: Hold) -> None:
    world.ledger.save_sample(
        QueueSample(
            at=seen.now,
            pending=seen.backlog.pending,
            triggering=seen.backlog.triggering,
            waiting=seen.backlog.waiting,
            oldest=seen.backlog.oldest,
            decision=decision.reason.code.value,
            sentence=decision.reason.sentence,
            numbers=dict(decision.reason.numbers),
        )
    )
    if decision.overdue:
        text = f"A chunk's longest wait is near, and no start is possible: {decision.reason.sentence}"
        if given_up := seen.backlog.exhausted:
            now = quarantine_exhausted(world.output, seen.backlog, config.max_attempts, seen.now)
            text = f"Chunks that failed too often to start a GPU again: {given_up}; quarantined now: {now}. "
            text += "See `batchscribe why KEY`"
        alert_overdue(world, text)
    elif decision.reason.code is ReasonCode.BACKING_OFF:
        alert(world, "backing-off", "batchscribe: no start for a while", decision.reason.sentence)


def _alert_waits(world: World, config: RunConfig, seen: Observation, run: Run) -> None:
    """Alerts if the next start may come after a chunk's longest wait."""
    if run.outcome is None or not run.outcome.no_start:
        return
    if wait_in_reach(seen, config.policy, plan_start(seen, config.policy)):
        failure = f"and the start failed ({run.outcome}): {run.detail}"
        alert_overdue(world, f"A chunk's longest wait is near, {failure}")
