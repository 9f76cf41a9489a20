"""Speech in which an engine finds no word is transcribed again, once, and flagged if none is found then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from batchscribe.audio.bounded_queue import BoundedQueue
from batchscribe.core.run.manifest import WorkerEnd
from batchscribe.core.text.flags import NO_SPEECH, UNHEARD
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.transcripts import Segment
from batchscribe.errors import EngineError
from batchscribe.worker.session_queue import TimelineAssembler
from batchscribe.worker.timeline import Ended
from support.spoken import Spoken, ToneEngine, speech
from support.spoken_sessions import Recorded, recorded, said, same

HOURS = 2 * 3600.0
"""Longer than a run may take."""


@dataclass
class DeafEngine(ToneEngine):
    """Finds no word between `begin` and `end` of the session, until `decodings` windows reached in there.

    No silence is left out of the windows here, so that a window's start is enough to place its words.
    """

    begin: float = 0.0
    end: float = 100.0
    decodings: int = 1
    before: Callable[[int], object] = lambda _decoding: None
    """Called with the number of the decoding, 1 or 2, before it is made."""
    after: Callable[[], object] = lambda: None
    """Called when a result was taken."""
    edges: list[tuple[float, float]] = field(default_factory=list)
    """Of the windows that reached in there, in seconds."""

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        for found in super().transcribe(batch):
            yield found
            self.after()

    def _one(self, window: Window) -> Recognition:
        end = window.start + window.seconds
        if window.start < self.end and end > self.begin:
            self.before(len(self.edges) + 1)
            self.edges.append((window.start, end))
        found = super()._one(window)
        deaf = len(self.edges) <= self.decodings
        return replace(found, segments=tuple(self._kept(found, window.start))) if deaf else found

    def _kept(self, found: Recognition, start: float) -> Iterator[Segment]:
        for segment in found.segments:
            words = tuple(word for word in segment.words if not self.begin <= start + word.start < self.end)
            if words:
                text = " ".join(word.word for word in words)
                yield Segment(text=text, start=segment.start, end=segment.end, words=words)


def talk(begin: int, end: int) -> list[Spoken]:
    """Two words a second, without a pause that a voice detector takes for silence."""
    begins = np.arange(begin, end, 0.5)
    return [Spoken(number, float(at), float(at) + 0.4) for number, at in enumerate(begins)]


def session(words: Sequence[Spoken], engine: DeafEngine, *cuts: float, seconds: float = 30.0) -> Recorded:
    made = recorded(list(words), speech(words, seconds), cuts, 0.0)
    made.engine = engine
    return made


def hold_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holds the ends of chunks back until the queue of windows is closed."""
    closed = threading.Event()
    close, emit = BoundedQueue.close, TimelineAssembler.emit

    def note_close(queue: BoundedQueue[Any]) -> None:
        close(queue)
        closed.set()

    def emit_late(assembler: TimelineAssembler, item: Any) -> None:
        if isinstance(item, Ended):
            assert closed.wait(60)
        emit(assembler, item)

    monkeypatch.setattr(BoundedQueue, "close", note_close)
    monkeypatch.setattr(TimelineAssembler, "emit", emit_late)


def test_words_of_a_second_decoding_leave_no_flag() -> None:
    words = talk(5, 9)
    made = session(words, DeafEngine())
    record = made.transcribe(made.keys)
    assert [word for word, *_ in said(made.session())] == [f"w{word.word}" for word in words]
    assert made.transcript(made.keys[0]).flags == ()
    assert record.flags == {}
    (first, second) = made.engine.edges
    assert second[0] != first[0]
    assert second[1] != first[1]


def test_speech_without_a_word_in_two_decodings_is_flagged_and_counted() -> None:
    made = session(talk(5, 9), DeafEngine(decodings=5))
    record = made.transcribe(made.keys)
    assert made.transcript(made.keys[0]).flags == (UNHEARD,)
    assert record.flags == {UNHEARD: 1}
    assert made.engine.windows == 2


def test_two_seconds_without_a_word_are_left_as_they_are() -> None:
    made = session(talk(5, 7), DeafEngine())
    made.transcribe(made.keys)
    assert made.transcript(made.keys[0]).flags == (NO_SPEECH,)
    assert made.engine.windows == 1


def test_sound_that_is_no_speech_needs_no_word() -> None:
    noise = np.random.default_rng(3).normal(0, 0.001, 30 * SAMPLE_RATE).astype(np.float32)
    made = recorded([], noise, (), 0.0)
    made.engine = DeafEngine()
    made.transcribe(made.keys)
    assert made.transcript(made.keys[0]).flags == (NO_SPEECH,)
    assert made.engine.windows == 0


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("cuts", [(), (10.0, 20.0)])
def test_words_found_between_others_are_in_their_place_once(size: int, cuts: tuple[float, ...]) -> None:
    words = talk(2, 22)
    made = session(words, DeafEngine(batch_size=size, begin=8.0, end=14.0), *cuts)
    made.transcribe(made.keys)
    same(said(made.session()), words)
    assert made.session().text == " ".join(f"w{word.word}" for word in words)
    assert {made.transcript(key).flags for key in made.keys} == {()}


def test_only_the_chunks_that_hold_the_speech_are_flagged() -> None:
    made = session(talk(2, 22), DeafEngine(decodings=5, begin=11.0, end=16.0), 10.0, 20.0)
    made.transcribe(made.keys)
    assert [made.transcript(key).flags for key in made.keys] == [(), (UNHEARD,), ()]


def test_what_a_second_decoding_leaves_without_words_is_flagged() -> None:
    """The words of the first 2 s are found, the other 4 s stay without one."""
    engine = DeafEngine(begin=8.0, end=14.0, decodings=5)
    engine.before = lambda decoding: setattr(engine, "begin", 10.0) if decoding == 2 else None
    made = session(talk(2, 22), engine, 10.0)
    made.transcribe(made.keys)
    assert [made.transcript(key).flags for key in made.keys] == [(), (UNHEARD,)]
    assert len(said(made.session())) == len(talk(2, 22)) - 8


def test_an_engine_that_breaks_on_a_second_decoding_costs_no_chunk() -> None:
    def fail_at_second(decoding: int) -> None:
        if decoding == 2:
            raise EngineError("out of order")

    made = session(talk(2, 22), DeafEngine(begin=8.0, end=14.0, before=fail_at_second), 10.0, 20.0)
    record = made.transcribe(made.keys)
    assert (record.end, record.failures) == (WorkerEnd.FINISHED, ())
    assert [made.transcript(key).flags for key in made.keys] == [(UNHEARD,), (UNHEARD,), ()]


def test_past_the_deadline_there_is_no_second_decoding() -> None:
    made = session(talk(5, 9), DeafEngine())
    made.engine.before = lambda _decoding: made.clock.sleep(HOURS)
    made.transcribe(made.keys)
    assert made.transcript(made.keys[0]).flags == (UNHEARD,)
    assert made.engine.windows == 1


@pytest.mark.parametrize("late", [False, True])
def test_a_second_decoding_that_the_deadline_leaves_undone_costs_no_chunk(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the ends of the chunks come after the stop (`late`)."""
    if late:
        hold_back_ends(monkeypatch)
    made = session(talk(2, 22), DeafEngine(begin=8.0, end=14.0), 10.0, 20.0)
    made.engine.after = lambda: made.clock.sleep(HOURS)
    made.transcribe(made.keys)
    assert [made.transcript(key).flags for key in made.keys] == [(UNHEARD,), (UNHEARD,), ()]
    assert made.engine.windows == 1
