"""Reads files into the kernel's page cache before a library needs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 16 * 1024 * 1024
"""Per call; the kernel chooses the size of its requests to the disk."""


def read_ahead(files: Iterable[Path]) -> threading.Thread:
    """Reads the files one after the other, in a thread that ends with the process.

    One sequential reader leaves a slow disk room for the imports of the processes beside it. An unreadable
    file is skipped: the library reports it.
    """
    reader = threading.Thread(target=_read_files, args=(tuple(files),), name="read-ahead", daemon=True)
    reader.start()
    return reader


def _read_files(files: tuple[Path, ...]) -> None:
    with suppress(OSError), Path(os.devnull).open("wb", buffering=0) as nowhere:
        for path in files:
            # Copies nothing: a file that is cached already costs no time (python -m bench.start).
            with suppress(OSError), path.open("rb", buffering=0) as file:
                while os.sendfile(nowhere.fileno(), file.fileno(), None, BLOCK_BYTES):
                    pass
