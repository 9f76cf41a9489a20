"""Advances open runs, each independently, by the steps that need no waiting.

A run is a persisted state machine. A process that dies here only pauses it: the next pass continues from the
recorded and observed state. An error of one run never prevents the stop of another.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from batchscribe.controller.alerts import alert
from batchscribe.controller.context import (
    RunConfig,
    World,
    is_late,
    is_over,
    log,
    note_trouble,
    read_latest,
    read_moment,
    save_best_effort,
)
from batchscribe.controller.follow import dispatch_and_follow, follow
from batchscribe.controller.rehearsal_place import find_run_world
from batchscribe.controller.settle import settle
from batchscribe.controller.steps import arm, record_starts, start_machines, work
from batchscribe.controller.teardown import begin_teardown, teardown
from batchscribe.core.decide.policy import INTENT_LASTS
from batchscribe.core.messages import Level
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.run.waiting import find_wait
from batchscribe.errors import (
    BatchscribeError,
    CredentialsError,
    InterruptedRunError,
    NotStoppedError,
    TransientError,
)

ACTS = {
    RunState.PLANNED: (arm, Outcome.START_FAILED, Outcome.ABANDONED),
    RunState.ARMED: (record_starts, Outcome.START_FAILED, Outcome.ABANDONED),
    RunState.PROVISIONING: (start_machines, Outcome.START_FAILED, Outcome.THROTTLED),
    RunState.DISPATCHING: (dispatch_and_follow, Outcome.LAUNCH_FAILED, Outcome.LAUNCH_FAILED),
    RunState.TRANSCRIBING: (follow, Outcome.WORKER_FAILED, Outcome.WORKER_FAILED),
}
"""Step of each state before teardown; outcome of a run if it fails, and if transient errors last."""
_WORKING = frozenset({RunState.DISPATCHING, RunState.TRANSCRIBING})
RETRIED = "step.failed"
UNREACHABLE = "unreachable/"
"""Ledger facts: monotonic time since when the steps of a run fail."""


@dataclass(slots=True)
class PassResult:
    """Result of one or more passes."""

    runs: dict[str, Run] = field(default_factory=dict)
    """Present state of the runs that were open at one of the passes, by id."""
    errors: list[BatchscribeError] = field(default_factory=list)
    """Errors that led to the teardown of a run."""
    stuck: dict[str, BatchscribeError] = field(default_factory=dict)
    """Errors that keep a run open, by id."""

    @property
    def all_errors(self) -> tuple[BatchscribeError, ...]:
        return (*self.errors, *self.stuck.values())


def advance_all(world: World, config: RunConfig, passed: PassResult, *, start: bool = True) -> None:
    """Advances every open run; without `start`, unstarted ones only end."""
    for recorded in world.ledger.open_runs():
        known = passed.runs.get(recorded.id, recorded)
        # If the ledger cannot be written, it may lag behind this process.
        run = known if known.in_teardown and not recorded.in_teardown else recorded
        if start or run.started or run.in_teardown or _find_expiry(world, run):
            advance(world, config, run, passed)


def advance(world: World, config: RunConfig, run: Run, passed: PassResult) -> None:
    """Advances a run until a step has to wait. Raises only InterruptedRunError."""
    before = passed.stuck.pop(run.id, None)
    passed.runs[run.id] = run
    try:
        here = find_run_world(world, config, run)
        with here.run_log(run):
            _take_steps(here, config.of(run), run, passed)
    except InterruptedRunError:
        raise
    except BatchscribeError as error:
        if str(error) != str(before):
            log.warning("run.stayed_open", run=run.id, error=str(error))
        passed.stuck[run.id] = error
    except Exception as error:  # noqa: BLE001  a bug in one run must not keep another GPU running
        log.exception("run.crashed", run=run.id)
        passed.stuck[run.id] = BatchscribeError(f"run {run.id}: internal error {type(error).__name__}")


def _take_steps(world: World, config: RunConfig, run: Run, passed: PassResult) -> None:
    while run.open:
        world.keep_alive()
        before = run.state
        run = passed.runs[run.id] = take_step(world, config, run, passed)
        if run.state is before:
            # A worker's progress is shown when it is read.
            if wait := find_wait(run, read_moment(world), up=config.waits.up, reach=config.waits.reach):
                world.view.wait(wait, run.id)
            return


def take_step(world: World, config: RunConfig, run: Run, passed: PassResult) -> Run:
    """Takes the step of the run's state."""
    if expired := _find_expiry(world, run):
        # The run ends even if the ledger cannot be written.
        return save_best_effort(world, run.to_teardown(*expired), "reclaimed")
    if run.state is RunState.RELEASING:
        return _tear_down(world, config, run)
    if run.state is RunState.VERIFYING:
        return settle(world, config, run, passed.errors)
    run = _try_step(world, config, run, passed.errors)
    if not run.in_teardown and (late := _list_late_stops(world, config, run)):
        _alert_not_stopped(world, config, run, late, run.trouble)
    return run


def _find_expiry(world: World, run: Run) -> tuple[Outcome, str] | None:
    """Outcome and reason if a run must end now."""
    if run.in_teardown or not run.open:
        return None
    if not run.started and world.clock.now() - run.created >= INTENT_LASTS:
        return Outcome.ABANDONED, "no start was requested in time: its decision is out of date"
    if not is_over(world, run):
        return None
    if run.lane:
        return Outcome.TIMED_OUT, "its time on this machine is over; the next check decides about the rest"
    hours = (run.deadline - run.created).total_seconds() / 3600
    outcome = Outcome.TIMED_OUT if run.started else Outcome.ABANDONED
    return outcome, f"stopped at the longest runtime of {hours:g} h; finished transcripts are kept"


def _try_step(world: World, config: RunConfig, run: Run, errors: list[BatchscribeError]) -> Run:
    """Takes a step; transient errors are retried, others lead to teardown."""
    state = run.state
    act, failed, timed_out = ACTS[state]
    act = work if state in _WORKING and len(run.machines) > 1 else act
    try:
        run = act(world, config, run)
    except InterruptedRunError:
        raise
    except TransientError as error:
        run = note_trouble(world, read_latest(world, run), str(error), event=RETRIED)
        if not _is_hopeless(world, config, run, state):
            return _alert_if_unreachable(world, config, run, error)
        return _give_up(world, run, timed_out, error, errors)
    except BatchscribeError as error:
        if state is RunState.TRANSCRIBING and _is_bearable(world, config, run):
            return note_trouble(world, read_latest(world, run), str(error), event=RETRIED)
        refused = isinstance(error, CredentialsError)
        return _give_up(world, run, Outcome.CREDENTIALS if refused else failed, error, errors)
    except Exception as error:  # noqa: BLE001  a GPU that may run is torn down after any error
        log.exception("step.crashed", run=run.id, state=state.value)
        wrapped = BatchscribeError(f"internal error while {state.value}: {type(error).__name__}")
        return _give_up(world, run, failed, wrapped, errors)
    _clear_unreachable(world, run)
    return note_trouble(world, run, "") if state is RunState.TRANSCRIBING else run


def _is_hopeless(world: World, config: RunConfig, run: Run, state: RunState) -> bool:
    """True if transient errors lasted too long; never for live work."""
    now = read_moment(world)
    match state:
        case RunState.PROVISIONING:
            return all(is_late(m.meter.start_requested, now, config.waits.up) for m in run.working)
        case RunState.DISPATCHING:
            waited = (m.reaching_since or m.meter.start_requested for m in run.undispatched)
            at_work = len(run.undispatched) < len(run.working)
            return not at_work and all(is_late(since, now, config.waits.reach) for since in waited)
        case _:
            return False


def _is_bearable(world: World, config: RunConfig, run: Run) -> bool:
    """True if live work may go unfollowed: credentials can fail for minutes."""
    last = [machine.meter.running_until for machine in run.working]
    now, blind = read_moment(world), timedelta(seconds=config.waits.blind)
    return any(at is not None and now.is_within(blind, of=at) for at in last)


def _clear_unreachable(world: World, run: Run) -> None:
    key = f"{UNREACHABLE}{run.id}"
    with suppress(BatchscribeError):  # used for an alert only
        if world.ledger.get(key) is not None:
            world.ledger.put(key, None)


def _alert_if_unreachable(world: World, config: RunConfig, run: Run, error: TransientError) -> Run:
    """Alerts if a paid run, which continues, cannot be followed for long."""
    key, now = f"{UNREACHABLE}{run.id}", world.clock.monotonic()
    with suppress(BatchscribeError):
        since = world.ledger.get(key)
        if not run.started:
            return run
        if since is None or float(since) > now:  # uptime begins again with each boot
            world.ledger.put(key, str(now))
        elif now - float(since) >= config.waits.unreachable:
            text = f"run {run.id} could not be followed for {(now - float(since)) / 60:.0f} min: {error}"
            alert(world, f"unreachable/{run.id}", "batchscribe: a run cannot be followed", text)
    return run


def _give_up(
    world: World, run: Run, outcome: Outcome, error: BatchscribeError, errors: list[BatchscribeError]
) -> Run:
    """Moves the run to teardown, as last recorded by a step."""
    errors.append(error)
    log.warning("run.given_up", run=run.id, outcome=outcome.value, error=str(error))
    return save_best_effort(world, read_latest(world, run).to_teardown(outcome, str(error)), "giving up")


def _tear_down(world: World, config: RunConfig, run: Run) -> Run:
    """Polls once during teardown; raises NotStoppedError if that takes too long."""
    if run.stop_requested is None:
        run = begin_teardown(world, run)
    trouble = ""
    try:
        run = teardown(world, config, run)
    except InterruptedRunError:
        raise
    except BatchscribeError as error:
        trouble = str(error)
        run = note_trouble(world, _latest_stopping(world, run), trouble, event=RETRIED)
    except Exception as error:  # noqa: BLE001  the stop is requested again after any error
        log.exception("teardown.crashed", run=run.id)
        run, trouble = _latest_stopping(world, run), f"internal error {type(error).__name__}"
    if run.state is RunState.RELEASING and (late := _list_late_stops(world, config, run)):
        raise _alert_not_stopped(world, config, run, late, trouble)
    return run


def _list_late_stops(world: World, config: RunConfig, run: Run) -> list[str]:
    """Machines that were not observed stopped in time."""
    now, held = read_moment(world), [machine for machine in run.machines if not machine.released]
    return [machine.id for machine in held if is_late(run.stop_due(machine), now, config.waits.stop)]


def _latest_stopping(world: World, run: Run) -> Run:
    """Returns the run as recorded before the step failed, if possible."""
    recorded = read_latest(world, run)
    return recorded if recorded.stop_requested is not None else run


def _alert_not_stopped(
    world: World, config: RunConfig, run: Run, late: list[str], trouble: str
) -> NotStoppedError:
    """Alerts about machines that may still run, and returns the error."""
    error = NotStoppedError(
        f"instance {', '.join(late)} could not be proved stopped in {config.waits.stop / 60:.0f} min"
        f"{f' ({trouble})' if trouble else ''}; its transcripts are kept. Check it in the cloud's console, "
        "stop it there, then run `batchscribe reconcile`"
    )
    # Each later pass raises it again: the alert is repeated only after hours.
    alert(
        world, f"not-stopped/{run.id}", "batchscribe: a GPU may still be running", str(error), Level.FAILURE
    )
    return error


def end_interrupted(
    world: World, config: RunConfig, run: Run, error: InterruptedRunError, passed: PassResult
) -> None:
    """Moves a run to teardown because its process was asked to end."""
    passed.errors.append(error)
    here = find_run_world(world, config, run)
    out = save_best_effort(
        here, read_latest(here, run).to_teardown(Outcome.INTERRUPTED, str(error)), "interrupted"
    )
    advance(world, config, out, passed)


def end_lanes(world: World, config: RunConfig, passed: PassResult) -> None:
    """Ends the runs on this machine's processor, without waiting for them."""
    for run in world.ledger.open_runs():
        if run.lane:
            out = run.to_teardown(Outcome.INTERRUPTED, "the GPU takes over")
            advance(world, config, save_best_effort(world, out, "the GPU takes over"), passed)


def finish_teardown(world: World, config: RunConfig, run: Run) -> None:
    """Advances a run until it is closed; raises what keeps it open."""
    passed = PassResult()
    while passed.runs.get(run.id, run).open:
        advance(world, config, passed.runs.get(run.id, run), passed)
        if error := passed.stuck.get(run.id):
            raise error
        world.clock.sleep(config.waits.poll)
