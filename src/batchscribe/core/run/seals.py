"""Seals of control objects, by which a scheduler recognizes its own.

Other programs may write to the store. The key is in the state directory, so it survives a lost ledger. A seal
is the last field of the JSON object: HMAC-SHA256 of the object without it.
"""

from __future__ import annotations

import hmac
import re

_EMPTY = b',"seal":""}'
_SEAL = re.compile(rb',"seal":"([0-9a-f]{64})"\}\Z')


def seal(data: bytes, secret: str) -> bytes:
    """Adds the seal to a JSON object, unless there is no secret."""
    if not secret:
        return data
    bare = data.removesuffix(_EMPTY).removesuffix(b"}")
    return b'%s,"seal":"%s"}' % (bare, _compute_digest(bare + b"}", secret))


def is_sealed(data: bytes, secret: str) -> bool:
    """True if the owner of this secret stored the object."""
    found = _SEAL.search(data)
    if not found or not secret:
        return False
    return hmac.compare_digest(found[1], _compute_digest(data[: found.start()] + b"}", secret))


def _compute_digest(data: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), data, "sha256").hex().encode()
