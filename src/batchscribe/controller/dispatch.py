"""Gives a run its manifests, and workers once the host is reachable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchscribe.controller.capacity import read_priors
from batchscribe.controller.context import (
    RunConfig,
    World,
    end_machine,
    explain_not_up,
    is_late,
    is_poll_due,
    note_trouble,
    poll_machines,
    read_latest,
    read_poll,
    save,
    save_best_effort,
    step_each,
)
from batchscribe.controller.languages import find_engines, take_one_engine
from batchscribe.controller.records import (
    read_batch,
    read_exit,
    read_manifest,
    record_batch,
    record_manifest,
    store_manifest,
)
from batchscribe.core.decide.packing import Batch, pack
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import EngineSpec, Manifest, ManifestChunk, digest
from batchscribe.core.run.meter import Poll
from batchscribe.core.run.runs import Machine, Outcome, Run, RunState, RunWorker
from batchscribe.core.scan.chunks import Chunk
from batchscribe.errors import (
    LaunchError,
    MisconfiguredError,
    PortClosedError,
    TransientError,
    UnreadableError,
)

MODEL_LOAD_SECONDS = 30.0
"""From the start of a worker to its first window, on a host that is up."""


def dispatch(world: World, config: RunConfig, run: Run) -> Run:
    """Starts a worker on the next manifest of each idle machine once its host answers."""
    polls = poll_machines(world, run, run.undispatched)

    def act(run: Run, machine: Machine) -> Run:
        try:
            return _dispatch_machine(world, config, run, machine, polls[machine.id])
        except UnreadableError:
            raise
        except MisconfiguredError:
            save_best_effort(world, replace(read_latest(world, run), blocked=config.access))
            raise

    return step_each(world, run, run.undispatched, act, Outcome.LAUNCH_FAILED)


def _dispatch_machine(world: World, config: RunConfig, run: Run, machine: Machine, poll: Poll) -> Run:
    if down := explain_not_up(machine, poll.instance):
        run = read_poll(run, machine, poll)
        if any(worker.launched for worker in run.workers if worker.machine == machine.id):
            return end_machine(world, run, machine.id, None, f"{down}: the rest is for the next run")
        return end_machine(world, run, machine.id, Outcome.START_FAILED, f"{down}, before any work")
    if is_poll_due(machine, config, poll.answered):
        run = save(world, read_poll(run, machine, poll))
    try:
        version = world.launcher.probe(poll.instance)
        if version == config.release:
            return _launch_worker(world, config, run, poll.instance)
    except TransientError as error:
        return _await_host(world, config, run, poll, error)
    raise MisconfiguredError(
        f"the GPU host has batchscribe {version}, this is {config.release}: run `batchscribe gpu setup`"
    )


def _await_host(world: World, config: RunConfig, run: Run, poll: Poll, error: TransientError) -> Run:
    """Keeps a run waiting for its host, or ends the machine's work if that is hopeless."""
    machine, now = run.machine(poll.instance.id), poll.answered
    refused = (machine.refused_since or now) if isinstance(error, PortClosedError) else None
    waits = config.waits
    closed = is_late(refused, now, waits.refused)
    if closed or is_late(machine.reaching_since, now, waits.reach):
        run = replace(run, blocked=config.access if closed else "")
        cause = error.advice if isinstance(error, LaunchError) else str(error)
        detail = f"no worker could be started on {machine.id}: {cause}"
        return end_machine(world, run, machine.id, Outcome.LAUNCH_FAILED, detail)
    return note_trouble(world, run.with_machine(machine.id, refused_since=refused), str(error))


def next_batch(world: World, config: RunConfig, run: Run) -> Batch:
    """Pending, untried chunks that fit into the time left of this run; of its batch if it has a limit."""
    backlog = world.scanner(run.by_hand).backlog()
    given = [read_manifest(world, run, worker) for worker in range(len(run.workers))]
    tried = {chunk.key for manifest in given for chunk in manifest.chunks}
    fresh = [chunk for chunk in backlog.candidates if chunk.key not in tried]
    if run.workers and run.limit is not None:
        batch = read_batch(world, run)
        fresh = [chunk for chunk in fresh if chunk.key in batch]
    elif run.workers and all(chunk.previously_failed for chunk in fresh):
        # They were in an earlier manifest's batch only if that had another engine.
        had = {manifest.engine for manifest in given}
        fresh = [chunk for engine, chunk in find_engines(world, config, fresh) if engine not in had]
    priors = read_priors(world, config, run.instance_type)
    return pack(
        fresh,
        pending=len(fresh),
        priors=replace(priors, setup_seconds=min(priors.setup_seconds, MODEL_LOAD_SECONDS)),
        rate=run.rate,
        seconds=(run.deadline - world.clock.now()).total_seconds(),
        limit=None if run.limit is None else max(0, run.limit - len(tried)),
    )


def ensure_manifest(world: World, config: RunConfig, run: Run, instance: str) -> Run:
    """Ensures a stored, unprocessed manifest of the machine. Ends its work if nothing is pending."""
    number = run.worker_on(instance)
    if number is not None and read_exit(world, run.name_of(number)) is None:
        store_manifest(world, run, number)
        return run
    batch = next_batch(world, config, run)
    if not batch.chunks:
        return end_machine(world, run, instance, None, "nothing was left to do")
    return give_work(world, config, run, instance, batch.chunks)


def give_work(world: World, config: RunConfig, run: Run, instance: str, chunks: Iterable[Chunk]) -> Run:
    """Records the next manifest, then stores it. Raises RefusedError if another one is stored already."""
    run = save(world, with_manifest(world, config, run, instance, chunks))
    store_manifest(world, run, len(run.workers) - 1)
    return run


def with_manifest(world: World, config: RunConfig, run: Run, instance: str, chunks: Iterable[Chunk]) -> Run:
    """Returns the run with the machine's next manifest, recorded but not yet stored.

    It takes the chunks of one engine; the others are left for the next manifest.
    """
    batch = tuple(chunks)
    if run.limit is not None and not run.workers:
        record_batch(world, run, batch)
    engine, alike = take_one_engine(world, config, batch)
    key = record_manifest(world, _build_manifest(config, run, engine, alike))
    return replace(run, workers=(*run.workers, RunWorker(manifest=key, machine=instance)))


def _launch_worker(world: World, config: RunConfig, run: Run, seen: Instance) -> Run:
    """Starts the machine's last worker. Repeating it is harmless."""
    run = ensure_manifest(world, config, run, seen.id)
    number = run.worker_on(seen.id)
    if run.ending or number is None or run.machine(seen.id).over:
        return run
    manifest = read_manifest(world, run, number)
    if number and run.launch == ClaimLaunch.BOOT:
        world.capacity.announce(seen.id, digest(manifest))
    world.launcher.launch(seen, manifest, f"{world.output.url.rstrip('/')}/{run.manifests[number]}")
    changed = replace(run, dispatched=run.dispatched or world.clock.now()).with_worker(number, launched=True)
    changed = changed if changed.undispatched else changed.moved(RunState.TRANSCRIBING)
    return save(world, changed, f"worker {number} started, chunks: {len(manifest.chunks)}")


def _build_manifest(config: RunConfig, run: Run, engine: EngineSpec, chunks: Iterable[Chunk]) -> Manifest:
    return Manifest(
        run=run.id,
        worker=len(run.workers),
        release=config.release,
        source=run.source,
        output=run.output,
        deadline=run.deadline,
        engine=engine,
        settings_hash=config.hash_settings(engine),
        audio_options=config.audio_options,
        limits=config.limits,
        region=config.region,
        endpoint=config.endpoint,
        chunks=tuple(
            ManifestChunk(
                key=chunk.key,
                etag=chunk.etag,
                size=chunk.size,
                session=chunk.session,
                transcript=chunk.transcript,
                previously_failed=chunk.previously_failed,
            )
            for chunk in chunks
        ),
    )
