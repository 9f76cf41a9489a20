"""Readers and writers of the runs' control objects in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime

import msgspec

from batchscribe import reading
from batchscribe.control_place import build_url
from batchscribe.controller.context import World, log
from batchscribe.controller.rehearsal_place import make_rehearsal_world
from batchscribe.core import keys
from batchscribe.core.objects import CHUNK_LIST_BYTES, RECORD_BYTES
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import BootRecord, HostEnd
from batchscribe.core.run.manifest import (
    ExitRecord,
    Manifest,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
    WorkerRef,
)
from batchscribe.core.run.records import decode_run, decode_settlement, encode_run
from batchscribe.core.run.runs import Run, RunWorker
from batchscribe.core.run.seals import is_sealed, seal
from batchscribe.core.scan.chunks import Chunk
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, RefusedError
from batchscribe.reading import read_bytes

COPIES = "manifest/"
"""Ledger facts: manifests as written, kept while their run is open."""
_BATCH = "batch"


def write_record(world: World, run: Run) -> None:
    """Stores the record of a run with its deadline, create-only."""
    world.output.create(keys.intent(run.id), seal(encode_run(run), world.secret))


def write_settlement(world: World, run: Run) -> bool:
    """Stores a settled run, create-only; False if another settlement is stored."""
    return world.output.create(keys.settlement(run.id), seal(encode_run(run), world.secret))


def raise_settlement(world: World, run: Run) -> None:
    """Replaces our stored settlement of the run if its bill is lower."""
    stored = read_settlement(world, run)
    if stored is not None and stored.cost < run.cost:
        world.output.replace(keys.settlement(run.id), seal(encode_run(run), world.secret))


def read_record(world: World, run_id: str) -> tuple[Run, bool]:
    """Reads a run's record; the flag is True if it is ours.

    Raises ObjectNotFoundError, and MisconfiguredError if it cannot be read.
    """
    data = read_bytes(world.output, keys.intent(run_id), RECORD_BYTES)
    return decode_run(data), is_sealed(data, world.secret)


def read_settlement(world: World, run: Run) -> Run | None:
    """Reads this scheduler's settlement of the run. None if missing or foreign."""
    try:
        data = read_bytes(world.output, keys.settlement(run.id), RECORD_BYTES)
        return decode_settlement(data, run) if is_sealed(data, world.secret) else None
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def list_records(world: World) -> Iterator[tuple[World, str, str]]:
    """Yields (world, run id, record name) of each stored run record.

    A rehearsal has a world of its own.
    """
    for info in world.output.list(keys.RUNS):
        yield world, *_split_key(info.key)
    for info in world.home.list(keys.REHEARSALS):
        name, _, key = info.key.removeprefix(keys.REHEARSALS).partition("/")
        yield make_rehearsal_world(world, name), *_split_key(key)


def _split_key(key: str) -> tuple[str, str]:
    """Splits a key into run id and record name, else both empty."""
    run_id, _, record = key.removeprefix(keys.RUNS).partition("/")
    return (run_id, record) if key.startswith(keys.RUNS) else ("", "")


def record_manifest(world: World, manifest: Manifest) -> str:
    """Copies the manifest into the ledger and returns its key."""
    sealed = seal(wire.encode(manifest), world.secret)
    world.ledger.put(_copy_key(manifest.run, manifest.worker), sealed.decode())
    return keys.manifest(manifest.run, manifest.worker)


def store_manifest(world: World, run: Run, worker: int) -> None:
    """Stores a manifest of a run, create-only; repeatable.

    Raises RefusedError if another one is stored under its key: otherwise any writer of control objects could
    choose the work of the GPU host.
    """
    copy = world.ledger.get(_copy_key(run.id, worker))
    if copy is not None and not world.output.create(run.manifests[worker], copy.encode()):
        raise RefusedError(
            f"{run.manifests[worker]} was not written by this scheduler: check who may write to "
            f"{build_url(world.output, keys.CONTROL)}"
        )


def read_manifest(world: World, run: Run, worker: int) -> Manifest:
    """Reads a worker's manifest. From the store if the ledger was lost.

    Raises ObjectNotFoundError, and MisconfiguredError if it cannot be read.
    """
    key = run.manifests[worker]
    copy = world.ledger.get(_copy_key(run.id, worker))
    try:
        if copy is not None:
            return wire.decode(copy.encode(), Manifest)
        data = read_bytes(world.output, key, CHUNK_LIST_BYTES, what=Manifest.__name__)
        manifest = wire.decode(data, Manifest)
    except MisconfiguredError as error:
        raise MisconfiguredError(f"{key} is {error}") from error
    if not run.adopted and not is_sealed(data, world.secret):
        raise MisconfiguredError(f"{key} was not written by this scheduler")
    return manifest


def read_manifests(world: World, run: Run) -> dict[int, Manifest]:
    """The run's readable manifests by number of their workers.

    The chunks of others are unknown: a worker that has one may do the same chunks as another worker.
    """
    manifests = dict[int, Manifest]()
    for worker in range(len(run.workers)):
        try:
            manifests[worker] = read_manifest(world, run, worker)
        except (ObjectNotFoundError, MisconfiguredError) as error:
            log.warning("manifest.skipped", run=run.id, error=str(error))
    return manifests


def forget_manifests(world: World, run: Run) -> None:
    """Drops the ledger's copies of a settled run's manifests."""
    for key in world.ledger.facts(f"{COPIES}{run.id}/"):
        world.ledger.put(key, None)


def record_batch(world: World, run: Run, chunks: Iterable[Chunk]) -> None:
    """Records the whole batch of a run; its manifests have parts."""
    world.ledger.put(_copy_key(run.id, _BATCH), msgspec.json.encode([chunk.key for chunk in chunks]).decode())


def read_batch(world: World, run: Run) -> frozenset[str]:
    """Keys of the chunks in a run's batch, as far as recorded."""
    return msgspec.json.decode(world.ledger.get(_copy_key(run.id, _BATCH)) or "[]", type=frozenset[str])


def _copy_key(run_id: str, worker: int | str) -> str:
    return f"{COPIES}{run_id}/{worker}"


def recover_workers(world: World, run: Run) -> tuple[RunWorker, ...]:
    """The workers of a run from its stored manifests, without the ledger."""
    found = (info.key for info in world.output.list(keys.manifests(run.id)))
    manifests = sorted(
        (key for key in found if key.endswith("/manifest.json")), key=lambda key: (len(key), key)
    )
    workers = tuple(RunWorker(manifest=key, machine=run.instance, launched=True) for key in manifests)
    if len(run.machines) == 1:
        return workers
    found_on = {
        number: str(manifest.machine)
        for number, manifest in read_manifests(world, replace(run, workers=workers)).items()
        if manifest.machine in run.instances
    }
    # The others are most likely on the machines without a readable one, in the order of the first manifests.
    unplaced = [instance for instance in run.instances if instance not in found_on.values()]
    return tuple(
        replace(worker, machine=found_on.get(number) or (unplaced.pop(0) if unplaced else run.instance))
        for number, worker in enumerate(workers)
    )


def read_exit(world: World, worker: WorkerRef) -> ExitRecord | None:
    """Reads a worker's exit record; an unreadable one counts as failed.

    The worker has ended. Its counts are then those of the last progress report.
    """
    key = keys.exit_record(worker.run, worker.worker)
    try:
        return reading.read_record(world.output, key, ExitRecord)
    except ObjectNotFoundError:
        return None
    except MisconfiguredError as error:
        message = f"the worker's exit record cannot be read: {key} is {error}"
    progress = read_progress(world, worker)
    return ExitRecord(
        run=worker.run,
        worker=worker.worker,
        end=WorkerEnd.FAILED,
        message=message,
        at=world.clock.now(),
        tally=progress.tally if progress else Tally(),
        timings=progress.timings if progress else Timings(),
    )


def read_progress(world: World, worker: WorkerRef) -> Progress | None:
    """Reads the progress of a worker. None if missing or unreadable."""
    return reading.read_if_valid(world.output, keys.progress(worker.run, worker.worker), Progress)


def read_boot(world: World, run: Run, instance: str) -> BootRecord | None:
    """Reads which boot of the machine accepted the run, if readable."""
    return reading.read_if_valid(world.output, keys.boot(run.id, instance), BootRecord)


def read_host_end(world: World, run: Run, instance: str) -> HostEnd | None:
    """Reads why the machine powered itself off. None if not reported."""
    return reading.read_if_valid(world.output, keys.host_end(run.id, instance), HostEnd)


def by_our_clock(run: Run, reported: datetime, now: datetime) -> datetime:
    """Clamps a GPU host's time between its first poll and now."""
    since = run.running_since
    return min(now, max(reported, since.at) if since else reported)
