"""From a stream of samples to windows: up to 30 s each, cut where nobody speaks.

The stream is looked at in blocks of some minutes, so that hours of audio are never held at once. What
may go on behind the end of a block waits for the next one. Silence is left out: of a long pause only so
much stays that a listener hears two sentences and not one.
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
"""Small, so that the engine has something to do soon; each block is twice the one before it."""
BLOCK = 180 * SAMPLE_RATE
MAX_WINDOW = int(MAX_WINDOW_SECONDS * SAMPLE_RATE)
MAX_REACH = 2 * MAX_WINDOW
"""A window's first and last word are no further apart, however much silence between them is left out."""
MAX_GAP = SAMPLE_RATE
"""What is left of a longer silence inside a window: models invent words in more."""
MAY_GO_ON = MAX_WINDOW
"""A window that ends so close to the end of a block may get more from the next one."""
LEAD = SAMPLE_RATE // 2
"""What the voice detector hears before speech that it has to find again."""
TAIL = SAMPLE_RATE
"""The end of a silent block is looked at again: a word may just begin there."""
FRAME = SAMPLE_RATE // 50
ABOUT = 2.0
"""Places of up to so many times the least power are as good: a later cut fills a window better."""
SILENT = 30.0
"""200 ms with so many times less power than the speech around them are in no word, quieter ones or not."""
PAUSE = 10.0
"""A pause has so many times less power than what is said around it."""
LEAST = SAMPLE_RATE
"""Less than a second of a span is not worth a cut."""
SMOOTH = 10
"""Quiet is judged over 200 ms, ten frames of 20 ms: longer than the closure of a consonant."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A window: parts of the stream, one behind the other, long silences between them left out.

    `parts` are (first, past the last) sample on the clock of the stream, in order and apart; `audio` has
    shape (samples,), all parts together. `spans` are the speech in the parts, on the same clock.
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

    def placed(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        """Segments with times on the clock of the stream, from times on the window's own."""
        return tuple(map(self._segment, segments))

    def _segment(self, segment: Segment) -> Segment:
        words = tuple(map(self._word, segment.words))
        if words:
            return msgspec.structs.replace(segment, start=words[0].start, end=words[-1].end, words=words)
        # It has no words to tell where it lies: it may reach over silences that were left out.
        start, end = self._time(segment.start, segment.start), self._time(segment.end, segment.end)
        return msgspec.structs.replace(segment, start=start, end=max(start, end))

    def _word(self, word: Word) -> Word:
        middle = (word.start + word.end) / 2
        return msgspec.structs.replace(
            word, start=self._time(word.start, middle), end=self._time(word.end, middle)
        )

    def _time(self, seconds: float, near: float) -> float:
        """A time of the window on the stream's clock, in the part that holds `near`."""
        lengths = [end - begin for begin, end in self.parts]
        ends = list(accumulate(lengths))
        at = next((place for place, end in enumerate(ends) if near * SAMPLE_RATE < end), len(ends) - 1)
        begin, end = self.parts[at]
        sample = begin + seconds * SAMPLE_RATE - (ends[at] - lengths[at])
        return round(min(max(sample, begin), end) / SAMPLE_RATE, 3)

    def within(self, begin: float, end: float) -> Cut | None:
        """What of it lies in [begin, end), samples of the stream; None where nothing does."""
        audio: list[Samples] = []
        at = 0
        for first, last in self.parts:
            for low, high in _clipped([(first, last)], begin, end):
                audio.append(self.audio[at + low - first : at + high - first])
            at += last - first
        parts, spans = (tuple(_clipped(each, begin, end)) for each in (self.parts, self.spans))
        return Cut(parts, np.concatenate(audio), spans) if parts else None


def _clipped(spans: Iterable[Span], begin: float, end: float) -> Iterator[Span]:
    """What of the spans lies in [begin, end)."""
    for first, last in spans:
        low, high = int(max(first, begin)), int(min(last, end))
        if low < high:
            yield low, high


def levels(audio: Samples) -> npt.NDArray[np.float64]:
    """The power of each 200 ms of it, one every 20 ms."""
    count = len(audio) // FRAME
    if count <= SMOOTH:
        return np.zeros(0)
    power = np.mean(np.square(audio[: count * FRAME].reshape(count, FRAME), dtype=np.float64), axis=1)
    return np.convolve(power, np.full(SMOOTH, 1 / SMOOTH), mode="valid")


def quiet_place(audio: Samples, begin: int, end: int) -> int:
    """The middle of the last 200 ms of `audio[begin:end]` that are silent, or about as quiet as any."""
    level = levels(audio[begin:end])
    if not len(level):
        return (begin + end) // 2
    (quiet,) = np.nonzero(level <= max(ABOUT * level.min(), level.mean() / SILENT))
    return int(begin + (int(quiet[-1]) + SMOOTH / 2) * FRAME)


def pause(audio: Samples, span: Span, room: int) -> int | None:
    """The middle of the last pause in the first `room` samples of a span; None where nobody pauses there."""
    level = levels(audio[slice(*span)])
    if not len(level):
        return None
    silent = min(ABOUT * float(level.min()), float(level.mean()) / PAUSE)
    (quiet,) = np.nonzero(level[: max(0, room // FRAME - SMOOTH)] <= silent)
    at = (int(quiet[-1]) + SMOOTH // 2) * FRAME if len(quiet) else 0
    return span[0] + at if at >= LEAST else None


def short_enough(audio: Samples, span: Span) -> Iterator[Span]:
    """A span in parts of at most 30 s, each cut at the last quiet place of its second half."""
    begin, end = span
    while end - begin > MAX_WINDOW:
        at = quiet_place(audio, begin + MAX_WINDOW // 2, begin + MAX_WINDOW)
        yield begin, at
        begin = at
    yield begin, end


@dataclass(slots=True)
class _Group:
    """Spans of speech that share a window."""

    spans: list[Span]
    length: int
    """Samples of the window: the spans, and what is left of the silences between them."""

    def room(self, begin: int) -> int:
        """How much more fits in, of speech that begins there."""
        gap = min(begin - self.spans[-1][1], MAX_GAP)
        return min(MAX_WINDOW - self.length - gap, self.spans[0][0] + MAX_REACH - begin)

    def take(self, span: Span) -> None:
        gap = min(span[0] - self.spans[-1][1], MAX_GAP)
        self.length += gap + span[1] - span[0]
        self.spans.append(span)

    def parts(self) -> tuple[Span, ...]:
        """The spans with what is left of the silences between them, as few as possible."""
        parts = [self.spans[0]]
        for begin, end in self.spans[1:]:
            before, last = parts[-1]
            if begin - last <= MAX_GAP:
                parts[-1] = (before, end)
            else:
                parts[-1] = (before, last + MAX_GAP // 2)
                parts.append((begin - MAX_GAP // 2, end))
        return tuple(parts)


def grouped(audio: Samples, spans: Iterable[Span]) -> list[_Group]:
    """Spans in order, so that each group fits into a window and fills it: one that does not fit any more is
    cut where somebody pauses, so that a window is not left half empty.
    """
    groups: list[_Group] = []
    for span in spans:
        rest = _filled(audio, groups[-1], span) if groups else span
        parts = short_enough(audio, rest) if rest else ()
        groups.extend(_Group([part], part[1] - part[0]) for part in parts)
    return groups


def _filled(audio: Samples, group: _Group, span: Span) -> Span | None:
    """Puts into a group what fits of a span; what is left of that."""
    room = group.room(span[0])
    if span[1] - span[0] <= room:
        group.take(span)
        return None
    at = pause(audio, span, room)
    if at is None:
        return span
    group.take((span[0], at))
    return at, span[1]


class Cutter:
    """Cuts the windows of one stream of 16 kHz mono samples. For one thread."""

    def __init__(self, find_speech: SpeechFinder, *, first: int = FIRST_BLOCK, block: int = BLOCK) -> None:
        self._find_speech = find_speech
        self._limit = min(first, block)
        self._block = block
        self._held: list[Samples] = []
        self._length = 0
        self.done = 0
        """Samples of the stream of which no window will come any more."""

    def push(self, piece: Samples) -> Iterator[Cut]:
        """The windows that are ready after this piece."""
        self._held.append(piece)
        self._length += len(piece)
        if self._length >= self._limit:
            self._limit = min(2 * self._limit, self._block)
            yield from self._cut(final=False)

    def finish(self) -> Iterator[Cut]:
        """The windows that are left; the stream is at its end, or another begins behind a gap."""
        if self._length:
            yield from self._cut(final=True)

    def _cut(self, *, final: bool) -> Iterator[Cut]:
        audio = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        groups = grouped(audio, self._find_speech(audio))
        keep = len(audio) if final else self._kept_from(groups, len(audio))
        # What is handed out must not keep its whole block in memory for as long as it waits.
        self._held, self._length = (
            ([audio[keep:].copy()], len(audio) - keep) if keep < len(audio) else ([], 0)
        )
        base, self.done = self.done, self.done + keep
        for group in groups:
            parts = tuple((begin + base, end + base) for begin, end in group.parts())
            sound = np.concatenate([audio[begin:end] for begin, end in group.parts()])
            yield Cut(parts, sound, tuple((begin + base, end + base) for begin, end in group.spans))

    @staticmethod
    def _kept_from(groups: list[_Group], length: int) -> int:
        """Takes back the last group if it may go on; the sample that the next block begins with."""
        held = groups.pop() if groups and groups[-1].spans[-1][1] > length - MAY_GO_ON else None
        begin = held.spans[0][0] - LEAD if held else length - TAIL
        return max(0, begin, groups[-1].parts()[-1][1] if groups else 0)


def cut_windows(pieces: Iterable[Samples], find_speech: SpeechFinder) -> Iterator[Cut]:
    """The windows of a whole stream."""
    cutter = Cutter(find_speech)
    for piece in pieces:
        yield from cutter.push(piece)
    yield from cutter.finish()
