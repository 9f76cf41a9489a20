"""The worker: decodes ahead, and publishes each chunk once it is whole.

    fetch threads -> bytes -> decode threads (+ child processes) -> audio
        -> a thread for each session: timelines -> windows -> engine -> publish threads

The engine runs in the calling thread, so that a signal can stop it. A broken file fails alone; published
transcripts stay in the store; the exit record is written in every case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.bounded_queue import BoundedQueue
from batchscribe.audio.decoding.recordings import Recordings
from batchscribe.audio.windows import SpeechFinder
from batchscribe.core import keys
from batchscribe.core.run.manifest import ExitRecord, FailureKind, Manifest, Phase, WorkerEnd
from batchscribe.core.text.voice_groups import limit_groups
from batchscribe.core.text.voices import MOST_VOICES, make_voices
from batchscribe.engine import Engine
from batchscribe.errors import BatchscribeError, EngineError, GpuError
from batchscribe.protocols import Clock, SpeakerModel, Store
from batchscribe.reading import read_optional
from batchscribe.worker.assembly import TranscribedChunk, make_transcript
from batchscribe.worker.context_audio import Neighbours
from batchscribe.worker.engine_loop import EngineLoop
from batchscribe.worker.feeding import Fetcher, PipelineState, Preparer, WorkQueue
from batchscribe.worker.progress import Ending, ProgressTracker
from batchscribe.worker.records import Records, Reporter
from batchscribe.worker.session_queue import Prepared, TimelineAssembler

LOG = structlog.get_logger()

READY_WINDOWS = 32
"""About 2 MB each; a GPU transcribes them in seconds."""
HUNG_SECONDS = 600.0
"""An engine that holds windows and returns no result for so long counts as hung."""
HUNG_TIMES = 5.0
"""An engine may take so many times as long as for its slowest result until now, if that is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencySettings:
    """Concurrency settings: threads per stage, and the interval of progress writes."""

    fetchers: int = 8
    decoders: int = 2
    timelines: int = 2
    publishers: int = 4
    progress_seconds: float = 5.0


def run_worker(
    manifest: Manifest,
    *,
    source: Store,
    output: Store,
    load: Callable[[], Engine],
    find_speech: SpeechFinder,
    speakers: SpeakerModel | None = None,
    clock: Clock,
    should_stop: Callable[[], bool],
    new_decoder: Callable[[], AudioDecoder] = AudioDecoder,
    concurrency: ConcurrencySettings = ConcurrencySettings(),
    abandon: Callable[[], None] = lambda: None,
    begun: float | None = None,
) -> ExitRecord:
    """Transcribes the manifest's chunks and returns the stored exit record.

    A manifest with an exit record is not processed again. Failures of chunks, of the engine and of the
    machine are in the record, not raised; raises only if the record cannot be stored
    (StoreUnavailableError, MisconfiguredError).

    A hung engine cannot be stopped: after everything else is recorded and published, `abandon` is called,
    which should end the process. `speakers` finds the voices of each chunk, which are stored beside its
    transcript. `begun`: monotonic time at which this process started; None for now.
    """
    before = read_optional(output, keys.exit_record(manifest.run, manifest.worker), ExitRecord)
    if before is not None:
        LOG.warning("worker.ended_before", run=manifest.run, worker=manifest.worker)
        return before
    ending = Ending(clock, manifest.deadline, should_stop)
    state = PipelineState.create(
        manifest, ending, output=output, clock=clock, decoders=concurrency.decoders, begun=begun
    )
    worker = _Worker(
        state,
        source=source,
        output=output,
        speakers=speakers,
        clock=clock,
        concurrency=concurrency,
        abandon=abandon,
    )
    return worker.run(load, find_speech, new_decoder)


def fail_worker(
    manifest: Manifest, output: Store, clock: Clock, reason: str, *, gpu_broken: bool = False
) -> ExitRecord:
    """Writes the exit record of a worker that could not start."""
    tracker = ProgressTracker(manifest, clock)
    record = tracker.make_exit_record(WorkerEnd.FAILED, reason, "", gpu_broken=gpu_broken)
    Records(
        manifest, output, tracker, Ending(clock, manifest.deadline, lambda: False), clock
    ).write_exit_record(record)
    return record


class _Worker:
    """Processes one manifest."""

    def __init__(
        self,
        state: PipelineState,
        *,
        source: Store,
        output: Store,
        speakers: SpeakerModel | None,
        clock: Clock,
        concurrency: ConcurrencySettings,
        abandon: Callable[[], None],
    ) -> None:
        self._state = state
        self._manifest = state.manifest
        self._tracker = state.tracker
        self._records = state.records
        self._ending = state.ending
        self._source = source
        self._output = output
        self._speakers = speakers
        self._clock = clock
        self._concurrency = concurrency
        self._abandon = abandon
        self._ready = BoundedQueue[Prepared](READY_WINDOWS)
        self._finished = BoundedQueue[Callable[[], None]](READY_WINDOWS)
        self._engine_loop = EngineLoop(state, self._ready, publish=self._publish_chunk, fail=self._fail_chunk)
        self._publishers: list[threading.Thread] = []
        self._model = state.manifest.engine.model
        self._device = ""
        self._exit_lock = threading.Lock()
        self._exit_record: ExitRecord | None = None

    def run(
        self,
        load: Callable[[], Engine],
        find_speech: SpeechFinder,
        new_decoder: Callable[[], AudioDecoder],
    ) -> ExitRecord:
        reporter = Reporter(self._records, self._concurrency.progress_seconds, self._check_engine)
        self._tracker.set_phase(Phase.LOADING)
        reporter.start()
        self._publishers = self._start_threads(
            "publish", self._concurrency.publishers, self._run_publisher, self._finished.close
        )
        feeders = self._start_feeders(find_speech, new_decoder)
        try:
            self._run_engine(load, reporter)
        except BatchscribeError as error:
            self._ending.fail(error)
        except Exception as error:  # noqa: BLE001 - the exit record must be written whatever happens
            self._ending.fail_unexpectedly("the engine's thread", error)
        finally:
            self._close_stages(feeders)
            self._tracker.record_end()
            reporter.close()
        try:
            return self._write_exit_record()
        finally:
            reporter.join()

    def _start_feeders(
        self, find_speech: SpeechFinder, new_decoder: Callable[[], AudioDecoder]
    ) -> list[threading.Thread]:
        concurrency = self._concurrency
        recordings = Recordings(self._source, limit=self._manifest.limits.max_object_bytes)
        fetcher = Fetcher(self._state, self._source)
        preparer = Preparer(self._state, recordings, new_decoder)
        assembler = TimelineAssembler(
            state=self._state,
            sessions=WorkQueue(self._state.sessions),
            new_neighbours=partial(
                Neighbours,
                self._source,
                self._output,
                recordings,
                new_decoder,
                self._ending.is_due,
                overlap_ms=self._manifest.audio_options.overlap_ms,
                apart=[chunk.key for chunk in self._manifest.chunks if chunk.previously_failed],
            ),
            find_speech=find_speech,
            out=self._ready,
            speakers=self._speakers,
        )
        return [
            *self._start_threads("fetch", concurrency.fetchers, fetcher.run),
            *self._start_threads("decode", concurrency.decoders, preparer.run),
            *self._start_threads("timeline", concurrency.timelines, assembler.run, self._ready.close),
        ]

    def _run_publisher(self) -> None:
        while (act := self._finished.get()) is not None:
            act()

    def _start_threads(
        self, name: str, count: int, work: Callable[[], None], last: Callable[[], None] = lambda: None
    ) -> list[threading.Thread]:
        """Starts threads for the same work; the last to end runs `last`."""
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

    def _close_stages(self, feeders: list[threading.Thread]) -> None:
        """Ends the threads in pipeline order; completed chunks are published before."""
        self._ready.close()
        for thread in feeders:
            thread.join()
        self._engine_loop.drain()
        self._join_publishers()

    def _join_publishers(self) -> None:
        """Waits until all completed chunks are in the store."""
        self._finished.close()
        for thread in self._publishers:
            thread.join()

    def _run_engine(self, load: Callable[[], Engine], reporter: Reporter) -> None:
        engine = load()
        self._model, self._device = engine.model or self._model, engine.device
        self._tracker.record_loaded()
        reporter.request_report()
        self._engine_loop.run(engine)

    def _fail_chunk(self, chunk: int, kind: FailureKind, reason: str) -> None:
        self._queue_for_publishers(
            partial(self._records.record_failure, self._manifest.chunks[chunk], kind, reason)
        )

    def _publish_chunk(self, transcribed: TranscribedChunk) -> None:
        chunk = self._manifest.chunks[transcribed.chunk]
        text = make_transcript(transcribed, chunk, self._manifest, model=self._model, now=self._clock.now())
        found, model = transcribed.end.voices, self._speakers
        voices = None
        if model is not None and found is not None:
            voices = make_voices(text.audio, model.name, model.alike, limit_groups(found, MOST_VOICES))
        self._queue_for_publishers(partial(self._records.publish, chunk, text, voices))

    def _queue_for_publishers(self, act: Callable[[], None]) -> None:
        with self._tracker.count_blocked():
            self._finished.put(act)

    def _check_engine(self) -> None:
        """Ends the worker if the engine hangs, whose thread cannot be stopped."""
        silent, longest = self._tracker.measure_silence()
        if silent < max(HUNG_SECONDS, HUNG_TIMES * longest) or self._ending.error:
            return
        self._ending.fail(
            EngineError(f"the engine hangs: no result for {silent:.0f} s; finished transcripts are kept")
        )
        try:
            self._abandon_engine(self._engine_loop.list_chunks_in_engine())
        finally:
            self._abandon()

    def _abandon_engine(self, suspects: tuple[int, ...]) -> None:
        """Publishes completed chunks, fails those in the engine, records the end."""
        self._join_publishers()
        for chunk in suspects:
            self._records.record_failure(
                self._manifest.chunks[chunk], FailureKind.CRASH, "it was in the engine when the engine hung"
            )
        self._tracker.record_end()
        self._records.write_progress()
        self._write_exit_record()

    def _write_exit_record(self) -> ExitRecord:
        """Writes the exit record once; a second call returns the same record."""
        with self._exit_lock:
            if self._exit_record is None:
                self._exit_record = record = self._make_exit_record()
                self._records.write_exit_record(record)
                LOG.info("worker.ended", run=record.run, end=record.end.value, message=record.message)
            return self._exit_record

    def _make_exit_record(self) -> ExitRecord:
        left = len(self._manifest.chunks) - self._tracker.tally.seen
        if self._ending.error:
            end, message = WorkerEnd.FAILED, self._ending.reason
        elif left:
            end = WorkerEnd.STOPPED
            chunks = "1 chunk" if left == 1 else f"{left} chunks"
            message = f"{self._ending.reason}: {chunks} left; finished transcripts are kept"
        else:
            end, message = WorkerEnd.FINISHED, self._tracker.tally.describe()
        broken = isinstance(self._ending.error, GpuError)
        return self._tracker.make_exit_record(end, message, self._device, gpu_broken=broken)
