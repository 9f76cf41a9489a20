"""Double of every price source: prices of regions that a test chooses."""

from __future__ import annotations

from batchscribe.core.decide.prices import PriceKind, PriceSheet
from batchscribe.errors import ObjectNotFoundError


class FakePriceSource:
    """A protocols.PriceSource with fixed prices, by region or zone, and type."""

    def __init__(
        self,
        on_demand: dict[str, dict[str, str]],
        *,
        as_of: str,
        spot: dict[str, dict[str, str]] | None = None,
    ) -> None:
        self.on_demand = on_demand
        self.spot = spot or {}
        self.as_of = as_of

    def read(self, region: str) -> tuple[PriceSheet, ...]:
        if region not in self.on_demand:
            raise ObjectNotFoundError(f"no GPU instance is listed in {region}")
        return (self._make_sheet(PriceKind.ON_DEMAND, region, self.on_demand[region]),)

    def read_spot(self, region: str, types: tuple[str, ...]) -> tuple[PriceSheet, ...]:
        zones = {zone: prices for zone, prices in self.spot.items() if zone.startswith(region)}
        found = {
            zone: {name: price for name, price in prices.items() if name in types}
            for zone, prices in zones.items()
        }
        return tuple(
            self._make_sheet(PriceKind.SPOT, zone, prices) for zone, prices in found.items() if prices
        )

    def _make_sheet(self, kind: PriceKind, place: str, prices: dict[str, str]) -> PriceSheet:
        return PriceSheet(
            kind=kind, source="a test's list", as_of=self.as_of, regions=(place,), prices=prices
        )
