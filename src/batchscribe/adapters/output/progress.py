"""Shows a run's progress: a bar with the time left on a terminal, else periodic log lines."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Self, TextIO

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from batchscribe.core.run.manifest import Progress as WorkerProgress
from batchscribe.core.run.runs import Run
from batchscribe.protocols import Clock

LINE_EVERY_SECONDS = 30.0


class ProgressView:
    """Shows done, failed and total chunks, audio and the time left; a context manager.

    The bar and the lines go to stderr (or `stream`): stdout is for a command's result.
    """

    def __init__(self, clock: Clock, *, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._console = Console(file=stream or sys.stderr)
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._logged: tuple[int, int, int] | None = None
        """Done, failed and total chunks of the last line."""
        self._logged_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, run: Run, progress: WorkerProgress) -> None:
        """Shows the progress that a worker of the run reports."""
        if self._console.is_terminal:
            self._draw_bar(run.id, progress)
        else:
            self._log_line(progress)

    def _draw_bar(self, label: str, progress: WorkerProgress) -> None:
        tally = progress.tally
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._row = self._bar.add_task(label, total=progress.total, note="")
        assert self._row is not None
        note = f"{_clock_text(tally.audio_seconds)} of audio, {tally.failed} failed, {_left_text(progress)}"
        self._bar.update(
            self._row,
            completed=tally.seen,
            total=progress.total,
            description=label,
            note=note,
            refresh=True,
        )

    def _log_line(self, progress: WorkerProgress) -> None:
        """Logs changed counts, at most every LINE_EVERY_SECONDS, and always for the last chunk."""
        tally, now = progress.tally, self._clock.monotonic()
        counts = (tally.done, tally.failed, progress.total)
        ended = tally.seen >= progress.total
        due = self._logged is None or ended or now - self._logged_at >= LINE_EVERY_SECONDS
        if counts == self._logged or not due:
            return
        self._logged, self._logged_at = counts, now
        structlog.get_logger().info(
            "progress",
            done=tally.done,
            failed=tally.failed,
            total=progress.total,
            audio=_clock_text(tally.audio_seconds),
            left=_left_text(progress),
        )


def _clock_text(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _left_text(progress: WorkerProgress) -> str:
    left = progress.time_left
    return "time left unknown" if left is None else f"{_clock_text(left.total_seconds())} left"
