"""The price table: its sources and dates, what overrides it, and how its age is shown."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from batchscribe.adapters.aws.prices import decode_sheets, load_packaged_prices
from batchscribe.cli import prices as command
from batchscribe.cli.app import App
from batchscribe.core.decide.hosted import format_savings, make_savings
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import Market
from batchscribe.core.decide.prices import (
    ADDRESS,
    GP3,
    OLD_DAYS,
    READS,
    SNAPSHOT,
    WRITES,
    PriceKind,
    PriceSheet,
    combine_sheets,
    count_age_days,
    describe_rate,
    mark_age,
    replace_sheets,
)
from batchscribe.errors import MisconfiguredError, MissingRightError
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.prices import FakePriceSource
from batchscribe.wiring import prices as wiring
from batchscribe.wiring.prices import load_prices, refresh_prices, refresh_spot_prices
from batchscribe.wiring.seams import market_rate_of, rate_of

TABLE = load_packaged_prices()
REGIONS = ("us-east-1", "us-east-2", "us-west-2")
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = datetime(2027, 3, 29, 12, tzinfo=UTC)


def sheet(price: str, as_of: str = "2026-11-29", region: str = "eu-west-1") -> PriceSheet:
    return PriceSheet(
        kind=PriceKind.ON_DEMAND,
        source="mine",
        as_of=as_of,
        regions=(region,),
        prices={"g4dn.xlarge": price},
    )


def rate(instance_type: str, region: str) -> Rate:
    found = TABLE.find_rate(instance_type, region)
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
    assert TABLE.find_rate(instance_type, region) is None


def test_a_machine_outside_aws_is_priced_as_the_first_region_and_says_so() -> None:
    assert rate("g4dn.xlarge", "").source.endswith("us-east-1")


def test_every_family_has_an_on_demand_and_a_spot_price() -> None:
    found = {kind: [p for p in TABLE.list_prices("us-east-2") if p.kind is kind] for kind in PriceKind}
    for kind in (PriceKind.ON_DEMAND, PriceKind.SPOT):
        assert {price.name.partition(".")[0] for price in found[kind]} == {"g4dn", "g5", "g6", "g6e", "g6f"}
    prices = {price.name: price.high for price in found[PriceKind.ON_DEMAND]}
    assert all(0 < price.micros < 50_000_000 for price in prices.values())
    for price in found[PriceKind.SPOT]:
        assert price.low <= price.high < prices[price.name]


@pytest.mark.parametrize(
    ("kind", "name", "micros"),
    [
        (PriceKind.DISK, GP3, 80_000),
        (PriceKind.ADDRESS, ADDRESS, 5_000),
        (PriceKind.REQUESTS, READS, 400),
        (PriceKind.REQUESTS, WRITES, 5_000),
    ],
)
@pytest.mark.parametrize("region", REGIONS)
def test_disk_address_and_requests_are_priced_in_each_region(
    region: str, kind: PriceKind, name: str, micros: int
) -> None:
    found = TABLE.find(kind, name, region)
    assert found is not None
    assert found.high == Usd(micros)


def test_every_sheet_states_its_source_date_and_regions() -> None:
    for each in TABLE.sheets:
        assert (each.source, each.about, each.regions) > ("", "", ())
        assert date.fromisoformat(each.as_of) <= NOW.date() + timedelta(days=OLD_DAYS), "no year too late"
    snapshot = TABLE.find(PriceKind.DISK, SNAPSHOT, "us-east-1")
    assert snapshot is not None
    assert snapshot.source.startswith("usage.ai"), "no list price of AWS: its source has another name"


@pytest.mark.parametrize("text", ["", "x", "-1", "2-1", "NaN", "Infinity", "1-x", "1e10"])
def test_a_price_that_is_no_amount_is_refused(text: str) -> None:
    data = msgspec.json.encode([msgspec.to_builtins(sheet("1")) | {"prices": {"a": text}}])
    with pytest.raises(msgspec.ValidationError):
        decode_sheets(data)


@pytest.mark.parametrize(
    ("as_of", "days"), [("2026-11-29", 0), ("2026-08-31", 90), ("2026-09", 89), ("", None), ("soon", None)]
)
def test_the_age_of_a_price_counts_from_its_date(as_of: str, days: int | None) -> None:
    assert count_age_days(as_of, NOW) == days


@pytest.mark.parametrize(
    ("as_of", "mark"),
    [("2026-08-31", ""), ("2026-08-30", ", 91 days old"), ("", ""), ("2027-11-29", ", in the future")],
)
def test_a_price_older_than_ninety_days_is_marked(as_of: str, mark: str) -> None:
    assert mark_age(as_of, NOW) == mark
    found = Rate(per_hour=Usd(526_000), source="list", as_of=as_of)
    assert describe_rate(found, NOW).endswith(f"{mark})")


def test_an_old_price_of_a_hosted_service_is_marked_too() -> None:
    savings = make_savings(Usd(0), 1.0)
    assert "days old" not in format_savings(savings, NOW)
    assert "(price as of 2026-09-22, 188 days old)" in format_savings(savings, LATER)


def priced(folder: Path, **names: str) -> Rate:
    given = {"GPU_INSTANCE_ID": "i-0123456789abcdef0", "AWS_REGION": "eu-west-1"} | names
    return rate_of(load(given, folder=folder))("g4dn.xlarge")


def refresh(folder: Path, price: str, *regions: str, as_of: str = "2026-12-01") -> Path:
    source = FakePriceSource({region: {"g4dn.xlarge": price} for region in regions}, as_of=as_of)
    return refresh_prices(load({}, folder=folder), source, regions)


def test_a_region_that_is_not_listed_is_priced_after_a_refresh(tmp_path: Path) -> None:
    with pytest.raises(
        MisconfiguredError, match=r"g4dn\.xlarge in eu-west-1 is unknown: .* BATCH_PRICE_FILE"
    ) as no:
        priced(tmp_path)
    assert "run `batchscribe prices --refresh --region eu-west-1`" in str(no.value)
    refresh(tmp_path, "0.587", "eu-west-1")
    assert priced(tmp_path) == Rate(
        per_hour=Usd(587_000), source="a test's list, eu-west-1", as_of="2026-12-01"
    )


def test_a_refresh_keeps_other_regions_and_replaces_its_own(tmp_path: Path) -> None:
    refresh(tmp_path, "0.5", "eu-west-1", "eu-central-1")
    file = refresh(tmp_path, "0.6", "eu-west-1", as_of="2026-12-02")
    assert priced(tmp_path).per_hour == Usd(600_000)
    assert priced(tmp_path, AWS_REGION="eu-central-1").per_hour == Usd(500_000)
    assert len(json.loads(file.read_text())) == 2
    assert file.stat().st_mode & 0o077 == 0


def test_the_newest_date_wins_against_the_package(tmp_path: Path) -> None:
    refresh(tmp_path, "0.6", "us-east-2", as_of="2026-11-01")
    assert priced(tmp_path, AWS_REGION="us-east-2").per_hour == Usd(526_000)
    refresh(tmp_path, "0.6", "us-east-2", as_of="2026-12-01")
    assert priced(tmp_path, AWS_REGION="us-east-2").per_hour == Usd(600_000)


def test_a_price_file_wins_against_newer_dates_and_the_setting_against_all(tmp_path: Path) -> None:
    refresh(tmp_path, "0.6", "eu-west-1")
    (tmp_path / "own.json").write_bytes(msgspec.json.encode([sheet("0.3", "2026-01-01")]))
    assert priced(tmp_path, BATCH_PRICE_FILE="own.json").per_hour == Usd(300_000)
    both = priced(tmp_path, BATCH_PRICE_FILE="own.json", GPU_HOURLY_COST="0.2")
    assert (both.per_hour, both.source) == (Usd(200_000), "GPU_HOURLY_COST")


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b'[{"kind": "on-demand"}]'])
def test_an_unreadable_price_file_is_named_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "own.json").write_bytes(content)
    with pytest.raises(MisconfiguredError, match=r"price file .*own\.json .*correct BATCH_PRICE_FILE"):
        priced(tmp_path, BATCH_PRICE_FILE="own.json")


@pytest.mark.parametrize(
    ("price", "message"),
    [
        (0.41, 'correct BATCH_PRICE_FILE, with prices as quoted texts such as "0.41"'),
        ("-0.41", """'-0.41' is no price such as "0.41", and no range"""),
    ],
)
def test_a_price_that_is_no_quoted_amount_is_named(tmp_path: Path, price: object, message: str) -> None:
    own = msgspec.to_builtins(sheet("1")) | {"prices": {"g4dn.xlarge": price}}
    (tmp_path / "own.json").write_bytes(msgspec.json.encode([own]))
    with pytest.raises(MisconfiguredError, match=re.escape(message)):
        priced(tmp_path, BATCH_PRICE_FILE="own.json")


def test_a_date_in_the_future_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.json").write_bytes(msgspec.json.encode([sheet("0.3", "2027-11-29")]))
    shown = call(tmp_path, monkeypatch, AWS_REGION="eu-west-1", BATCH_PRICE_FILE="own.json")
    assert "on-demand g4dn.xlarge 0.3000 hour 2027-11-29 in the future" in " ".join(shown.split())


def test_a_damaged_refresh_is_named_and_replaced_by_the_next(tmp_path: Path) -> None:
    file = refresh(tmp_path, "0.6", "eu-west-1")
    file.write_text("{")
    with pytest.raises(MisconfiguredError, match="delete it, or run `batchscribe prices --refresh`"):
        priced(tmp_path)
    refresh(tmp_path, "0.7", "eu-west-1")
    assert priced(tmp_path).per_hour == Usd(700_000)


def test_a_price_file_is_read_once_and_only_for_a_price(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("{")
    settings = load({"BATCH_PRICE_FILE": "own.json", "GPU_HOURLY_COST": "0.2"}, folder=tmp_path)
    assert rate_of(settings)("g4dn.xlarge").per_hour == Usd(200_000), "a stop needs no price file"
    with pytest.raises(MisconfiguredError):
        load_prices(settings)


def test_sheets_of_the_same_kind_and_region_are_replaced() -> None:
    old, other = sheet("1", "2026-01-01"), sheet("2", region="eu-north-1")
    assert replace_sheets([old, other], [sheet("3")]) == (other, sheet("3"))


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = lambda: now


def call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str, now: datetime = NOW, **names: str
) -> str:
    app = App()
    app.__dict__["settings"] = load({"AWS_REGION": "us-east-2"} | names, folder=folder)
    monkeypatch.setattr(command, "open_clock", lambda: Clock(now))
    result = CliRunner().invoke(command.prices, list(words), obj=app, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_shows_prices_with_their_age_within_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(tmp_path, monkeypatch).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["Kind", "Name", "Dollars", "Per", "As", "of", "Age"]
    rows = [" ".join(line.split()) for line in lines]
    assert "on-demand g4dn.xlarge 0.5260 hour 2026-11-23 6 d" in rows
    assert "spot g6f.2xlarge 0.1210-0.1440 hour 2026-11-23 6 d" in rows
    assert "disk gp3 0.0800 GB-month 2026-10-16 44 d" in rows
    assert "requests GET 0.0004 1,000 2026-11-23 6 d" in rows
    assert "hosted AWS Transcribe 0.3600 audio hour 2026-09-22 68 d" in rows
    assert "larger sizes: --all" in lines[-2]


def test_the_command_shows_sources_if_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    shown = call(tmp_path, monkeypatch, "--all")
    assert "AWS list, on-demand" in shown
    assert "g6e.48xlarge" in shown
    assert "--all" not in shown


def test_old_prices_are_marked_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(tmp_path, monkeypatch, now=LATER)
    assert "126 d !" in shown
    assert "older than 90 days: `batchscribe prices --refresh --region us-east-2`" in shown
    assert "!" not in call(tmp_path, monkeypatch)


def test_an_unlisted_region_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = call(tmp_path, monkeypatch, AWS_REGION="eu-west-1")
    assert (
        "No price of a GPU in eu-west-1 is known: `batchscribe prices --refresh --region eu-west-1`" in shown
    )


def test_prices_of_the_settings_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(tmp_path, monkeypatch, "--json", GPU_HOURLY_COST="0.4", BATCH_HOST_HOURLY_COST="0.0042")
    document: Any = json.loads(shown)
    (found,) = document["regions"]
    assert found["region"] == "us-east-2"
    assert [(row["price"], row["source"], row["age_days"]) for row in found["prices"][:2]] == [
        (0.4, "GPU_HOURLY_COST", None),
        (0.0042, "BATCH_HOST_HOURLY_COST", None),
    ]


def test_the_command_refreshes_each_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakePriceSource(
        {name: {"g4dn.xlarge": "0.7"} for name in ("eu-west-1", "ap-south-1")}, as_of="2026-11-29"
    )
    monkeypatch.setattr(command, "open_price_source", lambda _settings, _clock: source)
    words = ("--refresh", "--region", "eu-west-1", "--region", "ap-south-1", "--json")
    document: Any = json.loads(call(tmp_path, monkeypatch, *words))
    assert [row["region"] for row in document["regions"]] == ["eu-west-1", "ap-south-1"]
    assert [row["prices"][0]["price"] for row in document["regions"]] == [0.7, 0.7]
    assert (tmp_path / ".batchscribe" / "prices.json").is_file()


def test_a_narrow_terminal_breaks_no_word_and_no_line_ends_in_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = call(tmp_path, monkeypatch).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[1].split() == ["Kind", "Name", "Dollars"]
    assert {"Universal-3.5", "large-v3-turbo", "g6f.2xlarge"} <= {
        word for line in lines for word in line.split()
    }
    for columns in ("40", "80", "150", ""):
        monkeypatch.setenv("COLUMNS", columns)
        shown = call(tmp_path, monkeypatch, "--all").splitlines()
        assert [line for line in shown if line != line.rstrip()] == []


def test_the_region_of_an_aws_profile_has_its_own_prices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "find_default_region", lambda: "us-west-2")
    ec2 = load({"GPU_INSTANCE_ID": "i-0123456789abcdef0"}, folder=tmp_path)
    assert wiring.price_region(ec2) == "us-west-2"
    assert wiring.price_region(load({"AWS_REGION": "us-east-2"}, folder=tmp_path)) == "us-east-2"
    assert wiring.price_region(load({"GPU_PROVIDER": "local"}, folder=tmp_path)) == "us-east-1"
    monkeypatch.setattr(wiring, "find_default_region", lambda: "eu-nowhere-1")
    with pytest.raises(MisconfiguredError, match=r"g4dn\.xlarge in eu-nowhere-1 is unknown"):
        rate_of(ec2)("g4dn.xlarge")


# Spot prices by zone.


def zone_sheet(zone: str, price: str, day: str = "2026-11-29") -> PriceSheet:
    return PriceSheet(
        kind=PriceKind.SPOT, source="spot", as_of=day, regions=(zone,), prices={"g5.xlarge": price}
    )


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("us-east-2a", (0.4, "spot, us-east-2a")),
        ("us-east-2b", (0.5, "spot, us-east-2b")),
        ("us-east-2c", (0.5, "spot, us-east-2b")),
        ("", (0.5, "spot, us-east-2b")),
    ],
)
def test_a_zone_without_a_price_is_priced_as_the_dearest(zone: str, expected: tuple[float, str]) -> None:
    other = zone_sheet("us-east-1a", "9")
    table = combine_sheets((), [zone_sheet("us-east-2a", "0.4"), zone_sheet("us-east-2b", "0.5"), other])
    found = table.find_spot_rate("g5.xlarge", "us-east-2", zone, NOW)
    assert found is not None
    assert (found.per_hour.dollars, found.source) == expected
    assert found.as_of == "2026-11-29"


def test_the_prices_of_the_latest_day_count() -> None:
    whole, zone = zone_sheet("us-east-2", "0.9", "2026-11-28"), zone_sheet("us-east-2a", "0.4")
    found = combine_sheets((), [whole, zone]).find_spot_rate("g5.xlarge", "us-east-2", "", NOW)
    assert found is not None
    assert found.per_hour == Usd(400_000)


def test_an_old_spot_price_is_none() -> None:
    table = combine_sheets((), [zone_sheet("us-east-2a", "0.4", "2026-11-21")])
    assert table.find_spot_rate("g5.xlarge", "us-east-2", "us-east-2a", NOW) is None
    assert table.find_spot_rate("g6.xlarge", "us-east-2", "", NOW) is None


def fleet_settings(tmp_path: Path, **values: str) -> Settings:
    named = {
        "GPU_PROVIDER": "fleet",
        "GPU_LAUNCH_TEMPLATE": "gpu",
        "GPU_INSTANCE_TYPES": "g5.xlarge",
        "AWS_REGION": "us-east-2",
    }
    return load(named | values, folder=tmp_path)


def spot_source(day: str = "2026-11-29", price: str = "0.4") -> FakePriceSource:
    return FakePriceSource({}, as_of=day, spot={"us-east-2a": {"g5.xlarge": price}})


def test_the_days_spot_prices_are_read_once(tmp_path: Path) -> None:
    settings, first = fleet_settings(tmp_path), spot_source()
    refresh_spot_prices(settings, first, NOW)
    refresh_spot_prices(settings, spot_source(price="0.9"), NOW)
    rate = market_rate_of(settings, FakeClock(NOW))
    assert rate("g5.xlarge", Market.SPOT, "us-east-2a").per_hour == Usd(400_000)
    refresh_spot_prices(settings, spot_source("2026-11-30", "0.9"), NOW + timedelta(days=1))
    later = market_rate_of(settings, FakeClock(NOW + timedelta(days=1)))
    assert later("g5.xlarge", Market.SPOT, "us-east-2a").per_hour == Usd(900_000)


def test_a_failed_read_of_spot_prices_leaves_the_ones_before(tmp_path: Path) -> None:
    class Refusing(FakePriceSource):
        def read_spot(self, region: str, types: tuple[str, ...]) -> tuple[PriceSheet, ...]:
            raise MissingRightError("no right")

    settings = fleet_settings(tmp_path)
    refresh_spot_prices(settings, Refusing({}, as_of="2026-11-29"), NOW)
    rate = market_rate_of(settings, FakeClock(NOW + timedelta(days=60)))
    found = rate("g5.xlarge", Market.SPOT, "us-east-2a")
    assert found.per_hour == Usd(1_006_000)
    assert found.source.startswith("AWS list, on-demand, us-east-2; upper bound: no spot price")
    assert rate("g5.xlarge", Market.ON_DEMAND, "us-east-2a").source == "AWS list, on-demand, us-east-2"
    with pytest.raises(MisconfiguredError, match="the price of x1-never in us-east-2 is unknown") as no:
        rate("x1-never", Market.SPOT, "")
    assert str(no.value).endswith("or set BATCH_PRICE_FILE")  # a fleet refuses GPU_HOURLY_COST


def test_a_refresh_of_spot_prices_keeps_other_prices(tmp_path: Path) -> None:
    settings = fleet_settings(tmp_path)
    refresh_prices(
        settings, FakePriceSource({"us-east-2": {"g5.xlarge": "7"}}, as_of="2026-11-28"), ["us-east-2"]
    )
    refresh_spot_prices(settings, spot_source(), NOW)
    assert market_rate_of(settings, FakeClock(NOW))("g5.xlarge", Market.ON_DEMAND, "").per_hour == Usd(
        7_000_000
    )
