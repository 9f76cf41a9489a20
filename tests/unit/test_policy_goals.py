"""Goals of the policies, on traces with fixed seeds that did not tune them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.simulation import PolicyResult, simulate_policy
from bench.policies import TRACES, make_offer, make_trace

SPARSE = sorted(TRACES.keys() - {"meetings", "office hours"})
"""Traces with fewer arrivals, so that frequent checks take little time."""
CASES = [
    *((name, 1, 60, 24) for name in TRACES),
    *((name, 2, 60, 4) for name in TRACES),
    *((name, 3, 10, 24) for name in SPARSE),
    ("archives", 4, 60, 6),
    ("at random", 4, 15, 8),
]
"""(trace, seed, minutes between checks, longest wait in hours)."""


def result_of(name: PolicyName, trace: str, seed: int, minutes: int, hours: int) -> PolicyResult:
    policy = Policy(name=name, max_wait=timedelta(hours=hours), check_interval=timedelta(minutes=minutes))
    return simulate_policy(make_trace(trace, seed), policy, (make_offer(),))


@pytest.mark.parametrize(("trace", "seed", "minutes", "hours"), CASES)
def test_deadline_costs_no_more_than_the_optimum(trace: str, seed: int, minutes: int, hours: int) -> None:
    result = result_of(PolicyName.DEADLINE, trace, seed, minutes, hours)
    assert result.late == 0
    assert 1 <= result.ratio <= 1.01


@pytest.mark.parametrize(("trace", "seed", "minutes", "hours"), CASES)
def test_balanced_is_near_the_optimum_of_bill_and_waits(
    trace: str, seed: int, minutes: int, hours: int
) -> None:
    result = result_of(PolicyName.BALANCED, trace, seed, minutes, hours)
    assert result.late == 0
    assert 1 <= result.ratio <= 1.5
