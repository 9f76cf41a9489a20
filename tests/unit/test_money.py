"""A bill that was read from a store, held against its run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from batchscribe.core.money import BILL_SLACK, MINIMUM_BILLED_SECONDS, Rate, Usd, cost, plausible_bill

CREATED = datetime(2026, 5, 1, tzinfo=UTC)
RATE = Rate(per_hour=Usd(526_000), source="table")
LIFE = 1800.0


def plausible(seconds: float, stated: Usd | None = None, *, minimum: int = MINIMUM_BILLED_SECONDS) -> bool:
    return plausible_bill(
        rate=RATE,
        created=CREATED,
        settled=CREATED + timedelta(seconds=LIFE),
        billed_seconds=seconds,
        stated=cost(RATE, seconds, minimum=minimum) if stated is None else stated,
        minimum=minimum,
    )


@pytest.mark.parametrize("seconds", [0.0, 1.0, 59.9, 60.0, 1234.567891, LIFE, LIFE + 300])
def test_what_a_run_can_have_cost_is_plausible(seconds: float) -> None:
    assert plausible(seconds)
    assert plausible(seconds, minimum=0)


@pytest.mark.parametrize(
    "seconds", [-1.0, LIFE + BILL_SLACK.total_seconds() + 1, 1e10, float("nan"), float("inf")]
)
def test_a_time_that_is_not_in_its_life_is_not(seconds: float) -> None:
    assert not plausible(seconds, Usd(0))


@pytest.mark.parametrize("micros", [-5_000_000, 0, 1, 87_667 - 1, 87_667 + 1, 10**12])
def test_a_cost_that_is_not_that_of_its_time_is_not(micros: int) -> None:
    assert plausible(600.0, Usd(87_667))
    assert not plausible(600.0, Usd(micros))


def test_the_minimum_belongs_to_the_bill() -> None:
    stated = cost(RATE, 1.0)
    assert plausible(1.0, stated)
    assert not plausible(1.0, stated, minimum=0)
    assert not plausible(1.0, Usd(147))


def test_a_run_settled_before_it_was_created_bills_nothing() -> None:
    assert not plausible_bill(
        rate=RATE,
        created=CREATED,
        settled=CREATED - timedelta(hours=3),
        billed_seconds=60.0,
        stated=cost(RATE, 60.0),
    )
