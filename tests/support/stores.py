"""What the tests of stores and of the scan share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan.backlog import SessionScan

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def row(key: str, *, size: int = 40_000, hours_old: float = 1.0, etag: str = "e") -> ObjectInfo:
    return ObjectInfo(key, size, NOW - timedelta(hours=hours_old), etag)


def in_order(rows: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    return iter(sorted(rows, key=lambda info: info.key.encode()))


def pending(scans: Iterable[SessionScan]) -> dict[str, str]:
    """From the key of every pending chunk to its planned transcript."""
    return {chunk.key: chunk.transcript for scan in scans for chunk in scan.pending}
