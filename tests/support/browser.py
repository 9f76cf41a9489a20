"""Headless Chromium for tests of the pages, and a server of the pages on this machine."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from support.s3 import missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (390, 1440)
"""Pixels of a phone and of a desk."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a module: each start takes a second.

    While it is up, its event loop is this process's, and other tests could have none.
    """
    path = shutil.which("chromium")
    if path is None:
        missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    """A page in a context of its own. The test fails if a script or a policy reported an error."""
    context = browser.new_context(
        viewport={"width": WIDTHS[1], "height": 900}, timezone_id="UTC", locale="en-US"
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda entry: errors.append(entry.text) if entry.type == "error" else None)
    yield page
    context.close()
    assert errors == []


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serves an application on 127.0.0.1 in a thread of the test process; gives its URL."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with config.bind_socket() as bound:
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def find_faults(page: Page) -> list[str]:
    """Rules of axe that the page breaks seriously or worse."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]
