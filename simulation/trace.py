"""Trace of an episode: digest of all steps, text of the last."""

from __future__ import annotations

import hashlib
from collections import deque

from simulation.timeline import Timeline

SHOWN = 90


class Trace:
    """All steps and events, in order: one seed, one digest."""

    def __init__(self, line: Timeline) -> None:
        self._line = line
        self._hash = hashlib.blake2b(digest_size=12)
        self._at = (-1.0, "")
        """The present moment, and its text: most steps take no time."""
        self._last: deque[tuple[float, str]] = deque(maxlen=SHOWN)

    def add(self, text: str) -> None:
        at = self._line.seconds
        if at != self._at[0]:
            self._at = at, f"{at:.6f}"
        self._last.append((at, text))
        self._hash.update(f"{self._at[1]} {text}\n".encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def last(self) -> list[str]:
        """The last steps, oldest first, each with its simulated time."""
        return [f"{at / 3600:8.4f} h  {text}" for at, text in self._last]
