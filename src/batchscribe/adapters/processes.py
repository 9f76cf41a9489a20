"""Ends a tick that hangs, and all that it started: by its control group, or process by process.

Linux only. The group is taken only where it is the one of our own unit, for what is in it is then ours;
the shell that a person started a tick from has a group too. Where its file cannot be written (a unit
with `User=` owns none), and without systemd, each process is ended by its identity.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from batchscribe.adapters.schedule import SERVICE, TAGGED_SERVICE
from batchscribe.core.holding import Holder
from batchscribe.detached import Identity, descendants, end, grasped, identity

GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""Where version 2 of the control groups is mounted, alone or beside version 1."""
log = structlog.get_logger("batchscribe")


class LocalProcesses:
    """The processes of this machine."""

    def __init__(self, *, unit: str = SERVICE, groups: Sequence[Path] = GROUPS) -> None:
        self._unit = unit
        self._groups = groups

    def runs(self, holder: Holder) -> bool:
        return identity(holder.pid) == _known(holder)

    def end(self, holder: Holder, *, force: bool = False) -> bool:
        known = _known(holder)
        if not force:
            return end(known)
        with grasped(known) as handle:
            if handle is None:
                return False
            below = descendants(holder.pid)
            group = self._group(holder.pid)
            if group is None or not _killed(group):
                end(known, force=True)
                for each in below:
                    end(each, force=True)
        return True

    def _group(self, pid: int) -> Path | None:
        """The folder of our unit's control group, where this process is in it."""
        named = _group_of(pid)
        # Never the group that we are in ourselves, whatever it is called.
        if not named or not self._is_tick(Path(named).name) or named == _group_of(os.getpid()):
            return None
        for top in self._groups:
            folder = top / named.lstrip("/")
            if (folder / "cgroup.kill").exists() and str(pid) in _text(folder / "cgroup.procs").split():
                return folder
        return None

    def _is_tick(self, unit: str) -> bool:
        return unit == self._unit or bool(TAGGED_SERVICE.fullmatch(unit))


def _known(holder: Holder) -> Identity:
    return Identity(holder.pid, holder.boot, holder.ticks)


def _killed(group: Path) -> bool:
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError as error:
        log.info("its control group cannot be killed: process by process", why=error.strerror)
        return False
    return True


def _group_of(pid: int) -> str:
    """The path of a process in version 2 of the control groups; empty where that is not known."""
    for line in _text(Path(f"/proc/{pid}/cgroup")).splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
