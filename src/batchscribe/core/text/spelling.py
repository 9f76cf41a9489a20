"""How texts write words and segments: the words know the times, the text knows blanks and marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from batchscribe.core.text.transcripts import Segment, Word

TOUCHING = 0.5
"""Seconds; two parts of one word are no further apart."""


def written(segment: Segment) -> list[str]:
    """Each word as the text writes it, with the marks and blanks that belong to it.

    Joined they are the text. If text and words do not match, they are the words with their own blanks,
    or with one each if they have none.
    """
    found = _found(segment.text, segment.words)
    if found is None:
        own = any(word.word[:1].isspace() for word in segment.words)
        return [word.word if own else word.word.strip() + " " for word in segment.words]
    cuts = [_cut(segment.text, end, begin) for (_, end), (begin, _) in pairwise(found)]
    limits = [0, *cuts, len(segment.text)]
    return [segment.text[begin:end] for begin, end in pairwise(limits)]


def joined(segments: Iterable[Segment]) -> str:
    """The segments' texts with a blank between them, unless a cut split a word of the same channel."""
    parts: list[str] = []
    before: Segment | None = None
    for segment in segments:
        gap = "" if before is None or _continues(before, segment) else " "
        parts += (gap, segment.text.strip())
        before = segment
    return "".join(parts)


def _continues(before: Segment, segment: Segment) -> bool:
    # The chunk with the beginning of the word may be missing.
    near = segment.start - before.end < TOUCHING
    return bool(segment.attached) and near and segment.channel == before.channel


def _found(text: str, words: Sequence[Word]) -> list[tuple[int, int]] | None:
    """Where each word begins and ends in the text; None where one is not there, or out of order."""
    places: list[tuple[int, int]] = []
    at = 0
    for word in words:
        begin = text.find(word.word.strip(), at)
        if begin < 0:
            return None
        at = begin + len(word.word.strip())
        places.append((begin, at))
    return places


def _cut(text: str, end: int, begin: int) -> int:
    """Where the one word's text ends and the next one's begins: behind the blanks, and marks stay with
    the word that they touch. Some languages put no blanks: then marks belong to the word before.
    """
    between = text[end:begin]
    marks = between.split(maxsplit=1)
    touching = between[:1].strip() and marks[0]
    rest = between[len(touching) :]
    return end + len(touching) + len(rest) - len(rest.lstrip())
