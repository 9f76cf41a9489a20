"""One episode: a host and half a day of faults, by seed.

The production tick runs unchanged, process after process on one timeline. A process loses its memory when it
ends; ledger, store, cloud and GPU host continue.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from batchscribe.adapters.machine.logs import Event
from batchscribe.controller.tick import reconcile, tick, watch
from batchscribe.core.run.runs import Run
from batchscribe.errors import BatchscribeError
from simulation.actors import Actors
from simulation.fleet.stage import FleetStage
from simulation.gate import Crashed, Violation
from simulation.hosts import FIRST
from simulation.listening import Listener
from simulation.process import Slot
from simulation.stage import Stage
from simulation.weather import HOUR, MINUTE, Focus, add_fleet_faults, between, draw_weather, pick

STOP_TIMEOUT_SECONDS = 900.0
"""Time from SIGTERM to SIGKILL."""
LONGEST_END = 60
"""Maximum number of ticks, each after the longest wait, until one more chunk is done or quarantined, or one
more attempt has failed: up to three unproductive starts, each a day after the previous one."""
LONGEST_REST = 6 * HOUR
"""Maximum time for a second host to finish its open runs in the calm period."""
BY_HAND = -1
"""Id of a process that a user starts."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Counts of one episode or several."""

    hours: float = 0.0
    ticks: int = 0
    reconciles: int = 0
    watches: int = 0
    steps: int = 0
    events: int = 0
    crashes: int = 0
    met: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add_counts(self, other: Counts) -> None:
        for each in fields(Counts):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True, kw_only=True)
class Result(Counts):
    """Result of an episode."""

    seed: int
    digest: str = ""
    violation: str = ""
    last: list[str] = field(default_factory=list)


def play(seed: int, listener: Listener, focus: Focus | None = None) -> Result:
    """Plays the episode to its end, or to the first violation."""
    episode = Episode(seed, focus)
    listener.collect = episode.logged
    try:
        episode.run()
    except Violation as violation:
        episode.result.violation = str(violation)
        episode.result.last = episode.stage.trace.last()
    return episode.collect_result()


class Episode:
    """The controller's host: timers, power and processes."""

    def __init__(self, seed: int, focus: Focus | None = None) -> None:
        self.rng = random.Random(seed)
        self.weather = draw_weather(self.rng, focus, random.Random(~seed))
        if self.weather.fleet:
            self.weather = add_fleet_faults(self.rng, self.weather)
        self.stage = (FleetStage if self.weather.fleet else Stage)(self.rng, self.weather)
        self.result = Result(seed=seed)
        self.hours = between(self.rng, 5.0, 11.0) / (2 if self.weather.fleet else 1)
        self._every = self.stage.policy.check_interval.total_seconds()
        self._waits = self.rng.random() < 0.3
        """True if its ticks wait, as in a terminal or from units of version 0.1."""
        self._after = self.rng.random() < 0.3
        self._next_tick = between(self.rng, 0.0, self._every)
        self._next_watch = between(self.rng, 0.0, MINUTE)
        self._down_until = 0.0
        self.actors = Actors(self.stage, self.weather, self._as_process)

    def run(self) -> None:
        """Plays the faults, then the calm period, which has to finish everything."""
        self._plan()
        line = self.stage.line
        while line.seconds < self.hours * HOUR:
            self._wait()
        self._calm()
        for _ in range(2):
            self._tick(wait=True)
            self._rest(self._every)
        self.stage.checker.quiet()
        self._to_the_end()

    def _to_the_end(self) -> None:
        """Waits for the remaining chunks while they come nearer to their end."""
        checker, line, runs = self.stage.checker.chunks, self.stage.line, self.stage.checker.runs
        attempts, waited = self.stage.config.max_attempts, 0
        progress = checker.progress(attempts)
        while checker.list_undone() and waited < LONGEST_END:
            line.sleep(self.stage.policy.max_wait.total_seconds())
            begun = len(runs)
            self._tick(wait=True)
            checker.check_waits(len(runs) - begun)
            before, progress = progress, checker.progress(attempts)
            waited = 0 if progress > before else waited + 1
        checker.check_end()

    def collect_result(self) -> Result:
        """Returns the result with all counters."""
        stage, result = self.stage, self.result
        result.digest = stage.trace.digest
        result.hours = stage.line.seconds / HOUR
        gates = [stage.main.gate, stage.beside.gate]
        if self.actors.second:
            gates.append(self.actors.second.slot.gate)
        result.steps, result.events = sum(gate.steps for gate in gates), stage.line.events
        result.crashes = sum(gate.crashes for gate in gates)
        for gate in gates:
            result.met += gate.met
        result.outcomes = Counter(
            (run.outcome.value if run.outcome else "open") for run in stage.checker.runs.values()
        )
        return result

    def logged(self, event: Event) -> None:
        """I9 for the log, and E: an internal error is logged there."""
        self.stage.checker.check_text("line of the log", " ".join(map(str, event.values())))
        if "exception" in event or event.get("level") in {"error", "critical"}:
            self.stage.gate.violated("E", f"an internal error was logged: {event}")

    # what is planned

    def _plan(self) -> None:
        rng, line, hours = self.rng, self.stage.line, self.hours
        self.stage.plan(hours * 0.7)
        self.actors.plan(hours * 0.7)
        for _ in range(self.weather.outages):
            line.at(between(rng, 0.0, hours * HOUR), self._power_loss)
        for _ in range(self.weather.jumps):
            line.at(between(rng, 0.0, hours * HOUR), self._jump)
        for _ in range(self.weather.bystanders):
            line.at(between(rng, 0.0, hours * HOUR), self._bystander)

    def _power_loss(self) -> None:
        line = self.stage.line
        if self._down_until > line.seconds:
            return
        self.result.met["the host lost its power"] += 1
        lasts = pick(self.rng, (2 * MINUTE, 20 * MINUTE, 2 * HOUR, 6 * HOUR, 24 * HOUR))
        self._down_until = line.seconds + lasts * between(self.rng, 0.5, 1.0)
        self.stage.trace.add("the host loses its power")
        self.stage.power_off()
        if self.rng.random() < self.weather.lost_disk:
            self.result.met["the ledger was lost"] += 1
            self.stage.lose_ledger()

    def _jump(self) -> None:
        self.result.met["the host's clock jumped"] += 1
        self.stage.jump(between(self.rng, -HOUR, HOUR))

    def _knock(self, number: int) -> None:
        """Plays the watchdog's timer while this process runs."""

        def knock() -> None:
            if not self._is_running(number):
                return
            if not self.stage.beside.running:  # its own unit is not started twice
                self._watch(self.stage.beside)
            self.stage.line.at(MINUTE, knock)

        self.stage.line.at(MINUTE, knock)

    def _bystander(self) -> None:
        """Plays an idle process that a user starts beside a tick."""
        try:
            self.stage.lock.take(BY_HAND)
        except BatchscribeError:
            self.result.met["refused by the lock"] += 1
        else:
            self.stage.lock.bury(BY_HAND)

    def _is_running(self, number: int) -> bool:
        """True if the process of that number still runs."""
        return self.stage.main.lives and self.stage.main.pid == number

    # the host's schedule

    def _wait(self) -> None:
        """Waits until the next timer of the host, and plays its process."""
        line = self.stage.line
        due = min(self._next_tick, self._next_watch)
        line.sleep(max(0.0, due - line.seconds))
        if self._down_until > line.seconds:
            line.sleep(self._down_until - line.seconds)
            self.stage.boot()
            self._next_tick = line.seconds + between(self.rng, 0.5, 2.0) * MINUTE
            # OnBootSec=1min of its timer.
            self._next_watch = line.seconds + between(self.rng, 1.0, 1.5) * MINUTE
        elif self._next_tick <= line.seconds:
            self._tick(wait=self._waits)
            self._next_tick = max(self._next_tick + self._every, line.seconds + 1.0)
            self._next_watch = min(self._next_watch, line.seconds + MINUTE)
        else:
            self._watch(self.stage.main)
            # While no run is open, lost or not, a pass is one poll: fewer passes suffice.
            again = MINUTE if self.stage.is_up or self.stage.ledger.open_runs() else 5 * MINUTE
            self._next_watch = max(self._next_watch + again, line.seconds + 1.0)

    def _tick(self, *, wait: bool) -> None:
        self.result.ticks += 1
        stage = self.stage

        def act() -> None:
            self._trace_end(tick(stage.main.world, stage.config, locked=stage.lock.held, wait=wait).runs)

        self._as_process("tick", stage.main, act)
        self.stage.checker.chunks.check_states(self.stage.true_scanner)
        if self._after and self._down_until <= self.stage.line.seconds:
            self._reconcile()  # as ExecStopPost= of version 0.1 does

    def _reconcile(self) -> None:
        self.result.reconciles += 1
        stage = self.stage

        def act() -> None:
            self._trace_end(reconcile(stage.main.world, stage.config, locked=stage.lock.held))

        self._as_process("reconcile", stage.main, act)

    def _watch(self, slot: Slot) -> None:
        self.result.watches += 1
        stage = self.stage

        def act() -> None:
            stage.trace.add(f"it ended: {watch(slot.world, stage.config, locked=stage.lock.held).found}")

        self._as_process("watchdog", slot, act)

    def _trace_end(self, runs: tuple[Run, ...]) -> None:
        self.stage.trace.add(f"it ended, after {len(runs)} runs")

    def _as_process(self, name: str, slot: Slot, act: Callable[[], object]) -> None:
        """Plays a process from its start to its end or crash."""
        stage = self.stage
        stage.begin(slot, name)
        if slot is stage.main and name != "watchdog":
            self._signal(slot.pid)
            self._knock(slot.pid)
        try:
            slot.gate.point(name)
            if slot.host == FIRST:
                self.actors.open_ledger()
            act()
        except Crashed:
            stage.trace.add("it is gone")
        except BatchscribeError as error:
            self.result.met[f"{name} ended: {type(error).__name__}"] += 1
            stage.trace.add(f"it ended: {type(error).__name__} {error}")
        except Exception as error:  # noqa: BLE001  any internal error
            stage.gate.violated("E", f"{name} raised {type(error).__name__}: {error}")
        finally:
            stage.end(slot)
        if stage.gate.violation:
            raise stage.gate.violation

    def _signal(self, number: int) -> None:
        """Plans a random SIGTERM, and SIGKILL if the process does not end."""
        if self.rng.random() >= self.weather.signal:
            return
        later = between(self.rng, 0.0, 30 * MINUTE)

        def ask() -> None:
            if self._is_running(number):
                self.result.met["SIGTERM"] += 1
                self.stage.main.clock.interrupt()
                self.stage.line.at(STOP_TIMEOUT_SECONDS, kill)

        def kill() -> None:
            if self._is_running(number):
                self.stage.kill(self.stage.main)

        self.stage.line.at(later, ask)

    def _calm(self) -> None:
        """Ends all faults and foreign use."""
        self.weather = replace(self.weather, signal=0.0)
        line = self.stage.line
        line.sleep(max(0.0, self._down_until - line.seconds))
        self.stage.calm()
        self.actors.calm()
        self._down_until = 0.0
        self.stage.boot()
        self._rest(10 * MINUTE)
        until = line.seconds + LONGEST_REST
        while not self.actors.rest and line.seconds < until:
            self._rest(MINUTE)

    def _rest(self, seconds: float) -> None:
        """Plays only the watchdog's timer for `seconds`."""
        until = self.stage.line.seconds + seconds
        while self.stage.line.seconds < until:
            self._watch(self.stage.main)
            self.stage.line.sleep(MINUTE)
