"""Assigns the words of a timeline to its chunks, on their clocks.

A word belongs to the chunk that contains its midpoint. Chunks that were transcribed before are never written
again: words in their transcripts are dropped, and a word that a cut kept from them goes to the neighbour.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from math import inf
from operator import itemgetter
from typing import TypeVar

import msgspec

from batchscribe.core.text.spelling import spell_words
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import Segment, Word

G = TypeVar("G")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlace:
    """Position of one chunk on the timeline, in seconds.

    The places of a timeline are in order, without gaps: each `last` is the next one's `first`, and an overlap
    is no longer than either of its chunks.
    """

    begin: float
    """Its first sample."""
    end: float
    """Past its last sample."""
    first: float
    """Begin of its own part: the middle of the overlap with the previous chunk, else `begin`."""
    last: float
    """End of its own part: the middle of the overlap with the next chunk."""
    published: bool = False
    """Transcribed before: it is context for others, and is never written again."""
    words_from: float | None = None
    """True start of the first word, if the chunk is published and has words."""
    words_until: float | None = None
    """True end of the final word, if the chunk is published and has words."""


def assign_to_chunks(segments: Iterable[Segment], places: Sequence[ChunkPlace]) -> list[tuple[Segment, ...]]:
    """Returns each place's segments on its clock; none for published ones.

    `segments` are in order, on the timeline's clock, and their words do not overlap; assign separately
    transcribed channels one by one. A segment of several chunks is split between its words. Times are limited
    to the chunk; the parts of a split word outside the chunk are in `starts_before` and `ends_after`.
    """
    shares: list[list[Segment]] = [[] for _ in places]
    owners = _Owners(places)
    for segment in segments:
        for at, part in _split_by_owner(segment, owners):
            if part.text.strip():
                shares[at].append(_on_chunk(part, places[at]))
    return [tuple(share) for share in shares]


def split_segments_at(segments: Iterable[Segment], times: Sequence[float]) -> Iterator[Segment]:
    """Splits the segments between their words at these times, in order."""
    for segment in segments:
        if not segment.words:
            yield segment
            continue
        after = [bisect_right(times, (word.start + word.end) / 2) for word in segment.words]
        yield from (part for _, part in split_by_group(segment, after))


class _Owners:
    """Finds the owner of a span of time."""

    def __init__(self, places: Sequence[ChunkPlace]) -> None:
        self._places = places
        self._lasts = [place.last for place in places]
        until = [_value_or(place.words_until, -inf) for place in places]
        begin = [_value_or(place.words_from, inf) for place in places]
        self._until = [-inf, *accumulate(until, max)]
        """For each place: the latest word end of the published places before it."""
        self._from = [*accumulate(reversed(begin), min, initial=inf)][::-1]
        """For each place: the earliest word start of the published places from it on."""

    def find_owner(self, start: float, end: float) -> int | None:
        """Index of the owner; None if a published chunk covers the span."""
        middle = (start + end) / 2
        # A span outside all places belongs to the nearest one.
        at = min(bisect_right(self._lasts, middle), len(self._places) - 1)
        if self._is_published(middle, at):
            return None
        return self._find_pending_owner(start, end, at) if self._places[at].published else at

    def _is_published(self, middle: float, at: int) -> bool:
        """True if the words of a published chunk cover the time.

        A published chunk has all words between its first and its last. Distant chunks count too, because a
        word may span several short chunks.
        """
        if middle <= self._until[at] or middle >= self._from[at + 1]:
            return True
        here = self._places[at]
        return _value_or(here.words_from, inf) <= middle <= _value_or(here.words_until, -inf)

    def _find_pending_owner(self, start: float, end: float, at: int) -> int | None:
        """Pending neighbour that overlaps the word most; None without one."""
        most: tuple[float, int | None] = (0.0, None)
        for number in self._overlapping_places(start, end, at):
            place = self._places[number]
            shared = min(end, place.last) - max(start, place.first)
            if not place.published and shared > most[0]:
                most = (shared, number)
        return most[1]

    def _overlapping_places(self, start: float, end: float, at: int) -> Iterator[int]:
        """Other places that the span overlaps, besides `at`."""
        before = at - 1
        while before >= 0 and self._places[before].last > start:
            yield before
            before -= 1
        behind = at + 1
        while behind < len(self._places) and self._places[behind].first < end:
            yield behind
            behind += 1


def _value_or(value: float | None, instead: float) -> float:
    return instead if value is None else value


def _split_by_owner(segment: Segment, owners: _Owners) -> Iterator[tuple[int, Segment]]:
    """Yields the segment's parts with the index of their place."""
    if not segment.words:
        at = owners.find_owner(segment.start, segment.end)
        if at is not None:
            yield at, segment
        return
    word_owners = [owners.find_owner(word.start, word.end) for word in segment.words]
    yield from ((at, part) for at, part in split_by_group(segment, word_owners) if at is not None)


def split_by_group(segment: Segment, groups: Sequence[G]) -> Iterator[tuple[G, Segment]]:
    """Splits the segment by the group of each word, in order."""
    texts = spell_words(segment)
    spelled = zip(groups, texts, _find_attached(texts), segment.words, strict=True)
    whole = len(set(groups)) == 1 and segment.text.strip()
    for group, members in groupby(spelled, key=itemgetter(0)):
        _, own, (attached, *_), words = zip(*members, strict=True)
        text = segment.text if whole else "".join(own).strip()
        begin, end = words[0].start, words[-1].end
        part = msgspec.structs.replace(segment, text=text, start=begin, end=end, words=words)
        yield group, msgspec.structs.replace(part, attached=True) if attached else part


def _find_attached(texts: Sequence[str]) -> list[bool]:
    """True for each text without a blank before it."""
    return [False, *(not (one[-1:].isspace() or two[:1].isspace()) for one, two in pairwise(texts))]


def _on_chunk(segment: Segment, place: ChunkPlace) -> Segment:
    """The segment on the chunk's clock; it covers its words."""
    words = tuple(_word_on_chunk(word, place) for word in segment.words)
    begin = words[0].start if words else _clip_time(segment.start, place)
    end = words[-1].end if words else _clip_time(segment.end, place)
    return msgspec.structs.replace(segment, start=begin, end=end, words=words)


def _word_on_chunk(word: Word, place: ChunkPlace) -> Word:
    start, end = _clip_time(word.start, place), _clip_time(word.end, place)
    before = round(start - (word.start - place.begin), PLACES)
    after = round(word.end - place.begin - end, PLACES)
    return msgspec.structs.replace(
        word,
        start=start,
        end=end,
        starts_before=before if before > 0 else msgspec.UNSET,
        ends_after=after if after > 0 else msgspec.UNSET,
    )


def _clip_time(time: float, place: ChunkPlace) -> float:
    """Converts a time to the chunk's clock, within it, in milliseconds."""
    # Sums of decimal fractions fall short of a whole millisecond by about 1e-12.
    length = place.end - place.begin
    limit = int(length * 1000 + 1e-6) / 1000 if length < math.inf else length
    return min(max(round(time - place.begin, PLACES), 0.0), limit)
