"""Index of the sessions: one listing of source and output, kept for all pages."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import digest_listed
from batchscribe.core.decide.packing import Priors
from batchscribe.core.scan.backlog import ChunkState, ScanRules, is_unreadable, state_of
from batchscribe.core.scan.folders import AudioObject
from batchscribe.dashboard.reader import show_session
from batchscribe.errors import BatchscribeError
from batchscribe.protocols import Clock

MAX_AGE = timedelta(minutes=5)
"""Age from which a page has the index made again in the background."""
PAUSE = timedelta(seconds=15)
"""Shortest time between two listings, however often users ask."""
STATES = ("complete", "partly transcribed", "not transcribed", "empty")
FLAGS = ("being recorded", "stale", "quarantined", "unreadable")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEntry:
    """One session as listed."""

    session: str
    chunks: int
    done: int
    state: str
    """One of STATES."""
    flags: tuple[tuple[str, int], ...]
    """Those of FLAGS that it has, each with its number of chunks."""
    seconds: float
    """Estimated audio, by size and type: the listing has no lengths."""
    newest: datetime
    """Time of its newest chunk."""
    digest: str
    """Of its session file, if that is current and every transcript can be read."""

    @property
    def name(self) -> str:
        return show_session(self.session)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionIndex:
    """All sessions at one time, the newest first."""

    at: datetime
    entries: tuple[SessionEntry, ...]
    by_id: dict[str, SessionEntry]


def build_index(scanner: Scanner, priors: Priors) -> SessionIndex:
    """Lists both stores once. Raises what their listings raise: no index is partial."""
    rules = scanner.rules()
    folders = groupby(scanner.audio(), key=lambda audio: audio.name.folder)
    entries = [entry for _folder, found in folders for entry in _list_entries(found, rules, priors)]
    entries.sort(key=lambda entry: entry.newest, reverse=True)
    return SessionIndex(
        at=rules.now, entries=tuple(entries), by_id={entry.session: entry for entry in entries}
    )


def _list_entries(folder: Iterator[AudioObject], rules: ScanRules, priors: Priors) -> Iterator[SessionEntry]:
    sessions: dict[str, list[AudioObject]] = {}
    for audio in folder:
        sessions.setdefault(audio.name.session, []).append(audio)
    for session, own in sessions.items():
        yield _make_entry(session, own, rules, priors)


def _make_entry(session: str, own: Sequence[AudioObject], rules: ScanRules, priors: Priors) -> SessionEntry:
    states = Counter(state_of(audio, rules) for audio in own)
    done, empty = states[ChunkState.DONE], states[ChunkState.EMPTY]
    left = states[ChunkState.PENDING] + states[ChunkState.WAITING]
    live = rules.live is not None and rules.live.covers(session)
    counts = {
        "being recorded": len(own) if live else 0,
        "stale": sum(audio.stale for audio in own),
        "quarantined": states[ChunkState.QUARANTINED],
        "unreadable": sum(is_unreadable(audio, rules) for audio in own if audio.info.size),
    }
    return SessionEntry(
        session=session,
        chunks=len(own),
        done=done,
        state="empty" if empty == len(own) else _name_state(done, left),
        flags=tuple((flag, count) for flag, count in counts.items() if count),
        seconds=sum(priors.estimate_seconds(audio.info.key, audio.info.size) for audio in own),
        newest=max(audio.info.modified for audio in own),
        digest=digest_listed(own),
    )


def _name_state(done: int, left: int) -> str:
    if not done:
        return "not transcribed"
    return "partly transcribed" if left else "complete"


@dataclass(slots=True)
class IndexKeeper:
    """Makes the index in a thread of its own and keeps the last one. Thread-safe."""

    make: Callable[[], SessionIndex]
    clock: Clock
    index: SessionIndex | None = None
    problem: str = ""
    """Error of the last listing; the index before it stays."""
    _started: datetime | None = None
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def busy(self) -> bool:
        """True while a listing is under way."""
        return self._thread is not None and self._thread.is_alive()

    def read(self, *, wait: float = 1.0) -> SessionIndex | None:
        """Returns the last index, at most `wait` seconds later if there is none yet; renews an old one."""
        if self.index is None or self.clock.now() - self.index.at > MAX_AGE:
            self.refresh()
        if self.index is None and self._thread is not None:
            self._thread.join(wait)
        return self.index

    def refresh(self) -> None:
        """Begins a listing, unless one is under way or has just begun."""
        with self._lock:
            now = self.clock.now()
            if self.busy or (self._started is not None and now - self._started < PAUSE):
                return
            self._started = now
            self._thread = threading.Thread(target=self._build, name="index", daemon=True)
            self._thread.start()

    def _build(self) -> None:
        try:
            self.index, self.problem = self.make(), ""
        except BatchscribeError as error:
            self.problem = str(error)
        except Exception as error:
            self.problem = f"internal error: {type(error).__name__}"
            raise
