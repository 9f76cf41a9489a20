"""What the box's agent leaves for the dead-man: three small files of plain numbers, gone with the power.

The dead-man is root's, and reads nothing else of ours. All times are seconds since boot, which no setting
of a clock moves.
"""

from __future__ import annotations

from pathlib import Path

from batchscribe.detached import write_atomically
from batchscribe.errors import MisconfiguredError

READABLE = 0o644


class NoDeadman:
    """A host that must not, or cannot, be powered off: its state files would have no reader."""

    powers_off = False

    def take(self, run: str, *, limit: float, now: float) -> float:  # noqa: ARG002
        return limit

    def alive(self, now: float) -> None:
        """Does nothing."""

    def off(self) -> None:
        """Does nothing: the controller stops the instance, or the instance is not ours."""

    def release(self) -> None:
        """Does nothing."""


class MarkerFiles:
    """Markers in `folder`, which lies in memory and belongs to this user. Each word raises
    MisconfiguredError where its marker cannot be written.
    """

    powers_off = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, run: str, *, limit: float, now: float) -> float:
        """Says that a claim was taken up, and until when. Returns the limit in force: an earlier agent
        of this boot may have set it.
        """
        before = self._limit_of(run)
        if before is not None:
            return before
        self.alive(now)
        self._write("claim", f"{limit:.0f}\n{run}\n")
        return limit

    def alive(self, now: float) -> None:
        """Says that there was progress."""
        self._write("alive", f"{now:.0f}\n")

    def off(self) -> None:
        """Asks for the power to be switched off, now."""
        self._write("off", "")

    def release(self) -> None:
        """Takes the claim's markers away: the dead-man has nothing to do here any more."""
        for name in ("claim", "alive"):
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise self._trouble(name, error) from error

    def _limit_of(self, run: str) -> float | None:
        try:
            limit, named = (self._folder / "claim").read_text().splitlines()
        except (OSError, ValueError):
            return None
        return float(limit) if named == run else None

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomically(self._folder / name, text.encode(), mode=READABLE)
        except OSError as error:
            raise self._trouble(name, error) from error

    def _trouble(self, name: str, error: OSError) -> MisconfiguredError:
        path = self._folder / name
        return MisconfiguredError(f"{path} cannot be written ({error.strerror}): the dead-man goes by it")
