"""Simulated time: a timeline of events, the true clock, and the host's clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from batchscribe.adapters.machine.clock import Shielded

START = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
Act = Callable[[], object]


class Timeline:
    """The true protocols.Clock, in seconds from START; events happen while it advances.

    `after` is called after every event. An event may `cut` the line: `advance` then returns early, as
    when a process's machine loses its power.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.after: Callable[[], None] = lambda: None
        self.cut = False
        self.events = 0
        self._heap: list[tuple[float, int, Act]] = []
        self._count = 0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def boot(self) -> str:
        return "simulated"

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def moment(self, at: datetime) -> float:
        """Seconds of a moment on this timeline."""
        return (at - START).total_seconds()

    def at(self, seconds: float, act: Act) -> None:
        """Plans an event in `seconds` from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.seconds + max(0.0, seconds), self._count, act))

    def advance(self, seconds: float) -> None:
        """Advances the time, event by event, by `seconds` or up to a cut."""
        until = self.seconds + seconds
        heap = self._heap
        while heap and heap[0][0] <= until and not self.cut:
            at, _, act = heapq.heappop(heap)
            self.seconds = max(self.seconds, at)
            self.events += 1
            act()
            self.after()
        if not self.cut:
            self.seconds = max(self.seconds, until)


@dataclass(slots=True)
class HostTime:
    """Clock state of a host: error of its wall clock, and boot time."""

    offset: timedelta = timedelta(0)
    booted: float = -1000.0


class HostClock(Shielded):
    """Clock and Shield of one process of the controller's host."""

    def __init__(self, line: Timeline, host: HostTime) -> None:
        super().__init__()
        self.host = host
        self.pause: Callable[[float], None] = line.advance
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
