"""Interpretation of a poll for a run whose worker is running."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from batchscribe.controller.context import Terms
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.meter import Meter, Moment, Poll
from batchscribe.core.run.runs import Run


def why_not_up(run: Run, seen: Instance) -> str:
    """Reason why the instance is not up for this run. Empty if it is."""
    if not seen.state.billable:
        return f"{seen.id} is {seen.state}"
    again = run.meter.is_started_again(seen.launched_at)
    return f"{seen.id} was started again from outside" if again else ""


def read_tag(run: Run, poll: Poll) -> Run:
    """Returns the run as started if only the instance's tag shows that.

    The ledger was replaced by an older copy, so the run is billed from its creation on.
    """
    if run.started or run.borrowed or poll.instance.run != run.id:
        return run
    before = run.meter.launched_before
    return replace(run, meter=Meter.recovered(run.created, started=True, launched_before=before))


def read_poll(run: Run, poll: Poll) -> Run:
    """Returns the run with its meter after a poll."""
    return replace(run, meter=run.meter.read(poll, ours=True))


def poll_due(run: Run, terms: Terms, now: Moment) -> bool:
    """True if the last poll of the running instance is too old."""
    last = run.meter.running_until
    return last is not None and not now.is_within(timedelta(seconds=terms.waits.describe), of=last)
