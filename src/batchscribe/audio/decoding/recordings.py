"""Repairs chunks without a header, from earlier chunks in the same folder.

These need not be in the manifest: the first chunk of a recording may have been transcribed long ago. Chunks
with a header need no fetch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from batchscribe.audio.decoding.containers import (
    Recording,
    Repaired,
    Shape,
    detect_shape,
    parse_recording,
    repair_chunk,
)
from batchscribe.core.scan.chunks import audio_name
from batchscribe.errors import AudioError, ObjectArchivedError, ObjectNotFoundError, ObjectTooLargeError
from batchscribe.protocols import Store

LOOK_BACK = 32
"""Most chunks in one cluster; further back, only the first chunk is read."""
FIRST = (1, 0)
"""Possible numbers of a folder's first chunk."""
PIECES = frozenset({Shape.CLUSTER, Shape.BLOCK, Shape.FRAGMENT, Shape.STUB})
KEPT = 8
"""States kept per session, because chunks may be decoded slightly out of order."""


@dataclass(slots=True)
class _RecordingSession:
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: dict[int, Recording] = field(default_factory=dict)


class Recordings:
    """Keeps the state after the last chunks of each session. Thread-safe."""

    def __init__(self, source: Store, *, limit: int | None = None) -> None:
        """`limit`: chunks of more bytes count as missing."""
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self._sessions: dict[str, _RecordingSession] = {}

    def repair(self, key: str, data: bytes) -> Repaired:
        """Completes a chunk to be decodable. Raises AudioError if that is impossible.

        Raises what the store raises, too, except for missing chunks.
        """
        name, begins = audio_name(key), detect_shape(data)
        if name is None or (number := name.number) is None:
            return _check_end(repair_chunk(data), lambda: None)
        if not _may_be_piece(begins, name.type):
            return _check_end(repair_chunk(data), lambda: self._fetch_chunk(key, number + 1))
        with self._lock:
            session = self._sessions.setdefault(name.session, _RecordingSession())
        with session.lock:
            found = repair_chunk(data, self._state_before(session, key, number))
            if found.seen:
                session.seen[number] = found.seen
                for old in [back for back in session.seen if back < number - KEPT]:
                    del session.seen[old]
        return _check_end(found, lambda: self._fetch_chunk(key, number + 1))

    def _state_before(self, session: _RecordingSession, key: str, number: int) -> Recording | None:
        """State after the previous chunk, or at least its recording's header."""
        earlier: list[bytes] = []
        for back in range(number - 1, max(-1, number - 1 - LOOK_BACK), -1):
            if back in session.seen:
                return _fold_state(session.seen[back], earlier)
            if (data := self._fetch_chunk(key, back)) is None:
                return _fold_state(
                    self._find_header(key, range(back - 1, max(-1, back - LOOK_BACK), -1)), earlier
                )
            if (begun := parse_recording(data)) is not None:
                return _fold_state(begun, earlier)
            earlier.append(data)
        return _fold_state(self._find_header(key, FIRST), earlier)

    def _find_header(self, key: str, numbers: range | tuple[int, ...]) -> Recording | None:
        """State with the nearest chunk's header only; later state is lost."""
        for number in (*numbers, *FIRST):
            data = self._fetch_chunk(key, number)
            if data is not None and (begun := parse_recording(data)) is not None:
                return Recording(begun.header, delay=begun.delay)
        return None

    def _fetch_chunk(self, key: str, number: int) -> bytes | None:
        for name in list_chunk_keys(key, number):
            try:
                return self._source.get(name, limit=self._limit).data
            except (ObjectNotFoundError, ObjectTooLargeError):
                continue
        return None


def may_lack_header(key: str) -> bool:
    """True if its previous chunk may still come, with the missing header."""
    name = audio_name(key)
    return name is not None and name.number is not None and name.type == "webm"


def _check_end(found: Repaired, following: Callable[[], bytes | None]) -> Repaired:
    """Marks a chunk as torn unless the next continues its cut block."""
    if found.seen is None or not found.seen.cut_through:
        return found
    try:
        data = following()
    except ObjectArchivedError:
        data = None
    goes_on = data is not None and found.seen.continues_in(data)
    return replace(found, torn=found.torn or not goes_on)


def _may_be_piece(begins: Shape, extension: str) -> bool:
    """True if it may lack a header, unlike most unknown formats."""
    return begins in PIECES or (begins is Shape.TORN and extension == "webm")


def list_chunk_keys(key: str, number: int) -> Iterator[str]:
    """Yields possible keys of chunk `number` in the same folder."""
    name = audio_name(key)
    assert name is not None
    digits = name.stem.removeprefix("chunk-")
    for written in dict.fromkeys((str(number).zfill(len(digits)), str(number))):
        yield f"{name.folder}chunk-{written}.{name.name.rpartition('.')[2]}"


def _fold_state(state: Recording | None, earlier: list[bytes]) -> Recording | None:
    """State after the chunks in between, given newest first."""
    for data in reversed(earlier):
        try:
            state = repair_chunk(data, state).seen or state
        except AudioError:
            state = state and Recording(state.header, delay=state.delay)
    return state
