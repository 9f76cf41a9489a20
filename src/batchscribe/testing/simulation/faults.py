"""What stands in the way of the controller's calls: outages, partitions, droughts, throttles, bad luck."""

from __future__ import annotations

import random

from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    LaunchError,
    NoCapacityError,
    QuotaError,
    StoreUnavailableError,
    TransientError,
)
from batchscribe.testing.simulation.timeline import Timeline
from batchscribe.testing.simulation.weather import CALM, HOUR, Weather, between, pick

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYCANARYKEY"  # noqa: S105  a canary, and nobody's key
LONGEST_LAG = 20.0
_UNAVAILABLE: dict[str, type[BatchscribeError]] = {
    "compute": ComputeUnavailableError,
    "guard": ComputeUnavailableError,
    "store": StoreUnavailableError,
    "launcher": LaunchError,
}


class VendorError(Exception):
    """What a vendor's library raises below an adapter: it tells more than anybody should see."""


class Trouble:
    """The troubles of one episode, as the gate asks for them; `calm` ends them all."""

    def __init__(self, rng: random.Random, line: Timeline, weather: Weather) -> None:
        self.partitioned_until = 0.0
        self.met = 0
        self._rng = rng
        self._line = line
        self._weather = weather
        self._drought: tuple[float, type[BatchscribeError]] = (0.0, NoCapacityError)

    def calm(self) -> None:
        self._weather, self.partitioned_until = CALM, 0.0
        self._drought = (0.0, NoCapacityError)

    def plan(self, hours: float) -> None:
        """The partitions and droughts of the episode."""
        for _ in range(self._weather.partitions):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._partition)
        for _ in range(self._weather.droughts):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._dry_up)

    def takes(self, name: str) -> float:
        """Seconds that the call lasts."""
        if name.startswith("ledger") or name == "show":
            return 0.0
        if self._line.seconds < self.partitioned_until:
            return 15.0
        drawn = self._rng.random()
        if drawn < self._weather.slow:
            return between(self._rng, 10.0, 60.0)
        if drawn > 1.0 - self._weather.hang:
            return between(self._rng, 0.3 * HOUR, 4 * HOUR)
        return drawn * 0.3

    def stands(self, name: str) -> tuple[BatchscribeError, bool] | None:
        """The error of the call, and whether it has its effect; None where it goes well."""
        kind = name.partition(".")[0]
        if kind == "ledger":
            return self._of_the_ledger()
        unavailable = _UNAVAILABLE.get(kind)
        if unavailable is None:
            return None
        if self._line.seconds < self.partitioned_until:
            return _told(unavailable("no answer: look again")), False
        until, drought = self._drought
        if drought is CredentialsError and self._line.seconds < until and kind in {"compute", "guard"}:
            return _told(CredentialsError("the cloud does not accept these credentials: renew them")), False
        if self._weather.fault and self._rng.random() < self._weather.fault:
            return _told(unavailable("it did not answer: look again")), self._lost(name)
        return None

    def refused(self) -> BatchscribeError | None:
        """Why no machine is to be had for a start; None where one is."""
        until, drought = self._drought
        if self._line.seconds < until and drought is not CredentialsError:
            return _told(drought("the cloud has no machine of this type now: try again later"))
        return None

    def lag(self) -> float:
        if self._weather.stale and self._rng.random() < self._weather.stale:
            return between(self._rng, 0.0, LONGEST_LAG)
        return 0.0

    def _lost(self, name: str) -> bool:
        return not name.startswith("launcher.way") and self._rng.random() < self._weather.lost_reply

    def _of_the_ledger(self) -> tuple[BatchscribeError, bool] | None:
        if self._weather.ledger and self._rng.random() < self._weather.ledger:
            return TransientError("the ledger is held by another process: nothing was changed"), False
        return None

    def _partition(self) -> None:
        if self._weather is not CALM:
            lasts = pick(self._rng, (60.0, 600.0, 3600.0, 3 * HOUR)) * between(self._rng, 0.5, 1.5)
            self.partitioned_until = self._line.seconds + lasts

    def _dry_up(self) -> None:
        if self._weather is not CALM:
            kind = pick(self._rng, (NoCapacityError, NoCapacityError, QuotaError, CredentialsError))
            self._drought = (self._line.seconds + between(self._rng, 0.1 * HOUR, 3 * HOUR), kind)


def _told(error: BatchscribeError) -> BatchscribeError:
    """As an adapter translates it: our line for people, with the vendor's words behind it."""
    error.__cause__ = VendorError(f"AuthFailure: the request was signed with {SECRET}")
    return error
