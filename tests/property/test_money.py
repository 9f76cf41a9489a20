from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, Rate, Usd, cost, units_per_dollar

amounts = st.integers(-(10**15), 10**15).map(Usd)
rates = st.integers(0, 10**9).map(lambda micros: Rate(per_hour=Usd(micros), source="test"))
seconds = st.floats(0, 1e8, allow_nan=False)


@given(amounts, amounts)
def test_amounts_add_and_subtract_exactly(one: Usd, two: Usd) -> None:
    assert one + two - two == one
    assert (one + two).micros == one.micros + two.micros


@given(amounts)
def test_six_places_say_all_of_an_amount(amount: Usd) -> None:
    assert Usd.parse(amount.text(6)) == amount
    assert Usd.parse(f"${amount.text(6)}") == amount


@given(rates, seconds, seconds)
def test_a_longer_run_never_costs_less(rate: Rate, one: float, two: float) -> None:
    short, long = sorted((one, two))
    assert cost(rate, short) <= cost(rate, long)


@given(rates, seconds)
def test_a_bill_is_never_below_the_exact_product_and_within_a_micro_of_it(rate: Rate, ran: float) -> None:
    billed = Fraction(str(max(ran, MINIMUM_BILLED_SECONDS))) if ran > 0 else Fraction(0)
    exact = rate.per_hour.micros * billed / 3600
    assert exact <= cost(rate, ran).micros < exact + 1


@given(rates)
def test_what_never_ran_costs_nothing_and_a_second_costs_a_minute(rate: Rate) -> None:
    assert cost(rate, 0) == Usd(0)
    assert cost(rate, 1) == cost(rate, MINIMUM_BILLED_SECONDS)


@given(st.integers(0, 10**6), amounts)
def test_units_for_a_dollar_exist_only_where_dollars_were_spent(units: int, amount: Usd) -> None:
    each = units_per_dollar(units, amount)
    assert (each is None) == (amount.micros <= 0)


@given(amounts, st.floats(-10, 10, allow_nan=False))
def test_dollars_for_a_unit_exist_only_where_there_is_a_unit(amount: Usd, quantity: float) -> None:
    assert (amount.per(quantity) is None) == (quantity <= 0)
