"""The pages in a real browser: followed live, by keyboard alone, and as assistive technology reads them."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchscribe import detached
from batchscribe.dashboard.context import open_context
from batchscribe.dashboard.server import create_app
from batchscribe.settings import load
from batchscribe.wiring.seams import open_ledger_to_read
from batchscribe.wiring.stores import open_store
from support.browser import WIDTHS, find_faults, serving
from support.cli import Desk, local_desk, put_speech, spoken, wait_for
from support.dashboards import fill_ledger, quarantine_chunk
from support.forked import nursery

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.e2e
PATIENCE = 120_000
"""Milliseconds; a bound for a page that hangs."""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = local_desk(tmp_path, BATCH_THRESHOLD="4", BATCH_ENGINE="pocketsphinx")
    put_speech(desk.bucket, "team-meeting")
    return desk


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    with serving(create_app(open_context(load({}, folder=desk.home)))) as url:
        yield url


def has_open_run(desk: Desk) -> Iterator[bool]:
    while True:
        with open_ledger_to_read(load({}, folder=desk.home)) as ledger:
            yield bool(ledger.open_runs())


def test_a_run_is_followed_from_its_start_to_its_settlement(browser_page: Page, desk: Desk, url: str) -> None:
    """The page is loaded once; everything after that arrives by itself."""
    browser_page.goto(url)
    browser_page.get_by_text("would launch").wait_for(timeout=PATIENCE)
    browser_page.evaluate("window.loadedOnce = true")
    process = desk.start("tick", BATCH_ENGINE="scripted")
    wait_for(has_open_run(desk))
    process.send_signal(signal.SIGSTOP)  # the run lasts until the page has shown it
    run = browser_page.get_by_role("region", name="Run in progress")
    run.wait_for(timeout=PATIENCE)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    run.wait_for(state="detached", timeout=PATIENCE)
    recent = browser_page.get_by_role("region", name="Recent runs").get_by_text("completed")
    recent.wait_for(timeout=PATIENCE)
    browser_page.get_by_text("nothing is pending").wait_for(timeout=PATIENCE)
    assert browser_page.evaluate("window.loadedOnce") is True
    browser_page.get_by_role("link", name=re.compile(r"\d{8}-\d{6}-")).click()
    browser_page.get_by_text("observed stopped").first.wait_for(timeout=PATIENCE)


def test_a_manual_run_is_started_by_keyboard_alone(
    browser_page: Page, desk: Desk, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk.home)
    monkeypatch.setenv("BATCH_ENGINE", "scripted")
    monkeypatch.setattr(detached, "spawn", nursery().spawn)
    shutil.rmtree(desk.bucket / "team-meeting")
    (desk.bucket / "short.wav").write_bytes(spoken())
    browser_page.goto(url)
    press_until(browser_page, "Run now…")
    browser_page.get_by_role("heading", name="It would transcribe 1 chunk for about $0.00").wait_for()
    press_until(browser_page, "Start, for about $0.00")
    browser_page.get_by_role("heading", name="Output of the last run").wait_for()
    assert browser_page.get_by_text("It would transcribe").count() == 0
    browser_page.get_by_role("link", name=re.compile(r"^Run \d{8}-")).wait_for(timeout=PATIENCE)
    browser_page.get_by_text("has ended").wait_for(timeout=PATIENCE)
    assert browser_page.get_by_text("none yet").count() == 0
    press_until(browser_page, "Overview")
    recent = browser_page.get_by_role("region", name="Recent runs").get_by_text("completed")
    recent.wait_for(timeout=PATIENCE)
    assert (desk.bucket / "transcription-short.json").exists()


def press_until(page: Page, name: str) -> None:
    """Presses Tab until the focus is on the element with this text, then Enter."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip() == name:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"no Tab leads to {name}")


def test_every_page_is_accessible_and_fits(browser_page: Page, desk: Desk, url: str) -> None:
    runs = fill_ledger(desk.home, 60, detail="w" * 200, failures={"<b>" + "n" * 1000: "x" * 1000})
    for key in ("short.mp3", "<i>/" + "long-name-" * 50 + ".mp3"):
        quarantine_chunk(open_store(str(desk.bucket)), key)
    faults = {}
    for path in (
        "/",
        "/runs",
        f"/runs/{runs[-1].id}",
        "/run",
        "/quarantine",
        "/why?key=chunk-001",
        "/settings",
        "/doctor",
    ):
        browser_page.goto(url + path)
        for width in WIDTHS:
            browser_page.set_viewport_size({"width": width, "height": 900})
            wide = browser_page.evaluate("document.documentElement.scrollWidth > innerWidth")
            if found := [*find_faults(browser_page), *(["wider than the window"] if wide else [])]:
                faults[path, width] = found
    assert faults == {}
