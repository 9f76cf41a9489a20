"""I7 and I13: the bills of settled runs and their running times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, Usd
from batchscribe.core.run.meter import LONGEST_PENDING
from batchscribe.core.run.runs import Run
from batchscribe.testing.compute import Cloud, CloudMachine, Span
from simulation.gate import Gate
from simulation.timeline import Timeline

CALL_SECONDS = 60.0
"""Time that the calls between a poll and its record may add to a bill, at both ends together."""
Poll = tuple[float, float, bool]
"""A poll: its request time, its answer time, and True if it showed `pending`."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Recorded polls of each run in a copy of the ledger."""

    polls: Mapping[str, Sequence[Poll]]


class Bills:
    """Compares bills with the true running times; read-only."""

    def __init__(
        self,
        gate: Gate,
        line: Timeline,
        cloud: Cloud,
        ours: CloudMachine,
        jumps: Sequence[tuple[float, float]],
    ) -> None:
        self.lag = 0.0
        """Maximum age of a poll."""
        self.rates: Mapping[str, Usd] = {}
        """Dollars an hour of each type."""
        self.in_doubt: set[str] = set()
        """Runs billed for more than they ran: for a foreign start, or for the time before a takeover."""
        self._gate = gate
        self._line = line
        self._cloud = cloud
        self._ours = ours
        self._jumps = jumps
        self._kept: dict[str, list[Poll]] = {}
        self._recovered: set[str] = set()
        self._begun: dict[str, float] = {}

    def begin(self, run: Run) -> None:
        self._begun.setdefault(run.id, self._line.seconds)

    def keep(self, run: str, poll: Poll) -> None:
        """Records that the run was saved after this poll."""
        self._kept.setdefault(run, []).append(poll)

    def copy(self) -> Kept:
        return Kept({run: tuple(polls) for run, polls in self._kept.items()})

    def ledger_lost(self, lost: Collection[str], older: Kept | None = None) -> None:
        """Drops these runs' polls, except those in an older ledger.

        Their start may be among the lost ones, so they are billed from their intent on.
        """
        polls = older.polls if older else {}
        self._recovered |= set(lost)
        self._kept = {run: each for run, each in self._kept.items() if run not in lost}
        self._kept |= {run: list(each) for run, each in polls.items() if run in lost}

    def doubt_recovered(self) -> None:
        """Records that the instance is up for another user.

        With its start lost, a run cannot distinguish that from its own.
        """
        self.in_doubt |= self._recovered

    def check(self, run: Run) -> None:
        """Checks a settled run, unless it borrowed its machine."""
        if run.borrowed:
            return
        spans = [span for span in self._ours.spans if span.holder == run.id]
        if any(span.end is None for span in spans) and not run.abandoned_gpu:
            self._gate.violated("I7", f"{run.id} was settled while {self._ours.id} runs for it")
        truth = self._cloud.billed(run.id)
        self._check_free_run(run, truth)
        jumped = sum(abs(seconds) for at, seconds in self._jumps if at >= self._begun[run.id])
        if run.billed_seconds + jumped + self.lag + 1.0 < truth:
            self._gate.violated("I7", f"{run.id} ran {truth:.0f} s and is billed {run.billed_seconds:.0f} s")
        most = self._find_longest_bill(run.id, run.id, spans) + jumped
        if jumped:  # clocks that contradict each other across a reboot are answered with the deadline
            most = max(most, (run.deadline - run.created).total_seconds())
        if run.billed_seconds > most and run.id not in self.in_doubt:
            text = f"{run.id} ran {truth:.0f} s, is billed {run.billed_seconds:.0f} s, at most {most:.0f} s"
            self._gate.violated("I7", text)
        rates = [self.rates[span.type].micros for span in spans] or [
            rate.micros for rate in self.rates.values()
        ]
        self._check_cost(run.id, run.cost, rates, truth - jumped - self.lag - 1.0, most)

    def _check_free_run(self, run: Run, truth: float) -> None:
        """I13, independent of the clocks."""
        ran = any(machine.meter.ran for machine in run.machines)
        if truth and ran and not (run.billed_seconds and run.cost.micros):
            self._gate.violated("I13", f"{run.id} was observed up, ran {truth:.0f} s and is billed nothing")

    def _check_cost(self, name: str, paid: Usd, rates: Sequence[int], least: float, most: float) -> None:
        """I7 in dollars, of a run or of one of its machines.

        `rates`: micro-dollars an hour.
        """
        if paid.micros < min(rates) * max(0.0, least) / 3600:
            self._gate.violated("I7", f"{name} cost ${paid.text(4)} for {least:.0f} s and more at {rates}")
        limit = max(rates) * max(most, MINIMUM_BILLED_SECONDS) / 3600 + 1
        if paid.micros > limit and name not in self.in_doubt:
            self._gate.violated("I7", f"{name} cost ${paid.text(4)} for at most {most:.0f} s at {rates}")

    def _find_longest_bill(self, run: str, name: str, spans: Sequence[Span]) -> float:
        """Longest bill that the polls around its running time explain.

        A poll counts if its process worked on the run and recorded the run next. Its time is between
        its request and its answer. With a lost ledger the bill begins at the intent. A run that never ran is
        billed for at most its life; stale polls and the time of calls are added once on each side.
        """
        polls = self._kept.get(name, [])
        created = self._begun[run]
        now = self._line.seconds
        if not spans:
            return now - created + CALL_SECONDS
        # Two machines of one name overlap, and the first may be the last to end.
        first, last = spans[0].begin, max(span.end or now for span in spans)
        after = [at for _asked, at, _pending in polls if at >= last + self.lag]
        begin = created if run in self._recovered else self._find_last_idle(polls, created, first)
        end = min(after, default=now)
        return end - begin + 2 * self.lag + CALL_SECONDS

    def _find_last_idle(self, polls: list[Poll], begin: float, first: float) -> float:
        """Last time at which polls prove that it had not run yet.

        A poll that shows `pending` after a long time without polls does not prove a first start.
        """
        for asked, at, pending in polls:
            passed = asked - begin + sum(seconds for when, seconds in self._jumps if begin <= when <= asked)
            if at <= first and not (pending and passed > LONGEST_PENDING.total_seconds()):
                begin = max(begin, asked)
        return begin
