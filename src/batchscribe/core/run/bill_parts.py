"""Division of a bill into boot, model load, work and idle time."""

from __future__ import annotations

import msgspec

from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, Usd, split_cost
from batchscribe.core.run.runs import Run


class BilledParts(msgspec.Struct, frozen=True, kw_only=True):
    """Billed seconds by purpose; their costs add up to the GPU's."""

    boot: float
    """From the begin of the bill to the worker's start."""
    load: float
    """Loading the model."""
    work: float
    """The engine was busy."""
    idle: float
    """The rest: the engine waited for audio or for publishing, and the stop."""
    minimum: float
    """Added by the 60-second minimum of a start; 0 without a price."""
    cost_micros: dict[str, int]
    """By the names of the parts."""


def split_bill(run: Run) -> BilledParts | None:
    """Divides the bill of a run; None if it was not measured."""
    begin = run.machines[0].meter.idle_until or run.start_requested
    if len(run.machines) != 1 or begin is None or run.worker_since is None or not run.worked.busy:
        return None
    left = total = run.billed_seconds
    parts = {}
    measured = {
        "boot": (run.worker_since - begin.at).total_seconds(),
        "load": run.worked.load,
        "work": run.worked.busy,
    }
    for name, seconds in measured.items():
        parts[name] = min(left, max(0.0, seconds))
        left -= parts[name]
    unbilled = run.borrowed or not run.rate.per_hour.micros
    parts |= {"idle": left, "minimum": 0.0 if unbilled else max(0.0, MINIMUM_BILLED_SECONDS - total)}
    costs = split_cost(run.cost, tuple(parts.values()))
    amounts = {name: amount.micros for name, amount in zip(parts, costs, strict=True)}
    return BilledParts(**parts, cost_micros=amounts)


def describe_parts(parts: BilledParts | None) -> str:
    """Formats the costs of the parts; empty if not measured or free."""
    if parts is None or not any(parts.cost_micros.values()):
        return ""
    shown = [f"{name} {Usd(amount)}" for name, amount in parts.cost_micros.items() if amount]
    return f": {', '.join(shown)}"
