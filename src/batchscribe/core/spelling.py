"""How a segment's text writes its words: the words know the times, the text knows blanks and marks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from batchscribe.core.transcripts import Segment, Word


def written(segment: Segment) -> list[str]:
    """Each word as the text writes it, with the marks and blanks that belong to it.

    Joined they are the text. Where text and words do not match, they are the words with a blank each.
    """
    found = _found(segment.text, segment.words)
    if found is None:
        return [word.word.strip() + " " for word in segment.words]
    cuts = [_cut(segment.text, end, begin) for (_, end), (begin, _) in pairwise(found)]
    limits = [0, *cuts, len(segment.text)]
    return [segment.text[begin:end] for begin, end in pairwise(limits)]


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
