"""Ticks that die in the middle, and the timer's passes after them."""

from __future__ import annotations

import contextlib

from batchscribe.controller.tick import tick, watch
from batchscribe.core.run.runs import Run
from support.world import Stage

MINUTE = 60.0


class DeadError(BaseException):
    """The process is gone: nothing after it happens."""


def die(at: Stage, after: float) -> None:
    """Runs a tick that waits, and that is killed after so many seconds, at whatever step it is then."""

    def kill() -> None:
        raise DeadError

    at.clock.at(after, kill)
    with contextlib.suppress(DeadError):
        tick(at.world, at.config)
        raise AssertionError("it came to its end")


def watch_for(at: Stage, minutes: float) -> list[Run]:
    """Makes a pass each minute, as the timer does; the runs that the passes closed."""
    closed: list[Run] = []
    until = at.clock.monotonic() + minutes * MINUTE
    while at.clock.monotonic() < until:
        closed += watch(at.world, at.config).runs
        at.clock.sleep(MINUTE)
    return closed
