"""Decoding progress of a file and its recordings, in the decoder process."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from av.audio.frame import AudioFrame

from batchscribe.audio.decoding.frames import BYTES_PER_SAMPLE, PIECE_SAMPLES, SAMPLE_RATE
from batchscribe.audio.decoding.tracks import RefusedTrackError

PIECE_BYTES = PIECE_SAMPLES * BYTES_PER_SAMPLE
INTACT_SECONDS = 1.0
"""Undamaged beginning from which on a part is accepted, however much after it is damaged."""
LOUDEST = 2.0**31
"""Limit of plausible samples in any unit; the squares of larger numbers are soon not finite."""
SANE = bytes(byte for byte in range(256) if byte & 0x7F < 0x4F)
"""Highest bytes of float32 below LOUDEST: sign and most of the exponent."""


class TooLongError(RefusedTrackError):
    """All parts together have more audio than the request allows."""

    def __init__(self, max_samples: int) -> None:
        super().__init__(f"longer than the limit of {max_samples / SAMPLE_RATE / 3600:g} hours of audio")


@dataclass
class DecodingProgress:
    """State of the decoding of one input."""

    max_samples: int
    send: Callable[[bytes], None]
    channels: int = 1
    """Channels sent. Samples count once for all channels, except `not_numbers`."""
    samples: int = 0
    good: int = 0
    bad: int = 0
    not_numbers: int = 0
    damaged: bool = False
    begun: bool = False
    """True if START was sent."""
    part: int = 0
    """`samples` at the begin of the current part; `good`, `bad` and `unbroken` are of that part."""
    unbroken: int | None = None
    """`samples` at its first damage."""
    pending: bytearray = field(default_factory=bytearray)

    @property
    def part_seconds(self) -> float:
        return (self.samples - self.part) / SAMPLE_RATE

    @property
    def seconds_left(self) -> float:
        """Remaining seconds of the request's limit."""
        return (self.max_samples - self.samples) / SAMPLE_RATE

    def begin_part(self) -> None:
        self.part, self.good, self.bad, self.unbroken = self.samples, 0, 0, None

    def count_bad(self) -> None:
        """Counts a damaged packet."""
        self.bad += 1
        self.unbroken = self.samples if self.unbroken is None else self.unbroken

    def add_frame(self, frame: AudioFrame) -> None:
        """Counts and sends a resampled frame. Raises TooLongError beyond the limit."""
        size = frame.samples * BYTES_PER_SAMPLE * self.channels
        self.add(frame.samples, memoryview(frame.planes[0])[:size])

    def add_silence(self, samples: int) -> None:
        """Counts and sends a hole. Raises TooLongError beyond the limit."""
        for begin in range(0, samples, PIECE_SAMPLES):
            some = min(PIECE_SAMPLES, samples - begin)
            self.add(some, bytes(some * BYTES_PER_SAMPLE * self.channels))

    def add(self, samples: int, data: bytes | memoryview) -> None:
        """Counts and sends samples. Raises TooLongError beyond the limit."""
        self.samples += samples
        if self.samples > self.max_samples:
            raise TooLongError(self.max_samples)
        self.pending += data
        while len(self.pending) >= PIECE_BYTES * self.channels:
            self.flush()

    def flush(self) -> None:
        """Sends one piece, or the rest."""
        size = PIECE_BYTES * self.channels
        if self.pending:
            self.send(self.silence_implausible(bytes(self.pending[:size])))
        del self.pending[:size]

    def silence_implausible(self, piece: bytes) -> bytes:
        """Silences implausible samples: one would spoil the 30 s around it."""
        # The highest byte suffices: a sum over all samples would take as long as the resampling.
        if not piece[BYTES_PER_SAMPLE - 1 :: BYTES_PER_SAMPLE].translate(None, SANE):
            return piece
        samples = array("f", piece)
        for place, sample in enumerate(samples):
            # Not `>=`, which is false for nan.
            if not abs(sample) < LOUDEST:
                samples[place] = 0.0
                self.not_numbers += 1
        return samples.tobytes()


def check_part(progress: DecodingProgress) -> None:
    """Records damage of a part. Raises RefusedTrackError if it is unusable."""
    if progress.samples == progress.part:
        raise RefusedTrackError("no audio could be decoded from it")
    unbroken = 0 if progress.unbroken is None else progress.unbroken - progress.part
    if progress.bad > progress.good and unbroken < INTACT_SECONDS * SAMPLE_RATE:
        raise RefusedTrackError("too damaged: more of it is broken than intact")
    progress.damaged |= bool(progress.bad)


def conclude_input(progress: DecodingProgress) -> dict[str, object]:
    """Payload of END. Raises RefusedTrackError if most samples are not numbers."""
    progress.flush()
    if 2 * progress.not_numbers > progress.samples * progress.channels:
        raise RefusedTrackError("too damaged: most of its samples are not numbers")
    return {
        "seconds": progress.samples / SAMPLE_RATE,
        "partial": bool(progress.damaged or progress.not_numbers),
    }
