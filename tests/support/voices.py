"""Conversations of made-up voices, and how wrong a guess of who spoke when is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from batchscribe.audio.audio_decoder import Samples
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.engine import Engine
from support.spoken import loud_spans

FRAME = 0.01
"""Seconds."""


@dataclass(frozen=True)
class Said:
    """One turn of a conversation, in seconds."""

    speaker: str
    start: float
    end: float


@dataclass(frozen=True)
class Conversation:
    audio: Samples
    turns: tuple[Said, ...]


class Voice:
    """Pulses at a pitch of its own, through resonances of its own."""

    def __init__(self, number: int, chance: np.random.Generator) -> None:
        self.pitch = 95.0 + 33 * number
        self.resonances = [(center + 170 * number, 90 + 20 * number) for center in (420, 1350, 2600)]
        self._chance = chance

    def speak(self, seconds: float) -> Samples:
        """Syllables of a quarter of a second, with short gaps."""
        audio = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        for begin in range(0, len(audio) - 4000, 4800):
            audio[begin : begin + 4000] = self._make_syllable()
        return audio

    def _make_syllable(self) -> Samples:
        pitch = self.pitch * self._chance.uniform(0.94, 1.06)
        heights = np.arange(pitch, 7500, pitch)
        vowel = [self._chance.uniform(0.4, 1.0) for _ in self.resonances]
        level = np.sum(
            [
                loud / (1 + ((heights - center) / width) ** 2)
                for loud, (center, width) in zip(vowel, self.resonances, strict=True)
            ],
            axis=0,
        )
        at = np.arange(4000) / SAMPLE_RATE
        sound = (level[:, None] * np.sin(2 * np.pi * heights[:, None] * at)).sum(axis=0)
        shaped: Samples = (0.5 * sound / np.abs(sound).max() * np.hanning(4000)).astype(np.float32)
        return shaped


def converse(voices: int, seconds: float, seed: int = 0, *, only: Sequence[int] = ()) -> Conversation:
    """A conversation of so many voices, in turns of 2 to 9 s with pauses; each voice speaks at least once."""
    chance = np.random.default_rng(seed)
    cast = [Voice(number, chance) for number in range(voices)]
    order = list(only or range(voices))
    pieces: list[Samples] = []
    turns: list[Said] = []
    at, last = 0.0, -1
    while at < seconds:
        waiting = order[len(turns) :] or [number for number in order if number != last or len(order) == 1]
        last = waiting[0] if len(turns) < len(order) else int(chance.choice(waiting))
        sound = cast[last].speak(float(chance.uniform(2, 9)))
        pause = np.zeros(round(float(chance.uniform(0.2, 1.2)) * SAMPLE_RATE), np.float32)
        turns.append(Said(f"voice {last}", at, at + len(sound) / SAMPLE_RATE))
        pieces += [sound, pause]
        at += (len(sound) + len(pause)) / SAMPLE_RATE
    noise = chance.normal(0, 1e-3, round(at * SAMPLE_RATE) + 1).astype(np.float32)
    audio = np.concatenate(pieces)
    return Conversation(audio + noise[: len(audio)], tuple(turns))


def measure_error(reference: Iterable[Said], guess: Iterable[Said], collar: float = 0.25) -> float:
    """Diarisation error rate with the best mapping of speakers, without `collar` s around the borders."""
    turns = list(reference)
    length = round(max(turn.end for turn in turns) / FRAME)
    spoken, guessed = _make_frames(turns, length), _make_frames(guess, length)
    scored = np.ones(length, bool)
    for turn in turns:
        for border in (turn.start, turn.end):
            scored[max(0, round((border - collar) / FRAME)) : round((border + collar) / FRAME)] = False
    rows = [row[scored] for row in spoken.values()]
    others = [row[scored] for row in guessed.values()]
    others += [np.zeros_like(rows[0])] * max(0, len(rows) - len(others))
    total = sum(int(row.sum()) for row in rows)
    count = np.sum(rows, axis=0), np.sum(others, axis=0)
    right = np.array([[int((row & other).sum()) for other in others] for row in rows])
    best = max(
        sum(right[at, chosen] for at, chosen in enumerate(order))
        for order in permutations(range(len(others)), len(rows))
    )
    return float((np.maximum(*count).sum() - best) / total)


def _make_frames(turns: Iterable[Said], length: int) -> dict[str, npt.NDArray[np.bool_]]:
    frames: dict[str, npt.NDArray[np.bool_]] = {}
    for turn in turns:
        row = frames.setdefault(turn.speaker, np.zeros(length, bool))
        row[round(turn.start / FRAME) : round(turn.end / FRAME)] = True
    return frames


class SyllableEngine(Engine):
    """One word for each syllable."""

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        for window in batch:
            words = tuple(
                Word(word="la", start=begin / SAMPLE_RATE, end=end / SAMPLE_RATE)
                for begin, end in loud_spans(window.audio)
            )
            text = " ".join(word.word for word in words)
            segment = Segment(text=text, start=0.0, end=window.seconds, words=words)
            yield Recognition(window.id, (segment,) if words else (), "en")
