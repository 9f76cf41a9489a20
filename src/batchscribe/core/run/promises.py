"""Bounds on the time that a GPU runs without work, computed from the constants that keep them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from batchscribe.core.run.host import BoxWaits
from batchscribe.core.run.instances import GUARD_EVERY, GUARD_FIRST

PASS_SECONDS = 60.0
"""Between two passes of the minute timer."""
POWER_OFF_SECONDS = 60.0
"""For an operating system to switch its machine off."""


def _whole_minutes(seconds: float) -> timedelta:
    return timedelta(minutes=math.ceil(seconds / 60))


AFTER_WORK = timedelta(seconds=2 * PASS_SECONDS)
"""From the last result to `stopped`: the pass that finds the end and asks, and the time the cloud takes."""
BY_HOST = _whole_minutes(BoxWaits().linger + POWER_OFF_SECONDS)
"""From the last result to the GPU host's own power-off."""
STALLED = _whole_minutes(BoxWaits().silence + BoxWaits().grace)
"""From the last progress of a worker that stalls to its end."""
AFTER_DEADLINE = GUARD_FIRST + 2 * GUARD_EVERY
"""From a run's deadline to `stopped` by the guard: its first order, and one more if that fails."""


def _minutes(time: timedelta) -> str:
    return f"{time // timedelta(minutes=1)} min"


USUAL = f"after the last result the GPU is seen stopped within {_minutes(AFTER_WORK)}"
BOX = (
    "with the scheduler, its host or its network gone, the box powers itself off within "
    f"{_minutes(BY_HOST)} after its work ended; a hung worker is ended within {_minutes(STALLED)}"
)
NO_BOX = "the box does not power itself off: `batchscribe gpu setup` installs what does"
LAST = (
    f"it never runs later than the run's deadline + {_minutes(AFTER_DEADLINE)}, unless the cloud's own "
    "scheduler and the instance's OS both fail"
)
NO_LAST = "no stop order stands outside this machine and the box: BATCH_CLOUD_GUARD=eventbridge gives one"


@dataclass(frozen=True, slots=True)
class Promise:
    """One bound and what it holds against; where it is not `given`, the sentence says why."""

    given: bool
    sentence: str


def promises(*, guarded: bool, boots: bool) -> tuple[Promise, ...]:
    """The bounds, from the usual to the last; `guarded` by an order outside, `boots` with the box's units."""
    return (
        Promise(True, USUAL),
        Promise(boots, BOX if boots else NO_BOX),
        Promise(guarded, LAST if guarded else NO_LAST),
    )
