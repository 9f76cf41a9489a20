"""Suggests the name that a mistyped one stands for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""Similarity by difflib from which a name is suggested."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Text `did you mean X? ` for the nearest name, or empty."""
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=CUTOFF)
    return f"did you mean {names[near[0]]}? " if near else ""
