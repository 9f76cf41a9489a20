"""A place for one process of the controller's host: its gate, its clock, and the world as it reaches it."""

from __future__ import annotations

from collections.abc import Callable

from batchscribe.controller.context import World
from batchscribe.core.holding import Holder
from batchscribe.testing.simulation.gate import Gate
from batchscribe.testing.simulation.timeline import HostClock

BOOT = "simulated"


class Slot:
    """Holds one process after the other; what the last one had in memory is gone with it."""

    def __init__(self, gate: Gate, clock: HostClock) -> None:
        self.gate = gate
        self.clock = clock
        self.world: World
        self.pid = 0
        self.running = False
        self._since = 0.0

    def begin(self, pid: int) -> None:
        self.pid, self.running = pid, True
        self.gate.begin()
        self.clock.begin()
        self._since = self.clock.uptime

    def end(self) -> None:
        self.running = False

    @property
    def lives(self) -> bool:
        return self.running and not self.gate.dead

    @property
    def holder(self) -> Holder:
        return Holder(pid=self.pid, boot=BOOT, ticks=self.pid, since=self._since, alive=self.clock.looked)


class HostProcesses:
    """A protocols.Processes for who runs beside `other`; `killed` is told the number of one that was."""

    def __init__(self, other: Slot, killed: Callable[[int], None]) -> None:
        self._other = other
        self._killed = killed

    def runs(self, holder: Holder) -> bool:
        return self._other.lives and self._other.pid == holder.pid

    def end(self, holder: Holder, *, force: bool = False) -> bool:
        if not self.runs(holder):
            return False
        if force:
            self._killed(holder.pid)
        else:
            self._other.clock.interrupt()
        return True
