"""What a worker knows of itself, shared by its threads: counts, times, who is in flight, why it ends."""

from __future__ import annotations

import threading
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec
import structlog

from batchscribe.core.run.manifest import (
    ExitRecord,
    Failure,
    Manifest,
    ManifestChunk,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
)
from batchscribe.core.scan.chunks import audio_name
from batchscribe.errors import BatchscribeError
from batchscribe.protocols import Clock

LOG = structlog.get_logger()


def places(error: BaseException) -> list[str]:
    """Where an error came from, for the log, without its text: that might hold what was said."""
    return traceback.format_tb(error.__traceback__)


class Ending:
    """Whether the worker should end, and why: asked to, out of time, or broken."""

    def __init__(self, clock: Clock, deadline: datetime, should_stop: Callable[[], bool]) -> None:
        self._clock = clock
        self._deadline = deadline
        self._should_stop = should_stop
        self.error: BatchscribeError | None = None

    def due(self) -> bool:
        return bool(self.error) or self._should_stop() or self._late()

    def fail(self, error: BatchscribeError) -> None:
        """The first error is the one that counts; the rest follows from it."""
        self.error = self.error or error

    def fail_unexpectedly(self, where: str, error: BaseException) -> None:
        """For a mistake of ours. The log gets its place only: its text might hold what was said."""
        LOG.error(
            "worker.broke",
            where=where,
            error=type(error).__name__,
            trace=places(error),
        )
        self.fail(
            BatchscribeError(
                f"the worker broke in {where} ({type(error).__name__}): what was done is kept; see its log"
            )
        )

    def _late(self) -> bool:
        return self._clock.now() >= self._deadline

    @property
    def reason(self) -> str:
        """One line: why the worker ended before all its chunks were looked at."""
        if self.error:
            return str(self.error)
        return "the deadline passed" if self._late() else "asked to stop"


class Board:
    """Counts and times of one worker; every method may be called from any thread."""

    def __init__(self, manifest: Manifest, clock: Clock) -> None:
        self._manifest = manifest
        self._clock = clock
        self._lock = threading.RLock()
        self._begun = clock.monotonic()
        self._phase = Phase.STARTING
        self._tally = Tally()
        self._timings = Timings()
        self._in_flight: Counter[str] = Counter()
        self._in_engine = 0
        self._results = 0
        self._engine_since = 0.0
        self._failures: list[Failure] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._bytes: Counter[str] = Counter()
        self._sequence = 0
        self._flags: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._starved_by: defaultdict[str, float] = defaultdict(float)
        self._longest = 0.0
        self._last_result = 0.0
        self._paused: float | None = None

    def elapsed(self) -> float:
        return self._clock.monotonic() - self._begun

    def phase(self, phase: Phase) -> None:
        with self._lock:
            self._phase = phase

    def loaded(self) -> None:
        with self._lock:
            self._phase = Phase.WORKING
            self._timings = msgspec.structs.replace(self._timings, loaded=self.elapsed())

    def ended(self) -> None:
        """Nothing is in flight or in the engine any more, whatever was left in the middle."""
        with self._lock:
            self._phase = Phase.ENDED
            self._timings = msgspec.structs.replace(self._timings, busy=self.timings().busy)
            self._in_engine = 0
            self._in_flight.clear()

    def takes(self, key: str) -> None:
        """A decoder or the engine took something of this chunk."""
        with self._lock:
            self._in_flight[key] += 1

    def leaves(self, key: str) -> None:
        with self._lock:
            self._in_flight[key] -= 1
            if self._in_flight[key] <= 0:
                del self._in_flight[key]

    def engine_takes(self, keys: Sequence[str]) -> None:
        """A window of these chunks goes into the engine."""
        with self._lock:
            for key in keys:
                self.takes(key)
            if not self._in_engine:
                self._engine_since = self._last_result = self.elapsed()
                if self._timings.first_window is None:
                    self._timings = msgspec.structs.replace(self._timings, first_window=self._engine_since)
            self._in_engine += 1

    def engine_gives(self, keys: Sequence[str]) -> None:
        """A window came back with its result."""
        with self._lock:
            self._results += 1
            now = self.elapsed()
            self._longest, self._last_result = max(self._longest, now - self._last_result), now
            self.engine_loses(keys)

    def engine_loses(self, keys: Sequence[str]) -> None:
        """A window is out of the engine."""
        with self._lock:
            for key in keys:
                self.leaves(key)
            self._in_engine -= 1
            if not self._in_engine:
                busy = self._timings.busy + self.elapsed() - self._engine_since
                self._timings = msgspec.structs.replace(self._timings, busy=busy)

    def engine_silent(self) -> tuple[float, float]:
        """Seconds since the engine gave something, or got something when it had nothing, 0 where it has no
        window; and the longest that it ever took for one.
        """
        with self._lock:
            return (self._now() - self._last_result if self._in_engine else 0.0), self._longest

    @contextmanager
    def waiting_for(self, stage: str) -> Iterator[None]:
        """A thread waits for what a stage has to give."""
        with self._lock:
            self._waiting[stage] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[stage] -= 1

    @contextmanager
    def starving(self, stage: str = "") -> Iterator[None]:
        """The engine does nothing until the block ends, whatever it holds. Where no stage is named, the
        earliest that others wait for is to blame, else the one right before the engine.
        """
        with self._lock:
            stage = stage or next((each for each in ("cut", "fetch") if self._waiting[each]), "decode")
            self._paused = self.elapsed()
        try:
            yield
        finally:
            with self._lock:
                self._starved_by[stage] += self._resumed()

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """The engine's thread waits until what it gave is taken: that is not the engine's work."""
        with self._lock:
            self._paused = self.elapsed()
        try:
            yield
        finally:
            with self._lock:
                blocked = self._timings.blocked + self._resumed()
                self._timings = msgspec.structs.replace(self._timings, blocked=blocked)

    def _resumed(self) -> float:
        """Seconds of the pause that ends: none of the engine's work, and no silence of the engine."""
        lost, self._paused = self.elapsed() - self._now(), None
        self._engine_since += lost
        self._last_result += lost
        return lost

    def _now(self) -> float:
        """On the engine's clock, which stands still while the engine waits for others."""
        return self.elapsed() if self._paused is None else self._paused

    def done(self, chunk: ManifestChunk, seconds: float, flags: Sequence[str] = ()) -> None:
        name = audio_name(chunk.key)
        kind = name.type if name else ""
        with self._lock:
            self._count(
                done=self._tally.done + 1,
                audio_seconds=self._tally.audio_seconds + seconds,
                audio_bytes=self._tally.audio_bytes + chunk.size,
            )
            self._flags.update(flags)
            self._seconds[kind] += seconds
            self._bytes[kind] += chunk.size

    def failed(self, failure: Failure) -> None:
        with self._lock:
            self._failures.append(failure)
            self._count(failed=self._tally.failed + 1)

    def skipped(self) -> None:
        with self._lock:
            self._count(skipped=self._tally.skipped + 1)

    def _count(self, **changes: float) -> None:
        self._tally = msgspec.structs.replace(self._tally, **changes)

    @property
    def tally(self) -> Tally:
        return self._tally

    def timings(self) -> Timings:
        """As of now: the engine's open stretch of work counts as busy, the rest since loading as starved."""
        with self._lock:
            elapsed, loaded = self.elapsed(), self._timings.loaded
            open_stretch = self._now() - self._engine_since if self._in_engine else 0.0
            busy = self._timings.busy + open_stretch
            rest = elapsed - (loaded or 0.0) - busy - self._timings.blocked
            starved = max(0.0, rest) if loaded is not None else 0.0
            return msgspec.structs.replace(
                self._timings,
                elapsed=elapsed,
                busy=busy,
                starved=starved,
                starved_by={stage: round(seconds, 3) for stage, seconds in self._starved_by.items()},
            )

    def progress(self) -> Progress:
        with self._lock:
            self._sequence += 1
            return Progress(
                run=self._manifest.run,
                worker=self._manifest.worker,
                sequence=self._sequence,
                phase=self._phase,
                at=self._clock.now(),
                total=len(self._manifest.chunks),
                tally=self._tally,
                timings=self.timings(),
                results=self._results,
                in_engine=self._in_engine,
                in_flight=tuple(sorted(self._in_flight)),
            )

    def exit_record(
        self, end: WorkerEnd, message: str, device: str, *, gpu_broken: bool = False
    ) -> ExitRecord:
        with self._lock:
            return ExitRecord(
                run=self._manifest.run,
                worker=self._manifest.worker,
                end=end,
                message=message,
                at=self._clock.now(),
                tally=self._tally,
                timings=self.timings(),
                failures=tuple(self._failures),
                device=device,
                gpu_broken=gpu_broken,
                seconds_by_type=dict(self._seconds),
                bytes_by_type=dict(self._bytes),
                flags=dict(self._flags),
            )
