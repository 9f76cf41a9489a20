"""Machines on a Ray cluster: the suites of capacities and launchers, a killed node, a killed driver.

Ray listens on all addresses, so the tests (support/ray_checks.py) run in a network namespace, with a token.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from support.ray_cluster import ENTER, make_environment
from support.s3 import missing

CHECKS = Path(__file__).parents[1] / "support" / "ray_checks.py"
PATIENCE = 1200.0
"""A bound for what hangs, not a measure of anything."""


@pytest.mark.deep
@pytest.mark.e2e  # it is the longest: it begins first
@pytest.mark.timeout(PATIENCE)
def test_machines_on_a_ray_cluster() -> None:
    if find_spec("ray") is None:
        missing("Ray")
    if subprocess.run([*ENTER, "true"], capture_output=True, check=False).returncode != 0:
        missing("a network namespace")
    # Sockets lie in the folder, and their paths have a short limit: it is not pytest's.
    with TemporaryDirectory(prefix="ray-") as folder:
        pytest_words = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*ENTER, *pytest_words, str(CHECKS)],
            env=make_environment(Path(folder)),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stdout + done.stderr
