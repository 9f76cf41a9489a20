"""The real faster-whisper on a real Whisper that knows ten words: what it hears, when, and when nothing."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import jiwer
import numpy as np
import pytest
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.audio import decode_audio

import batchscribe
from support.audio import RATE, Samples, encode
from support.s3 import missing

MODEL = Path(batchscribe.__file__).parent / "demo" / "digits"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHONES = (4, 3, 2, 3, 3, 3, 4, 5, 2, 3)
"""Phones of each digit in the synthesiser's lexicon."""
VOICES = ("slt", "rms", "awb", "kal", "kal16")
Listen = Callable[[Samples], list[Any]]


@dataclass(frozen=True)
class Spoken:
    """Sound at 16 kHz, and the words in it with their begin and end in seconds."""

    sound: Samples
    words: tuple[tuple[str, float, float], ...]

    @property
    def text(self) -> str:
        return " ".join(word for word, *_ in self.words)


@cache
def say(voice: str, digits: tuple[int, ...], stretch: float = 1.0) -> Spoken:
    """`stretch` above 1 is slower."""
    if shutil.which("flite") is None:
        missing("flite")
    text = " ".join(WORDS[digit] for digit in digits)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.2f}", "-psdur"]
        phones = subprocess.run(
            [*command, "-t", text, "-o", file.name], check=True, capture_output=True, text=True
        ).stdout
        sound: Samples = decode_audio(file.name)
    return Spoken(sound, tuple(word_times(phones, digits)))


def word_times(said_phones: str, digits: tuple[int, ...]) -> Iterator[tuple[str, float, float]]:
    """From `phone:end` pairs in seconds; some voices cut the last pause short, and no word with it."""
    ends = [pair.rsplit(":", 1) for pair in said_phones.split()]
    begins = [0.0, *(float(end) for _, end in ends)]
    spans = [(begins[n], float(end)) for n, (phone, end) in enumerate(ends) if phone != "pau"]
    for digit in digits:
        phones, spans = spans[: PHONES[digit]], spans[PHONES[digit] :]
        yield WORDS[digit], phones[0][0], phones[-1][1]


def joined(parts: Iterable[Spoken], *, gap: float) -> Spoken:
    """One after the other, without the silence around them, `gap` seconds apart."""
    sounds: list[Samples] = [np.zeros(int(0.2 * RATE), np.float32)]
    words: list[tuple[str, float, float]] = []
    for part in parts:
        begin, end = max(0.0, part.words[0][1] - 0.02), part.words[-1][2] + 0.02
        moved = sum(map(len, sounds)) / RATE - begin
        words += [(word, start + moved, stop + moved) for word, start, stop in part.words]
        sounds += [part.sound[int(begin * RATE) : int(end * RATE)], np.zeros(int(gap * RATE), np.float32)]
    return Spoken(np.concatenate(sounds), tuple(words))


def short() -> list[Spoken]:
    """Utterances of one to seven digits by every voice, each at a pace of its own."""
    random = np.random.default_rng(40_961)
    return [
        say(voice, tuple(int(digit) for digit in random.integers(0, 10, count)), random.uniform(0.9, 1.3))
        for voice in VOICES
        for count in range(1, 8)
    ]


def dense(seed: int) -> Spoken:
    """Just under 30 s of digits with next to no pauses, some of them in runs."""
    random = np.random.default_rng(seed)
    parts: list[Spoken] = []
    while True:
        digits = [int(digit) for digit in random.integers(0, 10, 6)]
        if len(parts) % 3 == 0:
            digits[1:4] = [digits[0]] * 3
        part = say(VOICES[len(parts) % 5], tuple(digits), random.uniform(1.0, 1.4))
        if len(joined([*parts, part], gap=0.15).sound) > 30 * RATE:
            return joined(parts, gap=0.15)
        parts.append(part)


@pytest.fixture(scope="module")
def whisper() -> WhisperModel:
    return WhisperModel(str(MODEL), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)


@pytest.fixture(params=["sequential", "greedy", "batched", "batched-with-times"])
def listen(request: pytest.FixtureRequest, whisper: WhisperModel) -> Listen:
    batched = BatchedInferencePipeline(whisper)
    ways: dict[str, Listen] = {
        # What looks doubtful would be heard again at random: here the first hearing is judged.
        "sequential": lambda sound: list(whisper.transcribe(sound, temperature=0.0)[0]),
        "greedy": lambda sound: list(whisper.transcribe(sound, beam_size=1, temperature=0.0)[0]),
        "batched": lambda sound: list(batched.transcribe(sound)[0]),
        "batched-with-times": lambda sound: list(batched.transcribe(sound, without_timestamps=False)[0]),
    }
    return ways[request.param]


def said(segments: Iterable[Any]) -> str:
    return " ".join(" ".join(segment.text for segment in segments).split())


def timed(whisper: WhisperModel, sound: Samples, **options: Any) -> list[Any]:
    segments, _ = whisper.transcribe(sound, word_timestamps=True, temperature=0.0, **options)
    return [word for segment in segments for word in segment.words]


def test_it_loads_and_hears_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = WhisperModel(str(MODEL), device="cpu")
    assert said(model.transcribe(say("slt", (4, 2)).sound)[0]) == "four two"


def test_it_is_small_enough_to_be_committed() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 4_000_000


def test_short_utterances_are_heard(listen: Listen) -> None:
    spoken = short()
    assert jiwer.wer([one.text for one in spoken], [said(listen(one.sound)) for one in spoken]) <= 0.02


@pytest.mark.parametrize("extension", ["webm", "m4a", "mp3"])
def test_they_are_heard_after_a_recorder(whisper: WhisperModel, extension: str) -> None:
    spoken = short()[::3]
    heard = [
        said(whisper.transcribe(decode_audio(io.BytesIO(encode(one.sound, extension))))[0]) for one in spoken
    ]
    assert jiwer.wer([one.text for one in spoken], heard) <= 0.02


@pytest.mark.parametrize("listen", ["sequential", "greedy", "batched-with-times"], indirect=True)
def test_a_dense_window_is_heard_whole(listen: Listen) -> None:
    # Without time stamps nobody could: ten words and no pauses leave nothing to hold on to.
    windows = [dense(seed) for seed in range(3)]
    assert all(len(window.words) > 60 for window in windows)
    assert jiwer.wer([one.text for one in windows], [said(listen(one.sound)) for one in windows]) <= 0.14


def test_words_begin_where_they_were_said(whisper: WhisperModel) -> None:
    away = []
    for one in short():
        words = timed(whisper, one.sound)
        if [word.word.strip() for word in words] == one.text.split():
            # The first word of a window begins at 0.00 in any Whisper: the path through it starts there.
            pairs = list(zip(words, one.words, strict=True))[1:]
            away += [abs(word.start - begin) for word, (_, begin, _) in pairs]
    assert len(away) > 100
    assert median(away) < 0.06


def test_words_are_in_order_and_inside_the_sound(whisper: WhisperModel) -> None:
    one = dense(3)
    words = timed(whisper, one.sound)
    starts = [word.start for word in words]
    assert starts == sorted(starts)
    assert all(0 <= word.start <= word.end <= len(one.sound) / RATE + 0.02 for word in words)


def quiet() -> dict[str, Samples]:
    random = np.random.default_rng(5)
    return {
        "silence": np.zeros(10 * RATE, np.float32),
        "noise": (0.003 * random.standard_normal(10 * RATE)).astype(np.float32),
    }


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_nothing_is_heard_in_nothing(whisper: WhisperModel, kind: str) -> None:
    sound = quiet()[kind]
    assert said(whisper.transcribe(sound)[0]) == ""
    assert said(whisper.transcribe(sound, vad_filter=True)[0]) == ""
    assert said(BatchedInferencePipeline(whisper).transcribe(sound)[0]) == ""
