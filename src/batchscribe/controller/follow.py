"""Follows the workers by polls of their machines and their stored reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from batchscribe.controller.context import (
    RunConfig,
    World,
    apply_poll,
    end_machine,
    explain_not_up,
    is_late,
    is_over,
    is_poll_due,
    log,
    poll_machines,
    read_moment,
    save,
    save_best_effort,
    seconds_left,
    step_each,
)
from batchscribe.controller.dispatch import dispatch, give_work
from batchscribe.controller.records import (
    by_our_clock,
    read_exit,
    read_host_end,
    read_manifest,
    read_progress,
)
from batchscribe.controller.sharing.portions import MODEL_LOAD_SECONDS, next_batch
from batchscribe.controller.sharing.revocation import await_rest
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.gpu_parts import merge_progress
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import BY_CLIENT, Instance, InstanceState
from batchscribe.core.run.manifest import ExitRecord, Progress, WorkerEnd, WorkerName, WorkerRef
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.errors import BatchscribeError, TransientError

WATCHED = "watch/"
"""Ledger facts: the last progress of each worker of an open run."""


class LastProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The last progress of a worker, and the monotonic time of it."""

    progress: Progress | None
    since: float


def dispatch_and_follow(world: World, config: RunConfig, run: Run) -> Run:
    """Starts workers on idle machines; follows those of the others meanwhile."""
    before = run.state
    run = dispatch(world, config, run) if run.undispatched else run
    if run.state is not before:
        return run
    if run.state is RunState.DISPATCHING and not run.undispatched:
        return save(world, run.to_state(RunState.TRANSCRIBING))
    return follow(world, config, run) if len(run.machines) > 1 else run


def follow(world: World, config: RunConfig, run: Run) -> Run:
    """Polls the machines at work if due, then reads their workers' reports."""
    idle = run.undispatched
    machines = [machine for machine in run.working if machine not in idle]
    run, seen = _poll_if_due(world, config, run, machines)

    def act(run: Run, machine: Machine) -> Run:
        return _follow_machine(world, config, run, machine, seen.get(machine.id))

    return step_each(world, run, machines, act, Outcome.WORKER_FAILED)


def _follow_machine(
    world: World, config: RunConfig, run: Run, machine: Machine, seen: Instance | None
) -> Run:
    number = run.last_worker_on(machine.id)
    assert number is not None
    worker = run.name_of(number)
    down = explain_not_up(machine, seen) if seen else ""
    try:
        if record := read_exit(world, worker):
            return _handle_exit(world, config, run, number, record)
        progress = read_progress(world, worker)
        if seen and down:
            _record_progress(world, worker, progress, world.clock.monotonic())
            return end_machine(world, run, machine.id, *_explain_down(world, run, seen, worker, down))
    except BatchscribeError as error:
        if not down:
            raise
        detail = f"{down}; its progress cannot be read: {error}"
        return end_machine(world, run, machine.id, None, detail)
    return _follow_progress(world, config, run, number, seen=seen, progress=progress)


def _poll_if_due(
    world: World, config: RunConfig, run: Run, machines: Sequence[Machine]
) -> tuple[Run, Mapping[str, Instance]]:
    """Polls the machines if due; a transient failure is only logged."""
    now = read_moment(world)
    if not any(is_poll_due(machine, config, now) for machine in machines):
        return run, {}
    try:
        polls = poll_machines(world, run, machines)
    except TransientError as error:
        log.warning("instance.poll_failed", run=run.id, error=str(error))
        return run, {}
    for name, poll in polls.items():
        run = apply_poll(run, run.machine(name), poll)
    return save_best_effort(world, run), {name: poll.instance for name, poll in polls.items()}


def _follow_progress(
    world: World,
    config: RunConfig,
    run: Run,
    number: int,
    *,
    seen: Instance | None,
    progress: Progress | None,
) -> Run:
    now, worker = read_moment(world), run.name_of(number)
    machine = run.machine(run.workers[number].machine)
    if progress is not None:
        _show_progress(world, run, number, progress)
        timed = _add_times(run, number, progress, now.at)
        run = run if timed == run else save_best_effort(world, timed)
    if seen:
        ensure_agent(world, run, seen)
    if seen and world.launcher.alive(seen, worker) is False and read_exit(world, worker) is None:
        detail = f"worker {number} is gone without an exit record"
        return end_machine(world, run, machine.id, Outcome.WORKER_LOST, detail)
    if progress is None and _awaits_host(run) and is_late(machine.reaching_since, now, config.waits.reach):
        detail = f"no worker started on the GPU host in {config.waits.reach / 60:.0f} min"
        return end_machine(world, run, machine.id, Outcome.LAUNCH_FAILED, detail)
    if stall := _find_stall(world, config, worker, progress):
        return end_machine(world, run, machine.id, Outcome.WORKER_LOST, stall)
    return run


def _show_progress(world: World, run: Run, number: int, progress: Progress) -> None:
    """Shows the progress of a worker, or of all, with several machines."""
    if len(run.machines) > 1:
        with suppress(BatchscribeError, msgspec.MsgspecError):  # for the view only
            facts = world.ledger.facts(f"{WATCHED}{run.id}/")
            facts.pop(_watch_key(run.name_of(number)), None)
            known = [msgspec.json.decode(fact, type=LastProgress).progress for fact in facts.values()]
            parts = [progress, *filter(None, known)]
            # Chunks that arrived meanwhile are done, too.
            total = max(run.planned_chunks, sum(part.tally.seen for part in parts))
            progress = merge_progress(parts, sequence=progress.sequence, total=total)
    world.view.show(run, progress)


def _record_progress(world: World, worker: WorkerRef, progress: Progress | None, now: float) -> None:
    watched = msgspec.json.encode(LastProgress(progress=progress, since=now)).decode()
    with suppress(BatchscribeError):  # the deadline still ends a worker that hangs
        world.ledger.put(_watch_key(worker), watched)


def _watch_key(worker: WorkerRef) -> str:
    return f"{WATCHED}{worker.run}/{worker.worker}"


def _find_stall(world: World, config: RunConfig, worker: WorkerRef, progress: Progress | None) -> str | None:
    """Reason why the worker counts as lost. None if it made progress.

    Progress is a change of phase, chunks or windows, measured by the monotonic clock: the report counter also
    rises while the engine hangs. The ledger keeps the last progress for the next pass.
    """
    now = world.clock.monotonic()
    before: LastProgress | None = None
    if fact := world.ledger.get(_watch_key(worker)):
        with suppress(msgspec.MsgspecError):  # of another version
            before = msgspec.json.decode(fact, type=LastProgress)
    # Uptime begins again with each boot.
    if before is None or _read_work(before.progress) != _read_work(progress) or before.since > now:
        _record_progress(world, worker, progress, now)
        return None
    if now - before.since < config.waits.silence:
        return None
    return f"worker {worker.worker} showed no progress for {config.waits.silence / 60:.0f} min"


def _read_work(progress: Progress | None) -> tuple[str, int, int] | None:
    return (progress.phase.value, progress.tally.seen, progress.results) if progress else None


def _awaits_host(run: Run) -> bool:
    """True if the host itself still has to start the last manifest."""
    return run.launch == ClaimLaunch.BOOT and (run.worker_since is None or len(run.workers) > 1)


def ensure_agent(world: World, run: Run, seen: Instance) -> None:
    """Restarts an agent that died, unless the host does so itself."""
    number = run.last_worker_on(seen.id)
    if run.launch != ClaimLaunch.SSH or number is None:
        return
    try:
        world.launcher.launch(seen, read_manifest(world, run, number), run.manifest_url(number))
    except BatchscribeError as error:
        log.warning("agent.check_failed", run=run.id, error=str(error))


def end_of_work(world: World, run: Run, instance: str) -> tuple[Outcome | None, str] | None:
    """Outcome and reason of work on a stopped host, if any began."""
    number = run.last_worker_on(instance)
    if number is None:
        return None
    if (record := read_exit(world, run.name_of(number))) is not None:
        return _find_outcome(run, number, record, over=is_over(world, run))
    end = read_host_end(world, run, instance)
    return (None, f"the GPU host powered itself off: {end.why}") if end else None


def _explain_down(
    world: World, run: Run, seen: Instance, worker: WorkerName, down: str
) -> tuple[Outcome | None, str]:
    """Outcome and reason of a stopped machine without an exit record."""
    end, missing = read_host_end(world, run, seen.id), seen.state is InstanceState.MISSING
    by_user = missing or seen.state_reason.startswith(BY_CLIENT)
    if end is None and run.machine(seen.id).market == Market.SPOT and not by_user:
        return Outcome.SPOT_INTERRUPTED, f"{down}: the cloud interrupted the spot machine without notice"
    if end is None:
        cause = seen.state_reason if missing and seen.state_reason else "stopped from outside"
        return Outcome.INSTANCE_LOST, f"{down} while its worker was running: {cause}"
    outcome = Outcome.WORKER_LOST if end.worker == worker.worker else None
    outcome = Outcome.TIMED_OUT if is_over(world, run) else outcome
    return outcome, f"the GPU host powered itself off: {end.why}; the rest is for the next run"


def _handle_exit(world: World, config: RunConfig, run: Run, number: int, record: ExitRecord) -> Run:
    """Chooses the next step by the exit record."""
    now, over = world.clock.now(), is_over(world, run)
    ended = by_our_clock(run, record.at, now)
    run = _add_times(run, number, record, now).with_worker(number, ended=ended)
    last = record.as_progress()
    _show_progress(world, run, number, last)
    _record_progress(world, run.name_of(number), last, world.clock.monotonic())
    shared = record.end is WorkerEnd.STOPPED and run.workers[number].revoked and not over
    if record.end is WorkerEnd.FINISHED or shared:
        return _continue_run(world, config, run, number)
    end = _find_outcome(run, number, record, over=over)
    run = run.with_worker(number, revoked=len(run.machines) > 1)
    return end_machine(world, run, run.workers[number].machine, *end)


def _find_outcome(run: Run, number: int, record: ExitRecord, *, over: bool) -> tuple[Outcome | None, str]:
    match record.end:
        case WorkerEnd.FINISHED:
            return None, f"worker {number} finished"
        case WorkerEnd.STOPPED:
            spot = run.machine(run.workers[number].machine).market == Market.SPOT
            outcome = Outcome.SPOT_INTERRUPTED if spot else Outcome.INTERRUPTED
            return Outcome.TIMED_OUT if over else outcome, record.message or "the worker was asked to end"
        case WorkerEnd.FAILED:
            return Outcome.GPU_BROKEN if record.gpu_broken else Outcome.WORKER_FAILED, record.message


def _continue_run(world: World, config: RunConfig, run: Run, number: int) -> Run:
    """Gives the host another manifest if possible. Else ends the machine's work."""
    note, instance = f"worker {number} finished", run.workers[number].machine
    left = seconds_left(world, run) - config.priors.release_seconds
    if left > 2 * MODEL_LOAD_SECONDS:
        batch = next_batch(world, config, run, instance)
        again = run.to_state(RunState.DISPATCHING)
        again = again.with_machine(instance, reaching_since=read_moment(world), refused_since=None)
        if len(run.machines) > 1 and not batch.chunks and (waiting := await_rest(world, config, again)):
            return save(world, waiting, f"{note}; {instance} waits for work that returns")
        if batch.chunks and batch.estimate.work_seconds < left - MODEL_LOAD_SECONDS:
            try:
                again = save(world, again, f"{note}; more chunks fit: {len(batch.chunks)}")
            except BatchscribeError as error:
                # A worker that the ledger does not know could be started twice.
                return end_machine(world, run, instance, None, note=f"{note}; no further one: {error}")
            return give_work(world, config, again, instance, batch.chunks)
    return end_machine(world, run, instance, None, note=note)


def _add_times(run: Run, number: int, reported: Progress | ExitRecord, now: datetime) -> Run:
    """Adds the start times of the run's first worker and window."""
    if run.first_window is not None or number != run.workers_on(run.workers[number].machine)[0]:
        return run
    at = by_our_clock(run, reported.at, now)
    elapsed = timedelta(seconds=reported.timings.elapsed)
    since = run.worker_since or by_our_clock(run, at - elapsed, now)
    first = reported.timings.first_window
    return replace(
        run, worker_since=since, first_window=since + timedelta(seconds=first) if first is not None else None
    )
