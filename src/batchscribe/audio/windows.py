"""Cuts a stream into windows of up to 30 s, at pauses.

The stream is processed in blocks of some minutes, so that hours of audio are never held at once. Speech that
may continue after a block waits for the next one. Long silences are shortened to a pause that still separates
two sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec
import numpy as np
import numpy.typing as npt

from batchscribe.core.text.speech import MAX_WINDOW_SECONDS, SAMPLE_RATE
from batchscribe.core.text.transcripts import Segment, Word

Samples = npt.NDArray[np.float32]
SpeechFinder = Callable[[Samples], Sequence[tuple[int, int]]]
"""Spans of speech in 16 kHz mono audio: (first, past the last) sample, in order."""
Span = tuple[int, int]

FIRST_BLOCK = 30 * SAMPLE_RATE
"""Small, so that the engine gets work soon; each block is twice as long as the previous one."""
BLOCK = 180 * SAMPLE_RATE
MAX_WINDOW = int(MAX_WINDOW_SECONDS * SAMPLE_RATE)
MAX_REACH = 2 * MAX_WINDOW
"""Longest distance of a window's first and last sample, including silences that are left out."""
MAX_GAP = SAMPLE_RATE
"""Length to which silences inside a window are shortened: models invent words in longer ones."""
MAY_GO_ON = MAX_WINDOW
"""A window that ends so close to the end of a block may continue in the next one."""
LEAD = SAMPLE_RATE // 2
"""Audio before held-back speech that the next block keeps for the voice detector."""
TAIL = SAMPLE_RATE
"""End of a silent block that the next block repeats: a word may just begin there."""
FRAME = SAMPLE_RATE // 50
ABOUT = 2.0
"""Places with up to so many times the least power are equally quiet: a later cut fills a window better."""
SILENT = 30.0
"""200 ms with so many times less power than the speech around them contain no word."""
PAUSE = 10.0
"""A pause has so many times less power than the speech around it."""
LEAST = SAMPLE_RATE
"""Shortest part of a span that is worth a cut."""
SMOOTH = 10
"""Frames of 20 ms over which power is averaged: 200 ms is longer than the closure of a consonant."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A window: parts of the stream, without long silences between them.

    `parts` are (first, past the last) sample on the clock of the stream, in order and disjoint; `audio` has
    shape (samples,), all parts joined. `spans` are the speech in the parts, on the same clock.
    """

    parts: tuple[Span, ...]
    audio: Samples
    spans: tuple[Span, ...]

    @property
    def speech(self) -> int:
        """Samples of speech."""
        return sum(end - begin for begin, end in self.spans)

    @property
    def speech_seconds(self) -> tuple[tuple[float, float], ...]:
        """The spans in seconds."""
        return tuple((begin / SAMPLE_RATE, end / SAMPLE_RATE) for begin, end in self.spans)

    @property
    def start(self) -> int:
        return self.parts[0][0]

    @property
    def end(self) -> int:
        return self.parts[-1][1]

    @property
    def seconds_in(self) -> float:
        return self.start / SAMPLE_RATE

    def place_on_stream(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        """Converts times of segments from the window's clock to the stream's."""
        return tuple(map(self._place_segment, segments))

    def _place_segment(self, segment: Segment) -> Segment:
        words = tuple(map(self._place_word, segment.words))
        if words:
            return msgspec.structs.replace(segment, start=words[0].start, end=words[-1].end, words=words)
        # Without words it may span silences that were left out.
        start, end = (
            self._stream_time(segment.start, segment.start),
            self._stream_time(segment.end, segment.end),
        )
        return msgspec.structs.replace(segment, start=start, end=max(start, end))

    def _place_word(self, word: Word) -> Word:
        middle = (word.start + word.end) / 2
        return msgspec.structs.replace(
            word, start=self._stream_time(word.start, middle), end=self._stream_time(word.end, middle)
        )

    def _stream_time(self, seconds: float, near: float) -> float:
        """Converts a window's time to the stream's, in the part at `near`."""
        lengths = [end - begin for begin, end in self.parts]
        ends = list(accumulate(lengths))
        at = next((place for place, end in enumerate(ends) if near * SAMPLE_RATE < end), len(ends) - 1)
        begin, end = self.parts[at]
        sample = begin + seconds * SAMPLE_RATE - (ends[at] - lengths[at])
        return round(min(max(sample, begin), end) / SAMPLE_RATE, 3)

    def clip(self, begin: float, end: float) -> Cut | None:
        """Its part in [begin, end), samples of the stream, or None."""
        audio: list[Samples] = []
        at = 0
        for first, last in self.parts:
            for low, high in _clip_spans([(first, last)], begin, end):
                audio.append(self.audio[at + low - first : at + high - first])
            at += last - first
        parts, spans = (tuple(_clip_spans(ranges, begin, end)) for ranges in (self.parts, self.spans))
        return Cut(parts, np.concatenate(audio), spans) if parts else None


def _clip_spans(spans: Iterable[Span], begin: float, end: float) -> Iterator[Span]:
    """Clips the spans to [begin, end); drops those outside."""
    for first, last in spans:
        low, high = int(max(first, begin)), int(min(last, end))
        if low < high:
            yield low, high


def measure_levels(audio: Samples) -> npt.NDArray[np.float64]:
    """Power of each 200 ms, every 20 ms."""
    count = len(audio) // FRAME
    if count <= SMOOTH:
        return np.zeros(0)
    power = np.mean(np.square(audio[: count * FRAME].reshape(count, FRAME), dtype=np.float64), axis=1)
    return np.convolve(power, np.full(SMOOTH, 1 / SMOOTH), mode="valid")


def find_quiet_place(audio: Samples, begin: int, end: int) -> int:
    """Middle of the last 200 ms of near silence in `audio[begin:end]`."""
    level = measure_levels(audio[begin:end])
    if not len(level):
        return (begin + end) // 2
    (quiet,) = np.nonzero(level <= max(ABOUT * level.min(), level.mean() / SILENT))
    return int(begin + (int(quiet[-1]) + SMOOTH / 2) * FRAME)


def find_pause(audio: Samples, span: Span, room: int) -> int | None:
    """Middle of the last pause in a span's first `room` samples."""
    level = measure_levels(audio[slice(*span)])
    if not len(level):
        return None
    silent = min(ABOUT * float(level.min()), float(level.mean()) / PAUSE)
    (quiet,) = np.nonzero(level[: max(0, room // FRAME - SMOOTH)] <= silent)
    at = (int(quiet[-1]) + SMOOTH // 2) * FRAME if len(quiet) else 0
    return span[0] + at if at >= LEAST else None


def split_long_span(audio: Samples, span: Span) -> Iterator[Span]:
    """Splits a span at quiet places into parts of at most MAX_WINDOW."""
    begin, end = span
    while end - begin > MAX_WINDOW:
        at = find_quiet_place(audio, begin + MAX_WINDOW // 2, begin + MAX_WINDOW)
        yield begin, at
        begin = at
    yield begin, end


@dataclass(slots=True)
class _Group:
    """Spans of speech that share a window."""

    spans: list[Span]
    length: int
    """Samples of the window: the spans and the shortened silences between them."""

    def measure_room(self, begin: int) -> int:
        """Samples of speech from `begin` on that still fit in."""
        gap = min(begin - self.spans[-1][1], MAX_GAP)
        return min(MAX_WINDOW - self.length - gap, self.spans[0][0] + MAX_REACH - begin)

    def add_span(self, span: Span) -> None:
        gap = min(span[0] - self.spans[-1][1], MAX_GAP)
        self.length += gap + span[1] - span[0]
        self.spans.append(span)

    def join_spans(self) -> tuple[Span, ...]:
        """The spans with the shortened silences, in as few parts as possible."""
        parts = [self.spans[0]]
        for begin, end in self.spans[1:]:
            before, last = parts[-1]
            if begin - last <= MAX_GAP:
                parts[-1] = (before, end)
            else:
                parts[-1] = (before, last + MAX_GAP // 2)
                parts.append((begin - MAX_GAP // 2, end))
        return tuple(parts)


def group_spans(audio: Samples, spans: Iterable[Span]) -> list[_Group]:
    """Groups spans, in order, into groups that fit and fill a window.

    A span that does not fit is cut at a pause, so that no window stays half empty.
    """
    groups: list[_Group] = []
    for span in spans:
        rest = _fill_group(audio, groups[-1], span) if groups else span
        parts = split_long_span(audio, rest) if rest else ()
        groups.extend(_Group([part], part[1] - part[0]) for part in parts)
    return groups


def _fill_group(audio: Samples, group: _Group, span: Span) -> Span | None:
    """Adds what fits of a span to a group; returns the rest."""
    room = group.measure_room(span[0])
    if span[1] - span[0] <= room:
        group.add_span(span)
        return None
    at = find_pause(audio, span, room)
    if at is None:
        return span
    group.add_span((span[0], at))
    return at, span[1]


class Cutter:
    """Cuts windows of one 16 kHz mono stream. Not thread-safe."""

    def __init__(self, find_speech: SpeechFinder, *, first: int = FIRST_BLOCK, block: int = BLOCK) -> None:
        self._find_speech = find_speech
        self._limit = min(first, block)
        self._block = block
        self._held: list[Samples] = []
        self._length = 0
        self.done = 0
        """Samples of the stream whose windows have all been returned."""

    def push(self, piece: Samples) -> Iterator[Cut]:
        """Yields the windows that are ready after this piece."""
        self._held.append(piece)
        self._length += len(piece)
        if self._length >= self._limit:
            self._limit = min(2 * self._limit, self._block)
            yield from self._cut_block(final=False)

    def finish(self) -> Iterator[Cut]:
        """Yields the remaining windows at the end of the stream."""
        if self._length:
            yield from self._cut_block(final=True)

    def _cut_block(self, *, final: bool) -> Iterator[Cut]:
        audio = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        groups = group_spans(audio, self._find_speech(audio))
        keep = len(audio) if final else self._hold_back(groups, len(audio))
        # Copied, so that waiting windows do not keep their whole block in memory.
        self._held, self._length = (
            ([audio[keep:].copy()], len(audio) - keep) if keep < len(audio) else ([], 0)
        )
        base, self.done = self.done, self.done + keep
        for group in groups:
            joined = group.join_spans()
            sound = np.concatenate([audio[begin:end] for begin, end in joined])
            parts, spans = (
                tuple((begin + base, end + base) for begin, end in each) for each in (joined, group.spans)
            )
            yield Cut(parts, sound, spans)

    @staticmethod
    def _hold_back(groups: list[_Group], length: int) -> int:
        """Removes a last group that may continue; returns the next block's begin."""
        held = groups.pop() if groups and groups[-1].spans[-1][1] > length - MAY_GO_ON else None
        begin = held.spans[0][0] - LEAD if held else length - TAIL
        return max(0, begin, groups[-1].join_spans()[-1][1] if groups else 0)
