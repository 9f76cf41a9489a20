"""Resamples frames to 16 kHz float32; runs in the decoder process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from batchscribe.audio.decoding.frames import SAMPLE_RATE, SPLIT_CHANNELS
from batchscribe.audio.decoding.tracks import check_shape

if TYPE_CHECKING:
    from batchscribe.audio.decoding.mixing import Fold

GATHERED_SAMPLES = 9600
"""Samples, at the file's rate, that are resampled at once: a call per 20 ms frame would be slow."""


class Resampler:
    """Resampler to one or two channels, of streams that change shape.

    Surplus channels are mixed, not dropped: the voice may be in the center channel.
    """

    def __init__(self, channels: int) -> None:
        self._layout = {1: "mono", SPLIT_CHANNELS: "stereo"}[channels]
        self._shape: tuple[object, ...] = ()
        self._channels = channels
        self._inner: AudioResampler | None = None
        self._fold: Fold | None = None
        self._gathered = AudioFifo()

    def push(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        """Yields resampled frames. Raises RefusedTrackError for an unsupported shape."""
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:
            check_shape(frame.sample_rate, frame.layout.nb_channels)
            yield from self.flush()
            self._shape = shape
            self._inner = AudioResampler(format="flt", layout=self._layout, rate=SAMPLE_RATE)
            self._fold = new_fold(frame, self._channels)
        # Only samples count here: `Holes` has processed the time stamps.
        frame.pts = None
        self._gathered.write(frame)
        if self._gathered.samples >= GATHERED_SAMPLES:
            yield from self._resample_gathered()

    def flush(self) -> Iterator[AudioFrame]:
        if self._inner is not None:
            yield from self._resample_gathered()
            yield from self._inner.resample(None)
        self._inner, self._shape, self._gathered = None, (), AudioFifo()

    def _resample_gathered(self) -> Iterator[AudioFrame]:
        gathered = self._gathered.read()
        if self._inner is None or not gathered:
            return
        for frame in self._fold.push(gathered) if self._fold else (gathered,):
            yield from self._inner.resample(frame)


def new_fold(frame: AudioFrame, channels: int) -> Fold | None:
    """Mixer of surplus channels; None if the frame has none."""
    if frame.layout.nb_channels <= channels:
        return None
    # Imports numpy only for the first file that needs it: most have one track of one channel.
    from batchscribe.audio.decoding.mixing import Fold  # noqa: PLC0415 - see above

    return Fold(frame, channels)
