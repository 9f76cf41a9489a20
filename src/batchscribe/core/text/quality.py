"""Whether a recognition looks wrong: loops, doubts, words that do not fit into their audio.

Models invent words where nobody speaks, and get stuck in loops. What looks wrong is heard again, more
carefully, and flagged where it looks wrong still; it is never deleted. Only a window that the model
itself takes for silence has no words. Every engine can be judged here: what it does not know is None.
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
"""Bytes of text for each byte of it compressed: more is repetition. It and the next two are Whisper's own."""
MIN_LOGPROB = -1.0
"""The mean of the logarithms of the tokens' probabilities: below it, the model guesses."""
MIN_SILENCE = 0.6
"""The probability of no speech above which a guess is taken for silence."""
LONGEST_PHRASE = 6
"""Words: phrases up to this long are looked for in loops."""
LOOP_TIMES = 4
LOOP_WORDS = 8
"""So often in a row, and so many words in all, makes a loop: people do say "no, no, no"."""
LOOP_SHARE = 1 / 3
"""Of all words: so large a part of the text must be the loop."""
FASTEST = 8.0
"""Words a second: the fastest talkers stay below it."""
FASTEST_UNSPACED = 16.0
"""The same for scripts without blanks, where engines call each syllable a word."""
BURST_WORDS = 8
"""Fewer words are no measure of a speed."""
SLACK = 0.5
"""Seconds by which a time may lie outside the audio, or before the one before it: engines round and pad."""
UNHEARD_SECONDS = 1.0
"""What a model may leave unread of a window, where it said that more comes."""
WORDLESS_SECONDS = 3.0
"""So much detected speech without a word between it is too much to be breath or laughter."""
Span = tuple[float, float]


class Doubt(StrEnum):
    """Why a recognition looks wrong."""

    REPETITIVE = "repetitive"
    LOOPING = "looping"
    GUESSED = "guessed"
    OUTSIDE = "outside"
    """Words behind the end of the audio."""
    DISORDERED = "disordered"
    HURRIED = "hurried"
    UNFINISHED = "unfinished"
    """The model stopped before the end of the audio."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What an engine made of one window, before anything is mended.

    Times are seconds from the window's beginning, as the engine gave them. `heard_until` is up to where
    the model read, where it says that it stopped early.
    """

    segments: tuple[Segment, ...]
    seconds: float
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    heard_until: float | None = None

    @property
    def text(self) -> str:
        return " ".join(segment.text.strip() for segment in self.segments if segment.text.strip())

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def silent(self) -> bool:
        """Whether the model itself takes it for silence: it says so, and its words are guesses."""
        guessed = self.avg_logprob is not None and self.avg_logprob < MIN_LOGPROB
        return guessed and (self.no_speech_prob or 0.0) > MIN_SILENCE


def doubts(heard: Heard) -> frozenset[Doubt]:
    """Why it looks wrong; empty where it does not. Hearing nothing is no doubt, but stopping early is one."""
    found = {Doubt.UNFINISHED} if _unfinished(heard) else set[Doubt]()
    if heard.text:
        found |= {doubt for doubt, wrong in _CHECKS if wrong(heard)}
    return frozenset(found)


def find_wordless_speech(speech: Sequence[Span], segments: Iterable[Segment]) -> list[tuple[Span, ...]]:
    """Speech between two words, or beside the first or last one, if it sums up to 3 s or more.

    `speech` are detected spans, in order; all times are seconds on one clock. Each result holds the spans of
    one such place, in order. A mark alone, such as "." or "♪", is no word.
    """
    found: list[tuple[Span, ...]] = []
    at = -inf
    words = sorted((one.start, one.end) for one in _timed(segments) if any(map(str.isalnum, _text(one))))
    for begin, end in (*words, (inf, inf)):
        parts = [(max(first, at), min(last, begin)) for first, last in speech if first < begin and last > at]
        if sum(last - first for first, last in parts) >= WORDLESS_SECONDS:
            found.append(tuple(parts))
        at = max(at, end)
    return found


def flags(heard: Heard) -> tuple[str, ...]:
    """What an engine without a second, more careful way of hearing says of a recognition that looks wrong."""
    return (LOW_CONFIDENCE,) if doubts(heard) else ()


def better(first: Heard, second: Heard) -> Heard:
    """The more credible one of two recognitions of the same window.

    Fewer doubts win, then the model's own confidence. Words are given up for none only where the model
    holds silence for likely.
    """
    if not second.text:
        given_up = not first.text or (first.no_speech_prob or 0.0) > MIN_SILENCE
        return second if given_up else first
    return second if _credit(second) > _credit(first) else first


def _credit(heard: Heard) -> tuple[int, float]:
    return -len(doubts(heard)), heard.avg_logprob if heard.avg_logprob is not None else MIN_LOGPROB


def compression(text: str) -> float:
    """Bytes of text for each byte of it compressed: Whisper's measure of repetition."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def looping(words: Sequence[str]) -> bool:
    """Whether one phrase, over and over in a row, makes up a large part of the words."""
    spoken = [word.strip(" .,!?;:…。、！？").casefold() for word in words]
    enough = max(LOOP_WORDS, LOOP_SHARE * len(spoken))
    return any(_longest_run(spoken, length) >= enough for length in range(1, LONGEST_PHRASE + 1))


def _longest_run(words: Sequence[str], length: int) -> int:
    """The words in the longest run of one phrase of `length` words; 0 where it comes too seldom."""
    longest, run = 0, 0
    for place in range(length, len(words)):
        run = run + 1 if words[place] == words[place - length] else 0
        longest = max(longest, run)
    return longest + length if longest + length >= LOOP_TIMES * length else 0


def _repetitive(heard: Heard) -> bool:
    return compression(heard.text) > MAX_COMPRESSION


def _looping(heard: Heard) -> bool:
    return looping([word.word for word in heard.words] or heard.text.split())


def _guessed(heard: Heard) -> bool:
    return heard.avg_logprob is not None and heard.avg_logprob < MIN_LOGPROB


def _outside(heard: Heard) -> bool:
    return any(time > heard.seconds + SLACK for span in _spans(heard) for time in span)


def _disordered(heard: Heard) -> bool:
    backwards = any(later[0] < earlier[0] - SLACK for earlier, later in pairwise(_spans(heard)))
    return backwards or any(end < start for start, end in _spans(heard))


def _spans(heard: Heard) -> Iterator[Span]:
    return ((one.start, one.end) for one in _timed(heard.segments))


def _timed(segments: Iterable[Segment]) -> Iterator[Segment | Word]:
    """The smallest parts that have times: words, else the segment if it has a text."""
    for segment in segments:
        if segment.words:
            yield from segment.words
        elif segment.text.strip():
            yield segment


def _text(part: Segment | Word) -> str:
    return part.word if isinstance(part, Word) else part.text


def _hurried(heard: Heard) -> bool:
    return any(_too_fast(segment) for segment in heard.segments)


def _too_fast(segment: Segment) -> bool:
    count = len(segment.words) or len(segment.text.split())
    spaced = segment.text.count(" ") * 2 >= count
    limit = FASTEST if spaced else FASTEST_UNSPACED
    return count >= BURST_WORDS and count > limit * max(segment.end - segment.start, 0.0)


def _unfinished(heard: Heard) -> bool:
    return heard.heard_until is not None and heard.seconds - heard.heard_until > UNHEARD_SECONDS


_CHECKS = (
    (Doubt.REPETITIVE, _repetitive),
    (Doubt.LOOPING, _looping),
    (Doubt.GUESSED, _guessed),
    (Doubt.OUTSIDE, _outside),
    (Doubt.DISORDERED, _disordered),
    (Doubt.HURRIED, _hurried),
)
