"""A language of tones: word k is a tone of its own height, so that what is heard can be known for sure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from batchscribe.audio.audio_decoder import Beginning, Decoding, Samples
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.engine import Engine

LOWEST, STEP = 200, 25
"""Hz; heights differ by more than the shortest word can blur."""
FRAME = 160
SHORTEST = 0.05
"""Seconds; less of a tone is no word."""


@dataclass(frozen=True)
class Spoken:
    """A word, and when it is said, in seconds."""

    word: int
    start: float
    end: float


def speech(words: Iterable[Spoken], seconds: float) -> Samples:
    audio = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for spoken in words:
        begin, end = round(spoken.start * SAMPLE_RATE), round(spoken.end * SAMPLE_RATE)
        at = np.arange(begin, end) / SAMPLE_RATE
        audio[begin:end] = 0.5 * np.sin(2 * np.pi * (LOWEST + STEP * spoken.word) * at)
    return audio


def loud_spans(audio: Samples) -> list[tuple[int, int]]:
    """From the first to past the last sample of each sound, silences of less than 10 ms included."""
    frames = np.abs(audio[: len(audio) // FRAME * FRAME]).reshape(-1, FRAME).max(axis=1, initial=0) > 0.01
    edges = np.flatnonzero(np.diff(np.concatenate([[False], frames, [False]]).astype(np.int8))) * FRAME
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def find_speech(audio: Samples) -> list[tuple[int, int]]:
    """As a voice detector does it: half a second of silence ends a span."""
    spans: list[tuple[int, int]] = []
    for begin, end in loud_spans(audio):
        if spans and begin - spans[-1][1] < SAMPLE_RATE // 2:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return spans


def hear(audio: Samples) -> Iterator[Word]:
    for span in loud_spans(audio):
        begin, end = _exact(audio, *span)
        if end - begin < SHORTEST * SAMPLE_RATE:
            continue
        sound = audio[begin:end]
        crossings = int(np.count_nonzero(np.diff(np.signbit(sound))))
        height = crossings / 2 / (len(sound) / SAMPLE_RATE)
        word = round((height - LOWEST) / STEP)
        yield Word(word=f"w{word}", start=begin / SAMPLE_RATE, end=end / SAMPLE_RATE)


def _exact(audio: Samples, begin: int, end: int) -> tuple[int, int]:
    """Without the silence that its first and last frame begin and end with."""
    (loud,) = np.nonzero(audio[begin:end])
    return begin + int(loud[0]), begin + int(loud[-1]) + 1


@dataclass
class ToneEngine(Engine):
    """Hears the language of tones, whole batches at a time; segments are as long as it likes."""

    batch_size: int = 1
    windows: int = 0
    seconds: float = 0.0

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        yield from map(self._one, reversed(batch))

    def _one(self, window: Window) -> Recognition:
        self.windows += 1
        self.seconds += window.seconds
        words = tuple(hear(window.audio))
        if not words:
            return Recognition(window.id, (), "en")
        text = " ".join(word.word for word in words)
        return Recognition(
            window.id, (Segment(text=text, start=words[0].start, end=words[-1].end, words=words),), "en"
        )


def raw(audio: Samples) -> bytes:
    """What RawDecoder reads: shape (n,) or (n, 2)."""
    return bytes([audio.ndim]) + audio.astype("<f4").tobytes()


class RawDecoder:
    """Decodes what `raw` wrote, in this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def decode(self, data: bytes, *, split: bool = False, **_more: Any) -> Decoding:
        channels = data[0]
        audio = np.frombuffer(data[1:], "<f4").reshape((-1, 2) if channels == 2 else (-1,))

        sent = channels if split else 1
        found: list[Decoding] = []

        def answers() -> Iterator[Any]:
            yield Beginning(position=None, rate=SAMPLE_RATE, channels=channels, codec="raw", sent=sent)
            sound = audio if split or channels == 1 else audio.mean(axis=1)
            for begin in range(0, len(sound), 5 * SAMPLE_RATE):
                yield sound[begin : begin + 5 * SAMPLE_RATE]
            found[0].seconds = len(audio) / SAMPLE_RATE

        found.append(Decoding(answers()))
        return found[0]
