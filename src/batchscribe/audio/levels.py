"""Normalizes decoded samples to [-1, 1]: unit, offset, and high peaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from batchscribe.core.text.speech import SAMPLE_RATE

Samples = npt.NDArray[np.float32]

OFFSET = 0.05
"""Speech has zero mean: a larger mean is a fault of the recorder, and makes silence loud."""
OFFSET_SAMPLES = SAMPLE_RATE
"""Shortest piece from which the offset is measured."""
SPARE = 1e-4
"""Share of a piece's loudest samples that may be damage: clipped, without effect on its level."""
LEAST_GAIN = 1 / 32
"""Louder samples are noise of a damaged packet, and are clipped."""
RISE = 2.0
"""Largest factor by which the gain rises from one piece to the next."""


class AudioLevel:
    """Levels one sound by pieces; `unit` is full scale in its samples."""

    def __init__(self, unit: float = 1.0) -> None:
        self._unit = unit
        self._offset: Samples | None = None
        self._gain = 1.0

    def apply(self, piece: Samples) -> Samples:
        """The piece within [-1, 1]; the same object if unchanged."""
        if self._unit != 1.0:
            piece = piece / np.float32(self._unit)
        piece = self._remove_offset(piece)
        peak = _measure_peak(piece)
        self._gain = min(self._gain * RISE, 1.0, max(LEAST_GAIN, 1.0 / max(peak, 1.0)))
        if self._gain < 1.0:
            piece = piece * np.float32(self._gain)
        beyond = peak > 1.0 or self._gain < 1.0
        return np.clip(piece, -1.0, 1.0) if beyond or _measure_loudest(piece) > 1.0 else piece

    def _remove_offset(self, piece: Samples) -> Samples:
        """Each channel of the piece without its mean."""
        if self._offset is None or len(piece) >= OFFSET_SAMPLES:
            peak = _measure_peak(piece)
            kept = np.clip(piece, -peak, peak) if _measure_loudest(piece) > peak else piece
            mean: Samples = kept.mean(axis=0, dtype=np.float32)
            self._offset = np.where(np.abs(mean) > OFFSET, mean, np.float32(0.0))
        return piece - self._offset if self._offset.any() else piece


def _measure_loudest(piece: Samples) -> float:
    return max(float(piece.max(initial=0.0)), -float(piece.min(initial=0.0)))


def _measure_peak(piece: Samples) -> float:
    """The loudest sample, except for the few that may be damage."""
    if _measure_loudest(piece) <= 1.0:
        return 1.0
    loud = np.abs(piece).ravel()
    spare = int(len(loud) * SPARE)
    return float(np.partition(loud, -1 - spare)[-1 - spare])
