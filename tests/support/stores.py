"""What the tests of stores and of the scan share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from batchscribe.core.objects import ObjectInfo
from batchscribe.core.run.manifest import ManifestChunk
from batchscribe.core.scan.backlog import SessionScan
from batchscribe.protocols import Store

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def row(key: str, *, size: int = 40_000, hours_old: float = 1.0, etag: str = "e") -> ObjectInfo:
    return ObjectInfo(key, size, NOW - timedelta(hours=hours_old), etag)


def in_order(rows: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    return iter(sorted(rows, key=lambda info: info.key.encode()))


def list_recordings(store: Store, prefix: str) -> tuple[ManifestChunk, ...]:
    """The recordings `talk-*.wav` below the prefix, each a session of its own."""
    return tuple(
        ManifestChunk(
            key=info.key,
            etag=info.etag,
            size=info.size,
            session=info.key,
            transcript=info.key.replace("talk", "transcription-talk").replace(".wav", ".json"),
        )
        for info in store.list(prefix)
    )


def pending(scans: Iterable[SessionScan]) -> dict[str, str]:
    """From the key of every pending chunk to its planned transcript."""
    return {chunk.key: chunk.transcript for scan in scans for chunk in scan.pending}
