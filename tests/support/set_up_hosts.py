"""What a set-up leaves: the records of hosts in a store, and a pinned host key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJUIHi4Cio3YaQXq3FP52fEtYTQPq8TzYdmxk+x2NfOc"


def pin_host_key(folder: Path, instance: str) -> Path:
    """Pins a key of the instance for the scheduler that runs in this folder."""
    file = folder / ".batchscribe" / "known_hosts"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with file.open("a") as pins:
        pins.write(f"{instance} {HOST_KEY}\n")
    return file


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
