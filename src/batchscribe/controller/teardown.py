"""The way out of every run: the worker is asked to end, the instance is observed stopped, then disarmed.

Nothing comes between the way out and the stop: neither the store, nor the ledger, nor the worker has to
answer for it. An instance that another owner uses by now is left alone, and is not reported as stopped.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from batchscribe.controller.context import (
    START_LANDS,
    Terms,
    World,
    is_late,
    log,
    moment,
    poll_instance,
    save_best_effort,
)
from batchscribe.controller.external_state import take_away
from batchscribe.controller.follow import ensure_agent
from batchscribe.controller.observation import read_tag
from batchscribe.controller.records import read_exit
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.meter import Moment, Poll
from batchscribe.core.run.runs import Outcome, Run, RunState
from batchscribe.errors import BatchscribeError

SILENT_HOST = 120.0
"""Seconds after which a borrowed host is handed back that does not report whether our worker still runs."""

OLD_POLL = 60.0
"""Seconds after which a poll is repeated before a stop: meanwhile the instance may have another owner."""


def begin_teardown(world: World, run: Run) -> Run:
    """Asks a worker that may still be at work to end. Never raises: the stop comes in any case."""
    now = moment(world)
    run = save_best_effort(world, replace(run, stop_requested=now), "stop due")
    if run.dispatched and run.work_ended is None:
        _ask_to_end(world, run, force=False)
        if not _is_recorded(world, run):
            # The next pass would begin the worker's grace again, and never stop: it gets none.
            run = replace(run, work_ended=now.at)
    return run


def _is_recorded(world: World, run: Run) -> bool:
    try:
        recorded = world.ledger.run(run.id)
    except BatchscribeError:
        return False
    return recorded is not None and recorded.stop_requested is not None


def teardown(world: World, terms: Terms, run: Run) -> Run:
    """One poll of a run that is on its way out, and at most one act."""
    since = run.stop_requested
    assert since is not None
    run = run if run.started else _tagged(world, run)
    if not run.started:
        return _let_go(world, replace(run, meter=run.meter.end(since)), "never started")
    poll = poll_instance(world, run)
    if not _is_ours(run, poll):
        return run if _may_become_ours(run, poll) else _hands_off(world, run, poll)
    run = _recorded(world, run, poll)
    if (run.borrowed or terms.shared_machine) and not _is_work_over(world, terms, run, poll):
        return run
    if run.borrowed:
        return _let_go(world, replace(run, meter=run.meter.end(poll.answered)), "handed back running")
    return _stop(world, terms, run, poll)


def _tagged(world: World, run: Run) -> Run:
    """The run as started, if its tag is on the instance; as it was recorded, if the cloud does not answer."""
    try:
        return read_tag(run, poll_instance(world, run))
    except BatchscribeError as error:
        log.warning("not checked for a tag of a run that was never started", run=run.id, error=str(error))
        return run


def _stop(world: World, terms: Terms, run: Run, poll: Poll) -> Run:
    seen, now = poll.instance, poll.answered
    gone = seen.state is InstanceState.MISSING and run.meter.up_since is None
    if seen.state.proved_stopped or gone:
        if _may_still_start(run, now):
            return run
        return _let_go(world, replace(run, meter=run.meter.end(now)), "observed stopped")
    assert run.stop_requested is not None
    graced = now.is_within(timedelta(seconds=terms.waits.grace), of=run.stop_requested)
    if seen.state.billable and graced and not _is_ended(world, run, seen):
        return run
    if moment(world).seconds_since(now) >= OLD_POLL:
        return run
    # A system that was never asked to stop is not forced to, however late it is.
    hangs = is_late(run.meter.stopped, now, terms.waits.force_after)
    if hangs or seen.state in {InstanceState.RUNNING, InstanceState.PENDING, InstanceState.MISSING}:
        world.compute.stop(seen.id, force=hangs)
    return run


def _is_ours(run: Run, poll: Poll) -> bool:
    """True for our tag on our own start, and for no tag at all on a start that is known to be ours.

    Tags get lost. A tag that was emptied after our start was released: what is up since is another user's.
    """
    seen, meter = poll.instance, run.meter
    if run.borrowed:
        return True
    again = not seen.state.proved_stopped and meter.is_started_again(seen.launched_at)
    if seen.run not in {None, run.id} or again:
        return False
    up = seen.state.billable or seen.state.moving
    if seen.run == run.id or not up or meter.launched is not None:
        return True
    released = seen.released and not _may_still_start(run, poll.answered)
    return meter.start_accepted is not None and not released


def _may_become_ours(run: Run, poll: Poll) -> bool:
    """True if what the cloud shows may be older than our start: its state, or only the tags beside it."""
    seen, now = poll.instance, poll.answered
    if run.meter.launched is None and seen.run is None and _start_lands(run, now):
        return True
    return _may_still_start(run, now) and not seen.state.billable


def _recorded(world: World, run: Run, poll: Poll) -> Run:
    """The run with its meter after the poll: stored if the bill depends on it, since a stop that fails or a
    crash would lose it.
    """
    meter = run.meter.read(poll, ours=True, lands=_may_still_start(run, poll.answered))
    bounds = (meter.up_since, meter.idle_until, meter.running_since, meter.stopped)
    if bounds == (run.meter.up_since, run.meter.idle_until, run.meter.running_since, run.meter.stopped):
        return replace(run, meter=meter)
    note = f"{poll.instance.state} during teardown"
    return save_best_effort(world, replace(run, meter=meter), note)


def _may_still_start(run: Run, now: Moment) -> bool:
    """`stopped` proves nothing until the instance was observed otherwise since our start, or had time to be:
    the reply may have been lost, and what the cloud shows may be older than our start.
    """
    return run.meter.up_since is None and _start_lands(run, now)


def _start_lands(run: Run, now: Moment) -> bool:
    """True if a start was asked for, or may have been, so recently that not every poll shows it."""
    if run.meter.start_requested is None:
        return False
    if run.outcome in {Outcome.NO_CAPACITY, Outcome.QUOTA} and run.meter.start_accepted is None:
        return False
    # A start that was never confirmed may have been asked for again just before the way out.
    asked = run.meter.start_accepted or run.stop_requested or run.meter.start_requested
    return now.is_within(START_LANDS, of=asked)


def _is_work_over(world: World, terms: Terms, run: Run, poll: Poll) -> bool:
    """True if our worker is gone from a machine that stays up: it is asked to end first, then killed."""
    if not run.manifests:
        return True
    alive = world.launcher.alive(poll.instance, run.worker)
    if alive is None:
        ensure_agent(world, run, poll.instance)
        _ask_to_end(world, run, force=False)
        return is_late(run.stop_requested, poll.answered, SILENT_HOST)
    if alive and is_late(run.stop_requested, poll.answered, terms.waits.grace):
        _ask_to_end(world, run, force=True)
    return not alive


def _is_ended(world: World, run: Run, seen: Instance) -> bool:
    """True if the worker has ended or died. A store that does not answer is not waited for."""
    if not run.dispatched or run.work_ended is not None or run.outcome is Outcome.WORKER_LOST:
        return True
    try:
        return world.launcher.alive(seen, run.worker) is False or read_exit(world, run.worker) is not None
    except BatchscribeError:
        return True


def _ask_to_end(world: World, run: Run, *, force: bool) -> None:
    """What the worker has in its engine is paid for: it gets a moment to finish and publish that."""
    try:
        seen = world.compute.describe(run.instance)
        if seen.state.billable:
            world.launcher.cancel(seen, run.worker, force=force)
    except Exception as error:  # noqa: BLE001  whatever breaks here, the stop must come
        log.warning("the worker could not be asked to end", run=run.id, error=str(error))


def _let_go(world: World, run: Run, note: str) -> Run:
    """Takes away all that is ours on an instance that was observed stopped, or that is handed back."""
    take_away(world, run)
    return save_best_effort(world, run.moved(RunState.VERIFYING), note)


def _hands_off(world: World, run: Run, poll: Poll) -> Run:
    seen: Instance = poll.instance
    owner = f"claimed by run {seen.run}" if seen.run else "in use by another owner"
    detail = f"{seen.id} is {seen.state} and {owner}: not touched"
    meter = run.meter
    if meter.start_accepted is not None and meter.is_started_since(seen.launched_at):
        meter = replace(meter, up_since=meter.up_since or poll.answered)
    changed = replace(
        run,
        meter=meter.end(poll.answered),
        abandoned_gpu=True,
        outcome=run.outcome or Outcome.INSTANCE_LOST,
        detail="; ".join(filter(None, (run.detail, detail))),
    )
    take_away(world, run)
    return save_best_effort(world, changed.moved(RunState.VERIFYING), detail)
