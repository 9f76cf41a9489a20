from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from batchscribe.adapters.engines.parakeet import onnx_vad
from batchscribe.adapters.engines.whisper import silero_vad
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.windows import Samples
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import EngineError
from support.audio import bundled, corpus, sine

Finder = Callable[[Samples], tuple[tuple[int, int], ...]]


@pytest.fixture(params=[silero_vad, onnx_vad], ids=["faster-whisper", "onnx-asr"])
def find_speech(request: pytest.FixtureRequest) -> Finder:
    found: Finder = request.param.find_speech
    return found


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def noise(seconds: float, level: float = 0.05) -> Samples:
    made: Samples = np.random.default_rng(1).normal(0, level, int(seconds * SAMPLE_RATE)).astype(np.float32)
    return made


def test_silence_and_noise_are_not_speech(find_speech: Finder) -> None:
    assert find_speech(silence(10)) == ()
    assert find_speech(noise(10)) == ()
    assert find_speech(silence(0)) == ()


AT = np.arange(10 * SAMPLE_RATE) / SAMPLE_RATE
NOTES = (261.6, 293.7, 329.6, 392.0, 440.0, 523.3)


def tones(*hertz: float) -> Samples:
    mixed: Samples = np.mean([sine(10, hertz=tone) for tone in hertz], axis=0, dtype=np.float32)
    return mixed


def pink(level: float) -> Samples:
    white = np.fft.rfft(noise(10))
    wave = np.fft.irfft(white / np.sqrt(np.maximum(1, np.arange(len(white)))))
    return np.float32(level / np.abs(wave).max()) * wave.astype(np.float32)


def plucked(seed: int) -> Samples:
    """Two notes four times a second, each with its overtones."""
    chosen, out = np.random.default_rng(seed), np.zeros(11 * SAMPLE_RATE)
    at = AT[: SAMPLE_RATE // 2]
    for begin in range(0, 10 * SAMPLE_RATE, SAMPLE_RATE // 4):
        for hertz in chosen.choice(NOTES, 2, replace=False):
            wave = sum(np.sin(2 * np.pi * hertz * k * at) / k**1.5 for k in range(1, 8))
            out[begin : begin + len(at)] += 0.15 * wave * np.exp(-4 * at)
    return out[: 10 * SAMPLE_RATE].astype(np.float32)


def clicks(every: float) -> Samples:
    return (noise(10, 0.5) * np.exp(-60 * (AT % every))).astype(np.float32)


@pytest.mark.parametrize(
    "sound",
    [
        lambda: np.full(10 * SAMPLE_RATE, 0.5, np.float32),
        lambda: noise(10, 0.001),
        lambda: noise(10, 0.2),
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
def test_what_is_no_speech_is_not_heard(find_speech: Finder, sound: Callable[[], Samples]) -> None:
    assert find_speech(sound()) == ()


@pytest.mark.parametrize("level", [-50, -60])
def test_speech_that_is_hardly_to_be_heard_is_found(find_speech: Finder, level: float) -> None:
    speech = spoken()
    quiet = speech * np.float32(10 ** (level / 20) / np.sqrt(np.mean(speech**2)))
    assert sum(end - begin for begin, end in find_speech(quiet)) > 0.9 * len(speech)


@pytest.mark.parametrize("gain", [20, 40])
def test_clipped_speech_is_found(find_speech: Finder, gain: float) -> None:
    speech = spoken()
    clipped = (speech * np.float32(10 ** (gain / 20))).clip(-1, 1)
    assert sum(end - begin for begin, end in find_speech(clipped)) > 0.9 * len(speech)


@cache
def spoken() -> Samples:
    with AudioDecoder() as decoder:
        return np.concatenate([decoder.decode_all(bundled(key), max_seconds=60).samples for key in corpus()])


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
    spans = [find.find_speech(audio) for find in (silero_vad, onnx_vad)]
    heard = np.zeros((2, len(audio)), bool)
    for number, found in enumerate(spans):
        for begin, end in found:
            heard[number, begin:end] = True
    assert (heard[0] != heard[1]).mean() < 0.05


def test_a_detector_that_is_not_installed_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_vad, "MODEL_PACKAGE", "no_such_package")
    onnx_vad._load_detector.cache_clear()
    with pytest.raises(EngineError, match="does not run: ModuleNotFoundError"):
        onnx_vad.find_speech(noise(1))
