"""Vocabulary: names and terms that an engine is to expect."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from batchscribe.errors import MisconfiguredError

MOST = 500
"""Terms of one file. Whisper's prompt has room for about a hundred names."""
LONGEST = 100
"""Characters of a term."""
RECITED = 3
"""Words in a row of the vocabulary, in its order, that a model recites rather than transcribes."""
_MARKS = " .,!?;:…。、！？\"'"


def parse_vocabulary(text: str) -> tuple[str, ...]:
    """Parses a term a line, and `#` comments; raises MisconfiguredError."""
    terms: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        term = " ".join(line.split())
        if not term or term.startswith("#"):
            continue
        if len(term) > LONGEST or not term.isprintable():
            raise MisconfiguredError(
                f"line {number} of the vocabulary is not a term ({term[:LONGEST]!r}): write at most "
                f"{LONGEST} printable characters"
            )
        terms[term] = None
    if len(terms) > MOST:
        raise MisconfiguredError(f"{len(terms)} terms of a vocabulary are too many: {MOST} at most")
    return tuple(terms)


def is_recited(text: str, terms: Sequence[str], *, silent: bool) -> bool:
    """True if a text is only words of the vocabulary, in order.

    If the model rates the window as `silent`, any words of the vocabulary are recited.
    """
    words = [word for word in map(_fold_word, text.split()) if word]
    known = list(filter(None, map(_fold_word, chain.from_iterable(map(str.split, terms)))))
    if not words or not set(words) <= set(known):
        return False
    runs = (known[at : at + len(words)] for at in range(len(known)))
    return silent or (len(words) >= RECITED and words in runs)


def _fold_word(word: str) -> str:
    return word.strip(_MARKS).casefold()
