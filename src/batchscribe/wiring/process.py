"""Log, environment, clock and identity of a process of batchscribe."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from batchscribe import settings as configuration
from batchscribe.adapters.machine import logs
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.messages import lead_with_note
from batchscribe.detached import write_atomically
from batchscribe.errors import ObjectNotFoundError
from batchscribe.protocols import Clock
from batchscribe.settings import Settings

LOG = structlog.get_logger()
_HEAD = frozenset({"timestamp", "level", "event", "run"})


def apply_settings(settings: Settings, *, log_level: str = "info") -> None:
    """Applies the settings to the AWS environment and the log."""
    settings.apply_aws_environment()
    logs.configure(
        secrets=settings.list_secrets(), journal_stream=configuration.journal_stream(), level=log_level
    )


def open_clock() -> Clock:
    """This machine's clock, for commands that never wait."""
    return SystemClock()


def find_log(folder: Path, run: str) -> Path:
    """Returns the newest log whose name contains `run`. Raises ObjectNotFoundError."""
    found = sorted(path for path in folder.glob("batchscribe-*.log") if run in path.name)
    if not found:
        raise ObjectNotFoundError(f"no log of {run!r} in {folder}" if run else f"no log of a run in {folder}")
    return found[-1]


def read_log_end(path: Path, limit: int) -> tuple[list[str], bool]:
    """(lines in a log's last `limit` bytes, True if others precede them)."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        lines = file.read(limit).decode(errors="replace").splitlines()
    cut = size > limit
    return lines[1:] if cut else lines, cut


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a run's log; time and level may be empty."""

    time: str
    level: str
    text: str


def parse_line(line: str) -> LogLine:
    try:
        event: dict[str, Any] = lead_with_note(json.loads(line))
    except (ValueError, AttributeError, TypeError):
        return LogLine("", "", line)
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in _HEAD)
    text = f"{event.get('event', '')}  {fields}".strip()
    return LogLine(str(event.get("timestamp", ""))[:19], str(event.get("level", "info")), text)


def scheduler_identity(settings: Settings, *, remember: bool = True) -> tuple[str, str]:
    """(public random ID, secret that seals the records of this scheduler).

    Both are written once to the state directory, so they survive the loss of the ledger.
    """
    path, words = settings.state_dir / "scheduler-id", list[str]()
    try:
        words = path.read_text().split() if path.is_file() else []  # a pipe would hang
        if len(words) < 2 and remember:
            fresh = [*(words or [secrets.token_hex(8)]), secrets.token_hex(32)]
            write_atomically(path, "\n".join([*fresh, ""]).encode())
            words = fresh
    except OSError as error:
        LOG.warning("scheduler_id.not_stored", file=str(path), error=error.strerror)
    scheduler, secret = [*words, "", ""][:2]
    return scheduler, secret
