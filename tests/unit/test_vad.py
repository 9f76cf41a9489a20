from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from batchscribe.adapters.vad_silero import find_speech
from batchscribe.core.speech import SAMPLE_RATE
from batchscribe.worker.audio import AudioDecoder
from batchscribe.worker.windows import MAX_WINDOW, Samples, blocks, cut_windows, quietest
from support.audio import bundled, corpus, sine


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def noise(seconds: float, level: float = 0.05) -> Samples:
    made: Samples = np.random.default_rng(1).normal(0, level, int(seconds * SAMPLE_RATE)).astype(np.float32)
    return made


def everything(audio: Samples) -> list[tuple[int, int]]:
    return [(0, len(audio))]


def test_silence_and_noise_are_not_speech() -> None:
    assert find_speech(silence(10)) == ()
    assert find_speech(noise(10)) == ()
    assert find_speech(silence(0)) == ()


AT = np.arange(20 * SAMPLE_RATE) / SAMPLE_RATE
NOTES = (261.6, 293.7, 329.6, 392.0, 440.0, 523.3)


def tones(*hertz: float) -> Samples:
    mixed: Samples = np.mean([sine(20, hertz=tone) for tone in hertz], axis=0, dtype=np.float32)
    return mixed


def pink(level: float) -> Samples:
    white = np.fft.rfft(noise(20))
    wave = np.fft.irfft(white / np.sqrt(np.maximum(1, np.arange(len(white)))))
    return np.float32(level / np.abs(wave).max()) * wave.astype(np.float32)


def plucked(seed: int) -> Samples:
    """Two notes four times a second, each with its overtones."""
    chosen, out = np.random.default_rng(seed), np.zeros(21 * SAMPLE_RATE)
    at = AT[: SAMPLE_RATE // 2]
    for begin in range(0, 20 * SAMPLE_RATE, SAMPLE_RATE // 4):
        for hertz in chosen.choice(NOTES, 2, replace=False):
            wave = sum(np.sin(2 * np.pi * hertz * k * at) / k**1.5 for k in range(1, 8))
            out[begin : begin + len(at)] += 0.15 * wave * np.exp(-4 * at)
    return out[: 20 * SAMPLE_RATE].astype(np.float32)


def clicks(every: float) -> Samples:
    return (noise(20, 0.5) * np.exp(-60 * (AT % every))).astype(np.float32)


@pytest.mark.parametrize(
    "sound",
    [
        lambda: np.full(20 * SAMPLE_RATE, 0.5, np.float32),
        lambda: noise(20, 0.001),
        lambda: noise(20, 0.2),
        lambda: pink(0.01),
        lambda: pink(1.0),
        lambda: tones(50),
        lambda: tones(220),
        lambda: tones(1000),
        lambda: np.sign(tones(150)) / 2,
        lambda: tones(770, 1336) * (AT % 0.4 < 0.2).astype(np.float32),
        lambda: tones(261.6, 329.6, 392.0),
        lambda: plucked(1),
        lambda: clicks(0.17),
        lambda: clicks(0.5),
    ],
    ids=[
        "constant", "hiss", "loud noise", "soft pink noise", "pink noise", "hum", "tone", "high tone",
        "square", "dialling", "chord", "plucked", "typing", "clicks",
    ],
)  # fmt: skip
def test_what_is_no_speech_is_not_heard(sound: Callable[[], Samples]) -> None:
    assert find_speech(sound()) == ()


@pytest.mark.parametrize("level", [-50, -60])
def test_speech_that_is_hardly_to_be_heard_is_found(level: float) -> None:
    speech = spoken()
    quiet = speech * np.float32(10 ** (level / 20) / np.sqrt(np.mean(speech**2)))
    assert sum(end - begin for begin, end in find_speech(quiet)) > 0.9 * len(speech)


@pytest.mark.parametrize("gain", [20, 40])
def test_clipped_speech_is_found(gain: float) -> None:
    speech = spoken()
    clipped = (speech * np.float32(10 ** (gain / 20))).clip(-1, 1)
    assert sum(end - begin for begin, end in find_speech(clipped)) > 0.9 * len(speech)


@cache
def spoken() -> Samples:
    with AudioDecoder() as decoder:
        return np.concatenate([decoder.decode_all(bundled(key), max_seconds=60).samples for key in corpus()])


def test_every_bundled_recording_is_speech_and_found_where_it_is() -> None:
    with AudioDecoder() as decoder:
        for key in corpus():
            speech = decoder.decode_all(bundled(key), max_seconds=60).samples
            padded = np.concatenate([silence(5), speech, silence(5)])
            spans = find_speech(padded)
            assert spans, key
            assert spans[0][0] >= 4.5 * SAMPLE_RATE
            assert spans[-1][1] <= 5.5 * SAMPLE_RATE + len(speech)
            assert sum(end - begin for begin, end in spans) > 0.7 * len(speech)


def test_spans_are_in_order_and_apart() -> None:
    with AudioDecoder() as decoder:
        parts = [decoder.decode_all(bundled(key), max_seconds=60).samples for key in list(corpus())[:4]]
    spans = find_speech(np.concatenate([piece for part in parts for piece in (part, silence(1.5))]))
    assert len(spans) >= 3
    assert all(one[0] < one[1] <= two[0] for one, two in pairwise(spans))


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
