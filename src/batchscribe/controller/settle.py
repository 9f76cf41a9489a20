"""After the GPU: the store is listed again and believed, sessions are written, the cost is fixed.

One thing that cannot be done here (a session's files, a message, a report) is told, and costs nothing
else: the run is settled all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from batchscribe.controller.alerts import alert_conflict
from batchscribe.controller.commands.redo import quarantine_failed, record_crash
from batchscribe.controller.context import Terms, World, log, save
from batchscribe.controller.learning import learn
from batchscribe.controller.records import (
    forget_manifests,
    manifests_of,
    read_exit,
    read_manifest,
    read_progress,
    read_settlement,
    write_settlement,
)
from batchscribe.controller.rehearsal_place import rehearsed
from batchscribe.controller.retention import retire
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session, record_unreadable
from batchscribe.core import keys
from batchscribe.core.messages import Level, Message
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.engine_time import flag_text, total, worked
from batchscribe.core.run.manifest import (
    ExitRecord,
    Failure,
    FailureKind,
    Manifest,
    ManifestChunk,
    Progress,
    Tally,
    Worked,
    WorkerEnd,
)
from batchscribe.core.run.runs import Outcome, Run, RunState
from batchscribe.core.scan.backlog import ChunkState, state_of
from batchscribe.core.scan.chunks import passed_over_text
from batchscribe.errors import BatchscribeError, MisconfiguredError, ObjectNotFoundError

TELL_AGAIN = timedelta(hours=6)
ENDLESS = "it filled a whole run and was not done: raise BATCH_MAX_RUNTIME_HOURS, or cut it"
FORGOTTEN = "its worker said that it was done, and there is no transcript"


@dataclass(frozen=True, slots=True)
class Work:
    """One manifest of the run, and what its worker left behind."""

    manifest: Manifest
    record: ExitRecord | None
    progress: Progress | None

    @property
    def tally(self) -> Tally:
        """The last word, or else the last report."""
        told = self.record or self.progress
        return told.tally if told else Tally()

    @property
    def worked(self) -> Worked:
        """Its time, by the same words; flags are in the last word only."""
        told = self.record or self.progress
        return worked(told.timings, self.record.flags if self.record else {}) if told else Worked()


@dataclass(slots=True)
class Verdict:
    """What the store says of the chunks of a run."""

    done: int = 0
    quarantined: int = 0
    left: list[ManifestChunk] = field(default_factory=list)
    """Neither done nor quarantined, and still the very audio that was asked for."""
    gone: int = 0
    """Deleted or uploaded anew since: no longer this run's business."""
    complete: set[str] = field(default_factory=set)
    """Sessions of which nothing is pending or waiting any more."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files of sound in the source that are not decoded, by extension."""

    @property
    def missing(self) -> int:
        return len(self.left)


def settle(world: World, terms: Terms, run: Run, errors: list[BatchscribeError]) -> Run:
    """Verifies, writes what follows from it, and closes the run; repeatable until its last line.

    A settlement that this scheduler stored before stands: its process died, or its ledger could not be
    written.
    """
    if not run.manifests and run.started:
        run = replace(run, manifests=manifests_of(world, run.id))
    work = list(_work(world, run))
    before = read_settlement(world, run)
    if before is not None:
        verdict = _verdict(world.scanner(run.by_hand), [each.manifest for each in work])
        run = before
    else:
        verdict = _verified(world, terms, run, work, errors)
        run = _closed(world, run, verdict, work)
        if not write_settlement(world, run):
            alert_conflict(world, keys.settlement(run.id))
    if not rehearsed(run):
        _each(errors, "nothing was learned", lambda: learn(world, terms, run, [each.record for each in work]))
    if run.started or (run.outcome and run.outcome.no_start):
        _each(errors, "no message was sent", lambda: _tell(world, run, verdict))
    _each(errors, "no report was written", lambda: world.report(run))
    _each(errors, "nothing was retired", lambda: retire(world, now=world.clock.now()))
    run = save(world, run, run.detail)
    _each(errors, "copies of its manifests were not dropped", lambda: forget_manifests(world, run))
    return run


def _verified(
    world: World, terms: Terms, run: Run, work: list[Work], errors: list[BatchscribeError]
) -> Verdict:
    """What the store says of the run's chunks, with blame where it belongs, and complete sessions written."""
    manifests = [each.manifest for each in work]
    _count_failures(world, run, work)
    quarantine = partial(
        quarantine_failed,
        world.output,
        manifests,
        max_attempts=terms.max_attempts,
        now=world.clock.now(),
        reported=[failure for each in work if each.record for failure in each.record.failures],
    )
    quarantine()
    scanner = world.scanner(run.by_hand)
    verdict = _verdict(scanner, manifests)
    if _blame_by(verdict, world, run, work) and quarantine():
        verdict = _verdict(scanner, manifests)
    record = partial(record_unreadable, world.ledger)
    for session in sorted(verdict.complete):
        world.keep_alive()
        publish = partial(publish_session, scanner, session, world.render, record=record)
        _each(errors, "a session was not written", publish)
    return verdict


def _tell(world: World, run: Run, verdict: Verdict) -> None:
    """A message for each run; but for starts that fail alike, hour after hour, only one now and then."""
    outcome = run.outcome or Outcome.INCOMPLETE
    if outcome.no_start and not world.ledger.alert_due(f"outcome/{outcome}", world.clock.now(), TELL_AGAIN):
        log.info("told before, and not again", run=run.id, outcome=outcome.value)
        return
    world.notifier.send(message(run, verdict))


def message(run: Run, verdict: Verdict) -> Message:
    """What people are told of a settled run."""
    outcome = run.outcome or Outcome.INCOMPLETE
    level = Level.SUCCESS if outcome.success else Level.FAILURE
    body = (
        f"{verdict.done} of {verdict.done + verdict.quarantined + verdict.missing} chunks done, "
        f"{verdict.quarantined} quarantined, {verdict.missing} left.\n"
        f"{run.audio_seconds / 3600:.2f} h of audio, at most ${run.cost.text(4)} on "
        f"{run.instance_type or run.provider}.\n{run.detail}".rstrip()
    )
    counted = flag_text(run.worked.flags)
    body = "\n".join(filter(None, (body, counted, passed_over_text(verdict.passed_over))))
    return Message(f"batchscribe: run {run.id} {outcome.value}", body, level)


def _each(errors: list[BatchscribeError], what: str, act: Callable[[], object]) -> None:
    """One of several things: where it fails, it is told, and the others are done all the same."""
    try:
        act()
    except BatchscribeError as error:
        log.warning(what, error=str(error))
        errors.append(error)
    except Exception as error:  # noqa: BLE001  a mistake of ours must not keep the run open for good
        log.exception(what)
        errors.append(BatchscribeError(f"{what}: internal error {type(error).__name__}"))


def _work(world: World, run: Run) -> Iterable[Work]:
    for worker in range(len(run.manifests)):
        try:
            manifest = read_manifest(world, run, worker)
        except (ObjectNotFoundError, MisconfiguredError) as error:
            log.warning("a manifest is skipped", run=run.id, error=str(error))
            continue
        yield Work(manifest, read_exit(world, manifest), read_progress(world, manifest))


def _count_failures(world: World, run: Run, work: list[Work]) -> None:
    """Sees to it that every failed attempt is in the store: what the worker said last, and what it
    could no longer say.

    A chunk in flight when its worker died may have killed it, and counts once. Where a machine was stopped
    under its worker, nobody is to blame.
    """
    for each in work:
        for failure in each.record.failures if each.record else ():
            world.output.create(keys.attempt(failure.key, failure.etag, failure.run), wire.encode(failure))
        if run.outcome is Outcome.WORKER_LOST and (
            each.record is None or each.record.end is WorkerEnd.STOPPED
        ):
            in_flight = each.progress.in_flight if each.progress else ()
            record_crash(world.output, each.manifest, in_flight, now=world.clock.now())


def _blame_by(verdict: Verdict, world: World, run: Run, work: list[Work]) -> bool:
    """Counts an attempt at each chunk that failed and nobody said so; whether there was one.

    What filled a whole run will fill the next, and what its worker passed over in silence would be paid
    for with every run. The store tells both, not the worker: what is gone or done meanwhile is not to blame.
    """
    left = {(chunk.key, chunk.etag) for chunk in verdict.left}
    fruitless = not verdict.done and not any(each.tally.failed for each in work)
    endless = [(chunk, ENDLESS) for each in work for chunk in _endless(run, each, fruitless=fruitless)]
    forgotten = [(chunk, FORGOTTEN) for each in work for chunk in _passed_over(each)]
    blamed = [(chunk, why) for chunk, why in endless + forgotten if (chunk.key, chunk.etag) in left]
    redone = _redone(world, run) if blamed else frozenset()
    blamed = [(chunk, why) for chunk, why in blamed if keys.aside(chunk.transcript) not in redone]
    for chunk, why in blamed:
        log.warning("a chunk is to blame", run=run.id, key=chunk.key, why=why)
        _blame(world, run, chunk, why)
    return bool(blamed)


def _endless(run: Run, work: Work, *, fruitless: bool) -> Iterable[ManifestChunk]:
    """The chunks that filled a run in which nothing was done: the one that was alone in its manifest, or
    those in flight where the worker had most of the run.
    """
    chunks = work.manifest.chunks
    if run.outcome is not Outcome.TIMED_OUT:
        return ()
    if len(chunks) == 1 and not work.tally.seen:
        return chunks
    since = run.worker_since or run.dispatched
    most = since is not None and run.deadline - since > (run.deadline - run.created) / 2
    in_flight = work.progress.in_flight if work.progress and fruitless and most else ()
    return [chunk for chunk in chunks if chunk.key in in_flight]


def _passed_over(work: Work) -> Iterable[ManifestChunk]:
    """All of which the worker says that it ended them, and of none that it failed."""
    if work.record is None or work.record.end is not WorkerEnd.FINISHED:
        return ()
    failed = {failure.key for failure in work.record.failures}
    return [chunk for chunk in work.manifest.chunks if chunk.key not in failed]


def _redone(world: World, run: Run) -> frozenset[str]:
    """Where the transcripts lay that a person had moved aside since the run was begun."""
    aside = (info for info in world.output.list(keys.SUPERSEDED) if info.modified >= run.created)
    return frozenset(info.key.removeprefix(keys.SUPERSEDED).partition("/")[2] for info in aside)


def _blame(world: World, run: Run, chunk: ManifestChunk, message: str) -> None:
    failure = Failure(
        key=chunk.key,
        etag=chunk.etag,
        run=run.id,
        kind=FailureKind.CHUNK,
        message=message,
        at=world.clock.now(),
    )
    world.output.create(keys.attempt(chunk.key, chunk.etag, run.id), wire.encode(failure))


def _verdict(scanner: Scanner, manifests: list[Manifest]) -> Verdict:
    """One more pass over the listing, for the chunks and the sessions of these manifests."""
    asked = {chunk.key: chunk for manifest in manifests for chunk in manifest.chunks}
    verdict = Verdict(gone=len(asked), complete={chunk.session for chunk in asked.values()})
    if not asked:
        return verdict
    rules = scanner.rules()
    for audio in scanner.audio():
        state = state_of(audio, rules)
        if state in {ChunkState.PENDING, ChunkState.WAITING}:
            verdict.complete.discard(audio.name.session)
        chunk = asked.get(audio.info.key)
        if chunk is None or (chunk.etag != audio.info.etag and state is not ChunkState.DONE):
            continue
        verdict.gone -= 1
        verdict.done += state is ChunkState.DONE
        verdict.quarantined += state is ChunkState.QUARANTINED
        verdict.left += [chunk] if state in {ChunkState.PENDING, ChunkState.WAITING} else []
    verdict.passed_over = scanner.passed_over
    if rules.live is not None:
        verdict.complete = {session for session in verdict.complete if not rules.live.covers(session)}
    return verdict


def _closed(world: World, run: Run, verdict: Verdict, work: list[Work]) -> Run:
    outcome = run.outcome
    unread = len(run.manifests) - len(work)
    if outcome is None:
        outcome = Outcome.INCOMPLETE if verdict.missing or unread else Outcome.COMPLETED
    gone = f"{verdict.gone} chunks were deleted or replaced meanwhile" if verdict.gone else ""
    lost = f"{unread} of {len(run.manifests)} manifests could not be read" if unread else ""
    return run.moved(
        RunState.SETTLED,
        outcome=outcome,
        detail="; ".join(filter(None, (run.detail, gone, lost))),
        settled=world.clock.now(),
        chunks_done=verdict.done,
        chunks_failed=verdict.missing + verdict.quarantined,
        audio_seconds=sum(each.tally.audio_seconds for each in work),
        worked=total(each.worked for each in work),
        cost=run.bill(),
    )
