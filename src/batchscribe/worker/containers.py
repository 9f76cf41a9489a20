"""Chunks as browsers make them: a recording that was cut into files, of which only the first has a header.

MediaRecorder with a timeslice hands out one stream of WebM or fragmented MP4 in pieces. What a piece lacks
is put in front of it again: the header of its recording, and, where the cut went through a cluster, that
cluster's beginning. Nothing of the piece itself is changed, so that its time stamps tell where it belongs.

EBML and WebM: RFC 8794 and RFC 9559. Boxes of MP4: ISO/IEC 14496-12. Opus in both: RFC 6716, RFC 7845.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from batchscribe.errors import AudioError

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
TOP_LEVEL = frozenset({EBML, SEGMENT, CLUSTER, CUES, INFO, TRACKS, 0x114D9B74, 0x1254C367})
CHILDREN = frozenset({TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, 0xAB, 0xA7, 0xEC, 0xBF, 0x5854})
DESCENDED = frozenset({SEGMENT, CLUSTER})
TRACK_ENTRY = 0xAE
CODEC_PRIVATE = 0x63A2
CODEC_DELAY = 0x56AA
TIMESTAMP_SCALE = 0x2AD7B1
OPUS_RATE = 48_000
UNKNOWN_SIZE = b"\x01" + 7 * b"\xff"
BEGINNINGS = (b"RIFF", b"OggS", b"fLaC", b"ID3")
"""Of files that are no pieces, whatever their extension says."""
FRAGMENTS = frozenset({b"moof", b"styp", b"sidx", b"emsg", b"prft"})


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
class Element:
    """An EBML element: where it begins, where its data does, and where it ends; None for unknown."""

    id: int
    begin: int
    body: int
    end: int | None


def _number(data: bytes, at: int, longest: int, *, marker: bool) -> tuple[int, int] | None:
    """A variable-length number and where it ends; None where there is none, or not all of it."""
    if at >= len(data) or data[at] == 0:
        return None
    length = 9 - data[at].bit_length()
    if length > longest or at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length])
    return (value if marker else value & ((1 << 7 * length) - 1)), at + length


def element(data: bytes, at: int) -> Element | None:
    """The element at `at`; None where none can be read."""
    if (name := _number(data, at, 4, marker=True)) is None:
        return None
    if (size := _number(data, name[1], 8, marker=False)) is None:
        return None
    unknown = size[0] == (1 << 7 * (size[1] - name[1])) - 1
    return Element(name[0], at, size[1], None if unknown else size[1] + size[0])


def walk(data: bytes, at: int = 0) -> Iterator[Element]:
    """The elements one after the other, into segments and clusters; the last may be cut off."""
    while (found := element(data, at)) is not None and found.id in TOP_LEVEL | CHILDREN:
        yield found
        if (following := _following(found)) is None or following > len(data):
            return
        at = following


def _following(found: Element) -> int | None:
    """Where the next element begins; None where nobody knows."""
    return found.body if found.id in DESCENDED else found.end


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
    empty: bool = False
    """There is no sound in it, and none is missing: a recorder's index, or a header before its sound."""


def shape(data: bytes) -> Shape:
    """By the first bytes, and no extension: a chunk is often called what it is not."""
    if data[4:8] in FRAGMENTS:
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
    if first is None or (at := _following(first)) is None:
        return False
    following = element(data, at)
    known = following is not None and following.id in TOP_LEVEL | CHILDREN
    # All that is behind it may be the beginning of the next name and size.
    return known or at == len(data) or (at < len(data) < at + 12 and following is None)


def recording(data: bytes) -> Recording | None:
    """What every later chunk of this recording needs; None where `data` does not begin one."""
    return _mp4(data) if data[4:8] == b"ftyp" else _webm(data)


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
    for found in _children(info, element(info, 0)):
        if found.id == TIMESTAMP_SCALE:
            unit = info[found.begin : found.end]
            return INFO.to_bytes(4) + bytes([0x80 | len(unit)]) + unit
    return b""


def _without_delay(tracks: bytes) -> tuple[bytes, float]:
    """The tracks without the delay of their codec, which is dropped once and not in each chunk; and that
    delay, in seconds.
    """
    patched, delay = bytearray(tracks), 0.0
    for entry in _children(tracks, element(tracks, 0)):
        for field in _children(tracks, entry) if entry.id == TRACK_ENTRY else ():
            assert field.end is not None
            value = tracks[field.body : field.end]
            if field.id == CODEC_DELAY:
                delay = int.from_bytes(value) / 1e9
                patched[field.body : field.end] = bytes(len(value))
            if field.id == CODEC_PRIVATE and value.startswith(b"OpusHead"):
                delay = delay or int.from_bytes(value[10:12], "little") / OPUS_RATE
                patched[field.body + 10 : field.body + 12] = bytes(2)
    return bytes(patched), delay


def _children(data: bytes, parent: Element | None) -> Iterator[Element]:
    """The elements in an element that is there as a whole."""
    at = parent.body if parent else len(data)
    while parent and at < (parent.end or 0) and (found := element(data, at)) and found.end is not None:
        yield found
        at = found.end


def boxes(data: bytes, at: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin of the content, and end of each box of an MP4; the last may be cut off."""
    while at + 8 <= len(data):
        size, kind, body = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8]), body + 8
        end = len(data) if size == 0 else at + size
        if end < body:
            return
        yield kind, body, end
        at = end


def within(data: bytes, *path: bytes) -> Iterator[bytes]:
    """The contents of all boxes at the end of the path."""
    for kind, body, end in boxes(data):
        if kind == path[0]:
            content = data[body:end]
            yield from within(content, *path[1:]) if path[1:] else (content,)


def _mp4(data: bytes) -> Recording | None:
    """The beginning of an MP4 that goes on in fragments, without its edit lists: they are about its first
    fragment only.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    for kind, _, end in boxes(data):
        found.setdefault(kind, data[at:end])
        at = end
    goes_on = b"moof" in found or any(within(found.get(b"moov", b""), b"moov", b"mvex"))
    if not (goes_on and {b"ftyp", b"moov"} <= found.keys()):
        return None
    front = found[b"ftyp"] + _without_skip(found[b"moov"].replace(b"edts", b"free"))
    return Recording(front, delay=_edit_delay(data))


def _without_skip(moov: bytes) -> bytes:
    """A description of Opus that leaves nothing out of what is decoded: of each piece that would be lost."""
    patched, at = bytearray(moov), moov.find(b"dOps")
    if at >= 0:
        # Version and channels, a byte each, come before it: Encapsulation of Opus in ISO BMFF, 4.3.2.
        patched[at + 6 : at + 8] = bytes(2)
    return bytes(patched)


def _edit_delay(data: bytes) -> float:
    """How much of the first sound the edit list of an audio track leaves out: what its encoder puts there."""
    for track in within(data, b"moov", b"trak"):
        handlers = [box[8:12] for box in within(track, b"mdia", b"hdlr")]
        lists, clocks = [*within(track, b"edts", b"elst")], [*within(track, b"mdia", b"mdhd")]
        if handlers == [b"soun"] and lists and clocks:
            return _media_time(lists[0]) / max(1, _time_scale(clocks[0]))
    return 0.0


def _media_time(elst: bytes) -> int:
    """Of the last entry, in the track's units: those before it are empty."""
    wide, count = elst[0] == 1, int.from_bytes(elst[4:8])
    length, skip, size = (20, 8, 8) if wide else (12, 4, 4)
    at = 8 + (count - 1) * length + skip
    return max(0, int.from_bytes(elst[at : at + size], signed=True)) if count else 0


def _time_scale(mdhd: bytes) -> int:
    return int.from_bytes(mdhd[20:24] if mdhd[0] == 1 else mdhd[12:16])


def left_behind(data: bytes, at: int, before: Recording) -> Recording:
    """What WebM from `at` on leaves for the next chunk."""
    timestamp = before.timestamp
    for found in walk(data, at):
        following = _following(found)
        if following is None or following > len(data):
            break
        at = following
        if found.id == TIMESTAMP:
            timestamp = int.from_bytes(data[found.body : at])
    return replace(before, timestamp=timestamp, rest=data[at:])


def cluster(timestamp: int) -> bytes:
    """The beginning of a cluster of unknown size."""
    return CLUSTER.to_bytes(4) + UNKNOWN_SIZE + TIMESTAMP.to_bytes(1) + b"\x88" + timestamp.to_bytes(8)


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
            known = _needed(before)
            whole = known.header + data
            return Repaired(whole, repaired=True, torn=False, seen=before, delay=known.delay)
        case Shape.TORN:
            return _torn(data, before)
        case Shape.WHOLE:
            seen = recording(data)
            empty = seen is not None and _only_a_header(data)
            return Repaired(data, repaired=False, torn=False, seen=seen, empty=empty)
        case _:
            return _headed(data, _needed(before))


def _silent(data: bytes, before: Recording | None) -> Repaired:
    """An index has no sound in it; should any follow, it is a piece that is torn."""
    if CLUSTER.to_bytes(4) in data:
        return _torn(data, before)
    return Repaired(data, repaired=False, torn=False, seen=before, empty=True)


def _only_a_header(data: bytes) -> bool:
    """Whether a recording begins with nothing but its description: its sound comes with the next chunk."""
    if data[4:8] == b"ftyp":
        return not any(kind in {b"moof", b"mdat"} for kind, _, _ in boxes(data))
    return not any(found.id in BLOCKS | {CLUSTER} for found in walk(data))


def _needed(before: Recording | None) -> Recording:
    if before is None:
        raise AudioError(
            "it has no header of its own: a piece of a recording whose first chunk is not in its folder"
        )
    return before


def _headed(data: bytes, before: Recording) -> Repaired:
    inside = data[:4] != CLUSTER.to_bytes(4)
    front = before.header + (cluster(before.timestamp or 0) if inside else b"")
    whole = front + data
    seen = left_behind(whole, len(front), before)
    lost = inside and before.timestamp is None
    return Repaired(whole, repaired=True, torn=lost, seen=seen, delay=before.delay)


def _torn(data: bytes, before: Recording | None) -> Repaired:
    """WebM goes on with its next cluster; whatever else it is is left as it is."""
    if before is None or before.header[:4] != EBML.to_bytes(4):
        return Repaired(data, repaired=False, torn=False, seen=None)
    at = data.find(CLUSTER.to_bytes(4))
    if at < 0:
        raise AudioError("no sound that can be told apart: it begins in the middle of a block")
    return replace(_headed(data[at:], before), torn=True)
