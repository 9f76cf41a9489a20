"""A session's transcript in the formats that people open: SubRip, WebVTT, plain text, JSON."""

from __future__ import annotations

import html
from typing import Literal, get_args

from pysubs2 import SSAEvent, SSAFile

from batchscribe.core.cues import Cue, cues, paragraphs
from batchscribe.core.transcripts import SessionTranscript, encode
from batchscribe.errors import MisconfiguredError

Format = Literal["srt", "vtt", "txt", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(transcript: SessionTranscript, format_: str) -> bytes:
    """The transcript as a file, UTF-8. Raises MisconfiguredError for a format that is not there."""
    match format_:
        case "srt" | "vtt":
            return _subtitles(transcript, format_)
        case "txt":
            return "".join(f"{text}\n\n" for text in paragraphs(transcript)).encode()
        case "json":
            return encode(transcript)
    raise MisconfiguredError(f"no transcript format {format_!r}: {', '.join(FORMATS)}")


def _subtitles(transcript: SessionTranscript, format_: str) -> bytes:
    file = SSAFile()
    for cue in cues(transcript):
        text = _vtt(cue) if format_ == "vtt" else _srt(cue)
        event = SSAEvent(start=round(cue.start * 1000), end=round(cue.end * 1000))
        event.plaintext = text
        file.append(event)
    # Braces are override tags to pysubs2; here they are only braces.
    return file.to_string(format_, keep_ssa_tags=True).encode()


def _vtt(cue: Cue) -> str:
    """WebVTT is markup: what was said must not become tags, and a voice has one of its own."""
    text = html.escape(cue.text, quote=False)
    return text if cue.channel is None else f"<v Channel {cue.channel}>{text}"


def _srt(cue: Cue) -> str:
    return cue.text if cue.channel is None else f"[{cue.channel}] {cue.text}"
