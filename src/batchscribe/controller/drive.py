"""Steps a run on, from wherever it is, until it is settled: with every way that a step can fail.

Before the release a signal may arrive at any place; after that point nothing cuts the way out short.
"""

from __future__ import annotations

from datetime import timedelta

from batchscribe.controller.alerts import alert
from batchscribe.controller.context import Terms, World, log, noted
from batchscribe.controller.control import ONCE, late
from batchscribe.controller.dispatch import dispatch
from batchscribe.controller.follow import follow
from batchscribe.controller.release import begin_release, release
from batchscribe.controller.retreat import world_of
from batchscribe.controller.settle import settle
from batchscribe.controller.steps import arm, await_running, provision
from batchscribe.core.messages import Level
from batchscribe.core.policy import INTENT_LASTS
from batchscribe.core.runs import Outcome, Run, Step, next_step
from batchscribe.errors import (
    BatchscribeError,
    CredentialsError,
    InterruptedRunError,
    MisconfiguredError,
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
HOPELESS = {
    Step.ARM: Outcome.ABANDONED,
    Step.PROVISION: Outcome.ABANDONED,
    Step.AWAIT_RUNNING: Outcome.THROTTLED,
}
"""How a run ends where the trouble on its way to an instance does not pass."""


def drive(world: World, terms: Terms, run: Run, errors: list[BatchscribeError], *, once: bool = False) -> Run:
    """Steps a run on until it is settled, or once. What went wrong on the way is added to `errors`.

    Raises NotStoppedError where its instance could not be proved stopped, MisconfiguredError where
    the run was begun with other settings than these.
    """
    world = world_of(world, run)
    _at_home(world, terms, run)
    with world.run_log(run):
        try:
            if next_step(run) in ACTS:
                if once:
                    world.ledger.put(f"{ONCE}{run.id}", run.id)
                run = _work(world, terms, run, errors, once=once)
                if once:
                    return run
            return _shielded_way_out(world, terms, run, errors, once=once)
        except InterruptedRunError as error:  # a signal between the work and its shield
            run = _give_up(world, run, Outcome.INTERRUPTED, error, errors)
            return _shielded_way_out(world, terms, run, errors, once=once)


def _at_home(world: World, terms: Terms, run: Run) -> None:
    """A run is looked at where it is: elsewhere its instance would seem to be missing, its store empty."""
    now = (terms.provider, terms.region, terms.instances, world.source.url, world.output.url)
    then = (run.provider, run.region, run.instances, run.source, run.output)
    if run.source and now != then:
        raise MisconfiguredError(
            f"run {run.id} is open on {run.provider} {run.region} {run.instance} for {run.source}, and these "
            f"settings name {terms.provider} {terms.region} {terms.instances[0]} for {world.source.url}: let "
            "`batchscribe tick` finish it with the settings that it was begun with; where its instance is "
            f"gone for good, `batchscribe reconcile --forget {run.id}`"
        )


def _work(world: World, terms: Terms, run: Run, errors: list[BatchscribeError], *, once: bool) -> Run:
    """Up to the end of the work, or to whatever ends it; a signal may arrive at any place in here."""
    try:
        while (step := next_step(run)) in ACTS:
            before = run.state
            run = _attempt(world, terms, run, step, errors)
            if once:
                return run
            if run.state is before:
                world.clock.sleep(terms.waits.poll)
    except InterruptedRunError as error:
        return _give_up(world, run, Outcome.INTERRUPTED, error, errors)
    return run


def _attempt(world: World, terms: Terms, run: Run, step: Step, errors: list[BatchscribeError]) -> Run:
    """A step that may fail: a trouble that may pass is waited out, any other leads to the release."""
    try:
        return _act(world, terms, run, step)
    except InterruptedRunError:
        raise
    except TransientError as error:
        log.warning("will be tried again", run=run.id, step=step.value, error=str(error))
        if not _hopeless(world, terms, run, step):
            return _latest(world, run)
        return _give_up(world, run, HOPELESS.get(step, FAILED[step]), error, errors)
    except BatchscribeError as error:
        if step is Step.FOLLOW and _bearable(world, terms, run):
            log.warning("will be tried again", run=run.id, step=step.value, error=str(error))
            return _latest(world, run)
        refused = isinstance(error, CredentialsError)
        return _give_up(world, run, Outcome.CREDENTIALS if refused else FAILED[step], error, errors)
    except Exception as error:  # noqa: BLE001  whatever broke, a GPU that may run is released
        log.exception("internal error", run=run.id, step=step.value)
        wrapped = BatchscribeError(f"internal error in step {step.value}: {type(error).__name__}")
        return _give_up(world, run, FAILED[step], wrapped, errors)


def _hopeless(world: World, terms: Terms, run: Run, step: Step) -> bool:
    """Whether a trouble that may pass has lasted too long. Live work is left to its deadline."""
    now = world.clock.now()
    match step:
        case Step.ARM | Step.PROVISION:
            return now - run.created >= INTENT_LASTS
        case Step.AWAIT_RUNNING:
            return late(run.start_requested, now, terms.waits.up)
        case Step.DISPATCH:
            return late(run.reaching_since, now, terms.waits.reach)
        case _:
            return False


def _bearable(world: World, terms: Terms, run: Run) -> bool:
    """Whether live work may go on although it cannot be followed: credentials come and go for minutes."""
    last = run.running_until or run.dispatched
    return last is not None and world.clock.now() - last < timedelta(seconds=terms.waits.blind)


def _act(world: World, terms: Terms, run: Run, step: Step) -> Run:
    if world.clock.now() >= run.deadline:
        log.warning("out of time", run=run.id, deadline=run.deadline.isoformat())
        hours = terms.policy.max_runtime.total_seconds() / 3600
        detail = f"stopped at the longest runtime of {hours:g} h; finished transcripts are kept"
        # A ledger that cannot be written is no reason to go on.
        return noted(world, run.releasing(Outcome.TIMED_OUT, detail))
    return ACTS[step](world, terms, run)


def _give_up(
    world: World, run: Run, outcome: Outcome, error: BatchscribeError, errors: list[BatchscribeError]
) -> Run:
    """The run on its way out, from where it really is: a step may have recorded more than it returned."""
    errors.append(error)
    log.warning("giving up", run=run.id, outcome=outcome.value, error=str(error))
    return noted(world, _latest(world, run).releasing(outcome, str(error)), "giving up")


def _latest(world: World, run: Run) -> Run:
    """The run as it was written down last: a step that failed may have got further than it said."""
    try:
        return world.ledger.run(run.id) or run
    except BatchscribeError:
        return run


def _shielded_way_out(
    world: World, terms: Terms, run: Run, errors: list[BatchscribeError], *, once: bool
) -> Run:
    with world.shield.shielded():
        return _way_out(world, terms, run, errors, once=once)


def _way_out(world: World, terms: Terms, run: Run, errors: list[BatchscribeError], *, once: bool) -> Run:
    """Release, verify, settle; shielded from signals, and insisting until the instance is seen stopped."""
    patience = world.clock.monotonic() + terms.waits.stop
    while next_step(run) is Step.RELEASE:
        run, trouble = _release(world, terms, run)
        if next_step(run) is not Step.RELEASE and not once:
            break
        asked = run.stop_requested or world.clock.now()
        late = (world.clock.now() - asked).total_seconds() >= terms.waits.stop
        if (late if once else world.clock.monotonic() >= patience) and next_step(run) is Step.RELEASE:
            raise _not_stopped(world, terms, run, trouble)
        if once:
            return run
        world.clock.sleep(terms.waits.poll)
    return settle(world, terms, run, errors) if next_step(run) is Step.SETTLE else run


def _release(world: World, terms: Terms, run: Run) -> tuple[Run, str]:
    """A look at the way out, and what went wrong with it. Whatever goes wrong, it is tried again."""
    if run.stop_requested is None:
        run = begin_release(world, run)
    try:
        return release(world, terms, run), ""
    except BatchscribeError as error:
        log.warning("release will be tried again", run=run.id, error=str(error))
        return _further(world, run), str(error)
    except Exception as error:  # noqa: BLE001  whatever broke, the stop is asked for again
        log.exception("internal error while releasing", run=run.id)
        return _further(world, run), f"internal error {type(error).__name__}"


def _further(world: World, run: Run) -> Run:
    """The run with what a look wrote down before it failed, where the ledger has kept up at all."""
    latest = _latest(world, run)
    return latest if latest.stop_requested is not None else run


def _not_stopped(world: World, terms: Terms, run: Run, trouble: str) -> NotStoppedError:
    error = NotStoppedError(
        f"instance {run.instance} could not be proved stopped in {terms.waits.stop / 60:.0f} min"
        f"{f' ({trouble})' if trouble else ''}; its transcripts are kept. Look at it in the cloud's console, "
        "stop it by hand, then run `batchscribe reconcile`"
    )
    # Whoever looks next, be it minutes later, raises it again: people are told now and then.
    title = "batchscribe: a GPU may still be running"
    alert(world, f"not-stopped/{run.id}", title, str(error), Level.FAILURE)
    return error
