"""Checks of files and folders here: keys, rights, free space."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

from batchscribe.core.run.host import Finding, failed, passed, warned

STATE_BYTES = 64 * 1024**2
"""For ledger, reports and logs of a run."""
MODEL_BYTES = 2 * 1024**3
"""For a model, as on a GPU host."""
_MARK = b"PRIVATE KEY-----"
_FIRST_LINE = 128
"""Bytes that hold the first line of a key file."""
KEY_FILE, STATE_FOLDER, SETTINGS_FILE, DISK = "key file", "state folder", ".env", "disk"


def check_key_file(path: Path | None) -> Finding:
    """Checks a private key as ssh does: readable by its user only."""
    if path is None:
        return passed(KEY_FILE, "none set: ssh's agent and configuration choose the key")
    try:
        info = path.stat()
    except OSError as error:
        return failed(KEY_FILE, f"{path} cannot be used ({error.strerror})", "correct GPU_SSH_KEY_PATH")
    if not stat.S_ISREG(info.st_mode):
        return failed(KEY_FILE, f"{path} is not a file", "correct GPU_SSH_KEY_PATH")
    if info.st_uid == os.geteuid() and info.st_mode & 0o077:
        detail = f"{path} is accessible to other users, so ssh ignores it"
        return failed(KEY_FILE, detail, f"chmod 600 {shlex.quote(str(path))}")
    if not os.access(path, os.R_OK):
        return failed(
            KEY_FILE,
            f"{path} is not readable by this user",
            f"chown it, and chmod 600 {shlex.quote(str(path))}",
        )
    return passed(KEY_FILE, str(path))


def list_key_files(folder: Path | None = None) -> tuple[Path, ...]:
    """Private keys in ~/.ssh; empty if the folder cannot be read."""
    where = folder or Path.home() / ".ssh"
    try:
        return tuple(path for path in sorted(where.iterdir()) if _is_key(path))
    except OSError:
        return ()


def _is_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MARK in file.read(_FIRST_LINE)
    except OSError:
        return False


def check_state_folder(folder: Path) -> Finding:
    """Checks that ledger, lock and reports can be written. Creates nothing."""
    fix = "correct its owner and rights, or BATCH_STATE_DIR"
    try:
        place = _find_existing(folder)
        free = shutil.disk_usage(place).free
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except OSError as error:
        return failed(STATE_FOLDER, f"{folder} cannot be used ({error.strerror})", fix)
    if not writable:
        return failed(STATE_FOLDER, f"{folder} is not writable by this user", fix)
    detail = f"{folder}, {free / 1024**3:.1f} GiB free"
    if free < STATE_BYTES:
        return failed(STATE_FOLDER, f"{detail}: its disk is full", f"free {STATE_BYTES // 1024**2} MiB there")
    return passed(STATE_FOLDER, detail)


def check_settings_file(path: Path) -> Finding:
    """Checks that other users cannot read the settings."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return passed(SETTINGS_FILE, f"no {path}: settings come from the environment")
    except OSError as error:
        return failed(
            SETTINGS_FILE,
            f"{path} cannot be read ({error.strerror})",
            f"chown it, and chmod 600 {shlex.quote(str(path))}",
        )
    if mode & 0o077:
        return warned(
            SETTINGS_FILE, f"{path} is accessible to other users", f"chmod 600 {shlex.quote(str(path))}"
        )
    return passed(SETTINGS_FILE, f"{path}, accessible to its user only")


def check_model_space(folder: Path) -> Finding:
    """Checks the free space for models on this machine."""
    free = shutil.disk_usage(_find_existing(folder)).free
    detail = f"{free / 1024**3:.1f} GiB free for models in {folder}"
    if free < MODEL_BYTES:
        return warned(DISK, detail, f"free {MODEL_BYTES // 1024**3} GiB there")
    return passed(DISK, detail)


def _find_existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.exists() or place == place.parent)
