"""Long sessions of known text, spoken by flite, and the ways in which a recorder cuts them into files.

Everything comes from a seed: the same words, pauses and noise each time.
"""

from __future__ import annotations

import io
import random
import subprocess
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.core.text.speech import SAMPLE_RATE
from support import recorder
from support.audio import encode, wav

Samples = npt.NDArray[np.float32]

NOISE = 0.0006
"""About 64 dB below full scale: a quiet room. Nothing recorded is digital silence."""
LEVEL = 0.7
BLOCKS_PER_SECOND = 50
"""Opus frames of 20 ms, one to a block."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DETERMINERS = ("the", "a", "this", "that", "every", "another", "our", "their", "his", "her")
ADJECTIVES = (
    "old", "young", "quiet", "heavy", "green", "small", "broken", "careful", "happy", "cold", "narrow",
    "wooden", "bright", "hungry", "strange", "honest", "distant", "simple", "famous", "empty", "golden",
    "gentle", "early", "foreign", "public", "private", "modern", "ancient", "local", "northern",
)  # fmt: skip
PEOPLE = (
    "farmer", "doctor", "teacher", "sister", "brother", "lawyer", "soldier", "captain", "student",
    "neighbor", "painter", "driver", "mother", "father", "woman", "man", "boy", "girl", "manager",
    "reporter", "visitor", "president", "worker", "singer", "writer", "judge", "officer", "sailor", "child",
    "friend",
)  # fmt: skip
THINGS = (
    "basket", "letter", "window", "table", "bottle", "machine", "picture", "garden", "bridge", "ticket",
    "kitchen", "camera", "computer", "river", "village", "mountain", "market", "hospital", "station",
    "harbor", "church", "school", "office", "newspaper", "engine", "blanket", "mirror", "river bank",
    "dinner", "contract", "question", "answer", "problem", "decision", "company", "building", "forest",
    "island", "country", "city",
)  # fmt: skip
ACTIONS = (
    "carried", "opened", "found", "visited", "bought", "sold", "painted", "described", "remembered",
    "needed", "wanted", "followed", "watched", "repaired", "discovered", "offered", "finished", "started",
    "changed", "received", "returned", "measured", "studied", "protected", "noticed", "promised",
    "borrowed", "collected",
)  # fmt: skip
PLACES = (
    "near the river", "behind the house", "across the street", "in the morning", "after the meeting",
    "before the winter", "during the summer", "on the second floor", "at the end of the road",
    "with great care", "without any help", "for a very long time", "under the bridge",
    "between the two towns", "last september", "every other week", "on a cold evening",
    "in front of the station", "because of the weather", "until midnight",
)  # fmt: skip
LINKS = ("and", "but", "because", "while", "so", "although", "when")


@dataclass(frozen=True, eq=False)
class Session:
    """What was said, and how it sounds."""

    name: str
    text: str
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Style:
    """How phrases follow one another: pauses in seconds, from and to."""

    voice: str
    pauses: tuple[float, float]
    long: tuple[float, float] = (0.0, 0.0)
    often: float = 0.0
    """The share of pauses that are long ones."""

    def pause(self, chance: random.Random) -> float:
        return chance.uniform(*(self.long if chance.random() < self.often else self.pauses))


def english(words: int, *, voice: str = "rms", seed: int = 1) -> Session:
    """So many words of plain sentences, and a few more to end the last one; a pause behind each."""
    chance = random.Random(seed)
    return _session("english", sentences(words, chance), Style(voice, (0.1, 0.7), (1.5, 6.0), 0.04), chance)


def sentences(words: int, chance: random.Random) -> list[str]:
    phrases: list[str] = []
    while sum(len(phrase.split()) for phrase in phrases) < words:
        phrases.append(_sentence(chance))
    return phrases


def restless(words: int, *, voice: str = "rms", seed: int = 5) -> Session:
    """Sentences without a long pause, so that nothing of it is silence to anybody."""
    chance = random.Random(seed)
    phrases = [_sentence(chance) for _ in range(words // 6)]
    return _session("restless", phrases, Style(voice, (0.05, 0.3)), chance)


def dense_digits(count: int, *, voice: str = "slt", seed: int = 2) -> Session:
    """One digit behind the other, in phrases of one to eight, with hardly a pause."""
    chance = random.Random(seed)
    return _session("dense digits", _phrases(count, 8, chance), Style(voice, (0.0, 0.15)), chance)


def paused_digits(count: int, *, voice: str = "slt", seed: int = 3) -> Session:
    """Digits as they are read out to somebody who writes them down."""
    chance = random.Random(seed)
    style = Style(voice, (0.3, 1.2), (2.0, 8.0), 0.05)
    return _session("paused digits", _phrases(count, 4, chance), style, chance)


def runs_of_digits(count: int, *, voice: str = "slt", seed: int = 4) -> Session:
    """The same digit again and again, two to six times: whatever compares texts is led astray by it."""
    chance = random.Random(seed)
    phrases: list[str] = []
    while sum(len(phrase.split()) for phrase in phrases) < count:
        phrases.append(" ".join([chance.choice(DIGITS)] * chance.randint(2, 6)))
    return _session("runs of one digit", phrases, Style(voice, (0.0, 0.3), (0.6, 1.5), 0.1), chance)


def _sentence(chance: random.Random) -> str:
    said = _clause(chance)
    if chance.random() < 0.4:
        said = f"{said} {chance.choice(LINKS)} {_clause(chance)}"
    return said


def _clause(chance: random.Random) -> str:
    place = f" {chance.choice(PLACES)}" if chance.random() < 0.6 else ""
    return f"{_noun(chance, PEOPLE)} {chance.choice(ACTIONS)} {_noun(chance, THINGS)}{place}"


def _noun(chance: random.Random, nouns: Sequence[str]) -> str:
    words = [chance.choice(DETERMINERS), chance.choice(nouns)]
    if chance.random() < 0.5:
        words.insert(1, chance.choice(ADJECTIVES))
    if words[0] in {"a", "another"} and words[1][0] in "aeiou":
        words[0] = "the"
    return " ".join(words)


def _phrases(count: int, longest: int, chance: random.Random) -> list[str]:
    phrases: list[str] = []
    while (left := count - sum(len(phrase.split()) for phrase in phrases)) > 0:
        size = min(left, chance.randint(1, longest))
        phrases.append(" ".join(chance.choice(DIGITS) for _ in range(size)))
    return phrases


def _session(name: str, phrases: Sequence[str], style: Style, chance: random.Random) -> Session:
    """Flite speaks each phrase for itself, so that the pauses between them are ours."""
    with ThreadPoolExecutor(2) as together:
        spoken = list(together.map(partial(say, style.voice), phrases))
    parts = [np.zeros(SAMPLE_RATE // 2, np.float32)]
    for part in spoken:
        parts += [part, np.zeros(int(style.pause(chance) * SAMPLE_RATE), np.float32)]
    return Session(name, " ".join(phrases), in_a_room(np.concatenate(parts)))


def in_a_room(audio: Samples, seed: int = 9) -> Samples:
    noise = np.random.default_rng(seed).normal(0, NOISE, len(audio)).astype(np.float32)
    return (audio + noise).clip(-1, 1)


def say(voice: str, text: str) -> Samples:
    """What flite makes of it, without the silence around it; 16 kHz."""
    words = ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"]
    made = subprocess.run(words, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    with wave.open(io.BytesIO(made)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (SAMPLE_RATE, 1, 2), voice
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    (loud,) = np.nonzero(np.abs(audio) > 0.003)
    audio = audio[loud[0] : loud[-1] + 1]
    loudest = max(float(np.abs(audio).max()), 0.1)
    return (audio * (LEVEL / loudest)).astype(np.float32)


def pieces(audio: Samples, seconds: float, overlap: float) -> Iterator[Samples]:
    """As a recorder that restarts: each piece but the first begins so many seconds before its cut."""
    size, shared = round(seconds * SAMPLE_RATE), round(overlap * SAMPLE_RATE)
    for begin in range(0, len(audio), size):
        yield audio[max(0, begin - shared) : begin + size]


def files(audio: Samples, kind: str, seconds: float, overlap: float) -> list[bytes]:
    """Each piece as a file with a header of its own."""
    return [wav(part) if kind == "wav" else encode(part, kind) for part in pieces(audio, seconds, overlap)]


def timeslices(audio: Samples, seconds: float) -> list[bytes]:
    """One recording handed out in pieces: only the first has a header."""
    recording = recorder.webm(audio, cluster_seconds=seconds / 2)
    return recorder.at_blocks(recording, round(seconds * BLOCKS_PER_SECOND))


def read(path: Path) -> Samples:
    """A recording from elsewhere, 16 kHz mono."""
    with AudioDecoder() as decoder:
        return decoder.decode_all(path.read_bytes(), max_seconds=24 * 3600).samples
