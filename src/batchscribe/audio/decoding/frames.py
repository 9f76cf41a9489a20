"""Frames from the decoder process: kind (1 byte), length (4 bytes), payload.

The reply to a request is START (JSON, see `audio_decoder.Beginning`), any number of AUDIO (little-endian
float32, channels interleaved), and END (JSON: the conclusion). At any point ERROR (one line for the user) may
replace the rest, or FINAL: the same for files that this decoder never supports.
"""

from __future__ import annotations

import importlib
import struct
from functools import cache

HEADER = struct.Struct(">cI")
HELLO, START, AUDIO, END, ERROR, FINAL = b"H", b"S", b"A", b"E", b"X", b"F"
RULES = 2
"""Increased when the decoder supports more formats: refused files get another attempt."""
SAMPLE_RATE = 16_000
PIECE_SAMPLES = 5 * SAMPLE_RATE
"""Five seconds per frame: the decoder process never holds the whole file."""
BYTES_PER_SAMPLE = 4
SPLIT_CHANNELS = 2
"""Channels of one track that are sent separately on request; more are mixed into these."""
MAX_SENT = 32
"""Most channels that are sent separately: one for each track."""
MAX_PAYLOAD = PIECE_SAMPLES * BYTES_PER_SAMPLE * MAX_SENT


@cache
def decoder_version() -> str:
    """Versions, e.g. `pyav 18.1.0 / ffmpeg 8.1.2 / rules 2`; else empty."""
    try:
        av = importlib.import_module("av")
    except ImportError:
        return ""
    return f"pyav {av.__version__} / ffmpeg {av.ffmpeg_version_info} / rules {RULES}"
