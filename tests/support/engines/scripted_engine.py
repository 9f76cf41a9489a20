"""The scripted engine as a package of its own: any process with this folder on its PYTHONPATH finds it.

A real model costs each worker seconds of a core. This one takes its time, so that a test meets a run in the
middle, but sleeps meanwhile. Tests of recognised words name a real engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchscribe.core.text.speech import Recognition, Window
from batchscribe.testing.engine import ScriptedEngine, ScriptedFactory

SECONDS_PER_SECOND = float(os.environ.get("SCRIPTED_SECONDS", "0.15"))
"""Of a window's audio."""
GATE = os.environ.get("SCRIPTED_GATE", "")
"""Folder in which the processes of two workers meet before their first window."""


class SlowEngine(ScriptedEngine):
    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        if GATE:
            Path(GATE, str(os.getpid())).touch()
            while len([*Path(GATE).iterdir()]) < 2:
                time.sleep(0.05)
        time.sleep(SECONDS_PER_SECOND * sum(window.seconds for window in batch))
        return super().transcribe(batch)


class SlowFactory(ScriptedFactory):
    def model_name(self, wanted: str) -> str:
        """There is no choice of models."""
        return ""


FACTORY = SlowFactory(SlowEngine(device=f"double {os.environ.get('CUDA_VISIBLE_DEVICES', '')}".strip()))
