"""How long control objects are kept. Transcripts, audio and quarantine are none of its business."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby

from batchscribe.controller.trouble import attempts
from batchscribe.core import keys
from batchscribe.core.objects import ObjectInfo
from batchscribe.protocols import Store

KEPT = timedelta(days=30)


def retire(output: Store, *, now: datetime, keep: timedelta = KEPT) -> int:
    """Deletes the objects of runs that were settled, and failed attempts, more than `keep` ago.

    An open run keeps everything, and so does a quarantined chunk. Returns how many objects were
    deleted. Repeatable after a crash between any two of them. Raises what Store.list and delete raise.
    """
    before = now - keep
    # All listings end before the first object goes: no listing is cut from under itself.
    outdated = [*_runs(output, before), *_attempts(output, before)]
    for key in outdated:
        output.delete(key)
    return len(outdated)


def _runs(output: Store, before: datetime) -> Iterator[str]:
    for run, listed in groupby(output.list(keys.RUNS), key=_run):
        found = {info.key: info for info in listed}
        settled = found.get(keys.settlement(run))
        if settled is not None and settled.modified < before:
            yield from _in_order(run, found)


def _run(info: ObjectInfo) -> str:
    return info.key.removeprefix(keys.RUNS).partition("/")[0]


def _in_order(run: str, found: dict[str, ObjectInfo]) -> list[str]:
    """The intent first and the settlement last: an intent without a settlement would be an open run."""
    intent, settlement = keys.intent(run), keys.settlement(run)
    return sorted(found, key=lambda key: (key == settlement, key != intent, key))


def _attempts(output: Store, before: datetime) -> Iterator[str]:
    held = {info.key for info in output.list(keys.QUARANTINE)}
    for attempt in attempts(output):
        if attempt.at < before and f"{keys.QUARANTINE}{attempt.digest}.json" not in held:
            yield attempt.key
