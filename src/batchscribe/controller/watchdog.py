"""What looks after the tick from outside: ends one that hangs, then stops what should not run.

It works from the ledger, the store and the tags alone. A tick that shows life is left to itself: then
nothing is done at all. The lock says who the tick is and when it last looked at its clock; a process is
never touched by its number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from batchscribe.controller.alerts import alert
from batchscribe.controller.context import Terms, World, log, noted
from batchscribe.controller.outside import NOTED
from batchscribe.controller.reconcile import recover
from batchscribe.controller.tick import reconcile
from batchscribe.core.holding import Holder
from batchscribe.core.instances import GUARD_LAST
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    LockHeldError,
    NotStoppedError,
    TransientError,
)
from batchscribe.protocols import Lock, Processes

MINUTE = timedelta(minutes=1)
DYING = 30.0
"""Seconds for a killed process to be gone."""
WAY_OUT = timedelta(minutes=5)
"""Beyond the patience for a stop: for a tick that was asked to end to see its run settled."""
OVERTIME = GUARD_LAST + WAY_OUT
"""Beyond that patience, past a run's deadline: by then the guard has stopped the instance."""
LONGEST_TICK = timedelta(minutes=30)
"""Beyond the longest run: no tick is in a listing for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the watchdog found, in a sentence for people, and what it did."""

    found: str
    ended: Holder | None = None
    """The tick that it ended."""
    runs: tuple[Run, ...] = ()
    """Runs that it released."""


@dataclass(frozen=True, slots=True)
class Watchdog:
    """One look after the tick, its runs and their instance. It takes the lock where that is free."""

    world: World
    terms: Terms
    lock: Lock
    processes: Processes

    def watch(self) -> Watched:
        """Raises NotStoppedError where an instance could not be proved stopped, and what keeps it from
        looking; people are told of both, now and then.
        """
        try:
            return self._watch()
        except (InterruptedRunError, NotStoppedError, LockHeldError):
            raise
        except BatchscribeError as error:
            alert(self.world, "watchdog-failed", "batchscribe: the watchdog failed", str(error))
            raise

    def _watch(self) -> Watched:
        named = self.lock.holder()
        if named is None:
            quiet = self._quiet()
            return Watched(found=quiet) if quiet else self._reconciled()
        holder = self.lock.held_by()
        if holder is None or not self.processes.runs(holder):
            return Watched(found=f"the lock is held by {named}, of whom nothing is known: left alone")
        why = self._overdue(holder) or self._silent(holder)
        if not why:
            return Watched(found=f"the tick {named} is at work: left alone")
        self._end(holder, why)
        return self._reconciled(ended=holder)

    def _reconciled(self, ended: Holder | None = None) -> Watched:
        found = "no tick is at work" if ended is None else f"the tick {ended.pid} hung, and was ended"
        try:
            with self.lock.held():
                return Watched(found=found, ended=ended, runs=reconcile(self.world, self.terms))
        except LockHeldError:
            if ended is None:
                raise
            return Watched(found=f"{found}; its unit's own reconcile is at work", ended=ended)

    def _quiet(self) -> str:
        """Why there is nothing to look for; empty where there may be. One look at the cloud, no listing."""
        if self.world.ledger.open_runs() or self.world.ledger.facts(NOTED):
            return ""
        if self.terms.shared_machine:
            return "no run is open"
        try:
            seen = self.world.compute.describe(self.terms.instances[0])
        except TransientError as error:
            return f"no run is open, and the instance could not be looked at: {error}"
        stopped = seen.state.proved_stopped and seen.run is None
        return f"no run is open, and {seen.id} is {seen.state}" if stopped else ""

    def _overdue(self, holder: Holder) -> str:
        """Why the holder of the lock counts as hung although it moves; empty where it does not."""
        held = timedelta(seconds=self.world.clock.monotonic() - holder.since)
        patience = timedelta(seconds=self.terms.waits.stop) + OVERTIME
        now = self.world.clock.now()
        if any(min(now - run.deadline, held) >= patience for run in self._paid()):
            return f"its controller did not end within {patience / MINUTE:.0f} min after the deadline"
        return ""

    def _silent(self, holder: Holder) -> str:
        """Why the holder of the lock counts as hung; empty where it does not.

        A silent tick without a paid run may be in a long listing: it costs nothing, and is left for long.
        """
        silent = timedelta(seconds=self.world.clock.monotonic() - holder.alive)
        if silent < timedelta(seconds=self.terms.waits.silence):
            return ""
        if not self._paid():
            recover(self.world, self.terms)  # the ledger may be younger than the run
        held = timedelta(seconds=self.world.clock.monotonic() - holder.since)
        too_long = held >= self.terms.policy.max_runtime + LONGEST_TICK
        if not (too_long or self._paid()) or not self._still(holder):
            return ""
        return f"its controller showed no sign of life for {silent / MINUTE:.0f} min"

    def _paid(self) -> list[Run]:
        """Open runs whose instance may run, or may be about to."""
        return [run for run in self.world.ledger.open_runs() if run.state is not RunState.VERIFYING]

    def _still(self, holder: Holder) -> bool:
        """Whether it shows no life while somebody looks on, either."""
        self.world.clock.sleep(self.terms.waits.second_look)
        return self.lock.held_by() == holder

    def _end(self, holder: Holder, why: str) -> None:
        """Asks it to end, and waits while it shows that it does; then kills it, with all that it started."""
        # Noted before it is ended: whoever is first then, its unit's own reconcile too, releases the run.
        self._give_up(why)
        text = f"process {holder.pid} held the lock: {why}; it is ended, and its run released"
        alert(self.world, "hung", "batchscribe: a tick hung", text)
        self.processes.end(holder)
        if self._ended(holder):
            return
        log.warning("it did not end by itself, and is killed", pid=holder.pid)
        self.processes.end(holder, force=True)
        self._see_gone(holder)
        self._give_up(why)  # it may have had a last word that said otherwise

    def _give_up(self, why: str) -> None:
        for run in self._paid():
            if run.state is not RunState.RELEASING:
                noted(self.world, run.releasing(Outcome.HUNG, why), "hung")

    def _ended(self, holder: Holder) -> bool:
        """Whether it let go of the lock by itself; while it shows life it is waited for, within reason."""
        since = self.world.clock.monotonic()
        limit = since + self.terms.waits.stop + WAY_OUT.total_seconds()
        shown = holder.alive
        while self.processes.runs(holder) and self._holds(holder):
            now = self.world.clock.monotonic()
            after = self.lock.held_by()
            if after is not None and after.alive != shown:
                shown, since = after.alive, now
            if now >= limit or now - since >= self.terms.waits.second_look:
                return False
            self.world.clock.sleep(self.terms.waits.poll)
        return True

    def _holds(self, holder: Holder) -> bool:
        if self.lock.holder() is None:
            return False
        after = self.lock.held_by()
        return after is None or after.pid == holder.pid

    def _see_gone(self, holder: Holder) -> None:
        limit = self.world.clock.monotonic() + DYING
        while self.processes.runs(holder):
            if self.world.clock.monotonic() >= limit:
                raise BatchscribeError(
                    f"process {holder.pid} hangs and cannot be killed, so its run cannot be released from "
                    "here: stop the GPU with `batchscribe gpu stop --force`, then restart this machine"
                )
            self.world.clock.sleep(1.0)
