"""Puts recognised windows together again, chunk by chunk, whatever order they come back in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf

import msgspec

from batchscribe.audio.windows import Cut
from batchscribe.core.run.manifest import Manifest, ManifestChunk
from batchscribe.core.scan.chunks import split
from batchscribe.core.text.flags import NO_SPEECH, PARTIAL, REPAIRED, UNHEARD
from batchscribe.core.text.quality import SLACK, find_wordless_speech
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition
from batchscribe.core.text.spelling import joined
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript
from batchscribe.core.text.word_assignment import Place, divide, share
from batchscribe.worker.timeline import Ended, Ready

CONTEXT = 1.0
"""Seconds: a second decoding begins so long before the speech without words, and ends so long behind it."""
INWARDS = 0.2
"""Seconds by which an edge moves inwards where no sound is left outside: the detector pads by a quarter."""

Gap = tuple[tuple[float, float], ...]
"""Detected speech without a word in between, in seconds of the stretch."""


@dataclass(slots=True)
class _Open:
    """A chunk of which not everything is back yet."""

    outstanding: set[int] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    flags: set[str] = field(default_factory=set)
    end: Ended | None = None

    def take(self, recognition: Recognition, segments: Sequence[Segment], *, flagged: bool) -> None:
        """Adds its segments of a result; `flagged`: the flags of the result are about them."""
        self.outstanding.discard(recognition.window)
        self.segments += segments
        self.flags |= set(recognition.flags) if flagged else set()
        if recognition.language and segments:
            self.languages[recognition.language] += 1


@dataclass(frozen=True, slots=True)
class Heard:
    """A chunk of which everything is back; times on its own clock."""

    end: Ended
    segments: tuple[Segment, ...]
    language: str | None
    flags: frozenset[str]

    @property
    def chunk(self) -> int:
        return self.end.chunk


class Assembly:
    """Knows which window belongs to which chunks. For one thread."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._windows: dict[int, Ready] = {}
        self._dropped: set[int] = set()
        self._next = 0

    def expect(self, ready: Ready) -> int:
        """A window will be heard; the number that its result comes back under."""
        number, self._next = self._next, self._next + 1
        self._windows[number] = ready
        for chunk in self.waiting(number):
            self._of(chunk).outstanding.add(number)
        return number

    def waiting(self, number: int) -> tuple[int, ...]:
        """The chunks that wait for a window's result."""
        ready = self._windows.get(number)
        return tuple(chunk for chunk in ready.touched if chunk not in self._dropped) if ready else ()

    def ready(self, number: int) -> Ready:
        return self._windows[number]

    def _of(self, chunk: int) -> _Open:
        return self._open.setdefault(chunk, _Open())

    def answered(self, recognition: Recognition) -> tuple[list[int], list[Heard]]:
        """Takes a result; windows to decode again for speech without words, and the chunks that are whole."""
        number = recognition.window
        ready, waiting = self._windows[number], self.waiting(number)
        segments = _labelled(ready, recognition)
        gaps = find_wordless_speech(ready.wordless or ready.cut.speech_seconds, segments)
        again = self._flag(ready, gaps) if ready.wordless else self._second_decodings(ready, gaps)
        del self._windows[number]
        shared = share(divide(segments, list(map(_middle, gaps))), ready.places)
        for chunk, own in zip(ready.chunks, shared, strict=True):
            if chunk in waiting:
                self._open[chunk].take(recognition, own, flagged=bool(own) or not any(shared))
        return again, [heard for chunk in waiting for heard in self._whole(chunk)]

    def _second_decodings(self, ready: Ready, gaps: Sequence[Gap]) -> list[int]:
        """Windows for speech in which the first decoding found no word; the numbers of them."""
        return [self.expect(_second_decoding(ready, gap)) for gap in gaps if self._holders(ready, gap)]

    def _flag(self, ready: Ready, gaps: Sequence[Gap]) -> list[int]:
        """Flags the chunks with speech that has no word after two decodings. There is no third one."""
        for chunk in {chunk for gap in gaps for chunk in self._holders(ready, gap)}:
            self._open[chunk].flags.add(UNHEARD)
        return []

    def _holders(self, ready: Ready, gap: Gap) -> list[int]:
        """The waiting chunks that hold half a second or more of a gap, or the most of it."""
        held = [_shared_seconds(place, gap) for place in ready.places]
        enough = min(SLACK, max(held))
        return [
            chunk
            for chunk, seconds in zip(ready.chunks, held, strict=True)
            if chunk is not None and chunk not in self._dropped and seconds >= enough
        ]

    def again(self, number: int) -> tuple[list[int], list[Heard]]:
        """Takes a window apart, a part for each chunk that waits for it; the numbers of the parts, and the
        chunks that were missing nothing else: there is none of them in it but silence.
        """
        waiting, ready = self.waiting(number), self._windows.pop(number)
        parts = [self.expect(part) for part in _parts(ready, waiting)]
        for chunk in waiting:
            self._open[chunk].outstanding.discard(number)
        return parts, [heard for chunk in waiting for heard in self._whole(chunk)]

    def ended(self, end: Ended) -> Iterator[Heard]:
        """Takes the end of a chunk's audio; the chunk, if all its windows are back already."""
        if end.chunk not in self._dropped:
            self._of(end.chunk).end = end
            yield from self._whole(end.chunk)

    def _whole(self, chunk: int) -> Iterator[Heard]:
        part = self._open[chunk]
        if part.end is None or part.outstanding:
            return
        del self._open[chunk]
        segments = tuple(sorted(part.segments, key=lambda segment: (segment.start, segment.end)))
        spoken = part.languages.most_common(1)
        yield Heard(part.end, segments, spoken[0][0] if spoken else None, frozenset(part.flags))

    def drop(self, chunk: int) -> None:
        """Gives a chunk up; what it waits for may still be of use for its neighbours."""
        self._dropped.add(chunk)
        self._open.pop(chunk, None)

    def forget(self, number: int) -> None:
        """Nobody will give the result of a window."""
        self._windows.pop(number, None)

    def dropped(self, chunk: int) -> bool:
        return chunk in self._dropped


def _parts(ready: Ready, wanted: Sequence[int]) -> Iterator[Ready]:
    """What of a window lies in each wanted chunk. Its neighbours' places stay, for what they have said."""
    for at, chunk in enumerate(ready.chunks):
        laid = ready.places[at]
        cut = ready.cut.within(laid.first * SAMPLE_RATE, laid.last * SAMPLE_RATE)
        if chunk is not None and chunk in wanted and cut is not None:
            beside = [place if place is laid else replace(place, published=True) for place in ready.places]
            only = tuple(chunk if place is laid else None for place in ready.places)
            yield replace(ready, cut=cut, chunks=only, places=tuple(beside), alone=True)


def _second_decoding(ready: Ready, gap: Gap) -> Ready:
    """A window around speech without words, with other edges. Words outside of it count as published."""
    begin, end = gap[0][0], gap[-1][1]
    cut = ready.cut.within(*_shifted_edges(ready.cut, begin, end))
    assert cut is not None, "a gap lies in its window"
    before = Place(begin=-inf, end=-inf, first=-inf, last=-inf, published=True, heard_until=begin)
    after = Place(begin=inf, end=inf, first=inf, last=inf, published=True, heard_from=end)
    chunks, places = (None, *ready.chunks, None), (before, *ready.places, after)
    return replace(ready, cut=cut, chunks=chunks, places=places, wordless=gap)


def _shifted_edges(cut: Cut, begin: float, end: float) -> tuple[float, float]:
    """Samples of the stretch: neither edge is where the window's was."""
    low, high = (begin - CONTEXT) * SAMPLE_RATE, (end + CONTEXT) * SAMPLE_RATE
    inwards = INWARDS * SAMPLE_RATE
    return (
        low if low > cut.start else cut.start + inwards,
        high if high < cut.end else cut.end - inwards,
    )


def _shared_seconds(place: Place, gap: Gap) -> float:
    return sum(max(0.0, min(end, place.last) - max(begin, place.first)) for begin, end in gap)


def _middle(gap: Gap) -> float:
    return (gap[0][0] + gap[-1][1]) / 2


def _labelled(ready: Ready, recognition: Recognition) -> tuple[Segment, ...]:
    placed = ready.cut.placed(recognition.segments)
    if ready.channel is None:
        return placed
    return tuple(msgspec.structs.replace(segment, channel=ready.channel) for segment in placed)


def _flags(heard: Heard) -> tuple[str, ...]:
    flags = set(heard.flags) | heard.end.whole.flags
    flags |= {PARTIAL} if heard.end.whole.partial else set()
    flags |= {REPAIRED} if heard.end.whole.repaired else set()
    flags |= set() if heard.segments or UNHEARD in flags else {NO_SPEECH}
    return tuple(sorted(flags))


def transcript(
    heard: Heard, chunk: ManifestChunk, manifest: Manifest, *, model: str, now: datetime
) -> Transcript:
    """The transcript of a chunk, from all its windows."""
    position, whole = heard.end.position, heard.end.whole
    return Transcript(
        text=joined(heard.segments),
        segments=heard.segments,
        # A session of thousands of chunks adds them up: milliseconds would be heard in the end.
        duration=round(whole.seconds, 6),
        span=None if whole.span is None else round(whole.span, 6),
        overlap=round(heard.end.overlap, 6),
        position=None if position is None else round(position, 3),
        language=heard.language or manifest.engine.language,
        flags=_flags(heard),
        engine=manifest.engine.engine,
        model=model,
        settings_hash=manifest.settings_hash,
        audio=AudioRef(name=split(chunk.key)[1], key=chunk.key, etag=chunk.etag),
        run=manifest.run,
        created_at=now,
    )
