"""The worker: fetch and decode ahead, one model load, publish each chunk as soon as it is whole.

    fetch threads -> bytes -> decode threads (+ child processes) -> windows -> engine -> publish threads

The engine runs in the calling thread, so that a signal can ask it to end. One bad file costs one
file; what is published is in the store for good; the exit record is written whatever happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import structlog

from batchscribe.core import keys
from batchscribe.core.manifest import (
    ExitRecord,
    FailureKind,
    Manifest,
    ManifestChunk,
    Phase,
    Tally,
    WorkerEnd,
    decode,
)
from batchscribe.core.speech import Recognition, Window
from batchscribe.errors import BatchscribeError, EngineError, GpuError, ObjectNotFoundError
from batchscribe.protocols import Clock, Engine, Store
from batchscribe.worker.assembly import Assembly, Broken, Ended, Ready, Whole, transcript
from batchscribe.worker.audio import AudioDecoder
from batchscribe.worker.board import Board, Ending, places
from batchscribe.worker.channel import ByteBudget, Channel
from batchscribe.worker.feeding import (
    FETCHED_BYTES,
    FETCHED_CHUNKS,
    READY_WINDOWS,
    Fetched,
    Fetcher,
    Prepared,
    Preparer,
)
from batchscribe.worker.recordings import Recordings
from batchscribe.worker.records import Records, Reporter
from batchscribe.worker.windows import SpeechFinder

LOG = structlog.get_logger()

MAX_ENGINE_BREAKS = 3
"""An engine that breaks so often without a result in between is broken, whatever it was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """How many threads do what, and how often progress is told."""

    fetchers: int = 4
    decoders: int = 2
    publishers: int = 2
    progress_seconds: float = 5.0


def run_worker(
    manifest: Manifest,
    *,
    source: Store,
    output: Store,
    load: Callable[[], Engine],
    find_speech: SpeechFinder,
    clock: Clock,
    should_stop: Callable[[], bool],
    new_decoder: Callable[[], AudioDecoder] = AudioDecoder,
    crew: Crew = Crew(),
) -> ExitRecord:
    """Transcribes the manifest's chunks and returns the exit record, which is in the store by then.

    A manifest that has its exit record already is not worked on again. Failures of chunks, of the
    engine and of the machine are in the record, not raised; only a store that does not take the
    record itself raises (StoreUnavailableError, MisconfiguredError).
    """
    if (before := _earlier(manifest, output)) is not None:
        LOG.warning("worker.ended_before", run=manifest.run, worker=manifest.worker)
        return before
    ending = Ending(clock, manifest.deadline, should_stop)
    worker = _Worker(manifest=manifest, source=source, output=output, clock=clock, ending=ending, crew=crew)
    return worker.run(load, find_speech, new_decoder)


def fail_worker(
    manifest: Manifest, output: Store, clock: Clock, reason: str, *, gpu_broken: bool = False
) -> ExitRecord:
    """Writes the exit record of a worker that could not even begin."""
    board = Board(manifest, clock)
    record = board.exit_record(WorkerEnd.FAILED, reason, "", gpu_broken=gpu_broken)
    Records(manifest, output, board, Ending(clock, manifest.deadline, lambda: False), clock).last_word(record)
    return record


def _earlier(manifest: Manifest, output: Store) -> ExitRecord | None:
    try:
        blob = output.get(keys.exit_record(manifest.run, manifest.worker))
    except ObjectNotFoundError:
        return None
    return decode(blob.data, ExitRecord)


class _Worker:
    """One run through one manifest."""

    def __init__(
        self, *, manifest: Manifest, source: Store, output: Store, clock: Clock, ending: Ending, crew: Crew
    ) -> None:
        self._manifest = manifest
        self._source = source
        self._clock = clock
        self._ending = ending
        self._crew = crew
        self._board = Board(manifest, clock)
        self._records = Records(manifest, output, self._board, ending, clock)
        self._budget = ByteBudget(FETCHED_BYTES)
        self._fetched = Channel[Fetched](FETCHED_CHUNKS)
        self._ready = Channel[Prepared](READY_WINDOWS)
        self._finished = Channel[Callable[[], None]](READY_WINDOWS)
        self._assembly = Assembly()
        self._in_engine: dict[int, str] = {}
        self._begun: set[int] = set()
        self._model = manifest.engine.model
        self._device = ""

    def run(
        self,
        load: Callable[[], Engine],
        find_speech: SpeechFinder,
        new_decoder: Callable[[], AudioDecoder],
    ) -> ExitRecord:
        reporter = Reporter(self._records, self._crew.progress_seconds)
        reporter.start()
        publishing = self._publishers()
        feeding = self._feeders(find_speech, new_decoder)
        try:
            self._transcribe(load)
        except BatchscribeError as error:
            self._ending.fail(error)
        except Exception as error:  # noqa: BLE001 - the exit record must be written whatever happens
            self._ending.fail_unexpectedly("the engine's thread", error)
        finally:
            self._close(feeding, publishing)
            self._board.ended()
            reporter.close()
        record = self._record()
        self._records.last_word(record)
        LOG.info("worker.ended", run=record.run, end=record.end.value, message=record.message)
        return record

    def _feeders(
        self, find_speech: SpeechFinder, new_decoder: Callable[[], AudioDecoder]
    ) -> list[threading.Thread]:
        chunks, limits = self._manifest.chunks, self._manifest.limits
        fetcher = Fetcher(
            chunks,
            limits,
            source=self._source,
            records=self._records,
            ending=self._ending,
            budget=self._budget,
            out=self._fetched,
        )
        preparer = Preparer(
            chunks,
            limits,
            recordings=Recordings(self._source),
            find_speech=find_speech,
            new_decoder=new_decoder,
            board=self._board,
            ending=self._ending,
            budget=self._budget,
            fetched=self._fetched,
            out=self._ready,
        )
        return [
            *self._threads("fetch", self._crew.fetchers, fetcher.run, self._fetched.close),
            *self._threads("decode", self._crew.decoders, preparer.run, self._ready.close),
        ]

    def _publishers(self) -> list[threading.Thread]:
        def publish() -> None:
            while (act := self._finished.get()) is not None:
                act()

        return self._threads("publish", self._crew.publishers, publish, self._finished.close)

    def _threads(
        self, name: str, count: int, work: Callable[[], None], last: Callable[[], None]
    ) -> list[threading.Thread]:
        """Threads that do the same work; the last one to end runs `last`."""
        left = threading.Semaphore(count - 1)

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - a dead thread must end the worker, not hang it
                self._ending.fail_unexpectedly(f"the {name} thread", error)
            finally:
                if not left.acquire(blocking=False):
                    last()

        threads = [threading.Thread(target=run, name=f"{name}-{n}", daemon=True) for n in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _close(self, feeding: list[threading.Thread], publishing: list[threading.Thread]) -> None:
        """Ends the threads in the order of the flow; what is whole is published first."""
        self._fetched.close()
        self._ready.close()
        for thread in feeding:
            thread.join()
        self._drain()
        self._finished.close()
        for thread in publishing:
            thread.join()

    def _drain(self) -> None:
        """After a stop: a chunk whose last window came back may still have its end waiting here."""
        while (item := self._ready.get()) is not None:
            if isinstance(item, Ready):
                self._assembly.drop(item.chunk)
            else:
                self._concluded(item)

    def _transcribe(self, load: Callable[[], Engine]) -> None:
        self._board.phase(Phase.LOADING)
        self._records.progress()
        engine = load()
        self._model = getattr(engine, "model", "") or self._model
        self._device = getattr(engine, "device", "")
        self._board.loaded()
        self._records.progress()
        breaks = _Breaks()
        while not breaks.over:
            try:
                for recognition in engine.transcribe(self._windows()):
                    self._answered(recognition)
                    self._blame(breaks.survived(), FailureKind.CHUNK)
                self._expect_nothing_outstanding()
                break
            except EngineError as error:
                LOG.warning("engine.broke", reason=str(error), trace=places(error.__cause__ or error))
                breaks.broke(self._give_up_in_engine(), str(error))
        self._blame(breaks.suspects, FailureKind.MACHINE if breaks.engines_fault else FailureKind.CHUNK)
        if breaks.engines_fault:
            raise EngineError(breaks.verdict)

    def _expect_nothing_outstanding(self) -> None:
        if self._in_engine:
            raise EngineError(f"the engine gave no result for {len(self._in_engine)} windows")

    def _windows(self) -> Iterator[Window]:
        """What the engine pulls from: ends when nothing is left, or when the worker should end."""
        while not self._ending.due() and (item := self._ready.get(self._ending.due)) is not None:
            if not isinstance(item, Ready):
                self._concluded(item)
            elif not self._assembly.dropped(item.chunk):
                yield self._given(item)

    def _given(self, ready: Ready) -> Window:
        self._begin(ready.chunk)
        window = self._assembly.window(ready, self._manifest.engine.language)
        key = self._chunk(ready.chunk).key
        self._in_engine[window.id] = key
        self._board.engine_takes(key)
        return window

    def _begin(self, number: int) -> None:
        """Before a chunk's first window: from here on until it is whole, the progress names it."""
        if number not in self._begun:
            self._begun.add(number)
            self._board.takes(self._chunk(number).key)
            self._records.announce(self._chunk(number))

    def _finish(self, number: int) -> None:
        if number in self._begun:
            self._begun.remove(number)
            self._board.leaves(self._chunk(number).key)

    def _answered(self, recognition: Recognition) -> None:
        self._board.engine_gives(self._in_engine.pop(recognition.window))
        if self._assembly.chunk_of(recognition) is not None:
            self._publish(self._assembly.answered(recognition))

    def _concluded(self, item: Ended | Broken) -> None:
        """No more windows of this chunk will come."""
        if self._assembly.dropped(item.chunk):
            return
        if isinstance(item, Ended):
            self._publish(self._assembly.ended(item))
            return
        self._drop(item.chunk)
        self._blame([(item.chunk, item.message)], item.kind)

    def _drop(self, number: int) -> None:
        self._assembly.drop(number)
        self._finish(number)

    def _give_up_in_engine(self) -> tuple[int, ...]:
        """The chunks that the engine was working on when it broke; they are given up."""
        for key in self._in_engine.values():
            self._board.engine_loses(key)
        self._in_engine.clear()
        suspects = self._assembly.in_engine()
        for chunk in suspects:
            self._drop(chunk)
        return suspects

    def _blame(self, chunks: list[tuple[int, str]], kind: FailureKind) -> None:
        for chunk, reason in chunks:
            self._finished.put(partial(self._records.fail, self._chunk(chunk), kind, reason))

    def _publish(self, whole: Whole | None) -> None:
        if whole is None:
            return
        self._finish(whole.chunk)
        chunk = self._chunk(whole.chunk)
        text = transcript(whole, chunk, self._manifest, model=self._model, now=self._clock.now())
        self._finished.put(partial(self._records.publish, chunk, text))

    def _chunk(self, number: int) -> ManifestChunk:
        return self._manifest.chunks[number]

    def _record(self) -> ExitRecord:
        left = len(self._manifest.chunks) - self._board.tally.seen
        if self._ending.error:
            end, message = WorkerEnd.FAILED, self._ending.reason
        elif left:
            end = WorkerEnd.STOPPED
            message = f"{self._ending.reason}: {left} chunks left; finished transcripts are kept"
        else:
            end, message = WorkerEnd.FINISHED, _summary(self._board.tally)
        broken = isinstance(self._ending.error, GpuError)
        return self._board.exit_record(end, message, self._device, gpu_broken=broken)


def _summary(tally: Tally) -> str:
    return f"{tally.done} transcribed, {tally.skipped} were done already, {tally.failed} failed"


class _Breaks:
    """An engine that breaks: whose fault it is shows only when it goes on working, or does not."""

    def __init__(self) -> None:
        self.suspects: list[tuple[int, str]] = []
        self.reason = ""
        self._in_a_row = 0
        self._ever_worked = False

    @property
    def over(self) -> bool:
        return self._in_a_row >= MAX_ENGINE_BREAKS

    @property
    def engines_fault(self) -> bool:
        """It breaks on everything; or on the little there was, and has never given a result here."""
        return self.over or (self._in_a_row > 0 and not self._ever_worked)

    @property
    def verdict(self) -> str:
        if self.over:
            return f"the engine broke {MAX_ENGINE_BREAKS} times in a row: {self.reason}"
        return f"the engine broke before it gave any result: {self.reason}"

    def broke(self, chunks: tuple[int, ...], reason: str) -> None:
        self._in_a_row += 1
        self.reason = reason
        self.suspects += [(chunk, reason) for chunk in chunks]

    def survived(self) -> list[tuple[int, str]]:
        """A result came: those who were suspected are to blame, the engine is not."""
        self._ever_worked = True
        guilty, self.suspects = self.suspects, []
        self._in_a_row = 0
        return guilty
