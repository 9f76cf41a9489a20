"""Spelling: words have times, the text has their blanks and punctuation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from batchscribe.core.text.transcripts import Segment, Word

TOUCHING = 0.5
"""Longest gap between two parts of one word, in seconds."""


def spell_words(segment: Segment) -> list[str]:
    """Spelling of each word in the text; joined, they are the text.

    Words have their punctuation and blanks. If text and words do not match, returns the words with their own
    blanks, or with one each if they have none.
    """
    found = _locate_words(segment.text, segment.words)
    if found is None:
        own = any(word.word[:1].isspace() for word in segment.words)
        return [word.word if own else word.word.strip() + " " for word in segment.words]
    cuts = [_find_border(segment.text, end, begin) for (_, end), (begin, _) in pairwise(found)]
    limits = [0, *cuts, len(segment.text)]
    return [segment.text[begin:end] for begin, end in pairwise(limits)]


def join_segments(segments: Iterable[Segment]) -> str:
    """Joins the segments' texts with blanks, except inside a split word."""
    parts: list[str] = []
    before: Segment | None = None
    for segment in segments:
        gap = "" if before is None or continues_word(before, segment) else " "
        parts += (gap, segment.text.strip())
        before = segment
    return "".join(parts)


def continues_word(before: Segment, segment: Segment) -> bool:
    """True if a cut split a word between the two segments."""
    # The chunk with the beginning of the word may be missing.
    near = segment.start - before.end < TOUCHING
    return bool(segment.attached) and near and segment.channel == before.channel


def _locate_words(text: str, words: Sequence[Word]) -> list[tuple[int, int]] | None:
    """Begin and end of each word in the text, if in order."""
    places: list[tuple[int, int]] = []
    at = 0
    for word in words:
        begin = text.find(word.word.strip(), at)
        if begin < 0:
            return None
        at = begin + len(word.word.strip())
        places.append((begin, at))
    return places


def _find_border(text: str, end: int, begin: int) -> int:
    """Border between two words, behind the blanks; punctuation stays with its word.

    Without blanks, as in some languages, punctuation belongs to the word before.
    """
    between = text[end:begin]
    marks = between.split(maxsplit=1)
    touching = between[:1].strip() and marks[0]
    rest = between[len(touching) :]
    return end + len(touching) + len(rest) - len(rest.lstrip())
