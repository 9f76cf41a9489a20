"""A session's transcript in the formats that people open: SubRip, WebVTT, plain text, JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Literal, get_args

from batchscribe.core.redaction import printable, printable_json
from batchscribe.core.text.cues import Cue, cues, paragraphs
from batchscribe.core.text.transcripts import SessionTranscript, encode
from batchscribe.errors import MisconfiguredError

Format = Literal["srt", "vtt", "txt", "json"]
KEPT = "\n\t\u061c\u200e\u200f"
"""Control characters that texts keep: line ends, tabs, and the direction marks of right-to-left scripts."""
FORMATS: tuple[Format, ...] = get_args(Format)


def render(transcript: SessionTranscript, format_: str) -> bytes:
    """The transcript as a file, UTF-8. Raises MisconfiguredError for a format that is not there.

    No character in it controls a terminal: texts spell them out, JSON escapes them.
    """
    match format_:
        case "srt":
            return _clean(_srt(cues(transcript)))
        case "vtt":
            return _clean(_vtt(cues(transcript)))
        case "txt":
            return _clean("".join(f"{text}\n\n" for text in paragraphs(transcript)))
        case "json":
            return printable_json(encode(transcript).decode()).encode()
    raise MisconfiguredError(f"no transcript format {format_!r}: {', '.join(FORMATS)}")


def _clean(text: str) -> bytes:
    return printable(text.replace("\r\n", "\n"), keep=KEPT).encode()


def _srt(shown: Iterable[Cue]) -> str:
    """SubRip has no markup of its own: the text is what was said, behind the channel."""
    return "".join(
        _block(number, cue, ",", cue.text if cue.channel is None else f"[{cue.channel}] {cue.text}")
        for number, cue in enumerate(shown, 1)
    )


def _vtt(shown: Iterable[Cue]) -> str:
    """WebVTT is markup: what was said must not become tags, and a channel has a tag of its own."""
    blocks = []
    for number, cue in enumerate(shown, 1):
        text = html.escape(cue.text, quote=False)
        voice = "" if cue.channel is None else f"<v Channel {cue.channel}>"
        blocks.append(_block(number, cue, ".", voice + text))
    return "WEBVTT\n\n" + "".join(blocks)


def _block(number: int, cue: Cue, point: str, text: str) -> str:
    return f"{number}\n{_time(cue.start, point)} --> {_time(cue.end, point)}\n{text}\n\n"


def _time(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds; as many digits for the hours as they need."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"
