"""The unit of float samples: part of the decoder's own process.

Full scale is 1. Some programs write 16-bit numbers as floats without scaling them, and a decoder that takes
them as they are hears a square wave. Which unit it is cannot be read anywhere: it is guessed from the loudest
samples, leaving out the few that may be damage.
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
"""Highest byte of float32, without its sign, from 32 on: no recording is so hot."""
SANE_BYTE = 0x4F
"""The same from 2**31 on: no unit is so large."""
UNITS = ((0x47, 2.0**15), (0x4B, 2.0**23), (SANE_BYTE, 2.0**31))
"""Full scale of 16, 24 and 32-bit numbers, and the highest byte of that."""
DAMAGED = 1e-4
"""At most this share of the samples is taken for damage rather than for sound."""


def guess_unit(stream: AudioStream, reopen: Callable[[], InputContainer]) -> float:
    """What full scale is in this track: 1, or the unit of whole numbers. Reads all of it."""
    if not stream.codec_context.codec.canonical_name.startswith(FLOATS):
        return 1.0
    container = reopen()
    counted: Counter[int] = Counter()
    plain: AudioResampler | None = None
    try:
        same = next(each for each in container.streams.audio if each.index == stream.index)
        prepare_stream(same)
        for frame in container.decode(same):
            plain = plain or AudioResampler(
                AudioFormat("flt"), layout=frame.layout.name, rate=frame.sample_rate
            )
            frame.pts = None
            for each in plain.resample(frame):
                size = each.samples * each.layout.nb_channels * 4
                counted.update(bytes(each.planes[0])[3:size:4])
    except (FFmpegError, ValueError):
        pass  # Damage is for the decoding that follows to report.
    return unit_of(counted)


def unit_of(highest: Counter[int]) -> float:
    """The unit of samples, by how often each highest byte occurs."""
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
