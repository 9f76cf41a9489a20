"""Times for users: local with their zone on a terminal, UTC elsewhere."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime

_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?) UTC")


def show_times(text: str) -> str:
    """Shows times in UTC as local ones if stdout is a terminal."""
    return _TIME.sub(_to_local_time, text) if sys.stdout.isatty() else text


def describe_holder(holder: str | None) -> str:
    """The "PID timestamp" of a lock's holder as text."""
    process, _, at = (holder or "").partition(" ")
    try:
        return f"held by process {process} since {datetime.fromisoformat(at):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return holder or "free"


def _to_local_time(found: re.Match[str]) -> str:
    try:
        local = datetime.fromisoformat(found[1]).replace(tzinfo=UTC).astimezone()
    except (ValueError, OverflowError):  # digits in a key, not a time
        return found[0]
    return f"{local:%Y-%m-%d %H:%M:%S}"[: len(found[1])] + f" {local:%Z}"
