"""Texts for totals of episodes, and for a broken one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from simulation.episode import Counts, Result
from simulation.weather import Focus

REPLAY = "python -m simulation --replay"


@dataclass(slots=True, kw_only=True)
class Summary(Counts):
    """Totals of episodes. `seconds` is their processor time."""

    episodes: int = 0
    seconds: float = 0.0
    violations: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.episodes += 1
        self.add_counts(result)
        if result.violation:
            self.violations.append(result)

    def text(self) -> str:
        """Totals as a page of text."""
        passes = self.ticks + self.reconciles + self.watches
        lines = [
            f"episodes    {self.episodes}, {self.hours:.0f} simulated hours",
            f"passes      {passes}: {self.ticks} ticks, {self.reconciles} reconciled, {self.watches} watches",
            f"steps       {self.steps} at the seams, {self.events} events beside them",
            f"crashes     {self.crashes} of the controller at a step",
            f"processor   {self.seconds:.1f} s",
            f"  a second  {self._rate(passes)} passes, {self._rate(self.steps)} steps",
            "runs by outcome",
            *_rows(self.outcomes),
            "faults by kind",
            *_rows(self.met),
            f"violations  {len(self.violations)}",
            *(f"  {result.violation} (seed {result.seed})" for result in self.violations),
        ]
        return "\n".join(lines)

    def _rate(self, count: int) -> int:
        return round(count / self.seconds) if self.seconds else 0


def broken(result: Result, focus: Focus | None = None) -> str:
    """Text of a violation: the last steps, and the replay command."""
    steps = "\n".join(result.last)
    pairs = ",".join(f"{name}={level}" for name, level in (focus or {}).items())
    again = f"{REPLAY} {result.seed}" + (f" --focus {pairs}" if pairs else "")
    return f"{steps}\n\nBROKEN {result.violation}\nseed {result.seed}; again: {again}"


def sound(result: Result) -> str:
    """Text of an episode without a violation."""
    ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.outcomes.items()))
    return (
        f"seed {result.seed}: every invariant held for {result.hours:.1f} h, {result.ticks} ticks, "
        f"{result.steps} steps, {result.crashes} crashes\nruns: {ended or 'none'}\ndigest {result.digest}"
    )


def _rows(counter: Counter[str]) -> list[str]:
    return [
        f"  {count:9}  {name}" for name, count in sorted(counter.items(), key=lambda row: (-row[1], row[0]))
    ]
