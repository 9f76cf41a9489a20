"""What holds for the whole suite."""

from __future__ import annotations

import os
import signal
from itertools import groupby, islice
from pathlib import Path

import pytest
from hypothesis import settings

from support.forked import keep_tables

pytest.register_assert_rewrite("batchscribe.testing")

# A slow machine is no finding.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
# No test fetches a model: whatever reads the hub's cache stays offline, workers of their own included.
os.environ["HF_HUB_OFFLINE"] = "1"
# An emulated region begins with one image: moto's own list takes as long as a test.
os.environ["MOTO_AMIS_PATH"] = str(Path(__file__).parent / "support" / "images.json")
# Output does not depend on the width of the terminal that runs the tests; pytest-xdist passes it on.
os.environ.pop("COLUMNS", None)


def pytest_configure() -> None:
    """A suite that a shell started in the background, or under `nohup`, ignores these signals, and so would
    all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _take_one_core()


def pytest_collection_finish() -> None:
    """Once the tests have imported botocore."""
    keep_tables()


def _take_one_core() -> None:
    """Binds a process of pytest-xdist, and all that it starts, to one core: engines start a process or a
    thread for each core, and each of them loads the model or spins."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "")
    cores = sorted(os.sched_getaffinity(0))
    if name:
        os.sched_setaffinity(0, {cores[int(name.removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spreads the long tests: each process of pytest-xdist gets one contiguous part, and begins with some."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    parts: list[list[pytest.Item]] = [[] for _ in range(count)]
    long = [item for item in items if item.get_closest_marker("e2e")]
    for _path, module in groupby(long, key=lambda item: item.path):
        min(parts, key=len).extend(module)
    rest = iter([item for item in items if not item.get_closest_marker("e2e")])
    size = -(-len(items) // count)
    for part in parts:
        part.extend(islice(rest, max(0, size - len(part))))
    items[:] = [item for part in parts for item in part] + list(rest)
