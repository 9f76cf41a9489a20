"""From a stream of samples to windows: up to 30 s each, cut where nobody speaks.

The stream is taken in blocks of some minutes, so that an hour of audio is never held at once. A
block ends at the quietest place near its end, and what follows it begins the next block.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchscribe.core.speech import MAX_WINDOW_SECONDS, SAMPLE_RATE

Samples = npt.NDArray[np.float32]
SpeechFinder = Callable[[Samples], Sequence[tuple[int, int]]]
"""Spans of speech in 16 kHz mono audio: (first, past the last) sample, in order."""

BLOCK_SECONDS = 300
MAX_WINDOW = int(MAX_WINDOW_SECONDS * SAMPLE_RATE)
MAX_GAP = 3 * SAMPLE_RATE
"""A longer silence is not given to the engine: models invent words in it."""
FRAME = SAMPLE_RATE // 50
SMOOTH = 5
"""Quiet is judged over 100 ms, five frames of 20 ms."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A piece of speech: `start` is its first sample on the clock of the whole stream."""

    start: int
    audio: Samples

    @property
    def seconds_in(self) -> float:
        return self.start / SAMPLE_RATE


def quietest(audio: Samples, begin: int, end: int) -> int:
    """The sample in the middle of the quietest 100 ms of `audio[begin:end]`."""
    count = (end - begin) // FRAME
    if count <= SMOOTH:
        return (begin + end) // 2
    shaped = audio[begin : begin + count * FRAME].reshape(count, FRAME)
    power = np.mean(np.square(shaped, dtype=np.float64), axis=1)
    level = np.convolve(power, np.ones(SMOOTH), mode="valid")
    return int(begin + (int(np.argmin(level)) + SMOOTH / 2) * FRAME)


def blocks(pieces: Iterable[Samples], seconds: int = BLOCK_SECONDS) -> Iterator[Cut]:
    """The stream in blocks of at most `seconds`, cut at the quietest place in the last 30 s of each."""
    start, held, parts = 0, 0, list[Samples]()
    limit = seconds * SAMPLE_RATE
    for piece in pieces:
        parts.append(piece)
        held += len(piece)
        while held >= limit:
            audio = np.concatenate(parts)
            at = quietest(audio, max(limit // 2, limit - MAX_WINDOW), limit)
            yield Cut(start, audio[:at])
            start, held, parts = start + at, len(audio) - at, [audio[at:]]
    if held:
        yield Cut(start, np.concatenate(parts))


def short_enough(audio: Samples, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """A span in parts of at most 30 s, each cut at the quietest place of its second half."""
    begin, end = span
    while end - begin > MAX_WINDOW:
        at = quietest(audio, begin + MAX_WINDOW // 2, begin + MAX_WINDOW)
        yield begin, at
        begin = at
    yield begin, end


def joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Neighbouring spans as one, silence between them included, while they fit into a window."""
    begin, end = -1, -1
    for first, last in spans:
        if begin >= 0 and last - begin <= MAX_WINDOW and first - end <= MAX_GAP:
            end = last
            continue
        if begin >= 0:
            yield begin, end
        begin, end = first, last
    if begin >= 0:
        yield begin, end


def cut_windows(
    pieces: Iterable[Samples], find_speech: SpeechFinder, *, block_seconds: int = BLOCK_SECONDS
) -> Generator[Cut, None, None]:
    """The speech in a stream of 16 kHz mono pieces, in order, at most 30 s at a time; silence left out."""
    for block in blocks(pieces, block_seconds):
        spans = (part for span in find_speech(block.audio) for part in short_enough(block.audio, span))
        for begin, end in joined(spans):
            # A slice would keep its whole block in memory for as long as the window waits.
            yield Cut(block.start + begin, block.audio[begin:end].copy())
