"""The tick's lock: one holder at most, whatever lies in the way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.errors import LockHeldError, MisconfiguredError
from batchscribe.testing.clock import FakeClock

HOLD = """
import sys
from pathlib import Path
from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.adapters.machine.clock import SystemClock
with FileTickLock(Path(sys.argv[1]), SystemClock(), copy=None).held():
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys, time
from pathlib import Path
from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.errors import LockHeldError
inside, won = Path(sys.argv[2]), 0
for _ in range(20):
    try:
        with FileTickLock(Path(sys.argv[1]), SystemClock(), copy=None).held():
            inside.mkdir()
            won += 1
            inside.rmdir()
    except LockHeldError:
        pass
print(won)
"""


def lock(folder: Path, copy: Path | None = None) -> FileTickLock:
    return FileTickLock(folder / "tick.lock", FakeClock(), copy=copy)


def lay(trap: str, path: Path, victim: Path) -> None:
    match trap:
        case "symlink":
            path.symlink_to(victim)
        case "hardlink":
            path.hardlink_to(victim)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_it_says_who_holds_it_and_since_when(tmp_path: Path) -> None:
    made = lock(tmp_path)
    assert made.holder() is None
    with made.held():
        text = (tmp_path / "tick.lock").read_text()
        assert re.fullmatch(rf"{os.getpid()} 2026-11-23T12:00:00\+00:00\n", text)
        assert made.holder() == text.strip()
    assert made.holder() is None
    assert (tmp_path / "tick.lock").exists(), "it is never unlinked"


def test_a_second_tick_is_told_who_is_at_it(tmp_path: Path) -> None:
    process = holder(tmp_path / "tick.lock")
    with pytest.raises(LockHeldError, match=str(process.pid)) as raised, lock(tmp_path).held():
        pass
    assert raised.value.exit_code == 0
    process.communicate()


def test_after_sigkill_the_next_tick_runs_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path / "tick.lock")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with lock(tmp_path).held():
        pass


def test_what_the_file_says_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "tick.lock").write_text(f"{os.getppid()} 2026-11-23T11:59:59+00:00\n")
    with lock(tmp_path).held():
        pass


def test_racers_never_hold_it_together(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RACE, str(tmp_path / "tick.lock"), str(tmp_path / "inside")]
    racers = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    told = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, told
    assert sum(int(out) for out, _ in told) >= 20


@pytest.mark.parametrize("trap", ["symlink", "fifo", "folder"])
def test_a_trap_in_its_place_is_refused_and_left_alone(tmp_path: Path, trap: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "tick.lock"
    victim.write_text("precious")
    lay(trap, path, victim)
    with pytest.raises(MisconfiguredError), lock(tmp_path).held():
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("trap", ["symlink", "hardlink", "fifo", "folder"])
def test_the_information_copy_overwrites_nothing_that_is_not_ours(tmp_path: Path, trap: str) -> None:
    victim, copy = tmp_path / "victim", tmp_path / "batch-transcribe.lock"
    victim.write_text("precious")
    lay(trap, copy, victim)
    with lock(tmp_path, copy).held():
        pass
    assert victim.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that belongs to somebody else")
def test_the_information_copy_leaves_a_foreign_file_alone(tmp_path: Path) -> None:
    copy = tmp_path / "batch-transcribe.lock"
    copy.write_text("theirs")
    os.chown(copy, 65534, 65534)
    with lock(tmp_path, copy).held():
        pass
    assert copy.read_text() == "theirs"


def test_the_information_copy_shows_pid_and_time_while_held(tmp_path: Path) -> None:
    copy = tmp_path / "batch-transcribe.lock"
    with lock(tmp_path, copy).held():
        assert copy.read_text().startswith(f"{os.getpid()} 2026-11-23T12:00:00")
    assert not copy.exists()


def test_the_information_copy_of_another_holder_stays(tmp_path: Path) -> None:
    copy = tmp_path / "batch-transcribe.lock"
    with lock(tmp_path, copy).held():
        copy.write_text("99999999 2026-11-23T12:00:00+00:00\n")
    assert copy.read_text().startswith("99999999 ")


def test_a_pass_may_wait_for_the_one_before_it(tmp_path: Path) -> None:
    process = holder(tmp_path / "tick.lock")
    patient = threading.Timer(0.1, process.communicate)
    patient.start()
    with lock(tmp_path).held(patience=60):
        pass
    patient.join()


def test_the_lock_of_a_holder_that_is_stopped_stays_held(tmp_path: Path) -> None:
    """A process that only stands still may go on at any time: nothing is taken from it."""
    process = holder(tmp_path / "tick.lock")
    process.send_signal(signal.SIGSTOP)
    made = lock(tmp_path)
    with pytest.raises(LockHeldError), made.held(patience=0.1):
        pass
    assert made.holder() is not None
    process.kill()
    process.communicate()
    assert made.holder() is None, "the text of the file decides nothing"


def test_a_killed_holder_that_hung_frees_the_lock(tmp_path: Path) -> None:
    """What the time limit of a process does to one that never returns from a call."""
    process = holder(tmp_path / "tick.lock")
    process.send_signal(signal.SIGALRM)
    process.communicate()
    with lock(tmp_path).held():
        pass
