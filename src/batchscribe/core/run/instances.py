"""A cloud machine as it was seen, and what that means for the bill."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

RUN_TAG = "batchscribe:run"
DEADLINE_TAG = "batchscribe:deadline"
MANIFEST_TAG = "batchscribe:manifest"
"""SHA-256 of the run's last manifest, for a host that begins without ssh."""
STOP_PATIENCE_SECONDS = 600.0
"""From the stop request to `stopped`; after that it is an alarm."""

GUARD_FIRST = timedelta(minutes=10)
GUARD_EVERY = timedelta(minutes=5)
GUARD_LAST = timedelta(minutes=25)
"""When the guard outside stops an instance, counted from its deadline: a try that falls into `pending`
fails, so there is more than one; and none comes later, when the instance may be in other hands."""


class InstanceState(StrEnum):
    """The states of EC2's instance life cycle, and `missing` where there is no such instance."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"
    MISSING = "missing"

    @property
    def billable(self) -> bool:
        """EC2 bills `running` only; pending and stopping are free (except while hibernating)."""
        return self is InstanceState.RUNNING

    @property
    def proved_stopped(self) -> bool:
        """Seen stopped. `missing` proves nothing: we may be looking in another region or account."""
        return self in _STOPPED

    @property
    def moving(self) -> bool:
        """On its way to another state: worth a wait, not a verdict."""
        return self in _MOVING


_STOPPED = frozenset({InstanceState.STOPPED, InstanceState.TERMINATED})
_MOVING = frozenset({InstanceState.PENDING, InstanceState.STOPPING, InstanceState.SHUTTING_DOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One look at an instance. Addresses change with every start: never keep them."""

    id: str
    state: InstanceState
    type: str = ""
    public_address: str | None = None
    private_address: str | None = None
    launched_at: datetime | None = None
    tags: dict[str, str] = field(default_factory=dict)
    state_reason: str = ""

    @property
    def run(self) -> str | None:
        """The run that claims this instance, or None. A released claim is an empty tag."""
        return self.tags.get(RUN_TAG) or None

    @property
    def released(self) -> bool:
        """Whether its last claim was given back: the tag is there, and empty. Tags that got lost are not."""
        return self.tags.get(RUN_TAG) == ""

    @property
    def deadline(self) -> datetime | None:
        """The deadline in its tags; None where the tag is absent, empty or not a time."""
        try:
            return datetime.fromisoformat(self.tags.get(DEADLINE_TAG, ""))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is written on an instance before it is started: whose it is, and until when."""

    instance: str
    run: str
    deadline: datetime
    manifest: str = ""
    """SHA-256 of the first manifest; empty if the host gets it over ssh."""

    @property
    def tags(self) -> dict[str, str]:
        announced = {MANIFEST_TAG: self.manifest} if self.manifest else {}
        return {RUN_TAG: self.run, DEADLINE_TAG: self.deadline.isoformat()} | announced


RELEASED_TAGS = {RUN_TAG: "", DEADLINE_TAG: "", MANIFEST_TAG: ""}
