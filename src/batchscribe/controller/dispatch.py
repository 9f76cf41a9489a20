"""The step that gives a box its work: a fresh listing becomes a manifest, and a worker is started on it."""

from __future__ import annotations

from dataclasses import replace

from batchscribe.controller.context import Terms, World, keep, log
from batchscribe.controller.control import late, look_due, looked_at, not_up, read_exit, read_manifest
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.chunks import Chunk
from batchscribe.core.instances import Instance
from batchscribe.core.manifest import Manifest, ManifestChunk
from batchscribe.core.packing import Batch, pack
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, TransientError

MODEL_LOAD_SECONDS = 30.0
"""Of a worker's time before its first window, once the box is up."""


def dispatch(world: World, terms: Terms, run: Run) -> Run:
    """Waits for a box that answers, gives it a manifest, and starts its worker."""
    seen = world.compute.describe(run.instance)
    now = world.clock.now()
    if down := not_up(run, seen):
        run = looked_at(run, seen, now)
    if down and run.manifests:
        return keep(world, run.releasing(None, f"{down}: the rest is for the next run"))
    if down:
        return keep(world, run.releasing(Outcome.START_FAILED, f"{down}, before any work"))
    run = keep(world, replace(run, running_until=now)) if look_due(run, terms, now) else run
    try:
        version = world.launcher.probe(seen)
        if version == terms.release:
            return _launch(world, terms, run, seen)
        trouble = "its box never answered"
    except TransientError as error:
        version, trouble = None, str(error)
    if version is None:
        if late(run.reaching_since, now, terms.waits.reach):
            detail = f"no worker could be started on {seen.id} in {terms.waits.reach / 60:.0f} min: {trouble}"
            return keep(world, run.releasing(Outcome.LAUNCH_FAILED, detail))
        log.info("no worker yet", run=run.id, why=trouble)
        return run
    raise MisconfiguredError(
        f"the box has batchscribe {version}, this is {terms.release}: run `batchscribe gpu setup`"
    )


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


def _launch(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """Starts the worker of the newest manifest; both are recorded before the worker can live."""
    manifest = _undispatched(world, run) or _write_manifest(world, terms, run)
    if manifest is None:
        return keep(world, run.releasing(None, "nothing was left to do"))
    key = keys.manifest(run.id, manifest.worker)
    if key not in run.manifests:
        run = keep(world, replace(run, manifests=(*run.manifests, key), work_ended=None))
    world.launcher.launch(seen, manifest, f"{world.output.url.rstrip('/')}/{key}")
    changed = run.moved(RunState.TRANSCRIBING, dispatched=run.dispatched or world.clock.now())
    return keep(world, changed, f"worker {manifest.worker} started on {len(manifest.chunks)} chunks")


def _undispatched(world: World, run: Run) -> Manifest | None:
    """A manifest that an earlier controller wrote or recorded before it died; None where there is none."""
    if run.manifests:
        last = read_manifest(world, run.manifests[-1])
        if read_exit(world, last) is None:
            return last
    try:
        return read_manifest(world, keys.manifest(run.id, len(run.manifests)))
    except ObjectNotFoundError:
        return None


def _write_manifest(world: World, terms: Terms, run: Run) -> Manifest | None:
    batch = next_batch(world, terms, run)
    if not batch.chunks:
        return None
    worker = len(run.manifests)
    manifest = _manifest(world, terms, run, worker, batch.chunks)
    world.output.create(keys.manifest(run.id, worker), wire.encode(manifest))
    return manifest


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
        hearing=terms.hearing,
        limits=terms.limits,
        region=terms.region,
        endpoint=terms.endpoint,
        chunks=tuple(
            ManifestChunk(
                key=chunk.key,
                etag=chunk.etag,
                size=chunk.size,
                session=chunk.session,
                transcript=chunk.transcript,
                troubled=chunk.troubled,
            )
            for chunk in chunks
        ),
    )
