"""The report and the page of costs in a real browser."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchscribe.dashboard.context import open_context
from batchscribe.dashboard.report import render_report
from batchscribe.dashboard.server import create_app
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.browser import WIDTHS, find_faults, serving
from support.ledgers import fill_ledger

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.e2e
DAYS = timedelta(days=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rec").mkdir()
    (tmp_path / ".env").write_text("BATCH_SOURCE=rec\nGPU_HOURLY_COST=0.526\n")
    settings = load({}, folder=tmp_path)
    with Ledger(settings.state_dir / FILE_NAME, pragmas={"synchronous": "OFF"}) as ledger:
        fill_ledger(ledger, open_context(settings).clock.now() - DAYS, DAYS.days)
    return tmp_path


def test_the_file_draws_its_plots_without_a_network(folder: Path, browser_page: Page) -> None:
    settings = load({}, folder=folder)
    with Ledger(settings.state_dir / FILE_NAME) as ledger:
        html = render_report(settings, ledger, open_context(settings).clock.now(), DAYS)
    file = folder / "report.html"
    file.write_text(html)
    requests: list[str] = []
    browser_page.on("request", lambda request: requests.append(request.url))
    for scheme in ("light", "dark"):
        browser_page.emulate_media(color_scheme=scheme)
        browser_page.goto(file.as_uri())
        figures = browser_page.locator("figure.plot")
        assert figures.count() >= 6
        assert browser_page.locator("figure.plot canvas").count() == figures.count()
        assert find_faults(browser_page) == []
    assert {url for url in requests if not url.startswith(("file:", "data:"))} == set()
    for width in WIDTHS:
        browser_page.set_viewport_size({"width": width, "height": 900})
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_runs_fit_into_a_desk_s_window(folder: Path, browser_page: Page) -> None:
    with serving(create_app(open_context(load({}, folder=folder)))) as url:
        browser_page.set_viewport_size({"width": WIDTHS[1], "height": 900})
        browser_page.goto(f"{url}/money?last=30d")
        runs = browser_page.get_by_role("region", name="Runs").last
        assert runs.evaluate("each => each.scrollWidth <= each.clientWidth")


def test_a_simulation_needs_only_the_keyboard(folder: Path, browser_page: Page) -> None:
    with serving(create_app(open_context(load({}, folder=folder)))) as url:
        browser_page.goto(f"{url}/money?last=30d")
        browser_page.get_by_label("Speed, x").focus()
        browser_page.keyboard.type("20")
        browser_page.keyboard.press("Enter")
        browser_page.get_by_role("region", name="Policies").wait_for()
        assert browser_page.get_by_label("Speed, x").input_value() == "20"
        assert browser_page.locator("#simulation ~ figure.plot canvas").count() == 1
        assert "BATCH_POLICY=" in browser_page.locator("pre").inner_text()
        assert find_faults(browser_page) == []
