"""Stop orders in the cloud, by run: decides which of them are still needed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from batchscribe.core.run.instances import Instance

MANUAL_PREFIX = "hand-"
"""Name prefix of a manual session, in place of a run's id."""


def stale_orders(armed: Iterable[str], seen: Instance, *, keep: str | None, now: datetime) -> tuple[str, ...]:
    """The `armed` runs whose order is no longer needed: it would stop the instance under a later run.

    An order is needed if it belongs to the run `keep`, if its run claims the instance with a deadline ahead
    (another scheduler's), or if it guards a manual session and the instance is not stopped.
    """
    claimed = seen.deadline is not None and seen.deadline > now
    standing = {keep, seen.run if claimed else None}
    up = not seen.state.proved_stopped
    return tuple(
        sorted(run for run in armed if run not in standing and not (up and run.startswith(MANUAL_PREFIX)))
    )
