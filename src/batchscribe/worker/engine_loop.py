"""The engine's thread: chooses windows, collects results, and recovers when the engine breaks.

A batching engine gets windows of similar length, because a batch takes as long as its longest window. A
window that breaks the engine is transcribed again chunk by chunk, each alone, so that a failure is
attributed to the right chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from batchscribe.audio.bounded_queue import Channel
from batchscribe.core.run.manifest import FailureKind, Manifest
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.errors import EngineError
from batchscribe.protocols import Engine
from batchscribe.worker.assembly import Assembly, TranscribedChunk
from batchscribe.worker.pool import Pool
from batchscribe.worker.progress import Board, Ending, places
from batchscribe.worker.records import Records
from batchscribe.worker.session_queue import Failed, Prepared
from batchscribe.worker.timeline import Ended, Ready

LOG = structlog.get_logger()

MAX_ENGINE_BREAKS = 3
"""Consecutive breaks without a result after which the engine itself counts as broken."""
POOLED_WINDOWS = 32
"""Size of the pool from which a batch is chosen; a window takes about 2 MB."""
PAUSE_SECONDS = 0.02
"""Longest wait for another window while the engine holds some; then it gets None."""

Publish = Callable[[TranscribedChunk], None]
Blame = Callable[[int, FailureKind, str], None]


class EngineLoop:
    """Feeds windows to the engine and passes on the results. Not thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        ready: Channel[Prepared],
        records: Records,
        board: Board,
        ending: Ending,
        publish: Publish,
        blame: Blame,
    ) -> None:
        self._manifest = manifest
        self._ready = ready
        self._records = records
        self._board = board
        self._ending = ending
        self._publish = publish
        self._blame = blame
        self._assembly = Assembly()
        self._pool = Pool()
        self._chosen: deque[int] = deque()
        self._solos: deque[int] = deque()
        self._in_engine: dict[int, tuple[str, ...]] = {}
        self._begun: set[int] = set()
        self._engine: Engine | None = None
        self._announcing = ThreadPoolExecutor(1, thread_name_prefix="announce")
        self._announced: Future[None] | None = None

    def run(self, engine: Engine) -> None:
        """Runs until no window is left or the worker should end. Raises EngineError for a broken engine."""
        self._engine = engine
        with self._announcing:
            self._run(engine)

    def _run(self, engine: Engine) -> None:
        breaks = _Breaks()
        while not (breaks.over or self._finished()):
            try:
                for recognition in engine.transcribe(self._windows()):
                    self._record_result(recognition)
                    self._hurry_if_ending(engine)
                    self._fail_chunks(breaks.survived(), FailureKind.CHUNK)
                self._expect_nothing_outstanding()
            except EngineError as error:
                LOG.warning("engine.broke", reason=str(error), trace=places(error.__cause__ or error))
                held = bool(self._in_engine)
                breaks.broke(self._recover_windows(), str(error), held=held)
        self._fail_chunks(breaks.suspects, FailureKind.MACHINE if breaks.engines_fault else FailureKind.CHUNK)
        if breaks.engines_fault:
            raise EngineError(breaks.reason_text)

    def _hurry_if_ending(self, engine: Engine) -> None:
        if self._ending.due() and (hurry := getattr(engine, "hurry", None)) is not None:
            hurry()

    def drain(self) -> None:
        """Concludes chunks after a stop: a chunk with all its results may still have its end queued."""
        for number in (*self._chosen, *self._solos, *self._pool.clear()):
            self._discard_window(number)
        while (item := self._ready.get()) is not None:
            if isinstance(item, Ready):
                for chunk in item.touched:
                    self._drop_chunk(chunk)
            else:
                self._finish_chunk(item)

    def suspects(self) -> tuple[int, ...]:
        """Chunks whose windows are in the engine. Thread-safe once the engine hangs."""
        numbers = tuple(self._in_engine)
        return tuple(sorted({chunk for number in numbers for chunk in self._assembly.waiting(number)}))

    def _finished(self) -> bool:
        nothing = self._ready.over and not (self._pool or self._chosen or self._solos)
        return self._ending.due() or nothing

    def _expect_nothing_outstanding(self) -> None:
        if self._in_engine:
            count = len(self._in_engine)
            raise EngineError(f"the engine returned no result for {count} window{'' if count == 1 else 's'}")

    def _windows(self) -> Iterator[Window | None]:
        """Windows for one `transcribe` call of the engine.

        Ends when no window is left, when the worker should end, and around a window that must be
        transcribed alone.
        """
        yield from self._next_windows()
        self._wait_until_announced()

    def _next_windows(self) -> Iterator[Window | None]:
        if self._solos:
            yield self._make_window(self._solos.popleft())
            return
        while not self._ending.due():
            if self._chosen:
                yield self._make_window(self._chosen.popleft())
                continue
            self._wait_until_announced()
            self._gather()
            if not self._pool:
                if not self._in_engine or self._ready.over:
                    return
                yield None
            elif not self._pool.oldest_alone:
                self._choose_batch(max(1, int(getattr(self._engine, "batch", 1))))
            elif self._in_engine:
                return
            else:
                self._choose_batch(1)
                yield from (self._make_window(self._chosen.popleft()) for _ in tuple(self._chosen))
                return

    def _gather(self) -> None:
        """Takes what is ready; waits if there is nothing, but only briefly while the engine has a window."""
        if not self._pool and not self._in_engine:
            while not self._pool and (item := self._await_item()) is not None:
                self._accept_item(item)
        wait = 0.0 if self._pool else PAUSE_SECONDS
        while len(self._pool) < POOLED_WINDOWS and (item := self._poll_item(wait)) is not None:
            self._accept_item(item)
            wait = 0.0

    def _await_item(self) -> Prepared | None:
        with self._board.starving():
            return self._ready.get(self._ending.due)

    def _poll_item(self, seconds: float) -> Prepared | None:
        with self._board.starving():
            return self._ready.poll(seconds)

    def _accept_item(self, item: Prepared) -> None:
        if not isinstance(item, Ready):
            self._finish_chunk(item)
        elif not all(map(self._assembly.dropped, item.touched)):
            self._put_into_pool(self._assembly.expect(item))

    def _put_into_pool(self, number: int) -> None:
        ready = self._assembly.ready(number)
        self._pool.add(number, ready.cut.speech, alone=ready.alone)

    def _choose_batch(self, size: int) -> None:
        """Chooses the next batch, and first names its chunks in the progress.

        An engine that reads ahead asks for the next batch before that. The choice stays when the engine
        breaks: it takes no further window of that batch.
        """
        numbers = [number for number in self._pool.take(size) if self._is_wanted(number)]
        chunks = {chunk for number in numbers for chunk in self._assembly.waiting(number)}
        for chunk in chunks - self._begun:
            self._board.takes(self._key(chunk))
        self._begun |= chunks
        self._announced = self._announcing.submit(self._records.announce, set(map(self._key, chunks)))
        if not getattr(self._engine, "reads_ahead", False):
            self._wait_until_announced()
        self._chosen.extend(numbers)

    def _wait_until_announced(self) -> None:
        """Raises what the announcement raised: only bugs, because store errors are logged."""
        if self._announced is not None:
            with self._board.starving("progress"):
                self._announced.result()
            self._announced = None

    def _is_wanted(self, number: int) -> bool:
        if self._assembly.waiting(number):
            return True
        self._assembly.forget(number)
        return False

    def _make_window(self, number: int) -> Window:
        ready = self._assembly.ready(number)
        keys = tuple(self._key(chunk) for chunk in self._assembly.waiting(number))
        self._in_engine[number] = keys
        self._board.engine_takes(keys)
        session = self._manifest.chunks[ready.touched[0]].session
        if ready.apart:
            # One language vote for each audio track of a film, not one for the film.
            session = f"{session}#{ready.channel}"
        language = self._manifest.engine.language
        return Window(number, ready.cut.seconds_in, ready.cut.audio, language, session)

    def _record_result(self, recognition: Recognition) -> None:
        self._board.engine_gives(self._in_engine.pop(recognition.window))
        self._apply_result(recognition)

    def _apply_result(self, recognition: Recognition) -> None:
        again, whole = self._assembly.answered(recognition)
        for number in again:
            self._put_into_pool(number)
        for heard in whole:
            self._publish_chunk(heard)

    def _publish_chunk(self, heard: TranscribedChunk) -> None:
        self._leave_flight(heard.chunk)
        self._publish(heard)

    def _finish_chunk(self, item: Ended | Failed) -> None:
        """Handles the end of a chunk: no more of its windows will come."""
        if isinstance(item, Ended):
            for heard in self._assembly.ended(item):
                self._publish_chunk(heard)
        elif not self._assembly.dropped(item.chunk):
            self._drop_chunk(item.chunk)
            self._blame(item.chunk, item.kind, item.message)

    def _leave_flight(self, chunk: int) -> None:
        if chunk in self._begun:
            self._begun.remove(chunk)
            self._board.leaves(self._key(chunk))

    def _drop_chunk(self, chunk: int) -> None:
        self._assembly.drop(chunk)
        self._leave_flight(chunk)

    def _discard_window(self, number: int) -> None:
        """Discards a window: its chunks stay pending.

        If it was a re-decode, its chunks keep the words of the first decoding.
        """
        if self._assembly.ready(number).wordless:
            self._apply_result(Recognition(number, ()))
            return
        for chunk in self._assembly.waiting(number):
            self._drop_chunk(chunk)
        self._assembly.forget(number)

    def _recover_windows(self) -> tuple[int, ...]:
        """Queues the windows of a broken engine again, split by chunk.

        A single window that cannot be split is discarded; returns its chunks.
        """
        broken, self._in_engine = self._in_engine, {}
        for keys in broken.values():
            self._board.engine_loses(keys)
        for number in [number for number in broken if self._assembly.ready(number).wordless]:
            del broken[number]
            self._discard_window(number)
        if len(broken) == 1 and self._is_indivisible(number := next(iter(broken))):
            suspects = self._assembly.waiting(number)
            self._discard_window(number)
            return suspects
        for number in broken:
            parts, whole = self._assembly.again(number)
            self._solos.extend(parts)
            for heard in whole:
                self._publish_chunk(heard)
        return ()

    def _is_indivisible(self, number: int) -> bool:
        """True if a window cannot be split any further."""
        ready = self._assembly.ready(number)
        return ready.alone or len(ready.chunks) == 1

    def _fail_chunks(self, chunks: list[tuple[int, str]], kind: FailureKind) -> None:
        for chunk, reason in chunks:
            self._blame(chunk, kind, reason)

    def _key(self, chunk: int) -> str:
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
        """True if it broke too often in a row, or before any result."""
        return self.over or (self._in_a_row > 0 and not self._ever_worked)

    @property
    def reason_text(self) -> str:
        if self.over:
            return f"the engine failed {MAX_ENGINE_BREAKS} times in a row: {self.reason}"
        return f"the engine failed before its first result: {self.reason}"

    def broke(self, chunks: tuple[int, ...], reason: str, *, held: bool) -> None:
        """Counts a break; `chunks` caused it, unless the engine did.

        If the engine `held` windows and `chunks` is empty, the break does not count: the windows are
        transcribed again one by one, which shows the cause.
        """
        self._in_a_row += bool(chunks) or not held
        self.reason = reason
        self.suspects += [(chunk, reason) for chunk in chunks]

    def survived(self) -> list[tuple[int, str]]:
        """Returns the suspected chunks after a result: they caused the breaks, not the engine."""
        self._ever_worked = True
        causes, self.suspects = self.suspects, []
        self._in_a_row = 0
        return causes
