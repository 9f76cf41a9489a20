"""Pre-roll of fragmented MP4: a chunk's last samples as a fragment.

Movie fragments: ISO/IEC 14496-12, 8.8. Browsers write one track, one run of samples per fragment, and offsets
from the fragment's first byte; other forms get no pre-roll.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from batchscribe.audio.decoding.mp4 import find_boxes, iterate_boxes, time_scale
from batchscribe.audio.decoding.preroll import ENOUGH, packet_seconds

BASE_IS_FRAGMENT = 0x020000
HAS_BASE, HAS_DESCRIPTION, HAS_DURATION, HAS_SIZE = 0x01, 0x02, 0x08, 0x10
"""Flags of the fields in a `tfhd`."""
HAS_OFFSET, HAS_FIRST_FLAGS = 0x001, 0x004
EACH = (0x100, 0x200, 0x400, 0x800)
"""Flags of a `trun`'s fields per sample: duration, size, flags, composition offset."""
NEAR = 0.05
"""Seconds. Browsers write arrival times of packets, and guess the last one's duration."""


@dataclass(frozen=True, slots=True)
class Sample:
    data: bytes
    duration: int
    """In the track's units, as stored."""
    seconds: float
    """Of its audio."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last samples of a chunk, and the begin of their continuation."""

    track: int
    scale: int
    """Units per second."""
    ends: int
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        return sum(sample.seconds for sample in self.samples)

    def make_preroll(self, data: bytes) -> bytes:
        """Fragment that ends at the begin of `data`; empty unless adjacent."""
        begins = next((_decode_time(tfdt) for tfdt in find_boxes(data, b"moof", b"traf", b"tfdt")), None)
        if begins is None or abs(begins - self.ends) > NEAR * self.scale:
            return b""
        lengths = [round(sample.seconds * self.scale) for sample in self.samples]
        time = begins - sum(lengths)
        return self._build_fragment(time, lengths) if time >= 0 else b""

    def _build_fragment(self, time: int, lengths: Sequence[int]) -> bytes:
        sizes = [len(sample.data) for sample in self.samples]
        table = b"".join(struct.pack(">II", *each) for each in zip(lengths, sizes, strict=True))
        head = struct.pack(">II", BASE_IS_FRAGMENT, self.track)
        fields = _make_box(b"tfhd", head) + _make_box(b"tfdt", struct.pack(">IQ", 1 << 24, time))
        flags = HAS_OFFSET | EACH[0] | EACH[1]
        # The offset to the content of `mdat` includes the box that contains it.
        header = _make_box(b"mfhd", bytes(8))
        length = len(header) + len(fields) + 8 + 20 + len(table) + 8
        run = _make_box(b"trun", struct.pack(">III", flags, len(sizes), length + 8) + table)
        moof = _make_box(b"moof", header + _make_box(b"traf", fields + run))
        return moof + _make_box(b"mdat", b"".join(sample.data for sample in self.samples))


def parse_tail(data: bytes, header: bytes) -> Tail | None:
    """Tail of the last complete fragment of `data`; `header` describes its track.

    None if it has another form than browsers write.
    """
    scales = [time_scale(box) for box in find_boxes(header, b"moov", b"trak", b"mdia", b"mdhd")]
    last = _last_fragment(data)
    if last is None or len(scales) != 1 or not scales[0]:
        return None
    moof, content = last
    heads, runs = ([*find_boxes(moof, b"traf", name)] for name in (b"tfhd", b"trun"))
    times = [_decode_time(tfdt) for tfdt in find_boxes(moof, b"traf", b"tfdt")]
    if not (len(heads) == len(runs) == len(times) == 1) or not _box_flags(heads[0]) & BASE_IS_FRAGMENT:
        return None
    samples = list(_parse_samples(heads[0], runs[0], content, scales[0], is_opus=b"dOps" in header))
    if not samples or not all(sample.data and sample.seconds for sample in samples):
        return None
    ends = times[0] + sum(sample.duration for sample in samples[:-1]) + round(samples[-1].seconds * scales[0])
    return Tail(int.from_bytes(heads[0][4:8]), scales[0], ends, _last_samples(samples))


def _last_samples(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The last samples, as many as a decoder needs."""
    lengths = accumulate(sample.seconds for sample in reversed(samples))
    count = next((number for number, length in enumerate(lengths, 1) if length >= ENOUGH), len(samples))
    return tuple(samples[-count:])


def _last_fragment(data: bytes) -> tuple[bytes, bytes] | None:
    """Content of the last complete `moof`, and all bytes of its fragment."""
    found, moof, at = None, None, 0
    for kind, body, end in iterate_boxes(data):
        if kind == b"moof":
            moof = at, body, end
        if kind == b"mdat" and moof and end <= len(data):
            found = data[moof[1] : moof[2]], data[moof[0] : end]
        at = end
    return found


def _parse_samples(
    tfhd: bytes, trun: bytes, content: bytes, scale: int, *, is_opus: bool
) -> Iterator[Sample]:
    """Yields a run's samples; ends early if the table is truncated."""
    flags, count = _box_flags(trun), int.from_bytes(trun[4:8])
    at = 8 + 4 * bool(flags & HAS_OFFSET) + 4 * bool(flags & HAS_FIRST_FLAGS)
    place = int.from_bytes(trun[8:12], signed=True) if flags & HAS_OFFSET else 0
    columns = [bit for bit in EACH if flags & bit]
    usual = _parse_defaults(tfhd)
    for _ in range(count):
        row = trun[at : at + 4 * len(columns)]
        if len(row) < 4 * len(columns) or place > len(content):
            return
        known = usual | dict(zip(columns, struct.unpack(f">{len(columns)}I", row), strict=True))
        duration, size = known[EACH[0]], known[EACH[1]]
        if not size:
            return
        data = content[place : place + size] if place > 0 else b""
        seconds = packet_seconds(data) if is_opus and data else duration / scale
        yield Sample(data, duration, seconds)
        at, place = at + len(row), place + size


def _parse_defaults(tfhd: bytes) -> dict[int, int]:
    """Default duration and size of samples; 0 if not stated."""
    flags = _box_flags(tfhd)
    at = 8 + 8 * bool(flags & HAS_BASE) + 4 * bool(flags & HAS_DESCRIPTION)
    duration = int.from_bytes(tfhd[at : at + 4]) if flags & HAS_DURATION else 0
    at += 4 * bool(flags & HAS_DURATION)
    return {EACH[0]: duration, EACH[1]: int.from_bytes(tfhd[at : at + 4]) if flags & HAS_SIZE else 0}


def _box_flags(box: bytes) -> int:
    """Flags of a box, after a version in the first byte."""
    return int.from_bytes(box[1:4])


def _decode_time(tfdt: bytes) -> int:
    return int.from_bytes(tfdt[4:12] if tfdt[:1] == b"\x01" else tfdt[4:8])


def _make_box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content
