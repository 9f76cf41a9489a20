"""Builds words and segments from SentencePiece tokens: a blank begins a word."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchscribe.adapters.engines.segments import split_segments
from batchscribe.core.text.cues import SENTENCE_ENDS
from batchscribe.core.text.transcripts import Segment, Word

LONGEST = 0.32
"""Maximum seconds of a token: the longest step of the published TDT models, 4 frames of 80 ms."""
CLOSING = frozenset(".,;:!?…%)]}»”’。、，？！")
"""Marks that belong to the word before them, with or without a blank in between."""
_SPECIAL = re.compile(r"<.*>")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a word. `text` begins with a blank at the start of a word; times are seconds."""

    text: str
    start: float
    log_probability: float | None = None

    @property
    def mark(self) -> bool:
        """True if it is punctuation that closes the text before it."""
        return CLOSING.issuperset(self.text.strip())


@dataclass(frozen=True, slots=True)
class _Timed:
    token: Token
    end: float


def segments(tokens: Sequence[Token], frame: float) -> Iterator[Segment]:
    """Groups tokens into segments, split at pauses and sentence ends; `frame` is in seconds."""
    words = [_to_word(group) for group in _group_by_word(_add_ends(tokens, frame))]
    return split_segments(words, SENTENCE_ENDS)


def _add_ends(tokens: Sequence[Token], frame: float) -> list[_Timed]:
    """Ends each token at the start of the next one, at most LONGEST later. Drops special tokens."""
    spoken = [token for token in tokens if not _SPECIAL.fullmatch(token.text.strip())]
    nexts = [*(token.start for token in spoken[1:]), math.inf]
    return [
        _Timed(token, min(max(then, token.start + frame), token.start + LONGEST))
        for token, then in zip(spoken, nexts, strict=False)
    ]


def _group_by_word(timed: Sequence[_Timed]) -> list[list[_Timed]]:
    """Groups tokens by word; a token that is only a blank begins the next word."""
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


def _to_word(group: Sequence[_Timed]) -> Word:
    """One word. The times of marks are ignored: they are not spoken."""
    spoken = [item for item in group if not item.token.mark] or group
    known = [item.token.log_probability for item in group if item.token.log_probability is not None]
    return Word(
        word="".join(item.token.text.strip() for item in group),
        start=spoken[0].token.start,
        end=spoken[-1].end,
        probability=round(min(1.0, math.exp(sum(known) / len(known))), 3) if known else None,
    )
