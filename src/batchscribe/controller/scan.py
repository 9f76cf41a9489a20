"""Scan of the stores, as sessions and as a backlog."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from batchscribe.controller.previous_failures import read_trouble
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan.backlog import Backlog, LiveLock, ScanRules, SessionScan, scan_sessions, summarise
from batchscribe.core.scan.chunks import passed_over
from batchscribe.core.scan.folders import AudioObject, Tagged, audio_folders, merge_listings
from batchscribe.core.text.transcripts import Transcript
from batchscribe.errors import ObjectNotFoundError, ObjectTooLargeError, PermanentError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import read_transcript

MIN_AGE = timedelta(minutes=5)
LOCK_STALE_AFTER = timedelta(minutes=30)
MAX_LOCK_BYTES = 65_536
KEEP_ALIVE_EVERY = 1000
"""Objects of a listing."""
NONE_KNOWN: Mapping[str, str] = MappingProxyType({})


def no_lock() -> LiveLock | None:
    """No recorder writes a live lock here."""
    return None


class Scanner:
    """Lists source and output; repeatable. Errors of a listing are raised: no backlog is partial.

    A chunk older than `longest_lock` is not held back by a live lock. `decoder` is the current version:
    failures with another one do not count. `keep_alive` is called during a listing. `unreadable` has the
    ETags of transcripts that could not be read before, by their keys.
    """

    def __init__(
        self,
        source: Store,
        output: Store,
        *,
        clock: Clock,
        min_age: timedelta = MIN_AGE,
        live_lock: Callable[[], LiveLock | None] = no_lock,
        longest_lock: timedelta | None = None,
        decoder: str | None = None,
        max_attempts: int = 3,
        keep_alive: Callable[[], None] = lambda: None,
        unreadable: Mapping[str, str] = NONE_KNOWN,
        only: frozenset[str] = frozenset(),
    ) -> None:
        self.source = source
        self.output = output
        self._clock = clock
        self._min_age = min_age
        self._live_lock = live_lock
        self._longest_lock = longest_lock
        self._decoder = decoder
        self._max_attempts = max_attempts
        self._keep_alive = keep_alive
        self._unreadable = unreadable
        self._only = only
        self._passed_over: Counter[str] = Counter()

    @property
    def odd_keys(self) -> tuple[str, ...]:
        """Keys listed differently or skipped so far, each with its reason."""
        stores = (self.source,) if self._one_store else (self.source, self.output)
        return tuple(row for store in stores for row in getattr(store, "odd_keys", ()))

    @property
    def passed_over(self) -> dict[str, int]:
        """Number of skipped audio files by extension, since the last `rules`."""
        return dict(self._passed_over)

    def _leave_out(self, key: str) -> None:
        if (kind := passed_over(key)) is not None:
            self._passed_over[kind] += 1

    def rules(self) -> ScanRules:
        """Present time, lock and earlier failures.

        Read before the listing, so that a change meanwhile delays a chunk by one tick at most.
        """
        now = self._clock.now()
        self._passed_over.clear()
        return ScanRules(
            now=now,
            min_age=self._min_age,
            live=self._live_lock(),
            overdue=now - self._longest_lock if self._longest_lock is not None else None,
            max_attempts=self._max_attempts,
            trouble=read_trouble(self.output, self._decoder),
            unreadable=self._unreadable,
            owner=self._owner,
            leave_out=self._leave_out,
        )

    def sessions(self, prefix: str = "") -> Iterator[SessionScan]:
        """Streams every session, or those in `only`; a prefix must be a whole folder."""
        rules = self.rules()
        found = scan_sessions(self._listing(prefix), rules)
        yield from (scan for scan in found if scan.session in self._only) if self._only else found

    def backlog(self) -> Backlog:
        return summarise(self.sessions(), lambda: self.odd_keys, lambda: self.passed_over)

    def audio(self, prefix: str = "") -> Iterator[AudioObject]:
        """Streams every audio object with its transcripts. A prefix must be a whole folder."""
        for folder in audio_folders(self._listing(prefix), self._owner, self._leave_out):
            yield from folder

    @property
    def _one_store(self) -> bool:
        return self.source is self.output or self.source.url == self.output.url

    def _listing(self, prefix: str) -> Iterator[Tagged]:
        listed = merge_listings(
            self.source.list(prefix), None if self._one_store else self.output.list(prefix)
        )
        for number, each in enumerate(listed):
            if number % KEEP_ALIVE_EVERY == 0:
                self._keep_alive()  # a listing may take longer than a step may
            yield each

    def _owner(self, transcript: str) -> str | None:
        for store in (self.output, self.source):
            try:
                found = read_transcript(store, transcript)
            except ObjectNotFoundError:
                continue
            except PermanentError:
                return None
            return found.audio.name if isinstance(found, Transcript) else None
        return None


def read_live_lock(
    store: Store, key: str, now: datetime, stale_after: timedelta = LOCK_STALE_AFTER
) -> LiveLock | None:
    """Reads a recorder's lock. None if there is none, or it is stale.

    A fresh lock that cannot be read covers all sessions: waiting costs minutes, but a transcript of half a
    recording would stay.
    """
    info = next((info for info in store.list(key) if info.key == key), None)
    if info is None or now - info.modified >= stale_after:
        return None
    try:
        content = _read_content(store, info)
    except ObjectNotFoundError:
        return None
    since = min(info.modified, _timestamp(content) or info.modified)
    if content.get("locked") is False or now - since >= stale_after:
        return None
    session = content.get("sessionId")
    named = session.strip("/").rpartition("/")[2] if isinstance(session, str) else ""
    return LiveLock(named or None, since)


def _read_content(store: Store, info: ObjectInfo) -> dict[str, Any]:
    try:
        content = json.loads(store.get(info.key, limit=MAX_LOCK_BYTES).data)
    except (ValueError, RecursionError, ObjectTooLargeError):
        return {}
    return content if isinstance(content, dict) else {}


def _timestamp(content: dict[str, Any]) -> datetime | None:
    try:
        found = datetime.fromisoformat(content["timestamp"])
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
