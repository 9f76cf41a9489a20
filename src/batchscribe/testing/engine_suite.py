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

from collections.abc import Sequence
from functools import cache
from importlib import resources
from operator import attrgetter
from typing import Any

import numpy as np

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.engine import Engine
from batchscribe.errors import EngineError

RECORDINGS = ("notes/shopping list.wav", "notes/call back.mov", "team-meeting/chunk-003.mp4")
SHORTEST = SAMPLE_RATE // 10
"""Shortest speech that the voice detector reports, in samples."""
SECRET = "this sentence must not appear in a log"  # noqa: S105 - spoken words, not a password


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


def join_texts(results: Sequence[Recognition]) -> str:
    """Text of all results, in their order."""
    return " ".join(segment.text for result in results for segment in result.segments)


def transcribe(engine: Engine, windows: Sequence[Window]) -> list[Recognition]:
    """Results of all windows, in batches of the engine's size."""
    starts = range(0, len(windows), engine.batch_size)
    return [result for at in starts for result in engine.transcribe(windows[at : at + engine.batch_size])]


class EngineSuite:
    """Tests to inherit; the fixture `engine` is the loaded engine."""

    def speech(self) -> list[Window]:
        """Windows with speech, numbered from 10 on."""
        return [Window(10 + number, 3.0 * number, audio) for number, audio in enumerate(recordings())]

    def test_one_result_for_each_window_with_its_number(self, engine: Engine) -> None:
        windows = [*self.speech(), silence(77, 1.5)]
        results = transcribe(engine, windows)
        assert sorted(result.window for result in results) == sorted(window.id for window in windows)
        assert join_texts(results), "the engine found no words in speech"

    def test_a_window_of_any_length_is_heard(self, engine: Engine) -> None:
        audio = np.resize(recordings()[0], 30 * SAMPLE_RATE)
        windows = [Window(n, 0.0, audio[:size]) for n, size in enumerate((SHORTEST, 8000, len(audio)))]
        assert sorted(result.window for result in transcribe(engine, windows)) == [0, 1, 2]

    def test_times_are_inside_their_window_and_in_order(self, engine: Engine) -> None:
        windows = {window.id: window for window in self.speech()}
        for result in transcribe(engine, list(windows.values())):
            seconds = windows[result.window].seconds
            words = [word for segment in result.segments for word in segment.words]
            times = [time for word in words for time in (word.start, word.end)]
            assert times == sorted(times), "words overlap, or are not in order"
            assert all(0 <= time <= seconds for time in times)
            assert all(0 <= part.start <= part.end <= seconds for part in result.segments)

    def test_no_segment_and_no_word_is_empty(self, engine: Engine) -> None:
        for result in transcribe(engine, self.speech()):
            for segment in result.segments:
                assert segment.text.strip() == segment.text != ""
                assert all(word.word.strip() == word.word != "" for word in segment.words)
                assert all(word.probability is None or 0 <= word.probability <= 1 for word in segment.words)

    def test_it_can_be_used_again(self, engine: Engine) -> None:
        for _ in range(2):
            results = transcribe(engine, self.speech()[:2])
            assert sorted(result.window for result in results) == [10, 11]
            assert join_texts(results), "the engine found no words at its second use"

    def test_a_window_that_was_prepared_has_the_same_words(self, engine: Engine) -> None:
        windows = self.speech()
        before = join_texts(sorted(transcribe(engine, windows), key=attrgetter("window")))
        engine.prepare(windows[:2])
        assert join_texts(sorted(transcribe(engine, windows), key=attrgetter("window"))) == before

    def test_whatever_breaks_is_an_engine_error_without_what_was_said(self, engine: Engine) -> None:
        audio: Any = BrokenAudio()
        try:
            list(engine.transcribe([Window(1, 0.0, audio)]))
        except EngineError as error:
            _check_text(str(error))
        assert join_texts(transcribe(engine, self.speech())), "the engine stopped working after an error"

    def test_a_batch_that_is_left_in_the_middle_is_forgotten(self, engine: Engine) -> None:
        next(iter(engine.transcribe(self.speech()[: engine.batch_size])))
        assert [result.window for result in engine.transcribe([silence(5, 1.0)])] == [5]

    def test_it_says_where_it_runs_and_with_what(self, engine: Engine) -> None:
        assert isinstance(engine, Engine)
        assert engine.device
        assert engine.model


def _check_text(error: str) -> None:
    assert SECRET not in error, "the error repeats spoken words"
    assert "\n" not in error, "an error is one line"
