"""Real processes: ended by who they are, never by their number."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from batchscribe.adapters.processes import LocalProcesses
from batchscribe.core.holding import Holder
from batchscribe.detached import descendants, identity

FAMILY = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
leaf = "import time; print('up', flush=True); time.sleep(600)"
middle = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {leaf!r}]); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", middle], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process that does not listen, its child in a session of its own, and a grandchild."""
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    below = psutil.Process(process.pid).children(recursive=True)
    yield process
    for each in below:
        if each.is_running():
            each.kill()
    process.kill()
    process.wait()
    process.stdout.close()


def holder(pid: int) -> Holder:
    known = identity(pid)
    assert known is not None
    return Holder(pid=pid, boot=known.boot, ticks=known.ticks, since=0.0, alive=0.0)


def gone(pids: list[int]) -> bool:
    for _ in range(500):
        if not any(identity(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_it_is_killed_with_all_that_it_started(family: subprocess.Popen[str]) -> None:
    processes, known = LocalProcesses(), holder(family.pid)
    below = [each.pid for each in descendants(family.pid)]
    assert len(below) == 2
    assert processes.runs(known)
    assert processes.end(known)
    assert processes.runs(known), "it does not listen"
    assert processes.end(known, force=True)
    assert gone([family.pid, *below])
    assert not processes.runs(known)
    assert not processes.end(known, force=True)


@pytest.mark.parametrize("other", [{"ticks": 1}, {"boot": "an earlier one"}])
def test_whoever_has_its_number_now_is_left_alone(
    family: subprocess.Popen[str], other: dict[str, object]
) -> None:
    processes, known = LocalProcesses(), replace(holder(family.pid), **other)  # type: ignore[arg-type]
    assert not processes.runs(known)
    assert not processes.end(known)
    assert not processes.end(known, force=True)
    assert family.poll() is None
    assert len(descendants(family.pid)) == 2


def test_a_number_that_nobody_has_is_nobody(family: subprocess.Popen[str]) -> None:
    known = holder(family.pid)
    family.kill()
    family.wait()
    assert not LocalProcesses().runs(known)
    assert not LocalProcesses().end(known)
    assert not LocalProcesses().end(known, force=True)


def groups(folder: Path, unit: str, pid: int) -> Path:
    """What control groups look like to somebody who may write them."""
    group = folder / unit
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(f"1\n{pid}\n")
    (group / "cgroup.kill").write_text("")
    return group / "cgroup.kill"


@pytest.mark.parametrize(
    ("named", "listed", "killed"),
    [
        ("ours.service", True, True),
        ("ours.service", False, False),
        ("theirs.scope", True, False),
        ("batch-transcribe-scheduler-0a1b2c3d.service", True, True),
    ],
)
def test_a_control_group_is_killed_only_where_it_is_our_unit_s(
    tmp_path: Path,
    family: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    named: str,
    listed: bool,
    killed: bool,
) -> None:
    kill = groups(tmp_path, named, family.pid if listed else 2)
    monkeypatch.setattr(
        "batchscribe.adapters.processes._group_of", lambda pid: f"/{named}" if pid == family.pid else "/x"
    )
    below = [each.pid for each in descendants(family.pid)]
    assert LocalProcesses(unit="ours.service", groups=[tmp_path]).end(holder(family.pid), force=True)
    assert kill.read_text() == ("1" if killed else "")
    if not killed:
        assert gone([family.pid, *below]), "then each by itself"


def test_the_group_that_the_watchdog_is_in_itself_is_never_killed(
    tmp_path: Path, family: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = groups(tmp_path, "ours.service", family.pid)
    monkeypatch.setattr("batchscribe.adapters.processes._group_of", lambda _pid: "/ours.service")
    assert LocalProcesses(unit="ours.service", groups=[tmp_path]).end(holder(family.pid), force=True)
    assert kill.read_text() == ""
    assert gone([family.pid])
