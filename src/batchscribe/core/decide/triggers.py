"""Triggers of a start: each function returns when its trigger holds.

The times apply if no other chunk arrives. A start is due at the first check after the earliest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchscribe.core.decide.observation import Observation, Policy, PolicyName, ReasonCode
from batchscribe.core.decide.planned_start import PlannedStart, find_waiting_since
from batchscribe.core.figures import format_count, format_minutes

_HOUR = 3600.0
_KEEPS_LIMIT = frozenset({PolicyName.DEADLINE, PolicyName.BALANCED})
_LIMITS = frozenset({ReasonCode.MAX_WAIT, ReasonCode.LAST_SAFE_MOMENT})


@dataclass(frozen=True, slots=True)
class Trigger:
    """A reason for a start."""

    at: datetime
    code: ReasonCode
    sentence: str
    """Describes the present: it applies once the trigger holds."""


def find_triggers(seen: Observation, policy: Policy, start: PlannedStart) -> Iterator[Trigger]:
    """Yields the triggers that can hold for this backlog, by precedence."""
    backlog = seen.backlog
    if policy.manual and backlog.pending:
        before = f", {backlog.troubled} of them failed before" if backlog.troubled else ""
        sentence = f"requested by the user: {format_count(backlog.pending, 'chunk')} pending{before}"
        yield Trigger(seen.now, ReasonCode.NOW, sentence)
    if backlog.triggering and seen.interrupted:
        pending = format_count(backlog.triggering, "chunk")
        sentence = f"the cloud interrupted a spot machine of run {seen.interrupted}: {pending} pending"
        yield Trigger(seen.now, ReasonCode.INTERRUPTED, sentence)
    if backlog.triggering:
        match policy.name:
            case PolicyName.NOW:
                sentence = f"policy now: {format_count(backlog.triggering, 'chunk')} pending"
                yield Trigger(seen.now, ReasonCode.NOW, sentence)
            case PolicyName.BALANCED:
                yield from _find_balance(seen, policy, start)
                yield from _find_quiet(seen, policy, start)
            case PolicyName.THRESHOLD:
                if backlog.triggering >= policy.threshold:
                    pending = format_count(backlog.triggering, "chunk")
                    sentence = f"{pending} pending, threshold {policy.threshold} reached"
                    yield Trigger(seen.now, ReasonCode.THRESHOLD, sentence)
            case PolicyName.DEADLINE:
                pass
    yield from _find_latest(seen, policy, start)


def find_expected(seen: Observation, policy: Policy, triggers: Iterable[Trigger]) -> datetime | None:
    """Time from which a check starts the GPU without further arrivals."""
    wait = policy.hours.find_next if policy.hours and not policy.manual else None
    return min(
        (
            wait(max(trigger.at, seen.now)) if wait and trigger.code not in _LIMITS else trigger.at
            for trigger in triggers
        ),
        default=None,
    )


def _find_balance(seen: Observation, policy: Policy, start: PlannedStart) -> Iterator[Trigger]:
    """Holds once the pending chunks' waits cost as much as a start."""
    waits, setup, price = start.waits, start.setup_cost, policy.wait_price
    if not waits.audio_hours or not price.micros:
        return
    missing = max(0.0, setup.micros / price.micros - waits.waited)
    hours = min(missing / waits.audio_hours, policy.max_wait / timedelta(hours=1))
    audio, average = waits.audio_hours * _HOUR, waits.waited / waits.audio_hours * _HOUR
    yield Trigger(
        seen.now + timedelta(hours=hours),
        ReasonCode.BALANCE,
        f"{format_minutes(audio)} of audio waited {format_minutes(average)} on average: "
        f"{waits.describe_cost(price)}, and the set-up of a start costs {setup}",
    )


def _find_quiet(seen: Observation, policy: Policy, start: PlannedStart) -> Iterator[Trigger]:
    """Holds a while after the last chunk and the last start.

    The cool-down ends when this audio could have waited since the last start for the price of a start: a
    steady flow of recordings with pauses is left to the balance.
    """
    waits, price = start.waits, policy.wait_price
    enough = waits.audio_hours * _HOUR >= policy.quiet_audio.total_seconds()
    if seen.backlog.waiting or not enough or waits.newest is None or not price.micros:
        return
    since = min(waits.newest, seen.now)
    worth = _as_span(start.setup_cost.micros / price.micros / waits.audio_hours * _HOUR)
    cooled = min(seen.last_start, seen.now) + max(policy.cool_down, worth) if seen.last_start else since
    yield Trigger(
        max(since + policy.quiet, cooled),
        ReasonCode.QUIET,
        f"no chunk arrived for {format_minutes((seen.now - since).total_seconds())}, and "
        f"{format_minutes(waits.audio_hours * _HOUR)} of audio is pending",
    )


def _find_latest(seen: Observation, policy: Policy, start: PlannedStart) -> Iterator[Trigger]:
    latest = find_latest_start(seen, policy, start)
    if latest is None:
        return
    at = _prefer_hours(latest, seen, policy)
    waited, longest, interval = (
        format_minutes(span.total_seconds())
        for span in (longest_wait(seen), policy.max_wait, policy.check_interval)
    )
    sentence = (
        f"the oldest chunk has waited {waited}; with the next check in {interval} it would pass "
        f"the longest wait of {longest}"
    )
    if policy.name in _KEEPS_LIMIT:
        sentence += (
            f" (up to {format_minutes(start.outlook.seconds)} for set-up and work, "
            f"{format_minutes(policy.slack.total_seconds())} in reserve)"
        )
    if at < latest:
        sentence = (
            f"the oldest chunk has waited {waited}, and the last start within its longest wait of "
            f"{longest}, at {latest:%Y-%m-%d %H:%M} UTC, is outside BATCH_HOURS ({policy.hours})"
        )
    code = ReasonCode.LAST_SAFE_MOMENT if policy.name in _KEEPS_LIMIT else ReasonCode.MAX_WAIT
    yield Trigger(at, code, sentence)


def _prefer_hours(latest: datetime, seen: Observation, policy: Policy) -> datetime:
    """The time, or the last check within BATCH_HOURS before it, if any."""
    if policy.hours is None or latest <= seen.now:
        return latest
    begin, end = policy.hours.find_last(latest)
    return min(latest, max(begin, end - policy.check_interval)) if end > seen.now else latest


def find_latest_start(seen: Observation, policy: Policy, start: PlannedStart) -> datetime | None:
    """Time from which the next check may be too late, if any.

    A failed chunk waits from its last attempt on, so that each further attempt costs at most one start.
    """
    since = find_waiting_since(seen)
    if since is None:
        return None
    estimate = start.batch.estimate
    lead = _as_span(estimate.setup_seconds + estimate.work_seconds)
    if policy.name in _KEEPS_LIMIT:
        seconds = start.outlook.seconds
        if not start.batch.left and seen.backlog.oldest_retry is None:
            # The first chunks of a run for the whole backlog are done before the last ones.
            waited = (seen.now - since).total_seconds()
            seconds += start.waits.tightest * _HOUR - waited - estimate.work_seconds
        lead = _as_span(seconds) + policy.slack
    return since + policy.max_wait - min(lead + policy.check_interval, policy.max_wait)


def longest_wait(seen: Observation) -> timedelta:
    since = find_waiting_since(seen)
    return seen.now - since if since else timedelta(0)


def _as_span(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, 1e9))
