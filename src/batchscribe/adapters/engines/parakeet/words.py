"""Words and segments out of the tokens of a SentencePiece model: a blank begins a word."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from batchscribe.core.text.cues import SENTENCE_ENDS
from batchscribe.core.text.transcripts import Segment, Word

PAUSE = 0.6
"""Seconds of quiet that end a segment."""
LONGEST = 0.32
"""Seconds that a token lasts at most: the longest step of the published TDT models, 4 frames of 80 ms."""
CLOSING = frozenset(".,;:!?…%)]}»”’。、，？！")
"""Marks that belong to the word before them, with a blank in between or not."""
_SPECIAL = re.compile(r"<.*>")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a word. `text` begins with a blank where a word begins; times are seconds."""

    text: str
    start: float
    log_probability: float | None = None

    @property
    def mark(self) -> bool:
        """Whether it is punctuation that closes what stands before it."""
        return CLOSING.issuperset(self.text.strip())


@dataclass(frozen=True, slots=True)
class _Timed:
    token: Token
    end: float


def segments(tokens: Sequence[Token], frame: float) -> Iterator[Segment]:
    """The tokens as segments, a new one after each pause and each sentence; `frame` is in seconds."""
    words = [_word(group) for group in _groups(_timed(tokens, frame))]
    ends = [place + 1 for place, (one, two) in enumerate(pairwise(words)) if _parts(one, two)]
    for begin, end in pairwise([0, *ends, len(words)]):
        if part := tuple(words[begin:end]):
            text = " ".join(word.word for word in part)
            yield Segment(text=text, start=part[0].start, end=part[-1].end, words=part)


def _parts(one: Word, two: Word) -> bool:
    return one.word.endswith(SENTENCE_ENDS) or two.start - one.end >= PAUSE


def _timed(tokens: Sequence[Token], frame: float) -> list[_Timed]:
    """Each token until the next one begins, though no longer than one can be. Specials say nothing."""
    said = [token for token in tokens if not _SPECIAL.fullmatch(token.text.strip())]
    nexts = [*(token.start for token in said[1:]), math.inf]
    return [
        _Timed(token, min(max(then, token.start + frame), token.start + LONGEST))
        for token, then in zip(said, nexts, strict=False)
    ]


def _groups(timed: Sequence[_Timed]) -> list[list[_Timed]]:
    """The tokens of each word; a blank by itself begins the word that comes after it."""
    groups: list[list[_Timed]] = []
    blank = True
    for item in timed:
        text = item.token.text
        if not text.strip():
            blank = True
            continue
        begins = (blank or text[0].isspace()) and not item.token.mark
        if begins or not groups:
            groups.append([])
        groups[-1].append(item)
        blank = False
    return groups


def _word(group: Sequence[_Timed]) -> Word:
    """One word. A mark is heard by nobody: where it stands says nothing of when the word ended."""
    spoken = [item for item in group if not item.token.mark] or group
    known = [item.token.log_probability for item in group if item.token.log_probability is not None]
    return Word(
        word="".join(item.token.text.strip() for item in group),
        start=spoken[0].token.start,
        end=spoken[-1].end,
        probability=round(min(1.0, math.exp(sum(known) / len(known))), 3) if known else None,
    )
