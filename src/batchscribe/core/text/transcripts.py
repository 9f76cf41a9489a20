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
"""Largest plausible time in a transcript, in seconds."""
SMALLEST = len(b'{"text":""}')
"""Size of the shortest transcript, in bytes."""


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """`probability` is 0 to 1, or None if the engine has none."""

    word: str
    start: float
    end: float
    probability: float | None = None
    starts_before: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds of the word before its chunk begins: a cut split it."""
    ends_after: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds of the word after its chunk ends."""
    speaker: str | msgspec.UnsetType = msgspec.UNSET
    """In a session: name or label of its speaker."""

    @property
    def true_start(self) -> float:
        return self.start - (self.starts_before or 0.0)

    @property
    def true_end(self) -> float:
        return self.end + (self.ends_after or 0.0)


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    channel: int | msgspec.UnsetType = msgspec.UNSET
    """Its channel, counted from 1, if channels are transcribed separately."""
    attached: bool | msgspec.UnsetType = msgspec.UNSET
    """True if its text continues the previous segment without a blank: a cut split "ill-disposed"."""
    speaker: str | msgspec.UnsetType = msgspec.UNSET
    """In a session: name or label of the speaker of all its words."""


class AudioRef(msgspec.Struct, frozen=True, kw_only=True):
    """The exact audio that was transcribed; `key` is in the source."""

    name: str
    key: str
    etag: str


class Transcript(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The transcript of a chunk; flag `no-speech` if there are no segments."""

    format: str = FORMAT
    version: int = VERSION
    text: str
    segments: tuple[Segment, ...]
    duration: float
    """Seconds of its audio."""
    span: float | None = None
    """Seconds of the whole file by its own clock, if its video is longer than its audio."""
    overlap: float = 0.0
    """Overlap with the previous chunk, in seconds."""
    position: float | None = None
    """Seconds from the beginning of its recording, by the container's time stamps; None if unknown."""
    language: str | None = None
    """Code of the spoken language; None if the engine reports none."""
    flags: tuple[str, ...] = ()
    """Repairs and doubts, by name."""
    engine: str
    model: str
    settings_hash: str
    """Hash of the engine's and the audio's settings: equal hashes mean equal settings."""
    audio: AudioRef
    run: str
    created_at: datetime


class PartSpeakers(msgspec.Struct, frozen=True, kw_only=True):
    """The labels of a chunk's voices, kept when later chunks arrive."""

    mark: str
    """Hash of the object with its voices."""
    labels: tuple[str, ...]
    """In the order of its voices."""


class SessionPart(msgspec.Struct, frozen=True, kw_only=True):
    """Position of one chunk in its session; `flags` mark missing transcripts."""

    key: str
    transcript: str
    offset: float
    """Seconds from the session's beginning."""
    duration: float
    flags: tuple[str, ...] = ()
    speakers: PartSpeakers | msgspec.UnsetType = msgspec.UNSET


class SessionTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """A session as one text, times on the session's clock."""

    format: str = "batchscribe.session"
    version: int = VERSION
    session: str
    text: str
    segments: tuple[Segment, ...]
    duration: float
    language: str | None = None
    speakers: str | msgspec.UnsetType = msgspec.UNSET
    """BATCH_SPEAKERS when its labels were made; unset if it was off."""
    parts: tuple[SessionPart, ...]
    digest: str
    """SHA-256 over names and ETags of the transcripts in it: equal digests mean equal files."""


class ForeignTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that we read from a transcript of the original system."""

    segments: tuple[Segment, ...] = ()
    text: str = ""
    duration: float | None = None
    language: str | None = None


_CONTENT_FIELDS = frozenset({"text", "segments"})


def encode(value: msgspec.Struct) -> bytes:
    """Encodes as JSON: indented, UTF-8, newline at the end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(data: bytes) -> Transcript | ForeignTranscript:
    """Decodes our transcript, or a foreign one's fields; raises PermanentError."""
    found = _parse_transcript(data)
    # Quoted numbers are accepted, and "nan" is one; no subtitle can be placed at nan or 1e308.
    if not all(abs(seconds) <= LONGEST for seconds in _list_times(found)):
        raise PermanentError(f"not a transcript: it has a time that is not a number, or above {LONGEST:g} s")
    has_content = isinstance(found, Transcript) or found.text or found.segments
    if not has_content and not _CONTENT_FIELDS.intersection(msgspec.json.decode(data)):
        raise PermanentError("not a transcript: it has neither a text nor segments")
    return found


def decode_session(data: bytes) -> SessionTranscript:
    """Decodes a session's transcript. Raises PermanentError."""
    try:
        found = msgspec.json.decode(data, type=SessionTranscript)
    except UNREADABLE as error:
        raise PermanentError(f"not a session's transcript: {error}") from error
    placed = (second for part in found.parts for second in (part.offset, part.duration))
    if not all(abs(seconds) <= LONGEST for seconds in (*_list_times(found), *placed)):
        raise PermanentError(f"not a session's transcript: it has a time above {LONGEST:g} s")
    return found


def _parse_transcript(data: bytes) -> Transcript | ForeignTranscript:
    try:
        return msgspec.json.decode(data, type=Transcript)
    except UNREADABLE:
        pass
    try:
        return msgspec.json.decode(data, type=ForeignTranscript, strict=False)
    except UNREADABLE as error:
        raise PermanentError(f"not a transcript: {error}") from error


def _list_times(found: Transcript | ForeignTranscript | SessionTranscript) -> Iterator[float]:
    yield found.duration or 0.0
    if isinstance(found, Transcript):
        yield from (found.overlap, found.position or 0.0)
    for segment in found.segments:
        yield from (segment.start, segment.end)
        for word in segment.words:
            yield from (word.true_start, word.true_end)
