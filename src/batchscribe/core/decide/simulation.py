"""Compares policies on a trace of arrivals, with each other and with the offline optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.optimum import find_least_billed, find_least_total, make_slots
from batchscribe.core.decide.policy import Policy
from batchscribe.core.decide.replay import Replay, replay

HOUR = 3600.0
WAIT_PRICE = Usd(50_000)
_TOLERANCE = 1e-3
"""Seconds: below a rounding of times to microseconds."""


class WaitHours(msgspec.Struct, frozen=True, kw_only=True):
    """Hours from the arrival of a chunk to its transcript."""

    mean: float = 0.0
    p95: float = 0.0
    max: float = 0.0


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on a trace of arrivals."""

    name: str
    dollars: float
    dollars_micros: int
    dollars_per_audio_hour: float | None
    """None without audio."""
    starts: int
    late: int
    """Chunks that waited longer than the longest wait."""
    wait_hours: WaitHours
    ratio: float
    """To the optimum for what the policy minimises: `linear_ratio` for `balanced`, else `deadline_ratio`."""
    deadline_ratio: float
    """Bill, as a multiple of the least one that keeps the longest wait. Chunks that are late under the policy
    may be as late in the optimum."""
    linear_ratio: float
    """Bill and price of all waits, as a multiple of their least sum."""


def simulate(
    arrivals: Sequence[Arrival],
    policies: Sequence[Policy],
    offer: Offer,
    report: Callable[[int], None] = lambda _done: None,
) -> tuple[PolicyResult, ...]:
    """Replays each policy on the arrivals, which are in order of time."""
    return tuple(
        _describe(arrivals, policy, offer, replay(arrivals, policy, offer, report)) for policy in policies
    )


def _describe(arrivals: Sequence[Arrival], policy: Policy, offer: Offer, replayed: Replay) -> PolicyResult:
    limit = policy.max_wait.total_seconds()
    deadline_ratio, linear_ratio = _find_ratios(arrivals, policy, offer, replayed)
    return PolicyResult(
        name=policy.name.value,
        dollars=replayed.cost.dollars,
        dollars_micros=replayed.cost.micros,
        dollars_per_audio_hour=per_audio_hour(replayed.cost, arrivals),
        starts=len(replayed.starts),
        late=sum(wait > limit + _TOLERANCE for wait in replayed.waits),
        wait_hours=_measure_waits(replayed.waits),
        ratio=linear_ratio if policy.name == "balanced" else deadline_ratio,
        deadline_ratio=deadline_ratio,
        linear_ratio=linear_ratio,
    )


def _find_ratios(
    arrivals: Sequence[Arrival], policy: Policy, offer: Offer, replayed: Replay
) -> tuple[float, float]:
    """(bill, bill and price of waits) as multiples of their optima."""
    limit = policy.max_wait.total_seconds()
    limits = [max(limit, wait) for wait in replayed.waits]
    slots = make_slots(arrivals, offer.priors, policy.check_interval, limits)
    second_price, wait_price = offer.rate.per_hour.micros / HOUR, WAIT_PRICE.micros / HOUR**2
    waited = sum(each.audio_seconds * wait for each, wait in zip(arrivals, replayed.waits, strict=True))
    total = second_price * replayed.billed_seconds + wait_price * waited
    return (
        _divide(replayed.billed_seconds, find_least_billed(slots, offer.priors)),
        _divide(total, find_least_total(slots, offer.priors, second_price, wait_price)),
    )


def _divide(value: float, least: float) -> float:
    return value / least if least else 1.0


def per_audio_hour(cost: Usd, arrivals: Sequence[Arrival]) -> float | None:
    each = cost.per(sum(arrival.audio_seconds for arrival in arrivals) / HOUR)
    return each.dollars if each else None


def _measure_waits(waits: Sequence[float]) -> WaitHours:
    if not waits:
        return WaitHours()
    ranked = sorted(waits)
    p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
    return WaitHours(mean=sum(ranked) / len(ranked) / HOUR, p95=p95 / HOUR, max=ranked[-1] / HOUR)
