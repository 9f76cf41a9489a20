"""Groups the words of engines that report no segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from batchscribe.core.text.transcripts import Segment, Word

PAUSE = 0.6
"""Seconds of quiet that end a segment."""


def split_segments(words: Sequence[Word], sentence_ends: tuple[str, ...] = ()) -> Iterator[Segment]:
    """Yields segments, split at pauses and after `sentence_ends`."""
    ends = [
        place
        for place, (one, two) in enumerate(pairwise(words), start=1)
        if two.start - one.end >= PAUSE or one.word.endswith(sentence_ends)
    ]
    for begin, end in pairwise([0, *ends, len(words)]):
        if part := tuple(words[begin:end]):
            text = " ".join(word.word for word in part)
            yield Segment(text=text, start=part[0].start, end=part[-1].end, words=part)
