"""What a store says of its objects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One row of a listing. `key` is relative to the store's URL, `etag` is without quotes."""

    key: str
    size: int
    modified: datetime
    etag: str
    changed: datetime | None = None
    """When a file was last put there, if its store tells that from `modified`: copies keep old times."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of an object, and the ETag of exactly these bytes."""

    data: bytes
    etag: str
