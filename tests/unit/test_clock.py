from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from batchscribe.adapters.machine.clock import Interrupts
from batchscribe.errors import InterruptedRunError
from batchscribe.testing.clock import FakeClock


@pytest.fixture
def ignored() -> Iterator[signal.Signals]:
    """A signal that this process ignores, as under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


def test_a_signal_that_is_ignored_stays_ignored(ignored: signal.Signals) -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(ignored)
        assert interrupts.signal is None
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_every_signal_to_end_is_heard_and_given_back() -> None:
    before = [signal.getsignal(number) for number in Interrupts.SIGNALS]
    for number in Interrupts.SIGNALS:
        with pytest.raises(InterruptedRunError, match=number.name), Interrupts():
            signal.raise_signal(number)
    assert [signal.getsignal(number) for number in Interrupts.SIGNALS] == before


GENEROUS = 120
"""Seconds after which a process that should have ended by itself fails its test."""
HANG = "os.read(os.pipe()[0], 1)"
SPIN = "while True: pass"
LEFT = "signal.getitimer(signal.ITIMER_REAL)[0]"


def run_limited(seconds: float, *lines: str, after: str = "") -> int:
    """Runs lines under a time limit, and one more after it, in a process of its own; its exit status."""
    script = [
        "import os, signal, time",
        "from batchscribe.adapters.machine.clock import Interrupts, TimeLimit",
        f"with Interrupts(), TimeLimit({seconds}) as limit:",
        *(f"    {line}" for line in lines),
        after,
    ]
    command = [sys.executable, "-c", "\n".join(script)]
    return subprocess.run(command, timeout=GENEROUS, check=False).returncode


@pytest.mark.parametrize("stuck", [HANG, SPIN], ids=["hangs", "spins"])
def test_a_process_that_never_returns_from_a_call_dies(stuck: str) -> None:
    assert run_limited(0.2, "limit.restart()", stuck) == -signal.SIGALRM


def test_a_process_dies_in_its_very_first_call_too() -> None:
    """It may hold the lock by then, and no step of a run has restarted the limit yet."""
    assert run_limited(0.2, "time.sleep(20)") == -signal.SIGALRM


def test_a_step_of_a_run_restarts_the_limit() -> None:
    almost_over = "signal.setitimer(signal.ITIMER_REAL, 500)"
    assert run_limited(1000, "limit.restart()", almost_over, "limit.restart()", f"assert {LEFT} > 900") == 0


def test_a_time_limit_ends_with_its_block() -> None:
    assert run_limited(1000, "limit.restart()", after=f"assert {LEFT} == 0") == 0


def test_a_sleep_that_is_cut_makes_no_further_call_and_passes_no_time() -> None:
    clock = FakeClock(uptime=0.0)
    made: list[int] = []

    def cut() -> None:
        made.append(1)
        clock.cut = True

    clock.at(5, cut)
    clock.at(6, lambda: made.append(2))
    clock.after = lambda: made.append(0)
    clock.sleep(10)
    assert (made, clock.monotonic()) == ([1, 0], 5.0)
    clock.cut = False
    clock.sleep(1)
    assert (made, clock.monotonic()) == ([1, 0, 2, 0], 6.0)
