"""Dated list prices: sheets from several sources, and the lookup among them.

A sheet has the prices of one kind, from one source, at one date, for some regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum

import msgspec

from batchscribe.core.decide.money import HIGHEST_PRICE, ZERO, Rate, Usd

OLD_DAYS = 90
"""Age above which a price is marked wherever it is shown."""
DEFAULT_REGION = "us-east-1"
"""Region of the prices for a machine outside AWS, which has none."""
GP3, SNAPSHOT, ADDRESS, READS, WRITES = "gp3", "snapshot", "public IPv4", "GET", "PUT, LIST"
FUNCTION_TIME, INVOCATIONS, SCHEDULED = "x86 GB-second", "invocation", "scheduled invocation"
"""Names of prices other than those of instance types."""
SPOT_DAYS = 7
"""Age up to which a spot price is used: later, the on-demand price is the known upper bound."""
REQUESTS_PRICED = 1_000
"""Number of requests that a price of requests is for."""


class PriceKind(StrEnum):
    ON_DEMAND = "on-demand"
    SPOT = "spot"
    DISK = "disk"
    ADDRESS = "address"
    REQUESTS = "requests"
    HOST = "host"
    """On-demand price of a machine for the scheduler."""
    FUNCTION = "function"
    """A function of AWS Lambda and its schedules, for a scheduler without a host."""
    HOSTED = "hosted"
    """A transcription service."""

    @property
    def unit(self) -> str:
        return _UNITS[self]


_UNITS = {
    PriceKind.ON_DEMAND: "hour",
    PriceKind.SPOT: "hour",
    PriceKind.DISK: "GB-month",
    PriceKind.ADDRESS: "hour",
    PriceKind.REQUESTS: "1,000",
    PriceKind.HOST: "hour",
    PriceKind.FUNCTION: "1,000",
    PriceKind.HOSTED: "audio hour",
}


class PriceSheet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices of one kind, source and date, for some regions."""

    kind: PriceKind
    source: str
    as_of: str
    """Date of the prices, such as 2026-11-23."""
    regions: tuple[str, ...]
    """Or one zone, such as us-east-2a, for spot prices."""
    about: str = ""
    prices: dict[str, str]
    """Dollars by name, such as "0.526"; "0.190-0.192" if they differ by zone."""

    def __post_init__(self) -> None:
        """Raises ValueError if a date or an amount cannot be parsed."""
        date.fromisoformat(self.as_of)
        for text in self.prices.values():
            _parse_range(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One price with its source; `low` and `high` are over the zones."""

    kind: PriceKind
    name: str
    region: str = ""
    low: Usd
    high: Usd
    source: str
    as_of: str = ""
    """Date; empty for a price from the settings."""

    @property
    def origin(self) -> str:
        return f"{self.source}, {self.region}"


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Sheets in order of precedence: the first one with a price applies."""

    sheets: tuple[PriceSheet, ...]

    def find(self, kind: PriceKind, name: str, region: str) -> Price | None:
        """The price in a region; None if it is not listed there."""
        where = region or DEFAULT_REGION
        sheets = (s for s in self.sheets if s.kind is kind and where in s.regions and name in s.prices)
        return next((_make_price(sheet, name, where) for sheet in sheets), None)

    def find_rate(self, instance_type: str, region: str) -> Rate | None:
        """The on-demand rate in a region; None if it is not listed."""
        found = self.find(PriceKind.ON_DEMAND, instance_type, region)
        return Rate(per_hour=found.high, source=found.origin, as_of=found.as_of) if found else None

    def find_spot_rate(self, instance_type: str, region: str, zone: str, now: datetime) -> Rate | None:
        """The fresh spot rate in a zone, or if unknown, the highest."""
        places = sorted(
            {place for sheet in self.sheets for place in sheet.regions if place.startswith(region)}
        )
        found = {place: self.find(PriceKind.SPOT, instance_type, place) for place in places}
        fresh = {
            place: price
            for place, price in found.items()
            if price and (age := count_age_days(price.as_of, now)) is not None and age <= SPOT_DAYS
        }
        if not fresh:
            return None
        price = fresh.get(zone) or max(fresh.values(), key=lambda each: (each.as_of, each.high))
        return Rate(per_hour=price.high, source=price.origin, as_of=price.as_of)

    def list_prices(self, region: str) -> Iterator[Price]:
        """Yields each price of a region that applies, by kind."""
        for kind in PriceKind:
            names = dict.fromkeys(
                name for sheet in self.sheets if sheet.kind is kind for name in sheet.prices
            )
            yield from filter(None, (self.find(kind, name, region) for name in names))


def combine_sheets(override: Iterable[PriceSheet], dated: Iterable[PriceSheet]) -> PriceTable:
    """A table in which `override` comes first, then the newest date."""
    return PriceTable((*override, *sorted(dated, key=lambda sheet: sheet.as_of, reverse=True)))


def replace_sheets(old: Iterable[PriceSheet], new: Iterable[PriceSheet]) -> tuple[PriceSheet, ...]:
    """Replaces the sheets of the same kind and regions."""
    fresh = tuple(new)
    replaced = {(sheet.kind, sheet.regions) for sheet in fresh}
    return (*(sheet for sheet in old if (sheet.kind, sheet.regions) not in replaced), *fresh)


def count_age_days(as_of: str, now: datetime) -> int | None:
    """Days since 2026-11-23 or the begin of 2026-09; None without a date."""
    try:
        day = date.fromisoformat(f"{as_of}-01" if len(as_of) == len("2026-09") else as_of)
    except ValueError:
        return None
    return (now.astimezone(UTC).date() - day).days


def mark_age(as_of: str, now: datetime) -> str:
    """Age of an old price, as `, 97 days old`, else empty."""
    age = count_age_days(as_of, now)
    if age is not None and age < 0:
        return ", in the future"
    return f", {age} days old" if age is not None and age > OLD_DAYS else ""


def describe_origin(source: str, as_of: str, now: datetime) -> str:
    """Source and date of a price, and its age if old."""
    return f"{source}, as of {as_of}{mark_age(as_of, now)}" if as_of else source


def describe_rate(rate: Rate, now: datetime) -> str:
    """Formats a rate, such as `$0.526/h (AWS list, as of 2026-11-23)`."""
    return f"${rate.per_hour.text(3)}/h ({describe_origin(rate.source, rate.as_of, now)})"


def _make_price(sheet: PriceSheet, name: str, region: str) -> Price:
    low, high = _parse_range(sheet.prices[name])
    return Price(
        kind=sheet.kind,
        name=name,
        region=region,
        low=low,
        high=high,
        source=sheet.source,
        as_of=sheet.as_of,
    )


def _parse_range(text: str) -> tuple[Usd, Usd]:
    begin, _, end = text.partition("-")
    try:
        low, high = Usd.parse(begin), Usd.parse(end or begin)
    except ValueError:
        low = high = Usd(-1)
    if not ZERO <= low <= high <= HIGHEST_PRICE:
        raise ValueError(f'{text!r} is no price such as "0.41", and no range such as "0.19-0.21"')
    return low, high
