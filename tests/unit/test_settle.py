"""What a settlement counts: what is done, and which chunk is to blame for what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe.controller.commands.redo import find_by_key, list_quarantined, redo
from batchscribe.controller.context import read_moment
from batchscribe.controller.run_message import run_message
from batchscribe.controller.settle import FORGOTTEN, settle
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.messages import Level
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import (
    ExitRecord,
    Failure,
    FailureKind,
    Manifest,
    ManifestChunk,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
)
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.text.transcripts import encode
from batchscribe.errors import StoreUnavailableError
from batchscribe.testing.worker import make_transcript
from support.values import metered
from support.world import Stage, once, stage


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW))
    yield made
    made.ledger.close()


def ready(at: Stage, count: int) -> list[str]:
    names = at.upload(count)
    at.clock.sleep(600)
    return names


def at_work(at: Stage) -> Run:
    """A run whose worker has just come to life, and is slow."""
    at.worker.seconds_each = 1e6
    while True:
        (run,) = once(at).runs
        if run.state is RunState.TRANSCRIBING:
            return run
        at.clock.sleep(5)


def reports(at: Stage, manifest: Manifest, said: Tally, *, in_flight: list[str]) -> None:
    progress = Progress(
        run=manifest.run,
        worker=manifest.worker,
        sequence=1,
        phase=Phase.WORKING,
        at=at.clock.now(),
        total=len(manifest.chunks),
        tally=said,
        timings=Timings(),
        in_flight=tuple(in_flight),
    )
    at.store.replace(keys.progress(manifest.run, manifest.worker), wire.encode(progress))


def publishes(at: Stage, manifest: Manifest, chunks: Sequence[ManifestChunk]) -> None:
    for chunk in chunks:
        at.store.create(chunk.transcript, encode(make_transcript(chunk, manifest, at=at.clock.now())))


def fails(at: Stage, name: str, run: str) -> None:
    (etag,) = [info.etag for info in at.store.list(name) if info.key == name]
    failure = Failure(
        key=name, etag=etag, run=run, kind=FailureKind.CHUNK, message="not audio", at=at.clock.now()
    )
    at.store.create(keys.attempt(name, etag, run), wire.encode(failure))


def ends(at: Stage, manifest: Manifest, end: WorkerEnd, *failures: Failure) -> None:
    """The worker's last word, after a transcript of every chunk but the first."""
    publishes(at, manifest, manifest.chunks[1:])
    record = ExitRecord(
        run=manifest.run,
        worker=manifest.worker,
        end=end,
        at=at.clock.now(),
        tally=Tally(done=len(manifest.chunks)),
        timings=Timings(),
        failures=failures,
    )
    at.store.create(keys.exit_record(manifest.run, manifest.worker), wire.encode(record))


def over(at: Stage, run: Run, outcome: Outcome | None, **changes: object) -> Run:
    """The run as it is settled after that outcome."""
    stopped = run.machines[0].meter.end(read_moment(at.world))
    ended = replace(metered(run, stopped), state=RunState.VERIFYING, outcome=outcome)
    return settle(at.world, at.config, replace(ended, **changes), [])  # type: ignore[arg-type]


def blamed(at: Stage, name: str) -> int:
    return len(list(at.store.list(f"{keys.ATTEMPTS}{keys.digest(name)}/")))


@pytest.mark.parametrize(
    ("share", "said", "done", "times"),
    [
        (0.9, Tally(), 0, 1),
        (0.51, Tally(), 0, 1),
        (0.49, Tally(), 0, 0),
        (0.9, Tally(done=1), 1, 0),
        (0.9, Tally(done=1), 0, 1),
        (0.9, Tally(failed=1), 0, 0),
    ],
    ids=["most of the run", "just most", "too little", "something is done", "is only said", "it failed"],
)
def test_chunks_that_filled_a_fruitless_run_together_are_blamed_once_each(
    at: Stage, share: float, said: Tally, done: int, times: int
) -> None:
    names = ready(at, 4)
    run = at_work(at)
    manifest = at.worker.manifest(run)
    reports(at, manifest, said, in_flight=names[:2])
    publishes(at, manifest, manifest.chunks[4 - done :])
    since = run.deadline - share * (run.deadline - run.created)
    over(at, run, Outcome.TIMED_OUT, worker_since=since)
    assert [blamed(at, name) for name in names] == [times, times, 0, 0]


def test_what_was_in_flight_and_is_deleted_by_now_filled_nothing(at: Stage) -> None:
    names = ready(at, 4)
    run = at_work(at)
    manifest = at.worker.manifest(run)
    reports(at, manifest, Tally(), in_flight=names[:2])
    at.store.delete(names[0])
    over(at, run, Outcome.TIMED_OUT, worker_since=run.created + timedelta(minutes=1))
    assert [blamed(at, name) for name in names] == [0, 1, 0, 0]


def test_a_chunk_that_fills_every_run_is_quarantined_by_the_last_of_them(at: Stage) -> None:
    """It was alone; the settlement counts what it has just found."""
    (name,) = ready(at, 1)
    run = at_work(at)
    for earlier in range(at.config.max_attempts - 1):
        fails(at, name, f"earlier-{earlier}")
    done = over(at, run, Outcome.TIMED_OUT)
    assert (blamed(at, name), done.chunks_failed) == (3, 1)
    assert "1 quarantined, 0 left" in at.notes.messages[-1].body


def test_chunks_of_a_run_that_was_ended_for_another_reason_filled_nothing(at: Stage) -> None:
    names = ready(at, 4)
    run = at_work(at)
    reports(at, at.worker.manifest(run), Tally(), in_flight=names[:2])
    over(at, run, Outcome.INTERRUPTED, worker_since=run.created + timedelta(minutes=1))
    assert not any(blamed(at, name) for name in names)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\x00"])
def test_a_quarantine_that_cannot_be_read_is_counted_with_its_chunk_alone(at: Stage, data: bytes) -> None:
    names = ready(at, 4)
    at.worker.skips = frozenset({names[1]})
    at.clock.at(22, lambda: at.store.place(keys.quarantine(names[1]), data))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.chunks_done, run.chunks_failed) == (Outcome.COMPLETED, 3, 1)
    assert "3 of 4 chunks done, 1 quarantined, 0 left" in at.notes.messages[-1].body
    at.clock.sleep(3600)
    assert tick(at.world, at.config).runs == (), "it starts no GPU"


def test_a_chunk_that_its_worker_passed_over_in_silence_is_tried_so_often_and_no_more(at: Stage) -> None:
    names = ready(at, 3)
    at.worker.skips = frozenset({names[0]})
    outcomes = []
    for batch in range(at.config.max_attempts):
        (run,) = tick(at.world, at.config).runs
        outcomes.append((run.outcome, run.chunks_failed, blamed(at, names[0])))
        at.upload(1, session=f"later-{batch}")
        at.clock.sleep(3600)
    assert outcomes == [
        (Outcome.INCOMPLETE, 1, 1),
        (Outcome.INCOMPLETE, 1, 2),
        (Outcome.COMPLETED, 1, 3),
    ]
    assert "1 quarantined, 0 left" in at.notes.messages[-1].body
    (held,) = list_quarantined(at.store)
    assert (held.key, held.attempts, held.message) == (names[0], 3, FORGOTTEN)
    assert at.store.get("s/transcript.json").data, "nothing of its session is waited for"
    at.worker.skips = frozenset()
    tick(at.world, at.config)
    assert names[0] not in at.worker.published
    assert [blamed(at, name) for name in names] == [3, 0, 0]


def test_one_forgotten_chunk_starts_a_gpu_at_its_longest_wait_once_for_each_attempt_left(at: Stage) -> None:
    names = ready(at, 3)
    at.worker.skips = frozenset({names[0]})
    tick(at.world, at.config)
    at.clock.sleep(22 * 3600)
    assert tick(at.world, at.config).runs == ()
    started = 0
    for _ in range(10):
        at.clock.sleep(24 * 3600)
        started += len(tick(at.world, at.config).runs)
    assert started == at.config.max_attempts - 1
    assert [held.key for held in list_quarantined(at.store)] == [names[0]]


def test_a_chunk_is_forgotten_once_in_a_run_however_often_that_is_settled(at: Stage) -> None:
    names = ready(at, 3)
    run = at_work(at)
    ends(at, at.worker.manifest(run), WorkerEnd.FINISHED)
    for _ in range(2):
        assert over(at, run, None).outcome is Outcome.INCOMPLETE
        assert [blamed(at, name) for name in names] == [1, 0, 0]


def redone(at: Stage, manifest: Manifest) -> None:
    """It was done, and a person wants it once more."""
    at.clock.sleep(60)
    publishes(at, manifest, manifest.chunks[:1])
    scanner = at.world.scanner(True)
    assert list(redo(scanner, find_by_key(scanner, manifest.chunks[0].key), stamp="20261123-130000"))


def another(at: Stage, manifest: Manifest) -> None:
    at.store.replace(manifest.chunks[0].key, b"other words".ljust(40_000, b"."))


MEANWHILE: dict[str, Callable[[Stage, Manifest], object]] = {
    "deleted": lambda at, manifest: at.store.delete(manifest.chunks[0].key),
    "uploaded anew": another,
    "redone": redone,
}


@pytest.mark.parametrize("meanwhile", MEANWHILE.values(), ids=MEANWHILE)
def test_what_somebody_else_did_to_a_chunk_is_not_its_fault(
    at: Stage, meanwhile: Callable[[Stage, Manifest], object]
) -> None:
    names = ready(at, 3)
    run = at_work(at)
    manifest = at.worker.manifest(run)
    meanwhile(at, manifest)
    ends(at, manifest, WorkerEnd.FINISHED)
    over(at, run, None)
    assert not any(blamed(at, name) for name in names)


def test_a_redo_of_another_day_excuses_nothing(at: Stage) -> None:
    (name,) = ready(at, 1)
    tick(at.world, at.config)
    scanner = at.world.scanner(True)
    assert list(redo(scanner, find_by_key(scanner, name), stamp="20261123-120000"))
    at.clock.sleep(24 * 3600)
    run = at_work(at)
    ends(at, at.worker.manifest(run), WorkerEnd.FINISHED)
    over(at, run, None)
    assert blamed(at, name) == 1


@pytest.mark.parametrize("end", [WorkerEnd.STOPPED, WorkerEnd.FAILED, None])
def test_a_worker_that_did_not_end_all_of_its_work_forgot_nothing(at: Stage, end: WorkerEnd | None) -> None:
    names = ready(at, 3)
    run = at_work(at)
    if end:
        ends(at, at.worker.manifest(run), end)
    over(at, run, Outcome.INTERRUPTED)
    assert not any(blamed(at, name) for name in names)


def test_what_the_worker_said_of_a_chunk_stands(at: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The store was in trouble, or the chunk is archived: that counts for nothing."""
    names = ready(at, 3)
    run = at_work(at)
    manifest = at.worker.manifest(run)
    chunk = manifest.chunks[0]
    failure = Failure(
        key=chunk.key,
        etag=chunk.etag,
        run=run.id,
        kind=FailureKind.MACHINE,
        message="the store could not be reached",
        at=at.clock.now(),
    )
    ends(at, manifest, WorkerEnd.FINISHED, failure)
    over(at, run, None)
    (info,) = at.store.list(f"{keys.ATTEMPTS}{keys.digest(names[0])}/")
    assert wire.decode(at.store.get(info.key).data, Failure).kind is FailureKind.MACHINE
    assert FORGOTTEN not in capsys.readouterr().out


def test_a_verdict_that_cannot_be_made_blames_nobody(at: Stage) -> None:
    names = ready(at, 3)
    run = at_work(at)
    ends(at, at.worker.manifest(run), WorkerEnd.FINISHED)

    def refuse(method: str, key: str) -> None:
        if method == "list" and not key:
            raise StoreUnavailableError("no listing now")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at.store, "before", refuse)
        with pytest.raises(StoreUnavailableError):
            over(at, run, None)
    assert not any(blamed(at, name) for name in names)


def test_what_was_left_out_is_in_the_message(at: Stage) -> None:
    ready(at, 3)
    at.store.place("old.dss", b"1")
    run = at_work(at)
    ends(at, at.worker.manifest(run), WorkerEnd.FINISHED)
    place = keys.exit_record(run.id, 0)
    record = wire.decode(at.store.get(place).data, ExitRecord)
    flagged = msgspec.structs.replace(record, flags={"partial": 2, "track-missing": 1})
    at.store.replace(place, wire.encode(flagged))
    over(at, run, None)
    text = at.notes.messages[-1].body
    assert text.endswith("2 partial, 1 track-missing\n1 sound file passed over: 1 .dss")


def test_a_refusal_for_good_goes_to_quarantine_at_once(at: Stage) -> None:
    names = ready(at, 3)
    run = at_work(at)
    manifest = at.worker.manifest(run)
    chunk = manifest.chunks[0]
    failure = Failure(
        key=chunk.key,
        etag=chunk.etag,
        run=run.id,
        kind=FailureKind.REFUSED,
        message="audio coded as tta, which is not decoded here",
        at=at.clock.now(),
    )
    ends(at, manifest, WorkerEnd.FINISHED, failure)
    over(at, run, None)
    (held,) = list_quarantined(at.store)
    assert (held.key, held.attempts) == (names[0], 1)


def test_a_message_names_what_failed_and_the_next_step(at: Stage) -> None:
    names = ready(at, 2)
    run = at_work(at)
    manifest = at.worker.manifest(run)
    chunk = manifest.chunks[0]
    failure = Failure(
        key=chunk.key,
        etag=chunk.etag,
        run=run.id,
        kind=FailureKind.REFUSED,
        message="audio coded as tta",
        at=at.clock.now(),
    )
    ends(at, manifest, WorkerEnd.FINISHED, failure)
    over(at, run, None)
    lines = at.notes.messages[-1].body.splitlines()
    assert f"  {names[0]}: audio coded as tta" in lines
    assert any(at.world.output.url in line for line in lines)
    assert any(f"`batchscribe why {names[0]}`" in line for line in lines)


def test_a_message_names_a_few_of_many_failed_chunks(at: Stage) -> None:
    ready(at, 1)
    left = [f"{number}.wav" for number in range(5)]
    run = replace(at_work(at), failures=dict.fromkeys(left[:3], "not audio"))
    sent = run_message(run, left=left, quarantined=(), passed_over={})
    assert sent.body.count("not audio") == 3
    assert "and 2 more" in sent.body


def test_a_run_whose_chunks_were_quarantined_is_a_warning(at: Stage) -> None:
    (name,) = ready(at, 1)
    run = at_work(at)
    for earlier in range(at.config.max_attempts):
        fails(at, name, f"earlier-{earlier}")
    over(at, run, None)
    assert at.notes.messages[-1].level is Level.WARNING


def test_events_for_each_completed_session_and_for_the_run(at: Stage) -> None:
    ready(at, 2)
    tick(at.world, at.config)
    assert [kind for kind, _ in at.notes.events] == ["session.completed", "run.settled"]
    assert at.notes.events[0][1]["session"] == "s/"
