"""Computes the backlog from one sorted listing.

The listing is a stream: only the open folders, the sums, and a bounded number of the oldest chunks are held
in memory, never the whole backlog.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain

from batchscribe.core.keys import digest
from batchscribe.core.objects import TRANSCRIPT_BYTES, ObjectInfo
from batchscribe.core.scan.chunks import Chunk
from batchscribe.core.scan.folders import AudioObject, Owner, Tagged, audio_folders
from batchscribe.core.text.transcripts import SMALLEST

MAX_CANDIDATES = 20_000
LONGEST_CHUNK = timedelta(hours=2, minutes=30)


@dataclass(frozen=True, slots=True)
class LiveLock:
    """A recording in progress; without a `session`, all sessions wait."""

    session: str | None
    since: datetime

    def covers(self, session: str) -> bool:
        """True if the locked session is a whole path segment of `session`."""
        return self.session is None or self.session in session.strip("/").split("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class PastAttempts:
    """Failed attempts at one chunk with this ETag."""

    etag: str
    """Empty if unknown: then it applies to any."""
    failures: int = 0
    """Attempts that count towards quarantine."""
    unavailable: bool = False
    """It was unavailable: archived, or missing although it was listed."""
    quarantined: bool = False
    attempts: int = 0
    """All failed attempts, of any kind."""
    last: datetime | None = None
    """The latest of them."""


def _ignore_key(_key: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRules:
    """Inputs of the scan besides the listing."""

    now: datetime
    min_age: timedelta = timedelta(minutes=5)
    """A younger chunk may still be uploading. Zero: a user asked to take all chunks now."""
    live: LiveLock | None = None
    overdue: datetime | None = None
    """Chunks from before it are due: neither a live lock nor an expected neighbour holds them back."""
    max_attempts: int = 3
    """Failed attempts after which a chunk no longer starts a GPU."""
    trouble: Mapping[str, tuple[PastAttempts, ...]] = field(default_factory=dict)
    """By `keys.digest(key)`, one entry for each ETag that was tried."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """ETags of transcripts that were unreadable when their session was stitched, by key."""
    owner: Owner = _ignore_key
    """Reads the audio file's name in a transcript; called only if two files share a stem."""
    leave_out: Callable[[str], None] = _ignore_key
    """Gets every key of the source that is neither audio nor a transcript."""


class ChunkState(StrEnum):
    PENDING = "pending"
    WAITING = "waiting"
    """Too young, covered by a live lock, or the last chunk of a session that seems to continue."""
    DONE = "done"
    QUARANTINED = "quarantined"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionScan:
    """State of one session: `pending` chunks may start now, `waiting` ones later."""

    session: str
    pending: tuple[Chunk, ...] = ()
    waiting: tuple[Chunk, ...] = ()
    done: int = 0
    stale: tuple[str, ...] = ()
    """Audio keys newer than their transcript."""
    quarantined: int = 0
    empty: int = 0
    """Audio objects of 0 bytes: nothing to transcribe, nothing to wait for."""
    unreadable: tuple[str, ...] = ()
    """Audio keys with an invalid transcript: of 0 bytes (then not done), too large, or known to be
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
    """Sums over all sessions, and the oldest pending chunks."""

    sessions: int = 0
    pending: int = 0
    pending_bytes: int = 0
    troubled: int = 0
    """Pending chunks that failed before, or were unavailable: they do not start a GPU."""
    waiting: int = 0
    done: int = 0
    stale: int = 0
    quarantined: int = 0
    empty: int = 0
    oldest: datetime | None = None
    """Of the chunks that never failed."""
    oldest_retry: datetime | None = None
    """Earliest last attempt of a chunk that failed and may be tried again."""
    exhausted: int = 0
    """Pending chunks that failed too often to start a GPU, but are not quarantined."""
    candidates: tuple[Chunk, ...] = ()
    odd_keys: tuple[str, ...] = ()
    """Keys that needed the slow lister, and names that are no valid keys and are left out; the first few,
    each with its reason.
    """
    passed_over: dict[str, int] = field(default_factory=dict)
    """Sound files in unsupported formats, by extension."""

    @property
    def triggering(self) -> int:
        """Chunks that count towards the threshold."""
        return self.pending - self.troubled


def scan_sessions(listing: Iterable[Tagged], rules: ScanRules) -> Iterator[SessionScan]:
    """Yields every session of a sorted listing when its folder is complete.

    Nested folders come first. Holds only the open folders. Errors of the listing propagate: there is no
    partial backlog.
    """
    for folder in audio_folders(listing, rules.owner, rules.leave_out):
        groups: dict[str, list[AudioObject]] = {}
        for audio in folder:
            groups.setdefault(audio.name.session, []).append(audio)
        for session, audios in groups.items():
            yield _scan_session(session, audios, rules)


def _scan_session(session: str, audios: list[AudioObject], rules: ScanRules) -> SessionScan:
    by_state: dict[ChunkState, list[AudioObject]] = {state: [] for state in ChunkState}
    for audio in audios:
        by_state[state_of(audio, rules)].append(audio)
    done = by_state[ChunkState.DONE]
    return SessionScan(
        session=session,
        pending=make_chunks(by_state[ChunkState.PENDING], rules),
        waiting=make_chunks(by_state[ChunkState.WAITING], rules),
        done=len(done),
        stale=tuple(audio.info.key for audio in done if audio.stale),
        quarantined=len(by_state[ChunkState.QUARANTINED]),
        empty=len(by_state[ChunkState.EMPTY]),
        unreadable=tuple(
            audio.info.key for audio in audios if audio.info.size and is_unreadable(audio, rules)
        ),
        live=rules.live is not None and rules.live.covers(session),
    )


def state_of(audio: AudioObject, rules: ScanRules) -> ChunkState:
    """State of one audio object: done with any transcript, unless empty."""
    if not audio.info.size:
        return ChunkState.EMPTY
    if audio.transcripts:
        return ChunkState.DONE
    trouble = find_trouble(audio, rules)
    if trouble is not None and trouble.quarantined:
        return ChunkState.QUARANTINED
    live = rules.live is not None and rules.live.covers(audio.name.session)
    due = rules.overdue is not None and audio.info.modified <= rules.overdue
    held = (live or _is_continuing(audio, rules)) and not due
    return ChunkState.WAITING if held or find_last_write(audio.info, rules) else ChunkState.PENDING


def is_unreadable(audio: AudioObject, rules: ScanRules) -> bool:
    """True if its transcript is invalid, by listing and earlier reads."""
    newest = audio.newest
    if newest is None:
        return bool(audio.blank)
    info = newest[1]
    return not SMALLEST <= info.size <= TRANSCRIPT_BYTES or rules.unreadable.get(info.key) == info.etag


def find_trouble(audio: AudioObject, rules: ScanRules) -> PastAttempts | None:
    """The failed attempts at the present audio; None without any."""
    if not rules.trouble:
        return None
    known = rules.trouble.get(digest(audio.info.key), ())
    return next((trouble for trouble in known if trouble.etag in {"", audio.info.etag}), None)


def find_last_write(info: ObjectInfo, rules: ScanRules) -> datetime | None:
    """Time of a write so recent that the upload may be unfinished.

    A date well in the future is a wrong clock: the chunk must not wait for it.
    """
    times = (at for at in (info.modified, info.changed) if at and abs(rules.now - at) < rules.min_age)
    return max(times, default=None)


def _is_continuing(audio: AudioObject, rules: ScanRules) -> bool:
    """True if its successor is likely still to come.

    Words across the cut need both chunks. No event marks the end of a recording. It counts as ended after
    twice the time between its last two chunks; a gap above LONGEST_CHUNK was a break, not the length of a
    chunk.
    """
    if audio.gap is None or not rules.min_age or audio.gap > LONGEST_CHUNK:
        return False
    return timedelta(0) <= rules.now - audio.info.modified < 2 * audio.gap


def make_chunks(audios: Iterable[AudioObject], rules: ScanRules) -> tuple[Chunk, ...]:
    """Chunks of a session, in its order."""
    chunks = (_make_chunk(audio, rules) for audio in audios)
    return tuple(sorted(chunks, key=lambda chunk: (-1 if chunk.number is None else chunk.number, chunk.key)))


def _make_chunk(audio: AudioObject, rules: ScanRules) -> Chunk:
    """The chunk of an audio object, with its earlier failures."""
    trouble = find_trouble(audio, rules)
    previously_failed = trouble is not None and (trouble.failures > 0 or trouble.unavailable)
    return Chunk(
        key=audio.info.key,
        size=audio.info.size,
        modified=audio.info.modified,
        etag=audio.info.etag,
        session=audio.name.session,
        number=audio.name.number,
        transcript=audio.planned,
        failures=trouble.failures if trouble else 0,
        previously_failed=previously_failed,
        retry_since=_retry_since(audio, trouble, rules) if previously_failed else None,
    )


def _retry_since(audio: AudioObject, trouble: PastAttempts | None, rules: ScanRules) -> datetime | None:
    """Begin of a failed chunk's wait; None if it failed too often."""
    if trouble is None or trouble.attempts >= rules.max_attempts:
        return None
    return max(filter(None, (audio.info.modified, trouble.last)))


class _Oldest:
    """Chunks of the longest waiting sessions, about `MAX_CANDIDATES` of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, tuple[Chunk, ...]]] = []
        self._held = 0
        self._order = 0

    def add(self, chunks: tuple[Chunk, ...]) -> None:
        if not chunks:
            return
        oldest = min(chunk.modified for chunk in chunks)
        self._order -= 1  # the earlier in key order wins a tie, and chunks are never compared
        kept = chunks[:MAX_CANDIDATES]
        heapq.heappush(self._heap, (-oldest.timestamp(), self._order, kept))
        self._held += len(kept)
        while self._held - len(self._heap[0][2]) >= MAX_CANDIDATES:
            self._held -= len(heapq.heappop(self._heap)[2])

    def iterate_chunks(self) -> Iterator[Chunk]:
        for _age, _order, chunks in sorted(self._heap, reverse=True):
            yield from chunks


def _find_earliest(*times: datetime | None) -> datetime | None:
    return min(filter(None, times), default=None)


def summarise(
    scans: Iterable[SessionScan],
    odd_keys: Callable[[], tuple[str, ...]] = tuple,
    passed_over: Callable[[], dict[str, int]] = dict,
) -> Backlog:
    """Sums up the sessions, and lists the candidates.

    The longest waiting session comes first, its chunks by number. Previously failed chunks come last, so that
    even many archived ones do not displace others from a batch. `odd_keys` and `passed_over` are called at
    the end.
    """
    sums: Counter[str] = Counter()
    oldest: datetime | None = None
    oldest_retry: datetime | None = None
    fresh, failed_before = _Oldest(), _Oldest()
    for scan in scans:
        startable = tuple(chunk for chunk in scan.pending if not chunk.previously_failed)
        troubled = tuple(chunk for chunk in scan.pending if chunk.previously_failed)
        retries = [chunk.retry_since for chunk in scan.pending if chunk.retry_since]
        fresh.add(startable)
        failed_before.add(troubled)
        oldest = _find_earliest(oldest, *(chunk.modified for chunk in startable))
        oldest_retry = _find_earliest(oldest_retry, *retries)
        sums["sessions"] += 1
        sums["pending"] += len(scan.pending)
        sums["pending_bytes"] += sum(chunk.size for chunk in scan.pending)
        sums["troubled"] += len(troubled)
        sums["waiting"] += len(scan.waiting)
        sums["done"] += scan.done
        sums["stale"] += len(scan.stale)
        sums["quarantined"] += scan.quarantined
        sums["empty"] += scan.empty
        sums["exhausted"] += len(troubled) - len(retries)
    return Backlog(
        **sums,
        oldest=oldest,
        oldest_retry=oldest_retry,
        candidates=tuple(chain(fresh.iterate_chunks(), failed_before.iterate_chunks()))[:MAX_CANDIDATES],
        odd_keys=odd_keys(),
        passed_over=passed_over(),
    )
