"""What goes into a speech engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchscribe.core.text.transcripts import Segment

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAMPLE_RATE = 16_000
MAX_WINDOW_SECONDS = 30.0
"""Whisper's encoder takes 30 s at a time; other engines live with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Up to 30 s of speech.

    `audio` has shape (samples,), float32 in [-1, 1], 16 kHz, mono. `start` is where it begins on the
    clock of its stretch, in seconds. `session` names what belongs together: one vote on the language.
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
    """The text of one window; times are seconds from the window's own beginning."""

    window: int
    segments: tuple[Segment, ...]
    language: str | None = None
    flags: tuple[str, ...] = ()
