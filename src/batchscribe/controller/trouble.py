"""What earlier attempts left behind in the store: failures, and chunks that failed for good."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from batchscribe.controller.fetching import fetched
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.backlog import Trouble
from batchscribe.core.manifest import Failure, FailureKind, QuarantineRecord
from batchscribe.core.objects import RECORD_BYTES
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError
from batchscribe.protocols import Store
from batchscribe.reading import read_record

log = structlog.get_logger("batchscribe")


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt as its key tells it."""

    digest: str
    etag: str
    run: str
    key: str
    at: datetime


def read_trouble(output: Store, decoder: str | None) -> Mapping[str, tuple[Trouble, ...]]:
    """By the digest of the chunk's key, one entry for each ETag. Another decoder's verdicts do not count.

    Quarantined chunks need no second look: only the attempts at others are read one by one.
    """
    held = {
        (digest, record.etag)
        for digest, record in read_quarantine(output).items()
        if _current(record.decoder, decoder)
    }
    tried = [attempt for attempt in attempts(output) if (attempt.digest, attempt.etag) not in held]
    found: dict[str, list[Trouble]] = {}
    for digest, etag in held:
        found.setdefault(digest, []).append(Trouble(etag=etag, quarantined=True))
    for (digest, etag), failures in read_failures(output, tried).items():
        counted = [failure for failure in failures if _current(failure.decoder, decoder)]
        found.setdefault(digest, []).extend(_trouble(etag, counted))
    return {digest: tuple(troubles) for digest, troubles in found.items() if troubles}


def read_quarantine(output: Store) -> Mapping[str, QuarantineRecord]:
    """Every quarantined chunk, by the digest of its key."""
    listed = {info.key: info.modified for info in output.list(keys.QUARANTINE)}
    read = fetched(output, listed, limit=RECORD_BYTES)
    return {_name(key): _quarantine(key, data, listed[key]) for key, data in read}


def quarantine_of(output: Store, key: str) -> QuarantineRecord | None:
    """The quarantine of one chunk, whether it still counts or not; None where there is none to read."""
    try:
        return read_record(output, keys.quarantine(key), QuarantineRecord)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def attempts(output: Store, digest: str = "") -> Iterator[Tried]:
    """Every failed attempt, or those at one chunk, by key alone."""
    prefix = f"{keys.ATTEMPTS}{digest}/" if digest else keys.ATTEMPTS
    for info in output.list(prefix):
        name, _, rest = info.key.removeprefix(keys.ATTEMPTS).partition("/")
        etag, _, run = rest.rpartition("/")
        if etag and run.endswith(".json"):
            yield Tried(name, etag, run.removesuffix(".json"), info.key, info.modified)


def read_failures(output: Store, tried: Collection[Tried]) -> Mapping[tuple[str, str], list[Failure]]:
    """The records of these attempts, by digest and ETag."""
    named = {attempt.key: attempt for attempt in tried}
    found: dict[tuple[str, str], list[Failure]] = {}
    for key, data in fetched(output, named, limit=RECORD_BYTES):
        attempt = named[key]
        found.setdefault((attempt.digest, attempt.etag), []).append(_failure(attempt, data))
    return found


def _failure(attempt: Tried, data: bytes) -> Failure:
    """An attempt that cannot be read counts: on the safe side, it starts no GPU."""
    try:
        return wire.decode(data, Failure)
    except MisconfiguredError:
        return Failure(
            key="",
            etag=attempt.etag,
            run=attempt.run,
            kind=FailureKind.CHUNK,
            message="the record of this attempt cannot be read",
            at=attempt.at,
        )


def _trouble(etag: str, failures: Iterable[Failure]) -> Iterator[Trouble]:
    kinds = [failure.kind for failure in failures]
    counting = sum(kind.counts for kind in kinds)
    # Changed, and yet listed with this very ETag: what the listing shows cannot be read.
    troubled = FailureKind.ARCHIVED in kinds or FailureKind.CHANGED in kinds
    if counting or troubled:
        yield Trouble(etag=etag, failures=counting, troubled=troubled)


def _current(recorded: str, decoder: str | None) -> bool:
    return decoder is None or recorded in {"", decoder}


def _name(key: str) -> str:
    return key.removeprefix(keys.QUARANTINE).removesuffix(".json")


def _quarantine(key: str, data: bytes, at: datetime) -> QuarantineRecord:
    """A record that cannot be read holds its chunk back, whatever its bytes are: it starts no GPU."""
    try:
        return wire.decode(data, QuarantineRecord)
    except MisconfiguredError as error:
        log.warning("a quarantine record cannot be read: its chunk is left out", key=key, error=str(error))
        message = "this record cannot be read: release it, and its chunk is tried again"
        return QuarantineRecord(key=key, etag="", decoder="", attempts=0, message=message, at=at)
