"""What our words promise of times, held against the truth wherever nothing stands in the way.

P1   a GPU whose work has ended is asked to stop within two minutes while the controller's host is up
P2   without any controller its box switches it off within three
P3   work that hangs is ended a quarter of an hour after its last sign of life, on a borrowed machine, too
P4   a live controller looks at the instance that it pays for; and what people are told they are not told
     again within six hours

Each counts from the last moment at which something was wrong that the world did: a failed or slow call, an
old look, a box without a network, a process that dies. While the controller's host has no power, P2 takes
over from P1.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from batchscribe.controller.context import Waits
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.promises import AFTER_WORK, BY_HOST, STALLED
from batchscribe.core.run.runs import Outcome, Run, RunState
from simulation.box import Box
from simulation.cloud import Machine
from simulation.gate import Gate
from simulation.timeline import Timeline
from simulation.weather import HOUR, MINUTE

BY_CONTROLLER = AFTER_WORK.total_seconds()
BY_BOX = BY_HOST.total_seconds()
DEAD_WORKER = 1 * MINUTE
"""On top of both: a worker without a last word is missed at a look at its instance."""
HUNG = STALLED.total_seconds() + 4 * MINUTE
LOOK = 1 * MINUTE
"""On top of the time between two polls: for the calls between them."""
TOLD_AGAIN = 6 * HOUR
NOT_STOPPED = "batchscribe: a GPU may still be running"
WORK = frozenset({RunState.PROVISIONING, RunState.DISPATCHING, RunState.TRANSCRIBING})
_NAME = re.compile(r"run \S+ ")
_NO_START = frozenset(outcome.value for outcome in Outcome if outcome.no_start)


class Promises:
    """Looks on at every step. It changes nothing."""

    def __init__(self, gate: Gate, line: Timeline, machine: Machine, box: Box, waits: Waits) -> None:
        self.ours: Callable[[str], bool] = lambda _run: True
        self.host_up: Callable[[], bool] = lambda: False
        """True while the controller's host has power: its timers make passes."""
        self.elsewhere: Callable[[str], bool] = lambda _run: False
        """True for a run of another host, which always has power."""
        self.unwritten: Callable[[], float] = lambda: float("-inf")
        """When the ledger did not take something last."""
        self._gate = gate
        self._line = line
        self._machine = machine
        self._box = box
        self._waits = waits
        self._wrong_until = 0.0
        self._alone_since = 0.0
        self._down_until = 0.0
        """When the controller's host was last without power."""
        self._idle_since: float | None = None
        self._hung_since: float | None = None
        self._states: dict[str, RunState] = {}
        self._looked = 0.0
        self._told: dict[str, float] = {}
        self._jumped = float("-inf")
        self._telling = 0.0

    def wrong(self, seconds: float = 0.0) -> None:
        """Something stands in the way of somebody, for so long."""
        self._wrong_until = max(self._wrong_until, self._line.seconds + seconds)

    def jumped(self) -> None:
        """The host's clock was set."""
        self._jumped = self._line.seconds
        self.wrong()

    def booted(self) -> None:
        """The controller's host has its power back."""
        self._down_until = self._line.seconds

    def looked(self) -> None:
        self._looked = self._line.seconds

    def saved(self, run: Run) -> None:
        self._states[run.id] = run.state
        if run.state is RunState.SETTLED:
            # It was observed stopped: the next alarm is another one.
            self._told = {said: at for said, at in self._told.items() if not said.endswith(NOT_STOPPED)}
            self._handed_back(run)

    def _handed_back(self, run: Run) -> None:
        """I2 on a borrowed machine: it runs on, and nothing of ours with it."""
        left = run.borrowed and any(worker.alive for worker in self._box.played(run.id))
        if left and self._box.reachable and self._line.seconds - self._wrong_until > BY_BOX:
            self._gate.violated("I2", f"{run.id} is settled, and its worker works on a borrowed machine")

    def ledger_lost(self) -> None:
        """The next tick lists the store; a pass in between goes by the tags, which may be lost, too."""
        self._told.clear()
        self.wrong(HOUR)

    def telling(self) -> None:
        """A message is on its way: by the host's clock it was due now."""
        self._telling = self._line.seconds

    def told(self, title: str, host: str) -> None:
        """P4, of what is said now and then: an alarm, or a start that fails like the last one."""
        said = title
        if named := _NAME.search(title):
            outcome = title[named.end() :]
            said = outcome if outcome in _NO_START else ""
        said = said and f"{host}: {said}"
        now = self._telling
        before = self._told.get(said)
        self._told[said] = now
        if said and before is not None and now - before < TOLD_AGAIN - MINUTE:
            if self._jumped >= before or self.unwritten() >= before - MINUTE:
                return
            self._gate.violated("P4", f"people were told again after {(now - before) / HOUR:.1f} h: {title}")

    def step(self) -> None:
        now = self._line.seconds
        up = self.host_up()
        if up:
            self._alone_since = now
        else:
            self._down_until = now
        run = self._machine.holder
        if self._machine.state is not InstanceState.RUNNING or not self.ours(run):
            self._idle_since = self._hung_since = None
            return
        if not self._box.online:
            self.wrong()
        driven = 0.0 if self.elsewhere(run) else self._down_until if up else None
        self._ended(run, driven, now)
        self._hangs(run, driven, now)
        if driven is not None:
            self._unseen(run, driven, now)

    def _ended(self, run: str, driven: float | None, now: float) -> None:
        """P1 and P2."""
        workers = self._box.played(run)
        if not workers or any(worker.alive for worker in workers):
            self._idle_since = None
            return
        begun = self._idle_since = now if self._idle_since is None else self._idle_since
        agent = self._box.agent_at
        late, known = 0.0, begun
        if not workers[-1].ended:
            # Only its agent knows of a death; without one it counts as silence.
            late, known = (DEAD_WORKER, max(begun, agent)) if agent is not None else (HUNG, begun)
        if self._box.given(run, len(workers)):
            late = self._waits.reach  # a box that does not take up what it was given has so long
        if driven is not None and now - max(known, driven, self._wrong_until) > BY_CONTROLLER + late:
            self._gate.violated("P1", f"{run} has no work for {now - begun:.0f} s, and its controller lives")
        powers_off = agent is not None and self._box.powers_off
        alone = max(begun, agent or 0.0, self._alone_since, self._wrong_until) if powers_off else None
        if alone is not None and now - alone > BY_BOX + late:
            self._gate.violated("P2", f"{run} has no work for {now - begun:.0f} s, and its box is on")

    def _hangs(self, run: str, driven: float | None, now: float) -> None:
        """P3."""
        if not any(worker.alive and worker.hung for worker in self._box.played(run)):
            self._hung_since = None
            return
        begun = self._hung_since = now if self._hung_since is None else self._hung_since
        watched = [since for since in (driven, self._box.agent_at) if since is not None]
        if watched and now - max(begun, min(watched), self._wrong_until) > HUNG:
            self._gate.violated("P3", f"{run} hangs for {(now - begun) / MINUTE:.0f} min")

    def _unseen(self, run: str, driven: float, now: float) -> None:
        """P4, of looks."""
        if self._states.get(run) not in WORK:
            return
        since = max(driven, self._looked, self._machine.spans[-1].begin, self._wrong_until)
        if now - since > self._waits.describe + MINUTE + LOOK:
            self._gate.violated("P4", f"nobody looked at {self._machine.id} for {now - since:.0f} s")
