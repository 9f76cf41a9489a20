"""Reads prices from AWS's Price List and EC2's spot history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from batchscribe.adapters.aws.clients import Api
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import (
    ADDRESS,
    GP3,
    READS,
    REQUESTS_PRICED,
    SNAPSHOT,
    WRITES,
    PriceKind,
    PriceSheet,
)
from batchscribe.errors import ObjectNotFoundError
from batchscribe.protocols import Clock

PRICE_LIST_REGION = "us-east-1"
"""The Price List has an address in a few regions only; each returns the prices of all."""
SPOT_FAMILIES = ("g4dn.", "g5.", "g6.", "g6e.", "g6f.")
LIST, ON_DEMAND, SPOT = "AWS list", "AWS list, on-demand", "AWS spot"
_PLATFORM = "Linux/UNIX"
SMALL_HOST = "t4g.nano"
"""Example of a machine for the scheduler."""
_MACHINE = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}
_GPU_FILTERS = _MACHINE | {"instanceFamily": "GPU instance"}
_REQUESTS = {"productFamily": "API Request"}
_OTHERS = (
    (PriceKind.DISK, GP3, ("AmazonEC2", {"productFamily": "Storage", "volumeApiName": "gp3"})),
    (PriceKind.DISK, SNAPSHOT, ("AmazonEC2", {"productFamily": "Storage Snapshot"})),
    (PriceKind.ADDRESS, ADDRESS, ("AmazonVPC", {"group": "VPCPublicIPv4Address"})),
    (PriceKind.REQUESTS, READS, ("AmazonS3", _REQUESTS | {"group": "S3-API-Tier2"})),
    (PriceKind.REQUESTS, WRITES, ("AmazonS3", _REQUESTS | {"group": "S3-API-Tier1"})),
    (PriceKind.HOST, SMALL_HOST, ("AmazonEC2", _MACHINE | {"instanceType": SMALL_HOST})),
)
"""(kind, name, (service, filters)) of the other prices."""
_USAGE = {
    GP3: "EBS:VolumeUsage.gp3",
    SNAPSHOT: "EBS:SnapshotUsage",
    ADDRESS: "PublicIPv4:InUseAddress",
    READS: "Requests-Tier2",
    WRITES: "Requests-Tier1",
    SMALL_HOST: f"BoxUsage:{SMALL_HOST}",
}
"""End of the usage type, by name: filters alone find idle addresses and archived snapshots, too."""


class AwsPriceList:
    """A protocols.PriceSource over AWS's APIs. `endpoint` replaces AWS's addresses."""

    def __init__(self, clock: Clock, *, endpoint: str | None = None) -> None:
        self._clock = clock
        self._api = cache(partial(Api[Any], meanings={}, endpoint=endpoint))

    def read(self, region: str) -> tuple[PriceSheet, ...]:
        rows = self._list_prices("AmazonEC2", region, _GPU_FILTERS)
        on_demand = {row["instanceType"]: _format_usd(Usd.parse(price)) for row, price in rows}
        if not on_demand:
            raise ObjectNotFoundError(f"AWS lists no GPU instance in {region}: check the region's name")
        zones = self._read_zones(region, [name for name in on_demand if name.startswith(SPOT_FAMILIES)])
        spot = {name: _format_range(each.values()) for name, each in zones.items()}
        sheets = [(PriceKind.ON_DEMAND, ON_DEMAND, on_demand), (PriceKind.SPOT, SPOT, spot)]
        for kind, wanted in groupby(_OTHERS, key=itemgetter(0)):
            found = [(name, self._find_price(name, region, *where)) for _, name, where in wanted]
            sheets.append((kind, LIST, {name: price for name, price in found if price}))
        return tuple(self._make_sheet(region, *sheet) for sheet in sheets if sheet[2])

    def read_spot(self, region: str, types: tuple[str, ...]) -> tuple[PriceSheet, ...]:
        by_zone: dict[str, dict[str, str]] = {}
        for name, zones in self._read_zones(region, types).items():
            for zone, price in zones.items():
                by_zone.setdefault(zone, {})[name] = _format_usd(Usd.parse(price))
        return tuple(self._make_sheet(zone, PriceKind.SPOT, SPOT, by_zone[zone]) for zone in sorted(by_zone))

    def _make_sheet(self, region: str, kind: PriceKind, source: str, prices: dict[str, str]) -> PriceSheet:
        day = self._clock.now().astimezone(UTC).date().isoformat()
        return PriceSheet(kind=kind, source=source, as_of=day, regions=(region,), prices=prices)

    def _find_price(self, name: str, region: str, service: str, filters: dict[str, str]) -> str:
        """The price with that name's usage type; empty if there is none."""
        rows = self._list_prices(service, region, filters)
        found = next((price for row, price in rows if row.get("usagetype", "").endswith(_USAGE[name])), "")
        times = REQUESTS_PRICED if service == "AmazonS3" else 1
        return _format_usd(Usd.parse(found, times=times)) if found else ""

    def _list_prices(
        self, service: str, region: str, filters: dict[str, str]
    ) -> Iterator[tuple[dict[str, str], str]]:
        """Yields (attributes, dollars) of each product with an on-demand price."""
        fields = {"regionCode": region, **filters}
        config = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in fields.items()]
        pricing = self._api("pricing", PRICE_LIST_REGION)
        with pricing.convert_errors("pricing:GetProducts", f"prices of {region}"):
            pages = pricing.client.get_paginator("get_products")
            for page in pages.paginate(ServiceCode=service, Filters=config, FormatVersion="aws_v1"):
                yield from _parse_products(page["PriceList"])

    def _read_zones(self, region: str, types: Sequence[str]) -> dict[str, dict[str, str]]:
        """Present spot price in each zone, by type."""
        prices: dict[str, dict[str, str]] = {}
        ec2 = self._api("ec2", region)
        with ec2.convert_errors("ec2:DescribeSpotPriceHistory", f"prices of {region}"):
            pages = ec2.client.get_paginator("describe_spot_price_history")
            asked = {"InstanceTypes": list(types), "ProductDescriptions": [_PLATFORM]} if types else {}
            for page in pages.paginate(StartTime=self._clock.now(), **asked) if asked else ():
                for row in sorted(page["SpotPriceHistory"], key=itemgetter("Timestamp")):
                    prices.setdefault(row["InstanceType"], {})[row["AvailabilityZone"]] = row["SpotPrice"]
        return prices


def _parse_products(products: Iterable[str]) -> Iterator[tuple[dict[str, str], str]]:
    for text in products:
        product: dict[str, Any] = msgspec.json.decode(text)
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                price = dimension["pricePerUnit"].get("USD", "0")
                if price.strip("0."):
                    yield product["product"]["attributes"], price


def _format_range(prices: Iterable[str]) -> str:
    """`0.190-0.192` for prices that differ by zone."""
    amounts = [Usd.parse(price) for price in prices]
    low, high = min(amounts), max(amounts)
    return _format_usd(low) if low == high else f"{_format_usd(low)}-{_format_usd(high)}"


def _format_usd(amount: Usd) -> str:
    """Dollars, exact to a micro-dollar."""
    return amount.text(6).rstrip("0").rstrip(".")
