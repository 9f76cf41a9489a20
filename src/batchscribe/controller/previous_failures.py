"""Records of earlier attempts in the store: failures and quarantined chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec
import structlog

from batchscribe.controller.attempts import Attempts, read_failures
from batchscribe.controller.fetching import fetch_objects
from batchscribe.core import keys
from batchscribe.core.objects import RECORD_BYTES, ObjectInfo
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Failure, FailureKind, QuarantineRecord
from batchscribe.core.scan.attempts import QuarantineMark, mark_name
from batchscribe.core.scan.backlog import PastAttempts
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Store
from batchscribe.reading import read_if_valid

log = structlog.get_logger("batchscribe")


def read_past_attempts(output: Store, decoder: str | None) -> Mapping[str, tuple[PastAttempts, ...]]:
    """Earlier failures by digest of the chunk's key and by ETag.

    Failures with another decoder do not count. Attempts at quarantined chunks are not read. Compacted
    attempts and quarantine marks cost a few requests in total.
    """
    quarantine = list(output.list(keys.QUARANTINE))
    held: set[tuple[str, str]] = set()
    stored: dict[str, datetime] = {}

    def at_others(listed: Attempts) -> list[str]:
        stored.update(listed.stored)
        held.update(_list_held(output, quarantine, listed.compacted.quarantine, decoder))
        return [name for name in listed.stored if keys.chunk_of(name) not in held]

    found: dict[str, list[PastAttempts]] = {}
    failed = {
        name: _limit_time(failure, stored[name]) for name, failure in read_failures(output, at_others).items()
    }
    for (digest, etag), failures in group_by_chunk(failed).items():
        counted = [failure for failure in failures if _is_current(failure.decoder, decoder)]
        found.setdefault(digest, []).extend(_sum_failures(etag, counted))
    for digest, etag in held:
        found.setdefault(digest, []).insert(0, PastAttempts(etag=etag, quarantined=True))
    return {digest: tuple(troubles) for digest, troubles in found.items() if troubles}


def _limit_time(failure: Failure, stored: datetime) -> Failure:
    """The failure, dated by the store if the writer's clock was ahead."""
    return failure if failure.at <= stored else msgspec.structs.replace(failure, at=stored)


def group_by_chunk(failures: Mapping[str, Failure]) -> dict[tuple[str, str], list[Failure]]:
    """Failures of each chunk, by digest and ETag."""
    found: dict[tuple[str, str], list[Failure]] = {}
    for name, failure in failures.items():
        found.setdefault(keys.chunk_of(name), []).append(failure)
    return found


def read_quarantine(output: Store) -> Mapping[str, QuarantineRecord]:
    """All quarantine records, by the digest of the chunk's key."""
    return _read_quarantines(output, list(output.list(keys.QUARANTINE)))


def read_marks(
    output: Store, listed: Sequence[ObjectInfo], known: Mapping[str, QuarantineMark]
) -> dict[str, QuarantineMark]:
    """Marks of the listed quarantine records, by `mark_name`.

    Only those not `known` are read. An unreadable record gets no mark, so that each scan logs it.
    """
    names = {parse_digest(info.key): mark_name(parse_digest(info.key), info.etag) for info in listed}
    new = [info for info in listed if names[parse_digest(info.key)] not in known]
    marks = {name: known[name] for name in names.values() if name in known}
    for digest, record in _read_quarantines(output, new).items():
        if record.etag:
            marks[names[digest]] = QuarantineMark(record.etag, record.decoder)
    return marks


def read_quarantine_of(output: Store, key: str) -> QuarantineRecord | None:
    """Quarantine record of one chunk, even if outdated, unless unreadable."""
    return read_if_valid(output, keys.quarantine(key), QuarantineRecord)


def _list_held(
    output: Store, listed: Sequence[ObjectInfo], known: Mapping[str, QuarantineMark], decoder: str | None
) -> Iterator[tuple[str, str]]:
    """Yields digest and ETag of each chunk quarantined for this decoder."""
    new = []
    for info in listed:
        mark = known.get(mark_name(parse_digest(info.key), info.etag))
        if mark is None:
            new.append(info)
        elif _is_current(mark.decoder, decoder):
            yield parse_digest(info.key), mark.etag
    for digest, record in _read_quarantines(output, new).items():
        if _is_current(record.decoder, decoder):
            yield digest, record.etag


def _read_quarantines(output: Store, listed: Sequence[ObjectInfo]) -> dict[str, QuarantineRecord]:
    modified = {info.key: info.modified for info in listed}
    read = fetch_objects(output, modified, limit=RECORD_BYTES)
    return {parse_digest(key): _decode_quarantine(key, data, modified[key]) for key, data in read}


def _sum_failures(etag: str, failures: Iterable[Failure]) -> Iterator[PastAttempts]:
    known = list(failures)
    kinds = {failure.kind for failure in known}
    counting = len(wire.select_counted(known))
    # A changed chunk that is still listed with this ETag cannot be read.
    unavailable = FailureKind.ARCHIVED in kinds or FailureKind.CHANGED in kinds
    if counting or unavailable:
        yield PastAttempts(
            etag=etag,
            failures=counting,
            unavailable=unavailable,
            attempts=len(known),
            last=max(failure.at for failure in known),
        )


def _is_current(recorded: str, decoder: str | None) -> bool:
    return decoder is None or recorded in {"", decoder}


def parse_digest(key: str) -> str:
    return key.removeprefix(keys.QUARANTINE).removesuffix(".json")


def _decode_quarantine(key: str, data: bytes, at: datetime) -> QuarantineRecord:
    """Decodes a record; an unreadable one still holds its chunk back."""
    try:
        return wire.decode(data, QuarantineRecord)
    except MisconfiguredError as error:
        log.warning("quarantine.unreadable", key=key, error=str(error))
        message = "this record cannot be read: release it to retry its chunk"
        return QuarantineRecord(key=key, etag="", decoder="", attempts=0, message=message, at=at)
