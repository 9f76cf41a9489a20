"""Builds words and segments from SentencePiece tokens: a blank begins a word."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    """A piece of a word; its times are seconds.

    `text` begins with a blank at the start of a word.
    """

    text: str
    start: float
    log_probability: float | None = None
    end: float = 0.0

    @property
    def mark(self) -> bool:
        """True if it is punctuation that closes the text before it."""
        return CLOSING.issuperset(self.text.strip())


def build_segments(tokens: Sequence[Token], frame: float) -> Iterator[Segment]:
    """Groups tokens into segments at pauses and sentence ends; `frame`: seconds."""
    words = [_to_word(group) for group in _group_by_word(_add_ends(tokens, frame))]
    return split_segments(words, SENTENCE_ENDS)


def _add_ends(tokens: Sequence[Token], frame: float) -> list[Token]:
    """Ends each token where the next one starts; drops special tokens.

    A token lasts at most LONGEST.
    """
    spoken = [token for token in tokens if not _SPECIAL.fullmatch(token.text.strip())]
    nexts = [*(token.start for token in spoken[1:]), math.inf]
    return [
        replace(token, end=min(max(then, token.start + frame), token.start + LONGEST))
        for token, then in zip(spoken, nexts, strict=False)
    ]


def _group_by_word(tokens: Sequence[Token]) -> list[list[Token]]:
    """Groups tokens by word; a blank token begins the next one."""
    groups: list[list[Token]] = []
    blank = True
    for token in tokens:
        if not token.text.strip():
            blank = True
            continue
        begins = (blank or token.text[0].isspace()) and not token.mark
        if begins or not groups:
            groups.append([])
        groups[-1].append(token)
        blank = False
    return groups


def _to_word(group: Sequence[Token]) -> Word:
    """One word. The times of marks are ignored: they are not spoken."""
    spoken = [token for token in group if not token.mark] or group
    known = [token.log_probability for token in group if token.log_probability is not None]
    return Word(
        word="".join(token.text.strip() for token in group),
        start=spoken[0].start,
        end=spoken[-1].end,
        probability=round(min(1.0, math.exp(sum(known) / len(known))), 3) if known else None,
    )
