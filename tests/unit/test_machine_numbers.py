"""How many machines a start creates, and of which offer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.observation import Observation, Policy
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import LEAST_PORTION_SECONDS, Priors, foresee
from batchscribe.core.decide.planned_start import PlannedStart, plan_start
from batchscribe.core.decide.policy import Launch, decide
from support.values import NOW, backlog, chunk, observation

PRIORS = Priors(speed=10.0, setup_seconds=120.0, setup_p95_seconds=240.0, release_seconds=60.0)
SPOT = Offer(
    provider="fleet",
    instance_type="g4dn.xlarge",
    market=Market.SPOT,
    rate=Rate(per_hour=Usd.parse("0.2"), source="test"),
    priors=PRIORS,
)
ON_DEMAND = replace(SPOT, market=Market.ON_DEMAND, rate=Rate(per_hour=Usd.parse("0.526"), source="test"))


def seen_with(
    hours_of_work: float, *, hours_old: float = 0.0, most: int = 20, **changes: object
) -> Observation:
    """A backlog of chunks of 6 minutes of work each."""
    count = max(1, round(hours_of_work * 10))
    size = int(360 * PRIORS.speed * 4000)
    chunks = tuple(
        replace(chunk(number), size=size, session=f"s{number}", modified=NOW - timedelta(hours=hours_old))
        for number in range(count)
    )
    known = backlog(count, hours_old=hours_old, candidates=chunks, pending_bytes=size * count)
    seen = observation(known, **changes)
    return replace(seen, instances=(), offers=(SPOT, ON_DEMAND), max_machines=most)


def plan(seen: Observation, *, runtime: float = 2.0, wait: float = 24.0) -> PlannedStart:
    policy = Policy(max_runtime=timedelta(hours=runtime), max_wait=timedelta(hours=wait))
    return plan_start(seen, policy)


@pytest.mark.parametrize(("hours", "machines"), [(0.5, 1), (1.5, 1), (3.0, 2), (9.0, 5), (100.0, 20)])
def test_a_start_creates_the_fewest_machines_for_one_run(hours: float, machines: int) -> None:
    assert plan(seen_with(hours)).outlook.machines == machines


def test_a_longest_wait_that_is_near_needs_more() -> None:
    start = plan(seen_with(3.0, hours_old=23.0))
    assert start.outlook.machines == 4
    assert start.outlook.seconds <= 3600
    assert start.note.startswith("4 machines for one run within the longest wait, at about $")


def test_the_cheapest_market_is_taken_and_named() -> None:
    start = plan(seen_with(3.0))
    assert start.offer == SPOT
    assert start.runner_up == "g4dn.xlarge"
    assert "g4dn.xlarge spot is the cheapest" in start.note


def test_no_machine_is_created_without_a_portion_of_work() -> None:
    start = plan(seen_with(0.5, hours_old=23.9))
    assert start.outlook.machines * LEAST_PORTION_SECONDS <= 1800


def test_a_provider_with_one_machine_gets_no_sentence_about_their_number() -> None:
    start = plan(seen_with(9.0, most=1))
    assert (start.outlook.machines, "machine" in start.note) == (1, False)


def test_the_launch_has_the_number_and_its_batch_is_for_all() -> None:
    policy = Policy(threshold=1, max_runtime=timedelta(hours=2))
    decision = decide(seen_with(9.0), policy)
    assert isinstance(decision, Launch)
    assert (decision.machines, decision.batch.left, decision.borrowed) == (5, 0, False)
    assert decision.reason.numbers["machines"] == 5


@given(
    hours=st.floats(0.1, 60.0), old=st.floats(0.0, 23.0), most=st.integers(1, 20), runtime=st.floats(0.5, 6.0)
)
def test_no_other_number_does_the_same_for_less(hours: float, old: float, most: int, runtime: float) -> None:
    seen = seen_with(hours, hours_old=old, most=most)
    start = plan(seen, runtime=runtime)
    assert 1 <= start.outlook.machines <= most
    left = (24.0 - old) * 3600
    for other in foresee(
        seen.backlog,
        PRIORS,
        start.offer.rate,
        runtime=runtime * 3600,
        pause=3600.0,
        limit=None,
        machines=range(1, start.outlook.machines),
    ):
        able = other.runs == 1 and other.seconds <= left
        assert not able or other.cost >= start.outlook.cost
