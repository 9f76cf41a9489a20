"""From one sorted listing to the backlog: what is done, what is pending, and the oldest of it.

The difference is taken while the listing streams past. What is kept at any moment is the folders
that are still open, the sums, and a bounded number of the oldest chunks: never the whole backlog.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import chain

from batchscribe.core.keys import digest
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan.chunks import Chunk
from batchscribe.core.scan.folders import AudioObject, Owner, Tagged, audio_folders
from batchscribe.core.text.transcripts import SMALLEST

MAX_CANDIDATES = 20_000
LONGEST_CHUNK = timedelta(hours=2, minutes=30)
_NEVER = datetime.max.replace(tzinfo=UTC)


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
    """Empty where it cannot be told: then for any."""
    failures: int = 0
    """Attempts that count towards quarantine."""
    troubled: bool = False
    """It could not be had: archived, or not there although it was listed."""
    quarantined: bool = False
    attempts: int = 0
    """All failed attempts, whatever their kind."""
    last: datetime | None = None
    """The latest of them."""


def _nobody(_key: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRules:
    """What the scan must know besides the listing."""

    now: datetime
    min_age: timedelta = timedelta(minutes=5)
    """A younger chunk may still be uploading. Zero is a person's word to take what is there."""
    live: LiveLock | None = None
    overdue: datetime | None = None
    """Chunks from before it are due: no live lock holds them back any longer, nor a neighbour to come."""
    max_attempts: int = 3
    """A chunk that failed so often starts no GPU any more."""
    trouble: Mapping[str, tuple[Trouble, ...]] = field(default_factory=dict)
    """By `keys.digest(key)`, one entry for each ETag that was tried under this key."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """ETags of transcripts that could not be read when their session was assembled, by their keys."""
    owner: Owner = _nobody
    """The audio file's name inside a transcript; asked only where two files share a stem."""
    leave_out: Callable[[str], None] = _nobody
    """Gets every key of the source that is neither audio nor a transcript."""


class ChunkState(StrEnum):
    PENDING = "pending"
    WAITING = "waiting"
    """Too young, a live lock covers it, or it is the last of a session that seems to go on."""
    DONE = "done"
    QUARANTINED = "quarantined"
    EMPTY = "empty"


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
    unreadable: tuple[str, ...] = ()
    """Audio keys whose transcript is none: of 0 bytes (then not done), too large, or known to be
    unreadable."""
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
    """Pending chunks that failed, or could not be had, before: they start no GPU."""
    waiting: int = 0
    done: int = 0
    stale: int = 0
    quarantined: int = 0
    empty: int = 0
    oldest: datetime | None = None
    """Of the chunks that never failed."""
    oldest_retry: datetime | None = None
    """Since when a chunk waits that failed and may be tried again: its last attempt."""
    exhausted: int = 0
    """Pending chunks that failed too often to start a GPU, and are not quarantined."""
    candidates: tuple[Chunk, ...] = ()
    odd_keys: tuple[str, ...] = ()
    """Keys that the fast lister refuses, listed another way, and names that no key can hold, left
    out; the first few, each with its reason.
    """
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files of sound that are not decoded, by extension."""

    @property
    def triggering(self) -> int:
        """Chunks that count towards the threshold."""
        return self.pending - self.troubled


@dataclass(slots=True)
class _Sums:
    """One session while its audio objects are looked at."""

    pending: list[Chunk] = field(default_factory=list)
    waiting: list[Chunk] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    done: int = 0
    quarantined: int = 0
    empty: int = 0
    unreadable: list[str] = field(default_factory=list)


def sessions(listing: Iterable[Tagged], rules: ScanRules) -> Iterator[SessionScan]:
    """Every session of a sorted listing, as soon as its folder has passed; nested folders come first.

    Holds the folders that are open, nothing else. What the listing raises goes through: there is no
    partial backlog.
    """
    for folder in audio_folders(listing, rules.owner, rules.leave_out):
        groups: dict[str, list[AudioObject]] = {}
        for audio in folder:
            groups.setdefault(audio.name.session, []).append(audio)
        for session, audios in groups.items():
            yield _session(session, audios, rules)


def _session(session: str, audios: list[AudioObject], rules: ScanRules) -> SessionScan:
    sums = _Sums()
    for audio in audios:
        _count(sums, audio, rules)
    return SessionScan(
        session=session,
        pending=tuple(sorted(sums.pending, key=_within)),
        waiting=tuple(sorted(sums.waiting, key=_within)),
        done=sums.done,
        stale=tuple(sums.stale),
        quarantined=sums.quarantined,
        empty=sums.empty,
        unreadable=tuple(sums.unreadable),
        live=rules.live is not None and rules.live.covers(session),
    )


def state_of(audio: AudioObject, rules: ScanRules) -> ChunkState:
    """Where one audio object stands. A transcript wins over everything but an empty file."""
    if not audio.info.size:
        return ChunkState.EMPTY
    if audio.transcripts:
        return ChunkState.DONE
    trouble = _trouble(audio, rules)
    if trouble is not None and trouble.quarantined:
        return ChunkState.QUARANTINED
    live = rules.live is not None and rules.live.covers(audio.name.session)
    due = rules.overdue is not None and audio.info.modified <= rules.overdue
    held = (live or _goes_on(audio, rules)) and not due
    return ChunkState.WAITING if held or _young(audio.info, rules) else ChunkState.PENDING


def is_unreadable(audio: AudioObject, rules: ScanRules) -> bool:
    """True if what stands for its transcript is none, as far as listing and earlier reading show."""
    if audio.newest is None:
        return bool(audio.blank)
    info = audio.newest[1]
    return info.size < SMALLEST or audio.oversized or rules.unreadable.get(info.key) == info.etag


def _count(sums: _Sums, audio: AudioObject, rules: ScanRules) -> None:
    if audio.info.size and is_unreadable(audio, rules):
        sums.unreadable.append(audio.info.key)
    match state_of(audio, rules):
        case ChunkState.EMPTY:
            sums.empty += 1
        case ChunkState.DONE:
            sums.done += 1
            sums.stale += [audio.info.key] if audio.stale else []
        case ChunkState.QUARANTINED:
            sums.quarantined += 1
        case ChunkState.WAITING:
            sums.waiting.append(_chunk(audio, rules))
        case ChunkState.PENDING:
            sums.pending.append(_chunk(audio, rules))


def _trouble(audio: AudioObject, rules: ScanRules) -> Trouble | None:
    if not rules.trouble:
        return None
    known = rules.trouble.get(digest(audio.info.key), ())
    return next((trouble for trouble in known if trouble.etag in {"", audio.info.etag}), None)


def _young(info: ObjectInfo, rules: ScanRules) -> bool:
    # A date well in the future is a wrong clock, not an upload under way: it must not wait until then.
    return any(abs(rules.now - at) < rules.min_age for at in (info.modified, info.changed) if at)


def _goes_on(audio: AudioObject, rules: ScanRules) -> bool:
    """Whether the chunk after it is likely still to come: what was said across the cut needs both.

    Nobody says that a recording has ended. It is quiet when twice the time has passed that lay between
    its last two chunks; a longer time than any chunk lasts was a break, not the length of a chunk.
    """
    if audio.gap is None or not rules.min_age or audio.gap > LONGEST_CHUNK:
        return False
    return timedelta(0) <= rules.now - audio.info.modified < 2 * audio.gap


def _chunk(audio: AudioObject, rules: ScanRules) -> Chunk:
    trouble = _trouble(audio, rules)
    troubled = trouble is not None and (trouble.failures > 0 or trouble.troubled)
    return Chunk(
        key=audio.info.key,
        size=audio.info.size,
        modified=audio.info.modified,
        etag=audio.info.etag,
        session=audio.name.session,
        number=audio.name.number,
        transcript=audio.planned,
        failures=trouble.failures if trouble else 0,
        troubled=troubled,
        retry_since=_retry_since(audio, trouble, rules) if troubled else None,
    )


def _retry_since(audio: AudioObject, trouble: Trouble | None, rules: ScanRules) -> datetime | None:
    """Since when a chunk that failed waits for its next attempt; None if it failed too often."""
    if trouble is None or trouble.attempts >= rules.max_attempts:
        return None
    return max(filter(None, (audio.info.modified, trouble.last)))


def _within(chunk: Chunk) -> tuple[int, str]:
    return (-1 if chunk.number is None else chunk.number, chunk.key)


class _Oldest:
    """The chunks of the sessions that wait longest, at most `MAX_CANDIDATES` of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, tuple[Chunk, ...]]] = []
        self._held = 0
        self._order = 0

    def add(self, chunks: tuple[Chunk, ...]) -> None:
        if not chunks:
            return
        oldest = min(chunk.modified for chunk in chunks)
        self._order -= 1  # earlier in key order wins among equals, and chunks are never compared
        kept = chunks[:MAX_CANDIDATES]
        heapq.heappush(self._heap, (-oldest.timestamp(), self._order, kept))
        self._held += len(kept)
        while self._held - len(self._heap[0][2]) >= MAX_CANDIDATES:
            self._held -= len(heapq.heappop(self._heap)[2])

    def chunks(self) -> Iterator[Chunk]:
        for _age, _order, chunks in sorted(self._heap, reverse=True):
            yield from chunks


@dataclass(slots=True)
class _Totals:
    """The sums of a backlog, while sessions stream past."""

    sessions: int = 0
    pending: int = 0
    pending_bytes: int = 0
    troubled: int = 0
    waiting: int = 0
    done: int = 0
    stale: int = 0
    quarantined: int = 0
    empty: int = 0
    oldest: datetime = _NEVER
    oldest_retry: datetime = _NEVER
    exhausted: int = 0

    def add(self, scan: SessionScan, fresh: tuple[Chunk, ...]) -> None:
        self.sessions += 1
        self.pending += len(scan.pending)
        self.pending_bytes += sum(chunk.size for chunk in scan.pending)
        self.troubled += len(scan.pending) - len(fresh)
        self.waiting += len(scan.waiting)
        self.done += scan.done
        self.stale += len(scan.stale)
        self.quarantined += scan.quarantined
        self.empty += scan.empty
        self.oldest = min(self.oldest, min((chunk.modified for chunk in fresh), default=_NEVER))
        retries = [chunk.retry_since for chunk in scan.pending if chunk.retry_since]
        self.oldest_retry = min(self.oldest_retry, min(retries, default=_NEVER))
        self.exhausted += len(scan.pending) - len(fresh) - len(retries)


def summarise(
    scans: Iterable[SessionScan],
    odd_keys: Callable[[], tuple[str, ...]] = tuple,
    passed_over: Callable[[], dict[str, int]] = dict,
) -> Backlog:
    """The sums, and the candidates: the sessions that wait longest first, by number within each.

    Troubled chunks come after all others: however many archived ones a bucket holds, they neither
    crowd the startable ones out of a batch nor fill its time. `odd_keys` and `passed_over` are asked at the
    end.
    """
    totals, fresh, troubled = _Totals(), _Oldest(), _Oldest()
    for scan in scans:
        startable = tuple(chunk for chunk in scan.pending if not chunk.troubled)
        totals.add(scan, startable)
        fresh.add(startable)
        if len(startable) < len(scan.pending):
            troubled.add(tuple(chunk for chunk in scan.pending if chunk.troubled))
    candidates = tuple(chain(fresh.chunks(), troubled.chunks()))[:MAX_CANDIDATES]
    return Backlog(
        sessions=totals.sessions,
        pending=totals.pending,
        pending_bytes=totals.pending_bytes,
        troubled=totals.troubled,
        waiting=totals.waiting,
        done=totals.done,
        stale=totals.stale,
        quarantined=totals.quarantined,
        empty=totals.empty,
        oldest=None if totals.oldest == _NEVER else totals.oldest,
        oldest_retry=None if totals.oldest_retry == _NEVER else totals.oldest_retry,
        exhausted=totals.exhausted,
        candidates=candidates,
        odd_keys=odd_keys(),
        passed_over=passed_over(),
    )
