"""Pytest suite for price sources; AWS's own and the double pass it.

@pytest.fixture
def prices():
    return MyPriceSource()

class TestMyPriceSource(PriceSourceSuite):
    region = "eu-west-1"
    day = "2026-11-29"
"""

from __future__ import annotations

import pytest

from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import PriceKind, combine_sheets, replace_sheets
from batchscribe.errors import ObjectNotFoundError
from batchscribe.protocols import PriceSource


class PriceSourceSuite:
    """Tests for a subclass to inherit; its fixture `prices` is a source."""

    region = "us-east-2"
    """A region with GPUs."""
    spot_type = "g4dn.xlarge"
    """A type with a spot price there."""
    nowhere = "mars-north-1"
    """A region without any."""
    day = "2026-11-29"
    """The present day."""

    def test_every_price_is_of_the_region_and_of_the_day(self, prices: PriceSource) -> None:
        sheets = prices.read(self.region)
        assert {(sheet.regions, sheet.as_of) for sheet in sheets} == {((self.region,), self.day)}
        assert all(sheet.prices and sheet.source for sheet in sheets)

    def test_a_gpu_has_an_hourly_rate(self, prices: PriceSource) -> None:
        table = combine_sheets((), prices.read(self.region))
        found = [price for price in table.list_prices(self.region) if price.kind is PriceKind.ON_DEMAND]
        assert found
        for price in found:
            rate = table.find_rate(price.name, self.region)
            assert rate is not None
            assert (rate.per_hour > Usd(0), rate.as_of) == (True, self.day)

    def test_spot_prices_are_of_one_zone_and_of_the_day(self, prices: PriceSource) -> None:
        sheets = prices.read_spot(self.region, (self.spot_type,))
        zones = [sheet.regions for sheet in sheets]
        assert zones
        assert all(len(each) == 1 and each[0].startswith(self.region) for each in zones)
        assert len(set(zones)) == len(zones)
        for sheet in sheets:
            assert (sheet.kind, sheet.as_of, set(sheet.prices)) == (
                PriceKind.SPOT,
                self.day,
                {self.spot_type},
            )

    def test_a_type_without_a_spot_price_has_no_sheet(self, prices: PriceSource) -> None:
        assert prices.read_spot(self.region, ("x1.never",)) == ()

    def test_a_second_read_replaces_the_first(self, prices: PriceSource) -> None:
        first = prices.read(self.region)
        assert replace_sheets(first, prices.read(self.region)) == first

    def test_a_region_without_a_gpu_is_an_error(self, prices: PriceSource) -> None:
        with pytest.raises(ObjectNotFoundError, match=self.nowhere):
            prices.read(self.nowhere)
