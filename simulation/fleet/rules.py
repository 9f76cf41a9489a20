"""Invariants and time bounds of created machines, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from itertools import chain

from batchscribe.controller import external_state
from batchscribe.controller.context import Waits
from batchscribe.controller.dispatch import REST_SECONDS
from batchscribe.core import keys
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS
from batchscribe.core.run.instances import MACHINE_TAG, Instance, InstanceState
from batchscribe.core.run.runs import Machine, Run
from batchscribe.testing.compute import CloudMachine, Span
from simulation.bills import CALL_SECONDS, Bills, Kept, Poll
from simulation.cloud import UP, Act
from simulation.fleet.cloud import OFFERS, ZONES, price
from simulation.gate import Gate
from simulation.invariants import Checker
from simulation.played_host import PlayedHost
from simulation.promises import Promises
from simulation.timeline import Timeline
from simulation.weather import MINUTE

SLACK = REST_SECONDS + MINUTE
"""An idle machine may wait for work of others, until the pass after REST_SECONDS."""
STEP_SECONDS = 5.0
_RUNS = f"{keys.INSTANCES}run-"


class FleetBills(Bills):
    """Compares each machine's bill with the running times under its name."""

    machines: Callable[[], Iterable[CloudMachine]]

    def ledger_lost(self, lost: Collection[str], older: Kept | None = None) -> None:
        known = chain(self._kept, older.polls if older else ())
        names = [name for name in known if name.rpartition("-")[0] in lost]
        super().ledger_lost({*lost, *names}, older)

    def check(self, run: Run) -> None:
        jumped = sum(abs(seconds) for at, seconds in self._jumps if at >= self._begun[run.id])
        for machine in run.machines:
            self._check_machine(run, machine, jumped)

    def _check_machine(self, run: Run, machine: Machine, jumped: float) -> None:
        named = [each for each in self.machines() if each.tags[MACHINE_TAG] == machine.id]
        spans = sorted((span for each in named for span in each.spans), key=lambda span: span.begin)
        if any(span.end is None for span in spans):
            self._gate.violated("I7", f"{run.id} was settled while {machine.id} runs")
        truth, billed = sum(self._measure(span) for span in spans), run.billed_seconds_of(machine)
        if truth and machine.meter.ran and not billed:
            self._gate.violated(
                "I13", f"{machine.id} was observed up, ran {truth:.0f} s and is billed nothing"
            )
        if billed + jumped + self.lag + 1.0 < truth:
            self._gate.violated("I7", f"{machine.id} ran {truth:.0f} s and is billed {billed:.0f} s")
        # Calls for other machines come between a poll and its record, too.
        most = self._find_longest_bill(run.id, machine.id, spans) + CALL_SECONDS + jumped
        # Others of its name are billed from launch to stop, by the cloud's clock.
        lives = [self._measure_life(each) for each in named]
        most += sum(lives) - max(lives, default=0.0)
        if jumped or run.id in self._recovered:
            most = max(most, (run.deadline - run.created).total_seconds() + 25 * MINUTE)
        if billed > most:
            text = f"{machine.id} ran {truth:.0f} s, is billed {billed:.0f} s, at most {most:.0f} s"
            self._gate.violated("I7", text)
        rates = [price(each.type, each.market, each.zone).per_hour.micros for each in named]
        if not spans or machine.rate is None:
            rates += [offer.rate.per_hour.micros for offer in OFFERS]
        elif machine.meter.running_until is None:  # its zone was never observed
            rates += [price(each.type, each.market, ZONES[0]).per_hour.micros for each in named]
        self._check_cost(machine.id, run.bill_of(machine), rates, truth - jumped - self.lag - 1.0, most)

    def _measure_life(self, machine: CloudMachine) -> float:
        stopped = self._line.now() if machine.stopped_at is None else machine.stopped_at
        seconds = (stopped - (machine.launched_at or stopped)).total_seconds()
        return max(MINIMUM_BILLED_SECONDS, seconds)

    def _measure(self, span: Span) -> float:
        return (self._line.seconds if span.end is None else span.end) - span.begin


class FleetChecker(Checker):
    """Checks each machine that was created for a run of ours."""

    created: list[CloudMachine]

    def use(self, created: list[CloudMachine]) -> None:
        """Sets the list of all created machines, which grows."""
        self.created = created
        self.bills = FleetBills(self._gate, self._line, self._cloud, self._ours, self.jumps)
        self.bills.machines = lambda: created
        self._alive: list[CloudMachine] = []
        self._known = 0
        self._polls: dict[str, Poll] = {}
        self._polls_of: dict[int, dict[str, Poll]] = {}

    def enter(self, pid: int, host: str, now: Callable[[], datetime]) -> None:
        super().enter(pid, host, now)
        self._polls = self._polls_of.setdefault(pid, {})

    def step(self) -> None:
        while self._known < len(self.created):
            self._alive.append(self.created[self._known])
            self._known += 1
        self._alive = [each for each in self._alive if each.state is not InstanceState.TERMINATED]
        for machine in self._alive:
            if machine.state in UP:
                self._check_guarded(machine, machine.tags[MACHINE_TAG], machine.holder)

    def polled(self, asked: float, at: float, seen: Instance) -> None:  # noqa: ARG002  the signature of the base
        self._polls[seen.id] = (asked, self._line.seconds, seen.state is InstanceState.PENDING)

    def acted(self, act: Act) -> None:
        if act.claim is not None:
            self._check_claim(act, act.claim)
        run = act.instance.rpartition("-")[0]
        if run not in self._deadlines and run not in self.runs:
            self._gate.violated("I3", f"{act.call} of {act.instance}, which is foreign")

    def saved(self, run: Run, at: datetime) -> None:
        self.bills.begin(run)
        if run.id in self._me.at_work:
            for name in set(run.instances) & self._polls.keys():
                self.bills.keep(name, self._polls.pop(name))
        super().saved(run, at)

    def quiet(self) -> None:
        """I8."""
        ledgers = self.ledgers()
        left = [f"run {run.id} is {run.state}" for ledger in ledgers for run in ledger.open_runs()]
        for machine in self.created:
            name = machine.tags[MACHINE_TAG]
            if machine.state is not InstanceState.TERMINATED:
                left.append(f"{name} is {machine.state}")
            left += [f"a guard's order for {name}" for _run in self._guard.standing(name)]
        left += [f"a note {note}" for ledger in ledgers for note in ledger.facts(external_state.NOTED)]
        left += [f"the record {key}" for key in self._bucket.keys(_RUNS)]
        if left:
            self._gate.violated("I8", f"two ticks without faults, and there is still {'; '.join(left)}")


class FleetPromises(Promises):
    """P1 to P4 of each created machine; messages are the base's."""

    def __init__(
        self, gate: Gate, line: Timeline, machine: CloudMachine, gpu_host: PlayedHost, waits: Waits
    ) -> None:
        super().__init__(gate, line, machine, gpu_host, waits)
        self.each: list[Promises] = []
        self._stepped, self._was_up = 0.0, True

    def add(self, promises: Promises, runs: Iterable[Run]) -> None:
        """Adds a new machine's, with the faults and runs so far."""
        promises.ours, promises.host_up = self.ours, self.host_up
        promises.booted()
        promises.wrong(max(0.0, self._wrong_until - self._line.seconds))
        for run in runs:
            promises.saved(run)
        self.each.append(promises)

    def wrong(self, seconds: float = 0.0) -> None:
        super().wrong(seconds)
        for promises in self.each:
            promises.wrong(seconds)

    def booted(self) -> None:
        super().booted()
        for promises in self.each:
            promises.booted()

    def polled(self) -> None:
        for promises in self.each:
            promises.polled()

    def saved(self, run: Run) -> None:
        super().saved(run)
        for promises in self.each:
            promises.saved(run)

    def step(self) -> None:
        # The bounds are minutes, and each step would check all machines.
        if self._line.seconds - self._stepped >= STEP_SECONDS or self.host_up() is not self._was_up:
            self._stepped, self._was_up = self._line.seconds, self.host_up()
            for promises in self.each:
                promises.step()
