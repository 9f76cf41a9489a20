"""Scheduling policy: `decide` maps an observation to a decision with its reason.

The decision is total and pure: the same observation always has the same result, in one sentence and in
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from batchscribe.core.decide.observation import (
    IfRunning,
    Observation,
    Policy,
    PolicyName,
    Reason,
    ReasonCode,
)
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import Batch
from batchscribe.core.decide.planned_start import ALREADY_UP, PlannedStart, plan_lane, plan_start
from batchscribe.core.decide.triggers import find_expected, find_latest_start, find_triggers, longest_wait
from batchscribe.core.figures import format_count, format_minutes
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.runs import Run

INTENT_LASTS: Final = timedelta(minutes=10)
"""A run without a start request by then is closed: its observation is out of date."""
FOREVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""End of a pause without a duration."""
PATIENT_STARTS: Final = 2
LONGEST_PAUSE: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Hold:
    reason: Reason
    overdue: bool = False
    """A chunk's longest wait is in reach and no start is possible, or a chunk has no attempts left."""
    expected: datetime | None = None
    """Time after which a check starts the GPU if nothing else arrives; None if nothing waits for that."""


@dataclass(frozen=True, slots=True)
class Launch:
    reason: Reason
    batch: Batch
    offer: Offer
    machines: int = 1
    borrowed: bool = False
    outside_hours: bool = False
    """BATCH_HOURS begin too late for the longest wait."""

    @property
    def lane(self) -> bool:
        """True if this machine's processor does the work, not the GPU."""
        return self.offer.market is Market.LANE


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

    In order of precedence: an open run, a pause by the user, this machine's processor, the policy's triggers,
    and obstacles to a start.
    """
    if (run := seen.open_run or seen.lane_run) is not None:
        return _continue_lane(seen, run, policy) if run.lane else continue_run(seen.now, run)
    start = plan_start(seen, policy)
    obstacles = tuple(find_obstacles(seen, policy, start))
    if obstacles and obstacles[0].code is ReasonCode.PAUSED:
        return Hold(obstacles[0])
    if lane := _use_lane(seen, policy, start, obstructed=bool(obstacles)):
        return lane
    numbers = _collect_numbers(seen, policy, start)
    triggers = tuple(find_triggers(seen, policy, start))
    held = next((trigger for trigger in triggers if trigger.at <= seen.now), None)
    expected = find_expected(seen, policy, triggers)
    if held is None:
        reason = Reason(*_explain_hold(seen, policy, start, expected), numbers)
        return Hold(reason, overdue=seen.backlog.exhausted > 0, expected=expected)
    reason = Reason(held.code, "; ".join(filter(None, (held.sentence, start.note))), numbers)
    if not obstacles:
        return _make_launch(seen, policy, start, reason)
    obstacle = obstacles[0]
    held_back = Reason(obstacle.code, f"{obstacle.sentence}; {reason.sentence}", numbers)
    overdue = wait_in_reach(seen, policy, start)
    return Hold(held_back, overdue, expected if obstacle.code is ReasonCode.OUTSIDE_HOURS else None)


def _use_lane(seen: Observation, policy: Policy, start: PlannedStart, *, obstructed: bool) -> Launch | None:
    """The start on this machine's processor; None if it could be late.

    If it fails, the next check still starts the GPU in time. `obstructed`: the GPU cannot be started now.
    """
    plan = plan_lane(seen, policy, start)
    if plan is None or (wait_in_reach(seen, policy, start) and not obstructed):
        return None
    sentence = f"{format_count(seen.backlog.pending, 'chunk')} pending, {plan.note}"
    reason = Reason(ReasonCode.CPU_LANE, sentence, _collect_numbers(seen, policy, plan))
    return Launch(reason, plan.batch, plan.offer)


def _continue_lane(seen: Observation, run: Run, policy: Policy) -> Decision:
    """Continues a run on the processor until the GPU has to start."""
    instead = decide(replace(seen, lane=None, lane_run=None), policy)
    urgent = policy.manual or wait_in_reach(seen, policy, plan_start(seen, policy))
    if not urgent or not isinstance(instead, Launch):
        return continue_run(seen.now, run)
    sentence = f"{instead.reason.sentence}; run {run.id} on this machine is ended"
    return replace(instead, reason=replace(instead.reason, sentence=sentence))


def _make_launch(seen: Observation, policy: Policy, start: PlannedStart, reason: Reason) -> Launch:
    outside = _find_opening(seen, policy) is not None
    if outside:
        sentence = f"{reason.sentence}; BATCH_HOURS ({policy.hours}) would begin too late"
        reason = replace(reason, sentence=sentence)
    borrowed = bool(seen.instances) and all(each.state in ALREADY_UP for each in seen.instances)
    machines = start.outlook.machines
    return Launch(reason, start.batch, start.offer, machines, borrowed=borrowed, outside_hours=outside)


def find_obstacles(seen: Observation, policy: Policy, start: PlannedStart) -> Iterator[Reason]:
    """Yields what prevents a start now, by precedence."""
    if seen.paused_until is not None and seen.now < seen.paused_until:
        too = "; a pause holds `run`, too" if policy.manual else ""
        yield Reason(ReasonCode.PAUSED, f"paused {describe_pause(seen.paused_until)}{too}")
    found = (
        _find_host_fault(seen, policy),
        _find_backoff(seen, policy, start),
        _find_budget_limit(seen, policy, start.batch),
        _find_obstacle(seen, policy),
        _find_closed_hours(seen, policy, start),
    )
    yield from filter(None, found)


def describe_pause(until: datetime) -> str:
    """Returns the end of a pause, such as "until 2026-11-23 12:00 UTC"."""
    if until >= FOREVER:
        return "until `batchscribe resume`"
    return f"until {until:%Y-%m-%d %H:%M} UTC; `batchscribe resume` ends it"


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


def _explain_hold(
    seen: Observation, policy: Policy, start: PlannedStart, expected: datetime | None
) -> tuple[ReasonCode, str]:
    """The reason for no start."""
    backlog = seen.backlog
    if backlog.triggering and policy.name is not PolicyName.THRESHOLD:
        return ReasonCode.NOT_YET, _explain_wait(seen, policy, start, expected)
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


def _explain_wait(seen: Observation, policy: Policy, start: PlannedStart, expected: datetime | None) -> str:
    audio = format_minutes(start.outlook.audio_seconds)
    pending = f"{format_count(seen.backlog.triggering, 'chunk')} pending, {audio} of audio"
    at = f"{expected:%Y-%m-%d %H:%M} UTC" if expected else "the longest wait"
    if policy.name is not PolicyName.BALANCED:
        latest = find_latest_start(seen, policy, start)
        if not expected or not latest or expected >= latest:
            return f"{pending}: the last safe moment for a start is {at}"
        return (
            f"{pending}: the last safe moment for a start is {latest:%Y-%m-%d %H:%M} UTC, and the last check "
            f"within BATCH_HOURS ({policy.hours}) before it comes after {at}"
        )
    return (
        f"{pending}: {start.waits.describe_cost(policy.wait_price)}; the set-up of a start costs "
        f"{start.setup_cost}; without another chunk the GPU starts after {at}"
    )


def wait_in_reach(seen: Observation, policy: Policy, start: PlannedStart) -> bool:
    """True if waiting for the next check could exceed the longest wait."""
    latest = find_latest_start(seen, policy, start)
    return latest is not None and latest <= seen.now


def _find_host_fault(seen: Observation, policy: Policy) -> Reason | None:
    """The reason for a pause if a start would fail as before.

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


def _find_backoff(seen: Observation, policy: Policy, start: PlannedStart) -> Reason | None:
    """The reason for a pause after starts without a transcript.

    From the second such start on, each pause doubles, up to a day; users may still start a run.
    """
    if policy.manual or seen.last_unproductive is None or seen.unproductive < PATIENT_STARTS:
        return None
    # Bounded before it is doubled: there may be many failures in a row.
    pause = min(policy.check_interval * (1 << min(seen.unproductive - 1, 20)), LONGEST_PAUSE)
    until = seen.last_unproductive + pause
    if seen.now >= until:
        return None
    check = "doctor" if start.offer.market is Market.LOCAL else "gpu check --start"
    return Reason(
        ReasonCode.BACKING_OFF,
        f"the last {seen.unproductive} starts were paid for, but transcribed no chunk: the next one follows "
        f"after {until:%Y-%m-%d %H:%M} UTC. See `batchscribe report` and `batchscribe {check}`; "
        "`batchscribe run` starts at once",
    )


def _find_budget_limit(seen: Observation, policy: Policy, batch: Batch) -> Reason | None:
    """The reason if this start would exceed the day's budget."""
    if policy.daily_budget is None or seen.spent_today + batch.estimate.cost <= policy.daily_budget:
        return None
    sentence = (
        f"a start would cost about {batch.estimate.cost} on top of {seen.spent_today} spent today, "
        f"and the day's budget is {policy.daily_budget} (BATCH_MAX_DOLLARS_PER_DAY)"
    )
    return Reason(ReasonCode.BUDGET, sentence)


def _find_obstacle(seen: Observation, policy: Policy) -> Reason | None:
    """The reason if an instance must not be started."""
    if seen.foreign_claim:
        return Reason(ReasonCode.GPU_IN_USE, seen.foreign_claim)
    obstacles = (_find_state_obstacle(instance, policy) for instance in seen.instances)
    return next(filter(None, obstacles), None)


def _find_closed_hours(seen: Observation, policy: Policy, start: PlannedStart) -> Reason | None:
    """The reason outside of BATCH_HOURS, unless a chunk would wait too long."""
    opens = _find_opening(seen, policy)
    if policy.hours is None or opens is None or wait_in_reach(seen, policy, start):
        return None
    sentence = f"BATCH_HOURS ({policy.hours}) begin again at {policy.hours.format_time(opens)}"
    latest = find_latest_start(seen, policy, start)
    if latest and latest < opens:
        sentence += f", too late for the longest wait: a start is allowed from {latest:%Y-%m-%d %H:%M} UTC on"
    return Reason(ReasonCode.OUTSIDE_HOURS, sentence)


def _find_opening(seen: Observation, policy: Policy) -> datetime | None:
    """The next begin of BATCH_HOURS; None within them."""
    opens = policy.hours.find_next(seen.now) if policy.hours and not policy.manual else seen.now
    return opens if opens > seen.now else None


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


def _collect_numbers(
    seen: Observation, policy: Policy, start: PlannedStart
) -> dict[str, float | int | str | None]:
    oldest, batch = seen.backlog.oldest, start.batch
    return {
        "pending": seen.backlog.pending,
        "triggering": seen.backlog.triggering,
        "waiting": seen.backlog.waiting,
        "quarantined": seen.backlog.quarantined,
        "threshold": policy.threshold,
        "oldest_hours": round(longest_wait(seen).total_seconds() / 3600, 2) if oldest else None,
        "max_wait_hours": policy.max_wait.total_seconds() / 3600,
        "batch_chunks": len(batch.chunks),
        "batch_left": batch.left,
        "batch_audio_hours": round(batch.estimate.audio_seconds / 3600, 3),
        "estimated_seconds": round(batch.estimate.seconds),
        "estimated_dollars": batch.estimate.cost.dollars,
        "setup_dollars": start.setup_cost.dollars,
        "waiting_dollars": start.waits.cost(policy.wait_price).dollars,
        "hourly_dollars": batch.estimate.rate.per_hour.dollars,
        "instance_type": start.offer.instance_type,
        "machines": start.outlook.machines,
        "runner_up": start.runner_up or None,
        "runner_up_dollars": start.difference.dollars if start.runner_up else None,
    }
