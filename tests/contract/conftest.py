"""Fixtures of several suites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchscribe.cli.main import cli
from support.s3 import REGION


@pytest.fixture
def fleet_settings() -> dict[str, str]:
    """Settings of `command` that a module adds."""
    return {}


@pytest.fixture
def command(
    endpoint: str, fleet_settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a command with GPU_PROVIDER=fleet in an empty folder."""
    monkeypatch.chdir(tmp_path)
    named = {
        "GPU_PROVIDER": "fleet",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": endpoint,
        "BATCH_SOURCE": str(tmp_path),
        "BATCH_CLOUD_GUARD": "off",
        "BATCH_POLL_SECONDS": "0.1",
    }
    return lambda *words: CliRunner().invoke(cli, words, env=named | fleet_settings)
