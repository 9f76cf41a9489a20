"""Compacted form of failed attempts: many records in one object.

An attempt has the same name (`keys.attempt_name`) in its own object and in a compacted one. Compacted objects
are sets of names: merging in any order, or one object twice, has the same result. So two schedulers may
compact at once, and a crash between any two steps loses nothing and counts nothing twice.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Annotated

import msgspec
from msgspec import Meta

from batchscribe.core import keys
from batchscribe.core.run.manifest import VERSION, Failure
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import MisconfiguredError

PER_OBJECT = 50_000
"""Attempts in one object: 100,000 take two, of about 3 MB each."""
MAX_BYTES = 256 * 1024 * 1024
"""Unpacked size of one object; a larger one is not ours."""
_GZIP = zlib.MAX_WBITS | 16


class StoredFailure(msgspec.Struct, frozen=True, array_like=True):
    """A failed attempt, and its record's time by the store's clock."""

    failure: Failure
    stored: datetime


class QuarantineMark(msgspec.Struct, frozen=True, array_like=True):
    """The part of a quarantine record that a scan needs."""

    etag: str
    decoder: str


class CompactedAttempts(msgspec.Struct, frozen=True, kw_only=True):
    """One compacted object, or the union of all."""

    version: int = VERSION
    attempts: Annotated[dict[str, StoredFailure], Meta(max_length=PER_OBJECT)] = {}
    """Up to PER_OBJECT in a stored object; the union has more."""
    forgotten: dict[str, datetime] = {}
    """Names that no longer count in any object, each with the time at which it was stored."""
    quarantine: dict[str, QuarantineMark] = {}
    """By `mark_name`; saves reading the record of each quarantined chunk."""


def mark_name(digest: str, version: str) -> str:
    """Name of a mark, from key digest and quarantine record's ETag."""
    return f"{digest}/{version}"


def merge(parts: Iterable[CompactedAttempts]) -> CompactedAttempts:
    """Merges compacted objects; forgotten names win, then the first stored record."""
    attempts: dict[str, StoredFailure] = {}
    forgotten: dict[str, datetime] = {}
    quarantine: dict[str, QuarantineMark] = {}
    for part in parts:
        forgotten |= part.forgotten
        quarantine |= part.quarantine
        for name, attempt in part.attempts.items():
            known = attempts.get(name)
            if known is None or attempt.stored < known.stored:
                attempts[name] = attempt
    counted = {name: attempt for name, attempt in attempts.items() if name not in forgotten}
    return CompactedAttempts(attempts=counted, forgotten=forgotten, quarantine=quarantine)


def pack(whole: CompactedAttempts) -> Iterator[tuple[str, bytes]]:
    """Yields (key, bytes) of objects for `whole`, PER_OBJECT attempts in each."""
    names = iter(sorted(whole.attempts))
    rest = CompactedAttempts(forgotten=whole.forgotten, quarantine=whole.quarantine)
    while (some := list(islice(names, PER_OBJECT))) or rest.forgotten or rest.quarantine:
        part = msgspec.structs.replace(rest, attempts={name: whole.attempts[name] for name in some})
        data = encode(part)
        yield keys.compacted(sha256(data).hexdigest()), data
        rest = CompactedAttempts()


def pack_forgotten(names: dict[str, datetime]) -> tuple[str, bytes]:
    """(key, bytes) of an object that revokes these attempts."""
    data = encode(CompactedAttempts(forgotten=names))
    return keys.forgotten(sha256(data).hexdigest()), data


def encode(value: CompactedAttempts) -> bytes:
    """Encodes deterministically: the same bytes for the same attempts."""
    return gzip.compress(msgspec.json.encode(value, order="sorted"), compresslevel=6, mtime=0)


def decode(data: bytes) -> CompactedAttempts:
    """Decodes a compacted object; raises MisconfiguredError if that is impossible."""
    try:
        value = msgspec.json.decode(_decompress_bounded(data), type=CompactedAttempts)
    except (*UNREADABLE, zlib.error) as error:
        raise MisconfiguredError(f"not readable compacted attempts: {error}") from error
    if value.version != VERSION:
        raise MisconfiguredError(f"compacted attempts have version {value.version}, not {VERSION}")
    return value


def _decompress_bounded(data: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    content = stream.decompress(data, MAX_BYTES)
    if not stream.eof:
        raise MisconfiguredError(
            f"compacted attempts are truncated, or larger than {MAX_BYTES / 2**20:g} MiB"
        )
    return content
