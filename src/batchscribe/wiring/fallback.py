"""Fallbacks for a command whose settings, ledger or lock cannot be used.

Stopping a GPU must not depend on them: open runs are recovered from the store and the instance's tags.
Nothing is started, and the command fails at the end.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import structlog

from batchscribe.errors import BatchscribeError, DamagedLedgerError, MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.private_files import make_folder
from batchscribe.protocols import Lock

log = structlog.get_logger("batchscribe")


@dataclass(slots=True)
class Fallbacks:
    """Errors in the order of their discovery: any one refuses starts."""

    errors: list[BatchscribeError] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """Problems that were repaired."""

    def refuse_start(self) -> None:
        """Raises the first error, if there is one."""
        if self.errors:
            raise self.errors[0]

    @contextmanager
    def locked(self, lock: Lock, patience: float) -> Iterator[None]:
        """Holds the lock, if its file can be used: steps are repeatable."""
        with ExitStack() as stack:
            try:
                stack.enter_context(lock.held(patience=patience))
            except MisconfiguredError as error:
                log.warning("lock.unusable", error=str(error))
                self.errors.append(error)
            yield


def usable_ledger(path: Path, now: datetime, trouble: Fallbacks) -> Ledger:
    """Opens the ledger: a new one if damaged, a temporary if unusable."""
    try:
        return Ledger(path)
    except DamagedLedgerError as error:
        if (fresh := _replace_damaged(path, now, error, trouble)) is not None:
            return fresh
    except BatchscribeError as error:
        trouble.errors.append(error)
    return _open_temporary(path)


def _replace_damaged(
    path: Path, now: datetime, error: DamagedLedgerError, trouble: Fallbacks
) -> Ledger | None:
    """Sets the damaged ledger aside and opens a new one."""
    aside = path.with_name(f"{path.name}.damaged-{now:%Y%m%d-%H%M%S}")
    try:
        for suffix in ("", "-wal", "-shm"):
            if (file := path.with_name(path.name + suffix)).exists():
                file.rename(aside.with_name(aside.name + suffix))
        fresh = Ledger(path)
    except (OSError, BatchscribeError):
        trouble.errors.append(error)
        return None
    trouble.notices.append(f"{error}; it was set aside as {aside.name}; open runs are recovered")
    return fresh


def _open_temporary(path: Path) -> Ledger:
    """The same temporary ledger for each process: alerts do not repeat."""
    try:
        folder = find_temporary_folder(os.fspath(path))
        return Ledger(folder / path.name if folder else Path(":memory:"))
    except BatchscribeError:
        return Ledger(Path(":memory:"))


def find_temporary_folder(place: str) -> Path | None:
    """This user's temporary folder for `place`; None if it is unusable."""
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"batchscribe-{os.geteuid()}-{name}"
    try:
        make_folder(folder)
        foreign = folder.is_symlink() or folder.stat().st_uid != os.geteuid()
    except OSError:
        return None
    return None if foreign else folder
