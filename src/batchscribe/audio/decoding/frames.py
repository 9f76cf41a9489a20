"""What parent and decoding process say to each other: one byte of kind, four of length, the payload.

An order is answered by START (JSON: how the sound begins, see `audio.Beginning`), any number of AUDIO
(little-endian float32; of several channels the samples take turns), and END (JSON: how it ended); or, instead
of what would come next, by ERROR (one line for the user), or FINAL: the same for what is never decoded here.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">cI")
HELLO, START, AUDIO, END, ERROR, FINAL = b"H", b"S", b"A", b"E", b"X", b"F"
RULES = 2
"""Counts up when more is decoded than before: what was refused once gets another attempt."""
SAMPLE_RATE = 16_000
PIECE_SAMPLES = 5 * SAMPLE_RATE
"""Five seconds travel at a time: the whole file is never held in the decoding process."""
BYTES_PER_SAMPLE = 4
SPLIT_CHANNELS = 2
"""So many channels of one track are sent apart if that is wanted; more are mixed into these."""
MAX_SENT = 32
"""Channels that are sent apart at most: one for each track."""
MAX_PAYLOAD = PIECE_SAMPLES * BYTES_PER_SAMPLE * MAX_SENT
