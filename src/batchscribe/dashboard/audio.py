"""Audio for the reader of transcripts.

A file gets that of a whole session; the server sends single chunks in parts.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from batchscribe.audio.decoding.ebml import INFO, SEGMENT, iterate_children, walk_elements
from batchscribe.core.figures import format_hours
from batchscribe.core.messages import describe_install
from batchscribe.core.objects import MIB, Blob
from batchscribe.core.scan.chunks import audio_name, split_key
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.transcripts import SessionTranscript
from batchscribe.dashboard.reader import ReaderAudio
from batchscribe.errors import BatchscribeError, StoreUnavailableError
from batchscribe.protocols import Store
from batchscribe.settings import Settings

if TYPE_CHECKING:
    from batchscribe.audio.audio_decoder import Samples
    from batchscribe.audio.session_audio import ChunkDecoder

MP3_BYTES_PER_SECOND = 4_000
"""Of the audio that we encode (`session_audio.BITRATE`)."""
HEAD = 64 * 1024
"""Bytes at the beginning of an object that show its format."""
PIECE = MIB
"""Bytes of an object that are read and sent at once."""
KEPT_BYTES = 64 * MIB
"""Decoded chunks that are kept in memory: four hours and a half."""
DECODERS = threading.BoundedSemaphore(2)
"""Chunks decoded at once."""
NATIVE = {
    **dict.fromkeys(("mp3", "mpga"), "audio/mpeg"),
    **dict.fromkeys(("m4a", "m4b", "mp4"), "audio/mp4"),
    **dict.fromkeys(("ogg", "oga", "opus"), "audio/ogg"),
    **dict.fromkeys(("webm", "weba"), "audio/webm"),
    "flac": "audio/flac",
    "wav": "audio/wav",
}
"""Media types that browsers play, by extension."""
_BEGINNINGS = {
    "audio/mpeg": re.compile(rb"ID3|\xff[\xe2-\xff]"),
    "audio/mp4": re.compile(rb".{4}ftyp", re.DOTALL),
    "audio/ogg": re.compile(rb"OggS.{22}.(?:.{255})?.*?(?:OpusHead|\x01vorbis)", re.DOTALL),
    "audio/flac": re.compile(rb"fLaC"),
    "audio/wav": re.compile(rb"RIFF.{4}WAVE.*?fmt .{4}\x01\x00", re.DOTALL),
}
_DURATION = 0x4489
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
NO_DECODER = f"Audio is decoded with PyAV, which is not installed: {describe_install('cpu')}"


def embed_audio(settings: Settings, source: Store, transcript: SessionTranscript, limit: int) -> ReaderAudio:
    """The session's audio as one MP3 of at most `limit` bytes.

    Beyond that, the user opens the files.
    """
    seconds = transcript.duration
    if seconds * MP3_BYTES_PER_SECOND > limit:
        size, most = (f"{count / 1e6:,.0f} MB" for count in (seconds * MP3_BYTES_PER_SECOND, limit))
        note = (
            f"{format_hours(seconds)} of audio would need {size}, more than the limit of {most}: "
            f"open the files of {source.url}/{transcript.session} below"
        )
        return ReaderAudio(chosen=True, notes=(note,))
    try:
        from batchscribe.audio.session_audio import encode_mp3, place_chunks
    except ImportError:
        return ReaderAudio(chosen=True, notes=(NO_DECODER,))
    problems: list[str] = []
    with open_decoder(settings, source) as decoder:
        placed = (
            (part.offset, _decode_or_note(decoder, part.key, problems))
            for part in transcript.parts
            if MISSING not in part.flags
        )
        data = encode_mp3(place_chunks(placed, seconds))
    return ReaderAudio(data=data, notes=tuple(problems))


def open_decoder(settings: Settings, source: Store) -> ChunkDecoder:
    """A decoder with the limits of the settings. Raises ImportError without PyAV."""
    from batchscribe.audio.session_audio import ChunkDecoder

    return ChunkDecoder(
        source, max_bytes=settings.max_object_mb * MIB, max_seconds=settings.max_audio_hours * 3600
    )


def _decode_or_note(decoder: ChunkDecoder, key: str, problems: list[str]) -> Iterator[Samples]:
    """Yields a chunk's audio; an error ends it and is noted."""
    try:
        yield from decoder.decode(key)
    except BatchscribeError as error:
        problems.append(f"The audio of {split_key(key)[1]} is missing: {error}")


def find_media_type(key: str, head: bytes) -> str | None:
    """Media type of an object that browsers play and seek, else None.

    By its extension and first bytes: a piece of a recording, or a file without a length, is none.
    """
    name = audio_name(key)
    media = NATIVE.get(name.type) if name else None
    if media == "audio/webm":
        return media if _has_length(head) else None
    return media if media and _BEGINNINGS[media].match(head) else None


def _has_length(head: bytes) -> bool:
    """True if a WebM file states its length: MediaRecorder does not."""
    elements = list(walk_elements(head))
    segment = next((each for each in elements if each.id == SEGMENT), None)
    info = next((each for each in elements if each.id == INFO), None)
    stated = any(child.id == _DURATION for child in iterate_children(head, info))
    return segment is not None and segment.end is not None and stated


class ChunkAudio:
    """Audio of the chunks of a source, as browsers play it. Thread-safe."""

    def __init__(self, settings: Settings, source: Store) -> None:
        self._settings = settings
        self._source = source
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, request: Request, key: str, *, decoded: bool) -> Response:
        """Answers with the chunk or a part of it, decoded if necessary.

        Raises what Store.get raises, and AudioError.
        """
        head = self._source.get_range(key, 0, HEAD)
        media = None if decoded else find_media_type(key, head.data)
        if media and head.size is not None:
            return answer_range(request, head.size, head.etag, media, self._read_parts(key, head))
        data = self._decode(key, head.etag)
        return answer_range(request, len(data), f"{head.etag}-mp3", "audio/mpeg", _cut_parts(data))

    def _read_parts(self, key: str, head: Blob) -> Callable[[int, int], Iterator[bytes]]:
        def read(start: int, end: int) -> Iterator[bytes]:
            while start < end:
                part = self._source.get_range(key, start, min(PIECE, end - start))
                if part.etag != head.etag or not part.data:
                    raise StoreUnavailableError(f"{key!r} was replaced while it was read; try again")
                yield part.data
                start += len(part.data)

        return read

    def _decode(self, key: str, etag: str) -> bytes:
        """The chunk as MP3, decoded once while it is kept."""
        with self._lock:
            if (kept := self._kept.get((key, etag))) is not None:
                self._kept.move_to_end((key, etag))
                return kept
        with DECODERS, open_decoder(self._settings, self._source) as decoder:
            from batchscribe.audio.session_audio import encode_mp3

            data = encode_mp3(decoder.decode(key))
        with self._lock:
            self._kept[key, etag] = data
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return data


def _cut_parts(data: bytes) -> Callable[[int, int], Iterator[bytes]]:
    def read(start: int, end: int) -> Iterator[bytes]:
        for begin in range(start, end, PIECE):
            yield data[begin : min(begin + PIECE, end)]

    return read


def answer_range(
    request: Request, size: int, etag: str, media: str, read: Callable[[int, int], Iterator[bytes]]
) -> Response:
    """Answers with a byte range (RFC 9110), else with everything."""
    headers = {"accept-ranges": "bytes", "etag": f'"{etag}"', "cache-control": "private, no-cache"}
    asked = request.headers.get("range", "")
    if request.headers.get("if-range", headers["etag"]) != headers["etag"]:
        asked = ""
    found = parse_range(asked, size)
    if found is None:
        headers["content-range"] = f"bytes */{size}"
        return Response(status_code=416, headers=headers)
    start, end = found
    partial = bool(_RANGE.fullmatch(asked))
    headers["content-length"] = str(end - start)
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(read(start, end), 206 if partial else 200, headers, media)


def parse_range(asked: str, size: int) -> tuple[int, int] | None:
    """Begin and end of a requested range, else all; None outside."""
    match = _RANGE.fullmatch(asked)
    if match is None or asked == "bytes=-":
        return 0, size
    first, last = match[1], match[2]
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    return (start, end) if start < end else None
