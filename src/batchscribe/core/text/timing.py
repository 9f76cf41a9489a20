"""Limits times to their window: engines round, guess and overshoot."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from batchscribe.core.text.transcripts import Segment, Word

PLACES = 3
"""Milliseconds."""


def within(segments: Iterable[Segment], seconds: float) -> tuple[Segment, ...]:
    """Limits the segments to [0, seconds], starts in order, no negative lengths.

    Segments cover exactly their words; a segment without words keeps its text.
    """
    out: list[Segment] = []
    at = 0.0
    limit = int(seconds * 10**PLACES) / 10**PLACES
    for segment in segments:
        words = _order_words(segment.words, at, limit)
        begin = words[0].start if words else _clip_time(segment.start, at, limit)
        end = words[-1].end if words else _clip_time(segment.end, begin, limit)
        out.append(msgspec.structs.replace(segment, start=begin, end=end, words=words))
        at = end
    return tuple(out)


def _order_words(words: Iterable[Word], at: float, limit: float) -> tuple[Word, ...]:
    out: list[Word] = []
    for word in words:
        begin = _clip_time(word.start, at, limit)
        end = _clip_time(word.end, begin, limit)
        out.append(msgspec.structs.replace(word, start=begin, end=end))
        at = end
    return tuple(out)


def _clip_time(value: float, low: float, high: float) -> float:
    return round(min(max(value, low), high), PLACES)
