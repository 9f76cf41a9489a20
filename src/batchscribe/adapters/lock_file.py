"""The tick's lock: flock on a file that is never unlinked, so that no two ticks hold two inodes.

`filelock` opens without following links, does not truncate what it cannot lock, and checks the
inode after locking. The kernel frees the lock when its holder dies, however it dies. What the file
says ("PID timestamp") is for people; nothing is ever decided by it. Beside it lies who holds it, for the
watchdog: by its identity, and with its last sign of life.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from batchscribe.core.holding import Holder
from batchscribe.detached import identity
from batchscribe.errors import LockHeldError, MisconfiguredError
from batchscribe.private_files import FILE, make_folder
from batchscribe.protocols import Clock

INFORMATION_COPY = Path("/tmp/batch-transcribe.lock")  # noqa: S108  the original's path; written safely, never read

READABLE = 0o644
"""Of the information copy only: the original's users read it."""
BEAT_SECONDS = 1.0
"""Between two signs of life: a page written, and no disk waited for."""
RECORD_BYTES = 512
"""Always as long, written in place and never cut: who holds it can be told on a disk that is full."""
PATIENCE_SECONDS = 0.5
"""Longer than `holder` needs for its look, so that a glance at the status never turns a tick away."""


class FileTickLock:
    """At most one tick for a state directory. `copy` shows the holder where the original system did."""

    def __init__(self, path: Path, clock: Clock, *, copy: Path | None = INFORMATION_COPY) -> None:
        self._path = path
        self._clock = clock
        self._copy = copy
        self._record: _Record | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._acquired(), self._recorded():
            self._tell(f"{os.getpid()} {self._clock.now().isoformat(timespec='seconds')}\n")
            try:
                yield
            finally:
                self._tell("")

    @contextmanager
    def _acquired(self) -> Iterator[None]:
        lock = self._lock()
        try:
            lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.05)
            _write_own_file(self._path, "")
        except Timeout as error:
            raise LockHeldError(
                f"another tick is running ({self._told() or 'it has not said who'}); nothing was done"
            ) from error
        except OSError as error:
            lock.release()
            raise MisconfiguredError(
                f"the lock file {self._path} cannot be used ({error}): remove what is there"
            ) from error
        try:
            yield
        finally:
            lock.release()

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

    def held_by(self) -> Holder | None:
        """Who holds it now, by its own word: one that died may have left its own behind."""
        if self.holder() is None:
            return None
        try:
            return msgspec.json.decode(_read_own_file(self._record_path), type=Holder)
        except (OSError, msgspec.MsgspecError):
            return None

    def beat(self) -> None:
        """Says that the process that holds the lock still moves; nothing where this one does not hold it.

        Only its own thread can say that: another one may run on beside one that is stuck.
        """
        if self._record is not None and self._record.thread == threading.get_ident():
            self._record.beat(self._clock.monotonic())

    @property
    def _record_path(self) -> Path:
        return self._path.with_suffix(".holder")

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            self._record = _Record(self._record_path, self._clock.monotonic())
        except OSError:
            # No reason to hold a tick up; its watchdog then says that it knows nothing of it.
            yield
            return
        try:
            yield
        finally:
            self._record.close()
            self._record = None

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


class _Record:
    """The file beside the lock while it is held: who holds it, and its last sign of life."""

    def __init__(self, path: Path, now: float) -> None:
        self.thread = threading.get_ident()
        self._told = now
        known = identity(os.getpid())
        assert known is not None
        self._holder = Holder(pid=known.pid, boot=known.boot, ticks=known.ticks, since=now, alive=now)
        self._descriptor = _own_file(path)
        try:
            self._write(now)
        except OSError:
            os.close(self._descriptor)
            raise

    def beat(self, now: float) -> None:
        if now - self._told >= BEAT_SECONDS:
            self._told = now
            with contextlib.suppress(OSError):  # a tick is not ended by its own sign of life
                self._write(now)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._put(b"")
        os.close(self._descriptor)

    def _write(self, now: float) -> None:
        self._put(msgspec.json.encode(replace(self._holder, alive=now)))

    def _put(self, text: bytes) -> None:
        os.pwrite(self._descriptor, text.ljust(RECORD_BYTES), 0)


def _write_own_file(path: Path, text: str, *, mode: int = FILE) -> None:
    """Overwrites a plain file of ours."""
    descriptor = _own_file(path, mode=mode)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read_own_file(path: Path) -> bytes:
    descriptor = _own_file(path, os.O_RDONLY)
    try:
        return os.read(descriptor, RECORD_BYTES)
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
