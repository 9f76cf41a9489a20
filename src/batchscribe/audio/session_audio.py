"""Audio of sessions for people: decoded chunks on one clock, as MP3.

Every browser plays MP3, and at a constant bitrate it seeks without an index; Opus in WebM would be a third
smaller, but older Safari does not play it. 32 kbit/s mono keep 16 kHz speech clear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from typing import Self

import av
import numpy as np

from batchscribe.audio.audio_decoder import AudioDecoder, Samples
from batchscribe.audio.decoding.recordings import Recordings
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.protocols import Store

BITRATE = 32_000
"""Bits per second."""
FAST = {"compression_level": "7"}
"""LAME's fastest search: 300 times real time on one core, half the time of its default."""
PIECE = 5 * SAMPLE_RATE
"""Samples of silence yielded at once."""


class ChunkDecoder:
    """Context manager that decodes chunks of one store. Not thread-safe."""

    def __init__(self, source: Store, *, max_bytes: int, max_seconds: float) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._recordings = Recordings(source, limit=max_bytes)
        self._decoder = AudioDecoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def decode(self, key: str) -> Iterator[Samples]:
        """Yields the chunk's audio from its file's begin: (n,), float32, 16 kHz.

        Raises what Store.get raises, AudioError, and MisconfiguredError without a decoder.
        """
        repaired = self._recordings.repair(key, self._source.get(key, limit=self._max_bytes).data)
        if repaired.empty:
            return
        decoding = self._decoder.decode(repaired.data, max_seconds=self._max_seconds, skip=repaired.preroll)
        for number, piece in enumerate(decoding):
            if not number and decoding.beginning is not None:
                yield from make_silence(round(decoding.beginning.lead * SAMPLE_RATE))
            yield piece if piece.ndim == 1 else piece.mean(axis=1, dtype=np.float32)


def place_chunks(chunks: Iterable[tuple[float, Iterable[Samples]]], duration: float) -> Iterator[Samples]:
    """Yields chunks at their offsets (seconds) as one signal of `duration` seconds.

    Gaps become silence; the beginning of a chunk that overlaps the previous one is left out.
    """
    at, end = 0, round(duration * SAMPLE_RATE)
    for offset, pieces in chunks:
        begin = min(round(offset * SAMPLE_RATE), end)
        yield from make_silence(begin - at)
        skipped, at = max(0, at - begin), max(at, begin)
        for piece in pieces:
            kept = piece[skipped : skipped + end - at]
            skipped = max(0, skipped - len(piece))
            at += len(kept)
            yield kept
    yield from make_silence(end - at)


def make_silence(samples: int) -> Iterator[Samples]:
    """Yields silence in pieces; nothing if `samples` is not positive."""
    for begin in range(0, samples, PIECE):
        yield np.zeros(min(PIECE, samples - begin), np.float32)


def encode_mp3(pieces: Iterable[Samples]) -> bytes:
    """Encodes 16 kHz mono audio as an MP3 file of BITRATE."""
    file, at = BytesIO(), 0
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono", options=FAST)
        stream.bit_rate = BITRATE
        for piece in pieces:
            pcm = (np.clip(piece, -1, 1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16p", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, at, Fraction(1, SAMPLE_RATE)
            at += len(pcm)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
