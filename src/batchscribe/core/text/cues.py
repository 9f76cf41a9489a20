"""What is shown of a session's text: subtitles that can be read in time, and paragraphs."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import regex

from batchscribe.core.scan.chunks import split
from batchscribe.core.text.spelling import joined, written
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import Segment, SessionPart, SessionTranscript

LINE = 42
"""Columns in a line, two lines in a cue, seven seconds at most: what broadcasters agree on."""
LINES = 2
SECONDS = 7.0
READABLE = 1.0
"""Seconds that a cue stays on the screen, unless the next one of its channel begins sooner."""
SHORTEST = 0.001
"""Seconds; a cue that ends when it begins is invalid WebVTT and never shown."""
PAUSE = 0.8
"""Seconds of quiet that end a cue."""
LONG = 20
"""Characters without a blank; beyond that it may be several words of a language that puts none between."""
PARAGRAPH_PAUSE = 2.0
SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")
_WORD = regex.compile(r"[^\t-\r ]+")
"""Between blanks at which a line may end: at a no-break space it may not."""
_CLUSTER = regex.compile(r"\X")
_EMOJI_STYLE = "\ufe0f"


@dataclass(frozen=True, slots=True)
class Cue:
    """Text on the screen from `start` to `end`, seconds on the session's clock; at most two lines."""

    start: float
    end: float
    text: str
    channel: int | None = None
    """Who says it, where channels were heard one by one."""


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A word with the blanks around it as the segment's text writes them."""

    text: str
    start: float
    end: float


def cues(transcript: SessionTranscript) -> list[Cue]:
    """The session's subtitles, by their starts; each stays long enough to be read if there is room."""
    shown: list[Cue] = []
    following: dict[int | None, float] = {}
    by_start = sorted(_cues(transcript), key=lambda cue: cue.start)
    for cue in reversed(by_start):
        room = following.get(cue.channel, math.inf)
        end = max(cue.end, min(cue.start + READABLE, room), cue.start + SHORTEST)
        following[cue.channel] = cue.start
        shown.append(replace(cue, end=round(end, PLACES)))
    return shown[::-1]


def _cues(transcript: SessionTranscript) -> Iterator[Cue]:
    """The cues with the times of their words, starts in whole milliseconds from 0 on."""
    for segment in transcript.segments:
        for group in _groups([piece for item in _spoken(segment) for piece in _pieces(item)]):
            text = "".join(word.text for word in group).strip()
            if text:
                start = round(max(0.0, group[0].start), PLACES)
                yield Cue(start, group[-1].end, _lines(text), segment.channel or None)


def _spoken(segment: Segment) -> list[_Spoken]:
    """The words with their times; guessed from the letters where the segment has none."""
    if not segment.words:
        return _evenly(segment)
    timed = zip(written(segment), segment.words, strict=True)
    return [_Spoken(text, word.start, word.end) for text, word in timed]


def _evenly(segment: Segment) -> list[_Spoken]:
    parts = [part + " " for part in segment.text.split()] or [""]
    seconds = max(0.0, segment.end - segment.start)
    step = seconds / sum(map(len, parts)) if segment.text.strip() else 0.0
    out: list[_Spoken] = []
    at = segment.start
    for part in parts:
        out.append(_Spoken(part, at, at + step * len(part)))
        at += step * len(part)
    return out


def _pieces(item: _Spoken) -> Iterator[_Spoken]:
    """The item, or its grapheme clusters one by one if no cue can hold it."""
    late = item.end - item.start > SECONDS and len(item.text.strip()) > LONG
    if not late and _fits(item.text.strip()):
        yield item
        return
    step = (item.end - item.start) / len(item.text)
    for found in _CLUSTER.finditer(item.text):
        yield _Spoken(found[0], item.start + step * found.start(), item.start + step * found.end())


def _groups(words: Sequence[_Spoken]) -> Iterator[list[_Spoken]]:
    """Words that share a cue."""
    group: list[_Spoken] = []
    for word in words:
        if group and _breaks(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _breaks(group: Sequence[_Spoken], word: _Spoken) -> bool:
    """Whether the word begins a new cue."""
    said = "".join(part.text for part in group)
    full = not _fits((said + word.text).strip())
    late = word.end - group[0].start > SECONDS
    pause = word.start - group[-1].end >= PAUSE
    sentence = said.rstrip().endswith(SENTENCE_ENDS) and len(said) >= LINE
    return full or late or pause or sentence


def _fits(text: str) -> bool:
    return len(_wrap(text, LINE)) <= LINES


def _lines(text: str) -> str:
    """The text on as few lines as it fits on, of about the same length."""
    wanted = len(_wrap(text, LINE))
    narrowest = -(-_columns(text) // wanted)
    wrapped = (_wrap(text, width) for width in range(narrowest, LINE))
    return "\n".join(next((lines for lines in wrapped if len(lines) <= wanted), _wrap(text, LINE)))


def _wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns; words wider than that are cut between clusters."""
    lines: list[str] = []
    room = 0
    for gap, unit in _units(text, width):
        taken = _columns(gap + unit)
        if lines and taken <= room:
            lines[-1] += gap + unit
            room -= taken
        else:
            lines.append(unit)
            room = width - _columns(unit)
    return lines


def _units(text: str, width: int) -> Iterator[tuple[str, str]]:
    """What stays together on a line, each with the blank before it."""
    for word in _WORD.findall(text):
        clusters = [word] if _columns(word) <= width else _CLUSTER.findall(word)
        yield " ", clusters[0]
        yield from (("", cluster) for cluster in clusters[1:])


def _columns(text: str) -> int:
    """Width of the text on a screen: two columns for East Asian wide letters and emoji, else one."""
    return len(text) if text.isascii() else sum(map(_cluster_columns, _CLUSTER.findall(text)))


def _cluster_columns(cluster: Iterable[str]) -> int:
    wide = any(letter == _EMOJI_STYLE or unicodedata.east_asian_width(letter) in "WF" for letter in cluster)
    return 2 if wide else 1


def paragraphs(transcript: SessionTranscript) -> list[str]:
    """The text in paragraphs: one ends at a long pause, and where another channel speaks, which is named;
    where a chunk is missing that is said.
    """
    items: list[tuple[float, Segment | SessionPart]] = [
        *((part.offset, part) for part in transcript.parts if MISSING in part.flags),
        *((segment.start, segment) for segment in transcript.segments),
    ]
    out: list[str] = []
    current: list[Segment] = []
    for start, item in sorted(items, key=lambda pair: pair[0]):
        if current and (isinstance(item, SessionPart) or _parts(current[-1], item, start)):
            out.append(_paragraph(current))
            current = []
        if isinstance(item, SessionPart):
            out.append(f"[missing: {split(item.key)[1]}]")
        else:
            current.append(item)
    return [*out, _paragraph(current)] if current else out


def _parts(before: Segment, segment: Segment, start: float) -> bool:
    return segment.channel != before.channel or start - before.end >= PARAGRAPH_PAUSE


def _paragraph(segments: Sequence[Segment]) -> str:
    channel = segments[0].channel
    return f"Channel {channel}: {joined(segments)}" if channel else joined(segments)
