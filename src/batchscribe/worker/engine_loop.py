"""The engine's thread: batches, results, and recovery of a broken engine.

A batch has windows of similar length, because it takes as long as its longest window. The next one is
chosen ahead, so that its chunks are recorded and its windows prepared while the engine works. A window that
breaks the engine is transcribed again chunk by chunk, each alone, so that a failure is attributed to the
right chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog

from batchscribe.audio.bounded_queue import BoundedQueue
from batchscribe.core.run.manifest import FailureKind
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.engine import Engine
from batchscribe.errors import EngineError, OutOfMemoryError
from batchscribe.worker.assembly import Assembly, TranscribedChunk
from batchscribe.worker.feeding import PipelineState
from batchscribe.worker.pool import Pool
from batchscribe.worker.progress import format_traceback
from batchscribe.worker.session_queue import Failed, Prepared
from batchscribe.worker.timeline import Ended, PendingWindow

LOG = structlog.get_logger()

MAX_ENGINE_BREAKS = 3
"""Consecutive breaks without a result after which the engine itself counts as broken."""
POOLED_WINDOWS = 32
"""Least size of the pool from which a batch is chosen; a window takes about 2 MB."""
PAUSE_SECONDS = 0.02
"""Longest wait for another window of a batch."""


class EngineLoop:
    """Feeds batches to the engine and passes on the results. Not thread-safe."""

    def __init__(
        self,
        state: PipelineState,
        ready: BoundedQueue[Prepared],
        *,
        publish: Callable[[TranscribedChunk], None],
        fail: Callable[[int, FailureKind, str], None],
    ) -> None:
        self._manifest = state.manifest
        self._records = state.records
        self._tracker = state.tracker
        self._ending = state.ending
        self._ready = ready
        self._publish = publish
        self._fail = fail
        self._assembly = Assembly()
        self._pool = Pool()
        self._chosen: deque[Window] = deque()
        self._solos: deque[Window] = deque()
        self._in_engine: dict[int, tuple[str, ...]] = {}
        self._begun: set[int] = set()
        self._batch_size = 1
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._announced: Future[None] = Future()
        self._prepared: Future[None] = Future()

    def run(self, engine: Engine) -> None:
        """Runs until all is transcribed or the worker ends. Raises EngineError."""
        self._batch_size = max(1, engine.batch_size)
        breaks = _Breaks()
        with self._ahead:
            while not breaks.over and (batch := self._next_batch(engine)):
                try:
                    self._transcribe_batch(batch, engine, breaks)
                except EngineError as error:
                    if isinstance(error, OutOfMemoryError) and len(batch) > 1:
                        self._halve_batch(batch)
                        continue
                    LOG.warning(
                        "engine.broke", reason=str(error), trace=format_traceback(error.__cause__ or error)
                    )
                    breaks.record_break(self._recover_windows(), str(error))
        self._fail_chunks(breaks.suspects, FailureKind.MACHINE if breaks.engines_fault else FailureKind.CHUNK)
        if breaks.engines_fault:
            raise EngineError(breaks.reason_text)

    def drain(self) -> None:
        """Finishes chunks with all results after a stop; drops the others."""
        chosen = [window.id for window in (*self._chosen, *self._solos)]
        for number in (*chosen, *self._pool.clear()):
            self._discard_window(number)
        while (item := self._ready.get()) is not None:
            if isinstance(item, PendingWindow):
                for chunk in item.touched:
                    self._drop_chunk(chunk)
            else:
                self._finish_chunk(item)

    def list_chunks_in_engine(self) -> tuple[int, ...]:
        """Chunks whose windows are in the engine. Thread-safe once the engine hangs."""
        numbers = tuple(self._in_engine)
        return tuple(
            sorted({chunk for number in numbers for chunk in self._assembly.find_waiting_chunks(number)})
        )

    def _next_batch(self, engine: Engine) -> list[Window]:
        """Takes the next batch; empty without further windows or at the end."""
        while not self._ending.is_due():
            if self._solos:
                return [self._solos.popleft()]
            if self._chosen:
                with self._tracker.count_starved("progress"):
                    self._announced.result()
                return [self._chosen.popleft() for _ in range(min(self._batch_size, len(self._chosen)))]
            self._fill_pool(block=True)
            if not self._pool:
                break
            self._choose_batch(engine)
        return []

    def _transcribe_batch(self, batch: list[Window], engine: Engine, breaks: _Breaks) -> None:
        for window in batch:
            keys = tuple(self._get_key(chunk) for chunk in self._assembly.find_waiting_chunks(window.id))
            self._in_engine[window.id] = keys
            self._tracker.enter_engine(keys)
        wait([self._prepared])
        self._choose_ahead(batch, engine)
        for recognition in engine.transcribe(batch):
            self._tracker.record_result(self._in_engine.pop(recognition.window))
            self._apply_result(recognition)
            if self._ending.is_due():
                engine.hurry()
            self._fail_chunks(breaks.record_result(), FailureKind.CHUNK)
        if left := len(self._in_engine):
            raise EngineError(f"the engine returned no result for {left} window{'' if left == 1 else 's'}")

    def _choose_ahead(self, batch: list[Window], engine: Engine) -> None:
        """Chooses the next batch, unless windows must be transcribed one by one."""
        if self._batch_size == 1 or self._chosen or self._assembly.get_window(batch[0].id).alone:
            return
        self._fill_pool(block=False)
        if self._pool and not self._pool.oldest_alone:
            self._choose_batch(engine)

    def _fill_pool(self, *, block: bool) -> None:
        """Takes ready windows; waits for a full batch while they arrive fast.

        `block`: waits for the first window, if any follows.
        """
        while len(self._pool) < max(POOLED_WINDOWS, self._batch_size):
            with self._tracker.count_starved():
                if block and not self._pool:
                    item = self._ready.get(self._ending.is_due)
                else:
                    item = self._ready.poll(PAUSE_SECONDS if len(self._pool) < self._batch_size else 0.0)
            if item is None:
                return
            if not isinstance(item, PendingWindow):
                self._finish_chunk(item)
            elif not all(map(self._assembly.is_dropped, item.touched)):
                self._put_into_pool(self._assembly.register_window(item))

    def _put_into_pool(self, number: int) -> None:
        ready = self._assembly.get_window(number)
        self._pool.add(number, ready.cut.speech, alone=ready.alone)

    def _choose_batch(self, engine: Engine) -> None:
        """Chooses a batch; announces its chunks and prepares it meanwhile."""
        numbers = [number for number in self._pool.take_batch(self._batch_size) if self._is_wanted(number)]
        chunks = {chunk for number in numbers for chunk in self._assembly.find_waiting_chunks(number)}
        for chunk in chunks - self._begun:
            self._tracker.add_in_flight(self._get_key(chunk))
        self._begun |= chunks
        self._announced = self._ahead.submit(self._records.announce_chunks, set(map(self._get_key, chunks)))
        self._chosen.extend(map(self._make_window, numbers))
        self._prepared = self._ahead.submit(engine.prepare, tuple(self._chosen))

    def _is_wanted(self, number: int) -> bool:
        if self._assembly.find_waiting_chunks(number):
            return True
        self._assembly.forget_window(number)
        return False

    def _make_window(self, number: int) -> Window:
        ready = self._assembly.get_window(number)
        session = self._manifest.chunks[ready.touched[0]].session
        if ready.apart:
            # One language vote for each audio track of a film, not one for the film.
            session = f"{session}#{ready.channel}"
        language = self._manifest.engine.language
        return Window(number, ready.cut.seconds_in, ready.cut.audio, language, session)

    def _apply_result(self, recognition: Recognition) -> None:
        again, whole = self._assembly.add_result(recognition)
        for number in again:
            self._put_into_pool(number)
        for transcribed in whole:
            self._publish_chunk(transcribed)

    def _publish_chunk(self, transcribed: TranscribedChunk) -> None:
        self._leave_flight(transcribed.chunk)
        self._publish(transcribed)

    def _finish_chunk(self, item: Ended | Failed) -> None:
        """Finishes or fails a chunk that gets no more windows."""
        if isinstance(item, Ended):
            for transcribed in self._assembly.record_end(item):
                self._publish_chunk(transcribed)
        elif not self._assembly.is_dropped(item.chunk):
            self._drop_chunk(item.chunk)
            self._fail(item.chunk, item.end.kind, item.end.message)

    def _leave_flight(self, chunk: int) -> None:
        if chunk in self._begun:
            self._begun.remove(chunk)
            self._tracker.remove_in_flight(self._get_key(chunk))

    def _drop_chunk(self, chunk: int) -> None:
        self._assembly.drop_chunk(chunk)
        self._leave_flight(chunk)

    def _discard_window(self, number: int) -> None:
        """Discards a window: its chunks stay pending.

        If it was a re-decode, its chunks keep the words of the first decoding.
        """
        if self._assembly.get_window(number).wordless:
            self._apply_result(Recognition(number, ()))
            return
        for chunk in self._assembly.find_waiting_chunks(number):
            self._drop_chunk(chunk)
        self._assembly.forget_window(number)

    def _halve_batch(self, batch: list[Window]) -> None:
        """Returns a batch to the queue, and halves the batch size."""
        self._batch_size = min(self._batch_size, len(batch) // 2)
        LOG.warning("engine.batch_halved", windows=self._batch_size)
        left = self._empty_engine()
        self._chosen.extendleft(window for window in reversed(batch) if window.id in left)

    def _empty_engine(self) -> list[int]:
        """Takes the windows without a result out of the engine."""
        left, self._in_engine = self._in_engine, {}
        for keys in left.values():
            self._tracker.leave_engine(keys)
        return list(left)

    def _recover_windows(self) -> tuple[int, ...]:
        """Queues the windows of a broken engine again, split by chunk.

        A single window that cannot be split is discarded; returns its chunks.
        """
        broken: list[int] = []
        for number in self._empty_engine():
            if self._assembly.get_window(number).wordless:
                self._discard_window(number)
            else:
                broken.append(number)
        if len(broken) == 1:
            ready = self._assembly.get_window(broken[0])
            if ready.alone or len(ready.chunks) == 1:
                suspects = self._assembly.find_waiting_chunks(broken[0])
                self._discard_window(broken[0])
                return suspects
        for number in broken:
            parts, whole = self._assembly.split_window(number)
            self._solos.extend(map(self._make_window, parts))
            for transcribed in whole:
                self._publish_chunk(transcribed)
        return ()

    def _fail_chunks(self, chunks: list[tuple[int, str]], kind: FailureKind) -> None:
        for chunk, reason in chunks:
            self._fail(chunk, kind, reason)

    def _get_key(self, chunk: int) -> str:
        return self._manifest.chunks[chunk].key


class _Breaks:
    """Attributes engine breaks to chunks or to the engine, by later results."""

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
        """True if it broke too often, or before any result."""
        return self.over or (self._in_a_row > 0 and not self._ever_worked)

    @property
    def reason_text(self) -> str:
        if self.over:
            return f"the engine failed {MAX_ENGINE_BREAKS} times in a row: {self.reason}"
        return f"the engine failed before its first result: {self.reason}"

    def record_break(self, chunks: tuple[int, ...], reason: str) -> None:
        """Counts a break; `chunks` caused it, unless the engine did.

        Without `chunks` it does not count: the windows are transcribed one by one, which shows the cause.
        """
        self._in_a_row += bool(chunks)
        self.reason = reason
        self.suspects += [(chunk, reason) for chunk in chunks]

    def record_result(self) -> list[tuple[int, str]]:
        """Returns the suspected chunks: a result shows that they were the cause."""
        self._ever_worked = True
        causes, self.suspects = self.suspects, []
        self._in_a_row = 0
        return causes
