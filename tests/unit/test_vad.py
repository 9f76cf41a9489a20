from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from batchscribe.adapters import vad_onnx_asr, vad_silero
from batchscribe.core.speech import SAMPLE_RATE
from batchscribe.errors import EngineError
from batchscribe.worker.audio import AudioDecoder
from batchscribe.worker.windows import MAX_WINDOW, Samples, blocks, cut_windows, quietest
from support.audio import bundled, corpus, sine

Finder = Callable[[Samples], tuple[tuple[int, int], ...]]


@pytest.fixture(params=[vad_silero, vad_onnx_asr], ids=["faster-whisper", "onnx-asr"])
def find_speech(request: pytest.FixtureRequest) -> Finder:
    found: Finder = request.param.find_speech
    return found


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def noise(seconds: float, level: float = 0.05) -> Samples:
    made: Samples = np.random.default_rng(1).normal(0, level, int(seconds * SAMPLE_RATE)).astype(np.float32)
    return made


def everything(audio: Samples) -> list[tuple[int, int]]:
    return [(0, len(audio))]


def test_silence_and_noise_are_not_speech(find_speech: Finder) -> None:
    assert find_speech(silence(10)) == ()
    assert find_speech(noise(10)) == ()
    assert find_speech(silence(0)) == ()


def test_every_bundled_recording_is_speech_and_found_where_it_is(find_speech: Finder) -> None:
    with AudioDecoder() as decoder:
        for key in corpus():
            speech = decoder.decode_all(bundled(key), max_seconds=60).samples
            padded = np.concatenate([silence(5), speech, silence(5)])
            spans = find_speech(padded)
            assert spans, key
            assert spans[0][0] >= 4.5 * SAMPLE_RATE
            assert spans[-1][1] <= 5.5 * SAMPLE_RATE + len(speech)
            assert sum(end - begin for begin, end in spans) > 0.7 * len(speech)


def test_spans_are_in_order_and_apart(find_speech: Finder) -> None:
    with AudioDecoder() as decoder:
        parts = [decoder.decode_all(bundled(key), max_seconds=60).samples for key in list(corpus())[:4]]
    spans = find_speech(np.concatenate([piece for part in parts for piece in (part, silence(1.5))]))
    assert len(spans) >= 3
    assert all(one[0] < one[1] <= two[0] for one, two in pairwise(spans))


def test_both_detectors_agree() -> None:
    with AudioDecoder() as decoder:
        parts = [decoder.decode_all(bundled(key), max_seconds=60).samples for key in list(corpus())[:6]]
    audio = np.concatenate([piece for part in parts for piece in (part, silence(1.5))])
    spans = [find.find_speech(audio) for find in (vad_silero, vad_onnx_asr)]
    heard = np.zeros((2, len(audio)), bool)
    for number, found in enumerate(spans):
        for begin, end in found:
            heard[number, begin:end] = True
    assert (heard[0] != heard[1]).mean() < 0.05


def test_a_detector_that_is_not_installed_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vad_onnx_asr, "MODEL_PACKAGE", "no_such_package")
    vad_onnx_asr._detector.cache_clear()
    with pytest.raises(EngineError, match="does not run: ModuleNotFoundError"):
        vad_onnx_asr.find_speech(noise(1))


def test_windows_know_their_place_on_the_clock_of_the_chunk() -> None:
    audio = np.concatenate([silence(2), sine(3), silence(10), sine(1)])
    spans = [(2 * SAMPLE_RATE, 5 * SAMPLE_RATE), (15 * SAMPLE_RATE, 16 * SAMPLE_RATE)]
    cuts = list(cut_windows([audio], lambda _audio: spans))
    assert [(cut.seconds_in, len(cut.audio) / SAMPLE_RATE) for cut in cuts] == [(2, 3), (15, 1)]


def test_close_spans_share_a_window_while_they_fit() -> None:
    second = SAMPLE_RATE
    spans = [(0, 10 * second), (11 * second, 20 * second), (22 * second, 31 * second)]
    cuts = list(cut_windows([silence(40)], lambda _audio: spans))
    assert [(cut.start // second, len(cut.audio) // second) for cut in cuts] == [(0, 20), (22, 9)]


def test_a_long_span_is_cut_where_it_is_quietest() -> None:
    audio = noise(70)
    audio[25 * SAMPLE_RATE : 25 * SAMPLE_RATE + 4000] = 0
    cuts = list(cut_windows([audio], everything))
    assert max(len(cut.audio) for cut in cuts) <= MAX_WINDOW
    assert sum(len(cut.audio) for cut in cuts) == len(audio)
    assert cuts[1].start == pytest.approx(25.1 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


def test_a_stream_in_pieces_of_any_size_loses_nothing() -> None:
    audio = noise(100)
    pieces = np.array_split(audio, [1, 5, 40_000, 41_000, 900_000])
    found = list(blocks(pieces, seconds=40))
    assert len(found) >= 3
    assert np.array_equal(np.concatenate([block.audio for block in found]), audio)
    assert all(len(block.audio) <= 40 * SAMPLE_RATE for block in found)
    assert [block.start for block in found][1] == len(found[0].audio)


def test_a_block_ends_between_words() -> None:
    audio = noise(60)
    audio[30 * SAMPLE_RATE : 30 * SAMPLE_RATE + 8000] = 0
    first = next(iter(blocks([audio], seconds=40)))
    assert 30 * SAMPLE_RATE < len(first.audio) < 30 * SAMPLE_RATE + 8000


def test_windows_of_a_long_stream_keep_its_clock() -> None:
    audio = silence(120)
    audio[90 * SAMPLE_RATE : 92 * SAMPLE_RATE] = sine(2)

    def loud(block: Samples) -> list[tuple[int, int]]:
        at = np.flatnonzero(block)
        return [(int(at[0]), int(at[-1]) + 1)] if len(at) else []

    cuts = list(cut_windows(np.array_split(audio, 50), loud, block_seconds=40))
    assert [round(cut.seconds_in, 2) for cut in cuts] == [90]


def test_a_window_does_not_keep_its_block_in_memory() -> None:
    cuts = list(
        cut_windows([noise(100)], lambda _audio: [(0, SAMPLE_RATE), (50 * SAMPLE_RATE, 51 * SAMPLE_RATE)])
    )
    assert len(cuts) == 2
    assert all(cut.audio.base is None for cut in cuts)


def test_quiet_is_looked_for_between_the_bounds_only() -> None:
    audio = noise(10)
    audio[: 2 * SAMPLE_RATE] = 0
    assert quietest(audio, 4 * SAMPLE_RATE, 8 * SAMPLE_RATE) in range(4 * SAMPLE_RATE, 8 * SAMPLE_RATE)
    assert quietest(audio, 100, 200) == 150
