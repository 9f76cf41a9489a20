"""The present state of a scheduler as one value for all views."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from batchscribe.controller.commands.rehearsal import PROVED, Proof, decode_proofs
from batchscribe.controller.context import RunConfig, World, read_moment
from batchscribe.controller.external_state import read_instance_record
from batchscribe.controller.observe import find_lane_run, find_open_run, observe, paused_until
from batchscribe.controller.records import read_progress
from batchscribe.controller.recovery import find_other_scheduler
from batchscribe.controller.rehearsal_place import find_run_world
from batchscribe.core.decide.hosted import Savings, make_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import Observation
from batchscribe.core.decide.policy import Decision, Hold, decide
from batchscribe.core.decide.start_sum import StartSum, sum_up_start
from batchscribe.core.run.manifest import Progress
from batchscribe.core.run.other_scheduler import OtherScheduler
from batchscribe.core.run.promises import Promise, list_promises
from batchscribe.core.run.runs import Run
from batchscribe.core.run.waiting import describe_machines, find_wait, wait_text
from batchscribe.errors import BatchscribeError

RECENT = timedelta(days=30)
LAST_RUNS = 5
NO_GUARD = "off"
"""`RunConfig.guard` without one."""


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
    waiting: str = ""
    """What it waits for; empty while its worker reports progress."""
    workers: tuple[Progress, ...] = ()
    """The last report of each machine's last worker."""
    machines: tuple[str, ...] = ()
    """A sentence for each machine, if there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Store, cloud and guard at one time, which cost requests.

    `failure` is the reason if store or cloud were not observed.
    """

    at: datetime
    observed: Observation | None = None
    failure: BatchscribeError | None = None
    guard: str
    """The guard and its active stop orders, as a sentence."""
    armed: tuple[str, ...] | None
    """Runs with an active stop order; None if they could not be listed."""
    promises: tuple[Promise, ...]
    """Time bounds of settings and GPU host; empty if the GPU is in this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """State, decision and money at one time."""

    at: datetime
    around: Surroundings
    runs: tuple[RunNow, ...]
    last_runs: tuple[Run, ...]
    """The latest settled runs, oldest first."""
    last_tick: datetime | None
    paused_until: datetime | None
    other_scheduler: OtherScheduler | None
    """Of the same source."""
    month: Usd
    """Upper bound of the cost of the runs settled this month (UTC)."""
    savings: Savings | None = None
    """Of this month; None without audio."""
    proofs: tuple[Proof, ...]
    observed: Observation | None = None
    """With the present open run and pause; the rest is as old as `around`."""
    decision: Decision | None = None
    total: StartSum | None = None
    """The sum of a start; None if nothing is pending."""
    next_start: datetime | None = None
    """Time after which a check starts the GPU if no other chunk arrives; None if nothing waits for that."""

    @property
    def error(self) -> str:
        """Reason why store or cloud were not observed, or empty."""
        return str(self.around.failure or "")


def observe_surroundings(world: World, config: RunConfig) -> Surroundings:
    """Polls store, cloud and guard once; writes nothing.

    Raises what the ledger raises.
    """
    observed, failure = None, None
    try:
        observed = observe(world, config)
    except BatchscribeError as error:
        failure = error
    guard, armed = _read_guard(world, config)
    return Surroundings(
        at=world.clock.now(),
        observed=observed,
        failure=failure,
        guard=guard,
        armed=armed,
        promises=_read_promises(world, config),
    )


def overview(world: World, config: RunConfig, around: Surroundings | None = None) -> Overview:
    """Combines `around`, by default observed now, with the ledger; writes nothing.

    Of the store it reads the progress of open runs. Raises what the ledger raises.
    """
    around = around or observe_surroundings(world, config)
    now, ledger = world.clock.now(), world.ledger
    paused = paused_until(world)
    observed = around.observed
    if observed:
        runs = ledger.open_runs()
        observed = replace(
            observed, open_run=find_open_run(runs), lane_run=find_lane_run(runs), paused_until=paused
        )
    decision = decide(observed, config.policy) if observed else None
    begin = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    settled = [run for run in ledger.runs(min(begin, now - RECENT)) if run.settled]
    month = ledger.spent(begin)
    seconds = sum(run.audio_seconds for run in settled if run.settled and run.settled >= begin)
    return Overview(
        at=now,
        around=around,
        runs=tuple(_run_now(world, config, run) for run in ledger.open_runs()),
        last_runs=tuple(settled[-LAST_RUNS:]),
        last_tick=ledger.last_tick(),
        paused_until=paused if paused and paused > now else None,
        other_scheduler=find_other_scheduler(ledger, now),
        month=month,
        savings=make_savings(month, seconds / 3600),
        proofs=decode_proofs(ledger.facts(PROVED)),
        observed=observed,
        decision=decision,
        total=sum_up_start(observed, config.policy) if observed and observed.backlog.pending else None,
        next_start=decision.expected if isinstance(decision, Hold) else None,
    )


def _read_guard(world: World, config: RunConfig) -> tuple[str, tuple[str, ...] | None]:
    """(sentence on the guard, runs with active stop orders)."""
    guard = world.guard
    created = [name for run in world.ledger.open_runs() if run.creates_machines for name in run.instances]
    try:
        armed = tuple(sorted({run for each in (*config.instances, *created) for run in guard.armed(each)}))
    except BatchscribeError as error:
        return f"{guard.description}; its stop orders could not be listed: {error}", None
    orders = f"; active stop orders: {', '.join(armed)}" if armed else ""
    return f"{guard.description}{orders}", armed


def _read_promises(world: World, config: RunConfig) -> tuple[Promise, ...]:
    if config.shared_machine:
        return ()
    try:
        record = read_instance_record(world, config.image or config.instances[0])
    except BatchscribeError:
        record = None
    return list_promises(guarded=config.guard != NO_GUARD, boots=record is not None and record.boots)


def _run_now(world: World, config: RunConfig, run: Run) -> RunNow:
    wait = find_wait(run, read_moment(world), up=config.waits.up, reach=config.waits.reach)
    now = RunNow(
        id=run.id,
        state=run.state.value,
        created=run.created,
        deadline=run.deadline,
        total=run.planned_chunks,
        cost=run.bill() if run.started else Usd(0),
        waiting=wait_text(wait) if wait else "",
        machines=describe_machines(run),
    )
    several = len(run.machines) > 1
    try:
        here = find_run_world(world, config, run)
        numbers = range(len(run.workers)) if several else run.last_workers
        found = {number: read_progress(here, run.name_of(number)) for number in numbers}
    except BatchscribeError:
        return now
    reports = {number: progress for number, progress in found.items() if progress}
    if not reports:
        return now
    last = [progress for number, progress in reports.items() if number in run.last_workers]
    lefts = [left for progress in last if (left := progress.time_left) is not None]
    total = sum(progress.total for progress in reports.values())
    return replace(
        now,
        # Portions follow, and what a worker returned is in two of them.
        total=run.planned_chunks if several else total,
        done=sum(progress.tally.done for progress in reports.values()),
        failed=sum(progress.tally.failed for progress in reports.values()),
        left=max(lefts, default=None),
        workers=tuple(last),
    )
