"""Threads that run ahead of the engine: fetch and decode each chunk into its pipe.

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
from batchscribe.protocols import Store
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Chunks of one session, in order. `places` are their indexes in the manifest."""

    session: str
    places: tuple[int, ...]
    alone: bool = False
    """It failed before: its windows contain no other chunk."""


def lines(chunks: Sequence[ManifestChunk]) -> tuple[Line, ...]:
    """The manifest's chunks by session: long recordings first, previously failed chunks last.

    If a long recording starts late, one core decodes it while all others wait.
    """
    sessions: dict[str, list[int]] = {}
    for place, chunk in enumerate(chunks):
        if not chunk.previously_failed:
            sessions.setdefault(chunk.session, []).append(place)
    longest = sorted(sessions.items(), key=lambda item: -(max(chunks[n].size for n in item[1]) // LONG))
    failed_before = (Line(session=chunk.session, places=(place,), alone=True)
                     for place, chunk in enumerate(chunks) if chunk.previously_failed)  # fmt: skip
    return (*(Line(session=session, places=tuple(places)) for session, places in longest), *failed_before)


class Turns(Generic[T]):
    """Hands out items in order, each when there is room for it. Thread-safe."""

    def __init__(self, order: Sequence[T], room: Callable[[T], bool] = lambda _item: True) -> None:
        self._rest = iter(order)
        self._room = room
        self._lock = threading.Lock()

    def next(self) -> T | None:
        """The next item; None if none is left, or the worker should end."""
        with self._lock:
            item = next(self._rest, None)
            return item if item is not None and self._room(item) else None


@dataclass(frozen=True, slots=True)
class PipelineState:
    """State that the stages share: the manifest, the chunks' order, their pipes and the pipeline limits."""

    manifest: Manifest
    order: tuple[int, ...]
    pipes: Pipes
    ending: Ending
    budget: ByteBudget
    fetched: ByteBudget
    decoded: ByteBudget

    @classmethod
    def of(cls, manifest: Manifest, ending: Ending, decoders: int) -> PipelineState:
        order = tuple(place for line in lines(manifest.chunks) for place in line.places)
        room = (ByteBudget(FETCHED_BYTES), ByteBudget(FETCHED_CHUNKS), ByteBudget(DECODED_CHUNKS * decoders))
        return cls(manifest, order, Pipes(ending.due), ending, *room)

    def chunk(self, place: int) -> ManifestChunk:
        return self.manifest.chunks[place]

    def to_fetch(self) -> Turns[int]:
        return Turns(self.order, self._room_for_bytes)

    def _room_for_bytes(self, place: int) -> bool:
        due = self.ending.due
        return not due() and self.fetched.take(1, due) and self.budget.take(self.chunk(place).size, due)

    def to_decode(self) -> Turns[int]:
        due = self.ending.due
        return Turns(self.order, lambda _place: not due() and self.decoded.take(1, due))

    def heard(self, place: int) -> None:
        """Releases a chunk's pipe and room, its audio taken or dropped."""
        self.pipes.leave(place)
        self.decoded.give(1)


class Fetcher:
    """Fetches the chunks' bytes; several threads run it at once."""

    def __init__(self, way: PipelineState, *, source: Store, records: Records) -> None:
        self._way = way
        self._turns = way.to_fetch()
        self._source = source
        self._records = records

    def run(self) -> None:
        while (place := self._turns.next()) is not None:
            data = self._fetch(self._way.chunk(place))
            pipe = self._way.pipes.of(place)
            if data is None:
                pipe.close(Absent())
            else:
                pipe.fetched(data)

    def _fetch(self, chunk: ManifestChunk) -> bytes | None:
        """Returns the chunk's bytes; None if there is nothing to transcribe, which is recorded."""
        try:
            if self._records.exists(chunk):
                self._records.skip()
                return None
            return self._read_bytes(chunk, self._way.manifest.limits)
        except MisconfiguredError as error:
            # Without the right to read one object, all others would fail the same way.
            self._way.ending.fail(error)
        except BatchscribeError as error:
            self._records.fail(chunk, _failure_kind(error), str(error))
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
    """Decodes fetched chunks into their pipes; several threads run it, each with its own decoder."""

    def __init__(
        self,
        way: PipelineState,
        *,
        recordings: Recordings,
        new_decoder: Callable[[], AudioDecoder],
        board: ProgressTracker,
    ) -> None:
        self._way = way
        self._turns = way.to_decode()
        self._recordings = recordings
        self._new_decoder = new_decoder
        self._board = board

    def run(self) -> None:
        try:
            with self._new_decoder() as decoder:
                while (place := self._turns.next()) is not None:
                    self._process_chunk(decoder, place)
        except InterruptedRunError:
            return

    def _process_chunk(self, decoder: AudioDecoder, place: int) -> None:
        chunk, pipe = self._way.chunk(place), self._way.pipes.of(place)
        try:
            with self._board.waiting_for("fetch"):
                fetched = pipe.wait()
            self._way.fetched.give(1)
            if fetched:
                self._decode_named(decoder, chunk, pipe)
        finally:
            self._way.budget.give(chunk.size)
            self._way.pipes.leave(place)

    def _decode_named(self, decoder: AudioDecoder, chunk: ManifestChunk, pipe: Pipe) -> None:
        """Decodes a chunk; the progress names it meanwhile, in case its decoder kills the worker."""
        self._board.takes(chunk.key)
        try:
            self._decode(decoder, chunk.key, pipe)
        except (AudioError, TransientError, ObjectArchivedError) as error:
            kind = _failure_kind(error)
            if kind.final and may_lack_header(chunk.key):
                kind = FailureKind.CHUNK
            pipe.close(Broken(str(error), kind))
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            # The decoder is missing on this machine: a failure of the worker, not of a chunk.
            self._way.ending.fail(error)
        finally:
            self._board.leaves(chunk.key)

    def _decode(self, decoder: AudioDecoder, key: str, pipe: Pipe) -> None:
        sound = self._recordings.repaired(key, pipe.take())
        if sound.empty:
            pipe.close(Whole(0.0, partial=False, repaired=False))
            return
        decoding, repaired = self._start_decoding(decoder, sound), replace(sound, data=b"", seen=None)
        del sound
        begun = False
        for piece in decoding:
            if not begun:
                pipe.begin(Sound.of(decoding.beginning, repaired.delay))
                begun = True
            pipe.put(piece)
        if not begun:
            # Only its pre-roll could be decoded, nothing of the chunk itself.
            raise AudioError("no audio could be decoded from it")
        partial = decoding.partial or repaired.torn
        pipe.close(Whole(decoding.seconds, partial, repaired.repaired, decoding.span, decoding.flags))

    def _start_decoding(self, decoder: AudioDecoder, sound: Repaired) -> Decoding:
        manifest = self._way.manifest
        return decoder.decode(
            sound.data,
            max_seconds=manifest.limits.max_audio_seconds,
            until=self._way.ending.due,
            split=manifest.audio_options.split_channels,
            skip=sound.preroll,
        )
