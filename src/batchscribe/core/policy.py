"""Whether a start pays now: `decide` turns an observation into a decision, with its reason.

The decision is total and pure: the same observation always gets the same answer, in one sentence
and in numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from batchscribe.core.backlog import Backlog
from batchscribe.core.instances import Instance
from batchscribe.core.money import Rate
from batchscribe.core.packing import Batch, Priors
from batchscribe.core.runs import Run


class PolicyName(StrEnum):
    THRESHOLD = "threshold"
    NOW = "now"


class IfRunning(StrEnum):
    HOLD = "hold"
    USE = "use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: PolicyName = PolicyName.THRESHOLD
    threshold: int = 100
    max_wait: timedelta = timedelta(hours=24)
    max_runtime: timedelta = timedelta(hours=2)
    check_interval: timedelta = timedelta(hours=1)
    if_running: IfRunning = IfRunning.HOLD
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The world at one moment, frozen."""

    now: datetime
    backlog: Backlog
    instance: Instance
    priors: Priors
    rate: Rate
    open_run: Run | None = None
    paused_until: datetime | None = None
    stranger: str | None = None
    """Why the instance is in somebody else's hands, where it is."""


class ReasonCode(StrEnum):
    PAUSED = "paused"
    EMPTY = "nothing-pending"
    BELOW_THRESHOLD = "below-threshold"
    ONLY_TROUBLED = "only-troubled"
    GPU_IN_USE = "gpu-in-use"
    GPU_MOVING = "gpu-moving"
    THRESHOLD = "threshold-reached"
    MAX_WAIT = "longest-wait-in-reach"
    NOW = "asked-for-now"
    OPEN_RUN = "open-run"
    DEADLINE = "deadline-passed"


@dataclass(frozen=True, slots=True)
class Reason:
    code: ReasonCode
    sentence: str
    numbers: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hold:
    reason: Reason
    overdue: bool = False
    """A chunk's longest wait is in reach, and yet no start is possible: worth an alert."""


@dataclass(frozen=True, slots=True)
class Launch:
    reason: Reason
    batch: Batch
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    reason: Reason
    run: Run


@dataclass(frozen=True, slots=True)
class Reclaim:
    reason: Reason
    run: Run


Decision = Hold | Launch | Resume | Reclaim
