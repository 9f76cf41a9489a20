"""A state directory in a store, for schedulers without a disk.

With `BATCH_STATE_DIR=s3://…`, a command works on a copy: it fetches the newest generation, and stores the
next one if it changed a file. A generation is one object, written create-only. If another command stored one
meanwhile, and both changed the same file, the later command is refused, and its copy is discarded. Then, as
after a process that died before it stored, the ledger is rolled back: the next pass recovers its runs from
the store.
"""

from __future__ import annotations

import gzip
import io
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import BatchscribeError, RefusedError, UnreadableError
from batchscribe.ledger.ledger import CHECKED_BYTES, FILE_NAME
from batchscribe.protocols import Store

PREFIX = "generations/"
KEPT = 10
"""Generations that stay: if the newest one is damaged, and deleted, the one before is in effect."""
MAX_BYTES = CHECKED_BYTES
"""Largest state, uncompressed."""
ATTEMPTS = 5
"""Times that a change is applied to the newest generation."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
"""A plain name: a generation cannot write outside its folder."""
_KEY = re.compile(rf"{PREFIX}([0-9]{{10}})")
_OMITTED = (".lock", "-wal", "-shm")
"""Ends of the names of files that belong to processes of one machine."""
DAMAGED = (*UNREADABLE, ValueError, EOFError, gzip.BadGzipFile, zlib.error)
Files = dict[str, bytes]
log = structlog.get_logger("batchscribe")


@dataclass(slots=True)
class KeptState:
    """The generations in a store, and one's copy in a folder."""

    store: Store
    folder: Path
    number: int = 0
    """Of the generation that was fetched or stored last; 0 before the first one."""
    files: Files = field(default_factory=dict)
    """Files of that generation, by name."""

    def fetch(self) -> None:
        """Reads the newest generation. Raises what a store raises, and UnreadableError."""
        self.number = max(self._list_numbers(), default=0)
        self.files = self._read() if self.number else {}

    def save(self) -> None:
        """Stores the next generation if files of the folder changed.

        Raises RefusedError if another process changed the same files, and what a store raises.
        """
        before, present = self.files, _read_folder(self.folder)
        names = [name for name in before | present if before.get(name) != present.get(name)]
        for _ in range(ATTEMPTS):
            if any(self.files.get(name) != before.get(name) for name in names):
                break
            if not names or self._create({name: present.get(name) for name in names}):
                return
            self.fetch()
        raise RefusedError(
            f"the state in {self.store.url} was changed by another process meanwhile: this one's copy was "
            "discarded; the next pass recovers runs from the store, any other command has to be repeated"
        )

    def _create(self, changed: dict[str, bytes | None]) -> bool:
        """Stores the next generation, False if outdated; None deletes a file."""
        number, merged = self.number + 1, self.files | changed
        files = {name: data for name, data in merged.items() if data is not None}
        if not self.store.create(_build_key(number), gzip.compress(msgspec.msgpack.encode(files), mtime=0)):
            return False
        stored = self._list_numbers()
        if max(stored) >= number + KEPT:
            return False  # that number was pruned already
        self.number, self.files = number, files
        self._prune(old for old in stored if old <= number - KEPT)
        return True

    def _prune(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                self.store.delete(_build_key(number))
            except BatchscribeError as error:
                log.warning("state.not_pruned", generation=number, error=str(error))

    def _list_numbers(self) -> list[int]:
        found = (_KEY.fullmatch(info.key) for info in self.store.list(PREFIX))
        return [int(match[1]) for match in found if match]

    def _read(self) -> Files:
        key = _build_key(self.number)
        data = self.store.get(key, limit=MAX_BYTES).data
        try:
            return _decode(data)
        except DAMAGED as error:
            raise UnreadableError(
                f"{key} in {self.store.url} is damaged ({error}): nothing was changed; delete it, then the "
                "one before is in effect"
            ) from error


@contextmanager
def stored_after(state: KeptState) -> Iterator[None]:
    """Stores the state at the end of the block, even after failures."""
    try:
        yield
    except BaseException:
        try:
            state.save()
        except BatchscribeError as error:
            log.warning("state.not_stored", error=str(error))
        raise
    state.save()


def _read_folder(folder: Path) -> Files:
    ledger = folder / FILE_NAME
    if ledger.with_name(f"{FILE_NAME}-wal").exists():
        with closing(sqlite3.connect(ledger)) as db:  # a connection that was not closed
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and _NAME.fullmatch(path.name) and not path.name.endswith(_OMITTED)
    }


def _build_key(number: int) -> str:
    return f"{PREFIX}{number:010}"


def _decode(data: bytes) -> Files:
    """Decodes a generation. Raises one of DAMAGED."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        plain = file.read(MAX_BYTES + 1)
    if len(plain) > MAX_BYTES:
        raise ValueError("it is too large")
    files = msgspec.msgpack.decode(plain, type=Files)
    if odd := [name for name in files if not _NAME.fullmatch(name)]:
        raise ValueError(f"{odd[0]!r} is no file of a state")
    return files
