"""Manual control: starts the instance without a claim, and stops it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from batchscribe.controller.context import View, Waits
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.orders import MANUAL_PREFIX, stale_orders
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


class ManualControl:
    """Starts and stops one instance; only polls prove its state, and each is shown."""

    def __init__(self, compute: ManualCompute, clock: Clock, view: View, instance: str, waits: Waits) -> None:
        self._compute = compute
        self._clock = clock
        self._view = view
        self._instance = instance
        self._waits = waits
        self.asked = False
        """True once a start was requested, which may have taken effect."""

    def poll(self) -> Instance:
        return self._compute.describe(self._instance)

    def check_free(self) -> Instance:
        """Polls the instance. Raises NotOursError, MisconfiguredError if it cannot be started."""
        seen = self.poll()
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
        seen = self.poll()
        while seen.state is not InstanceState.RUNNING:
            self._check_startable(seen)
            if self._clock.monotonic() - begin >= self._waits.up:
                raise ComputeUnavailableError(
                    f"{seen.id} did not come up within {self._waits.up / 60:.0f} min, it is {seen.state}: "
                    "stop it with `batchscribe gpu stop`"
                )
            if seen.state is InstanceState.STOPPED:
                if accepted and seen.state_reason:
                    raise ComputeUnavailableError(f"{seen.id} stopped again by itself: {seen.state_reason}")
                accepted = self._check_then_start() or accepted
            self._wait_for_poll(f"starting {seen.id} ({seen.type})", begin, self._waits.up)
            seen = self.poll()
        self._view.clear()
        return seen

    def stop(self, *, force: bool = False, allowed: Allowed | None = None) -> Instance:
        """Stops the instance and returns it observed stopped. `allowed` may refuse the stop.

        Raises NotStoppedError with the cause if it was not observed stopped, and MisconfiguredError if there
        is no such instance.
        """
        try:
            stopped = self._stop_until_observed(force=force, allowed=allowed)
        except _NotThereError as error:
            raise MisconfiguredError(str(error)) from error
        except (RefusedError, NotStoppedError):
            raise
        except BatchscribeError as error:
            raise self._make_not_stopped(str(error)) from error
        self._view.clear()
        return stopped

    def await_reachable(self, reach: Callable[[Instance], None]) -> Instance:
        """Waits until `reach` raises no LaunchError any more. Raises one with the last cause."""
        begin, refused = self._clock.monotonic(), 0.0
        while True:
            seen = self.poll()
            try:
                reach(seen)
            except LaunchError as error:
                refused = refused + self._waits.poll if isinstance(error, PortClosedError) else 0.0
                late = self._clock.monotonic() - begin >= self._waits.reach
                if late or refused > self._waits.refused:
                    detail = f"{seen.id} is {seen.state}, but cannot be used: {error.advice}"
                    raise LaunchError(detail) from error
                self._wait_for_poll(str(error), begin, self._waits.reach)
            else:
                self._view.clear()
                return seen

    def _stop_until_observed(self, *, force: bool, allowed: Allowed | None) -> Instance:
        begin = self._clock.monotonic()
        present = False
        while True:
            waited = self._clock.monotonic() - begin
            try:
                seen = self.poll()
                present = present or self._check_present(seen, allowed)
                if seen.state.proved_stopped:
                    return seen
                trouble = f"it is {seen.state}"
                forced = force and waited >= self._waits.force_after
                if forced or seen.state in {InstanceState.RUNNING, InstanceState.PENDING}:
                    self._compute.stop(self._instance, force=forced)
            except TransientError as error:
                trouble = str(error)
            if waited >= self._waits.stop:
                raise self._make_not_stopped(f"after {self._waits.stop / 60:.0f} min: {trouble}")
            self._wait_for_poll(f"stopping {self._instance}: {trouble}", begin)

    def _wait_for_poll(self, text: str, begin: float, limit: float | None = None) -> None:
        self._view.wait(Wait(text, self._clock.monotonic() - begin, limit))
        self._clock.sleep(self._waits.poll)

    def _make_not_stopped(self, why: str) -> NotStoppedError:
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
    """Stop orders of a manually controlled instance, one for each session."""

    def __init__(self, guard: Guard, clock: Clock, instance: str) -> None:
        self._guard = guard
        self._clock = clock
        self._instance = instance

    def arm(self, session: str, deadline: datetime) -> None:
        """Arms a stop order with this deadline, in place of those of earlier sessions.

        Raises what the guard raises: the session must not begin without an order.
        """
        self._guard.arm(Claim(instance=self._instance, run=session, deadline=deadline))
        for run in sorted(self._guard.armed(self._instance)):
            if run.startswith(MANUAL_PREFIX) and run != session:
                self.revoke(run)

    def revoke(self, session: str) -> None:
        self._guard.disarm(self._instance, session)

    def revoke_stale(self, seen: Instance, *, keep: str | None = None) -> tuple[str, ...]:
        """Disarms orders that would stop the next session, and returns their runs.

        `keep` is the id of our open run.
        """
        armed = self._guard.armed(self._instance)
        stale = stale_orders(armed, seen, keep=keep, now=self._clock.now())
        for run in stale:
            self.revoke(run)
        return stale
