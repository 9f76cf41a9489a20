"""Renders a session's transcript as SubRip, WebVTT, text, TSV or JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from batchscribe.core.redaction import printable, printable_json
from batchscribe.core.text.caption_style import DEFAULT_STYLE, CaptionStyle, Highlight
from batchscribe.core.text.cues import Cue, format_prefix, make_cues, make_paragraphs
from batchscribe.core.text.transcripts import Segment, SessionTranscript, encode
from batchscribe.errors import MisconfiguredError

Format = Literal["srt", "vtt", "txt", "tsv", "json"]
KEPT = "\n\t\u061c\u200e\u200f"
"""Control characters that texts keep: line ends, tabs, and direction marks of right-to-left scripts."""
FORMATS: tuple[Format, ...] = get_args(Format)


def render(transcript: SessionTranscript, format_: str, style: CaptionStyle = DEFAULT_STYLE) -> bytes:
    """Renders a transcript in UTF-8. Raises MisconfiguredError for an unknown format.

    Control characters are escaped, so that the file cannot control a terminal.
    """
    match format_:
        case "srt":
            return _escape_text(_render_srt(make_cues(transcript, style), style))
        case "vtt":
            return _escape_text(_render_vtt(make_cues(transcript, style), style))
        case "txt":
            return _escape_text("".join(f"{text}\n\n" for text in make_paragraphs(transcript)))
        case "tsv":
            return _escape_text(_render_tsv(transcript.segments))
        case "json":
            return printable_json(encode(transcript).decode()).encode()
    raise MisconfiguredError(f"no transcript format {format_!r}: {', '.join(FORMATS)}")


def _escape_text(text: str) -> bytes:
    return printable(text.replace("\r\n", "\n"), keep=KEPT).encode()


def _render_srt(shown: Iterable[Cue], style: CaptionStyle) -> str:
    """Renders SubRip, without markup: the text follows the speaker in brackets."""
    return "".join(
        _format_cue(number, cue, ",", _prefix_speaker(cue, style)) for number, cue in enumerate(shown, 1)
    )


def _render_vtt(shown: Iterable[Cue], style: CaptionStyle) -> str:
    """Renders WebVTT with escaped texts, voice tags, and time tags."""
    blocks = []
    for number, cue in enumerate(shown, 1):
        voice = f"<v {_escape_markup(cue.speaker)}>" if cue.speaker and style.speakers else ""
        text = _mark_words(cue) if style.highlight is Highlight.WORDS else _escape_markup(cue.text)
        blocks.append(_format_cue(number, cue, ".", voice + text))
    dimmed = "STYLE\n::cue(:future) { opacity: 0.5; }\n\n" if style.highlight is Highlight.WORDS else ""
    return f"WEBVTT\n\n{dimmed}{''.join(blocks)}"


def _render_tsv(segments: Sequence[Segment]) -> str:
    """Renders Whisper's columns: milliseconds of start and end, text; speakers if labelled."""
    rows = [
        [str(round(each.start * 1000)), str(round(each.end * 1000)), " ".join(each.text.split())]
        for each in segments
    ]
    head = ["start", "end", "text"]
    if any(each.speaker for each in segments):
        head.append("speaker")
        for row, each in zip(rows, segments, strict=True):
            row.append(" ".join((each.speaker or "").split()))
    return "".join("\t".join(row) + "\n" for row in [head, *rows])


def _prefix_speaker(cue: Cue, style: CaptionStyle) -> str:
    return format_prefix(cue.speaker) + cue.text if cue.speaker and style.speakers else cue.text


def _escape_markup(text: str) -> str:
    return html.escape(text, quote=False)


def _mark_words(cue: Cue) -> str:
    """The text with a rising time tag before each word.

    Each word is an element, since players dim elements that are still to come, not plain text.
    """
    marks, before = list[tuple[int, float]](), cue.start
    for at, start in cue.words:
        if round(before, 3) < round(start, 3) < cue.end:
            marks.append((at, start))
            before = start
    ends = [at for at, _ in marks[1:]] + [len(cue.text)]
    words = (
        f"<{_format_time(start, '.')}><c>{_escape_markup(cue.text[at:end])}</c>"
        for (at, start), end in zip(marks, ends, strict=False)
    )
    first = marks[0][0] if marks else len(cue.text)
    return _escape_markup(cue.text[:first]) + "".join(words)


def _format_cue(number: int, cue: Cue, point: str, text: str) -> str:
    return f"{number}\n{_format_time(cue.start, point)} --> {_format_time(cue.end, point)}\n{text}\n\n"


def _format_time(seconds: float, point: str) -> str:
    """Formats `HH:MM:SS` and milliseconds; hours may have more than two digits."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"
