"""Results of the ledger's queries over many runs."""

from __future__ import annotations

from dataclasses import dataclass

from batchscribe.core.decide.money import Usd


@dataclass(frozen=True, slots=True)
class Speed:
    """Median speed of `runs`, in audio seconds per second of work.

    An empty instance type is this machine.
    """

    engine: str
    model: str
    instance_type: str
    speed: float
    runs: int


@dataclass(frozen=True, slots=True)
class SettledSum:
    """Sums over all settled runs with an outcome."""

    outcome: str
    runs: int
    cost: Usd
    chunks_done: int
    chunks_failed: int
    audio_seconds: float
    not_proved_stopped: int
    """Runs whose instance had another owner when they released it."""
