"""What parent and decoding process say to each other: one byte of kind, four of length, the payload.

An order is answered by START (JSON: how the sound begins, see `audio.Beginning`), any number of AUDIO
(little-endian float32; of two channels the samples take turns), and END (JSON: `seconds`, `partial`); or,
instead of what would come next, by ERROR (one line for a person).
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">cI")
HELLO, START, AUDIO, END, ERROR = b"H", b"S", b"A", b"E", b"X"
PIECE_SAMPLES = 16_000 * 5
"""Five seconds travel at a time: the whole file is never held in the decoding process."""
BYTES_PER_SAMPLE = 4
SPLIT_CHANNELS = 2
"""So many are sent apart where that is wanted; of more, the first ones."""
MAX_PAYLOAD = PIECE_SAMPLES * BYTES_PER_SAMPLE * SPLIT_CHANNELS


def channels_sent(channels: int, *, split: bool) -> int:
    """How many channels are sent of a sound that begins with `channels`: 1 or 2."""
    return SPLIT_CHANNELS if split and channels >= SPLIT_CHANNELS else 1
