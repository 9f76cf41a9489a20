from __future__ import annotations

from batchscribe.core.speech import SAMPLE_RATE
from batchscribe.worker.windows import Samples


class Overlaps:
    def __init__(self, fixed_ms: int | None) -> None:
        self._fixed = fixed_ms or 0

    def between(self, before: Samples, after: Samples) -> float:
        return min(self._fixed / 1000, len(before) / SAMPLE_RATE, len(after) / SAMPLE_RATE)
