"""The step that follows a worker through the store: its progress, its last word, and its instance."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import msgspec

from batchscribe.controller.context import Terms, World, keep
from batchscribe.controller.control import look_due, read_exit, read_manifest, read_progress
from batchscribe.controller.dispatch import MODEL_LOAD_SECONDS, next_batch
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
    now = world.clock.now()
    if look_due(run, terms, now):
        seen = world.compute.describe(run.instance)
        if not seen.state.billable:
            detail = f"{seen.id} is {seen.state} under a working worker: somebody stopped it"
            return keep(world, run.releasing(Outcome.INSTANCE_LOST, detail))
        run = keep(world, _first_window(replace(run, running_until=now), progress))
        if world.launcher.alive(seen, manifest) is False and read_exit(world, manifest) is None:
            detail = f"worker {manifest.worker} is gone without a last word"
            return keep(world, run.releasing(Outcome.WORKER_LOST, detail))
    return _silent(world, terms, run, manifest, progress)


def _ended(world: World, terms: Terms, run: Run, manifest: Manifest, record: ExitRecord) -> Run:
    """The worker's last word decides what is next, not what is done: that the store decides."""
    run = replace(run, work_ended=record.at)
    if run.first_window is None and record.timings.first_window is not None and run.dispatched:
        run = replace(run, first_window=run.dispatched + timedelta(seconds=record.timings.first_window))
    match record.end:
        case WorkerEnd.FINISHED:
            return _go_on(world, terms, run, manifest)
        case WorkerEnd.STOPPED:
            late = world.clock.now() >= run.deadline
            outcome = Outcome.TIMED_OUT if late else Outcome.INTERRUPTED
            return keep(world, run.releasing(outcome, record.message or "the worker was asked to end"))
        case WorkerEnd.FAILED:
            return keep(world, run.releasing(Outcome.WORKER_FAILED, record.message))


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


def _first_window(run: Run, progress: Progress | None) -> Run:
    """When paid time first turned into speech, once it is known."""
    if run.first_window or progress is None or progress.timings.first_window is None or not run.dispatched:
        return run
    return replace(run, first_window=run.dispatched + timedelta(seconds=progress.timings.first_window))


def _silent(world: World, terms: Terms, run: Run, manifest: Manifest, progress: Progress | None) -> Run:
    """Whether the work has come to a stand: by what came of it, and a clock that cannot jump.

    A reporter that goes on counting beside a hung engine is no sign of life.
    """
    key = f"watch/{run.id}/{manifest.worker}"
    mark = (progress.phase.value, progress.tally.seen, progress.results) if progress else ("", 0, 0)
    now = world.clock.monotonic()
    before = world.ledger.get(key)
    seen, since = (
        msgspec.json.decode(before, type=tuple[tuple[str, int, int], float]) if before else (None, now)
    )
    if seen != mark or since > now:
        world.ledger.put(key, msgspec.json.encode((mark, now)).decode())
        return run
    if now - since < terms.waits.silence:
        return run
    detail = f"worker {manifest.worker} showed no progress for {terms.waits.silence / 60:.0f} min"
    return keep(world, run.releasing(Outcome.WORKER_LOST, detail))
