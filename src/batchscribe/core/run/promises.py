"""Bounds on a GPU's time without work, from the timeouts in use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from batchscribe.core.run.host import HostWaits
from batchscribe.core.run.instances import GUARD_EVERY, GUARD_FIRST

PASS_SECONDS = 60.0
"""Between two passes of the minute timer."""
POWER_OFF_SECONDS = 60.0
"""For an operating system to power off."""


def _round_up_minutes(seconds: float) -> timedelta:
    return timedelta(minutes=math.ceil(seconds / 60))


AFTER_WORK = timedelta(seconds=2 * PASS_SECONDS)
"""From the last result to `stopped`: one pass to observe the end, and the time the cloud takes."""
BY_HOST = _round_up_minutes(HostWaits().linger + POWER_OFF_SECONDS)
"""From the last result to the GPU host's own power-off."""
STALLED = _round_up_minutes(HostWaits().silence + HostWaits().grace)
"""From the last progress of a stalled worker to its end."""
AFTER_DEADLINE = GUARD_FIRST + 2 * GUARD_EVERY
"""From a run's deadline to `stopped` by the guard: its first stop, and one retry."""


def _in_minutes(time: timedelta) -> str:
    return f"{time // timedelta(minutes=1)} min"


USUAL = f"after the last result the GPU is verified stopped within {_in_minutes(AFTER_WORK)}"
AGENT = (
    "if the scheduler, its machine or its network fails, the GPU host powers itself off within "
    f"{_in_minutes(BY_HOST)} after its work ended; a hung worker is ended within {_in_minutes(STALLED)}"
)
NO_AGENT = "the GPU host does not power itself off: `batchscribe gpu setup` installs the units that do"
LAST = (
    f"it never runs later than the run's deadline + {_in_minutes(AFTER_DEADLINE)}, unless the cloud's own "
    "scheduler and the instance's OS both fail"
)
NO_LAST = "no stop is scheduled in the cloud: set BATCH_CLOUD_GUARD=eventbridge to add one"


@dataclass(frozen=True, slots=True)
class Promise:
    """One bound on idle GPU time, or the reason for none."""

    given: bool
    sentence: str


def list_promises(*, guarded: bool, boots: bool) -> tuple[Promise, ...]:
    """The bounds, with a stop in the cloud (`guarded`) or host (`boots`)."""
    return (
        Promise(True, USUAL),
        Promise(boots, AGENT if boots else NO_AGENT),
        Promise(guarded, LAST if guarded else NO_LAST),
    )
