"""Measures a finished model with the real faster-whisper, on speech that training never saw, for its card.

`python -m digit_model.evaluate MODEL`; flite, espeak-ng and PyAV are installed. Nothing here is random but
the seed.
"""

from __future__ import annotations

import argparse
import io
import logging
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.audio import decode_audio

from .bank import FLITE_VOICES, RATE, Phrase, Samples, random_digits, read_wav, say_flite
from .quick_check import distance
from .vocabulary import WORDS

LOG = logging.getLogger("evaluate")
ESPEAK_VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-rp+m6")
"""Connected speech: training heard single digits only, and never the last voice."""
CODECS = {
    "webm": ("webm", "libopus", 32_000),
    "m4a": ("mp4", "aac", 64_000),
    "mp3": ("mp3", "libmp3lame", 64_000),
}


@dataclass
class Utterance:
    """Sound at 16 kHz, what is said, and where, as (begin, end) in seconds, if that is known."""

    sound: Samples
    words: list[str]
    times: list[tuple[float, float]] = field(default_factory=list)


Listen = Callable[[Samples], list[Any]]
"""From sound to faster-whisper's segments."""


def flite(random: np.random.Generator, voice: str) -> Utterance:
    """One to eight digits between 0.2 s of silence."""
    digits = random_digits(random, int(random.integers(1, 9)))
    phrase = say_flite(voice, digits, float(random.uniform(0.8, 1.3)), commas=frozenset())
    return joined([phrase], lead=0.2)


def espeak(random: np.random.Generator, voice: str) -> Utterance:
    digits = random_digits(random, int(random.integers(1, 9)))
    words = [WORDS[digit] for digit in digits]
    speed = str(int(random.integers(120, 190)))
    command = ["espeak-ng", "-v", voice, "-s", speed, "--stdout", " ".join(words)]
    return Utterance(read_wav(subprocess.run(command, check=True, capture_output=True).stdout), words)


def joined(phrases: Iterable[Phrase], *, lead: float, gaps: Callable[[], float] = lambda: 0.0) -> Utterance:
    """Phrases with pauses between them, `lead` seconds of silence around them."""
    parts: list[Samples] = [np.zeros(int(lead * RATE), np.float32)]
    made = Utterance(parts[0], [])
    for phrase in phrases:
        at = sum(map(len, parts)) / RATE
        made.words += [WORDS[digit] for digit, *_ in phrase.words]
        made.times += [(at + begin, at + end) for _, begin, end in phrase.words]
        parts += [phrase.pcm.astype(np.float32) / 32768, np.zeros(int(gaps() * RATE), np.float32)]
    made.sound = np.concatenate([*parts, np.zeros(int(lead * RATE), np.float32)])
    return made


def dense(random: np.random.Generator, seconds: float, *, run: int | None = None) -> Utterance:
    """Phrases of changing voices with next to no pauses; `run` says nothing but that digit."""
    phrases, total = [], 0.5
    while True:
        digits = random_digits(random, int(random.integers(3, 9)))
        if run is not None:
            digits = [run] * len(digits)
        voice = FLITE_VOICES[int(random.integers(5))]
        phrase = say_flite(voice, digits, float(random.uniform(1.0, 1.4)), commas=frozenset())
        total += len(phrase.pcm) / RATE + 0.15
        if total > seconds:
            return joined(phrases, lead=0.2, gaps=lambda: float(random.uniform(0, 0.3)))
        phrases.append(phrase)


def through(sound: Samples, extension: str) -> Samples:
    """Encoded as a browser or a telephone would, and decoded as faster-whisper does."""
    container, codec, bits = CODECS[extension]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray(
            (sound * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    file.seek(0)
    return decode_audio(file)


def error_rate(utterances: Iterable[Utterance], listen: Listen) -> float:
    wrong = total = 0
    for one in utterances:
        said = " ".join(segment.text for segment in listen(one.sound)).split()
        wrong += distance(one.words, said)
        total += len(one.words)
    return wrong / total


def offsets(utterances: Iterable[Utterance], listen: Listen) -> tuple[list[float], list[float]]:
    """Milliseconds between said and true word starts where all words are right: first words, others."""
    first, others = [], []
    for one in utterances:
        words = [word for segment in listen(one.sound) for word in segment.words]
        if [word.word.strip() for word in words] != one.words:
            continue
        away = [abs(word.start - begin) * 1000 for word, (begin, _) in zip(words, one.times, strict=True)]
        first.append(away[0])
        others += away[1:]
    return first, others


def pieces(one: Utterance, seconds: float) -> list[Utterance]:
    """Cut mid-word where it comes so: a word belongs to the piece that has its middle."""
    cut = []
    for begin in np.arange(0, len(one.sound) / RATE, seconds):
        chosen = [
            word
            for word, (start, end) in zip(one.words, one.times, strict=True)
            if begin <= (start + end) / 2 < begin + seconds
        ]
        if chosen:
            cut.append(Utterance(one.sound[int(begin * RATE) : int((begin + seconds) * RATE)], chosen))
    return cut


class Listeners:
    """Ways to ask faster-whisper, on one thread, once: many words out of ten look like a loop to it."""

    def __init__(self, folder: Path) -> None:
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)
        self._batched = BatchedInferencePipeline(self._model)

    def one(self, **options: Any) -> Listen:
        chosen = {"language": "en", "temperature": 0.0, **options}
        return lambda sound: list(self._model.transcribe(sound, **chosen)[0])

    def batched(self, **options: Any) -> Listen:
        return lambda sound: list(self._batched.transcribe(sound, language="en", batch_size=4, **options)[0])


def report(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    listen = Listeners(folder)
    voices = {voice: [flite(random, voice) for _ in range(15)] for voice in FLITE_VOICES}
    voices |= {f"espeak {voice}": [espeak(random, voice) for _ in range(10)] for voice in ESPEAK_VOICES}
    short = [one for spoken in voices.values() for one in spoken]
    for voice, spoken in voices.items():
        LOG.info("%s, beam 5: %.4f", voice, error_rate(spoken, listen.one()))
    ways = {
        "beam 5": listen.one(),
        "beam 1": listen.one(beam_size=1),
        "beam 5, VAD": listen.one(vad_filter=True),
        "batched": listen.batched(),
        "batched, time stamps": listen.batched(without_timestamps=False),
    }
    for name, way in ways.items():
        LOG.info("short, %s: %.4f", name, error_rate(short, way))
    for extension in CODECS:
        heard = [Utterance(through(one.sound, extension), one.words) for one in short[::5]]
        LOG.info("short, after %s: %.4f", extension, error_rate(heard, ways["beam 5"]))
    _report_dense(random, listen, ways)
    timed = [one for one in short if one.times]
    for name, some in (("short", timed), ("dense", [dense(random, 30) for _ in range(4)])):
        first, others = offsets(some, listen.one(word_timestamps=True))
        LOG.info("%s, word starts off by ms: first %s, others %s", name, _spread(first), _spread(others))


def _report_dense(random: np.random.Generator, listen: Listeners, ways: dict[str, Listen]) -> None:
    whole = [dense(random, 30) for _ in range(6)]
    runs = [dense(random, 30, run=digit) for digit in range(10)]
    LOG.info("dense windows have %s digits", [len(one.words) for one in whole])
    for name, way in {**ways, "beam 5, words": listen.one(word_timestamps=True)}.items():
        LOG.info("dense 30 s, %s: %.4f", name, error_rate(whole, way))
    LOG.info("dense 30 s of one digit, beam 5: %.4f", error_rate(runs, ways["beam 5"]))
    LOG.info("of one digit, each: %s", [round(error_rate([one], ways["beam 5"]), 3) for one in runs])
    minute = [dense(random, 60) for _ in range(3)]
    cut = [piece for one in minute for piece in pieces(one, 10)]
    LOG.info("dense 60 s, beam 5: %.4f", error_rate(minute, ways["beam 5"]))
    LOG.info("dense 60 s cut into 10 s, beam 5: %.4f", error_rate(cut, ways["beam 5"]))


def _spread(values: list[float]) -> str:
    if not values:
        return "none"
    middle, most = np.percentile(values, (50, 90))
    return f"median {middle:.0f}, 90 % under {most:.0f} (of {len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seed", type=int, default=20_011)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    report(given.model, given.seed)


if __name__ == "__main__":
    main()
