"""The way out of every run: the worker is asked to end, the instance is seen stopped, then disarmed.

Nothing comes between the way out and the stop: neither the store, nor the ledger, nor the worker need
answer for it. Success is what was observed. An instance in other hands is left alone, and nobody says
that it was stopped.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchscribe.controller.context import START_LANDS, Terms, World, log, noted
from batchscribe.controller.control import read_exit, read_manifest
from batchscribe.controller.outside import take_away
from batchscribe.core.instances import Instance, InstanceState
from batchscribe.core.manifest import WorkerName
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import BatchscribeError

SILENT_BOX = timedelta(minutes=2)
"""A borrowed box that does not say whether our worker still runs is let go of after this."""

OLD_LOOK = timedelta(minutes=1)
"""Where a call hung after the look, the instance may be in other hands by now: it is looked at again."""


def begin_release(world: World, run: Run) -> Run:
    """Asks a worker that may still be at work to end. Never raises: the stop comes in any case."""
    run = noted(world, replace(run, stop_requested=world.clock.now()), "stop due")
    if run.manifests and run.work_ended is None:
        _ask_to_end(world, run, force=False)
    return run


def release(world: World, terms: Terms, run: Run) -> Run:
    """One look at a run that is on its way out, and at most one act."""
    assert run.stop_requested is not None
    if run.start_requested is None:
        return _let_go(world, replace(run, stopped=run.stopped or run.stop_requested), "never started")
    before = world.clock.now()
    seen = world.compute.describe(run.instance)
    now = world.clock.now()
    if not _ours(run, seen, now):
        return run if _may_be_ours_yet(run, seen, now) else _hands_off(world, run, seen, now)
    run = _noted_look(world, run, _looked(run, seen, before, now), seen)
    if (run.borrowed or terms.shared_machine) and not _work_over(world, terms, run, seen, now):
        return run
    if run.borrowed:
        return _let_go(world, replace(run, stopped=now), "handed back running")
    return _see_stopped(world, terms, run, seen, now)


def _see_stopped(world: World, terms: Terms, run: Run, seen: Instance, now: datetime) -> Run:
    gone = seen.state is InstanceState.MISSING and run.seen_up is None
    if seen.state.proved_stopped or gone:
        if _may_still_start(run, now):
            return run
        return _let_go(world, replace(run, stopped=run.stopped or now), "seen stopped")
    assert run.stop_requested is not None
    waited = now - run.stop_requested
    # A clock that was set back grants no grace.
    graced = timedelta(0) <= waited < timedelta(seconds=terms.waits.grace)
    if seen.state.billable and graced and not _ended(world, run):
        return run
    if world.clock.now() - now >= OLD_LOOK:
        return run
    # A system that was never asked to stop is not forced to, however late it is.
    hangs = run.stopped is not None and now - run.stopped >= timedelta(seconds=terms.waits.force_after)
    if hangs or seen.state in {InstanceState.RUNNING, InstanceState.PENDING, InstanceState.MISSING}:
        world.compute.stop(seen.id, force=hangs)
    return run


def _ours(run: Run, seen: Instance, now: datetime) -> bool:
    """Our tag, on the start that was ours; or no tag at all on one that is known to be: tags get lost.

    A tag that was emptied after our start was given back: what is up since then is up for somebody else.
    """
    if run.borrowed:
        return True
    if seen.run not in {None, run.id} or (
        not seen.state.proved_stopped and run.started_again(seen.launched_at)
    ):
        return False
    up = seen.state.billable or seen.state.moving
    if seen.run == run.id or not up or run.launched is not None:
        return True
    given_back = seen.released and not _may_still_start(run, now)
    return run.start_accepted is not None and not given_back


def _may_be_ours_yet(run: Run, seen: Instance, now: datetime) -> bool:
    """Whether what the cloud shows may be older than our start: its state, or only the tags beside it."""
    if run.launched is None and seen.run is None and _start_lands(run, now):
        return True
    return _may_still_start(run, now) and not seen.state.billable


def _looked(run: Run, seen: Instance, before: datetime, now: datetime) -> Run:
    """What this look tells of the bill."""
    if not seen.state.billable and not seen.state.moving:
        if run.seen_up is not None or not run.started_since(seen.launched_at):
            return run
        # It ran, and was stopped, while nobody looked. A state that is older than the launch time beside
        # it has time to catch up.
        return replace(run, stopped=run.stopped or now, seen_up=None if _may_still_start(run, now) else now)
    run = replace(run, seen_up=run.seen_up or now, launched=run.launched or seen.launched_at)
    if seen.state is InstanceState.PENDING:
        return replace(run.idle(before), stopped=None)
    if not seen.state.billable:
        return replace(run, stopped=run.stopped or now)
    # Whatever an older look said: it is billed.
    return replace(run, running_since=run.running_since or now, running_until=now, stopped=None)


def _noted_look(world: World, run: Run, looked: Run, seen: Instance) -> Run:
    """The run after the look: written down where the bill depends on it, since a stop that fails or a
    crash would take it along.
    """
    before = (run.seen_up, run.idle_until, run.running_since, run.stopped)
    if before == (looked.seen_up, looked.idle_until, looked.running_since, looked.stopped):
        return looked
    return noted(world, looked, f"seen {seen.state} on the way out")


def _may_still_start(run: Run, now: datetime) -> bool:
    """`stopped` proves nothing until the instance was seen otherwise since our start, or it had time:
    the reply may have been lost, and what the cloud shows may be older than our start.
    """
    return run.seen_up is None and _start_lands(run, now)


def _start_lands(run: Run, now: datetime) -> bool:
    """Whether it is so lately that a start was asked for, or may have been, that not every look shows it."""
    if run.start_requested is None:
        return False
    if run.outcome in {Outcome.NO_CAPACITY, Outcome.QUOTA} and run.start_accepted is None:
        return False
    # A start that was never confirmed may have been asked for again just before the way out.
    asked = run.start_accepted or run.stop_requested or run.start_requested
    return now - asked < START_LANDS


def _work_over(world: World, terms: Terms, run: Run, seen: Instance, now: datetime) -> bool:
    """Whether our worker is gone from a machine that runs on: asked first, then killed."""
    if not run.manifests:
        return True
    assert run.stop_requested is not None
    waited = now - run.stop_requested
    alive = world.launcher.alive(seen, _worker(run))
    if alive is None:
        return waited >= SILENT_BOX
    if alive and waited >= timedelta(seconds=terms.waits.grace):
        _ask_to_end(world, run, force=True)
    return not alive


def _ended(world: World, run: Run) -> bool:
    """Whether the worker said its last word. A store that does not answer is not waited for."""
    if not run.manifests or run.work_ended is not None or run.outcome is Outcome.WORKER_LOST:
        return True
    try:
        return read_exit(world, read_manifest(world, run.manifests[-1])) is not None
    except BatchscribeError:
        return True


def _ask_to_end(world: World, run: Run, *, force: bool) -> None:
    """What the worker has in its engine is paid for: it may finish and publish that, for a moment."""
    try:
        seen = world.compute.describe(run.instance)
        if seen.state.billable:
            world.launcher.cancel(seen, _worker(run), force=force)
    except Exception as error:  # noqa: BLE001  whatever breaks here, the stop must come
        log.warning("the worker could not be asked to end", run=run.id, error=str(error))


def _worker(run: Run) -> WorkerName:
    return WorkerName(run=run.id, worker=len(run.manifests) - 1)


def _let_go(world: World, run: Run, note: str) -> Run:
    """Takes away all that is ours on an instance that was seen stopped, or that is handed back."""
    take_away(world, run)
    return noted(world, run.moved(RunState.VERIFYING), note)


def _hands_off(world: World, run: Run, seen: Instance, now: datetime) -> Run:
    owner = f"run {seen.run}" if seen.run else "somebody"
    detail = f"{seen.id} is {seen.state} and claimed by {owner} now: left alone"
    ran_unseen = run.start_accepted is not None and run.started_since(seen.launched_at)
    changed = replace(
        run,
        seen_up=run.seen_up or (now if ran_unseen else None),
        stopped=run.stopped or now,
        abandoned_gpu=True,
        outcome=run.outcome or Outcome.INSTANCE_LOST,
        detail="; ".join(filter(None, (run.detail, detail))),
    )
    take_away(world, run)
    return noted(world, changed.moved(RunState.VERIFYING), detail)
