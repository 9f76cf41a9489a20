"""Bounds of values in control objects.

A store is untrusted input: a count, a time or an amount from it must neither be negative nor overflow a
computation. Values outside make an object unreadable (`manifest.decode`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_CHUNKS = 100_000
"""Chunks in one manifest; a batch has at most a fifth of that."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2999, 12, 31, tzinfo=UTC)
"""Latest time to which `Seconds` can be added without overflow; clocks may be wrong."""

MOST = 10**15
"""Largest number in a run: thousands of them still sum up within SQLite's integers."""

Count = Annotated[int, Meta(ge=0, le=10**9)]
Bytes = Annotated[int, Meta(ge=0, le=2**60)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
"""Up to 300 years: 100,000 chunks of 12 hours are half of it."""
Time = Annotated[datetime, Meta(tz=True)]
Key = Annotated[str, Meta(max_length=4096)]
"""An object's key, ETag or URL: the longest path of Linux; S3, GCS and Azure allow 1,024 bytes."""
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
"""A run or an instance: part of a key, a tag and a folder's name."""
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,128}\Z")]
"""An instance type, a file type or a stage, as reports print them; may be empty."""


class Dated(msgspec.Struct, frozen=True, kw_only=True):
    """A control object with times between EARLIEST and LATEST."""

    def __post_init__(self) -> None:
        for name, value in zip(self.__struct_fields__, msgspec.structs.astuple(self), strict=True):
            if isinstance(value, datetime) and not EARLIEST <= value <= LATEST:
                raise ValueError(f"`{name}` is before {EARLIEST:%Y} or after {LATEST:%Y}")
