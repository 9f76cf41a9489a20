"""From one sorted listing to the backlog: what is done, what is pending, and the oldest of it.

The difference is taken while the listing streams past. What is kept at any moment is the folders
that are still open, the sums, and a bounded number of the oldest chunks: never the whole backlog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batchscribe.core.chunks import Chunk

MAX_CANDIDATES = 20_000


@dataclass(frozen=True, slots=True)
class LiveLock:
    """A recording is under way. `session` is None where the lock names none: then all of it waits."""

    session: str | None
    since: datetime

    def covers(self, session: str) -> bool:
        """Whether a session id contains the locked one as a whole path segment."""
        return self.session is None or self.session in session.strip("/").split("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What earlier attempts at one chunk left behind, for exactly this ETag."""

    etag: str
    failures: int = 0
    quarantined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRules:
    """What the scan must know besides the listing."""

    now: datetime
    min_age: timedelta = timedelta(minutes=5)
    live: LiveLock | None = None
    trouble: dict[str, Trouble] = field(default_factory=dict)
    """By `keys.digest(key)`."""
    owner: Callable[[str], str | None] = lambda _transcript: None
    """The audio file's name inside a transcript; asked only where two files share a stem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionScan:
    """One session as it stands. `pending` may start now, `waiting` may not yet."""

    session: str
    pending: tuple[Chunk, ...] = ()
    waiting: tuple[Chunk, ...] = ()
    done: int = 0
    stale: tuple[str, ...] = ()
    """Audio keys newer than their transcript."""
    quarantined: int = 0
    empty: int = 0
    """Audio objects of zero bytes: nothing to hear, nothing to wait for."""
    live: bool = False

    @property
    def complete(self) -> bool:
        return not self.pending and not self.waiting and not self.live

    @property
    def oldest(self) -> datetime | None:
        return min((chunk.modified for chunk in self.pending + self.waiting), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Sums over all sessions, and the oldest chunks that may start now, whole sessions first to last."""

    sessions: int = 0
    pending: int = 0
    pending_bytes: int = 0
    troubled: int = 0
    """Pending chunks that failed or were archived before: they start no GPU."""
    waiting: int = 0
    done: int = 0
    stale: int = 0
    quarantined: int = 0
    empty: int = 0
    oldest: datetime | None = None
    """Of the chunks that can start a GPU."""
    candidates: tuple[Chunk, ...] = ()
    odd_keys: tuple[str, ...] = ()
    """Keys that the fast lister refuses and that were listed another way; the first few."""

    @property
    def triggering(self) -> int:
        """Chunks that count towards the threshold."""
        return self.pending - self.troubled
