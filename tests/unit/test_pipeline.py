from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from batchscribe import __version__
from batchscribe.audio.audio_decoder import AudioDecoder, Decoding
from batchscribe.audio.bounded_queue import BoundedQueue, ByteBudget
from batchscribe.audio.windows import Samples
from batchscribe.core import keys
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    Failure,
    FailureKind,
    Limits,
    Manifest,
    ManifestChunk,
    Phase,
    Progress,
    WorkerEnd,
    decode,
    select_counted,
)
from batchscribe.core.scan.chunks import audio_name
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.transcripts import Transcript
from batchscribe.errors import (
    EngineError,
    MisconfiguredError,
    OutOfMemoryError,
    PermanentError,
    StoreUnavailableError,
)
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.engine import ScriptedEngine, counting
from batchscribe.testing.store import MemoryStore
from batchscribe.worker import feeding
from batchscribe.worker.pipeline import ConcurrencySettings, run_worker
from batchscribe.worker.progress import Ending, ProgressTracker
from batchscribe.worker.records import Records
from support.audio import encode, silent_flac, sine
from support.films import Track, film
from support.recorder import at_clusters, webm


def bursts(*begins: int, seconds: float = 2) -> Samples:
    """A tone at each of these seconds, and silence around it."""
    audio = np.zeros(int((max(begins) + 2 * seconds) * 16_000), np.float32)
    for begin in begins:
        audio[begin * 16_000 :][: int(seconds * 16_000)] = sine(seconds)
    return audio


def loud(audio: Samples) -> list[tuple[int, int]]:
    """Whatever is not silent, in half seconds."""
    halves = [bool(np.abs(audio[at : at + 8_000]).max() > 0.1) for at in range(0, len(audio), 8_000)]
    edges = [int(edge) * 8_000 for edge in np.flatnonzero(np.diff([False, *halves, False]))]
    return list(zip(edges[::2], edges[1::2], strict=True))


START = datetime(2024, 5, 1, 12, tzinfo=UTC)
ONE_SECOND = encode(sine(1), "webm")
TWO_SECONDS = encode(sine(2), "flac")


class Watch:
    """A clock that goes on by a millisecond at each look, or to where a test puts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic())

    def boot(self) -> str:
        return "watch"

    def monotonic(self) -> float:
        with self._lock:
            self.seconds += 0.001
            return self.seconds

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def all_speech(audio: Samples) -> list[tuple[int, int]]:
    return [(0, len(audio))]


def etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class KeptDecoder(AudioDecoder):
    """Stays open for the next worker: the start of its process takes longer than most tests."""

    idle: ClassVar[list[AudioDecoder]] = []

    def __exit__(self, *_: object) -> None:
        self.idle.append(self)

    @classmethod
    def take(cls) -> AudioDecoder:
        return cls.idle.pop() if cls.idle else cls()


@pytest.fixture(scope="module", autouse=True)
def close_decoders() -> Iterator[None]:
    yield
    while KeptDecoder.idle:
        KeptDecoder.idle.pop().close()


@dataclass
class Bench:
    """A bucket, a manifest over it, and a worker."""

    clock: Watch = field(default_factory=Watch)
    engine: Any = field(default_factory=ScriptedEngine)
    stop: threading.Event = field(default_factory=threading.Event)
    files: dict[str, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    loads: int = 0

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)
        self.changed: dict[str, str] = {}

    def add(self, name: str, data: bytes = ONE_SECOND) -> str:
        key = f"s/{name}"
        self.store.place(key, data)
        self.files[key] = data
        return key

    def chunk(self, key: str) -> ManifestChunk:
        data = self.files[key]
        tag = self.changed.get(key, etag(data))
        transcript = f"s/transcription-{key.rpartition('/')[2].rpartition('.')[0]}.json"
        name = audio_name(key)
        assert name is not None
        return ManifestChunk(key=key, etag=tag, size=len(data), session=name.session, transcript=transcript)

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            run="run-1",
            worker=0,
            release=__version__,
            source=self.store.url,
            output=self.store.url,
            deadline=START + timedelta(hours=1),
            engine=EngineSpec(engine="scripted", model="none"),
            settings_hash="hash",
            limits=self.limits,
            chunks=tuple(map(self.chunk, self.files)),
        )

    def load(self) -> Any:
        self.loads += 1
        return self.engine

    def run(
        self,
        *,
        load: Callable[[], Any] | None = None,
        find_speech: Any = all_speech,
        progress_seconds: float = 0.05,
    ) -> ExitRecord:
        before = set(threading.enumerate())
        record = run_worker(
            self.manifest,
            source=self.store,
            output=self.store,
            load=load or self.load,
            find_speech=find_speech,
            new_decoder=KeptDecoder.take,
            clock=self.clock,
            should_stop=self.stop.is_set,
            concurrency=ConcurrencySettings(
                fetchers=1, decoders=1, timelines=1, publishers=1, progress_seconds=progress_seconds
            ),
        )
        assert record == self.stored(keys.exit_record("run-1", 0), ExitRecord)
        assert set(threading.enumerate()) <= before, "the worker leaves no thread behind"
        return record

    def stored(self, key: str, kind: Any) -> Any:
        return decode(self.store.get(key).data, kind)

    def progress(self) -> Progress:
        found: Progress = self.stored(keys.progress("run-1", 0), Progress)
        return found

    def later(self, true: Callable[[Progress], bool]) -> Progress:
        """Looks at the progress again and again, a bounded number of times."""
        for _ in range(600):
            if true(now := self.progress()):
                return now
            threading.Event().wait(0.05)
        pytest.fail("the progress never came to it")

    def written(self, number: int) -> Progress:
        """The progress object of that number, or a later one."""
        return self.later(lambda now: now.sequence >= number)

    def transcript(self, key: str) -> Transcript:
        return msgspec.json.decode(self.store.get(self.chunk(key).transcript).data, type=Transcript)

    def has(self, key: str) -> bool:
        return next(iter(self.store.list(key)), None) is not None

    def done(self) -> set[str]:
        return {key for key in self.files if self.has(self.chunk(key).transcript)}

    def failure(self, key: str) -> Failure:
        found: Failure = self.stored(keys.attempt(key, self.chunk(key).etag, "run-1"), Failure)
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_every_chunk_gets_its_transcript(bench: Bench) -> None:
    bench.add("note-001.webm")
    bench.add("note-002.flac", TWO_SECONDS)
    record = bench.run()
    assert record.end is WorkerEnd.FINISHED
    assert (record.tally.done, record.tally.failed, record.tally.skipped) == (2, 0, 0)
    assert record.tally.audio_seconds == pytest.approx(3, abs=0.1)
    assert record.seconds_by_type["flac"] == 2
    assert record.bytes_by_type == {"webm": len(ONE_SECOND), "flac": len(TWO_SECONDS)}
    assert bench.loads == 1
    assert record.device == "double"
    second = bench.transcript("s/note-002.flac")
    assert second.text == "w0 w1"
    assert second.audio.etag == etag(TWO_SECONDS)
    assert second.audio.name == "note-002.flac"
    assert (second.engine, second.model, second.settings_hash) == ("scripted", "scripted", "hash")
    assert (second.run, second.language, second.flags, second.duration) == ("run-1", "en", (), 2)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_windows_keep_the_clock_of_their_chunk_in_whatever_order_they_come_back(size: int) -> None:
    bench = Bench(engine=ScriptedEngine(batch_size=size, script=lambda window: f"at{window.start:g}"))
    key = bench.add("long.flac", encode(bursts(1, 70, 140), "flac"))
    bench.run(find_speech=loud)
    heard = bench.transcript(key)
    assert heard.text == "at1 at70 at140"
    assert [segment.start for segment in heard.segments] == [1, 70, 140]
    assert heard.segments[2].words[0].end == 142


def test_no_speech_is_a_success(bench: Bench) -> None:
    key = bench.add("quiet.webm")
    assert bench.run(find_speech=lambda _audio: ()).tally.done == 1
    heard = bench.transcript(key)
    assert (heard.text, heard.segments, heard.flags) == ("", (), ("no-speech",))
    assert heard.duration == pytest.approx(1, abs=0.1)


def test_a_torn_file_is_transcribed_and_flagged(bench: Bench) -> None:
    whole = encode(sine(20), "flac")
    key = bench.add("torn.flac", whole[: len(whole) // 2])
    assert bench.run().tally.done == 1
    assert bench.transcript(key).flags == ("partial",)


def test_one_bad_file_costs_one_file(bench: Bench) -> None:
    bench.add("note-001.webm")
    bad = bench.add("note-002.webm", b"ffconcat version 1.0\nfile note-001.webm\n")
    empty = bench.add("note-003.webm", b"")
    bench.add("note-004.webm")
    record = bench.run()
    assert record.end is WorkerEnd.FINISHED
    assert (record.tally.done, record.tally.failed) == (2, 2)
    assert bench.done() == {"s/note-001.webm", "s/note-004.webm"}
    for key in (bad, empty):
        failure = bench.failure(key)
        assert failure.kind is (FailureKind.REFUSED if key == bad else FailureKind.CHUNK)
        assert failure.decoder.startswith("pyav")
        assert failure in record.failures


def test_a_piece_without_sound_of_its_own_is_no_success(bench: Bench) -> None:
    """It was cut off in its first packet: its decoder only hears what leads to it."""
    first, second, *_ = at_clusters(webm(sine(20), cluster_seconds=2.0))
    bench.add("chunk-001.webm", first)
    torn = bench.add("chunk-002.webm", second[:80])
    record = bench.run()
    assert (record.tally.done, record.tally.failed) == (1, 1)
    assert bench.failure(torn).kind is FailureKind.CHUNK
    assert "no audio" in bench.failure(torn).message


def test_damage_behind_good_windows_fails_the_whole_chunk() -> None:
    bench = Bench(limits=Limits(max_audio_seconds=50))
    key = bench.add("note-001.webm", encode(sine(70), "webm"))
    other = bench.add("note-002.webm")
    record = bench.run()
    assert "limit" in bench.failure(key).message
    assert bench.done() == {other}
    assert len(record.failures) == 1


def test_what_is_done_already_is_not_done_again(bench: Bench) -> None:
    key = bench.add("note-001.webm")
    bench.store.place(bench.chunk(key).transcript, b"{}")
    bench.add("note-002.webm")
    record = bench.run()
    assert (record.tally.done, record.tally.skipped) == (1, 1)
    assert len(bench.engine.transcribed) == 1
    assert bench.store.get(bench.chunk(key).transcript).data == b"{}"


def test_chunks_that_need_no_work_make_room_for_those_that_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "FETCHED_BYTES", 1)
    for number in range(3):
        bench.store.place(bench.chunk(bench.add(f"done-{number}.webm")).transcript, b"{}")
    bench.add("new-1.webm")
    bench.add("new-2.webm")
    record = bench.run()
    assert (record.tally.done, record.tally.skipped) == (2, 3)


def test_a_neighbour_who_was_faster_wins(bench: Bench) -> None:
    key = bench.add("note-001.webm")

    def neighbour(method: str, name: str) -> None:
        if method == "create" and name == bench.chunk(key).transcript:
            bench.store.place(name, b'{"text": "a neighbour"}')

    bench.store.before = neighbour
    record = bench.run()
    assert (record.tally.done, record.tally.skipped, record.end) == (0, 1, WorkerEnd.FINISHED)


def test_changed_gone_and_archived_objects_do_not_count_against_the_chunk(bench: Bench) -> None:
    changed, gone, archived = (bench.add(f"note-00{n}.webm") for n in (1, 2, 3))
    bench.changed[changed] = "another-etag"
    bench.store.delete(gone)
    bench.store.archived.add(archived)
    bench.run()
    failures = [bench.failure(key) for key in (changed, gone, archived)]
    kinds = [failure.kind for failure in failures]
    assert kinds == [FailureKind.CHANGED, FailureKind.CHANGED, FailureKind.ARCHIVED]
    assert select_counted(failures) == []


def test_an_object_beyond_the_limit_is_not_even_fetched() -> None:
    bench = Bench(limits=Limits(max_object_bytes=10))
    key = bench.add("note-001.webm")
    bench.run()
    assert bench.failure(key).kind is FailureKind.CHUNK
    assert "BATCH_MAX_OBJECT_MB" in bench.failure(key).message


def test_a_store_in_trouble_is_the_machines_fault(bench: Bench) -> None:
    key = bench.add("note-001.webm")
    other = bench.add("note-002.webm")

    def trouble(method: str, name: str) -> None:
        if method == "get" and name == key:
            raise StoreUnavailableError("503")

    bench.store.before = trouble
    bench.run()
    assert bench.failure(key).kind is FailureKind.MACHINE
    assert bench.done() == {other}


def test_an_empty_object_in_the_place_of_a_transcript_is_moved_aside(bench: Bench) -> None:
    key = bench.add("chunk-001.webm")
    bench.store.place(place := bench.chunk(key).transcript, b"")
    record = bench.run()
    assert (record.tally.done, record.tally.skipped) == (1, 0)
    assert bench.done() == {key}
    assert bench.store.get(keys.superseded(place, "run-1")).data == b""
    assert json.loads(bench.store.get(place).data)["run"] == "run-1"


def test_a_transcript_that_cannot_be_stored_is_a_failure(bench: Bench) -> None:
    key = bench.add("note-001.webm")

    def full(method: str, name: str) -> None:
        if method == "create" and name.startswith("s/"):
            raise StoreUnavailableError("507 full")

    bench.store.before = full
    record = bench.run()
    assert (record.tally.done, record.tally.failed) == (0, 1)
    assert bench.failure(key).kind is FailureKind.MACHINE


def test_a_transcript_that_is_refused_for_good_counts_against_its_chunk(bench: Bench) -> None:
    key = bench.add("note-001.webm")
    other = bench.add("note-002.webm")

    def refuse(method: str, name: str) -> None:
        if method == "create" and name == bench.chunk(key).transcript:
            raise PermanentError("the name is too long")

    bench.store.before = refuse
    assert bench.run().end is WorkerEnd.FINISHED
    assert bench.failure(key).kind is FailureKind.CHUNK
    assert bench.done() == {other}


def test_no_right_to_read_ends_the_worker(bench: Bench) -> None:
    for number in range(5):
        bench.add(f"note-00{number}.webm")

    def forbidden(method: str, name: str) -> None:
        if method == "get" and name.endswith(".webm"):
            raise MisconfiguredError("no right to read: allow s3:GetObject")

    bench.store.before = forbidden
    record = bench.run()
    assert record.end is WorkerEnd.FAILED
    assert "s3:GetObject" in record.message
    assert not record.failures


def test_an_engine_that_does_not_load_fails_the_worker_and_nobody_else(bench: Bench) -> None:
    bench.add("note-001.webm")

    def load() -> Any:
        raise MisconfiguredError("the model is not here")

    record = bench.run(load=load)
    assert (record.end, record.message) == (WorkerEnd.FAILED, "the model is not here")
    assert not record.failures


def test_a_mistake_of_ours_is_told_without_what_was_said(bench: Bench) -> None:
    bench.add("note-001.webm")

    def script(_window: Window) -> str:
        raise KeyError("my secret sentence")

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert record.end is WorkerEnd.FAILED
    assert "KeyError" in record.message
    assert "secret" not in record.message


def test_a_mistake_in_a_thread_ends_the_worker(bench: Bench) -> None:
    for number in range(3):
        bench.add(f"note-00{number}.webm")

    def broken(_audio: Samples) -> Any:
        raise ZeroDivisionError

    record = bench.run(find_speech=broken)
    assert record.end is WorkerEnd.FAILED
    assert "timeline thread" in record.message


def test_a_chunk_that_breaks_the_engine_is_to_blame_when_the_engine_goes_on(bench: Bench) -> None:
    for number in range(4):
        bench.add(f"note-00{number}.webm")
    poison = bench.add("poison.flac", TWO_SECONDS)
    bench.add("later.webm")

    def script(window: Window) -> str:
        if window.seconds == 2:
            raise EngineError("choked")
        return "fine"

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert record.end is WorkerEnd.FINISHED
    assert bench.done() == set(bench.files) - {poison}
    assert bench.failure(poison).kind is FailureKind.CHUNK
    assert record.tally.failed == 1


def test_a_chunk_that_breaks_the_engine_first_of_all_is_to_blame_once_there_is_a_result(bench: Bench) -> None:
    poison = bench.add("note-000.flac", TWO_SECONDS)
    good = bench.add("note-001.webm")

    def script(window: Window) -> str:
        if window.seconds == 2:
            raise EngineError("choked")
        return "fine"

    bench.engine = ScriptedEngine(script=script)
    assert bench.run().end is WorkerEnd.FINISHED
    assert bench.failure(poison).kind is FailureKind.CHUNK
    assert bench.done() == {good}


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_small_batch_on_a_broken_engine_blames_no_audio(bench: Bench, chunks: int) -> None:
    for number in range(chunks):
        bench.add(f"note-00{number}.webm")

    def script(_window: Window) -> str:
        raise EngineError("cuBLAS is not found")

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert record.end is WorkerEnd.FAILED
    assert "failed before its first result: cuBLAS is not found" in record.message
    assert [failure.kind for failure in record.failures] == [FailureKind.MACHINE] * chunks


def test_an_engine_that_breaks_now_and_then_is_not_broken(bench: Bench) -> None:
    for number in range(12):
        bench.add(f"note-{number:03}.webm", TWO_SECONDS if number % 2 else ONE_SECOND)

    def script(window: Window) -> str:
        if window.seconds == 2:
            raise EngineError("choked")
        return "fine"

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert (record.end, record.tally.done, record.tally.failed) == (WorkerEnd.FINISHED, 6, 6)
    assert bench.progress().results == 6
    assert {failure.kind for failure in record.failures} == {FailureKind.CHUNK}


def test_an_engine_that_breaks_on_everything_is_to_blame_itself(bench: Bench) -> None:
    for number in range(5):
        bench.add(f"note-00{number}.webm")

    def script(_window: Window) -> str:
        raise EngineError("CUDA error")

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert record.end is WorkerEnd.FAILED
    assert "CUDA error" in record.message
    assert {failure.kind for failure in record.failures} == {FailureKind.MACHINE}
    assert record.tally.seen <= 3


def test_an_engine_that_swallows_a_window_is_found_out(bench: Bench) -> None:
    bench.add("note-001.webm")

    class Swallows(ScriptedEngine):
        def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
            yield from ()

    bench.engine = Swallows()
    record = bench.run()
    assert record.tally.failed == 1
    assert "no result" in record.failures[0].message
    assert record.failures[0].kind is FailureKind.MACHINE


@dataclass
class Watched(ScriptedEngine):
    """Notes each batch and what was prepared before it; `room` is how many windows fit into its memory."""

    batch_size: int = 4
    room: int = 100
    batches: list[list[int]] = field(default_factory=list)
    prepared: set[int] = field(default_factory=set)
    hurried: int = 0

    def prepare(self, batch: Sequence[Window]) -> None:
        self.prepared |= {window.id for window in batch}
        raise EngineError("not ready yet")

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        self.batches.append([window.id for window in batch])
        assert self.prepared.issuperset(self.batches[-1])
        if len(batch) > self.room:
            raise OutOfMemoryError("out of memory")
        yield from super().transcribe(batch)

    def hurry(self) -> None:
        self.hurried += 1


def decoded_first(bench: Bench, engine: ScriptedEngine, chunks: int) -> ExitRecord:
    """Runs a worker whose engine loads when all chunks are decoded."""
    for number in range(chunks):
        bench.add(f"note-{number:03}.webm")
    bench.engine = engine
    decoded: list[int] = []

    def find_speech(audio: Samples) -> list[tuple[int, int]]:
        decoded.append(len(audio))
        return all_speech(audio)

    def load() -> Any:
        bench.later(lambda now: len(decoded) == chunks and not now.in_flight)
        return engine

    return bench.run(load=load, find_speech=find_speech)


def test_the_worker_makes_the_batches_and_has_each_prepared(bench: Bench) -> None:
    engine = Watched()
    assert decoded_first(bench, engine, 10).tally.done == 10
    assert [len(batch) for batch in engine.batches] == [4, 4, 2]
    assert engine.prepared == set(range(10)), "an error while preparing is dropped"
    assert not engine.hurried


def test_the_next_batch_is_prepared_while_one_is_transcribed_and_no_more(bench: Bench) -> None:
    prepared: list[int] = []
    ready = threading.Event()
    seen: list[int] = []

    class Ahead(ScriptedEngine):
        def prepare(self, batch: Sequence[Window]) -> None:
            prepared.extend(window.id for window in batch)
            if len(prepared) == 4:
                ready.set()

        def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
            assert ready.wait(30), "the next batch waits for this one"
            seen.append(len(prepared))
            yield from super().transcribe(batch)

    assert decoded_first(bench, Ahead(batch_size=2), 6).tally.done == 6
    assert seen[0] == 4
    assert len(prepared) == 6


def test_a_batch_too_large_for_the_memory_is_halved_and_costs_no_chunk(bench: Bench) -> None:
    engine = Watched(batch_size=8, room=3)
    record = decoded_first(bench, engine, 12)
    assert (record.end, record.tally.done, record.failures) == (WorkerEnd.FINISHED, 12, ())
    assert [len(batch) for batch in engine.batches[:3]] == [8, 4, 2]
    assert {len(batch) for batch in engine.batches[2:]} == {2}
    assert sorted(engine.transcribed) == list(range(12)), "each window is transcribed once"


def test_too_little_memory_for_one_window_is_a_broken_engine(bench: Bench) -> None:
    record = decoded_first(bench, Watched(batch_size=2, room=0), 2)
    assert record.end is WorkerEnd.FAILED
    assert "out of memory" in record.message
    assert {failure.kind for failure in record.failures} == {FailureKind.MACHINE}


def test_a_result_is_published_while_others_of_its_batch_are_not_ready(bench: Bench) -> None:
    published: list[int] = []

    class Slow(ScriptedEngine):
        def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
            for recognition in super().transcribe(batch):
                yield recognition
                published.append(recognition.window)
                bench.later(lambda now: now.tally.done == len(published))

    assert decoded_first(bench, Slow(batch_size=3), 3).tally.done == 3
    assert sorted(published) == [0, 1, 2]


def test_a_stop_within_a_batch_hurries_the_engine_and_finishes_that_batch_only(bench: Bench) -> None:
    def script(_window: Window) -> str:
        bench.stop.set()
        return "said"

    engine = Watched(script)
    record = decoded_first(bench, engine, 10)
    assert (record.end, record.tally.done) == (WorkerEnd.STOPPED, 4)
    assert engine.hurried == 4
    assert len(engine.batches) == 1


def stopping(bench: Bench, act: Callable[[], None]) -> ExitRecord:
    """Runs ten chunks and acts while the third is in the engine."""
    for number in range(10):
        bench.add(f"note-{number:03}.webm")
    seen: list[int] = []

    def script(window: Window) -> str:
        seen.append(window.id)
        if len(seen) == 3:
            act()
        return "said"

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert len(seen) == 3
    return record


def test_a_stop_finishes_the_window_and_publishes_what_is_whole(bench: Bench) -> None:
    record = stopping(bench, bench.stop.set)
    assert record.end is WorkerEnd.STOPPED
    assert record.tally.done == len(bench.done()) == 3
    assert "7 chunks left" in record.message
    assert not record.failures


def test_the_deadline_is_a_stop(bench: Bench) -> None:
    record = stopping(bench, lambda: bench.clock.sleep(3601))
    assert record.end is WorkerEnd.STOPPED
    assert record.message.startswith("the deadline passed")
    assert record.tally.done == 3


def test_half_a_chunk_is_never_published(bench: Bench) -> None:
    key = bench.add("long.flac", encode(sine(90), "flac"))

    def script(_window: Window) -> str:
        bench.stop.set()
        return "half"

    bench.engine = ScriptedEngine(script=script)
    record = bench.run()
    assert record.end is WorkerEnd.STOPPED
    assert not bench.has(bench.chunk(key).transcript)
    assert not record.failures


def test_a_stop_ends_the_decoding_of_a_long_file(bench: Bench) -> None:
    bench.add("hours.flac", silent_flac(2))
    blocks: list[int] = []

    def find_speech(audio: Samples) -> tuple[()]:
        blocks.append(len(audio))
        bench.stop.set()
        return ()

    record = bench.run(find_speech=find_speech)
    assert (record.end, record.tally.seen) == (WorkerEnd.STOPPED, 0)
    assert len(blocks) == 1


def test_after_a_stop_nothing_more_is_decoded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        bench.add(f"note-{number:03}.webm")
    decoded: list[int] = []
    decode_one = AudioDecoder.decode

    def counted(decoder: AudioDecoder, data: bytes, **more: Any) -> Decoding:
        decoded.append(len(data))
        return decode_one(decoder, data, **more)

    def find_speech(audio: Samples) -> list[tuple[int, int]]:
        bench.later(lambda _now: bench.store.calls["get"] >= 20)
        bench.stop.set()
        return all_speech(audio)

    monkeypatch.setattr(AudioDecoder, "decode", counted)
    monkeypatch.setattr(feeding, "DECODED_CHUNKS", 2)

    record = bench.run(find_speech=find_speech)
    assert record.end is WorkerEnd.STOPPED
    assert not record.failures
    assert len(decoded) <= 3


def test_the_bytes_of_a_chunk_are_let_go_once_its_decoder_has_them(bench: Bench) -> None:
    data = silent_flac(0.05, stated=False)
    bench.add("note-001.flac", data)
    before = sys.getrefcount(data)
    held: list[int] = []

    def find_speech(_audio: Samples) -> tuple[()]:
        for _ in range(100):
            if sys.getrefcount(data) <= before:
                break
            threading.Event().wait(0.05)
        held.append(sys.getrefcount(data) - before)
        return ()

    assert bench.run(find_speech=find_speech).tally.done == 1
    assert set(held) == {0}


def test_who_enters_the_engine_is_named_in_the_store_before_and_who_waits_is_not(bench: Bench) -> None:
    chunks = [bench.add(f"note-{number:03}.webm") for number in range(5)]
    named: list[tuple[str, ...]] = []
    decoded: list[int] = []

    def find_speech(audio: Samples) -> list[tuple[int, int]]:
        decoded.append(len(audio))
        return all_speech(audio)

    def load() -> Any:
        bench.later(lambda now: len(decoded) == 5 and not now.in_flight)
        return bench.engine

    def script(_window: Window) -> str:
        named.append(bench.progress().in_flight)
        assert bench.written(bench.progress().sequence + 2).in_flight == named[-1], "no other is chosen yet"
        return "said"

    bench.engine = ScriptedEngine(script=script)
    bench.run(load=load, find_speech=find_speech)
    assert named == [(key,) for key in chunks]


def test_naming_costs_one_write_a_chunk_at_most(bench: Bench) -> None:
    for number in range(3):
        bench.add(f"long-{number}.flac", encode(bursts(1, 70, 140), "flac"))
    told = listening(bench)
    assert bench.run(find_speech=loud, progress_seconds=3600).tally.done == 3
    assert len(told) <= 3 + len(Phase)


def test_a_batch_is_named_before_it_is_heard_and_while_the_one_before_is(bench: Bench) -> None:
    """The store does not take the names of the second batch before the first one is in the engine."""
    chunks = [bench.add(f"note-{number:03}.webm") for number in range(4)]
    decoded: list[int] = []
    decoding = threading.Event()
    named: list[tuple[str, ...]] = []
    replace = bench.store.replace

    def find_speech(audio: Samples) -> list[tuple[int, int]]:
        decoded.append(len(audio))
        return all_speech(audio)

    def load() -> Any:
        bench.later(lambda now: len(decoded) == 4 and not now.in_flight)
        return bench.engine

    def slow(key: str, data: bytes) -> None:
        if key == keys.progress("run-1", 0) and set(chunks[2:]) <= set(decode(data, Progress).in_flight):
            assert decoding.wait(30), "the engine waits for the store"
        replace(key, data)

    def script(_window: Window) -> str:
        named.append(bench.progress().in_flight)
        decoding.set()
        return "said"

    bench.engine = ScriptedEngine(script, batch_size=2)
    bench.store.replace = slow  # type: ignore[method-assign]
    assert bench.run(load=load, find_speech=find_speech).tally.done == 4
    first, second = map(set, (chunks[:2], chunks[2:]))
    assert all(first <= set(each) for each in named[:2])
    assert second <= set(named[2])


def test_an_engine_that_waits_for_the_store_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add("note-001.webm")
    bench.add("note-002.webm")
    replace, count, waits = bench.store.replace, ProgressTracker.count_starved, threading.Event()

    @contextmanager
    def counted(tracker: ProgressTracker, stage: str = "") -> Iterator[None]:
        with count(tracker, stage):
            if stage == "progress":
                waits.set()
            yield

    def slow(key: str, data: bytes) -> None:
        if threading.current_thread().name == "progress":
            raise StoreUnavailableError("503")  # only the engine's loop names its chunks
        if key == keys.progress("run-1", 0):
            assert waits.wait(60)
            bench.clock.sleep(10)
        replace(key, data)

    monkeypatch.setattr(ProgressTracker, "count_starved", counted)
    bench.store.replace = slow  # type: ignore[method-assign]
    timings = bench.run(progress_seconds=3600).timings
    assert timings.starved_by["progress"] >= 10
    assert timings.starved >= timings.starved_by["progress"] - 0.1
    assert timings.busy < 1


def recording(bench: Bench) -> tuple[ProgressTracker, Records]:
    tracker = ProgressTracker(bench.manifest, bench.clock)
    ending = Ending(bench.clock, bench.manifest.deadline, bench.stop.is_set)
    records = Records(bench.manifest, bench.store, tracker, ending, bench.clock)
    return tracker, records


def test_a_clock_that_was_set_back_does_not_extend_a_worker(bench: Bench) -> None:
    clock = FakeClock()
    ending = Ending(clock, clock.now() + timedelta(hours=1), bench.stop.is_set)
    clock.jump(-3 * 3600)
    clock.sleep(3599)
    assert not ending.is_due()
    clock.sleep(1)
    assert ending.is_due()
    assert ending.reason == "the deadline passed"


def test_who_is_named_already_costs_no_write(bench: Bench) -> None:
    chunks = [bench.chunk(bench.add(f"note-{number:03}.webm")) for number in range(2)]
    tracker, records = recording(bench)
    for chunk in chunks:
        tracker.add_in_flight(chunk.key)
        records.announce_chunks([chunk.key])
        records.announce_chunks([chunk.key])
    records.announce_chunks([chunks[0].key])
    assert bench.progress().sequence == 2
    assert bench.progress().in_flight == tuple(chunk.key for chunk in chunks)


def test_a_name_that_was_not_stored_is_told_again(bench: Bench) -> None:
    chunk = bench.chunk(bench.add("note-001.webm"))
    tracker, records = recording(bench)

    def trouble(_method: str, _key: str) -> None:
        raise StoreUnavailableError("503")

    tracker.add_in_flight(chunk.key)
    bench.store.before = trouble
    records.announce_chunks([chunk.key])
    bench.store.before = lambda _method, _key: None
    records.announce_chunks([chunk.key])
    assert bench.progress().in_flight == (chunk.key,)


def test_a_chunk_stays_named_between_its_windows(bench: Bench) -> None:
    key = bench.add("long.flac", encode(bursts(0, 70), "flac"))
    between: list[Progress] = []

    class Pausing(ScriptedEngine):
        def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
            yield from super().transcribe(batch)
            seen = bench.progress().sequence
            between.append(bench.written(seen + 4))

    bench.engine = Pausing()
    bench.run(find_speech=loud)
    first, last = between
    assert (first.in_flight, first.in_engine, first.results) == ((key,), 0, 1)
    assert last.results == 2


def listening(bench: Bench) -> list[Progress]:
    """Every progress object from now on, in the order of its writing."""
    told: list[Progress] = []
    replace = bench.store.replace

    def listen(key: str, data: bytes) -> None:
        told.append(decode(data, Progress))
        replace(key, data)

    bench.store.replace = listen  # type: ignore[method-assign]
    return told


def test_every_phase_is_told_at_once(bench: Bench) -> None:
    bench.add("note-001.webm")
    told = listening(bench)
    replace, reported = bench.store.replace, {phase: threading.Event() for phase in Phase}

    def note(key: str, data: bytes) -> None:
        replace(key, data)
        reported[told[-1].phase].set()

    def load() -> ScriptedEngine:
        assert reported[Phase.LOADING].wait(60)
        return ScriptedEngine(script)

    def script(_window: Window) -> str:
        assert reported[Phase.WORKING].wait(60)
        return "words"

    bench.store.replace = note  # type: ignore[method-assign]
    bench.run(load=load, progress_seconds=3600)
    assert list(dict.fromkeys(now.phase for now in told)) == [Phase.LOADING, Phase.WORKING, Phase.ENDED]
    assert [now.sequence for now in told] == list(range(1, len(told) + 1))


def test_neither_loading_nor_the_exit_record_waits_for_a_report(bench: Bench) -> None:
    bench.add("note-001.webm")
    loads, ended = threading.Event(), threading.Event()
    replace, create = bench.store.replace, bench.store.create

    def slow(key: str, data: bytes) -> None:
        phase = decode(data, Progress).phase
        if phase is not Phase.WORKING:
            assert (loads if phase is Phase.LOADING else ended).wait(60)
        replace(key, data)

    def note(key: str, data: bytes) -> bool:
        created = create(key, data)
        if key == keys.exit_record("run-1", 0):
            ended.set()
        return created

    def load() -> ScriptedEngine:
        loads.set()
        return bench.load()  # type: ignore[no-any-return]

    bench.store.replace = slow  # type: ignore[method-assign]
    bench.store.create = note  # type: ignore[method-assign]
    assert bench.run(load=load, progress_seconds=3600).end is WorkerEnd.FINISHED
    assert bench.progress().phase is Phase.ENDED


def test_the_phases_until_the_last_upload_are_measured(bench: Bench) -> None:
    bench.add("note-001.webm")
    done = bench.run().timings
    assert done.since_boot is not None
    order = (done.manifest, done.loaded, done.first_window, done.last_result, done.published, done.elapsed)
    assert None not in order
    assert list(order) == sorted(order, key=lambda seconds: seconds or 0.0)
    assert done.first_audio is not None
    assert done.first_audio <= (done.first_window or 0.0)


def test_a_worker_counts_from_the_start_of_its_process(bench: Bench) -> None:
    manifest = bench.manifest
    tracker = ProgressTracker(manifest, bench.clock, begun=bench.clock.monotonic() - 5.0)
    assert tracker.compute_timings().manifest == pytest.approx(5.0, abs=0.1)
    assert tracker.compute_timings().elapsed >= 5.0
    assert ProgressTracker(manifest, bench.clock).compute_timings().elapsed < 1.0


def test_a_worker_that_ended_names_nobody(bench: Bench) -> None:
    bench.add("note-001.webm")

    def script(_window: Window) -> str:
        raise KeyError

    bench.engine = ScriptedEngine(script=script)
    assert bench.run().end is WorkerEnd.FAILED
    last = bench.progress()
    assert (last.phase, last.in_flight, last.in_engine, last.results) == (Phase.ENDED, (), 0, 0)


def test_progress_tells_phase_counts_and_who_is_in_flight(bench: Bench) -> None:
    bench.add("note-001.webm")
    key = bench.add("note-002.webm")
    told: list[Progress] = []

    def script(window: Window) -> str:
        if window.id == 1:
            before = bench.progress().sequence
            told.extend([bench.written(before + 2), bench.written(before + 6)])
        return "said"

    bench.engine = ScriptedEngine(script=script)
    bench.run()
    during, hung = told
    assert during.phase is Phase.WORKING
    assert during.in_flight == (key,)
    assert (during.total, during.tally.done) == (2, 1)
    assert during.timings.first_window is not None
    assert (during.results, during.in_engine) == (hung.results, hung.in_engine) == (1, 1)
    last = bench.progress()
    assert (last.results, last.in_engine) == (2, 0)
    assert (last.phase, last.in_flight, last.tally.done) == (Phase.ENDED, (), 2)
    assert last.sequence > during.sequence


def test_progress_that_cannot_be_written_stops_nothing(bench: Bench) -> None:
    bench.add("note-001.webm")

    def trouble(method: str, _name: str) -> None:
        if method == "replace":
            raise StoreUnavailableError("503")

    bench.store.before = trouble
    assert bench.run().tally.done == 1


def test_times_add_up(bench: Bench) -> None:
    for number in range(5):
        bench.add(f"note-00{number}.webm")

    def script(_window: Window) -> str:
        bench.clock.sleep(10)
        return "slow"

    bench.engine = ScriptedEngine(script=script)
    timings = bench.run().timings
    assert timings.loaded is not None
    assert timings.first_window is not None
    assert timings.loaded <= timings.first_window
    assert timings.busy == pytest.approx(50, abs=1)
    assert timings.starved < 1
    assert timings.elapsed >= timings.loaded + timings.busy


def test_the_model_loads_while_audio_is_fetched_and_decoded(bench: Bench) -> None:
    for number in range(3):
        bench.add(f"note-00{number}.webm")
    cut = threading.Event()

    def find_speech(audio: Samples) -> list[tuple[int, int]]:
        cut.set()
        return all_speech(audio)

    def load() -> Any:
        assert cut.wait(30), "nothing was decoded while the model was loading"
        return bench.engine

    assert bench.run(load=load, find_speech=find_speech).tally.done == 3


def test_an_ended_manifest_is_not_worked_on_again(bench: Bench) -> None:
    bench.add("note-001.webm")
    first = bench.run()
    bench.store.delete(bench.chunk("s/note-001.webm").transcript)
    assert bench.run() == first
    assert bench.loads == 1


def test_an_exit_record_that_cannot_be_stored_is_an_error(bench: Bench) -> None:
    bench.add("note-001.webm")

    def trouble(method: str, name: str) -> None:
        if method == "create" and name.endswith("exit.json"):
            raise StoreUnavailableError("503")

    bench.store.before = trouble
    with pytest.raises(StoreUnavailableError):
        bench.run()
    assert len(bench.done()) == 1


def test_many_chunks_pass_through_narrow_channels(bench: Bench) -> None:
    for number in range(150):
        bench.add(f"note-{number:03}.webm")
    bench.engine = ScriptedEngine(batch_size=16)
    record = bench.run()
    assert record.tally.done == len(bench.done()) == 150
    assert bench.store.calls["create"] == 151


def test_a_channel_closes_from_either_end() -> None:
    channel = BoundedQueue[int](1)
    assert channel.put(1)
    blocked = threading.Thread(target=lambda: results.append(channel.put(2)))
    results: list[bool] = []
    blocked.start()
    channel.close()
    blocked.join(30)
    assert results == [False]
    assert channel.get() == 1
    assert channel.get() is None
    assert BoundedQueue[int](1).get(until=lambda: True) is None


def test_the_byte_budget_lets_a_giant_pass_alone() -> None:
    budget = ByteBudget(100)
    assert budget.take(500, lambda: True)
    assert not budget.take(1, lambda: True)
    budget.give(500)
    assert budget.take(60, lambda: True)
    assert budget.take(40, lambda: True)
    assert not budget.take(1, lambda: True)


def pieces(bench: Bench, *, first: int = 1) -> list[str]:
    """A recording of ten seconds, a chunk for each; only the first has its header."""
    cut = at_clusters(webm(sine(10), cluster_seconds=1.0))[:10]
    return [bench.add(f"chunk-{number:03}.webm", data) for number, data in enumerate(cut, start=first)]


def test_chunks_of_one_recording_are_transcribed_with_the_header_of_its_first(bench: Bench) -> None:
    names = pieces(bench)
    bench.engine.script = lambda window: " ".join(counting(window).replace("w", part) for part in "abcd")
    record = bench.run()
    assert (record.tally.done, record.tally.failed) == (10, 0)
    assert len(bench.engine.transcribed) == 1
    for name in names:
        found = bench.transcript(name)
        assert found.flags == (("repaired",) if name != names[0] else ())
        assert found.duration == pytest.approx(1.0, abs=0.03)


def test_a_header_is_found_in_a_chunk_that_was_done_before(bench: Bench) -> None:
    names = pieces(bench)
    del bench.files[names[0]]
    record = bench.run()
    assert (record.tally.done, record.tally.failed) == (9, 0)


def test_chunks_whose_first_is_missing_say_so(bench: Bench) -> None:
    names = pieces(bench)
    bench.store.delete(names[0])
    del bench.files[names[0]]
    record = bench.run()
    assert (record.tally.done, record.tally.failed) == (0, 9)
    assert all("without its first chunk" in failure.message for failure in record.failures)
    assert all(failure.kind is FailureKind.CHUNK for failure in record.failures)


def test_a_header_that_cannot_be_fetched_is_nobody_s_fault(bench: Bench) -> None:
    names = pieces(bench)
    del bench.files[names[0]]

    def away(method: str, key: str) -> None:
        if (method, key) == ("get", names[0]):
            raise StoreUnavailableError("no network")

    bench.store.before = away
    record = bench.run()
    assert record.tally.done == 0
    assert {failure.kind for failure in record.failures} == {FailureKind.MACHINE}


def test_while_the_engine_waits_for_others_it_is_neither_busy_nor_silent() -> None:
    clock = FakeClock(START)
    tracker = ProgressTracker(Bench().manifest, clock)
    tracker.record_loaded()
    tracker.enter_engine(["a"])
    clock.sleep(1)
    with tracker.count_blocked():
        clock.sleep(10)
        assert (tracker.compute_timings().busy, tracker.measure_silence()[0]) == (1, 1)
    with suppress(ValueError), tracker.count_starved("progress"):
        clock.sleep(100)
        raise ValueError
    clock.sleep(1)
    timings = tracker.compute_timings()
    assert (timings.busy, timings.blocked, timings.starved_by) == (2, 10, {"progress": 100})
    assert tracker.measure_silence()[0] == 2


def test_a_film_is_transcribed_on_its_own_clock_and_a_kind_off_the_list_is_refused_once(bench: Bench) -> None:
    late = Track(samples=sine(4), begins=3.0)
    strange = Track(samples=sine(4), codec="tta")
    key = bench.add("film.mkv", film("mkv", late, strange, picture=(0, 12)))
    off = bench.add("strange.mkv", film("mkv", strange))
    piece = bench.add("chunk-001.webm", film("mkv", strange))
    bench.run()
    found = bench.transcript(key)
    assert found.segments[0].start == pytest.approx(3, abs=0.1)
    assert found.duration == pytest.approx(7, abs=0.1)
    assert found.span == pytest.approx(12, abs=0.3)
    assert found.flags == ("track-missing",)
    assert bench.failure(off).kind is FailureKind.REFUSED
    assert bench.failure(piece).kind is FailureKind.CHUNK, "its recording may begin with a chunk to come"


def test_languages_of_one_film_do_not_vote_together() -> None:
    sessions: set[str] = set()

    def script(window: Window) -> str:
        sessions.add(window.session)
        return "x"

    bench = Bench(engine=ScriptedEngine(script=script))
    tracks = [Track(samples=sine(2), language=language) for language in ("eng", "deu")]
    key = bench.add("film.mkv", film("mkv", *tracks))
    bench.run()
    assert sessions == {f"{key}#1", f"{key}#2"}
    assert [segment.channel for segment in bench.transcript(key).segments] == [1, 2]
