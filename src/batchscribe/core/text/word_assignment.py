"""Gives what was heard in a stretch back to its chunks: each word to one, with times on its clock.

A word belongs to the chunk that has its midpoint. Chunks that were transcribed before are never written
again: what they have already is dropped, and a word that a cut kept from them goes to the neighbour.
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

from batchscribe.core.text.spelling import written
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import Segment, Word

G = TypeVar("G")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one chunk lies on its stretch's clock, in seconds.

    The places of a stretch are in order and leave no gap: each `last` is the next one's `first`, and
    an overlap is no longer than either of its chunks.
    """

    begin: float
    """Its first sample."""
    end: float
    """Past its last sample."""
    first: float
    """Its own from here on: the seam with the chunk before it, the middle of what both have; else `begin`."""
    last: float
    """Its own up to here: the seam with the next one."""
    published: bool = False
    """Transcribed before: it lets others be heard in context, and is never written again."""
    heard_from: float | None = None
    """Of a published one: the true start of its first word. None where it has no word, and of others."""
    heard_until: float | None = None
    """Of a published one: the true end of its last word. None where it has no word, and of others."""


def share(segments: Iterable[Segment], places: Sequence[Place]) -> list[tuple[Segment, ...]]:
    """The segments of each place, on its chunk's own clock; none for published ones.

    `segments` are in order, on the stretch's clock, and of words that do not overlap: with channels
    heard one by one, share each for itself. A segment that several chunks have a part of is split
    between its words. Times keep to the chunk, and a word that a cut goes through keeps what is
    outside in `starts_before` and `ends_after`.
    """
    shares: list[list[Segment]] = [[] for _ in places]
    owners = _Owners(places)
    for segment in segments:
        for at, part in _parts(segment, owners):
            if part.text.strip():
                shares[at].append(_on_chunk(part, places[at]))
    return [tuple(share) for share in shares]


def divide(segments: Iterable[Segment], times: Sequence[float]) -> Iterator[Segment]:
    """The segments, split between their words at these times, which are in order."""
    for segment in segments:
        if not segment.words:
            yield segment
            continue
        after = [bisect_right(times, (word.start + word.end) / 2) for word in segment.words]
        yield from (part for _, part in _grouped(segment, after))


class _Owners:
    """Whose a span of time is."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._lasts = [place.last for place in places]
        until = [_or(place.heard_until, -inf) for place in places]
        begin = [_or(place.heard_from, inf) for place in places]
        self._until = [-inf, *accumulate(until, max)]
        """How far the published ones before each place reach."""
        self._from = [*accumulate(reversed(begin), min, initial=inf)][::-1]
        """From where on the published ones from each place on have words."""

    def of(self, start: float, end: float) -> int | None:
        """Which place it goes to; None where a published chunk has it, or has heard it and left it out."""
        middle = (start + end) / 2
        # What lies outside of all belongs to the nearest.
        at = min(bisect_right(self._lasts, middle), len(self._places) - 1)
        if self._is_known(middle, at):
            return None
        return self._across(start, end, at) if self._places[at].published else at

    def _is_known(self, middle: float, at: int) -> bool:
        """Whether a published chunk has the word: one before it reaches so far, or one behind it does.

        Each has all words between its first and its last; and those of chunks further off count too,
        since where chunks are short a word may reach over several.
        """
        if middle <= self._until[at] or middle >= self._from[at + 1]:
            return True
        here = self._places[at]
        return _or(here.heard_from, inf) <= middle <= _or(here.heard_until, -inf)

    def _across(self, start: float, end: float, at: int) -> int | None:
        """The pending place that has the most of a word whose midpoint is a published one's."""
        most: tuple[float, int | None] = (0.0, None)
        for number in self._around(start, end, at):
            place = self._places[number]
            shared = min(end, place.last) - max(start, place.first)
            if not place.published and shared > most[0]:
                most = (shared, number)
        return most[1]

    def _around(self, start: float, end: float, at: int) -> Iterator[int]:
        """The places that the span reaches into, beside the one at `at`."""
        before = at - 1
        while before >= 0 and self._places[before].last > start:
            yield before
            before -= 1
        behind = at + 1
        while behind < len(self._places) and self._places[behind].first < end:
            yield behind
            behind += 1


def _or(value: float | None, instead: float) -> float:
    return instead if value is None else value


def _parts(segment: Segment, owners: _Owners) -> Iterator[tuple[int, Segment]]:
    """The segment, or what of it goes where, in order."""
    if not segment.words:
        at = owners.of(segment.start, segment.end)
        if at is not None:
            yield at, segment
        return
    whose = [owners.of(word.start, word.end) for word in segment.words]
    yield from ((at, part) for at, part in _grouped(segment, whose) if at is not None)


def _grouped(segment: Segment, groups: Sequence[G]) -> Iterator[tuple[G, Segment]]:
    """The segment in parts of words of one group each, in order; `groups` has the group of each word."""
    texts = written(segment)
    spelled = zip(groups, texts, _attached(texts), segment.words, strict=True)
    whole = len(set(groups)) == 1 and segment.text.strip()
    for group, members in groupby(spelled, key=itemgetter(0)):
        _, own, (attached, *_), words = zip(*members, strict=True)
        text = segment.text if whole else "".join(own).strip()
        begin, end = words[0].start, words[-1].end
        part = msgspec.structs.replace(segment, text=text, start=begin, end=end, words=words)
        yield group, msgspec.structs.replace(part, attached=True) if attached else part


def _attached(texts: Sequence[str]) -> list[bool]:
    """True for each text with no blank between it and the one before it."""
    return [False, *(not (one[-1:].isspace() or two[:1].isspace()) for one, two in pairwise(texts))]


def _on_chunk(segment: Segment, place: Place) -> Segment:
    """The segment with its times on the chunk's clock; it covers its words."""
    words = tuple(_word(word, place) for word in segment.words)
    begin = words[0].start if words else _clip(segment.start, place)
    end = words[-1].end if words else _clip(segment.end, place)
    return msgspec.structs.replace(segment, start=begin, end=end, words=words)


def _word(word: Word, place: Place) -> Word:
    start, end = _clip(word.start, place), _clip(word.end, place)
    before = round(start - (word.start - place.begin), PLACES)
    after = round(word.end - place.begin - end, PLACES)
    return msgspec.structs.replace(
        word,
        start=start,
        end=end,
        starts_before=before if before > 0 else msgspec.UNSET,
        ends_after=after if after > 0 else msgspec.UNSET,
    )


def _clip(time: float, place: Place) -> float:
    """A time of the stretch on the chunk's clock, kept inside the chunk, in whole milliseconds."""
    # Sums of decimal fractions fall short of a whole millisecond by some 1e-12.
    length = place.end - place.begin
    limit = int(length * 1000 + 1e-6) / 1000 if length < math.inf else length
    return min(max(round(time - place.begin, PLACES), 0.0), limit)
