"""Follows a worker by polls of its instance and its stored reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchscribe.controller.context import Terms, World, is_late, log, moment, poll_instance, save
from batchscribe.controller.dispatch import MODEL_LOAD_SECONDS, give_work, next_batch
from batchscribe.controller.observation import poll_due, read_poll, why_not_up
from batchscribe.controller.records import (
    by_our_clock,
    read_box_end,
    read_exit,
    read_manifest,
    read_progress,
)
from batchscribe.controller.stall import stall_reason
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import ExitRecord, Progress, WorkerEnd
from batchscribe.core.run.runs import Outcome, Run, RunState
from batchscribe.errors import BatchscribeError, TransientError


def follow(world: World, terms: Terms, run: Run) -> Run:
    """Polls the instance if due, then reads the worker's reports."""
    run, seen = _poll_if_due(world, terms, run)
    down = why_not_up(run, seen) if seen else ""
    try:
        if record := read_exit(world, run.worker):
            return _after_exit(world, terms, run, record)
        progress = read_progress(world, run.worker)
        if down:
            return save(world, _end_gone_down(world, run, down))
    except BatchscribeError as error:
        if not down:
            raise
        return save(world, run.releasing(None, f"{down}; its progress cannot be read: {error}"))
    return _follow_progress(world, terms, run, seen, progress)


def _poll_if_due(world: World, terms: Terms, run: Run) -> tuple[Run, Instance | None]:
    """Polls the instance if due. A transient failure does not prevent reading the store."""
    if not poll_due(run, terms, moment(world)):
        return run, None
    try:
        poll = poll_instance(world, run)
    except TransientError as error:
        log.warning("poll will be repeated", run=run.id, error=str(error))
        return run, None
    return save(world, read_poll(run, poll)), poll.instance


def _follow_progress(
    world: World, terms: Terms, run: Run, seen: Instance | None, progress: Progress | None
) -> Run:
    now = moment(world)
    if progress is not None:
        world.view.show(run, progress)
        timed = _add_times(run, progress, now.at)
        run = run if timed == run else save(world, timed)
    if seen:
        ensure_agent(world, run, seen)
    if seen and world.launcher.alive(seen, run.worker) is False and read_exit(world, run.worker) is None:
        detail = f"worker {run.worker.worker} is gone without an exit record"
        return save(world, run.releasing(Outcome.WORKER_LOST, detail))
    if progress is None and _awaits_host(run) and is_late(run.reaching_since, now, terms.waits.reach):
        detail = f"no worker started on the GPU host in {terms.waits.reach / 60:.0f} min"
        return save(world, run.releasing(Outcome.LAUNCH_FAILED, detail))
    if stall := stall_reason(world, terms, run, progress):
        return save(world, run.releasing(Outcome.WORKER_LOST, stall))
    return run


def _awaits_host(run: Run) -> bool:
    """True if the host itself still has to start the last manifest."""
    return run.launch == ClaimLaunch.BOOT and (run.worker_since is None or len(run.manifests) > 1)


def ensure_agent(world: World, run: Run, seen: Instance) -> None:
    """Restarts an agent that died. The host itself only restarts agents that it started at boot."""
    if run.launch != ClaimLaunch.SSH:
        return
    url = f"{world.output.url.rstrip('/')}/{run.manifests[-1]}"
    try:
        world.launcher.launch(seen, read_manifest(world, run), url)
    except BatchscribeError as error:
        log.warning("the agent could not be checked", run=run.id, error=str(error))


def end_of_work(world: World, run: Run) -> tuple[Outcome | None, str] | None:
    """Outcome and reason of a run with a stopped host. None if work never began."""
    if not run.manifests:
        return None
    if (record := read_exit(world, run.worker)) is not None:
        return _outcome_of(run, record, over=world.clock.now() >= run.deadline)
    end = read_box_end(world, run)
    return (None, f"the GPU host powered itself off: {end.why}") if end else None


def _end_gone_down(world: World, run: Run, down: str) -> Run:
    """Begins teardown after the instance went down without an exit record."""
    end = read_box_end(world, run)
    if end is None:
        detail = f"{down} while its worker was running: stopped from outside"
        return run.releasing(Outcome.INSTANCE_LOST, detail)
    outcome = Outcome.WORKER_LOST if end.worker == run.worker.worker else None
    outcome = Outcome.TIMED_OUT if world.clock.now() >= run.deadline else outcome
    return run.releasing(outcome, f"the GPU host powered itself off: {end.why}; the rest is for the next run")


def _after_exit(world: World, terms: Terms, run: Run, record: ExitRecord) -> Run:
    """Chooses the next step by the exit record. Only the store decides which chunks are done."""
    now = world.clock.now()
    run = replace(_add_times(run, record, now), work_ended=by_our_clock(run, record.at, now))
    if record.end is WorkerEnd.FINISHED:
        return _continue_run(world, terms, run)
    return save(world, run.releasing(*_outcome_of(run, record, over=now >= run.deadline)))


def _outcome_of(run: Run, record: ExitRecord, *, over: bool) -> tuple[Outcome | None, str]:
    match record.end:
        case WorkerEnd.FINISHED:
            return None, f"worker {run.worker.worker} finished"
        case WorkerEnd.STOPPED:
            outcome = Outcome.TIMED_OUT if over else Outcome.INTERRUPTED
            return outcome, record.message or "the worker was asked to end"
        case WorkerEnd.FAILED:
            return Outcome.GPU_BROKEN if record.gpu_broken else Outcome.WORKER_FAILED, record.message


def _continue_run(world: World, terms: Terms, run: Run) -> Run:
    """Gives the host another manifest if possible. Else begins teardown."""
    note = f"worker {run.worker.worker} finished"
    left = (run.deadline - world.clock.now()).total_seconds() - terms.priors.release_seconds
    if run.limit is None and left > 2 * MODEL_LOAD_SECONDS:
        batch = next_batch(world, terms, run)
        if batch.chunks and batch.estimate.work_seconds < left - MODEL_LOAD_SECONDS:
            again = run.moved(RunState.DISPATCHING, reaching_since=moment(world))
            again = save(world, again, f"{note}; more chunks fit: {len(batch.chunks)}")
            return give_work(world, terms, again, batch.chunks)
    return save(world, run.releasing(None), note)


def _add_times(run: Run, reported: Progress | ExitRecord, now: datetime) -> Run:
    """Adds the start times of the run's first worker and window."""
    if run.first_window is not None or len(run.manifests) > 1:
        return run
    at = by_our_clock(run, reported.at, now)
    elapsed = timedelta(seconds=reported.timings.elapsed)
    since = run.worker_since or by_our_clock(run, at - elapsed, now)
    first = reported.timings.first_window
    return replace(
        run, worker_since=since, first_window=since + timedelta(seconds=first) if first is not None else None
    )
