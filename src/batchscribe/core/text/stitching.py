"""Stitches the transcripts of chunks into the transcript of their session."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from batchscribe.core.text.speakers import Turn, assign_speakers
from batchscribe.core.text.spelling import join_segments
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import (
    ForeignTranscript,
    PartSpeakers,
    Segment,
    SessionPart,
    SessionTranscript,
    Transcript,
    Word,
)

MISSING = "missing"
"""Flag of a part without a transcript, yet or for good."""
UNREADABLE = "unreadable"
"""Flag of a missing part whose transcript object exists but is unreadable."""
NO_TIMES = "no-times"
"""Flag of a part whose text has no times: it spans its whole chunk."""

POSITION_SLACK = 1.0
"""Seconds by which a chunk's time stamps may place it before the end of the previous chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInput:
    """One chunk of a session, in the session's order."""

    key: str
    """Of the audio."""
    transcript: str
    """Key of the transcript, also if it does not exist."""
    etag: str = ""
    """Of the transcript object."""
    content: Transcript | ForeignTranscript | None = None
    """None if the chunk is quarantined: it has no transcript and will get none."""
    unreadable: str = ""
    """Error of its transcript, if that is unreadable; then there is no content."""
    seconds: float | None = None
    """Length of the audio, if there is no transcript; None if unknown."""
    speakers: PartSpeakers | None = None
    turns: tuple[Turn, ...] = ()
    """Its speakers' turns, if they are known."""


def measure_duration(part: PartInput) -> float:
    """Seconds of a chunk on the session's clock; 0 if unknown."""
    content = part.content
    if isinstance(content, Transcript):
        return max(0.0, content.duration, content.span or 0.0)
    last = max((segment.end for segment in content.segments), default=0.0) if content else 0.0
    stated = content.duration if content else None
    return max(0.0, last, stated or part.seconds or 0.0)


def _part_segments(part: PartInput) -> tuple[Segment, ...]:
    content = part.content
    if content is None:
        return ()
    if not content.segments and content.text.strip():
        return (Segment(text=content.text.strip(), start=0.0, end=measure_duration(part)),)
    return tuple(assign_speakers(content.segments, part.turns))


def _part_flags(part: PartInput) -> tuple[str, ...]:
    content = part.content
    if content is None:
        return (MISSING, UNREADABLE) if part.unreadable else (MISSING,)
    if isinstance(content, Transcript):
        return content.flags
    return (NO_TIMES,) if content.text.strip() and not content.segments else ()


def compute_digest(parts: Sequence[PartInput]) -> str:
    """SHA-256 over names, ETags and missing parts: equal digests mean equal files."""
    whole = hashlib.sha256()
    for part in parts:
        for field in (
            part.key,
            part.transcript,
            *(_part_flags(part) if part.content is None else (part.etag,)),
        ):
            # With lengths, so that no two lists of names have the same digest.
            encoded = field.encode()
            whole.update(len(encoded).to_bytes(8, "big") + encoded)
    return whole.hexdigest()


def stitch(session: str, parts: Sequence[PartInput]) -> SessionTranscript:
    """Returns one text of all chunks on one clock.

    Each chunk begins at the end of the previous one, minus their overlap; or at the position in its
    recording's time stamps, so that a missing chunk leaves its true gap.
    """
    clock = _SessionClock()
    segments: list[Segment] = []
    placed: list[SessionPart] = []
    for part in parts:
        offset = clock.place_part(part)
        segments += (_on_session(segment, offset) for segment in _part_segments(part))
        placed.append(
            SessionPart(
                key=part.key,
                transcript=part.transcript,
                offset=round(offset, 3),
                duration=round(measure_duration(part), 3),
                flags=_part_flags(part),
                speakers=part.speakers or msgspec.UNSET,
            )
        )
    languages = Counter(part.content.language for part in parts if part.content and part.content.language)
    return SessionTranscript(
        session=session,
        text=join_segments(segments),
        segments=tuple(segments),
        duration=round(clock.end, 3),
        language=languages.most_common(1)[0][0] if languages else None,
        parts=tuple(placed),
        digest=compute_digest(parts),
    )


class _SessionClock:
    """Places chunks on the session's clock; times in seconds."""

    def __init__(self) -> None:
        self.end = 0.0
        """Of all placed chunks."""
        self._length = 0.0
        """Of the last placed chunk."""
        self._recording: float | None = None
        """Begin of the recording, from its last chunk with a position."""

    def place_part(self, part: PartInput) -> float:
        """Places a chunk and returns its offset."""
        length = measure_duration(part)
        content = part.content if isinstance(part.content, Transcript) else None
        overlap = min(_length_or_zero(content.overlap), self._length, length) if content else 0.0
        position = content.position if content else None
        offset = self._by_position(position, overlap)
        if offset is None:
            offset = self.end - overlap
        if position is not None:
            self._recording = offset - _length_or_zero(position)
        self.end = max(self.end, offset + length)
        self._length = length
        return offset

    def _by_position(self, position: float | None, overlap: float) -> float | None:
        """Offset by the recording's time stamps; None if they are implausible."""
        # The first chunk of a recording has no position relative to the chunk before it.
        if not position or self._recording is None:
            return None
        offset = self._recording + position
        earliest = max(0.0, self.end - max(overlap, POSITION_SLACK))
        return offset if earliest <= offset < math.inf else None


def _length_or_zero(value: float) -> float:
    """The value if it is a length of time, else 0."""
    return value if 0 < value < math.inf else 0.0


def _on_session(segment: Segment, offset: float) -> Segment:
    """The segment on the session's clock, with split words joined."""
    words = tuple(_join_split_word(word, offset) for word in segment.words)
    start = min([round(segment.start + offset, PLACES), *(word.start for word in words)])
    end = max([round(segment.end + offset, PLACES), *(word.end for word in words)])
    return msgspec.structs.replace(segment, start=start, end=end, words=words)


def _join_split_word(word: Word, offset: float) -> Word:
    start, end = max(0.0, word.true_start + offset), word.true_end + offset
    return msgspec.structs.replace(
        word,
        start=round(start, PLACES),
        end=round(end, PLACES),
        starts_before=msgspec.UNSET,
        ends_after=msgspec.UNSET,
    )
