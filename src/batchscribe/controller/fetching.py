"""Many small objects at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from batchscribe.errors import ObjectNotFoundError
from batchscribe.protocols import Store

THREADS = 16


def fetched(store: Store, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) of each object that is there, in the order asked; one that went meanwhile is left out.

    A store may say in `threads` how many readers it wants at once.
    """
    keys = tuple(wanted)
    threads = min(getattr(store, "threads", THREADS), len(keys))
    if threads <= 1:
        for key in keys:
            if (data := _read(store, key)) is not None:
                yield key, data
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        for key, data in zip(keys, pool.map(lambda key: _read(store, key), keys), strict=True):
            if data is not None:
                yield key, data
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the rest


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key).data
    except ObjectNotFoundError:
        return None
