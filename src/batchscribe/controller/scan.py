"""Scan of the stores, as sessions and as a backlog."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from batchscribe.controller.previous_failures import read_past_attempts
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan.backlog import Backlog, LiveLock, ScanRules, SessionScan, scan_sessions, summarise
from batchscribe.core.scan.chunks import TOP, passed_over, split_key
from batchscribe.core.scan.folders import AudioObject, Side, Tagged, audio_folders, merge_listings
from batchscribe.core.text.transcripts import Transcript
from batchscribe.errors import ObjectNotFoundError, ObjectTooLargeError, PermanentError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import read_transcript

MIN_AGE = timedelta(minutes=5)
LOCK_STALE_AFTER = timedelta(minutes=30)
MAX_LOCK_BYTES = 65_536
KEEP_ALIVE_EVERY = 1000
"""Objects of a listing."""


def no_lock() -> LiveLock | None:
    """No recorder writes a live lock here."""
    return None


@dataclass(eq=False)
class Scanner:
    """Lists source and output; a failed listing raises, none is partial."""

    source: Store
    output: Store
    _: KW_ONLY
    clock: Clock
    min_age: timedelta = MIN_AGE
    live_lock: Callable[[], LiveLock | None] = no_lock
    longest_lock: timedelta | None = None
    """A chunk older than this is not held back by a live lock."""
    decoder: str | None = None
    """The current version: failures with another one do not count."""
    max_attempts: int = 3
    keep_alive: Callable[[], None] = lambda: None
    """Called during a listing, which may take longer than a step may."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """ETags of transcripts that could not be read before, by their keys."""
    only: frozenset[str] = frozenset()
    list_all: Callable[[Store, str], Iterator[ObjectInfo]] = lambda store, prefix: store.list(prefix)
    """Lists a whole store or folder: as `Store.list` does, by several requests at once."""
    _passed_over: Counter[str] = field(default_factory=Counter, init=False)

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
        now = self.clock.now()
        self._passed_over.clear()
        return ScanRules(
            now=now,
            min_age=self.min_age,
            live=self.live_lock(),
            overdue=now - self.longest_lock if self.longest_lock is not None else None,
            max_attempts=self.max_attempts,
            trouble=read_past_attempts(self.output, self.decoder),
            unreadable=self.unreadable,
            owner=self._read_owner,
            leave_out=self._leave_out,
        )

    def sessions(self, prefix: str = "") -> Iterator[SessionScan]:
        """Streams every session, or those in `only`, below a whole folder."""
        rules = self.rules()
        found = scan_sessions(self._list_tagged(prefix), rules)
        yield from (scan for scan in found if scan.session in self.only) if self.only else found

    def backlog(self) -> Backlog:
        return summarise(self.sessions(), lambda: self.odd_keys, lambda: self.passed_over)

    def audio(
        self, prefix: str = "", *, leave_out: Callable[[str], None] | None = None
    ) -> Iterator[AudioObject]:
        """Streams every audio object with its transcripts, below a whole folder.

        `leave_out` gets the keys of the source that are neither audio nor a transcript.
        """
        for folder in audio_folders(
            self._list_tagged(prefix), self._read_owner, leave_out or self._leave_out
        ):
            yield from folder

    def session_audio(
        self, session: str, *, leave_out: Callable[[str], None] | None = None
    ) -> Iterator[AudioObject]:
        """Streams the audio objects of one session; `leave_out` as for `audio`."""
        folder = "" if session == TOP else split_key(session)[0]
        found = self.audio(folder, leave_out=leave_out)
        return (audio for audio in found if audio.name.session == session)

    def store_of(self, side: Side) -> Store:
        return self.source if side is Side.SOURCE else self.output

    @property
    def _one_store(self) -> bool:
        return self.source is self.output or self.source.url == self.output.url

    def _list_tagged(self, prefix: str) -> Iterator[Tagged]:
        source = self.list_all(self.source, prefix)
        listed = merge_listings(source, None if self._one_store else self.list_all(self.output, prefix))
        while some := list(islice(listed, KEEP_ALIVE_EVERY)):
            self.keep_alive()
            yield from some

    def _read_owner(self, transcript: str) -> str | None:
        for store in (self.output, self.source):
            try:
                found = read_transcript(store, transcript)
            except ObjectNotFoundError:
                continue
            except PermanentError:
                return None
            return found.audio.name if isinstance(found, Transcript) else None
        return None


def read_live_lock(store: Store, key: str, now: datetime) -> LiveLock | None:
    """Reads a recorder's lock; None without one, or if it is stale.

    A fresh lock that cannot be read covers all sessions: waiting costs minutes, but a transcript of half a
    recording would stay.
    """
    info = next((info for info in store.list(key) if info.key == key), None)
    if info is None or now - info.modified >= LOCK_STALE_AFTER:
        return None
    try:
        content = _read_content(store, info)
    except ObjectNotFoundError:
        return None
    since = min(info.modified, _parse_timestamp(content) or info.modified)
    if content.get("locked") is False or now - since >= LOCK_STALE_AFTER:
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


def _parse_timestamp(content: dict[str, Any]) -> datetime | None:
    try:
        found = datetime.fromisoformat(content["timestamp"])
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
