"""The session reader, as a template's values and as a file."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from batchscribe.controller.sessions import AssembledSession
from batchscribe.core.redaction import printable
from batchscribe.core.scan.chunks import show_session, split_key
from batchscribe.core.text.flags import EXPLANATIONS
from batchscribe.core.text.paragraphs import Paragraph, list_paragraphs
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.subtitles import FORMATS, KEPT
from batchscribe.core.text.transcripts import SessionPart, SessionTranscript
from batchscribe.dashboard.pages import render_page

LOW = 0.5
"""Probability of a word below which it is marked: the model itself expects it to be wrong."""
GAP = 0.3
"""Seconds without a chunk between two chunks that are shown as a gap."""
LISTED = 500
"""Maximum number of rows of the table of chunks."""
COLORS = 6
"""Colors of speakers; further ones repeat them."""
MEDIA_TYPES = {
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "tsv": "text/tab-separated-values",
    "txt": "text/plain",
    "json": "application/json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderAudio:
    """Source of the reader's audio: MP3, server, user's files, or none."""

    data: bytes = b""
    """An MP3 of the whole session."""
    url: str = ""
    """Prefix and suffix of the URLs of the chunks, with `*` for their number."""
    chosen: bool = False
    """The user opens the session's audio files."""
    notes: tuple[str, ...] = ()
    """Reasons why audio is missing."""


def render_file(found: AssembledSession, audio: ReaderAudio, rendering: Rendering) -> str:
    """Renders the reader as one file that needs neither server nor network."""
    stem = name_download(found.transcript.session)
    downloads = [
        (kind, f"{stem}.{kind}", make_data_link(MEDIA_TYPES[kind], rendering.render(found.transcript, kind)))
        for kind in FORMATS
    ]
    return render_page("session.html", "file", **describe_session(found, audio, downloads), listed=())


def make_data_link(media_type: str, data: bytes) -> Markup:
    """A `data:` URL; base64 needs no escapes."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(data).decode()}")  # noqa: S704


def name_download(session: str) -> str:
    """Last segment of a session's id, as a file's stem."""
    last = split_key(show_session(session))[1]
    plain = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in last)
    return plain[:100].strip(". ") or "session"


def describe_session(
    found: AssembledSession, audio: ReaderAudio, downloads: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """Values of `session.html`. `downloads`: (format, file name, URL) of each."""
    transcript = found.transcript
    # The page's script finds a paragraph's words by its place among the texts.
    paragraphs = sorted(list_paragraphs(transcript), key=lambda each: each.start)
    speakers = sorted({each.speaker for each in paragraphs if each.speaker})
    return {
        "name": show_session(transcript.session),
        "transcript": transcript,
        "chunks": found.chunks,
        "words": sum(len(each.words) for each in paragraphs),
        "items": list(_list_items(transcript, paragraphs, found.missing, speakers)),
        "missing": {reason: len(keys) for reason, keys in found.missing.items()},
        "flags": _explain_flags(transcript.parts),
        "rows": _list_rows(transcript.parts),
        "unlisted": max(0, len(transcript.parts) - LISTED),
        "downloads": downloads,
        "audio": audio,
        "audio_source": make_data_link("audio/mpeg", audio.data) if audio.data else "",
        "speakers": len(speakers),
        "doubtful": sum(_is_doubtful(word.probability) for each in paragraphs for word in each.words),
        "data": {
            "duration": transcript.duration,
            "url": audio.url,
            "parts": [_describe_part(part) for part in transcript.parts],
            "words": [_pack_words(each) for each in paragraphs],
        },
    }


def _describe_part(part: SessionPart) -> list[Any]:
    """[offset, duration (both in seconds), file name, True if it has audio]."""
    name = printable(split_key(part.key)[1])
    return [part.offset, part.duration, name, MISSING not in part.flags]


def _pack_words(paragraph: Paragraph) -> list[int]:
    """Four numbers for each word, for the page's script.

    UTF-16 units, milliseconds since the previous start, length in milliseconds, probability in percent (-1 if
    unknown). The page's text has the words themselves.
    """
    packed: list[int] = []
    before = 0
    for word in paragraph.words:
        start = round(word.start * 1000)
        units = _count_units(word.text)
        percent = -1 if word.probability is None else round(100 * min(1.0, max(0.0, word.probability)))
        packed += (units, start - before, max(0, round(word.end * 1000) - start), percent)
        before = start
    return packed


def _count_units(text: str) -> int:
    """UTF-16 code units of a text, as the page's script counts."""
    if text.isascii() and text.isprintable():
        return len(text)
    return len(printable(text, keep=KEPT).encode("utf-16-le")) // 2


def _is_doubtful(probability: float | None) -> bool:
    return probability is not None and probability < LOW


def _list_items(
    transcript: SessionTranscript,
    paragraphs: Sequence[Paragraph],
    missing: Mapping[str, Sequence[str]],
    speakers: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yields paragraphs, missing chunks and gaps in the order of their times."""
    reasons = {key: reason for reason, keys in missing.items() for key in keys}
    items: list[tuple[float, int, dict[str, Any]]] = [
        (each.start, 2, _describe_paragraph(each, speakers)) for each in paragraphs
    ]
    items += (
        (
            part.offset,
            1,
            {"kind": "missing", "name": split_key(part.key)[1], "reason": reasons.get(part.key, "")},
        )
        for part in transcript.parts
        if MISSING in part.flags
    )
    items += ((at, 0, {"kind": "gap", "seconds": seconds}) for at, seconds in _find_gaps(transcript.parts))
    yield from (item for _at, _rank, item in sorted(items, key=lambda one: one[:2]))


def _describe_paragraph(paragraph: Paragraph, speakers: Sequence[str]) -> dict[str, Any]:
    # Direction marks of right-to-left scripts stay, so the text is escaped here.
    text = escape(printable(paragraph.text, keep=KEPT))
    who = paragraph.speaker
    color = speakers.index(who) % COLORS + 1 if who else 0
    return {"kind": "text", "start": paragraph.start, "text": text, "speaker": who, "color": color}


def _find_gaps(parts: Iterable[SessionPart]) -> Iterator[tuple[float, float]]:
    """Begin and seconds of the time between chunks that no chunk covers."""
    end = 0.0
    for before, part in pairwise(parts):
        end = max(end, before.offset + before.duration)
        if part.offset - end >= GAP:
            yield end, part.offset - end


def _explain_flags(parts: Sequence[SessionPart]) -> list[tuple[str, int, str]]:
    """Flag, number of chunks and meaning of each flag."""
    counted = Counter(flag for part in parts for flag in part.flags)
    return [(flag, count, EXPLANATIONS.get(flag, "")) for flag, count in counted.most_common()]


def _list_rows(parts: Sequence[SessionPart]) -> list[SessionPart]:
    """The first LISTED chunks in order, those with flags before others."""
    if len(parts) <= LISTED:
        return list(parts)
    chosen = sorted(parts, key=lambda part: not part.flags)[:LISTED]
    return sorted(chosen, key=lambda part: part.offset)
