"""What holds for the whole suite."""

from __future__ import annotations

import os
import signal

import pytest

pytest.register_assert_rewrite("batchscribe.testing")

# No test fetches a model: whatever reads the hub's cache stays offline, workers of their own included.
os.environ["HF_HUB_OFFLINE"] = "1"
# Output does not depend on the width of the terminal that runs the tests; pytest-xdist passes it on.
os.environ.pop("COLUMNS", None)


def pytest_configure() -> None:
    """A suite that a shell started in the background, or under `nohup`, ignores these signals, and so would
    all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
