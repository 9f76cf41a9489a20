"""What the tests of stores and of the scan share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan.backlog import SessionScan
from batchscribe.errors import InterruptedRunError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class StoppedClock:
    """Time that moves only when it is told to, or slept."""

    def __init__(self, now: datetime = NOW) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - NOW).total_seconds()

    def boot(self) -> str:
        return "stopped"

    def sleep(self, seconds: float) -> None:
        if seconds < 0:
            raise InterruptedRunError("a test slept backwards")
        self.time += timedelta(seconds=seconds)


def row(key: str, *, size: int = 40_000, hours_old: float = 1.0, etag: str = "e") -> ObjectInfo:
    return ObjectInfo(key, size, NOW - timedelta(hours=hours_old), etag)


def in_order(rows: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    return iter(sorted(rows, key=lambda info: info.key.encode()))


def pending(scans: Iterable[SessionScan]) -> dict[str, str]:
    """From the key of every pending chunk to its planned transcript."""
    return {chunk.key: chunk.transcript for scan in scans for chunk in scan.pending}
