"""The present state of a scheduler as one value, for every view of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from batchscribe.controller.context import RunConfig, World
from batchscribe.controller.observe import observe, paused_until
from batchscribe.controller.reconcile import find_other_scheduler
from batchscribe.controller.records import read_progress
from batchscribe.controller.rehearsal_place import world_of
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import Observation
from batchscribe.core.decide.policy import Decision, Hold, decide
from batchscribe.core.run.other_scheduler import OtherScheduler
from batchscribe.core.run.runs import Run
from batchscribe.errors import BatchscribeError

RECENT = timedelta(days=30)
LAST_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNow:
    """An open run, and what its workers reported last."""

    id: str
    state: str
    created: datetime
    deadline: datetime
    """The run is stopped then, whatever it does; its end is expected after `left`."""
    total: int
    done: int = 0
    failed: int = 0
    left: timedelta | None = None
    """Estimated time until its last chunk is done; None before the first window."""
    cost: Usd
    """Upper bound of its cost until the last poll."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """State, decision and money at one time. `error` says why the store or the cloud was not observed."""

    at: datetime
    runs: tuple[RunNow, ...]
    last_runs: tuple[Run, ...]
    """The latest settled runs, oldest first."""
    last_tick: datetime | None
    paused_until: datetime | None
    other_scheduler: OtherScheduler | None
    """Of the same source."""
    month: Usd
    """Upper bound of the cost of the runs settled this month (UTC)."""
    observed: Observation | None = None
    decision: Decision | None = None
    next_start: datetime | None = None
    """Time after which a check starts the GPU if no other chunk arrives; None if nothing waits for that."""
    error: str = ""


def overview(world: World, config: RunConfig) -> Overview:
    """Observes everything once; writes nothing. Raises what the ledger raises."""
    now, ledger = world.clock.now(), world.ledger
    observed, error = None, ""
    try:
        observed = observe(world, config)
    except BatchscribeError as failure:
        error = str(failure)
    decision = decide(observed, config.policy) if observed else None
    paused = paused_until(world)
    return Overview(
        at=now,
        runs=tuple(_run_now(world, config, run) for run in ledger.open_runs()),
        last_runs=tuple(run for run in ledger.runs(now - RECENT) if not run.open)[-LAST_RUNS:],
        last_tick=ledger.last_tick(),
        paused_until=paused if paused and paused > now else None,
        other_scheduler=find_other_scheduler(ledger, now),
        month=ledger.spent(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)),
        observed=observed,
        decision=decision,
        next_start=decision.expected if isinstance(decision, Hold) else None,
        error=error,
    )


def _run_now(world: World, config: RunConfig, run: Run) -> RunNow:
    now = RunNow(
        id=run.id,
        state=run.state.value,
        created=run.created,
        deadline=run.deadline,
        total=run.planned_chunks,
        cost=run.bill() if run.started else Usd(0),
    )
    try:
        here = world_of(world, config, run)
        found = [read_progress(here, run.name_of(number)) for number in run.last_workers]
    except BatchscribeError:
        return now
    reports = [progress for progress in found if progress]
    if not reports:
        return now
    lefts = [left for progress in reports if (left := progress.time_left) is not None]
    return replace(
        now,
        total=sum(progress.total for progress in reports),
        done=sum(progress.tally.done for progress in reports),
        failed=sum(progress.tally.failed for progress in reports),
        left=max(lefts, default=None),
    )
