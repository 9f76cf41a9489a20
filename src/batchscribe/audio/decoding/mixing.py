"""Mixes channels and tracks into one; runs in the decoder process.

A plain mean of all channels loses the voice if one of two channels is inverted, and is far too quiet if most
channels are silent. This mix is the mean of all channels with audio so far, or the loudest channel while
channels cancel each other. Samples within [-1, 1] stay within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler

from batchscribe.audio.decoding.frames import SAMPLE_RATE

Samples = npt.NDArray[np.float32]

SILENT = 1e-3
"""Peak of a silent channel: 60 dB below full scale."""
LOST = 0.5
"""Channels cancel if the mix is below this share of its loudest channel's amplitude in the mix."""
LOUDER = 2.0
"""Ratio of energies at which a louder channel replaces the chosen one."""
RAMP_SAMPLES = 256
"""Length of the transition between two mixes, to avoid clicks."""


class Mix:
    """Mixes the channels of one sound, block by block."""

    def __init__(self, channels: int) -> None:
        self._active = np.zeros(channels, np.bool_)
        self._weights: Samples | None = None
        self._taken: int | None = None

    def push(self, block: Samples) -> Samples:
        """Mixes `block` of shape (samples, channels) to shape (samples,)."""
        if block.shape[1] == 1 or not len(block):
            return block[:, :1].ravel()
        with np.errstate(all="ignore"):
            before, after = self._weights, self._update_weights(block - block.mean(axis=0))
            self._weights = after
            mixed: Samples = block @ after
            if before is not None and not np.array_equal(before, after):
                some = min(RAMP_SAMPLES, len(block))
                ramp = np.linspace(0.0, 1.0, some, dtype=np.float32)
                mixed[:some] = ramp * mixed[:some] + (1 - ramp) * (block[:some] @ before)
        return mixed

    def _update_weights(self, block: Samples) -> Samples:
        """Weights of the channels, from a block without offset."""
        self._active |= np.abs(block).max(axis=0) > SILENT
        active = self._active if self._active.any() else np.ones_like(self._active)
        weights: Samples = active.astype(np.float32) / np.float32(active.sum())
        power = np.einsum("ij,ij->j", block, block)
        mixed = block @ weights
        if mixed @ mixed >= power.max() * (LOST * weights.max()) ** 2:
            self._taken = None
            return weights
        if self._taken is None or power[self._taken] * LOUDER < power.max():
            self._taken = int(power.argmax())
        weights[:] = 0.0
        weights[self._taken] = 1.0
        return weights


class Fold:
    """Mixes frames of many channels into frames of one or two."""

    def __init__(self, frame: AudioFrame, channels: int) -> None:
        names = [channel.name for channel in frame.layout.channels]
        everything = list(range(len(names)))
        self._parts = [everything] if channels == 1 else list(group_by_side(names))
        self._mixes = [Mix(len(part)) for part in self._parts]
        self._layout = AudioLayout("mono" if channels == 1 else "stereo")
        # Not planar: PyAV crashes on frames of eight planes or more.
        self._plain = AudioResampler(AudioFormat("flt"), layout=frame.layout.name, rate=frame.sample_rate)
        self._width = len(names)

    def push(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        for plain in self._plain.resample(frame):
            block = np.asarray(plain.to_ndarray(), np.float32).reshape(-1, self._width)
            mixed = [mix.push(block[:, part]) for mix, part in zip(self._mixes, self._parts, strict=True)]
            flat = np.ascontiguousarray(np.column_stack(mixed)).reshape(1, -1)
            folded = AudioFrame.from_ndarray(flat, format="flt", layout=self._layout)
            folded.sample_rate = frame.sample_rate
            yield folded


def group_by_side(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Channels of the left and right side; others are in both.

    If no channel has a side, the first is left and the second is right.
    """
    ends = [name.rstrip("C")[-1:] for name in names]
    if not {"L", "R"} & set(ends):
        ends = ["L", "R", *ends[2:]]
    return (
        [number for number, end in enumerate(ends) if end != "R"],
        [number for number, end in enumerate(ends) if end != "L"],
    )


PART_SAMPLES = 80_000
"""Length of the parts in which silence is sent."""


def read_samples(sound: Iterator[AudioFrame | int], lead: float) -> Iterator[Samples]:
    """Yields the samples of a mono track after `lead` seconds of silence."""
    for part in chain([round(lead * SAMPLE_RATE)], sound):
        if isinstance(part, AudioFrame):
            yield np.asarray(part.to_ndarray(), np.float32)[0]
        else:
            yield from (
                np.zeros(min(PART_SAMPLES, part - begin), np.float32)
                for begin in range(0, part, PART_SAMPLES)
            )


class Feed:
    """The samples of one track, in portions of any length."""

    def __init__(self, pieces: Iterator[Samples]) -> None:
        self._pieces = pieces
        self._rest: Samples = np.zeros(0, np.float32)

    def take(self, samples: int) -> Samples:
        """Returns the next samples; fewer at the end."""
        parts = [self._rest]
        while sum(map(len, parts)) < samples and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
        found = np.concatenate(parts)
        self._rest = found[samples:]
        return found[:samples]


BLOCK_SAMPLES = 8000
"""Half a second of 16 kHz: block over which the tracks are compared."""


def mix_tracks(tracks: Sequence[Iterator[Samples]], groups: Sequence[Sequence[int]]) -> Iterator[Samples]:
    """Yields blocks (samples, groups) until the longest track ends; groups list tracks."""
    feeds = [Feed(track) for track in tracks]
    mixes = [Mix(len(group)) for group in groups]
    while True:
        parts = [feed.take(BLOCK_SAMPLES) for feed in feeds]
        length = max(map(len, parts))
        if not length:
            return
        block = np.column_stack([np.pad(part, (0, length - len(part))) for part in parts])
        yield np.column_stack(
            [mix.push(block[:, list(group)]) for mix, group in zip(mixes, groups, strict=True)]
        )
