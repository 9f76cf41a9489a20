"""A clock that advances only by sleeps, with calls planned at moments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from batchscribe.adapters.machine.clock import Shielded


class FakeClock(Shielded):
    """A protocols.Clock with its Shield.

    `at` plans a call, which is made when a sleep reaches its moment. `interrupt` is a signal: it ends
    the sleep with an exception, unless the sleeper is shielded.
    """

    def __init__(self, now: datetime = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)) -> None:
        super().__init__()
        self._now = now
        self._uptime = timedelta(seconds=1000)
        self._plans: list[tuple[timedelta, Callable[[], object]]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._uptime.total_seconds()

    def boot(self) -> str:
        return "fake"

    def sleep(self, seconds: float) -> None:
        self.check()
        until = self._uptime + timedelta(seconds=seconds)
        while due := min((plan for plan in self._plans if plan[0] <= until), key=_moment, default=None):
            self._plans.remove(due)
            self._move(max(due[0], self._uptime))
            due[1]()
            self.check()
        self._move(max(until, self._uptime))

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        """Plans a call in `seconds` from now."""
        self._plans.append((self._uptime + timedelta(seconds=seconds), act))

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or back; no monotonic time passes."""
        self._now += timedelta(seconds=seconds)

    def interrupt(self, name: str = "SIGTERM") -> None:
        self.signal = name

    def _move(self, to: timedelta) -> None:
        self._now += to - self._uptime
        self._uptime = to


def _moment(plan: tuple[timedelta, Callable[[], object]]) -> timedelta:
    return plan[0]
