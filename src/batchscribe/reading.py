"""Bounded reads: objects in a store are untrusted input, including their size."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from batchscribe.core.objects import CHUNK_LIST_BYTES, RECORD_BYTES, TRANSCRIPT_BYTES
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import ExitRecord, Manifest
from batchscribe.core.text import transcripts
from batchscribe.core.text.transcripts import ForeignTranscript, Transcript
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, ObjectTooLargeError, UnreadableError
from batchscribe.protocols import Store

T = TypeVar("T", bound=msgspec.Struct)
_LISTING_CHUNKS = (Manifest, ExitRecord)


def limit_of(kind: type[msgspec.Struct]) -> int:
    """Size limit in bytes for reading a control object of this kind."""
    return CHUNK_LIST_BYTES if issubclass(kind, _LISTING_CHUNKS) else RECORD_BYTES


def read_bytes(store: Store, key: str, limit: int, *, what: str = "record") -> bytes:
    """Reads an object's bytes. Raises as Store.get does; UnreadableError if too large."""
    try:
        return store.get(key, limit=limit).data
    except ObjectTooLargeError as error:
        raise UnreadableError(f"not a readable {what}: {error}") from error


def read_record(store: Store, key: str, kind: type[T]) -> T:
    """Reads the control object under `key`.

    Raises what Store.get raises, UnreadableError if it is too large or not a `kind`, and
    MisconfiguredError if it has another version.
    """
    return wire.decode(read_bytes(store, key, limit_of(kind), what=kind.__name__), kind)


def read_optional(store: Store, key: str, kind: type[T]) -> T | None:
    """Reads a control object as `read_record` does; None if there is none."""
    try:
        return read_record(store, key, kind)
    except ObjectNotFoundError:
        return None


def read_if_valid(store: Store, key: str, kind: type[T]) -> T | None:
    """Reads a control object like `read_record`; None if missing or unreadable."""
    try:
        return read_record(store, key, kind)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def read_transcript(store: Store, key: str) -> Transcript | ForeignTranscript:
    """Reads a transcript. Raises as Store.get does; PermanentError if it is unreadable."""
    return transcripts.decode(store.get(key, limit=TRANSCRIPT_BYTES).data)


def is_stored(store: Store, key: str, *, or_empty: bool = True) -> bool:
    """True if there is an object under `key`; does not read it.

    `or_empty`: an object of 0 bytes counts, too. Raises what Store.get raises.
    """
    try:
        store.get(key, limit=0)
    except ObjectNotFoundError:
        return False
    except ObjectTooLargeError:
        return True
    return or_empty
