from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal
from unicodedata import normalize

import msgspec
import pytest

from batchscribe.cli.chunks import _describe_life
from batchscribe.controller.commands import redo as redoing
from batchscribe.controller.commands.redo import (
    Redone,
    find_by_key,
    find_by_session,
    find_stale,
    find_without_model,
    list_quarantined,
    quarantine,
    quarantine_failed,
    record_crash,
    redo,
    release_quarantined,
)
from batchscribe.controller.commands.why import read_history
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import (
    EngineSpec,
    Failure,
    FailureKind,
    Manifest,
    ManifestChunk,
    QuarantineRecord,
)
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import encode_run
from batchscribe.core.run.runs import RunState
from batchscribe.core.scan.backlog import ChunkState
from batchscribe.core.scan.folders import AudioObject, Side
from batchscribe.core.text import transcripts
from batchscribe.core.text.transcripts import AudioRef, Transcript
from batchscribe.errors import ObjectNotFoundError, StoreUnavailableError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support import values
from support.stores import NOW

OLD = NOW - timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def scanner(store: MemoryStore, clock: FakeClock) -> Scanner:
    return Scanner(store, store, clock=clock)


def told(model: str = "small.en", text: str = "hush") -> bytes:
    return transcripts.encode(
        Transcript(
            text=text,
            segments=(),
            duration=4.5,
            flags=("no-speech",),
            engine="faster-whisper",
            model=model,
            settings_hash="h",
            audio=AudioRef(name="a.mp3", key="a.mp3", etag="e"),
            run="r1",
            created_at=NOW,
        )
    )


def put(store: MemoryStore, *names: str, data: bytes | None = None) -> None:
    for name in names:
        store.place(name, name.encode() if data is None else data, modified=OLD)


def chunk(store: MemoryStore, key: str) -> ManifestChunk:
    return ManifestChunk(key=key, etag=store.get(key).etag, size=1, session="s/", transcript=f"{key}.json")


def manifest(store: MemoryStore, *names: str, run: str = "r1") -> Manifest:
    return Manifest(
        run=run,
        worker=0,
        release="1",
        source=store.url,
        output=store.url,
        deadline=NOW,
        engine=EngineSpec(engine="e"),
        settings_hash="h",
        chunks=tuple(chunk(store, name) for name in names),
    )


def fail(store: MemoryStore, key: str, run: str, **changes: Any) -> None:
    failure = Failure(
        key=key,
        etag=store.get(key).etag,
        run=run,
        kind=FailureKind.CHUNK,
        message=f"bad in {run}",
        at=NOW,
        decoder="av-1",
    )
    failure = msgspec.structs.replace(failure, **changes)
    store.create(keys.attempt(key, failure.etag, run), wire.encode(failure))


def pending(scanner: Scanner) -> list[str]:
    return [chunk.key for chunk in scanner.backlog().candidates]


def names(chosen: Sequence[AudioObject]) -> list[str]:
    return [audio.info.key for audio in chosen]


# Choosing.


def test_by_key(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "s/chunk-001.webm", "s/chunk-002.webm", "s/t/chunk-001.webm")
    assert names(find_by_key(scanner, "s/chunk-001.webm")) == ["s/chunk-001.webm"]
    for key in ("s/chunk-003.webm", "s/", "nothing"):
        with pytest.raises(ObjectNotFoundError, match="batchscribe scan"):
            find_by_key(scanner, key)


def test_by_session(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "s/chunk-001.webm", "s/chunk-002.webm", "s/t/chunk-001.webm", "s/talk.mp3", "chunk-001.ogg")
    assert names(find_by_session(scanner, "s/")) == ["s/chunk-001.webm", "s/chunk-002.webm"]
    assert names(find_by_session(scanner, "s/talk.mp3")) == ["s/talk.mp3"]
    assert names(find_by_session(scanner, "./")) == ["chunk-001.ogg"]
    with pytest.raises(ObjectNotFoundError):
        find_by_session(scanner, "u/")


def test_stale(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3", "b.mp3", "c.mp3", "transcription-b.json")
    store.place("transcription-a.json", told(), modified=OLD - timedelta(hours=1))
    assert names(find_stale(scanner)) == ["a.mp3"]


def test_model_not(store: MemoryStore, clock: FakeClock) -> None:
    output = MemoryStore(clock, url="memory://output")
    put(store, "a.mp3", "b.mp3", "c.mp3", "d.mp3", "e.mp3", "f.mp3")
    output.place("transcription-a.json", told("large-v3"))
    output.place("transcription-b.json", told("small.en"))
    store.place("transcription-c.json", told("small.en"))
    store.place("transcription-d.json", b'{"segments": []}')
    store.place("transcription-e.json", b"rubbish")
    scanner = Scanner(store, output, clock=clock)
    assert names(find_without_model(scanner, "small.en")) == ["a.mp3", "d.mp3", "e.mp3"]
    assert names(find_without_model(scanner, "large-v3")) == ["b.mp3", "c.mp3", "d.mp3", "e.mp3"]


# Moving aside.


def test_redo_keeps_the_old_and_the_chunk_is_pending_again(store: MemoryStore, scanner: Scanner) -> None:
    layer = "s/layers/layer-0-raw-transcription/chunk-001.json"
    put(store, "s/chunk-001.webm", "s/chunk-002.webm", "s/transcription-chunk-002.json")
    put(store, "s/transcription-chunk-001.json", data=told(text="old"))
    put(store, layer, data=b"original")
    fail(store, "s/chunk-001.webm", "r0")
    assert pending(scanner) == []
    (done,) = redo(scanner, find_by_key(scanner, "s/chunk-001.webm"), stamp="2026-11-23-120000")
    aside = "_batchscribe/superseded/2026-11-23-120000/"
    kept = (aside + layer, aside + "s/transcription-chunk-001.json")
    assert done == Redone("s/chunk-001.webm", "s/", kept)
    assert [store.get(key).data for key in kept] == [b"original", told(text="old")]
    assert pending(scanner) == ["s/chunk-001.webm"]
    assert scanner.backlog().troubled == 0


def test_a_transcript_of_the_source_is_kept_in_the_output(store: MemoryStore, clock: FakeClock) -> None:
    output = MemoryStore(clock, url="memory://output")
    put(store, "a.mp3")
    put(store, "transcription-a.json", data=b"in the source")
    put(output, "transcription-a.json", data=b"in the output")
    scanner = Scanner(store, output, clock=clock)
    (done,) = redo(scanner, find_by_key(scanner, "a.mp3"), stamp="now")
    assert sorted(output.get(key).data for key in done.kept) == [b"in the output", b"in the source"]
    assert store.keys() == ("a.mp3",)
    assert pending(scanner) == ["a.mp3"]


@pytest.mark.parametrize("method", ["create", "delete"])
@pytest.mark.parametrize("survived", range(4))
def test_a_crash_at_any_point_loses_no_transcript(
    store: MemoryStore, scanner: Scanner, method: str, survived: int
) -> None:
    put(store, "a.mp3", "transcription-a.json", "transcription-a.mp3.json")
    fail(store, "a.mp3", "r1")
    calls = iter(range(100))

    def crashing(called: str, _key: str) -> None:
        if called == method and next(calls) >= survived:
            raise StoreUnavailableError("gone")

    store.before = crashing
    try:
        list(redo(scanner, find_by_key(scanner, "a.mp3"), stamp="1"))
    except StoreUnavailableError:
        store.before = lambda _method, _key: None
        list(redo(scanner, find_by_key(scanner, "a.mp3"), stamp="2"))
    store.before = lambda _method, _key: None
    held = {store.get(key).data for key in store.keys("_batchscribe/superseded/")}
    assert held == {b"transcription-a.json", b"transcription-a.mp3.json"}
    assert pending(scanner) == ["a.mp3"]


def test_a_second_redo_of_one_moment_overwrites_nothing(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3", "transcription-a.json")
    store.place(keys.superseded("transcription-a.json", "1"), b"kept before")
    with pytest.raises(StoreUnavailableError, match="nothing was moved"):
        list(redo(scanner, find_by_key(scanner, "a.mp3"), stamp="1"))
    assert store.get("transcription-a.json").data == b"transcription-a.json"


def test_redo_releases_a_quarantined_chunk(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3")
    fail(store, "a.mp3", "r1")
    quarantine_failed(store, manifest(store, "a.mp3").chunks, max_attempts=1, now=NOW)
    assert pending(scanner) == []
    assert list(redo(scanner, find_by_key(scanner, "a.mp3"), stamp="1")) == [Redone("a.mp3", "a.mp3", ())]
    assert pending(scanner) == ["a.mp3"]


# Quarantine.


def test_only_a_chunks_own_failures_lead_there(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3", "b.mp3", "c.mp3", "d.mp3", "other.mp3")
    for run in ("r1", "r2", "r3"):
        fail(store, "a.mp3", run)
        fail(store, "b.mp3", run, kind=FailureKind.ARCHIVED if run == "r2" else FailureKind.CHUNK)
        fail(store, "c.mp3", run, etag="of-older-bytes")
        fail(store, "d.mp3", run, decoder=run)
        fail(store, "other.mp3", run)
    asked = manifest(store, "a.mp3", "b.mp3", "c.mp3", "d.mp3")
    (record,) = quarantine_failed(store, asked.chunks, max_attempts=3, now=NOW)
    assert (record.key, record.attempts, record.decoder, record.message) == ("a.mp3", 3, "av-1", "bad in r3")
    assert list_quarantined(store) == [record]
    assert scanner.backlog().quarantined == 1
    assert [each.key for each in quarantine_failed(store, asked.chunks, max_attempts=2, now=NOW)] == [
        "a.mp3",
        "b.mp3",
    ]


def test_verifying_reads_no_attempt_that_cannot_matter(store: MemoryStore) -> None:
    put(store, *(f"{number}.mp3" for number in range(50)))
    for number in range(50):
        fail(store, f"{number}.mp3", "r1")
    store.calls.clear()
    asked = manifest(store, *(f"{number}.mp3" for number in range(50)))
    store.calls.clear()
    assert quarantine_failed(store, asked.chunks, max_attempts=3, now=NOW) == []
    assert store.calls == {"list": 2}


def test_a_crash_is_blamed_once_on_what_was_in_flight(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3", "b.mp3")
    asked = manifest(store, "a.mp3", "b.mp3")
    for _again in range(2):
        assert record_crash(store, asked, ["a.mp3", "not-ours.mp3"], now=NOW) == ["a.mp3"]
    assert {chunk.key: chunk.failures for chunk in scanner.backlog().candidates} == {"a.mp3": 1, "b.mp3": 0}
    record_crash(store, manifest(store, "a.mp3", run="r2"), ["a.mp3"], now=NOW)
    assert [each.attempts for each in quarantine_failed(store, asked.chunks, max_attempts=2, now=NOW)] == [2]


def record(**changes: Any) -> QuarantineRecord:
    values: dict[str, Any] = {
        "key": "a.mp3",
        "etag": "e1",
        "decoder": "av-1",
        "attempts": 3,
        "message": "m",
        "at": NOW,
    }
    return QuarantineRecord(**(values | changes))


def test_a_quarantine_stands_until_bytes_or_decoder_change(store: MemoryStore) -> None:
    quarantine(store, record())
    quarantine(store, record(message="again"))
    assert list_quarantined(store) == [record()]
    quarantine(store, record(etag="e2"))
    assert list_quarantined(store) == [record(etag="e2")]
    store.place(keys.quarantine("a.mp3"), b"rubbish")
    quarantine(store, record(decoder="av-2"))
    assert list_quarantined(store) == [record(decoder="av-2")]


def test_release_forgets_the_failures_too(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3", "b.mp3", "c.mp3")
    for name in ("a.mp3", "b.mp3"):
        fail(store, name, "r1")
    quarantine_failed(store, manifest(store, "a.mp3", "b.mp3").chunks, max_attempts=1, now=NOW)
    with pytest.raises(ObjectNotFoundError, match="not quarantined"):
        release_quarantined(store, ["a.mp3", "c.mp3"])
    assert len(list_quarantined(store)) == 2
    assert release_quarantined(store, ["a.mp3"]) == ["a.mp3"]
    assert [each.key for each in list_quarantined(store)] == ["b.mp3"]
    assert release_quarantined(store) == ["b.mp3"]
    assert scanner.backlog().triggering == 3
    assert release_quarantined(store) == []


@pytest.mark.parametrize("chosen", [None, ["a.mp3"], [keys.quarantine("a.mp3")]])
def test_a_quarantine_that_cannot_be_read_is_listed_and_released(
    store: MemoryStore, scanner: Scanner, chosen: list[str] | None
) -> None:
    put(store, "a.mp3")
    fail(store, "a.mp3", "r1")
    store.place(keys.quarantine("a.mp3"), b"{")
    assert [each.key for each in list_quarantined(store)] == [keys.quarantine("a.mp3")]
    assert len(release_quarantined(store, chosen)) == 1
    backlog = scanner.backlog()
    assert (backlog.quarantined, backlog.triggering) == (0, 1)


def test_a_release_that_breaks_off_leaves_the_chunk_quarantined(store: MemoryStore) -> None:
    put(store, "a.mp3")
    fail(store, "a.mp3", "r1")
    quarantine_failed(store, manifest(store, "a.mp3").chunks, max_attempts=1, now=NOW)

    def breaking(method: str, key: str) -> None:
        if method == "delete" and key.startswith(keys.QUARANTINE):
            raise StoreUnavailableError("gone")

    store.before = breaking
    with pytest.raises(StoreUnavailableError):
        redoing.release_quarantined(store)
    assert len(list_quarantined(store)) == 1


# Why.


def test_the_whole_life_of_a_chunk(store: MemoryStore, scanner: Scanner, clock: FakeClock) -> None:
    put(store, "s/chunk-001.webm")
    for number, name in enumerate(("r1", "r2")):
        asked = manifest(store, "s/chunk-001.webm", run=name)
        store.place(keys.manifest(name, 0), wire.encode(asked), modified=OLD + timedelta(minutes=number))
    settled = values.run(id="r1", state=RunState.SETTLED, outcome=Outcome.COMPLETED, settled=NOW)
    store.place(keys.settlement("r1"), encode_run(settled))
    store.place(keys.manifest("r3", 0), b'{"version": 99}')
    fail(store, "s/chunk-001.webm", "r2", at=NOW)
    fail(store, "s/chunk-001.webm", "r1", at=OLD, etag="older-bytes")
    life = read_history(scanner, "s/chunk-001.webm")
    assert (life.state, life.session, life.planned) == (
        ChunkState.PENDING,
        "s/",
        "s/transcription-chunk-001.json",
    )
    assert (life.failures[0].run, life.failures[0].etag) == ("r1", "older-bytes")
    assert [(each.run, each.outcome) for each in life.runs] == [("r1", "completed"), ("r2", None)]
    assert (life.transcripts, life.quarantine) == ((), None)

    store.place("s/transcription-chunk-001.json", told(text="a secret"), modified=OLD - timedelta(hours=1))
    quarantine(store, record(key="s/chunk-001.webm"))
    life = read_history(scanner, "s/chunk-001.webm")
    (transcript,) = life.transcripts
    assert (life.state, life.stale, life.quarantine is not None) == (ChunkState.DONE, True, True)
    assert (transcript.model, transcript.run, transcript.duration, transcript.side) == (
        "small.en",
        "r1",
        4.5,
        Side.BOTH,
    )
    assert "a secret" not in repr(life)


def test_why_says_what_a_transcript_says_of_itself(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3")
    put(store, "transcription-a.json", data=told())
    (line,) = [line for line in _describe_life(read_history(scanner, "a.mp3")) if "transcribed" in line]
    assert "by faster-whisper small.en [no-speech]" in line


def test_why_names_a_transcript_that_cannot_be_read(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3")
    put(store, "transcription-a.json", data=told()[:50])
    life = read_history(scanner, "a.mp3")
    assert life.state is ChunkState.DONE
    (line,) = [line for line in _describe_life(life) if "unreadable" in line]
    assert "`batchscribe redo a.mp3`" in line
    assert "not a transcript" in line


def test_redo_moves_an_empty_transcript_aside_too(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3")
    put(store, "transcription-a.json", data=b"")
    (redone,) = redo(scanner, find_by_key(scanner, "a.mp3"), stamp="now")
    assert redone.kept == (keys.superseded("transcription-a.json", "now"),)
    assert store.keys("transcription-") == ()


def test_why_of_audio_that_is_gone(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3")
    fail(store, "a.mp3", "r1")
    store.delete("a.mp3")
    life = read_history(scanner, "a.mp3")
    assert (life.state, life.audio, len(life.failures)) == (None, None, 1)


def test_why_of_nothing(scanner: Scanner) -> None:
    with pytest.raises(ObjectNotFoundError, match="no record of"):
        read_history(scanner, "never.mp3")
    with pytest.raises(ObjectNotFoundError, match="not the key of an audio file"):
        read_history(scanner, "notes.txt")


@pytest.mark.parametrize(("stored", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_why_finds_a_key_whose_accents_are_composed_otherwise(
    store: MemoryStore, scanner: Scanner, stored: Literal["NFC", "NFD"], asked: Literal["NFC", "NFD"]
) -> None:
    key = normalize(stored, "Café/Gespräch.mp3")
    put(store, key, "Other.mp3")
    life = read_history(scanner, normalize(asked, key))
    assert (life.key, life.state) == (key, ChunkState.PENDING)


def test_why_takes_the_key_as_it_is_asked_if_both_are_there(store: MemoryStore, scanner: Scanner) -> None:
    both = [normalize("NFC", "é-è.mp3"), normalize("NFD", "é-è.mp3")]
    put(store, *both)
    assert [read_history(scanner, key).key for key in both] == both
    with pytest.raises(ObjectNotFoundError, match="no record of"):
        read_history(scanner, both[0][0] + both[1][1:])


def test_a_final_failure_is_enough(store: MemoryStore, scanner: Scanner) -> None:
    put(store, "a.mp3", "b.mp3")
    asked = manifest(store, "a.mp3", "b.mp3")
    reported = [
        Failure(key=chunk.key, etag=chunk.etag, run="r1", kind=kind, message="never", at=NOW, decoder="av-1")
        for chunk, kind in zip(asked.chunks, (FailureKind.REFUSED, FailureKind.CHUNK), strict=True)
    ]
    store.calls.clear()
    (held,) = quarantine_failed(store, asked.chunks, max_attempts=3, now=NOW, reported=reported)
    assert (held.key, held.attempts, held.decoder, held.message) == ("a.mp3", 1, "av-1", "never")
    assert store.calls.get("get", 0) == 0
    assert pending(scanner) == ["b.mp3"]
    other = [msgspec.structs.replace(reported[0], etag="of-older-bytes")]
    assert quarantine_failed(store, asked.chunks, max_attempts=3, now=NOW, reported=other) == []
