"""Bounded queue between threads that either side can close."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.2
"""Interval at which a waiting thread checks if it should end."""


def never() -> bool:
    return False


class BoundedQueue(Generic[T]):
    """Queue of at most `size` items: producers and consumers wait."""

    def __init__(self, size: int) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T, *, even_closed: bool = False) -> bool:
        """Waits for room; False if the queue is closed, unless `even_closed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if self._closed and not even_closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, until: Callable[[], bool] = never) -> T | None:
        """Next item; None if closed and empty, or if `until` returns True."""
        with self._changed:
            while not self._items:
                if self._closed or until():
                    return None
                self._changed.wait(POLL_SECONDS)
            return self._pop_item()

    def poll(self, seconds: float) -> T | None:
        """Returns the next item; None if none comes within `seconds`."""
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(seconds)
            return self._pop_item() if self._items else None

    def _pop_item(self) -> T:
        self._changed.notify_all()
        return self._items.popleft()

    def close(self) -> None:
        """Closes the queue for new items only."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class ByteBudget:
    """Limit of fetched but undecoded bytes; a larger item passes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    def take(self, size: int, until: Callable[[], bool]) -> bool:
        """Takes `size` bytes once they fit; False if `until` returns True."""
        with self._changed:
            while self._used and self._used + size > self._limit:
                if until():
                    return False
                self._changed.wait(POLL_SECONDS)
            self._used += size
            return True

    def give(self, size: int) -> None:
        with self._changed:
            self._used -= size
            self._changed.notify_all()
