"""Renders a session's text as readable subtitles and as paragraphs."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import regex

from batchscribe.core.scan.chunks import split_key
from batchscribe.core.text.spelling import join_segments, spell_words
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import Segment, SessionPart, SessionTranscript

LINE = 42
"""Columns per line; with two lines and at most seven seconds per cue, the broadcasters' convention."""
LINES = 2
SECONDS = 7.0
READABLE = 1.0
"""Seconds that a cue stays on the screen, unless the next one of its channel begins sooner."""
SHORTEST = 0.001
"""Seconds; a cue without a duration is invalid WebVTT and never shown."""
PAUSE = 0.8
"""Seconds of silence that end a cue."""
LONG = 20
"""Characters; a longer piece without blanks may be several words of a language that uses none."""
PARAGRAPH_PAUSE = 2.0
SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")
_WORD = regex.compile(r"[^\t-\r ]+")
"""Text between blanks; a line may break at a blank, but not at a no-break space."""
_CLUSTER = regex.compile(r"\X")
_EMOJI_STYLE = "\ufe0f"


@dataclass(frozen=True, slots=True)
class Cue:
    """Text of at most two lines; times in seconds of the session."""

    start: float
    end: float
    text: str
    channel: int | None = None
    """The speaker's channel, if channels were transcribed separately."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word with its blanks and punctuation from the segment's text."""

    text: str
    start: float
    end: float
    probability: float | None = None
    """0 to 1; None if unknown."""


def make_cues(transcript: SessionTranscript) -> list[Cue]:
    """The session's subtitles in order of start; each stays long enough to be read if there is room."""
    shown: list[Cue] = []
    following: dict[int | None, float] = {}
    by_start = sorted(_cut_cues(transcript), key=lambda cue: cue.start)
    for cue in reversed(by_start):
        room = following.get(cue.channel, math.inf)
        end = max(cue.end, min(cue.start + READABLE, room), cue.start + SHORTEST)
        following[cue.channel] = cue.start
        shown.append(replace(cue, end=round(end, PLACES)))
    return shown[::-1]


def _cut_cues(transcript: SessionTranscript) -> Iterator[Cue]:
    """Yields cues with their words' times, starts in whole milliseconds."""
    for segment in transcript.segments:
        for group in _group_words(
            [piece for item in list_timed_words(segment) for piece in _split_long_word(item)]
        ):
            text = "".join(word.text for word in group).strip()
            if text:
                start = round(max(0.0, group[0].start), PLACES)
                yield Cue(start, group[-1].end, _balance_lines(text), segment.channel or None)


def list_timed_words(segment: Segment) -> list[SpokenWord]:
    """The words with their times; interpolated by length if the segment has no words."""
    if not segment.words:
        return _interpolate_words(segment)
    timed = zip(spell_words(segment), segment.words, strict=True)
    return [SpokenWord(text, word.start, word.end, word.probability) for text, word in timed]


def _interpolate_words(segment: Segment) -> list[SpokenWord]:
    parts = [part + " " for part in segment.text.split()] or [""]
    seconds = max(0.0, segment.end - segment.start)
    step = seconds / sum(map(len, parts)) if segment.text.strip() else 0.0
    out: list[SpokenWord] = []
    at = segment.start
    for part in parts:
        out.append(SpokenWord(part, at, at + step * len(part)))
        at += step * len(part)
    return out


def _split_long_word(item: SpokenWord) -> Iterator[SpokenWord]:
    """Yields the item, or its grapheme clusters if it is too long."""
    late = item.end - item.start > SECONDS and len(item.text.strip()) > LONG
    if not late and _fits_cue(item.text.strip()):
        yield item
        return
    step = (item.end - item.start) / len(item.text)
    for found in _CLUSTER.finditer(item.text):
        yield SpokenWord(found[0], item.start + step * found.start(), item.start + step * found.end())


def _group_words(words: Sequence[SpokenWord]) -> Iterator[list[SpokenWord]]:
    """Groups words into cues."""
    group: list[SpokenWord] = []
    for word in words:
        if group and _begins_cue(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _begins_cue(group: Sequence[SpokenWord], word: SpokenWord) -> bool:
    """True if the word begins a new cue."""
    shown = "".join(part.text for part in group)
    full = not _fits_cue((shown + word.text).strip())
    late = word.end - group[0].start > SECONDS
    pause = word.start - group[-1].end >= PAUSE
    sentence = shown.rstrip().endswith(SENTENCE_ENDS) and len(shown) >= LINE
    return full or late or pause or sentence


def _fits_cue(text: str) -> bool:
    return len(_wrap_text(text, LINE)) <= LINES


def _balance_lines(text: str) -> str:
    """Breaks the text into as few lines as possible, of similar length."""
    wanted = len(_wrap_text(text, LINE))
    narrowest = -(-_count_columns(text) // wanted)
    wrapped = (_wrap_text(text, width) for width in range(narrowest, LINE))
    return "\n".join(next((lines for lines in wrapped if len(lines) <= wanted), _wrap_text(text, LINE)))


def _wrap_text(text: str, width: int) -> list[str]:
    """Breaks the text into lines of at most `width` columns; wider words break between clusters."""
    lines: list[str] = []
    room = 0
    for gap, unit in _split_units(text, width):
        taken = _count_columns(gap + unit)
        if lines and taken <= room:
            lines[-1] += gap + unit
            room -= taken
        else:
            lines.append(unit)
            room = width - _count_columns(unit)
    return lines


def _split_units(text: str, width: int) -> Iterator[tuple[str, str]]:
    """Unbreakable units of the text, each with the blank before it."""
    for word in _WORD.findall(text):
        clusters = [word] if _count_columns(word) <= width else _CLUSTER.findall(word)
        yield " ", clusters[0]
        yield from (("", cluster) for cluster in clusters[1:])


def _count_columns(text: str) -> int:
    """Width in columns: two for East Asian wide letters and emoji, else one."""
    return len(text) if text.isascii() else sum(map(_cluster_columns, _CLUSTER.findall(text)))


def _cluster_columns(cluster: Iterable[str]) -> int:
    wide = any(letter == _EMOJI_STYLE or unicodedata.east_asian_width(letter) in "WF" for letter in cluster)
    return 2 if wide else 1


def make_paragraphs(transcript: SessionTranscript) -> list[str]:
    """The text in paragraphs, split at long pauses and changes of channel.

    A change names the new channel; a missing chunk becomes a paragraph of its own.
    """
    items: list[tuple[float, Segment | SessionPart]] = [
        *((part.offset, part) for part in transcript.parts if MISSING in part.flags),
        *((segment.start, segment) for segment in transcript.segments),
    ]
    out: list[str] = []
    current: list[Segment] = []
    for start, item in sorted(items, key=lambda pair: pair[0]):
        if current and (isinstance(item, SessionPart) or _begins_paragraph(current[-1], item, start)):
            out.append(_join_paragraph(current))
            current = []
        if isinstance(item, SessionPart):
            out.append(f"[missing: {split_key(item.key)[1]}]")
        else:
            current.append(item)
    return [*out, _join_paragraph(current)] if current else out


def _begins_paragraph(before: Segment, segment: Segment, start: float) -> bool:
    return segment.channel != before.channel or start - before.end >= PARAGRAPH_PAUSE


def _join_paragraph(segments: Sequence[Segment]) -> str:
    channel = segments[0].channel
    return f"Channel {channel}: {join_segments(segments)}" if channel else join_segments(segments)
