"""Gives a run its manifests, and workers once the host is reachable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchscribe.controller.capacity import priors_of
from batchscribe.controller.context import Terms, World, is_late, log, poll_instance, save
from batchscribe.controller.observation import poll_due, read_poll, why_not_up
from batchscribe.controller.records import read_exit, read_manifest, record_manifest, store_manifest
from batchscribe.core.decide.packing import Batch, pack
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import Manifest, ManifestChunk, digest
from batchscribe.core.run.runs import Outcome, Run, RunState
from batchscribe.core.scan.chunks import Chunk
from batchscribe.errors import MisconfiguredError, TransientError

MODEL_LOAD_SECONDS = 30.0
"""From the start of a worker to its first window, on a host that is up."""


def dispatch(world: World, terms: Terms, run: Run) -> Run:
    """Starts a worker on the last manifest once the host answers."""
    poll = poll_instance(world, run)
    if down := why_not_up(run, poll.instance):
        run = read_poll(run, poll)
        if run.dispatched:
            return save(world, run.releasing(None, f"{down}: the rest is for the next run"))
        return save(world, run.releasing(Outcome.START_FAILED, f"{down}, before any work"))
    run = save(world, read_poll(run, poll)) if poll_due(run, terms, poll.answered) else run
    try:
        version = world.launcher.probe(poll.instance)
        if version == terms.release:
            return _launch_worker(world, terms, run, poll.instance)
        trouble = "its host never answered"
    except TransientError as error:
        version, trouble = None, str(error)
    if version is None:
        if is_late(run.reaching_since, poll.answered, terms.waits.reach):
            minutes = terms.waits.reach / 60
            detail = f"no worker could be started on {run.instance} in {minutes:.0f} min: {trouble}"
            return save(world, run.releasing(Outcome.LAUNCH_FAILED, detail))
        log.info("no worker yet", run=run.id, why=trouble)
        return run
    raise MisconfiguredError(
        f"the GPU host has batchscribe {version}, this is {terms.release}: run `batchscribe gpu setup`"
    )


def next_batch(world: World, terms: Terms, run: Run) -> Batch:
    """Pending, untried chunks that fit into the time left of this run."""
    backlog = world.scanner(run.by_hand).backlog()
    given = (read_manifest(world, run, worker) for worker in range(len(run.manifests)))
    tried = {chunk.key for manifest in given for chunk in manifest.chunks}
    fresh = [chunk for chunk in backlog.candidates if chunk.key not in tried]
    if run.manifests and all(chunk.troubled for chunk in fresh):
        fresh = []
    priors = priors_of(world, terms, run.instance_type)
    return pack(
        fresh,
        pending=len(fresh),
        priors=replace(priors, setup_seconds=min(priors.setup_seconds, MODEL_LOAD_SECONDS)),
        rate=run.rate,
        seconds=(run.deadline - world.clock.now()).total_seconds(),
        limit=run.limit,
    )


def ensure_manifest(world: World, terms: Terms, run: Run) -> Run:
    """Ensures a stored, unprocessed manifest; begins teardown if nothing is pending."""
    if run.manifests and read_exit(world, run.worker) is None:
        store_manifest(world, run)
        return run
    batch = next_batch(world, terms, run)
    if not batch.chunks:
        return save(world, run.releasing(None, "nothing was left to do"))
    return give_work(world, terms, run, batch.chunks)


def give_work(world: World, terms: Terms, run: Run, chunks: Iterable[Chunk]) -> Run:
    """Records the next manifest, then stores it. Raises RefusedError if another one is stored already."""
    run = save(world, with_manifest(world, terms, run, chunks))
    store_manifest(world, run)
    return run


def with_manifest(world: World, terms: Terms, run: Run, chunks: Iterable[Chunk]) -> Run:
    """Returns the run with its next manifest, recorded but not yet stored."""
    key = record_manifest(world, _build_manifest(terms, run, chunks))
    return replace(run, manifests=(*run.manifests, key), work_ended=None)


def _launch_worker(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """Starts the worker of the last manifest. Repeating it is harmless."""
    run = ensure_manifest(world, terms, run)
    if run.ending:
        return run
    manifest = read_manifest(world, run)
    if manifest.worker and run.launch == ClaimLaunch.BOOT:
        world.capacity.announce(run.instance, digest(manifest))
    world.launcher.launch(seen, manifest, f"{world.output.url.rstrip('/')}/{run.manifests[-1]}")
    changed = run.moved(RunState.TRANSCRIBING, dispatched=run.dispatched or world.clock.now())
    return save(world, changed, f"worker {manifest.worker} started, chunks: {len(manifest.chunks)}")


def _build_manifest(terms: Terms, run: Run, chunks: Iterable[Chunk]) -> Manifest:
    return Manifest(
        run=run.id,
        worker=len(run.manifests),
        release=terms.release,
        source=run.source,
        output=run.output,
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
