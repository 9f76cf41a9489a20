"""Whether a file ends before its end, by its own bytes: part of the decoder's own process.

FFmpeg decodes what is there of a file that was cut off, and says nothing. A container that states its length
gives it away; of the others some say what must come last, or how long the part is that was cut through.
"""

from __future__ import annotations

import os
from typing import IO

RIFF_UNKNOWN = 0xFFFF_FF00
BOXES = frozenset({b"ftyp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"styp", b"free"})
MAX_BOXES = 100_000
OGG_PAGE = 27
OGG_LONGEST = 65_307
OGG_LAST = 0x04
MP3_RATES = (44_100, 48_000, 32_000)
MP3_KILOBITS = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
"""Of layer III, by whether it is MPEG-1."""
XING = (b"Xing", b"Info")
XING_BYTES = 0x02


def cut_off(file: IO[bytes]) -> bool:
    """Whether it is shorter than it says itself; of WebM that is known elsewhere, see `containers`."""
    length = file.seek(0, os.SEEK_END)
    head = _read(file, 0, 12)
    if head[:4] == b"RIFF":
        return _riff(head, length)
    if head[4:8] in BOXES:
        return _boxes(file, length)
    if head[:4] == b"OggS":
        return _ogg(_read(file, max(0, length - OGG_LONGEST), OGG_LONGEST))
    return _mp3(file, length)


def _read(file: IO[bytes], at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _riff(head: bytes, length: int) -> bool:
    """WAV and AVI: FFmpeg believes the shorter of the two."""
    stated = int.from_bytes(head[4:8], "little")
    # A recorder that cannot go back to write the size leaves nothing or all ones there.
    return 0 < stated < RIFF_UNKNOWN and stated + 8 > length


def _boxes(file: IO[bytes], length: int) -> bool:
    """MP4: its last box, or the head of that, is cut through."""
    at = 0
    for _ in range(MAX_BOXES):
        head = _read(file, at, 16)
        if len(head) < 8:
            return any(head)
        size, kind = int.from_bytes(head[:4]), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16])
        if size < 8:
            # 0 is a box that goes on to the end, whatever that is.
            return False
        at += size
        if at > length:
            return kind in BOXES
    return False


def _ogg(tail: bytes) -> bool:
    """The last page is not marked as the last, or it is cut through."""
    at = tail.rfind(b"OggS")
    page = tail[at : at + OGG_PAGE]
    if at < 0 or len(page) < OGG_PAGE:
        return True
    lengths = tail[at + OGG_PAGE : at + OGG_PAGE + page[26]]
    ends = at + OGG_PAGE + page[26] + sum(lengths)
    return ends > len(tail) or not page[5] & OGG_LAST


def _mp3(file: IO[bytes], length: int) -> bool:
    """The note that most encoders leave in the first frame says how many bytes there are from there on."""
    begins = _id3_ends(_read(file, 0, 10))
    first = _read(file, begins, 256)
    found = next((at for name in XING if (at := first.find(name)) >= 0), None)
    if first[:1] != b"\xff" or found is None:
        return False
    note = first[found:]
    flags = int.from_bytes(note[4:8])
    # The number of frames comes before that of bytes, if it is there.
    at = 8 + 4 * (flags & 1)
    return bool(flags & XING_BYTES) and begins + int.from_bytes(note[at : at + 4]) > length


def _id3_ends(head: bytes) -> int:
    """Where the tag in front of an MP3 ends; its size is written in groups of seven bits."""
    if head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def mp3_cut_off(packet: bytes, codec: str) -> bool:
    """Whether a frame of an MP3 is shorter than its head says: the last one, where the file ends in it."""
    head = int.from_bytes(packet[:4])
    bits, rate = head >> 12 & 0xF, head >> 10 & 3
    if codec != "mp3" or len(packet) < 4 or head >> 21 != 0x7FF or not 0 < bits < 15 or rate == 3:
        return False
    whole, half, quarter = (head >> 19 & 3 == version for version in (3, 2, 0))
    if not (whole or half or quarter):
        return False
    hertz = MP3_RATES[rate] >> (0 if whole else 1 if half else 2)
    kilobits = MP3_KILOBITS[whole][bits - 1]
    return len(packet) < (144 if whole else 72) * 1000 * kilobits // hertz
