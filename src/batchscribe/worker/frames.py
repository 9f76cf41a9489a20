"""What parent and decoding process say to each other: one byte of kind, four of length, the payload."""

from __future__ import annotations

import struct

HEADER = struct.Struct(">cI")
HELLO, AUDIO, END, ERROR = b"H", b"A", b"E", b"X"
PIECE_SAMPLES = 16_000 * 5
"""Five seconds travel at a time: the whole file is never held in the decoding process."""
BYTES_PER_SAMPLE = 4
MAX_PAYLOAD = PIECE_SAMPLES * BYTES_PER_SAMPLE
