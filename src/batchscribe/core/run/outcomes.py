"""Outcomes of runs."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """Outcome of a run: success, or a kind of failure."""

    COMPLETED = "completed"
    """Every chunk of its batch is done or quarantined."""
    INCOMPLETE = "incomplete"
    """Some chunk of its batch is neither done nor quarantined."""
    TIMED_OUT = "timed-out"
    INTERRUPTED = "interrupted"
    NO_CAPACITY = "no-capacity"
    QUOTA = "quota"
    """The account's quota does not allow the start."""
    CREDENTIALS = "credentials"
    """The cloud did not accept the credentials for the start."""
    THROTTLED = "throttled"
    """The cloud did not accept the start in time: too many requests, or no answer."""
    STAYED_STOPPED = "stayed-stopped"
    """The start was accepted, but the instance stopped again."""
    START_FAILED = "start-failed"
    """The start was refused, or the instance does not exist."""
    LAUNCH_FAILED = "launch-failed"
    """The GPU host was up, but no worker could be started on it."""
    GPU_BROKEN = "gpu-broken"
    """The GPU host is up, but its GPU or its driver is not usable."""
    WORKER_FAILED = "worker-failed"
    WORKER_LOST = "worker-lost"
    """It stalled or died without an exit record."""
    INSTANCE_LOST = "instance-lost"
    """Its instance was stopped from outside, or has another owner now."""
    SPOT_INTERRUPTED = "spot-interrupted"
    """The cloud interrupted its spot machine."""
    HUNG = "hung"
    """Only in runs of version 0.1: its controller hung and was ended by the watchdog."""
    ABANDONED = "abandoned"
    """Its start was not requested in time, or its instance was not free."""

    @property
    def success(self) -> bool:
        return self is Outcome.COMPLETED

    @property
    def no_start(self) -> bool:
        """True if no instance started: nothing was billed, later checks try again."""
        return self in _NO_START


_REFUSED = {Outcome.NO_CAPACITY, Outcome.QUOTA, Outcome.CREDENTIALS, Outcome.THROTTLED, Outcome.START_FAILED}
_NO_START = frozenset({*_REFUSED, Outcome.STAYED_STOPPED})
