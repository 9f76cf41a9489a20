"""The sum of a start, as `tick --dry-run` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from batchscribe.core.decide.hosted import Savings, make_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import Observation, Policy, ReasonCode
from batchscribe.core.decide.planned_start import find_waiting_since, plan_start
from batchscribe.core.decide.policy import FOREVER, continue_run, find_obstacles
from batchscribe.core.decide.triggers import find_expected, find_triggers
from batchscribe.core.figures import Line, format_count, format_minutes

_HOUR = 3600.0


class ListedObstacle(msgspec.Struct, frozen=True, kw_only=True):
    """An obstacle to a start; `code` is a decision's reason code."""

    code: str
    sentence: str


class StartSum(msgspec.Struct, frozen=True, kw_only=True):
    """The backlog, and the estimated cost of a start now."""

    chunks: int
    """Of the backlog."""
    audio_minutes: float
    """Of the backlog."""
    runs: int
    """That the backlog needs."""
    oldest_wait_hours: float | None
    instance_type: str
    dollars: float
    dollars_per_audio_hour: float | None
    setup_dollars: float
    setup_share: float | None
    """Part of the cost that is paid before the first word and after the last; None without a cost."""
    hosted: Savings | None
    """A hosted service's price for the audio of the batch."""
    hosted_is_cheaper: bool
    expected_start: datetime | None
    """Time of the first check that starts the GPU if nothing else arrives; None if no start is expected."""
    obstacles: tuple[ListedObstacle, ...]
    """By precedence; each must end before a start."""


def sum_up_start(seen: Observation, policy: Policy) -> StartSum:
    """Sums up a start now, whatever the decision is."""
    start = plan_start(seen, policy)
    obstacles = [*find_obstacles(seen, policy, start)]
    if seen.open_run:
        obstacles.insert(0, continue_run(seen.now, seen.open_run).reason)
    estimate, since = start.batch.estimate, find_waiting_since(seen)
    expected = find_expected(seen, policy, find_triggers(seen, policy, start))
    earliest = max(seen.now, seen.paused_until or seen.now)
    each = estimate.cost.per(estimate.audio_seconds / _HOUR)
    savings = make_savings(estimate.cost, estimate.audio_seconds / _HOUR)
    return StartSum(
        chunks=seen.backlog.pending,
        audio_minutes=start.outlook.audio_seconds / 60,
        runs=start.outlook.runs,
        oldest_wait_hours=(seen.now - since).total_seconds() / _HOUR if since else None,
        instance_type=start.offer.instance_type,
        dollars=estimate.cost.dollars,
        dollars_per_audio_hour=each.dollars if each else None,
        setup_dollars=start.setup_cost.dollars,
        setup_share=start.setup_cost.micros / estimate.cost.micros if estimate.cost.micros else None,
        hosted=savings,
        hosted_is_cheaper=savings is not None and savings.saved_micros < 0,
        expected_start=max(expected, earliest) if expected and earliest < FOREVER else None,
        obstacles=tuple(
            ListedObstacle(code=obstacle.code, sentence=obstacle.sentence) for obstacle in obstacles
        ),
    )


def describe_sum(total: StartSum) -> Iterator[Line]:
    """Yields (label, text) of backlog, costs, hosted price and expected start."""
    waits = total.oldest_wait_hours
    oldest = "" if waits is None else f", the oldest waits for {format_minutes(waits * _HOUR)}"
    runs = f", {total.runs} runs" if total.runs > 1 else ""
    audio = format_minutes(total.audio_minutes * 60)
    yield "Backlog", f"{format_count(total.chunks, 'chunk')}, {audio} of audio{oldest}{runs}"
    yield "A start now", _describe_cost(total)
    if hosted := total.hosted:
        comparison = (
            f"{Usd(-hosted.saved_micros)} cheaper than a start now"
            if total.hosted_is_cheaper
            else f"a start now saves about {Usd(hosted.saved_micros)}"
        )
        yield f"{hosted.against} for the same audio", f"{Usd.parse(hosted.hosted)}, {comparison}"
    yield "Expected start", _describe_expected(total)


def _describe_cost(total: StartSum) -> str:
    cost, each = f"about {Usd.parse(total.dollars)}", total.dollars_per_audio_hour
    if each is None or total.setup_share is None:
        return cost
    return f"{cost}, {Usd.parse(each)} an audio hour, {total.setup_share:.0%} of it for set-up and stop"


def _describe_expected(total: StartSum) -> str:
    if total.expected_start is None:
        return "none: no pending chunk starts a GPU, or a pause has no end"
    ends = {ReasonCode.PAUSED, ReasonCode.OUTSIDE_HOURS}
    way = ", once nothing stands in the way" if any(each.code not in ends for each in total.obstacles) else ""
    at = f"{total.expected_start:%Y-%m-%d %H:%M} UTC"
    return f"at the first check from {at} on, if nothing else arrives{way}"
