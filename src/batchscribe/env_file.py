"""Reads and writes `.env`: parsed, never executed, and private."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from dotenv.parser import parse_stream

from batchscribe.errors import MisconfiguredError
from batchscribe.private_files import FILE

LARGEST_BYTES = 1_000_000
"""Parsing takes seconds for each further 10 MB: a wrong file must not delay the stop of a GPU."""


def read_env_file(path: Path) -> dict[str, str]:
    """Names and values of a `.env`, not expanded; empty without a file.

    Raises MisconfiguredError for a line that is not NAME=value, or for a file too large or unreadable.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST_BYTES:
            kind = "larger than 1 MB" if stat.S_ISREG(info.st_mode) else "not a file"
            raise MisconfiguredError(f"{path} is {kind}: remove it, or replace it with a settings file")
        with path.open(encoding="utf-8") as stream:
            return parse_bindings(path, stream)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise MisconfiguredError(f"{path} cannot be read ({reason}): fix the file or its rights") from error


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """Raises MisconfiguredError if there is a file that may not be replaced."""
    if path.exists() and not force:
        raise MisconfiguredError(f"{path} exists, nothing was changed: --force keeps it as {path.name}.old")


def write_env_file(path: Path, text: str, *, force: bool = False) -> Path | None:
    """Creates a `.env` for its user alone.

    With `force`, renames an existing one and returns its new path. Raises MisconfiguredError if there is one
    already, or if the folder cannot be written.
    """
    refuse_existing_file(path, force=force)
    old = path.with_name(f"{path.name}.old") if path.exists() else None
    try:
        if old:
            path.replace(old)
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MisconfiguredError(f"{path} cannot be written ({error.strerror}): fix its folder") from error
    return old


def single_quoted(path: Path) -> frozenset[str]:
    """Names whose values are in single quotes: their `$` is literal."""
    with path.open(encoding="utf-8") as stream:
        return frozenset(
            binding.key
            for binding in parse_stream(stream)
            if binding.key and binding.original.string.partition("=")[2].lstrip().startswith("'")
        )


def refuse_open_file(path: Path, secrets: Sequence[str]) -> None:
    """Raises MisconfiguredError if a file with secrets is not private.

    `secrets` are the names of the secrets in it. Root may read any user's file.
    """
    if not secrets:
        return
    info = path.stat()
    if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise MisconfiguredError(
            f"{path} contains {secrets[0]} and others can read it: chmod 600 {shlex.quote(str(path))}"
        )
    if os.geteuid() not in {0, info.st_uid}:
        raise MisconfiguredError(
            f"{path} contains {secrets[0]} and belongs to another user: chown it to yourself"
        )


def parse_bindings(path: Path, stream: IO[str]) -> dict[str, str]:
    """Names and values of the text. Raises MisconfiguredError for other lines."""
    found = {}
    for binding in parse_stream(stream):
        if binding.error or (binding.key and binding.value is None):
            line = binding.original.line + binding.original.string.count("\n", 0, -1)
            raise MisconfiguredError(f"{path}, line {line}, is not NAME=value: fix it (nothing was changed)")
        if binding.key and binding.value is not None:
            found[binding.key] = binding.value
    return found
