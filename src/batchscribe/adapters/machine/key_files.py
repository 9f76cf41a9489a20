"""Private ssh keys of this user."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

_MARK = b"PRIVATE KEY-----"
_FIRST_LINE = 128
"""Bytes that hold the first line of a key file."""


def list_key_files(folder: Path | None = None) -> tuple[Path, ...]:
    """Private keys in ~/.ssh; empty if the folder cannot be read."""
    where = folder or Path.home() / ".ssh"
    try:
        return tuple(path for path in sorted(where.iterdir()) if _is_key(path))
    except OSError:
        return ()


def describe_key_problem(path: Path) -> str:
    """Why ssh would not use this key file; empty if it would."""
    try:
        info = path.stat()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if not stat.S_ISREG(info.st_mode):
        return f"{path} is not a file"
    if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{path} is open to others, and ssh refuses such keys: chmod 600 {shlex.quote(str(path))}"
    return "" if os.access(path, os.R_OK) else f"{path} cannot be read by this user"


def _is_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MARK in file.read(_FIRST_LINE)
    except OSError:
        return False
