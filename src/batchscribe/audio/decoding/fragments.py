"""The last samples of a fragmented MP4, as a fragment of their own that leads a decoder to the next chunk.

Movie fragments: ISO/IEC 14496-12, 8.8. A browser's have one track, one run of samples each, and offsets that
count from the fragment's first byte; of anything else nothing is made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from batchscribe.audio.decoding.mp4 import boxes, time_scale, within
from batchscribe.audio.decoding.preroll import ENOUGH, packet_seconds

BASE_IS_FRAGMENT = 0x020000
HAS_BASE, HAS_DESCRIPTION, HAS_DURATION, HAS_SIZE = 0x01, 0x02, 0x08, 0x10
"""What a `tfhd` has, by its flags."""
HAS_OFFSET, HAS_FIRST_FLAGS = 0x001, 0x004
EACH = (0x100, 0x200, 0x400, 0x800)
"""What a `trun` has for each sample: its duration, its size, its flags, and when it is shown."""
NEAR = 0.05
"""Seconds. Browsers write when they got a packet, and the last one's duration is a guess."""


@dataclass(frozen=True, slots=True)
class Sample:
    data: bytes
    duration: int
    """In the track's units, as it was written."""
    seconds: float
    """Of its sound."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last samples of a chunk's last fragment, and where the next one must begin to go on with them."""

    track: int
    scale: int
    """Units a second."""
    ends: int
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        return sum(sample.seconds for sample in self.samples)

    def leading_to(self, data: bytes) -> bytes:
        """The fragment that ends where `data` begins; empty where that is not right behind it."""
        begins = next((_time(tfdt) for tfdt in within(data, b"moof", b"traf", b"tfdt")), None)
        if begins is None or abs(begins - self.ends) > NEAR * self.scale:
            return b""
        lengths = [round(sample.seconds * self.scale) for sample in self.samples]
        time = begins - sum(lengths)
        return self._written(time, lengths) if time >= 0 else b""

    def _written(self, time: int, lengths: Sequence[int]) -> bytes:
        sizes = [len(sample.data) for sample in self.samples]
        table = b"".join(struct.pack(">II", *each) for each in zip(lengths, sizes, strict=True))
        head = struct.pack(">II", BASE_IS_FRAGMENT, self.track)
        fields = _box(b"tfhd", head) + _box(b"tfdt", struct.pack(">IQ", 1 << 24, time))
        flags = HAS_OFFSET | EACH[0] | EACH[1]
        # The offset, which counts from here to behind the head of `mdat`, is in the box that it counts.
        length = len(_box(b"mfhd", bytes(8))) + len(fields) + 8 + 20 + len(table) + 8
        run = _box(b"trun", struct.pack(">III", flags, len(sizes), length + 8) + table)
        moof = _box(b"moof", _box(b"mfhd", bytes(8)) + _box(b"traf", fields + run))
        return moof + _box(b"mdat", b"".join(sample.data for sample in self.samples))


def tail(data: bytes, header: bytes) -> Tail | None:
    """What the last whole fragment of `data` ends with; `header` describes its track. None where it is not
    as a browser writes it.
    """
    scales = [time_scale(box) for box in within(header, b"moov", b"trak", b"mdia", b"mdhd")]
    last = _last_fragment(data)
    if last is None or len(scales) != 1 or not scales[0]:
        return None
    moof, content = last
    heads, runs = ([*within(moof, b"traf", name)] for name in (b"tfhd", b"trun"))
    times = [_time(tfdt) for tfdt in within(moof, b"traf", b"tfdt")]
    if not (len(heads) == len(runs) == len(times) == 1) or not _flags(heads[0]) & BASE_IS_FRAGMENT:
        return None
    samples = list(_samples(heads[0], runs[0], content, scales[0], is_opus=b"dOps" in header))
    if not samples or not all(sample.data and sample.seconds for sample in samples):
        return None
    ends = times[0] + sum(sample.duration for sample in samples[:-1]) + round(samples[-1].seconds * scales[0])
    return Tail(int.from_bytes(heads[0][4:8]), scales[0], ends, _enough(samples))


def _enough(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """As many of the last as a decoder needs."""
    lengths = accumulate(sample.seconds for sample in reversed(samples))
    count = next((number for number, length in enumerate(lengths, 1) if length >= ENOUGH), len(samples))
    return tuple(samples[-count:])


def _last_fragment(data: bytes) -> tuple[bytes, bytes] | None:
    """The content of the last `moof` with its `mdat` behind it, and all bytes from the `moof` on."""
    found, moof, at = None, None, 0
    for kind, body, end in boxes(data):
        if kind == b"moof":
            moof = at, body, end
        if kind == b"mdat" and moof and end <= len(data):
            found = data[moof[1] : moof[2]], data[moof[0] : end]
        at = end
    return found


def _samples(tfhd: bytes, trun: bytes, content: bytes, scale: int, *, is_opus: bool) -> Iterator[Sample]:
    """The samples of a run. It ends early where the table is shorter than it says."""
    flags, count = _flags(trun), int.from_bytes(trun[4:8])
    at = 8 + 4 * bool(flags & HAS_OFFSET) + 4 * bool(flags & HAS_FIRST_FLAGS)
    place = int.from_bytes(trun[8:12], signed=True) if flags & HAS_OFFSET else 0
    columns = [bit for bit in EACH if flags & bit]
    usual = _usual(tfhd)
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


def _usual(tfhd: bytes) -> dict[int, int]:
    """Duration and size of samples that do not state theirs, 0 where that is not said here."""
    flags = _flags(tfhd)
    at = 8 + 8 * bool(flags & HAS_BASE) + 4 * bool(flags & HAS_DESCRIPTION)
    duration = int.from_bytes(tfhd[at : at + 4]) if flags & HAS_DURATION else 0
    at += 4 * bool(flags & HAS_DURATION)
    return {EACH[0]: duration, EACH[1]: int.from_bytes(tfhd[at : at + 4]) if flags & HAS_SIZE else 0}


def _flags(box: bytes) -> int:
    """Of a box with a version in its first byte and flags in the next three."""
    return int.from_bytes(box[1:4])


def _time(tfdt: bytes) -> int:
    return int.from_bytes(tfdt[4:12] if tfdt[:1] == b"\x01" else tfdt[4:8])


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content
