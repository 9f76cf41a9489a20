"""This machine's clock, and the signals that interrupt a wait."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Self

from batchscribe.detached import boot_id
from batchscribe.errors import InterruptedRunError


class Shielded:
    """Defers signals inside `shielded`; elsewhere `check` raises them."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._shields = 0

    def check(self) -> None:
        """Raises InterruptedRunError for a deferred or swallowed signal."""
        if self.signal and not self._shields:
            raise InterruptedRunError(f"interrupted ({self.signal})")

    @contextmanager
    def shielded(self) -> Iterator[None]:
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1


class Interrupts(Shielded):
    """Turns SIGTERM, SIGINT and SIGHUP into one InterruptedRunError in the main thread.

    The first signal raises at any point of the main thread, so that a wait on the network or on a child
    process ends at once: every step is repeatable, so this is no worse than a crash. Inside `shielded` it is
    deferred: a teardown must not be interrupted. A signal that the process ignores, as under `nohup`, stays
    ignored.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        handled = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in handled:
            self._before[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, _frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = signal.Signals(number).name
        if first:
            self.check()


class TimeLimit:
    """Kills this process if `restart` is not called for `seconds`.

    This ends a call that never returns. The kernel does it (unhandled SIGALRM), wherever the process hangs,
    and frees its lock. The run is only paused: the next pass continues it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def restart(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._seconds)


class SystemClock:
    """Wall clock for records, boot clock for waits: the former may jump."""

    def __init__(self, interrupts: Interrupts | None = None, *, boot: str = "") -> None:
        self._interrupts = interrupts
        self._boot = boot
        """Id instead of the kernel's, for a machine whose uptime does not count while it is frozen."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def booted(self) -> datetime:
        """Start of this boot by the present wall clock."""
        return self.now() - timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Seconds of CLOCK_BOOTTIME: counts while suspended, common to all processes."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot(self) -> str:
        return self._boot or boot_id()

    def sleep(self, seconds: float) -> None:
        if self._interrupts:
            self._interrupts.check()
        time.sleep(seconds)
