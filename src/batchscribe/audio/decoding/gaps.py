"""Bridges unreadable ranges of WebM: zeros from a disk, a cut block.

A decoder continues at the next cluster if it finds one, but takes some ranges for the end of the file. So
each range becomes an element that readers skip (`Void`, RFC 8794, 11.3.2), up to the next cluster or block.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchscribe.audio.decoding.ebml import (
    BLOCKS,
    CHILDREN,
    CLUSTER,
    EBML,
    SIMPLE_BLOCK,
    TOP_LEVEL,
    Element,
    find_next,
    parse_element,
    walk_elements,
)

MAX_GAPS = 64
MIN_LOSS_BYTES = 4096
"""Shortest range at the very end that counts as lost audio."""
IN_A_ROW = 3
"""Consecutive elements that prove a block, rather than a coincidence."""
VOID = b"\xec"
VOID_HEAD = 9
"""Bytes of its name and of the longest size."""


def bridge_gaps(data: bytes, stop: int) -> bytes | None:
    """Bridges gaps of `data`, whose elements end at `stop`; None without loss."""
    if stop >= len(data) or ((place := _next_place(data, stop)) is None and not _is_loss(data, stop)):
        return None
    out = bytearray(data)
    for _ in range(MAX_GAPS):
        if place is None:
            break
        # The decoder itself finds a recording that begins within a cut block.
        if place > stop + 1:
            out[stop:place] = _make_void(place - stop)
        stop = _walk_end(data, place)
        place = _next_place(data, stop, place)
    return bytes(out)


def _is_loss(data: bytes, stop: int) -> bool:
    """True if the rest is long, and not a truncated element."""
    found = parse_element(data, stop)
    return len(data) - stop > MIN_LOSS_BYTES and (found is None or found.id not in TOP_LEVEL | CHILDREN)


def _walk_end(data: bytes, at: int) -> int:
    for found in walk_elements(data, at):
        following = find_next(found)
        if following is None or following > len(data):
            break
        at = following
    return at


def _next_place(data: bytes, stop: int, begin: int = 0) -> int | None:
    """Offset of the next recording, cluster or block after `stop`, or None.

    From `begin` to `stop` there are complete elements, but the last may have been cut, so that another
    recording begins within it.
    """
    if stop >= len(data):
        return None
    last = max((found.begin for found in walk_elements(data, begin) if found.begin < stop), default=begin)
    places = (_find_recordings(data, last + 1), _find_clusters(data, stop + 1), _find_blocks(data, stop + 1))
    return min((place for found in places if (place := next(found, None)) is not None), default=None)


def _find_recordings(data: bytes, at: int) -> Iterator[int]:
    for place in _find_marker(data, EBML.to_bytes(4), at):
        head = data[place : place + 64]
        if b"webm" in head or b"matroska" in head:
            yield place


def _find_clusters(data: bytes, at: int) -> Iterator[int]:
    for place in _find_marker(data, CLUSTER.to_bytes(4), at):
        found = parse_element(data, place)
        inner = found and parse_element(data, found.body)
        if inner and inner.id in CHILDREN:
            yield place


def _find_blocks(data: bytes, at: int) -> Iterator[int]:
    for place in _find_marker(data, SIMPLE_BLOCK.to_bytes(1), at):
        if _is_in_a_row(data, parse_element(data, place)):
            yield place


def _is_in_a_row(data: bytes, found: Element | None) -> bool:
    for _ in range(IN_A_ROW):
        if found is None or found.id not in BLOCKS | {CLUSTER} or (following := find_next(found)) is None:
            return False
        found = parse_element(data, following)
    return True


def _find_marker(data: bytes, marker: bytes, at: int) -> Iterator[int]:
    while (at := data.find(marker, at)) >= 0:
        yield at
        at += 1


def _make_void(length: int) -> bytes:
    """A Void element of so many bytes, at least two."""
    if length < VOID_HEAD:
        return VOID + bytes([0x80 | length - 2]) + bytes(length - 2)
    return VOID + b"\x01" + (length - VOID_HEAD).to_bytes(7) + bytes(length - VOID_HEAD)
