"""Double of every price source: prices of regions that a test chooses."""

from __future__ import annotations

from batchscribe.core.decide.prices import PriceKind, PriceSheet
from batchscribe.errors import ObjectNotFoundError


class FakePriceSource:
    """A protocols.PriceSource with on-demand prices by region and type."""

    def __init__(self, on_demand: dict[str, dict[str, str]], *, as_of: str) -> None:
        self.on_demand = on_demand
        self.as_of = as_of

    def read(self, region: str) -> tuple[PriceSheet, ...]:
        if region not in self.on_demand:
            raise ObjectNotFoundError(f"no GPU instance is listed in {region}")
        sheet = PriceSheet(
            kind=PriceKind.ON_DEMAND,
            source="a test's list",
            as_of=self.as_of,
            regions=(region,),
            prices=self.on_demand[region],
        )
        return (sheet,)
