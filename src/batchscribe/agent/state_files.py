"""Run-time state files of the agent for the dead-man.

There are three small files of plain numbers, kept in memory. The dead-man runs as root and reads nothing else
of ours. All times are seconds since boot, which do not change when a clock is set.
"""

from __future__ import annotations

from pathlib import Path

from batchscribe.detached import write_atomically
from batchscribe.errors import MisconfiguredError

READABLE = 0o644


class NoDeadman:
    """State of a host that is never powered off; writes no files."""

    powers_off = False

    def record_claim(self, run: str, *, limit: float, now: float) -> float:  # noqa: ARG002
        return limit

    def record_progress(self, now: float) -> None:
        """Does nothing."""

    def request_power_off(self) -> None:
        """Does nothing: the controller stops the instance, or it is borrowed."""

    def delete_claim(self) -> None:
        """Does nothing."""


class StateFiles:
    """Run-time state files in `folder`, in memory, owned by this user.

    Each method raises MisconfiguredError if its file cannot be written.
    """

    powers_off = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record_claim(self, run: str, *, limit: float, now: float) -> float:
        """Records that a claim was taken, and its limit.

        Returns the limit in force: an earlier agent of this boot may have set it.
        """
        before = self._limit_of(run)
        if before is not None:
            return before
        self.record_progress(now)
        self._write_file("claim", f"{limit:.0f}\n{run}\n")
        return limit

    def record_progress(self, now: float) -> None:
        self._write_file("alive", f"{now:.0f}\n")

    def request_power_off(self) -> None:
        """Requests an immediate power-off."""
        self._write_file("off", "")

    def delete_claim(self) -> None:
        """Deletes the claim's files: the dead-man no longer powers off for it."""
        for name in ("claim", "alive"):
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise self._make_error(name, error) from error

    def _limit_of(self, run: str) -> float | None:
        try:
            limit, named = (self._folder / "claim").read_text().splitlines()
        except (OSError, ValueError):
            return None
        return float(limit) if named == run else None

    def _write_file(self, name: str, text: str) -> None:
        try:
            write_atomically(self._folder / name, text.encode(), mode=READABLE)
        except OSError as error:
            raise self._make_error(name, error) from error

    def _make_error(self, name: str, error: OSError) -> MisconfiguredError:
        path = self._folder / name
        return MisconfiguredError(f"{path} cannot be written ({error.strerror}): the dead-man needs it")
