"""Reads files into the kernel's page cache before a library needs them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 1024 * 1024
"""Per read. 128 KB are slower by half on a disk of 1 GB/s, 16 MB not faster (python -m bench.start)."""


def read_ahead(files: Iterable[Path]) -> threading.Thread:
    """Reads the files one after the other, in a thread that ends with the process.

    One sequential reader leaves a slow disk room for the imports of the processes beside it. An unreadable
    file is skipped: the library reports it.
    """
    reader = threading.Thread(target=_read_files, args=(tuple(files),), name="read-ahead", daemon=True)
    reader.start()
    return reader


def _read_files(files: tuple[Path, ...]) -> None:
    block = bytearray(BLOCK_BYTES)
    for path in files:
        with suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
