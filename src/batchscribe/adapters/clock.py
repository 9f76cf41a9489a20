"""The clock of this machine, and the signals that cut a wait short."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType, TracebackType
from typing import Self

from batchscribe.errors import InterruptedRunError


class Shielded:
    """A signal that waits while somebody is shielded from it."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._shields = 0

    def check(self) -> None:
        """Raises where a signal came while shielded, or was lost in code that swallows exceptions."""
        if self.signal and not self._shields:
            raise InterruptedRunError(f"asked to end by {self.signal}")

    @contextmanager
    def shielded(self) -> Iterator[None]:
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1


class Interrupts(Shielded):
    """Turns SIGTERM, SIGINT and SIGHUP into one InterruptedRunError in the main thread.

    The first signal is raised wherever the main thread is, so that a wait on the network or on a
    child process ends at once: every step is repeatable, so this is no worse than a crash. Inside
    `shielded` it is only noted: a release must not be cut short by impatience. A signal that the
    process was told to ignore, as `nohup` does, stays ignored.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        heard = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in heard:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = signal.Signals(number).name
        if first:
            self.check()


class SystemClock:
    """Wall time for records, time since boot for waits: the wall clock may jump, the other cannot.

    `beat` is called at every look at it: whoever looks at the clock is not stuck.
    """

    def __init__(
        self, interrupts: Interrupts | None = None, *, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._interrupts = interrupts
        self._beat = beat

    def now(self) -> datetime:
        self._beat()
        return datetime.now(UTC)

    def booted(self) -> datetime:
        """When this boot began, by the wall clock as it stands now."""
        return self.now() - timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """CLOCK_BOOTTIME: counts while suspended, and is shared by all processes of one boot."""
        self._beat()
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        if self._interrupts:
            self._interrupts.check()
        self._beat()
        time.sleep(seconds)
