"""A cloud instance as observed, and whether it is billed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

RUN_TAG = "batchscribe:run"
DEADLINE_TAG = "batchscribe:deadline"
MANIFEST_TAG = "batchscribe:manifest"
"""SHA-256 of the run's last manifest, for a GPU host that starts without ssh."""
MACHINE_TAG = "batchscribe:machine"
"""The run's name of a machine that was created for it, such as RUN-0: known before the cloud has an ID."""
BY_CLIENT = "Client."
"""Prefix of the state reason if a user or its own system stopped the instance; the cloud's is `Server.`."""
STOP_PATIENCE_SECONDS = 600.0
"""From the stop request to `stopped`; a longer stop raises an alarm."""

GUARD_FIRST = timedelta(minutes=10)
GUARD_EVERY = timedelta(minutes=5)
GUARD_LAST = timedelta(minutes=25)
"""Times after a deadline at which the external guard stops the instance. An attempt during `pending` fails,
so there are several; none comes later, because the instance may have another owner by then."""


class InstanceState(StrEnum):
    """States of EC2's instance life cycle; `missing` if there is none."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"
    MISSING = "missing"

    @property
    def billable(self) -> bool:
        """True if billed: EC2 bills `running` only (and stopping while hibernating)."""
        return self is InstanceState.RUNNING

    @property
    def proved_stopped(self) -> bool:
        """True if observed stopped; `missing` proves nothing."""
        return self in _STOPPED

    @property
    def moving(self) -> bool:
        """True in a transitional state: wait for the next one."""
        return self in _MOVING


_STOPPED = frozenset({InstanceState.STOPPED, InstanceState.TERMINATED})
_MOVING = frozenset({InstanceState.PENDING, InstanceState.STOPPING, InstanceState.SHUTTING_DOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """Result of one poll; addresses change with every start."""

    id: str
    state: InstanceState
    type: str = ""
    market: str = ""
    """spot or on-demand, if the provider has several; else empty."""
    zone: str = ""
    """Availability zone, if its price depends on it; else empty."""
    region: str = ""
    """A further region, if it is in one; empty in the run's own."""
    public_address: str | None = None
    private_address: str | None = None
    launched_at: datetime | None = None
    tags: dict[str, str] = field(default_factory=dict)
    state_reason: str = ""
    stopped_at: datetime | None = None
    """When its last stop began, by the cloud's clock; None if unknown."""
    beside: tuple[Instance, ...] = ()
    """Other instances with its name, ended ones too: only if the cloud forgot a client token."""

    @property
    def run(self) -> str | None:
        """The run that claims this instance; an empty tag is no claim."""
        return self.tags.get(RUN_TAG) or None

    @property
    def released(self) -> bool:
        """True if its last claim was released: the tag is empty."""
        return self.tags.get(RUN_TAG) == ""

    @property
    def deadline(self) -> datetime | None:
        """The deadline in its tags, if it is a time."""
        try:
            return datetime.fromisoformat(self.tags.get(DEADLINE_TAG, ""))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Tags of an instance before its start: its run, and the deadline."""

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
