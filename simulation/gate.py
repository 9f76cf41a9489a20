"""Where the controller meets the world: every call of a seam is a step, and may be its last.

A step has a point before and a point after the call's effect. At each of them the process may be gone,
as after SIGKILL: from then on every call of it raises `Crashed`, so that nothing that it still does
while it unwinds reaches the world. Between the points time passes, and a call may fail without its
effect, or with it and only its reply lost.
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
    """The process is gone. No `except Exception` of it can hold this up."""


class Violation(BaseException):
    """An invariant does not hold: the episode ends here."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


LONGEST = 100_000
"""Steps of an episode: beyond that it is a loop that never ends."""
Trouble = Callable[[str], tuple[BatchscribeError, bool] | None]
"""What stands in the way of a call by its name: the error, and whether its effect comes all the same."""


class Gate:
    """Counts the steps of a process that can die at each of them.

    `crash` is the probability of that for each step. `check` looks at the invariants; `trouble` says
    what goes wrong with a call, `takes` how many seconds it lasts.
    """

    def __init__(self, rng: random.Random, line: Timeline, trace: Trace) -> None:
        self.steps = 0
        self.dead = False
        self.crashes = 0
        self.met: Counter[str] = Counter()
        """The troubles that calls met, by kind."""
        self.crash = 0.0
        self.check: Callable[[], None] = lambda: None
        self.trouble: Trouble = lambda _name: None
        self.takes: Callable[[str], float] = lambda _name: 0.0
        self.violation: Violation | None = None
        self.died: Callable[[], None] = lambda: None
        self.limit = math.inf
        """Seconds that the process may live without `keep_alive`."""
        self._alive_at = 0.0
        self._rng = rng
        self._line = line
        self._trace = trace
        self._crash_at = -1

    def expect(self, crash: float) -> None:
        """Sets the probability of a crash at each step."""
        self.crash = crash
        self._crash_at = self.steps + self._rare(crash) if crash else -1

    def begin(self) -> None:
        """A new process, after the old one is gone."""
        self.dead = False
        self._line.cut = False
        self.keep_alive()

    def keep_alive(self) -> None:
        """Restarts the limit after which a process that hangs is killed."""
        self._alive_at = self._line.seconds

    def kill(self) -> None:
        """The process is gone from now on, wherever it is."""
        self.died()
        self.dead = True
        self._line.cut = True

    def call(self, name: str, subject: str, act: Callable[[], T]) -> T:
        """One call of a seam, with its two points."""
        self.point(name, subject)
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
        """Lets time pass inside a call, up to the limit of a process that hangs."""
        left = self._alive_at + self.limit - self._line.seconds
        self._line.advance(min(seconds, max(0.0, left)))
        self._alive()
        if seconds > left:
            self.met["a process that hung was killed by its time limit"] += 1
            self._trace.add("its time limit kills it")
            self.kill()
            raise Crashed

    def point(self, name: str, subject: str = "") -> None:
        """A place where the process may be gone."""
        self._alive()
        self.steps += 1
        self._trace.add(f"{name} {subject}")
        self.check()
        if self.steps > LONGEST:
            self.violated("E", f"{self.steps} steps, and no end")
        if self.steps == self._crash_at:
            self._crash_at = self.steps + self._rare(self.crash)
            self.crashes += 1
            self._trace.add("the controller is killed here")
            self.kill()
            raise Crashed

    def violated(self, invariant: str, text: str) -> NoReturn:
        """Ends the episode. What is raised once is raised at every later step, whoever caught it."""
        self.violation = self.violation or Violation(invariant, text)
        raise self.violation

    def _alive(self) -> None:
        if self.violation:
            raise self.violation
        if self.dead:
            raise Crashed

    def _rare(self, chance: float) -> int:
        """How many steps it takes until something with this chance at each step happens."""
        return 1 + int(math.log(1.0 - self._rng.random()) / math.log(1.0 - chance))
