"""Boxes of MP4 (ISO/IEC 14496-12) and of Opus in MP4."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

KINDS = frozenset({
    b"ftyp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"styp", b"free", b"skip", b"wide", b"uuid",
    b"udta", b"meta", b"emsg", b"prft", b"ssix", b"pnot", b"PICT", b"pdin", b"bloc",
})  # fmt: skip
"""Kinds of top-level boxes."""
MAX_BOXES = 100_000
ONE_BYTE = 1
"""Sample size that old QuickTime writes for uncompressed audio, whatever the true size."""
FRAGMENTS = frozenset({b"moof", b"styp", b"sidx", b"emsg", b"prft"})


def iterate_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, body and end of boxes; the last may be truncated."""
    at = 0
    while at + 8 <= len(data):
        size, kind, body = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8]), body + 8
        end = len(data) if size == 0 else at + size
        if end < body:
            return
        yield kind, body, end
        at = end


def find_boxes(data: bytes, *path: bytes) -> Iterator[bytes]:
    """Yields the contents of all boxes at a path."""
    for kind, body, end in iterate_boxes(data):
        if kind == path[0]:
            content = data[body:end]
            yield from find_boxes(content, *path[1:]) if path[1:] else (content,)


def parse_beginning(data: bytes) -> tuple[bytes, float] | None:
    """Beginning of a fragmented MP4 without edit lists, and their delay (seconds).

    Edit lists apply to the first fragment only. None if it is not fragmented.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    for kind, _, end in iterate_boxes(data):
        found.setdefault(kind, data[at:end])
        at = end
    goes_on = b"moof" in found or any(find_boxes(found.get(b"moov", b""), b"moov", b"mvex"))
    if not (goes_on and {b"ftyp", b"moov"} <= found.keys()):
        return None
    front = found[b"ftyp"] + _remove_preskip(found[b"moov"].replace(b"edts", b"free"))
    return front, _edit_delay(data)


def _remove_preskip(moov: bytes) -> bytes:
    """Description of Opus without pre-skip, which would be cut from each piece."""
    patched, at = bytearray(moov), moov.find(b"dOps")
    if at >= 0:
        # Version and channels, a byte each, come before it: Encapsulation of Opus in ISO BMFF, 4.3.2.
        patched[at + 6 : at + 8] = bytes(2)
    return bytes(patched)


def _edit_delay(data: bytes) -> float:
    """Seconds of priming that an edit list leaves out."""
    for track in find_boxes(data, b"moov", b"trak"):
        handlers = [box[8:12] for box in find_boxes(track, b"mdia", b"hdlr")]
        lists, clocks = [*find_boxes(track, b"edts", b"elst")], [*find_boxes(track, b"mdia", b"mdhd")]
        if handlers == [b"soun"] and lists and clocks:
            return _media_time(lists[0]) / max(1, time_scale(clocks[0]))
    return 0.0


def _media_time(elst: bytes) -> int:
    """Media time of the last entry, in track units; others are empty."""
    wide, count = elst[:1] == b"\x01", int.from_bytes(elst[4:8])
    length, skip, size = (20, 8, 8) if wide else (12, 4, 4)
    at = 8 + (count - 1) * length + skip
    return max(0, int.from_bytes(elst[at : at + size], signed=True)) if count else 0


def time_scale(mdhd: bytes) -> int:
    """Units per second."""
    return int.from_bytes(mdhd[20:24] if mdhd[:1] == b"\x01" else mdhd[12:16])


def has_sound(data: bytes) -> bool:
    """True if there is media data besides the description."""
    return any(kind in {b"moof", b"mdat"} for kind, _, _ in iterate_boxes(data))


def iterate_file_boxes(file: IO[bytes], at: int, length: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yields kind, begin, body and end of boxes, perhaps beyond `length`."""
    for _ in range(MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, body = int.from_bytes(head[:4]), at + 8
        if size == 1:
            size, body = int.from_bytes(head[8:16]), at + 16
        # Size 0: the box extends to the end of the file.
        end = max(length, body) if size == 0 else at + size
        if end < body:
            return
        yield head[4:8], at, body, end
        at = end


def count_listed_bytes(moov: bytes) -> int | None:
    """Bytes of all samples of all described tracks; None if unclear."""
    total = 0
    for stsz in find_boxes(moov, b"trak", b"mdia", b"minf", b"stbl", b"stsz"):
        each, count = int.from_bytes(stsz[4:8]), int.from_bytes(stsz[8:12])
        if each == ONE_BYTE or (not each and len(stsz) < 12 + 4 * count):
            return None
        total += each * count if each else sum(struct.unpack_from(f">{count}I", stsz, 12))
    return total or None
