"""Objects of a store, and limits of their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

MIB = 1024 * 1024
TRANSCRIPT_BYTES = 32 * MIB
"""Largest transcript of a chunk that is read: 12 hours, the default BATCH_MAX_AUDIO_HOURS, at 250 words a
minute and 155 bytes a word (text, times, probability, indented) are 28 MB."""
SESSION_BYTES = 2 * TRANSCRIPT_BYTES
"""Largest sum of the transcripts in one session file. Crafted ones of 60 MB take 1 GB of memory and 85 s to
stitch; the scheduler's unit has 2 GB."""
VOICES_BYTES = 4 * MIB
"""Largest object with the voices of a chunk: 64 voices with 512 numbers each are 90 kB, the turns of 12
hours in which the speaker changes every second 1 MB."""
SESSION_VOICES_BYTES = 64 * MIB
"""Largest sum of the voices of one session: 10 hours in chunks of 10 s are 53 MB (bench/voices.py)."""
RECORD_BYTES = MIB
"""Largest control object about one run, worker, chunk or instance: a few strings, and for progress the keys
in flight, a few hundred at up to 1 kB each."""
SESSION_FILE_BYTES = 8 * SESSION_BYTES
"""Largest session file that is read for its digest: indenting and escaping lengthen a crafted text."""
COPIED_BYTES = 1024 * MIB
"""Largest transcript that `redo` keeps a copy of: it is held in memory, but not decoded."""
CHUNK_LIST_BYTES = 64 * MIB
"""Largest control object that lists chunks: 100,000 at 670 bytes each; a usual chunk takes 300."""


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    """One entry of a listing; `key` is relative, `etag` has no quotes.

    A struct, since listings have millions: a dataclass takes five times as long to make.
    """

    key: str
    size: int
    modified: datetime
    etag: str
    changed: datetime | None = None
    """Time at which a file was created there, if its store has it: copies keep their old `modified`."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of an object or a part, and its ETag."""

    data: bytes
    etag: str
    size: int | None = None
    """Bytes of the whole object, if `data` is a part of it."""
