"""Repairs browser chunks: only a recording's first one has a header.

MediaRecorder with a timeslice returns one stream of WebM or fragmented MP4 in pieces. The repair prepends the
missing parts: the header of the recording, the pre-roll for its decoder (see preroll), and the beginning of a
cluster that was cut. The piece itself stays unchanged, so that its time stamps show its position.

EBML and WebM: RFC 8794 and RFC 9559. Boxes of MP4: ISO/IEC 14496-12. Opus in both: RFC 6716, RFC 7845.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum

from batchscribe.audio.decoding import fragments, gaps, mp4, preroll
from batchscribe.audio.decoding.ebml import (
    BLOCKS,
    CHILDREN,
    CLUSTER,
    CODEC_DELAY,
    CODEC_PRIVATE,
    EBML,
    INFO,
    SEGMENT,
    SIMPLE_BLOCK,
    TIMESTAMP,
    TIMESTAMP_SCALE,
    TOP_LEVEL,
    TRACK_ENTRY,
    TRACKS,
    UNKNOWN_SIZE,
    begin_cluster,
    find_next,
    iterate_children,
    parse_element,
    walk_elements,
)
from batchscribe.errors import AudioError

OPUS_RATE = 48_000
KEPT_BLOCKS = 64
"""Enough pre-roll for the next piece, even of the shortest blocks, 2.5 ms."""
BEGINNINGS = (b"RIFF", b"OggS", b"fLaC", b"ID3")
"""First bytes of files that are never pieces, whatever their extension."""


class Shape(StrEnum):
    """Kind of a chunk, by its first bytes."""

    WHOLE = "whole"
    """It has its own header, or needs none."""
    CLUSTER = "cluster"
    BLOCK = "block"
    """It begins in the middle of a cluster."""
    FRAGMENT = "fragment"
    """Fragmented MP4 without its beginning."""
    STUB = "stub"
    """An index that a recorder wrote at its stop; a torn piece if audio follows."""
    TORN = "torn"
    """It begins in the middle of an element."""


@dataclass(frozen=True, slots=True)
class Recording:
    """State of a recording after a chunk, for the next chunk."""

    header: bytes
    timestamp: int | None = None
    """Of the cluster that the next chunk may continue."""
    rest: bytes = b""
    """Incomplete element at its end, which the next chunk may continue."""
    delay: float = 0.0
    """Seconds by which the time stamps of its pieces are ahead of their audio."""
    last: tuple[preroll.Block, ...] = ()
    """Its last audio, as pre-roll for the next chunk's decoder. Only for Opus in WebM."""
    tail: fragments.Tail | None = None
    """The same for fragmented MP4."""

    @property
    def cut_through(self) -> bool:
        """True if it ended within an audio block."""
        # The index at the end of a file may be cut, too, but is not needed.
        return self.rest[:1] in {name.to_bytes(1) for name in BLOCKS}

    def continues_in(self, data: bytes) -> bool:
        """True if `data` begins with the rest of the incomplete element."""
        return bool(self.rest) and _is_continued(self.rest + data)


@dataclass(frozen=True, slots=True)
class Repaired:
    """A decodable chunk; `seen`: state for the next one, None if unknown."""

    data: bytes
    repaired: bool
    torn: bool
    """A part of its beginning or end, or its position in the recording, is lost."""
    seen: Recording | None
    delay: float = 0.0
    """See Recording; 0 for a chunk with its own header, from which its decoder knows it."""
    preroll: float = 0.0
    """Seconds of pre-roll at its beginning, from the previous chunk."""
    empty: bool = False
    """It has no audio, and none is missing: a recorder's index, or a header before the audio."""


def detect_shape(data: bytes) -> Shape:
    """Kind of a chunk, by its first bytes; extensions are often wrong."""
    if data[4:8] in mp4.FRAGMENTS:
        return Shape.FRAGMENT
    if data[4:8] == b"ftyp" or data.startswith(BEGINNINGS):
        return Shape.WHOLE
    first = parse_element(data, 0)
    if first is None or first.id not in TOP_LEVEL | CHILDREN:
        return Shape.TORN
    if first.id in CHILDREN:
        return Shape.BLOCK if _is_continued(data) else Shape.TORN
    known = {EBML: Shape.WHOLE, CLUSTER: Shape.CLUSTER}
    return known.get(first.id, Shape.STUB)


def _is_continued(data: bytes) -> bool:
    """True if the first element ends before another one or nothing."""
    first = parse_element(data, 0)
    if first is None or (at := find_next(first)) is None:
        return False
    following = parse_element(data, at)
    known = following is not None and following.id in TOP_LEVEL | CHILDREN
    # The data after it may be an incomplete name and size.
    return known or at == len(data) or (at < len(data) < at + 12 and following is None)


def parse_recording(data: bytes) -> Recording | None:
    """State for later chunks; None if `data` does not begin a recording."""
    if data[4:8] != b"ftyp":
        return _webm_recording(data)
    begun = mp4.parse_beginning(data)
    return Recording(begun[0], delay=begun[1], tail=fragments.parse_tail(data, begun[0])) if begun else None


def _webm_recording(data: bytes) -> Recording | None:
    """State of WebM: EBML header, unsized segment, time unit, and tracks.

    Leaves out lengths and indexes of the whole file, which are wrong for one chunk.
    """
    parts: dict[int, bytes] = {}
    for found in walk_elements(data):
        if found.id in {EBML, INFO, TRACKS} and found.end is not None and found.end <= len(data):
            parts[found.id] = data[found.begin : found.end]
        if found.id == CLUSTER:
            break
    if EBML not in parts or TRACKS not in parts:
        return None
    tracks, delay = _remove_delay(parts[TRACKS])
    front = parts[EBML] + SEGMENT.to_bytes(4) + UNKNOWN_SIZE + _info_with_unit(parts.get(INFO, b"")) + tracks
    return advance_recording(data, 0, Recording(front, delay=delay))


def _info_with_unit(info: bytes) -> bytes:
    """An Info element with only the time unit; empty for the default."""
    for found in iterate_children(info, parse_element(info, 0)):
        if found.id == TIMESTAMP_SCALE:
            unit = info[found.begin : found.end]
            return INFO.to_bytes(4) + bytes([0x80 | len(unit)]) + unit
    return b""


def _remove_delay(tracks: bytes) -> tuple[bytes, float]:
    """Returns the tracks without their codec delay, and that delay.

    The delay, in seconds, applies to the recording and not to each chunk.
    """
    patched, delay = bytearray(tracks), 0.0
    for entry in iterate_children(tracks, parse_element(tracks, 0)):
        for field in iterate_children(tracks, entry) if entry.id == TRACK_ENTRY else ():
            assert field.end is not None
            value = tracks[field.body : field.end]
            if field.id == CODEC_DELAY:
                delay = int.from_bytes(value) / 1e9
                patched[field.body : field.end] = bytes(len(value))
            if field.id == CODEC_PRIVATE and value.startswith(b"OpusHead"):
                delay = delay or int.from_bytes(value[10:12], "little") / OPUS_RATE
                patched[field.body + 10 : field.body + 12] = bytes(2)
    return bytes(patched), delay


def advance_recording(data: bytes, at: int, before: Recording) -> Recording:
    """State of WebM for the next chunk, from `at` on."""
    timestamp, only_opus = before.timestamp, _is_only_opus(before.header)
    blocks = deque(before.last, KEPT_BLOCKS)
    for found in walk_elements(data, at):
        following = find_next(found)
        if following is None or following > len(data):
            break
        at = following
        if found.id == TIMESTAMP:
            timestamp = int.from_bytes(data[found.body : at])
        if found.id == SIMPLE_BLOCK and only_opus:
            one = preroll.parse_block(data[found.begin : at], data[found.body : at], timestamp)
            if one is None:
                blocks.clear()
            else:
                blocks.append(one)
    return replace(before, timestamp=timestamp, rest=data[at:], last=preroll.take_latest(blocks))


def _is_only_opus(header: bytes) -> bool:
    """True if every block is Opus: no other track, such as video."""
    return header.count(b"OpusHead") == 1 and header.count(b"V_") == 0


def repair_chunk(data: bytes, before: Recording | None = None) -> Repaired:
    """Completes a chunk; `before` is the state after the previous chunk.

    Raises AudioError if it has no audio, or its header is not available.
    """
    if before and before.continues_in(data):
        return _prepend_header(before.rest + data, before)
    match detect_shape(data):
        case Shape.STUB if CLUSTER.to_bytes(4) not in data:
            return Repaired(data, repaired=False, torn=False, seen=before, empty=True)
        case Shape.FRAGMENT:
            return _repair_fragment(data, _require_header(before))
        case Shape.TORN | Shape.STUB:
            return _repair_torn(data, before)
        case Shape.WHOLE:
            return _repair_whole(data)
        case _:
            return _prepend_header(data, _require_header(before))


def _repair_whole(data: bytes) -> Repaired:
    seen = parse_recording(data)
    if seen is None:
        return Repaired(data, repaired=False, torn=False, seen=None)
    bridged = gaps.bridge_gaps(data, len(data) - len(seen.rest))
    if bridged is not None:
        return Repaired(bridged, repaired=False, torn=True, seen=parse_recording(bridged))
    return Repaired(data, repaired=False, torn=False, seen=seen, empty=_is_only_header(data))


def _is_only_header(data: bytes) -> bool:
    """True if the recording's audio begins in the next chunk."""
    if data[4:8] == b"ftyp":
        return not mp4.has_sound(data)
    return not any(found.id in BLOCKS | {CLUSTER} for found in walk_elements(data))


def _require_header(before: Recording | None) -> Recording:
    if before is None:
        raise AudioError(
            "it has no header: a piece of a recording without its first chunk in the same folder"
        )
    return before


def _prepend_header(data: bytes, before: Recording) -> Repaired:
    inside = data[:4] != CLUSTER.to_bytes(4)
    begun = begin_cluster(before.timestamp or 0) if inside else b""
    leading = before.last if preroll.leads_to(before.last, _first_time(begun + data)) else ()
    led = b"".join(begin_cluster(block.cluster) + block.data for block in leading)
    front = before.header + led + begun
    whole = front + data
    seen = advance_recording(whole, len(front), before)
    lost = inside and before.timestamp is None
    bridged = gaps.bridge_gaps(whole, len(whole) - len(seen.rest))
    if bridged is not None:
        whole, seen, lost = bridged, advance_recording(bridged, len(front), before), True
    return Repaired(
        whole,
        repaired=True,
        torn=lost,
        seen=seen,
        delay=before.delay,
        preroll=sum(block.seconds for block in leading),
    )


def _repair_fragment(data: bytes, before: Recording) -> Repaired:
    leading = before.tail.make_preroll(data) if before.tail else b""
    return Repaired(
        before.header + leading + data,
        repaired=True,
        torn=False,
        seen=replace(before, tail=fragments.parse_tail(data, before.header)),
        delay=before.delay,
        preroll=before.tail.seconds if before.tail and leading else 0.0,
    )


def _first_time(clusters: bytes) -> float:
    """Time stamp of the first block, in seconds; nan without one."""
    timestamp: int | None = None
    for found in walk_elements(clusters):
        if found.id == TIMESTAMP and found.end is not None:
            timestamp = int.from_bytes(clusters[found.body : found.end])
        if found.id == SIMPLE_BLOCK and timestamp is not None:
            return (timestamp + int.from_bytes(clusters[found.body + 1 : found.body + 3], signed=True)) / 1000
    return math.nan


def _repair_torn(data: bytes, before: Recording | None) -> Repaired:
    """Continues WebM at its next cluster; other formats stay unchanged."""
    if before is None or before.header[:4] != EBML.to_bytes(4):
        return Repaired(data, repaired=False, torn=False, seen=None)
    at = data.find(CLUSTER.to_bytes(4))
    if at < 0:
        raise AudioError("no audio block is complete: it begins in the middle of one")
    return replace(_prepend_header(data[at:], before), torn=True)
