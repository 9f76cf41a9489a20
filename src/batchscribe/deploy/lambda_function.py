"""AWS Lambda's entry: one pass for each event (docs/serverless.md)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping

from batchscribe.errors import BatchscribeError

PASSES = {"tick": ("tick", "--no-wait"), "watchdog": ("watchdog",)}


def handle(event: Mapping[str, object], _context: object) -> None:
    """Makes the pass that the event names: `{"pass": "tick"}` or `{"pass": "watchdog"}`.

    Its output goes to the function's log. Raises BatchscribeError if it failed: Lambda counts errors, and an
    alarm can watch them.
    """
    words = PASSES.get(str(event.get("pass")))
    if words is None:
        raise BatchscribeError(
            f"no pass of that name; nothing was done. An event has a pass: {', '.join(PASSES)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        # A process of its own, since a pass that hangs is killed by the kernel.
        code = subprocess.call([sys.executable, "-m", "batchscribe", *words], cwd=folder)
    if code:
        raise BatchscribeError(f"{' '.join(words)} ended with exit code {code}: its log above has the reason")
