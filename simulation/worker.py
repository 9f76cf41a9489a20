"""Simulated worker: publishes chunk after chunk by events, until its exit record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from simulation.seams import Bucket
from simulation.timeline import Timeline

SECONDS_PER_CHUNK = 600.0
"""Audio seconds of a chunk."""
RETRY_SECONDS = 20.0
_WORDS = (Word(word="one", start=0.5, end=0.9), Word(word="two", start=1.0, end=1.4))
_SEGMENTS = (Segment(text="one two", start=0.5, end=1.4, words=_WORDS),)


class Kind(Enum):
    """Result of a chunk under a worker."""

    GOOD = "good"
    POISON = "poison"
    KILLER = "killer"
    ENDLESS = "endless"
    FORGOTTEN = "forgotten"
    """Reported as done, but not published."""


@dataclass(frozen=True, slots=True)
class Hands:
    """Callbacks of a worker: result and duration of each chunk, and its network."""

    fate: Callable[[str], Kind]
    seconds: Callable[[], float]
    online: Callable[[], bool]
    torn: Callable[[], bool] = lambda: False
    """True if its next record is unreadable."""
    twice: Callable[[str], object] = lambda _key: None
    """Called with a chunk that was done already."""


class Worker:
    """One worker on a GPU host, until its exit record or death."""

    def __init__(self, line: Timeline, bucket: Bucket, manifest: Manifest, hands: Hands) -> None:
        self.manifest = manifest
        self.alive = True
        self.ended = False
        """True if it wrote its exit record."""
        self.hung = False
        """True if it hangs at a chunk and ignores signals."""
        self._line = line
        self._bucket = bucket
        self._hands = hands
        self._born = line.seconds
        self._sequence = 0
        self._done = 0
        self._failures: list[Failure] = []
        self._then(self._load)

    def die(self) -> None:
        self.alive = False

    def ask_to_end(self) -> None:
        """Ends after the current window; a hung worker ignores this."""
        if self.alive and not self.hung:
            self._line.at(5.0, lambda: self._end(WorkerEnd.STOPPED))

    def _then(self, act: Callable[[], None]) -> None:
        """Plans its next act, unless it is dead by then."""
        self._line.at(self._hands.seconds(), lambda: act() if self.alive else None)

    def _load(self) -> None:
        self._report(Phase.LOADING)
        self._then(lambda: self._work(0))

    def _work(self, index: int) -> None:
        """Finishes a chunk with its result."""
        if not self._hands.online():
            self._line.at(RETRY_SECONDS, lambda: self._work(index) if self.alive else None)
            return
        if self._line.now() >= self.manifest.deadline:
            self._end(WorkerEnd.STOPPED)
            return
        chunk = self.manifest.chunks[index]
        match self._hands.fate(chunk.key):
            case Kind.KILLER:
                self._report(Phase.WORKING, (chunk.key,))
                self.die()
                return
            case Kind.ENDLESS:
                self._report(Phase.WORKING, (chunk.key,))
                self.hung = True
                return
            case Kind.POISON:
                self._fail(chunk)
            case Kind.FORGOTTEN:
                self._done += 1
            case Kind.GOOD:
                self._publish(chunk)
        self._report(Phase.WORKING)
        if index + 1 < len(self.manifest.chunks):
            self._then(lambda: self._work(index + 1))
        else:
            self._line.at(1.0, lambda: self._end(WorkerEnd.FINISHED))

    def _publish(self, chunk: ManifestChunk) -> None:
        transcript = Transcript(
            text="one two",
            segments=_SEGMENTS,
            duration=SECONDS_PER_CHUNK,
            engine="played",
            model="",
            settings_hash="simulated",
            audio=AudioRef(name=chunk.key.rpartition("/")[2], key=chunk.key, etag=chunk.etag),
            run=self.manifest.run,
            created_at=self._line.now(),
        )
        if not self._bucket.create(chunk.transcript, encode(transcript)):
            self._hands.twice(chunk.key)
        self._done += 1

    def _fail(self, chunk: ManifestChunk) -> None:
        failure = Failure(
            key=chunk.key,
            etag=chunk.etag,
            run=self.manifest.run,
            kind=FailureKind.CHUNK,
            message="not audio",
            at=self._line.now(),
        )
        self._failures.append(failure)
        self._bucket.create(keys.attempt(chunk.key, chunk.etag, failure.run), wire.encode(failure))

    @property
    def _tally(self) -> Tally:
        audio = self._done * SECONDS_PER_CHUNK
        return Tally(done=self._done, failed=len(self._failures), audio_seconds=audio)

    @property
    def _timings(self) -> Timings:
        elapsed = self._line.seconds - self._born
        return Timings(loaded=20.0, first_window=21.0, elapsed=elapsed, busy=max(0.0, elapsed - 21.0))

    def _report(self, phase: Phase, in_flight: tuple[str, ...] = ()) -> None:
        self._sequence += 1
        if not self._hands.online():
            return
        progress = Progress(
            run=self.manifest.run,
            worker=self.manifest.worker,
            sequence=self._sequence,
            phase=phase,
            at=self._line.now(),
            total=len(self.manifest.chunks),
            tally=self._tally,
            timings=self._timings,
            in_flight=in_flight,
        )
        place = keys.progress(self.manifest.run, self.manifest.worker)
        self._bucket.replace(place, self._tear(wire.encode(progress)))

    def _end(self, end: WorkerEnd) -> None:
        """Writes its exit record as soon as the store is reachable."""
        if not self.alive:
            return
        if not self._hands.online():
            self._line.at(RETRY_SECONDS, lambda: self._end(end))
            return
        record = ExitRecord(
            run=self.manifest.run,
            worker=self.manifest.worker,
            end=end,
            at=self._line.now(),
            tally=self._tally,
            timings=self._timings,
            failures=tuple(self._failures),
        )
        key = keys.exit_record(record.run, record.worker)
        self._bucket.create(key, self._tear(wire.encode(record)))
        self.alive, self.ended = False, True

    def _tear(self, data: bytes) -> bytes:
        return data[: len(data) // 2] if self._hands.torn() else data


def transcript_of(key: str) -> str:
    """Transcript key of a simulated chunk."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/transcription-{name.removesuffix('.webm')}.json"
