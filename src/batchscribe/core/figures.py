"""Numbers as text for users."""

from __future__ import annotations

_MINUTE = 60.0
_HOUR = 3600.0


def format_count(count: int, noun: str) -> str:
    """Formats a number of things, such as "1 chunk" or "3 chunks"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_hours(seconds: float) -> str:
    """Formats a duration in hours, below 0.1 h in minutes, below a minute in seconds."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 0.1 * _HOUR:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _HOUR:.2f} h"
