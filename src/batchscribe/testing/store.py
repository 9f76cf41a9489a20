"""In-memory store for tests and the simulator."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import ObjectArchivedError, ObjectNotFoundError, ObjectTooLargeError
from batchscribe.protocols import Clock

Keys = list[str]


@dataclass(frozen=True, slots=True)
class _Stored:
    data: bytes
    info: ObjectInfo


class MemoryStore:
    """Thread-safe store with S3's ETags and the clock's times.

    `before` is called with method name and key before every call and may raise, to simulate faults.
    `archived` holds keys that must be restored first. `calls` counts the calls of each method.
    """

    def __init__(self, clock: Clock, *, url: str = "memory://double") -> None:
        self.url = url
        self.archived: set[str] = set()
        self.before: Callable[[str, str], None] = lambda _method, _key: None
        self.calls: dict[str, int] = {}
        self._clock = clock
        self._objects: dict[str, _Stored] = {}
        self._keys: Keys = []
        self._lock = threading.RLock()

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        self._count_call("list", prefix)
        with self._lock:
            keys = self._keys
            found = [
                self._objects[key].info
                for key in keys[
                    bisect_left(keys, max(prefix, after)) : bisect_left(keys, prefix + "\U0010ffff")
                ]
                if key > after and key.startswith(prefix)
            ]
        yield from found

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        self._count_call("get", key)
        stored = self._find_object(key)
        if limit is not None and stored.info.size > limit:
            raise ObjectTooLargeError(f"{key!r} exceeds the limit of {limit:,} bytes")
        return Blob(stored.data, stored.info.etag)

    def get_range(self, key: str, start: int, length: int) -> Blob:
        self._count_call("get_range", key)
        stored = self._find_object(key)
        return Blob(stored.data[start : start + length], stored.info.etag, len(stored.data))

    def _find_object(self, key: str) -> _Stored:
        with self._lock:
            stored = self._objects.get(key)
            if stored is None:
                raise ObjectNotFoundError(f"no object {key!r} in {self.url}")
            if key in self.archived:
                raise ObjectArchivedError(f"{key!r} in {self.url} is archived: restore it first")
            return stored

    def create(self, key: str, data: bytes) -> bool:
        self._count_call("create", key)
        with self._lock:
            if key in self._objects:
                return self._objects[key].data == data
            self.place(key, data)
            return True

    def replace(self, key: str, data: bytes) -> None:
        self._count_call("replace", key)
        self.place(key, data)

    def delete(self, key: str) -> None:
        self._count_call("delete", key)
        with self._lock:
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]

    def place(
        self, key: str, data: bytes = b"", *, modified: datetime | None = None, size: int | None = None
    ) -> ObjectInfo:
        """Puts an object without a call; `size` overrides its size."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        info = ObjectInfo(key, len(data) if size is None else size, modified or self._clock.now(), etag)
        with self._lock:
            if key not in self._objects:
                insort(self._keys, key)
            self._objects[key] = _Stored(data, info)
        return info

    def keys(self, prefix: str = "") -> tuple[str, ...]:
        """Current keys, without counting a call."""
        with self._lock:
            return tuple(key for key in self._keys if key.startswith(prefix))

    def _count_call(self, method: str, key: str) -> None:
        with self._lock:
            self.calls[method] = self.calls.get(method, 0) + 1
        self.before(method, key)
