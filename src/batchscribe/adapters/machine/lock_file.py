"""The tick's lock: flock on a file that is never unlinked.

So two ticks cannot lock two inodes.

`filelock` opens without following links, does not truncate a file that it cannot lock, and checks the inode
after locking. The kernel frees the lock when its holder dies. The text of the file ("PID timestamp") is only
information for users.
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
"""Mode of the information copy only: users of the original system read it."""
PATIENCE_SECONDS = 0.5
"""Longer than `holder` needs, so that `status` never blocks a tick."""


class FileTickLock:
    """Allows one tick per state directory.

    While the lock is held, `copy` shows the holder at the original system's path.
    """

    def __init__(self, path: Path, clock: Clock, *, copy: Path | None = INFORMATION_COPY) -> None:
        self._path = path
        self._clock = clock
        self._copy = copy

    @contextmanager
    def held(self, *, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
        with self._hold_file(patience):
            holder = f"{os.getpid()} {self._clock.now().isoformat(timespec='seconds')}\n"
            self._write_holder(holder)
            try:
                yield
            finally:
                self._clear_holder(holder)

    @contextmanager
    def _hold_file(self, patience: float) -> Iterator[None]:
        try:
            lock = self._open_lock()
        except OSError as error:
            raise self._explain_unusable(error) from error
        try:
            lock.acquire(timeout=patience, poll_interval=0.05)
            _write_own_file(self._path, "")
        except Timeout as error:
            raise LockHeldError(
                f"another tick is running ({self._read_holder() or 'holder unknown'}); nothing was done"
            ) from error
        except OSError as error:
            lock.release()
            raise self._explain_unusable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _explain_unusable(self, error: OSError) -> MisconfiguredError:
        return MisconfiguredError(f"the lock file {self._path} cannot be used ({error}): remove it")

    def holder(self) -> str | None:
        """Text of the present holder; None if the lock is free."""
        if not self._path.exists():
            return None
        lock = self._open_lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return self._read_holder() or "unknown"
        lock.release()
        return None

    def _open_lock(self) -> FileLock:
        make_folder(self._path.parent)
        return FileLock(self._path, mode=FILE)

    def _read_holder(self) -> str:
        with contextlib.suppress(OSError):
            return self._path.read_text().strip()
        return ""

    def _write_holder(self, text: str) -> None:
        """Writes the holder, if possible: the lock does not depend on it."""
        with contextlib.suppress(OSError):
            _write_own_file(self._path, text)
        if self._copy is not None:
            with contextlib.suppress(OSError):
                _write_own_file(self._copy, text, mode=READABLE)

    def _clear_holder(self, text: str) -> None:
        """Empties the lock file; removes the copy if it is ours."""
        with contextlib.suppress(OSError):
            _write_own_file(self._path, "")
        if self._copy is not None:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(self._copy.lstat().st_mode) and self._copy.read_text() == text:
                    self._copy.unlink()


def _write_own_file(path: Path, text: str, *, mode: int = FILE) -> None:
    """Overwrites a plain file of ours."""
    descriptor = _open_own_file(path, mode)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _open_own_file(path: Path, mode: int) -> int:
    """Opens our own plain file, without rights beyond `mode`.

    Raises PermissionError for links, pipes and other users' files.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_nlink != 1:
        os.close(descriptor)
        raise PermissionError(f"{path} is not a plain file of ours")
    if seen.st_mode & ~mode & 0o077:
        os.fchmod(descriptor, mode)
    return descriptor
