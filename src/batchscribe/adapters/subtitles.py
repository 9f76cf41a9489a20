"""A session's transcript in the formats that people open: SubRip, WebVTT, plain text, JSON."""

from __future__ import annotations

import html
from typing import Literal, get_args

from pysubs2 import SSAEvent, SSAFile

from batchscribe.core.cues import Cue, cues, paragraphs
from batchscribe.core.redaction import printable, printable_json
from batchscribe.core.transcripts import SessionTranscript, encode
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
        case "srt" | "vtt":
            return _clean(_subtitles(transcript, format_))
        case "txt":
            return _clean("".join(f"{text}\n\n" for text in paragraphs(transcript)))
        case "json":
            return printable_json(encode(transcript).decode()).encode()
    raise MisconfiguredError(f"no transcript format {format_!r}: {', '.join(FORMATS)}")


def _clean(text: str) -> bytes:
    return printable(text.replace("\r\n", "\n"), keep=KEPT).encode()


def _subtitles(transcript: SessionTranscript, format_: str) -> str:
    file = SSAFile()
    for cue in cues(transcript):
        text = _vtt(cue) if format_ == "vtt" else _srt(cue)
        event = SSAEvent(start=round(cue.start * 1000), end=round(cue.end * 1000))
        event.plaintext = text
        file.append(event)
    # Braces are override tags to pysubs2; here they are only braces.
    return file.to_string(format_, keep_ssa_tags=True)


def _vtt(cue: Cue) -> str:
    """WebVTT is markup: what was said must not become tags, and a voice has one of its own."""
    text = html.escape(cue.text, quote=False)
    return text if cue.channel is None else f"<v Channel {cue.channel}>{text}"


def _srt(cue: Cue) -> str:
    return cue.text if cue.channel is None else f"[{cue.channel}] {cue.text}"
