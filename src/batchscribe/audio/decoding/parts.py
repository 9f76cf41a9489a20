"""Finds the recordings in one file; runs in the decoder process.

Some files are concatenated recordings, or have a header written when only the first slice of a recording
existed. FFmpeg reads such a file up to the stated end. Each recording is decoded as a separate part, from its
beginning to the next one; data after the stated end of a part is its excess.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from batchscribe.audio.decoding import chunked, ebml, mp4
from batchscribe.audio.decoding.beginnings import (
    AIFF,
    ASF,
    AU,
    AVI,
    CAF,
    FLAC,
    MATROSKA,
    MOOV,
    MP3,
    MP4,
    OGG,
    W64,
    WAVE,
    WAVPACK,
    Kind,
    kind_of,
    next_beginning,
)
from batchscribe.audio.decoding.chunked import read_at
from batchscribe.audio.decoding.ends import OGG_PAGE, find_id3_end

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_PARTS = 1000
EXCESS_BYTES = 4096
EXCESS_SECONDS = 0.5
"""Excess above either counts as lost audio: a tag or padding is shorter."""
MIN_BYTES = 12
"""Length of the shortest recording."""
BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Part:
    """One recording of a file."""

    begin: int
    end: int
    excess: int = 0
    """Bytes that its header leaves out."""
    patch: tuple[int, bytes] | None = None
    """Offset from `begin` and new bytes of a correction of its header."""

    def leaves_out_sound(self, seconds: float) -> bool:
        """True if the excess may be audio; the rest has `seconds`."""
        rest = max(1, self.end - self.begin - self.excess)
        return self.excess > EXCESS_BYTES or self.excess * seconds / rest > EXCESS_SECONDS


@dataclass(frozen=True, slots=True)
class Extent:
    """Extent of a recording by its header."""

    ends: int
    """Its end; if not stated, the start of the search for the next recording."""
    is_stated: bool = False
    is_read_on: bool = False
    """True if FFmpeg reads data after its end, too, so that it is no excess."""
    unlisted: int = 0
    """Bytes of audio data that the header does not list."""
    broken_box: int | None = None
    """Begin of an audio box that is longer than the file, if no description comes before it."""


class FileView(io.RawIOBase):
    """Reads a part of a file, with its own position."""

    def __init__(self, descriptor: int, part: Part) -> None:
        super().__init__()
        self._descriptor, self._part, self._at = descriptor, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view, part = memoryview(buffer).cast("B"), self._part
        wanted = min(len(view), part.end - part.begin - self._at)
        data = os.pread(self._descriptor, wanted, part.begin + self._at) if wanted > 0 else b""
        view[: len(data)] = self._apply_patch(data)
        self._at += len(data)
        return len(data)

    def _apply_patch(self, data: bytes) -> bytes:
        if self._part.patch is None:
            return data
        at, new = self._part.patch
        begin, end = max(at, self._at), min(at + len(new), self._at + len(data))
        if begin >= end:
            return data
        return data[: begin - self._at] + new[begin - at : end - at] + data[end - self._at :]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.end - self._part.begin}
        self._at = max(0, origin[whence] + offset)
        return self._at


def open_part(descriptor: int, part: Part) -> io.BufferedReader:
    return io.BufferedReader(FileView(descriptor, part), BUFFER_BYTES)


def find_parts(file: IO[bytes]) -> list[Part]:
    """Finds a file's recordings, in order: 1 to MAX_PARTS."""
    length, kind = file.seek(0, os.SEEK_END), kind_of(file)
    if kind is None:
        return [Part(0, length)]
    parts: list[Part] = []
    begin: int | None = 0
    while begin is not None and len(parts) < MAX_PARTS:
        part, begin = _find_part(file, kind, begin, length)
        parts.append(part)
    if begin is not None:
        last = parts[-1]
        parts[-1] = replace(last, end=length, excess=last.excess + length - begin)
    return parts


def _find_part(file: IO[bytes], kind: Kind, begin: int, length: int) -> tuple[Part, int | None]:
    """Returns the part at `begin`, and the begin of the next one."""
    extent = EXTENTS[kind](file, begin, length)
    following = next_beginning(file, kind, extent.ends, length)
    end = length if following is None else following
    if extent.is_stated and end > extent.ends:
        # A truncated recording reaches its stated length only together with the one that follows.
        inner = next_beginning(file, kind, begin + MIN_BYTES, extent.ends)
        if inner is not None:
            extent, following, end = Extent(inner), inner, inner
    behind = end - extent.ends if extent.is_stated and not extent.is_read_on else 0
    patch = _box_patch(file, begin, extent.broken_box, end)
    return Part(begin, end, extent.unlisted + behind, patch), following


def _chunked_extent(file: IO[bytes], begin: int, length: int) -> Extent:
    return Extent(*chunked.find_sound_end(file, begin, length))


def _avi_extent(file: IO[bytes], begin: int, length: int) -> Extent:
    form = next(chunked.read_chunks(file, begin, length))
    if form.end is None or form.end > length:
        return Extent(form.body)
    return Extent(form.end, is_stated=True, is_read_on=True)


def _matroska_extent(file: IO[bytes], begin: int, length: int) -> Extent:
    """Extent of a Matroska segment; other files may be attached to it."""
    head = read_at(file, begin, 128)
    header = ebml.parse_element(head, 0)
    segment = ebml.parse_element(head, header.end) if header and header.end else None
    if segment and segment.id == ebml.SEGMENT and segment.end and begin + segment.end <= length:
        return Extent(begin + segment.end, is_stated=True, is_read_on=True)
    return Extent(begin + len(ebml.EBML.to_bytes(4)))


def _mp4_extent(file: IO[bytes], begin: int, length: int) -> Extent:
    """Extent of an MP4, up to an unknown box or another recording."""
    moov, ends, sound, is_fragmented = b"", begin, 0, False
    for kind, at, body, end in mp4.iterate_file_boxes(file, begin, length):
        if kind not in mp4.KINDS or (kind == b"ftyp" and at > begin) or (kind == b"moov" and moov):
            break
        if end > length or read_at(file, at, 4) == bytes(4):
            is_lost = end > length and kind == b"mdat" and not moov
            return Extent(body, broken_box=at if is_lost else None)
        if kind == b"moov":
            moov = read_at(file, body, end - body)
        is_fragmented |= kind == b"moof"
        sound += end - body if kind == b"mdat" else 0
        ends = end
    listed = mp4.count_listed_bytes(moov) if moov and not is_fragmented else None
    return Extent(ends, is_stated=True, unlisted=0 if listed is None else max(0, sound - listed))


def _box_patch(file: IO[bytes], begin: int, box: int | None, end: int) -> tuple[int, bytes] | None:
    """Correction of a truncated audio box's size, up to its description."""
    if box is None:
        return None
    moov = next_beginning(file, MOOV, box + 8, end)
    if moov is None:
        return None
    is_wide = read_at(file, box, 4) == (1).to_bytes(4)
    at, width = (box + 8, 8) if is_wide else (box, 4)
    return at - begin, (moov - box).to_bytes(width)


def _mp3_extent(file: IO[bytes], begin: int, _length: int) -> Extent:
    tag = find_id3_end(read_at(file, begin, 10))
    return Extent(begin + tag + 4)


def _au_extent(file: IO[bytes], begin: int, length: int) -> Extent:
    ends = chunked.find_au_end(read_at(file, begin, chunked.HEAD))
    if ends is None or begin + ends > length:
        return Extent(begin + MIN_BYTES)
    return Extent(begin + ends, is_stated=True)


def _unstated_extent(_file: IO[bytes], begin: int, _length: int) -> Extent:
    return Extent(begin + MIN_BYTES)


def _ogg_extent(file: IO[bytes], begin: int, length: int) -> Extent:
    """Extent of Ogg, whose streams begin with one page each."""
    at = begin
    while at < length and OGG.begins(file, at):
        head = read_at(file, at, OGG_PAGE + 255)
        count = head[OGG_PAGE - 1] if len(head) >= OGG_PAGE else 0
        at += OGG_PAGE + count + sum(head[OGG_PAGE : OGG_PAGE + count])
    return Extent(at)


EXTENTS: dict[Kind, Callable[[IO[bytes], int, int], Extent]] = {
    WAVE: _chunked_extent, AIFF: _chunked_extent, CAF: _chunked_extent, W64: _chunked_extent, AU: _au_extent,
    AVI: _avi_extent, FLAC: _unstated_extent, WAVPACK: _unstated_extent, ASF: _unstated_extent,
    MATROSKA: _matroska_extent, MP4: _mp4_extent, MP3: _mp3_extent, OGG: _ogg_extent,
}  # fmt: skip
