"""Whether a start pays now: `decide` turns an observation into a decision, with its reason.

The decision is total and pure: the same observation always gets the same answer, in one sentence
and in numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from batchscribe.core.decide.money import ZERO, Rate, Usd
from batchscribe.core.decide.packing import Batch, Priors, pack
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.backlog import Backlog

INTENT_LASTS: Final = timedelta(minutes=10)
"""A run that asked for no start by then is closed: what it was decided on is out of date."""


PATIENT_STARTS: Final = 2
LONGEST_PAUSE: Final = timedelta(days=1)


class PolicyName(StrEnum):
    THRESHOLD = "threshold"
    NOW = "now"


class IfRunning(StrEnum):
    """What to do with a GPU that is already running and not ours."""

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
    by_hand: bool = False
    """A person asked: whatever is pending is taken, whatever its age or its past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The world at one moment, frozen."""

    now: datetime
    backlog: Backlog
    instance: Instance
    priors: Priors
    rate: Rate
    open_run: Run | None = None
    paused_until: datetime | None = None
    spent_today: Usd = ZERO
    """By settled runs since midnight UTC, at most."""
    fruitless: int = 0
    """Paid runs in a row, up to now, that got no chunk done."""
    last_fruitless: datetime | None = None
    stranger: str | None = None
    """Why the instance is in use by another scheduler, if it is."""


class ReasonCode(StrEnum):
    """Why, for programs; the sentence says it to people."""

    PAUSED = "paused"
    EMPTY = "nothing-pending"
    BELOW_THRESHOLD = "below-threshold"
    ONLY_TROUBLED = "only-troubled"
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
    """A chunk's longest wait is in reach and no start is possible, or a chunk has used up its attempts."""


@dataclass(frozen=True, slots=True)
class Launch:
    reason: Reason
    batch: Batch
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
    """The decision for what was seen; total, pure, and in this order of precedence.

    A run of ours comes first, then a pause by a person, then whether a start pays, and last whether
    the instance is ours to start.
    """
    if seen.open_run is not None:
        return continue_run(seen.now, seen.open_run)
    if seen.paused_until is not None and seen.now < seen.paused_until:
        return Hold(Reason(ReasonCode.PAUSED, f"paused until {seen.paused_until:%Y-%m-%d %H:%M} UTC"))
    batch = fit(seen, policy)
    pays, reason = _pays(seen, policy, batch)
    if not pays:
        return Hold(reason, overdue=seen.backlog.exhausted > 0)
    if obstacle := _backing_off(seen, policy) or _over_budget(seen, policy, batch) or _obstacle(seen, policy):
        overdue = wait_in_reach(seen, policy, batch) or obstacle.code is ReasonCode.BACKING_OFF
        return Hold(Reason(obstacle.code, f"{obstacle.sentence}; {reason.sentence}", reason.numbers), overdue)
    return Launch(reason, batch, borrowed=seen.instance.state in _SOMEBODY_STARTED)


def fit(seen: Observation, policy: Policy) -> Batch:
    """What one run would take of the backlog as it stands."""
    return pack(
        seen.backlog.candidates,
        pending=seen.backlog.pending,
        priors=seen.priors,
        rate=seen.rate,
        seconds=policy.max_runtime.total_seconds(),
        limit=policy.limit,
    )


def continue_run(now: datetime, run: Run) -> Decision:
    """The decision while a run is open: it goes on, or it is closed."""
    numbers = {"run": run.id, "state": run.state.value}
    if not run.started and now - run.created >= INTENT_LASTS:
        sentence = f"run {run.id} was planned, and asked for no start in time: it is closed"
        return Reclaim(Reason(ReasonCode.NEVER_STARTED, sentence, numbers), run)
    if now >= run.deadline:
        sentence = f"run {run.id} is past its deadline {run.deadline:%H:%M} UTC: it is released"
        return Reclaim(Reason(ReasonCode.DEADLINE, sentence, numbers), run)
    return Resume(Reason(ReasonCode.OPEN_RUN, f"run {run.id} is {run.state.value}: it goes on", numbers), run)


def _pays(seen: Observation, policy: Policy, batch: Batch) -> tuple[bool, Reason]:
    numbers = _numbers(seen, policy, batch)
    if trigger := _trigger(seen, policy, batch):
        return True, Reason(*trigger, numbers)
    return False, Reason(*_shortfall(seen, policy), numbers)


def _trigger(seen: Observation, policy: Policy, batch: Batch) -> tuple[ReasonCode, str] | None:
    """What makes a start pay; None where nothing does."""
    backlog = seen.backlog
    if policy.by_hand and backlog.pending:
        return ReasonCode.NOW, f"asked for now: {_chunks(backlog.pending)} pending"
    if policy.name is PolicyName.NOW and backlog.triggering:
        return ReasonCode.NOW, f"policy now: {_chunks(backlog.triggering)} pending"
    if backlog.triggering >= policy.threshold:
        sentence = f"{_chunks(backlog.triggering)} pending, threshold {policy.threshold} reached"
        return ReasonCode.THRESHOLD, sentence
    if wait_in_reach(seen, policy, batch):
        return ReasonCode.MAX_WAIT, (
            f"the oldest chunk has waited {_hours(_age(seen))} h; with the next check in "
            f"{_hours(policy.check_interval)} h it would pass the longest wait of {_hours(policy.max_wait)} h"
        )
    return None


def _shortfall(seen: Observation, policy: Policy) -> tuple[ReasonCode, str]:
    """Why nothing makes a start pay."""
    backlog = seen.backlog
    if backlog.triggering:
        sentence = f"{_chunks(backlog.triggering)} pending, below the threshold of {policy.threshold}"
        return ReasonCode.BELOW_THRESHOLD, sentence
    if backlog.pending:
        sentence = (
            f"{_chunks(backlog.pending)} pending, all failed before; each starts a GPU again only at its "
            f"longest wait of {policy.max_wait.total_seconds() / 3600:g} h"
        )
        return ReasonCode.ONLY_TROUBLED, sentence
    if backlog.waiting:
        sentence = f"nothing may start yet: {_chunks(backlog.waiting)} too young or being recorded"
        return ReasonCode.EMPTY, sentence
    return ReasonCode.EMPTY, "nothing is pending"


def wait_in_reach(seen: Observation, policy: Policy, batch: Batch) -> bool:
    """True if waiting for the next check would break the longest wait; False for an empty backlog.

    A chunk that failed waits from its last attempt on, so that each further attempt costs at most one start.
    """
    if _waiting_since(seen.backlog) is None:
        return False
    lead = timedelta(seconds=batch.estimate.setup_seconds + batch.estimate.work_seconds)
    return _age(seen) + policy.check_interval + lead >= policy.max_wait


def _backing_off(seen: Observation, policy: Policy) -> Reason | None:
    """Why no start is made after starts that produced no transcript; None if there were none.

    One such start may be bad luck. From the second on each pause doubles, up to a day; a user may start.
    """
    if policy.by_hand or seen.last_fruitless is None or seen.fruitless < PATIENT_STARTS:
        return None
    # Bounded before it is doubled: a row of failures may get long.
    pause = min(policy.check_interval * (1 << min(seen.fruitless - 1, 20)), LONGEST_PAUSE)
    until = seen.last_fruitless + pause
    if seen.now >= until:
        return None
    return Reason(
        ReasonCode.BACKING_OFF,
        f"the last {seen.fruitless} starts were paid for and got no chunk done: the next is tried from "
        f"{until:%Y-%m-%d %H:%M} UTC on. See `batchscribe report` and `gpu check --start`; `batchscribe run` "
        "tries at once",
    )


def _over_budget(seen: Observation, policy: Policy, batch: Batch) -> Reason | None:
    """Why this start would pass the day's budget; None where it would not, or there is none."""
    if policy.daily_budget is None or seen.spent_today + batch.estimate.cost <= policy.daily_budget:
        return None
    sentence = (
        f"a start would cost about {batch.estimate.cost} on top of {seen.spent_today} spent today, "
        f"and the day's budget is {policy.daily_budget} (BATCH_MAX_DOLLARS_PER_DAY)"
    )
    return Reason(ReasonCode.BUDGET, sentence)


def _obstacle(seen: Observation, policy: Policy) -> Reason | None:
    """Why the instance is not ours to start; None where it is."""
    instance = seen.instance
    if seen.stranger:
        return Reason(ReasonCode.GPU_IN_USE, seen.stranger)
    match instance.state:
        case InstanceState.MISSING | InstanceState.TERMINATED | InstanceState.SHUTTING_DOWN:
            sentence = f"instance {instance.id} is {instance.state}: set GPU_INSTANCE_ID to one that exists"
            return Reason(ReasonCode.GPU_MISSING, sentence)
        case InstanceState.PENDING if policy.if_running is IfRunning.HOLD:
            sentence = f"{instance.id} is being started by somebody else: left alone (GPU_IF_RUNNING=hold)"
            return Reason(ReasonCode.GPU_MOVING, sentence)
        case InstanceState.RUNNING if policy.if_running is IfRunning.HOLD:
            sentence = f"{instance.id} is already running and not ours: left alone (GPU_IF_RUNNING=hold)"
            return Reason(ReasonCode.GPU_IN_USE, sentence)
        case _:
            return None


def _waiting_since(backlog: Backlog) -> datetime | None:
    """Since when the chunk waits that waits longest and may start a GPU."""
    return min(filter(None, (backlog.oldest, backlog.oldest_retry)), default=None)


def _age(seen: Observation) -> timedelta:
    since = _waiting_since(seen.backlog)
    return seen.now - since if since else _NO_TIME


def _numbers(seen: Observation, policy: Policy, batch: Batch) -> dict[str, float | int | str | None]:
    oldest = seen.backlog.oldest
    return {
        "pending": seen.backlog.pending,
        "triggering": seen.backlog.triggering,
        "waiting": seen.backlog.waiting,
        "threshold": policy.threshold,
        "oldest_hours": round(_age(seen).total_seconds() / 3600, 2) if oldest else None,
        "max_wait_hours": policy.max_wait.total_seconds() / 3600,
        "batch_chunks": len(batch.chunks),
        "batch_left": batch.left,
        "batch_audio_hours": round(batch.estimate.audio_seconds / 3600, 3),
        "estimated_seconds": round(batch.estimate.seconds),
        "estimated_dollars": batch.estimate.cost.dollars,
        "hourly_dollars": batch.estimate.rate.per_hour.dollars,
    }


def _chunks(count: int) -> str:
    return f"{count} chunk" if count == 1 else f"{count} chunks"


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.1f}"


_SOMEBODY_STARTED: Final = frozenset({InstanceState.PENDING, InstanceState.RUNNING})
_NO_TIME: Final = timedelta(0)
