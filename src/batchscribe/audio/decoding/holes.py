"""Fills holes in audio with silence, by its time stamps.

It runs in the decoder process. If a part of a file is lost, later time stamps show it. Silence replaces it,
so that every word keeps its time. Time stamps of damaged files also go backwards, and single ones are far
off: a jump counts only if later frames continue from there, and the sample clock is never set back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from av.audio.frame import AudioFrame

LEAST_SECONDS = 0.2
"""Shortest hole: recorders round time stamps, and adjust their clocks."""
MOST_SECONDS = 3600.0
"""A longer hole is reported, but not filled."""
CONFIRMED_FRAMES = 8
"""Frames that must continue after a jump: 160 ms of Opus, half a second of AAC."""


@dataclass
class Holes:
    """Passes on frames, and in between the seconds of holes to fill."""

    limit: float
    """Seconds after the first audio; a hole that ends later is not filled."""
    found: bool = False
    _begins: float | None = None
    _ends: float = 0.0
    """Expected begin of the next frame, by the last time stamp."""
    _laid: float = 0.0
    """Begin of the next passed-on frame, by samples."""
    _jump: float = 0.0
    _held: list[AudioFrame] = field(default_factory=list)

    def fill(self, frames: Iterable[AudioFrame]) -> Iterator[AudioFrame | float]:
        """Yields all frames, and in between the seconds of holes."""
        for frame in frames:
            yield from self.push(frame)
        yield from self.flush()

    def push(self, frame: AudioFrame) -> Iterable[AudioFrame | float]:
        begins = self._ends if frame.time is None else frame.time
        if self._begins is None:
            self._begins = self._ends = self._laid = begins
        jump, self._ends = begins - self._ends, begins + _frame_seconds(frame)
        if self._held or abs(jump) > LEAST_SECONDS:
            return self._hold_frame(frame, begins, jump)
        self._laid += _frame_seconds(frame)
        return (frame,)

    def _hold_frame(self, frame: AudioFrame, begins: float, jump: float) -> Iterator[AudioFrame | float]:
        """Holds frames after a jump until later frames confirm or refute it."""
        if abs(jump) > LEAST_SECONDS:
            yield from self._release_held(believed=False)
            self._jump = min(jump, begins - self._laid)
        self._held.append(frame)
        if self._jump <= LEAST_SECONDS or len(self._held) > CONFIRMED_FRAMES:
            yield from self._release_held(believed=True)

    def flush(self) -> Iterator[AudioFrame | float]:
        """Releases held frames; at the end, two or more confirm a jump."""
        yield from self._release_held(believed=len(self._held) > 1)

    def _release_held(self, *, believed: bool) -> Iterator[AudioFrame | float]:
        if believed and self._jump > LEAST_SECONDS:
            self.found = True
            ends = self._laid + self._jump
            if self._jump <= MOST_SECONDS and ends <= (self._begins or 0.0) + self.limit:
                yield self._jump
                self._laid = ends
        self._laid += sum(map(_frame_seconds, self._held))
        yield from self._held
        self._held.clear()
        self._jump = 0.0


def _frame_seconds(frame: AudioFrame) -> float:
    return frame.samples / frame.sample_rate if frame.sample_rate else 0.0
