"""Index of the sessions: one listing of source and output, kept for all pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import digest_listed
from batchscribe.core.decide.packing import Priors
from batchscribe.core.scan.backlog import ChunkState, ScanRules, is_unreadable, state_of
from batchscribe.core.scan.folders import AudioObject
from batchscribe.dashboard.reader import show_session

STATES = ("complete", "partly transcribed", "not transcribed", "empty")
FLAGS = {
    "being recorded": "the recorder's lock names it; its last chunks may still come",
    "stale": "the audio is newer than its transcript; `batchscribe redo` transcribes it again",
    "quarantined": "its attempts failed for good; `batchscribe quarantine release` retries them",
    "unreadable": "the transcript exists but cannot be read; `batchscribe redo` transcribes it again",
}


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
