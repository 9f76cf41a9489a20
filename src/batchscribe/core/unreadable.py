"""Bytes that somebody else wrote: an object in a bucket may hold anything."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for them: wrong, in no encoding, or nested without end."""
