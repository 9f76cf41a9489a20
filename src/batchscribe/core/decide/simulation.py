"""Compares policies on a trace with each other and the offline optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import InstanceChoice, Policy, PolicyName
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.optimum import find_least_total, make_slots
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.replay import Replay, replay

HOUR = 3600.0
_CENT = 10_000
"""Micro-dollars."""
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
    """Bill, as a multiple of the least one that keeps the longest wait, with the same reserve for slow
    starts. Chunks that wait longer under the policy may wait as long in the optimum."""
    linear_ratio: float
    """Bill and price of all waits, as a multiple of their least sum within the same limits."""

    def costs_as_much_as(self, other: PolicyResult) -> bool:
        """True if the bills differ by less than a cent or 1%."""
        bills = self.dollars_micros, other.dollars_micros
        return max(bills) - min(bills) < max(_CENT, max(bills) / 100)


class OfferResult(msgspec.Struct, frozen=True, kw_only=True):
    """All policies on one offer."""

    instance_type: str
    """Empty for this machine; several types if `decide` chooses among them; with `cpu`, if that works beside.
    """
    rate: float
    """Dollars an hour."""
    rate_source: str
    setup_seconds: float
    """Billed seconds of a start before its work."""
    release_seconds: float
    """Billed seconds of a start after its work."""
    speed: float
    """Audio seconds for each second of work."""
    policies: tuple[PolicyResult, ...]

    def find_best(self, present: str) -> PolicyResult:
        """The policy with the fewest late chunks, then the lowest bill.

        Bills that hardly differ count as equal: then it has the shortest mean wait. If all is equal, it is
        the present one.
        """
        least = min(self.policies, key=lambda each: (each.late, each.dollars_micros))
        return min(
            (each for each in self.policies if each.late == least.late and each.costs_as_much_as(least)),
            key=lambda each: (each.wait_hours.mean, each.dollars_micros, each.name != present),
        )


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """Policies on one trace of arrivals, and the cheapest settings."""

    policies: tuple[PolicyResult, ...]
    """On the first offer."""
    offers: tuple[OfferResult, ...]
    """The instance as it is, then GPU_INSTANCE_TYPES, then the choice among them and the CPU lane."""
    chunks: int
    audio_hours: float
    since: datetime | None
    """First arrival; None without one."""
    until: datetime | None
    """Last arrival."""
    origin: str
    """Source of the arrivals."""
    check_hours: float
    max_wait_hours: float
    wait_price: float
    """Dollars for an audio hour that waits for an hour."""
    present: str
    """The policy in the present settings."""
    env: dict[str, str]
    """Settings with the fewest late chunks, then the lowest bill, then the shortest mean wait."""
    saved: float
    """Dollars that `env` saves against the present policy; negative if it keeps limits that others miss."""


def simulate(
    arrivals: Sequence[Arrival],
    policy: Policy,
    offers: Sequence[Offer],
    origin: str = "",
    report: Callable[[int], None] = lambda _done: None,
    *,
    lane: Offer | None = None,
) -> Simulation:
    """Replays the policy and its alternatives on each offer.

    Then on the choice among the offers, and with the lane: this machine's processor, if its speed is known.
    `arrivals` are in order of time; the alternatives have the policy's limits under each other name. `report`
    gets the number of chunks that each check starts.
    """
    rows = list_rows(policy, offers, lane)
    results = tuple(_simulate_offers(arrivals, policy, row, beside, report) for row, beside in rows)
    policies = results[0].policies
    present = next(each for each in policies if each.name == policy.name)
    best = results[0].find_best(present.name)
    hours = policy.max_wait / timedelta(hours=1)
    threshold = {"BATCH_THRESHOLD": str(policy.threshold)} if best.name == PolicyName.THRESHOLD else {}
    return Simulation(
        policies=policies,
        offers=results,
        chunks=len(arrivals),
        audio_hours=sum(each.audio_seconds for each in arrivals) / HOUR,
        since=arrivals[0].at if arrivals else None,
        until=arrivals[-1].at if arrivals else None,
        origin=origin,
        check_hours=policy.check_interval / timedelta(hours=1),
        max_wait_hours=hours,
        wait_price=policy.wait_price.dollars,
        present=present.name,
        env={"BATCH_POLICY": best.name, **threshold, "BATCH_MAX_WAIT_HOURS": f"{hours:g}"},
        saved=Usd(present.dollars_micros - best.dollars_micros).dollars,
    )


def list_rows(
    policy: Policy, offers: Sequence[Offer], lane: Offer | None
) -> list[tuple[Sequence[Offer], Offer | None]]:
    """(offers, lane) of each comparison: single offers, their choice, the lane beside."""
    alone: list[Sequence[Offer]] = [(offer,) for offer in offers]
    chosen = policy.choice is InstanceChoice.CHEAPEST and len(offers) > 1
    among = [offers] if chosen else []
    return [(row, None) for row in (*alone, *among)] + ([((*among, *alone)[0], lane)] if lane else [])


def _simulate_offers(
    arrivals: Sequence[Arrival],
    policy: Policy,
    offers: Sequence[Offer],
    lane: Offer | None,
    report: Callable[[int], None],
) -> OfferResult:
    policies = (replace(policy, name=name, daily_budget=None) for name in PolicyName)
    offer, kinds = offers[0], [each.instance_type for each in (*offers, *([lane] if lane else []))]
    return OfferResult(
        instance_type=" + ".join(kinds),
        rate=offer.rate.per_hour.dollars,
        rate_source=offer.rate.source,
        setup_seconds=offer.priors.setup_seconds,
        release_seconds=offer.priors.release_seconds,
        speed=offer.priors.speed,
        policies=tuple(simulate_policy(arrivals, each, offers, lane, report) for each in policies),
    )


def simulate_policy(
    arrivals: Sequence[Arrival],
    policy: Policy,
    offers: Sequence[Offer],
    lane: Offer | None = None,
    report: Callable[[int], None] = lambda _done: None,
) -> PolicyResult:
    """Replays one policy, and compares it with the optima of single offers."""
    replayed = replay(arrivals, policy, offers, lane, report)
    ratios = [_find_ratios(arrivals, policy, offer, replayed, mixed=len(offers) > 1) for offer in offers]
    deadline_ratio, linear_ratio = map(max, zip(*ratios, strict=True))
    each = replayed.cost.per(sum(arrival.audio_seconds for arrival in arrivals) / HOUR)
    return PolicyResult(
        name=policy.name.value,
        dollars=replayed.cost.dollars,
        dollars_micros=replayed.cost.micros,
        dollars_per_audio_hour=each.dollars if each else None,
        starts=len(replayed.starts),
        late=count_late(replayed.waits, policy),
        wait_hours=measure_waits(replayed.waits),
        ratio=linear_ratio if policy.name is PolicyName.BALANCED else deadline_ratio,
        deadline_ratio=deadline_ratio,
        linear_ratio=linear_ratio,
    )


def _find_ratios(
    arrivals: Sequence[Arrival], policy: Policy, offer: Offer, replayed: Replay, *, mixed: bool
) -> tuple[float, float]:
    """Bill, and bill with waits, as multiples of an offer's optima.

    The bill counts in seconds, so that a free offer has a ratio, too; in dollars if the offers are `mixed`.
    """
    priors = offer.priors
    slots = make_slots(arrivals, priors, policy.check_interval, find_limits(replayed.waits, policy, priors))
    second_price, wait_price = offer.rate.per_hour.micros / HOUR, policy.wait_price.micros / HOUR**2
    waited = sum(each.audio_seconds * wait for each, wait in zip(arrivals, replayed.waits, strict=True))
    bill = replayed.cost.micros if mixed else second_price * replayed.billed_seconds
    total, price = bill + wait_price * waited, second_price if mixed else 1.0
    return (
        _find_ratio(bill if mixed else replayed.billed_seconds, find_least_total(slots, priors, price, 0.0)),
        _find_ratio(total, find_least_total(slots, priors, second_price, wait_price)),
    )


def find_limits(waits: Iterable[float], policy: Policy, priors: Priors) -> list[float]:
    """Longest waits in the optimum, in seconds.

    A chunk that waited longer may wait as long in the optimum.
    """
    # The optimum knows all arrivals, but not how long a start takes.
    reserve = policy.slack.total_seconds() + priors.setup_p95_seconds - priors.setup_seconds
    limit = policy.max_wait.total_seconds() - reserve
    return [max(limit, wait) for wait in waits]


def _find_ratio(value: float, least: float) -> float:
    return round(value / least, 6) if least else 1.0


def count_late(waits: Iterable[float], policy: Policy) -> int:
    """Number of waits above the longest wait."""
    limit = policy.max_wait.total_seconds() + _TOLERANCE
    return sum(wait > limit for wait in waits)


def measure_waits(waits: Sequence[float]) -> WaitHours:
    """Mean, 95th percentile and maximum of waits in seconds."""
    if not waits:
        return WaitHours()
    ranked = sorted(waits)
    p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
    return WaitHours(mean=sum(ranked) / len(ranked) / HOUR, p95=p95 / HOUR, max=ranked[-1] / HOUR)
