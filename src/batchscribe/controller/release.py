"""The way out of every run: the worker is asked to end, the instance is seen stopped, then disarmed.

Success is what was observed. Only an instance that carries our claim is stopped.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchscribe.controller.context import Terms, World, keep, log
from batchscribe.controller.steps import read_exit, read_manifest
from batchscribe.core.instances import Instance, InstanceState
from batchscribe.core.manifest import Manifest
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import BatchscribeError, TransientError

START_LANDS = timedelta(seconds=60)


def release(world: World, terms: Terms, run: Run) -> Run:
    """One look at a run that is on its way out, and at most one act."""
    run = _end_work(world, terms, run)
    now = world.clock.now()
    if run.start_requested is None or run.borrowed:
        return _let_go(world, run, replace(run, stopped=run.stopped or now))
    seen = world.compute.describe(run.instance)
    if seen.run != run.id and not seen.state.proved_stopped:
        return _let_go(world, run, replace(run, stopped=run.stopped or now, detail=_not_ours(run, seen)))
    if seen.state.proved_stopped and _may_still_start(run, now):
        return run
    if seen.state.proved_stopped:
        return _let_go(world, run, replace(run, stopped=run.stopped or now))
    if not seen.state.billable and seen.state is not InstanceState.PENDING and run.stopped is None:
        run = keep(world, replace(run, stopped=now), f"no longer billed: {seen.state}")
    _insist(world, terms, run, seen, now)
    return run


def _may_still_start(run: Run, now: datetime) -> bool:
    """A start whose reply was lost may take effect after we looked: it is waited for, for a minute."""
    assert run.start_requested is not None
    unsure = run.start_accepted is None and run.outcome is not Outcome.NO_CAPACITY
    return unsure and now - run.start_requested < START_LANDS


def _end_work(world: World, terms: Terms, run: Run) -> Run:
    """Asks a worker that may still be at work to end, once, and gives it time for its last window."""
    if run.stop_requested is not None or not run.manifests:
        return run if run.stop_requested else replace(run, stop_requested=world.clock.now())
    try:
        manifest = read_manifest(world, run.manifests[-1])
        if read_exit(world, manifest) is None and run.outcome is not Outcome.WORKER_LOST:
            _cancel(world, terms, run, manifest)
    except TransientError as error:
        log.warning("the worker could not be asked to end", run=run.id, error=str(error))
    return keep(world, replace(run, stop_requested=world.clock.now()), "stop due")


def _cancel(world: World, terms: Terms, run: Run, manifest: Manifest) -> None:
    """What the worker has in its engine is paid for: it may finish and publish that, for a moment."""
    seen = world.compute.describe(run.instance)
    if not seen.state.billable:
        return
    try:
        world.launcher.cancel(seen, manifest)
    except BatchscribeError as error:
        log.warning("the worker could not be asked to end", run=run.id, error=str(error))
        return
    until = world.clock.monotonic() + terms.waits.grace
    while read_exit(world, manifest) is None and world.clock.monotonic() < until:
        world.clock.sleep(min(1.0, terms.waits.poll))


def _insist(world: World, terms: Terms, run: Run, seen: Instance, now: datetime) -> None:
    """Asks for the stop again at every look: a stop that was lost, or came too early, costs nothing."""
    asked = run.stop_requested or now
    force = now - asked >= timedelta(seconds=terms.waits.force_after)
    if seen.state.billable or seen.state is InstanceState.PENDING or force:
        world.compute.stop(seen.id, force=force)


def _let_go(world: World, before: Run, run: Run) -> Run:
    """Takes our claim off an instance that was seen stopped, or that is not ours to stop."""
    if not before.borrowed:
        world.guard.disarm(run.instance)
        if world.compute.describe(run.instance).run == run.id:
            world.compute.release(run.instance)
    note = "handed back running" if run.borrowed else "seen stopped"
    return keep(world, run.moved(RunState.VERIFYING), note if run.start_requested else "never started")


def _not_ours(run: Run, seen: Instance) -> str:
    owner = f"run {seen.run}" if seen.run else "nobody"
    return f"{run.detail}; {seen.id} is {seen.state} and claimed by {owner} now: left alone".lstrip("; ")
