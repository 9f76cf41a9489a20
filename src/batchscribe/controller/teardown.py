"""Teardown of every run: end worker, stop instance, disarm guard.

The stop depends on no answer of the store, the ledger or the worker. An instance that has another owner by
now is not touched, and is not reported as stopped.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from batchscribe.controller.capacity import poll_one
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
"""Seconds until a borrowed host is handed back if it does not report whether our worker still runs."""

OLD_POLL = 60.0
"""Maximum age in seconds of a poll before a stop: the instance may have another owner since."""


def begin_teardown(world: World, run: Run) -> Run:
    """Asks a worker that may still run to end. Never raises: the stop follows in any case."""
    now = moment(world)
    run = save_best_effort(world, replace(run, stop_requested=now), "stop due")
    if run.dispatched and run.work_ended is None:
        _ask_to_end(world, run, force=False)
        if not _is_recorded(world, run):
            # The next pass would restart the worker's grace period, and never stop: it gets none.
            run = replace(run, work_ended=now.at)
    return run


def _is_recorded(world: World, run: Run) -> bool:
    try:
        recorded = world.ledger.run(run.id)
    except BatchscribeError:
        return False
    return recorded is not None and recorded.stop_requested is not None


def teardown(world: World, terms: Terms, run: Run) -> Run:
    """Makes one poll in teardown, and at most one act."""
    since = run.stop_requested
    assert since is not None
    run = run if run.started else _check_tag(world, run)
    if not run.started:
        return _clean_up(world, replace(run, meter=run.meter.end(since)), "never started")
    poll = poll_instance(world, run)
    if not _is_ours(run, poll):
        return run if _may_become_ours(run, poll) else _leave_foreign(world, run, poll)
    run = _record_meter(world, run, poll)
    if (run.borrowed or terms.shared_machine) and not _is_work_over(world, terms, run, poll):
        return run
    if run.borrowed:
        return _clean_up(world, replace(run, meter=run.meter.end(poll.answered)), "handed back running")
    return _stop(world, terms, run, poll)


def _check_tag(world: World, run: Run) -> Run:
    """Returns the run as started if its tag is on the instance."""
    try:
        return read_tag(run, poll_instance(world, run))
    except BatchscribeError as error:
        log.warning("the tag of a run that was never started was not checked", run=run.id, error=str(error))
        return run


def _stop(world: World, terms: Terms, run: Run, poll: Poll) -> Run:
    seen, now = poll.instance, poll.answered
    gone = seen.state is InstanceState.MISSING and run.meter.up_since is None
    if seen.state.proved_stopped or gone:
        if _may_still_start(run, now):
            return run
        return _clean_up(world, replace(run, meter=run.meter.end(now)), "observed stopped")
    assert run.stop_requested is not None
    graced = now.is_within(timedelta(seconds=terms.waits.grace), of=run.stop_requested)
    if seen.state.billable and graced and not _is_ended(world, run, seen):
        return run
    if moment(world).seconds_since(now) >= OLD_POLL:
        return run
    # Force only an instance that was observed stopping, however late it is.
    hangs = is_late(run.meter.stopped, now, terms.waits.force_after)
    if hangs or seen.state in {InstanceState.RUNNING, InstanceState.PENDING, InstanceState.MISSING}:
        world.capacity.teardown(seen.id, force=hangs)
    return run


def _is_ours(run: Run, poll: Poll) -> bool:
    """True if the run may act on the instance.

    Requires our tag on our own start, or no tag on a start known as ours: tags get lost. If the tag was
    emptied after our start, the claim was released: an instance that is up since then is foreign.
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
    """True if the poll may be older than our start."""
    seen, now = poll.instance, poll.answered
    if run.meter.launched is None and seen.run is None and _start_lands(run, now):
        return True
    return _may_still_start(run, now) and not seen.state.billable


def _record_meter(world: World, run: Run, poll: Poll) -> Run:
    """Returns the run with its meter after the poll.

    Saved if the bill depends on it: a failed stop or a crash would lose it.
    """
    meter = run.meter.read(poll, ours=True, lands=_may_still_start(run, poll.answered))
    bounds = (meter.up_since, meter.idle_until, meter.running_since, meter.stopped)
    if bounds == (run.meter.up_since, run.meter.idle_until, run.meter.running_since, run.meter.stopped):
        return replace(run, meter=meter)
    note = f"{poll.instance.state} during teardown"
    return save_best_effort(world, replace(run, meter=meter), note)


def _may_still_start(run: Run, now: Moment) -> bool:
    """True if `stopped` may be older than our start.

    The start's reply may be lost: `stopped` is proof only once the instance was observed up, or the start had
    time to show.
    """
    return run.meter.up_since is None and _start_lands(run, now)


def _start_lands(run: Run, now: Moment) -> bool:
    """True if polls may not show the last start request yet."""
    if run.meter.start_requested is None:
        return False
    if run.outcome in {Outcome.NO_CAPACITY, Outcome.QUOTA} and run.meter.start_accepted is None:
        return False
    # An unconfirmed start may have been requested again just before teardown.
    asked = run.meter.start_accepted or run.stop_requested or run.meter.start_requested
    return now.is_within(START_LANDS, of=asked)


def _is_work_over(world: World, terms: Terms, run: Run, poll: Poll) -> bool:
    """True if our worker is gone from a machine that stays up. Asks it to end, then kills it."""
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
    """True if the worker has ended or died, or cannot be checked."""
    if not run.dispatched or run.work_ended is not None or run.outcome is Outcome.WORKER_LOST:
        return True
    try:
        return world.launcher.alive(seen, run.worker) is False or read_exit(world, run.worker) is not None
    except BatchscribeError:
        return True


def _ask_to_end(world: World, run: Run, *, force: bool) -> None:
    """Asks the worker to finish its current windows, or kills it. Never raises."""
    try:
        seen = poll_one(world, run.instance)
        if seen.state.billable:
            world.launcher.cancel(seen, run.worker, force=force)
    except Exception as error:  # noqa: BLE001  the stop must follow any error
        log.warning("the worker could not be asked to end", run=run.id, error=str(error))


def _clean_up(world: World, run: Run, note: str) -> Run:
    """Cleans up after an instance was observed stopped or handed back."""
    take_away(world, run)
    return save_best_effort(world, run.moved(RunState.VERIFYING), note)


def _leave_foreign(world: World, run: Run, poll: Poll) -> Run:
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
