"""Chunks as browsers make them: a recording that was cut into files, of which only the first has a header.

MediaRecorder with a timeslice hands out one stream of WebM or fragmented MP4 in pieces. What a piece lacks
is put in front of it again: the header of its recording, what leads its decoder there (see preroll),
and, where the cut went through a cluster, that cluster's beginning. Nothing of the piece itself is changed,
so that its time stamps tell where it belongs.

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
    after,
    children,
    cluster,
    element,
    walk,
)
from batchscribe.errors import AudioError

OPUS_RATE = 48_000
KEPT_BLOCKS = 64
"""Of 2.5 ms, the shortest: enough to lead a decoder up to the next piece."""
BEGINNINGS = (b"RIFF", b"OggS", b"fLaC", b"ID3")
"""Of files that are no pieces, whatever their extension says."""


class Shape(StrEnum):
    """What a chunk's first bytes say of it."""

    WHOLE = "whole"
    """It has a header of its own, or is of a kind that needs none."""
    CLUSTER = "cluster"
    BLOCK = "block"
    """It begins in the middle of a cluster."""
    FRAGMENT = "fragment"
    """Fragmented MP4 without its beginning."""
    STUB = "stub"
    """An index that a recorder wrote when it was stopped: no sound in it."""
    TORN = "torn"
    """It begins in the middle of something."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What the chunks of a recording leave behind for the one that comes next."""

    header: bytes
    timestamp: int | None = None
    """Of the cluster that the next chunk may go on with."""
    rest: bytes = b""
    """What was begun and not ended: the next chunk may go on with that."""
    delay: float = 0.0
    """Seconds by which the time stamps of its pieces are ahead of their sound."""
    last: tuple[preroll.Block, ...] = ()
    """The sound that it ended with: the next chunk's decoder hears it first. Of Opus in WebM only."""
    tail: fragments.Tail | None = None
    """The same of fragmented MP4."""

    @property
    def cut_through(self) -> bool:
        """Whether it ended within a block of sound."""
        # The index at the end of a file may be cut, too: nobody needs it.
        return self.rest[:1] in {name.to_bytes(1) for name in BLOCKS}

    def goes_on_with(self, data: bytes) -> bool:
        """Whether `data` begins with the end of what was begun."""
        return bool(self.rest) and _goes_on(self.rest + data)


@dataclass(frozen=True, slots=True)
class Repaired:
    """A chunk that can be decoded by itself. `seen` is for the next one, None where it tells nothing."""

    data: bytes
    repaired: bool
    torn: bool
    """Something of its beginning or of its end, or its place in the recording, is lost."""
    seen: Recording | None
    delay: float = 0.0
    """See Recording; 0 for a chunk with a header of its own, which tells its decoder."""
    preroll: float = 0.0
    """Seconds of sound at its beginning that are not its own, but lead its decoder there."""
    empty: bool = False
    """There is no sound in it, and none is missing: a recorder's index, or a header before its sound."""


def shape(data: bytes) -> Shape:
    """By the first bytes, and no extension: a chunk is often called what it is not."""
    if data[4:8] in mp4.FRAGMENTS:
        return Shape.FRAGMENT
    if data[4:8] == b"ftyp" or data.startswith(BEGINNINGS):
        return Shape.WHOLE
    first = element(data, 0)
    if first is None or first.id not in TOP_LEVEL | CHILDREN:
        return Shape.TORN
    if first.id in CHILDREN:
        return Shape.BLOCK if _goes_on(data) else Shape.TORN
    known = {EBML: Shape.WHOLE, CLUSTER: Shape.CLUSTER}
    return known.get(first.id, Shape.STUB)


def _goes_on(data: bytes) -> bool:
    """Whether the first element has an end, and behind it is another one or nothing."""
    first = element(data, 0)
    if first is None or (at := after(first)) is None:
        return False
    following = element(data, at)
    known = following is not None and following.id in TOP_LEVEL | CHILDREN
    # All that is behind it may be the beginning of the next name and size.
    return known or at == len(data) or (at < len(data) < at + 12 and following is None)


def recording(data: bytes) -> Recording | None:
    """What every later chunk of this recording needs; None where `data` does not begin one."""
    if data[4:8] != b"ftyp":
        return _webm(data)
    begun = mp4.beginning(data)
    return Recording(begun[0], delay=begun[1], tail=fragments.tail(data, begun[0])) if begun else None


def _webm(data: bytes) -> Recording | None:
    """EBML header, segment of unknown size, the unit of its time stamps, and what describes the tracks.

    Lengths and indexes of the whole file are left out: they are not true of one chunk.
    """
    parts: dict[int, bytes] = {}
    for found in walk(data):
        if found.id in {EBML, INFO, TRACKS} and found.end is not None and found.end <= len(data):
            parts[found.id] = data[found.begin : found.end]
        if found.id == CLUSTER:
            break
    if EBML not in parts or TRACKS not in parts:
        return None
    tracks, delay = _without_delay(parts[TRACKS])
    front = parts[EBML] + SEGMENT.to_bytes(4) + UNKNOWN_SIZE + _unit(parts.get(INFO, b"")) + tracks
    return left_behind(data, 0, Recording(front, delay=delay))


def _unit(info: bytes) -> bytes:
    """An Info element that has the unit of time stamps only; empty where that is left at its default."""
    for found in children(info, element(info, 0)):
        if found.id == TIMESTAMP_SCALE:
            unit = info[found.begin : found.end]
            return INFO.to_bytes(4) + bytes([0x80 | len(unit)]) + unit
    return b""


def _without_delay(tracks: bytes) -> tuple[bytes, float]:
    """The tracks without the delay of their codec, which is dropped once and not in each chunk; and that
    delay, in seconds.
    """
    patched, delay = bytearray(tracks), 0.0
    for entry in children(tracks, element(tracks, 0)):
        for field in children(tracks, entry) if entry.id == TRACK_ENTRY else ():
            assert field.end is not None
            value = tracks[field.body : field.end]
            if field.id == CODEC_DELAY:
                delay = int.from_bytes(value) / 1e9
                patched[field.body : field.end] = bytes(len(value))
            if field.id == CODEC_PRIVATE and value.startswith(b"OpusHead"):
                delay = delay or int.from_bytes(value[10:12], "little") / OPUS_RATE
                patched[field.body + 10 : field.body + 12] = bytes(2)
    return bytes(patched), delay


def left_behind(data: bytes, at: int, before: Recording) -> Recording:
    """What WebM from `at` on leaves for the next chunk."""
    timestamp, only_opus = before.timestamp, _only_opus(before.header)
    blocks = deque(before.last, KEPT_BLOCKS)
    for found in walk(data, at):
        following = after(found)
        if following is None or following > len(data):
            break
        at = following
        if found.id == TIMESTAMP:
            timestamp = int.from_bytes(data[found.body : at])
        if found.id == SIMPLE_BLOCK and only_opus:
            one = preroll.block(data[found.begin : at], data[found.body : at], timestamp)
            if one is None:
                blocks.clear()
            else:
                blocks.append(one)
    return replace(before, timestamp=timestamp, rest=data[at:], last=preroll.latest(blocks))


def _only_opus(header: bytes) -> bool:
    """Whether every block is a packet of Opus: there is no other track, such as a picture."""
    return header.count(b"OpusHead") == 1 and header.count(b"V_") == 0


def repair(data: bytes, before: Recording | None = None) -> Repaired:
    """The chunk with what it lacks; `before` is what the chunk right before it left behind.

    Raises AudioError where it lacks what nobody has: no sound, or no header.
    """
    if before and before.goes_on_with(data):
        return _headed(before.rest + data, before)
    match shape(data):
        case Shape.STUB:
            return _silent(data, before)
        case Shape.FRAGMENT:
            return _fragment(data, _needed(before))
        case Shape.TORN:
            return _torn(data, before)
        case Shape.WHOLE:
            return _whole(data)
        case _:
            return _headed(data, _needed(before))


def _whole(data: bytes) -> Repaired:
    seen = recording(data)
    if seen is None:
        return Repaired(data, repaired=False, torn=False, seen=None)
    bridged = gaps.bridge(data, len(data) - len(seen.rest))
    if bridged is not None:
        return Repaired(bridged, repaired=False, torn=True, seen=recording(bridged))
    return Repaired(data, repaired=False, torn=False, seen=seen, empty=_only_a_header(data))


def _silent(data: bytes, before: Recording | None) -> Repaired:
    """An index has no sound in it; should any follow, it is a piece that is torn."""
    if CLUSTER.to_bytes(4) in data:
        return _torn(data, before)
    return Repaired(data, repaired=False, torn=False, seen=before, empty=True)


def _only_a_header(data: bytes) -> bool:
    """Whether a recording begins with nothing but its description: its sound comes with the next chunk."""
    if data[4:8] == b"ftyp":
        return not mp4.has_sound(data)
    return not any(found.id in BLOCKS | {CLUSTER} for found in walk(data))


def _needed(before: Recording | None) -> Recording:
    if before is None:
        raise AudioError(
            "it has no header of its own: a piece of a recording whose first chunk is not in its folder"
        )
    return before


def _headed(data: bytes, before: Recording) -> Repaired:
    inside = data[:4] != CLUSTER.to_bytes(4)
    begun = cluster(before.timestamp or 0) if inside else b""
    leading = before.last if preroll.leads_to(before.last, _first_time(begun + data)) else ()
    led = b"".join(cluster(block.cluster) + block.data for block in leading)
    front = before.header + led + begun
    whole = front + data
    seen = left_behind(whole, len(front), before)
    lost = inside and before.timestamp is None
    bridged = gaps.bridge(whole, len(whole) - len(seen.rest))
    if bridged is not None:
        whole, seen, lost = bridged, left_behind(bridged, len(front), before), True
    return Repaired(
        whole,
        repaired=True,
        torn=lost,
        seen=seen,
        delay=before.delay,
        preroll=sum(block.seconds for block in leading),
    )


def _fragment(data: bytes, before: Recording) -> Repaired:
    leading = before.tail.leading_to(data) if before.tail else b""
    return Repaired(
        before.header + leading + data,
        repaired=True,
        torn=False,
        seen=replace(before, tail=fragments.tail(data, before.header)),
        delay=before.delay,
        preroll=before.tail.seconds if before.tail and leading else 0.0,
    )


def _first_time(clusters: bytes) -> float:
    """The time stamp of the first block, in seconds; not a number where there is none."""
    timestamp: int | None = None
    for found in walk(clusters):
        if found.id == TIMESTAMP and found.end is not None:
            timestamp = int.from_bytes(clusters[found.body : found.end])
        if found.id == SIMPLE_BLOCK and timestamp is not None:
            return (timestamp + int.from_bytes(clusters[found.body + 1 : found.body + 3], signed=True)) / 1000
    return math.nan


def _torn(data: bytes, before: Recording | None) -> Repaired:
    """WebM goes on with its next cluster; whatever else it is is left as it is."""
    if before is None or before.header[:4] != EBML.to_bytes(4):
        return Repaired(data, repaired=False, torn=False, seen=None)
    at = data.find(CLUSTER.to_bytes(4))
    if at < 0:
        raise AudioError("no sound that can be told apart: it begins in the middle of a block")
    return replace(_headed(data[at:], before), torn=True)
