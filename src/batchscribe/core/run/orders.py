"""Stop orders outside this machine, by the run that each belongs to: which of them are still needed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from batchscribe.core.run.instances import Instance

HAND = "hand-"
"""Prefix of a manual session's name, in place of a run's id."""


def stale_orders(armed: Iterable[str], seen: Instance, *, keep: str | None, now: datetime) -> tuple[str, ...]:
    """Those of the `armed` runs that nothing stands behind any more: what they would stop is the next one.

    An order stands where it is the run `keep`'s, where its run claims the instance with a deadline ahead
    (another scheduler's), and where it guards a session by hand and the instance is not stopped.
    """
    claimed = seen.deadline is not None and seen.deadline > now
    standing = {keep, seen.run if claimed else None}
    up = not seen.state.proved_stopped
    return tuple(sorted(run for run in armed if run not in standing and not (up and run.startswith(HAND))))
