"""After the GPU: the store is listed again and believed, sessions are written, the cost is fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchscribe.controller.context import Terms, World, keep, log
from batchscribe.controller.redo import quarantine_failed, record_crash
from batchscribe.controller.sessions import publish_session
from batchscribe.controller.steps import read_exit, read_manifest, read_progress
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.backlog import SessionScan
from batchscribe.core.manifest import ExitRecord, Manifest
from batchscribe.core.messages import Level, Message
from batchscribe.core.runs import Outcome, Run, RunState


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the store says of the chunks of a run."""

    done: int
    quarantined: int
    missing: tuple[str, ...]


def settle(world: World, terms: Terms, run: Run) -> Run:
    """Verifies, writes what follows from it, and closes the run. Repeatable until the last line."""
    manifests = [read_manifest(world, key) for key in run.manifests]
    records = [read_exit(world, manifest) for manifest in manifests]
    _blame_the_crashed(world, run, manifests, records)
    quarantine_failed(world.output, manifests, max_attempts=terms.max_attempts, now=world.clock.now())
    wanted = {chunk.session for manifest in manifests for chunk in manifest.chunks}
    scanner = world.scanner(run.by_hand)
    scans = {scan.session: scan for scan in scanner.sessions() if scan.session in wanted}
    held = {info.key for info in world.output.list(keys.QUARANTINE)}
    verdict = _verdict(manifests, scans, held)
    for scan in scans.values():
        if scan.complete:
            publish_session(scanner, scan.session, world.render)
    run = _closed(run, verdict, records, world)
    world.output.create(keys.settlement(run.id), wire.encode(_settlement(run)))
    run = keep(world, run, run.detail)
    _learn(world, terms, run, records)
    if run.start_requested is not None:
        world.notifier.send(message(run, verdict))
    world.report(run)
    return run


def message(run: Run, verdict: Verdict) -> Message:
    """What people are told of a settled run."""
    outcome = run.outcome or Outcome.INCOMPLETE
    level = Level.SUCCESS if outcome.success else Level.FAILURE
    body = (
        f"{verdict.done} of {verdict.done + verdict.quarantined + len(verdict.missing)} chunks done, "
        f"{verdict.quarantined} quarantined, {len(verdict.missing)} left.\n"
        f"{run.audio_seconds / 3600:.2f} h of audio, at most ${run.cost.text(4)} on "
        f"{run.instance_type or run.provider}.\n{run.detail}".rstrip()
    )
    return Message(f"batchscribe: run {run.id} {outcome.value}", body, level)


def _verdict(manifests: list[Manifest], scans: dict[str, SessionScan], quarantine: set[str]) -> Verdict:
    asked = {chunk.key: chunk for manifest in manifests for chunk in manifest.chunks}
    missing = tuple(
        chunk.key
        for scan in scans.values()
        for chunk in scan.pending + scan.waiting
        if chunk.key in asked and asked[chunk.key].etag == chunk.etag
    )
    held = {key for key in asked if keys.quarantine(key) in quarantine}
    return Verdict(done=len(asked) - len(missing) - len(held), quarantined=len(held), missing=missing)


def _blame_the_crashed(
    world: World, run: Run, manifests: list[Manifest], records: list[ExitRecord | None]
) -> None:
    """A chunk in flight when its worker died may have killed it: that counts as an attempt, once."""
    if run.outcome is not Outcome.WORKER_LOST:
        return
    for manifest, record in zip(manifests, records, strict=True):
        progress = read_progress(world, manifest)
        if record is None and progress is not None:
            record_crash(world.output, manifest, progress.in_flight, now=world.clock.now())


def _closed(run: Run, verdict: Verdict, records: list[ExitRecord | None], world: World) -> Run:
    outcome = run.outcome
    if outcome is None:
        outcome = Outcome.INCOMPLETE if verdict.missing else Outcome.COMPLETED
    tallies = [record.tally for record in records if record]
    return run.moved(
        RunState.SETTLED,
        outcome=outcome,
        settled=world.clock.now(),
        chunks_done=verdict.done,
        chunks_failed=len(verdict.missing) + verdict.quarantined,
        audio_seconds=sum(tally.audio_seconds for tally in tallies),
        cost=run.bill(),
    )


def _settlement(run: Run) -> wire.Settlement:
    assert run.outcome is not None
    assert run.settled is not None
    return wire.Settlement(
        run=run.id,
        outcome=run.outcome.value,
        detail=run.detail,
        settled=run.settled,
        billed_seconds=run.billed_seconds,
        cost_micros=run.cost.micros,
        chunks_done=run.chunks_done,
        chunks_failed=run.chunks_failed,
        audio_seconds=run.audio_seconds,
    )


def _learn(world: World, terms: Terms, run: Run, records: list[ExitRecord | None]) -> None:
    """Speed, set-up time and bytes for a second, for the next estimate; only from work that was done."""
    seen = [record for record in records if record and record.timings.busy > 0 and record.tally.done]
    if not seen:
        return
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for record in seen:
        for kind, value in record.seconds_by_type.items():
            seconds[kind] = seconds.get(kind, 0.0) + value
            sizes[kind] = sizes.get(kind, 0) + record.bytes_by_type.get(kind, 0)
    elapsed = sum(record.timings.elapsed - (record.timings.first_window or 0.0) for record in seen)
    audio = sum(record.tally.audio_seconds for record in seen)
    begun = run.start_requested or run.created
    priors = replace(
        terms.priors,
        speed=audio / elapsed if elapsed > 0 else terms.priors.speed,
        setup_seconds=(run.first_window - begun).total_seconds() if run.first_window else 0.0,
        release_seconds=(run.stopped - run.work_ended).total_seconds()
        if run.stopped and run.work_ended
        else terms.priors.release_seconds,
        bytes_per_second={k: sizes[k] / seconds[k] for k in seconds if seconds[k] > 0 and sizes[k] > 0},
    )
    log.info("learned", run=run.id, speed=round(priors.speed, 2), setup=round(priors.setup_seconds, 1))
    world.ledger.learn(
        run=run.id,
        engine=terms.engine.engine,
        model=terms.engine.model,
        instance_type=run.instance_type,
        at=world.clock.now(),
        speed=priors.speed,
        setup_seconds=priors.setup_seconds,
        release_seconds=max(0.0, priors.release_seconds),
        bytes_per_second=dict(priors.bytes_per_second),
    )
