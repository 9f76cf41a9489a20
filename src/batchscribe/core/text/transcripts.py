"""Timed text: words, segments, the transcript of a chunk, and its JSON.

The field names of segments and words are those of the original system, so that its readers keep
working. Times are seconds: on the chunk's clock in a chunk's transcript, on the session's in a
session's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import PermanentError

FORMAT = "batchscribe.transcript"
VERSION = 1
LONGEST = 1e10
"""Seconds; a later time in a transcript cannot be one."""
SMALLEST = len(b'{"text":""}')
"""Bytes; nothing shorter is a transcript."""


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """`probability` is 0 to 1, or None where the engine knows none."""

    word: str
    start: float
    end: float
    probability: float | None = None
    starts_before: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds by which it began before its chunk did: a cut went through it."""
    ends_after: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds by which it goes on behind the end of its chunk."""

    @property
    def true_start(self) -> float:
        return self.start - (self.starts_before or 0.0)

    @property
    def true_end(self) -> float:
        return self.end + (self.ends_after or 0.0)

    def shifted(self, seconds: float) -> Word:
        return msgspec.structs.replace(
            self, start=round(self.start + seconds, 3), end=round(self.end + seconds, 3)
        )


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    channel: int | msgspec.UnsetType = msgspec.UNSET
    """Which channel it was said on, from 1 on, where channels are heard one by one."""
    attached: bool | msgspec.UnsetType = msgspec.UNSET
    """True if its text continues the segment before it without a blank: a cut split "ill-disposed"."""

    def shifted(self, seconds: float) -> Segment:
        return msgspec.structs.replace(
            self,
            start=round(self.start + seconds, 3),
            end=round(self.end + seconds, 3),
            words=tuple(word.shifted(seconds) for word in self.words),
        )


class AudioRef(msgspec.Struct, frozen=True, kw_only=True):
    """The exact audio that was heard: `name` is the file's own name, `key` its place in the source."""

    name: str
    key: str
    etag: str


class Transcript(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The transcript of one chunk. No speech is a success: no segments, flag `no-speech`."""

    format: str = FORMAT
    version: int = VERSION
    text: str
    segments: tuple[Segment, ...]
    duration: float
    span: float | None = None
    """Seconds that the whole file takes by its own clock, if its picture lasts longer than its sound."""
    overlap: float = 0.0
    """Seconds of its beginning that the chunk before it ends with, too."""
    position: float | None = None
    """Seconds from the beginning of its recording, by the container's own time stamps, where they tell."""
    language: str | None = None
    flags: tuple[str, ...] = ()
    engine: str
    model: str
    settings_hash: str
    audio: AudioRef
    run: str
    created_at: datetime


class SessionPart(msgspec.Struct, frozen=True, kw_only=True):
    """Where one chunk lies in its session; `flags` and `text` say if it is missing."""

    key: str
    transcript: str
    offset: float
    duration: float
    flags: tuple[str, ...] = ()


class SessionTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """A session as one text, times on the session's clock."""

    format: str = "batchscribe.session"
    version: int = VERSION
    session: str
    text: str
    segments: tuple[Segment, ...]
    duration: float
    language: str | None = None
    parts: tuple[SessionPart, ...]
    digest: str
    """SHA-256 over the names and ETags of the transcripts that went in: the same digest, the same file."""


class ForeignTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """What we read of a transcript that the original system wrote."""

    segments: tuple[Segment, ...] = ()
    text: str = ""
    duration: float | None = None
    language: str | None = None


_SAID = frozenset({"text", "segments"})


def encode(value: msgspec.Struct) -> bytes:
    """JSON for people and programs: indented, UTF-8, newline at the end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(data: bytes) -> Transcript | ForeignTranscript:
    """A transcript of ours, or what can be read of a foreign one. Raises PermanentError."""
    found = _decoded(data)
    # Numbers in quotes are read too, and "nan" is one: no subtitle could be placed by it, nor by 1e308.
    if not all(abs(seconds) <= LONGEST for seconds in _times(found)):
        raise PermanentError("not a transcript: a time in it is no number, or centuries away")
    said = isinstance(found, Transcript) or found.text or found.segments
    if not said and not _SAID.intersection(msgspec.json.decode(data)):
        raise PermanentError("not a transcript: it has neither a text nor segments")
    return found


def _decoded(data: bytes) -> Transcript | ForeignTranscript:
    try:
        return msgspec.json.decode(data, type=Transcript)
    except UNREADABLE:
        pass
    try:
        return msgspec.json.decode(data, type=ForeignTranscript, strict=False)
    except UNREADABLE as error:
        raise PermanentError(f"not a transcript: {error}") from error


def _times(found: Transcript | ForeignTranscript) -> Iterator[float]:
    yield found.duration or 0.0
    if isinstance(found, Transcript):
        yield from (found.overlap, found.position or 0.0)
    for segment in found.segments:
        yield from (segment.start, segment.end)
        for word in segment.words:
            yield from (word.true_start, word.true_end)
