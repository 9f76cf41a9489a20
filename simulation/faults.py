"""What stands in the way of the controller's calls: outages, partitions, droughts, throttles, bad luck."""

from __future__ import annotations

import random
from collections.abc import Callable

from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    LaunchError,
    MisconfiguredError,
    NoCapacityError,
    QuotaError,
    StoreUnavailableError,
    TransientError,
)
from simulation.timeline import Timeline
from simulation.weather import CALM, HOUR, Weather, between, pick

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYCANARYKEY"  # noqa: S105  a canary, and nobody's key
LONGEST_LAG = 20.0
HANG_SECONDS = 900.0
"""A process that hangs is killed then: see wiring.scheduler.HANG_SECONDS."""
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
        self.full_until = 0.0
        self.unwritten = float("-inf")
        """When the ledger did not take something last."""
        self.wrong: Callable[[float], object] = lambda _seconds: None
        """Told of everything that stands in the way of a call, and for how long it does."""
        self._rng = rng
        self._line = line
        self._weather = weather
        self._drought: tuple[float, type[BatchscribeError]] = (0.0, NoCapacityError)

    def calm(self) -> None:
        self._weather, self.partitioned_until, self.full_until = CALM, 0.0, 0.0
        self._drought = (0.0, NoCapacityError)

    def plan(self, hours: float) -> None:
        """The partitions and droughts of the episode."""
        for _ in range(self._weather.partitions):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._partition)
        for _ in range(self._weather.droughts):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._dry_up)
        for _ in range(self._weather.full_disks):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._fill)

    def takes(self, name: str) -> float:
        """Seconds that the call lasts."""
        if name.startswith("ledger") or name == "show":
            return 0.0
        if self._line.seconds < self.partitioned_until:
            return self._lasts(15.0)
        drawn = self._rng.random()
        if drawn < self._weather.slow:
            return self._lasts(between(self._rng, 10.0, 60.0))
        if drawn > 1.0 - self._weather.hang:
            return self._lasts(between(self._rng, 0.3 * HOUR, 4 * HOUR))
        return drawn * 0.3

    def _lasts(self, seconds: float) -> float:
        self.wrong(min(seconds, HANG_SECONDS))
        return seconds

    def stands(self, name: str) -> tuple[BatchscribeError, bool] | None:
        """The error of the call, and whether it has its effect; None where it goes well."""
        found = self._stands(name)
        if found:
            self.wrong(0.0)
        return found

    def _stands(self, name: str) -> tuple[BatchscribeError, bool] | None:
        kind = name.partition(".")[0]
        if kind == "ledger":
            return self._unwritten()
        unavailable = _UNAVAILABLE.get(kind)
        if unavailable is None:
            return None
        if self._line.seconds < self.partitioned_until:
            return _told(unavailable("no answer: look again")), False
        until, drought = self._drought
        if drought is CredentialsError and self._line.seconds < until and kind in {"compute", "guard"}:
            return _told(CredentialsError("the cloud does not accept these credentials: renew them")), False
        if self._weather.fault and self._rng.random() < self._weather.fault:
            return _told(unavailable("it did not answer: look again")), self._lost()
        return None

    def refused(self) -> BatchscribeError | None:
        """Why no machine is to be had for a start; None where one is."""
        until, drought = self._drought
        if self._line.seconds < until and drought is not CredentialsError:
            self.wrong(0.0)
            return _told(drought("the cloud has no machine of this type now: try again later"))
        return None

    def lag(self) -> float:
        return self._late(self._weather.stale)

    def late_tags(self) -> float:
        return self._late(self._weather.late_tags)

    def torn(self) -> bool:
        """Whether what a worker writes next cannot be read."""
        return self._happens(self._weather.torn)

    def _late(self, chance: float) -> float:
        return between(self._rng, 0.0, LONGEST_LAG) if self._happens(chance) else 0.0

    def _happens(self, chance: float) -> bool:
        happens = bool(chance) and self._rng.random() < chance
        if happens:
            self.wrong(0.0)
        return happens

    def _lost(self) -> bool:
        return self._rng.random() < self._weather.lost_reply

    def _unwritten(self) -> tuple[BatchscribeError, bool] | None:
        found = self._of_the_ledger()
        if found:
            self.unwritten = self._line.seconds
        return found

    def _of_the_ledger(self) -> tuple[BatchscribeError, bool] | None:
        if self._line.seconds < self.full_until:
            return MisconfiguredError("the disk of the ledger is full: make room"), False
        if self._weather.ledger and self._rng.random() < self._weather.ledger:
            return TransientError("the ledger is held by another process: nothing was changed"), False
        return None

    def _partition(self) -> None:
        if self._weather is not CALM:
            lasts = pick(self._rng, (60.0, 600.0, 3600.0, 3 * HOUR)) * between(self._rng, 0.5, 1.5)
            self.partitioned_until = self._line.seconds + lasts

    def _fill(self) -> None:
        if self._weather is not CALM:
            self.full_until = self._line.seconds + between(self._rng, 0.1 * HOUR, 3 * HOUR)

    def _dry_up(self) -> None:
        if self._weather is not CALM:
            kind = pick(self._rng, (NoCapacityError, NoCapacityError, QuotaError, CredentialsError))
            self._drought = (self._line.seconds + between(self._rng, 0.1 * HOUR, 3 * HOUR), kind)


def _told(error: BatchscribeError) -> BatchscribeError:
    """As an adapter translates it: our line for people, with the vendor's words behind it."""
    error.__cause__ = VendorError(f"AuthFailure: the request was signed with {SECRET}")
    return error
