"""A second scheduler's host on the same bucket and instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from batchscribe.controller.context import RunConfig, World
from batchscribe.controller.external_state import NOTED
from batchscribe.controller.tick import tick, watch
from simulation.process import Slot
from simulation.seams import LedgerSeam
from simulation.timeline import Timeline
from simulation.weather import MINUTE

FIRST, SECOND = "first", "second"
"""Names of the machines."""
Process = Callable[[str, Slot, Callable[[], object]], None]


class SecondHost:
    """Host whose passes run between steps of the first host's.

    They never wait.
    """

    def __init__(
        self,
        slot: Slot,
        ledger: LedgerSeam,
        world: World,
        config: RunConfig,
        process: Process,
        *,
        cloned: bool,
    ) -> None:
        """Sets up the host; `process` plays a process.

        `cloned`: its state directory is a copy with the first host's id.
        """
        self.slot = slot
        self.ledger = ledger
        scheduler = config.scheduler if cloned else "another"
        self.config = replace(config, host=SECOND, scheduler=scheduler, lane=None)
        self._world = world
        self._process = process
        self._starts = True
        self._minutes = 0

    @property
    def rests(self) -> bool:
        """True if it has nothing left to do."""
        return not self.ledger.open_runs() and not self.ledger.facts(NOTED)

    def plan(self, line: Timeline, first_tick: float) -> None:
        line.at(first_tick, partial(self._tick, line))
        line.at(MINUTE, partial(self._watch, line))

    def retire(self) -> None:
        """Starts nothing from now on, and finishes open runs."""
        self._starts = False

    def _tick(self, line: Timeline) -> None:
        if not self._starts:
            return
        if not self.slot.running:
            self._process("tick", self.slot, lambda: tick(self._world, self.config, wait=False))
        line.at(self.config.policy.check_interval.total_seconds(), partial(self._tick, line))

    def _watch(self, line: Timeline) -> None:
        if not self._starts and self.rests:
            return
        self._minutes += 1
        # While no run is open a pass is one poll: fewer passes suffice.
        due = bool(self.ledger.open_runs()) or self._minutes % 5 == 0
        if due and not self.slot.running:
            self._process("watchdog", self.slot, lambda: watch(self._world, self.config))
        line.at(MINUTE, partial(self._watch, line))
