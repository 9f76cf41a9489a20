"""A store that counts requests as S3 bills them: each page of a listing, and each other call."""

from __future__ import annotations

from collections.abc import Iterator

from batchscribe.core.objects import ObjectInfo
from batchscribe.protocols import Clock
from batchscribe.testing.store import MemoryStore

PAGE = 1000


class CountedStore(MemoryStore):
    """Deletions are free on S3, and not counted."""

    threads = 1

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.requests = 0

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        number = 0
        for number, info in enumerate(super().list(prefix, after=after), start=1):
            self.requests += number % PAGE == 1 and number > 1
            yield info

    def _count_call(self, method: str, key: str) -> None:
        self.requests += method != "delete"
        super()._count_call(method, key)
