"""Shows a run's progress: a bar with the time left on a terminal, else periodic log lines."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TextIO

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from batchscribe.core.run.manifest import Progress as WorkerProgress
from batchscribe.core.run.runs import Run
from batchscribe.protocols import Clock

LINE_EVERY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Counts:
    done: int
    failed: int
    total: int
    audio_seconds: float
    eta: timedelta | None

    @property
    def seen(self) -> int:
        return self.done + self.failed

    @property
    def chunks(self) -> tuple[int, int, int]:
        return self.done, self.failed, self.total


class ProgressView:
    """Shows done, failed and total chunks, audio and the time left; a context manager.

    The bar and the lines go to stderr (or `stream`): stdout is for a command's result.
    """

    def __init__(self, clock: Clock, *, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._console = Console(file=stream or sys.stderr)
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._shown: _Counts | None = None
        self._logged_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, run: Run, progress: WorkerProgress) -> None:
        """Shows the progress that a worker of the run reports."""
        tally = progress.tally
        left = time_left(tally.seen, progress.total, progress.timings.elapsed, progress.timings.first_window)
        self.update(tally.done, tally.failed, progress.total, tally.audio_seconds, left, label=run.id)

    def update(
        self,
        done: int,
        failed: int,
        total: int,
        audio_seconds: float,
        eta: timedelta | None = None,
        *,
        label: str = "",
    ) -> None:
        """Shows the latest counts; `eta` is the time left, None if it is not known yet."""
        counts = _Counts(done, failed, total, audio_seconds, eta)
        if self._console.is_terminal:
            self._draw_bar(counts, label)
        else:
            self._log_line(counts)

    def _draw_bar(self, counts: _Counts, label: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._bar.start()
            self._row = self._bar.add_task(label, total=counts.total, note="")
        assert self._row is not None
        note = (
            f"{_clock_text(counts.audio_seconds)} of audio, {counts.failed} failed, {_eta_text(counts.eta)}"
        )
        self._bar.update(
            self._row, completed=counts.seen, total=counts.total, description=label, note=note, refresh=True
        )

    def _log_line(self, counts: _Counts) -> None:
        """Logs changed counts, at most every LINE_EVERY_SECONDS, and always for the last chunk."""
        now = self._clock.monotonic()
        fresh = self._shown is None or counts.chunks != self._shown.chunks
        ended = counts.seen >= counts.total
        due = self._shown is None or ended or now - self._logged_at >= LINE_EVERY_SECONDS
        if not (fresh and due):
            return
        self._shown, self._logged_at = counts, now
        structlog.get_logger().info(
            "progress",
            done=counts.done,
            failed=counts.failed,
            total=counts.total,
            audio=_clock_text(counts.audio_seconds),
            left=_eta_text(counts.eta),
        )


def time_left(seen: int, total: int, elapsed: float, first_window: float | None) -> timedelta | None:
    """Estimates the time left from the pace since the first window; None before it."""
    if not seen or first_window is None or total < seen:
        return None
    return timedelta(seconds=max(0.0, elapsed - first_window) / seen * (total - seen))


def _clock_text(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _eta_text(eta: timedelta | None) -> str:
    return "time left unknown" if eta is None else f"{_clock_text(eta.total_seconds())} left"
