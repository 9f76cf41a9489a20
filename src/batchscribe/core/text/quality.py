"""Detects implausible results: loops, low confidence, words that contradict their audio.

Models invent words during silence, and get stuck in loops. An implausible result is decoded again with more
careful options, and flagged if it is still implausible; it is never deleted. Only a window that the model
itself rates as silence has no words. The checks work for every engine: values that it lacks are None.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import inf

from batchscribe.core.text.flags import LOW_CONFIDENCE
from batchscribe.core.text.transcripts import Segment, Word

MAX_COMPRESSION = 2.4
"""Compression ratio of the text above which it is repetitive. It and the next two are Whisper's own."""
MIN_LOGPROB = -1.0
"""Mean log probability of the tokens below which the model guesses."""
MIN_SILENCE = 0.6
"""The probability of no speech above which a guess counts as silence."""
LONGEST_PHRASE = 6
"""Longest phrase, in words, that is checked for loops."""
LOOP_TIMES = 4
LOOP_WORDS = 8
"""Repetitions in a row, and words in all, that make a loop: "no, no, no" is normal speech."""
LOOP_SHARE = 1 / 3
"""Smallest share of the text's words that a loop must have."""
FASTEST = 8.0
"""Words per second; the fastest speakers stay below it."""
FASTEST_UNSPACED = 16.0
"""The same for scripts without blanks, in which engines count each syllable as a word."""
BURST_WORDS = 8
"""Fewest words from which a speed is measured."""
SLACK = 0.5
"""Seconds by which a time may lie outside the audio, or before the previous one: engines round and pad."""
UNHEARD_SECONDS = 1.0
"""Seconds of a window that a model may leave unread when it stops early."""
WORDLESS_SECONDS = 3.0
"""Seconds of detected speech without a word that are too long to be breath or laughter."""
Span = tuple[float, float]


class Doubt(StrEnum):
    """Reasons why a result is implausible."""

    REPETITIVE = "repetitive"
    LOOPING = "looping"
    GUESSED = "guessed"
    OUTSIDE = "outside"
    """Words behind the end of the audio."""
    DISORDERED = "disordered"
    HURRIED = "hurried"
    UNFINISHED = "unfinished"
    """The model stopped before the end of the audio."""
    RECITED = "recited"
    """Only words of the vocabulary, in its own order."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """The engine's raw result for one window.

    Times are seconds from the window's beginning, as the engine returned them. `read_until` is the time up
    to which the model read, if it reports that it stopped early.
    """

    segments: tuple[Segment, ...]
    seconds: float
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    read_until: float | None = None
    recited: bool = False
    """True if the text is the vocabulary, recited."""

    @property
    def text(self) -> str:
        return " ".join(segment.text.strip() for segment in self.segments if segment.text.strip())

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def guessed(self) -> bool:
        """True if the model is unsure of the words."""
        return self.avg_logprob is not None and self.avg_logprob < MIN_LOGPROB

    @property
    def silent(self) -> bool:
        """True if the model rates it as silence, with guessed words."""
        return self.guessed and (self.no_speech_prob or 0.0) > MIN_SILENCE


def find_doubts(result: Recognized) -> frozenset[Doubt]:
    """Doubts about a result; empty text raises none, stopping early does."""
    unread = 0.0 if result.read_until is None else result.seconds - result.read_until
    found = {Doubt.UNFINISHED: unread > UNHEARD_SECONDS}
    if result.text:
        spans = [(one.start, one.end) for one in _iterate_timed(result.segments)]
        backwards = any(later[0] < earlier[0] - SLACK for earlier, later in pairwise(spans))
        found |= {
            Doubt.REPETITIVE: measure_compression(result.text) > MAX_COMPRESSION,
            Doubt.LOOPING: is_looping([word.word for word in result.words] or result.text.split()),
            Doubt.GUESSED: result.guessed,
            Doubt.OUTSIDE: any(time > result.seconds + SLACK for span in spans for time in span),
            Doubt.DISORDERED: backwards or any(end < start for start, end in spans),
            Doubt.HURRIED: any(map(_is_too_fast, result.segments)),
            Doubt.RECITED: result.recited,
        }
    return frozenset(doubt for doubt, holds in found.items() if holds)


def find_wordless_speech(speech: Sequence[Span], segments: Iterable[Segment]) -> list[tuple[Span, ...]]:
    """Finds gaps between words with 3 s of speech or more.

    `speech` are detected spans, in order; all times are seconds on one clock. Each result holds the spans of
    one gap, in order. Punctuation alone, such as "." or "♪", is not a word.
    """
    found: list[tuple[Span, ...]] = []
    at = -inf
    words = sorted(
        (one.start, one.end)
        for one in _iterate_timed(segments)
        if any(map(str.isalnum, one.word if isinstance(one, Word) else one.text))
    )
    for begin, end in (*words, (inf, inf)):
        parts = [(max(first, at), min(last, begin)) for first, last in speech if first < begin and last > at]
        if sum(last - first for first, last in parts) >= WORDLESS_SECONDS:
            found.append(tuple(parts))
        at = max(at, end)
    return found


def find_flags(result: Recognized) -> tuple[str, ...]:
    """Flags of a result from an engine that cannot re-decode."""
    return (LOW_CONFIDENCE,) if find_doubts(result) else ()


def choose_better(first: Recognized, second: Recognized) -> Recognized:
    """The more plausible of two results for the same window.

    Fewer doubts win, then the model's own confidence. An empty text replaces words only if the model rates
    silence as likely, or if the words are recited.
    """
    if not second.text:
        is_silence = not first.text or first.recited or (first.no_speech_prob or 0.0) > MIN_SILENCE
        return second if is_silence else first
    return second if _rank_result(second) > _rank_result(first) else first


def _rank_result(result: Recognized) -> tuple[int, float]:
    return -len(find_doubts(result)), result.avg_logprob if result.avg_logprob is not None else MIN_LOGPROB


def measure_compression(text: str) -> float:
    """Compression ratio of the text: Whisper's measure of repetition."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def is_looping(words: Sequence[str]) -> bool:
    """True if one repeated phrase makes up much of the text."""
    spoken = [word.strip(" .,!?;:…。、！？").casefold() for word in words]
    enough = max(LOOP_WORDS, LOOP_SHARE * len(spoken))
    return any(_longest_run(spoken, length) >= enough for length in range(1, LONGEST_PHRASE + 1))


def _longest_run(words: Sequence[str], length: int) -> int:
    """Words in the longest run of a phrase; 0 below LOOP_TIMES repetitions."""
    longest, run = 0, 0
    for place in range(length, len(words)):
        run = run + 1 if words[place] == words[place - length] else 0
        longest = max(longest, run)
    return longest + length if longest + length >= LOOP_TIMES * length else 0


def _iterate_timed(segments: Iterable[Segment]) -> Iterator[Segment | Word]:
    """Yields the smallest parts with times: words, else segments with text."""
    for segment in segments:
        if segment.words:
            yield from segment.words
        elif segment.text.strip():
            yield segment


def _is_too_fast(segment: Segment) -> bool:
    count = len(segment.words) or len(segment.text.split())
    spaced = segment.text.count(" ") * 2 >= count
    limit = FASTEST if spaced else FASTEST_UNSPACED
    return count >= BURST_WORDS and count > limit * max(segment.end - segment.start, 0.0)
