"""Concurrent reads and deletions of many small objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from batchscribe.errors import ObjectNotFoundError, ObjectTooLargeError
from batchscribe.protocols import Store

THREADS = 16
AT_ONCE = 2_000
"""Objects queued for the threads at once; bounds memory for a long list."""
T = TypeVar("T")


def fetch_objects(store: Store, wanted: Iterable[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
    """Yields (key, bytes) of each existing object, in the given order.

    An object of more than `limit` bytes is not read: it yields empty bytes, which every decoder rejects. A
    store's attribute `threads` limits the number of concurrent readers.
    """
    for key, data in _for_each(store, wanted, lambda key: _read_bytes(store, key, limit)):
        if data is not None:
            yield key, data


def delete_all(store: Store, unwanted: Iterable[str]) -> Iterator[str]:
    """Deletes each object and yields its key, in the given order."""
    for key, _ in _for_each(store, unwanted, store.delete):
        yield key


def _for_each(store: Store, wanted: Iterable[str], act: Callable[[str], T]) -> Iterator[tuple[str, T]]:
    keys = tuple(wanted)
    threads = min(getattr(store, "threads", THREADS), len(keys))
    if threads <= 1:
        for key in keys:
            yield key, act(key)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            yield from zip(some, pool.map(act, some), strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the rest


def _read_bytes(store: Store, key: str, limit: int) -> bytes | None:
    try:
        return store.get(key, limit=limit).data
    except ObjectNotFoundError:
        return None
    except ObjectTooLargeError:
        return b""
