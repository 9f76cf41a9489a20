"""Time budget of Whisper's second passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.2
"""Time for second passes, as a part of the time of first passes..."""
ALLOWANCE = 30.0
"""...plus these seconds, so that short runs have some, too."""
MOST = 60.0
"""Maximum saved seconds: second passes block new windows for no longer than that."""


class Budget:
    """Time budget for second passes: a part of that of first ones."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._left = ALLOWANCE
        self._closed = False

    @property
    def left(self) -> float:
        """Remaining seconds; one pass may overdraw them."""
        return 0.0 if self._closed else self._left

    def close(self) -> None:
        """Sets the budget to zero permanently."""
        self._closed = True

    @contextmanager
    def measure(self, gain: float) -> Iterator[None]:
        """Adds `gain` times the duration of a pass.

        `gain` is SHARE for a first pass, -1 for a second one.
        """
        begun = self._monotonic()
        try:
            yield
        finally:
            self._left = min(MOST, self._left + gain * (self._monotonic() - begun))
