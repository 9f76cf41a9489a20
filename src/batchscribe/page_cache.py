"""Reads files into the kernel's page cache before a library needs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 1024 * 1024
"""Per request: imports beside it wait for one at most, 8 ms at 125 MB/s."""


def read_ahead(files: Iterable[Path]) -> threading.Thread:
    """Reads the files one by one, in a daemon thread.

    One request at a time leaves a slow disk room for the imports of the processes beside it. An unreadable
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
                # Otherwise the kernel queues requests of its own ahead, before which no import gets a turn.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                while os.sendfile(nowhere.fileno(), file.fileno(), None, BLOCK_BYTES):
                    pass
