"""The sentence that explains the present state of one chunk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from batchscribe.core.keys import digest
from batchscribe.core.run.manifest import Failure
from batchscribe.core.scan.backlog import ChunkState, ScanRules, find_last_write, state_of
from batchscribe.core.scan.folders import AudioObject

_ROUNDED_UP = timedelta(seconds=60, microseconds=-1)
"""Added to an end that is shown in whole minutes."""


def explain(
    audio: AudioObject, rules: ScanRules, failures: Sequence[Failure] = (), *, max_wait: timedelta
) -> str:
    """Explains the chunk's state, and when that changes at the latest.

    `failures` are its failed attempts, oldest first; `max_wait` is BATCH_MAX_WAIT_HOURS.
    """
    match state_of(audio, rules):
        case ChunkState.EMPTY:
            return "empty: an object of 0 bytes has nothing to transcribe"
        case ChunkState.DONE:
            stale = "; its audio is newer: `batchscribe redo` transcribes it again" if audio.stale else ""
            return f"done{stale}"
        case ChunkState.QUARANTINED:
            return f"quarantined: no run retries it{_last_failure(failures)}"
        case ChunkState.WAITING:
            return _explain_waiting(audio, rules)
        case ChunkState.PENDING:
            return _explain_pending(audio, rules, failures, max_wait)


def _explain_waiting(audio: AudioObject, rules: ScanRules) -> str:
    live = rules.live
    if live is not None and live.covers(audio.name.session):
        return (
            f"waiting: its session is being recorded (live lock since {_format_time(live.since)}); "
            "pending once the lock ends"
        )
    if written := find_last_write(audio.info, rules):
        until = _format_time(written + rules.min_age + _ROUNDED_UP)
        if written == audio.info.modified:
            return f"waiting: too young, its upload may still be in progress until {until}"
        return (
            f"waiting: its modification time is older, but the file itself changed on this disk at "
            f"{_format_time(written)}; pending from {until} on"
        )
    latest = _format_time(audio.info.modified + 2 * (audio.gap or timedelta()) + _ROUNDED_UP)
    return f"waiting: last chunk of a session that seems to continue; pending at {latest} at the latest"


def _explain_pending(
    audio: AudioObject, rules: ScanRules, failures: Sequence[Failure], max_wait: timedelta
) -> str:
    tried = [failure for failure in failures if failure.etag == audio.info.etag]
    known = rules.trouble.get(digest(audio.info.key), ())
    if not tried:
        due = audio.info.modified + max_wait
        late = "overdue" if rules.now >= due else f"due at {_format_time(due)} at the latest"
        archived = any(each.unavailable for each in known)
        return f"pending, {late}" + ("; it was unavailable at the last attempt" if archived else "")
    if len(tried) >= rules.max_attempts:
        return f"pending: {len(tried)} attempts failed, so it no longer starts a GPU{_last_failure(tried)}"
    due = max(audio.info.modified, tried[-1].at) + max_wait
    number = f"attempt {len(tried) + 1} of {rules.max_attempts}"
    return (
        f"pending: {number} is due at {_format_time(due)}, earlier with another start{_last_failure(tried)}"
    )


def _last_failure(failures: Sequence[Failure]) -> str:
    return f"; last failure: {failures[-1].message} (run {failures[-1].run})" if failures else ""


def _format_time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
