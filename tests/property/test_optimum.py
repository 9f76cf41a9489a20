"""The offline optimum against all possible starts of small traces, and every policy against the optimum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import combinations
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, Rate, Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.optimum import find_least_total, make_slots
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.simulation import simulate
from support.values import NOW

INTERVAL = 600
CHECKS = 6
LIMIT = 1800.0
Starts = tuple[int, ...]

times = st.integers(-INTERVAL * (CHECKS - 1), 0)
traces = st.lists(
    st.builds(
        lambda seconds, audio: Arrival(NOW + timedelta(seconds=seconds), audio), times, st.integers(1, 9000)
    ),
    min_size=1,
    max_size=8,
).map(lambda arrivals: tuple(sorted(arrivals)))
services = st.builds(
    lambda speed, setup, release: Priors(
        speed=float(speed), setup_seconds=float(setup), release_seconds=float(release)
    ),
    st.sampled_from((4, 16, 64)),
    st.integers(0, 300),
    st.integers(0, 60),
)


def list_starts(arrivals: Sequence[Arrival]) -> Iterator[Starts]:
    """Every choice of checks that serves all arrivals; a check is its distance to NOW in intervals."""
    checks = range(-CHECKS, 2)
    for count in range(1, len(checks) + 1):
        for chosen in combinations(checks, count):
            if NOW + chosen[-1] * timedelta(seconds=INTERVAL) >= arrivals[-1].at:
                yield chosen


def serve(arrivals: Sequence[Arrival], starts: Starts, priors: Priors) -> tuple[float, float, bool]:
    """(billed seconds, audio seconds times seconds of waiting, True if no limit is missed needlessly)."""
    billed = waited = 0.0
    kept = True
    taken = 0
    for number in starts:
        at = NOW + number * timedelta(seconds=INTERVAL)
        batch = [each for each in arrivals[taken:] if each.at <= at]
        taken += len(batch)
        if not batch:
            continue
        end, late = priors.setup_seconds, False
        for each in batch:
            end += each.audio_seconds / priors.speed
            wait = (at - each.at).total_seconds() + end
            waited += each.audio_seconds * wait
            late |= wait > LIMIT
        billed += max(MINIMUM_BILLED_SECONDS, end + priors.release_seconds)
        at_once = all(at - each.at < timedelta(seconds=INTERVAL) for each in batch)
        kept &= at_once or not late
    return billed, waited, kept


@given(traces, services, st.sampled_from((0.0, 1e-9, 1e-4, 1.0)))
def test_no_starts_have_a_lower_bill_and_price_of_waits(
    trace: tuple[Arrival, ...], priors: Priors, wait_price: float
) -> None:
    slots = make_slots(trace, priors, timedelta(seconds=INTERVAL), [LIMIT] * len(trace))
    served = (serve(trace, starts, priors) for starts in list_starts(trace))
    least = min((billed + wait_price * waited for billed, waited, kept in served if kept), default=inf)
    assert find_least_total(slots, priors, 1.0, wait_price) == pytest.approx(least)


def test_a_slot_holds_the_chunks_of_one_check() -> None:
    trace = [Arrival(NOW + timedelta(seconds=seconds), 10.0) for seconds in (-601, -600, -599, 0, 1)]
    slots = make_slots(trace, Priors(), timedelta(seconds=INTERVAL), [LIMIT] * 5)
    assert [slot.audio for slot in slots] == [20.0, 20.0, 10.0]


@given(traces, services, st.integers(1, 6), st.sampled_from((1, 3, 100)))
def test_no_policy_is_better_than_the_optimum(
    trace: tuple[Arrival, ...], priors: Priors, wait_hours: int, threshold: int
) -> None:
    rate = Rate(per_hour=Usd.parse("0.8"), source="test")
    offer = Offer(
        provider="ec2", instance_type="g6.xlarge", market=Market.ON_DEMAND, rate=rate, priors=priors
    )
    policy = Policy(
        threshold=threshold,
        max_wait=timedelta(hours=wait_hours),
        check_interval=timedelta(seconds=INTERVAL),
    )
    for result in simulate(trace, policy, [offer]).policies:
        assert result.deadline_ratio >= 1
        assert result.linear_ratio >= 1
