"""Shared rules of network stores: converted errors, verified creates."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum

from batchscribe.core.objects import Blob
from batchscribe.errors import (
    BatchscribeError,
    MisconfiguredError,
    MissingRightError,
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
_SKEWED = "RequestTimeTooSkewed"
_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"})


class Action(StrEnum):
    """Action on a store; its value is the required S3 permission."""

    LIST = "s3:ListBucket"
    GET = "s3:GetObject"
    PUT = "s3:PutObject"
    DELETE = "s3:DeleteObject"


class ConflictError(Exception):
    """A conditional write met another object or write; handled by the adapter."""


def is_odd(key: str) -> bool:
    """True if obstore cannot address the key.

    Such a key has an empty or dot segment, or a control character.
    """
    segments = key.split("/")
    return bool(_CONTROL.search(key)) or any(segment in {"", ".", ".."} for segment in segments)


def convert_error(
    action: Action, url: str, key: str, *, status: int | None, code: str, doubt: str = ""
) -> BatchscribeError:
    """Converts a vendor's error; `status` is None without a response.

    `code` is S3's, or empty. `doubt` is a likely reason for no response.
    """
    what = f"{action.name.lower()} of {key!r} in {url}" if key else f"{action.name.lower()} of {url}"
    if status is None or status >= 500 or status in {409, 429} or code in _BUSY:
        why = f"{status} {code}".strip() if status else "no answer"
        return StoreUnavailableError(
            f"{what}: {why}; nothing was lost; "
            + (doubt or "try again, and if it persists, check the network and the endpoint")
        )
    if code == "InvalidObjectState":
        return ObjectArchivedError(f"{key!r} in {url} is archived: restore it, then it is transcribed")
    if code in {"KeyTooLongError", "InvalidURI"}:
        return PermanentError(f"{what}: the store does not support such a key ({code})")
    if status == 404 and code != "NoSuchBucket" and action is not Action.LIST:
        return ObjectNotFoundError(f"no object {key!r} in {url}")
    denied = status == 403 and code not in _CREDENTIALS | {_SKEWED}
    kind = MissingRightError if denied else MisconfiguredError
    return kind(f"{what}: {_describe_remedy(action, url, status, code)}")


def _describe_remedy(action: Action, url: str, status: int, code: str) -> str:
    if status == 404:
        return f"no such bucket; create it, or correct the setting that names {url}"
    if code == _SKEWED:
        return "this machine's clock is wrong; set it (timedatectl set-ntp true)"
    if code in _CREDENTIALS or status == 401:
        return f"the credentials were refused ({code or status}); renew them"
    if status == 403:
        return f"access denied; allow {action.value} there"
    if code in _REGION or status in {301, 307, 308}:
        return "the bucket is in another region; set AWS_REGION to it"
    return f"the store refused it ({status} {code}".rstrip() + ")"


def check_size(key: str, size: int, limit: int | None) -> None:
    """Raises ObjectTooLargeError if an object has more bytes than its reader accepts."""
    if limit is not None and size > limit:
        raise ObjectTooLargeError(f"{key!r} has {size:,} bytes, more than the limit of {limit:,}: not read")


def create_verified(write: Callable[[], None], read: Callable[[], Blob], data: bytes) -> bool:
    """Writes create-only, verified by reading; True if the object has our data.

    `read` may raise ObjectTooLargeError for an object that is larger than `data`, so not ours. `write` raises
    ConflictError if an object exists or another write is in progress (S3's 409 leaves this open),
    StoreUnavailableError if the response was lost.
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
    raise StoreUnavailableError("a create-only write met a conflict, but no object exists; try again")
