"""Simulated time: events, the true clock, and the host's clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from batchscribe.adapters.machine.clock import Shielded
from batchscribe.testing.clock import FakeClock

START = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


class Timeline(FakeClock):
    """The true clock, in seconds from START."""

    def __init__(self) -> None:
        super().__init__(START, uptime=0.0)
        self._shown = (0.0, START)
        """The present moment in both forms: each step needs it, and most steps take no time."""

    def now(self) -> datetime:
        if self.seconds != self._shown[0]:
            self._shown = self.seconds, super().now()
        return self._shown[1]

    def moment(self, at: datetime) -> float:
        """Seconds of a moment on this timeline."""
        return (at - START).total_seconds()


@dataclass(slots=True)
class HostTime:
    """A host's clock: error of its wall clock, and boot time."""

    offset: timedelta = timedelta(0)
    booted: float = -1000.0


class HostClock(Shielded):
    """Clock and Shield of one process of the controller's host."""

    def __init__(self, line: Timeline, host: HostTime) -> None:
        super().__init__()
        self.host = host
        self.pause: Callable[[float], None] = line.sleep
        """Passes the time of a sleep; a simulated process adds crash points."""
        self._line = line

    def now(self) -> datetime:
        return self._line.now() + self.host.offset

    def monotonic(self) -> float:
        """Seconds since the host's boot."""
        return self._line.seconds - self.host.booted

    def boot(self) -> str:
        return f"boot at {self.host.booted}"

    def sleep(self, seconds: float) -> None:
        self.check()
        self.pause(seconds)
        self.check()

    def interrupt(self, name: str = "SIGTERM") -> None:
        self.signal = name

    def begin(self) -> None:
        """Begins a new process, without signal or shield."""
        self.signal, self._shields = None, 0
