"""Shows a run's progress on a terminal, else in periodic log lines."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import Self, TextIO

import structlog
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from batchscribe.core.figures import format_clock
from batchscribe.core.redaction import printable
from batchscribe.core.run.manifest import Progress as WorkerProgress
from batchscribe.core.run.runs import Run
from batchscribe.core.run.waiting import Wait, wait_text
from batchscribe.protocols import Clock

LINE_EVERY_SECONDS = 30.0
WAIT_EVERY_SECONDS = 60.0


class ProgressView:
    """Context manager that shows chunks, audio and time left of a run.

    While nothing is transcribed, shows what is waited for. The bar and the lines go to stderr (or `stream`):
    stdout is for a command's result. `quiet`: nothing is drawn.
    """

    def __init__(self, clock: Clock, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._clock = clock
        self._console = Console(file=stream or sys.stderr, quiet=quiet)
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._line: Live | None = None
        self._waits: dict[str, tuple[str, float, int]] = {}
        """By run: text and time of the last line of its wait, and the number of polls since."""
        self._logged: tuple[int, int, int] | None = None
        """Done, failed and total chunks of the last line."""
        self._logged_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Removes bar and line from the terminal."""
        with suppress(OSError):
            if self._bar:
                self._bar.stop()
            if self._line:
                self._line.stop()
        self._bar = self._line = None

    def show(self, run: Run, progress: WorkerProgress) -> None:
        """Shows the progress that a worker of the run reports."""
        if self._console.is_terminal:
            self._draw_bar(run.id, progress)
        else:
            self._log_line(progress)

    def wait(self, wait: Wait, run: str = "") -> None:
        """Shows a wait: a line on a terminal, and folded log lines."""
        self._log_wait(wait, run)
        if self._console.is_terminal:
            with suppress(OSError):  # a terminal that is gone must not end a run
                self._draw_line(_fit_width(wait, self._console.width))

    def _draw_line(self, text: str) -> None:
        if self._line is None:
            self.clear()
            self._line = Live(
                console=self._console, transient=True, auto_refresh=False, redirect_stdout=False
            )
            self._line.start()
        self._line.update(Text(printable(text)), refresh=True)

    def _log_wait(self, wait: Wait, run: str) -> None:
        """Logs a wait when its cause changes, then once a minute.

        Each line has the number of polls.
        """
        now = self._clock.monotonic()
        text, since, polls = self._waits.get(run, ("", 0.0, 0))
        if text == wait.text and now - since < WAIT_EVERY_SECONDS:
            self._waits[run] = (text, since, polls + 1)
            return
        self._waits[run] = (wait.text, now, 0)
        fields = {"run": run} if run else {}
        repeated = {"polls": polls + 1} if text == wait.text else {}
        structlog.get_logger().info("waiting", why=wait_text(wait), **fields, **repeated)

    def _draw_bar(self, label: str, progress: WorkerProgress) -> None:
        tally = progress.tally
        if self._bar is None:
            self.clear()
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                transient=True,
                redirect_stdout=False,
            )
            self._bar.start()
            self._row = self._bar.add_task(label, total=progress.total, note="")
        assert self._row is not None
        note = f"{format_clock(tally.audio_seconds)} of audio, {tally.failed} failed, {_left_text(progress)}"
        self._bar.update(
            self._row,
            completed=tally.seen,
            total=progress.total,
            description=label,
            note=note,
            refresh=True,
        )

    def _log_line(self, progress: WorkerProgress) -> None:
        """Logs changed counts, at most every LINE_EVERY_SECONDS and at the end."""
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
            audio=format_clock(tally.audio_seconds),
            left=_left_text(progress),
        )


def _fit_width(wait: Wait, width: int) -> str:
    """Shortens a wait's cause until its line fits the terminal."""
    over = len(wait_text(wait)) - width
    return wait_text(replace(wait, text=f"{wait.text[: -over - 1]}…") if over > 0 else wait)


def _left_text(progress: WorkerProgress) -> str:
    left = progress.time_left
    return "time left unknown" if left is None else f"{format_clock(left.total_seconds())} left"
