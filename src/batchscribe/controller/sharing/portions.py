"""The work of a run that is left for its machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchscribe.controller.capacity import read_priors
from batchscribe.controller.context import RunConfig, World, seconds_left
from batchscribe.controller.languages import find_engines
from batchscribe.controller.records import read_batch, read_exit, read_manifests, read_progress
from batchscribe.core.decide.packing import Batch, Priors, estimate, pack, take_portion
from batchscribe.core.run.manifest import Manifest
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.chunks import Chunk

MODEL_LOAD_SECONDS = 30.0
"""From the start of a worker to its first window, on a host that is up."""
_BY_WORKER = frozenset({Outcome.WORKER_LOST, Outcome.WORKER_FAILED})


def next_batch(world: World, config: RunConfig, run: Run, instance: str) -> Batch:
    """Pending, untried chunks that fit into the run's time.

    They are of its batch if it has a limit. Of several machines, each gets a portion of them.
    """
    backlog = world.scanner(run.by_hand).backlog()
    read = read_manifests(world, run)
    given = [*read.values()]
    tried = {key for number, manifest in read.items() for key in _list_tried(world, run, number, manifest)}
    fresh = [chunk for chunk in backlog.candidates if chunk.key not in tried]
    if run.workers and run.limit is not None:
        batch = read_batch(world, run)
        fresh = [chunk for chunk in fresh if chunk.key in batch]
    elif run.workers and all(chunk.previously_failed for chunk in fresh):
        fresh = _list_of_batch(world, config, run, given, fresh)
    priors = read_priors(world, config, run.machine(instance).type or run.instance_type)
    packed = pack(
        fresh,
        pending=len(fresh),
        priors=replace(priors, setup_seconds=min(priors.setup_seconds, MODEL_LOAD_SECONDS)),
        rate=run.rate,
        seconds=seconds_left(world, run),
        limit=None if run.limit is None else max(0, run.limit - len(tried)),
    )
    return packed if len(run.machines) == 1 else _take_portion(run, given, fresh, packed, priors)


def _take_portion(
    run: Run, given: Sequence[Manifest], fresh: Sequence[Chunk], packed: Batch, priors: Priors
) -> Batch:
    """The part of a packed batch that is one machine's portion."""
    sizes = {chunk.key: chunk.size for manifest in given for chunk in manifest.chunks}
    sizes |= {chunk.key: chunk.size for chunk in fresh}
    total = sum(priors.estimate_seconds(key, size) for key, size in sizes.items())
    machines = max(1, len(run.working))
    chunks = take_portion(
        packed.chunks, total=total, given=len(run.workers), machines=machines, priors=priors
    )
    left = packed.left + len(packed.chunks) - len(chunks)
    return Batch(chunks=tuple(chunks), estimate=estimate(chunks, priors, run.rate), left=left)


def _list_of_batch(
    world: World, config: RunConfig, run: Run, given: Sequence[Manifest], fresh: Sequence[Chunk]
) -> list[Chunk]:
    """Chunks that failed in an earlier run, of this run's batch."""
    if len(run.machines) > 1:
        batch = read_batch(world, run)
        return [chunk for chunk in fresh if chunk.key in batch]
    # They were in an earlier manifest's batch only if that had another engine.
    had = {manifest.engine for manifest in given}
    return [chunk for engine, chunk in find_engines(world, config, fresh) if engine not in had]


def _list_tried(world: World, run: Run, number: int, manifest: Manifest) -> Sequence[str]:
    """Chunks that this run gives to no other worker.

    Of a worker that returned its rest, those that it reported as failed, or that were in flight when it died:
    they could end each machine of the run. The next run tries these alone.
    """
    worker = run.workers[number]
    if not worker.revoked or worker.ended is None:
        return [chunk.key for chunk in manifest.chunks]
    record = read_exit(world, manifest)
    failed = [failure.key for failure in record.failures] if record else []
    died = run.machine(worker.machine).outcome in _BY_WORKER and number == run.last_worker_on(worker.machine)
    progress = read_progress(world, manifest) if died else None
    return [*failed, *(progress.in_flight if progress else ())]
