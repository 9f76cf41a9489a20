"""Manual control: starts the instance without a claim, and stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from batchscribe.controller.context import View, Waits
from batchscribe.core.run.instances import Claim, Instance, InstanceState
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
from batchscribe.protocols import Clock, Guard

MANUAL_PREFIX = "hand-"
"""Name prefix of a manual session, in place of a run's id."""
_GONE = frozenset({InstanceState.MISSING, InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN})


Allowed = Callable[[Instance], None]
"""Raises RefusedError if the observed instance has another owner."""


class _NotThereError(MisconfiguredError):
    """The instance does not exist here, and was not started from here."""


class ManualCompute(Protocol):
    """The calls of a Compute for manual control, and a manual start."""

    def describe(self, instance: str) -> Instance: ...

    def stop(self, instance: str, *, force: bool = False) -> None: ...

    def start_unclaimed(self, instance: str) -> None:
        """Requests a start without a claim, so no scheduler adopts the instance."""


@dataclass(eq=False)
class ManualControl:
    """Starts and stops one instance, and shows each poll."""

    compute: ManualCompute
    clock: Clock
    view: View
    instance: str
    waits: Waits
    asked: bool = False
    """True once a start was requested, which may have taken effect."""

    def poll(self) -> Instance:
        return self.compute.describe(self.instance)

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
        begin = self.clock.monotonic()
        accepted = False
        seen = self.poll()
        while seen.state is not InstanceState.RUNNING:
            self._check_startable(seen)
            if self.clock.monotonic() - begin >= self.waits.up:
                raise ComputeUnavailableError(
                    f"{seen.id} did not come up within {self.waits.up / 60:.0f} min, it is {seen.state}: "
                    "stop it with `batchscribe gpu stop`"
                )
            if seen.state is InstanceState.STOPPED:
                if accepted and seen.state_reason:
                    raise ComputeUnavailableError(f"{seen.id} stopped again by itself: {seen.state_reason}")
                accepted = self._check_then_start() or accepted
            self._wait_for_poll(f"starting {seen.id} ({seen.type})", begin, self.waits.up)
            seen = self.poll()
        self.view.clear()
        return seen

    def stop(self, *, force: bool = False, allowed: Allowed | None = None) -> Instance:
        """Stops the instance and returns it observed stopped.

        `allowed` may refuse the stop. Raises NotStoppedError with the cause if it was not observed stopped,
        and MisconfiguredError if there is no such instance.
        """
        try:
            stopped = self._stop_until_observed(force=force, allowed=allowed)
        except _NotThereError as error:
            raise MisconfiguredError(str(error)) from error
        except (RefusedError, NotStoppedError):
            raise
        except BatchscribeError as error:
            raise self._make_not_stopped(str(error)) from error
        self.view.clear()
        return stopped

    def await_reachable(self, reach: Callable[[Instance], None]) -> Instance:
        """Waits until `reach` raises no LaunchError, or raises its last cause."""
        begin, refused = self.clock.monotonic(), 0.0
        while True:
            seen = self.poll()
            try:
                reach(seen)
            except LaunchError as error:
                refused = refused + self.waits.poll if isinstance(error, PortClosedError) else 0.0
                late = self.clock.monotonic() - begin >= self.waits.reach
                if late or refused > self.waits.refused:
                    detail = f"{seen.id} is {seen.state}, but cannot be used: {error.advice}"
                    raise LaunchError(detail) from error
                self._wait_for_poll(str(error), begin, self.waits.reach)
            else:
                self.view.clear()
                return seen

    def _stop_until_observed(self, *, force: bool, allowed: Allowed | None) -> Instance:
        begin = self.clock.monotonic()
        present = False
        while True:
            waited = self.clock.monotonic() - begin
            try:
                seen = self.poll()
                present = present or self._check_present(seen, allowed)
                if seen.state.proved_stopped:
                    return seen
                trouble = f"it is {seen.state}"
                forced = force and waited >= self.waits.force_after
                if forced or seen.state in {InstanceState.RUNNING, InstanceState.PENDING}:
                    self.compute.stop(self.instance, force=forced)
            except TransientError as error:
                trouble = str(error)
            if waited >= self.waits.stop:
                raise self._make_not_stopped(f"after {self.waits.stop / 60:.0f} min: {trouble}")
            self._wait_for_poll(f"stopping {self.instance}: {trouble}", begin)

    def _wait_for_poll(self, text: str, begin: float, limit: float | None = None) -> None:
        self.view.wait(Wait(text, self.clock.monotonic() - begin, limit))
        self.clock.sleep(self.waits.poll)

    def _make_not_stopped(self, why: str) -> NotStoppedError:
        return NotStoppedError(
            f"{self.instance} was not observed stopped ({why}): check it in the cloud's console now"
        )

    def _check_present(self, seen: Instance, allowed: Allowed | None) -> bool:
        """True if the instance exists and may be stopped."""
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
        if seen.run and seen.deadline and seen.deadline > self.clock.now():
            raise NotOursError(
                f"{seen.id} is claimed by run {seen.run} until {seen.deadline:%Y-%m-%d %H:%M} UTC: "
                "wait, or stop that run"
            )

    def _check_then_start(self) -> bool:
        """Requests the start; False if the reply was lost."""
        self.asked = True
        try:
            self.compute.start_unclaimed(self.instance)
        except ComputeUnavailableError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class ManualOrders:
    """Stop orders of a manually controlled instance, one for each session."""

    guard: Guard
    clock: Clock
    instance: str

    def arm(self, session: str, deadline: datetime) -> None:
        """Arms this session's stop order, in place of earlier sessions' ones.

        Raises what the guard raises: the session must not begin without an order.
        """
        self.guard.arm(Claim(instance=self.instance, run=session, deadline=deadline))
        for run in sorted(self.guard.armed(self.instance)):
            if run.startswith(MANUAL_PREFIX) and run != session:
                self.revoke(run)

    def revoke(self, session: str) -> None:
        self.guard.disarm(self.instance, session)

    def revoke_stale(self, seen: Instance, *, keep: str | None = None) -> tuple[str, ...]:
        """Disarms orders that would stop a later run, and returns their runs.

        An order is needed if it belongs to our open run `keep`, if its run claims the instance with a
        deadline ahead (another scheduler's), or if it guards a manual session whose instance is not stopped.
        """
        claimed = seen.deadline is not None and seen.deadline > self.clock.now()
        needed = {keep, seen.run if claimed else None}
        guarding = () if seen.state.proved_stopped else (MANUAL_PREFIX,)
        armed = sorted(self.guard.armed(self.instance))
        stale = tuple(run for run in armed if run not in needed and not run.startswith(guarding))
        for run in stale:
            self.revoke(run)
        return stale
