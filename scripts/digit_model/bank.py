"""The speech to build samples from: phrases of flite, digits of espeak, each word with its times."""

from __future__ import annotations

import io
import pickle
import subprocess
import tempfile
import wave
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .vocabulary import WORDS

RATE = 16_000
FLITE_VOICES = ("slt", "rms", "awb", "kal16", "kal")
PHONES = (4, 3, 2, 3, 3, 3, 4, 5, 2, 3)
"""Phones of each digit, zero to nine, in flite's lexicon."""
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("", "m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f3", "f4", "f5", "klatt", "Adam", "linda")
SPEEDS = (130, 165, 200)
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Phrase:
    """Speech of one speaker: int16 samples at 16 kHz, and (digit, begin, end) in seconds of them."""

    speaker: str
    pcm: npt.NDArray[np.int16]
    words: tuple[tuple[int, float, float], ...]


def read_wav(content: bytes) -> Samples:
    """Mono PCM of 8, 16 or 22.05 kHz as float32 at 16 kHz; by Fourier transform, so nothing is folded."""
    with wave.open(io.BytesIO(content)) as file:
        rate = file.getframerate()
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    sound = pcm.astype(np.float32) / 32768
    return sound if rate == RATE else resample(sound, len(sound) * RATE // rate)


def resample(sound: Samples, length: int) -> Samples:
    spectrum = np.fft.rfft(sound)
    made = np.zeros(length // 2 + 1, np.complex128)
    kept = min(len(spectrum), len(made))
    made[:kept] = spectrum[:kept]
    return (np.fft.irfft(made, length) * (length / len(sound))).astype(np.float32)


def random_digits(random: np.random.Generator, count: int) -> list[int]:
    """In three of ten, one digit is said two to four times in a row: runs are what is miscounted."""
    digits = [int(digit) for digit in random.integers(0, 10, count)]
    if count > 1 and random.random() < 0.3:
        at = int(random.integers(0, count - 1))
        for number in range(at, min(count, at + int(random.integers(2, 5)))):
            digits[number] = digits[at]
    return digits


def say_flite(voice: str, digits: list[int], stretch: float, *, commas: frozenset[int]) -> Phrase:
    """A phrase without the pauses around it; `commas` names the words that a comma follows."""
    text = " ".join(WORDS[digit] + ("," if at in commas else "") for at, digit in enumerate(digits))
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-psdur"]
        said = subprocess.run([*command, "-t", text, "-o", file.name], check=True, capture_output=True)
        sound = read_wav(Path(file.name).read_bytes())
    words = _word_times(said.stdout.decode(), digits)
    return _trimmed(f"flite {voice}", sound, words)


def _word_times(phones: str, digits: list[int]) -> list[tuple[int, float, float]]:
    """From `phone:end` pairs in seconds; some voices cut the last pause short, and no word with it."""
    ends = [(name, float(end)) for name, end in (pair.rsplit(":", 1) for pair in phones.split())]
    begins = [0.0, *(end for _, end in ends)]
    spans = [(begins[at], end) for at, (name, end) in enumerate(ends) if name != "pau"]
    if len(spans) != sum(PHONES[digit] for digit in digits):
        raise ValueError(f"flite said {phones} for {digits}")
    words, at = [], 0
    for digit in digits:
        last = at + PHONES[digit] - 1
        words.append((digit, spans[at][0], spans[last][1]))
        at = last + 1
    return words


def _trimmed(speaker: str, sound: Samples, words: list[tuple[int, float, float]]) -> Phrase:
    margin = 0.02
    begin = max(0.0, words[0][1] - margin)
    kept = sound[int(begin * RATE) : int((words[-1][2] + margin) * RATE)]
    moved = tuple((digit, start - begin, end - begin) for digit, start, end in words)
    return Phrase(speaker, (kept * 32767).astype(np.int16), moved)


def say_espeak(speaker: str, speed: int, digit: int) -> Phrase:
    """One digit, its silence cut off."""
    command = ["espeak-ng", "-v", speaker, "-s", str(speed), "--stdout", WORDS[digit]]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    sound = read_wav(said)
    loud = np.abs(sound) > 0.015 * np.abs(sound).max()
    first, last = int(loud.argmax()), len(loud) - int(loud[::-1].argmax())
    kept = sound[first:last]
    return Phrase(f"{speaker} {speed}", (kept * 32767).astype(np.int16), ((digit, 0.0, len(kept) / RATE),))


def _flite_phrases(seed: int, count: int) -> list[Phrase]:
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        digits = random_digits(random, int(random.integers(1, 9)))
        with_commas = random.random() < 0.25
        commas = frozenset(at for at in range(len(digits) - 1) if with_commas and random.random() < 0.4)
        stretch = float(random.uniform(0.75, 1.35))
        made.append(say_flite(FLITE_VOICES[number % 5], digits, stretch, commas=commas))
    return made


def _espeak_digits(accent: str) -> list[Phrase]:
    speakers = [f"{accent}+{variant}".rstrip("+") for variant in VARIANTS]
    return [
        say_espeak(speaker, speed, digit) for speaker in speakers for speed in SPEEDS for digit in range(10)
    ]


def make(path: Path, *, seed: int, phrases: int) -> None:
    """Writes (flite phrases, espeak digits by speaker) as a pickle, with two processes."""
    with ProcessPoolExecutor(2) as pool:
        flite = [pool.submit(_flite_phrases, seed * 1000 + part, phrases // 10) for part in range(10)]
        espeak = list(pool.map(_espeak_digits, ACCENTS))
        spoken = [phrase for part in flite for phrase in part.result()]
    speakers: dict[str, list[Phrase]] = {}
    for phrase in (phrase for part in espeak for phrase in part):
        speakers.setdefault(phrase.speaker, []).append(phrase)
    with path.open("wb") as file:
        pickle.dump((spoken, list(speakers.values())), file)


def load(path: Path) -> tuple[list[Phrase], list[list[Phrase]]]:
    with path.open("rb") as file:
        phrases, speakers = pickle.load(file)  # noqa: S301 - written by `make` above, on this machine
    return phrases, speakers
