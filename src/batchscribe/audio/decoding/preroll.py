"""What a decoder must have heard to go on behind a cut as if there were none.

Opus predicts each packet from those before it: begun anew in the middle of a recording, it is wrong for some
80 ms, and not the same for twice as long. AAC needs the frame before. So the last packets of one piece come
before the next piece, too, and their sound is left out again. RFC 7845, 4.6 and RFC 6716, 3.1. Here is how
WebM has them; see `fragments` for MP4.
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
    """A SimpleBlock as it was written, and the time stamps of its cluster and, within that, of itself."""

    data: bytes
    cluster: int
    relative: int
    seconds: float

    @property
    def timestamp(self) -> float:
        """Of its first sample, if the unit of time stamps is the usual millisecond."""
        return (self.cluster + self.relative) / 1000


def block(whole: bytes, content: bytes, cluster: int | None) -> Block | None:
    """A SimpleBlock; None where it has more in it than one packet of Opus."""
    # One byte names the track, two the time, one what it is like; laced blocks hold several packets.
    if cluster is None or len(content) < 5 or not content[0] & 0x80 or content[3] & LACED:
        return None
    seconds = packet_seconds(content[4:])
    relative = int.from_bytes(content[1:3], signed=True)
    return Block(whole, cluster, relative, seconds) if seconds else None


def packet_seconds(packet: bytes) -> float:
    """How long the sound of an Opus packet is; 0 where it is none."""
    mode, code = packet[0] >> 3, packet[0] & 3
    short = HYBRID[mode & 1] if mode < 16 else CELT[mode & 3]
    frame = SILK[mode & 3] if mode < 12 else short
    count = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[code]
    return count * frame


def latest(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """The last ones, as many as are enough; none where something is missing between them."""
    kept: list[Block] = []
    for one in reversed(tuple(blocks)):
        if kept and (sum(each.seconds for each in kept) >= ENOUGH or not _adjacent(one, kept[0].timestamp)):
            break
        kept.insert(0, one)
    return tuple(kept)


def leads_to(blocks: tuple[Block, ...], timestamp: float) -> bool:
    """Whether the sound at `timestamp` comes right behind the last of them."""
    return bool(blocks) and _adjacent(blocks[-1], timestamp)


def _adjacent(before: Block, timestamp: float) -> bool:
    return abs(before.timestamp + before.seconds - timestamp) <= NEAR
