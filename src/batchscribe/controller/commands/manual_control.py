"""The instance in a person's hands: started without a claim, stopped until it is seen stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from batchscribe.core.run.instances import STOP_PATIENCE_SECONDS, Claim, Instance, InstanceState
from batchscribe.core.run.orders import stale_orders
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    LaunchError,
    MisconfiguredError,
    NotOursError,
    NotStoppedError,
    RefusedError,
    TransientError,
)
from batchscribe.protocols import Clock, Compute, Guard

_GONE = frozenset({InstanceState.MISSING, InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN})


Allowed = Callable[[Instance], None]
"""Raises RefusedError where the instance, as it was seen, is in other hands."""


class _NotThereError(MisconfiguredError):
    """There is no such instance here, and there never was."""


class HandCompute(Compute, Protocol):
    """A Compute that a person can start too."""

    def start_unclaimed(self, instance: str) -> None:
        """Asks for the start without a claim, so that no scheduler takes it for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, in seconds: for running, for a box that answers, for stopped, between looks."""

    up: float = 600.0
    reach: float = 600.0
    stop: float = STOP_PATIENCE_SECONDS
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

    def free(self) -> Instance:
        """The instance as it is now. Raises NotOursError, MisconfiguredError where it cannot be started."""
        seen = self.look()
        if seen.state is not InstanceState.RUNNING:
            self._startable(seen)
        return seen

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

    def stop(self, *, force: bool = False, allowed: Allowed | None = None) -> Instance:
        """The instance, seen stopped. What `allowed` raises when it is first seen ends it.

        Raises NotStoppedError with the cause whenever it was not seen stopped, MisconfiguredError at once
        where there is no such instance.
        """
        try:
            return self._until_stopped(force=force, allowed=allowed)
        except _NotThereError as error:
            raise MisconfiguredError(str(error)) from error
        except (RefusedError, NotStoppedError):
            raise
        except BatchscribeError as error:
            raise self._not_stopped(str(error)) from error

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

    def _until_stopped(self, *, force: bool, allowed: Allowed | None) -> Instance:
        begin = self._clock.monotonic()
        met = False
        while True:
            waited = self._clock.monotonic() - begin
            try:
                seen = self.look()
                met = met or self._met(seen, allowed)
                if seen.state.proved_stopped:
                    return seen
                trouble = f"it is {seen.state}"
                self._ask_for_stop(seen, force=force and waited >= self._patience.force_after)
            except TransientError as error:
                trouble = str(error)
            if waited >= self._patience.stop:
                raise self._not_stopped(f"after {self._patience.stop / 60:.0f} min: {trouble}")
            self._clock.sleep(self._patience.poll)

    def _ask_for_stop(self, seen: Instance, *, force: bool) -> None:
        if force or seen.state in {InstanceState.RUNNING, InstanceState.PENDING}:
            self._compute.stop(self._instance, force=force)

    def _not_stopped(self, why: str) -> NotStoppedError:
        return NotStoppedError(
            f"{self._instance} was not seen stopped ({why}): look at it in the cloud's console now"
        )

    def _met(self, seen: Instance, allowed: Allowed | None) -> bool:
        """Whether the instance is there, and ours to stop. What we started ourselves must be somewhere."""
        if seen.state is InstanceState.MISSING:
            if not self.asked:
                raise _NotThereError(f"there is no {seen.id} here: mend GPU_INSTANCE_ID or AWS_REGION")
            return False
        if allowed:
            allowed(seen)
        return True

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


class HandOrders:
    """The stop orders around an instance in a person's hands: one for the session, none left of others."""

    def __init__(self, guard: Guard, clock: Clock, instance: str) -> None:
        self._guard = guard
        self._clock = clock
        self._instance = instance

    def give(self, session: str, seconds: float) -> None:
        """Has the instance stopped outside this machine if nobody has stopped it soon after `seconds`.

        Raises what the guard raises: the session must not begin without it.
        """
        deadline = self._clock.now() + timedelta(seconds=seconds)
        self._guard.arm(Claim(instance=self._instance, run=session, deadline=deadline))

    def take_back(self, session: str) -> None:
        self._guard.disarm(self._instance, session)

    def clear(self, seen: Instance, *, keep: str | None = None) -> tuple[str, ...]:
        """Takes back what would stop the next session, and says whose orders those were; `keep` is the
        open run of ours.
        """
        armed = self._guard.armed(self._instance)
        stale = stale_orders(armed, seen, keep=keep, now=self._clock.now())
        for run in stale:
            self.take_back(run)
        return stale
