"""Stretches in a worker: where they end, what is said of their chunks, and what a broken engine costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from batchscribe.audio.overlaps import Overlaps
from batchscribe.core import keys
from batchscribe.core.run.manifest import Failure, FailureKind, Progress, WorkerEnd, decode
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.errors import EngineError
from batchscribe.worker.pool import Pool
from batchscribe.worker.sounds import Sound, Whole
from batchscribe.worker.timeline import AudioTimeline, Ended, PendingWindow, count_channels
from support.spoken import Spoken, ToneEngine, find_speech, hear, speech
from support.spoken_sessions import Recorded, recorded, said

SHAPE = (48_000, 1, "opus")


def dense(seconds: float) -> list[Spoken]:
    """A word every half second; the chunks' cuts at whole seconds lie in pauses."""
    return [Spoken(at % 240, at * 0.5 + 0.1, at * 0.5 + 0.4) for at in range(int(seconds * 2))]


def session(seconds: float, every: float = 10.0) -> Recorded:
    words = dense(seconds)
    cuts = [every * at for at in range(1, int(seconds / every))]
    return recorded(words, speech(words, seconds), cuts, 0.0)


def heard(record: Recorded, but: str) -> list[str]:
    """The words of all chunks but one."""
    return [word for key in record.keys if key != but for word in record.transcript(key).text.split()]


def failure(record: Recorded, key: str, run: str = "run-1") -> Failure:
    return decode(record.store.get(keys.attempt(key, record.chunk(key).etag, run)).data, Failure)


# ------------------------------------------------------------------ where a stretch ends


def laid(*chunks: tuple[Sound, float]) -> list[PendingWindow | Ended]:
    """What comes out of chunks of speech of so many seconds, laid as long as they fit."""
    out: list[PendingWindow | Ended] = []
    head = speech(dense(3), 3)
    stretch = AudioTimeline(head, find_speech=find_speech, overlaps=Overlaps(0), emit=out.append)
    for number, (sound, seconds) in enumerate(chunks):
        if number and not stretch.fits(sound):
            stretch.note_gap(sound)
            break
        audio = speech(dense(seconds), seconds)
        stretch.begin_chunk(number, sound, audio[: 3 * SAMPLE_RATE])
        stretch.append_audio(audio[3 * SAMPLE_RATE :])
        stretch.end_chunk(Whole(seconds, partial=False, repaired=False))
    stretch.close()
    return out


def test_pieces_of_one_recording_follow_each_other_by_its_clock() -> None:
    first, second, third = (Sound(at, SHAPE) for at in (0.0, 9.98, 40.0))
    *windows, one, two = laid((first, 10.0), (second, 10.0), (third, 10.0))
    assert [item.chunks for item in windows if isinstance(item, PendingWindow)] == [(0, 1)]
    assert isinstance(one, Ended)
    assert isinstance(two, Ended)
    assert (one.whole.partial, two.whole.partial) == (False, True), "20 s are missing behind the second"
    assert (one.position, two.position) == (0.0, 9.98)


def test_what_two_pieces_have_both_is_their_overlap() -> None:
    *_, one, two = laid((Sound(0.0, SHAPE), 10.0), (Sound(9.5, SHAPE), 10.0))
    assert isinstance(one, Ended)
    assert isinstance(two, Ended)
    assert (one.overlap, two.overlap) == (0.0, 0.5)


@pytest.mark.parametrize("seconds", [2.5, 10.0, 30.0])
def test_files_of_their_own_that_begin_a_little_late_do_not_overlap(seconds: float) -> None:
    """Some recorders give the first packet of each file a time stamp of some milliseconds."""
    begins = (0.0, 0.001, 0.02, 0.021)
    items = laid(*((Sound(begin, SHAPE), seconds) for begin in begins))
    assert [item.overlap for item in items if isinstance(item, Ended)] == [0.0] * 4
    heard = sum(len(item.cut.audio) for item in items if isinstance(item, PendingWindow))
    assert heard == pytest.approx(4 * seconds * SAMPLE_RATE, abs=4 * SAMPLE_RATE)


@pytest.mark.parametrize("overlap", [0.5, 5.0, 12.0])
def test_an_overlap_that_is_told_may_be_long(overlap: float) -> None:
    out: list[PendingWindow | Ended] = []
    audio = speech(dense(40), 40)
    told = Overlaps(round(1000 * overlap))
    chunks = [audio[: 20 * SAMPLE_RATE], audio[round((20 - overlap) * SAMPLE_RATE) :]]
    stretch = AudioTimeline(chunks[0][: told.reach], find_speech=find_speech, overlaps=told, emit=out.append)
    for number, chunk in enumerate(chunks):
        stretch.begin_chunk(number, Sound(None, SHAPE), chunk[: told.reach])
        stretch.append_audio(chunk[told.reach :])
        stretch.end_chunk(Whole(len(chunk) / SAMPLE_RATE, partial=False, repaired=False))
    stretch.close()
    assert [item.overlap for item in out if isinstance(item, Ended)] == [0.0, overlap]
    parts = [part for item in out if isinstance(item, PendingWindow) for part in item.cut.parts]
    assert max(end for _, end in parts) <= 40 * SAMPLE_RATE


def test_a_change_of_format_ends_a_stretch() -> None:
    items = laid((Sound(None, SHAPE), 10.0), (Sound(None, (44_100, 1, "aac")), 10.0))
    assert [item.chunk for item in items if isinstance(item, Ended)] == [0]


def test_a_missing_chunk_ends_a_stretch() -> None:
    record = session(50)
    record.store.delete(record.keys[2])
    there = [key for key in record.keys if key != record.keys[2]]
    assert record.transcribe(there).tally.done == 4
    assert record.engine.windows == 2


def test_a_chunk_that_is_no_sound_ends_a_stretch_and_costs_nobody_a_word() -> None:
    record = session(50)
    record.store.place(record.keys[2], b"")
    record.store.place(record.spoken(record.keys[2]), b"{}")
    end = record.transcribe(record.keys)
    assert (end.tally.done, end.tally.skipped) == (4, 1)
    words = [
        word for key in record.keys if key != record.keys[2] for word in record.transcript(key).text.split()
    ]
    assert words == [f"w{spoken.word}" for spoken in record.words if not 20 <= spoken.start < 30]


@pytest.mark.parametrize(
    ("left", "right", "found"), [(1.0, 1.0, 1), (1.0, 0.5, 2), (0.0, 0.0, 2), (1.0, -1.0, 2)]
)
def test_channels_that_say_the_same_are_one(left: float, right: float, found: int) -> None:
    voice = speech(dense(3), 3)
    assert count_channels(np.stack([left * voice, right * voice], axis=1)) == found
    assert count_channels(voice) == 1


# ------------------------------------------------------------------ an engine that breaks


class Choking(ToneEngine):
    """Breaks on every window that holds certain words."""

    def __init__(self, *words: str, batch_size: int = 1) -> None:
        super().__init__(batch_size)
        self.words = set(words)
        self.choked = 0
        self.tried: list[int] = []

    def _one(self, window: Window) -> Recognition:
        said = [word.word for word in hear(window.audio)]
        self.tried.append(len(said))
        if self.words & set(said):
            self.choked += 1
            raise EngineError("choked")
        return super()._one(window)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_only_the_chunk_that_breaks_the_engine_is_given_up(size: int) -> None:
    record = session(120)
    record.engine = Choking("w25", batch_size=size)
    end = record.transcribe(record.keys)
    assert (end.end, end.tally.done, end.tally.failed) == (WorkerEnd.FINISHED, 11, 1)
    assert failure(record, record.keys[1]).kind is FailureKind.CHUNK
    heard = [
        word for key in record.keys if key != record.keys[1] for word in record.transcript(key).text.split()
    ]
    assert heard == [f"w{spoken.word}" for spoken in record.words if not 10 <= spoken.start < 20]


def test_a_neighbour_that_breaks_the_engine_costs_only_itself() -> None:
    """What is heard along is not the chunk's own: it is heard again without."""
    record = session(20)
    record.transcribe(record.keys[:1])
    record.engine = Choking("w18")
    end = record.transcribe(record.keys[1:])
    assert (end.end, end.tally.done, end.tally.failed) == (WorkerEnd.FINISHED, 1, 0)


def test_two_bad_chunks_side_by_side_are_no_broken_engine() -> None:
    record = session(120)
    record.engine = Choking("w18", "w22", batch_size=2)
    end = record.transcribe(record.keys)
    assert (end.end, end.tally.failed) == (WorkerEnd.FINISHED, 2)
    assert {failure(record, key).kind for key in record.keys[:2]} == {FailureKind.CHUNK}


def test_a_chunk_that_failed_before_is_not_heard_along_either() -> None:
    record = session(60)
    record.troubled = frozenset(record.keys[2:3])
    record.engine = Choking("w40")
    end = record.transcribe(record.keys)
    assert (end.tally.done, end.tally.failed) == (5, 1)
    assert record.engine.choked == 1


def test_an_engine_that_breaks_on_everything_is_to_blame() -> None:
    record = session(120)

    class Broken(ToneEngine):
        def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
            raise EngineError("CUDA error")

    record.engine = Broken()
    end = record.transcribe(record.keys)
    assert end.end is WorkerEnd.FAILED
    assert "3 times in a row: CUDA error" in end.message
    assert {found.kind for found in end.failures} <= {FailureKind.MACHINE}


@pytest.mark.parametrize("size", [1, 3])
def test_a_chunk_that_failed_before_is_heard_alone(size: int) -> None:
    record = session(60)
    record.engine.batch_size = size
    record.troubled = frozenset(record.keys[2:3])
    named: list[tuple[str, ...]] = []
    transcribe = record.engine.transcribe

    def watched(batch: Sequence[Window]) -> Iterator[Recognition]:
        progress = decode(record.store.get(keys.progress("run-1", 0)).data, Progress)
        named.append(progress.in_flight)
        yield from transcribe(batch)

    record.engine.transcribe = watched
    assert record.transcribe(record.keys).tally.done == 6
    assert named[-1] == (record.keys[2],), "it is named alone, and last"
    assert sorted(said(record.session())) == sorted(
        (f"w{spoken.word}", spoken.start, spoken.end) for spoken in record.words
    )


def test_an_engine_that_hangs_ends_the_worker_with_everything_told() -> None:
    record = session(120, every=40.0)
    free = threading.Event()

    class Hanging(ToneEngine):
        def _one(self, window: Window) -> Recognition:
            if self.windows == 2:
                record.clock.sleep(700)
                assert free.wait(60)
            return super()._one(window)

    record.engine = Hanging()
    record.abandon = free.set
    end = record.transcribe(record.keys)
    assert end.end is WorkerEnd.FAILED
    assert "the engine hangs" in end.message
    assert "finished transcripts are kept" in end.message
    done = [key for key in record.keys if any(record.store.list(record.spoken(key)))]
    assert done == record.keys[:1]
    assert {found.kind for found in end.failures} == {FailureKind.CRASH}
    assert {found.key for found in end.failures} <= set(record.keys[1:])


# ------------------------------------------------------------------ time, and whose it is


def test_a_starved_engine_says_which_stage_it_waited_for() -> None:
    record = session(60, every=60.0)
    get = record.store.get

    def slow(key: str, *, limit: int | None = None) -> object:
        if key.endswith(".webm"):
            threading.Event().wait(0.3)
            record.clock.sleep(20)
        return get(key, limit=limit)

    chunks = [record.chunk(key) for key in record.keys]
    record.chunk = lambda key: chunks[record.keys.index(key)]  # type: ignore[method-assign]
    record.store.get = slow  # type: ignore[method-assign, assignment]
    timings = record.transcribe(record.keys).timings
    assert timings.starved_by["fetch"] >= 19
    assert timings.starved >= 19


def test_waiting_for_the_store_to_take_transcripts_is_not_work() -> None:
    record = session(60, every=1.0)
    create = record.store.create

    def slow(key: str, data: bytes) -> bool:
        if "transcription" in key:
            threading.Event().wait(0.005)
            record.clock.sleep(10)
        return create(key, data)

    record.store.create = slow  # type: ignore[method-assign]
    timings = record.transcribe(record.keys).timings
    assert timings.blocked > 50
    assert timings.busy < 200


# ------------------------------------------------------------------ which window is next


def pooled(*speech: int, alone: frozenset[int] = frozenset()) -> Pool:
    pool = Pool()
    for number, samples in enumerate(speech):
        pool.add(number, samples, alone=number in alone)
    return pool


def test_windows_of_one_batch_are_alike_and_the_oldest_is_among_them() -> None:
    pool = pooled(10, 30, 11, 29, 9, 31)
    assert pool.take_batch(3) == [2, 0, 4]
    assert pool.take_batch(3) == [5, 1, 3]
    assert not pool


def test_windows_that_must_be_heard_alone_are_nobody_s_company() -> None:
    pool = pooled(10, 10, 10, alone=frozenset({1}))
    assert not pool.oldest_alone
    assert sorted(pool.take_batch(3)) == [0, 2]
    assert pool.oldest_alone
    assert pool.take_batch(3) == [1]


def test_a_pool_hands_out_what_it_has() -> None:
    assert sorted(pooled(5, 1, 3).take_batch(16)) == [0, 1, 2]
    assert list(pooled(5, 1, 3).clear()) == [0, 1, 2]


def test_a_sound_tells_what_is_missing_before_it() -> None:
    first = Sound(5.0, SHAPE)
    assert Sound(15.0, SHAPE).measure_gap(first, 10.0) == 0.0
    assert Sound(15.04, SHAPE).measure_gap(first, 10.0) == 0.0, "clocks are a little off"
    assert Sound(18.0, SHAPE).measure_gap(first, 10.0) == 3.0
    assert Sound(14.5, SHAPE).measure_gap(first, 10.0) == -0.5
    assert Sound(0.0, SHAPE).measure_gap(first, 10.0) is None, "a recording of its own"
    assert Sound(None, SHAPE).measure_gap(first, 10.0) is None
    assert not Sound(15.0, SHAPE).follows(replace(first, shape=(16_000, 1, "opus")), 10.0)
