"""Processes that outlive their starter: start once, find later, end.

Linux only. A process is identified by its pid, its start in ticks since boot, and the boot id: pids are
reused, and the wall clock can be set.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from batchscribe.errors import LaunchError
from batchscribe.private_files import FILE, make_folder

_STATE = 0
_START_TICKS = 19
"""Fields of /proc/PID/stat, counted after the name of the program."""


class Identity(msgspec.Struct, frozen=True):
    """Unique identity of a process of one boot."""

    pid: int
    boot: str
    ticks: int


def start_once(record: Path, argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> bool:
    """Starts `argv` in its own session, unless `record` shows an earlier start.

    `argv[0]` is an absolute path. Standard output and error are appended to `log`. True if this call started
    it. Raises LaunchError if it cannot be started.
    """
    try:
        with _hold_lock(record):
            if record.exists():
                return False
            pid = spawn(argv, environment=environment, log=log)
            # A crash between these two lines could allow a second process: harmless, since workers publish
            # create-only.
            write_atomically(record, msgspec.json.encode(find_identity(pid) or Identity(pid, "", 0)))
            return True
    except OSError as error:
        raise LaunchError(f"the worker could not be started on this machine: {error}") from error


def is_running(record: Path) -> bool:
    """True if the recorded process still runs."""
    known = _read_identity(record)
    if known is None:
        return False
    _reap_child(known.pid)
    return find_identity(known.pid) == known


def ask_to_end(record: Path, *, force: bool = False) -> bool:
    """Sends SIGTERM (`force`: SIGKILL) to the recorded process. True if it ran."""
    known = _read_identity(record)
    if known is None:
        return False
    _reap_child(known.pid)
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(known.pid)
        try:
            # Compared after opening: the handle cannot refer to another process any more.
            if find_identity(known.pid) == known:
                signal.pidfd_send_signal(handle, signal.SIGKILL if force else signal.SIGTERM)
                return True
        finally:
            os.close(handle)
    return False


def find_identity(pid: int) -> Identity | None:
    """Identity of the process with this pid; None for a zombie."""
    fields = _read_stat(pid)
    if not fields or fields[_STATE] in {"Z", "X"}:
        return None
    return Identity(pid, boot_id(), int(fields[_START_TICKS]))


def process_start() -> float:
    """Seconds from the boot to the start of this process."""
    return int(_read_stat(os.getpid())[_START_TICKS]) / os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_atomically(path: Path, data: bytes, *, mode: int = FILE) -> None:
    """Writes `data` durably: after a crash, readers see old or new bytes."""
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the program's name; empty without process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return stat.rpartition(")")[2].split()


def spawn(argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> int:
    """Starts `argv` like `start_once`, but unconditionally; returns the pid. Raises OSError."""
    make_folder(log.parent)
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), appending, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        # A caller may ignore or block signals; the worker must receive them.
        setsigmask=[],
        setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
    )


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Holds the lock file until block or process ends; False if taken."""
    make_folder(path.parent)
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _hold_lock(record: Path) -> Iterator[None]:
    make_folder(record.parent)
    lock = os.open(record.with_name(f"{record.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _read_identity(record: Path) -> Identity | None:
    try:
        return msgspec.json.decode(record.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise LaunchError(f"{record} does not identify a process: {error}") from error


def _reap_child(pid: int) -> None:
    """Reaps an ended child process. Never waits."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
