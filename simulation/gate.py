"""Gate of all seam calls: the process may die at each.

A step has a point before and a point after the call's effect. At each point the process may die, as
after SIGKILL: from then on each of its calls raises `Crashed`, so that nothing in its exception handlers
reaches the world. Between the points time passes, and a call may fail without its effect, or take
effect and lose its reply.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import NoReturn, TypeVar

from batchscribe.errors import BatchscribeError
from simulation.timeline import Timeline
from simulation.trace import Trace

T = TypeVar("T")


class Crashed(BaseException):
    """The process died. No `except Exception` catches this."""


class Violation(BaseException):
    """An invariant does not hold: the episode ends here."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


LONGEST = 100_000
"""Maximum number of steps of an episode: more is an endless loop."""
Trouble = Callable[[str], tuple[BatchscribeError, bool] | None]
"""Returns the fault of a call by its name: the error, and True if the call still takes effect."""


class Gate:
    """Steps of a process that can die at each of them.

    `crash` is the probability of that at each step. `check` checks the invariants; `trouble` returns the
    fault of a call, `takes` its duration in seconds.
    """

    def __init__(self, rng: random.Random, line: Timeline, trace: Trace) -> None:
        self.steps = 0
        self.longest = LONGEST
        self.dead = False
        self.crashes = 0
        self.met: Counter[str] = Counter()
        """Faults of calls, by kind."""
        self.crash = 0.0
        self.check: Callable[[], None] = lambda: None
        self._checked_at = -1.0
        self.trouble: Trouble = lambda _name: None
        self.takes: Callable[[str], float] = lambda _name: 0.0
        self.violation: Violation | None = None
        self.died: Callable[[], None] = lambda: None
        self.limit = math.inf
        """Maximum seconds of the process without `keep_alive`."""
        self._alive_at = 0.0
        self._rng = rng
        self._line = line
        self._trace = trace
        self._crash_at = -1

    def expect(self, crash: float) -> None:
        """Sets the probability of a crash at each step."""
        self.crash = crash
        self._crash_at = self.steps + self._draw_steps(crash) if crash else -1

    def begin(self) -> None:
        """Begins a new process after the previous one ended."""
        self.dead = False
        self._line.cut = False
        self.keep_alive()

    def keep_alive(self) -> None:
        """Restarts the limit after which a process that hangs is killed."""
        self._alive_at = self._line.seconds

    def kill(self) -> None:
        """Kills the process at once."""
        self.died()
        self.dead = True
        self._line.cut = True

    def call(self, name: str, subject: str, act: Callable[[], T]) -> T:
        """Makes one call of a seam, with its two points."""
        self.point(name, subject, unchanged=self._line.seconds == self._checked_at)
        seconds = self.takes(name)
        if seconds:
            self._pass(seconds)
        found = self.trouble(name)
        if found is None:
            result = act()
        else:
            error, applied = found
            self.met[f"{name}: {type(error).__name__}{', reply lost' if applied else ''}"] += 1
            if applied:
                act()
            self.point(f"{name} failed", subject)
            raise error
        self.point(f"{name}.", subject)
        return result

    def _pass(self, seconds: float) -> None:
        """Passes the time of a call, up to a hung process's limit."""
        left = self._alive_at + self.limit - self._line.seconds
        self._line.sleep(min(seconds, max(0.0, left)))
        self._check_alive()
        if seconds > left:
            self.met["a process that hung was killed by its time limit"] += 1
            self._trace.add("its time limit kills it")
            self.kill()
            raise Crashed

    def point(self, name: str, subject: str = "", *, unchanged: bool = False) -> None:
        """A point at which the process may die.

        `unchanged`: the world is as at the last check.
        """
        self._check_alive()
        self.steps += 1
        self._trace.add(f"{name} {subject}")
        if not unchanged:
            self._checked_at = self._line.seconds
            self.check()
        if self.steps > self.longest:
            self.violated("E", f"{self.steps} steps, and no end")
        if self.steps == self._crash_at:
            self._crash_at = self.steps + self._draw_steps(self.crash)
            self.crashes += 1
            self._trace.add("the controller is killed here")
            self.kill()
            raise Crashed

    def violated(self, invariant: str, text: str) -> NoReturn:
        """Ends the episode: later steps raise the violation again, if caught."""
        self.violation = self.violation or Violation(invariant, text)
        raise self.violation

    def _check_alive(self) -> None:
        if self.violation:
            raise self.violation
        if self.dead:
            raise Crashed

    def _draw_steps(self, chance: float) -> int:
        """Draws the number of steps until an event of this chance."""
        return 1 + int(math.log(1.0 - self._rng.random()) / math.log(1.0 - chance))
