"""Threads ahead of the engine: fetch and decode chunks into pipes.

Everything is bounded: bytes that are not decoded yet, and audio that is not transcribed yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from batchscribe.audio.audio_decoder import AudioDecoder, Decoding
from batchscribe.audio.bounded_queue import ByteBudget
from batchscribe.audio.decoding.containers import Repaired
from batchscribe.audio.decoding.recordings import Recordings, may_lack_header
from batchscribe.core.run.manifest import FailureKind, Limits, Manifest, ManifestChunk
from batchscribe.errors import (
    AudioError,
    BatchscribeError,
    InterruptedRunError,
    MisconfiguredError,
    ObjectArchivedError,
    ObjectNotFoundError,
    PermanentError,
    TransientError,
    UnsupportedAudioError,
)
from batchscribe.protocols import Clock, Store
from batchscribe.worker.progress import Ending, ProgressTracker
from batchscribe.worker.records import Records
from batchscribe.worker.sounds import Absent, Broken, Pipe, Pipes, Sound, Whole

T = TypeVar("T")

FETCHED_BYTES = 256 * 1024 * 1024
FETCHED_CHUNKS = 32
LONG = 8 * 1024 * 1024
"""Bytes: half an hour of a browser's recording. Shorter ones keep the manifest's order, oldest first."""
DECODED_CHUNKS = 8
"""Chunks that each decoder may be ahead of the timelines; at most a minute of each is held."""


@dataclass(frozen=True, slots=True)
class SessionQueue:
    """Ordered chunks of one session; `places` are indexes in the manifest."""

    places: tuple[int, ...]
    alone: bool = False
    """It failed before: its windows contain no other chunk."""


def queue_sessions(chunks: Sequence[ManifestChunk]) -> tuple[SessionQueue, ...]:
    """The manifest's chunks by session: long recordings first, previously failed chunks last.

    If a long recording starts late, one core decodes it while all others wait.
    """
    sessions: dict[str, list[int]] = {}
    for place, chunk in enumerate(chunks):
        if not chunk.previously_failed:
            sessions.setdefault(chunk.session, []).append(place)
    longest = sorted(sessions.values(), key=lambda places: -(max(chunks[n].size for n in places) // LONG))
    failed_before = [place for place, chunk in enumerate(chunks) if chunk.previously_failed]
    return (
        *(SessionQueue(tuple(places)) for places in longest),
        *(SessionQueue((place,), alone=True) for place in failed_before),
    )


class WorkQueue(Generic[T]):
    """Thread-safe queue that waits for room before each item."""

    def __init__(self, order: Sequence[T], room: Callable[[T], bool] = lambda _item: True) -> None:
        self._rest = iter(order)
        self._room = room
        self._lock = threading.Lock()

    def take_next(self) -> T | None:
        """The next item; None after the last or at the worker's end."""
        with self._lock:
            item = next(self._rest, None)
            return item if item is not None and self._room(item) else None


@dataclass(frozen=True, slots=True)
class PipelineState:
    """State that the stages share."""

    manifest: Manifest
    ending: Ending
    tracker: ProgressTracker
    records: Records
    sessions: tuple[SessionQueue, ...]
    pipes: Pipes
    budget: ByteBudget
    fetched: ByteBudget
    decoded: ByteBudget

    @classmethod
    def create(
        cls,
        manifest: Manifest,
        ending: Ending,
        *,
        output: Store,
        clock: Clock,
        decoders: int,
        begun: float | None = None,
    ) -> PipelineState:
        tracker = ProgressTracker(manifest, clock, begun)
        return cls(
            manifest,
            ending,
            tracker,
            records=Records(manifest, output, tracker, ending, clock),
            sessions=queue_sessions(manifest.chunks),
            pipes=Pipes(ending.is_due),
            budget=ByteBudget(FETCHED_BYTES),
            fetched=ByteBudget(FETCHED_CHUNKS),
            decoded=ByteBudget(DECODED_CHUNKS * decoders),
        )

    def queue_chunks(self, room: Callable[[int], bool]) -> WorkQueue[int]:
        return WorkQueue([place for session in self.sessions for place in session.places], room)

    def reserve_fetch(self, place: int) -> bool:
        """Waits for room for a chunk's bytes; False when the worker ends."""
        due, size = self.ending.is_due, self.manifest.chunks[place].size
        return not due() and self.fetched.take(1, due) and self.budget.take(size, due)

    def reserve_decoding(self, _place: int) -> bool:
        """Waits for room for a chunk's audio; False when the worker ends."""
        return not self.ending.is_due() and self.decoded.take(1, self.ending.is_due)

    def release_audio(self, place: int) -> None:
        """Releases a chunk's pipe and room, its audio taken or dropped."""
        self.pipes.leave(place)
        self.decoded.give(1)


class Fetcher:
    """Fetches the chunks' bytes; several threads run it at once."""

    def __init__(self, state: PipelineState, source: Store) -> None:
        self._state = state
        self._queue = state.queue_chunks(state.reserve_fetch)
        self._source = source

    def run(self) -> None:
        while (place := self._queue.take_next()) is not None:
            data = self._fetch_chunk(self._state.manifest.chunks[place])
            pipe = self._state.pipes.get(place)
            if data is None:
                pipe.close(Absent())
            else:
                pipe.put_bytes(data)

    def _fetch_chunk(self, chunk: ManifestChunk) -> bytes | None:
        """Fetches the chunk's bytes; records the reason and returns None without them."""
        try:
            if self._state.records.has_transcript(chunk):
                self._state.tracker.record_skipped()
                return None
            return self._read_bytes(chunk, self._state.manifest.limits)
        except MisconfiguredError as error:
            # Without the right to read one object, all others would fail the same way.
            self._state.ending.fail(error)
        except BatchscribeError as error:
            self._state.records.record_failure(chunk, _failure_kind(error), str(error))
        return None

    def _read_bytes(self, chunk: ManifestChunk, limits: Limits) -> bytes:
        if chunk.size > limits.max_object_bytes:
            raise AudioError(
                f"larger than the limit of {limits.max_object_bytes / 2**20:g} MB (BATCH_MAX_OBJECT_MB)"
            )
        blob = self._source.get(chunk.key, limit=limits.max_object_bytes)
        if blob.etag != chunk.etag:
            raise ObjectNotFoundError(
                "the audio was replaced after the manifest was written: a later run transcribes it"
            )
        return blob.data


def _failure_kind(error: BatchscribeError) -> FailureKind:
    """Kind of failure of a chunk without bytes or audio."""
    match error:
        case ObjectArchivedError():
            return FailureKind.ARCHIVED
        case ObjectNotFoundError():
            return FailureKind.CHANGED
        case TransientError():
            return FailureKind.MACHINE
        case UnsupportedAudioError():
            return FailureKind.REFUSED
        case PermanentError():
            return FailureKind.CHUNK
    return FailureKind.MACHINE


class Preparer:
    """Decodes fetched chunks in several threads, each with its own decoder."""

    def __init__(
        self, state: PipelineState, recordings: Recordings, new_decoder: Callable[[], AudioDecoder]
    ) -> None:
        self._state = state
        self._queue = state.queue_chunks(state.reserve_decoding)
        self._recordings = recordings
        self._new_decoder = new_decoder

    def run(self) -> None:
        try:
            with self._new_decoder() as decoder:
                while (place := self._queue.take_next()) is not None:
                    self._process_chunk(decoder, place)
        except InterruptedRunError:
            return

    def _process_chunk(self, decoder: AudioDecoder, place: int) -> None:
        chunk, pipe = self._state.manifest.chunks[place], self._state.pipes.get(place)
        try:
            with self._state.tracker.note_waiting("fetch"):
                fetched = pipe.wait_for_bytes()
            self._state.fetched.give(1)
            if fetched:
                self._decode_named(decoder, chunk, pipe)
        finally:
            self._state.budget.give(chunk.size)
            self._state.pipes.leave(place)

    def _decode_named(self, decoder: AudioDecoder, chunk: ManifestChunk, pipe: Pipe) -> None:
        """Decodes a chunk, in flight meanwhile: its decoder may kill the worker."""
        self._state.tracker.add_in_flight(chunk.key)
        try:
            self._decode_chunk(decoder, chunk.key, pipe)
        except (AudioError, TransientError, ObjectArchivedError) as error:
            kind = _failure_kind(error)
            if kind.final and may_lack_header(chunk.key):
                kind = FailureKind.CHUNK
            pipe.close(Broken(str(error), kind))
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            # The decoder is missing on this machine: a failure of the worker, not of a chunk.
            self._state.ending.fail(error)
        finally:
            self._state.tracker.remove_in_flight(chunk.key)

    def _decode_chunk(self, decoder: AudioDecoder, key: str, pipe: Pipe) -> None:
        sound = self._recordings.repair(key, pipe.take_bytes())
        if sound.empty:
            pipe.close(Whole(0.0, partial=False, repaired=False))
            return
        decoding, repaired = self._start_decoding(decoder, sound), replace(sound, data=b"", seen=None)
        del sound
        begun = False
        for piece in decoding:
            if not begun:
                pipe.begin_audio(Sound.from_beginning(decoding.beginning, repaired.delay))
                begun = True
            pipe.put_audio(piece)
        if not begun:
            # Only its pre-roll could be decoded, nothing of the chunk itself.
            raise AudioError("no audio could be decoded from it")
        partial = decoding.partial or repaired.torn
        pipe.close(Whole(decoding.seconds, partial, repaired.repaired, decoding.span, decoding.flags))

    def _start_decoding(self, decoder: AudioDecoder, sound: Repaired) -> Decoding:
        manifest = self._state.manifest
        return decoder.decode(
            sound.data,
            max_seconds=manifest.limits.max_audio_seconds,
            until=self._state.ending.is_due,
            split=manifest.audio_options.split_channels,
            skip=sound.preroll,
        )
