"""Scheduling policy: `decide` maps an observation to a decision with its reason.

The decision is total and pure: the same observation always has the same result, in one sentence and in
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from batchscribe.core.decide.money import ZERO, Usd
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.packing import Batch, pack
from batchscribe.core.figures import format_count
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.backlog import Backlog

INTENT_LASTS: Final = timedelta(minutes=10)
"""A run without a start request by then is closed: its observation is out of date."""
FOREVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""End of a pause without a duration."""
PATIENT_STARTS: Final = 2
LONGEST_PAUSE: Final = timedelta(days=1)


class PolicyName(StrEnum):
    THRESHOLD = "threshold"
    NOW = "now"


class IfRunning(StrEnum):
    """Action for a GPU that runs but is not managed by us."""

    HOLD = "hold"
    USE = "use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: PolicyName = PolicyName.THRESHOLD
    threshold: int = 100
    max_wait: timedelta = timedelta(hours=24)
    max_runtime: timedelta = timedelta(hours=2)
    check_interval: timedelta = timedelta(hours=1)
    if_running: IfRunning = IfRunning.HOLD
    limit: int | None = None
    daily_budget: Usd | None = None
    manual: bool = False
    """Requested by a user: takes all pending chunks, regardless of age and earlier failures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFault:
    """Why the last run could not use its host: a cause that stays until something is changed."""

    at: datetime
    """End of that run."""
    cause: str
    access: str
    """Hash of the settings with which the host was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Inputs of one decision, frozen."""

    now: datetime
    backlog: Backlog
    instances: tuple[Instance, ...]
    offers: tuple[Offer, ...]
    """In order of preference; the first one is taken."""
    open_run: Run | None = None
    paused_until: datetime | None = None
    spent_today: Usd = ZERO
    """By settled runs since midnight UTC, at most."""
    unproductive: int = 0
    """Latest consecutive paid runs without a transcript."""
    last_unproductive: datetime | None = None
    host_fault: HostFault | None = None
    """Of the latest paid run; None if it has none."""
    access: str = ""
    """Hash of the present settings with which the host is reached."""
    set_up_at: datetime | None = None
    """Time of the last set-up of the host, if there is a fault."""
    foreign_claim: str | None = None
    """The sentence for an instance in use by another scheduler; else None."""

    @property
    def instance(self) -> Instance:
        """The first instance, whose type is offered first."""
        return self.instances[0]

    @property
    def offer(self) -> Offer:
        return self.offers[0]


class ReasonCode(StrEnum):
    """Reason of a decision, for programs; the sentence is for users."""

    PAUSED = "paused"
    EMPTY = "nothing-pending"
    BELOW_THRESHOLD = "below-threshold"
    ONLY_FAILED_BEFORE = "only-troubled"
    GPU_IN_USE = "gpu-in-use"
    GPU_MOVING = "gpu-moving"
    THRESHOLD = "threshold-reached"
    MAX_WAIT = "longest-wait-in-reach"
    NOW = "asked-for-now"
    BUDGET = "budget-spent"
    BACKING_OFF = "backing-off"
    GPU_MISSING = "gpu-missing"
    OPEN_RUN = "open-run"
    NEVER_STARTED = "never-started"
    DEADLINE = "deadline-passed"


@dataclass(frozen=True, slots=True)
class Reason:
    code: ReasonCode
    sentence: str
    numbers: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hold:
    reason: Reason
    overdue: bool = False
    """A chunk's longest wait is in reach and no start is possible, or a chunk has no attempts left."""


@dataclass(frozen=True, slots=True)
class Launch:
    reason: Reason
    batch: Batch
    offer: Offer
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    reason: Reason
    run: Run


@dataclass(frozen=True, slots=True)
class Reclaim:
    reason: Reason
    run: Run


Decision = Hold | Launch | Resume | Reclaim


def decide(seen: Observation, policy: Policy) -> Decision:
    """Decides for an observation; total and pure.

    In order of precedence: an open run, a pause by the user, the policy's triggers, and obstacles to a start.
    """
    if seen.open_run is not None:
        return continue_run(seen.now, seen.open_run)
    if seen.paused_until is not None and seen.now < seen.paused_until:
        too = "; a pause holds `run`, too" if policy.manual else ""
        return Hold(Reason(ReasonCode.PAUSED, f"paused {describe_pause(seen.paused_until)}{too}"))
    batch = fit_batch(seen, policy)
    pays, reason = _find_reason(seen, policy, batch)
    if not pays:
        return Hold(reason, overdue=seen.backlog.exhausted > 0)
    if (
        obstacle := _find_host_fault(seen, policy)
        or _find_backoff(seen, policy)
        or _find_budget_limit(seen, policy, batch)
        or _find_obstacle(seen, policy)
    ):
        overdue = wait_in_reach(seen, policy, batch) or obstacle.code is ReasonCode.BACKING_OFF
        return Hold(Reason(obstacle.code, f"{obstacle.sentence}; {reason.sentence}", reason.numbers), overdue)
    borrowed = all(instance.state in _ALREADY_UP for instance in seen.instances)
    return Launch(reason, batch, seen.offer, borrowed=borrowed)


def describe_pause(until: datetime) -> str:
    """Returns the end of a pause, such as "until 2026-11-23 12:00 UTC"."""
    if until >= FOREVER:
        return "until `batchscribe resume`"
    return f"until {until:%Y-%m-%d %H:%M} UTC; `batchscribe resume` ends it"


def fit_batch(seen: Observation, policy: Policy) -> Batch:
    """The batch that one run would take of the current backlog."""
    return pack(
        seen.backlog.candidates,
        pending=seen.backlog.pending,
        priors=seen.offer.priors,
        rate=seen.offer.rate,
        seconds=policy.max_runtime.total_seconds(),
        limit=policy.limit,
    )


def continue_run(now: datetime, run: Run) -> Decision:
    """Decides for an open run: it continues, or it is closed."""
    numbers = {"run": run.id, "state": run.state.value}
    if not run.started and now - run.created >= INTENT_LASTS:
        sentence = f"run {run.id} was planned, but requested no start in time: it is closed"
        return Reclaim(Reason(ReasonCode.NEVER_STARTED, sentence, numbers), run)
    if now >= run.deadline:
        sentence = f"run {run.id} is past its deadline {run.deadline:%H:%M} UTC: its GPU is stopped"
        return Reclaim(Reason(ReasonCode.DEADLINE, sentence, numbers), run)
    return Resume(
        Reason(ReasonCode.OPEN_RUN, f"run {run.id} is {run.state.value}: it continues", numbers), run
    )


def _find_reason(seen: Observation, policy: Policy, batch: Batch) -> tuple[bool, Reason]:
    numbers = _collect_numbers(seen, policy, batch)
    if trigger := _find_trigger(seen, policy, batch):
        return True, Reason(*trigger, numbers)
    return False, Reason(*_explain_hold(seen, policy), numbers)


def _find_trigger(seen: Observation, policy: Policy, batch: Batch) -> tuple[ReasonCode, str] | None:
    """The reason for a start; None if there is none."""
    backlog = seen.backlog
    if policy.manual and backlog.pending:
        return ReasonCode.NOW, f"requested by the user: {format_count(backlog.pending, 'chunk')} pending"
    if policy.name is PolicyName.NOW and backlog.triggering:
        return ReasonCode.NOW, f"policy now: {format_count(backlog.triggering, 'chunk')} pending"
    if backlog.triggering >= policy.threshold:
        sentence = (
            f"{format_count(backlog.triggering, 'chunk')} pending, threshold {policy.threshold} reached"
        )
        return ReasonCode.THRESHOLD, sentence
    if wait_in_reach(seen, policy, batch):
        interval, longest = _format_hours(policy.check_interval), _format_hours(policy.max_wait)
        return ReasonCode.MAX_WAIT, (
            f"the oldest chunk has waited {_format_hours(_longest_wait(seen))} h; with the next check in "
            f"{interval} h it would pass the longest wait of {longest} h"
        )
    return None


def _explain_hold(seen: Observation, policy: Policy) -> tuple[ReasonCode, str]:
    """The reason for no start."""
    backlog = seen.backlog
    if backlog.triggering:
        sentence = (
            f"{format_count(backlog.triggering, 'chunk')} pending, below the threshold of {policy.threshold}"
        )
        return ReasonCode.BELOW_THRESHOLD, sentence
    if backlog.pending:
        sentence = (
            f"{format_count(backlog.pending, 'chunk')} pending, all failed before; each starts a GPU again "
            f"only at its longest wait of {policy.max_wait.total_seconds() / 3600:g} h"
        )
        return ReasonCode.ONLY_FAILED_BEFORE, sentence
    if backlog.waiting:
        sentence = (
            f"nothing may start yet: {format_count(backlog.waiting, 'chunk')} too young or being recorded"
        )
        return ReasonCode.EMPTY, sentence
    return ReasonCode.EMPTY, "nothing is pending"


def wait_in_reach(seen: Observation, policy: Policy, batch: Batch) -> bool:
    """True if waiting for the next check would exceed the longest wait; False for an empty backlog.

    A failed chunk waits from its last attempt on, so that each further attempt costs at most one start.
    """
    if _find_waiting_since(seen.backlog) is None:
        return False
    lead = timedelta(seconds=batch.estimate.setup_seconds + batch.estimate.work_seconds)
    return _longest_wait(seen) + policy.check_interval + lead >= policy.max_wait


def _find_host_fault(seen: Observation, policy: Policy) -> Reason | None:
    """The reason for a pause after a start that would fail again for the same cause; else None.

    It ends with a change of the settings, a set-up of the host, or a day; users may still start a run.
    """
    fault = seen.host_fault
    if policy.manual or fault is None or fault.access != seen.access:
        return None
    until = fault.at + LONGEST_PAUSE
    if seen.now >= until or (seen.set_up_at is not None and seen.set_up_at > fault.at):
        return None
    return Reason(
        ReasonCode.BACKING_OFF,
        f"the last start was paid for, and another one would fail again: {fault.cause}. The next one follows "
        f"after {until:%Y-%m-%d %H:%M} UTC, a change of settings or `batchscribe gpu setup --start`; "
        "`batchscribe run` starts at once",
    )


def _find_backoff(seen: Observation, policy: Policy) -> Reason | None:
    """The reason for a pause after starts without a transcript; None if there is none.

    From the second such start on, each pause doubles, up to a day; users may still start a run.
    """
    if policy.manual or seen.last_unproductive is None or seen.unproductive < PATIENT_STARTS:
        return None
    # Bounded before it is doubled: there may be many failures in a row.
    pause = min(policy.check_interval * (1 << min(seen.unproductive - 1, 20)), LONGEST_PAUSE)
    until = seen.last_unproductive + pause
    if seen.now >= until:
        return None
    return Reason(
        ReasonCode.BACKING_OFF,
        f"the last {seen.unproductive} starts were paid for, but transcribed no chunk: the next one follows "
        f"after {until:%Y-%m-%d %H:%M} UTC. See `batchscribe report` and `gpu check --start`; "
        "`batchscribe run` starts at once",
    )


def _find_budget_limit(seen: Observation, policy: Policy, batch: Batch) -> Reason | None:
    """The reason if this start would exceed the day's budget; else None."""
    if policy.daily_budget is None or seen.spent_today + batch.estimate.cost <= policy.daily_budget:
        return None
    sentence = (
        f"a start would cost about {batch.estimate.cost} on top of {seen.spent_today} spent today, "
        f"and the day's budget is {policy.daily_budget} (BATCH_MAX_DOLLARS_PER_DAY)"
    )
    return Reason(ReasonCode.BUDGET, sentence)


def _find_obstacle(seen: Observation, policy: Policy) -> Reason | None:
    """The reason if an instance must not be started; else None."""
    if seen.foreign_claim:
        return Reason(ReasonCode.GPU_IN_USE, seen.foreign_claim)
    obstacles = (_find_state_obstacle(instance, policy) for instance in seen.instances)
    return next(filter(None, obstacles), None)


def _find_state_obstacle(instance: Instance, policy: Policy) -> Reason | None:
    match instance.state:
        case InstanceState.MISSING | InstanceState.TERMINATED | InstanceState.SHUTTING_DOWN:
            sentence = f"instance {instance.id} is {instance.state}: set GPU_INSTANCE_ID to one that exists"
            return Reason(ReasonCode.GPU_MISSING, sentence)
        case InstanceState.PENDING if policy.if_running is IfRunning.HOLD:
            sentence = f"{instance.id} is being started from outside: not touched (GPU_IF_RUNNING=hold)"
            return Reason(ReasonCode.GPU_MOVING, sentence)
        case InstanceState.RUNNING if policy.if_running is IfRunning.HOLD:
            sentence = f"{instance.id} is running, started from outside: not touched (GPU_IF_RUNNING=hold)"
            return Reason(ReasonCode.GPU_IN_USE, sentence)
        case _:
            return None


def _find_waiting_since(backlog: Backlog) -> datetime | None:
    """Begin of the longest wait among chunks that may start a GPU."""
    return min(filter(None, (backlog.oldest, backlog.oldest_retry)), default=None)


def _longest_wait(seen: Observation) -> timedelta:
    since = _find_waiting_since(seen.backlog)
    return seen.now - since if since else _NO_TIME


def _collect_numbers(seen: Observation, policy: Policy, batch: Batch) -> dict[str, float | int | str | None]:
    oldest = seen.backlog.oldest
    return {
        "pending": seen.backlog.pending,
        "triggering": seen.backlog.triggering,
        "waiting": seen.backlog.waiting,
        "threshold": policy.threshold,
        "oldest_hours": round(_longest_wait(seen).total_seconds() / 3600, 2) if oldest else None,
        "max_wait_hours": policy.max_wait.total_seconds() / 3600,
        "batch_chunks": len(batch.chunks),
        "batch_left": batch.left,
        "batch_audio_hours": round(batch.estimate.audio_seconds / 3600, 3),
        "estimated_seconds": round(batch.estimate.seconds),
        "estimated_dollars": batch.estimate.cost.dollars,
        "hourly_dollars": batch.estimate.rate.per_hour.dollars,
    }


def _format_hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.1f}"


_ALREADY_UP: Final = frozenset({InstanceState.PENDING, InstanceState.RUNNING})
_NO_TIME: Final = timedelta(0)
