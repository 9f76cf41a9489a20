"""Money: the only module that computes with Decimal and prices seconds.

Amounts are stored as integer micro-dollars: text summed by SQLite becomes binary floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from itertools import accumulate, pairwise
from typing import Self

MICRO = Decimal(1_000_000)
TEN_CENTS = Decimal("0.1")
HOUR = Decimal(3600)
MINIMUM_BILLED_SECONDS = 60
"""EC2 bills Linux by the second, with a minimum of one minute for each start."""


@dataclass(frozen=True, slots=True, order=True)
class Usd:
    """An amount of dollars, exact to a micro-dollar; may be negative."""

    micros: int = 0

    @classmethod
    def parse(cls, text: str | float, *, times: int = 1) -> Self:
        """Parses dollars such as `0.526`, multiplied by `times`.

        Raises ValueError if it is not an amount.
        """
        try:
            amount = Decimal(str(text).removeprefix("$"))
            return cls(int((amount * times * MICRO).to_integral_value()))
        except ArithmeticError as error:
            raise ValueError(f"not an amount of dollars: {text!r}") from error

    def __add__(self, other: Usd) -> Usd:
        return Usd(self.micros + other.micros)

    def __sub__(self, other: Usd) -> Usd:
        return Usd(self.micros - other.micros)

    def __str__(self) -> str:
        """Dollars with two places from ten cents on, four or more below."""
        amount = Decimal(abs(self.micros)) / MICRO
        places = 2 if amount >= TEN_CENTS or not amount else max(4, min(6, 1 - amount.adjusted()))
        return f"{'-' if self.micros < 0 else ''}${amount:.{places}f}"

    @property
    def dollars(self) -> float:
        """Dollars for JSON numbers only, not for computation."""
        return float(Decimal(self.micros) / MICRO)

    def text(self, places: int = 4) -> str:
        """The amount without a currency sign, with so many decimal places."""
        return f"{Decimal(self.micros) / MICRO:.{places}f}"

    def times(self, quantity: float) -> Usd:
        """Dollars of so many units."""
        return Usd(int((Decimal(self.micros) * Decimal(str(quantity))).to_integral_value()))

    def per(self, quantity: float) -> Usd | None:
        """Dollars per unit; None if there are no units."""
        if quantity <= 0:
            return None
        return Usd(int((Decimal(self.micros) / Decimal(str(quantity))).to_integral_value()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Hourly price of an instance, with its source and date."""

    per_hour: Usd
    source: str
    as_of: str = ""


ZERO = Usd(0)
HIGHEST_PRICE = Usd(10**12)
"""A million dollars: a run at a higher rate exceeds the bounds of its own record."""
FREE = Rate(per_hour=Usd(0), source="this machine")


def cost(rate: Rate, seconds: float, *, minimum: int = MINIMUM_BILLED_SECONDS) -> Usd:
    """Cost of one start of `seconds`, rounded up to a micro-dollar.

    Monotone in `seconds`; 0 for an instance that never ran (0 seconds).
    """
    if seconds <= 0:
        return Usd(0)
    billed = max(Decimal(minimum), Decimal(str(seconds)))
    exact = Decimal(rate.per_hour.micros) * billed / HOUR
    return Usd(int(exact.to_integral_value(rounding=ROUND_UP)))


def split_cost(amount: Usd, parts: Sequence[float]) -> tuple[Usd, ...]:
    """Divides an amount in proportion to `parts`, without a rest."""
    whole = sum(Decimal(str(part)) for part in parts)
    if not whole:
        return tuple(Usd(0) for _ in parts)
    ends = [
        int((amount.micros * end / whole).to_integral_value())
        for end in accumulate(Decimal(str(part)) for part in parts)
    ]
    return tuple(Usd(end - begin) for begin, end in pairwise([0, *ends]))


def units_per_dollar(units: int, amount: Usd) -> float | None:
    """Chunks (or hours) per dollar; None if nothing was spent."""
    if amount.micros <= 0:
        return None
    return float(Decimal(units) * MICRO / Decimal(amount.micros))
