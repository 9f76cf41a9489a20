"""Actors beside the scheduler: second host, operator, writer of the bucket."""

from __future__ import annotations

from functools import partial

from batchscribe.core.decide.observation import IfRunning
from batchscribe.core.run.runs import Run, RunState
from simulation.forger import Forger
from simulation.hosts import FIRST, SECOND, Process, SecondHost
from simulation.invariants import Memory
from simulation.operators import Edit, File, Operator, Settings, Unguarded
from simulation.seams import Bucket, LedgerCopy, StoreSeam
from simulation.stage import FOREIGN, INSTANCE, Stage
from simulation.timeline import HostTime
from simulation.weather import CALM, HOUR, MINUTE, Weather, between


class Actors:
    """All actors of a stage; only those of its weather act."""

    def __init__(self, stage: Stage, weather: Weather, process: Process) -> None:
        self.second: SecondHost | None = None
        self.damaged = False
        """True if the ledger's file is damaged, which the next process of the first host detects."""
        self._stage = stage
        self._weather = weather
        self._process = process
        self._agreed = stage.config
        self._copy: tuple[LedgerCopy, Memory] | None = None
        rng, line = stage.rng, stage.line
        self._forger = Forger(rng, line, stage.bucket, INSTANCE, stage.checker.runs)
        self._forger.uploaded, self._forger.forged = stage.uploads.keys, self._forged
        self._operator = Operator(rng, line, busy=lambda: stage.main.running or stage.beside.running)
        self._operator.edit, self._operator.handle = self._edit, self._handle_ledger
        self._operator.keep_copy = self._keep_copy
        stage.on_save = self._set_back

    def plan(self, hours: float) -> None:
        stage, weather = self._stage, self._weather
        self._forger.plan(weather.forgeries, hours)
        self._operator.plan(edits=weather.edits, files=weather.ledger_files, hours=hours)
        if weather.second_host and stage.rng.random() < weather.second_host:
            stage.line.at(between(stage.rng, 0.0, hours / 2 * HOUR), self._second_arrives)

    def calm(self) -> None:
        """Restores the first settings; no host but the first one starts anything."""
        self._weather, self._forger.over, self._operator.over = CALM, True, True
        self._stage.ledger.drop_unreadable()
        if self._stage.settings:
            self._edit(None)
        if self.second:
            self.second.slot.gate.expect(0.0)
            self.second.retire()

    @property
    def rest(self) -> bool:
        return self.second is None or self.second.rests

    def open_ledger(self) -> None:
        """Sets a damaged ledger aside, as a process does at its start."""
        if self.damaged:
            self.damaged = False
            self._stage.lose_ledger()

    def _met(self, what: str) -> None:
        self._stage.trace.add(f"=== {what}")
        self._stage.main.gate.met[what] += 1

    def _keep_copy(self) -> None:
        self._copy = self._stage.ledger.copy(), self._stage.checker.memory()

    def _handle_ledger(self, file: File) -> None:
        self._met(f"the ledger was {file}")
        match file:
            case File.DAMAGED:
                self.damaged = True
            case File.SET_ASIDE:
                self._stage.lose_ledger()
            case File.ROLLED_BACK:
                self._stage.replace_ledger(self._copy)
            case File.NEWER:
                self._stage.ledger.hold_unreadable()
            case File.READABLE:
                self._stage.ledger.drop_unreadable()

    def _edit(self, edit: Edit | None) -> None:
        self._met(f"settings edited: {edit}")
        stage, checker = self._stage, self._stage.checker
        unguarded = Unguarded(checker.unguarded.add, checker.left_armed.add)
        place = StoreSeam(Bucket(stage.line, url="memory://another"), stage.main.gate)
        stage.settings = Settings(edit, place, FOREIGN, unguarded)
        stage.config = stage.settings.config(self._agreed)
        stage.wire_worlds()
        stage.promises.wrong(MINUTE)

    def _forged(self, what: str) -> None:
        self._met(f"forged: {what}")
        self._stage.promises.wrong(HOUR)

    def _second_arrives(self) -> None:
        """Adds the second host; it copies the ledger only between runs."""
        stage = self._stage
        cloned = stage.rng.random() < self._weather.cloned
        self._met(f"a second host{', cloned' if cloned else ''}")
        slot = stage.new_slot(HostTime(booted=-2000.0), SECOND)
        stage.wire_slot(slot)
        slot.gate.expect(self._weather.crash)
        ledger = stage.new_ledger(slot.gate)
        if cloned and not stage.ledger.open_runs():
            ledger.restore(stage.ledger.copy())
        stage.others = (ledger,)
        # A borrowed instance has no tag: two schedulers may borrow it for the same chunks.
        stage.pays_twice |= stage.policy.if_running is IfRunning.USE
        world = stage.world_of(slot, ledger, FIRST if cloned else SECOND)
        self.second = SecondHost(slot, ledger, world, self._agreed, self._process, cloned=cloned)
        self.second.plan(stage.line, between(stage.rng, 0.0, stage.policy.check_interval.total_seconds()))

    def _set_back(self, run: Run) -> None:
        """Sets the clock back while a run works, and corrects it later."""
        stage, chance = self._stage, self._weather.set_back
        if run.state is not RunState.DISPATCHING or not chance or stage.at_work.host != FIRST:
            return
        if stage.host.offset or stage.rng.random() >= chance:
            return
        offset = -between(stage.rng, 0.3, 3.0) * HOUR
        stage.line.at(between(stage.rng, 0.0, 20 * MINUTE), partial(self._set_clock, offset))
        stage.line.at(between(stage.rng, 0.5, 3.0) * HOUR, partial(self._set_clock, 0.0))

    def _set_clock(self, offset: float) -> None:
        if self._weather is CALM:
            return
        if change := offset - self._stage.host.offset.total_seconds():
            self._stage.jump(change)
