"""Whether work has come to a stand, as one watcher after another sees it."""

from __future__ import annotations

import msgspec

from batchscribe.controller.context import Terms, World
from batchscribe.core.manifest import Manifest, Progress
from batchscribe.core.runs import Run


def stands_still(
    world: World, terms: Terms, run: Run, manifest: Manifest, progress: Progress | None
) -> str | None:
    """Why the work counts as lost; None where something came of it lately.

    By what came of it, and a clock that cannot jump: a reporter that goes on counting beside a hung
    engine is no sign of life. The mark stays in the ledger, so that whoever looks next counts on.
    """
    key = f"watch/{run.id}/{manifest.worker}"
    mark = (progress.phase.value, progress.tally.seen, progress.results) if progress else ("", 0, 0)
    now = world.clock.monotonic()
    before = world.ledger.get(key)
    seen, since = (
        msgspec.json.decode(before, type=tuple[tuple[str, int, int], float]) if before else (None, now)
    )
    if seen != mark or since > now:
        world.ledger.put(key, msgspec.json.encode((mark, now)).decode())
        return None
    if now - since < terms.waits.silence:
        return None
    return f"worker {manifest.worker} showed no progress for {terms.waits.silence / 60:.0f} min"
