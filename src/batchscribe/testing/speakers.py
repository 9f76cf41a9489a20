"""A model of voices without weights: a voice is its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchscribe.core.text.speech import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SHORTEST = SAMPLE_RATE // 8
"""Samples of the shortest audio with an embedding."""


@dataclass(frozen=True, slots=True)
class SpectralSpeakers:
    """A SpeakerModel: its embeddings are levels of `bands` bands to 8 kHz."""

    name: str = "spectral"
    alike: float = 0.85
    bands: int = 64

    def embed(self, audio: npt.NDArray[np.float32]) -> Sequence[float] | None:
        """See SpeakerModel."""
        import numpy as np  # noqa: PLC0415 - the controller's doubles need none

        if len(audio) < SHORTEST:
            return None
        power = np.abs(np.fft.rfft(audio)) ** 2
        width = len(power) // self.bands
        levels: list[float] = np.sqrt(power[: width * self.bands].reshape(-1, width).mean(axis=1)).tolist()
        return levels
