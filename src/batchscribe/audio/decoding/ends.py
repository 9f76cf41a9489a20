"""Detects truncated files by their bytes; runs in the decoder process.

FFmpeg decodes a truncated file without an error. Some containers state their length; others mark their last
part, or state the length of the part that is cut.
"""

from __future__ import annotations

import os
from collections import deque
from typing import IO

from batchscribe.audio.decoding import chunked
from batchscribe.audio.decoding.chunked import read_at
from batchscribe.audio.decoding.mp4 import iterate_file_boxes

BOXES = frozenset({b"ftyp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"styp", b"free"})
"""Other data after the last box is not checked."""
OGG_PAGE = 27
OGG_LONGEST = 65_307
OGG_LAST = 0x04
MP3_RATES = (44_100, 48_000, 32_000)
MP3_KILOBITS = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
"""Of layer III: for MPEG-2 and 2.5, and for MPEG-1."""
AC3_KILOBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
AC3_LAST = 10
"""Later versions are E-AC-3."""
LONGEST_FRAMES = {"mp3": 1441, "ac3": 3840, "eac3": 4096}
"""Bytes. In a file of bare frames, a longer packet is a frame plus damage, which decoders skip."""
XING = (b"Xing", b"Info")
XING_BYTES = 0x02


def is_cut_off(file: IO[bytes]) -> bool:
    """True if a file other than WebM is shorter than it states."""
    length = file.seek(0, os.SEEK_END)
    head = read_at(file, 0, chunked.HEAD)
    if chunked.dialect_of(head) or chunked.is_au(head):
        return chunked.states_more(file, length)
    if head[4:8] in BOXES:
        return _is_mp4_cut(file, length)
    if head[:4] == b"OggS":
        return _is_ogg_cut(read_at(file, max(0, length - OGG_LONGEST), OGG_LONGEST))
    return _is_mp3_cut(file, length)


def _is_mp4_cut(file: IO[bytes], length: int) -> bool:
    """True if an MP4's last box, or its head, is cut."""
    last = deque(iterate_file_boxes(file, 0, length), maxlen=1)
    kind, end = (last[0][0], last[0][3]) if last else (b"", 0)
    if end > length:
        return kind in BOXES
    head = read_at(file, end, 8)
    return len(head) < 8 and any(head)


def _is_ogg_cut(tail: bytes) -> bool:
    """True if the last Ogg page is cut or not marked last."""
    at = tail.rfind(b"OggS")
    page = tail[at : at + OGG_PAGE]
    if at < 0 or len(page) < OGG_PAGE:
        return True
    lengths = tail[at + OGG_PAGE : at + OGG_PAGE + page[26]]
    ends = at + OGG_PAGE + page[26] + sum(lengths)
    return ends > len(tail) or not page[5] & OGG_LAST


def _is_mp3_cut(file: IO[bytes], length: int) -> bool:
    """True if an MP3's Xing header states more bytes than exist."""
    begins = find_id3_end(read_at(file, 0, 10))
    first = read_at(file, begins, 256)
    found = next((at for name in XING if (at := first.find(name)) >= 0), None)
    if first[:1] != b"\xff" or found is None:
        return False
    xing = first[found:]
    flags = int.from_bytes(xing[4:8])
    # The number of frames, if there is one, comes before the number of bytes.
    at = 8 + 4 * (flags & 1)
    return bool(flags & XING_BYTES) and begins + int.from_bytes(xing[at : at + 4]) > length


def find_id3_end(head: bytes) -> int:
    """End of an ID3 tag, whose size has groups of seven bits."""
    if head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def is_cut_through(packet: bytes, codec: str) -> bool:
    """True if a frame is shorter than its header states."""
    stated = {"mp3": mp3_frame_bytes, "ac3": _ac3_frame_bytes, "eac3": _ac3_frame_bytes}.get(codec)
    return stated is not None and len(packet) < stated(packet)


def _ac3_frame_bytes(head: bytes) -> int:
    """AC-3 frame length, 0 if invalid. ETSI TS 102 366, 4.4.1, E.1.3."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return 0
    if head[5] >> 3 > AC3_LAST:
        return 2 * ((head[2] & 0x07) << 8 | head[3]) + 2
    rate, code = head[4] >> 6, head[4] & 0x3F
    if code >> 1 >= len(AC3_KILOBITS) or rate == 3:
        return 0
    kilobits = AC3_KILOBITS[code >> 1]
    return (4 * kilobits, 2 * (320 * kilobits // 147 + (code & 1)), 6 * kilobits)[rate]


def mp3_frame_bytes(head: bytes) -> int:
    """Length of the MP3 frame with this header; 0 if invalid."""
    first = int.from_bytes(head[:4])
    bits, rate = first >> 12 & 0xF, first >> 10 & 3
    if len(head) < 4 or first >> 21 != 0x7FF or not 0 < bits < 15 or rate == 3:
        return 0
    whole, half, quarter = (first >> 19 & 3 == version for version in (3, 2, 0))
    if not (whole or half or quarter):
        return 0
    hertz = MP3_RATES[rate] >> (0 if whole else 1 if half else 2)
    kilobits = MP3_KILOBITS[whole][bits - 1]
    return (144 if whole else 72) * 1000 * kilobits // hertz
