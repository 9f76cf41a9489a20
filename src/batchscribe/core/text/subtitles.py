"""Renders a session's transcript as SubRip, WebVTT, plain text or JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Literal, get_args

from batchscribe.core.redaction import printable, printable_json
from batchscribe.core.text.cues import Cue, make_cues, make_paragraphs
from batchscribe.core.text.transcripts import SessionTranscript, encode
from batchscribe.errors import MisconfiguredError

Format = Literal["srt", "vtt", "txt", "json"]
KEPT = "\n\t\u061c\u200e\u200f"
"""Control characters that texts keep: line ends, tabs, and direction marks of right-to-left scripts."""
FORMATS: tuple[Format, ...] = get_args(Format)


def render(transcript: SessionTranscript, format_: str) -> bytes:
    """Renders a transcript in UTF-8. Raises MisconfiguredError for an unknown format.

    Control characters are escaped, so that the file cannot control a terminal.
    """
    match format_:
        case "srt":
            return _escape_text(_render_srt(make_cues(transcript)))
        case "vtt":
            return _escape_text(_render_vtt(make_cues(transcript)))
        case "txt":
            return _escape_text("".join(f"{text}\n\n" for text in make_paragraphs(transcript)))
        case "json":
            return printable_json(encode(transcript).decode()).encode()
    raise MisconfiguredError(f"no transcript format {format_!r}: {', '.join(FORMATS)}")


def _escape_text(text: str) -> bytes:
    return printable(text.replace("\r\n", "\n"), keep=KEPT).encode()


def _render_srt(shown: Iterable[Cue]) -> str:
    """SubRip has no markup: the text follows the channel in brackets."""
    return "".join(
        _format_cue(number, cue, ",", cue.text if cue.channel is None else f"[{cue.channel}] {cue.text}")
        for number, cue in enumerate(shown, 1)
    )


def _render_vtt(shown: Iterable[Cue]) -> str:
    """WebVTT is markup: texts are escaped, and a channel becomes a voice tag."""
    blocks = []
    for number, cue in enumerate(shown, 1):
        text = html.escape(cue.text, quote=False)
        voice = "" if cue.channel is None else f"<v Channel {cue.channel}>"
        blocks.append(_format_cue(number, cue, ".", voice + text))
    return "WEBVTT\n\n" + "".join(blocks)


def _format_cue(number: int, cue: Cue, point: str, text: str) -> str:
    return f"{number}\n{_format_time(cue.start, point)} --> {_format_time(cue.end, point)}\n{text}\n\n"


def _format_time(seconds: float, point: str) -> str:
    """Formats `HH:MM:SS` and milliseconds; hours may have more than two digits."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"
