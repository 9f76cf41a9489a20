"""Finds recordings' beginnings by signatures; runs in the decoder process.

A beginning in the middle of a file belongs to another recording of the same kind: concatenated files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO

from batchscribe.audio.decoding import chunked
from batchscribe.audio.decoding.chunked import read_at
from batchscribe.audio.decoding.ebml import EBML
from batchscribe.audio.decoding.ends import find_id3_end, mp3_frame_bytes

HEAD = 64
"""Bytes of a beginning that suffice to identify it."""
WINDOW = 1 << 20
"""Bytes that are searched at a time."""
MAX_CANDIDATES = 1000
"""Candidates per window that are checked; audio data rarely has one."""
LONGEST_FTYP = 1024
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
MP3_LAYER, LAYER_3 = 0x06, 0x02
XING_PLACES = (4 + 9, 4 + 17, 4 + 32)
"""Offsets of the Xing header in an MP3's first frame: after frame header and side information."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A kind of file."""

    markers: Mapping[bytes, tuple[int, ...]]
    """Bytes to search for, and their possible offsets in a beginning."""
    begins: Callable[[IO[bytes], int], bool]
    """True if a file of this kind begins there."""


def _by_head(test: Callable[[bytes], bool]) -> Callable[[IO[bytes], int], bool]:
    return lambda file, at: test(read_at(file, at, HEAD))


def _is_flac(head: bytes) -> bool:
    return head[:4] == b"fLaC" and head[4] & 0x7F == 0 and head[5:8] == b"\0\0\x22"


def _is_matroska(head: bytes) -> bool:
    return head[:4] == EBML.to_bytes(4) and (b"webm" in head or b"matroska" in head)


def _is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and 16 <= int.from_bytes(head[:4]) <= LONGEST_FTYP and head[8:12].isascii()


def _is_ogg(head: bytes) -> bool:
    return head[:6] == b"OggS\0\x02" and not any(head[6:14])


def _is_wavpack(head: bytes) -> bool:
    """True for the first block of the first samples."""
    return head[:4] == b"wvpk" and head[9] == 0x04 and not any(head[16:20]) and bool(head[25] & 0x08)


def _is_mp3_frame(head: bytes) -> bool:
    return bool(mp3_frame_bytes(head)) and head[1] & MP3_LAYER == LAYER_3


def _begins_mp3(file: IO[bytes], at: int) -> bool:
    """True for a tag before a frame, or a Xing header."""
    head = read_at(file, at, HEAD)
    if head[:3] == b"ID3":
        return _is_mp3_frame(read_at(file, at + find_id3_end(head), 4))
    return _is_mp3_frame(head) and any(head[place : place + 4] in {b"Xing", b"Info"} for place in XING_PLACES)


WAVE = Kind({b"WAVE": (8,)}, _by_head(chunked.is_wave))
AVI = Kind({b"AVI LIST": (8,)}, _by_head(chunked.is_avi))
AIFF = Kind({b"AIFF": (8,), b"AIFC": (8,)}, _by_head(chunked.is_aiff))
CAF = Kind({b"caff": (0,)}, _by_head(chunked.is_caf))
W64 = Kind({chunked.W64_BEGIN: (0,)}, _by_head(chunked.is_w64))
ASF = Kind({ASF_HEADER: (0,)}, _by_head(lambda head: head[:16] == ASF_HEADER))
AU = Kind({b".snd": (0,)}, _by_head(chunked.is_au))
WAVPACK = Kind({b"wvpk": (0,)}, _by_head(_is_wavpack))
FLAC = Kind({b"fLaC": (0,)}, _by_head(_is_flac))
MATROSKA = Kind({EBML.to_bytes(4): (0,)}, _by_head(_is_matroska))
MP4 = Kind({b"ftyp": (4,)}, _by_head(_is_mp4))
MP3 = Kind({b"ID3": (0,), b"Xing": XING_PLACES, b"Info": XING_PLACES}, _begins_mp3)
MOOV = Kind({b"moov": (4,)}, _by_head(lambda head: head[4:8] == b"moov" and head[12:16] == b"mvhd"))
"""The description inside an MP4."""
OGG = Kind({b"OggS\0\x02": (0,)}, _by_head(_is_ogg))


KINDS = (WAVE, AVI, AIFF, CAF, W64, AU, ASF, WAVPACK, FLAC, MATROSKA, MP4, MP3, OGG)


def kind_of(file: IO[bytes]) -> Kind | None:
    """Kind of a file; None if further recordings are not searched for."""
    for kind in KINDS:
        if kind.begins(file, 0):
            return kind
    head = read_at(file, 0, HEAD)
    return MP3 if _is_mp3_frame(head) else MP4 if head[4:8] in {b"moov", b"mdat", b"wide", b"free"} else None


def next_beginning(file: IO[bytes], kind: Kind, at: int, length: int) -> int | None:
    """Offset of the next recording from `at` on, or None."""
    for window in range(at, length, WINDOW):
        data = read_at(file, window, min(length - window, WINDOW + HEAD))
        for begin in sorted(islice(_find_candidates(kind, data), MAX_CANDIDATES)):
            if begin >= 0 and kind.begins(file, window + begin):
                return window + begin
    return None


def _find_candidates(kind: Kind, data: bytes) -> Iterator[int]:
    for marker, places in kind.markers.items():
        found = data.find(marker)
        while found >= 0:
            yield from (found - place for place in places)
            found = data.find(marker, found + 1)
