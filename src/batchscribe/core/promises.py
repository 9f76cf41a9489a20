"""What is promised of a GPU that is paid for, in numbers, as far as it is set up for it."""

from __future__ import annotations

from dataclasses import dataclass

USUAL = "after the last result the GPU is seen stopped within 2 min"
BOX = (
    "with the scheduler, its host or its network gone, the box powers itself off within 3 min after its "
    "work ended; a hung worker is ended within 15 min"
)
NO_BOX = "the box does not power itself off: `batchscribe gpu setup` installs what does"
LAST = (
    "it never runs later than the run's deadline + 20 min, unless the cloud's own scheduler and the "
    "instance's OS both fail"
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
