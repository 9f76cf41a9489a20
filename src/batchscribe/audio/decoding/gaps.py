"""Stretches of a WebM that no reader can follow: zeros from a disk, a block that was cut through.

A decoder goes on at the next cluster if it finds one, and takes some stretches for the end of the file. So
each stretch becomes an element that readers skip (`Void`, RFC 8794, 11.3.2), up to the next cluster or block.
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
    after,
    element,
    walk,
)

MAX_GAPS = 64
MIN_LOSS_BYTES = 4096
"""A shorter stretch at the very end holds no sound to speak of."""
IN_A_ROW = 3
"""So many elements one behind the other are no accident."""
VOID = b"\xec"
VOID_HEAD = 9
"""Bytes of its name and of the longest size."""


def bridge(data: bytes, stop: int) -> bytes | None:
    """Returns `data` with its gaps bridged; its elements end at `stop`. None if nothing is lost there."""
    if stop >= len(data) or ((place := _next_place(data, stop)) is None and not _is_loss(data, stop)):
        return None
    out = bytearray(data)
    for _ in range(MAX_GAPS):
        if place is None:
            break
        # A recording that begins within a block that was cut through is found there by its decoder.
        if place > stop + 1:
            out[stop:place] = _void(place - stop)
        stop = _walk_end(data, place)
        place = _next_place(data, stop, place)
    return bytes(out)


def _is_loss(data: bytes, stop: int) -> bool:
    """True if what is left is long, and no element that was cut off."""
    found = element(data, stop)
    return len(data) - stop > MIN_LOSS_BYTES and (found is None or found.id not in TOP_LEVEL | CHILDREN)


def _walk_end(data: bytes, at: int) -> int:
    for found in walk(data, at):
        following = after(found)
        if following is None or following > len(data):
            break
        at = following
    return at


def _next_place(data: bytes, stop: int, begin: int = 0) -> int | None:
    """Where a recording, a cluster or a block begins behind `stop`; None if there is none.

    From `begin` to `stop` there are whole elements, but the last may have been cut through: another recording
    may begin within it.
    """
    if stop >= len(data):
        return None
    last = max((found.begin for found in walk(data, begin) if found.begin < stop), default=begin)
    places = (_recordings(data, last + 1), _clusters(data, stop + 1), _blocks(data, stop + 1))
    return min((place for found in places if (place := next(found, None)) is not None), default=None)


def _recordings(data: bytes, at: int) -> Iterator[int]:
    for place in _occurrences(data, EBML.to_bytes(4), at):
        head = data[place : place + 64]
        if b"webm" in head or b"matroska" in head:
            yield place


def _clusters(data: bytes, at: int) -> Iterator[int]:
    for place in _occurrences(data, CLUSTER.to_bytes(4), at):
        found = element(data, place)
        inner = found and element(data, found.body)
        if inner and inner.id in CHILDREN:
            yield place


def _blocks(data: bytes, at: int) -> Iterator[int]:
    for place in _occurrences(data, SIMPLE_BLOCK.to_bytes(1), at):
        if _is_in_a_row(data, element(data, place)):
            yield place


def _is_in_a_row(data: bytes, found: Element | None) -> bool:
    for _ in range(IN_A_ROW):
        if found is None or found.id not in BLOCKS | {CLUSTER} or (following := after(found)) is None:
            return False
        found = element(data, following)
    return True


def _occurrences(data: bytes, marker: bytes, at: int) -> Iterator[int]:
    while (at := data.find(marker, at)) >= 0:
        yield at
        at += 1


def _void(length: int) -> bytes:
    """An element without meaning, of so many bytes: at least two."""
    if length < VOID_HEAD:
        return VOID + bytes([0x80 | length - 2]) + bytes(length - 2)
    return VOID + b"\x01" + (length - VOID_HEAD).to_bytes(7) + bytes(length - VOID_HEAD)
