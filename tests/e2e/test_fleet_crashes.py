"""The controller of created machines is killed at every seam; the next passes make it good.

As test_crashes.py, on EC2 Fleet: at the end no machine exists, and each chunk was done once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.created import CreatedCase, new_created_case
from support.emulated import Aws

pytestmark = pytest.mark.e2e


@pytest.fixture
def created(aws: Aws, tmp_path: Path) -> CreatedCase:
    home = tmp_path / "home"
    home.mkdir()
    return new_created_case(aws, home)


@pytest.mark.parametrize("point", ["guard.arm:after", "capacity.acquire:before", "capacity.acquire:after", "capacity.announce:before", "capacity.announce:after","capacity.teardown:before","capacity.teardown:after","guard.disarm:before", "guard.disarm:after","capacity.poll:before", "capacity.poll:after", "capacity.list_created:before", "capacity.list_created:after"])
def test_killed_at_any_seam_the_next_passes_make_it_good(created: CreatedCase, point: str) -> None:
    created.killed_at(point)
    told = created.watch()
    assert not created.problems(), told
    assert len(created.paid) == 1, "a crash is a pause, not another start"
