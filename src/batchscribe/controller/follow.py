"""The step that follows a worker through the store: its progress, its last word, and its instance."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchscribe.controller.context import Terms, World, keep
from batchscribe.controller.control import (
    by_our_clock,
    late,
    look_due,
    looked_at,
    not_up,
    read_box_end,
    read_exit,
    read_manifest,
    read_progress,
)
from batchscribe.controller.dispatch import MODEL_LOAD_SECONDS, next_batch
from batchscribe.controller.silence import stands_still
from batchscribe.core.box import ClaimLaunch
from batchscribe.core.manifest import ExitRecord, Manifest, Progress, WorkerEnd
from batchscribe.core.runs import Outcome, Run, RunState


def follow(world: World, terms: Terms, run: Run) -> Run:
    """Looks at the worker's progress, at its last word, and now and then at the instance."""
    manifest = read_manifest(world, run.manifests[-1])
    if record := read_exit(world, manifest):
        return _ended(world, terms, run, manifest, record)
    progress = read_progress(world, manifest)
    if progress is not None:
        world.view.show(run, progress)
        run = _timed(run, progress, world.clock.now())
    now = world.clock.now()
    if look_due(run, terms, now):
        seen = world.compute.describe(run.instance)
        down = not_up(run, seen)
        # The call may have taken its time: an end is no earlier than its answer.
        run = keep(world, looked_at(run, seen, world.clock.now()))
        if world.launcher.alive(seen, manifest) is False and read_exit(world, manifest) is None:
            detail = f"worker {manifest.worker} is gone without a last word"
            return keep(world, run.releasing(Outcome.WORKER_LOST, detail))
        if down and read_exit(world, manifest) is None:
            return keep(world, gone_down(world, run, down))
    unseen = run.launch == ClaimLaunch.BOOT and progress is None
    if unseen and late(run.reaching_since, now, terms.waits.reach):
        detail = f"no worker came to life on the box in {terms.waits.reach / 60:.0f} min"
        return keep(world, run.releasing(Outcome.LAUNCH_FAILED, detail))
    return _silent(world, terms, run, manifest, progress)


def gone_down(world: World, run: Run, down: str) -> Run:
    """The run on its way out after its instance went down without a last word of its worker."""
    end = read_box_end(world, run)
    if end is None:
        return run.releasing(Outcome.INSTANCE_LOST, f"{down} under a working worker: somebody stopped it")
    outcome = Outcome.WORKER_LOST if end.worker == len(run.manifests) - 1 else None
    outcome = Outcome.TIMED_OUT if world.clock.now() >= run.deadline else outcome
    return run.releasing(outcome, f"the box powered itself off: {end.why}; the rest is for the next run")


def _ended(world: World, terms: Terms, run: Run, manifest: Manifest, record: ExitRecord) -> Run:
    """The worker's last word decides what is next, not what is done: that the store decides."""
    now = world.clock.now()
    run = replace(_timed(run, record, now), work_ended=by_our_clock(run, record.at, now))
    match record.end:
        case WorkerEnd.FINISHED:
            return _go_on(world, terms, run, manifest)
        case WorkerEnd.STOPPED:
            over = now >= run.deadline
            outcome = Outcome.TIMED_OUT if over else Outcome.INTERRUPTED
            return keep(world, run.releasing(outcome, record.message or "the worker was asked to end"))
        case WorkerEnd.FAILED:
            outcome = Outcome.GPU_BROKEN if record.gpu_broken else Outcome.WORKER_FAILED
            return keep(world, run.releasing(outcome, record.message))


def _go_on(world: World, terms: Terms, run: Run, manifest: Manifest) -> Run:
    """Another manifest for the same box, where work and time are left; else the way out."""
    note = f"worker {manifest.worker} finished"
    left = (run.deadline - world.clock.now()).total_seconds() - terms.priors.release_seconds
    if run.limit is None and left > 2 * MODEL_LOAD_SECONDS:
        batch = next_batch(world, terms, run)
        if batch.chunks and batch.estimate.work_seconds < left - MODEL_LOAD_SECONDS:
            again = run.moved(RunState.DISPATCHING, reaching_since=world.clock.now())
            return keep(world, again, f"{note}; {len(batch.chunks)} more chunks fit")
    return keep(world, run.releasing(None), note)


def _timed(run: Run, told: Progress | ExitRecord, now: datetime) -> Run:
    """When its first worker came to life, and when paid time first turned into speech."""
    if run.first_window is not None or len(run.manifests) > 1:
        return run
    told_at = by_our_clock(run, told.at, now)
    since = run.worker_since or by_our_clock(run, told_at - timedelta(seconds=told.timings.elapsed), now)
    first = told.timings.first_window
    return replace(
        run, worker_since=since, first_window=since + timedelta(seconds=first) if first is not None else None
    )


def _silent(world: World, terms: Terms, run: Run, manifest: Manifest, progress: Progress | None) -> Run:
    if detail := stands_still(world, terms, run, manifest, progress):
        return keep(world, run.releasing(Outcome.WORKER_LOST, detail))
    return run
