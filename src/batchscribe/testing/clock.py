"""A clock that advances only by sleeps, with calls planned at moments."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from batchscribe.adapters.machine.clock import Shielded

Act = Callable[[], object]


class FakeClock(Shielded):
    """A protocols.Clock with its Shield.

    `at` plans a call, which is made when a sleep reaches its moment; `after` is called after each.
    `interrupt` is a signal: it ends the sleep with an exception, unless the sleeper is shielded. `cut` ends
    the sleep without one, as if the sleeper was killed: no call is made and no time passes until it is reset.
    """

    def __init__(
        self, now: datetime = datetime(2026, 11, 23, 12, 0, tzinfo=UTC), *, uptime: float = 1000.0
    ) -> None:
        super().__init__()
        self.seconds = uptime
        """Monotonic time."""
        self.after: Act = lambda: None
        self.cut = False
        self.events = 0
        """Number of planned calls that were made."""
        self._zero = now - timedelta(seconds=uptime)
        self._plans: list[tuple[float, int, Act]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._zero + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def boot(self) -> str:
        return "fake"

    def sleep(self, seconds: float) -> None:
        self.check()
        until = self.seconds + seconds
        plans = self._plans
        while plans and plans[0][0] <= until and not self.cut:
            at, _, act = heapq.heappop(plans)
            self.seconds = max(self.seconds, at)
            self.events += 1
            act()
            self.after()
            self.check()
        if not self.cut:
            self.seconds = max(self.seconds, until)

    def at(self, seconds: float, act: Act) -> None:
        """Plans a call in `seconds` from now."""
        heapq.heappush(self._plans, (self.seconds + max(0.0, seconds), next(self._order), act))

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or back; no monotonic time passes."""
        self._zero += timedelta(seconds=seconds)

    def interrupt(self, name: str = "SIGTERM") -> None:
        self.signal = name
