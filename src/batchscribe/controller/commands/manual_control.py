"""Manual control: starts the instance without a claim, and stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from batchscribe.controller.context import View
from batchscribe.core.run.instances import STOP_PATIENCE_SECONDS, Claim, Instance, InstanceState
from batchscribe.core.run.orders import HAND, stale_orders
from batchscribe.core.run.waiting import Wait
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    LaunchError,
    MisconfiguredError,
    NotOursError,
    NotStoppedError,
    PortClosedError,
    RefusedError,
    TransientError,
)
from batchscribe.protocols import Clock, Compute, Guard

_GONE = frozenset({InstanceState.MISSING, InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN})


Allowed = Callable[[Instance], None]
"""Raises RefusedError if the observed instance has another owner."""


class _NotThereError(MisconfiguredError):
    """The instance does not exist here, and was not started from here."""


class ManualCompute(Compute, Protocol):
    """A Compute that can also start an instance manually."""

    def start_unclaimed(self, instance: str) -> None:
        """Requests a start without a claim, so no scheduler adopts the instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualTimeouts:
    """Timeouts in seconds: until running, answering and stopped; between polls."""

    up: float = 600.0
    reach: float = 600.0
    refused: float = 90.0
    """For a host that refuses all connections: its system is up, and its ssh server is not."""
    stop: float = STOP_PATIENCE_SECONDS
    force_after: float = 240.0
    """Time before a stop may be forced: forcing loses data that is not on the disk yet."""
    poll: float = 5.0


class ManualControl:
    """Starts and stops one instance; only polls prove its state, and each is shown."""

    def __init__(
        self, compute: ManualCompute, clock: Clock, view: View, instance: str, patience: ManualTimeouts
    ) -> None:
        self._compute = compute
        self._clock = clock
        self._view = view
        self._instance = instance
        self._patience = patience
        self.asked = False
        """True once a start was requested, which may have taken effect."""

    def look(self) -> Instance:
        return self._compute.describe(self._instance)

    def free(self) -> Instance:
        """Polls the instance. Raises NotOursError, MisconfiguredError if it cannot be started."""
        seen = self.look()
        if seen.state is not InstanceState.RUNNING:
            self._check_startable(seen)
        return seen

    def start(self) -> Instance:
        """Starts the instance and returns it running.

        Raises NotOursError if a run claims it, MisconfiguredError, NoCapacityError, and
        ComputeUnavailableError if it does not come up.
        """
        begin = self._clock.monotonic()
        accepted = False
        seen = self.look()
        while seen.state is not InstanceState.RUNNING:
            self._check_startable(seen)
            if self._clock.monotonic() - begin >= self._patience.up:
                raise ComputeUnavailableError(
                    f"{seen.id} did not come up within {self._patience.up / 60:.0f} min, it is {seen.state}: "
                    "stop it with `batchscribe gpu stop`"
                )
            if seen.state is InstanceState.STOPPED:
                if accepted and seen.state_reason:
                    raise ComputeUnavailableError(f"{seen.id} stopped again by itself: {seen.state_reason}")
                accepted = self._check_then_start() or accepted
            self._wait(f"starting {seen.id} ({seen.type})", begin, self._patience.up)
            seen = self.look()
        self._view.clear()
        return seen

    def stop(self, *, force: bool = False, allowed: Allowed | None = None) -> Instance:
        """Stops the instance and returns it observed stopped. `allowed` may refuse the stop.

        Raises NotStoppedError with the cause if it was not observed stopped, and MisconfiguredError if there
        is no such instance.
        """
        try:
            stopped = self._until_stopped(force=force, allowed=allowed)
        except _NotThereError as error:
            raise MisconfiguredError(str(error)) from error
        except (RefusedError, NotStoppedError):
            raise
        except BatchscribeError as error:
            raise self._not_stopped(str(error)) from error
        self._view.clear()
        return stopped

    def reached(self, reach: Callable[[Instance], None]) -> Instance:
        """Waits until `reach` raises no LaunchError any more. Raises one with the last cause."""
        begin, refused = self._clock.monotonic(), 0.0
        while True:
            seen = self.look()
            try:
                reach(seen)
            except LaunchError as error:
                refused = refused + self._patience.poll if isinstance(error, PortClosedError) else 0.0
                late = self._clock.monotonic() - begin >= self._patience.reach
                if late or refused > self._patience.refused:
                    detail = f"{seen.id} is {seen.state}, but cannot be used: {error.advice}"
                    raise LaunchError(detail) from error
                self._wait(str(error), begin, self._patience.reach)
            else:
                self._view.clear()
                return seen

    def _until_stopped(self, *, force: bool, allowed: Allowed | None) -> Instance:
        begin = self._clock.monotonic()
        present = False
        while True:
            waited = self._clock.monotonic() - begin
            try:
                seen = self.look()
                present = present or self._check_present(seen, allowed)
                if seen.state.proved_stopped:
                    return seen
                trouble = f"it is {seen.state}"
                self._ask_for_stop(seen, force=force and waited >= self._patience.force_after)
            except TransientError as error:
                trouble = str(error)
            if waited >= self._patience.stop:
                raise self._not_stopped(f"after {self._patience.stop / 60:.0f} min: {trouble}")
            self._wait(f"stopping {self._instance}: {trouble}", begin)

    def _wait(self, text: str, begin: float, limit: float | None = None) -> None:
        self._view.wait(Wait(text, self._clock.monotonic() - begin, limit))
        self._clock.sleep(self._patience.poll)

    def _ask_for_stop(self, seen: Instance, *, force: bool) -> None:
        if force or seen.state in {InstanceState.RUNNING, InstanceState.PENDING}:
            self._compute.stop(self._instance, force=force)

    def _not_stopped(self, why: str) -> NotStoppedError:
        return NotStoppedError(
            f"{self._instance} was not observed stopped ({why}): check it in the cloud's console now"
        )

    def _check_present(self, seen: Instance, allowed: Allowed | None) -> bool:
        """True if the instance exists and may be stopped. One that we started must exist."""
        if seen.state is InstanceState.MISSING:
            if not self.asked:
                raise _NotThereError(f"there is no {seen.id} here: correct GPU_INSTANCE_ID or AWS_REGION")
            return False
        if allowed:
            allowed(seen)
        return True

    def _check_startable(self, seen: Instance) -> None:
        if seen.state in _GONE:
            raise MisconfiguredError(f"{seen.id} is {seen.state}: correct GPU_INSTANCE_ID or AWS_REGION")
        if seen.run and seen.deadline and seen.deadline > self._clock.now():
            raise NotOursError(
                f"{seen.id} is claimed by run {seen.run} until {seen.deadline:%Y-%m-%d %H:%M} UTC: "
                "wait, or stop that run"
            )

    def _check_then_start(self) -> bool:
        """Requests the start. False if the reply was lost: the next poll shows its result."""
        self.asked = True
        try:
            self._compute.start_unclaimed(self._instance)
        except ComputeUnavailableError:
            return False
        return True


class ManualOrders:
    """Stop orders of a manually controlled instance. Arms one per session, clears stale ones."""

    def __init__(self, guard: Guard, clock: Clock, instance: str) -> None:
        self._guard = guard
        self._clock = clock
        self._instance = instance

    def give(self, session: str, deadline: datetime) -> None:
        """Arms a stop order with this deadline, in place of those of earlier sessions.

        Raises what the guard raises: the session must not begin without an order.
        """
        self._guard.arm(Claim(instance=self._instance, run=session, deadline=deadline))
        for run in sorted(self._guard.armed(self._instance)):
            if run.startswith(HAND) and run != session:
                self.take_back(run)

    def take_back(self, session: str) -> None:
        self._guard.disarm(self._instance, session)

    def clear(self, seen: Instance, *, keep: str | None = None) -> tuple[str, ...]:
        """Disarms orders that would stop the next session, and returns their runs.

        `keep` is the id of our open run.
        """
        armed = self._guard.armed(self._instance)
        stale = stale_orders(armed, seen, keep=keep, now=self._clock.now())
        for run in stale:
            self.take_back(run)
        return stale
