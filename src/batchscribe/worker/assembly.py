"""Assembles the results of windows into chunks, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf

import msgspec

from batchscribe.audio.windows import Cut
from batchscribe.core.run.manifest import Manifest, ManifestChunk
from batchscribe.core.scan.chunks import split_key
from batchscribe.core.text.flags import NO_SPEECH, PARTIAL, REPAIRED, UNHEARD
from batchscribe.core.text.quality import SLACK, find_wordless_speech
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition
from batchscribe.core.text.spelling import join_segments
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript
from batchscribe.core.text.word_assignment import ChunkPlace, assign_to_chunks, split_segments_at
from batchscribe.worker.timeline import Ended, PendingWindow

CONTEXT = 1.0
"""Seconds of audio that a re-decode includes before and after the speech without words."""
INWARDS = 0.2
"""Seconds by which an edge moves inwards if no audio is left outside: the detector pads by 0.25 s."""

Gap = tuple[tuple[float, float], ...]
"""Consecutive detected speech without a word, in seconds of the timeline."""


@dataclass(slots=True)
class _Open:
    """A chunk with outstanding results."""

    outstanding: set[int] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    flags: set[str] = field(default_factory=set)
    end: Ended | None = None

    def add_result(self, recognition: Recognition, segments: Sequence[Segment], *, flagged: bool) -> None:
        """Adds segments; flags of the result only if `flagged`."""
        self.outstanding.discard(recognition.window)
        self.segments += segments
        self.flags |= set(recognition.flags) if flagged else set()
        if recognition.language and segments:
            self.languages[recognition.language] += 1


@dataclass(frozen=True, slots=True)
class TranscribedChunk:
    """A completely transcribed chunk; times on its own clock."""

    end: Ended
    segments: tuple[Segment, ...]
    language: str | None
    flags: frozenset[str]

    @property
    def chunk(self) -> int:
        return self.end.chunk


class Assembly:
    """Collects results of windows for their chunks. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._windows: dict[int, PendingWindow] = {}
        self._dropped: set[int] = set()
        self._next = 0

    def register_window(self, ready: PendingWindow) -> int:
        """Registers a window; returns the number that its result will have."""
        number, self._next = self._next, self._next + 1
        self._windows[number] = ready
        for chunk in self.find_waiting_chunks(number):
            self._get_open(chunk).outstanding.add(number)
        return number

    def find_waiting_chunks(self, number: int) -> tuple[int, ...]:
        """Chunks that wait for a window's result."""
        ready = self._windows.get(number)
        return tuple(chunk for chunk in ready.touched if chunk not in self._dropped) if ready else ()

    def get_window(self, number: int) -> PendingWindow:
        return self._windows[number]

    def _get_open(self, chunk: int) -> _Open:
        return self._open.setdefault(chunk, _Open())

    def add_result(self, recognition: Recognition) -> tuple[list[int], list[TranscribedChunk]]:
        """Adds a result; returns windows to re-decode, and completed chunks."""
        number = recognition.window
        ready, waiting = self._windows[number], self.find_waiting_chunks(number)
        segments = _set_channels(ready, recognition)
        gaps = find_wordless_speech(ready.wordless or ready.cut.speech_seconds, segments)
        again: list[int] = []
        for gap in gaps:
            holders = self._find_holders(ready, gap)
            if ready.wordless:  # There is no third decoding.
                for holder in holders:
                    self._open[holder].flags.add(UNHEARD)
            elif holders:
                again.append(self.register_window(_make_second_window(ready, gap)))
        del self._windows[number]
        middles = [(gap[0][0] + gap[-1][1]) / 2 for gap in gaps]
        shared = assign_to_chunks(split_segments_at(segments, middles), ready.places)
        for chunk, own in zip(ready.chunks, shared, strict=True):
            if chunk in waiting:
                self._open[chunk].add_result(recognition, own, flagged=bool(own) or not any(shared))
        return again, [transcribed for chunk in waiting for transcribed in self._pop_complete(chunk)]

    def _find_holders(self, ready: PendingWindow, gap: Gap) -> list[int]:
        """Waiting chunks that hold SLACK seconds or most of a gap."""
        held = [_shared_seconds(place, gap) for place in ready.places]
        enough = min(SLACK, max(held))
        return [
            chunk
            for chunk, seconds in zip(ready.chunks, held, strict=True)
            if chunk is not None and chunk not in self._dropped and seconds >= enough
        ]

    def split_window(self, number: int) -> tuple[list[int], list[TranscribedChunk]]:
        """Splits a window into one part per waiting chunk.

        Returns the numbers of the parts, and the chunks that are complete because their part is silence.
        """
        waiting, ready = self.find_waiting_chunks(number), self._windows.pop(number)
        parts = [self.register_window(part) for part in _split_by_chunk(ready, waiting)]
        for chunk in waiting:
            self._open[chunk].outstanding.discard(number)
        return parts, [transcribed for chunk in waiting for transcribed in self._pop_complete(chunk)]

    def record_end(self, end: Ended) -> Iterator[TranscribedChunk]:
        """Records the end of a chunk; yields it if it is complete."""
        if end.chunk not in self._dropped:
            self._get_open(end.chunk).end = end
            yield from self._pop_complete(end.chunk)

    def _pop_complete(self, chunk: int) -> Iterator[TranscribedChunk]:
        part = self._open[chunk]
        if part.end is None or part.outstanding:
            return
        del self._open[chunk]
        segments = tuple(sorted(part.segments, key=lambda segment: (segment.start, segment.end)))
        spoken = part.languages.most_common(1)
        yield TranscribedChunk(part.end, segments, spoken[0][0] if spoken else None, frozenset(part.flags))

    def drop_chunk(self, chunk: int) -> None:
        """Drops a chunk; its neighbours still use the results of shared windows."""
        self._dropped.add(chunk)
        self._open.pop(chunk, None)

    def forget_window(self, number: int) -> None:
        """Forgets a window that will get no result."""
        self._windows.pop(number, None)

    def is_dropped(self, chunk: int) -> bool:
        return chunk in self._dropped


def _split_by_chunk(ready: PendingWindow, wanted: Sequence[int]) -> Iterator[PendingWindow]:
    """Splits a window by wanted chunk; neighbours keep places for their words."""
    for at, chunk in enumerate(ready.chunks):
        laid = ready.places[at]
        cut = ready.cut.clip(laid.first * SAMPLE_RATE, laid.last * SAMPLE_RATE)
        if chunk is not None and chunk in wanted and cut is not None:
            beside = [place if place is laid else replace(place, published=True) for place in ready.places]
            only = tuple(chunk if place is laid else None for place in ready.places)
            yield replace(ready, cut=cut, chunks=only, places=tuple(beside), alone=True)


def _make_second_window(ready: PendingWindow, gap: Gap) -> PendingWindow:
    """Second window around speech without words; words outside count as published."""
    begin, end = gap[0][0], gap[-1][1]
    cut = ready.cut.clip(*_shifted_edges(ready.cut, begin, end))
    assert cut is not None, "a gap lies in its window"
    before = ChunkPlace(begin=-inf, end=-inf, first=-inf, last=-inf, published=True, words_until=begin)
    after = ChunkPlace(begin=inf, end=inf, first=inf, last=inf, published=True, words_from=end)
    chunks, places = (None, *ready.chunks, None), (before, *ready.places, after)
    return replace(ready, cut=cut, chunks=chunks, places=places, wordless=gap)


def _shifted_edges(cut: Cut, begin: float, end: float) -> tuple[float, float]:
    """Edges in samples of the timeline; both differ from the window's."""
    low, high = (begin - CONTEXT) * SAMPLE_RATE, (end + CONTEXT) * SAMPLE_RATE
    inwards = INWARDS * SAMPLE_RATE
    return (
        low if low > cut.start else cut.start + inwards,
        high if high < cut.end else cut.end - inwards,
    )


def _shared_seconds(place: ChunkPlace, gap: Gap) -> float:
    return sum(max(0.0, min(end, place.last) - max(begin, place.first)) for begin, end in gap)


def _set_channels(ready: PendingWindow, recognition: Recognition) -> tuple[Segment, ...]:
    placed = ready.cut.place_on_stream(recognition.segments)
    if ready.channel is None:
        return placed
    return tuple(msgspec.structs.replace(segment, channel=ready.channel) for segment in placed)


def _collect_flags(transcribed: TranscribedChunk) -> tuple[str, ...]:
    flags = set(transcribed.flags) | transcribed.end.whole.flags
    flags |= {PARTIAL} if transcribed.end.whole.partial else set()
    flags |= {REPAIRED} if transcribed.end.whole.repaired else set()
    flags |= set() if transcribed.segments or UNHEARD in flags else {NO_SPEECH}
    return tuple(sorted(flags))


def make_transcript(
    transcribed: TranscribedChunk, chunk: ManifestChunk, manifest: Manifest, *, model: str, now: datetime
) -> Transcript:
    """The transcript of a chunk, from all its windows."""
    position, whole = transcribed.end.position, transcribed.end.whole
    return Transcript(
        text=join_segments(transcribed.segments),
        segments=transcribed.segments,
        # Rounding errors add up over a session of thousands of chunks; milliseconds would be too coarse.
        duration=round(whole.seconds, 6),
        span=None if whole.span is None else round(whole.span, 6),
        overlap=round(transcribed.end.overlap, 6),
        position=None if position is None else round(position, 3),
        language=transcribed.language or manifest.engine.language,
        flags=_collect_flags(transcribed),
        engine=manifest.engine.engine,
        model=model,
        settings_hash=manifest.settings_hash,
        audio=AudioRef(name=split_key(chunk.key)[1], key=chunk.key, etag=chunk.etag),
        run=manifest.run,
        created_at=now,
    )
