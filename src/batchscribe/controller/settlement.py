"""A run's settlement: written once, when it is closed, and believed from then on.

The ledger may have missed what the store was told: it was lost, or could not be written meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from batchscribe.controller.context import World
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.manifest import Settlement
from batchscribe.core.money import Usd
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError


def settlement_of(run: Run) -> Settlement:
    """What is written of a run that is being closed."""
    assert run.outcome is not None
    assert run.settled is not None
    return Settlement(
        run=run.id,
        outcome=run.outcome.value,
        detail=run.detail,
        settled=run.settled,
        billed_seconds=run.billed_seconds,
        cost_micros=run.cost.micros,
        chunks_done=run.chunks_done,
        chunks_failed=run.chunks_failed,
        audio_seconds=run.audio_seconds,
        worked=run.worked,
    )


def read_settlement(world: World, run_id: str) -> Settlement:
    """Raises ObjectNotFoundError, and MisconfiguredError where a version wrote it that we do not read."""
    told = wire.decode(world.output.get(keys.settlement(run_id)).data, Settlement)
    if told.outcome not in set(Outcome):
        raise MisconfiguredError(f"{keys.settlement(run_id)} has the outcome {told.outcome!r}, unknown here")
    return told


def settled_before(world: World, run: Run) -> Settlement | None:
    """The settlement of a run that its ledger takes for open; None where there is none that we can read."""
    try:
        return read_settlement(world, run.id)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def as_settled(run: Run, told: Settlement) -> Run:
    """The run as its settlement tells it. Looks that make another bill are not those it was settled by."""
    closed = replace(
        run,
        state=RunState.SETTLED,
        outcome=Outcome(told.outcome),
        detail=told.detail,
        settled=told.settled,
        chunks_done=told.chunks_done,
        chunks_failed=told.chunks_failed,
        audio_seconds=told.audio_seconds,
        worked=told.worked,
        cost=Usd(told.cost_micros),
    )
    return closed if closed.billed_seconds == told.billed_seconds else with_looks(closed, told)


def with_looks(run: Run, told: Settlement) -> Run:
    """The run with looks that make its bill: those that led to it are gone."""
    return replace(
        run,
        start_requested=told.settled - timedelta(seconds=told.billed_seconds),
        idle_until=None,
        seen_up=told.settled,
        running_since=told.settled,
        running_until=None,
        stopped=told.settled,
    )
