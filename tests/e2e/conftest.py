"""What cases on an emulated AWS have in common, and the one browser of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.aws import make_schedule_group
from support.browser import browser, browser_page
from support.emulated import Aws, Case, emulated_aws, new_case
from support.s3 import aws_environment, moto_server

__all__ = ["browser", "browser_page"]
"""Fixtures; a second import would start a second browser."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address, aws_environment():
        make_schedule_group(address)
        yield address


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with emulated_aws() as made:
        yield made


@pytest.fixture
def case(aws: Aws, tmp_path: Path) -> Case:
    home = tmp_path / "home"
    home.mkdir()
    return new_case(aws, home)
