"""Input and output of a speech engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchscribe.core.text.transcripts import Segment

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAMPLE_RATE = 16_000
MAX_WINDOW_SECONDS = 30.0
"""Whisper's encoder takes 30 s at a time; other engines accept that length."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Window:
    """Up to 30 s of speech.

    `audio` has shape (samples,), float32 in [-1, 1], 16 kHz, mono. `start` is its begin on the timeline, in
    seconds. Windows of one `session` share one language vote.
    """

    id: int
    start: float
    audio: npt.NDArray[np.float32]
    language: str | None = None
    session: str = ""

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Recognition:
    """The text of one window; times count from its beginning."""

    window: int
    segments: tuple[Segment, ...]
    language: str | None = None
    flags: tuple[str, ...] = ()
