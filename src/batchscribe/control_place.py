"""Control objects in a separate store (`BATCH_CONTROL`) instead of the output's `_batchscribe/`.

Callers use the same keys: `_batchscribe/runs/…` is `runs/…` in the control store.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import groupby

from msgspec import structs

from batchscribe.core import keys
from batchscribe.core.keys import CONTROL
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import ObjectNotFoundError
from batchscribe.protocols import Store

FORMER = (keys.ATTEMPTS, keys.COMPACTED, keys.QUARANTINE)
"""Prefixes that are also read below the output, for one version, from before `BATCH_CONTROL` was set.

At worst such an object holds a chunk back. Runs and instance records are read from the control store only."""


class SplitStore:
    """A protocols.Store: an output with its control objects in another store.

    A listing without a control prefix omits them.
    """

    def __init__(self, output: Store, control: Store) -> None:
        self.url = output.url
        self.control_url = control.url
        self._output = output
        self._control = control

    @property
    def odd_keys(self) -> tuple[str, ...]:
        """Odd keys of the output's store."""
        found: tuple[str, ...] = getattr(self._output, "odd_keys", ())
        return found

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        if not prefix.startswith(CONTROL):
            yield from self._output.list(prefix, after=after)
            return
        start = after.removeprefix(CONTROL) if after.startswith(CONTROL) else ""
        own = self._control.list(prefix.removeprefix(CONTROL), after=start)
        listed: list[Iterator[ObjectInfo]] = [
            (structs.replace(info, key=f"{CONTROL}{info.key}") for info in own)
        ]
        if prefix.startswith(FORMER):
            listed.append(self._output.list(prefix, after=after))
        for _key, same in groupby(merge(*listed, key=_sort_key), key=_sort_key):
            yield next(same)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        store, name = self._find_place(key)
        try:
            return store.get(name, limit=limit)
        except ObjectNotFoundError:
            if not key.startswith(FORMER):
                raise
            return self._output.get(key, limit=limit)

    def get_range(self, key: str, start: int, length: int) -> Blob:
        store, name = self._find_place(key)
        return store.get_range(name, start, length)

    def create(self, key: str, data: bytes) -> bool:
        store, name = self._find_place(key)
        return store.create(name, data)

    def replace(self, key: str, data: bytes) -> None:
        store, name = self._find_place(key)
        store.replace(name, data)

    def delete(self, key: str) -> None:
        store, name = self._find_place(key)
        store.delete(name)
        if key.startswith(FORMER):
            self._output.delete(key)

    def _find_place(self, key: str) -> tuple[Store, str]:
        """Returns the store of a key, and the key in it."""
        if key.startswith(CONTROL):
            return self._control, key.removeprefix(CONTROL)
        return self._output, key


def combine_stores(output: Store, control: Store) -> Store:
    """Combines output and control store, unless both are one."""
    return output if control.url == build_url(output, CONTROL).rstrip("/") else SplitStore(output, control)


def find_control_url(store: Store) -> str:
    """URL of an output's control objects; empty if they are below it."""
    return store.control_url if isinstance(store, SplitStore) else ""


def build_url(store: Store, key: str) -> str:
    """URL of an object."""
    if isinstance(store, SplitStore) and key.startswith(CONTROL):
        return f"{store.control_url.rstrip('/')}/{key.removeprefix(CONTROL)}"
    return f"{store.url.rstrip('/')}/{key}"


def _sort_key(info: ObjectInfo) -> bytes:
    return info.key.encode()
