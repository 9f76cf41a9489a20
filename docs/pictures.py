"""Takes the pictures of README: `python -m docs.pictures URL overview=/ reader=/sessions/…`.

Each is written to docs/_static/NAME.png, from a dashboard on the data of `make demo`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

STATIC = Path(__file__).parent / "_static"
LARGEST = 150_000
"""Bytes of a picture."""


def main(base: str, *pictures: str) -> None:
    """Takes each picture, given as NAME=PATH."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 720}, color_scheme="light", locale="en-US")
        for picture in pictures:
            name, _, path = picture.partition("=")
            page.goto(base + path, wait_until="networkidle")
            data = page.screenshot(path=STATIC / f"{name}.png")
            assert len(data) <= LARGEST, f"{name}: {len(data)} bytes"
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
