"""Errors of undecodable objects: a bucket is untrusted input."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec for invalid content, an invalid encoding, or excessive nesting."""
