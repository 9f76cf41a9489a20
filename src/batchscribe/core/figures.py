"""Numbers as text for users, and JSON with rounded numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

_DIGITS = 6
"""Decimal places of floats in JSON documents: a microsecond, a micro-dollar."""
_MINUTE = 60.0
_HOUR = 3600.0
_SIZES = ("B", "kB", "MB", "GB", "TB")
BLOCK_TITLE = "Cost Tracking"
Line = tuple[str, str]
"""(label, value)."""


def render_block(lines: Sequence[Line], title: str = BLOCK_TITLE) -> str:
    """The block as text, values in one column."""
    width = max(len(label) for label, _ in lines) + 1
    return "\n".join([f"{title}:", *(f"  {label + ':':<{width}}  {value}" for label, value in lines)])


def format_count(count: int, noun: str) -> str:
    """Formats a number of things, such as "1 chunk" or "3 chunks"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_hours(seconds: float) -> str:
    """Formats a duration in hours; short ones in minutes or seconds."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 0.1 * _HOUR:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _HOUR:.2f} h"


def format_minutes(seconds: float) -> str:
    """Formats a duration in minutes; short ones in seconds, long in hours."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 10 * _MINUTE:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.1f} h"


def format_clock(seconds: float) -> str:
    """Formats a duration of a table's column as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def format_size(count: int) -> str:
    """Formats bytes in their largest unit, such as "12.3 MB"."""
    return format_sizes([count])[0]


def format_sizes(counts: Sequence[int]) -> list[str]:
    """Formats the bytes of a table's column in the largest one's unit."""
    unit = min(len(_SIZES) - 1, max(0, len(str(max(counts, default=0))) - 1) // 3)
    return [_in_unit(count, unit) for count in counts]


def _in_unit(count: int, unit: int) -> str:
    amount = count / 1000**unit
    if unit and 0 < amount < 0.05:
        return f"<0.1 {_SIZES[unit]}"
    return f"{amount:,.{min(unit, 1)}f} {_SIZES[unit]}"


def encode_json(document: Any) -> bytes:
    """Encodes as indented JSON, floats rounded; structs become objects, times ISO 8601."""
    plain = _ROUNDING.decode(msgspec.json.encode(document))
    return msgspec.json.format(msgspec.json.encode(plain), indent=2)


def _round_float(text: str) -> float:
    return round(float(text), _DIGITS)


_ROUNDING = msgspec.json.Decoder(float_hook=_round_float)
