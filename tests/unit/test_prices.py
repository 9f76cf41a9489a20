from __future__ import annotations

import re

import pytest

from batchscribe.adapters.aws.prices import _load_table, find_rate
from batchscribe.core.decide.money import Rate, Usd


def rate(instance_type: str, region: str) -> Rate:
    found = find_rate(instance_type, region)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("instance_type", "micros"),
    [("g4dn.xlarge", 526_000), ("g5.xlarge", 1_006_000), ("g6.xlarge", 804_800), ("g6e.xlarge", 1_861_000)],
)
def test_a_known_price_carries_its_source_and_date(instance_type: str, micros: int) -> None:
    found = rate(instance_type, "us-east-2")
    assert found.per_hour == Usd(micros)
    assert found.source == "AWS list, on-demand, us-east-2"
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", found.as_of)


@pytest.mark.parametrize(
    ("instance_type", "region"),
    [("g4dn.xlarge", "eu-west-1"), ("m5.large", "us-east-1"), ("", "us-east-1"), ("", "")],
)
def test_what_is_not_listed_has_no_price(instance_type: str, region: str) -> None:
    assert find_rate(instance_type, region) is None


def test_a_machine_outside_aws_is_priced_as_the_first_region_and_says_so() -> None:
    assert rate("g4dn.xlarge", "").source.endswith("us-east-1")


def test_every_family_is_there_and_every_price_is_an_amount() -> None:
    prices = {name: Usd.parse(text) for name, text in _load_table().per_hour.items()}
    assert {name.partition(".")[0] for name in prices} == {"g4dn", "g5", "g6", "g6e"}
    assert all(0 < price.micros < 50_000_000 for price in prices.values())
    for family in ("g4dn", "g5", "g6", "g6e"):
        sizes = [prices[f"{family}.{size}"].micros for size in ("xlarge", "2xlarge", "4xlarge", "8xlarge")]
        assert sizes == sorted(sizes)
