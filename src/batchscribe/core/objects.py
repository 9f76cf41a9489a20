"""What a store says of its objects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MIB = 1024 * 1024
TRANSCRIPT_BYTES = 32 * MIB
"""Largest transcript of a chunk that is read: 12 hours, the default BATCH_MAX_AUDIO_HOURS, at 250 words a
minute and 155 bytes a word (text, times, probability, indented) are 28 MB."""
SESSION_BYTES = 2 * TRANSCRIPT_BYTES
"""Largest sum of the transcripts that one session file is made from. A crafted 60 MB take 1 GB of memory and
85 s to assemble; the scheduler's unit has 2 GB."""
RECORD_BYTES = MIB
"""Largest control object about one run, worker, chunk or instance: a few strings, and for progress the keys
in flight, a few hundred at up to 1 kB each."""
SESSION_FILE_BYTES = 8 * SESSION_BYTES
"""Largest session file in which its digest is looked up: indenting and escaping lengthen a crafted text."""
COPIED_BYTES = 1024 * MIB
"""Largest transcript that `redo` keeps aside: it passes through memory, and is not decoded."""
CHUNK_LIST_BYTES = 64 * MIB
"""Largest control object that lists chunks: 100,000 at 670 bytes each; a usual chunk takes 300."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One row of a listing. `key` is relative to the store's URL, `etag` is without quotes."""

    key: str
    size: int
    modified: datetime
    etag: str
    changed: datetime | None = None
    """When a file was last put there, if its store tells that from `modified`: copies keep old times."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of an object, and the ETag of exactly these bytes."""

    data: bytes
    etag: str
