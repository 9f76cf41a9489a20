"""Sizes that a WAV or AVI states: RIFF, RIFX, RF64 and BW64 (ITU-R BS.2088).

Part of the decoder's own process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

FORMS = frozenset({b"RIFF", b"RIFX", b"RF64", b"BW64"})
UNKNOWN = 0xFFFF_FF00
"""A recorder that cannot go back to write a size leaves 0 there, or something from here on."""
WIDE = 0xFFFF_FFFF
"""The size is in the `ds64` chunk, if there is one."""
MAX_CHUNKS = 10_000
HEAD = 12


@dataclass(frozen=True, slots=True)
class Chunk:
    kind: bytes
    begin: int
    body: int
    end: int | None
    """None if its size is unknown."""


def is_wave(head: bytes) -> bool:
    return head[:4] in FORMS and head[8:12] == b"WAVE"


def is_avi(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def read_chunks(file: IO[bytes], begin: int, length: int) -> Iterator[Chunk]:
    """The form that begins there, and its chunks in order; the last may end after the file does."""
    form = read_at(file, begin, HEAD)
    big = form[:4] == b"RIFX"
    ds64 = _wide_sizes(file, begin)
    yield Chunk(form[:4], begin, begin + HEAD, _end(begin + 8, _size(form, big=big), ds64.get(form[:4])))
    at = begin + HEAD
    for _ in range(MAX_CHUNKS):
        head = read_at(file, at, 8)
        if len(head) < 8 or head[:4] in FORMS or not all(0x20 <= byte < 0x7F for byte in head[:4]):
            return
        found = Chunk(head[:4], at, at + 8, _end(at + 8, _size(head, big=big), ds64.get(head[:4])))
        yield found
        if found.end is None or found.end > length:
            return
        at = min(length, found.end + (found.end - found.body & 1))


def states_more(file: IO[bytes], length: int) -> bool:
    """True if a form or its sound is longer than the file. FFmpeg trusts the shorter of the two."""
    form, *chunks = read_chunks(file, 0, length)
    if form.end is not None and form.end > length:
        return True
    return any(chunk.kind == b"data" and chunk.end is not None and chunk.end > length for chunk in chunks)


def sound_ends(file: IO[bytes], begin: int, length: int) -> tuple[int, bool]:
    """Where the last chunk of a WAV ends, and True; if that is unknown, where its sound begins, and False."""
    _, *chunks = read_chunks(file, begin, length)
    if not chunks:
        return begin + HEAD, False
    last = chunks[-1]
    if last.end is not None and last.end <= length:
        return last.end, True
    if last.kind != b"data" and any(chunk.kind == b"data" for chunk in chunks):
        # What is behind the sound is no chunk.
        return last.begin, True
    return last.body, False


def read_at(file: IO[bytes], at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _size(head: bytes, *, big: bool) -> int:
    return int.from_bytes(head[4:8], "big" if big else "little")


def _end(body: int, size: int, wide: int | None) -> int | None:
    if size == WIDE and wide is not None:
        size = wide
    elif size >= UNKNOWN:
        return None
    return body + size if size else None


def _wide_sizes(file: IO[bytes], begin: int) -> dict[bytes, int]:
    """Sizes of the form and of its data chunk, if there is a chunk for these."""
    head = read_at(file, begin + HEAD, 24)
    if head[:4] != b"ds64" or len(head) < 24:
        return {}
    form, data = (int.from_bytes(head[at : at + 8], "little") for at in (8, 16))
    return {b"RF64": form, b"BW64": form, b"data": data}
