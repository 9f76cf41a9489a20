"""Guesses the unit of float samples; runs in the decoder process.

Full scale should be 1. Some programs write 16-bit numbers as floats without scaling, which would clip to a
square wave. No header states the unit: it is guessed from the loudest samples, except for the few that may be
damage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from av.audio.format import AudioFormat
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from batchscribe.audio.decoding.tracks import prepare_stream

FLOATS = ("pcm_f16", "pcm_f24", "pcm_f32", "pcm_f64")
FAR_BYTE = 0x42
"""Highest byte of float32, without its sign, from 32 on: too loud for a scaled recording."""
SANE_BYTE = 0x4F
"""The same from 2**31 on: too large for any unit."""
UNITS = ((0x47, 2.0**15), (0x4B, 2.0**23), (SANE_BYTE, 2.0**31))
"""Highest bytes and full scales of 16, 24 and 32-bit numbers."""
DAMAGED = 1e-4
"""Largest share of samples that counts as damage."""


def guess_unit(stream: AudioStream, reopen: Callable[[], InputContainer]) -> float:
    """Guesses full scale of a track: 1, or integers'. Reads it all."""
    if not stream.codec_context.codec.canonical_name.startswith(FLOATS):
        return 1.0
    container = reopen()
    counted: Counter[int] = Counter()
    plain: AudioResampler | None = None
    try:
        same = next(audio for audio in container.streams.audio if audio.index == stream.index)
        prepare_stream(same)
        for frame in container.decode(same):
            plain = plain or AudioResampler(
                AudioFormat("flt"), layout=frame.layout.name, rate=frame.sample_rate
            )
            frame.pts = None
            for part in plain.resample(frame):
                size = part.samples * part.layout.nb_channels * 4
                counted.update(bytes(part.planes[0])[3:size:4])
    except (FFmpegError, ValueError):
        pass  # The decoding that follows reports the damage.
    return estimate_unit(counted)


def estimate_unit(highest: Counter[int]) -> float:
    """Unit of samples, from the counts of their highest bytes."""
    counted: Counter[int] = Counter()
    for byte, count in highest.items():
        counted[byte & 0x7F] += count
    spare = DAMAGED * counted.total()
    for byte in sorted((byte for byte in counted if byte < SANE_BYTE), reverse=True):
        spare -= counted[byte]
        if spare < 0:
            loudest = byte
            break
    else:
        return 1.0
    if loudest < FAR_BYTE:
        return 1.0
    return next(unit for highest_byte, unit in UNITS if loudest <= highest_byte)
