"""Puts recognised windows together again, chunk by chunk, whatever order they come back in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from batchscribe.core.chunks import split
from batchscribe.core.flags import NO_SPEECH, PARTIAL, REPAIRED
from batchscribe.core.manifest import FailureKind, Manifest, ManifestChunk
from batchscribe.core.speech import Recognition, Window
from batchscribe.core.transcripts import AudioRef, Segment, Transcript
from batchscribe.worker.windows import Cut


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A window of a chunk, cut and waiting for the engine. `chunk` is its place in the manifest."""

    chunk: int
    cut: Cut


@dataclass(frozen=True, slots=True)
class Ended:
    """A chunk was decoded to its end: all its windows came before this."""

    chunk: int
    seconds: float
    partial: bool
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """A chunk could not be decoded: the windows that came before this are in vain."""

    chunk: int
    message: str
    kind: FailureKind = FailureKind.CHUNK


@dataclass(slots=True)
class _Open:
    """A chunk of which not everything is back yet."""

    outstanding: set[int] = field(default_factory=set)
    heard: list[tuple[float, Recognition]] = field(default_factory=list)
    end: Ended | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """A chunk of which everything is back."""

    chunk: int
    seconds: float
    partial: bool
    repaired: bool
    heard: tuple[Recognition, ...]
    """In the order of time, times on the chunk's clock."""


class Assembly:
    """Knows which window belongs to which chunk. For one thread."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._windows: dict[int, tuple[int, float]] = {}
        self._dropped: set[int] = set()
        self._next = 0

    def window(self, ready: Ready, language: str | None) -> Window:
        """The window to give to the engine, under a number of its own."""
        number, self._next = self._next, self._next + 1
        self._windows[number] = (ready.chunk, ready.cut.seconds_in)
        self._of(ready.chunk).outstanding.add(number)
        return Window(number, ready.cut.seconds_in, ready.cut.audio, language)

    def _of(self, chunk: int) -> _Open:
        return self._open.setdefault(chunk, _Open())

    def chunk_of(self, recognition: Recognition) -> int | None:
        """The chunk that a result belongs to; None where nobody waits for it any more."""
        return self._windows.get(recognition.window, (None,))[0]

    def answered(self, recognition: Recognition) -> Whole | None:
        """Takes a result; the chunk, if this was the last that was missing."""
        chunk, start = self._windows.pop(recognition.window)
        part = self._of(chunk)
        part.outstanding.discard(recognition.window)
        part.heard.append((start, recognition))
        return self._whole(chunk)

    def ended(self, end: Ended) -> Whole | None:
        """Takes the end of a chunk's audio; the chunk, if all its windows are back already."""
        self._of(end.chunk).end = end
        return self._whole(end.chunk)

    def _whole(self, chunk: int) -> Whole | None:
        part = self._open[chunk]
        if part.end is None or part.outstanding:
            return None
        del self._open[chunk]
        heard = sorted(part.heard, key=lambda pair: pair[0])
        recognised = tuple(_shifted(*pair) for pair in heard)
        return Whole(chunk, part.end.seconds, part.end.partial, part.end.repaired, recognised)

    def dropped(self, chunk: int) -> bool:
        return chunk in self._dropped

    def drop(self, chunk: int) -> None:
        """Gives a chunk up, and every window of it that is still out."""
        self._dropped.add(chunk)
        for number in self._open.pop(chunk, _Open()).outstanding:
            del self._windows[number]

    def in_engine(self) -> tuple[int, ...]:
        """The chunks of which the engine has windows."""
        return tuple(sorted({chunk for chunk, _ in self._windows.values()}))


def _shifted(start: float, recognition: Recognition) -> Recognition:
    segments = tuple(segment.shifted(start) for segment in recognition.segments)
    return Recognition(recognition.window, segments, recognition.language, recognition.flags)


def _language(heard: tuple[Recognition, ...]) -> str | None:
    """The language of most of the windows in which something was said."""
    counted = Counter(part.language for part in heard if part.language and part.segments)
    return counted.most_common(1)[0][0] if counted else None


def _flags(whole: Whole, segments: tuple[Segment, ...]) -> tuple[str, ...]:
    flags = {flag for part in whole.heard for flag in part.flags}
    flags |= {PARTIAL} if whole.partial else set()
    flags |= {REPAIRED} if whole.repaired else set()
    flags |= set() if segments else {NO_SPEECH}
    return tuple(sorted(flags))


def transcript(
    whole: Whole, chunk: ManifestChunk, manifest: Manifest, *, model: str, now: datetime
) -> Transcript:
    """The transcript of a chunk, from all its windows."""
    segments = tuple(segment for part in whole.heard for segment in part.segments)
    return Transcript(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        duration=round(whole.seconds, 3),
        language=_language(whole.heard) or manifest.engine.language,
        flags=_flags(whole, segments),
        engine=manifest.engine.engine,
        model=model,
        settings_hash=manifest.settings_hash,
        audio=AudioRef(name=split(chunk.key)[1], key=chunk.key, etag=chunk.etag),
        run=manifest.run,
        created_at=now,
    )
