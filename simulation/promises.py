"""Documented time bounds, checked in the absence of faults.

P1   a GPU whose work has ended gets its stop request within two minutes while the controller's host is up
P2   without any controller the GPU host switches it off within three
P3   hung work is ended a quarter of an hour after its last heartbeat, on a borrowed machine, too
P4   a live controller polls the instance that it pays for; and a message is not repeated within six hours

Each counts from the last simulated fault: a failed or slow call, a stale poll, a GPU host without a network,
a process that dies. While the controller's host has no power, P2 replaces P1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from batchscribe.controller.context import Waits
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.promises import AFTER_WORK, BY_HOST, STALLED
from batchscribe.core.run.runs import Run, RunState
from batchscribe.testing.compute import CloudMachine
from batchscribe.testing.worker import PlayedWorker
from simulation.gate import Gate
from simulation.played_host import PlayedHost
from simulation.timeline import Timeline
from simulation.weather import HOUR, MINUTE

BY_CONTROLLER = AFTER_WORK.total_seconds()
BY_AGENT = BY_HOST.total_seconds()
DEAD_WORKER = 1 * MINUTE
"""Added to both for a worker without an exit record: a poll of its instance detects its death."""
HUNG = STALLED.total_seconds() + 4 * MINUTE
CALLS = 1 * MINUTE
"""Added to the time between two polls: for the calls between them."""
REPEATED_AFTER = 6 * HOUR
NOT_STOPPED = "batchscribe: a GPU may still be running"
WORK = frozenset({RunState.PROVISIONING, RunState.DISPATCHING, RunState.TRANSCRIBING})
_NAME = re.compile(r"run \S+ ")
_NO_START = frozenset(outcome.value for outcome in Outcome if outcome.no_start)


class Promises:
    """Checks the time bounds at every step; read-only."""

    def __init__(
        self,
        gate: Gate,
        line: Timeline,
        machine: CloudMachine,
        gpu_host: PlayedHost,
        waits: Waits,
        *,
        slack: float = 0.0,
    ) -> None:
        """`slack`: seconds that an idle machine may wait for work of others."""
        self.ours: Callable[[str], bool] = lambda _run: True
        self.host_up: Callable[[], bool] = lambda: False
        """True while the controller's host has power: its timers make passes."""
        self.elsewhere: Callable[[str], bool] = lambda _run: False
        """True for a run of another host, which always has power."""
        self.unwritten: Callable[[], float] = lambda: float("-inf")
        """Time of the last failed write to the ledger."""
        self._gate = gate
        self._line = line
        self.machine = machine
        self._gpu_host = gpu_host
        self._waits = waits
        self._slack = slack
        self._wrong_until = 0.0
        self._alone_since = 0.0
        self._down_until = 0.0
        """Last time at which the controller's host had no power."""
        self._idle_since: float | None = None
        self._hung_since: float | None = None
        self._states: dict[str, RunState] = {}
        self._polled = 0.0
        self._last_sent: dict[str, float] = {}
        self._unrecorded = ("", 0.0)
        """The last message and its arrival: a process that dies then has not recorded it."""
        self._jumped = float("-inf")
        self._due_at = 0.0

    def wrong(self, seconds: float = 0.0) -> None:
        """Records a fault that lasts `seconds`."""
        self._wrong_until = max(self._wrong_until, self._line.seconds + seconds)

    def died(self) -> None:
        """Records that a process died."""
        subject, arrived = self._unrecorded
        if arrived == self._line.seconds:
            self._last_sent.pop(subject, None)
        self.wrong()

    def jumped(self) -> None:
        """Records a jump of the host's clock."""
        self._jumped = self._line.seconds
        self.wrong()

    def booted(self) -> None:
        """Records that the controller's host has power again."""
        self._down_until = self._line.seconds

    def polled(self) -> None:
        self._polled = self._line.seconds

    def saved(self, run: Run) -> None:
        self._states[run.id] = run.state
        if run.state is RunState.SETTLED:
            # It was observed stopped: the next alert is a new one.
            self._last_sent = {
                subject: at for subject, at in self._last_sent.items() if not subject.endswith(NOT_STOPPED)
            }
            self._check_returned(run)

    def _check_returned(self, run: Run) -> None:
        """I2 on a borrowed machine: it keeps running, without our workers."""
        left = run.borrowed and any(worker.alive for worker in self._gpu_host.played(run.id))
        if left and self._gpu_host.reachable and self._line.seconds - self._wrong_until > BY_AGENT:
            self._gate.violated("I2", f"{run.id} is settled, and its worker still runs on a borrowed machine")

    def ledger_lost(self) -> None:
        """Records a lost ledger, which the next tick recovers from the store."""
        self._last_sent.clear()
        self.wrong(HOUR)

    def message_due(self) -> None:
        """Records the time at which a message becomes due."""
        self._due_at = self._line.seconds

    def message_sent(self, title: str, host: str) -> None:
        """P4, for repeated messages: alerts, and starts that fail alike."""
        subject = title
        if named := _NAME.search(title):
            outcome = title[named.end() :]
            subject = outcome if outcome in _NO_START else ""
        subject = subject and f"{host}: {subject}"
        now = self._due_at
        before = self._last_sent.get(subject)
        self._last_sent[subject], self._unrecorded = now, (subject, self._line.seconds)
        if subject and before is not None and now - before < REPEATED_AFTER - MINUTE:
            if self._jumped >= before or self.unwritten() >= before - MINUTE:
                return
            self._gate.violated("P4", f"message repeated after {(now - before) / HOUR:.1f} h: {title}")

    def step(self) -> None:
        now = self._line.seconds
        up = self.host_up()
        if up:
            self._alone_since = now
        else:
            self._down_until = now
        run = self.machine.holder
        if self.machine.state is not InstanceState.RUNNING or not self.ours(run):
            self._idle_since = self._hung_since = None
            return
        if not self._gpu_host.online:
            self.wrong()
        driven = 0.0 if self.elsewhere(run) else self._down_until if up else None
        workers = self._gpu_host.played(run)
        self._check_ended(run, workers, driven, now)
        self._check_hangs(run, workers, driven, now)
        if driven is not None:
            self._check_polls(run, driven, now)

    def _check_ended(
        self, run: str, workers: Sequence[PlayedWorker], driven: float | None, now: float
    ) -> None:
        """P1 and P2."""
        if not workers or any(worker.alive for worker in workers):
            self._idle_since = None
            return
        begun = self._idle_since = now if self._idle_since is None else self._idle_since
        agent = self._gpu_host.agent_at
        late, known = self._slack, begun
        if not workers[-1].ended:
            # Only its agent detects a death; without one the worker counts as stalled.
            late, known = (DEAD_WORKER, max(begun, agent)) if agent is not None else (HUNG, begun)
            late += self._slack
        if (given := self._gpu_host.given_at(run, len(workers))) is not None:
            # Time limit of a host that does not accept its manifest.
            late, known = self._waits.reach, max(known, given)
        if driven is not None and now - max(known, driven, self._wrong_until) > BY_CONTROLLER + late:
            self._gate.violated("P1", f"{run} has no work for {now - begun:.0f} s, and its controller runs")
        powers_off = agent is not None and self._gpu_host.powers_off
        alone = max(begun, agent or 0.0, self._alone_since, self._wrong_until) if powers_off else None
        if alone is not None and now - alone > BY_AGENT + late:
            self._gate.violated("P2", f"{run} has no work for {now - begun:.0f} s, and its host is on")

    def _check_hangs(
        self, run: str, workers: Sequence[PlayedWorker], driven: float | None, now: float
    ) -> None:
        """P3."""
        if not any(worker.alive and worker.hung for worker in workers):
            self._hung_since = None
            return
        begun = self._hung_since = now if self._hung_since is None else self._hung_since
        watched = [since for since in (driven, self._gpu_host.agent_at) if since is not None]
        if watched and now - max(begun, min(watched), self._wrong_until) > HUNG:
            self._gate.violated("P3", f"{run} hangs for {(now - begun) / MINUTE:.0f} min")

    def _check_polls(self, run: str, driven: float, now: float) -> None:
        """P4, for polls."""
        if self._states.get(run) not in WORK:
            return
        since = max(driven, self._polled, self.machine.spans[-1].begin, self._wrong_until)
        if now - since > self._waits.describe + MINUTE + CALLS:
            self._gate.violated("P4", f"{self.machine.id} was not polled for {now - since:.0f} s")
