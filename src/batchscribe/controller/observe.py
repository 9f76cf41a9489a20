"""One look at everything that a decision depends on. The clock is read once."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import takewhile

from batchscribe.controller.context import Terms, World
from batchscribe.controller.rehearsal_place import rehearsed
from batchscribe.core.decide.policy import Observation
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.runs import Run

PAUSED = "paused_until"
FAILED_WITHIN = timedelta(days=7)


def observe(world: World, terms: Terms) -> Observation:
    """The world now. A listing that fails raises: it is never an empty backlog."""
    now = world.clock.now()
    settled = _settled_lately(world, now)
    fruitless = _fruitless(settled)
    instance = world.compute.describe(terms.instances[0])
    instance_type = instance.type or terms.instance_type
    return Observation(
        now=now,
        backlog=world.scanner(terms.policy.by_hand).backlog(),
        instance=instance,
        priors=world.ledger.priors(
            engine=terms.engine.engine,
            model=terms.engine.model,
            instance_type=instance_type,
            default=terms.priors,
        ),
        rate=terms.rate_of(instance_type),
        open_run=oldest_open_run(world),
        paused_until=paused_until(world),
        spent_today=world.ledger.spent(now.replace(hour=0, minute=0, second=0, microsecond=0)),
        fruitless=len(fruitless),
        last_fruitless=fruitless[-1].settled if fruitless else None,
        stranger=stranger(world, instance, now),
    )


def _settled_lately(world: World, now: datetime) -> list[Run]:
    runs = world.ledger.runs(now - FAILED_WITHIN)
    return [run for run in runs if not run.open and not rehearsed(run)]


def _fruitless(settled: list[Run]) -> list[Run]:
    """The newest runs that cost something and got no chunk done, oldest first."""
    paid = [run for run in settled if run.billed_seconds]
    return list(takewhile(lambda run: not run.chunks_done, reversed(paid)))[::-1]


def oldest_open_run(world: World) -> Run | None:
    return next(iter(world.ledger.open_runs()), None)


def paused_until(world: World) -> datetime | None:
    value = world.ledger.get(PAUSED)
    return datetime.fromisoformat(value) if value else None


def stranger(world: World, instance: Instance, now: datetime) -> str | None:
    """Why the instance is in the hands of another scheduler; None where it is not.

    A claim whose run we do not know, with its deadline ahead, is somebody else's work.
    """
    if instance.run is None or world.ledger.run(instance.run) is not None:
        return None
    if instance.deadline is None or instance.deadline <= now:
        return None
    return (
        f"instance {instance.id} is claimed by run {instance.run} of another scheduler "
        f"until {instance.deadline:%Y-%m-%d %H:%M} UTC: left alone"
    )
