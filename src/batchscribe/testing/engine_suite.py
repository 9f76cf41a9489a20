"""Pytest suite for speech engines; our own engines pass it.

    @pytest.fixture(scope="module")
    def engine():
        return FACTORY.load(EngineSpec(engine="mine"))

    class TestMine(EngineSuite):
        pass

The tests use the English recordings that ship with batchscribe; override `speech` for an engine of other
languages. The extras that install an engine also install the decoder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.errors import EngineError
from batchscribe.protocols import Engine

RECORDINGS = ("notes/shopping list.wav", "notes/call back.mov", "team-meeting/chunk-003.mp4")
SHORTEST = SAMPLE_RATE // 10
"""Shortest speech that the voice detector reports, in samples."""
POLLS = 6000
"""Maximum number of polls of an idle source, each 0.01 s."""
SECRET = "this sentence must not appear in a log"  # noqa: S105 - spoken words, not a password


class FeedingError(Exception):
    """Error of the engine's source, which the engine must pass on unchanged."""


class UnheardOfError(Exception):
    """Undocumented vendor error; its text stands for spoken words."""


class BrokenAudio:
    """Has the length of one second of audio; any other use raises."""

    def __len__(self) -> int:
        return SAMPLE_RATE

    def __getattr__(self, name: str) -> Any:
        raise UnheardOfError(SECRET)

    def __getitem__(self, key: object) -> Any:
        raise UnheardOfError(SECRET)


@cache
def recordings() -> tuple[Any, ...]:
    """Bundled recordings, each of shape (samples,), float32, 16 kHz, mono."""
    folder = resources.files("batchscribe.demo") / "audio"
    with AudioDecoder() as decoder:
        found = [decoder.decode_all((folder / key).read_bytes(), max_seconds=60) for key in RECORDINGS]
    return tuple(decoded.samples for decoded in found)


def silence(number: int, seconds: float) -> Window:
    """Returns a window of silence."""
    return Window(number, 0.0, np.zeros(int(seconds * SAMPLE_RATE), np.float32))


def said(results: Sequence[Recognition]) -> str:
    """Text of all results, in their order."""
    return " ".join(segment.text for result in results for segment in result.segments)


class EngineSuite:
    """Tests for a subclass to inherit; its fixture `engine` is the loaded engine."""

    def speech(self) -> list[Window]:
        """Windows with speech, numbered from 10 on."""
        return [Window(10 + number, 3.0 * number, audio) for number, audio in enumerate(recordings())]

    def test_one_result_for_each_window_with_its_number(self, engine: Engine) -> None:
        windows = [*self.speech(), silence(77, 1.5)]
        results = list(engine.transcribe(iter(windows)))
        assert sorted(result.window for result in results) == sorted(window.id for window in windows)
        assert said(results), "the engine found no words in speech"

    def test_a_window_of_any_length_is_heard(self, engine: Engine) -> None:
        audio = np.resize(recordings()[0], 30 * SAMPLE_RATE)
        windows = [Window(n, 0.0, audio[:size]) for n, size in enumerate((SHORTEST, 8000, len(audio)))]
        results = list(engine.transcribe(iter(windows)))
        assert sorted(result.window for result in results) == [0, 1, 2]

    def test_times_are_inside_their_window_and_in_order(self, engine: Engine) -> None:
        windows = {window.id: window for window in self.speech()}
        for result in engine.transcribe(iter(windows.values())):
            seconds = windows[result.window].seconds
            words = [word for segment in result.segments for word in segment.words]
            times = [time for word in words for time in (word.start, word.end)]
            assert times == sorted(times), "words overlap, or are not in order"
            assert all(0 <= time <= seconds for time in times)
            assert all(0 <= part.start <= part.end <= seconds for part in result.segments)

    def test_no_segment_and_no_word_is_empty(self, engine: Engine) -> None:
        for result in engine.transcribe(iter(self.speech())):
            for segment in result.segments:
                assert segment.text.strip() == segment.text != ""
                assert all(word.word.strip() == word.word != "" for word in segment.words)
                assert all(word.probability is None or 0 <= word.probability <= 1 for word in segment.words)

    def test_nothing_in_nothing_out(self, engine: Engine) -> None:
        assert list(engine.transcribe(iter(()))) == []

    def test_it_can_be_used_again(self, engine: Engine) -> None:
        for _ in range(2):
            results = list(engine.transcribe(iter(self.speech()[:2])))
            assert sorted(result.window for result in results) == [10, 11]
            assert said(results), "the engine found no words at its second use"

    def test_it_answers_while_no_window_is_ready(self, engine: Engine) -> None:
        """None means: transcribe the windows that you hold. The source waits for each result."""
        answered: set[int] = set()

        def source() -> Iterator[Window | None]:
            for window in self.speech()[:3]:
                yield window
                yield from _until(window.id, answered)

        for result in engine.transcribe(source()):
            answered.add(result.window)
        assert answered == {10, 11, 12}

    def test_who_reads_ahead_hears_no_batch_before_it_asked_for_more(self, engine: Any) -> None:
        """By then the worker has recorded the batch, in case it crashes the process."""
        if not getattr(engine, "reads_ahead", False):
            return
        audio, taken = recordings()[0], list[int]()

        def source() -> Iterator[Window]:
            for number in range(2 * engine.batch + 1):
                taken.append(number)
                yield Window(number, 0.0, audio)

        next(iter(engine.transcribe(source())))
        assert len(taken) > engine.batch

    def test_a_mistake_of_whoever_feeds_it_is_not_its_own(self, engine: Engine) -> None:
        def source() -> Iterator[Window]:
            yield self.speech()[0]
            raise FeedingError

        try:
            list(engine.transcribe(source()))
        except FeedingError:
            return
        raise AssertionError("the engine swallowed the error of its source")

    def test_whatever_breaks_is_an_engine_error_without_what_was_said(self, engine: Engine) -> None:
        audio: Any = BrokenAudio()
        try:
            list(engine.transcribe([Window(1, 0.0, audio)]))
        except EngineError as error:
            _check_text(str(error))
        assert said(list(engine.transcribe(iter(self.speech())))), "the engine stopped working after an error"

    def test_what_is_left_in_the_middle_is_forgotten(self, engine: Engine) -> None:
        results = engine.transcribe(iter(self.speech()))
        next(results)
        close = getattr(results, "close", None)
        if close is not None:
            close()
        assert [result.window for result in engine.transcribe([silence(5, 1.0)])] == [5]

    def test_it_says_where_it_runs_and_with_what(self, engine: Any) -> None:
        assert engine.device
        assert engine.model


def _check_text(error: str) -> None:
    assert SECRET not in error, "the error repeats spoken words"
    assert "\n" not in error, "an error is one line"


def _until(number: int, answered: set[int]) -> Iterator[None]:
    """Yields None until the window has a result."""
    for _ in range(POLLS):
        if number in answered:
            return
        yield None
        if number not in answered:
            threading.Event().wait(0.01)
    raise AssertionError(f"window {number} got no result while the source was idle")
