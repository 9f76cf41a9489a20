"""What the host's agent leaves for the dead-man."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchscribe.agent.state_files import StateFiles
from batchscribe.errors import MisconfiguredError


def test_the_markers_are_plain_numbers_that_anybody_may_read(tmp_path: Path) -> None:
    markers = StateFiles(tmp_path)
    assert markers.record_claim("run-1", limit=7380.4, now=20.2) == 7380.4
    assert (tmp_path / "claim").read_text() == "7380\nrun-1\n"
    assert (tmp_path / "alive").read_text() == "20\n"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    markers.record_progress(99.9)
    assert (tmp_path / "alive").read_text() == "100\n"
    assert not (tmp_path / "off").exists()
    markers.request_power_off()
    assert (tmp_path / "off").exists()


def test_an_agent_that_comes_again_keeps_the_limit_and_moves_no_marker(tmp_path: Path) -> None:
    StateFiles(tmp_path).record_claim("run-1", limit=7380.0, now=20.0)
    assert StateFiles(tmp_path).record_claim("run-1", limit=99_999.0, now=500.0) == 7380.0
    assert (tmp_path / "alive").read_text() == "20\n"
    assert StateFiles(tmp_path).record_claim("run-2", limit=7777.0, now=550.0) == 7777.0
    assert (tmp_path / "alive").read_text() == "550\n"
    (tmp_path / "claim").write_text("torn")
    assert StateFiles(tmp_path).record_claim("run-1", limit=8000.0, now=600.0) == 8000.0


def test_a_marker_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    with pytest.raises(MisconfiguredError, match="claim cannot be written"):
        StateFiles(tmp_path).record_claim("run-1", limit=1.0, now=0.0)


def test_markers_that_are_released_are_gone(tmp_path: Path) -> None:
    markers = StateFiles(tmp_path)
    markers.delete_claim()
    markers.record_claim("run-1", limit=7380.0, now=20.0)
    markers.delete_claim()
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "claim").mkdir()
    with pytest.raises(MisconfiguredError, match="claim cannot be written"):
        markers.delete_claim()
