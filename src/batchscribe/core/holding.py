"""Who holds the tick's lock, as it says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process of one boot, known by more than its number, and when it last showed that it moves.

    Times are seconds of the monotonic clock, which all processes of a boot share.
    """

    pid: int
    boot: str
    ticks: int
    """Its start, in ticks since boot: a number is given to another process one day."""
    since: float
    """It has held the lock since then."""
    alive: float
    """The last time that it looked at its clock; it does so at every look at the world."""
