"""Detects a stalled worker: its progress does not change for `Waits.silence` seconds."""

from __future__ import annotations

import msgspec

from batchscribe.controller.context import Terms, World
from batchscribe.core.run.manifest import Progress, WorkerRef


def stall_reason(world: World, terms: Terms, worker: WorkerRef, progress: Progress | None) -> str | None:
    """Reason why the worker counts as lost. None if it made progress.

    Progress is a change of phase, chunks or windows, measured by the monotonic clock: the report counter also
    rises while the engine hangs. The ledger keeps the last progress for the next pass.
    """
    key = f"watch/{worker.run}/{worker.worker}"
    mark = (progress.phase.value, progress.tally.seen, progress.results) if progress else ("", 0, 0)
    now = world.clock.monotonic()
    before = world.ledger.get(key)
    seen, since = (
        msgspec.json.decode(before, type=tuple[tuple[str, int, int], float]) if before else (None, now)
    )
    if seen != mark or since > now:  # uptime begins again with each boot
        world.ledger.put(key, msgspec.json.encode((mark, now)).decode())
        return None
    if now - since < terms.waits.silence:
        return None
    return f"worker {worker.worker} showed no progress for {terms.waits.silence / 60:.0f} min"
