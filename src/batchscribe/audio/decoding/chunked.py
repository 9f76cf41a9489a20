"""Formats of sized chunks: RIFF family, AIFF, CAF, Wave64, and AU.

Runs in the decoder process. RIFF, RIFX, RF64 and BW64: ITU-R BS.2088. AIFF: EA IFF 85. CAF: Apple Core Audio
Format 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

UNKNOWN = 0xFFFF_FF00
"""A recorder that cannot seek back to write a size leaves 0 there, or a value from here on."""
WIDE = 0xFFFF_FFFF
"""The size is in the `ds64` chunk, if there is one."""
WIDEST = 1 << 62
MAX_CHUNKS = 10_000
HEAD = 48
GUID_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""End of the names of Wave64's chunks, after four letters."""
W64_BEGIN = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Layout of chunks in one format."""

    head: int
    """Bytes before the first chunk."""
    sound: bytes
    """Begin of the audio chunk's name."""
    order: Literal["little", "big"] = "little"
    name: int = 4
    size: int = 4
    """Bytes of a chunk's name, and of its size."""
    align: int = 2
    is_size_of_all: bool = False
    """True if the size includes the chunk's header."""
    form_size: int | None = 4
    """Offset of the size of the whole form."""
    before_sound: int = 0
    """Bytes of the content before the audio; included in the size even if there is no audio yet."""


RIFF = Dialect(12, b"data")
RIFX = Dialect(12, b"data", "big")
AIFF = Dialect(12, b"SSND", "big", before_sound=8)
CAF = Dialect(8, b"data", "big", size=8, align=1, form_size=None, before_sound=4)
W64 = Dialect(40, b"data", name=16, size=8, align=8, is_size_of_all=True, form_size=16)


@dataclass(frozen=True, slots=True)
class FileChunk:
    name: bytes
    begin: int
    body: int
    end: int | None
    """None if its size is unknown."""


def is_wave(head: bytes) -> bool:
    return head[:4] in {b"RIFF", b"RIFX", b"RF64", b"BW64"} and head[8:12] == b"WAVE"


def is_avi(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"}


def is_caf(head: bytes) -> bool:
    return head[:6] == b"caff\0\x01"


def is_w64(head: bytes) -> bool:
    return head[:16] == W64_BEGIN and head[24:28] == b"wave"


def is_au(head: bytes) -> bool:
    """True for AU with plausible format, rate and channels."""
    at, kind, rate, channels = (int.from_bytes(head[place : place + 4]) for place in (4, 12, 16, 20))
    return head[:4] == b".snd" and 24 <= at < UNKNOWN and 0 < kind < 100 and rate > 0 and 0 < channels < 256


def dialect_of(head: bytes) -> Dialect | None:
    """Dialect of a file by its first bytes, if it is chunked."""
    if is_wave(head) or is_avi(head):
        return RIFX if head[:4] == b"RIFX" else RIFF
    return AIFF if is_aiff(head) else CAF if is_caf(head) else W64 if is_w64(head) else None


def read_chunks(file: IO[bytes], begin: int, length: int) -> Iterator[FileChunk]:
    """Yields form and chunks at `begin`; the last may be truncated."""
    head = read_at(file, begin, HEAD)
    dialect = dialect_of(head)
    if dialect is None:
        return
    ds64 = _parse_ds64(head)
    yield _parse_form(dialect, head, begin, ds64)
    at = begin + dialect.head
    for _ in range(MAX_CHUNKS):
        head = read_at(file, at, dialect.name + dialect.size)
        found = _parse_chunk(dialect, head, at, ds64)
        if found is None:
            return
        yield found
        if found.end is None or found.end > length:
            return
        size = found.end - begin
        at = min(length, begin + size + -size % dialect.align)


def _parse_form(dialect: Dialect, head: bytes, begin: int, ds64: dict[bytes, int]) -> FileChunk:
    end, place = None, dialect.form_size
    if place is not None:
        size = _parse_size(dialect, head[place : place + dialect.size], ds64.get(head[:4]))
        end = None if size is None else begin + size + (0 if dialect.is_size_of_all else place + dialect.size)
    return FileChunk(head[:4], begin, begin + dialect.head, end)


def _parse_chunk(dialect: Dialect, head: bytes, at: int, ds64: dict[bytes, int]) -> FileChunk | None:
    name, own = head[:4], dialect.name + dialect.size
    is_named = all(0x20 <= byte < 0x7F for byte in name) and not is_form(head)
    if len(head) < own or not is_named or (dialect is W64 and head[4:16] != GUID_TAIL):
        return None
    size = _parse_size(dialect, head[dialect.name :], ds64.get(name))
    if size is not None and dialect.is_size_of_all:
        size -= own
    if size is None or size < 0 or (size <= dialect.before_sound and name == dialect.sound):
        return FileChunk(name, at, at + own, None)
    return FileChunk(name, at, at + own, at + own + size)


def is_form(head: bytes) -> bool:
    return head[:4] in {b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff"}


def _parse_size(dialect: Dialect, written: bytes, wide: int | None) -> int | None:
    size = int.from_bytes(written, dialect.order)
    if size == WIDE and wide is not None:
        size = wide
    elif dialect.size == 4 and size >= UNKNOWN:
        return None
    return size if 0 < size < WIDEST else None


def _parse_ds64(head: bytes) -> dict[bytes, int]:
    """Sizes of form and data chunk, from a `ds64` chunk."""
    if head[12:16] != b"ds64" or len(head) < 36:
        return {}
    form, data = (int.from_bytes(head[at : at + 8], "little") for at in (20, 28))
    return {b"RF64": form, b"BW64": form, b"data": data}


def states_more(file: IO[bytes], length: int) -> bool:
    """True if more bytes are stated than there are.

    File and audio can state a size; FFmpeg uses the shorter one.
    """
    head = read_at(file, 0, HEAD)
    if is_au(head):
        ends = find_au_end(head)
        return ends is not None and ends > length
    form, *chunks = read_chunks(file, 0, length)
    if form.end is not None and form.end > length:
        return True
    sound = (chunk.end for chunk in chunks if _is_sound(chunk))
    return any(end is not None and end > length for end in sound)


def find_au_end(head: bytes) -> int | None:
    """End of the audio of an AU; None if unknown."""
    at, size = int.from_bytes(head[4:8]), int.from_bytes(head[8:12])
    return at + size if 0 < size < UNKNOWN else None


def _is_sound(chunk: FileChunk) -> bool:
    return chunk.name in {b"data", b"SSND"}


def find_sound_end(file: IO[bytes], begin: int, length: int) -> tuple[int, bool]:
    """Returns the end of the last chunk and True.

    If it is unknown, returns the begin of its content and False.
    """
    form, *chunks = read_chunks(file, begin, length)
    if not chunks:
        return form.body, False
    last = chunks[-1]
    if last.end is not None and last.end <= length:
        return last.end, True
    if not _is_sound(last) and any(map(_is_sound, chunks)):
        # The data after the audio is not a chunk.
        return last.begin, True
    return last.body, False


def read_at(file: IO[bytes], at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
