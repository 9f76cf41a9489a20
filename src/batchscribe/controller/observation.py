"""Interpretation of a poll for a run whose worker is running."""

from __future__ import annotations

from datetime import timedelta

from batchscribe.controller.context import Terms
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.meter import Meter, Moment, Poll
from batchscribe.core.run.runs import Machine, Run


def why_not_up(machine: Machine, seen: Instance) -> str:
    """Reason why the machine is not up for its run. Empty if it is."""
    if not seen.state.billable:
        return f"{seen.id} is {seen.state}"
    again = machine.meter.is_started_again(seen.launched_at)
    return f"{seen.id} was started again from outside" if again else ""


def read_tag(run: Run, machine: Machine, poll: Poll) -> Run:
    """Returns the run with the machine as started if only the instance's tag shows that.

    The ledger was replaced by an older copy, so the machine is billed from the run's creation on.
    """
    if machine.meter.start_requested is not None or run.borrowed or poll.instance.run != run.id:
        return run
    before = machine.meter.launched_before
    meter = Meter.recovered(run.created, started=True, launched_before=before)
    return run.with_machine(machine.id, meter=meter)


def read_poll(run: Run, machine: Machine, poll: Poll) -> Run:
    """Returns the run with the machine's meter after a poll."""
    return run.with_machine(machine.id, meter=machine.meter.read(poll, ours=True))


def poll_due(machine: Machine, terms: Terms, now: Moment) -> bool:
    """True if the last poll of the running machine is too old."""
    last = machine.meter.running_until
    return last is not None and not now.is_within(timedelta(seconds=terms.waits.describe), of=last)
