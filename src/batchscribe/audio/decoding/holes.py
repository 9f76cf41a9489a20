"""Holes in a sound, found by its time stamps: part of the decoder's own process.

Where a part of a file is lost, the time stamps of what follows say so. Silence goes in its place, so that
every word keeps its time. Time stamps of damaged files also go backwards, and single ones are far out:
a jump is believed only once what comes after it goes on from there, and the clock that counts samples
is never set back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from av.audio.frame import AudioFrame

LEAST_SECONDS = 0.2
"""Less is how recorders round, and how they catch up with their clock."""
MOST_SECONDS = 3600.0
"""A longer hole is told, and not filled."""
CONFIRMED_FRAMES = 8
"""So many frames have to go on after a jump: 160 ms of Opus, half a second of AAC."""


@dataclass
class Holes:
    """Passes on frames, and in between the lengths of holes to be filled, in seconds."""

    limit: float
    """Seconds after the first sound: no hole that ends later is filled."""
    found: bool = False
    _begins: float | None = None
    _ends: float = 0.0
    """By the time stamp of the last frame: when the next one should begin."""
    _laid: float = 0.0
    """By count: when the next frame that is passed on will begin."""
    _jump: float = 0.0
    _held: list[AudioFrame] = field(default_factory=list)

    def fill(self, frames: Iterable[AudioFrame]) -> Iterator[AudioFrame | float]:
        """All frames, and in between the lengths of holes."""
        for frame in frames:
            yield from self.push(frame)
        yield from self.flush()

    def push(self, frame: AudioFrame) -> Iterable[AudioFrame | float]:
        begins = self._ends if frame.time is None else frame.time
        if self._begins is None:
            self._begins = self._ends = self._laid = begins
        jump, self._ends = begins - self._ends, begins + _seconds(frame)
        if self._held or abs(jump) > LEAST_SECONDS:
            return self._doubted(frame, begins, jump)
        self._laid += _seconds(frame)
        return (frame,)

    def _doubted(self, frame: AudioFrame, begins: float, jump: float) -> Iterator[AudioFrame | float]:
        """What is passed on once there is a jump, or what comes after one shows whether it is true."""
        if abs(jump) > LEAST_SECONDS:
            yield from self._release(believed=False)
            self._jump = min(jump, begins - self._laid)
        self._held.append(frame)
        if self._jump <= LEAST_SECONDS or len(self._held) > CONFIRMED_FRAMES:
            yield from self._release(believed=True)

    def flush(self) -> Iterator[AudioFrame | float]:
        """What is held yet: more than one frame after a jump is enough at the end."""
        yield from self._release(believed=len(self._held) > 1)

    def _release(self, *, believed: bool) -> Iterator[AudioFrame | float]:
        if believed and self._jump > LEAST_SECONDS:
            self.found = True
            ends = self._laid + self._jump
            if self._jump <= MOST_SECONDS and ends <= (self._begins or 0.0) + self.limit:
                yield self._jump
                self._laid = ends
        self._laid += sum(map(_seconds, self._held))
        yield from self._held
        self._held.clear()
        self._jump = 0.0


def _seconds(frame: AudioFrame) -> float:
    return frame.samples / frame.sample_rate if frame.sample_rate else 0.0
