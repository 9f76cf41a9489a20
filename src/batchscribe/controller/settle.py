"""Settlement: list the store, write session files, compute the cost.

A failure of one action (a session's files, a message, a report) is logged and does not stop the others: the
run is settled in any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import msgspec

from batchscribe.controller.alerts import alert_conflict, send_once
from batchscribe.controller.commands.redo import quarantine_failed, record_attempt, record_crash
from batchscribe.controller.context import RunConfig, World, log, save, try_action
from batchscribe.controller.learning import learn, measure_bitrates
from batchscribe.controller.records import (
    forget_manifests,
    read_batch,
    read_boot,
    read_exit,
    read_manifests,
    read_progress,
    read_settlement,
    recover_workers,
    write_settlement,
)
from batchscribe.controller.rehearsal_place import is_rehearsal
from batchscribe.controller.retention import delete_outdated
from batchscribe.controller.run_message import run_message
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session, record_unreadable
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.engine_time import measure_engine_time, sum_engine_time
from batchscribe.core.run.manifest import (
    EngineTimeSummary,
    ExitRecord,
    FailureKind,
    Manifest,
    ManifestChunk,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
)
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.report import build
from batchscribe.core.run.runs import FAILURES_KEPT, Run, RunState
from batchscribe.core.run.session_costs import DoneChunk, divide_by_session
from batchscribe.core.run.timeline import measure_timeline
from batchscribe.core.scan.backlog import ChunkState, state_of
from batchscribe.errors import BatchscribeError

ENDLESS = "it took a whole run and was not finished: raise BATCH_MAX_RUNTIME_HOURS, or split the file"
FORGOTTEN = "its worker reported it as done, but there is no transcript"


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """One manifest of the run, and the last reports of its worker."""

    manifest: Manifest
    record: ExitRecord | None
    progress: Progress | None

    @property
    def report(self) -> ExitRecord | Progress | None:
        """The exit record, or else the last progress report."""
        return self.record or self.progress

    @property
    def tally(self) -> Tally:
        return self.report.tally if self.report else Tally()

    @property
    def timings(self) -> Timings:
        return self.report.timings if self.report else Timings()

    @property
    def worked(self) -> EngineTimeSummary:
        """Engine time from the same report; only an exit record has flags."""
        if self.report is None:
            return EngineTimeSummary()
        return measure_engine_time(self.timings, self.record.flags if self.record else {})


@dataclass(slots=True)
class Verified:
    """State of a run's chunks, as listed in the store."""

    quarantined: list[str] = field(default_factory=list)
    """Keys of quarantined chunks."""
    left: list[ManifestChunk] = field(default_factory=list)
    """Neither done nor quarantined, with unchanged audio."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Last failure of a chunk in this run, by key."""
    gone: int = 0
    """Deleted or uploaded again since: no longer part of this run."""
    complete: set[str] = field(default_factory=set)
    """Sessions without pending or waiting chunks."""
    done_chunks: list[DoneChunk] = field(default_factory=list)
    ungiven: int = 0
    """Pending chunks of the batch that no machine got."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Number of audio files in the source that are not decoded, by extension."""

    @property
    def done(self) -> int:
        return len(self.done_chunks)

    @property
    def missing(self) -> int:
        return len(self.left)


def settle(world: World, config: RunConfig, run: Run, errors: list[BatchscribeError]) -> Run:
    """Verifies the run's chunks, publishes the results, and closes the run; repeatable.

    An earlier settlement by this scheduler is kept: its process died, or its ledger could not be written.
    """
    if not run.workers and run.started:
        run = replace(run, workers=recover_workers(world, run))
    work = [
        WorkerResult(manifest, read_exit(world, manifest), read_progress(world, manifest))
        for manifest in read_manifests(world, run).values()
    ]
    before = read_settlement(world, run)
    if before is not None:
        result = _check_chunks(world.scanner(run.by_hand), [each.manifest for each in work])
        run = before
    else:
        result = _verify_chunks(world, config, run, work, errors)
        run = _close_run(world, run, result, work)
        if not write_settlement(world, run):
            alert_conflict(world, keys.settlement(run.id))
    if not is_rehearsal(run):
        measure = partial(learn, world, config, run, [(each.manifest.engine, each.record) for each in work])
        try_action(errors, run, "the measurements were not recorded", measure)
        divide = partial(_record_sessions, world, config, run, result, work)
        try_action(errors, run, "its cost by session was not recorded", divide)
    if run.started or (run.outcome and run.outcome.no_start):
        try_action(errors, run, "no message was sent", lambda: _send_message(world, run, result))
        try_action(errors, run, "no event was sent", lambda: _emit_events(world, run, result))
    try_action(errors, run, "no report was written", lambda: world.report(run))
    delete = partial(delete_outdated, world, now=world.clock.now())
    try_action(errors, run, "old control objects were not deleted", delete)
    run = save(world, run, run.detail)
    try_action(errors, run, "copies of its manifests were not dropped", lambda: forget_manifests(world, run))
    return run


def _verify_chunks(
    world: World, config: RunConfig, run: Run, work: list[WorkerResult], errors: list[BatchscribeError]
) -> Verified:
    """Records failed attempts, checks the run's chunks, and writes complete sessions."""
    manifests = [each.manifest for each in work]
    _count_failures(world, run, work)
    quarantine = partial(
        quarantine_failed,
        world.output,
        [chunk for manifest in manifests for chunk in manifest.chunks],
        max_attempts=config.max_attempts,
        now=world.clock.now(),
        reported=[failure for each in work if each.record for failure in each.record.failures],
    )
    quarantine()
    scanner = world.scanner(run.by_hand)
    result = _check_chunks(scanner, manifests)
    if (reasons := _attribute_failures(result, world, run, work)) and quarantine():
        result = _check_chunks(scanner, manifests)
    result.reasons = reasons
    result.ungiven = _count_ungiven(world, run, manifests) if len(run.machines) > 1 else 0
    for session in sorted(result.complete):
        world.keep_alive()
        try_action(
            errors, run, "a session was not written", partial(_write_session, world, scanner, session, errors)
        )
    if run.lane and run.outcome is Outcome.INTERRUPTED:
        # The GPU takes over: until this machine's worker ended, it may have done chunks of this run.
        del result.done_chunks[sum(each.tally.done for each in work) :]
    return result


def _count_ungiven(world: World, run: Run, manifests: list[Manifest]) -> int:
    """Counts the pending chunks of a batch that no manifest has."""
    given = {chunk.key for manifest in manifests for chunk in manifest.chunks}
    batch = read_batch(world, run) - given
    return (
        sum(chunk.key in batch for chunk in world.scanner(run.by_hand).backlog().candidates) if batch else 0
    )


def _write_session(world: World, scanner: Scanner, session: str, errors: list[BatchscribeError]) -> None:
    record = partial(record_unreadable, world.ledger)
    publish_session(scanner, session, world.open_rendering(), record=record, report=errors.append)


def _record_sessions(
    world: World, config: RunConfig, run: Run, result: Verified, work: list[WorkerResult]
) -> None:
    bitrates = measure_bitrates(each.record for each in work if each.record)
    shares = divide_by_session(run, result.done_chunks, bitrates, config.policy.max_wait)
    world.ledger.save_sessions(run.id, shares)


def _send_message(world: World, run: Run, result: Verified) -> None:
    """Sends a run's message, of repeated failed starts one in six hours."""
    outcome = run.outcome or Outcome.INCOMPLETE
    left = [chunk.key for chunk in result.left]
    message = run_message(run, left=left, quarantined=result.quarantined, passed_over=result.passed_over)
    if not outcome.no_start:
        world.notifier.send(message)
    elif not send_once(world, f"outcome/{outcome}", message):
        log.info("message.suppressed", run=run.id, outcome=outcome.value)


def _emit_events(world: World, run: Run, result: Verified) -> None:
    """Sends an event for each completed session, then one for the run."""
    for session in sorted(result.complete):
        world.keep_alive()
        world.notifier.emit("session.completed", {"session": session, "output": run.output, "run": run.id})
    world.notifier.emit("run.settled", msgspec.to_builtins(build(run)))


def _list_first_failures(result: Verified, work: list[WorkerResult]) -> dict[str, str]:
    """Returns a few failed chunks with reasons; the settlement's own take precedence."""
    failures = (failure for each in work if each.record for failure in each.record.failures)
    reasons = {failure.key: failure.message for failure in failures} | result.reasons
    failed = (*result.quarantined, *(chunk.key for chunk in result.left))
    return {key: reasons[key] for key in [key for key in failed if key in reasons][:FAILURES_KEPT]}


def _count_failures(world: World, run: Run, work: list[WorkerResult]) -> None:
    """Stores every failed attempt, also those of a dead worker.

    A chunk in flight when its worker died may have killed it, and counts once. If the machine was stopped
    under its worker, no failure is attributed.
    """
    for each in work:
        for failure in each.record.failures if each.record else ():
            world.output.create(keys.attempt(failure.key, failure.etag, failure.run), wire.encode(failure))
        # A processor that is too slow or short of memory is no fault of a chunk.
        if (
            not run.lane
            and _find_outcome(run, each.manifest.worker) is Outcome.WORKER_LOST
            and (each.record is None or each.record.end is WorkerEnd.STOPPED)
        ):
            in_flight = each.progress.in_flight if each.progress else ()
            record_crash(world.output, each.manifest, in_flight, now=world.clock.now())


def _find_outcome(run: Run, worker: int) -> Outcome | None:
    """Outcome of the run, or of a machine's last worker among several."""
    if len(run.machines) == 1 or worker >= len(run.workers):
        return run.outcome
    machine = run.machine(run.workers[worker].machine)
    return machine.outcome if worker == run.last_worker_on(machine.id) else None


def _attribute_failures(result: Verified, world: World, run: Run, work: list[WorkerResult]) -> dict[str, str]:
    """Records an attempt for each unreported failure; returns their reasons by key.

    A chunk that took a whole run would take the next one too, and a chunk that its worker skipped would be
    paid for with every run. The store decides, not the worker: chunks that are gone or done do not count.
    """
    left = {(chunk.key, chunk.etag) for chunk in result.left}
    unproductive = not result.done and not any(each.tally.failed for each in work)
    endless = [
        (chunk, ENDLESS) for each in work for chunk in _list_endless(run, each, unproductive=unproductive)
    ]
    forgotten = [(chunk, FORGOTTEN) for each in work for chunk in _passed_over(each)]
    failed = [(chunk, why) for chunk, why in endless + forgotten if (chunk.key, chunk.etag) in left]
    # Transcripts that `redo` moved aside since the run began.
    aside = world.output.list(keys.SUPERSEDED) if failed else ()
    redone = {
        info.key.removeprefix(keys.SUPERSEDED).partition("/")[2]
        for info in aside
        if info.modified >= run.created
    }
    failed = [(chunk, why) for chunk, why in failed if keys.aside(chunk.transcript) not in redone]
    for chunk, why in failed:
        log.warning("failure.attributed", run=run.id, key=chunk.key, why=why)
        record_attempt(world.output, chunk, run.id, FailureKind.CHUNK, why, now=world.clock.now())
    return {chunk.key: why for chunk, why in failed}


def _list_endless(run: Run, work: WorkerResult, *, unproductive: bool) -> Iterable[ManifestChunk]:
    """Chunks that took a whole run in which no chunk was done.

    The only chunk of its manifest, or those in flight if the worker had most of the run. A later worker had
    only the rest of it.
    """
    chunks, half = work.manifest.chunks, (run.deadline - run.created) / 2
    brief = work.manifest.worker and timedelta(seconds=work.timings.elapsed) < half
    if run.outcome is not Outcome.TIMED_OUT or run.lane:
        return ()
    if len(chunks) == 1 and not work.tally.seen and not brief:
        return chunks
    since = run.worker_since or run.dispatched
    most = since is not None and run.deadline - since > half
    in_flight = work.progress.in_flight if work.progress and unproductive and most else ()
    return [chunk for chunk in chunks if chunk.key in in_flight]


def _passed_over(work: WorkerResult) -> Iterable[ManifestChunk]:
    """Chunks of a finished worker, except those that it reported as failed."""
    if work.record is None or work.record.end is not WorkerEnd.FINISHED:
        return ()
    failed = {failure.key for failure in work.record.failures}
    return [chunk for chunk in work.manifest.chunks if chunk.key not in failed]


def _check_chunks(scanner: Scanner, manifests: list[Manifest]) -> Verified:
    """Lists the store again for the chunks and sessions of these manifests."""
    asked = {chunk.key: chunk for manifest in manifests for chunk in manifest.chunks}
    result = Verified(gone=len(asked), complete={chunk.session for chunk in asked.values()})
    if not asked:
        return result
    rules = scanner.rules()
    for audio in scanner.audio():
        state = state_of(audio, rules)
        if state in {ChunkState.PENDING, ChunkState.WAITING}:
            result.complete.discard(audio.name.session)
        chunk = asked.get(audio.info.key)
        if chunk is None or (chunk.etag != audio.info.etag and state is not ChunkState.DONE):
            continue
        result.gone -= 1
        if state is ChunkState.DONE:
            key, size, arrived = chunk.key, audio.info.size, audio.info.modified
            done = DoneChunk(session=chunk.session, key=key, size=size, arrived=arrived)
            result.done_chunks.append(done)
        result.quarantined += [chunk.key] if state is ChunkState.QUARANTINED else []
        result.left += [chunk] if state in {ChunkState.PENDING, ChunkState.WAITING} else []
    result.passed_over = scanner.passed_over
    if rules.live is not None:
        result.complete = {session for session in result.complete if not rules.live.covers(session)}
    return result


def _measure_timeline(world: World, run: Run, work: list[WorkerResult]) -> dict[str, float]:
    if not work:
        return {}
    boot = read_boot(world, run, run.workers[0].machine if run.workers else run.instance)
    agent = boot.agent if boot else None
    return measure_timeline(run, work[0].timings, work[-1].timings, agent=agent)


def _close_run(world: World, run: Run, result: Verified, work: list[WorkerResult]) -> Run:
    outcome = run.outcome
    unread = len(run.workers) - len(work)
    tried = run.worker_since is not None or any(each.tally.seen for each in work)
    if outcome is None:
        left = result.missing or unread or result.ungiven
        outcome = Outcome.INCOMPLETE if left else Outcome.COMPLETED
    gone = f"chunks deleted or replaced meanwhile: {result.gone}" if result.gone else ""
    ungiven = f"chunks that were left for the next run: {result.ungiven}" if result.ungiven else ""
    lost = f"manifests that could not be read: {unread} of {len(run.workers)}" if unread else ""
    return run.to_state(
        RunState.SETTLED,
        outcome=outcome,
        detail="; ".join(filter(None, (run.detail, gone, ungiven, lost))),
        settled=world.clock.now(),
        chunks_done=result.done,
        chunks_failed=(result.missing if tried else 0) + len(result.quarantined),
        failures=_list_first_failures(result, work),
        audio_seconds=sum(each.tally.audio_seconds for each in work),
        worked=sum_engine_time(each.worked for each in work),
        timeline=_measure_timeline(world, run, work),
        cost=run.bill(),
    )
