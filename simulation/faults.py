"""Faults of the controller's calls."""

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

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYCANARYKEY"  # noqa: S105  a canary, not a real key
LONGEST_LAG = 20.0
HANG_SECONDS = 900.0
"""Time limit of a hung process: see wiring.scheduler.HANG_SECONDS."""
_UNAVAILABLE: dict[str, type[BatchscribeError]] = {
    "compute": ComputeUnavailableError,
    "guard": ComputeUnavailableError,
    "store": StoreUnavailableError,
    "launcher": LaunchError,
}


class VendorError(Exception):
    """Error of a vendor's library; its text holds a secret."""


class Trouble:
    """Faults of one episode, drawn at each call of the gate.

    `calm` ends all.
    """

    def __init__(self, rng: random.Random, line: Timeline, weather: Weather) -> None:
        self.partitioned_until = 0.0
        self.full_until = 0.0
        self.unwritten = float("-inf")
        """Time of the last failed write to the ledger."""
        self.wrong: Callable[[float], object] = lambda _seconds: None
        """Called at each fault of a call, with its duration in seconds."""
        self._rng = rng
        self._line = line
        self._weather = weather
        self._drought: tuple[float, type[BatchscribeError]] = (0.0, NoCapacityError)

    def calm(self) -> None:
        self._weather, self.partitioned_until, self.full_until = CALM, 0.0, 0.0
        self._drought = (0.0, NoCapacityError)

    def plan(self, hours: float) -> None:
        """Plans partitions, times without capacity, and full disks."""
        for _ in range(self._weather.partitions):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._partition)
        for _ in range(self._weather.droughts):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._dry_up)
        for _ in range(self._weather.full_disks):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._fill)

    def takes(self, name: str) -> float:
        """Duration of the call in seconds."""
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

    def find_error(self, name: str) -> tuple[BatchscribeError, bool] | None:
        """(error of the call, True if it still takes effect), or None."""
        found = self._draw_error(name)
        if found:
            self.wrong(0.0)
        return found

    def _draw_error(self, name: str) -> tuple[BatchscribeError, bool] | None:
        kind = name.partition(".")[0]
        if kind == "ledger":
            return self._find_write_error()
        unavailable = _UNAVAILABLE.get(kind)
        if unavailable is None:
            return None
        if self._line.seconds < self.partitioned_until:
            return _with_vendor_cause(unavailable("no answer: will retry")), False
        until, drought = self._drought
        if drought is CredentialsError and self._line.seconds < until and kind in {"compute", "guard"}:
            error = CredentialsError("the cloud does not accept these credentials: renew them")
            return _with_vendor_cause(error), False
        if self._weather.fault and self._rng.random() < self._weather.fault:
            return _with_vendor_cause(unavailable("it did not answer: will retry")), self._is_reply_lost()
        return None

    def refused(self) -> BatchscribeError | None:
        """Error of a start without capacity; None if there is capacity."""
        until, drought = self._drought
        if self._line.seconds < until and drought is not CredentialsError:
            self.wrong(0.0)
            return _with_vendor_cause(drought("the cloud has no machine of this type now: try again later"))
        return None

    def lag(self) -> float:
        return self._draw_age(self._weather.stale)

    def late_tags(self) -> float:
        return self._draw_age(self._weather.late_tags)

    def torn(self) -> bool:
        """True if the next record of a worker is unreadable."""
        return self._draw(self._weather.torn)

    def _draw_age(self, chance: float) -> float:
        return between(self._rng, 0.0, LONGEST_LAG) if self._draw(chance) else 0.0

    def _draw(self, chance: float) -> bool:
        happens = bool(chance) and self._rng.random() < chance
        if happens:
            self.wrong(0.0)
        return happens

    def _is_reply_lost(self) -> bool:
        return self._rng.random() < self._weather.lost_reply

    def _find_write_error(self) -> tuple[BatchscribeError, bool] | None:
        found = self._draw_write_error()
        if found:
            self.unwritten = self._line.seconds
        return found

    def _draw_write_error(self) -> tuple[BatchscribeError, bool] | None:
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


def _with_vendor_cause(error: BatchscribeError) -> BatchscribeError:
    """Adds a vendor's error as the cause, as an adapter does."""
    error.__cause__ = VendorError(f"AuthFailure: the request was signed with {SECRET}")
    return error
