"""The lock of a machine, and the tick that holds it: played, so that it can hang, wake up, or stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from batchscribe.controller.tick import tick
from batchscribe.core.holding import Holder
from batchscribe.errors import LockHeldError
from batchscribe.testing.clock import FakeClock
from support.world import Stage

PID = 4711


class StuckError(BaseException):
    """Here a call does not return: nothing after it happens."""


class PlayedTick:
    """A protocols.Lock and protocols.Processes: at most one other process, whose life the test plays."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.record: Holder | None = None
        """What the one that holds the lock says of itself."""
        self.held_now = False
        self.living: set[tuple[int, int]] = set()
        """The processes that there are, by number and start."""
        self.signals: list[tuple[int, bool]] = []
        """Who was asked to end, and whether it was killed."""
        self.on_ask: Callable[[], None] = lambda: None
        self.on_kill: Callable[[], None] = self.die
        self.taken = 0
        """How often the watchdog itself has held the lock."""

    def begin(self) -> None:
        now = self._clock.monotonic()
        self.record = Holder(pid=PID, boot="b", ticks=7, since=now, alive=now)
        self.living = {(PID, 7)}
        self.held_now = True

    def beat(self) -> None:
        assert self.record is not None
        self.record = replace(self.record, alive=self._clock.monotonic())

    def die(self) -> None:
        self.living = set()
        self.held_now = False

    def holder(self) -> str | None:
        return f"{PID} 2026-11-23T12:00:00+00:00" if self.held_now else None

    def held_by(self) -> Holder | None:
        return self.record if self.held_now else None

    @contextmanager
    def held(self) -> Iterator[None]:
        if self.held_now:
            raise LockHeldError("another tick is running; nothing was done")
        self.held_now, before = True, self.record
        self.record = None
        self.taken += 1
        try:
            yield
        finally:
            self.held_now, self.record = False, before

    def runs(self, holder: Holder) -> bool:
        return (holder.pid, holder.ticks) in self.living

    def end(self, holder: Holder, *, force: bool = False) -> bool:
        if not self.runs(holder):
            return False
        self.signals.append((holder.pid, force))
        (self.on_kill if force else self.on_ask)()
        return True


def hang(at: Stage, played: PlayedTick, after: float) -> None:
    """A tick that begins now, and is stuck after so many seconds, wherever it is then."""

    def stuck() -> None:
        played.beat()
        raise StuckError

    played.begin()
    at.clock.at(after, stuck)
    with contextlib.suppress(StuckError):
        tick(at.world, at.terms)
        raise AssertionError("it came to its end")
