"""What is shown of a session's text: subtitles that can be read in time, and paragraphs."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchscribe.core.chunks import split
from batchscribe.core.spelling import written
from batchscribe.core.stitching import MISSING, UNREADABLE
from batchscribe.core.transcripts import Segment, SessionPart, SessionTranscript

LINE = 42
"""Characters in a line, two lines in a cue, seven seconds at most: what broadcasters agree on."""
LINES = 2
SECONDS = 7.0
PAUSE = 0.8
"""Seconds of quiet that end a cue."""
LONG = 20
"""Characters without a blank; beyond that it may be several words of a language that puts none between."""
PARAGRAPH_PAUSE = 2.0
SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")


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


def cues(transcript: SessionTranscript) -> Iterator[Cue]:
    """The session's subtitles, in order."""
    for segment in transcript.segments:
        for group in _groups([piece for item in _spoken(segment) for piece in _pieces(item)]):
            text = "".join(word.text for word in group).strip()
            if text:
                yield Cue(group[0].start, group[-1].end, _lines(text), segment.channel or None)


def _spoken(segment: Segment) -> list[_Spoken]:
    """The words with their times; guessed from the letters where the segment has none."""
    if not segment.words:
        return _evenly(segment)
    timed = zip(written(segment), segment.words, strict=True)
    return [_Spoken(text, word.start, word.end) for text, word in timed]


def _evenly(segment: Segment) -> list[_Spoken]:
    parts = [part + " " for part in segment.text.split()] or [""]
    step = (segment.end - segment.start) / sum(map(len, parts)) if segment.text.strip() else 0.0
    out: list[_Spoken] = []
    at = segment.start
    for part in parts:
        out.append(_Spoken(part, at, at + step * len(part)))
        at += step * len(part)
    return out


def _pieces(item: _Spoken) -> Iterator[_Spoken]:
    """The item, or its characters one by one where no cue could hold it; marks stay with their letter."""
    late = item.end - item.start > SECONDS and len(item.text.strip()) > LONG
    if not late and _fits(item.text.strip()):
        yield item
        return
    step = (item.end - item.start) / len(item.text)
    begins = [at for at, letter in enumerate(item.text) if at == 0 or not _is_mark(letter)]
    for begin, end in zip(begins, [*begins[1:], len(item.text)], strict=True):
        yield _Spoken(item.text[begin:end], item.start + step * begin, item.start + step * end)


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("M")


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
    return len(textwrap.wrap(text, LINE)) <= LINES


def _lines(text: str) -> str:
    """The text on as few lines as it fits on, of about the same length."""
    wanted = len(textwrap.wrap(text, LINE))
    narrowest = -(-len(text) // max(1, wanted))
    for width in range(narrowest, LINE):
        lines = textwrap.wrap(text, width)
        if len(lines) <= wanted:
            return "\n".join(lines)
    return "\n".join(textwrap.wrap(text, LINE))


def _absent(part: SessionPart) -> str:
    """The flag of a part that has no text to show; empty if it has."""
    return next((flag for flag in (MISSING, UNREADABLE) if flag in part.flags), "")


def paragraphs(transcript: SessionTranscript) -> list[str]:
    """The text in paragraphs: one ends at a long pause, and where another channel speaks, which is named;
    a chunk that is missing or unreadable is named in its place.
    """
    items: list[tuple[float, Segment | SessionPart]] = [
        *((part.offset, part) for part in transcript.parts if _absent(part)),
        *((segment.start, segment) for segment in transcript.segments),
    ]
    out: list[str] = []
    current: list[str] = []
    last, speaking = 0.0, 0
    for start, item in sorted(items, key=lambda pair: pair[0]):
        channel = speaking if isinstance(item, SessionPart) else item.channel or 0
        missing = isinstance(item, SessionPart)
        if current and (missing or channel != speaking or start - last >= PARAGRAPH_PAUSE):
            out.append(" ".join(current))
            current = []
        speaking = channel
        if isinstance(item, SessionPart):
            out.append(f"[{_absent(item)}: {split(item.key)[1]}]")
        else:
            current += [f"Channel {channel}:"] if channel and not current else []
            current.append(item.text.strip())
            last = item.end
    return [*out, " ".join(current)] if current else out
