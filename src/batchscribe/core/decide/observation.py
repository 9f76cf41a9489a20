"""Inputs of a decision (observation and policy), and reasons of decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from batchscribe.core.decide.hours import Hours
from batchscribe.core.decide.money import ZERO, Usd
from batchscribe.core.decide.offers import Offer
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.backlog import Backlog

WAIT_PRICE: Final = Usd(50_000)
"""`balanced` starts once the waits cost as much as a start: at most twice the cost of the best possible
starts (dynamic acknowledgement: Dooly, Goldman, Scott, 2001)."""


class PolicyName(StrEnum):
    THRESHOLD = "threshold"
    """Starts at a number of chunks, and before the oldest one has waited too long."""
    DEADLINE = "deadline"
    """Starts at the last safe moment for the oldest chunk: the cheapest rule that keeps the longest wait."""
    BALANCED = "balanced"
    """Starts as soon as waiting costs more than a start, or when no more chunks arrive."""
    NOW = "now"


class IfRunning(StrEnum):
    """Action for a GPU that runs but is not managed by us."""

    HOLD = "hold"
    USE = "use"


class InstanceChoice(StrEnum):
    """Choice among the instance's own type and GPU_INSTANCE_TYPES."""

    ORDERED = "ordered"
    """The own type, then the others in their order, if there is no capacity."""
    CHEAPEST = "cheapest"
    """The one whose estimate for the backlog is lowest and keeps the longest wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: PolicyName = PolicyName.THRESHOLD
    threshold: int = 100
    max_wait: timedelta = timedelta(hours=24)
    max_runtime: timedelta = timedelta(hours=2)
    check_interval: timedelta = timedelta(hours=1)
    if_running: IfRunning = IfRunning.HOLD
    choice: InstanceChoice = InstanceChoice.ORDERED
    limit: int | None = None
    daily_budget: Usd | None = None
    hours: Hours | None = None
    """Starts are made only then, unless a chunk would wait too long; None: at any time."""
    slack: timedelta = timedelta(minutes=15)
    """Reserve before the last safe moment, for a start that finds no capacity at first."""
    wait_price: Usd = WAIT_PRICE
    """Of an audio hour that waits for an hour."""
    quiet: timedelta = timedelta(minutes=5)
    """`balanced` takes a recording as complete if no chunk arrived for so long."""
    quiet_audio: timedelta = timedelta(minutes=10)
    """Least audio for which a quiet backlog starts the GPU."""
    cool_down: timedelta = timedelta(hours=1)
    """Least time from the last start to one for a quiet backlog: bursts each few minutes share a start."""
    manual: bool = False
    """Requested by a user: takes all pending chunks, regardless of age and earlier failures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFault:
    """Lasting cause for which the last run could not use its host."""

    at: datetime
    """End of that run."""
    cause: str
    access: str
    """Hash of the settings with which the host was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Inputs of one decision, frozen."""

    now: datetime
    backlog: Backlog
    instances: tuple[Instance, ...]
    """Existing ones; none if each run creates its machines."""
    offers: tuple[Offer, ...]
    """In order of preference; the first one is of the instance's present type."""
    max_machines: int = 1
    """The most machines that a run may create."""
    interrupted: str = ""
    """The latest run, if the cloud interrupted a spot machine of it, and work was left."""
    open_run: Run | None = None
    lane: Offer | None = None
    """This machine's processor; None if it takes no work now."""
    lane_run: Run | None = None
    """A run on it that is not ending; the other fields do not depend on it."""
    paused_until: datetime | None = None
    spent_today: Usd = ZERO
    """By settled runs since midnight UTC, at most."""
    unproductive: int = 0
    """Latest consecutive paid runs without a transcript."""
    last_unproductive: datetime | None = None
    host_fault: HostFault | None = None
    """Of the latest paid run; None if it has none."""
    access: str = ""
    """Hash of the present settings with which the host is reached."""
    last_start: datetime | None = None
    """Time of the latest start by this scheduler, whatever came of it."""
    set_up_at: datetime | None = None
    """Time of the last set-up of the host, if there is a fault."""
    foreign_claim: str | None = None
    """The sentence for an instance in use by another scheduler; else None."""

    @property
    def instance(self) -> Instance | None:
        """The instance whose type is offered first; None if runs create machines."""
        return self.instances[0] if self.instances else None

    @property
    def machine_numbers(self) -> range:
        """Possible numbers of machines of a run; all instances, if any exist."""
        existing, pending = len(self.instances), max(1, self.backlog.pending)
        return range(existing, existing + 1) if existing else range(1, min(self.max_machines, pending) + 1)


class ReasonCode(StrEnum):
    """Reason of a decision, for programs; the sentence is for users."""

    PAUSED = "paused"
    EMPTY = "nothing-pending"
    BELOW_THRESHOLD = "below-threshold"
    ONLY_FAILED_BEFORE = "only-troubled"
    GPU_IN_USE = "gpu-in-use"
    GPU_MOVING = "gpu-moving"
    THRESHOLD = "threshold-reached"
    MAX_WAIT = "longest-wait-in-reach"
    LAST_SAFE_MOMENT = "last-safe-moment"
    BALANCE = "waiting-costs-a-start"
    QUIET = "quiet-backlog"
    NOT_YET = "start-does-not-pay-yet"
    NOW = "asked-for-now"
    INTERRUPTED = "spot-interrupted"
    CPU_LANE = "done-on-this-machine"
    BUDGET = "budget-spent"
    OUTSIDE_HOURS = "outside-hours"
    BACKING_OFF = "backing-off"
    GPU_MISSING = "gpu-missing"
    OPEN_RUN = "open-run"
    NEVER_STARTED = "never-started"
    DEADLINE = "deadline-passed"


@dataclass(frozen=True, slots=True)
class Reason:
    code: ReasonCode
    sentence: str
    numbers: Mapping[str, float | int | str | None] = field(default_factory=dict)
