"""Puts recognised windows together again, chunk by chunk, whatever order they come back in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec

from batchscribe.core.chunks import split
from batchscribe.core.flags import NO_SPEECH, PARTIAL, REPAIRED
from batchscribe.core.manifest import Manifest, ManifestChunk
from batchscribe.core.sharing import share
from batchscribe.core.speech import SAMPLE_RATE, Recognition
from batchscribe.core.spelling import joined
from batchscribe.core.transcripts import AudioRef, Segment, Transcript
from batchscribe.worker.stretches import Ended, Ready


@dataclass(slots=True)
class _Open:
    """A chunk of which not everything is back yet."""

    outstanding: set[int] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    flags: set[str] = field(default_factory=set)
    end: Ended | None = None


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

    def answered(self, recognition: Recognition) -> Iterator[Heard]:
        """Takes a result; the chunks that it was the last to be missing for."""
        number = recognition.window
        waiting = self.waiting(number)
        ready = self._windows.pop(number)
        shared = share(_labelled(ready, recognition), ready.places)
        for chunk, segments in zip(ready.chunks, shared, strict=True):
            if chunk in waiting:
                part = self._open[chunk]
                part.outstanding.discard(number)
                part.segments += segments
                part.flags |= set(recognition.flags) if segments or not any(shared) else set()
                if recognition.language and segments:
                    part.languages[recognition.language] += 1
                yield from self._whole(chunk)

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


def _labelled(ready: Ready, recognition: Recognition) -> Iterable[Segment]:
    placed = ready.cut.placed(recognition.segments)
    if ready.channel is None:
        return placed
    return [msgspec.structs.replace(segment, channel=ready.channel) for segment in placed]


def _flags(heard: Heard) -> tuple[str, ...]:
    flags = set(heard.flags) | heard.end.whole.flags
    flags |= {PARTIAL} if heard.end.whole.partial else set()
    flags |= {REPAIRED} if heard.end.whole.repaired else set()
    flags |= set() if heard.segments else {NO_SPEECH}
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
