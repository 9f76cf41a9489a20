"""Renders a session's text as readable subtitles and as paragraphs."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, zip_longest

import regex

from batchscribe.core.scan.chunks import split_key
from batchscribe.core.text.caption_style import DEFAULT_STYLE, CaptionStyle
from batchscribe.core.text.spelling import join_segments, spell_words
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.timing import PLACES
from batchscribe.core.text.transcripts import Segment, SessionPart, SessionTranscript

PAUSE = 0.8
"""Seconds of silence that end a cue."""
SHORTEST = 0.001
"""Seconds; a cue without a duration is invalid WebVTT and never shown."""
NARROWEST = 16
"""Columns of a line beside the longest name of a speaker."""
LONG = 20
"""Characters; a longer piece without blanks may be several words of a language that uses none."""
PARAGRAPH_PAUSE = 2.0
SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")
_WORD = regex.compile(r"[^\t-\r ]+")
"""Text between blanks; a line may break at a blank, but not at a no-break space."""
_CLUSTER = regex.compile(r"\X")
_BREAKABLE = regex.compile(r"\X(?:(?=[\p{Lb=CL}\p{Lb=CP}\p{Lb=EX}\p{Lb=NS}\p{Lb=CJ}])\X){0,3}")
"""A cluster with the punctuation and small letters after it, which begin no line (Unicode's rules)."""
_EMOJI_STYLE = "\ufe0f"
_BLANKS = "\t\n\v\f\r "


@dataclass(frozen=True, slots=True)
class Cue:
    """Text of a few lines; times in seconds of the session."""

    start: float
    end: float
    text: str
    speaker: str | None = None
    """See `name_speaker`."""
    words: tuple[tuple[int, float], ...] = ()
    """Of each word: its offset in the text, and its start."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word with its blanks and punctuation from the segment's text."""

    text: str
    start: float
    end: float
    probability: float | None = None
    """0 to 1; None if unknown."""


@dataclass(frozen=True, slots=True)
class _CueWords:
    """The words of one cue."""

    words: Sequence[SpokenWord]
    speaker: str | None
    style: CaptionStyle
    """Limits, with room for the speaker's name."""

    @property
    def start(self) -> float:
        return self.words[0].start

    @property
    def end(self) -> float:
        return self.words[-1].end

    @property
    def text(self) -> str:
        return "".join(word.text for word in self.words).strip(_BLANKS)


def make_cues(transcript: SessionTranscript, style: CaptionStyle = DEFAULT_STYLE) -> list[Cue]:
    """The session's subtitles in order of start, within the limits of `style`.

    The cues of one channel do not overlap. If speech is so dense that they do not fit, they come later than
    their words, and no text is left out.
    """
    by_channel: dict[int, list[Segment]] = {}
    for segment in transcript.segments:
        by_channel.setdefault(segment.channel or 0, []).append(segment)
    shown = [cue for segments in by_channel.values() for cue in _make_channel_cues(segments, style)]
    return sorted(shown, key=lambda cue: cue.start)


def format_prefix(speaker: str) -> str:
    """A speaker's name before the text of a cue."""
    return f"[{speaker}] "


def _leave_room(style: CaptionStyle, speaker: str | None) -> CaptionStyle:
    """The style with lines that have room for the speaker's name."""
    if speaker is None or not style.speakers:
        return style
    return replace(style, columns=max(NARROWEST, style.columns - _count_columns(format_prefix(speaker))))


def _make_channel_cues(segments: Iterable[Segment], style: CaptionStyle) -> Iterator[Cue]:
    groups: list[_CueWords] = []
    for segment in segments:
        speaker = name_speaker(segment)
        own = _leave_room(style, speaker)
        words = [piece for item in list_timed_words(segment) for piece in _split_long_word(item, own)]
        groups += [_CueWords(part, speaker, own) for part in _fill_brief(_group_words(words, own), own)]
    yield from _time_cues(groups)


def name_speaker(segment: Segment) -> str | None:
    """The speaker's name or label, or a separately transcribed channel's number."""
    return segment.speaker or (f"Channel {segment.channel}" if segment.channel else None)


def _time_cues(groups: Iterable[_CueWords]) -> Iterator[Cue]:
    """Yields the cues of one channel; starts are in whole milliseconds."""
    spoken = (group for group in groups if group.text.strip())
    merged = _merge_short(sorted(spoken, key=lambda group: group.start))
    earliest = 0.0
    for group, after in zip_longest(merged, merged[1:]):
        style = group.style
        text = _balance_lines(group.text, style)
        start = round(max(group.start, earliest), PLACES)
        room = after.start - style.gap if after else math.inf
        end = _choose_end(start, group.end, room, _count_columns(text), style)
        yield Cue(start, end, text, group.speaker, _locate_words(group.words, text))
        earliest = end + style.gap


def _choose_end(start: float, spoken: float, room: float, columns: int, style: CaptionStyle) -> float:
    """End of a cue: reading time if there is `room`, within limits."""
    reading = columns / style.reading_speed if style.reading_speed else 0.0
    wanted = min(max(spoken, start + reading, start + style.shortest), room)
    end = min(max(wanted, start + style.shortest), start + style.longest)
    return max(round(end, PLACES), round(start + SHORTEST, PLACES))


def _merge_short(groups: Iterable[_CueWords]) -> list[_CueWords]:
    """Joins a group with one that begins before its shortest time."""
    merged: list[_CueWords] = []
    for group in groups:
        if merged and _is_crowded(merged[-1], group):
            *words, last = merged[-1].words
            last = replace(last, text=last.text.rstrip(_BLANKS) + " ")
            merged[-1] = replace(group, words=[*words, last, *group.words])
        else:
            merged.append(group)
    return merged


def _is_crowded(before: _CueWords, group: _CueWords) -> bool:
    """True if `before` is too short, and both fit one cue."""
    style = group.style
    short = group.start - style.gap - before.start < style.shortest
    within = group.end - before.start <= style.longest
    same = before.speaker == group.speaker
    return short and within and same and _fits_cue(f"{before.text} {group.text}", style)


def _locate_words(words: Iterable[SpokenWord], text: str) -> tuple[tuple[int, float], ...]:
    """Offset in the wrapped text of each word, and its start.

    Wrapping only changes blanks, so the letters are counted; words without any are left out.
    """
    letters = [at for at, letter in enumerate(text) if letter not in _BLANKS]
    located, count = [], 0
    for word in words:
        own = sum(letter not in _BLANKS for letter in word.text)
        if own:
            located.append((letters[count], word.start))
        count += own
    return tuple(located)


def list_timed_words(segment: Segment) -> list[SpokenWord]:
    """The words with their times, interpolated by length if necessary."""
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


def _split_long_word(item: SpokenWord, style: CaptionStyle) -> Iterator[SpokenWord]:
    """Yields the item, or its breakable pieces if it is too long."""
    late = item.end - item.start > style.longest and len(item.text.strip()) > LONG
    if not late and _fits_cue(item.text.strip(), style):
        yield item
        return
    step = (item.end - item.start) / len(item.text)
    for found in _BREAKABLE.finditer(item.text):
        yield SpokenWord(found[0], item.start + step * found.start(), item.start + step * found.end())


def _group_words(words: Sequence[SpokenWord], style: CaptionStyle) -> Iterator[list[SpokenWord]]:
    """Groups words into cues."""
    group: list[SpokenWord] = []
    for word in words:
        if group and (not _is_within([*group, word], style) or _is_apart(group, word, style)):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _is_within(words: Sequence[SpokenWord], style: CaptionStyle) -> bool:
    """True if the words can be one cue."""
    short = words[-1].end - words[0].start <= style.longest
    return short and _fits_cue("".join(word.text for word in words).strip(_BLANKS), style)


def _is_apart(group: Sequence[SpokenWord], word: SpokenWord, style: CaptionStyle) -> bool:
    """True if a pause or a sentence's end is between them."""
    shown = "".join(part.text for part in group)
    long = _count_columns(shown) >= style.columns
    sentence = long and shown.rstrip().endswith(SENTENCE_ENDS)
    return sentence or word.start - group[-1].end >= PAUSE


def _fill_brief(groups: Iterable[list[SpokenWord]], style: CaptionStyle) -> list[list[SpokenWord]]:
    """Divides two cues of a sentence evenly if the second is brief."""
    filled: list[list[SpokenWord]] = []
    for group in groups:
        filled.append(group)
        brief = 2 * sum(_count_columns(word.text) for word in group) < style.columns
        if brief and len(filled) > 1 and not _is_apart(filled[-2], group[0], style):
            words = filled[-2] + group
            sizes = list(accumulate(len(word.text) for word in words))
            middle = 1 + min(range(len(sizes)), key=lambda at: abs(2 * sizes[at] - sizes[-1]))
            halves = [words[:middle], words[middle:]]
            if all(half and _is_within(half, style) for half in halves):
                filled[-2:] = halves
    return filled


def _fits_cue(text: str, style: CaptionStyle) -> bool:
    return len(_wrap_text(text, style.columns)) <= style.lines


def _balance_lines(text: str, style: CaptionStyle) -> str:
    """Breaks the text into as few lines as possible, of similar length."""
    widest = _wrap_text(text, style.columns)
    narrowest = -(-_count_columns(text) // len(widest))
    wrapped = (_wrap_text(text, width) for width in range(narrowest, style.columns))
    return "\n".join(next((lines for lines in wrapped if len(lines) <= len(widest)), widest))


def _wrap_text(text: str, width: int) -> list[str]:
    """Breaks text into lines of `width` columns, long words between clusters."""
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
        pieces = [word] if _count_columns(word) <= width else _BREAKABLE.findall(word)
        yield " ", pieces[0]
        yield from (("", piece) for piece in pieces[1:])


def _count_columns(text: str) -> int:
    """Width in columns, two for East Asian wide letters and emoji."""
    return len(text) if text.isascii() else sum(map(_cluster_columns, _CLUSTER.findall(text)))


def _cluster_columns(cluster: Iterable[str]) -> int:
    wide = any(letter == _EMOJI_STYLE or unicodedata.east_asian_width(letter) in "WF" for letter in cluster)
    return 2 if wide else 1


def make_paragraphs(transcript: SessionTranscript) -> list[str]:
    """The text in paragraphs, split at long pauses and changes of speaker.

    A change names the new speaker; a missing chunk becomes a paragraph of its own.
    """
    items: list[tuple[float, Segment | SessionPart]] = [
        *((part.offset, part) for part in transcript.parts if MISSING in part.flags),
        *((segment.start, segment) for segment in transcript.segments),
    ]
    out: list[str] = []
    current: list[Segment] = []
    for _start, item in sorted(items, key=lambda pair: pair[0]):
        if current and (isinstance(item, SessionPart) or begins_paragraph(current[-1], item)):
            out.append(_join_paragraph(current))
            current = []
        if isinstance(item, SessionPart):
            out.append(f"[missing: {split_key(item.key)[1]}]")
        else:
            current.append(item)
    return [*out, _join_paragraph(current)] if current else out


def begins_paragraph(before: Segment, segment: Segment) -> bool:
    return name_speaker(segment) != name_speaker(before) or segment.start - before.end >= PARAGRAPH_PAUSE


def _join_paragraph(segments: Sequence[Segment]) -> str:
    speaker = name_speaker(segments[0])
    return f"{speaker}: {join_segments(segments)}" if speaker else join_segments(segments)
