"""Stores with the records of set-up hosts."""

from __future__ import annotations

from typing import Any

import msgspec

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore


def store_with(*images: str, **otherwise: Any) -> MemoryStore:
    store = MemoryStore(FakeClock())
    for image in images:
        made = InstanceRecord(
            instance=image,
            release=__version__,
            at=FakeClock().now(),
            boots=True,
            shows_tags=True,
            engine="pocketsphinx",
        )
        record = msgspec.structs.replace(made, **otherwise)
        store.replace(keys.instance(image), msgspec.json.encode(record))
    return store
