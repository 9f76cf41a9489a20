"""The stage of most tests of the tick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.world import Stage, stage


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path)
    yield made
    made.ledger.close()
