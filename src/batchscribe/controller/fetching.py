"""Many small objects at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from batchscribe.errors import ObjectNotFoundError, ObjectTooLargeError
from batchscribe.protocols import Store

THREADS = 16


def fetched(store: Store, wanted: Iterable[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) of each object that is there, in the order asked; one that went meanwhile is left out.

    An object of more than `limit` bytes is not read: it comes as no bytes, which no decoder accepts.
    A store may say in `threads` how many readers it wants at once.
    """
    keys = tuple(wanted)
    threads = min(getattr(store, "threads", THREADS), len(keys))
    if threads <= 1:
        for key in keys:
            if (data := _read(store, key, limit)) is not None:
                yield key, data
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        for key, data in zip(keys, pool.map(lambda key: _read(store, key, limit), keys), strict=True):
            if data is not None:
                yield key, data
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the rest


def _read(store: Store, key: str, limit: int) -> bytes | None:
    try:
        return store.get(key, limit=limit).data
    except ObjectNotFoundError:
        return None
    except ObjectTooLargeError:
        return b""
