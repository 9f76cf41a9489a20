"""Costs beside the GPU's, of a month and of a run.

A month has 730 hours. Fixed costs per audio hour count the audio of the last 30 days.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from batchscribe.core.bounds import Count
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import (
    ADDRESS,
    GP3,
    READS,
    REQUESTS_PRICED,
    WRITES,
    Price,
    PriceKind,
    PriceTable,
    describe_origin,
)
from batchscribe.core.figures import Line, format_count, format_hours

MONTH_HOURS = 730
VOLUME_PERIOD = timedelta(days=30)
ROOT_DISK, PUBLIC_ADDRESS, SCHEDULER_HOST = "Root Disk", "Public Address", "Scheduler Host"
REQUESTS = "Requests"
_PROGRESS_SECONDS, _POLL_SECONDS = 5.0, 60.0
"""A worker writes its progress this often; the watchdog's timer reads it this often."""
_CONTROL_REQUESTS = 10
"""Reads, and writes, of control objects in a run besides its progress."""
_HOUR = 3600.0


class FixedCost(msgspec.Struct, frozen=True, kw_only=True):
    """One cost of a month, used or not. `per_month`: for display."""

    name: str
    basis: str
    """Quantity and price."""
    per_month: float
    per_month_micros: int


class FixedCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Costs of a month that do not depend on the audio."""

    parts: tuple[FixedCost, ...]
    unknown: dict[str, str]
    """Parts without a known cost, each with the remedy."""
    per_month: float
    per_month_micros: int
    audio_hours: float
    """Audio of the last 30 days."""
    per_audio_hour: float | None
    """At that volume; None without audio."""


class RunCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Costs of one run beside the GPU's, in dollars for reading."""

    address: float | None
    """At most: a public address while the instance runs. None if it is a fixed cost, or has no price."""
    address_micros: int | None
    requests: float | None
    """Estimated. None without requests to S3, or without a price."""
    requests_micros: int | None
    reads: int
    writes: int


class ParkedParts(msgspec.Struct, frozen=True, kw_only=True):
    """Parts of an instance that are billed while it is stopped, too."""

    disk_gigabytes: Count = 0
    """Size of all its disks."""
    fixed_address: bool = False
    """It has an Elastic IP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBasis:
    """Prices and facts for the costs beside the GPU's."""

    table: PriceTable
    region: str
    now: datetime
    cloud: bool
    """The GPU is a cloud instance, with a disk and an address of its own."""
    parked: ParkedParts | None
    """None if not recorded."""
    host_per_hour: Usd | None
    """Rate of the scheduler's host; None if not set."""
    s3: bool
    """Audio, results or control objects are in S3."""
    audio_hours: float
    """Audio of the last 30 days."""

    def fixed_costs(self) -> FixedCosts:
        parts = tuple(filter(None, (self._price_disk(), self._price_fixed_address(), self._price_host())))
        total = sum((Usd(part.per_month_micros) for part in parts), start=Usd(0))
        each = total.per(self.audio_hours)
        return FixedCosts(
            parts=parts,
            unknown=dict(self._list_unknown()),
            per_month=total.dollars,
            per_month_micros=total.micros,
            audio_hours=self.audio_hours,
            per_audio_hour=each.dollars if each else None,
        )

    def run_costs(self, *, seconds: float, chunks: int) -> RunCosts:
        """Costs of a run that is billed for `seconds`."""
        reads = chunks + round(seconds / _POLL_SECONDS) + _CONTROL_REQUESTS if self.s3 else 0
        writes = chunks + round(seconds / _PROGRESS_SECONDS) + _CONTROL_REQUESTS if self.s3 else 0
        address, requests = self._price_address(seconds), self._price_requests(reads, writes)
        return RunCosts(
            address=address.dollars if address is not None else None,
            address_micros=address.micros if address is not None else None,
            requests=requests.dollars if requests is not None else None,
            requests_micros=requests.micros if requests is not None else None,
            reads=reads,
            writes=writes,
        )

    def _price_disk(self) -> FixedCost | None:
        price = self._find_price(PriceKind.DISK, GP3)
        if not self.parked or not self.parked.disk_gigabytes or not price:
            return None
        size = self.parked.disk_gigabytes
        return self._make_part(ROOT_DISK, f"{size} GB of gp3", price.high.times(size), price)

    def _price_fixed_address(self) -> FixedCost | None:
        price = self._find_price(PriceKind.ADDRESS, ADDRESS)
        if not self.parked or not self.parked.fixed_address or not price:
            return None
        return self._make_part(PUBLIC_ADDRESS, "an Elastic IP", price.high.times(MONTH_HOURS), price)

    def _price_host(self) -> FixedCost | None:
        if self.host_per_hour is None:
            return None
        return _make_fixed_cost(
            SCHEDULER_HOST,
            f"${self.host_per_hour.text()} an hour (BATCH_HOST_HOURLY_COST)",
            self.host_per_hour.times(MONTH_HOURS),
        )

    def _list_unknown(self) -> Iterator[Line]:
        if self.cloud and self.parked is None:
            yield ROOT_DISK, "its size is not recorded: `batchscribe gpu setup` records it"
        elif self.cloud and self._find_price(PriceKind.DISK, GP3) is None:
            yield (
                ROOT_DISK,
                f"no price in {self.region}: `batchscribe prices --refresh --region {self.region}`",
            )

    def _price_address(self, seconds: float) -> Usd | None:
        price = self._find_price(PriceKind.ADDRESS, ADDRESS)
        fixed = self.parked is not None and self.parked.fixed_address
        return None if fixed or price is None else price.high.times(seconds / _HOUR)

    def _price_requests(self, reads: int, writes: int) -> Usd | None:
        read, write = (self.table.find(PriceKind.REQUESTS, name, self.region) for name in (READS, WRITES))
        if not self.s3 or read is None or write is None:
            return None
        return read.high.times(reads / REQUESTS_PRICED) + write.high.times(writes / REQUESTS_PRICED)

    def _find_price(self, kind: PriceKind, name: str) -> Price | None:
        return self.table.find(kind, name, self.region) if self.cloud else None

    def _make_part(self, name: str, quantity: str, amount: Usd, price: Price) -> FixedCost:
        origin = describe_origin(price.origin, price.as_of, self.now)
        return _make_fixed_cost(name, f"{quantity} ({origin})", amount)


def fixed_lines(fixed: FixedCosts | None) -> dict[str, str]:
    """Lines of a cost block by label, for fixed costs."""
    if fixed is None:
        return {}
    hours = fixed.audio_hours
    known = {part.name: _describe_part(part, hours) for part in fixed.parts}
    return known | {name: f"unknown, {remedy}" for name, remedy in fixed.unknown.items()}


def run_cost_lines(costs: RunCosts | None) -> dict[str, str]:
    """Lines of a cost block by label, for address and requests."""
    if costs is None:
        return {}
    lines = {}
    if costs.address_micros is not None:
        lines[PUBLIC_ADDRESS] = f"at most {Usd(costs.address_micros)} while the instance runs"
    if costs.requests_micros is not None:
        counted = f"{format_count(costs.reads, 'read')}, {format_count(costs.writes, 'write')}"
        lines[REQUESTS] = f"about {Usd(costs.requests_micros)}, estimated: {counted}"
    return lines


def describe_fixed_costs(fixed: FixedCosts) -> str:
    """Sentence with the fixed costs by part; empty if there are none."""
    unknown = [f"{name.lower()} unknown, {remedy}" for name, remedy in fixed.unknown.items()]
    if not fixed.parts and not unknown:
        return ""
    parts = [f"{part.name.lower()} {Usd(part.per_month_micros)}: {part.basis}" for part in fixed.parts]
    volume = describe_volume(fixed)
    return f"Fixed costs: {Usd(fixed.per_month_micros)} a month ({'; '.join([*parts, *unknown])}), {volume}."


def describe_volume(fixed: FixedCosts) -> str:
    """Fixed costs of an audio hour, and the volume for that."""
    each = Usd(fixed.per_month_micros).per(fixed.audio_hours)
    if each is None:
        return "no audio in the last 30 days"
    return f"{each} per audio hour at the last 30 days' {format_hours(fixed.audio_hours * 3600)}"


def _describe_part(part: FixedCost, audio_hours: float) -> str:
    amount = Usd(part.per_month_micros)
    each = amount.per(audio_hours)
    share = f", {each} per audio hour" if each else ""
    return f"{amount} a month{share}: {part.basis}"


def _make_fixed_cost(name: str, basis: str, amount: Usd) -> FixedCost:
    return FixedCost(name=name, basis=basis, per_month=amount.dollars, per_month_micros=amount.micros)
