"""Files and folders that only their owner can read, whatever the umask.

They show keys, failures and costs. Existing folders keep their mode: their owner chose it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FILE = 0o600
FOLDER = 0o700


def make_folder(folder: Path) -> list[Path]:
    """Creates the folder and its missing parents. Raises OSError.

    Returns the created ones, outermost first.
    """
    if folder.is_dir():
        return []
    made = make_folder(folder.parent)
    try:
        folder.mkdir(mode=FOLDER)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return made  # another process was faster
    return [*made, folder]


def restrict_to_owner(path: Path) -> None:
    """Removes other users' rights from a plain file of this user.

    Works by name: closing a descriptor of a file drops SQLite's locks on it. Raises OSError.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & ~FILE & 0o077:
        path.chmod(FILE)
