"""Pre-roll: packets of the last chunk, decoded before the next one.

So a cut has no effect. Opus predicts each packet from earlier ones: started in the middle of a recording, it
is wrong for about 80 ms, and differs for twice as long. AAC needs the previous frame. So the last packets of
one chunk precede the next chunk, and their audio is dropped. RFC 7845, 4.6 and RFC 6716, 3.1. This is for
WebM; see `fragments` for MP4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ENOUGH = 0.16
"""Seconds."""
NEAR = 0.005
"""Time stamps are whole milliseconds."""
LACED = 0x06
SILK, HYBRID, CELT = (0.01, 0.02, 0.04, 0.06), (0.01, 0.02), (0.0025, 0.005, 0.01, 0.02)
"""Seconds of a frame, by the mode of a packet."""


@dataclass(frozen=True, slots=True)
class Block:
    """A SimpleBlock's bytes, its cluster's time stamp, and its relative one."""

    data: bytes
    cluster: int
    relative: int
    seconds: float

    @property
    def timestamp(self) -> float:
        """Time of its first sample, if time stamps are in milliseconds."""
        return (self.cluster + self.relative) / 1000


def parse_block(whole: bytes, content: bytes, cluster: int | None) -> Block | None:
    """Parses a SimpleBlock; None unless it contains exactly one Opus packet."""
    # One byte of track number, two of time, one of flags; laced blocks contain several packets.
    if cluster is None or len(content) < 5 or not content[0] & 0x80 or content[3] & LACED:
        return None
    seconds = packet_seconds(content[4:])
    relative = int.from_bytes(content[1:3], signed=True)
    return Block(whole, cluster, relative, seconds) if seconds else None


def packet_seconds(packet: bytes) -> float:
    """Seconds of an Opus packet; 0 if invalid."""
    mode, code = packet[0] >> 3, packet[0] & 3
    short = HYBRID[mode & 1] if mode < 16 else CELT[mode & 3]
    frame = SILK[mode & 3] if mode < 12 else short
    count = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[code]
    return count * frame


def take_latest(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """The last adjacent blocks, as many as a decoder needs."""
    kept: list[Block] = []
    for one in reversed(tuple(blocks)):
        if kept and (
            sum(item.seconds for item in kept) >= ENOUGH or not _is_adjacent(one, kept[0].timestamp)
        ):
            break
        kept.insert(0, one)
    return tuple(kept)


def leads_to(blocks: tuple[Block, ...], timestamp: float) -> bool:
    """True if the audio at `timestamp` directly follows the last block."""
    return bool(blocks) and _is_adjacent(blocks[-1], timestamp)


def _is_adjacent(before: Block, timestamp: float) -> bool:
    return abs(before.timestamp + before.seconds - timestamp) <= NEAR
