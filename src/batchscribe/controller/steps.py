"""The steps of a run up to the end of its work: each is one look at the world and at most one act.

A step returns the run as it is afterwards, already recorded. Where nothing has changed it returns
it in the same state, and whoever drives it waits and calls again; so every step can be repeated,
and a crash between two looks is only a pause.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from batchscribe.controller.context import Terms, World, keep, log
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.chunks import Chunk
from batchscribe.core.instances import Claim, Instance, InstanceState
from batchscribe.core.manifest import ExitRecord, Manifest, ManifestChunk, Progress, WorkerEnd
from batchscribe.core.packing import Batch, pack
from batchscribe.core.policy import Launch
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    NoCapacityError,
    ObjectNotFoundError,
)

MODEL_LOAD_SECONDS = 30.0
"""Of a worker's time before its first window, once the box is up."""


def open_run(world: World, terms: Terms, decision: Launch) -> Run:
    """Records the intent in the ledger. The deadline counts from here."""
    now = world.clock.now()
    batch = decision.batch
    run = Run(
        id=world.new_run_id(now),
        provider=terms.provider,
        instances=terms.instances,
        borrowed=decision.borrowed,
        policy="by hand" if terms.policy.by_hand else terms.policy.name.value,
        reason=decision.reason.sentence,
        created=now,
        deadline=now + terms.policy.max_runtime,
        rate=batch.estimate.rate,
        instance_type=terms.instance_type,
        by_hand=terms.policy.by_hand,
        limit=terms.policy.limit,
        planned_chunks=len(batch.chunks),
        planned_audio_seconds=batch.estimate.audio_seconds,
    )
    return keep(world, run, decision.reason.sentence)


def arm(world: World, terms: Terms, run: Run) -> Run:
    """Puts the intent into the store too, then arms the stop order outside this machine.

    Where either fails, nothing is started.
    """
    world.output.create(keys.intent(run.id), wire.encode(_intent(run, terms)))
    if not run.borrowed:
        try:
            world.guard.arm(claim_of(run))
        except BatchscribeError as error:
            return keep(world, run.releasing(Outcome.START_FAILED, f"the guard was not armed: {error}"))
    guarded = not run.borrowed and world.guard.armed(run.instance)
    return keep(
        world, run.moved(RunState.ARMED), "guard armed" if guarded else "no guard outside this machine"
    )


def provision(world: World, _terms: Terms, run: Run) -> Run:
    """Records that the instance may be started from now on, once it is free to be."""
    seen = world.compute.describe(run.instance)
    now = world.clock.now()
    if run.borrowed:
        return keep(world, _borrow(run, seen, now), f"instance is {seen.state}")
    if seen.run not in {None, run.id} and (seen.deadline is None or seen.deadline > now):
        return keep(world, run.releasing(Outcome.ABANDONED, f"{seen.id} was claimed by run {seen.run}"))
    if seen.state.billable or seen.state is InstanceState.PENDING:
        return keep(world, run.releasing(Outcome.ABANDONED, f"{seen.id} was started by somebody else"))
    if seen.state is InstanceState.STOPPING:
        return run
    if seen.state is not InstanceState.STOPPED:
        return keep(world, run.releasing(Outcome.START_FAILED, f"{seen.id} is {seen.state}"))
    return keep(world, run.moved(RunState.PROVISIONING, start_requested=now), "about to start")


def await_running(world: World, terms: Terms, run: Run) -> Run:
    """Asks for the start until it is accepted, then looks until the instance runs."""
    seen = world.compute.describe(run.instance)
    now = world.clock.now()
    if seen.state is InstanceState.RUNNING and seen.run == run.id:
        rate = terms.rate_of(seen.type) if seen.type else run.rate
        up = run.moved(
            RunState.DISPATCHING,
            running_since=now,
            running_until=now,
            rate=rate,
            instance_type=seen.type or run.instance_type,
        )
        return keep(world, up, "seen running")
    if _late(run.start_requested, now, terms.waits.up):
        detail = f"{seen.id} did not come up within {terms.waits.up / 60:.0f} min: it is {seen.state}"
        return keep(world, run.releasing(Outcome.START_FAILED, detail))
    if seen.state is InstanceState.STOPPED:
        return _ask_for_start(world, run, seen)
    if seen.state.moving:
        return replace(run, idle_until=now)
    return keep(world, run.releasing(Outcome.START_FAILED, f"{seen.id} is {seen.state}, and not ours"))


def dispatch(world: World, terms: Terms, run: Run) -> Run:
    """Waits for a box that answers, gives it a manifest, and starts its worker."""
    seen = world.compute.describe(run.instance)
    if not seen.state.billable:
        return keep(world, run.releasing(Outcome.START_FAILED, f"{seen.id} went {seen.state} again"))
    now = world.clock.now()
    run = keep(world, replace(run, running_until=now)) if _look_due(run, terms, now) else run
    version = world.launcher.probe(seen)
    if version is None:
        if _late(run.running_since, now, terms.waits.reach):
            detail = f"{seen.id} ran for {terms.waits.reach / 60:.0f} min, but its box never answered"
            return keep(world, run.releasing(Outcome.LAUNCH_FAILED, detail))
        return run
    if version != terms.release:
        raise MisconfiguredError(
            f"the box has batchscribe {version}, this is {terms.release}: run `batchscribe gpu setup`"
        )
    return _launch(world, terms, run, seen)


def follow(world: World, terms: Terms, run: Run) -> Run:
    """Looks at the worker's progress, at its last word, and now and then at the instance."""
    manifest = read_manifest(world, run.manifests[-1])
    if record := read_exit(world, manifest):
        return _ended(world, terms, run, manifest, record)
    progress = read_progress(world, manifest)
    if progress is not None:
        world.view.show(run, progress)
    now = world.clock.now()
    if _look_due(run, terms, now):
        seen = world.compute.describe(run.instance)
        if not seen.state.billable:
            detail = f"{seen.id} is {seen.state} under a working worker: somebody stopped it"
            return keep(world, run.releasing(Outcome.WORKER_LOST, detail))
        run = keep(world, _first_window(replace(run, running_until=now), progress))
        if world.launcher.alive(seen, manifest) is False and read_exit(world, manifest) is None:
            detail = f"worker {manifest.worker} is gone without a last word"
            return keep(world, run.releasing(Outcome.WORKER_LOST, detail))
    return _silent(world, terms, run, manifest, progress)


def claim_of(run: Run) -> Claim:
    return Claim(instance=run.instance, run=run.id, deadline=run.deadline)


def read_manifest(world: World, key: str) -> Manifest:
    return wire.decode(world.output.get(key).data, Manifest)


def read_exit(world: World, manifest: Manifest) -> ExitRecord | None:
    try:
        return wire.decode(world.output.get(keys.exit_record(manifest.run, manifest.worker)).data, ExitRecord)
    except ObjectNotFoundError:
        return None


def read_progress(world: World, manifest: Manifest) -> Progress | None:
    """The worker's progress; None where there is none yet, or where it is torn."""
    try:
        return wire.decode(world.output.get(keys.progress(manifest.run, manifest.worker)).data, Progress)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def _intent(run: Run, terms: Terms) -> wire.Intent:
    return wire.Intent(
        run=run.id,
        scheduler=terms.scheduler,
        created=run.created,
        deadline=run.deadline,
        provider=run.provider,
        instances=run.instances,
        borrowed=run.borrowed,
        policy=run.policy,
        reason=run.reason,
        chunks=run.planned_chunks,
        audio_seconds=run.planned_audio_seconds,
        rate_micros=run.rate.per_hour.micros,
        rate_source=run.rate.source,
        rate_as_of=run.rate.as_of,
        instance_type=run.instance_type,
    )


def _borrow(run: Run, seen: Instance, now: datetime) -> Run:
    if seen.state is not InstanceState.RUNNING:
        return run.releasing(Outcome.START_FAILED, f"{seen.id} was to be used, but is {seen.state} now")
    provisioning = run.moved(RunState.PROVISIONING, start_requested=now, start_accepted=now)
    return provisioning.moved(RunState.DISPATCHING, running_since=now, running_until=now)


def _ask_for_start(world: World, run: Run, seen: Instance) -> Run:
    """One start call. A lost reply changes nothing here: the next look shows what it did."""
    if run.start_accepted is not None:
        reason = seen.state_reason or "the cloud gave no reason"
        return keep(
            world,
            run.releasing(Outcome.START_FAILED, f"{seen.id} was started but is stopped again: {reason}"),
        )
    try:
        world.compute.start(claim_of(run))
    except NoCapacityError as error:
        return keep(world, run.releasing(Outcome.NO_CAPACITY, str(error)))
    except ComputeUnavailableError as error:
        log.warning("start not confirmed", run=run.id, error=str(error))
        return run
    now = world.clock.now()
    return keep(world, replace(run, start_accepted=now, idle_until=now), "start accepted")


def _launch(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    worker = len(run.manifests)
    key = keys.manifest(run.id, worker)
    batch = next_batch(world, terms, run)
    if not batch.chunks:
        return keep(world, run.releasing(None, "nothing was left to do"))
    manifest = _manifest(world, terms, run, worker, batch.chunks)
    if not world.output.create(key, wire.encode(manifest)):
        manifest = read_manifest(world, key)  # an earlier controller dispatched it, and died
    world.launcher.launch(seen, manifest, f"{world.output.url.rstrip('/')}/{key}")
    now = world.clock.now()
    changed = run.moved(
        RunState.TRANSCRIBING, manifests=(*run.manifests, key), dispatched=run.dispatched or now
    )
    return keep(world, changed, f"worker {worker} started on {len(manifest.chunks)} chunks")


def next_batch(world: World, terms: Terms, run: Run) -> Batch:
    """What the time that is left can hold of what is pending now and was not tried in this run."""
    backlog = world.scanner(run.by_hand).backlog()
    tried = {chunk.key for key in run.manifests for chunk in read_manifest(world, key).chunks}
    fresh = [chunk for chunk in backlog.candidates if chunk.key not in tried]
    if run.manifests and all(chunk.troubled for chunk in fresh):
        fresh = []
    priors = world.ledger.priors(
        engine=terms.engine.engine,
        model=terms.engine.model,
        instance_type=run.instance_type,
        default=terms.priors,
    )
    return pack(
        fresh,
        pending=len(fresh),
        priors=replace(priors, setup_seconds=min(priors.setup_seconds, MODEL_LOAD_SECONDS)),
        rate=run.rate,
        seconds=(run.deadline - world.clock.now()).total_seconds(),
        limit=run.limit,
    )


def _manifest(world: World, terms: Terms, run: Run, worker: int, chunks: tuple[Chunk, ...]) -> Manifest:
    return Manifest(
        run=run.id,
        worker=worker,
        release=terms.release,
        source=world.source.url,
        output=world.output.url,
        deadline=run.deadline,
        engine=terms.engine,
        settings_hash=terms.settings_hash,
        limits=terms.limits,
        chunks=tuple(
            ManifestChunk(
                key=chunk.key,
                etag=chunk.etag,
                size=chunk.size,
                session=chunk.session,
                transcript=chunk.transcript,
            )
            for chunk in chunks
        ),
    )


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
            return keep(
                world, run.moved(RunState.DISPATCHING), f"{note}; {len(batch.chunks)} more chunks fit"
            )
    return keep(world, run.releasing(None), note)


def _first_window(run: Run, progress: Progress | None) -> Run:
    """When paid time first turned into speech, once it is known."""
    if run.first_window or progress is None or progress.timings.first_window is None or not run.dispatched:
        return run
    return replace(run, first_window=run.dispatched + timedelta(seconds=progress.timings.first_window))


def _silent(world: World, terms: Terms, run: Run, manifest: Manifest, progress: Progress | None) -> Run:
    """Whether the worker has gone silent: by the sequence number and a clock that cannot jump."""
    key = f"watch/{run.id}/{manifest.worker}"
    sequence = progress.sequence if progress else -1
    now = world.clock.monotonic()
    before = world.ledger.get(key)
    seen, since = msgspec.json.decode(before, type=tuple[int, float]) if before else (None, now)
    if seen != sequence or since > now:
        world.ledger.put(key, msgspec.json.encode((sequence, now)).decode())
        return run
    if now - since < terms.waits.silence:
        return run
    detail = f"worker {manifest.worker} showed no progress for {terms.waits.silence / 60:.0f} min"
    return keep(world, run.releasing(Outcome.WORKER_LOST, detail))


def _look_due(run: Run, terms: Terms, now: datetime) -> bool:
    return _late(run.running_until, now, terms.waits.describe)


def _late(since: datetime | None, now: datetime, seconds: float) -> bool:
    return since is not None and now - since >= timedelta(seconds=seconds)
