"""From the transcripts of chunks to the transcript of their session, times on the session's clock."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchscribe.core.transcripts import (
    ForeignTranscript,
    Segment,
    SessionPart,
    SessionTranscript,
    Transcript,
)

MISSING = "missing"
"""Flag of a part without a transcript: its chunk failed for good."""
NO_TIMES = "no-times"
"""Flag of a part whose text came without times: it spans its whole chunk."""


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
    seconds: float | None = None
    """How long the audio is, where there is no transcript to say it; None where nobody knows."""


def duration(part: PartInput) -> float:
    """Seconds that a chunk takes on the session's clock; 0 where nothing is known of it."""
    content = part.content
    if isinstance(content, Transcript):
        return max(0.0, content.duration)
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
        return (MISSING,)
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
        for field in (part.key, part.transcript, MISSING if part.content is None else part.etag):
            # Lengths go in too, so that no two lists of names look alike.
            encoded = field.encode()
            whole.update(len(encoded).to_bytes(8, "big") + encoded)
    return whole.hexdigest()


def stitch(session: str, parts: Sequence[PartInput]) -> SessionTranscript:
    """One text of all chunks: each begins where the durations of those before it end."""
    offset = 0.0
    segments: list[Segment] = []
    placed: list[SessionPart] = []
    for part in parts:
        length = duration(part)
        segments += (segment.shifted(offset) for segment in _segments(part))
        placed.append(
            SessionPart(
                key=part.key,
                transcript=part.transcript,
                offset=round(offset, 3),
                duration=round(length, 3),
                flags=_flags(part),
            )
        )
        offset += length
    return SessionTranscript(
        session=session,
        text=" ".join(segment.text.strip() for segment in segments),
        segments=tuple(segments),
        duration=round(offset, 3),
        language=_language(part.content for part in parts),
        parts=tuple(placed),
        digest=digest(parts),
    )
