"""The page of costs: its periods, its cache, the simulation on demand, and /metrics beside it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from batchscribe.dashboard import money
from batchscribe.dashboard.context import Context, open_context
from batchscribe.dashboard.report import read_report
from batchscribe.dashboard.server import create_app
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.browser import serving
from support.ledgers import fill_ledger, settled_run

DAYS = 20


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "rec").mkdir()
    settings = load({"BATCH_SOURCE": "rec", "GPU_HOURLY_COST": "0.526"}, folder=tmp_path)
    made = open_context(settings)
    with Ledger(settings.state_dir / FILE_NAME, pragmas={"synchronous": "OFF"}) as ledger:
        fill_ledger(ledger, made.clock.now() - timedelta(days=DAYS), DAYS)
    return made


@pytest.fixture
def url(context: Context) -> Iterator[str]:
    with serving(create_app(context)) as address:
        yield address


def get(url: str, **query: object) -> str:
    with urlopen(f"{url}?{urlencode(query)}", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


@pytest.mark.parametrize("last", money.CHOICES)
def test_each_period_has_a_page(url: str, last: str) -> None:
    page = get(f"{url}/money", last=last)
    assert f'href="/money?last={last}" aria-current="page"' in page
    assert "Fixed costs" in page or "GPU starts" in page


def test_an_unknown_period_is_the_usual_one(url: str) -> None:
    assert 'href="/money?last=7d" aria-current="page"' in get(f"{url}/money", last="</script>7y")


def test_a_simulation_is_made_on_demand(url: str) -> None:
    assert "BATCH_POLICY=" not in get(f"{url}/money", last="30d")
    page = get(f"{url}/money", last="30d", simulate=1, max_wait_hours="", speed="20")
    for text in (
        "threshold",
        "deadline",
        "balanced",
        "now",
        "BATCH_POLICY=",
        "Cost against wait",
        "from the ledger",
    ):
        assert text in page


def test_a_price_of_the_form_is_no_option_of_a_command_line(url: str) -> None:
    page = get(f"{url}/money", last="30d", simulate=1, rate="3.6")
    assert "$3.6/h (as given)" in page
    assert "--rate" not in page


def test_a_wrong_number_is_explained_and_kept_in_its_field(url: str) -> None:
    page = get(f"{url}/money", last="30d", simulate=1, speed='"><b>fast')
    assert "Speed, x: " in page
    assert "<b>fast" not in page
    assert 'role="alert"' in page


def test_a_period_without_arrivals_cannot_be_simulated(context: Context) -> None:
    context.settings.state_dir.joinpath(FILE_NAME).unlink()
    with serving(create_app(context)) as url:
        assert "The ledger has no arrivals of this period" in get(f"{url}/money", simulate=1)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e9", "0x10", "ten"])
def test_only_numbers_in_their_range_are_simulated(text: str) -> None:
    with pytest.raises(MisconfiguredError, match="is no number from"):
        money.read_numbers({"max_wait_hours": text})


def test_empty_fields_are_left_out() -> None:
    assert money.read_numbers({"rate": "0", "speed": " ", "setup_seconds": "90"}) == {
        "rate": 0.0,
        "setup_seconds": 90.0,
    }


def test_a_report_is_read_again_only_after_a_run_or_a_check(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = list[datetime]()

    def count(*arguments: Any) -> dict[str, Any]:
        reads.append(arguments[2])
        return read_report(*arguments)

    monkeypatch.setattr("batchscribe.dashboard.money.read_report", count)
    reports = money.Reports(context)
    for last in ("7d", "7d", "30d", "7d"):
        reports.read(last)
    assert len(reads) == 2
    now = context.clock.now()
    with Ledger(context.settings.state_dir / FILE_NAME) as ledger:
        ledger.save_run(settled_run("20990101-000000-abcdef", now - timedelta(minutes=9), 3), at=now)
    reports.read("7d")
    assert len(reads) == 3


def test_metrics_are_served_as_text(url: str) -> None:
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b"batchscribe_info{" in answer.read()
