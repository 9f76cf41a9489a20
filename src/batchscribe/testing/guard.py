"""In-memory guard that validates like EventBridge and fires its orders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from batchscribe.adapters.aws.schedules import GROUP, StopOrder, make_order
from batchscribe.core.run.instances import Claim
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.protocols import Clock
from batchscribe.testing.compute import FaultPlan
from batchscribe.testing.eventbridge import refusals

ROLE = "arn:aws:iam::123456789012:role/batchscribe-guard"
Plan = Callable[[float, Callable[[], object]], object]


@dataclass(frozen=True, slots=True)
class Firing:
    """One try of an order; `error` if it failed to stop."""

    at: datetime
    instance: str
    run: str
    error: BatchscribeError | None = None


@dataclass(slots=True)
class _Standing:
    order: StopOrder
    tries: deque[datetime]


class FakeGuard(FaultPlan):
    """A protocols.Guard whose orders call `stop(instance)`.

    Tries are at the deadline + 10, 15 and 20 minutes.
    It uses the clock's time: if a simulator moves the clock, `fire_due` makes the due tries, and
    `next_due` is the moment of the next. With `plan` (FakeClock.at) the guard plans its tries itself. A try
    whose stop raises has failed, is not repeated, and is recorded in `fired`; after its last try an
    order is deleted. `fail` plans faults of the calls and of `fire`. `role` and `groups` are those of the
    account: without them arming is refused.
    """

    description = "a double: fires in memory"

    def __init__(
        self,
        clock: Clock,
        stop: Callable[[str], object],
        *,
        plan: Plan | None = None,
        role: str = ROLE,
        groups: frozenset[str] = frozenset({GROUP}),
    ) -> None:
        super().__init__()
        self.fired: list[Firing] = []
        self.role = role
        self.groups = groups
        self._clock = clock
        self._stop = stop
        self._plan = plan
        self._standing: dict[tuple[str, str], _Standing] = {}
        self._soonest: datetime | None = None

    def arm(self, claim: Claim) -> None:
        self.fire_due()
        with self._meet_fault("arm", claim.instance) as applied:
            if applied:
                self._arm_order(make_order(claim))

    def disarm(self, instance: str, run: str) -> None:
        self.fire_due()
        with self._meet_fault("disarm", instance) as applied:
            if applied:
                self._standing.pop((instance, run), None)
                self._set_soonest()

    def armed(self, instance: str) -> frozenset[str]:
        self.fire_due()
        with self._meet_fault("armed", instance):
            return self.standing(instance)

    def standing(self, instance: str) -> frozenset[str]:
        """Runs with an order now, without the faults of `armed`."""
        self.fire_due()
        return frozenset(run for guarded, run in self._standing if guarded == instance)

    def next_due(self) -> datetime | None:
        """Time of the next try; None without an order."""
        return self._soonest

    def fire_due(self) -> None:
        """Makes every due try, in order."""
        now = self._clock.now()
        while self._soonest is not None and self._soonest <= now:
            standing = min(self._standing.values(), key=_next_try)
            at = standing.tries.popleft()
            if not standing.tries:
                del self._standing[standing.order.instance, standing.order.run]
            self._set_soonest()
            self._fire_order(standing.order, at)

    def _fire_order(self, order: StopOrder, at: datetime) -> None:
        fault = self._take_fault("fire")
        error = fault.error if fault else None
        try:
            if fault is None or fault.applied:
                self._stop(order.instance)
        except BatchscribeError as refused:
            error = refused
        self.fired.append(Firing(at, order.instance, order.run, error))

    def _arm_order(self, order: StopOrder) -> None:
        known = self._standing.get((order.instance, order.run))
        if known and known.order == order:
            return
        now = self._clock.now()
        if refused := refusals(order.request(self.role), now, groups=self.groups):
            raise MisconfiguredError(f"the guard was not armed: {'; '.join(refused)}")
        tries = deque(each for each in order.tries if each >= now)
        self._standing[order.instance, order.run] = _Standing(order, tries)
        self._set_soonest()
        if self._plan:
            for each in tries:
                self._plan((each - now).total_seconds(), self.fire_due)

    def _set_soonest(self) -> None:
        self._soonest = min(map(_next_try, self._standing.values()), default=None)


def _next_try(standing: _Standing) -> datetime:
    return standing.tries[0]
