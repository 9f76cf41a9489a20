"""Baselines for a bill: other rules, an always-on GPU, the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.money import Usd, cost
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.optimum import find_least_total, make_slots
from batchscribe.core.decide.replay import replay
from batchscribe.core.decide.simulation import find_limits

ORIGINAL_THRESHOLD = 100


class BaselineName(StrEnum):
    """Names of the baselines, as in JSON."""

    EACH_ARRIVAL = "each-arrival"
    """A start at each check that finds new chunks."""
    THRESHOLD_100 = "threshold-100"
    """The original rule: a start at 100 chunks, or at the longest wait."""
    ALWAYS_ON = "always-on"
    """A GPU that is never stopped: an upper bound of the savings."""
    OPTIMUM = "optimum"
    """The cheapest starts that keep the longest wait, with all arrivals known in advance."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a baseline in dollars; all None if it is unknown."""

    against: str
    """each-arrival, threshold-100, always-on or optimum."""
    cost: float | None = None
    cost_micros: int | None = None
    saved: float | None = None
    """Negative if the baseline is cheaper; for the optimum, the regret with a minus sign."""
    saved_micros: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The bill of a period, and what it bought."""

    cost: Usd
    hours: float
    """Length of the period."""
    arrivals: Sequence[Arrival] | None
    """The transcribed chunks, in order of time. None if no arrivals were recorded."""
    waits: Sequence[float]
    """Their seconds from the arrival to the transcript."""


def compare_baselines(bill: Bill, policy: Policy, offer: Offer) -> tuple[Baseline, ...]:
    """Compares the bill with each baseline on the offer.

    The policy has the longest wait and the interval of the checks.
    """
    costs: dict[BaselineName, Usd] = {BaselineName.ALWAYS_ON: offer.rate.per_hour.times(bill.hours)}
    if bill.arrivals is not None:
        costs |= _replay_rules(bill.arrivals, policy, offer)
        costs[BaselineName.OPTIMUM] = _find_optimum(bill.arrivals, bill.waits, policy, offer)
    return tuple(_make_baseline(name, costs.get(name), bill.cost) for name in BaselineName)


def _replay_rules(arrivals: Sequence[Arrival], policy: Policy, offer: Offer) -> dict[BaselineName, Usd]:
    free = replace(policy, name=PolicyName.NOW, daily_budget=None, hours=None)
    original = replace(free, name=PolicyName.THRESHOLD, threshold=ORIGINAL_THRESHOLD)
    return {
        BaselineName.EACH_ARRIVAL: replay(arrivals, free, (offer,)).cost,
        BaselineName.THRESHOLD_100: replay(arrivals, original, (offer,)).cost,
    }


def _find_optimum(arrivals: Sequence[Arrival], waits: Sequence[float], policy: Policy, offer: Offer) -> Usd:
    limits = find_limits(waits, policy, offer.priors)
    slots = make_slots(arrivals, offer.priors, policy.check_interval, limits)
    return cost(offer.rate, find_least_total(slots, offer.priors, 1.0, 0.0), minimum=0)


def _make_baseline(name: BaselineName, dollars: Usd | None, paid: Usd) -> Baseline:
    if dollars is None:
        return Baseline(against=name.value)
    saved = dollars - paid
    return Baseline(
        against=name.value,
        cost=dollars.dollars,
        cost_micros=dollars.micros,
        saved=saved.dollars,
        saved_micros=saved.micros,
    )


BASELINE_LABELS = {
    BaselineName.EACH_ARRIVAL: "Against one start per arrival",
    BaselineName.THRESHOLD_100: "Against the original rule, 100 chunks",
    BaselineName.ALWAYS_ON: "Against an always-on GPU (upper bound)",
    BaselineName.OPTIMUM: "Regret against the optimum",
}


def format_baseline(baseline: Baseline) -> str:
    """Line such as `Against one start per arrival: about $1.20 …`."""
    return f"{BASELINE_LABELS[BaselineName(baseline.against)]}: {describe_saved(baseline)}"


def describe_saved(baseline: Baseline) -> str:
    """Text such as `about $1.20 of its $1.50 saved`, or the loss."""
    name, saved, dollars = BaselineName(baseline.against), baseline.saved_micros, baseline.cost_micros
    if saved is None or dollars is None:
        return "unknown: no arrivals recorded"
    if name is BaselineName.OPTIMUM:
        word = "less" if saved > 0 else "more"
        return f"about {Usd(abs(saved))} {word} than its {Usd(dollars)}"
    if saved < 0:
        return f"none, about {Usd(-saved)} dearer than its {Usd(dollars)}"
    bound = "at most" if name is BaselineName.ALWAYS_ON else "about"
    return f"{bound} {Usd(saved)} of its {Usd(dollars)} saved"
