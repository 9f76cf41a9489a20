"""Replacements in session files: words that an engine spells wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import regex

from batchscribe.core.text.spelling import spell_words
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.errors import MisconfiguredError, PermanentError

ARROW = "=>"
MOST = 1000
"""Rules of one file."""
LONGEST = 1000
"""Characters of a rule."""
LONGEST_TEXT = 100_000
"""Characters of a segment after a rule; a minute of speech has about a thousand."""
SECONDS = 1.0
"""Time limit of one rule on one segment: an expression may backtrack without end."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Rule by which each match of `pattern` becomes `text`, with groups."""

    line: str
    pattern: regex.Pattern[str]
    text: str
    hint: str = ""
    """A text without which it cannot match, in lower case; empty if there is none."""


def parse_replacements(text: str) -> tuple[Replacement, ...]:
    r"""Parses rules such as `old => new` and `/expression/ => new`.

    Words match in any case. Groups are written as \1, and `#` begins a comment line. Raises
    MisconfiguredError, which names the line.
    """
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rules.append(_parse_rule(line.strip()))
            except (ValueError, regex.error, RecursionError) as error:
                raise MisconfiguredError(
                    f"line {number} of the replacements is not a rule ({error}): write `old => new` or "
                    "`/regular expression/ => new`"
                ) from error
    if len(rules) > MOST:
        raise MisconfiguredError(f"{len(rules)} replacements are too many: {MOST} at most")
    return tuple(rules)


def hash_rules(rules: Sequence[Replacement]) -> str:
    """SHA-256 of the rules in their order; empty without any."""
    return hashlib.sha256("\n".join(rule.line for rule in rules).encode()).hexdigest() if rules else ""


def replace_words(segment: Segment, rules: Sequence[Replacement]) -> Segment:
    """The segment with all rules applied in order.

    Words that a match touches become one, with their time; its text is divided at blanks by length. Raises
    PermanentError if a rule takes too long, or makes the text too long.
    """
    for rule in rules:
        if not rule.hint or rule.hint in segment.text.lower():
            segment = _apply_rule(segment, rule)
    return segment


def _parse_rule(line: str) -> Replacement:
    old, arrow, new = (part.strip() for part in line.partition(ARROW))
    if not arrow or not old or len(line) > LONGEST:
        raise ValueError(f"without {ARROW}" if not arrow else "nothing to replace" if not old else "too long")
    if len(old) > 2 and old.startswith("/") and old.endswith("/"):
        rule = Replacement(line, regex.compile(old[1:-1], regex.VERSION1), new)
        _check_template(rule)
        return rule
    words = r"\s+".join(map(regex.escape, old.split()))
    pattern = regex.compile(rf"(?<!\w){words}(?!\w)", regex.IGNORECASE)
    return Replacement(line, pattern, new.replace("\\", r"\\"), hint=old.split()[0].lower())


def _check_template(rule: Replacement) -> None:
    """Raises ValueError if the text refers to a group that is missing."""
    if rule.pattern.fullmatch("", timeout=SECONDS):
        raise ValueError("it matches an empty text")
    try:
        regex.compile(f"(?:{rule.pattern.pattern})?", regex.VERSION1).sub(rule.text, "", timeout=SECONDS)
    except (regex.error, IndexError) as error:
        raise ValueError(str(error)) from error


def _apply_rule(segment: Segment, rule: Replacement) -> Segment:
    found: list[tuple[int, int, str]] = []
    length = len(segment.text)
    try:
        for match in rule.pattern.finditer(segment.text, timeout=SECONDS):
            found.append((match.start(), match.end(), match.expand(rule.text)))
            length += len(found[-1][2]) - len(match[0])
            if length > max(LONGEST_TEXT, len(segment.text)):
                raise PermanentError(
                    f"the replacement {rule.line!r} makes a segment longer than {LONGEST_TEXT:,} characters: "
                    "shorten it"
                )
    except TimeoutError as error:
        raise PermanentError(
            f"the replacement {rule.line!r} took more than {SECONDS:g} s on one segment: simplify it"
        ) from error
    if not found:
        return segment
    words = tuple(_replace_in_words(segment, found)) if segment.words else ()
    return msgspec.structs.replace(segment, text=_replace_matches(segment.text, 0, found), words=words)


def _replace_matches(text: str, offset: int, found: Sequence[tuple[int, int, str]]) -> str:
    """The text with all matches replaced; `offset`: its place in the whole."""
    for begin, end, new in reversed(found):
        text = text[: begin - offset] + new + text[end - offset :]
    return text


def _replace_in_words(segment: Segment, found: Sequence[tuple[int, int, str]]) -> Iterator[Word]:
    """Yields the words; those that a match touches are joined, then divided."""
    for begin, pieces, words in _group_touched(segment, found):
        end = begin + sum(map(len, pieces))
        inside = [match for match in found if begin <= match[0] and match[1] <= end and match[0] < end]
        if inside:
            yield from _time_words(_replace_matches("".join(pieces), begin, inside), words)
        else:
            yield from words


def _group_touched(
    segment: Segment, found: Sequence[tuple[int, int, str]]
) -> Iterator[tuple[int, list[str], list[Word]]]:
    """Yields (begin, spellings, words): single words, or all that matches connect."""
    inner = {at for begin, end, _new in found for at in range(begin + 1, end)}
    at, begin = 0, 0
    pieces: list[str] = []
    words: list[Word] = []
    for piece, word in zip(spell_words(segment), segment.words, strict=True):
        if words and at not in inner:
            yield begin, pieces, words
            begin, pieces, words = at, [], []
        pieces.append(piece)
        words.append(word)
        at += len(piece)
    if words:
        yield begin, pieces, words


def _time_words(text: str, words: Sequence[Word]) -> Iterator[Word]:
    """Yields the text's words in the time of `words`, by length."""
    parts = text.split()
    start, end = words[0].start, max(word.end for word in words)
    step = (end - start) / max(1, sum(map(len, parts)))
    sure = [word.probability for word in words if word.probability is not None]
    for part in parts:
        yield msgspec.structs.replace(
            words[0],
            word=(" " if words[0].word[:1].isspace() else "") + part,
            start=round(start, 3),
            end=round(start + step * len(part), 3),
            probability=min(sure, default=None),
        )
        start += step * len(part)
