"""Parses EBML, the binary XML of WebM. RFC 8794, RFC 9559."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

EBML = 0x1A45DFA3
SEGMENT = 0x18538067
INFO = 0x1549A966
TRACKS = 0x1654AE6B
CLUSTER = 0x1F43B675
CUES = 0x1C53BB6B
TIMESTAMP = 0xE7
SIMPLE_BLOCK = 0xA3
BLOCK_GROUP = 0xA0
BLOCKS = frozenset({SIMPLE_BLOCK, BLOCK_GROUP})
TOP_LEVEL = frozenset({
    EBML, SEGMENT, CLUSTER, CUES, INFO, TRACKS, 0x114D9B74, 0x1254C367, 0x1941A469, 0x1043A770,
})  # fmt: skip
CHILDREN = frozenset({TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, 0xAB, 0xA7, 0xEC, 0xBF, 0x5854})
DESCENDED = frozenset({SEGMENT, CLUSTER})
TRACK_ENTRY = 0xAE
CODEC_PRIVATE = 0x63A2
CODEC_DELAY = 0x56AA
TIMESTAMP_SCALE = 0x2AD7B1
UNKNOWN_SIZE = b"\x01" + 7 * b"\xff"


@dataclass(frozen=True, slots=True)
class Element:
    """An EBML element; `end` is None if unknown."""

    id: int
    begin: int
    body: int
    end: int | None


def _parse_number(data: bytes, at: int, longest: int, *, marker: bool) -> tuple[int, int] | None:
    """A variable-length number and its end; None if invalid or truncated."""
    if at >= len(data) or data[at] == 0:
        return None
    length = 9 - data[at].bit_length()
    if length > longest or at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length])
    return (value if marker else value & ((1 << 7 * length) - 1)), at + length


def parse_element(data: bytes, at: int) -> Element | None:
    """Parses the element at `at`; None if it is invalid or truncated."""
    if (name := _parse_number(data, at, 4, marker=True)) is None:
        return None
    if (size := _parse_number(data, name[1], 8, marker=False)) is None:
        return None
    unknown = size[0] == (1 << 7 * (size[1] - name[1])) - 1
    return Element(name[0], at, size[1], None if unknown else size[1] + size[0])


def walk_elements(data: bytes, at: int = 0) -> Iterator[Element]:
    """Yields elements, descending into segments and clusters; the last may be truncated."""
    while (found := parse_element(data, at)) is not None and found.id in TOP_LEVEL | CHILDREN:
        yield found
        if (following := find_next(found)) is None or following > len(data):
            return
        at = following


def find_next(found: Element) -> int | None:
    """Begin of the next element; None if unknown."""
    return found.body if found.id in DESCENDED else found.end


def iterate_children(data: bytes, parent: Element | None) -> Iterator[Element]:
    """Yields the elements in a complete element."""
    at = parent.body if parent else len(data)
    while parent and at < (parent.end or 0) and (found := parse_element(data, at)) and found.end is not None:
        yield found
        at = found.end


def begin_cluster(timestamp: int) -> bytes:
    """Beginning of a cluster of unknown size."""
    return CLUSTER.to_bytes(4) + UNKNOWN_SIZE + TIMESTAMP.to_bytes(1) + b"\x88" + timestamp.to_bytes(8)
