"""Price sources: AWS's Price List over recorded shapes of its replies, and the double."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from batchscribe.adapters.aws import clients
from batchscribe.adapters.aws.price_list import AwsPriceList
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import PriceKind, combine_sheets
from batchscribe.errors import CredentialsError, MissingRightError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.price_source_suite import PriceSourceSuite
from batchscribe.testing.prices import FakePriceSource
from support.price_list import REGION, answer, opener, refuse
from support.s3 import aws_environment

DAY = "2026-11-29"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsPriceList]:
    """AWS's adapter, with the real client and parser below it."""
    monkeypatch.setattr(clients, "open_client", opener(answer))
    with aws_environment():
        yield AwsPriceList(FakeClock(datetime(2026, 11, 29, 12, tzinfo=UTC)))


class TestAws(PriceSourceSuite):
    region, day = REGION, DAY

    @pytest.fixture
    def prices(self, aws: AwsPriceList) -> AwsPriceList:
        return aws

    def test_each_price_of_the_table_is_read(self, aws: AwsPriceList) -> None:
        table = combine_sheets((), aws.read(REGION))
        found = {(price.kind, price.name): (price.low, price.high) for price in table.list_prices(REGION)}
        assert found == {
            (PriceKind.ON_DEMAND, "g4dn.xlarge"): (Usd(526_000), Usd(526_000)),
            (PriceKind.ON_DEMAND, "g6e.2xlarge"): (Usd(2_242_080), Usd(2_242_080)),
            (PriceKind.ON_DEMAND, "p4d.24xlarge"): (Usd(21_957_642), Usd(21_957_642)),
            (PriceKind.SPOT, "g4dn.xlarge"): (Usd(190_300), Usd(191_900)),
            (PriceKind.DISK, "gp3"): (Usd(80_000), Usd(80_000)),
            (PriceKind.DISK, "snapshot"): (Usd(50_000), Usd(50_000)),
            (PriceKind.ADDRESS, "public IPv4"): (Usd(4_000), Usd(4_000)),
            (PriceKind.REQUESTS, "GET"): (Usd(400), Usd(400)),
            (PriceKind.REQUESTS, "PUT, LIST"): (Usd(5_000), Usd(5_000)),
            (PriceKind.HOST, "t4g.nano"): (Usd(4_200), Usd(4_200)),
        }

    def test_each_zone_has_its_latest_spot_price(self, aws: AwsPriceList) -> None:
        found = {sheet.regions[0]: sheet.prices for sheet in aws.read_spot(REGION, ("g4dn.xlarge",))}
        assert found == {
            "us-east-2a": {"g4dn.xlarge": "0.1903"},
            "us-east-2b": {"g4dn.xlarge": "0.1919"},
        }


class TestDouble(PriceSourceSuite):
    region, day = REGION, DAY

    @pytest.fixture
    def prices(self) -> FakePriceSource:
        return FakePriceSource(
            {REGION: {"g4dn.xlarge": "0.526"}},
            as_of=DAY,
            spot={f"{REGION}a": {"g4dn.xlarge": "0.19"}, f"{REGION}b": {"g4dn.xlarge": "0.2"}},
        )


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("AccessDeniedException", MissingRightError, "the right pricing:GetProducts on prices of us-east-2"),
        ("ExpiredTokenException", CredentialsError, "renew them"),
    ],
)
def test_a_refusal_names_the_right(
    monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], says: str
) -> None:
    monkeypatch.setattr(clients, "open_client", opener(refuse(code)))
    with aws_environment(), pytest.raises(error, match=says):
        AwsPriceList(FakeClock()).read(REGION)
