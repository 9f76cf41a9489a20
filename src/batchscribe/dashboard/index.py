"""Index of the sessions, from one listing for all pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import groupby

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import digest_listed, read_session_end
from batchscribe.core.decide.packing import Priors
from batchscribe.core.scan.backlog import ChunkState, ScanRules, is_unreadable, state_of
from batchscribe.core.scan.chunks import show_session
from batchscribe.core.scan.folders import AudioObject
from batchscribe.core.text.transcripts import LONGEST
from batchscribe.protocols import Store

MOST_READ = 5_000
"""Session files read for one index, two requests each; the rest is read for the next ones."""
THREADS = 8
END_BYTES = 32 * 1024
PART_BYTES = 512
"""Bytes of one chunk at the end of a session file: two keys, times and flags."""
STATES = ("complete", "partly transcribed", "not transcribed", "empty")
FLAGS = {
    "being recorded": "the recorder's lock names it; its last chunks may still come",
    "stale": "the audio is newer than its transcript; `batchscribe redo` transcribes it again",
    "quarantined": "its attempts failed for good; `batchscribe quarantine release` retries them",
    "unreadable": "the transcript exists but cannot be read; `batchscribe redo` transcribes it again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDetails:
    """Facts that only the session file has."""

    seconds: float
    flags: tuple[tuple[str, int], ...]
    """Flags of its transcripts, each with its number of chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEntry:
    """One session as listed."""

    session: str
    chunks: int
    done: int
    state: str
    """One of STATES."""
    listed_flags: tuple[tuple[str, int], ...]
    """Those of FLAGS that it has, each with its number of chunks."""
    estimated_seconds: float
    """Its audio, by size and type: the listing has no lengths."""
    newest: datetime
    """Time of its newest chunk."""
    digest: str
    """Of its session file, if that is current and every transcript can be read."""
    details: SessionDetails | None = None

    @property
    def name(self) -> str:
        return show_session(self.session)

    @property
    def complete(self) -> bool:
        """True if every chunk is transcribed."""
        return self.done == self.chunks

    @property
    def missing(self) -> int:
        """Chunks that failed for good."""
        return dict(self.listed_flags).get("quarantined", 0)

    @property
    def seconds(self) -> float:
        return self.details.seconds if self.details else self.estimated_seconds

    @property
    def flags(self) -> tuple[tuple[str, int], ...]:
        return self.listed_flags + (self.details.flags if self.details else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionIndex:
    """All sessions at one time, the newest first."""

    at: datetime
    entries: tuple[SessionEntry, ...]
    by_id: dict[str, SessionEntry]


def make_index(at: datetime, entries: Iterable[SessionEntry]) -> SessionIndex:
    """Orders the sessions."""
    ordered = sorted(entries, key=lambda entry: entry.newest, reverse=True)
    return SessionIndex(at=at, entries=tuple(ordered), by_id={entry.session: entry for entry in ordered})


def build_index(scanner: Scanner, priors: Priors) -> SessionIndex:
    """Lists both stores once. Raises their errors: no index is partial."""
    rules = scanner.rules()
    folders = groupby(scanner.audio(), key=lambda audio: audio.name.folder)
    return make_index(
        rules.now, (entry for _folder, found in folders for entry in _list_entries(found, rules, priors))
    )


def keep_details(index: SessionIndex, before: SessionIndex | None) -> SessionIndex:
    """The index, with an earlier one's details of unchanged session files."""
    if before is None:
        return index
    known = {(entry.session, entry.digest): entry.details for entry in before.entries}
    return make_index(
        index.at,
        (replace(entry, details=known.get((entry.session, entry.digest))) for entry in index.entries),
    )


def read_details(index: SessionIndex, output: Store) -> SessionIndex:
    """Adds the details of the newest complete sessions, up to MOST_READ."""
    wanted = [entry for entry in index.entries if entry.complete and not entry.details][:MOST_READ]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="details") as pool:
        found = dict(
            zip(
                (entry.session for entry in wanted), pool.map(partial(_read_one, output), wanted), strict=True
            )
        )
    entries = (replace(entry, details=found.get(entry.session, entry.details)) for entry in index.entries)
    return make_index(index.at, entries)


def _read_one(output: Store, entry: SessionEntry) -> SessionDetails | None:
    end = read_session_end(output, entry.session, entry.digest, END_BYTES + entry.chunks * PART_BYTES)
    if end is None or not 0 <= end.duration <= LONGEST:
        return None
    counted = Counter(flag for part in end.parts for flag in part.flags)
    return SessionDetails(seconds=end.duration, flags=tuple(counted.most_common()))


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
        listed_flags=tuple((flag, count) for flag, count in counts.items() if count),
        estimated_seconds=sum(priors.estimate_seconds(audio.info.key, audio.info.size) for audio in own),
        newest=max(audio.info.modified for audio in own),
        digest=digest_listed(own),
    )


def _name_state(done: int, left: int) -> str:
    if not done:
        return "not transcribed"
    return "partly transcribed" if left else "complete"
