"""The instance in a person's hands: started without a claim, stopped until it is seen stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from batchscribe.core.instances import Instance, InstanceState
from batchscribe.errors import (
    ComputeUnavailableError,
    LaunchError,
    MisconfiguredError,
    NotOursError,
    NotStoppedError,
)
from batchscribe.protocols import Clock, Compute

_GONE = frozenset({InstanceState.MISSING, InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN})


class HandCompute(Compute, Protocol):
    """A Compute that a person can start too."""

    def start_unclaimed(self, instance: str) -> None:
        """Asks for the start without a claim, so that no scheduler takes it for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, in seconds: for running, for a box that answers, for stopped, between looks."""

    up: float = 600.0
    reach: float = 600.0
    stop: float = 600.0
    force_after: float = 240.0
    """A stop that may be forced is forced only then: forcing skips what the disk has not got yet."""
    poll: float = 5.0


class Hand:
    """Starts and stops one instance, and believes only what it sees."""

    def __init__(self, compute: HandCompute, clock: Clock, instance: str, patience: Patience) -> None:
        self._compute = compute
        self._clock = clock
        self._instance = instance
        self._patience = patience
        self.asked = False
        """A start was asked for, and may have had its effect."""

    def look(self) -> Instance:
        return self._compute.describe(self._instance)

    def start(self) -> Instance:
        """The instance, running. Raises NotOursError where a run claims it, MisconfiguredError,
        NoCapacityError, ComputeUnavailableError where it does not come up.
        """
        limit = self._clock.monotonic() + self._patience.up
        accepted = False
        seen = self.look()
        while seen.state is not InstanceState.RUNNING:
            self._startable(seen)
            if self._clock.monotonic() >= limit:
                raise ComputeUnavailableError(
                    f"{seen.id} did not come up in time, it is {seen.state}: "
                    "to be sure, `batchscribe gpu stop`"
                )
            if seen.state is InstanceState.STOPPED:
                if accepted and seen.state_reason:
                    raise ComputeUnavailableError(f"{seen.id} stopped again by itself: {seen.state_reason}")
                accepted = self._ask_for_start() or accepted
            self._clock.sleep(self._patience.poll)
            seen = self.look()
        return seen

    def stop(self, *, force: bool = False) -> Instance:
        """The instance, seen stopped. Raises NotStoppedError where it was not seen in time."""
        begin = self._clock.monotonic()
        limit = begin + self._patience.stop
        trouble = ""
        while True:
            try:
                seen = self.look()
                if seen.state.proved_stopped:
                    return seen
                trouble = f"it is {seen.state}"
                forced = force and self._clock.monotonic() - begin >= self._patience.force_after
                if forced or seen.state in {InstanceState.RUNNING, InstanceState.PENDING}:
                    self._compute.stop(self._instance, force=forced)
            except ComputeUnavailableError as error:
                trouble = str(error)
            if self._clock.monotonic() >= limit:
                raise NotStoppedError(
                    f"{self._instance} was not seen stopped after {self._patience.stop / 60:.0f} min "
                    f"({trouble}): look at it in the cloud's console now"
                )
            self._clock.sleep(self._patience.poll)

    def reached(self, probe: Callable[[Instance], object | None]) -> Instance:
        """The instance, as soon as `probe` gets an answer from it. Raises LaunchError."""
        limit = self._clock.monotonic() + self._patience.reach
        while True:
            seen = self.look()
            if probe(seen) is not None:
                return seen
            if self._clock.monotonic() >= limit:
                raise LaunchError(
                    f"{seen.id} is {seen.state}, but cannot be reached over ssh: check its security group"
                )
            self._clock.sleep(self._patience.poll)

    def _startable(self, seen: Instance) -> None:
        if seen.state in _GONE:
            raise MisconfiguredError(f"{seen.id} is {seen.state}: mend GPU_INSTANCE_ID or AWS_REGION")
        if seen.run and seen.deadline and seen.deadline > self._clock.now():
            raise NotOursError(
                f"{seen.id} is claimed by run {seen.run} until {seen.deadline:%Y-%m-%d %H:%M} UTC: "
                "wait, or stop that run"
            )

    def _ask_for_start(self) -> bool:
        """A lost reply changes nothing: the next look shows what it did."""
        self.asked = True
        try:
            self._compute.start_unclaimed(self._instance)
        except ComputeUnavailableError:
            return False
        return True
