"""Reader and writer of failed attempts in the store, single and compacted.

Each failure is first an object of its own (`keys.attempt`), written by a worker or by `settle`. A listing of
100,000 of them takes 100 pages, so they are compacted: their records are written into a few objects, then the
single objects are deleted. Every reader lists single objects first and compacted ones second, so it finds an
attempt that is compacted in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import structlog

from batchscribe.controller.fetching import fetch_objects
from batchscribe.core import keys
from batchscribe.core.objects import RECORD_BYTES, ObjectInfo
from batchscribe.core.run import manifest as record
from batchscribe.core.run.manifest import Failure, FailureKind
from batchscribe.core.scan import attempts as wire
from batchscribe.core.scan.attempts import CompactedAttempts, QuarantineMark, StoredFailure
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from batchscribe.protocols import Store

LOOSE = 4
"""Single or revoking objects that trigger a compaction if there are more: a listing reads each."""
AT_ONCE = 20_000
"""Single objects that one compaction takes, the next one the rest: a killed tick repeats few reads."""
TRIES = 5
"""Reads, repeated if the listed objects are compacted meanwhile."""

log = structlog.get_logger("batchscribe")


@dataclass(frozen=True, slots=True)
class Attempts:
    """All failed attempts in the store, by name."""

    single: Mapping[str, ObjectInfo]
    packs: Collection[str]
    """Keys of the compacted objects."""
    compacted: CompactedAttempts
    """Their union."""

    @property
    def stored(self) -> dict[str, datetime]:
        """Names of the attempts that count, and when the store received each."""
        single = {
            name: info.modified
            for name, info in self.single.items()
            if name not in self.compacted.forgotten and name not in self.compacted.attempts
        }
        return single | {name: attempt.stored for name, attempt in self.compacted.attempts.items()}

    @property
    def loose(self) -> int:
        """Objects that a compaction would remove."""
        return len(self.single) + sum(key.startswith(keys.FORGOTTEN) for key in self.packs)


def list_attempts(output: Store, digest: str = "") -> Attempts:
    """Lists all attempts; with `digest`, single objects of that chunk only."""
    prefix = f"{keys.ATTEMPTS}{digest}/" if digest else keys.ATTEMPTS
    single = {name: info for info in output.list(prefix) if (name := keys.name_of_single(info.key))}
    packs = _read_packs(output)
    return Attempts(single, packs.keys(), wire.merge(packs.values()))


def read_failures(
    output: Store,
    choose: Callable[[Attempts], Iterable[str]],
    digest: str = "",
) -> dict[str, Failure]:
    """Records of the chosen attempts, by name; `digest` selects one chunk."""
    found: dict[str, StoredFailure] = {}
    for _ in range(TRIES):
        listed = list_attempts(output, digest)
        chosen = tuple(choose(listed))
        read = dict(_read_single(output, listed, chosen))
        known = {name: listed.compacted.attempts.get(name) or read.get(name) for name in chosen}
        found = {name: each for name, each in known.items() if each}
        if len(found) == len(chosen):
            break
    return {name: each.failure for name, each in found.items()}


def forget_attempts(output: Store, digests: Collection[str]) -> None:
    """Revokes all attempts at these chunks.

    A record of the revocation comes first: a concurrent compaction may already hold their records.
    """
    listed = list_attempts(output)
    names = {name: at for name, at in listed.stored.items() if keys.chunk_of(name)[0] in digests}
    if names:
        _write_pack(output, *wire.pack_forgotten(names))
    for name, info in listed.single.items():
        if keys.chunk_of(name)[0] in digests:
            output.delete(info.key)


def has_loose(output: Store) -> bool:
    """True if there are enough single objects to compact; makes one request."""
    return len(list(islice(output.list(keys.ATTEMPTS), LOOSE + 1))) > LOOSE


def compact(
    output: Store,
    listed: Attempts,
    *,
    dropped: Collection[str],
    before: datetime,
    quarantine: Mapping[str, QuarantineMark],
) -> Iterator[str]:
    """Writes all attempts except those `dropped` into compacted objects.

    Then yields the keys that these replace; the caller deletes them. Revocations of attempts stored earlier
    than `before` are dropped.
    """
    merged, stored = listed.compacted, listed.stored
    taken = dict(islice(listed.single.items(), AT_ONCE))
    wanted = [name for name in taken if name in stored and name not in dropped]
    attempts = {**merged.attempts, **dict(_read_single(output, listed, wanted))}
    whole = CompactedAttempts(
        attempts={name: attempt for name, attempt in attempts.items() if name not in dropped},
        forgotten={name: at for name, at in merged.forgotten.items() if at >= before},
        quarantine=dict(quarantine),
    )
    placed = dict(wire.pack(whole))
    for key in sorted(placed.keys() - listed.packs):
        _write_pack(output, key, placed[key])
    yield from sorted(listed.packs - placed.keys())
    yield from (info.key for info in taken.values())


def _read_single(
    output: Store, listed: Attempts, names: Iterable[str]
) -> Iterator[tuple[str, StoredFailure]]:
    """Yields the attempts that are still single, except those deleted meanwhile."""
    wanted = {
        listed.single[name].key: name
        for name in names
        if name in listed.single and name not in listed.compacted.attempts
    }
    for key, data in fetch_objects(output, wanted, limit=RECORD_BYTES):
        name = wanted[key]
        stored = listed.single[name].modified
        yield name, StoredFailure(_decode_failure(name, data, stored), stored)


def _decode_failure(name: str, data: bytes, stored: datetime) -> Failure:
    """Decodes the record; an unreadable one counts as the chunk's failure."""
    try:
        return record.decode(data, Failure)
    except MisconfiguredError:
        return Failure(
            key="",
            etag=keys.chunk_of(name)[1],
            run=keys.run_of(name),
            kind=FailureKind.CHUNK,
            message="the record of this attempt cannot be read",
            at=stored,
        )


def _read_packs(output: Store) -> dict[str, CompactedAttempts]:
    """Compacted objects by key. An unreadable one is logged and left unchanged."""
    for _ in range(TRIES):
        listed = [info.key for info in output.list(keys.COMPACTED) if info.size <= wire.MAX_BYTES]
        found = dict(fetch_objects(output, listed, limit=wire.MAX_BYTES))
        if len(found) == len(listed):
            return {key: pack for key, data in found.items() if (pack := _decode_pack(key, data))}
    raise StoreUnavailableError("failed attempts were compacted while they were read: try again")


def _decode_pack(key: str, data: bytes) -> CompactedAttempts | None:
    try:
        return wire.decode(data)
    except MisconfiguredError as error:
        log.warning("attempts.unreadable", key=key, error=str(error))
        return None


def _write_pack(output: Store, key: str, data: bytes) -> None:
    if not output.create(key, data):
        raise StoreUnavailableError(
            f"{key} holds other data: no failed attempt was changed; remove the object"
        )
