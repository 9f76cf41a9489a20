"""What runs ahead of the engine, in threads: fetch, decode, find speech, cut windows.

Everything is bounded: bytes that are fetched and not decoded, windows that are cut and not heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from batchscribe.core.manifest import FailureKind, Limits, ManifestChunk
from batchscribe.errors import (
    AudioError,
    BatchscribeError,
    InterruptedRunError,
    MisconfiguredError,
    ObjectArchivedError,
    ObjectNotFoundError,
    PermanentError,
    TransientError,
)
from batchscribe.protocols import Store
from batchscribe.worker.assembly import Broken, Ended, Ready
from batchscribe.worker.audio import AudioDecoder, Decoding
from batchscribe.worker.board import Board, Ending
from batchscribe.worker.channel import ByteBudget, Channel
from batchscribe.worker.containers import Repaired
from batchscribe.worker.recordings import Recordings
from batchscribe.worker.records import Records
from batchscribe.worker.windows import SpeechFinder, cut_windows

FETCHED_BYTES = 256 * 1024 * 1024
FETCHED_CHUNKS = 32
READY_WINDOWS = 64
"""About 2 MB each: what the engine works through in seconds on a GPU."""

Prepared = Ready | Ended | Broken


@dataclass(slots=True, eq=False)
class Fetched:
    """A chunk's bytes, until they are taken. `chunk` is its place in the manifest."""

    chunk: int
    data: bytes

    def take(self) -> bytes:
        """The bytes, for the one who needs them last: they may be gigabytes, and lie here no longer."""
        data, self.data = self.data, b""
        return data


class Fetcher:
    """Takes the chunks in their order and gets their bytes; several threads run it at once."""

    def __init__(
        self,
        chunks: tuple[ManifestChunk, ...],
        limits: Limits,
        *,
        source: Store,
        records: Records,
        ending: Ending,
        budget: ByteBudget,
        out: Channel[Fetched],
    ) -> None:
        self._limits = limits
        self._source = source
        self._records = records
        self._ending = ending
        self._budget = budget
        self._out = out
        self._lock = threading.Lock()
        self._rest: Iterator[tuple[int, ManifestChunk]] = iter(enumerate(chunks))

    def run(self) -> None:
        while not self._ending.due():
            with self._lock:
                place = next(self._rest, None)
            if place is None:
                return
            self._one(*place)

    def _one(self, number: int, chunk: ManifestChunk) -> None:
        if not self._budget.take(chunk.size, self._ending.due):
            return
        data = self._fetch(chunk)
        if data is None or not self._out.put(Fetched(number, data)):
            self._budget.give(chunk.size)

    def _fetch(self, chunk: ManifestChunk) -> bytes | None:
        """The chunk's bytes; None where there is nothing to transcribe, and that is recorded."""
        try:
            if self._records.exists(chunk):
                self._records.skip()
                return None
            return self._bytes(chunk)
        except MisconfiguredError as error:
            # No right to read one object is no right to read any: the rest would fail the same way.
            self._ending.fail(error)
        except BatchscribeError as error:
            self._records.fail(chunk, _blame(error), str(error))
        return None

    def _bytes(self, chunk: ManifestChunk) -> bytes:
        if chunk.size > self._limits.max_object_bytes:
            raise AudioError(
                f"larger than the limit of {self._limits.max_object_bytes / 2**20:g} MB (BATCH_MAX_OBJECT_MB)"
            )
        blob = self._source.get(chunk.key)
        if blob.etag != chunk.etag:
            raise ObjectNotFoundError(
                "the audio was replaced after the manifest was written: it waits its turn"
            )
        return blob.data


def _blame(error: BatchscribeError) -> FailureKind:
    """Whose fault it is that a chunk could not be had."""
    match error:
        case ObjectArchivedError():
            return FailureKind.ARCHIVED
        case ObjectNotFoundError():
            return FailureKind.CHANGED
        case TransientError():
            return FailureKind.MACHINE
        case PermanentError():
            return FailureKind.CHUNK
    return FailureKind.MACHINE


class Preparer:
    """Decodes fetched chunks and cuts them into windows; several threads run it, each with its decoder."""

    def __init__(
        self,
        chunks: tuple[ManifestChunk, ...],
        limits: Limits,
        *,
        recordings: Recordings,
        find_speech: SpeechFinder,
        new_decoder: Callable[[], AudioDecoder],
        board: Board,
        ending: Ending,
        budget: ByteBudget,
        fetched: Channel[Fetched],
        out: Channel[Prepared],
    ) -> None:
        self._chunks = chunks
        self._limits = limits
        self._recordings = recordings
        self._find_speech = find_speech
        self._new_decoder = new_decoder
        self._board = board
        self._ending = ending
        self._budget = budget
        self._fetched = fetched
        self._out = out

    def run(self) -> None:
        with self._new_decoder() as decoder:
            while not self._ending.due() and (item := self._fetched.get(self._ending.due)) is not None:
                chunk = self._chunks[item.chunk]
                self._board.takes(chunk.key)
                try:
                    self._one(decoder, item)
                finally:
                    self._board.leaves(chunk.key)
                    self._budget.give(chunk.size)

    def _one(self, decoder: AudioDecoder, item: Fetched) -> None:
        """All windows of one chunk, then its end; nothing more once the worker should end."""
        try:
            decoding, mended = self._decoding(decoder, item)
            with closing(cut_windows(decoding, self._find_speech)) as cuts:
                for cut in cuts:
                    if not self._out.put(Ready(item.chunk, cut)):
                        return
            partial = decoding.partial or mended.torn
            self._out.put(Ended(item.chunk, decoding.seconds, partial, mended.repaired))
        except (AudioError, TransientError, ObjectArchivedError) as error:
            self._out.put(Broken(item.chunk, str(error), _blame(error)))
        except InterruptedRunError:
            # The chunk stays pending: nobody waits for the rest of it.
            return
        except BatchscribeError as error:
            # No decoder or no voice detector on this machine: no chunk can be blamed for that.
            self._ending.fail(error)

    def _decoding(self, decoder: AudioDecoder, item: Fetched) -> tuple[Decoding, Repaired]:
        """The chunk being decoded, and what had to be done for that; its bytes are held no longer."""
        sound = self._recordings.repaired(self._chunks[item.chunk].key, item.take())
        limit = self._limits.max_audio_seconds
        decoding = decoder.decode(sound.data, max_seconds=limit, until=self._ending.due)
        return decoding, replace(sound, data=b"", seen=None)
