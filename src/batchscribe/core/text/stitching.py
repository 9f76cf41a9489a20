"""From the transcripts of chunks to the transcript of their session, times on the session's clock."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from batchscribe.core.text.spelling import joined
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import (
    ForeignTranscript,
    Segment,
    SessionPart,
    SessionTranscript,
    Transcript,
    Word,
)

MISSING = "missing"
"""Flag of a part without a transcript: its chunk failed for good."""
UNREADABLE = "unreadable"
"""Flag of a missing part with an object in the place of its transcript that cannot be read as one."""
NO_TIMES = "no-times"
"""Flag of a part whose text came without times: it spans its whole chunk."""

POSITION_SLACK = 1.0
"""Seconds by which a chunk's time stamps may put it before the end of the one before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInput:
    """One chunk of a session, in the session's order."""

    key: str
    """Of the audio."""
    transcript: str
    """Key of the transcript, or where it would be."""
    etag: str = ""
    """Of the transcript object."""
    content: Transcript | ForeignTranscript | None = None
    """None where the chunk is quarantined: it has no transcript and will get none."""
    unreadable: str = ""
    """Why the transcript that is there cannot be read; then there is no content."""
    seconds: float | None = None
    """How long the audio is, where there is no transcript to say it; None where nobody knows."""


def duration(part: PartInput) -> float:
    """Seconds that a chunk takes on the session's clock; 0 where nothing is known of it."""
    content = part.content
    if isinstance(content, Transcript):
        return max(0.0, content.duration, content.span or 0.0)
    last = max((segment.end for segment in content.segments), default=0.0) if content else 0.0
    stated = content.duration if content else None
    return max(0.0, last, stated or part.seconds or 0.0)


def _segments(part: PartInput) -> tuple[Segment, ...]:
    content = part.content
    if content is None:
        return ()
    if not content.segments and content.text.strip():
        return (Segment(text=content.text.strip(), start=0.0, end=duration(part)),)
    return content.segments


def _flags(part: PartInput) -> tuple[str, ...]:
    content = part.content
    if content is None:
        return (MISSING, UNREADABLE) if part.unreadable else (MISSING,)
    if isinstance(content, Transcript):
        return content.flags
    return (NO_TIMES,) if content.text.strip() and not content.segments else ()


def _language(contents: Iterable[Transcript | ForeignTranscript | None]) -> str | None:
    """The language of most of the chunks that have one."""
    counted = Counter(content.language for content in contents if content and content.language)
    return counted.most_common(1)[0][0] if counted else None


def digest(parts: Sequence[PartInput]) -> str:
    """SHA-256 over what goes in: names, ETags, and what is missing. Equal digests make equal files."""
    whole = hashlib.sha256()
    for part in parts:
        for field in (part.key, part.transcript, *(_flags(part) if part.content is None else (part.etag,))):
            # Lengths go in too, so that no two lists of names look alike.
            encoded = field.encode()
            whole.update(len(encoded).to_bytes(8, "big") + encoded)
    return whole.hexdigest()


def stitch(session: str, parts: Sequence[PartInput]) -> SessionTranscript:
    """One text of all chunks on one clock.

    Each begins where the one before it ends, less what both have; or where its recording's own time
    stamps put it, so that a chunk that is missing leaves its true gap.
    """
    clock = _SessionClock()
    segments: list[Segment] = []
    placed: list[SessionPart] = []
    for part in parts:
        offset = clock.place(part)
        segments += (_on_session(segment, offset) for segment in _segments(part))
        placed.append(
            SessionPart(
                key=part.key,
                transcript=part.transcript,
                offset=round(offset, 3),
                duration=round(duration(part), 3),
                flags=_flags(part),
            )
        )
    return SessionTranscript(
        session=session,
        text=joined(segments),
        segments=tuple(segments),
        duration=round(clock.end, 3),
        language=_language(part.content for part in parts),
        parts=tuple(placed),
        digest=digest(parts),
    )


class _SessionClock:
    """Places chunk after chunk on the session's clock; times in seconds."""

    def __init__(self) -> None:
        self.end = 0.0
        """Of all that was placed."""
        self._length = 0.0
        """Of the chunk placed last."""
        self._recording: float | None = None
        """Where the recording began, as the last chunk of it that knows its position says."""

    def place(self, part: PartInput) -> float:
        """Where the chunk begins."""
        length = duration(part)
        content = part.content if isinstance(part.content, Transcript) else None
        overlap = min(_seconds(content.overlap), self._length, length) if content else 0.0
        position = content.position if content else None
        offset = self._by_position(position, overlap)
        if offset is None:
            offset = self.end - overlap
        if position is not None:
            self._recording = offset - _seconds(position)
        self.end = max(self.end, offset + length)
        self._length = length
        return offset

    def _by_position(self, position: float | None, overlap: float) -> float | None:
        """Where its recording's time stamps put a chunk; None where they do not tell, or cannot be true."""
        # A chunk that begins a recording says nothing of how it lies to the one before.
        if not position or self._recording is None:
            return None
        offset = self._recording + position
        earliest = max(0.0, self.end - max(overlap, POSITION_SLACK))
        return offset if earliest <= offset < math.inf else None


def _seconds(value: float) -> float:
    """The value where it is a length of time; else 0."""
    return value if 0 < value < math.inf else 0.0


def _on_session(segment: Segment, offset: float) -> Segment:
    """The segment on the session's clock, where no cut goes through a word any more."""
    words = tuple(_whole(word, offset) for word in segment.words)
    moved = msgspec.structs.replace(segment, words=()).shifted(offset)
    start = min([moved.start, *(word.start for word in words)])
    end = max([moved.end, *(word.end for word in words)])
    return msgspec.structs.replace(moved, start=start, end=end, words=words)


def _whole(word: Word, offset: float) -> Word:
    start, end = max(0.0, word.true_start + offset), word.true_end + offset
    return msgspec.structs.replace(
        word,
        start=round(start, PLACES),
        end=round(end, PLACES),
        starts_before=msgspec.UNSET,
        ends_after=msgspec.UNSET,
    )
