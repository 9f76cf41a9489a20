"""What has been decoded of a file, in one recording after the other: part of the decoder's own process."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from av.audio.frame import AudioFrame

from batchscribe.audio.decoding.frames import BYTES_PER_SAMPLE, PIECE_SAMPLES, SAMPLE_RATE
from batchscribe.audio.decoding.tracks import RefusedError

PIECE_BYTES = PIECE_SAMPLES * BYTES_PER_SAMPLE
INTACT_SECONDS = 1.0
"""So long a beginning without damage is sound, however much behind it is broken."""
LOUDEST = 2.0**31
"""No sound, whatever unit its writer had in mind; the squares of larger numbers are soon not finite."""
SANE = bytes(byte for byte in range(256) if byte & 0x7F < 0x4F)
"""Highest bytes of float32: sign and most of the exponent of what is less than LOUDEST."""


class TooLongError(RefusedError):
    """There is more sound than the order allows, in all parts together."""


def too_long(max_samples: int) -> str:
    return f"longer than the limit of {max_samples / SAMPLE_RATE / 3600:g} hours of audio"


@dataclass
class Progress:
    """What has been decoded of one input so far."""

    max_samples: int
    send: Callable[[bytes], None]
    channels: int = 1
    """Of what is sent. Samples are counted once for all of them, but those that are no numbers."""
    samples: int = 0
    good: int = 0
    bad: int = 0
    not_numbers: int = 0
    damaged: bool = False
    begun: bool = False
    """Whether START was sent."""
    part: int = 0
    """The count of samples when the current part began; `good`, `bad` and `unbroken` are of that part."""
    unbroken: int | None = None
    """The count of samples at its first damage."""
    pending: bytearray = field(default_factory=bytearray)

    @property
    def part_seconds(self) -> float:
        return (self.samples - self.part) / SAMPLE_RATE

    @property
    def seconds_left(self) -> float:
        """So much sound may still come."""
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
        """The same for a hole."""
        for begin in range(0, samples, PIECE_SAMPLES):
            some = min(PIECE_SAMPLES, samples - begin)
            self.add(some, bytes(some * BYTES_PER_SAMPLE * self.channels))

    def add(self, samples: int, data: bytes | memoryview) -> None:
        """Counts and sends samples. Raises TooLongError beyond the limit."""
        self.samples += samples
        if self.samples > self.max_samples:
            raise TooLongError(too_long(self.max_samples))
        self.pending += data
        while len(self.pending) >= PIECE_BYTES * self.channels:
            self.flush()

    def flush(self) -> None:
        """Sends one piece, or the rest."""
        size = PIECE_BYTES * self.channels
        if self.pending:
            self.send(self.finite(bytes(self.pending[:size])))
        del self.pending[:size]

    def finite(self, piece: bytes) -> bytes:
        """Silence for every sample that is no sound: one alone would spoil all 30 s around it."""
        # The highest byte tells: a sum over all samples would take as long as the resampling.
        if not piece[BYTES_PER_SAMPLE - 1 :: BYTES_PER_SAMPLE].translate(None, SANE):
            return piece
        samples = array("f", piece)
        for place, sample in enumerate(samples):
            # Turned around it would be true of what is not a number.
            if not abs(sample) < LOUDEST:
                samples[place] = 0.0
                self.not_numbers += 1
        return samples.tobytes()


def check_part(progress: Progress) -> None:
    """Notes damage of a part. Raises RefusedError if nothing in it is sound."""
    if progress.samples == progress.part:
        raise RefusedError("no sound could be decoded from it")
    unbroken = 0 if progress.unbroken is None else progress.unbroken - progress.part
    if progress.bad > progress.good and unbroken < INTACT_SECONDS * SAMPLE_RATE:
        raise RefusedError("too damaged: more of it is broken than sound")
    progress.damaged |= bool(progress.bad)


def conclude(progress: Progress) -> dict[str, object]:
    """Length in seconds, and whether some of it is lost. Raises RefusedError if most of it is no sound."""
    progress.flush()
    if 2 * progress.not_numbers > progress.samples * progress.channels:
        raise RefusedError("too damaged: most of its samples are not numbers")
    return {
        "seconds": progress.samples / SAMPLE_RATE,
        "partial": bool(progress.damaged or progress.not_numbers),
    }
