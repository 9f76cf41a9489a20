"""A folder as a store, for `file://`.

obstore's local store lists in no order, follows links, changes the names of some keys, and does not sync to
disk. This one lists in key order, never follows links, and its writes survive a crash of the machine.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from batchscribe.adapters.stores.rules import check_size
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import (
    BatchscribeError,
    MisconfiguredError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    PermanentError,
    RefusedError,
    StoreUnavailableError,
)

NAMED_ODD_KEYS = 20
_TEMPORARY = re.compile(r"\.batchscribe-[0-9a-f]{32}\.tmp")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never wait for a pipe's writer
_NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_SUCH_NAME = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    """A folder's key ends in `/`."""
    status: os.stat_result


Stack = list[Iterator[_Entry]]


class DirectoryStore:
    """A protocols.Store over one folder; links below it are ignored."""

    def __init__(self, root: Path, *, expected: bool = True) -> None:
        if not root.is_absolute():
            raise MisconfiguredError(f"{root} is not an absolute path")
        self._root = root
        self._expected = expected
        self.url = root.as_uri()
        self._odd: list[str] = []

    @property
    def odd_keys(self) -> tuple[str, ...]:
        """The first entries that listings skipped, with reasons."""
        return tuple(self._odd)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        if not self._expected and not self._root.exists():
            return
        start = prefix.rpartition("/")[0]
        with self._convert_errors(prefix):
            os.close(os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            segments = start.split("/") if start else []
            if any(segment in {"", ".", ".."} for segment in segments):
                return
            stack: Stack = [iter(self._list_folder(start + "/" if start else ""))]
            while stack:
                entry = next(stack[-1], None)
                if entry is None:
                    stack.pop()
                elif not entry.key.endswith("/"):
                    if entry.key.startswith(prefix) and entry.key > after:
                        yield _to_info(entry)
                elif _may_hold(entry.key, prefix, after):
                    stack.append(iter(self._list_folder(entry.key)))

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        with self._convert_errors(key), self._open_parent(key) as (folder, name):
            return _read_file(folder, name, key, limit)

    def get_range(self, key: str, start: int, length: int) -> Blob:
        with (
            self._convert_errors(key),
            self._open_parent(key) as (folder, name),
            _open_file(folder, name, key) as file,
        ):
            status = os.fstat(file.fileno())
            return Blob(os.pread(file.fileno(), length, start), _make_etag(status), status.st_size)

    def create(self, key: str, data: bytes) -> bool:
        with self._convert_errors(key, make=True), self._open_parent(key, make=True) as (folder, name):
            with _write_temporary(folder, data) as temporary:
                try:
                    os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                except FileExistsError:
                    return _has_content(folder, name, key, data)
                except OSError as error:
                    if error.errno in _NO_LINKS:
                        raise MisconfiguredError(
                            f"the file system of {self._root} has no hard links, which create-only writes "
                            "need; choose another folder"
                        ) from error
                    raise
            os.fsync(folder)
            return True

    def replace(self, key: str, data: bytes) -> None:
        with self._convert_errors(key, make=True), self._open_parent(key, make=True) as (folder, name):
            with _write_temporary(folder, data) as temporary:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def delete(self, key: str) -> None:
        with (
            suppress(ObjectNotFoundError),
            self._convert_errors(key),
            self._open_parent(key) as (folder, name),
        ):
            os.unlink(name, dir_fd=folder)
            os.fsync(folder)

    def _list_folder(self, folder: str) -> Sequence[_Entry]:
        """Lists one folder in key order; a subfolder sorts like its keys."""
        segments = folder.rstrip("/").split("/") if folder else []
        try:
            with self._open_folder(segments) as descriptor, os.scandir(descriptor) as entries:
                found = [entry for item in entries if (entry := self._to_entry(folder, item))]
        except (FileNotFoundError, NotADirectoryError):
            return ()  # removed since its parent was listed, or not a folder
        except PermissionError as error:
            raise self._to_own_error(error, folder, make=False) from error
        return sorted(found, key=lambda entry: entry.key)

    def _to_entry(self, folder: str, entry: os.DirEntry[str]) -> _Entry | None:
        key = folder + entry.name
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            self._leave_out(key, "its name is not valid UTF-8")
            return None
        if _TEMPORARY.fullmatch(entry.name):
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return _Entry(key + "/", status)
        if stat.S_ISREG(status.st_mode):
            return _Entry(key, status)
        self._leave_out(key, "links are not followed" if entry.is_symlink() else "not a plain file")
        return None

    def _leave_out(self, key: str, why: str) -> None:
        row = f"{os.fsencode(key).decode(errors='backslashreplace')!r}: left out, {why}"
        if len(self._odd) < NAMED_ODD_KEYS and row not in self._odd:
            self._odd.append(row)

    @contextmanager
    def _open_parent(self, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Opens a key's folder; yields it and the name in it."""
        *segments, name = key.split("/")
        if any(segment in {"", ".", ".."} or "\0" in segment for segment in (*segments, name)):
            kind = PermanentError if make else ObjectNotFoundError
            raise kind(f"a folder cannot hold an object named {key!r}")
        if make:
            self._root.mkdir(parents=True, exist_ok=True)
        with self._open_folder(segments, make=make) as folder:
            yield folder, name

    @contextmanager
    def _open_folder(self, segments: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Opens a folder segment by segment, without following links."""
        # The root itself may be a link: the user chose it.
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for segment in segments:
                inner = _open_subfolder(descriptor, segment, make=make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _convert_errors(self, key: str, *, make: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._to_own_error(error, key, make=make) from error

    def _to_own_error(self, error: OSError, key: str, *, make: bool) -> BatchscribeError:
        place = f"{key!r} in {self._root}" if key else str(self._root)
        why = f"{place}: {os.strerror(error.errno or 0)}"
        if error.errno == errno.ENOENT:
            if self._expected and not self._root.is_dir():
                return MisconfiguredError(
                    f"there is no folder {self._root}: create it, or correct the setting"
                )
            return ObjectNotFoundError(f"no object {key!r} in {self._root}")
        if error.errno in _NO_RIGHT:
            return MisconfiguredError(f"{why}; grant the user that runs batchscribe access")
        if error.errno in _NO_SUCH_NAME:
            if not self._root.is_dir():
                return MisconfiguredError(f"{self._root} is not a folder: correct the setting")
            kind = PermanentError if make else ObjectNotFoundError
            return kind(f"no object can be stored there: {why}")
        return StoreUnavailableError(f"{why}; nothing was lost, try again")


def _may_hold(folder: str, prefix: str, after: str) -> bool:
    """True if keys below `folder` may follow `after` and match `prefix`."""
    wanted = folder.startswith(prefix) or prefix.startswith(folder)
    return wanted and (folder > after or after.startswith(folder))


def _to_info(entry: _Entry) -> ObjectInfo:
    status = entry.status
    modified, changed = (datetime.fromtimestamp(at, UTC) for at in (status.st_mtime, status.st_ctime))
    return ObjectInfo(entry.key, status.st_size, modified, _make_etag(status), changed)


def _make_etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _has_content(folder: int, name: str, key: str, data: bytes) -> bool:
    """True if the file holds exactly `data`."""
    try:
        return _read_file(folder, name, key, len(data)).data == data
    except ObjectTooLargeError:
        return False


def _read_file(folder: int, name: str, key: str, limit: int | None) -> Blob:
    with _open_file(folder, name, key) as file:
        before = os.fstat(file.fileno())
        check_size(key, before.st_size, limit)
        data = file.read(before.st_size + 1)  # a file that grows during the read is refused below
        after = os.fstat(file.fileno())
    if _make_etag(before) != _make_etag(after) or len(data) != after.st_size:
        raise StoreUnavailableError(f"{key!r} was written to while it was read; try again")
    return Blob(data, _make_etag(after))


@contextmanager
def _open_file(folder: int, name: str, key: str) -> Iterator[BinaryIO]:
    """Opens a plain file to read. Raises RefusedError for a link."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedError(
                f"{key!r} is a link, which is not followed; put the file itself there"
            ) from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ObjectNotFoundError(f"no object {key!r}: what is there is not a plain file")
        yield file


def _open_subfolder(folder: int, segment: str, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(segment, dir_fd=folder)
            os.fsync(folder)
    try:
        return os.open(segment, _FOLDER, dir_fd=folder)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.stat(segment, dir_fd=folder, follow_symlinks=False).st_mode):
            raise RefusedError(
                f"{segment!r} is a link, which is not followed; use the folder itself as the source or output"
            ) from error
        raise


@contextmanager
def _write_temporary(folder: int, data: bytes) -> Iterator[str]:
    """Yields the name of a synced temporary file; removes it afterwards."""
    name = f".batchscribe-{secrets.token_hex(16)}.tmp"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
