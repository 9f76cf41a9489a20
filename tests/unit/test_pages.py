"""Pages: untrusted values are escaped, and a single file needs nothing but itself."""

from __future__ import annotations

import re

import pytest

from batchscribe.dashboard.pages import ASSETS, file_policy, read_asset, render_page


@pytest.mark.parametrize("name", ASSETS)
def test_no_asset_ends_its_own_element(name: str) -> None:
    end = "</style" if name.endswith(".css") else "</script"
    assert end not in read_asset(name).decode().lower()


def test_a_file_refers_to_nothing_outside_itself() -> None:
    page = render_page("base.html", here="")
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert "default-src 'none'" in file_policy()
