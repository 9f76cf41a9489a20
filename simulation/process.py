"""Slot of one process of the controller's host: gate, clock and world."""

from __future__ import annotations

from batchscribe.controller.context import World
from simulation.gate import Gate
from simulation.timeline import HostClock


class Slot:
    """Holds one process after the other, without shared memory."""

    def __init__(self, gate: Gate, clock: HostClock, host: str) -> None:
        self.gate = gate
        self.clock = clock
        self.host = host
        """Name of its machine."""
        self.interrupted: Slot | None = None
        """Slot whose process was running when this one began, and continues after it."""
        self.world: World
        self.pid = 0
        self.running = False

    def begin(self, pid: int) -> None:
        self.pid, self.running = pid, True
        self.gate.begin()
        self.clock.begin()

    def end(self) -> None:
        self.running = False

    @property
    def lives(self) -> bool:
        return self.running and not self.gate.dead
