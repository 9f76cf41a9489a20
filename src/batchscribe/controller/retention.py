"""Retention of control objects and of rows of the ledger.

Kept for ever: transcripts, audio, superseded transcripts, quarantine, reports, and the intent and settlement
of each run. Kept for 30 days: the other control objects of settled runs, and failed attempts. Kept for 90
days: samples in the ledger, and the events and small facts of settled runs. Age is measured by the store's
own time: a local clock that runs ahead deletes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby

from batchscribe.controller.attempts import LOOSE, Attempts, compact, has_loose, list_attempts
from batchscribe.controller.context import World, log
from batchscribe.controller.fetching import delete_all
from batchscribe.controller.previous_failures import parse_digest, read_marks
from batchscribe.core import keys
from batchscribe.core.objects import ObjectInfo
from batchscribe.errors import PermanentError, TransientError

KEPT = timedelta(days=30)
"""For manifests, progress and exit records of a run after its settlement, and for failed attempts."""
KEPT_IN_LEDGER = timedelta(days=90)
KEEP_ALIVE_EVERY = 1000
"""Deleted objects."""


def delete_outdated(world: World, *, now: datetime) -> int:
    """Deletes old control objects, compacts failed attempts, and prunes the ledger.

    An open run keeps everything, and so does a quarantined chunk. Returns the number of deleted objects.
    Repeatable after a crash between any two steps. Raises what Store.list, create and delete raise.
    """
    output = world.output
    runs, quarantine = list(output.list(keys.RUNS)), list(output.list(keys.QUARANTINE))
    listed = list_attempts(output)
    if not (times := [info.modified for info in (*runs, *quarantine, *listed.single.values())]):
        return 0
    today = min(now, max(times))  # a file's time may be set manually
    # All listings end before the first deletion, so that none loses its own pages.
    outdated = list(_list_outdated(runs, today - KEPT))
    replaced = _compact_attempts(world, listed, quarantine, today - KEPT)
    number = 0
    for number, _ in enumerate(delete_all(output, [*outdated, *replaced]), start=1):
        if number % KEEP_ALIVE_EVERY == 0:
            world.keep_alive()
    world.ledger.prune(today - KEPT_IN_LEDGER)
    return number


def compact_loose(world: World) -> None:
    """Compacts many failed attempts outside a run; failures are only logged."""
    try:
        if has_loose(world.output):
            delete_outdated(world, now=world.clock.now())
    except (TransientError, PermanentError) as error:
        log.warning("attempts.not_compacted", error=str(error))


def _list_outdated(runs: Iterable[ObjectInfo], before: datetime) -> Iterator[str]:
    """Objects of runs settled before `before`, except intents and settlements."""
    for run, group in groupby(runs, key=lambda info: info.key.removeprefix(keys.RUNS).partition("/")[0]):
        found = {info.key: info for info in group}
        settled = found.get(keys.settlement(run))
        if settled is not None and settled.modified < before:
            yield from (key for key in found if key not in {keys.intent(run), keys.settlement(run)})


def _compact_attempts(
    world: World, listed: Attempts, quarantine: Sequence[ObjectInfo], before: datetime
) -> list[str]:
    """Compacts the attempts if necessary; returns the keys to delete."""
    held = {parse_digest(info.key) for info in quarantine}
    free = {name: at for name, at in listed.stored.items() if keys.chunk_of(name)[0] not in held}
    old = {name for name, at in free.items() if at < before}
    marks = read_marks(world.output, quarantine, listed.compacted.quarantine)
    unmarked = len(marks.keys() - listed.compacted.quarantine.keys())
    if not old and listed.loose <= LOOSE and unmarked <= LOOSE:
        return []
    dropped = old | _find_ended(world, free.keys() - old)
    return list(compact(world.output, listed, dropped=dropped, before=before, quarantine=marks))


def _find_ended(world: World, names: Collection[str]) -> set[str]:
    """Attempts at chunks that are done or deleted.

    An unlisted chunk counts as deleted only if the attempt is of our own run on this source: another
    scheduler may write into the same output from another source.
    """
    digests = {keys.chunk_of(name)[0] for name in names}
    listed = ((keys.digest(audio.info.key), audio) for audio in world.scanner(False).audio()) if names else ()
    done = {digest: bool(audio.transcripts) for digest, audio in listed if digest in digests}

    @cache
    def ours(run_id: str) -> bool:
        run = world.ledger.run(run_id)
        return run is not None and run.source == world.source.url

    def ended(name: str) -> bool:
        digest = keys.chunk_of(name)[0]
        return done[digest] if digest in done else ours(keys.run_of(name))

    return {name for name in names if ended(name)}
