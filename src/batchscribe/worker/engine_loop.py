"""The engine's thread: which windows it gets and when, what comes of them, and what to do when it breaks.

An engine that gathers windows gets such as are alike in length, for a batch takes as long as its longest
member. A window that breaks it is heard again chunk by chunk, each alone, so that nobody is blamed for a
neighbour.
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
from batchscribe.worker.assembly import Assembly, Heard
from batchscribe.worker.pool import Pool
from batchscribe.worker.progress import Board, Ending, places
from batchscribe.worker.records import Records
from batchscribe.worker.session_queue import Failed, Prepared
from batchscribe.worker.timeline import Ended, Ready

LOG = structlog.get_logger()

MAX_ENGINE_BREAKS = 3
"""An engine that breaks so often without a result in between is broken, whatever it was given."""
POOLED_WINDOWS = 32
"""About 2 MB each: from so many the next batch is chosen."""
PAUSE_SECONDS = 0.02
"""How long an engine that holds windows waits for another one before it is told that none is there."""

Publish = Callable[[Heard], None]
Blame = Callable[[int, FailureKind, str], None]


class Hearing:
    """Gives windows to the engine and hands on what comes back. For one thread."""

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
        """Until nothing is left, or the worker should end. Raises EngineError where the engine is broken."""
        self._engine = engine
        with self._announcing:
            self._run(engine)

    def _run(self, engine: Engine) -> None:
        breaks = _Breaks()
        while not (breaks.over or self._finished()):
            try:
                for recognition in engine.transcribe(self._windows()):
                    self._answered(recognition)
                    self._hurry(engine)
                    self._accuse(breaks.survived(), FailureKind.CHUNK)
                self._expect_nothing_outstanding()
            except EngineError as error:
                LOG.warning("engine.broke", reason=str(error), trace=places(error.__cause__ or error))
                held = bool(self._in_engine)
                breaks.broke(self._give_up_in_engine(), str(error), held=held)
        self._accuse(breaks.suspects, FailureKind.MACHINE if breaks.engines_fault else FailureKind.CHUNK)
        if breaks.engines_fault:
            raise EngineError(breaks.verdict)

    def _hurry(self, engine: Engine) -> None:
        if self._ending.due() and (hurry := getattr(engine, "hurry", None)) is not None:
            hurry()

    def drain(self) -> None:
        """After a stop: a chunk whose last window came back may still have its end waiting here."""
        for number in (*self._chosen, *self._solos, *self._pool.clear()):
            self._lose(number)
        while (item := self._ready.get()) is not None:
            if isinstance(item, Ready):
                for chunk in item.touched:
                    self._drop(chunk)
            else:
                self._concluded(item)

    def suspects(self) -> tuple[int, ...]:
        """The chunks of which the engine has windows. For any thread, once the engine stands still."""
        numbers = tuple(self._in_engine)
        return tuple(sorted({chunk for number in numbers for chunk in self._assembly.waiting(number)}))

    def _finished(self) -> bool:
        nothing = self._ready.over and not (self._pool or self._chosen or self._solos)
        return self._ending.due() or nothing

    def _expect_nothing_outstanding(self) -> None:
        if self._in_engine:
            raise EngineError(f"the engine gave no result for {len(self._in_engine)} windows")

    def _windows(self) -> Iterator[Window | None]:
        """What the engine pulls from: ends when nothing is left, when the worker should end, or around a
        window that must be heard alone.
        """
        yield from self._next_windows()
        self._wait_until_announced()

    def _next_windows(self) -> Iterator[Window | None]:
        if self._solos:
            yield self._given(self._solos.popleft())
            return
        while not self._ending.due():
            if self._chosen:
                yield self._given(self._chosen.popleft())
                continue
            self._wait_until_announced()
            self._gather()
            if not self._pool:
                if not self._in_engine or self._ready.over:
                    return
                yield None
            elif not self._pool.oldest_alone:
                self._choose(max(1, int(getattr(self._engine, "batch", 1))))
            elif self._in_engine:
                return
            else:
                self._choose(1)
                yield from (self._given(self._chosen.popleft()) for _ in tuple(self._chosen))
                return

    def _gather(self) -> None:
        """Takes what is ready; waits where there is nothing, but not long while the engine has a window."""
        if not self._pool and not self._in_engine:
            while not self._pool and (item := self._awaited()) is not None:
                self._took(item)
        wait = 0.0 if self._pool else PAUSE_SECONDS
        while len(self._pool) < POOLED_WINDOWS and (item := self._polled(wait)) is not None:
            self._took(item)
            wait = 0.0

    def _awaited(self) -> Prepared | None:
        with self._board.starving():
            return self._ready.get(self._ending.due)

    def _polled(self, seconds: float) -> Prepared | None:
        with self._board.starving():
            return self._ready.poll(seconds)

    def _took(self, item: Prepared) -> None:
        if not isinstance(item, Ready):
            self._concluded(item)
        elif not all(map(self._assembly.dropped, item.touched)):
            self._put_into_pool(self._assembly.expect(item))

    def _put_into_pool(self, number: int) -> None:
        ready = self._assembly.ready(number)
        self._pool.add(number, ready.cut.speech, alone=ready.alone)

    def _choose(self, size: int) -> None:
        """The next windows, of which the progress in the store tells before the first one is heard: an engine
        that reads ahead asks again before that.

        What was chosen stays chosen: an engine that breaks takes no further window of its batch.
        """
        numbers = [number for number in self._pool.take(size) if self._wanted(number)]
        chunks = {chunk for number in numbers for chunk in self._assembly.waiting(number)}
        for chunk in chunks - self._begun:
            self._board.takes(self._key(chunk))
        self._begun |= chunks
        self._announced = self._announcing.submit(self._records.announce, set(map(self._key, chunks)))
        if not getattr(self._engine, "reads_ahead", False):
            self._wait_until_announced()
        self._chosen.extend(numbers)

    def _wait_until_announced(self) -> None:
        """Raises what the announcement raised: a mistake of ours, for a store's trouble is not raised."""
        if self._announced is not None:
            with self._board.starving("progress"):
                self._announced.result()
            self._announced = None

    def _wanted(self, number: int) -> bool:
        if self._assembly.waiting(number):
            return True
        self._assembly.forget(number)
        return False

    def _given(self, number: int) -> Window:
        ready = self._assembly.ready(number)
        keys = tuple(self._key(chunk) for chunk in self._assembly.waiting(number))
        self._in_engine[number] = keys
        self._board.engine_takes(keys)
        session = self._manifest.chunks[ready.touched[0]].session
        if ready.apart:
            # One vote for each language of a film, not one for the film.
            session = f"{session}#{ready.channel}"
        language = self._manifest.engine.language
        return Window(number, ready.cut.seconds_in, ready.cut.audio, language, session)

    def _answered(self, recognition: Recognition) -> None:
        self._board.engine_gives(self._in_engine.pop(recognition.window))
        self._take(recognition)

    def _take(self, recognition: Recognition) -> None:
        """See Assembly.answered."""
        again, whole = self._assembly.answered(recognition)
        for number in again:
            self._put_into_pool(number)
        for heard in whole:
            self._whole(heard)

    def _whole(self, heard: Heard) -> None:
        self._leave(heard.chunk)
        self._publish(heard)

    def _concluded(self, item: Ended | Failed) -> None:
        """No more windows of this chunk will come."""
        if isinstance(item, Ended):
            for heard in self._assembly.ended(item):
                self._whole(heard)
        elif not self._assembly.dropped(item.chunk):
            self._drop(item.chunk)
            self._blame(item.chunk, item.kind, item.message)

    def _leave(self, chunk: int) -> None:
        if chunk in self._begun:
            self._begun.remove(chunk)
            self._board.leaves(self._key(chunk))

    def _drop(self, chunk: int) -> None:
        self._assembly.drop(chunk)
        self._leave(chunk)

    def _lose(self, number: int) -> None:
        """A window that will not be transcribed: its chunks stay pending. If it was to be decoded again, its
        chunks keep the words of the first decoding.
        """
        if self._assembly.ready(number).wordless:
            self._take(Recognition(number, ()))
            return
        for chunk in self._assembly.waiting(number):
            self._drop(chunk)
        self._assembly.forget(number)

    def _give_up_in_engine(self) -> tuple[int, ...]:
        """What the engine had when it broke: heard again in parts, each alone; the chunks of a window that
        was alone and cannot be taken apart are given up.
        """
        broken, self._in_engine = self._in_engine, {}
        for keys in broken.values():
            self._board.engine_loses(keys)
        for number in [number for number in broken if self._assembly.ready(number).wordless]:
            del broken[number]
            self._lose(number)
        if len(broken) == 1 and self._only_one_in(number := next(iter(broken))):
            suspects = self._assembly.waiting(number)
            self._lose(number)
            return suspects
        for number in broken:
            parts, whole = self._assembly.again(number)
            self._solos.extend(parts)
            for heard in whole:
                self._whole(heard)
        return ()

    def _only_one_in(self, number: int) -> bool:
        """Whether a window cannot be taken apart any more."""
        ready = self._assembly.ready(number)
        return ready.alone or len(ready.chunks) == 1

    def _accuse(self, chunks: list[tuple[int, str]], kind: FailureKind) -> None:
        for chunk, reason in chunks:
            self._blame(chunk, kind, reason)

    def _key(self, chunk: int) -> str:
        return self._manifest.chunks[chunk].key


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

    def broke(self, chunks: tuple[int, ...], reason: str, *, held: bool) -> None:
        """`chunks` are to blame, if the engine is not. Where it `held` windows and none is to blame, they are
        heard again one by one: then it shows, and until then it does not count.
        """
        self._in_a_row += bool(chunks) or not held
        self.reason = reason
        self.suspects += [(chunk, reason) for chunk in chunks]

    def survived(self) -> list[tuple[int, str]]:
        """A result came: those who were suspected are to blame, the engine is not."""
        self._ever_worked = True
        guilty, self.suspects = self.suspects, []
        self._in_a_row = 0
        return guilty
