"""A worker without an engine, which works by a fake clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import (
    ExitRecord,
    Failure,
    FailureKind,
    Manifest,
    ManifestChunk,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
)
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript, Word, encode
from batchscribe.protocols import Store
from batchscribe.testing.clock import FakeClock

RETRY_SECONDS = 20.0
STOP_SECONDS = 5.0
"""Time of the window that a worker finishes before it ends."""
_WORDS = (Word(word="one", start=0.5, end=0.9), Word(word="two", start=1.0, end=1.4))
_SEGMENTS = (Segment(text="one two", start=0.5, end=1.4, words=_WORDS),)


class ChunkFate(Enum):
    """Result of a chunk under a worker."""

    GOOD = "good"
    POISON = "poison"
    KILLER = "killer"
    ENDLESS = "endless"
    FORGOTTEN = "forgotten"
    """Reported as done, but not published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerScript:
    """Course of a worker: its chunks, its network and its end."""

    seconds: Callable[[], float] = lambda: 2.0
    """Duration of the next act: loading the model, or a chunk."""
    longest_load: float = math.inf
    """Maximum duration of loading the model."""
    fate: Callable[[str], ChunkFate] = lambda _key: ChunkFate.GOOD
    online: Callable[[], bool] = lambda: True
    torn: Callable[[], bool] = lambda: False
    """True if its next record is unreadable."""
    ignores_end: Callable[[], bool] = lambda: False
    """True if it ignores its deadline and a request to end."""
    published: Callable[[str], object] = lambda _key: None
    """Called with each chunk that it published."""
    published_before: Callable[[str], object] = lambda _key: None
    """Called with each chunk that was done already."""
    end: Callable[[], tuple[WorkerEnd, str]] = lambda: (WorkerEnd.FINISHED, "")
    """Its end after the last chunk, and the message of its exit record."""
    audio_seconds: float = 10.0
    """Duration of each chunk."""
    loaded: float = 1.0
    """Reported seconds until the model was loaded; its first window takes a second more."""


class PlayedWorker:
    """One worker on a GPU host, until its exit record or death."""

    def __init__(self, clock: FakeClock, store: Store, manifest: Manifest, script: WorkerScript) -> None:
        self.manifest = manifest
        self.alive = True
        self.ended = False
        """True if it wrote its exit record."""
        self.hung = False
        """True if it hangs at a chunk and ignores signals."""
        self._clock = clock
        self.store = store
        self._script = script
        self._born = clock.seconds
        self._sequence = 0
        self._done = 0
        self._failures: list[Failure] = []
        self._plan_act(self._load_model, script.longest_load)

    def die(self) -> None:
        self.alive = False

    def ask_to_end(self) -> None:
        """Ends after the current window; a hung worker ignores this."""
        if self.alive and not self.hung and not self._script.ignores_end():
            self._clock.at(STOP_SECONDS, lambda: self.end(WorkerEnd.STOPPED))

    def end(self, end: WorkerEnd, message: str = "") -> None:
        """Writes its exit record as soon as the store is reachable."""
        if not self.alive:
            return
        if not self._script.online():
            self._clock.at(RETRY_SECONDS, lambda: self.end(end, message))
            return
        record = ExitRecord(
            run=self.manifest.run,
            worker=self.manifest.worker,
            end=end,
            message=message,
            at=self._clock.now(),
            tally=self._current_tally,
            timings=self._current_timings,
            failures=tuple(self._failures),
        )
        key = keys.exit_record(record.run, record.worker)
        self.store.create(key, self._tear_record(wire.encode(record)))
        self.alive, self.ended = False, True

    def _plan_act(self, act: Callable[[], None], longest: float = math.inf) -> None:
        """Plans its next act, unless it is dead by then."""
        self._clock.at(min(self._script.seconds(), longest), lambda: act() if self.alive else None)

    def _load_model(self) -> None:
        self._report_progress(Phase.LOADING)
        self._plan_act(lambda: self._process_chunk(0))

    def _process_chunk(self, index: int) -> None:
        """Finishes a chunk with its result."""
        if not self._script.online():
            self._clock.at(RETRY_SECONDS, lambda: self._process_chunk(index) if self.alive else None)
            return
        if self._clock.now() >= self.manifest.deadline and not self._script.ignores_end():
            self.end(WorkerEnd.STOPPED)
            return
        chunk = self.manifest.chunks[index]
        match self._script.fate(chunk.key):
            case ChunkFate.KILLER:
                self._report_progress(Phase.WORKING, (chunk.key,))
                self.die()
                return
            case ChunkFate.ENDLESS:
                self._report_progress(Phase.WORKING, (chunk.key,))
                self.hung = True
                return
            case ChunkFate.POISON:
                self._fail_chunk(chunk)
            case ChunkFate.FORGOTTEN:
                self._done += 1
            case ChunkFate.GOOD:
                self._publish_chunk(chunk)
        self._report_progress(Phase.WORKING)
        if index + 1 < len(self.manifest.chunks):
            self._plan_act(lambda: self._process_chunk(index + 1))
        else:
            self._clock.at(1.0, lambda: self.end(*self._script.end()))

    def _publish_chunk(self, chunk: ManifestChunk) -> None:
        transcript = make_transcript(
            chunk, self.manifest, at=self._clock.now(), seconds=self._script.audio_seconds
        )
        created = self.store.create(chunk.transcript, encode(transcript))
        (self._script.published if created else self._script.published_before)(chunk.key)
        self._done += 1

    def _fail_chunk(self, chunk: ManifestChunk) -> None:
        failure = Failure(
            key=chunk.key,
            etag=chunk.etag,
            run=self.manifest.run,
            kind=FailureKind.CHUNK,
            message="not audio",
            at=self._clock.now(),
        )
        self._failures.append(failure)
        self.store.create(keys.attempt(chunk.key, chunk.etag, failure.run), wire.encode(failure))

    @property
    def _current_tally(self) -> Tally:
        audio = self._done * self._script.audio_seconds
        return Tally(done=self._done, failed=len(self._failures), audio_seconds=audio)

    @property
    def _current_timings(self) -> Timings:
        elapsed = self._clock.seconds - self._born
        loaded, first = self._script.loaded, self._script.loaded + 1.0
        return Timings(loaded=loaded, first_window=first, elapsed=elapsed, busy=max(0.0, elapsed - first))

    def _report_progress(self, phase: Phase, in_flight: tuple[str, ...] = ()) -> None:
        self._sequence += 1
        if not self._script.online():
            return
        progress = Progress(
            run=self.manifest.run,
            worker=self.manifest.worker,
            sequence=self._sequence,
            phase=phase,
            at=self._clock.now(),
            total=len(self.manifest.chunks),
            tally=self._current_tally,
            timings=self._current_timings,
            in_flight=in_flight,
        )
        place = keys.progress(self.manifest.run, self.manifest.worker)
        self.store.replace(place, self._tear_record(wire.encode(progress)))

    def _tear_record(self, data: bytes) -> bytes:
        return data[: len(data) // 2] if self._script.torn() else data


def make_transcript(
    chunk: ManifestChunk, manifest: Manifest, *, at: datetime, seconds: float = 10.0
) -> Transcript:
    """Transcript of two words."""
    return Transcript(
        text="one two",
        segments=_SEGMENTS,
        duration=seconds,
        engine="played",
        model="",
        settings_hash=manifest.settings_hash,
        audio=AudioRef(name=chunk.key.rpartition("/")[2], key=chunk.key, etag=chunk.etag),
        run=manifest.run,
        created_at=at,
    )
