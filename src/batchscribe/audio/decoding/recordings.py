"""What a chunk without a header lacks, found in the chunks of its folder that came before it.

They need not be in the manifest: the first chunk of a recording may have been transcribed long ago. Nothing
is fetched for chunks that have a header.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from batchscribe.audio.decoding.containers import Recording, Repaired, Shape, recording, repair, shape
from batchscribe.core.scan.chunks import audio_name
from batchscribe.errors import AudioError, ObjectArchivedError, ObjectNotFoundError, ObjectTooLargeError
from batchscribe.protocols import Store

LOOK_BACK = 32
"""A cluster is not longer than so many chunks; further back only the first chunk is looked at."""
FIRST = (1, 0)
"""Numbers that the first chunk of a folder may have."""
PIECES = frozenset({Shape.CLUSTER, Shape.BLOCK, Shape.FRAGMENT, Shape.STUB})
KEPT = 8
"""Chunks may be decoded a little out of order."""


@dataclass(slots=True)
class _Session:
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: dict[int, Recording] = field(default_factory=dict)


class Recordings:
    """Remembers for each session what its last chunks left behind. For any thread."""

    def __init__(self, source: Store, *, limit: int | None = None) -> None:
        """A chunk of more than `limit` bytes counts as missing."""
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}

    def repaired(self, key: str, data: bytes) -> Repaired:
        """The chunk as it can be decoded by itself. Raises AudioError where it cannot be.

        Raises what the store raises, but for chunks that are missing.
        """
        name, begins = audio_name(key), shape(data)
        if name is None or (number := name.number) is None:
            return _ended(repair(data), lambda: None)
        if not _may_be_piece(begins, name.type):
            return _ended(repair(data), lambda: self._fetched(key, number + 1))
        with self._lock:
            session = self._sessions.setdefault(name.session, _Session())
        with session.lock:
            found = repair(data, self._before(session, key, number))
            if found.seen:
                session.seen[number] = found.seen
                for old in [back for back in session.seen if back < number - KEPT]:
                    del session.seen[old]
        return _ended(found, lambda: self._fetched(key, number + 1))

    def _before(self, session: _Session, key: str, number: int) -> Recording | None:
        """What the chunk before this one left behind, or at least the header of its recording."""
        earlier: list[bytes] = []
        for back in range(number - 1, max(-1, number - 1 - LOOK_BACK), -1):
            if back in session.seen:
                return _folded(session.seen[back], earlier)
            if (data := self._fetched(key, back)) is None:
                return _folded(self._header(key, range(back - 1, max(-1, back - LOOK_BACK), -1)), earlier)
            if (begun := recording(data)) is not None:
                return _folded(begun, earlier)
            earlier.append(data)
        return _folded(self._header(key, FIRST), earlier)

    def _header(self, key: str, numbers: range | tuple[int, ...]) -> Recording | None:
        """The header alone, of the nearest chunk that has one: what was in between is lost."""
        for number in (*numbers, *FIRST):
            data = self._fetched(key, number)
            if data is not None and (begun := recording(data)) is not None:
                return Recording(begun.header, delay=begun.delay)
        return None

    def _fetched(self, key: str, number: int) -> bytes | None:
        for name in named(key, number):
            try:
                return self._source.get(name, limit=self._limit).data
            except (ObjectNotFoundError, ObjectTooLargeError):
                continue
        return None


def may_lack_header(key: str) -> bool:
    """True if the chunk that it goes on from may still come: what cannot be decoded now may be then."""
    name = audio_name(key)
    return name is not None and name.number is not None and name.type == "webm"


def _ended(found: Repaired, following: Callable[[], bytes | None]) -> Repaired:
    """With the truth about its end: what is cut through is lost, unless the next chunk goes on with it."""
    if found.seen is None or not found.seen.cut_through:
        return found
    try:
        data = following()
    except ObjectArchivedError:
        data = None
    goes_on = data is not None and found.seen.goes_on_with(data)
    return replace(found, torn=found.torn or not goes_on)


def _may_be_piece(begins: Shape, extension: str) -> bool:
    """Whether to look for what it lacks. Most of what begins in no known way is simply of another kind."""
    return begins in PIECES or (begins is Shape.TORN and extension == "webm")


def named(key: str, number: int) -> Iterator[str]:
    """What a chunk of that number beside this one may be called."""
    name = audio_name(key)
    assert name is not None
    digits = name.stem.removeprefix("chunk-")
    for written in dict.fromkeys((str(number).zfill(len(digits)), str(number))):
        yield f"{name.folder}chunk-{written}.{name.name.rpartition('.')[2]}"


def _folded(state: Recording | None, earlier: list[bytes]) -> Recording | None:
    """What is left behind after chunks in between, given newest first."""
    for data in reversed(earlier):
        try:
            state = repair(data, state).seen or state
        except AudioError:
            state = state and Recording(state.header, delay=state.delay)
    return state
