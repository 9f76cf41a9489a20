"""Progress, statistics and end of a worker, shared by its threads."""

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


def format_traceback(error: BaseException) -> list[str]:
    """Traceback for the log, without the text: it might contain transcribed words."""
    return traceback.format_tb(error.__traceback__)


class Ending:
    """End of the worker: by a stop request, the deadline, or error."""

    def __init__(self, clock: Clock, deadline: datetime, should_stop: Callable[[], bool]) -> None:
        self._clock = clock
        self._deadline = deadline
        self._limit = clock.monotonic() + (deadline - clock.now()).total_seconds()
        """Monotonic time of the deadline: a clock that is set back extends no work."""
        self._should_stop = should_stop
        self.error: BatchscribeError | None = None

    def is_due(self) -> bool:
        return bool(self.error) or self._should_stop() or self._is_late()

    def fail(self, error: BatchscribeError) -> None:
        """Records the error; only the first counts, others follow from it."""
        self.error = self.error or error

    def fail_unexpectedly(self, where: str, error: BaseException) -> None:
        """Records a bug; logs no text, which might contain transcribed words."""
        LOG.error(
            "worker.broke",
            where=where,
            error=type(error).__name__,
            trace=format_traceback(error),
        )
        self.fail(
            BatchscribeError(
                f"the worker crashed in {where} ({type(error).__name__}): "
                "finished transcripts are kept; see its log"
            )
        )

    def _is_late(self) -> bool:
        return self._clock.now() >= self._deadline or self._clock.monotonic() >= self._limit

    @property
    def reason(self) -> str:
        """One line: why the worker ended before all its chunks were processed."""
        if self.error:
            return str(self.error)
        return "the deadline passed" if self._is_late() else "stop requested"


class ProgressTracker:
    """Counts and times of one worker. Thread-safe."""

    def __init__(self, manifest: Manifest, clock: Clock, begun: float | None = None) -> None:
        """`begun`: monotonic time at which the worker's process started; None for now."""
        self._manifest = manifest
        self._clock = clock
        self._lock = threading.RLock()
        self._begun = clock.monotonic() if begun is None else begun
        self._phase = Phase.STARTING
        self._tally = Tally()
        self._timings = Timings(since_boot=self._begun, manifest=self.measure_elapsed())
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

    def measure_elapsed(self) -> float:
        return self._clock.monotonic() - self._begun

    def set_phase(self, phase: Phase) -> None:
        with self._lock:
            self._phase = phase

    def record_loaded(self) -> None:
        with self._lock:
            self._phase = Phase.WORKING
            self._update_timings(loaded=self.measure_elapsed())

    def record_ready(self) -> None:
        """Records the first window that is ready for the engine."""
        with self._lock:
            if self._timings.first_audio is None:
                self._update_timings(first_audio=self.measure_elapsed())

    def record_end(self) -> None:
        """Records the end; clears what is in flight or in the engine."""
        with self._lock:
            self._phase = Phase.ENDED
            self._update_timings(busy=self.compute_timings().busy)
            self._in_engine = 0
            self._in_flight.clear()

    def add_in_flight(self, key: str) -> None:
        """Records that a decoder or the engine took part of a chunk."""
        with self._lock:
            self._in_flight[key] += 1

    def remove_in_flight(self, key: str) -> None:
        with self._lock:
            self._in_flight[key] -= 1
            if self._in_flight[key] <= 0:
                del self._in_flight[key]

    def enter_engine(self, keys: Sequence[str]) -> None:
        """Records that a window of these chunks enters the engine."""
        with self._lock:
            for key in keys:
                self.add_in_flight(key)
            if not self._in_engine:
                self._engine_since = self._last_result = self.measure_elapsed()
                if self._timings.first_window is None:
                    self._update_timings(first_window=self._engine_since)
            self._in_engine += 1

    def record_result(self, keys: Sequence[str]) -> None:
        with self._lock:
            self._results += 1
            now = self.measure_elapsed()
            self._longest, self._last_result = max(self._longest, now - self._last_result), now
            self._update_timings(last_result=now)
            self.leave_engine(keys)

    def leave_engine(self, keys: Sequence[str]) -> None:
        """Records that a window left the engine."""
        with self._lock:
            for key in keys:
                self.remove_in_flight(key)
            self._in_engine -= 1
            if not self._in_engine:
                busy = self._timings.busy + self.measure_elapsed() - self._engine_since
                self._update_timings(busy=busy)

    def measure_silence(self) -> tuple[float, float]:
        """Seconds since the engine's last result, and its longest per result.

        The first value starts when the engine got work, if that is later; 0 if it holds no window.
        """
        with self._lock:
            return (self._engine_now() - self._last_result if self._in_engine else 0.0), self._longest

    @contextmanager
    def note_waiting(self, stage: str) -> Iterator[None]:
        """Records that a thread waits for a stage's output."""
        with self._lock:
            self._waiting[stage] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[stage] -= 1

    @contextmanager
    def count_starved(self, stage: str = "") -> Iterator[None]:
        """Counts the block as idle time of the engine, caused by `stage`.

        Without a stage: the earliest one that threads wait for, else the one right before the engine.
        """
        with self._lock:
            stage = stage or next((name for name in ("cut", "fetch") if self._waiting[name]), "decode")
            self._paused = self.measure_elapsed()
        try:
            yield
        finally:
            with self._lock:
                self._starved_by[stage] += self._end_pause()

    @contextmanager
    def count_blocked(self) -> Iterator[None]:
        """Counts the block as blocked by publishers, not as engine work."""
        with self._lock:
            self._paused = self.measure_elapsed()
        try:
            yield
        finally:
            with self._lock:
                blocked = self._timings.blocked + self._end_pause()
                self._update_timings(blocked=blocked)

    def _end_pause(self) -> float:
        """Ends the pause; returns its seconds, which are neither work nor silence."""
        lost, self._paused = self.measure_elapsed() - self._engine_now(), None
        self._engine_since += lost
        self._last_result += lost
        return lost

    def _engine_now(self) -> float:
        """Time on the engine's clock, which pauses during waits for other stages."""
        return self.measure_elapsed() if self._paused is None else self._paused

    def record_done(self, chunk: ManifestChunk, seconds: float, flags: Sequence[str] = ()) -> None:
        name = audio_name(chunk.key)
        kind = name.type if name else ""
        with self._lock:
            self._update_tally(
                done=self._tally.done + 1,
                audio_seconds=self._tally.audio_seconds + seconds,
                audio_bytes=self._tally.audio_bytes + chunk.size,
            )
            self._update_timings(published=self.measure_elapsed())
            self._flags.update(flags)
            self._seconds[kind] += seconds
            self._bytes[kind] += chunk.size

    def record_failed(self, failure: Failure) -> None:
        with self._lock:
            self._failures.append(failure)
            self._update_tally(failed=self._tally.failed + 1)

    def record_skipped(self) -> None:
        with self._lock:
            self._update_tally(skipped=self._tally.skipped + 1)

    def _update_tally(self, **changes: float) -> None:
        self._tally = msgspec.structs.replace(self._tally, **changes)

    def _update_timings(self, **changes: float) -> None:
        self._timings = msgspec.structs.replace(self._timings, **changes)

    @property
    def tally(self) -> Tally:
        return self._tally

    def compute_timings(self) -> Timings:
        """Timings now: engine work is busy, the rest since loading starved."""
        with self._lock:
            elapsed, loaded = self.measure_elapsed(), self._timings.loaded
            open_work = self._engine_now() - self._engine_since if self._in_engine else 0.0
            busy = self._timings.busy + open_work
            rest = elapsed - (loaded or 0.0) - busy - self._timings.blocked
            starved = max(0.0, rest) if loaded is not None else 0.0
            return msgspec.structs.replace(
                self._timings,
                elapsed=elapsed,
                busy=busy,
                starved=starved,
                starved_by={stage: round(seconds, 3) for stage, seconds in self._starved_by.items()},
            )

    def make_progress(self) -> Progress:
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
                timings=self.compute_timings(),
                results=self._results,
                in_engine=self._in_engine,
                in_flight=tuple(sorted(self._in_flight)),
            )

    def make_exit_record(
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
                timings=self.compute_timings(),
                failures=tuple(self._failures),
                device=device,
                gpu_broken=gpu_broken,
                seconds_by_type=dict(self._seconds),
                bytes_by_type=dict(self._bytes),
                flags=dict(self._flags),
            )
