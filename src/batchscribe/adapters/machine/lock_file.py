"""The tick's lock: flock on a file that is never unlinked, so that no two ticks hold two inodes.

`filelock` opens without following links, does not truncate what it cannot lock, and checks the
inode after locking. The kernel frees the lock when its holder dies, however it dies. The text of the file
("PID timestamp") is information for users; nothing is ever decided by it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from batchscribe.errors import LockHeldError, MisconfiguredError
from batchscribe.private_files import FILE, make_folder
from batchscribe.protocols import Clock

INFORMATION_COPY = Path("/tmp/batch-transcribe.lock")  # noqa: S108  the original's path; written safely, never read

READABLE = 0o644
"""Of the information copy only: the original's users read it."""
PATIENCE_SECONDS = 0.5
"""Longer than `holder` needs, so that `status` never turns a tick away."""


class FileTickLock:
    """At most one tick for a state directory. `copy` shows the holder where the original system did."""

    def __init__(self, path: Path, clock: Clock, *, copy: Path | None = INFORMATION_COPY) -> None:
        self._path = path
        self._clock = clock
        self._copy = copy

    @contextmanager
    def held(self, *, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
        with self._acquired(patience):
            self._tell(f"{os.getpid()} {self._clock.now().isoformat(timespec='seconds')}\n")
            try:
                yield
            finally:
                self._tell("")

    @contextmanager
    def _acquired(self, patience: float) -> Iterator[None]:
        try:
            lock = self._lock()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            lock.acquire(timeout=patience, poll_interval=0.05)
            _write_own_file(self._path, "")
        except Timeout as error:
            raise LockHeldError(
                f"another tick is running ({self._told() or 'it has not said who'}); nothing was done"
            ) from error
        except OSError as error:
            lock.release()
            raise self._unusable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _unusable(self, error: OSError) -> MisconfiguredError:
        return MisconfiguredError(
            f"the lock file {self._path} cannot be used ({error}): remove what is there"
        )

    def holder(self) -> str | None:
        """Who holds it now. A lock that can be had is held by nobody, whatever its text says."""
        if not self._path.exists():
            return None
        lock = self._lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return self._told() or "unknown"
        lock.release()
        return None

    def _lock(self) -> FileLock:
        make_folder(self._path.parent)
        return FileLock(self._path, mode=FILE)

    def _told(self) -> str:
        with contextlib.suppress(OSError):
            return self._path.read_text().strip()
        return ""

    def _tell(self, text: str) -> None:
        """Information only: a disk that is full, or somebody else's file, keeps the lock from nobody."""
        with contextlib.suppress(OSError):
            _write_own_file(self._path, text)
        if self._copy is not None:
            with contextlib.suppress(OSError):
                _write_own_file(self._copy, text, mode=READABLE)


def _write_own_file(path: Path, text: str, *, mode: int = FILE) -> None:
    """Overwrites a plain file of ours."""
    descriptor = _own_file(path, mode=mode)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _own_file(path: Path, how: int = os.O_WRONLY | os.O_CREAT, *, mode: int = FILE) -> int:
    """Opens a plain file of ours with one name, and removes rights beyond `mode` from it.

    Refuses links, pipes and other users' files.
    """
    descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_nlink != 1:
        os.close(descriptor)
        raise PermissionError(f"{path} is not a plain file of ours")
    if seen.st_mode & ~mode & 0o077:
        os.fchmod(descriptor, mode)
    return descriptor
