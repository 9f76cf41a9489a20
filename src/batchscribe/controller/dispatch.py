"""Gives a run its manifests, and workers once the host is reachable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from batchscribe.controller.context import (
    RunConfig,
    World,
    apply_poll,
    end_machine,
    explain_not_up,
    is_late,
    is_poll_due,
    note_trouble,
    poll_machines,
    read_latest,
    read_moment,
    save,
    save_best_effort,
    step_each,
)
from batchscribe.controller.languages import take_one_engine
from batchscribe.controller.records import (
    read_exit,
    read_manifest,
    record_batch,
    record_manifest,
    store_manifest,
)
from batchscribe.controller.sharing.portions import next_batch
from batchscribe.controller.sharing.revocation import await_rest
from batchscribe.core.decide.packing import Priors, take_portion
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import EngineSpec, Manifest, ManifestChunk, digest
from batchscribe.core.run.meter import Poll
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Machine, Run, RunState, RunWorker
from batchscribe.core.scan.chunks import Chunk
from batchscribe.errors import (
    LaunchError,
    MisconfiguredError,
    PortClosedError,
    TransientError,
    UnreadableError,
)

REST_SECONDS = 90.0
"""Longest wait of an idle machine for work that returns: its agent powers it off soon after."""


def dispatch(world: World, config: RunConfig, run: Run) -> Run:
    """Starts the next worker of each idle machine whose host answers."""
    idle = [machine for machine in run.undispatched if machine not in run.awaited]
    polls = poll_machines(world, run, idle) if idle else {}

    def act(run: Run, machine: Machine) -> Run:
        try:
            return _dispatch_machine(world, config, run, machine, polls[machine.id])
        except UnreadableError:
            raise
        except MisconfiguredError:
            save_best_effort(world, replace(read_latest(world, run), blocked=config.access))
            raise

    polled = [machine for machine in idle if machine.id in polls]
    return step_each(world, run, polled, act, Outcome.LAUNCH_FAILED)


def _dispatch_machine(world: World, config: RunConfig, run: Run, machine: Machine, poll: Poll) -> Run:
    if down := explain_not_up(machine, poll.instance):
        run = apply_poll(run, machine, poll)
        if any(run.workers[number].launched for number in run.workers_on(machine.id)):
            return end_machine(world, run, machine.id, None, f"{down}: the rest is for the next run")
        return end_machine(world, run, machine.id, Outcome.START_FAILED, f"{down}, before any work")
    if is_poll_due(machine, config, poll.answered):
        run = save(world, apply_poll(run, machine, poll))
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
    """Keeps a run waiting for its host, or ends the machine's work."""
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


def ensure_manifest(world: World, config: RunConfig, run: Run, instance: str) -> Run:
    """Ensures a stored, unprocessed manifest, or ends the machine's work."""
    number = run.last_worker_on(instance)
    if number is not None and read_exit(world, run.name_of(number)) is None:
        store_manifest(world, run, number)
        return run
    batch = next_batch(world, config, run, instance)
    if not batch.chunks:
        late = is_late(run.machine(instance).reaching_since, read_moment(world), REST_SECONDS)
        if waiting := None if late else await_rest(world, config, run):
            return waiting
        return end_machine(world, run, instance, None, "nothing was left to do")
    return give_work(world, config, run, instance, batch.chunks)


def give_work(world: World, config: RunConfig, run: Run, instance: str, chunks: Iterable[Chunk]) -> Run:
    """Records and stores the next manifest; raises RefusedError for a foreign one."""
    run = save(world, with_manifest(world, config, run, instance, chunks))
    store_manifest(world, run, len(run.workers) - 1)
    return run


def with_first_manifests(
    world: World, config: RunConfig, run: Run, chunks: Sequence[Chunk], priors: Priors
) -> Run:
    """Returns the run with the first manifest of each machine, only recorded.

    Several machines get a portion each; one without work is not created.
    """
    if len(run.machines) == 1:
        return with_manifest(world, config, run, run.instance, chunks)
    record_batch(world, run, chunks)
    left, count = list(chunks), len(run.machines)
    total = sum(map(priors.audio_seconds, chunks))
    for machine in run.machines:
        if left:
            portion = take_portion(left, total=total, given=0, machines=count, priors=priors)
            run = with_manifest(world, config, run, machine.id, portion)
            taken = {chunk.key for chunk in read_manifest(world, run, len(run.workers) - 1).chunks}
            left = [chunk for chunk in left if chunk.key not in taken]
    if not run.creates_machines:
        return run
    return replace(run, machines=tuple(m for m in run.machines if run.last_worker_on(m.id) is not None))


def with_manifest(world: World, config: RunConfig, run: Run, instance: str, chunks: Iterable[Chunk]) -> Run:
    """Returns the run with the machine's next manifest, only recorded.

    It takes the chunks of one engine; the others are left for the next manifest.
    """
    batch = tuple(chunks)
    if run.limit is not None and not run.workers and len(run.machines) == 1:
        record_batch(world, run, batch)
    engine, alike = take_one_engine(world, config, batch)
    key = record_manifest(world, _build_manifest(config, run, instance, engine, alike))
    return replace(run, workers=(*run.workers, RunWorker(manifest=key, machine=instance)))


def _launch_worker(world: World, config: RunConfig, run: Run, seen: Instance) -> Run:
    """Starts the machine's last worker. Repeating it is harmless."""
    run = ensure_manifest(world, config, run, seen.id)
    number = run.last_worker_on(seen.id)
    if run.in_teardown or number is None or run.machine(seen.id).over or run.workers[number].ended:
        return run
    manifest = read_manifest(world, run, number)
    if number != run.workers_on(seen.id)[0] and run.launch == ClaimLaunch.BOOT:
        world.capacity.announce(seen.id, digest(manifest))
    world.launcher.launch(seen, manifest, run.manifest_url(number))
    changed = replace(run, dispatched=run.dispatched or world.clock.now()).with_worker(number, launched=True)
    changed = changed if changed.undispatched else changed.to_state(RunState.TRANSCRIBING)
    return save(world, changed, f"worker {number} started, chunks: {len(manifest.chunks)}")


def _build_manifest(
    config: RunConfig, run: Run, instance: str, engine: EngineSpec, chunks: Iterable[Chunk]
) -> Manifest:
    return Manifest(
        run=run.id,
        worker=len(run.workers),
        machine=instance if len(run.machines) > 1 else msgspec.UNSET,
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
