"""What the stores behind a network share: refusals in our own words, and a create that is read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum

from batchscribe.core.objects import Blob
from batchscribe.errors import (
    BatchscribeError,
    MisconfiguredError,
    ObjectArchivedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    PermanentError,
    StoreUnavailableError,
)

CONNECT_SECONDS = 5
READ_SECONDS = 20
RETRIES = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)
_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"})


class Action(StrEnum):
    """What was tried, and by its value the right that S3 asks for."""

    LIST = "s3:ListBucket"
    GET = "s3:GetObject"
    PUT = "s3:PutObject"
    DELETE = "s3:DeleteObject"


class ConflictError(Exception):
    """A conditional write found something there, or another write under way. Never leaves an adapter."""


def odd(key: str) -> bool:
    """Whether the fast library cannot name this key: it takes `/` for a path's, and no control characters."""
    segments = key.split("/")
    return bool(_CONTROL.search(key)) or any(segment in {"", ".", ".."} for segment in segments)


def refusal(action: Action, url: str, key: str, *, status: int | None, code: str) -> BatchscribeError:
    """Our error for a vendor's: `status` is HTTP's, None where no answer came; `code` is S3's, or empty."""
    what = f"{action.name.lower()} of {key!r} in {url}" if key else f"{action.name.lower()} of {url}"
    if status is None or status >= 500 or status in {409, 429} or code in _BUSY:
        why = f"{status} {code}".strip() if status else "no answer"
        return StoreUnavailableError(
            f"{what}: {why}; nothing was lost, try again, and check the network and the endpoint if it stays"
        )
    if code == "InvalidObjectState":
        return ObjectArchivedError(f"{key!r} in {url} is archived: restore it first, then it is taken")
    if code in {"KeyTooLongError", "InvalidURI"}:
        return PermanentError(f"{what}: the store cannot hold such a key ({code})")
    if status == 404 and code != "NoSuchBucket" and action is not Action.LIST:
        return ObjectNotFoundError(f"no object {key!r} in {url}")
    return MisconfiguredError(f"{what}: {_mend(action, url, status, code)}")


def _mend(action: Action, url: str, status: int, code: str) -> str:
    if status == 404:
        return f"no such bucket; create it, or correct the setting that names {url}"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is wrong; set it (timedatectl set-ntp true)"
    if code in _CREDENTIALS or status == 401:
        return f"the credentials were refused ({code or status}); renew them"
    if status == 403:
        return f"access denied; allow {action.value} there"
    if code in _REGION or status in {301, 307, 308}:
        return "the bucket lies in another region; set AWS_REGION to it"
    return f"the store refused it ({status} {code}".rstrip() + ")"


def check_size(key: str, size: int, limit: int | None) -> None:
    """Raises ObjectTooLargeError if an object has more bytes than its reader accepts."""
    if limit is not None and size > limit:
        raise ObjectTooLargeError(f"{key!r} has {size:,} bytes, more than the limit of {limit:,}: not read")


def settled_create(write: Callable[[], None], read: Callable[[], Blob], data: bytes) -> bool:
    """Writes create-only. Whatever is not a clear yes is read back: ours already, or a neighbour's.

    `read` may raise ObjectTooLargeError for an object that is larger than `data`: it is not ours.
    `write` raises ConflictError where something is there or another write is under way (S3 says 409
    without deciding), StoreUnavailableError where the answer was lost.
    """
    lost: StoreUnavailableError | None = None
    for _attempt in range(RETRIES):
        try:
            write()
        except ConflictError:
            lost = None
        except StoreUnavailableError as error:
            lost = error
        else:
            return True
        try:
            return read().data == data
        except ObjectTooLargeError:
            return False
        except ObjectNotFoundError:
            if lost is not None:
                raise lost from None
    raise StoreUnavailableError("a create-only write met a conflict, and yet nothing is there; try again")
